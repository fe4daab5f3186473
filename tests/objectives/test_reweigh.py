import chex
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.objectives import group_dro, reweigh
from remind_jax.ops import losses

COUNTS = jnp.asarray([1.0, 4.0, 16.0, 79.0])
count_lists = st.lists(st.integers(1, 10_000), min_size=1, max_size=6)


def slow_weights(counts: list[int], power: float) -> np.ndarray:
    raw = np.array([float(n) ** -power for n in counts])
    return raw * sum(counts) / sum(n * w for n, w in zip(counts, raw, strict=True))


@given(count_lists, st.sampled_from([0.0, 0.5, 1.0]))
def test_weights_equal_the_reference_and_keep_the_size_of_the_loss(counts: list[int], power: float) -> None:
    weights = np.asarray(reweigh.inverse_frequency_weights(jnp.asarray(counts), power), np.float64)
    np.testing.assert_allclose(weights, slow_weights(counts, power), rtol=2e-5)
    assert np.dot(counts, weights) == pytest.approx(sum(counts), rel=1e-5)


def test_weights_by_hand() -> None:
    # Four groups that share 100 samples evenly: 25 / n.
    np.testing.assert_allclose(reweigh.inverse_frequency_weights(COUNTS), [25.0, 6.25, 1.5625, 25 / 79], rtol=1e-6)


def test_power_zero_is_one_for_every_group_and_power_one_is_not() -> None:
    np.testing.assert_allclose(reweigh.inverse_frequency_weights(COUNTS, 0.0), np.ones(4), rtol=1e-6)
    half, whole = (np.asarray(reweigh.inverse_frequency_weights(COUNTS, power)) for power in (0.5, 1.0))
    assert 1.0 < half[0] < whole[0]
    assert whole[3] < half[3] < 1.0


def test_a_cap_limits_the_weights_and_nothing_else() -> None:
    weights = np.asarray(reweigh.inverse_frequency_weights(COUNTS))
    capped = np.asarray(reweigh.inverse_frequency_weights(COUNTS, cap=5.0))
    np.testing.assert_allclose(capped, np.minimum(weights, 5.0), rtol=1e-6)
    assert capped.tolist() != weights.tolist()
    assert np.dot(COUNTS, capped) < float(COUNTS.sum())


@given(count_lists, st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_effective_numbers_equal_the_sums_they_stand_for(counts: list[int], beta: float) -> None:
    # (1 - β^n) / (1 - β) = 1 + β + … + β^(n - 1), each sample worth β of the one before.
    numbers = [sum(beta**i for i in range(n)) for n in counts]
    expected = np.array([1 / x for x in numbers])
    expected *= sum(counts) / np.dot(counts, expected)
    weights = np.asarray(reweigh.effective_number_weights(jnp.asarray(counts), beta), np.float64)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_effective_numbers_lie_between_samples_alike_and_groups_alike() -> None:
    np.testing.assert_allclose(reweigh.effective_number_weights(COUNTS, 0.0), np.ones(4), rtol=1e-6)
    near_one = reweigh.effective_number_weights(COUNTS, 1 - 1e-6)
    np.testing.assert_allclose(near_one, reweigh.inverse_frequency_weights(COUNTS), rtol=5e-3)
    capped = np.asarray(reweigh.effective_number_weights(COUNTS, 0.99, cap=5.0))
    free = np.asarray(reweigh.effective_number_weights(COUNTS, 0.99))
    np.testing.assert_allclose(capped, np.minimum(free, 5.0), rtol=1e-6)
    assert free.max() > 5.0


def test_a_group_without_samples_changes_no_weight() -> None:
    counts = jnp.asarray([0.0, 4.0, 16.0])
    for rule in (reweigh.inverse_frequency_weights, lambda n: reweigh.effective_number_weights(n, 0.9)):
        weights = np.asarray(rule(counts))
        chex.assert_tree_all_finite(weights)
        np.testing.assert_allclose(weights[1:], rule(counts[1:]), rtol=1e-6)


def mean_loss(weights: jnp.ndarray, each: jnp.ndarray, groups: jnp.ndarray) -> jnp.ndarray:
    sums, counts = losses.group_sums(each, groups, jnp.ones(len(each)), 4)
    return jnp.sum(sums * reweigh.weighted_mean_factors(weights, counts))


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_factors_give_the_mean_of_weighted_losses(self) -> None:
        rng = np.random.default_rng(0)
        each, groups = rng.random(10), rng.integers(0, 3, 10)
        weights = np.array([2.0, 0.5, 1.0, 9.0])
        arrays = (jnp.asarray(each, jnp.float32), jnp.asarray(groups))
        mean = self.variant(mean_loss)
        found = float(mean(jnp.asarray(weights, jnp.float32), *arrays))
        assert found == pytest.approx(float(np.mean(weights[groups] * each)), rel=1e-5)
        assert float(mean(jnp.ones(4), *arrays)) == pytest.approx(float(np.mean(each)), rel=1e-5)
        assert found != pytest.approx(float(np.mean(each)), rel=1e-2)


def test_full_reweighting_is_the_robust_loss_at_uniform_group_weights() -> None:
    # In a batch with the frequencies of the training set, 1/n weights are Σ_g (1/g) (mean loss of g).
    groups = jnp.repeat(jnp.arange(4), jnp.asarray([1, 2, 4, 8]))
    each = jnp.asarray(np.random.default_rng(1).random(15), jnp.float32)
    sums, counts = losses.group_sums(each, groups, jnp.ones(15), 4)
    robust = float(jnp.sum(sums * group_dro.robust_factors(jnp.full(4, 0.25), counts)))
    full = float(mean_loss(reweigh.inverse_frequency_weights(20 * counts), each, groups))
    assert full == pytest.approx(robust, rel=1e-5)
    assert float(mean_loss(jnp.ones(4), each, groups)) != pytest.approx(robust, rel=1e-3)
