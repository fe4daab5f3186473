"""Logistic regression and boosting as runs: what they see, that they learn, and that their folders are like others."""

import json
import sys
import types

import numpy as np
import polars as pl
import pytest

from remind_jax import cli, main
from remind_jax.data import dataset as datasets
from remind_jax.data.kinds.text import EOS, PAD
from remind_jax.errors import UserError
from remind_jax.inference import model_folder
from remind_jax.studies import baselines, comparison
from remind_jax.tasks.classes import Classes
from remind_jax.training import cost
from tests import tiny_runs
from tests.data.manifest_files import write_image_manifest, write_manifest
from tests.data.target_files import FORMS, folder_of, with_signal

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
CLASSIFIERS = ("logistic_regression", "gradient_boosting")


def task_of(classes):
    return Classes((1 / classes,) * classes, tuple(map(str, range(classes))))


def _config(folder, root, **changes):
    """configs/manifest.py on a folder of data."""
    keys = {"data.root": root, "data.cache": folder / "cache", "data.max_tokens": 8, "data.vocabulary": 64}
    keys |= {"eval.bootstrap": 20, "data.fractions": "(0.6, 0.2, 0.2)", "train.select": "auroc"}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return cli.parse_config([f"--config={tiny_runs.ROOT}/configs/manifest.py", *flags])[0]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hospital")
    config = _config(folder, write_manifest(folder / "data", n=240))
    return config, datasets.load_dataset(config)


# ---- Features --------------------------------------------------------------------------------------------------------


def test_features_are_the_encoded_rows(hospital):
    _, data = hospital
    found = baselines.features(data, "tuning")
    store = data.stores["tuning"]
    batch = store.take(np.arange(len(store)))
    names = list(data.inputs)
    np.testing.assert_array_equal(found.present, batch["present"])
    np.testing.assert_array_equal(found.labels, batch["label"])
    assert len(found.bags) == 2
    for name, bag in zip(("note", "icd"), found.bags, strict=True):
        assert bag.shape == (len(store), data.inputs[name].vocabulary)
        for i, ids in enumerate(batch[name]):
            expected = np.bincount(ids[(ids != PAD) & (ids != EOS)], minlength=bag.shape[1])
            np.testing.assert_array_equal(bag[i].toarray()[0], expected)
        assert bag.sum() > 0
    labs = found.dense[:, : data.inputs["labs"].shape[0]]
    here = batch["present"][:, names.index("labs")]
    assert np.isnan(labs[~here]).all()
    assert not np.isnan(labs[here]).all(axis=1).any()
    scan = found.dense[:, labs.shape[1] :]
    there = batch["present"][:, names.index("scan")]
    np.testing.assert_allclose(scan[there], batch["scan"][there].mean(axis=1), rtol=1e-6)


def test_images_and_volumes_become_numbers(tmp_path):
    root = write_image_manifest(tmp_path / "data", n=40)
    data = datasets.load_dataset(_config(tmp_path, root, data__image_size=16, data__frames=5))
    found = baselines.features(data, "train")
    # Colour and grey images, five grey frames in four blocks, and the table's features.
    width = 8 * 8 * 3 + 8 * 8 + 4 * 8 * 8 + data.inputs["labs"].shape[0]
    assert found.dense.shape == (len(data.rows("train")), width)
    assert found.bags == ()
    np.testing.assert_array_equal(np.isnan(found.dense[:, 0]), ~found.present[:, 0])


# ---- Models ----------------------------------------------------------------------------------------------------------


def _made(n: int, seed: int, rule) -> baselines.Features:
    """Two numbers of which the second is sometimes missing, one bag of three tokens; labels by `rule`."""
    from scipy import sparse

    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, 2)).astype(np.float32)
    bag = rng.integers(0, 2, (n, 3))
    labels = rule(dense, bag).astype(np.int64)
    present = np.stack([np.ones(n, bool), rng.random(n) < 0.7], axis=1)
    dense[~present[:, 1], 1] = np.nan
    return baselines.Features(dense, (sparse.csr_matrix(bag.astype(np.float32)),), present, labels)


def _fit(name: str, rule, classes: int = 2):
    train, tuning, test = (_made(n, seed, rule) for seed, n in enumerate((400, 150, 300)))

    def score(probabilities):
        return float(np.mean(probabilities.argmax(1) == tuning.labels))

    fitted = baselines.MODELS[name](train, task_of(classes), 0, score, tuning)
    return fitted, fitted.predict(test), test.labels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_models_learn_what_they_can_and_tell_probabilities(name):
    fitted, probabilities, labels = _fit(name, lambda dense, bag: dense[:, 0] + 2 * bag[:, 1] > 1)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert np.mean(probabilities.argmax(1) == labels) > 0.9
    assert fitted.parameters > 3


