"""Reports of tasks without classes: what is worst, what the file and the page hold."""

import json
import re

import numpy as np
import polars as pl
import pytest

from remind_jax import tasks
from remind_jax.config import base
from remind_jax.data.groups import Groups, group_name
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation.report import Report, build_report, write_html, write_json

N = 200
NAMES = ("labs", "note")


def schema(task):
    fields = {"multilabel": {"more_labels": ("aki",)}, "survival": {"more_labels": ("dead",), "horizons": (3.0, 6.0)}}
    classes = {"multilabel": ("y", "aki"), "ordinal": ("a", "b", "c")}.get(task, ())
    return Schema("ward", "id", "patient", "y", classes, (), task=task, **fields.get(task, {}))


def labels_of(task, x, rng):
    if task == "ordinal":
        return np.searchsorted([-0.5, 0.5], x + rng.normal(size=N)).astype(np.int32)
    if task == "multilabel":
        return np.where(rng.uniform(size=(N, 2)) < 0.2, -1, x[:, None] + rng.normal(size=(N, 2)) > 0).astype(np.int8)
    if task == "regression":
        return x + rng.normal(size=N)
    event, censoring = rng.exponential(6 * np.exp(-x)), rng.exponential(9, N)
    return np.stack([np.minimum(event, censoring) + 0.01, event <= censoring], 1).astype(float)


def run_of(task, noise=0.0):
    """Report and table of predictions that are good, but of samples with a note alone, where they are turned around."""
    rng = np.random.default_rng(5)
    presence = np.repeat([[True, True], [True, False], [False, True]], [100, 60, 40], axis=0)
    x, config = rng.normal(size=N), base("synthetic")
    labels = labels_of(task, x, rng)
    found = tasks.fit(schema(task), config, labels)
    score = np.where(presence[:, 0], x, -3 * x) + noise * rng.normal(size=N)
    sign = {"ordinal": -1, "regression": 1 / max(getattr(found, "scale", 1), 1e-9)}.get(task, 1)
    predictions = found.predictions(sign * score[:, None] * np.ones((1, found.outputs)) - (task == "survival") * 2)
    columns = {f"label_{j}": x for j, x in enumerate(labels.T)} if labels.ndim > 1 else {"label": labels}
    ids = {"sample_id": [f"s{i}" for i in range(N)], "patient_id": [f"p{i}" for i in range(N)]}
    group = {"group": [group_name(mask, NAMES) for mask in presence]}
    table = pl.DataFrame({**ids, **columns, **group, **{f"p_{k}": p for k, p in enumerate(predictions.T)}})
    settings = config.to_dict() | {"method": "remind"}
    settings["eval"]["bootstrap"] = 50
    options = {"parameters": 3, "classes": schema(task).classes, "judge": found.judge}
    return build_report(settings, "ward", table, Groups.fit(presence, NAMES, tail_below=0.25), **options), table


def report_of(task):
    return run_of(task)[0]


every = pytest.mark.parametrize("task", [name for name in tasks.TASKS if name != "classes"])


@every
def test_the_worst_combination_is_that_of_the_worst_headline(task):
    report = report_of(task)
    headline = report["task"]["headline"]
    assert report["worst_group"]["group"] == "note"
    values = [row[headline] for row in report["groups"]]
    assert report["worst_group"][headline] == (min if report["task"]["more"] else max)(values)
    assert report["tail_pooled"][headline] == report["worst_group"][headline]
    heads = [row[headline] for row in report["groups"] if not row["tail"]]
    assert report["head_mean"][headline] == pytest.approx(np.mean(heads))
    low, high = report["overall"][f"{headline}_ci"]
    assert low < report["overall"][headline] < high


@every
def test_a_report_is_written_and_read(task, tmp_path):
    report = report_of(task)
    write_json(tmp_path / "report.json", report)
    assert finished.read_report(tmp_path) == report
    content = json.loads((tmp_path / "report.json").read_text())
    content["overall"][content["task"]["headline"]] = "high"
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        finished.read_report(tmp_path)
    assert tasks.of_report(report).to_dict() == tasks.of_report(json.loads(json.dumps(report))).to_dict()


@every
def test_the_page_leads_with_the_headline_and_explains_it(task, tmp_path):
    report = report_of(task)
    write_html(tmp_path / "report.html", report, [])
    page = (tmp_path / "report.html").read_text()
    title, value = report["task"]["titles"][report["task"]["headline"]], report["overall"][report["task"]["headline"]]
    tile = re.search(r'class="tile"><span class="label">(.*?)</span><strong>(.*?)</strong>', page)
    assert tile.groups() == (title.replace("'", "&#39;"), f"{value:.3f}")
    assert f"<dt>{tile[1]}</dt>" in page
    assert ("Kaplan-Meier" in page, "By horizon" in page) == (task == "survival",) * 2
    assert ("By label" in page) == (task == "multilabel")
    assert ("Share of samples whose most probable class" in page) == (task == "ordinal")
    assert f"{value:.3f}" in Report(report)._repr_html_()
    assert f"{value:.3f}" in repr(Report(report))


def test_survival_has_curves_that_are_apart():
    curves = report_of("survival")["curves"]
    assert [curve["n"] for curve in curves["by_risk"]] == [67, 67, 66]
    assert set(curves["calibration"]) == {"3", "6"}
    assert all(b["n"] >= 30 for bins in curves["calibration"].values() for b in bins)


def test_numbers_have_bins_by_prediction_that_the_page_draws(tmp_path):
    report = report_of("regression")
    curves = report["curves"]
    assert (curves["typical"], [b["n"] for b in curves["by_prediction"]]) == ("mean", [20] * 10)
    predicted = [b["predicted"] for b in curves["by_prediction"]]
    assert predicted == sorted(predicted)
    write_html(tmp_path / "report.html", report, [])
    assert "observed, mean" in (tmp_path / "report.html").read_text()
