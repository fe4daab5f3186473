"""Folders with schema.yaml and a table: what is read, what becomes missing, what is refused in one line."""

import datetime
import os
import pathlib

import numpy as np
import polars as pl
import pytest

from remind_jax.data import files
from remind_jax.data.manifest import decode
from remind_jax.data.reading import as_polars, load_manifest, read_manifest
from remind_jax.errors import UserError
from tests.data.manifest_files import edit_cell, edit_table, with_modality, write_manifest, write_schema


def codes(folder):
    return [(note.code, note.fatal) for note in load_manifest(folder).notes]


def test_a_valid_folder_reads_without_notes(tmp_path):
    manifest = read_manifest(write_manifest(tmp_path, n=30))
    table = pl.read_csv(tmp_path / "manifest.csv", infer_schema=False)
    assert manifest.notes == ()
    assert manifest.table.height == 30
    assert manifest.table.schema["sodium"] == pl.Float64
    assert manifest.table.schema["died"] == pl.String
    here = [table[c].is_not_null().to_numpy() for c in ("note", "icd", "sodium", "scan")]
    np.testing.assert_array_equal(manifest.presence, np.stack(here, axis=1))
    np.testing.assert_array_equal(manifest.labels, table["died"].cast(pl.Int32).to_numpy())


def test_parquet_gives_the_same_manifest_as_csv(tmp_path):
    one = read_manifest(write_manifest(tmp_path / "a", n=20))
    two = read_manifest(write_manifest(tmp_path / "b", n=20, parquet=True))
    assert one.table.equals(two.table)
    assert one.digest == two.digest


@pytest.mark.parametrize("word", ["NA", "N/A", "nan", "None", "null", " ", "  n/a "])
def test_words_for_missing_become_null_and_are_counted(tmp_path, word):
    folder = write_manifest(tmp_path, n=12)
    edit_table(folder, sodium=["140", word, *["139"] * 10], icd=[word, word, *["A10"] * 10], sex=["f", "m", word] * 4)
    manifest = read_manifest(folder)
    assert [manifest.table[c].null_count() for c in ("sodium", "icd", "sex")] == [1, 2, 4]
    assert [(note.code, note.fatal) for note in manifest.notes] == [("E009", False)] * 3
    assert "2 cells (rows 1, 2)" in manifest.notes[0].message


def test_a_forged_page_of_parquet_is_refused():
    """Found by tests/reliability/fuzz.py: polars' own reader asks for 2 EiB of memory and ends the process."""
    with pytest.raises(ValueError, match=r"^OSError$"):
        files.read_parquet(pathlib.Path(__file__).with_name("forged_page.parquet"))


def test_parquet_that_claims_too_many_rows_is_refused_unread(tmp_path):
    pl.DataFrame({"a": [1, 2, 3]}).write_parquet(tmp_path / "x.parquet")
    assert files.read_parquet(tmp_path / "x.parquet", 3).equals(pl.DataFrame({"a": [1, 2, 3]}))
    with pytest.raises(ValueError, match="claims more than 2 rows"):
        files.read_parquet(tmp_path / "x.parquet", 2)


def test_quoted_empty_cells_and_nan_in_parquet_are_missing(tmp_path):
    folder = write_manifest(tmp_path, n=8, parquet=True)
    table = pl.read_parquet(folder / "manifest.parquet")
    notes, numbers = ["", *["x"] * 7], [float("nan"), *[1.0] * 7]
    table.with_columns(note=pl.Series(notes), wbc=pl.Series(numbers)).write_parquet(folder / "manifest.parquet")
    manifest = read_manifest(folder)
    assert manifest.table["note"].null_count() == manifest.table["wbc"].null_count() == 1


def test_flags_are_numbers_whoever_wrote_them(tmp_path):
    folder = write_manifest(tmp_path, n=6)
    edit_table(folder, wbc=["True", "false", "TRUE", "0", None, "1.0"])
    assert read_manifest(folder).table["wbc"].to_list() == [1.0, 0.0, 1.0, 0.0, None, 1.0]


def test_words_in_a_numeric_column_are_refused_without_being_printed(tmp_path):
    folder = write_manifest(tmp_path, n=8)
    edit_table(folder, wbc=["7.5", "Jane Doe", *["8"] * 6])
    with pytest.raises(UserError, match=r"E009 column 'wbc' \(labs\): 1 cell \(row 2\) not a number") as caught:
        read_manifest(folder)
    assert "Jane" not in str(caught.value)


def test_absent_column_is_e001_with_a_hint(tmp_path):
    folder = write_manifest(tmp_path, n=8)
    write_schema(folder, patient_id="pateint")
    with pytest.raises(UserError, match=r"E001 column 'pateint'.*did you mean 'patient'"):
        read_manifest(folder)


