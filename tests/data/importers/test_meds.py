"""MEDS events and labels in the layout of 0.4, turned into folders that pass the checks."""

import polars as pl
import pytest
import yaml

from remind_jax import import_data
from remind_jax.data.importers import meds
from remind_jax.errors import UserError


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


def test_what_is_no_meds_is_refused(cohort):
    with pytest.raises(UserError, match="holds no parquet"):
        _imported(
            "--from=meds", f"--source={cohort / 'metadata'}", f"--labels={cohort / 'labels.parquet'}", f"--out={cohort}"
        )
    with pytest.raises(UserError, match="prediction_time"):
        meds.from_meds(
            pl.scan_parquet(cohort / "data" / "train" / "0.parquet"), pl.DataFrame({"subject_id": [1]}), name="x"
        )
