"""MEDS events and labels in the layout of 0.4, turned into folders that pass the checks."""

import datetime

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from remind_jax import cli, import_data, predict
from remind_jax.data import check, reading
from remind_jax.data.importers import meds
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def cohort(tmp_path):
    """Two shards of events in the layout of MEDS 0.4, labels and splits; subject 3 has nothing before its time."""
    day = [pl.datetime(2020, 1, d) for d in range(1, 10)]
    events = [
        (1, None, "GENDER//F", None, None),
        (1, day[0], "LAB//NA", 140.0, None),
        (1, day[1], "LAB//NA", 150.0, None),
        (1, day[2], "LAB//NA", 999.0, None),  # after the first prediction
        (1, day[0], "DX//I10", None, None),
        (1, day[1], "DX//E11 9", None, None),
        (2, day[0], "LAB//K", 4.0, None),
        (2, day[1], "NOTE", None, "sleeps well"),
        (3, day[8], "LAB//NA", 1.0, None),
    ]
    never = pl.lit(None, pl.Datetime("us"))
    dtypes = {"code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
    table = pl.DataFrame(
        {
            "subject_id": [e[0] for e in events],
            "time": pl.concat([pl.select(never if e[1] is None else e[1]).to_series() for e in events]),
            **{key: pl.Series([e[i] for e in events], dtype=dtypes[key]) for i, key in enumerate(dtypes, start=2)},
        }
    )
    for i in range(2):
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        table[i::2].write_parquet(tmp_path / "data" / "train" / f"{i}.parquet")
    times = pl.concat([pl.select(day[d]).to_series() for d in (1, 5, 1, 3)])
    labels = pl.DataFrame(
        {"subject_id": [1, 1, 2, 3], "prediction_time": times, "boolean_value": [True, False, False, True]}
    )
    labels.write_parquet(tmp_path / "labels.parquet")
    (tmp_path / "metadata").mkdir()
    splits = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "held_out", "train"]})
    splits.write_parquet(tmp_path / "metadata" / "subject_splits.parquet")
    return tmp_path


def test_meds_samples_have_what_came_before_their_time(cohort, capsys):
    out = cohort / "out"
    _imported(
        "--from=meds",
        f"--source={cohort}",
        f"--labels={cohort / 'labels.parquet'}",
        f"--out={out}",
        "--modality=labs=LAB//,rest=DX//+NOTE",
    )
    assert _schema(out)["modalities"] == {
        "labs_values": {"kind": "tabular", "columns": ["labs:LAB//NA"]},  # K is of no train subject
        "rest_codes": {"kind": "codes", "column": "rest_codes"},
        "rest_text": {"kind": "text", "column": "rest_text"},
    }
    table = pl.read_csv(out / "manifest.csv", infer_schema=False)
    assert table["sample_id"].to_list() == ["1_0", "1_1", "2_0"]
    assert table["label"].to_list() == ["true", "false", "false"]
    assert table["split"].to_list() == ["train", "train", "held_out"]
    assert table["labs:LAB//NA"].to_list() == ["150.0", "999.0", None]
    assert table["rest_codes"].to_list() == ["DX//E11_9 DX//I10"] * 2 + [None]
    assert table["rest_text"].to_list() == [None, None, "sleeps well"]
    assert "1 rows without any modality" in capsys.readouterr().out


