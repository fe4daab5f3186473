import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.ops import disentangle
from tests.reference import arena as slow

B, M, D = 5, 3, 4
X = np.random.default_rng(0).normal(size=(B, M, D)) * 2
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
x = jnp.asarray(X, jnp.float32)


def test_pooled_logits_are_those_of_the_mean_probability_of_what_is_there() -> None:
    found = jax.jit(disentangle.pooled_logits)(x, PRESENT)
    for b in range(B):
        there = PRESENT[b] if PRESENT[b].any() else np.ones(M, bool)
        mean = slow.sigmoid(X[b, there]).mean(axis=0)
        np.testing.assert_allclose(found[b], np.log(mean / (1 - mean)), rtol=1e-4, atol=1e-5)
    huge = disentangle.pooled_logits(jnp.asarray([[[90.0], [-300.0]]]), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(huge, 0.0, atol=1e-4)  # half of one, half of none


def test_of_two_modalities_the_pooled_logits_are_the_four_exponentials_of_the_paper() -> None:
    found = disentangle.pooled_logits(x[:, :2], jnp.ones((B, 2), bool))
    first, second = np.exp(X[:, 0]), np.exp(X[:, 1])
    expected = np.log(2 * first * second + first + second) - np.log(2 + first + second)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_divergences_are_entropies_of_means_less_means_of_entropies() -> None:
    found = jax.jit(disentangle.divergences)(x, PRESENT)
    for b in range(B):
        chances = slow.sigmoid(X[b, PRESENT[b]])
        apart = 0.0
        if len(chances) > 1:
            apart = slow.entropy(chances.mean(axis=0)) - np.mean([slow.entropy(q) for q in chances])
        assert float(found[b]) == pytest.approx(apart, rel=1e-3, abs=1e-5)
    same = disentangle.divergences(jnp.broadcast_to(x[:, :1], x.shape), PRESENT)
    np.testing.assert_allclose(same, 0.0, atol=1e-5)
    far = disentangle.divergences(jnp.asarray([[[60.0], [-60.0]]]), jnp.ones((1, 2), bool))
    np.testing.assert_allclose(far, np.log(2), rtol=1e-5)


def test_distances_are_of_pairs_that_a_sample_has() -> None:
    distance, pairs = jax.jit(disentangle.pair_distances)(x, PRESENT)
    expected = [
        np.abs(X[b, i] - X[b, j]).mean()
        for b in range(B)
        for i in range(M)
        for j in range(i)
        if PRESENT[b, i] and PRESENT[b, j]
    ]
    assert float(pairs) == len(expected) == 5
    assert float(distance) == pytest.approx(sum(expected), rel=1e-5)


def test_likeness_is_one_along_a_line_zero_across_it_and_has_slopes_at_nothing() -> None:
    a = jnp.asarray([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    b = jnp.asarray([[-6.0, -8.0], [4.0, -3.0], [1.0, 0.0]])
    np.testing.assert_allclose(disentangle.likeness(a, b), [1.0, 0.0, 0.6], atol=1e-6)
    slopes = jax.grad(lambda y: disentangle.likeness(y, y).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(slopes).all()
