"""Runs of every task from a folder to its report, and what is made of the model: predict, Python, a stop on the way."""

import dataclasses
import json

import markupsafe
import numpy as np
import polars as pl
import pytest

import remind_jax as rj
from remind_jax import adapt, compare, export, main, predict
from remind_jax.data import reading
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation.samples import Samples
from remind_jax.training.run import fit
from tests import tiny_runs
from tests.data.target_files import FORMS, folder_of

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
N = 150
METHODS = ("soft_moe", "fuse_moe", "flex_moe", "fair_mixup", "reweigh", "group_dro", "fair_batch")  # and remind, above
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


def with_signal(path, task):
    """A folder in which sodium, where it is known, tells most of the label."""
    folder = folder_of(path, task, n=N)
    table, rng = pl.read_csv(folder / "manifest.csv", infer_schema=False), np.random.default_rng(3)
    sodium = (140 - table["sodium"].cast(pl.Float64).fill_null(140).to_numpy()) / 4
    event, censoring = rng.exponential(200 * np.exp(-1.5 * sodium)), rng.exponential(400, N)
    known = {name: rng.uniform(size=N) < 0.8 for name in ("sepsis", "aki")} | {"stroke": np.ones(N, bool)}
    labels = {
        name: [int(y) if k else None for y, k in zip(sodium > at, known[name], strict=True)]
        for at, name in zip((0.0, 0.5, 1.0), known, strict=True)
    }
    labels |= {"died": (sodium > 0.5).astype(int), "los": np.round(np.exp(1 + sodium), 3)}
    labels |= {"days": np.round(np.minimum(event, censoring) + 0.1, 2), "dead": (event <= censoring).astype(int)}
    table.with_columns(**{k: pl.Series(v, strict=False).cast(pl.String) for k, v in labels.items()}).write_csv(
        folder / "manifest.csv"
    )
    return folder


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
def test_predict_gives_what_the_report_was_made_of(runs, task, tmp_path):
    data, folder = runs(task)
    predict.main([f"--workdir={folder}", f"--data={data}", f"--out={tmp_path / 'out.parquet'}"])
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.height == N
    assert [name for name in out.columns if name in COLUMNS[task]] == COLUMNS[task]
    model, table = rj.load(folder), pl.read_parquet(folder / "predictions.parquet")
    known = out.join(table.select(pl.col("sample_id").alias("stay")), on="stay", how="inner", maintain_order="right")
    columns = model.task.columns(Samples.of(table).probabilities)
    for name in set(COLUMNS[task]) - {"prediction"}:
        np.testing.assert_allclose(known[name].to_numpy(), columns[name], rtol=1e-4, atol=1e-5)


@every
def test_the_model_in_python(runs, task):
    data, folder = runs(task)
    model, new = rj.load(folder), data / "new.csv"
    pl.read_csv(data / "manifest.csv", infer_schema=False).drop(model.schema.label_columns).write_csv(new)
    answers, table = model.predict(new), model.table(new)
    assert len(answers) == N
    if task in ("multilabel", "ordinal"):
        chances = model.predict_proba(new)
        assert chances.shape == (N, 3 if task == "multilabel" else 2)
        assert answers.shape == ((N, 3) if task == "multilabel" else (N,))
    else:
        np.testing.assert_array_equal(answers, table[COLUMNS[task][0]])
        with pytest.raises(UserError, match=f"task {task} has no probabilities"):
            model.predict_proba(new)
    found = model.evaluate(data)
    assert found["n"] == N
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
        ({"ensemble": 2}, "ensemble=2 is for classes only"),
        ({"train__select": "auroc"}, "train.select=auroc is no figure of task regression: choose one of loss, mae"),
    ],
)
def test_what_is_for_classes_only_is_refused_in_one_line(tmp_path, keys, says):
    folder = folder_of(tmp_path / "data", "regression")
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", **keys)
    with pytest.raises(UserError, match=says) as error:
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    assert "\n" not in str(error.value)


def test_commands_that_know_only_classes_say_so(runs, tmp_path):
    data, folder = runs("regression")
    with pytest.raises(UserError, match="export is for classes only"):
        export.main([f"--workdir={folder}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(UserError, match="comparing runs is for classes only"):
        compare.main([str(folder), str(runs("survival")[1]), f"--out={tmp_path / 'compared'}"])
    with pytest.raises(UserError, match="adapting is for classes only"):
        adapt.main([f"--workdir={folder}", f"--data={data}", "--unfreeze=head", f"--out={tmp_path / 'adapted'}"])
    other = with_signal(tmp_path / "other", "survival")
    with pytest.raises(UserError, match="a label of task survival; the run is of task regression"):
        rj.load(folder).predict(other)


@pytest.mark.slow
@every
@pytest.mark.parametrize(
    "method", ["soft_moe", "fuse_moe", "flex_moe", "fair_mixup", "reweigh", "group_dro", "fair_batch"]
)
def test_the_presets_train_on_each_task(tmp_path, task, method):
    folder = folder_of(tmp_path / "data", task)
    keys = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20}
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", method, **keys)
    main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    assert finished.read_report(tmp_path / "run")["task"]["name"] == task


def test_a_model_of_classes_that_knows_no_task_is_read(tmp_path):
    manifest = reading.read_manifest(folder_of(tmp_path / "data", "ordinal"), image_size=32, frames=8)
    schema = dataclasses.replace(manifest.schema, task="classes")
    keys = tiny_runs.TINY | {"train.epochs": 1.0, "train.joint_epochs": 0.5}
    keys = {key: value for key, value in keys.items() if not key.startswith("data.")}
    model = rj.fit(dataclasses.replace(manifest, schema=schema), progress=False, **keys)
    model.save(tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "model.json").read_text())
    del facts["task"]
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    again = rj.load(tmp_path / "model")
    assert again.task == model.task
    facts["task"] = {"task": "survival", "baseline": [1.0], "ends": [1.0], "horizons": []}
    (tmp_path / "model" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="is damaged"):
        rj.load(tmp_path / "model")
