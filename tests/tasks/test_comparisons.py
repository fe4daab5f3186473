"""Runs of every task side by side: figures, which way is better, replicates, tables and page."""

import json

import numpy as np
import polars as pl
import pytest

from remind_jax import compare, tasks
from remind_jax.errors import UserError
from remind_jax.evaluation import finished, intervals
from remind_jax.evaluation.samples import Samples
from remind_jax.studies import comparison, results, tables
from tests.tasks.test_reports import run_of

every = pytest.mark.parametrize("task", [name for name in tasks.TASKS if name != "classes"])


def written(folder, task, method, noise):
    report, table = run_of(task, noise)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"method": method, "seed": 0}))
    (folder / finished.REPORT).write_text(json.dumps(report | {"method": method}))
    table.write_parquet(folder / finished.PREDICTIONS)
    return folder


@pytest.fixture
def folders(tmp_path):
    return lambda task: [written(tmp_path / m, task, m, n) for m, n in (("noisy", 2.0), ("clean", 0.0))]


@every
def test_the_better_run_gains_whichever_way_a_figure_goes(folders, task, tmp_path, capsys):
    compare.main([*map(str, folders(task)), f"--out={tmp_path / 'out'}", "--resamples=60"])
    found = pl.read_csv(tmp_path / "out" / "differences.csv").filter(samples="head")
    kind = tasks.TASKS[task]
    assert set(found["figure"]) == {name for name in kind.titles if name in kind.select}
    for row in found.iter_rows(named=True):
        assert (row["mean"] > 0) == kind.select[row["figure"]], row
        assert row["wins"] == 1
        assert row["low"] < row["mean"] < row["high"]
    page, printed = (tmp_path / "out" / "index.html").read_text(), capsys.readouterr().out
    text = (tmp_path / "out" / "table.md").read_text()
    for title in (kind.titles[name] for name in kind.titles if name in kind.select):
        assert f"## {title} by combination" in text
        assert f"<h2>{title.replace(chr(39), '&#39;')}</h2>" in page
    assert "percent" not in text + page.partition("</style>")[2].partition("<h2>Calibration")[0]
    outcomes = results.read_outcomes([tmp_path / "noisy", tmp_path / "clean"])
    whole = results.collect(outcomes, ["noisy", "clean"], ["noisy"], resamples=10)
    head = next(row for row in whole.rows if row.label == "head, pooled")
    assert all(tables.best(head, figure, whole.task) == {"clean"} for figure in whole.task.compared)
    assert f"{head.cells[next(iter(whole.task.compared))]['clean'].mean:.3f}" in printed


@every
def test_figures_and_replicates_are_those_of_the_samples_repeated(folders, task):
    run = comparison.outcome("clean", 0, folders(task)[1])
    report, samples = run.report, Samples.of(run.predictions)
    inside = samples.groups == "labs"
    lead = next(iter(run.task.compared))
    assert run.figures(np.ones(len(inside), bool))[lead] == pytest.approx(report["overall"][lead])
    assert run.figures(inside)[lead] == pytest.approx(
        next(row[lead] for row in report["groups"] if row["group"] == "labs")
    )
    assert run.figures(np.zeros(len(inside), bool))[lead] is None
    replicates = comparison.Replicates([run], resamples=4)
    table = run.predictions
    everyone = sorted(table["patient_id"].to_list())
    order = np.array([everyone.index(patient) for patient in table["patient_id"].to_list()])
    for r, weights in enumerate(np.concatenate(list(intervals.patient_weights(np.arange(200), 200, 0, resamples=4)))):
        repeated = np.repeat(np.arange(200), weights[order].astype(int))
        slow = run.task.weighed(samples.labels[repeated], samples.probabilities[repeated])
        # How likely it is to be observed is estimated from all samples, once, so survival is compared without it; F1
        # has draws of what no sample shows.
        for figure in {*run.task.compared} - {"c_uno", "ibs", "macro_f1", "f1_macro"}:
            expected = slow(np.arange(len(repeated)), np.ones((1, len(repeated))))[figure][0]
            assert replicates.figures("clean", 0)["all"][figure][1 + r] == pytest.approx(expected)


@every
def test_the_summary_tells_what_its_figures_are(folders, task):
    run = comparison.outcome("clean", 0, folders(task)[1])
    figures, told = results.run_figures(run.report), results.summary(run.task)
    assert figures.keys() == told.keys()
    lead = report_lead = run.report["task"]["headline"]
    assert figures["worst"] == run.report["worst_group"][report_lead]
    rows = [row for row in run.report["groups"] if row["n_train"]]
    assert figures["overall"] == pytest.approx(sum(row["train_fraction"] * row[lead] for row in rows))
    assert ("highest" in told["worst"]) == (not run.report["task"]["more"])


@every
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.drop("p_0"),
        lambda t: t.with_columns(pl.lit("x").alias(next(c for c in t.columns if c.startswith("label")))),
        lambda t: t.with_columns(pl.lit(float("nan")).alias("p_0")),
        lambda t: t.with_columns(pl.lit(0.5).alias("p_99")),
    ],
)
def test_damaged_predictions_are_refused(folders, task, change):
    folder = folders(task)[0]
    change(pl.read_parquet(folder / finished.PREDICTIONS)).write_parquet(folder / finished.PREDICTIONS)
    with pytest.raises(UserError, match="holds a damaged run"):
        comparison.outcome("noisy", 0, folder)


@pytest.mark.parametrize("fitted", [{"task": "none"}, {"task": "survival", "ends": 3}, {"task": "regression"}])
def test_a_report_that_tells_no_task_is_refused(folders, fitted):
    folder = folders("survival")[0]
    report = json.loads((folder / finished.REPORT).read_text())
    report["task"]["fitted"] = fitted
    (folder / finished.REPORT).write_text(json.dumps(report))
    with pytest.raises(UserError, match="damaged"):
        comparison.outcome("noisy", 0, folder)