@pytest.mark.parametrize("header", [None, 'stay,patient,died,note,icd,"sodium,wbc,sex,scan'])
def test_a_broken_header_prints_no_cells(tmp_path, header):
    folder = write_manifest(tmp_path, n=8)
    edit_cell(folder, "note", 0, "Jane Doe")
    lines = (folder / "manifest.csv").read_text().splitlines()[1:]
    (folder / "manifest.csv").write_text("\n".join([header, *lines] if header else lines))
    with pytest.raises(UserError, match="header") as caught:
        read_manifest(folder)
    assert "Jane" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        "../secret.npy",
        "scans/../../secret.npy",
        "/etc/passwd",
        "http://host/x.npy",
        "file:///etc/passwd",
        "C:\\x.npy",
        "\\\\host\\share\\x.npy",
        "~/x.npy",
        "link.npy",
        "linked/secret.npy",
        "a\0b.npy",
    ],
)
def test_paths_that_leave_the_folder_are_e006(tmp_path, cell):
    np.save(tmp_path / "secret.npy", np.ones((3, 4), np.float32))
    folder = write_manifest(tmp_path / "m", n=8)
    os.symlink(tmp_path / "secret.npy", folder / "link.npy")
    os.symlink(tmp_path, folder / "linked")
    edit_cell(folder, "scan", 4, cell)
    assert codes(folder) == [("E006", True)]
    with pytest.raises(UserError, match=r"E006 column 'scan' \(scan\): 1 cell \(row 5\)"):
        read_manifest(folder)


def test_a_link_that_stays_inside_is_read(tmp_path):
    folder = write_manifest(tmp_path, n=8)
    np.save(folder / "real.npy", np.full((3, 4), 7, np.float32))
    os.symlink(folder / "real.npy", folder / "alias.npy")
    edit_cell(folder, "scan", 0, "alias.npy")
    assert (decode(read_manifest(folder), np.array([0]))["scan"] == 7).all()


@pytest.mark.parametrize("cell", ["-2", "-999", "-999.0", " -1"])
def test_numbers_in_path_columns_are_e009(tmp_path, cell):
    folder = write_manifest(tmp_path, n=8)
    edit_cell(folder, "scan", 2, cell)
    assert codes(folder) == [("E009", True)]


def test_integers_with_holes_stay_integers_as_labels_and_categories(tmp_path):
    folder = write_manifest(tmp_path, n=4, parquet=True)
    table = pl.read_parquet(folder / "manifest.parquet").with_columns(
        died=pl.Series([0.0, 1.0, 0.0, 1.0]), sex=pl.Series([1.0, None, float("nan"), 2.0])
    )
    table.write_parquet(folder / "manifest.parquet")
    manifest = read_manifest(folder)
    assert manifest.labels.tolist() == [0, 1, 0, 1]
    assert manifest.table["sex"].to_list() == ["1", None, None, "2"]


def test_split_aliases(tmp_path):
    folder = write_manifest(tmp_path, n=4)
    edit_table(folder, part=["train", "val", "test ", "held_out"])
    write_schema(folder, split="part")
    assert read_manifest(folder).table["part"].to_list() == ["train", "tuning", "held_out", "held_out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version must be 1"),
        ({"modalites": {}}, "unknown key 'modalites'.*did you mean 'modalities'"),
        ({"name": 3}, "name must be a string"),
        ({"sample_id": None}, "sample_id must be a string"),
        ({"label": {"column": "died"}}, "label lacks the key 'classes'"),
        ({"label": {"column": "died", "classes": ["0"]}}, "at least two"),
        ({"label": {"column": "died", "classes": ["0", "a\nb"]}}, "each one line"),
        ({"label": {"column": "died", "classes": [True, False]}}, "in quotes"),
        ({"label": "died"}, "label must be a mapping"),
        ({"modalities": []}, "modalities must be a mapping"),
        (with_modality("scan", kind="image", column="scan", channels=4), "channels must be 1 or 3, not 4"),
        (with_modality("scan", kind="volume", column="scan", channels=True), "channels must be 1 or 3, not True"),
        (with_modality("scan", kind="image", column="scan", stored="cell"), "unknown key 'stored'"),
        (with_modality("note", kind="text", column="note", channels=1), "unknown key 'channels'"),
        (with_modality("scan", kind="embeding", column="scan"), "did you mean 'embedding'"),
        (with_modality("scan", kind=["a"], column="scan"), "unknown kind"),
        (with_modality("scan", kind="embedding", colum="scan"), "did you mean 'column'"),
        (with_modality("scan", kind="embedding", column="scan", stored="disk"), "stored must be cell or file"),
        (with_modality("labs", kind="tabular", columns="sodium"), "must be a list"),
        (with_modality("labs", kind="tabular"), "needs columns or categorical"),
        (with_modality("labs", kind="tabular", columns=["sodium", "died"]), "column 'died' is used twice"),
        (with_modality("labs", kind="tabular", columns=["sodium", False]), "in quotes"),
        (with_modality("a+b", kind="text", column="x"), "modality name 'a\\+b'"),
        (with_modality("label", kind="text", column="x"), "modality name 'label'"),
    ],
)
def test_schema_mistakes_are_one_line(tmp_path, changes, message):
    folder = write_manifest(tmp_path, n=4)
    write_schema(folder, **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("schema.yaml: ")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"", b"- 1", b"[" * 5000, b"!!python/name:os.system x"])
