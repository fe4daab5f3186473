"""Terms of what a run minimises that look at samples with fewer modalities, or after a step."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models.fusion import FUSIONS
from remind_jax.models.fusion.soft_moe import Predictors
from remind_jax.models.model import Output
from remind_jax.models.network import Network
from remind_jax.ops import draws, hiding
from remind_jax.training.objective import Pass, fewer_penalty, fusion_penalty, meta_penalty, sample_losses
from tests.reference import simmlm as slow
from tests.reference import smil as slow_smil

B, M = 8, 3
MASKS = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]], bool)
PRESENT = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
WEIGHT = np.array([1, 1, 1, 1, 0, 1, 1, 1], np.float32)


def square(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.square(logits[:, 0] - labels)


def apply(weights, batch, *, gate, keys=None):
    """A network whose output is the weighted sum of what is present, and which tells the combination it is given."""
    del gate, keys
    logits = jnp.einsum("bm,bm,m->b", batch["x"], batch["present"].astype(jnp.float32), weights["w"])[:, None]
    return Output(logits, batch["group"][:, None], jnp.zeros(len(logits)))


NETWORK = Network(lambda seed: {}, apply, lambda *_: None, lambda *_: None)
WEIGHTS = {"w": np.array([1.0, -2.0, 0.5], np.float32)}


def make_pass(weights, batch, keys, total=lambda x: x) -> Pass:
    output = apply(weights, batch, gate="never")
    return Pass(NETWORK, weights, batch, batch, "never", output, None, keys[0], keys, total)


def make_batch(times: int = 1) -> dict[str, np.ndarray]:
    """A batch with the modalities of the eight samples so many times."""
    rng, n = np.random.default_rng(0), times * B
    x, label = rng.normal(size=(n, M)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    present, weight = np.tile(PRESENT, (times, 1)), np.tile(WEIGHT, times)
    return {"x": x, "present": present, "group": np.zeros(n, np.int32), "label": label, "weight": weight}


KEYS = jax.random.split(jax.random.key(5), B)
fewer = fewer_penalty(0.7, 0.3, MASKS, sample_losses(square))


def test_terms_of_fewer_modalities_are_those_of_a_loop():
    batch, seen = make_batch(), []

    def losses(of):
        seen.append(of)
        return sample_losses(square)(of)

    told, term = fewer_penalty(0.7, 0.3, MASKS, losses)(make_pass(WEIGHTS, batch, KEYS))
    np.testing.assert_array_equal(told, term)
    more, less = (np.asarray(sample_losses(square)(of), np.float64) for of in seen)
    left = np.asarray([seen[1].output.logits[:, 0]]).T  # what the network made of some of the modalities
    lost = WEIGHT * (PRESENT.sum(axis=1) > 1)
    parts = [[m for m in range(M) if PRESENT[b, m]] for b in range(B)]
    sums = batch["x"] * WEIGHTS["w"]
    for b in range(B):  # the logit is that of a proper part of the sample
        of_parts = {sum(sums[b, m] for m in parts[b] if bits >> m & 1) for bits in range(1, 2**M)}
        assert min(abs(left[b, 0] - value) for value in of_parts) < 1e-5
        assert (abs(left[b, 0] - sums[b][PRESENT[b]].sum()) > 1e-4) == (PRESENT[b].sum() > 1)
    assert float(told) == pytest.approx(slow.fewer(more, less, lost, 0.7, 0.3), rel=1e-5)
    assert (more[lost > 0] > less[lost > 0]).any()
    assert (more[lost > 0] < less[lost > 0]).any()
    # Combinations are those of what is left, the last index one that training has not.
    groups = np.asarray(seen[1].output.features[:, 0])
    assert set(groups) <= {0, 1, 2, 3}
    assert (groups[PRESENT.sum(axis=1) > 1] > 0).all()


def test_shares_of_devices_add_up_to_the_terms_of_the_whole_batch():
    batch = make_batch()

    def term(w, batch, keys, total=lambda x: x):
        return fewer(make_pass({"w": w}, batch, keys, total))[1]

    whole, slope = jax.value_and_grad(term)(jnp.asarray(WEIGHTS["w"]), batch, KEYS)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    total = functools.partial(jax.lax.psum, axis_name="devices")
    one = functools.partial(jax.value_and_grad(term), jnp.asarray(WEIGHTS["w"]), total=total)
    parts, slopes = jax.vmap(one, axis_name="devices")(halves, KEYS.reshape(2, -1))
    assert float(parts.sum()) == pytest.approx(float(whole), rel=1e-5)
    np.testing.assert_allclose(slopes.sum(axis=0), slope, rtol=1e-5)
    assert np.abs(np.asarray(slopes[0] - slopes[1])).max() > 1e-3


def test_predictors_that_learn_by_themselves_have_no_terms_of_fewer_modalities():
    told, term = fewer(make_pass(WEIGHTS, make_batch(), KEYS)._replace(apart=True))
    assert (float(told), float(term)) == (0.0, 0.0)


# ---- The loss after a step of an inner loop --------------------------------------------------------------------------

OWNER, RATE = np.repeat(np.arange(M), 2), 0.5
MANY = jax.random.split(jax.random.key(6), 3 * B)


def fuse(weights, tokens, observed, groups, *, gate, keys=None):
    """A network of one output: weights of the main part [m], times those of another; it counts what is observed."""
    del groups, gate
    noise = 0.0 if keys is None else 0.1 * draws.bits(keys, ()).astype(jnp.float32) / 2.0**32
    vectors = jnp.where(observed, tokens[:, :, 0], 0.0)[:, ::2]
    logits = jnp.einsum("bm,m->b", vectors, weights["main/w"]) * weights["scale"] + noise
    return Output(jnp.tanh(logits)[:, None], logits[:, None], jnp.zeros(len(logits)), vectors=vectors[:, :, None])


INNER = Network(lambda seed: {}, apply, lambda *_: None, fuse, owner=OWNER)
TWO = {"main/w": np.array([0.4, -0.3, 0.2], np.float32), "scale": np.float32(0.8)}


def inner_pass(weights, batch, keys, total=lambda x: x) -> Pass:
    tokens = jnp.repeat(batch["x"][:, :, None], 2, axis=1)
    output = fuse(weights, tokens, batch["present"][:, OWNER], batch["group"], gate="never", keys=keys)
    output = output._replace(tokens=tokens, observed=batch["present"][:, OWNER])
    return Pass(INNER, weights, batch, batch, "never", output, None, keys[0], keys, total, False, True)


meta = meta_penalty(0.7, RATE, 0.3, sample_losses(square), main="main/")


def test_the_outer_loss_is_that_of_finite_differences_and_its_gradient_passes_through_the_step():
    batch = make_batch(3)
    told, _ = meta(inner_pass(TWO, batch, MANY))
    keys = draws.fold_in(MANY, 6_000)
    first = (np.asarray(draws.bits(keys, ())) & 1) * batch["weight"]
    assert 0 < first.sum() < batch["weight"].sum()
    left = np.asarray(hiding.proper_part(jnp.asarray(batch["present"]), draws.fold_in(keys, 1)))
    noise = 0.1 * np.asarray(draws.bits(draws.fold_in(keys, 2), ())) / 2**32
    x, label = batch["x"].astype(np.float64), batch["label"].astype(np.float64)

    def loss_of(w, scale, drawn):
        sums = np.array([sum(w[m] * x[b, m] for m in range(M) if left[b, m]) for b in range(len(x))])
        return (np.tanh(scale * sums + drawn) - label) ** 2

    def inner(w, scale):
        return np.sum(first * loss_of(w, scale, noise)) / first.sum()

    def last(w, scale):
        away = np.mean(np.where(left != batch["present"], x, 0.0) ** 2, axis=1)
        second = batch["weight"] - first
        return 0.7 * np.sum(second * (loss_of(w, scale, 0.0) + 0.3 * away)) / second.sum()

    def outer(w, scale):
        return slow_smil.outer(w, lambda w: inner(w, scale), lambda w: last(w, scale), RATE)

    w, scale, step = TWO["main/w"].astype(np.float64), 0.8, 1e-4
    assert float(told) == pytest.approx(outer(w, scale), rel=1e-4)
    slopes = jax.jit(jax.grad(lambda weights: meta(inner_pass(weights, batch, MANY))[1]))(TWO)
    expected = [(outer(w + step * e, scale) - outer(w - step * e, scale)) / (2 * step) for e in np.eye(M)]
    np.testing.assert_allclose(slopes["main/w"], expected, rtol=2e-3, atol=1e-4)
    expected = (outer(w, scale + step) - outer(w, scale - step)) / (2 * step)
    np.testing.assert_allclose(slopes["scale"], expected, rtol=2e-3)
    # A step that is taken as given, whatever the weights, has other slopes.
    slope = np.array([(inner(w + step * e, scale) - inner(w - step * e, scale)) / (2 * step) for e in np.eye(M)])
    after = w - RATE * slope
    given = [(last(after + step * e, scale) - last(after - step * e, scale)) / (2 * step) for e in np.eye(M)]
    assert np.abs(np.array(given) - slopes["main/w"]).max() > 0.05 * np.abs(slopes["main/w"]).max()


def test_the_outer_loss_of_devices_adds_up_to_that_of_the_whole_batch():
    batch = make_batch(3)

    def term(weights, batch, keys, total=lambda x: x):
        return meta(inner_pass(weights, batch, keys, total))[1]

    whole, slope = jax.jit(jax.value_and_grad(term))(TWO, batch, MANY)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    total = functools.partial(jax.lax.psum, axis_name="devices")
    one = functools.partial(jax.value_and_grad(term), TWO, total=total)
    parts, slopes = jax.jit(jax.vmap(one, axis_name="devices"))(halves, MANY.reshape(2, -1))
    assert float(parts.sum()) == pytest.approx(float(whole), rel=1e-5)
    for name in TWO:
        np.testing.assert_allclose(slopes[name].sum(axis=0), slope[name], rtol=1e-4, atol=1e-6)


def test_stage_one_has_no_outer_loss():
    assert float(meta(inner_pass(TWO, make_batch(3), MANY)._replace(late=False))[0]) == 0.0


# ---- Predictors of single modalities --------------------------------------------------------------------------------

EXPERTS = np.random.default_rng(7).normal(size=(B, M, 1)).astype(np.float32)
WEIGHED = np.random.default_rng(8).uniform(size=(B, M, 1)).astype(np.float32)


def pass_with_experts(**fields) -> Pass:
    of = make_pass(WEIGHTS, make_batch(), KEYS)
    return of._replace(output=of.output._replace(experts=Predictors(EXPERTS, PRESENT, WEIGHED)), **fields)


def own_losses() -> np.ndarray:
    each = (EXPERTS[:, :, 0] - make_batch()["label"][:, None]) ** 2
    return np.array([np.mean([each[b, m] for m in range(M) if PRESENT[b, m]]) for b in range(B)])


def test_predictors_that_a_sample_has_learn_by_themselves_for_a_share_of_the_loss():
    whole, own = np.asarray(sample_losses(square)(pass_with_experts())), own_losses()
    assert np.abs(whole - own).min() > 1e-3
    for share in (0.3, 1.0):
        found = sample_losses(square, expert_share=share)(pass_with_experts())
        np.testing.assert_allclose(found, (1 - share) * whole + share * own, rtol=1e-5)
    apart = sample_losses(square, expert_share=0.3)(pass_with_experts(apart=True))
    np.testing.assert_allclose(apart, own, rtol=1e-5)
    shifted = sample_losses(square, offset=np.full((2, 1), 2.0, np.float32), expert_share=1.0)(pass_with_experts())
    assert np.abs(shifted - own).min() > 1e-3  # the prior is added to each predictor, too


def test_weights_in_another_order_than_the_losses_count():
    plain, ranked = (sample_losses(square, expert_share=0.5, rank=rank)(pass_with_experts()) for rank in (0.0, 2.0))
    each = (EXPERTS[:, :, 0] - make_batch()["label"][:, None]) ** 2
    for b in range(B):
        own = np.flatnonzero(PRESENT[b]).tolist()
        pairs = [(good, bad) for good in own for bad in own if each[b, good] < each[b, bad]]
        wrong = sum(max(float(WEIGHED[b, bad, 0] - WEIGHED[b, good, 0]), 0.0) for good, bad in pairs)
        assert float(ranked[b] - plain[b]) == pytest.approx(2.0 * wrong / max(len(pairs), 1), abs=1e-5)


# ---- Penalties of fusions -------------------------------------------------------------------------------------------

OBJECTIVE = types.SimpleNamespace(align_weight=2.0, distinct_weight=3.0)
SUMS = {
    "shaspec": ({"distance": 6.0, "pairs": 4.0, "surprise": 5.0, "classified": 10.0}, 2 * 6 / 4 + 3 * 5 / 10),
    "drfuse": (
        {"divergence": 6.0, "several": 4.0, "likeness": np.array([2.0, 0.0]), "present": np.array([5.0, 0.0])},
        2 * 6 / 4 + 3 * 2 / 5,
    ),
}


@pytest.mark.parametrize("kind", SUMS)
def test_penalties_are_of_sums_over_all_devices(kind):
    sums, expected = SUMS[kind]
    value = functools.partial(FUSIONS[kind].penalty, objective=OBJECTIVE)
    assert float(value({name: jnp.asarray(x) for name, x in sums.items()})) == pytest.approx(expected)
    parts = {name: jnp.stack([0.25 * jnp.asarray(x), 0.75 * jnp.asarray(x)]) for name, x in sums.items()}

    def one(sums):
        of = make_pass(WEIGHTS, make_batch(), KEYS, functools.partial(jax.lax.psum, axis_name="devices"))
        return fusion_penalty(value)(of._replace(output=of.output._replace(routing=(sums,))))

    told, _ = jax.vmap(one, axis_name="devices")(parts)
    np.testing.assert_allclose(told, expected, rtol=1e-5)
    slopes = jax.grad(lambda parts: jax.vmap(one, axis_name="devices")(parts)[1].sum())(parts)
    whole = jax.grad(value)({name: jnp.asarray(x) for name, x in sums.items()})
    for name, slope in whole.items():  # each device has the slopes of the whole batch for its own sums
        np.testing.assert_allclose(slopes[name], jnp.stack([slope, slope]), rtol=1e-5)