def test_events_may_keep_their_times_and_values(cohort, capsys):
    out = cohort / "out"
    options = (f"--source={cohort}", f"--labels={cohort / 'labels.parquet'}", f"--out={out}")
    _imported("--from=meds", *options, "--modality=labs=LAB//,rest=DX//+NOTE+GENDER", "--kind=labs=events,rest=events")
    assert {name: entry["kind"] for name, entry in _schema(out)["modalities"].items()} == {
        "labs_events": "events",
        "rest_events": "events",
        "rest_codes": "codes",
        "rest_text": "text",
    }
    manifest = reading.read_manifest(out)

    def cells(name):
        found = manifest.table[name].to_list()
        return [None if cell is None else [tuple(event.values()) for event in cell] for cell in found]

    assert cells("labs_events") == [
        [(-24.0, "LAB//NA", 140.0), (0.0, "LAB//NA", 150.0)],
        [(-120.0, "LAB//NA", 140.0), (-96.0, "LAB//NA", 150.0), (-72.0, "LAB//NA", 999.0)],
        [(-24.0, "LAB//K", 4.0)],
    ]
    assert cells("rest_events")[0] == [(-24.0, "DX//I10", None), (0.0, "DX//E11 9", None)]
    assert manifest.table["rest_codes"].to_list() == ["GENDER//F", "GENDER//F", None]
    assert manifest.table["rest_text"].to_list() == [None, None, "sleeps well"]
    assert "labs_events  events; in all samples" in capsys.readouterr().out
    assert not [each for each in check.find_problems(manifest) if each.fatal and each.code == "E008"]
    for kind in ("labz=events", "labs=text"):
        with pytest.raises(UserError, match="is none that MEDS events have"):
            _imported("--from=meds", *options, "--modality=labs=LAB//", f"--kind={kind}")


def test_what_is_no_meds_is_refused(cohort):
    with pytest.raises(UserError, match="holds no parquet"):
        _imported(
            "--from=meds", f"--source={cohort / 'metadata'}", f"--labels={cohort / 'labels.parquet'}", f"--out={cohort}"
        )
    with pytest.raises(UserError, match="prediction_time"):
        meds.from_meds(
            pl.scan_parquet(cohort / "data" / "train" / "0.parquet"), pl.DataFrame({"subject_id": [1]}), name="x"
        )


def _events(i, **casts):
    """Four events of subjects 2 i and 2 i + 1, in the types that `casts` gives."""
    day = pl.datetime(2020, 1, pl.Series([1, 2, 1, 2]))
    frame = pl.select(
        subject_id=pl.Series([2 * i, 2 * i, 2 * i + 1, 2 * i + 1]),
        time=day,
        code=pl.Series(["LAB//K", "DX//I10"] * 2),
        numeric_value=pl.Series([4.5, None, 4.5, None], dtype=pl.Float32),
    )
    return frame.with_columns(pl.col(name).cast(dtype) for name, dtype in casts.items())


@pytest.mark.parametrize(
    "other",
    [
        _events(1, numeric_value=pl.Float64),
        _events(1, time=pl.Datetime("ns")),
        _events(1, time=pl.Datetime("ms")),
        _events(1).with_columns(pl.col("time").dt.replace_time_zone("UTC")),
        _events(1, code=pl.Categorical),
        _events(1, subject_id=pl.Int32),
        _events(1).with_columns(hadm_id=pl.lit(7), text_value=pl.lit(None, pl.String)),
        _events(1).with_columns(unit=pl.lit("mmol"), text_value=pl.lit(None)).select(pl.all().reverse()),
        _events(1).select("numeric_value", "code", "time", "subject_id"),
    ],
)
def test_shards_may_differ_as_the_standard_allows(tmp_path, other):
    (tmp_path / "data").mkdir()
    _events(0).write_parquet(tmp_path / "data" / "0.parquet")
    other.write_parquet(tmp_path / "data" / "1.parquet")
    labels = pl.select(subject_id=pl.Series(range(4)), prediction_time=pl.datetime(2020, 1, 5)).with_columns(
        boolean_value=pl.lit(None, pl.Boolean), integer_value=pl.Series([0, 1, 0, 1]), float_value=pl.lit(None)
    )
    labels.with_columns(pl.col("prediction_time").cast(pl.Datetime("ns"))).write_parquet(tmp_path / "l.parquet")
    options = {"name": "x", "modalities": {}, "columns": 64}
    found = meds.read(tmp_path, str(tmp_path / "l.parquet"), **options)
    assert found.table["events:LAB//K"].to_list() == [4.5] * 4
    assert found.table["events_codes"].to_list() == ["DX//I10"] * 4
    assert found.schema["label"]["classes"] == ["0", "1"]


