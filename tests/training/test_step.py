"""The plan of stages, what is frozen in which, and what a step's loss and gradient are."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remind_jax.config import base, validate
from remind_jax.data.kinds import KINDS
from remind_jax.errors import UserError
from remind_jax.methods import apply_method
from remind_jax.models.model import Output
from remind_jax.models.network import Network, make_network
from remind_jax.models.spec import model_spec
from remind_jax.objectives import fair_mixup, logit_adjust
from remind_jax.ops import draws
from remind_jax.training import optimizer as states
from remind_jax.training.stages import plan_stages
from tests.models.pure import jitted, linear_network, random_params
from tests.training import steps

pytestmark = pytest.mark.usefixtures("quick_compilation")

INPUTS = {
    "note": KINDS["text"].spec((6,), 12),
    "labs": KINDS["tabular"].spec((5,)),
    "scan": KINDS["embedding"].spec((2, 4)),
}
CELLS = np.array([[40, 15, 5], [0, 20, 10], [3, 3, 4]])  # training samples by group and class
COUNTS = CELLS.sum(axis=1)  # 60, 30, 10


def _config(method: str = "remind", **changes):
    config = base(changes.pop("source", ""))
    apply_method(config, method)
    for key, value in changes.items():
        *sections, name = key.split("__")
        (config[sections[0]] if sections else config)[name] = value
    return config


# ---- The plan --------------------------------------------------------------------------------------------------------


def _plan(num_train: int = 100, **options):
    method = options.pop("method", "remind")
    changes = {"train__batch_size": 8, "train__epochs": 20.0, "train__joint_epochs": 5.0} | options
    return plan_stages(_config(method, **changes), num_train, INPUTS)


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


def test_encoders_rest_where_they_are_frozen_and_have_no_dropout():
    assert [stage.rests for stage in _plan()] == [False, True]
    assert [stage.rests for stage in _plan(train__freeze="nothing")] == [False, False]


@pytest.mark.parametrize(("stages", "robust"), [("both", (True, True)), ("specialize", (False, True))])
def test_group_weights_act_in_the_stages_asked_for(stages, robust):
    assert tuple(stage.robust for stage in _plan(dro__stages=stages)) == robust
    # Where there is one stage only, it is that stage: the method would be another one otherwise.
    assert _plan(method="group_dro", dro__stages=stages)[0].robust


def _paths(**changes) -> list[str]:
    spec = model_spec(_config(model__width=8, fusion__heads=2, fusion__experts=2, **changes))
    return sorted(make_network(spec, INPUTS, 3, 3).shapes)


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


def test_pairs_that_compose_routers_rest_in_the_joint_stage_as_tables_do():
    joint, specialize = _plan(fusion__router_rank=2)
    paths, pair = _paths(fusion__router_rank=2), {"block_0/group_router_in", "block_0/group_router_out"}
    assert {path for path in paths if joint.is_frozen(path)} == pair
    assert pair <= {path for path in paths if not specialize.is_frozen(path)}


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
    config, network = _config("soft_moe"), linear_network()
    (stage,) = plan_stages(config, 100, INPUTS)
    step, optimizer = steps.composed(config, network, CELLS, stage, steps.descent(0.5), decay=0.75)
    state = states.start(network.init(0), stage.is_frozen, optimizer, 0, ema=True)
    average = np.asarray(state.params["head/kernel"], np.float64)
    step = _jitted(step)
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


# ---- What is not finite ----------------------------------------------------------------------------------------------


def _bits(tree) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("what", ["input", "loss of one group", "gradient", "λ"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count_of_steps(what):
    config = _config("remind", dro__every=2, dro__gamma=3e38 if what == "λ" else 0.5)
    network = linear_network()

    def make(dro):
        return states.make_optimizer(optax.constant_schedule(0.1), weight_decay=0.1, clip=1.0, dro=dro)

    def loss(logits, labels):
        each = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        # Of these two, the first is infinite for large logits, and the second is finite and has no finite slope at 0.
        each = jnp.where(logits.max(axis=1) > 1e4, jnp.inf, each)
        return each + jnp.sqrt(jnp.abs(logits[:, 0])) if what == "gradient" else each

    stage = plan_stages(config, 100, INPUTS)[0]
    plain, optimizer = steps.composed(config, network, CELLS, stage, make, decay=0.75, loss=loss)
    step = _jitted(plain)
    first, wrong, third = (_batch(i) for i in range(3))
    of_first = wrong["group"] == wrong["group"][0]
    if what == "input":
        wrong["labs"][0, 2] = np.nan
    elif what == "loss of one group":
        wrong["labs"][of_first] = 1e6
    elif what == "gradient":
        wrong["labs"][0] = 0.0
    state = states.start(network.init(0), lambda path: False, optimizer, 0, ema=True)
    state, metrics = step(state, first)
    assert metrics["train/rejected"] == 0
    after, metrics = step(state, wrong)
    assert metrics["train/rejected"] == 1
    assert int(after.step) == int(state.step) + 1
    assert _bits(after._replace(step=state.step)) == _bits(state)
    chex.assert_tree_all_finite(metrics["lambda"])
    blamed = set(np.flatnonzero(~np.isfinite(metrics["group_loss_sum"])).tolist())
    assert blamed == ({wrong["group"][0]} if what in ("input", "loss of one group") else set())
    if what != "λ":  # which is as wrong at the next refresh
        assert _bits(step(after, third)[0]._replace(step=0)) == _bits(step(state, third)[0]._replace(step=0))
        assert _bits(step(after, third)[0].params) != _bits(state.params)


# ---- Objectives ------------------------------------------------------------------------------------------------------


def _jitted(step):
    return jax.jit(lambda state, batch: step(state, batch, axis_name=None))


def _gradient(config, batch, num_stage: int = -1, run=_jitted):
    """The gradient that a step descends, read off a plain step of length one that `run` runs, and its metrics."""
    network, stage = linear_network(), plan_stages(config, 100, INPUTS)[num_stage]
    step, optimizer = steps.composed(config, network, CELLS, stage, steps.descent())
    state = states.start(network.init(1), lambda path: False, optimizer, 0, ema=False)
    after, metrics = run(step)(state, batch)
    return np.asarray(state.params["head/kernel"] - after.params["head/kernel"]), metrics


def _by_hand(batch, weights) -> np.ndarray:
    """Gradient of Σ_i weights_i cross entropy_i for the linear network: x^T (p - onehot) in float64."""
    kernel = np.asarray(linear_network().init(1)["head/kernel"], np.float64)
    logits = batch["labs"] @ kernel
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses = -np.log(p[np.arange(len(p)), batch["label"]])
    return batch["labs"].T @ ((p - np.eye(3)[batch["label"]]) * weights(losses)[:, None])


@pytest.fixture
def uneven():
    return _uneven()


def _uneven() -> dict[str, np.ndarray]:
    batch = _batch(3, 8)
    return batch | {"group": np.array([0, 0, 0, 0, 0, 1, 1, 1], np.int32)}  # the rare group 2 is absent


def _lambda(losses, group, start, gamma, absent="last"):
    """λ after one refresh; a group never seen counts with the mean of the known losses, or with zero."""
    means = [losses[group == g].mean() if (group == g).any() else None for g in range(3)]
    known = np.mean([m for m in means if m is not None]) if absent == "last" else 0.0
    raw = start * np.exp(gamma * np.array([known if m is None else m for m in means]))
    return raw / raw.sum()


def _robust(weights, group):
    return np.array([weights[g] / (group == g).sum() for g in group])


class Variants(chex.TestCase):
    def _gradient(self, config, batch):
        """As `_gradient`, of a step that runs as it is, as a program, or on four devices that share the batch."""
        if self.variant.type != chex.ChexVariantType.WITH_PMAP:
            return _gradient(config, batch, run=lambda step: self.variant(functools.partial(step, axis_name=None)))
        parts = {name: x.reshape(4, -1, *x.shape[1:]) for name, x in batch.items()}
        options = {"axis_name": "devices", "in_axes": (None, 0), "broadcast_args_to_devices": False}
        return _gradient(
            config, parts, run=lambda step: self.variant(functools.partial(step, axis_name="devices"), **options)
        )

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_erm_descends_the_mean_loss(self):
        uneven = _uneven()
        gradient, metrics = self._gradient(_config("soft_moe"), uneven)
        np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: np.full(8, 1 / 8)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(metrics["train/gradient_norm"], np.sqrt((gradient**2).sum()), rtol=1e-4)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_reweigh_weights_samples_by_the_inverse_of_their_group(self):
        # n = (60, 30, 10): weights 100 / (3 n_g) = (5/9, 10/9, 10/3), whose mean over training samples is one.
        uneven = _uneven()
        weight = np.array([5 / 9, 10 / 9, 10 / 3])[uneven["group"]]
        gradient, _ = self._gradient(_config("reweigh"), uneven)
        np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: weight / 8), rtol=1e-4, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_remind_uses_the_group_weights_from_before_the_step(self):
        uneven, start = _uneven(), np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
        config = _config("remind", dro__gamma=1.5, dro__every=1)
        gradient, metrics = self._gradient(config, uneven)
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
        return _robust(_lambda(losses, group, start, 1.5, absent="zero"), group)

    np.testing.assert_allclose(gradient, _by_hand(uneven, weights), rtol=1e-4, atol=1e-5)
    current, _ = _gradient(_config("group_dro", dro__gamma=1.5, dro__weights="current"), uneven)
    np.testing.assert_allclose(current, _by_hand(uneven, lambda x: _robust(start, group)), rtol=1e-4, atol=1e-5)
    assert np.abs(current - gradient).max() > 1e-2


def test_group_weights_of_the_groups_in_the_batch_can_be_made_to_sum_to_one(uneven):
    gradient, _ = _gradient(_config("group_dro", dro__weights="current", dro__normalize_present=True), uneven)
    weights = _robust(np.array([0.5, 0.5, 0.0]), uneven["group"])
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda x: weights), rtol=1e-4, atol=1e-5)


def test_group_weights_rest_where_they_do_not_act(uneven):
    config = _config("remind", dro__stages="specialize", dro__every=1, dro__gamma=1.5)
    gradient, metrics = _gradient(config, uneven, num_stage=0)
    np.testing.assert_allclose(metrics["lambda"], np.sqrt(COUNTS) / np.sqrt(COUNTS).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: np.full(8, 1 / 8)), rtol=1e-4, atol=1e-5)


def test_reweigh_can_go_by_effective_numbers(uneven):
    config = _config("reweigh", objective__reweigh_rule="effective_number")
    raw = 1 / ((1 - 0.999**COUNTS) / (1 - 0.999))
    weight = (raw * 100 / (COUNTS * raw).sum())[uneven["group"]]
    gradient, _ = _gradient(config, uneven)
    np.testing.assert_allclose(gradient, _by_hand(uneven, lambda losses: weight / 8), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prior", ["class", "class_given_group"])
def test_logits_are_adjusted_in_the_loss(uneven, prior):
    offset = logit_adjust.log_prior(prior, CELLS)
    config = _config("logit_adjust", objective__prior=prior)
    gradient, metrics = _gradient(config, uneven)
    kernel = np.asarray(linear_network().init(1)["head/kernel"], np.float64)
    logits = uneven["labs"] @ kernel + offset[uneven["group"]]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = uneven["labs"].T @ (p - np.eye(3)[uneven["label"]]) / 8
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    assert metrics["train/loss"] == pytest.approx(-np.log(p[np.arange(8), uneven["label"]]).mean(), rel=1e-4)
    plain, _ = _gradient(_config("soft_moe"), uneven)
    assert np.abs(plain - gradient).max() > 1e-2


def _mixup_by_hand(batch, kernel: np.ndarray, t: float) -> float:
    """Σ_c |mean over pairs of p_c (a_c - Σ p a)| with a = (x_1 - x_2) kernel, for the linear network."""
    first, second = batch["labs"][0::2].astype(np.float64), batch["labs"][1::2].astype(np.float64)
    logits = (t * first + (1 - t) * second) @ kernel
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    along = (first - second) @ kernel
    slopes = p * (along - (p * along).sum(axis=1, keepdims=True))
    keep = batch["weight"].reshape(-1, 2).prod(axis=1)
    return np.abs((slopes * keep[:, None]).sum(axis=0) / keep.sum()).sum()


@pytest.mark.parametrize("padding", [0, 2])
def test_fair_mixup_adds_the_slope_between_two_groups(uneven, padding):
    uneven = uneven | {"weight": np.array([1.0] * (8 - padding) + [0.0] * padding, np.float32)}
    gradient, metrics = _gradient(_config("fair_mixup", objective__mixup_weight=3.0), uneven)
    plain, unmixed = _gradient(_config("soft_moe"), uneven)
    kernel = np.asarray(linear_network().init(1)["head/kernel"], np.float64)
    t = float(fair_mixup.path_position(draws.fold_in(jax.random.key(0), 0), 1.0))  # seed 0, step 0
    assert metrics["train/mixup"] == pytest.approx(_mixup_by_hand(uneven, kernel, t), rel=1e-4)
    assert "train/mixup" not in unmixed
    assert metrics["train/loss"] == pytest.approx(float(unmixed["train/loss"]), rel=1e-6)
    slow = np.zeros_like(kernel)
    for i in np.ndindex(*kernel.shape):
        moved = np.zeros_like(kernel)
        moved[i] = 1e-5
        slow[i] = (_mixup_by_hand(uneven, kernel + moved, t) - _mixup_by_hand(uneven, kernel - moved, t)) / 2e-5
    np.testing.assert_allclose(gradient - plain, 3.0 * slow, rtol=1e-3, atol=1e-4)
    assert np.abs(slow).max() > 0.05


def test_fair_mixup_needs_whole_pairs_of_two_groups():
    with pytest.raises(UserError, match=r"sampler=group_pairs instead of shuffled"):
        validate(_config("fair_mixup", source="synthetic", sampler="shuffled"))
    with pytest.raises(UserError, match=r"train\.batch_size=9 must be even"):
        validate(_config("fair_mixup", source="synthetic", train__batch_size=9))


@pytest.mark.parametrize("mask_missing", [False, True])
def test_fusing_the_tokens_of_the_network_is_the_network(mask_missing):
    config = _config("remind", model__width=8, model__pooling="observed", fusion__heads=2, fusion__experts=2)
    config.fusion.mask_missing = mask_missing
    inputs = {name: INPUTS[name] for name in ("labs", "scan")}
    network = jitted(make_network(model_spec(config), inputs, 3, 3))
    params, batch = network.init(0), _batch(1)
    params["block_0/group_router"] = jax.random.normal(jax.random.key(1), params["block_0/group_router"].shape)
    keys = jax.random.split(jax.random.key(2), 6)
    whole = network.apply(params, batch, gate="always", keys=keys)
    again = network.fuse(params, whole.tokens, whole.observed, batch["group"], gate="always", keys=keys)
    np.testing.assert_array_equal(whole.logits, again.logits)
    plain = network.apply(params, batch, gate="never")
    np.testing.assert_array_equal(plain.tokens, network.encode(params, batch))
    assert plain.observed.tolist() == batch["present"][:, [0, 1, 1]].tolist()
    # A combination that training has not seen takes the shared router, as mixed samples do.
    nowhere = np.full(6, 3, np.int32)
    unseen = network.fuse(params, plain.tokens, plain.observed, nowhere, gate="always").logits
    never = network.fuse(params, plain.tokens, plain.observed, nowhere, gate="never").logits
    np.testing.assert_allclose(unseen, never, rtol=1e-5, atol=1e-6)


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


# ---- Modality dropout and distillation -------------------------------------------------------------------------------


def _table_network() -> Network:
    """Logits that are one row of a table for each combination, the last one for those not seen in training."""

    def init(seed):
        return {"table": jax.random.normal(jax.random.key(seed), (4, 3))}

    def apply(params, batch, *, gate, keys=None):
        del gate, keys
        logits = params["table"][batch["group"]]
        return Output(logits, logits, jnp.zeros(len(logits)))

    return Network(init, apply, apply, apply)


def test_hidden_samples_are_predicted_as_what_is_left_and_weighted_as_what_they_are():
    masks = np.array([[1, 1], [1, 0], [0, 1]], bool)
    batch = _batch(0, 8) | {"present": np.ones((8, 2), bool), "group": np.zeros(8, np.int32)}
    found = {}
    for share in (0.0, 1.0):
        config = _config("soft_moe", train__hide_samples=share, train__hide_modalities=0.999)
        network, (stage,) = _table_network(), plan_stages(config, 100, INPUTS)
        step, optimizer = steps.composed(config, network, CELLS, stage, steps.descent(), masks=masks)
        state = states.start(network.init(0), stage.is_frozen, optimizer, 0, ema=False)
        after, metrics = _jitted(step)(state, batch)
        moved = np.abs(after.params["table"] - state.params["table"]).max(axis=1) > 1e-6
        found[share] = moved.tolist()
        assert metrics["group_count"].tolist() == [8, 0, 0]
    # Eight samples of two modalities that keep one each: rows 1 and 2 learn, and only they.
    assert found == {0.0: [True, False, False, False], 1.0: [False, True, True, False]}


def test_distillation_pulls_towards_the_averaged_weights(uneven):
    config = _config("soft_moe", train__hide_samples=0.5, objective__distill_weight=2.0)
    network, (stage,) = linear_network(), plan_stages(config, 100, INPUTS)
    masks = np.array([[1, 1], [1, 0], [0, 1]], bool)
    step, optimizer = steps.composed(config, network, CELLS, stage, steps.descent(), masks=masks)
    state = states.start(network.init(1), stage.is_frozen, optimizer, 0, ema=True)
    teacher = {"head/kernel": state.params["head/kernel"] * 0.5 + 0.3 * jnp.arange(3.0)[None]}
    after, _ = _jitted(step)(state._replace(ema=teacher), uneven)
    gradient = np.asarray(state.params["head/kernel"] - after.params["head/kernel"])

    def softmax(kernel):
        logits = uneven["labs"] @ np.asarray(kernel, np.float64)
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    plain = _by_hand(uneven, lambda losses: np.full(8, 1 / 8))
    apart = softmax(state.params["head/kernel"]) - softmax(teacher["head/kernel"])
    np.testing.assert_allclose(gradient, plain + 2.0 * uneven["labs"].T @ apart / 8, rtol=1e-4, atol=1e-5)
    assert np.abs(apart).max() > 0.05


def test_distillation_needs_hidden_samples():
    with pytest.raises(UserError, match=r"set train\.hide_samples"):
        validate(_config("soft_moe", source="synthetic", objective__distill_weight=1.0))


def _small(method: str, **changes):
    """The step of a small network of labs and scans under a config, and its first state."""
    config = _config(method, train__batch_size=6, model__width=8, **changes)
    config.fusion.update(heads=2, experts=2, hidden=8)
    inputs = {name: INPUTS[name] for name in ("labs", "scan")}
    stage = plan_stages(config, 100, INPUTS)[-1]
    network = make_network(model_spec(config), inputs, 3, 3)

    def make(dro):
        options = {"weight_decay": 0.1, "clip": 0.0, "first_moment": config.optim.first_moment}
        return states.make_optimizer(lambda count: 0.1, dro=dro, **options)

    step, optimizer = steps.composed(config, network, CELLS, stage, make, decay=0.5)
    params = random_params(network.shapes)
    state = states.start(params, stage.is_frozen, optimizer, 0, ema=True, seed=config.seed)
    return step, state


def _seeded(seed: int):
    """A step with dropout and Fair Mixup under a config with a seed, lowered, and its first state."""
    step, state = _small("fair_mixup", seed=seed, fusion__dropout=0.5)
    return jax.jit(functools.partial(step, axis_name=None)).lower(state, _batch(0)), state


def test_one_program_serves_all_seeds():
    assert _seeded(0)[0].as_text() == _seeded(3)[0].as_text()


def test_a_step_is_traced_once_whatever_the_seed_the_group_weights_and_the_batch():
    """Seeds, λ and samples are arguments of the program; another number of samples is another program."""
    chex.clear_trace_counter()
    step, state = _small("remind", dro__every=1, dro__gamma=1.0)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(state, batch):
        return step(state, batch, axis_name=None)

    seen = set()
    for seed in (0, 1, 2**32 - 1):
        state, metrics = traced_once(state._replace(seed=jnp.asarray(seed, jnp.uint32)), _batch(seed % 7))
        seen.add(metrics["lambda"].tobytes())
    assert len(seen) == 3
    assert int(state.step) == 3
    with pytest.raises(AssertionError, match="traced > 1 times"):
        traced_once(state, _batch(0, b=8))


@pytest.mark.slow
def test_each_seed_has_draws_of_its_own():
    (first, state), (_, other) = _seeded(0), _seeded(3)
    program = first.compile()
    norms = [float(program(x, _batch(0))[1]["train/gradient_norm"]) for x in (state, other, state)]
    assert norms[0] == norms[2]
    assert abs(norms[0] - norms[1]) > 1e-4


@pytest.mark.slow
def test_products_in_bfloat16_give_nearly_the_same_gradient_to_weights_in_float32():
    found = []
    for changes in ({}, {"precision": "bfloat16", "optim__first_moment": "bfloat16"}):
        step, state = _small("remind", fusion__dropout=0.0, model__encoder_dropout=0.0, **changes)

        def run(state, step=step):
            gradient, rest = step.gradient(state, _batch(0), axis_name=None)
            return gradient, step.update(state, gradient, rest)[0]

        gradient, after = jax.jit(run)(state)
        assert all(x.dtype == jnp.float32 for x in (*gradient.values(), *after.params.values()))
        found.append((np.concatenate([np.ravel(x) for x in gradient.values()]), after))
    (exact, plain), (rounded, halved) = found
    assert 1e-4 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.05
    moments = [state.opt_state["adamw"][0] for state in (plain, halved)]
    assert [{x.dtype.name for x in m.mu.values()} for m in moments] == [{"float32"}, {"bfloat16"}]
    assert [{x.dtype.name for x in m.nu.values()} for m in moments] == [{"float32"}] * 2


def test_the_threshold_of_a_gate_is_an_argument_of_the_program_and_is_not_rounded():
    options = {"fusion__dropout": 0.0, "model__encoder_dropout": 0.0, "fusion__gate_threshold": "auto"}
    step, state = _small("remind", precision="bfloat16", fusion__train_gate="gated", **options)
    program, path = jax.jit(functools.partial(step, axis_name=None)), "block_0/gate_threshold"
    assert path in state.frozen

    def open_rate(threshold: float) -> float:
        moved = state._replace(frozen={**state.frozen, path: jnp.float32(threshold)})
        after, metrics = program(moved, _batch(0))
        assert after.frozen[path] == jnp.float32(threshold)
        return float(metrics["gate/open_rate"])

    assert (open_rate(0.0), open_rate(1.1)) == (1.0, 0.0)
    low, high = 0.0, 1.1  # around the lowest value of a sample
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if open_rate(middle) == 1.0 else (low, middle)
    assert jnp.bfloat16(low - 1e-5) == jnp.bfloat16(high + 1e-5)
    assert open_rate(low - 1e-5) == 1.0 > open_rate(high + 1e-5)
    assert program._cache_size() == 1


def test_gradients_in_bfloat16_are_the_same_ones_rounded_and_moments_stay_float32():
    found = []
    for kind in ("float32", "bfloat16"):
        step, state = _small("remind", optim__gradient=kind)

        def run(state, step=step):
            gradient, rest = step.gradient(state, _batch(0), axis_name=None)
            return gradient, rest, step.update(state, gradient, rest)[0]

        found.append(jax.jit(run)(state))
    (exact, plain, _), (rounded, other, after) = found
    assert {x.dtype.name for x in rounded.values()} == {"bfloat16"}
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    chex.assert_trees_all_close(rounded, exact, rtol=2**-8, atol=1e-9)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(rounded, exact)
    np.testing.assert_allclose(other.norm, plain.norm, rtol=1e-3)
    assert other.norm.dtype == jnp.float32
    moments = after.opt_state["adamw"][0]
    assert {x.dtype.name for x in (*moments.mu.values(), *moments.nu.values(), *after.params.values())} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["remind", "reweigh"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(method):
    found = []
    for parts in (1, 3):
        step, state = _small(method, fusion__dropout=0.4, train__accumulate=parts)
        found.append(jax.jit(functools.partial(step.gradient, axis_name=None))(state, _batch(0)))
    (whole, sums), (parted, other) = found
    chex.assert_trees_all_close(parted, whole, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(other, sums, rtol=1e-5)
