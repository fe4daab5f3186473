"""Exports as hospitals have them: each right value, read through the command, and folders that the check accepts."""

import pathlib
import shutil

import polars as pl
import pytest
import yaml

import remind_jax as rj
from remind_jax import api, check_data, import_data
from remind_jax.data import reading
from remind_jax.errors import UserError

FIELD = pathlib.Path(__file__).parents[1] / "field"
CSV = FIELD / "csv"


@pytest.fixture
def imported(tmp_path, capsys):
    """Imports a file of the field; returns the schema, the table and what was printed."""

    def run(source, *arguments, check=0, **options):
        given = {"source": source, "out": tmp_path, "label": "died", "sample": "stay", "patient": "patient"} | options
        import_data.main([f"--{key.replace('_', '-')}={value}" for key, value in given.items()] + list(arguments))
        shown = capsys.readouterr().out
        if check is not None:
            assert check_data.run([str(tmp_path)]) == check
        schema = yaml.safe_load((tmp_path / "schema.yaml").read_text(encoding="utf-8"))
        return schema, pl.read_csv(tmp_path / "manifest.csv", infer_schema=False), shown

    return run


def _numbers(schema, name):
    return schema["modalities"][name]["columns"]


@pytest.mark.parametrize("swapped", [False, True])
def test_ids_match_whether_or_not_pandas_wrote_a_point(imported, tmp_path, swapped):
    stays, labs = CSV / "stays.csv", CSV / "labs_float_ids.csv"
    if swapped:  # the samples have the .0
        table = pl.read_csv(stays, infer_schema=False).with_columns(pl.col("stay") + ".0")
        table.write_csv(tmp_path / "s.csv")
        stays, labs = tmp_path / "s.csv", tmp_path / "labs.csv"
        pl.read_csv(CSV / "labs_float_ids.csv").with_columns(pl.col("stay").cast(pl.Int64)).write_csv(labs)
    schema, table, shown = imported(stays, join=labs)
    assert len(schema["modalities"]) == 2
    assert table["na"].null_count() == 0
    assert table["stay"].to_list() == [str(20000000 + i) for i in range(60)]
    assert "60 rows by stay, 60 matched; 0 unmatched, 0 duplicated; 0 of 60 samples have no row" in shown
    assert "keys such as 99999999" in shown
    assert "20000000" not in shown


def test_lost_zeros_are_named_and_a_key_matches_them(imported):
    files = {"source": CSV / "stays_zeros.csv", "join": CSV / "labs_zeros_lost.csv"}
    with pytest.raises(UserError, match=r"matches no row: 60 rows by stay, 0 matched.*leading zeros.*--match=number"):
        imported(**files)
    _, table, shown = imported(**files, match="number")
    assert table["na"].null_count() == 0
    assert "60 matched" in shown


def test_a_class_of_the_name_none_is_kept(imported):
    schema, table, shown = imported(CSV / "class_none.csv", label="grade")
    assert schema["label"]["classes"] == ["Mild", "None", "Severe"]
    assert table["grade"].value_counts().sort("grade")["count"].to_list() == [20, 20, 20]
    assert "20 cells None are a class" in shown


def test_nan_is_no_label_and_is_counted(imported):
    schema, table, shown = imported(FIELD / "label_nan.parquet", kind="note=text")
    assert schema["label"]["classes"] == ["0", "1"]
    assert table.height == 262
    assert "38 rows without a label are left out" in shown


@pytest.mark.parametrize("column", ["stay", "patient", "died"])
def test_infinite_ids_and_labels_are_refused(imported, tmp_path, column):
    table = pl.read_parquet(FIELD / "label_nan.parquet")
    table = table.with_columns(
        pl.int_range(pl.len()).cast(pl.Float64).alias("stay"), pl.col("patient").cast(pl.Float64)
    )
    rows = pl.int_range(pl.len()) == 7
    table.with_columns(pl.when(rows).then(float("inf")).otherwise(column).alias(column)).write_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match=r"1 cell \(row 8\) infinite"):
        imported(tmp_path / "a.parquet")


@pytest.mark.parametrize(("odd", "glucose"), [("missing", None), ("limit", "200.0")])
def test_numbers_with_a_limit_stay_numbers(imported, odd, glucose):
    schema, table, shown = imported(CSV / "lab_one_greater.csv", odd_numbers=odd)
    assert _numbers(schema, "lab_one_greater") == ["age", "glucose", "hr"]
    assert schema["modalities"]["lab_one_greater"]["odd"] == odd
    assert table["glucose"][7] == table["hr"][9] == glucose
    assert table["glucose"][6] == "136.5"
    assert "glucose: 199 of 200 cells are numbers, row 8 is not (limit)" in shown
    assert "hr: 199 of 200 cells are numbers, row 10 is not (limit)" in shown
    assert ">200" not in shown


