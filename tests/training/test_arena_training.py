"""Methods of the arena: runs, what is made of them, and what they must not depend on."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from remind_jax import export, main
from remind_jax.data import dataset as datasets
from remind_jax.data import samplers
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.inference import model_folder
from remind_jax.methods import ARENA
from remind_jax.models.fusion.m3care import M3Care
from remind_jax.training import kept_rows
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs
from tests.data.target_files import FORMS, folder_of, write_label
from tests.training.runs import assert_same_arrays, checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
METHODS = ("simmlm", "shapko", "m3care", "smil", "fuse_moe_released", "flex_moe_released")
# Of those that are fusions alone, the ones with running means, two stages, and predictors with losses of their own.
QUICK = ("mean_imputation", "medfuse", "drfuse")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ARENA if name not in METHODS + QUICK]
each = pytest.mark.parametrize("method", [*METHODS, *QUICK, *SLOW])
SMALL = {"fusion__bank": 24, "fusion__centres": 3, "eval__bootstrap": 20, "train__log_every": 1}
# Two epochs of 12 steps, judged and saved every sixth step.
LONG = SMALL | {"train__evaluate_every": 0.5, "train__keep": 0}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(cache):
    return datasets.load_dataset(tiny_runs.config(cache))


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """Folders of finished runs by method, each made when it is asked for."""
    made = {}

    def run(method):
        if method not in made:
            made[method] = tmp_path_factory.mktemp(method) / "run"
            train_and_evaluate(tiny_runs.config(cache, method, **LONG), made[method], verbose=False)
        return made[method]

    return run


def records(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time/step_ms"} for line in lines]


@each
def test_a_run_resumes_exactly(runs, cache, tmp_path, method):
    folder = tmp_path / "run"
    shutil.copytree(runs(method), folder)
    for name in ("report.json", "model", "predictions.parquet"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit() and int(path.name) > 18]:
        shutil.rmtree(path)
    report = train_and_evaluate(tiny_runs.config(cache, method, **LONG), folder, verbose=False)
    assert report == finished.read_report(runs(method))
    assert records(folder) == records(runs(method))
    assert_same_arrays(checkpoint(folder), checkpoint(runs(method)), 0.0)


@each
def test_predictions_depend_neither_on_other_rows_nor_on_what_is_absent(runs, data, method):
    model, store = model_folder.open_model(runs(method)), data.stores["held_out"]
    positions = np.arange(len(store))
    batch, present = store.take(positions), store.presence
    assert not present.all()
    found = model.predict_store(store).probabilities
    garbage = {}
    for j, name in enumerate(data.groups.modalities):
        hidden = ~present[:, j].reshape(-1, *[1] * (batch[name].ndim - 1))
        noise = np.random.default_rng(j).normal(scale=1e3, size=batch[name].shape)
        garbage[name] = np.where(hidden, noise, batch[name]).astype(batch[name].dtype)
    np.testing.assert_array_equal(model.predict_store(store.replaced(garbage)).probabilities, found)
    order = np.random.default_rng(0).permutation(len(store))
    np.testing.assert_allclose(model.predict_parts(store, order, present[order]), found[order], atol=1e-5)
    few = order[:3]
    np.testing.assert_allclose(model.predict_parts(store, few, present[few]), found[few], atol=1e-5)


@pytest.mark.parametrize("parallel", ["jit", "pmap"])
@each
def test_four_devices_take_the_steps_of_one(runs, cache, tmp_path, method, parallel):
    changes = SMALL | {"train__epochs": 0.5, "train__joint_epochs": 0.25, "parallel": parallel, "devices": 4}
    config = tiny_runs.config(cache, method, **changes)
    if method == "m3care" and parallel == "pmap":
        with pytest.raises(UserError, match="finds neighbours in the whole batch"):
            train_and_evaluate(config, tmp_path / "four", verbose=False)
        return
    train_and_evaluate(config, tmp_path / "four", verbose=False)
    one = tiny_runs.config(cache, method, **changes | {"parallel": "jit", "devices": 1})
    train_and_evaluate(one, tmp_path / "one", verbose=False)
    steps, others = (
        [record for record in records(tmp_path / name) if "train/loss" in record] for name in ("four", "one")
    )
    assert len(steps) == len(others) == 6
    for step, other in zip(steps, others, strict=True):
        assert step.keys() == other.keys()
        for key in [key for key in step if key.startswith("train/")]:
            assert step[key] == pytest.approx(other[key], rel=2e-2, abs=1e-4), key
    assert steps[0]["train/loss"] == pytest.approx(others[0]["train/loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["simmlm", "m3care", "smil", "mean_imputation", "drfuse"])
def test_an_ensemble_and_its_program_predict(cache, data, tmp_path, method):
    config = tiny_runs.config(cache, method, **SMALL, ensemble=2)
    train_and_evaluate(config, tmp_path / "run", verbose=False)
    model, store = model_folder.open_model(tmp_path / "run"), data.stores["held_out"]
    both = model.predict_store(store).probabilities
    for i in range(2):
        config = model.config.copy_and_resolve_references()
        config.ensemble = 1
        parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        parts |= {"config": config, "params": {path: x[i] for path, x in model.params.items()}}
        one = type(model).assemble(
            **{name: x for name, x in parts.items() if name not in ("single", "rows", "forward")}
        )
        assert np.abs(one.predict_store(store).probabilities - both).max() > 1e-4
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    assert (tmp_path / "out").exists()


def test_the_bank_is_of_train_rows_by_the_weights_that_keep_it(runs, data):
    model, store = model_folder.open_model(runs("m3care")), data.stores["train"]
    bank, present = model.params["block_0/bank"], model.params["block_0/bank_present"]
    chosen = samplers.shuffled(model.config.seed, len(store))(0, 24)
    np.testing.assert_array_equal(present > 0, store.presence[chosen])
    batch = store.take(chosen)
    tokens = np.asarray(model.single.encode(model.params, batch))
    owner = model.single.owner
    vectors = np.stack([tokens[:, owner == j].mean(axis=1) for j in range(present.shape[1])], axis=1)
    np.testing.assert_allclose(bank, np.where(present[:, :, None] > 0, vectors, 0.0), atol=1e-5)
    assert M3Care.keeps == "rows"


def test_centres_are_there_and_the_outer_loss_counts_from_stage_two_on(runs):
    folder = runs("smil")
    centres = model_folder.open_model(folder).params["block_0/centres"]
    assert np.abs(centres).max() > 0
    assert {record["stage"] for record in records(folder)} == {"joint", "specialize"}
    early = [
        record["train/meta"] for record in records(folder) if record.get("stage") == "joint" and "train/meta" in record
    ]
    late = [
        record["train/meta"] for record in records(folder) if record["stage"] == "specialize" and "train/meta" in record
    ]
    assert set(early) == {0.0}
    assert min(late) > 0


def test_centres_are_means_of_clusters_of_complete_rows_where_there_are_enough():
    rng = np.random.default_rng(0)
    places = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    kinds = rng.integers(0, 3, 60)
    vectors = np.stack([places[kinds] + 0.1 * rng.normal(size=(60, 2)), np.zeros((60, 2))], axis=1)
    has = np.ones((60, 2), bool)
    has[40:, 1], vectors[40:, 0] = False, 99.0  # rows that miss something are left out
    found = kept_rows.centres_of(vectors, has, 3, seed=0)
    expected = np.stack([vectors[:40, 0][kinds[:40] == i].mean(axis=0) for i in range(3)])
    np.testing.assert_allclose(sorted(map(tuple, found[0])), sorted(map(tuple, expected)), atol=1e-6)
    has[:, 1], has[:2, 1] = False, True  # two complete rows are not enough for the first modality; of the second all
    found = kept_rows.centres_of(vectors, has, 3, seed=0)
    assert (found[0] == 99.0).all(axis=1).any()
    np.testing.assert_array_equal(found[1], np.zeros((3, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classes", *FORMS])
@each
def test_every_task_is_trained(tmp_path, task, method):
    folder = folder_of(tmp_path / "data", "ordinal" if task == "classes" else task)
    if task == "classes":
        write_label(folder, FORMS["ordinal"] | {"ordered": False})
    keys = SMALL | {"train__epochs": 1.0, "train__joint_epochs": 0.5}
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", method, **keys)
    main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    report = finished.read_report(tmp_path / "run")
    told = report.get("task", {"name": "classes", "headline": "accuracy"})
    assert (report["method"], told["name"]) == (method, task)
    assert report["overall"][told["headline"]] is not None
