"""Reports and predictions as others may have changed them; tests/reliability has thousands of such changes."""

import json

import polars as pl
import pytest

from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from tests.evaluation.test_report import held_out, report_of


@pytest.fixture
def folder(tmp_path):
    predictions = held_out()
    report = report_of(predictions)
    (tmp_path / finished.REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    predictions.write_parquet(tmp_path / finished.PREDICTIONS)
    return tmp_path


def test_what_a_run_has_left_is_read(folder):
    report = finished.read_report(folder)
    assert finished.is_there(folder)
    assert finished.read_predictions(folder, len(report["classes"])).height == report["n"]


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zeros", [False, True])
def test_a_report_that_a_power_cut_has_cut_is_none(folder, part, zeros):
    file = folder / finished.REPORT
    content = file.read_bytes()
    cut = content[: int(part * len(content))]
    file.write_bytes(cut + bytes(len(content) - len(cut)) * zeros)
    assert not finished.is_there(folder)


def test_one_cut_behind_a_brace_is_none(folder):
    file = folder / finished.REPORT
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"}") + 1])
    assert not finished.is_there(folder)


def test_one_that_is_damaged_inside_is_there_and_refused(folder):
    file = folder / finished.REPORT
    file.write_bytes(file.read_bytes().replace(b'"seed":', b'"seed"', 1))
    assert finished.is_there(folder)
    with pytest.raises(UserError, match="damaged"):
        finished.read_report(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(overall=None), "overall is no mapping"),
        (lambda r: r.update(card={"titles": {"modalities": ["labs"]}}), "card.titles.modalities is no mapping"),
        (lambda r: r.pop("label_counts"), "lacks label_counts"),
        (lambda r: r["groups"][0].update(accuracy_ci=[1.0]), "accuracy_ci is no list of 2"),
        (lambda r: r.update(split="other"), "split is not"),
        (lambda r: r.update(attributes=[{"attribute": "sex"}]), r"attributes\[0\] lacks value"),
        (lambda r: r.update(attribute_gaps=[{}]), "attribute_gaps"),
        (lambda r: r.update(sets={"level": 2.0}), "level"),
        (lambda r: r["label_counts"].append(1), "classes or modalities do not fit"),
        (lambda r: r["groups"].append(r["groups"][0]), "stands there twice"),
    ],
)
def test_another_report_is_refused(folder, change, says):
    report = json.loads((folder / finished.REPORT).read_bytes())
    change(report)
    (folder / finished.REPORT).write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        finished.read_report(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.drop("group"),
        lambda t: t.with_columns(pl.lit(7).alias("label")),
        lambda t: t.with_columns(pl.lit("0").alias("label")),
        lambda t: t.with_columns(pl.lit(float("nan")).alias("p_0")),
        lambda t: t.with_columns(pl.lit(2.0).alias("p_0")),
        lambda t: t.with_columns(pl.lit(None, pl.Float64).alias("p_1")),
        lambda t: t.with_columns(pl.lit(0.5).alias("p_2")),
        lambda t: t.with_columns(pl.concat_list("patient_id").alias("patient_id")),
    ],
)
def test_other_predictions_are_refused(folder, change):
    file = folder / finished.PREDICTIONS
    change(pl.read_parquet(file)).write_parquet(file)
    with pytest.raises(UserError, match="holds a damaged run"):
        finished.read_predictions(folder, 2)
