"""The loop over stages and steps: what is recorded, carried over, saved and resumed, and which weights are chosen."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remind_jax.data import dataset as datasets
from remind_jax.data import pipeline, samplers
from remind_jax.errors import NotFiniteError, UserError
from remind_jax.inference import gate
from remind_jax.inference.forward import Predicted
from remind_jax.inference.predictor import Predictor
from remind_jax.runtime import progress
from remind_jax.runtime.devices import host_copy
from remind_jax.tasks.classes import choose_prior_power, probabilities_of, tuning_figures
from remind_jax.training import optimizer as states
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.objective import loss_offset
from remind_jax.training.recorder import Cursor, Recorder
from remind_jax.training.run import make_trainer
from remind_jax.training.run_folder import RunFolder
from tests import tiny_runs
from tests.models.pure import jitted

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


# ---- The loop --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(cache):
    return datasets.load_dataset(tiny_runs.config(cache))


class _Run:
    """A finished loop: its trainer, the chosen weights and the records it wrote."""

    def __init__(self, config, data, folder):
        with contextlib.closing(RunFolder(folder, config.to_dict())) as opened:
            self._train(config, data, opened)

    def _train(self, config, data, opened):
        self.config = config
        self.trainer, self.data = make_trainer(config, data, opened), data
        traces = []
        network, self.network = self.trainer.model.single, self.trainer.model.network

        def counted(*arguments, **options):
            traces.append(options["gate"])
            return network.apply(*arguments, **options)

        # Steps go through this network, evaluations keep the one they were made with.
        self.trainer.model = dataclasses.replace(self.trainer.model, single=network._replace(apply=counted))
        self.at = self.trainer.train(progress.Silent())
        self.weights = self.at.best
        self.traces = list(traces)
        self.history = opened.history()

    def of(self, key: str, stage: str | None = None) -> list[dict]:
        return [record for record in self.history if key in record and stage in (None, record["stage"])]


@pytest.fixture(scope="module")
def remind(cache, data, tmp_path_factory):
    """Both stages of 12 steps, without dropout, every step recorded, every checkpoint kept."""
    changes = {"model__encoder_dropout": 0.0, "fusion__dropout": 0.0, "train__log_every": 1, "dro__every": 5}
    changes |= {"train__freeze": "encoders+projections", "fusion__train_gate": "always", "train__keep": 0}
    config = tiny_runs.config(cache, train__evaluate_every=0.5, **changes)
    return _Run(config, data, tmp_path_factory.mktemp("run"))


def test_steps_and_evaluations_are_recorded(remind):
    steps = remind.of("train/loss")
    assert [record["step"] for record in steps] == list(range(1, 25))
    assert [record["stage"] for record in steps] == ["joint"] * 12 + ["specialize"] * 12
    assert [record["step"] for record in remind.of("eval/loss")] == [6, 12, 18, 24]
    names = {f"dro/lambda/{name}" for name in remind.data.groups.names}
    for record in steps:
        assert record.keys() == {
            *("step", "stage", "train/loss", "train/gradient_norm", "train/rejected", "gate/open_rate", "time/step_ms"),
            *names,
        }
        assert sum(record[name] for name in names) == pytest.approx(1.0, abs=1e-5)
    assert all(record["gate/open_rate"] == 0 for record in remind.of("train/loss", "joint"))


def test_the_first_recorded_loss_is_that_of_the_initial_weights(remind):
    params = remind.network.init(remind.config.seed)
    order = remind.trainer.sampler.order
    (batch,) = pipeline.train_batches(remind.data.stores["train"], order, 8, 0, 1)
    logits = np.asarray(jitted(remind.network).apply(params, batch, gate="never").logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(8), batch["label"]].mean()
    assert remind.history[0]["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_group_weights_carry_over_to_the_second_stage(remind):
    names = [f"dro/lambda/{name}" for name in remind.data.groups.names]
    weights = np.array([[record[name] for name in names] for record in remind.of("train/loss")])
    counts = np.sqrt(remind.data.groups.train_counts)
    np.testing.assert_allclose(weights[0], counts / counts.sum(), rtol=1e-5)
    # Refreshed every fifth step of the run, whatever the stage; the switch lies between steps 12 and 13.
    changes = np.flatnonzero(np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-5) + 2
    assert changes.tolist() == [5, 10, 15, 20]


def _states(run: _Run) -> dict[int, states.TrainState]:
    """The states in the checkpoints, by step."""
    trainer, found = run.trainer, {}
    params = host_copy(run.network.init(run.config.seed))
    checkpoints = Checkpoints(trainer.folder.path / "checkpoints", keep=0)
    for step in (6, 12, 18, 24):
        like = trainer.begin(trainer.stages[step > 12], params)
        found[step] = checkpoints.arrays(step, {"state": like, "best": params})["state"]
        assert int(found[step].step) == step
    checkpoints.close()
    return found | {0: states.start(params, lambda path: False, optax.identity(), 0, ema=False)}


def test_what_moves_in_which_stage(remind):
    found = _states(remind)
    everything = set(found[0].weights())
    encoders = {path for path in everything if path.startswith("encoders/")}

    def still(first: int, last: int) -> set[str]:
        start, end = found[first].weights(), found[last].weights()
        return {path for path in everything if np.array_equal(start[path], end[path])}

    # The length of normalised routers takes no part in the preset `paper_eq`, which has none.
    assert still(0, 12) == {"block_0/group_router", "block_0/router_scale"}
    assert still(12, 24) == encoders | {"block_0/router_scale"}
    assert len(encoders) >= 8
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(found[24].opt_state)]
    assert sum("head/kernel" in path for path in moments) == 2
    assert not [path for path in moments if "encoders/" in path]
    assert sum("group_router" in path for path in moments) == 2
    joint = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(found[12].opt_state)]
    assert sum("encoders/" in path for path in joint) == 2 * len(encoders)
    assert not [path for path in joint if "group_router" in path]


def test_a_stage_compiles_its_step_once(remind):
    """A second trace would mean that a stage begins with a state of another structure than its steps return."""
    assert remind.traces == ["never", "always"]


def test_chosen_weights_are_those_of_the_best_evaluation_of_the_last_stage(remind):
    losses = [record["eval/loss"] for record in remind.of("eval/loss", "specialize")]
    tuning = remind.data.stores["tuning"]
    chosen = tuning_figures(*remind.trainer.predict(remind.weights, tuning, "gated")[1::-1])
    assert chosen["loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_run_knows_whose_weights_it_has_chosen(remind):
    first, second = ({r["step"]: r["eval/loss"] for r in remind.of("eval/loss", s)} for s in ("joint", "specialize"))
    cursor = remind.at.cursor
    (passed,) = cursor.passed
    for found, stage, losses in ((passed, "joint", first), (cursor.chosen, "specialize", second)):
        assert (found["stage"], found["step"]) == (stage, min(losses, key=losses.get))
        assert found["loss"] == losses[found["step"]]


@pytest.mark.parametrize("select", [pytest.param("accuracy", marks=pytest.mark.slow), "last"])
def test_selection_goes_by_the_metric_asked_for(cache, data, tmp_path, select):
    # A rate far too high makes evaluations jump about, so that first, best and last differ.
    changes = {"train__select": select, "optim__lr": 0.3, "optim__ema": 0.0, "train__evaluate_every": 0.5}
    run = _Run(tiny_runs.config(cache, "soft_moe", **changes, train__epochs=3.0), data, tmp_path)
    name = "accuracy" if select == "last" else select
    values = [record[f"eval/{name}"] for record in run.of("eval/loss")]
    assert len(values) == 6
    chosen = tuning_figures(*run.trainer.predict(run.weights, data.stores["tuning"], "never")[1::-1])
    expected = values[-1] if select == "last" else max(values)
    assert chosen[name] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_patience_ends_the_last_stage_and_no_other(cache, data, tmp_path):
    # So low a rate changes no weight, hence no evaluation is better than the first of its stage.
    changes = {"optim__lr": 1e-30, "optim__ema": 0.0, "train__evaluate_every": 0.25, "train__patience": 2}
    config = tiny_runs.config(cache, **changes, train__epochs=4.0)
    run = _Run(config, data, tmp_path)
    assert len(run.of("eval/loss", "joint")) == 4
    assert [record["step"] for record in run.of("eval/loss", "specialize")] == [15, 18, 21]
    # Started again it stays ended.
    again = _Run(config, data, tmp_path)
    assert again.traces == []
    assert again.history == run.history
    for path in run.weights:
        np.testing.assert_array_equal(run.weights[path], again.weights[path])


def test_the_prior_is_divided_out_by_hand():
    p = np.array([[0.8, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(probabilities_of(np.log(p), 0.0, np.array([0.8, 0.2])), [[0.5, 0.5], [0.2, 0.8]])
    np.testing.assert_allclose(probabilities_of(np.log(p), 0.0, np.ones(2)), p)


def test_the_power_of_the_prior_is_the_best_of_the_figure_and_the_least_of_equals():
    # Rare class 1 never wins as it is; divided by (0.9 / 0.1)^power it wins in rows of odds 1/3 from a half on.
    p = np.array([[0.75, 0.25]] * 3 + [[0.95, 0.05]] * 7)
    predicted = Predicted(p, np.array([1, 1, 1] + [0] * 7), 0.0)
    assert choose_prior_power(predicted.labels, predicted.probabilities, np.array([0.9, 0.1]), "macro_f1") == 0.6
    assert choose_prior_power(predicted.labels, predicted.probabilities, np.array([0.5, 0.5]), "macro_f1") == 0.0
    settled = Predicted(np.array([[0.9, 0.1], [0.1, 0.9]]), np.array([0, 1]), 0.0)
    assert choose_prior_power(settled.labels, settled.probabilities, np.array([0.6, 0.4]), "accuracy") == 0.0


# ---- Ensembles and stages that compete -------------------------------------------------------------------------------


def test_an_ensemble_averages_the_probabilities_of_its_networks(cache, data, tmp_path):
    run = _Run(tiny_runs.config(cache, "soft_moe", ensemble=3, train__epochs=1.0), data, tmp_path)
    tuning, trainer = data.stores["tuning"], run.trainer
    assert {len(x) for x in run.weights.values()} == {3}
    config = tiny_runs.config(cache, "soft_moe")
    alone = [{path: x[i] for path, x in run.weights.items()} for i in range(3)]
    each = [Predictor.of_data(config, data, params, "never").predict_store(tuning).probabilities for params in alone]
    together = trainer.predict(run.weights, tuning, "never")
    np.testing.assert_allclose(together.probabilities, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-2
    best = min(record["eval/loss"] for record in run.of("eval/loss"))
    assert tuning_figures(*together[1::-1])["loss"] == pytest.approx(best, abs=1e-6)


@pytest.mark.slow
def test_the_first_network_of_an_ensemble_is_the_one_of_a_single_run(cache, data, tmp_path):
    changes = {"train__select": "last", "train__epochs": 2.0, "dro__every": 2}
    single = _Run(tiny_runs.config(cache, "remind", **changes), data, tmp_path / "single")
    both = _Run(tiny_runs.config(cache, "remind", ensemble=2, **changes), data, tmp_path / "both")
    assert single.weights.keys() == both.weights.keys()
    # By predictions: weights that no output depends on, as biases of keys, are rounding noise.
    first = {path: x[0] for path, x in both.weights.items()}
    tuning = data.stores["tuning"]
    found, expected = (single.trainer.predict(x, tuning, "gated").probabilities for x in (first, single.weights))
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    assert np.abs(both.weights["head/kernel"][1] - both.weights["head/kernel"][0]).max() > 1e-2
    # A finished run is read back with its axis of networks.
    again = _Run(both.config, data, tmp_path / "both")
    assert again.traces == []
    np.testing.assert_array_equal(again.weights["head/kernel"], both.weights["head/kernel"])


@pytest.mark.slow
def test_composed_routers_rest_in_the_first_stage_and_learn_in_the_second(cache, data, tmp_path):
    changes = {"fusion__router_rank": 2, "fusion__train_gate": "always", "train__select": "last"}
    changes |= {"train__keep": 0, "train__evaluate_every": 0.5}
    run = _Run(tiny_runs.config(cache, "remind", **changes), data, tmp_path)
    saved = {step: state.weights() for step, state in _states(run).items()}
    assert not saved[12]["block_0/group_router_out"].any()
    for path in ("block_0/group_router_in", "block_0/group_router_out"):
        np.testing.assert_array_equal(saved[6][path], saved[12][path])
        assert np.abs(saved[24][path] - saved[12][path]).max() > 1e-4
    always, never = (run.trainer.predict(run.weights, data.stores["tuning"], x) for x in ("always", "never"))
    assert np.abs(always.probabilities - never.probabilities).max() > 1e-4


@pytest.fixture(scope="module")
def measured(cache, data, tmp_path_factory):
    """Both stages of 12 steps, saved every sixth, with a gate that the second stage measures when it begins."""
    changes = {"fusion__gate_threshold": "auto", "fusion__gate_share": 0.5, "train__select": "last", "train__keep": 0}
    config = tiny_runs.config(cache, **changes, train__evaluate_every=0.5)
    return _Run(config, data, tmp_path_factory.mktemp("measured") / "run")


def test_a_measured_gate_keeps_the_threshold_of_the_start_of_the_second_stage(measured, data):
    run = measured
    assert len(run.traces) == 1  # stage and threshold are arguments of one program
    saved, path = _states(run), "block_0/gate_threshold"
    assert [float(saved[step].frozen[path]) for step in (6, 12)] == [0.0, 0.0]
    # Measured by the averaged weights that the stage starts from; steps leave it, and nothing decays it.
    expected = gate.measure(run.config, run.network, saved[12].weights(), data.stores["tuning"])[path]
    for weights in (saved[18].frozen, saved[24].frozen, run.weights):
        np.testing.assert_array_equal(weights[path], expected)
    opened = run.trainer.predict({**saved[12].weights(), path: expected}, data.stores["tuning"], "gated").open_rate
    assert opened == pytest.approx(0.5, abs=0.011)


@pytest.mark.parametrize("newest", [18, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_that_goes_on_has_the_threshold_of_the_whole_one(measured, data, tmp_path, newest):
    """From the second stage, which does not measure again, or from the end of the first."""
    folder = tmp_path / "run"
    shutil.copytree(measured.trainer.folder.path, folder)
    for left_out in (each for each in (folder / "checkpoints").iterdir() if each.name in ("18", "24")):
        if int(left_out.name) > newest:
            shutil.rmtree(left_out)
    again = _Run(measured.config, data, folder)
    for name, x in measured.weights.items():
        np.testing.assert_array_equal(again.weights[name], x)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.slow
def test_plain_networks_of_an_ensemble_have_no_group_parts(cache, data, tmp_path, rank):
    changes = {"train__select": "last", "train__epochs": 2.0, "train__joint_epochs": 0.0, "dro__every": 2}
    changes |= {"fusion__train_gate": "always", "model__imputation": "modality+group"}
    options = {"ensemble": 2, "ensemble_plain": 1, "fusion__router_rank": rank}
    mixed = _Run(tiny_runs.config(cache, "remind", **options, **changes), data, tmp_path / "mixed")
    for path in ("block_0/group_router_out" if rank else "block_0/group_router", "imputation/group"):
        assert not mixed.weights[path][0].any()
        assert mixed.weights[path][1].any()
    single = _Run(
        tiny_runs.config(cache, "soft_moe", **changes | {"model__imputation": "modality"}), data, tmp_path / "one"
    )
    tuning, first = data.stores["tuning"], {path: x[0] for path, x in mixed.weights.items()}
    config = mixed.trainer.config.copy_and_resolve_references()
    config.update(ensemble=1, ensemble_plain=0)
    alone = Predictor.of_data(config, data, first, "always").predict_store(tuning).probabilities
    expected = single.trainer.predict(single.weights, tuning, "never").probabilities
    np.testing.assert_allclose(alone, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.slow
def test_a_second_stage_can_be_made_to_earn_its_place(cache, data, tmp_path, keeps):
    # The first stage learns; the schedule then jumps to a rate that ruins the weights.
    def schedule(kind, lr, **options):
        return lambda count: jnp.where(count < 12, 0.01, 3.0)

    changes = {"train__keep_better_stage": keeps, "optim__ema": 0.0, "optim__clip": 0.0, "train__evaluate_every": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "learning_rate", schedule)
        run = _Run(tiny_runs.config(cache, "remind", **changes), data, tmp_path)
    joint, late = ([r["eval/loss"] for r in run.of("eval/loss", stage)] for stage in ("joint", "specialize"))
    assert min(joint) < min(late)
    chosen = tuning_figures(*run.trainer.predict(run.weights, data.stores["tuning"], "gated")[1::-1])
    assert chosen["loss"] == pytest.approx(min(joint) if keeps else min(late), abs=1e-6)


def test_batches_of_group_dro_are_balanced(cache, data, tmp_path):
    folder = RunFolder(tmp_path, {})
    balanced = make_trainer(tiny_runs.config(cache, "group_dro"), data, folder)
    shuffled = make_trainer(tiny_runs.config(cache, "reweigh"), data, folder)
    folder.close()
    group = data.groups.index(data.manifest.presence[data.rows("train")])
    drawn = group[np.concatenate([balanced.sampler.order(step, 8) for step in range(200)])]
    share = np.bincount(drawn, minlength=len(data.groups)) / len(drawn)
    np.testing.assert_allclose(share, 1 / len(data.groups), atol=0.05)
    epoch = np.concatenate([shuffled.sampler.order(step, 8) for step in range(12)])
    assert sorted(epoch.tolist()) == list(range(96))


# ---- Samplers and priors that the loop takes part in -----------------------------------------------------------------

FAIR = {"sampler_alpha": 0.01, "train__evaluate_every": 0.4, "train__keep": 0, "train__log_every": 1}


@pytest.fixture(scope="module")
def fair_batch(cache, data, tmp_path_factory):
    """Three epochs of 12 steps, evaluated and saved every fifth step, in the middle of epochs."""
    config = tiny_runs.config(cache, "fair_batch", train__epochs=3.0, **FAIR)
    return _Run(config, data, tmp_path_factory.mktemp("fair") / "run")


def _shares(run: _Run) -> np.ndarray:
    names = [f"sampler/share/{name}" for name in run.data.groups.names]
    return np.array([[record[name] for name in names] for record in run.of("train/loss")])


def test_shares_of_fair_batch_move_once_an_epoch_from_the_lowest_to_the_highest_loss(fair_batch):
    shares, groups = _shares(fair_batch), fair_batch.data.groups
    np.testing.assert_allclose(shares[0], groups.frequencies)
    changes = np.flatnonzero(np.abs(np.diff(shares, axis=0)).max(axis=1) > 0) + 1
    assert changes.tolist() == [12, 24]
    moved = np.sort(shares[12] - shares[11])
    np.testing.assert_allclose(moved, [-0.01, *[0.0] * (len(groups) - 2), 0.01], atol=1e-9)
    # The losses that shares go by are those of the epoch's own steps.
    losses = np.array([record["train/loss"] for record in fair_batch.of("train/loss")])
    store = fair_batch.data.stores["train"]
    index = store.take(np.arange(len(store)))["group"]
    drawn = np.concatenate([samplers.fair_batch(0, index, shares[24], 12, 1)(step, 8) for step in range(24, 36)])
    counts = np.bincount(index[drawn], minlength=len(groups))
    assert counts.tolist() == samplers.apportion(shares[24], 96, 1).tolist()
    record = fair_batch.trainer.sampler.record()
    known = [0.0 if loss is None else loss for loss in record["losses"]]
    assert np.dot(counts, known) / 96 == pytest.approx(losses[24:].mean(), rel=1e-5)
    known = np.array(record["losses"], np.float64)
    last = samplers.move_shares(shares[24], known, 0.01, "minmax")
    np.testing.assert_allclose(record["shares"], last)
    assert np.argmax(last - shares[24]) == np.nanargmax(known)


@pytest.mark.parametrize(
    "step", [pytest.param(5, marks=pytest.mark.slow), 15, pytest.param(25, marks=pytest.mark.slow)]
)
def test_a_run_of_fair_batch_resumes_exactly(fair_batch, data, tmp_path, step):
    folder = tmp_path / "run"
    shutil.copytree(fair_batch.trainer.folder.path, folder)
    removed = [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit() and int(path.name) > step]
    assert len(removed) == 8 - step // 5  # 5, 10, … 35 and the end, 36
    for path in removed:
        shutil.rmtree(path)
    again = _Run(fair_batch.config, data, folder)
    assert len(again.traces) == 1
    _assert_resumed(again, fair_batch)


def _assert_resumed(again: _Run, whole: _Run) -> None:
    def without_times(run):
        return [{k: v for k, v in record.items() if k != "time/step_ms"} for record in run.history]

    assert without_times(again) == without_times(whole)
    for path, value in whole.weights.items():
        np.testing.assert_array_equal(again.weights[path], value)
    assert again.trainer.sampler.record() == whole.trainer.sampler.record()


@pytest.fixture(scope="module")
def shapko(cache, data, tmp_path_factory):
    """Three epochs of 12 steps, evaluated and saved every fifth step, with rates that move once an epoch."""
    config = tiny_runs.config(cache, "shapko", train__epochs=3.0, **{k: v for k, v in FAIR.items() if "alpha" not in k})
    return _Run(config, data, tmp_path_factory.mktemp("shapko") / "run")


@pytest.mark.slow
def test_knock_out_rates_follow_what_modalities_add_to_predictions_of_tuning_rows(shapko):
    names = shapko.data.groups.modalities
    told = shapko.of(f"knockout/rate/{names[0]}")
    assert [record["step"] for record in told] == [12, 24, 36]
    values, rates = (
        np.array([[x[f"knockout/{kind}/{name}"] for name in names] for x in told]) for kind in ("value", "rate")
    )
    for value, rate in zip(values, rates, strict=True):
        np.testing.assert_allclose(rate, samplers.knockout_rates(value, 1.0, 0.02, 0.5))
    assert np.ptp(rates, axis=1).min() > 0.01
    np.testing.assert_allclose(shapko.trainer.sampler.rates, rates[-1])
    # Shapley values share out what all modalities add to the figure, here of the last weights.
    model, store = shapko.trainer.model, shapko.data.stores["tuning"]
    model = dataclasses.replace(model, params=shapko.at.state.weights(), gate="never")
    positions, all_, none = (
        np.arange(len(store)),
        np.ones((len(store), len(names)), bool),
        np.zeros((len(store), len(names)), bool),
    )
    figure = next(iter(model.task.compared))
    some, no = (
        model.task.tuning(store.columns["label"], model.predict_parts(store, positions, parts).astype(np.float32))[
            figure
        ]
        for parts in (all_, none)
    )
    assert values[-1].sum() == pytest.approx(some - no, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("step", [15, 25])
def test_a_run_of_shapko_resumes_exactly(shapko, data, tmp_path, step):
    folder = tmp_path / "run"
    shutil.copytree(shapko.trainer.folder.path, folder)
    for path in [path for path in (folder / "checkpoints").iterdir() if path.name.isdigit() and int(path.name) > step]:
        shutil.rmtree(path)
    again = _Run(shapko.config, data, folder)
    assert len(again.traces) == 1
    _assert_resumed(again, shapko)


def test_modalities_come_first_and_pairs_in_turn(cache, data, tmp_path):
    folder = RunFolder(tmp_path, {})
    changes = {"sampler": "most_modalities_first", "sampler_epochs": 1}
    sorted_ = make_trainer(tiny_runs.config(cache, "soft_moe", **changes), data, folder)
    pairs = make_trainer(tiny_runs.config(cache, "fair_mixup"), data, folder)
    folder.close()
    presence = data.manifest.presence[data.rows("train")]
    observed = presence.sum(axis=1)
    first, second = (np.concatenate([sorted_.sampler.order(12 * i + step, 8) for step in range(12)]) for i in range(2))
    assert (np.diff(observed[first]) <= 0).all()
    assert (np.diff(observed[second]) > 0).any()
    group = data.groups.index(presence)
    for step in range(20):
        batch = group[pairs.sampler.order(step, 8)]
        assert len(set(batch[0::2])) == len(set(batch[1::2])) == 1
        assert batch[0] != batch[1]


def test_pmap_refuses_shares_with_half_a_pair(cache, data, tmp_path):
    folder = RunFolder(tmp_path, {})
    config = tiny_runs.config(cache, "fair_mixup", devices=4, parallel="pmap", train__batch_size=12)
    with pytest.raises(UserError, match="multiple of 8"):
        make_trainer(config, data, folder)
    config.train.batch_size = 16
    make_trainer(config, data, folder)
    folder.close()


def test_predictions_are_adjusted_after_the_fact(cache, data, tmp_path):
    """The same weights give probabilities divided by the prior; in the mode `loss` they give them as they are."""
    folder = RunFolder(tmp_path, {})
    changes = {"objective__prior": "class_given_group"}
    plain, loss, posthoc = (
        make_trainer(tiny_runs.config(cache, "soft_moe", **options), data, folder)
        for options in ({}, changes, changes | {"objective__prior_mode": "posthoc"})
    )
    folder.close()
    params = plain.model.network.init(3)
    store = data.stores["held_out"]  # has combinations that training has not
    before, same, after = (x.predict(params, store, "never").probabilities for x in (plain, loss, posthoc))
    np.testing.assert_array_equal(before, same)
    presence = data.manifest.presence[data.rows("train")]
    group, labels = data.groups.index(presence), data.manifest.labels[data.rows("train")]
    held_out = data.groups.index(data.manifest.presence[data.rows("held_out")])
    assert (held_out == len(data.groups)).any()
    classes = len(data.classes)
    rows = []
    for p, g in zip(before.astype(np.float64), held_out, strict=True):
        seen = labels[group == g] if g < len(data.groups) else labels
        prior = (np.bincount(seen, minlength=classes) + 1) / (len(seen) + classes)
        rows.append(p / prior / (p / prior).sum())
    np.testing.assert_allclose(after, rows, rtol=1e-4)
    assert np.abs(after - before).max() > 0.02
    in_loss = [loss_offset(x.config.objective, data.label_counts, len(data.groups)) for x in (loss, posthoc)]
    prior = np.bincount(labels, minlength=classes) + 1
    np.testing.assert_allclose(in_loss[0][-1], np.log(prior / prior.sum()), rtol=1e-5)
    assert in_loss[1] is None


def test_tuning_metrics_by_hand():
    predicted = Predicted(np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), np.array([0, 1, 1]), 0.0)
    values = tuning_figures(*predicted[1::-1])
    assert values["loss"] == pytest.approx(-np.log([0.9, 0.6, 0.2]).mean())
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["auroc"] == pytest.approx(1.0)
    sure = Predicted(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]), 0.0)
    assert np.isfinite(tuning_figures(*sure[1::-1])["loss"])
    assert tuning_figures(*sure[1::-1])["auroc"] is None


# ---- What is not finite ---------------------------------------------------------------------------------------------


def _metrics(**changes) -> dict[str, np.ndarray]:
    finite = {"train/loss": 0.5, "train/gradient_norm": 1.0, "train/rejected": 0.0, "lambda": [0.5, 0.25, 0.25]}
    finite |= {"group_loss_sum": [1.0, 0.0, 2.0], "group_count": [2.0, 0.0, 3.0]}
    return {name: np.array(value) for name, value in (finite | changes).items()}


@pytest.fixture
def recorder(tmp_path):
    """Writes a record every fourth step and ends the run at the third rejected step in a row; and what it has said."""
    opened, said = RunFolder(tmp_path / "run", {}), []
    names, limits = {"groups": ("a", "b", "c")}, {"every": 4, "max_rejected": 3}
    yield Recorder(opened, "joint", Cursor(), **names, **limits, say=said.append), said
    opened.close()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train/loss": np.nan, "group_loss_sum": [1.0, 0.0, np.nan]}, "loss, in combinations c"),
        ({"train/gradient_norm": np.inf}, "gradient, in combinations a, c"),
        ({}, "group weights, in combinations a, c"),
    ],
)
def test_rejected_steps_in_a_row_end_the_run_and_name_their_combinations(recorder, changes, expected):
    recorder, said = recorder
    wrong = _metrics(**{"train/rejected": 1.0}, **changes)
    recorder.add(1, _metrics(), {})
    recorder.add(2, wrong, {})
    recorder.add(3, wrong, {})
    assert said == [f"step 2 is not finite and rejected: {expected}"]
    with pytest.raises(NotFiniteError, match=f"3 steps in a row, up to step 4, .*: {expected}\\."):
        recorder.add(4, wrong, {})


def test_the_history_counts_rejected_steps_and_averages_the_others(recorder, tmp_path):
    recorder, _ = recorder
    wrong = _metrics(**{"train/rejected": 1.0, "train/loss": np.nan, "group_loss_sum": [np.nan, 0.0, 1.0]})
    for step, metrics in enumerate((wrong, _metrics(), wrong, wrong, _metrics(**{"train/loss": 2.5}), wrong, wrong)):
        recorder.add(step + 1, metrics, {"sampler/share": np.array([0.5, 0.25, 0.25])}, close=step == 6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"], line["train/rejected"]) for line in lines] == [(4, 0.5, 3), (7, 2.5, 2)]
    assert [line["sampler/share/b"] for line in lines] == [0.25, 0.25]


def _poisoned(monkeypatch, steps: list[int]) -> None:
    """Puts a NaN into the batches of steps, once for each time that a step is listed."""
    left, original = list(steps), pipeline.train_batches

    def batches(store, order, batch_size, start, stop, **options):
        for i, batch in enumerate(original(store, order, batch_size, start, stop, **options)):
            name = next(name for name, x in batch.items() if x.dtype == np.float32 and name != "weight")
            if start + i in left:
                left.remove(start + i)
                batch = batch | {name: np.full_like(batch[name], np.nan)}
            yield batch

    monkeypatch.setattr(pipeline, "train_batches", batches)


@pytest.mark.parametrize(
    "steps", [[7, 8, 9, 10, 11], pytest.param([0, 1, 2, 3, 4], marks=pytest.mark.slow)], ids=["checkpoint", "start"]
)
def test_what_a_machine_got_wrong_once_leaves_no_trace(remind, data, tmp_path, monkeypatch, steps):
    _poisoned(monkeypatch, steps)
    again = _Run(remind.config, data, tmp_path / "run")

    def timeless(run):
        return [{key: value for key, value in record.items() if key != "time/step_ms"} for record in run.history]

    assert timeless(again) == timeless(remind)
    mine, theirs = ({path: x.tobytes() for path, x in run.weights.items()} for run in (again, remind))
    assert mine == theirs


def test_what_comes_back_after_going_back_ends_the_run(remind, data, tmp_path, monkeypatch):
    _poisoned(monkeypatch, [7, 8, 9, 10, 11] * 2)
    with pytest.raises(NotFiniteError, match=r"5 steps in a row, up to step 12, .*: loss, gradient, in"):
        _Run(remind.config, data, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["6"]


def test_single_steps_that_are_not_finite_are_left_out(remind, data, tmp_path, monkeypatch):
    _poisoned(monkeypatch, [2, 14, 15])
    run = _Run(remind.config, data, tmp_path / "run")
    assert [record["step"] for record in run.of("train/rejected") if record["train/rejected"]] == [3, 15, 16]
    assert [record["step"] for record in run.of("train/loss")] == [i for i in range(1, 25) if i not in (3, 15, 16)]
    assert all(np.isfinite(x).all() for x in run.weights.values())
