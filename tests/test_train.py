"""The two stages: what is frozen, what carries over, what a step's loss is, and which weights are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import common
from remind_jax import progress, settings, train
from remind_jax import state as states
from remind_jax.checkpoint import Checkpoints, host_copy
from remind_jax.data import dataset as datasets
from remind_jax.data import pipeline
from remind_jax.data.preprocess import InputSpec
from remind_jax.models.model import Network, Output, make_network
from remind_jax.step import make_dro, make_loss, make_step, plan_stages
from remind_jax.writer import RunFolder
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)

INPUTS = {
    "note": InputSpec("text", (6,), 12),
    "labs": InputSpec("tabular", (5,)),
    "scan": InputSpec("embedding", (2, 4)),
}
KINDS = {name: spec.kind for name, spec in INPUTS.items()}
COUNTS = np.array([60, 30, 10])


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(tmp_path_factory):
    with tiny_runs.quick_compilation(tmp_path_factory):
        yield


def _config(method: str = "remind", **changes):
    config = common.base()
    common.apply_method(config, method)
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


# ---- The plan --------------------------------------------------------------------------------------------------------


def _plan(num_train: int = 100, **options):
    method = options.pop("method", "remind")
    changes = {"train__batch_size": 8, "train__epochs": 20.0, "train__joint_epochs": 5.0} | options
    return plan_stages(_config(method, **changes), num_train, KINDS)


def test_lengths_are_epochs_in_steps():
    joint, specialize = _plan()  # 12.5 steps an epoch
    assert (joint.name, joint.start, joint.stop) == ("joint", 0, 62)
    assert (specialize.name, specialize.start, specialize.stop) == ("specialize", 62, 250)
    assert (joint.train_gate, joint.eval_gate) == ("never", "never")
    assert (specialize.train_gate, specialize.eval_gate) == ("gated", "gated")


def test_gates_of_the_second_stage_are_the_config_s():
    specialize = _plan(fusion__train_gate="always", fusion__eval_gate="never")[1]
    assert (specialize.train_gate, specialize.eval_gate) == ("always", "never")


@pytest.mark.parametrize("method", ["soft_moe", "reweigh", "group_dro", "remind_no_specialization"])
def test_methods_without_group_routers_train_in_one_stage(method):
    (only,) = _plan(method=method)
    assert (only.start, only.stop, only.train_gate) == (0, 250, "never")
    assert not any(only.is_frozen(path) for path in ("encoders/note/query", "block_0/router", "head/kernel"))
    joint, specialize = _plan(method=method, train__baselines_two_stage=True)
    assert (joint.stop, specialize.stop) == (62, 250)
    assert (specialize.train_gate, specialize.eval_gate) == ("never", "never")
    assert specialize.is_frozen("encoders/note/query")


def test_runs_of_one_stage():
    (only,) = _plan(train__joint_epochs=0.0)
    assert (only.name, only.start, only.stop, only.train_gate) == ("specialize", 0, 250, "gated")
    (only,) = _plan(train__epochs=4.0)
    assert (only.name, only.stop) == ("joint", 50)
    (only,) = _plan(train__epochs=0.001, method="soft_moe")
    assert only.stop == 1


@pytest.mark.parametrize(("stages", "robust"), [("both", (True, True)), ("specialize", (False, True))])
def test_group_weights_act_in_the_stages_asked_for(stages, robust):
    assert tuple(stage.robust for stage in _plan(dro__stages=stages)) == robust
    # Where there is one stage only, it is that stage: the method would be another one otherwise.
    assert _plan(method="group_dro", dro__stages=stages)[0].robust


def _paths() -> list[str]:
    spec = settings.model_spec(_config(model__width=8, fusion__heads=2, fusion__experts=2))
    return sorted(jax.eval_shape(make_network(spec, INPUTS, 3, 3).init, jax.random.key(0)))


@pytest.mark.parametrize("freeze", ["encoders", "encoders+projections", "nothing"])
def test_frozen_parameters_by_stage(freeze):
    joint, specialize = _plan(train__freeze=freeze)
    paths = _paths()
    encoders = {path for path in paths if path.startswith("encoders/")}
    # A patch encoder as a whole is a map into the fusion width, a text encoder ends in one, its adapter.
    text = {path for path in encoders if path.startswith("encoders/note/") and "adapter" not in path}
    assert 5 < len(text) < len(encoders)
    frozen = {"encoders": text, "encoders+projections": encoders, "nothing": set()}[freeze]
    assert {path for path in paths if joint.is_frozen(path)} == {"block_0/group_router"}
    assert {path for path in paths if specialize.is_frozen(path)} == frozen


# ---- Averages --------------------------------------------------------------------------------------------------------


def _batch(seed: int, b: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, b).astype(np.int32)
    return {
        "labs": rng.normal(size=(b, 5)).astype(np.float32),
        "scan": rng.normal(size=(b, 2, 4)).astype(np.float32),
        "present": np.array([[1, 1], [1, 0], [0, 1]], bool)[group],
        "group": group,
        "label": rng.integers(0, 3, b).astype(np.int32),
        "weight": np.ones(b, np.float32),
    }


def test_averages_follow_the_weights():
    config, network = _config("soft_moe"), _linear()
    dro = make_dro(config, COUNTS)
    optimizer = optax.named_chain(("descend", optax.sgd(0.5)), ("dro", dro))
    (stage,) = plan_stages(config, 100, KINDS)
    step = make_step(config, stage, network, make_loss(config, np.ones(3) / 3), optimizer, dro, COUNTS, 0.75)
    state = states.start(network.init(jax.random.key(0)), stage.is_frozen, optimizer, 0, ema=True)
    average = np.asarray(state.params["head/kernel"], np.float64)
    step = jax.jit(lambda state, batch, step=step: step(state, batch, axis_name=None))
    for i in range(3):
        state, _ = step(state, _batch(i))
        average = 0.75 * average + 0.25 * np.asarray(state.params["head/kernel"], np.float64)
    np.testing.assert_allclose(state.ema["head/kernel"], average, rtol=1e-5, atol=1e-6)
    assert np.abs(state.ema["head/kernel"] - state.params["head/kernel"]).max() > 1e-2
    assert state.weights()["head/kernel"] is state.ema["head/kernel"]
    assert state._replace(ema={}).weights()["head/kernel"] is state.params["head/kernel"]


@pytest.mark.parametrize(
    ("decay", "steps", "expected"),
    [(0.98, 1000, 0.98), (0.98, 100, 0.9), (0.5, 100, 0.5), (0.98, 5, 0.0), (0.9, 0, 0.0)],
)
def test_averages_of_short_runs_forget_the_start(decay, steps, expected):
    assert states.effective_decay(decay, steps) == pytest.approx(expected)


# ---- Objectives ------------------------------------------------------------------------------------------------------


def _linear() -> Network:
    def apply(params, batch, *, gate, keys=None):
        del gate, keys
        logits = batch["labs"] @ params["head/kernel"]
        return Output(logits, batch["labs"], jnp.zeros(len(logits)))

    return Network(lambda key: {"head/kernel": jax.random.normal(key, (5, 3))}, apply)


def _gradient(config, batch, num_stage: int = -1):
    """The gradient that a step descends, read off a plain step of length one, and the λ after it."""
    network, dro = _linear(), make_dro(config, COUNTS)
    optimizer = optax.named_chain(("descend", optax.sgd(1.0)), ("dro", dro))
    stage = plan_stages(config, 100, KINDS)[num_stage]
    step = make_step(config, stage, network, make_loss(config, np.array([0.5, 0.3, 0.2])), optimizer, dro, COUNTS, 0.0)
    state = states.start(network.init(jax.random.key(1)), lambda path: False, optimizer, 0, ema=False)
    after, metrics = jax.jit(lambda state, batch: step(state, batch, axis_name=None))(state, batch)
    return np.asarray(state.params["head/kernel"] - after.params["head/kernel"]), metrics


def _by_hand(batch, weights) -> np.ndarray:
    """Gradient of Σ_i weights_i cross entropy_i for the linear network: x^T (p - onehot) in float64."""
    kernel = np.asarray(_linear().init(jax.random.key(1))["head/kernel"], np.float64)
    logits = batch["labs"] @ kernel
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(p[np.arange(len(p)), batch["label"]])
    return batch["labs"].T @ ((p - np.eye(3)[batch["label"]]) * weights(losses)[:, None])


@pytest.fixture
def uneven():
    batch = _batch(3, 8)
    return batch | {"group": np.array([0, 0, 0, 0, 0, 1, 1, 1], np.int32)}  # the rare group 2 is absent


def _lambda(losses, group, start, gamma):
    """λ after one refresh; a group never seen counts with the mean of the known losses."""
    means = [losses[group == g].mean() if (group == g).any() else None for g in range(3)]
    known = np.mean([m for m in means if m is not None])
    raw = start * np.exp(gamma * np.array([known if m is None else m for m in means]))
    return raw / raw.sum()


def _robust(weights, group):
    return np.array([weights[g] / (group == g).sum() for g in group])


def test_erm_descends_the_mean_loss(uneven):
    gradient, metrics = _gradient(_config("soft_moe"), uneven)
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: np.full(8, 1 / 8)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["train/gradient_norm"], np.sqrt((gradient**2).sum()), rtol=1e-4)


def test_reweigh_weights_samples_by_the_inverse_of_their_group(uneven):
    # n = (60, 30, 10): weights 100 / (3 n_g) = (5/9, 10/9, 10/3), whose mean over training samples is one.
    weight = np.array([5 / 9, 10 / 9, 10 / 3])[uneven["group"]]
    gradient, _ = _gradient(_config("reweigh"), uneven)
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: weight / 8), rtol=1e-4, atol=1e-5)


def test_remind_uses_the_group_weights_from_before_the_step(uneven):
    start = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    config = _config("remind", dro__gamma=1.5, dro__every=1)
    gradient, metrics = _gradient(config, uneven)
    group = uneven["group"]
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda x: _robust(start, group)), rtol=1e-4, atol=1e-5)
    losses = []
    _by_hand(uneven, lambda x: losses.append(x) or x)
    np.testing.assert_allclose(metrics["lambda"], _lambda(losses[0], group, start, 1.5), rtol=1e-5)


def test_group_dro_of_sagawa_uses_the_updated_ones(uneven):
    config = _config("group_dro", dro__gamma=1.5)
    gradient, _ = _gradient(config, uneven)
    group, start = uneven["group"], np.full(3, 1 / 3)

    def weights(losses):
        return _robust(_lambda(losses, group, start, 1.5), group)

    np.testing.assert_allclose(gradient, _by_hand(uneven, weights), rtol=1e-4, atol=1e-5)
    current, _ = _gradient(_config("group_dro", dro__gamma=1.5, dro__weights="current"), uneven)
    np.testing.assert_allclose(current, _by_hand(uneven, lambda x: _robust(start, group)), rtol=1e-4, atol=1e-5)
    assert np.abs(current - gradient).max() > 1e-2


def test_group_weights_of_the_groups_in_the_batch_can_be_made_to_sum_to_one(uneven):
    gradient, _ = _gradient(_config("group_dro", dro__weights="current", dro__normalize_present=True), uneven)
    weights = _robust(np.array([0.5, 0.5, 0.0]), uneven["group"])
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda x: weights), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adjustment", [0.0, 2.0])
def test_group_weights_rest_where_they_do_not_act(uneven, adjustment):
    config = _config("remind", dro__stages="specialize", dro__every=1, dro__gamma=1.5, dro__adjustment=adjustment)
    gradient, metrics = _gradient(config, uneven, num_stage=0)
    np.testing.assert_allclose(metrics["lambda"], np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: np.full(8, 1 / 8)), rtol=1e-4, atol=1e-5)


def test_focal_loss_takes_its_class_weights_from_the_training_labels(uneven):
    plain, _ = _gradient(_config("soft_moe", objective__loss="focal"), uneven)
    weighted, _ = _gradient(
        _config("soft_moe", objective__loss="focal", objective__focal_alpha="inverse_class"), uneven
    )
    entropy, _ = _gradient(_config("soft_moe", objective__loss="focal", objective__focal_gamma=0.0), uneven)
    np.testing.assert_allclose(entropy, _by_hand(uneven, lambda losses: np.full(8, 1 / 8)), rtol=1e-4, atol=1e-5)
    assert np.abs(plain - weighted).max() > 1e-3
    assert np.abs(plain - entropy).max() > 1e-3


def test_padding_and_unseen_combinations_count_nowhere(uneven):
    padded = uneven | {"weight": np.array([1, 1, 1, 1, 1, 1, 1, 0], np.float32)}
    gradient, metrics = _gradient(_config("soft_moe"), padded)
    expected = _by_hand(uneven, lambda losses: np.array([1] * 7 + [0]) / 7)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    losses = []
    _by_hand(uneven, lambda x: losses.append(x) or x)
    np.testing.assert_allclose(metrics["train/loss"], losses[0][:7].mean(), rtol=1e-5)


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
        opened = RunFolder(folder, config.to_dict())
        self.config = config
        self.trainer = train.Trainer(config, data, opened)
        traces = []
        network = self.trainer.network

        def counted(*arguments, **options):
            traces.append(options["gate"])
            return network.apply(*arguments, **options)

        # Steps go through this network, evaluations keep the one they were made with.
        self.trainer.network = network._replace(apply=counted)
        self.weights = self.trainer.train(progress.Silent())
        self.traces = list(traces)
        self.history = opened.history()
        opened.close()

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
    names = {f"dro/lambda/{name}" for name in remind.trainer.groups.names}
    for record in steps:
        assert record.keys() == {
            *("step", "stage", "train/loss", "train/gradient_norm", "gate/open_rate", "time/step_ms"),
            *names,
        }
        assert sum(record[name] for name in names) == pytest.approx(1.0, abs=1e-5)
    assert all(record["gate/open_rate"] == 0 for record in remind.of("train/loss", "joint"))


def test_the_first_recorded_loss_is_that_of_the_initial_weights(remind):
    trainer = remind.trainer
    params = jax.jit(trainer.network.init)(jax.random.key(remind.config.seed))
    (batch,) = pipeline.train_batches(trainer.train_store, trainer.order, 8, 0, 1)
    logits = np.asarray(trainer.network.apply(params, batch, gate="never").logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -log_p[np.arange(8), batch["label"]].mean()
    assert remind.history[0]["train/loss"] == pytest.approx(expected, rel=1e-4)


def test_group_weights_carry_over_to_the_second_stage(remind):
    names = [f"dro/lambda/{name}" for name in remind.trainer.groups.names]
    weights = np.array([[record[name] for name in names] for record in remind.of("train/loss")])
    counts = np.sqrt(remind.trainer.groups.train_counts)
    np.testing.assert_allclose(weights[0], counts / counts.sum(), rtol=1e-5)
    # Refreshed every fifth step of the run, whatever the stage; the switch lies between steps 12 and 13.
    changes = np.flatnonzero(np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-5) + 2
    assert changes.tolist() == [5, 10, 15, 20]


def _states(run: _Run) -> dict[int, states.TrainState]:
    """The states in the checkpoints, by step."""
    trainer, found = run.trainer, {}
    params = host_copy(jax.jit(trainer.network.init)(jax.random.key(run.config.seed)))
    checkpoints = Checkpoints(trainer.folder.path / "checkpoints", keep=0)
    for step in (6, 12, 18, 24):
        like = trainer._begin(trainer.stages[step > 12], params)
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
    tuning = remind.trainer.data.stores["tuning"]
    chosen = train.tuning_metrics(remind.trainer.predict(remind.weights, tuning, "gated"))
    assert chosen["loss"] == pytest.approx(min(losses), abs=1e-6)


@pytest.mark.parametrize("select", ["accuracy", "last"])
def test_selection_goes_by_the_metric_asked_for(cache, data, tmp_path, select):
    # A rate far too high makes evaluations jump about, so that first, best and last differ.
    changes = {"train__select": select, "optim__lr": 0.3, "optim__ema": 0.0, "train__evaluate_every": 0.5}
    run = _Run(tiny_runs.config(cache, "soft_moe", **changes, train__epochs=3.0), data, tmp_path)
    name = "accuracy" if select == "last" else select
    values = [record[f"eval/{name}"] for record in run.of("eval/loss")]
    assert len(values) == 6
    chosen = train.tuning_metrics(run.trainer.predict(run.weights, data.stores["tuning"], "never"))
    expected = values[-1] if select == "last" else max(values)
    assert chosen[name] == pytest.approx(expected, abs=1e-6)


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


def test_batches_of_group_dro_are_balanced(cache, data, tmp_path):
    folder = RunFolder(tmp_path, {})
    balanced = train.Trainer(tiny_runs.config(cache, "group_dro"), data, folder)
    shuffled = train.Trainer(tiny_runs.config(cache, "reweigh"), data, folder)
    folder.close()
    group = data.groups.index(data.manifest.presence[data.rows("train")])
    drawn = group[np.concatenate([balanced.order(step, 8) for step in range(200)])]
    share = np.bincount(drawn, minlength=len(data.groups)) / len(drawn)
    np.testing.assert_allclose(share, 1 / len(data.groups), atol=0.05)
    epoch = np.concatenate([shuffled.order(step, 8) for step in range(12)])
    assert sorted(epoch.tolist()) == list(range(96))


def test_tuning_metrics_by_hand():
    predicted = train.Predicted(np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), np.array([0, 1, 1]), 0.0)
    values = train.tuning_metrics(predicted)
    assert values["loss"] == pytest.approx(-np.log([0.9, 0.6, 0.2]).mean())
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["auroc"] == pytest.approx(1.0)
    sure = train.Predicted(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]), 0.0)
    assert np.isfinite(train.tuning_metrics(sure)["loss"])
    assert train.tuning_metrics(sure)["auroc"] is None