def test_broken_schema_files_are_one_line(tmp_path, content):
    folder = write_manifest(tmp_path, n=4)
    (folder / "schema.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"schema\.yaml") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,\xff\n", b"a,b\n1,2,3\n", b"stay,stay\n1,2\n"])
def test_broken_tables_are_one_line(tmp_path, content):
    folder = write_manifest(tmp_path, n=4)
    (folder / "manifest.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.csv") as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)


def test_folder_schema_and_table_must_be_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"schema\.yaml does not exist"):
        read_manifest(tmp_path)
    folder = write_manifest(tmp_path / "m", n=4)
    (folder / "manifest.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match="has both"):
        read_manifest(folder)
    (folder / "manifest.csv").unlink()
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read_manifest(folder)
    (folder / "manifest.parquet").unlink()
    with pytest.raises(UserError, match="has neither"):
        read_manifest(folder)


def _pandas_columns(pd):
    """Columns of pandas, and what they are in polars."""
    text = pd.Series([1, "a", None, 2.5], dtype=object)
    yield text, ["1", "a", None, "2.5"], pl.String
    yield pd.Series([1, 2, None, 1]).astype("category"), ["1", "2", None, "1"], pl.Categorical
    yield pd.Series(["b", None, "a", "b"]).astype("category"), ["b", None, "a", "b"], pl.Categorical
    yield pd.Series([1, None, 3, 4], dtype="Int64"), [1, None, 3, 4], pl.Int64
    yield pd.Series([True, None, False, True], dtype="boolean"), [True, None, False, True], pl.Boolean
    yield pd.Series([True, False, False, True]), [True, False, False, True], pl.Boolean
    yield pd.Series([1.5, np.nan, 2.0, 3.0]), [1.5, None, 2.0, 3.0], pl.Float64
    yield pd.Series([pd.NA, "x", None, np.nan], dtype=object), [None, "x", None, None], pl.String
    yield pd.Series([1, None, 2, 3], dtype="int64[pyarrow]"), [1, None, 2, 3], pl.Int64
    yield pd.Series(["a", None, "b", "c"], dtype="string[pyarrow]"), ["a", None, "b", "c"], pl.String
    times = pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-03", None])).astype("datetime64[us]")
    day = datetime.datetime
    yield times, [day(2020, 1, 1), None, day(2020, 1, 3), None], pl.Datetime("us")
    yield pd.Series(pd.period_range("2020-01", periods=4, freq="M")), [f"2020-0{k}" for k in range(1, 5)], pl.String
    yield pd.Series(pd.arrays.SparseArray([0.0, 0.0, 1.0, 2.0])), [0.0, 0.0, 1.0, 2.0], pl.Float64
    cells = [np.ones((2, 3)), None, np.ones((1, 3)), np.ones((1, 3))]
    yield pd.Series(cells, dtype=object), [c if c is None else c.tolist() for c in cells], pl.List(pl.List(pl.Float64))


def test_columns_of_pandas_keep_what_they_are():
    pd = pytest.importorskip("pandas")
    columns = list(_pandas_columns(pd))
    found = as_polars(pd.DataFrame({i: column for i, (column, _, _) in enumerate(columns)}))
    assert found.columns == [str(i) for i in range(len(columns))]
    for series, (_, cells, dtype) in zip(found.iter_columns(), columns, strict=True):
        assert (series.to_list(), series.dtype) == (cells, dtype)


def test_a_frame_of_polars_stays_as_it_is():
    frame = pl.DataFrame({"a": [1, 2]})
    assert as_polars(frame).equals(frame)
    assert as_polars(frame.lazy()).equals(frame)


def test_an_index_that_may_hold_something_is_told():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2, 3]})
    assert as_polars(frame[frame["a"] != 2])["a"].to_list() == [1, 3]  # whose index has a gap, and no warning
    with pytest.warns(UserWarning, match=r"the index stay of the frame is not used; reset_index\(\)"):
        as_polars(frame.set_index(pd.Index([7, 8, 9], name="stay")))
    with pytest.warns(UserWarning, match="the index of the frame"):
        as_polars(frame.set_index(pd.Index(["u", "v", "w"])))


def test_what_is_no_frame_is_refused():
    pd = pytest.importorskip("pandas")
    with pytest.raises(UserError, match="two columns are named 'a'"):
        as_polars(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(UserError, match="two columns are named '1'"):
        as_polars(pd.DataFrame([[1, 2]], columns=[1, "1"]))
    with pytest.raises(UserError, match="not dict"):
        as_polars({"a": [1]})


@pytest.mark.parametrize("name", ["schema.yaml", "manifest.csv"])
def test_no_link_leads_out_of_a_manifest_folder_and_no_pipe_is_waited_for(tmp_path, name):
    folder = write_manifest(tmp_path / "data", n=12)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name} is a link that leads out of its folder"):
        load_manifest(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=r"is no regular file|and has neither"):
        load_manifest(folder)
