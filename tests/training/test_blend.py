"""Blends: networks and plain models of one split, weighed by tuning rows; the method of own data."""

import numpy as np
import pytest

import remind_jax
from remind_jax import adapt, cli, plan
from remind_jax.analysis import gradient_consistency
from remind_jax.config import validate
from remind_jax.data import dataset as datasets
from remind_jax.data import reading, splits
from remind_jax.errors import UserError
from remind_jax.inference import model_folder, plain
from remind_jax.inference.stack import below
from remind_jax.methods import in_stack
from remind_jax.ops import selection
from remind_jax.runtime import processes
from remind_jax.studies import search
from remind_jax.training import plain_models, run, stack
from remind_jax.training.recorder import Recorder
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
NAMES = ("remind_plus", "logistic_regression", "gradient_boosting")
CHANGES = {"data__fractions": "(0.6, 0.2, 0.2)", "train__epochs": 2.0, "ensemble": 2, "ensemble_plain": 1}
CHANGES |= {"data__max_tokens": 6, "data__vocabulary": 48, "eval__bootstrap": 10}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(plain_models, "TREES", 8)


def _config(folder, cache, method="remind_blend", **changes):
    return cli.parse_config(tiny_runs.own_arguments(folder, cache, method, **CHANGES | changes))[0]


@pytest.fixture(scope="module")
def blend(tmp_path_factory, quick_compilation):
    """A blend of 150 rows in a folder: its config, its rows, the data it was trained on, and the folder."""
    folder = tmp_path_factory.mktemp("blend")
    config = _config(write_manifest(folder / "data", n=150), folder / "cache")
    manifest = reading.read_manifest(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_models, "TREES", 8)
        data = run.fit(config, manifest, folder / "run", verbose=False).data
    return config, manifest, data, folder / "run"


def _by_member(model, data, split):
    """Predictions of each member by its own arrays, [k, n, c]."""
    store = data.stores[split]
    rows, found = plain.seen(model.preprocessor, store.take(np.arange(len(store)))), []
    for member in model.members:
        if member.config is None:
            arrays = below(model.params, f"{member.name}/0")
            found.append(np.asarray(plain.predict(member.name, arrays, rows, model.task)))
        else:
            own = model_folder.open_model(model.path / "members" / f"{member.name}-0")
            found.append(own.predict_store(store).probabilities)
    return np.stack(found)


@pytest.mark.slow
def test_tuning_rows_weigh_the_members_and_the_blend_is_their_weighted_mean(blend):
    _, _, data, folder = blend
    model, labels = remind_jax.load(folder), data.manifest.labels[data.rows("tuning")]
    told = model.report["stack"]
    assert [each["name"] for each in told["members"]] == list(NAMES)
    assert (told["folds"], told["rows"]) == (1, len(labels))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"logistic regression ({told['members'][1]['weight']:.2f})" in page
    assert f"{len(labels)} tuning rows chose the weights by loss" in page
    each = _by_member(model, data, "tuning")

    def loss(p):
        return -np.mean(np.log(p[np.arange(len(labels)), labels]))

    expected = selection.smoothed(selection.greedy(each, loss), len(labels), stack.FEW)
    np.testing.assert_allclose([m["weight"] for m in told["members"]], expected, atol=1e-6)
    np.testing.assert_allclose([m["loss"] for m in told["members"]], [loss(p) for p in each], atol=1e-5)
    held_out = _by_member(model, data, "held_out")
    assert np.ptp(held_out, axis=0).max() > 0.05
    found = model.predict_store(data.stores["held_out"]).probabilities
    np.testing.assert_allclose(found, np.tensordot(expected, held_out, axes=1), atol=1e-5)


@pytest.mark.slow
def test_members_are_the_methods_themselves_on_the_same_split(blend):
    """The network is that of `remind_plus`; plain models see train rows, and choose by tuning rows."""
    config, _, data, folder = blend
    model = remind_jax.load(folder)
    seen = {name: plain_models.features(data, name) for name in ("train", "tuning")}
    score = plain_models.score_of("loss", model.task, seen["tuning"].labels)
    fitted = plain_models.fit_logistic_regression(seen["train"], model.task, config.seed, score, seen["tuning"])
    for path, x in fitted.arrays.items():
        np.testing.assert_array_equal(model.params[f"logistic_regression/0/{path}"], x)
    own = model_folder.open_model(folder / "members" / "remind_plus-0")
    assert len(own.params["head/kernel"]) == 2
    whole = datasets.fit(config)
    again = datasets.fit(in_stack(config, "remind_plus", 0))
    assert (whole.split == splits.HELD_OUT).sum() == (again.split == splits.UNUSED).sum() > 0
    for side in (splits.TRAIN, splits.TUNING):
        np.testing.assert_array_equal(whole.split == side, again.split == side)
    assert own.preprocessor.to_dict() == model.preprocessor.to_dict() == again.preprocessor.to_dict()


