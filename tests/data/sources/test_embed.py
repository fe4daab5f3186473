import re

import numpy as np
import polars as pl
import pydicom
import pytest
from pydicom.data import get_testdata_file

from remind_jax.data import check, dataset, splits
from remind_jax.data.manifest import decode
from remind_jax.data.sources import embed
from remind_jax.errors import UserError
from tests.data.image_files import write_dicom, write_picture, write_png_header
from tests.data.sources import embed_files
from tests.data.sources.embed_files import ACC, both_views, finding, image, write_tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return embed_files.write_release(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def manifest(folder):
    return embed.load(folder, image_size=32)


def left_out(manifest):
    """Reasons and counts from the note."""
    text = next(note.message for note in manifest.notes if "left out" in note.message)
    return {reason: int(count) for count, reason in re.findall(r"(\d+) ([^,]+)", text.split("left out: ")[1])}


def rows_by_exam(manifest):
    return {int(row["sample"].split("_")[1]) - ACC: row for row in manifest.table.iter_rows(named=True)}


def test_which_exams_and_views_are_kept(manifest):
    rows = rows_by_exam(manifest)
    assert {exam: row["density"] for exam, row in rows.items()} == {1: "B", 2: "C", 3: "A", 10: "D"}
    views = {exam: [name for name in embed.MODALITIES if row[name]] for exam, row in rows.items()}
    assert views == {
        1: ["2d_cc", "2d_mlo"],
        2: ["c_view_cc", "c_view_mlo", "2d_cc", "2d_mlo"],
        3: ["2d_mlo"],
        10: ["c_view_cc", "2d_cc"],
    }
    assert manifest.schema.classes == ("A", "B", "C", "D")
    assert manifest.labels.tolist() == [1, 2, 0, 3]
    assert manifest.title == "EMBED"


def test_ids_keep_all_their_digits(manifest):
    assert rows_by_exam(manifest)[1]["sample"] == f"10000001_{ACC + 1}"
    assert manifest.table["sample"].n_unique() == 4
    assert manifest.table["patient"].to_list() == ["10000001", "10000001", "10000002", "10000009"]
    assert len({float(ACC + i) for i in range(10)}) < 10, "the ids of the test must need more than a float"


def test_what_was_left_out_is_counted(manifest):
    assert left_out(manifest) == {
        "exams of density 5 (male)": 1,
        "exams without a density": 1,
        "exams whose findings disagree on the density": 1,
        "files that are neither 2D nor C-view": 1,
        "files of views other than CC and MLO": 2,
        "spot or magnification files": 1,
        "files that show an implant": 1,
        "further files of a view that the sample already has": 2,
        "exams with a density but no usable image": 2,
        # 4, 5 and 6, whose density was not usable, and 9, which has no finding.
        "exams with images but no usable density": 4,
    }
    assert any("4 exams of 3 patients" in note.message for note in manifest.notes)
    assert not any(note.fatal for note in manifest.notes)


def test_the_first_file_in_the_order_of_the_table_is_taken(tmp_path):
    findings, files = [finding(1, 1, 2.0)], [image(1, 1, "2D", "CC", number=n) for n in (3, 1, 2)]
    write_tables(tmp_path, findings, files)
    for row in files:
        embed_files.write_mammogram(embed_files.path_of(tmp_path, row))
    assert embed.load(tmp_path).table["2d_cc"].to_list() == [
        "images/cohort_2/10000001/1.2.1/1.2.1.1/2D_CC_L_3.dcm",
    ]


def test_pixels_are_scaled_and_turned(folder):
    manifest = embed.load(folder, image_size=128)
    rows = rows_by_exam(manifest)
    order = list(rows)
    raw = decode(manifest, np.arange(4))
    values = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(float)
    expected = np.rint(255 * (values - values.min()) / (values.max() - values.min()))
    # Exam 2 is of a right breast (anterior side first), exam 10 of a left one; both files hold the CT image.
    right = raw["2d_cc"][order.index(2)]
    left = raw["2d_cc"][order.index(10)]
    assert right.shape == (128, 128, 1)
    assert right.dtype == np.uint8
    assert np.abs(right[..., 0] - expected).max() <= 1
    np.testing.assert_array_equal(left[:, ::-1], right)
    assert (raw["c_view_cc"][order.index(1)] == 0).all()
    np.testing.assert_array_equal(raw["present"][order.index(10)], [True, False, True, False])


def test_breasts_as_samples(folder):
    manifest = embed.load(folder, unit="breast")
    samples = {
        name.split("_", 1)[1]: row for name, row in zip(manifest.table["sample"], manifest.presence, strict=True)
    }
    assert {name: int(row.sum()) for name, row in samples.items()} == {
        f"{ACC + 1}_L": 2,
        f"{ACC + 1}_R": 2,
        f"{ACC + 2}_R": 4,
        f"{ACC + 3}_L": 1,
        f"{ACC + 10}_L": 2,
    }
    table = manifest.table.filter(pl.col("sample").str.contains(str(ACC + 1)))
    assert table["density"].to_list() == ["B", "B"]
    assert table["patient"].n_unique() == 1
    assert all("_R_" in path for path in table.filter(pl.col("sample").str.ends_with("_R"))["2d_cc"])


def test_the_two_dates_of_an_exam_may_differ(folder):
    manifest = embed.load(folder, key="study_date")
    # The files of exam 3 were acquired a day after the date in the clinical table.
    assert [name.split("_")[1] for name in manifest.table["sample"]] == ["2015-03-02", "2015-03-03", "2015-03-11"]


def test_exams_of_one_day_are_merged_by_date_only(tmp_path):
    day = {"study_date_anon": "2015-03-09"}
    findings = [finding(1, 1, 2.0, **day), finding(1, 2, 2.0, **day)]
    files = [image(1, 1, "2D", "CC", **day), image(1, 2, "2D", "MLO", study_date_anon="2015-03-09 00:00:00")]
    write_tables(tmp_path, findings, files)
    for row in files:
        embed_files.write_mammogram(embed_files.path_of(tmp_path, row))
    assert embed.load(tmp_path).presence.sum(axis=1).tolist() == [1, 1]
    assert embed.load(tmp_path, key="study_date").presence.sum(axis=1).tolist() == [2]


def test_reduced_tables_without_the_implant_tag(folder, manifest, tmp_path, monkeypatch):
    columns = tuple(name for name in embed_files.METADATA if name != "BreastImplantPresent")
    monkeypatch.setattr(embed_files, "METADATA", columns)
    write_tables(tmp_path, *embed_files.release(), ending="_reduced")
    for row in embed_files.release()[1]:
        target = embed_files.path_of(tmp_path, row)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(embed_files.path_of(folder, row))
    other = embed.load(tmp_path, image_size=32)
    assert set(rows_by_exam(other)) == {1, 2, 3, 7, 10}
    assert any("no column BreastImplantPresent" in note.message for note in other.notes)
    assert not any("no column" in note.message for note in manifest.notes)


@pytest.mark.parametrize("suffix", [".png", "_conv.png"])
def test_converted_files(tmp_path, suffix):
    findings, files = [finding(1, 1, 2.0)], both_views(1, 1, "2D", "L")
    write_tables(tmp_path, findings, files)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    for row in files:
        path = embed_files.path_of(tmp_path, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path.with_name(path.stem + suffix), pixels)
    manifest = embed.load(tmp_path, suffix=suffix, image_size=8)
    np.testing.assert_array_equal(decode(manifest, np.array([0]))["2d_mlo"][0, ..., 0], pixels)


def test_files_below_the_root_itself(tmp_path):
    write_tables(tmp_path, [finding(1, 1, 2.0)], [image(1, 1, "2D", "CC")])
    embed_files.write_mammogram(embed_files.path_of(tmp_path, image(1, 1, "2D", "CC")))
    (tmp_path / "images" / "cohort_2").rename(tmp_path / "cohort_2")
    (tmp_path / "images").rmdir()
    assert embed.load(tmp_path).table["2d_cc"][0].startswith("cohort_2/")


def test_the_frequencies_stand_beside_the_papers(manifest):
    rows = {row["group"]: row for row in dataset.cohort(manifest)}
    assert rows["2d_cc+2d_mlo"] == {"group": "2d_cc+2d_mlo", "n": 1, "fraction": 0.25, "published": 0.578}
    assert rows["2d_cc"] == {"group": "2d_cc", "n": 0, "fraction": 0.0, "published": 0.030}
    # Every one of the four has a combination of the paper.
    assert sum(row["n"] for row in rows.values()) == 4
    assert rows.keys() == dict(embed.PUBLISHED).keys()
    assert sum(share for _, share in embed.PUBLISHED) == pytest.approx(1)


def test_the_checks_find_nothing_fatal(manifest):
    split = np.array([splits.TRAIN, splits.TRAIN, splits.TRAIN, splits.TRAIN], np.int8)
    assert not [found for found in check.find_problems(manifest, split) if found.fatal]


# ---- malformed input ------------------------------------------------------------------------------------------------


def small(folder, findings=None, files=None, pixels=True):
    """One exam with two files, or what is given."""
    files = files or both_views(1, 1, "2D", "L")
    write_tables(folder, findings or [finding(1, 1, 2.0)], files)
    if pixels:
        for row in files:
            embed_files.write_mammogram(embed_files.path_of(folder, row))
    return [embed_files.path_of(folder, row) for row in files]


def refusal(folder, **options):
    with pytest.raises(UserError) as caught:
        embed.load(folder, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "10000001" not in text
    assert str(ACC + 1) not in text
    return text


@pytest.mark.parametrize("part", ["clinical", "metadata"])
def test_a_missing_table(tmp_path, part):
    small(tmp_path)
    (tmp_path / "tables" / f"EMBED_OpenData_{part}.csv").unlink()
    assert f"neither EMBED_OpenData_{part}.csv nor EMBED_OpenData_{part}_reduced.csv" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("part", "column"),
    [
        ("clinical", "tissueden"),
        ("clinical", "acc_anon"),
        ("metadata", "anon_dicom_path"),
        ("metadata", "FinalImageType"),
        ("metadata", "spot_mag"),
    ],
)
def test_a_missing_column(tmp_path, part, column):
    small(tmp_path)
    path = tmp_path / "tables" / f"EMBED_OpenData_{part}.csv"
    path.write_text(path.read_text().replace(column, column.upper() + "2", 1))
    assert f"EMBED_OpenData_{part}.csv lacks the column '{column}'" in refusal(tmp_path)


def test_the_laterality_is_needed_for_breasts_only(tmp_path):
    small(tmp_path)
    path = tmp_path / "tables" / "EMBED_OpenData_metadata.csv"
    path.write_text(path.read_text().replace("ImageLateralityFinal", "Laterality", 1))
    assert embed.load(tmp_path).table.height == 1
    assert "ImageLateralityFinal" in refusal(tmp_path, unit="breast")


def test_an_empty_table(tmp_path):
    small(tmp_path)
    (tmp_path / "tables" / "EMBED_OpenData_clinical.csv").write_text("")
    assert "cannot be read as a CSV table" in refusal(tmp_path)


def test_densities_that_are_not_numbers(tmp_path):
    small(tmp_path, [finding(1, 1, 2.0), finding(1, 1, "dense")])
    assert "'tissueden' holds something that is not a number (row 2)" in refusal(tmp_path)


def test_ids_in_scientific_notation(tmp_path):
    small(tmp_path, [finding(1, 1, 2.0, acc_anon="9.87654E+15")])
    assert "'acc_anon' holds numbers in scientific notation" in refusal(tmp_path)


def test_ids_with_a_decimal_point(tmp_path):
    small(tmp_path, [finding(1, 1, 2.0, acc_anon=f"{ACC + 1}.0")])
    assert embed.load(tmp_path).table.height == 1


def test_no_usable_exam(tmp_path):
    small(tmp_path, [finding(1, 1, 5.0)])
    assert "no usable exam (1 exams of density 5 (male)" in refusal(tmp_path)


def test_a_file_that_is_not_there(tmp_path):
    findings = [finding(1, 1, 2.0), finding(2, 2, 3.0), finding(3, 3, 3.0)]
    files = [*both_views(1, 1, "2D", "L"), *both_views(2, 2, "2D", "L"), image(3, 3, "2D", "CC")]
    paths = small(tmp_path, findings, files)
    paths[0].unlink()
    paths[4].unlink()
    assert "E007 column '2d_cc' (2d_cc): 2 cells (rows 1, 3) naming a file that is not there" in refusal(tmp_path)
    manifest = embed.load(tmp_path, bad_files="missing")
    assert manifest.presence[:, 2:].tolist() == [[False, True], [True, True]]
    assert left_out(manifest) == {"exams of which no file is usable": 1}
    assert any(note.code == "W106" and "2 cells" in note.message for note in manifest.notes)


def test_no_file_at_all(tmp_path):
    small(tmp_path, pixels=False)
    for bad_files in ("refuse", "missing"):
        assert "E007" in refusal(tmp_path, bad_files=bad_files)


def test_files_that_must_not_be_decoded(tmp_path):
    paths = small(tmp_path)
    write_dicom(paths[0], None, Modality="MG")
    assert "DICOM without pixels" in refusal(tmp_path)
    write_dicom(paths[0], np.zeros((4, 4), np.uint16), Rows=60_000, Columns=60_000, Modality="MG")
    assert "claims more than" in refusal(tmp_path)
    write_png_header(paths[0], 60_000, 60_000)
    assert "claims more than" in refusal(tmp_path)
    paths[0].write_text("not an image")
    assert "E007" in refusal(tmp_path)


def test_a_path_out_of_the_folder(tmp_path):
    files = [image(1, 1, "2D", "CC", anon_dicom_path=f"{embed_files.SERVER}../../secret.dcm")]
    small(tmp_path, files=files, pixels=False)
    assert "E006" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "patient"}, "unit must be one of exam, breast"),
        ({"key": "date"}, "key must be one of acc_anon, study_date"),
        ({"suffix": "png"}, "suffix must be one of"),
        ({"bad_files": "ignore"}, "bad_files must be refuse or missing"),
    ],
)
def test_wrong_options(folder, options, message):
    assert message in refusal(folder, **options)


def test_no_folder(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
