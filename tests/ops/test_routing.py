import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.ops import routing
from remind_jax.ops.soft_moe import unit_length
from tests.reference import routing as slow
from tests.reference import soft_moe as slow_moe

B, N, E, S, D, G = 2, 3, 5, 2, 4, 3
# Thresholds that uniform routing (p = 1/5) meets and one-hot routing does not, well away from both.
THRESHOLDS = {
    "entropy": 0.8,
    "joint_entropy": 0.8,
    "gini": 0.5,
    "certainty": 0.2,
    "max_probability": 0.5,
    "margin": 0.3,
    "variance": 0.2,
    "kl": 0.1,
}


def random_logits(seed: int = 0, size: float = 2.0) -> np.ndarray:
    return (size * np.random.default_rng(seed).normal(size=(B, N, E, S))).astype(np.float32)


def one_hot_logits(confidence: float = 40.0) -> np.ndarray:
    """All mass of a token on one expert; of a sample, for the joint entropy, on one token, expert and slot."""
    logits = np.zeros((B, N, E, S), np.float32)
    logits[:, :, 1] = confidence
    logits[:, 0, 1, 0] = 2 * confidence
    return logits


# ---- Metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", routing.UNCERTAINTY_METRICS)
@pytest.mark.parametrize("size", [0.1, 2.0, 30.0])
def test_metrics_equal_the_reference(name: str, size: float) -> None:
    logits = random_logits(size=size)
    value = routing.UNCERTAINTY_METRICS[name][0](jnp.asarray(logits))
    expected = slow.metric(name, logits.astype(np.float64))
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, atol=2e-6)


def test_the_paper_s_worked_example() -> None:
    # 7.2.11: 32 experts, five of which hold 0.7 of the mass; the other 27 share the rest evenly.
    p = np.array([0.2, 0.2, 0.15, 0.1, 0.05] + [0.3 / 27] * 27)
    assert p.sum() == pytest.approx(1.0)
    logits = jnp.asarray(np.log(p), jnp.float32)[None, None, :, None]
    entropy, kl = float(routing.entropy(logits)[0, 0, 0]), float(routing.kl_from_uniform(logits)[0, 0, 0])
    assert entropy == pytest.approx(2.6583, abs=5e-5)
    assert kl == pytest.approx(0.8074, abs=5e-5)
    assert float(routing.normalized_entropy(logits)[0, 0, 0]) == pytest.approx(0.767, abs=5e-4)
    assert kl == pytest.approx(math.log(32) - entropy, abs=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 50.0))
def test_kl_is_what_entropy_lacks_to_its_maximum(seed: int, size: float) -> None:
    logits = jnp.asarray(random_logits(seed, size))
    entropy, kl = np.asarray(routing.entropy(logits)), np.asarray(routing.kl_from_uniform(logits))
    p = np.asarray(jax.nn.softmax(logits.astype(jnp.float32), axis=2), np.float64)
    np.testing.assert_allclose(kl, math.log(E) - entropy, atol=1e-6)
    np.testing.assert_allclose(kl, np.sum(p * np.log(np.maximum(p * E, 1e-300)), axis=2), atol=2e-5)
    assert (entropy >= -1e-6).all()
    assert (entropy <= math.log(E) + 1e-6).all()


def test_unit_vectors_cannot_make_the_gate_certain_at_scale_one() -> None:
    # Logits of unit vectors lie in [-1, 1]. Moving a logit away from the mean raises KL, so that its maximum is at a
    # corner of the cube: some logits at 1, the others at -1.
    corners = np.array([[1.0] * k + [-1.0] * (32 - k) for k in range(1, 32)], np.float32)
    kl = np.asarray(routing.kl_from_uniform(jnp.asarray(corners)[:, None, :, None]))
    assert kl.max() == pytest.approx(0.47384, abs=1e-5)
    assert kl.max() < math.log(32) * 0.2  # so that H < 0.8 ln 32 is out of reach

    rng = np.random.default_rng(0)
    tokens, router = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 20, 6), (6, 32, 1)))
    bound = unit_length(jnp.asarray(router), axis=0)
    for scale, reachable in ((1.0, False), (16.0, True)):
        logits = routing.token_logits(jnp.asarray(tokens), scale * bound, normalize=True)
        assert (float(jnp.max(routing.kl_from_uniform(logits))) > 0.47384) is reachable