def test_a_blend_has_one_split_and_a_plan_of_its_networks(tmp_path, capsys):
    with pytest.raises(UserError, match=r"one split, found data\.folds=3: take method=remind_stack"):
        validate(_config("nowhere", tmp_path, data__folds=3))
    arguments = tiny_runs.own_arguments(write_manifest(tmp_path / "data", n=60), tmp_path, "remind_blend", **CHANGES)
    plan.main(arguments)
    told = capsys.readouterr().out.splitlines()
    of_networks = [each.replace("remind_blend", "remind_plus") for each in arguments]
    plan.main(of_networks)
    assert told[1:-1] == capsys.readouterr().out.splitlines()[1:]
    assert told[-1].endswith("plain model among remind_plus,logistic_regression,ridge,cox,gradient_boosting")


def test_keys_of_a_blend_are_those_of_its_networks(tmp_path):
    config = _config("nowhere", tmp_path, optim__lr=0.125, model__wide=False, objective__kind="erm")
    own = in_stack(config, "remind_plus", 0)
    assert (own.method, own.ensemble, own.optim.lr, own.model.wide) == ("remind_plus", 2, 0.125, False)
    assert own.objective.kind == "erm"
    config.stack = "remind,ridge"  # whose keys would be those of remind_plus
    with pytest.raises(UserError, match=r"stack: unknown method 'remind' \(did you mean 'remind_plus'\?\)"):
        stack.candidates(config, "classes")
    trial = search.of_fold(config, search.Rows(100, 3), 2)
    assert (trial.method, trial.data.folds, trial.data.fold, trial.optim.lr) == ("remind_plus", 3, 2, 0.125)


@pytest.mark.slow
def test_without_tuning_rows_a_blend_is_its_networks(tmp_path, capsys):
    manifest = reading.read_manifest(write_manifest(tmp_path / "data", n=80))
    none = {"data__fractions": "(0.8, 0.0, 0.2)", "train__select": "last"}
    found = {
        name: run.fit(_config(tmp_path / "data", tmp_path / "cache", name, **none), manifest, None).model
        for name in ("remind_blend", "remind_plus")
    }
    said = "logistic_regression, gradient_boosting: left out, there are no tuning rows to choose their strength by"
    assert said in capsys.readouterr().out
    assert [member.name for member in found["remind_blend"].members] == ["remind_plus"]
    each = [found[name].predictions(manifest) for name in ("remind_blend", "remind_plus")]
    np.testing.assert_allclose(*each, atol=1e-6)


@pytest.mark.slow
def test_training_that_is_broken_off_gives_the_best_networks_so_far_and_goes_on_later(blend, tmp_path, monkeypatch):
    config, manifest, _, folder = blend
    add, calls = Recorder.add, []

    def broken(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return add(self, *arguments, **options)

    monkeypatch.setattr(Recorder, "add", broken)
    parts = run.fit(config, manifest, tmp_path / "run", verbose=False).model
    assert len(parts.members) == len(NAMES)
    assert not (tmp_path / "run" / "report.json").exists()
    monkeypatch.setattr(Recorder, "add", add)
    whole = run.fit(config, manifest, tmp_path / "run", verbose=False).model
    expected = remind_jax.load(folder)
    assert whole.params.keys() == expected.params.keys()
    assert all(np.array_equal(whole.params[path], x) for path, x in expected.params.items())
    assert any(not np.array_equal(parts.params[path], x) for path, x in expected.params.items())


@pytest.mark.slow
def test_what_needs_one_network_names_a_method_that_trains_one(blend, tmp_path):
    folder = blend[3]
    with pytest.raises(
        UserError, match=r"blends several networks and plain models: train one network, .*method=remind"
    ):
        adapt.main([f"--workdir={folder}", "--data=nowhere", "--unfreeze=head"])
    one = folder / "members" / "remind_plus-0"
    gradient_consistency.main([f"--workdir={one}", "--split=train", "--n=4", "--n_whole=8", "--draws=1"])
    assert (one / "analysis" / "gradient_consistency.csv").exists()


def test_several_processes_are_refused_with_the_method_that_can(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(processes, "run_on_first", lambda call: call())
    with pytest.raises(UserError, match=r"method=remind_blend trains in one process: start one, or .*remind_plus"):
        run.fit(_config("nowhere", tmp_path), None, None, verbose=False)