def test_a_nan_hides_no_number_before_it_and_numbers_may_be_absent():
    events = _events(0).with_columns(code=pl.lit("LAB//K"), numeric_value=pl.Series([4.5, float("nan"), 5.5, None]))
    labels = pl.select(subject_id=pl.Series([0, 1]), prediction_time=pl.datetime(2020, 1, 5))
    labels = labels.with_columns(categorical_value=pl.Series(["a", "b"]))
    found = meds.from_meds(events.lazy(), labels, name="x")
    assert found.table["events:LAB//K"].to_list() == [4.5, 5.5]
    found = meds.from_meds(events.drop("numeric_value").lazy(), labels, name="x")
    assert list(found.schema["modalities"]) == ["events_codes"]


def test_labels_without_values_are_counted(cohort):
    labels = pl.read_parquet(cohort / "labels.parquet").with_columns(boolean_value=pl.Series([True, None, False, None]))
    found = meds.from_meds(pl.scan_parquet(cohort / "data/**/*.parquet"), labels, name="x")
    assert "2 labels without a value are left out" in found.notes
    assert found.table.height == 2


def test_structures_in_cells_are_refused_before_polars_sees_them(tmp_path):
    time = pl.Series([datetime.datetime(2020, 1, 1)] * 2)
    events = pl.DataFrame({"subject_id": [1, 2], "time": time, "code": [{"a": "x"}] * 2})
    labels = pl.DataFrame({"subject_id": [1, 2], "prediction_time": time, "boolean_value": [True, False]})
    with pytest.raises(UserError, match="cells of code hold lists or structures"):
        meds.from_meds(events.lazy(), labels, name="x")


MEDS_EVALUATION = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("predicted_boolean_value", pa.bool_()),
        ("predicted_boolean_probability", pa.float64()),
    ]
)
"""Of predictions of two classes, as the README of meds-evaluation has it."""


def _cohort_of(folder, n=60):
    """Subjects with a number that tells a boolean label; times with microseconds."""
    (folder / "data").mkdir()
    subjects = pl.Series(range(100, 100 + n))
    day = pl.select(pl.datetime(2020, 1, 1) + pl.duration(days=pl.int_range(n, eager=True))).to_series()
    value = pl.Series([float(i % 2) for i in range(n)], dtype=pl.Float32)
    events = {"subject_id": subjects, "time": day, "code": ["LAB//K"] * n, "numeric_value": value}
    pl.DataFrame(events).write_parquet(folder / "data" / "0.parquet")
    times = pl.DataFrame({"t": day}).select(pl.col("t") + pl.duration(microseconds=7)).to_series()
    labels = {"subject_id": subjects, "prediction_time": times, "boolean_value": [i % 2 == 1 for i in range(n)]}
    pl.DataFrame(labels).write_parquet(folder / "labels.parquet")
    return pl.DataFrame(labels)


@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
def test_predictions_are_written_as_meds_evaluation_reads_them(tmp_path):
    labels, data, run = _cohort_of(tmp_path), tmp_path / "manifest", tmp_path / "run"
    _imported("--from=meds", f"--source={tmp_path}", f"--labels={tmp_path / 'labels.parquet'}", f"--out={data}")
    train_and_evaluate(cli.parse_config(tiny_runs.own_arguments(data, tmp_path / "cache"))[0], run, verbose=False)
    command = [f"--workdir={run}", f"--data={data}", "--programs=forget"]
    predict.main([*command, f"--out={tmp_path / 'all.parquet'}"])
    predict.main([*command, "--as=meds", f"--out={tmp_path / 'meds.parquet'}"])
    found = pq.read_table(tmp_path / "meds.parquet")
    assert found.schema.equals(MEDS_EVALUATION)
    assert pl.from_arrow(found).select(labels.columns).equals(labels)
    usual = pl.read_parquet(tmp_path / "all.parquet")
    np.testing.assert_allclose(found["predicted_boolean_probability"].to_numpy(), usual["p_true"].to_numpy(), rtol=1e-6)
    assert found["predicted_boolean_value"].to_pylist() == (usual["prediction"] == "true").to_list()
    assert len(set(found["predicted_boolean_probability"].to_pylist())) > 1
    with pytest.raises(UserError, match=r"must be a .* with --as=meds the latter"):
        predict.main([*command, "--as=meds", f"--out={tmp_path / 'meds.csv'}"])