@pytest.mark.parametrize(("width", "experts", "expected"), [(768, 128, 40.2), (128, 32, 14.5), (32, 8, 6.2)])
def test_the_scale_that_closes_the_gate_is_that_of_random_directions(width, experts, expected) -> None:
    rng = np.random.default_rng(0)
    tokens, router = (rng.normal(size=shape).astype(np.float32) for shape in ((400, 10, width), (width, experts, 1)))
    bound = unit_length(jnp.asarray(router), axis=0)

    def entropy(scale: float) -> float:
        logits = routing.token_logits(jnp.asarray(tokens), scale * bound, normalize=True)
        return float(jnp.mean(routing.normalized_entropy(logits)))

    found = routing.scale_that_closes(0.8, experts, width)
    assert found == pytest.approx(expected, rel=0.1)
    assert entropy(found) == pytest.approx(0.8, abs=0.03)
    assert entropy(1.0) > 0.98  # the default scale
    assert routing.scale_that_closes(0.5, experts, width) > found


# ---- Gate -----------------------------------------------------------------------------------------------------------


def test_every_metric_has_a_threshold_here() -> None:
    assert set(THRESHOLDS) == set(routing.UNCERTAINTY_METRICS)


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("granularity", routing.GATE_GRANULARITY)
def test_the_gate_opens_for_uniform_and_closes_for_one_hot_routing(name: str, granularity: str) -> None:
    uniform = routing.gate_is_open(jnp.zeros((B, N, E, S)), name, THRESHOLDS[name], granularity)
    certain = routing.gate_is_open(jnp.asarray(one_hot_logits()), name, THRESHOLDS[name], granularity)
    assert uniform.dtype == bool
    assert bool(jnp.all(uniform))
    assert not bool(jnp.any(certain))


@pytest.mark.parametrize("granularity", routing.GATE_GRANULARITY)
def test_the_gate_averages_over_what_its_granularity_says(granularity: str) -> None:
    # The first sample has one uniform and two certain tokens, the second the other way round.
    logits = np.zeros((B, N, E, S), np.float32)
    logits[0, 1:, 1] = 40.0
    logits[1, 2, 1] = 40.0
    gate = np.asarray(routing.gate_is_open(jnp.asarray(logits), "entropy", 0.55, granularity))
    expected = {
        "token": [[True, False, False], [True, True, False]],  # 1 or 0 for each token
        "sample": [[False], [True]],  # means 1/3 and 2/3
        "batch": [[False]],  # mean 1/2
    }[granularity]
    assert gate.tolist() == expected
    assert np.broadcast_to(gate, (B, N)).shape == (B, N)


@pytest.mark.parametrize("granularity", routing.GATE_GRANULARITY)
def test_the_joint_entropy_is_one_number_a_sample(granularity: str) -> None:
    logits = np.zeros((B, N, E, S), np.float32)
    logits[0, 0, 0, 0] = 40.0
    gate = np.asarray(routing.gate_is_open(jnp.asarray(logits), "joint_entropy", 0.6, granularity))
    assert gate.tolist() == ([[False]] if granularity == "batch" else [[False], [True]])


def test_joint_and_token_entropy_are_different_rules() -> None:
    # Every token is uniform over experts, but one token outweighs the others in the joint distribution.
    logits = np.zeros((1, N, E, S), np.float32)
    logits[:, 0] = 40.0
    assert bool(routing.gate_is_open(jnp.asarray(logits), "entropy", 0.9)[0, 0])
    assert not bool(routing.gate_is_open(jnp.asarray(logits), "joint_entropy", 0.9)[0, 0])


# ---- Routers --------------------------------------------------------------------------------------------------------

ALL = jnp.arange(G + 1)
ROUTERS = [(False, False), (True, False), (True, True)]


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*ROUTERS)
    def test_group_routers_equal_the_reference(self, normalize: bool, add_after_norm: bool) -> None:
        rng = np.random.default_rng(3)
        shared, residual = rng.normal(size=(D, E, S)), rng.normal(size=(G, D, E, S))
        groups = jnp.asarray([2, G, 0, 2, 1])  # one group twice, one that training has not seen
        args = (jnp.asarray(shared, jnp.float32), jnp.asarray(residual, jnp.float32), groups, jnp.float32(1.7))
        options = {"normalize": normalize, "add_after_norm": add_after_norm}
        found = self.variant(functools.partial(routing.group_routers, **options))(*args)
        rows = [*residual, np.zeros((D, E, S))]
        for router, group in zip(found, groups, strict=True):
            np.testing.assert_allclose(router, slow.effective_router(shared, rows[group], 1.7, **options), atol=2e-6)


