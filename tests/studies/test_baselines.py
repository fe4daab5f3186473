"""Logistic regression and boosting as runs: what they see, that they learn, and that their folders are like others."""

import json
import sys

import numpy as np
import polars as pl
import pytest

from remind_jax import cli, main
from remind_jax.errors import UserError
from remind_jax.inference import model_folder
from remind_jax.studies import baselines, comparison
from remind_jax.training import cost, plain_models
from tests import plain_runs, tiny_runs
from tests.data.target_files import FORMS, folder_of, with_signal

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
CLASSIFIERS = ("logistic_regression", "gradient_boosting")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return plain_runs.hospital(tmp_path_factory.mktemp("hospital"))


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_run_has_report_and_predictions_and_is_kept(hospital, tmp_path, capsys, name):
    config, data = hospital[0].copy_and_resolve_references(), hospital[1]
    config.method = name
    report = baselines.fit_and_evaluate(config, tmp_path / "run")
    assert "held-out samples" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == report
    assert (report["method"], report["data"], report["seed"]) == (name, "small_hospital", 0)
    assert report["overall"]["auroc"] > 0.7  # sodium and leucocytes tell something
    assert report["chosen"]
    table = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert len(table) == report["n"] == len(data.rows("held_out"))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        ".owner",
        "config.json",
        "data.npz",
        "environment.json",
        "metrics.jsonl",
        "predictions.parquet",
        "report.html",
        "report.json",
    }
    before = (tmp_path / "run" / "report.json").stat().st_mtime_ns
    assert baselines.fit_and_evaluate(config, tmp_path / "run", verbose=False) == report
    assert (tmp_path / "run" / "report.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for name, known in plain_models.TASKS_OF.items() for task in known if task in FORMS]
)
def test_models_of_every_task_learn_and_report(tmp_path, task, name, monkeypatch):
    monkeypatch.setattr(plain_models, "TREES", 20)
    root = with_signal(tmp_path / "data", task)
    config = plain_runs.config_of(tmp_path, root, train__select="loss", data__fractions="(0.5, 0.2, 0.3)")
    config.method = name
    report = baselines.fit_and_evaluate(config, tmp_path / "run", verbose=False)
    assert report["task"]["name"] == task
    least = {"ordinal": ("auroc", 0.6), "multilabel": ("auroc_macro", 0.6), "regression": ("spearman", 0.15)}
    figure, more = least.get(task, ("c_index", 0.57))
    assert report["overall"][figure] > more, report["overall"]
    run = comparison.outcome(name, 0, tmp_path / "run")
    assert run.figures(np.ones(report["n"], bool))[figure] == pytest.approx(report["overall"][figure])
    if task == "multilabel":
        assert report["chosen_on_tuning"]["thresholds"].keys() == set(report["classes"])
    if task == "survival":
        curve = run.samples.probabilities
        assert (np.diff(curve, axis=1) <= 1e-9).all()


@pytest.mark.parametrize(
    ("task", "name", "says"),
    [
        ("survival", "ridge", "does not learn labels of task survival: take one of cox, gradient_boosting"),
        ("regression", "logistic_regression", "take one of ridge, gradient_boosting"),
        ("regression", "ridge", "train.select=auroc is no figure of task regression"),
    ],
)
def test_a_model_of_another_task_is_refused(tmp_path, task, name, says):
    config = plain_runs.config_of(tmp_path, folder_of(tmp_path / "data", task))
    config.method = name
    with pytest.raises(UserError, match=says):
        baselines.fit_and_evaluate(config, tmp_path / "run", verbose=False)


def test_without_lifelines_one_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lifelines", None)
    config = plain_runs.config_of(tmp_path, folder_of(tmp_path / "data", "survival"), train__select="loss")
    config.method = "cox"
    with pytest.raises(UserError, match="pip install lifelines"):
        baselines.fit_and_evaluate(config, tmp_path / "run", verbose=False)


def test_settings_of_the_network_do_not_belong_to_a_plain_run(hospital):
    config = hospital[0].copy_and_resolve_references()
    config.method = "logistic_regression"
    kept = baselines.plain_config(config)
    assert kept["method"] == "logistic_regression"
    assert kept["data"]["root"] == config.data.root
    assert not {"fusion", "optim", "model"} & kept.keys()


def test_a_plain_model_is_a_method_of_the_command(hospital, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root, cache = hospital[0].data.root, hospital[0].data.cache
    flags = [f"--config.data.root={root}", f"--config.data.cache={cache}", "--config.eval.bootstrap=5"]
    main.main([f"--config={tiny_runs.ROOT}/configs/manifest.py:method=logistic_regression", *flags])
    run = tmp_path / "runs" / "manifest-logistic_regression-seed0"
    assert json.loads((run / "report.json").read_text(encoding="utf-8"))["method"] == "logistic_regression"
    assert "Fitting logistic_regression on small_hospital" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a run of logistic_regression, which has no network"):
        model_folder.open_model(run)


def test_there_is_no_network_to_plan():
    with pytest.raises(UserError, match="method=gradient_boosting has no network"):
        cost.make_plan(cli.parse_config([f"--config={tiny_runs.ROOT}/configs/mimic.py:method=gradient_boosting"])[0])
