"""Runs of every task from a folder to its report, and what is made of the model: predict, Python, a stop on the way."""

import dataclasses
import importlib
import json
import shutil
import sys

import markupsafe
import numpy as np
import polars as pl
import pytest

import remind_jax as rj
from remind_jax import adapt, compare, export, main, predict, tasks
from remind_jax.analysis import (
    availability,
    gradient_consistency,
    next_modality,
    robustness,
    specialization,
    uncertainty,
    what_if,
)
from remind_jax.data import reading
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation import report as reports
from remind_jax.evaluation.conformal import thresholds
from remind_jax.evaluation.samples import Samples
from remind_jax.methods import METHODS
from remind_jax.runtime.texts import markdown
from remind_jax.training import cost
from remind_jax.training.adaptation import FACTS
from remind_jax.training.run import fit
from tests import tiny_runs
from tests.data.target_files import FORMS, SIGNALS, folder_of, with_signal, write_label

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
COLUMNS = {
    "ordinal": ["prediction", "p_0", "p_1"],
    "multilabel": ["p_sepsis", "p_aki", "p_stroke"],
    "regression": ["value", "lower", "upper"],
    "survival": ["risk", "s_30", "s_365"],
}
MORE = {
    "regression": {"task__predicts": "quantiles"},
    "survival": {"task__bins": 3, "train__epochs": 16.0, "optim__lr": 0.01},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By task, made when it is asked for: folder of the data, folder of the run."""
    made = {}

    def run(task):
        if task not in made:
            path = tmp_path_factory.mktemp(task)
            folder = with_signal(path / "data", task)
            keys = {"train__epochs": 8.0, "train__joint_epochs": 4.0, "eval__bootstrap": 20, **MORE.get(task, {})}
            arguments = tiny_runs.own_arguments(folder, path / "cache", **keys)
            main.main([*arguments, f"--workdir={path / 'run'}"])
            made[task] = folder, path / "run"
        return made[task]

    return run


every = pytest.mark.parametrize("task", FORMS)


@every
def test_a_run_reports_the_figures_of_its_predictions(runs, task):
    _, folder = runs(task)
    report = finished.read_report(folder)
    model, table = rj.load(folder), pl.read_parquet(folder / "predictions.parquet")
    samples = Samples.of(table)
    assert report["task"]["name"] == task
    assert report["n"] == table.height == sum(row["n"] for row in report["groups"])
    options = {"seed": report["seed"], "resamples": model.config.eval.bootstrap}
    figures = model.task.evaluation(samples.labels, samples.probabilities, table["patient_id"].to_numpy(), **options)
    assert json.loads(json.dumps(figures(np.ones(table.height, bool)))) == report["overall"]
    group = max(report["groups"], key=lambda row: row["n"])
    found = figures(samples.groups == group["group"])
    assert {name: found[name] for name in report["task"]["titles"]} == {
        name: group[name] for name in report["task"]["titles"]
    }
    assert "Headline figures" in (folder / "report.html").read_text()
    assert (
        markupsafe.escape(report["task"]["titles"][report["task"]["headline"]]) in (folder / "report.html").read_text()
    )


def test_thresholds_of_labels_are_chosen_on_tuning_rows_and_told(runs):
    _, folder = runs("multilabel")
    report, model = finished.read_report(folder), rj.load(folder)
    assert report["chosen_on_tuning"] == {"thresholds": dict(zip(model.classes, model.task.thresholds, strict=True))}
    assert set(model.task.thresholds) != {0.5}


@every
def test_it_learns(runs, task):
    data, folder = runs(task)
    overall = rj.load(folder).evaluate(data)["overall"]
    better = {"ordinal": ("auroc", 0.6), "multilabel": ("auroc_macro", 0.6), "regression": ("spearman", 0.2)}
    name, least = better.get(task, ("c_index", 0.6))
    assert overall[name] > least, overall


@every
def test_predict_gives_what_the_report_was_made_of(runs, task, tmp_path, capsys):
    data, folder = runs(task)
    predict.main([f"--workdir={folder}", f"--data={data}", f"--out={tmp_path / 'out.parquet'}"])
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.height == SIGNALS
    told = [line for line in capsys.readouterr().out.splitlines() if "exact 95 % interval" in line]
    assert len(told) == {"multilabel": 3, "survival": 0}.get(task, 1)
    assert [name for name in out.columns if name in COLUMNS[task]] == COLUMNS[task]
    model, table = rj.load(folder), pl.read_parquet(folder / "predictions.parquet")
    known = out.join(table.select(pl.col("sample_id").alias("stay")), on="stay", how="inner", maintain_order="right")
    samples = Samples.of(table)
    columns = model.task.columns(samples.probabilities)
    if task == "regression":  # of values, bounds that hold the promised share take the place of the model's
        columns |= model.task.sets(samples.probabilities, thresholds(model.sets, samples.groups)).columns
    for name in set(COLUMNS[task]) - {"prediction"}:
        np.testing.assert_allclose(known[name].to_numpy(), columns[name], rtol=1e-4, atol=1e-5)


@every
def test_the_model_in_python(runs, task):
    data, folder = runs(task)
    model, new = rj.load(folder), data / "new.csv"
    pl.read_csv(data / "manifest.csv", infer_schema=False).drop(model.schema.label_columns).write_csv(new)
    answers, table = model.predict(new), model.table(new)
    assert len(answers) == SIGNALS
    if task in ("multilabel", "ordinal"):
        chances = model.predict_proba(new)
        assert chances.shape == (SIGNALS, 3 if task == "multilabel" else 2)
        assert answers.shape == ((SIGNALS, 3) if task == "multilabel" else (SIGNALS,))
    else:
        np.testing.assert_array_equal(answers, table[COLUMNS[task][0]])
        with pytest.raises(UserError, match=f"task {task} has no probabilities"):
            model.predict_proba(new)
    found = model.evaluate(data)
    assert found["n"] == SIGNALS
    assert found["overall"][model.task.judge.headline] is not None
    assert "Report" not in repr(found)
    if task == "survival":
        curves = model.predict_survival(new, [0, 30, 365])
        np.testing.assert_allclose(curves[:, 1:], table.select("s_30", "s_365").to_numpy(), atol=1e-6)
        assert (curves[:, 0] == 1).all()
    else:
        with pytest.raises(UserError, match="predicts no survival"):
            model.predict_survival(new, [1])


@every
def test_a_saved_model_predicts_the_same(runs, task, tmp_path):
    data, folder = runs(task)
    model = rj.load(folder)
    model.save(tmp_path / "model")
    again = rj.load(tmp_path / "model")
    assert again.task == model.task
    assert dict(again.report) == dict(model.report)
    assert again.table(data).equals(model.table(data))


@pytest.mark.parametrize("task", ["regression", pytest.param("survival", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(runs, task, tmp_path, monkeypatch):
    data, folder = runs(task)
    manifest = reading.read_manifest(data, image_size=32, frames=8)
    config = rj.load(folder).config.copy_and_resolve_references()
    config.train.epochs, config.train.joint_epochs = 2.0, 1.0
    whole = fit(config, manifest, tmp_path / "whole", verbose=False).model

    def stop(*_, **__):
        raise KeyboardInterrupt

    from remind_jax.training.recorder import Recorder

    add = Recorder.add
    calls = []

    def after_a_while(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 15:
            stop()
        return add(self, *arguments, **options)

    monkeypatch.setattr(Recorder, "add", after_a_while)
    fit(config, manifest, tmp_path / "parts", verbose=False)
    monkeypatch.setattr(Recorder, "add", add)
    parts = fit(config, manifest, tmp_path / "parts", verbose=False).model
    assert all((whole.params[path] == parts.params[path]).all() for path in whole.params)
    assert dict(whole.report) == dict(parts.report)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"objective__prior": "class"},
            "objective.prior=class is for classes only, and the label is of task regression",
        ),
        ({"objective__loss": "focal"}, "objective.loss=focal is for classes only"),
        ({"eval__adjust_prior": "accuracy"}, "eval.adjust_prior=accuracy is for classes only"),
        ({"eval__recalibrate": "temperature"}, "eval.recalibrate=temperature is for classes only"),
        ({"eval__recalibrate": "isotonic"}, "eval.recalibrate=isotonic is for classes and multilabel only"),
        (
            {"ensemble": 2, "train__hide_samples": 0.3, "objective__distill_weight": 1.0},
            "distill_weight=1.0 is for classes",
        ),
        ({"train__select": "auroc"}, "train.select=auroc is no figure of task regression: choose one of loss, mae"),
    ],
)
def test_what_is_for_classes_only_is_refused_in_one_line(tmp_path, keys, says):
    folder = folder_of(tmp_path / "data", "regression")
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", **keys)
    with pytest.raises(UserError, match=says) as error:
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    assert "\n" not in str(error.value)


@every
def test_an_exported_program_predicts_what_the_model_predicts(runs, task, tmp_path, monkeypatch):
    data, folder = runs(task)
    out = tmp_path / "out"
    export.main([f"--workdir={folder}", f"--out={out}"])
    monkeypatch.syspath_prepend(str(out))
    for name in ("encode", "inputs", "load"):
        sys.modules.pop(name, None)
    model, load = rj.load(folder), importlib.import_module("load")
    assert load.check(out) == []
    known = json.loads((out / "schema.json").read_text())
    columns = [column for each in model.schema.modalities if each.name != "scan" for column in each.all_columns]
    rows = pl.read_csv(data / "manifest.csv").select(columns)  # scan has files of its own, and may be absent
    rows.write_csv(tmp_path / "rows.csv")
    found = load.load(out)(importlib.import_module("encode").encode(tmp_path / "rows.csv", out))
    name = known["outputs"][0]["name"]
    assert known["task"]["predictions"] == list(model.task.names)
    assert found[name].shape == (SIGNALS, len(model.task.names))
    expected = np.concatenate([predictions for predictions, _ in model.batches(model.read(rows))])
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    written = model.tabulate(manifest := model.read(rows), expected)
    assert bool(model.sets) == any(each.get("level") == 0.9 for each in known["outputs"])
    if task == "regression":
        np.testing.assert_allclose(found["lower"], written["lower"].to_numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["upper"], written["upper"].to_numpy(), rtol=1e-4, atol=1e-4)
    elif model.sets:
        at = thresholds(model.sets, model.combinations(manifest))
        np.testing.assert_array_equal(found["set"], model.task.inside(expected, at)["set"])
        assert 0 < found["set"].mean() < 1
    title = markdown(model.task.judge.titles[model.task.judge.headline])
    assert title in (out / "model_card.md").read_text(encoding="utf-8")


@every
def test_adapting_lowers_the_loss_on_a_combination_that_training_never_had(runs, task, tmp_path, capsys):
    data, folder = runs(task)
    model, other = rj.load(folder), tmp_path / "other"
    presence = reading.read_manifest(data, image_size=32, frames=8).presence
    masks = np.array([[k >> j & 1 for j in range(presence.shape[1])] for k in range(1, 16)], bool)
    counts = [int((presence & mask == mask).all(axis=1).sum()) for mask in masks]
    new = max(np.flatnonzero(~model.seen(masks)), key=lambda k: counts[k], default=None)
    assert new is not None
    shutil.copytree(data, other)
    table, lost = pl.read_csv(other / "manifest.csv", infer_schema=False), (presence & masks[new] == masks[new]).all(1)
    for each, here in zip(model.schema.modalities, masks[new], strict=True):
        if not here:
            emptied = [pl.when(pl.Series(lost)).then(None).otherwise(pl.col(c)).alias(c) for c in each.all_columns]
            table = table.with_columns(emptied)
    table.write_csv(other / "manifest.csv")
    out = tmp_path / "adapted"
    adapt.main([f"--workdir={folder}", f"--data={other}", "--unfreeze=all", "--steps=40", "--lr=0.01", f"--out={out}"])
    report = finished.read_report(out, FACTS)
    facts, lead = report["adapted"], report["task"]["headline"]
    assert report["task"]["name"] == task
    assert facts["before"]["new"]["n"] == facts["after"]["new"]["n"] > 0
    assert {lead, "notes"} <= facts["after"]["new"].keys()
    printed = capsys.readouterr().out
    assert report["task"]["titles"][lead] in printed.partition("held-out rows")[2]
    again, prior = rj.load(out), rj.load(folder)
    labels = (manifest := again.read(other)).labels[lost]
    losses = [
        m.task.tuning(labels, np.concatenate([p for p, _ in m.batches(manifest)])[lost])["loss"] for m in (prior, again)
    ]
    assert losses[1] < losses[0]


@every
def test_a_plan_counts_what_the_model_has(runs, task):
    _, folder = runs(task)
    model = rj.load(folder)
    made = cost.make_plan(model.config)
    assert made.parameters.total() == model.parameters
    assert made.stages[0].step_flops > 0


def test_another_task_is_refused(runs, tmp_path):
    _, folder = runs("regression")
    shutil.copytree(runs("survival")[1], tmp_path / "survival")
    with pytest.raises(UserError, match="the runs are of other tasks: regression, survival"):
        compare.main([str(folder), str(tmp_path / "survival"), f"--out={tmp_path / 'compared'}"])
    other = with_signal(tmp_path / "other", "survival")
    with pytest.raises(UserError, match="a label of task survival; the run is of task regression"):
        rj.load(folder).predict(other)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", *FORMS])
# One has a test of its own below, and stacks have theirs in training/test_stack.py.
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("logit_adjust", "remind_stack")])
def test_the_methods_train_on_each_task(tmp_path, task, method):
    folder = folder_of(tmp_path / "data", "ordinal" if task == "classes" else task)
    if task == "classes":
        write_label(folder, FORMS["ordinal"] | {"ordered": False})
    keys = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20}
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", method, **keys)
    main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    report = finished.read_report(tmp_path / "run")
    found = tasks.of_report(report)
    assert (found.name, report["method"]) == (task, method)
    assert report["overall"][found.judge.headline] is not None


def test_logit_adjustment_is_for_classes(tmp_path):
    folder = folder_of(tmp_path / "data", "survival")
    with pytest.raises(
        UserError, match=r"objective.prior=class is for classes only, and the label is of task survival"
    ):
        main.main([*tiny_runs.own_arguments(folder, tmp_path / "cache", "logit_adjust"), f"--workdir={tmp_path}"])


@pytest.mark.parametrize(
    ("task", "several"), [("survival", "ensemble"), ("multilabel", "ensemble"), ("ordinal", "model.members")]
)
def test_several_networks_predict_the_mean_of_their_predictions(tmp_path, task, several):
    manifest = reading.read_manifest(folder_of(tmp_path / "data", task), image_size=32, frames=8)
    keys = {key: value for key, value in tiny_runs.TINY.items() if not key.startswith("data.")}
    keys |= {"train.epochs": 1.0, "train.joint_epochs": 0.5, "eval.bootstrap": 20, several: 2}
    model = rj.fit(manifest, method="remind", progress=False, **keys)
    found = model.predictions(manifest)
    if several == "ensemble":
        each = []
        for i in range(2):
            parts = {
                name: getattr(model, name) for name in ("title", "schema", "task", "groups", "preprocessor", "gate")
            }
            parts |= {name: getattr(model, name) for name in ("label_counts", "train_patients")}
            config = model.config.copy_and_resolve_references()
            config.ensemble, config.ensemble_plain = 1, 0
            params = {path: x[i] for path, x in model.params.items()}
            each.append(type(model).assemble(config=config, params=params, **parts).predictions(manifest))
        assert np.abs(each[0] - each[1]).max() > 1e-4
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1) if task == "ordinal" else 1.0, 1.0, rtol=1e-5)


ANALYSES = {
    "availability": (availability, []),
    "robustness": (robustness, ["--draws=1"]),
    "what_if": (what_if, ["--drop=labs", "--samples=0-9"]),
    "uncertainty": (uncertainty, ["--points=3"]),
    "next_modality": (next_modality, ["--donors=3", "--checks=20"]),
    "gradient_consistency": (gradient_consistency, ["--draws=1", "--n=4", "--n_whole=8"]),
    "specialization": (specialization, ["--top=1"]),
}


@every
@pytest.mark.parametrize("name", ANALYSES)
def test_analyses_work_or_say_why_not(runs, task, name, capsys):
    _, folder = runs(task)
    module, options = ANALYSES[name]
    module.main([f"--workdir={folder}", *options])
    rows = pl.read_csv(folder / "analysis" / f"{name}.csv", infer_schema_length=None)
    assert rows.height
    model = rj.load(folder)
    lead, title = next(iter(model.task.compared.items()))
    printed = capsys.readouterr().out
    if name in ("availability", "robustness"):
        assert lead in rows.columns
        assert reports.plain_title(title) in printed
    if name == "availability":
        groups = {row["group"]: row[lead] for row in model.report["groups"]}
        known = rows.filter(pl.col(lead).is_not_null())
        assert known[lead].to_list() == pytest.approx([groups[group] for group in known["group"]], rel=1e-6)
    if name == "robustness":
        whole = rows.filter((pl.col("rate") == 0) & (pl.col("hidden") == "all together"))[lead][0]
        assert whole == pytest.approx(model.report["overall"][lead], rel=1e-3, abs=1e-4)
        gapped = pl.read_csv(folder / "analysis" / "robustness_gaps.csv", infer_schema_length=None)
        assert set(gapped["figure"]) == {*model.task.compared, "loss"}
        assert gapped.height == 2 * 4 * 2 * gapped["figure"].n_unique()
        assert gapped["difference"].is_not_null().any()
        apart = gapped.filter(pl.col("figure") == lead).select(pl.col("value") - pl.col("difference") - whole)
        np.testing.assert_allclose(apart.to_series().drop_nulls(), 0.0, atol=1e-4 * max(1.0, abs(whole)))
    if name == "what_if":
        modalities = [f"shapley_{each}" for each in model.groups.modalities]
        total = rows.select(modalities).fill_null(0).sum_horizontal() + rows["value_empty"]
        predictions = rows["risk" if task == "survival" else "value"] if task in ("survival", "regression") else None
        if predictions is None:
            p = rows.select(c for c in rows.columns if c.startswith("p_"))
            predictions = p.sum_horizontal() if task == "multilabel" else p.max_horizontal()
        np.testing.assert_allclose(total, predictions, rtol=1e-4, atol=1e-4)
    if name == "uncertainty":
        table = pl.read_csv(folder / "analysis" / "uncertainty_thresholds.csv")
        known = table[f"{model.task.marked}_all"].drop_nulls()
        assert known.is_finite().all()
        assert len(known)
        assert model.task.marked == ("accuracy" if task == "ordinal" else "loss")
    if name == "gradient_consistency":
        assert rows["settings"].str.contains("output=loss").all()
        with pytest.raises(UserError, match=f"--output=margin: a task {task} has none; take loss"):
            module.main([f"--workdir={folder}", "--output=margin", *options])


def test_values_without_bounds_have_no_next_modality(tmp_path):
    folder = folder_of(tmp_path / "data", "regression")
    keys = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20, "task__predicts": "mean"}
    main.main([*tiny_runs.own_arguments(folder, tmp_path / "cache", **keys), f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match="says nothing of how sure it is: train with gaussian or quantiles"):
        next_modality.main([f"--workdir={tmp_path / 'run'}"])


def test_a_model_of_classes_that_knows_no_task_is_read(tmp_path):
    manifest = reading.read_manifest(folder_of(tmp_path / "data", "ordinal"), image_size=32, frames=8)
    schema = dataclasses.replace(manifest.schema, task="classes")
    keys = tiny_runs.TINY | {"train.epochs": 1.0, "train.joint_epochs": 0.5}
    keys = {key: value for key, value in keys.items() if not key.startswith("data.")}
    model = rj.fit(dataclasses.replace(manifest, schema=schema), method="remind", progress=False, **keys)
    model.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    del facts["task"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    again = rj.load(tmp_path / "model")
    assert again.task == dataclasses.replace(model.task, decision=())
    facts["task"] = {"task": "survival", "baseline": [1.0], "ends": [1.0], "horizons": []}
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is damaged"):
        rj.load(tmp_path / "model")