def test_the_three_ways_to_add_residuals_differ() -> None:
    rng = np.random.default_rng(3)
    shared, residual = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((D, E, S), (G, D, E, S)))
    found = [
        np.asarray(routing.group_routers(shared, residual, ALL, jnp.float32(1.7), normalize=n, add_after_norm=a))
        for n, a in ROUTERS
    ]
    assert min(np.abs(found[i] - found[j]).max() for i in range(3) for j in range(i)) > 0.1


@pytest.mark.parametrize(("normalize", "add_after_norm"), ROUTERS)
def test_zero_residuals_leave_the_shared_router_with_finite_gradients(normalize: bool, add_after_norm: bool) -> None:
    shared = jnp.asarray(np.random.default_rng(3).normal(size=(D, E, S)), jnp.float32)
    alone = 1.7 * unit_length(shared, axis=0) if normalize else shared
    options = {"normalize": normalize, "add_after_norm": add_after_norm}

    def routers(residual: jax.Array, common: jax.Array) -> jax.Array:
        return routing.group_routers(common, residual, ALL, jnp.float32(1.7), **options)

    zeros = jnp.zeros((G, D, E, S))
    np.testing.assert_array_equal(routers(zeros, shared), np.broadcast_to(alone, (G + 1, D, E, S)))
    for common in (shared, jnp.zeros_like(shared)):
        gradient = jax.grad(lambda r, common=common: jnp.sum(jnp.sin(routers(r, common))))(zeros)
        chex.assert_tree_all_finite(gradient)
        assert np.abs(gradient).max() > 0


def test_composed_residuals_are_sums_over_the_modalities_that_are_there() -> None:
    rng, rank = np.random.default_rng(5), 2
    down, up = rng.normal(size=(G, D, rank)), rng.normal(size=(G, rank, E, S))  # G modalities
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    found = routing.composed_residuals(jnp.asarray(down, jnp.float32), jnp.asarray(up, jnp.float32), present)
    np.testing.assert_allclose(found, slow.composed_residuals(down, up, present), atol=1e-5)
    np.testing.assert_allclose(found[0] + found[1], found[2], atol=1e-5)
    assert np.abs(found[3] - found[2]).max() > 0.1
    assert not found[4].any()


@pytest.mark.parametrize("normalize", [True, False])
def test_token_logits_equal_the_reference_for_one_router_and_for_one_a_sample(normalize: bool) -> None:
    rng = np.random.default_rng(4)
    tokens, routers = rng.normal(size=(B, N, D)), rng.normal(size=(B, D, E, S))
    x, r = jnp.asarray(tokens, jnp.float32), jnp.asarray(routers, jnp.float32)
    own = [slow_moe.logits(tokens[i], routers[i], normalize) for i in range(B)]
    common = [slow_moe.logits(tokens[i], routers[0], normalize) for i in range(B)]
    np.testing.assert_allclose(routing.token_logits(x, r, normalize), own, atol=1e-5)
    np.testing.assert_allclose(routing.token_logits(x, r[0], normalize), common, atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("metric", sorted(routing.UNCERTAINTY_METRICS))
def test_a_threshold_for_a_share_opens_that_share(metric: str, share: float) -> None:
    logits = jax.random.normal(jax.random.key(3), (40, N, E, S)) * jnp.linspace(0.5, 4.0, 40)[:, None, None, None]
    for granularity, count in (("sample", 40), ("token", 40 * N)):
        values = routing.gate_values(logits, metric, granularity)
        assert values.size == (40 if metric == "joint_entropy" else count)  # which is a sample's
        threshold = routing.threshold_for_share(values, metric, share)
        is_open = routing.gate_is_open(logits, metric, jnp.float32(threshold), granularity)
        assert np.mean(is_open) == pytest.approx(share, abs=1e-6)


def test_a_threshold_for_a_share_by_hand() -> None:
    values = np.array([[0.1, 0.4], [0.2, 0.8]])
    assert routing.threshold_for_share(values, "entropy", 0.5) == pytest.approx(0.3)
    assert routing.threshold_for_share(values, "entropy", 0.75) == pytest.approx(0.15)
    # At least one is open and one is not; certainties are turned round.
    assert routing.threshold_for_share(values, "entropy", 0.99) == pytest.approx(0.15)
    assert routing.threshold_for_share(values, "entropy", 0.01) == pytest.approx(0.6)
    assert routing.threshold_for_share(values, "certainty", 0.25) == pytest.approx(0.15)


def test_a_gate_at_its_threshold_is_open() -> None:
    uniform = jnp.zeros((1, 1, 4, 1))  # probabilities of a quarter, in binary without rounding
    assert routing.gate_is_open(uniform, "max_probability", 0.25).all()
    assert not routing.gate_is_open(uniform, "max_probability", 0.2499).any()