def test_boosting_finds_what_a_line_cannot():
    def rule(dense, bag):
        return (dense[:, 0] > 0) ^ (bag[:, 0] > 0)

    _, line, labels = _fit("logistic_regression", rule)
    fitted, trees, _ = _fit("gradient_boosting", rule)
    assert np.mean(line.argmax(1) == labels) < 0.65
    assert np.mean(trees.argmax(1) == labels) > 0.9
    assert fitted.chosen["depth"] > 1  # a tree of depth 1 has no interactions


@pytest.mark.parametrize("numbers", ["quantile", "piecewise"])
def test_models_learn_from_every_encoding_of_numbers(hospital, monkeypatch, numbers):
    monkeypatch.setattr(baselines, "TREES", 10)
    config = hospital[0].copy_and_resolve_references()
    config.data.numbers = numbers
    data = datasets.load_dataset(config)
    train, tuning = (baselines.features(data, split) for split in ("train", "tuning"))
    score, labs = baselines._score("auroc", task_of(2), tuning.labels), data.inputs["labs"].shape[0]
    for model in map(baselines.MODELS.get, CLASSIFIERS):
        found = []
        # The features of the table alone, and none of them.
        for factor in (1, 0):
            one, two = (part._replace(dense=factor * part.dense[:, :labs], bags=()) for part in (train, tuning))
            found.append(score(model(one, task_of(2), 0, score, two).predict(two)))
        assert found[0] > found[1] + 0.1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_that_training_lacks_has_probability_zero(name):
    _, probabilities, _ = _fit(name, lambda dense, bag: np.where(dense[:, 0] > 0, 2, 0), classes=4)
    assert probabilities.shape == (300, 4)
    np.testing.assert_array_equal(probabilities[:, [1, 3]], 0)


def test_tuning_rows_choose(monkeypatch):
    """With a criterion that likes uncertain answers the strongest penalty wins, with the opposite one the weakest."""
    train, tuning = (_made(n, seed, lambda dense, bag: dense[:, 0] > 0) for seed, n in enumerate((200, 80)))
    for sign, expected in ((-1, baselines.STRENGTHS[0]), (1, baselines.STRENGTHS[-1])):
        fitted = baselines.MODELS["logistic_regression"](
            train,
            task_of(2),
            0,
            lambda probabilities, sign=sign: sign * float(probabilities.max(axis=1).mean()),
            tuning,
        )
        assert fitted.chosen == {"C": expected}


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


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for name, known in baselines.TASKS_OF.items() for task in known if task in FORMS]
)
def test_models_of_every_task_learn_and_report(tmp_path, task, name, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 20)
    root = with_signal(tmp_path / "data", task)
    config = _config(tmp_path, root, train__select="loss", data__fractions="(0.5, 0.2, 0.3)")
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


def test_person_periods_end_where_the_event_is_or_the_time_is_censored():
    made = []

    class Spy:
        def fit(self, x, y):
            made.append((x, y))
            return self

    task = types.SimpleNamespace(outputs=3, steps=lambda labels: (labels[:, 0].astype(int), labels[:, 1] > 0))
    x, labels = np.array([[5.0], [6.0], [7.0]]), np.array([[1, 1], [1, 0], [3, 0]])
    baselines._Hazards(lambda kind: Spy(), x, labels, task)
    rows, events = made[0]
    # two steps of the first, in the second of which it has its event; two of the second; all three of the last
    assert rows.tolist() == [[5, 0], [5, 1], [6, 0], [6, 1], [7, 0], [7, 1], [7, 2]]
    assert events.tolist() == [False, True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("task", "name", "says"),
    [
        ("survival", "ridge", "does not learn labels of task survival: take one of cox, gradient_boosting"),
        ("regression", "logistic_regression", "take one of ridge, gradient_boosting"),
        ("regression", "ridge", "train.select=auroc is no figure of task regression"),
    ],
)
def test_a_model_of_another_task_is_refused(tmp_path, task, name, says):
    config = _config(tmp_path, folder_of(tmp_path / "data", task))
    config.method = name
    with pytest.raises(UserError, match=says):
        baselines.fit_and_evaluate(config, tmp_path / "run", verbose=False)


def test_without_lifelines_one_line_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lifelines", None)
    config = _config(tmp_path, folder_of(tmp_path / "data", "survival"), train__select="loss")
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