def test_numbers_with_a_limit_can_be_refused(imported):
    with pytest.raises(UserError, match=r"glucose: 199 of 200 cells are numbers, row 8 is not \(limit\)"):
        imported(CSV / "lab_one_greater.csv", odd_numbers="refuse")


def test_paths_with_blanks_are_pictures(imported, tmp_path):
    shutil.copy(CSV / "paths_with_space.csv", tmp_path)
    schema, table, _ = imported(tmp_path / "paths_with_space.csv", check=None)
    assert schema["modalities"]["scan"]["kind"] == "image"
    assert table["scan"][0] == "scans of 2020/p 0.png"


@pytest.mark.parametrize("name", ["Unnamed: 0", "", "index"])
def test_an_index_is_no_feature(imported, tmp_path, name):
    table = pl.read_csv(CSV / "unnamed_index.csv", infer_schema=False).rename({"Unnamed: 0": name})
    table.write_csv(tmp_path / "a.csv")
    schema, written, shown = imported(tmp_path / "a.csv")
    assert schema["modalities"] == {"a": {"kind": "tabular", "columns": ["age"]}}
    assert written.columns == ["stay", "patient", "died", "age"]
    assert "1 column left out (a count of the rows): " in shown


def test_a_column_that_copies_the_label_is_told(imported):
    schema, _, shown = imported(CSV / "leak.csv")
    assert _numbers(schema, "leak") == ["age", "died_copy"]
    assert "died_copy (1.00) tells died nearly without any other column" in shown


def test_forms_of_one_value_are_one_class(imported):
    schema, table, shown = imported(CSV / "label_forms.csv")
    assert schema["label"]["classes"] == ["0", "1"]
    assert table["died"].value_counts().sort("died")["count"].to_list() == [40, 20]
    assert "forms of one value are one class: 0 = 0.0, 1 = 1.0" in shown


def test_a_number_is_no_class(imported, tmp_path):
    with pytest.raises(UserError, match="59 different values: this is a number, not a class"):
        imported(CSV / "length_of_stay.csv", label="los")
    assert not (tmp_path / "schema.yaml").exists()


@pytest.mark.parametrize("name", ["semicolon", "decimal_comma", "utf16", "latin1"])
def test_exports_of_other_countries_are_read_alike(imported, name):
    schema, table, shown = imported(CSV / f"{name}.csv")
    usual = pl.read_csv(CSV / "stays.csv", infer_schema=False)
    assert _numbers(schema, name) == ["age"]
    assert table["age"].cast(pl.Float64).to_list() == usual["age"].cast(pl.Float64).to_list()
    assert table["died"].to_list() == usual["died"].to_list()
    told = {
        "semicolon": "semicolons separate",
        "decimal_comma": "decimal commas",
        "utf16": "utf-16",
        "latin1": "cp1252",
    }
    assert told[name] in shown
    if name == "latin1":
        assert table["ort"].unique().to_list() == ["München"]


def test_meds_shards_may_differ_in_columns(imported):
    folder = FIELD / "meds" / "one_shard_has_text_value"
    schema, table, _ = imported(folder, labels=folder / "labels", **{"from": "meds"})
    assert table.height == 30
    assert schema["modalities"] == {
        "events_values": {"kind": "tabular", "columns": ["events:LAB//na"]},
        "events_codes": {"kind": "codes", "column": "events_codes"},
        "events_text": {"kind": "text", "column": "events_text"},
    }
    assert table["events_text"].count() == 10


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [f"--source={CSV / 'stays.csv'}", f"--out={out}", "--label=died", "--sample=stay", "--show"]
    import_data.main(arguments)
    assert not out.exists()
    assert "samples: 60 by stay" in capsys.readouterr().out


def test_a_frame_is_read_as_the_file_is():
    """What `fit` makes of a frame, up to training."""
    frame = pl.read_csv(CSV / "lab_one_greater.csv", infer_schema=False)
    config = api.make_config("remind", "small", 0, 0.2, 0.1, {})
    columns = {"patient": "patient", "sample": "stay", "verbose": False}
    manifest = api.read_frame(frame, "died", None, config, **columns)
    options = {"image_size": 32, "frames": 8, "bad_files": "refuse"}
    assert manifest.table["glucose"].null_count() == 1
    told = {"labs": rj.Table(["glucose", "hr"]), "older": rj.Table([], ["age"])}
    declared = api.read_frame(frame, "died", told, config, **columns)
    assert declared.table["hr"].null_count() == 1
    assert declared.schema.modalities[0].options == {"odd": "missing"}
    again = reading.of_frame(_content(), frame, "", **options)
    assert again.table["hr"].null_count() == 1  # rows to come are read by the same rule
    assert [note.code for note in again.notes] == ["E009", "E009"]


def _content():
    labs = {"kind": "tabular", "columns": ["glucose", "hr"], "odd": "missing"}
    label = {"column": "died", "classes": ["0", "1"]}
    return {"version": 1, "name": "n", "sample_id": "stay", "patient_id": "patient", "label": label} | {
        "modalities": {"labs": labs}
    }
