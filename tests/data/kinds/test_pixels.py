"""Images and volumes in manifests: from files and cells to batches, and what plain models see of them."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import check_data
from remind_jax.data import builder, check, files, preprocess
from remind_jax.data.kinds import KINDS, images
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.kinds.pixels import shrink
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.reading import load_manifest, read_manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from tests.data.image_files import ramp, write_dicom, write_picture, write_png_header
from tests.data.manifest_files import edit_cell, edit_table, write_image_manifest

SIZES = {"image_size": 10, "frames": 3}


def read(folder, **options):
    return read_manifest(folder, **SIZES | options)


def first(folder, column):
    """The first row that has `column`, and its file."""
    cells = pl.read_csv(folder / "manifest.csv", infer_schema=False)[column]
    row = int(np.flatnonzero(cells.is_not_null())[0])
    return row, folder / cells[row]


def prepare(manifest, cache):
    return builder.prepare(manifest, Preprocessor.fit(manifest, np.arange(12), FitOptions(8, 20)), cache)


def damage(path):
    """Cuts a file in the middle of its pixels; its header stays sound."""
    path.write_bytes(path.read_bytes()[:-20])


def test_a_folder_with_images_reads_without_notes_and_decodes(tmp_path):
    folder = write_image_manifest(tmp_path)
    manifest = read(folder)
    assert manifest.notes == ()
    assert check.find_problems(manifest, None) == []
    assert [modality.shape for modality in manifest.schema.modalities] == [(10, 10, 3), (10, 10, 1), (3, 10, 10, 1), ()]
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    here = np.stack([table[name].is_not_null().to_numpy() for name in ("fundus", "mammo", "flow")], axis=1)
    np.testing.assert_array_equal(manifest.presence[:, :3], here)
    rows = np.array([5, 0, 5, 17, 11])
    raw = decode(manifest, rows)
    for name in ("fundus", "mammo", "flow"):
        shape = next(m.shape for m in manifest.schema.modalities if m.name == name)
        assert raw[name].dtype == np.uint8
        assert raw[name].shape == (5, *shape)
        for values, cell in zip(raw[name], table[name].gather(rows).to_list(), strict=True):
            expected = np.zeros(shape, np.uint8) if cell is None else images.read(folder / cell, shape)
            np.testing.assert_array_equal(values, expected)
    assert raw["flow"].any()


def test_every_file_has_its_record(tmp_path):
    manifest = read(write_image_manifest(tmp_path))
    cells = [cell for name in ("fundus", "mammo", "flow") for cell in manifest.table[name].drop_nulls().to_list()]
    assert sorted(manifest.files) == sorted(cells)
    assert all(record.size == (tmp_path / cell).stat().st_size for cell, record in manifest.files.items())


def test_digest_changes_with_size_frames_and_content(tmp_path):
    folder = write_image_manifest(tmp_path)
    digests = [read(folder).digest, read(folder).digest, read(folder, image_size=12).digest]
    digests.append(read(folder, frames=4).digest)
    write_picture(first(folder, "fundus")[1], ramp(channels=3, seed=77))
    digests.append(read(folder).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


def with_faults(folder):
    """One file of each fault; the rows (from 1) by fault."""
    cells = pl.read_csv(folder / "manifest.csv", infer_schema=False)["fundus"].to_list()
    for name, write in (
        ("huge.png", lambda path: write_png_header(path, 100_000, 100_000)),
        ("text.png", lambda path: path.write_text("Jane Doe")),
        ("empty.png", lambda path: path.write_bytes(b"")),
    ):
        write(folder / name)
    cells[3], cells[5], cells[7], cells[9] = "huge.png", "text.png", "empty.png", "gone.png"
    edit_table(folder, fundus=cells)
    return {"100 million pixels": 4, "not png, jpeg": 6, "empty file": 8, "not there": 10}


def test_bad_files_are_e007_each_with_row_reason_and_remedy(tmp_path):
    folder = write_image_manifest(tmp_path)
    rows = with_faults(folder)
    notes = load_manifest(folder, **SIZES).notes
    assert [(note.code, note.fatal) for note in notes] == [("E007", True)] * 4
    for reason, row in rows.items():
        (message,) = [note.message for note in notes if reason in note.message]
        assert f"column 'fundus' (fundus): 1 cell (row {row}) " in message
        assert "data.bad_files" in message
        assert "Jane" not in message
    with pytest.raises(UserError, match=r"^E007.*; E007") as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_bad_files_can_be_read_as_missing_and_are_counted(tmp_path):
    folder = write_image_manifest(tmp_path)
    before = read(folder)
    rows = with_faults(folder)
    cut_row, path = first(folder, "mammo")
    damage(path)
    manifest = read(folder, bad_files="missing")
    assert [(note.code, note.fatal) for note in manifest.notes] == [("W106", False)] * 5
    assert all("read as missing" in note.message for note in manifest.notes)
    gone = {(row - 1, 0) for row in rows.values()} | {(cut_row, 1)}
    expected = before.presence.copy()
    for place in gone:
        expected[place] = False
    np.testing.assert_array_equal(manifest.presence, expected)
    findings = check.find_problems(manifest)
    assert [finding.code for finding in findings].count("W106") == 5
    assert not any(finding.fatal for finding in findings)
    raw = decode(manifest, np.arange(24))
    assert not raw["mammo"][cut_row].any()
    assert manifest.digest != before.digest


def test_a_body_that_is_cut_is_found_when_it_is_decoded(tmp_path):
    folder = write_image_manifest(tmp_path)
    row, path = first(folder, "fundus")
    damage(path)
    assert [note.code for note in load_manifest(folder, **SIZES).notes] == ["E007"]
    quick = read(folder)  # looks at headers only
    with pytest.raises(UserError, match=rf"E007 column 'fundus' \(fundus\): row {row + 1} names.*cut short"):
        decode(quick, np.arange(24))
    with pytest.raises(UserError, match="E007"):
        prepare(quick, tmp_path / "cache")
    lenient = read(folder, bad_files="missing")
    assert not lenient.presence[row, 0]
    assert not prepare(lenient, tmp_path / "cache")["fundus"].read(np.array([row])).any()


def test_missing_is_no_way_out_of_a_wrong_folder(tmp_path):
    folder = write_image_manifest(tmp_path)
    shutil.rmtree(folder / "flow")
    with pytest.raises(UserError, match=r"E007 column 'flow'.*not there; no file of the column"):
        read(folder, bad_files="missing")


def test_missing_covers_unreadable_files_only(tmp_path):
    folder = write_image_manifest(tmp_path)
    edit_cell(folder, "fundus", 4, "../x.png")
    edit_cell(folder, "mammo", 5, "-2")
    with pytest.raises(UserError, match=r"E006 column 'fundus'.*E009 column 'mammo'"):
        read(folder, bad_files="missing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_files": "skip"}, "bad_files must be refuse or missing"),
        ({"image_size": 0}, "must be positive"),
        ({"frames": 0}, "must be positive"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read(write_image_manifest(tmp_path, n=2), **options)


def test_a_file_that_goes_away_is_one_line_without_its_path(tmp_path):
    folder = write_image_manifest(tmp_path)
    manifest = read(folder)
    row, path = first(folder, "flow")
    path.unlink()
    with pytest.raises(UserError, match=rf"E007 column 'flow' \(flow\): row {row + 1} .*No such file") as caught:
        decode(manifest, np.arange(24))
    assert path.name not in str(caught.value)


def test_w103_copied_images(tmp_path):
    folder = write_image_manifest(tmp_path)
    assert "W103" not in [finding.code for finding in check.find_problems(read(folder))]
    for column in ("fundus", "flow"):
        cells = pl.read_csv(folder / "manifest.csv", infer_schema=False)[column].drop_nulls().to_list()
        shutil.copy(folder / cells[0], folder / cells[2])
    found = [finding.message for finding in check.find_problems(read(folder)) if finding.code == "W103"]
    assert [message.split(":")[0] for message in found] == ["fundus", "flow"]


def test_images_come_back_from_the_shards_and_the_preprocessor_as_decoded(tmp_path):
    manifest = read(write_image_manifest(tmp_path))
    columns = prepare(manifest, tmp_path / "cache")
    rows = np.array([7, 2, 2, 19, 0])
    raw = expected = decode(manifest, rows)
    for name in ("fundus", "mammo", "flow"):
        read_back = columns[name].read(rows)
        assert read_back.dtype == np.uint8
        np.testing.assert_array_equal(read_back, expected[name])
    preprocessor = Preprocessor.fit(manifest, np.arange(12), FitOptions(8, 20))
    preprocessor = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    kinds = {name: (spec.kind, spec.shape) for name, spec in preprocessor.inputs.items()}
    assert kinds["fundus"] == ("image", (10, 10, 3))
    assert kinds["flow"] == ("volume", (3, 10, 10, 1))
    batch = preprocessor.encode(raw)
    for name in ("fundus", "mammo", "flow"):
        assert batch[name].dtype == np.uint8
        np.testing.assert_array_equal(batch[name], expected[name])
    raw["present"] = np.zeros_like(raw["present"])
    assert not any(preprocessor.encode(raw)[name].any() for name in ("fundus", "mammo", "flow"))
    other = decode(read(tmp_path, image_size=12), rows)
    with pytest.raises(UserError, match=r"E008 fundus: pixels are \[12, 12, 3\], in training \[10, 10, 3\]"):
        preprocessor.encode(other)


# ---- in memory ------------------------------------------------------------------------------------------------------


def in_memory(n=30, dtype=np.uint8):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (n, 2, 4, 5, 3)).astype(dtype)
    here = rng.random(n) < 0.6
    index = pl.Series([None] * n, dtype=pl.Int64)
    index[np.flatnonzero(here)] = np.arange(here.sum())
    table = pl.DataFrame(
        {
            "id": [f"s{i}" for i in range(n)],
            "who": [f"secret{i}" for i in range(n)],
            "y": ["0", "1"] * (n // 2),
            "x": rng.normal(size=n),
            "flow": pl.Series(values[here]).gather(index),
        }
    )
    modalities = (Modality("labs", "tabular", ("x",)), Modality("flow", "volume", ("flow",), shape=(2, 4, 5, 3)))
    return Manifest(Schema("t", "id", "who", "y", ("0", "1"), modalities), table), values, here


def test_pixels_in_cells_decode_and_are_prepared(tmp_path):
    manifest, values, here = in_memory()
    assert check.find_problems(manifest) == []
    np.testing.assert_array_equal(manifest.presence[:, 1], here)
    expected = np.where(here[:, None, None, None, None], values, 0)
    raw = decode(manifest, np.arange(30))["flow"]
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw, expected)
    columns = prepare(manifest, tmp_path)
    np.testing.assert_array_equal(columns["flow"].read(np.array([9, 4])), expected[[9, 4]])


def test_pixels_in_cells_are_part_of_the_digest():
    manifest, _, here = in_memory()
    table = manifest.table
    flipped = decode(manifest, np.arange(30))["flow"]
    flipped[np.flatnonzero(here)[-1], 1, 3, 4, 2] ^= 1
    index = pl.Series([None] * 30, dtype=pl.Int64)
    index[np.flatnonzero(here)] = np.arange(here.sum())
    other = table.with_columns(flow=pl.Series(flipped[here]).gather(index))
    same = table.with_columns(flow=table["flow"])
    assert dataclasses.replace(manifest, table=same).digest == manifest.digest
    assert dataclasses.replace(manifest, table=other).digest != manifest.digest


def test_cells_of_another_type_or_shape_are_e008():
    manifest, _, _ = in_memory(dtype=np.int16)
    (finding,) = check.find_problems(manifest)
    assert (finding.code, finding.fatal) == ("E008", True)
    manifest, _, _ = in_memory()
    modalities = (manifest.schema.modalities[0], dataclasses.replace(manifest.schema.modalities[1], shape=(2, 4, 5, 1)))
    other = dataclasses.replace(manifest, schema=dataclasses.replace(manifest.schema, modalities=modalities))
    assert "[2, 4, 5, 1]" in check.find_problems(other)[0].message


def test_w103_the_same_volume_in_two_cells():
    manifest, _, here = in_memory()
    cells = manifest.table["flow"].gather(np.where(here, np.flatnonzero(here)[0], np.flatnonzero(~here)[0]))
    copied = dataclasses.replace(manifest, table=manifest.table.with_columns(flow=cells))
    (finding,) = check.find_problems(copied)
    assert finding.code == "W103"
    assert "secret" not in finding.message


def test_files_of_a_manifest_in_memory_are_checked(tmp_path):
    manifest, _, _ = in_memory()
    np.save(tmp_path / "good.npy", np.zeros((2, 4, 5), np.uint8))
    (tmp_path / "bad.npy").write_text("x")
    modalities = (manifest.schema.modalities[0], dataclasses.replace(manifest.schema.modalities[1], stored="file"))
    schema = dataclasses.replace(manifest.schema, modalities=modalities)
    for name, expected in (("good.npy", []), ("bad.npy", ["E007"])):
        table = manifest.table.with_columns(flow=pl.Series([name] + [None] * 29))
        found = check.find_problems(Manifest(schema, table, tmp_path))
        assert [finding.code for finding in found] == expected


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_blocks_shrink_with_the_size_of_the_pixels():
    rows = np.arange(9000)

    def sizes(kind, shape):
        cut = preprocess.blocks(rows, KINDS[kind].spec(shape))
        np.testing.assert_array_equal(np.concatenate(cut), rows)
        return len(cut[0])

    assert sizes("image", (8, 8, 3)) == sizes("text", (16,)) == 4096
    assert sizes("volume", (4, 224, 224, 3)) == 32 * 2**20 // (4 * 224 * 224 * 3)
    assert sizes("text", (2**14,)) == 512  # whose ids have 4 bytes
    assert sizes("volume", (100, 1000, 1000, 3)) == 1


def test_blocks_of_any_size_give_the_same_shards(tmp_path, monkeypatch):
    manifest = read(write_image_manifest(tmp_path))
    expected = decode(manifest, np.arange(24))
    monkeypatch.setattr(preprocess, "_BLOCK_BYTES", 5 * 3 * 10 * 10)
    columns = prepare(manifest, tmp_path / "cache")
    assert len(list(columns["flow"].folder.rglob("*.array_record*"))) > 1
    np.testing.assert_array_equal(columns["flow"].read(np.arange(24)), expected["flow"])


def test_scanning_does_not_depend_on_the_order_in_which_threads_end(tmp_path, monkeypatch):
    folder = write_image_manifest(tmp_path)
    with_faults(folder)
    notes = load_manifest(folder, **SIZES).notes
    monkeypatch.setattr(files, "THREADS", 1)
    assert load_manifest(folder, **SIZES).notes == notes


# ---- windows, contrast, folders of slices ---------------------------------------------------------------------------


def one_column(folder, kind, cells):
    """A manifest whose only modality is `scan`, of a kind."""
    entry = {"kind": kind, "column": "scan", "channels": 1}
    content = {"version": 1, "name": "x", "sample_id": "stay", "patient_id": "stay", "modalities": {"scan": entry}}
    content["label"] = {"column": "died", "classes": ["0", "1"]}
    (folder / "schema.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    ids, labels = [f"s{i}" for i in range(len(cells))], [str(i % 2) for i in range(len(cells))]
    pl.DataFrame({"stay": ids, "died": labels, "scan": cells}).write_csv(folder / "manifest.csv")
    return folder


def hot(folder):
    """Eight DICOM images, the third with one pixel that makes all others black."""
    for i in range(8):
        values = ramp(16, 16, seed=i).astype(np.uint16)
        values[0, 0] = 65535 if i == 2 else 0
        write_dicom(folder / f"{i}.dcm", values, WindowCenter=128, WindowWidth=256)
    return one_column(folder, "image", [f"{i}.dcm" for i in range(8)])


def test_a_picture_without_contrast_is_told_with_its_row_and_the_key(tmp_path, capsys):
    folder = hot(tmp_path)
    (note,) = load_manifest(folder, **SIZES).notes
    assert (note.code, note.fatal) == ("W110", False)
    assert "column 'scan' (scan): 1 cell (row 3) naming a picture without contrast" in note.message
    assert "data.window=percentile" in note.message
    for window in ("dicom", "percentile"):
        assert load_manifest(folder, window=window, **SIZES).notes == ()
    assert check_data.run([str(folder), "--window=dicom"]) == 0
    assert "W110" not in capsys.readouterr().out
    assert check_data.run([str(folder)]) == 0
    assert "warning W110" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"data\.window must be one of stored, dicom, percentile, not 'auto'"):
        read(folder, window="auto")


def test_a_window_reaches_pixels_and_digest_and_new_rows_keep_to_it(tmp_path):
    folder = hot(tmp_path)
    stored, window = read(folder), read(folder, window="dicom")
    assert stored.digest != window.digest
    rows = np.arange(8)
    pixels = [decode(each, rows)["scan"] for each in (stored, window)]
    expected = np.stack([images.read(folder / f"{i}.dcm", (10, 10, 1), "dicom") for i in range(8)])
    np.testing.assert_array_equal(pixels[1], expected)
    assert not np.array_equal(*pixels)
    fitted = Preprocessor.fit(window, rows, FitOptions(8, 50)).fitted["scan"]
    assert type(fitted).from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted
    assert fitted.adopt(window.schema.modalities[0], "x") == window.schema.modalities[0]
    with pytest.raises(UserError, match=r"'scan' was read by data\.window=stored, in the run dicom"):
        fitted.adopt(stored.schema.modalities[0], "x")


def slices(folder, count, step, seed=0):
    folder.mkdir()
    for i in range(count):
        place = {"ImagePositionPatient": [0, 0, step * i], "InstanceNumber": i}
        write_dicom(folder / f"{count - i}.dcm", ramp(seed=seed + i).astype(np.uint16) * 16, **place)
    return folder.name


def test_folders_are_volumes_with_a_record_of_all_their_files(tmp_path):
    cells = [slices(tmp_path / f"ct{i}", 4, 2.0, seed=10 * i) for i in range(4)]
    folder = one_column(tmp_path, "volume", cells)
    manifest = read(folder)
    (note,) = manifest.notes
    assert (note.code, note.fatal) == ("I001", False)
    assert "slices of 4 volumes are 2 mm apart" in note.message
    expected = np.stack([images.read(folder / cell, (3, 10, 10, 1)) for cell in cells])
    np.testing.assert_array_equal(decode(manifest, np.arange(4))["scan"], expected)
    sizes = {cell: sum(path.stat().st_size for path in (folder / cell).iterdir()) for cell in cells}
    assert {cell: record.size for cell, record in manifest.files.items()} == sizes
    assert len({record.sha256 for record in manifest.files.values()}) == 4
    assert dataclasses.replace(manifest, files={}).digest == manifest.digest
    for path in (folder / cells[2]).iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert read(folder).digest != manifest.digest
        path.write_bytes(content)
    assert read(folder).digest == manifest.digest
    path.rename(path.with_name("other"))
    assert read(folder).digest != manifest.digest


def test_uneven_and_different_distances_of_slices_are_told(tmp_path):
    cells = [slices(tmp_path / "a", 4, 2.0), slices(tmp_path / "b", 4, 5.0), slices(tmp_path / "c", 5, 2.0)]
    (tmp_path / "c" / "3.dcm").unlink()
    notes = read(one_column(tmp_path, "volume", cells)).notes
    assert [(note.code, note.fatal) for note in notes] == [("W111", False)] * 2
    assert "1 cell (row 3) naming a folder of slices at uneven distances" in notes[0].message
    assert "slices of 3 volumes are 2 to 5 mm apart" in notes[1].message


def test_a_folder_is_no_image_and_a_bad_one_is_e007_or_missing(tmp_path):
    cells = [slices(tmp_path / "a", 3, 2.0), slices(tmp_path / "b", 3, 2.0)]
    (note,) = load_manifest(one_column(tmp_path, "image", cells), **SIZES).notes
    assert "naming a folder, which only a volume may be" in note.message
    (tmp_path / "b" / "notes.txt").write_text("Doe")
    folder = one_column(tmp_path, "volume", cells)
    with pytest.raises(UserError, match=r"E007 .*row 2.*its folder holds what is no DICOM file: name a folder"):
        read(folder)
    assert read(folder, bad_files="missing").presence.tolist() == [[True], [False]]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command_decodes_every_file_and_knows_bad_files(tmp_path, capsys):
    folder = write_image_manifest(tmp_path)
    assert check_data.run([str(folder), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    row, path = first(folder, "fundus")
    damage(path)
    assert check_data.run([str(folder)]) == 2
    assert f"error E007: column 'fundus' (fundus): 1 cell (row {row + 1}) " in capsys.readouterr().out
    assert check_data.run([str(folder), "--json", "--bad-files=missing"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert [finding["code"] for finding in output["findings"] if finding["code"] == "W106"] == ["W106"]
    assert output["modalities"]["fundus"] == whole["modalities"]["fundus"] - 1
    with pytest.raises(UserError, match="invalid choice: 'skip'"):
        check_data.run([str(folder), "--bad-files=skip"])


# ---- Plain models ----------------------------------------------------------------------------------------------------


def test_shrink_takes_means_of_blocks():
    image = np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16, 1)
    small = shrink(image).reshape(8, 8)
    assert small[0, 0] == pytest.approx(np.mean([0, 1, 16, 17]) / 255)
    assert small[7, 7] == pytest.approx(np.mean([238, 239, 254, 255]) / 255)
    video = np.stack([np.full((2, 10, 3), t, np.uint8) for t in range(6)])[None]
    small = shrink(video).reshape(4, 2, 8, 3)
    # Six frames in four blocks: 0; 1 and 2; 3; 4 and 5. Two rows stay as they are.
    np.testing.assert_allclose(small[:, 0, 0, 0] * 255, [0, 1.5, 3, 4.5], rtol=1e-6)
