"""Slopes along the path between two samples against finite differences in float64, and the penalty made of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from remind_jax.objectives import fair_mixup
from remind_jax.ops.transformer import attention, tracing_for_gpu

B, N, D, C = 6, 3, 4, 5


@pytest.fixture
def setting():
    return draw()


def draw():
    """Tokens of the two samples of each pair, and the weights of a network."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, B, N, D)).astype(np.float32)
    inner, outer = rng.normal(size=(N * D, 7)).astype(np.float32), rng.normal(size=(7, C)).astype(np.float32)
    return first, second, inner, outer


def logits(tokens, inner, outer):
    return jnp.tanh(tokens.reshape(len(tokens), -1) @ inner) @ outer


def slow_probabilities(tokens, inner, outer) -> np.ndarray:
    """The same network, one sample and one class at a time, in float64."""
    rows = []
    for sample in np.asarray(tokens, np.float64):
        scores = np.tanh(sample.reshape(-1) @ inner.astype(np.float64)) @ outer.astype(np.float64)
        rows.append([np.exp(s) / sum(np.exp(other) for other in scores) for s in scores])
    return np.array(rows)


def slow_slopes(first, second, t, inner, outer, step=1e-5) -> np.ndarray:
    def at(t):
        return slow_probabilities(t * first.astype(np.float64) + (1 - t) * second.astype(np.float64), inner, outer)

    return (at(t + step) - at(t - step)) / (2 * step)


def slopes(setting, t) -> jax.Array:
    first, second, inner, outer = setting
    return fair_mixup.path_slopes(
        lambda z: logits(z, inner, outer), jnp.asarray(first), second, jnp.asarray(t, jnp.float32)
    )


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(0.0, 0.3, 1.0)
    def test_slopes_are_finite_differences(self, t):
        first, second, inner, outer = setting = draw()
        expected = slow_slopes(first, second, t, inner, outer)
        found = self.variant(slopes)(setting, jnp.float32(t))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-5)
        assert np.abs(expected).max() > 0.1


def test_slopes_over_the_whole_path_are_the_difference_of_its_ends(setting):
    first, second, inner, outer = setting
    middles = (np.arange(400) + 0.5) / 400
    total = np.mean([slopes(setting, t) for t in middles], axis=0)
    ends = slow_probabilities(first, inner, outer) - slow_probabilities(second, inner, outer)
    np.testing.assert_allclose(total, ends, atol=1e-3)


def test_slopes_of_all_classes_cancel_and_the_penalty_does_not(setting):
    """A penalty on the slope of a sample's summed outputs would be zero whatever the network does."""
    found = slopes(setting, 0.4)
    np.testing.assert_allclose(jnp.sum(found, axis=1), np.zeros(B), atol=1e-6)
    assert float(fair_mixup.slope_penalty(*fair_mixup.slope_sums(found, jnp.ones(B)))) > 0.05


def test_penalty_by_hand():
    found = jnp.asarray([[0.3, -0.1, -0.2], [-0.1, 0.3, -0.2], [9.0, 9.0, 9.0]])
    total, pairs = fair_mixup.slope_sums(found, jnp.asarray([1.0, 1.0, 0.0]))  # the third pair is padding
    # Means 0.1, 0.1 and -0.2: slopes of opposite sign cancel within a class, not between classes.
    assert float(fair_mixup.slope_penalty(total, pairs)) == pytest.approx(0.4)
    np.testing.assert_allclose(fair_mixup.slope_penalty_factors(total, pairs), [0.5, 0.5, -0.5])
    nothing = fair_mixup.slope_penalty(*fair_mixup.slope_sums(found, jnp.zeros(3)))
    assert float(nothing) == 0.0


@pytest.mark.slow
def test_shares_of_two_devices_add_up_to_the_gradient_of_the_whole(setting):
    first, second, inner, outer = setting

    def own(inner, part):
        found = fair_mixup.path_slopes(lambda z: logits(z, inner, outer), first[part], second[part], jnp.float32(0.6))
        return fair_mixup.slope_sums(found, jnp.ones(len(found)))[0]

    inner = jnp.asarray(inner)
    whole = jax.grad(lambda inner: fair_mixup.slope_penalty(own(inner, slice(0, B)), jnp.float32(B)))(inner)
    parts = [slice(0, 2), slice(2, B)]
    everywhere = sum(own(inner, part) for part in parts)
    factors = fair_mixup.slope_penalty_factors(everywhere, jnp.float32(B))
    summed = [jax.grad(lambda inner, p=part: jnp.sum(own(inner, p) * factors))(inner) for part in parts]
    np.testing.assert_allclose(summed[0] + summed[1], whole, rtol=1e-4, atol=1e-6)
    # Each device's own penalty would have another gradient: signs of means over its own pairs.
    alone = [jax.grad(lambda inner, p=p: jnp.sum(jnp.abs(own(inner, p))) / B)(inner) for p in parts]
    assert np.abs(alone[0] + alone[1] - whole).max() > 1e-3


def test_pairs_are_neighbours():
    first, second = fair_mixup.first_and_second(jnp.arange(8).reshape(4, 2))
    assert first.tolist() == [[0, 1], [4, 5]]
    assert second.tolist() == [[2, 3], [6, 7]]


@pytest.mark.parametrize(("beta", "variance"), [(1.0, 1 / 12), (4.0, 1 / 36)])
def test_positions_have_the_moments_of_the_beta_distribution(beta, variance):
    keys = jax.random.split(jax.random.key(0), 4000)
    t = np.asarray(jax.vmap(lambda key: fair_mixup.path_position(key, beta))(keys))
    assert 0 <= t.min() < t.max() <= 1
    assert t.mean() == pytest.approx(0.5, abs=0.02)
    assert t.var() == pytest.approx(variance, rel=0.1)


def test_a_path_through_attention_has_a_slope_on_a_gpu_too(plain_cudnn: list) -> None:
    first, second = (jnp.asarray(x, jnp.bfloat16) for x in np.random.default_rng(0).normal(size=(2, 2, 4, 8)))

    def slope() -> jax.Array:
        mixed = functools.partial(attention, heads=1)
        return fair_mixup.path_slopes(lambda z: mixed(z, z, z)[:, 0], first, second, jnp.float32(0.6))

    with tracing_for_gpu(True):
        attention(first, first, first, heads=1)
        assert len(plain_cudnn) == 1
        found = slope()
    assert len(plain_cudnn) == 1  # cuDNN's attention has no forward-mode derivative
    np.testing.assert_array_equal(found, slope())