@pytest.mark.parametrize(
    ("classes", "change", "message"),
    [
        (("mild", "severe"), {}, "knows true and false alone, the classes are mild, severe"),
        (("0", "1", "2"), {}, "knows true and false alone"),
        (("no", "yes"), {"patient_id": ["7", "x"]}, r"column 'patient_id': 1 cell \(row 2\) not of MEDS"),
        (("no", "yes"), {"prediction_time": ["2020-01-01T00:00:00", "noon"]}, r"'prediction_time': 1 cell \(row 2\)"),
        (("no", "yes"), {"prediction_time": None}, "has no column prediction_time"),
    ],
)
def test_what_meds_evaluation_cannot_read_is_refused(tmp_path, classes, change, message):
    cells = {
        "patient_id": ["7", "8"],
        "prediction_time": ["2020-01-01T00:00:00.000000", "2020-01-02T12:00:00"],
    } | change
    table = pl.DataFrame({name: column for name, column in cells.items() if column} | {"label": [classes[0], None]})
    table.write_csv(tmp_path / "manifest.csv")
    schema = Schema("x", "patient_id", "patient_id", "label", classes, ())
    with pytest.raises(UserError, match=message):
        meds.for_evaluation(tmp_path / "manifest.csv", Manifest(schema, table))


def test_rows_without_a_label_have_no_truth(tmp_path):
    table = pl.DataFrame(
        {"patient_id": ["7", "8"], "prediction_time": ["2020-01-01T00:00:00"] * 2, "label": ["Yes", None]}
    )
    table.write_csv(tmp_path / "manifest.csv")
    manifest = Manifest(Schema("x", "patient_id", "patient_id", "label", ("Yes", "No"), ()), table)
    found = meds.for_evaluation(tmp_path / "manifest.csv", manifest)(np.array([[0.25, 0.75], [0.5, 0.5]]))
    assert found["boolean_value"].to_list() == [True, None]
    assert found["predicted_boolean_value"].to_list() == [False, True]
    assert found["predicted_boolean_probability"].to_list() == [0.25, 0.5]


@pytest.mark.parametrize("time", [2**62, -(2**62)])
def test_times_of_no_calendar_are_refused_before_they_are_written(time):
    times = pl.Series([0, time]).cast(pl.Datetime("us"))
    events = pl.DataFrame({"subject_id": [1, 2], "time": times.clear(2), "code": ["a", "b"]})
    labels = pl.DataFrame({"subject_id": [1, 2], "prediction_time": times, "boolean_value": [True, False]})
    with pytest.raises(UserError, match=r"prediction_time: 1 cell .* before the year 1 or after 9999"):
        meds.from_meds(events.lazy(), labels, name="x")


def test_times_that_are_none_are_refused():
    events = pl.DataFrame({"subject_id": [1], "time": [None], "code": ["a"]})
    events = events.with_columns(pl.col("time").cast(pl.Datetime("us")))
    labels = pl.DataFrame({"subject_id": [1], "prediction_time": [{"a": 1}], "boolean_value": [True]})
    with pytest.raises(UserError, match=r"column prediction_time holds Struct.*, not times"):
        meds.from_meds(events.lazy(), labels, name="x")
