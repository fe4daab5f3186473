import functools
import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized

from remind_jax.ops import losses
from tests.reference import tasks as reference

LOGITS = np.random.default_rng(0).normal(size=(6, 3)) * 2.0
LABELS = np.array([0, 1, 2, 2, 1, 0])


def slow_focal(
    logits: np.ndarray, labels: np.ndarray, gamma: float, alpha: Sequence[float] | None = None
) -> np.ndarray:
    result = []
    for row, label in zip(logits, labels, strict=True):
        p = math.exp(row[label]) / sum(math.exp(x) for x in row)
        weight = 1.0 if alpha is None else alpha[label]
        result.append(-weight * (1.0 - p) ** gamma * math.log(p))
    return np.array(result)


def focal(logits: np.ndarray | jax.Array, labels: np.ndarray = LABELS, **options) -> jax.Array:
    return losses.focal_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), **options)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(gamma=[0.0, 0.5, 2.0], alpha=[None, (0.2, 1.0, 3.0)])
    def test_focal_loss_equals_the_reference(self, gamma: float, alpha: tuple[float, ...] | None) -> None:
        weights = None if alpha is None else jnp.asarray(alpha, jnp.float32)
        found = self.variant(functools.partial(focal, gamma=gamma, alpha=weights))(LOGITS.astype(np.float32), LABELS)
        np.testing.assert_allclose(found, slow_focal(LOGITS, LABELS, gamma, alpha), rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_group_sums_ignore_padding_and_groups_out_of_range(self) -> None:
        each = jnp.asarray([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
        groups = jnp.asarray([0, 2, 2, 3, -1, 0])  # 3 is a combination not seen in training
        weights = jnp.asarray([1.0, 1.0, 0.5, 1.0, 1.0, 0.0])
        sums, counts = self.variant(lambda *x: losses.group_sums(*x, 3))(each, groups, weights)
        assert sums.tolist() == [1.0, 0.0, 4.0]
        assert counts.tolist() == [1.0, 0.0, 1.5]


def test_focal_loss_without_focus_is_cross_entropy_and_with_it_is_smaller() -> None:
    cross_entropy = np.asarray(losses.cross_entropy(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)))
    np.testing.assert_allclose(focal(LOGITS, gamma=0.0), cross_entropy, rtol=1e-6)
    np.testing.assert_allclose(cross_entropy, slow_focal(LOGITS, LABELS, 0.0), rtol=1e-5)
    assert (np.asarray(focal(LOGITS, gamma=2.0)) < 0.99 * cross_entropy).all()


def test_a_hand_computed_focal_loss() -> None:
    logits = np.log([[0.5, 0.25, 0.25]])
    assert float(focal(logits, np.array([0]))[0]) == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert float(focal(logits, np.array([1]))[0]) == pytest.approx(0.5625 * math.log(4), rel=1e-6)


def test_the_softmax_form_is_not_the_sigmoid_form_of_optax() -> None:
    one_hot = jax.nn.one_hot(jnp.asarray(LABELS), 3)
    sigmoid = optax.losses.sigmoid_focal_loss(jnp.asarray(LOGITS, jnp.float32), one_hot, gamma=2.0).sum(axis=1)
    assert np.abs(np.asarray(sigmoid) - np.asarray(focal(LOGITS))).max() > 0.1


def test_detaching_changes_the_gradient_and_not_the_value() -> None:
    def gradient(**options) -> np.ndarray:
        return np.asarray(jax.grad(lambda x: jnp.sum(focal(x, **options)))(jnp.asarray(LOGITS, jnp.float32)))

    np.testing.assert_array_equal(focal(LOGITS, detach=True), focal(LOGITS, detach=False))
    whole, detached = gradient(detach=False), gradient(detach=True)
    assert np.abs(whole - detached).max() > 0.05
    # Detached, the gradient is that of cross entropy, p - one hot, times the factor.
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    factor = (1.0 - p[np.arange(6), LABELS]) ** 2
    np.testing.assert_allclose(detached, factor[:, None] * (p - np.eye(3)[LABELS]), atol=1e-5)
    step = 1e-6
    for i in range(6):
        for c in range(3):
            up, down = LOGITS.copy(), LOGITS.copy()
            up[i, c] += step
            down[i, c] -= step
            slope = (slow_focal(up, LABELS, 2.0)[i] - slow_focal(down, LABELS, 2.0)[i]) / (2 * step)
            assert whole[i, c] == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, label: int) -> None:
    logits = jnp.asarray([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    labels = jnp.full(2, label)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(losses.focal_loss(x, labels, gamma=gamma)))(logits)
    chex.assert_tree_all_finite((value, gradient))
    assert float(losses.focal_loss(logits, labels, gamma=gamma)[0]) == pytest.approx(0.0 if label == 0 else 2e4)


def test_losses_of_bfloat16_logits_are_float32() -> None:
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    exact = losses.cross_entropy(logits.astype(jnp.float32), jnp.asarray(LABELS))
    found = losses.cross_entropy(logits, jnp.asarray(LABELS))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, exact)


def test_group_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    each, groups = jnp.asarray(rng.random(20), jnp.float32), jnp.asarray(rng.integers(0, 5, 20))
    whole = losses.group_sums(each, groups, jnp.ones(20), 4)
    parts = [losses.group_sums(each[cut], groups[cut], jnp.ones(20)[cut], 4) for cut in (slice(0, 7), slice(7, 20))]
    chex.assert_trees_all_close(whole, jax.tree.map(jnp.add, *parts), rtol=1e-6)
    assert float(whole[1].sum()) == np.sum(np.asarray(groups) < 4)


def test_mean_prediction_is_the_log_of_the_mean_probability() -> None:
    logits = np.random.default_rng(3).normal(size=(4, 5, 3)).astype(np.float32) * 3
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    found = losses.mean_prediction(jnp.asarray(logits), axis=1)
    np.testing.assert_allclose(found, np.log(p.mean(axis=1)), rtol=1e-5)
    found = losses.mean_prediction(jnp.asarray(logits), axis=0)
    np.testing.assert_allclose(found, np.log(p.mean(axis=0)), rtol=1e-5)


def test_divergence_by_hand() -> None:
    # KL((1/2, 1/2) from (3/4, 1/4)) = ln(2/sqrt 3); zero from itself, whatever is added to the logits.
    target, other = jnp.log(jnp.asarray([[0.5, 0.5]])), jnp.log(jnp.asarray([[0.75, 0.25]]))
    np.testing.assert_allclose(losses.divergence(other, target), [np.log(2 / np.sqrt(3))], rtol=1e-6)
    np.testing.assert_allclose(losses.divergence(target + 7.0, target), [0.0], atol=1e-6)
    rows = jnp.stack([other, target]).repeat(3, axis=1)
    sums = [[np.log(2 / np.sqrt(3))] * 3, [0.0] * 3]
    np.testing.assert_allclose(losses.divergence(rows, jnp.broadcast_to(target, rows.shape)), sums, atol=1e-6)


def test_hazards_by_hand():
    even = jnp.zeros((5, 3))  # every hazard is one half
    step, event = jnp.array([0, 2, 0, 2, 3]), jnp.array([True, True, False, False, False])
    # the event in step T has chance ½^(T+1), and so has no event up to T; after the last step all three were survived
    np.testing.assert_allclose(losses.hazards(even, step, event), np.log(2) * np.array([1, 3, 1, 3, 3]), rtol=1e-6)


def test_hazards_equal_the_formula():
    rng = np.random.default_rng(0)
    logits, step, event = rng.normal(size=(60, 4)) * 3, rng.integers(0, 5, 60), rng.uniform(size=60) < 0.5
    event &= step < 4
    slow = [reference.hazards(*each) for each in zip(logits, step, event, strict=True)]
    np.testing.assert_allclose(losses.hazards(jnp.array(logits), jnp.array(step), jnp.array(event)), slow, rtol=2e-5)


def test_hazards_of_extreme_logits_are_finite():
    far = jnp.array([[90.0, -90.0], [-90.0, 90.0]])
    args = jnp.array([1, 0]), jnp.array([True, False])
    np.testing.assert_allclose(losses.hazards(far, *args), [180.0, 0.0], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda x: losses.hazards(x, *args).sum())(far)).all()


def test_binary_cross_entropy_leaves_out_what_is_unknown():
    logits, labels = jnp.array([[0.0, 5.0, -2.0], [1.0, 1.0, 1.0]]), jnp.array([[1, -1, 0], [-1, -1, -1]], jnp.int8)
    slow = [reference.multilabel(x, y) for x, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, labels), slow, rtol=1e-6)
    assert slow[1] == 0
    slopes = jax.grad(lambda x: losses.binary_cross_entropy(x, labels).sum())(logits)
    np.testing.assert_array_equal(slopes == 0, labels == -1)


def test_gaussian_and_pinball_equal_their_formulas():
    rng = np.random.default_rng(1)
    outputs, values, levels = rng.normal(size=(40, 3)), rng.normal(size=40), np.array([0.5, 0.05, 0.95])
    slow = [reference.gaussian(x[:2], y, 0.01) for x, y in zip(outputs, values, strict=True)]
    found = losses.gaussian(jnp.array(outputs[:, :2]), jnp.array(values), 0.01)
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
    slow = [reference.pinball(x, y, levels) for x, y in zip(outputs, values, strict=True)]
    found = losses.pinball(jnp.array(outputs), jnp.array(values), jnp.array(levels))
    np.testing.assert_allclose(found, slow, rtol=1e-5, atol=1e-6)


def test_pinball_is_least_at_the_quantile():
    values, at = jnp.arange(101.0), jnp.linspace(0, 100, 101)
    loss = jax.vmap(lambda q: losses.pinball(jnp.full((101, 1), q), values, jnp.array([0.9])).mean())(at)
    assert at[loss.argmin()] == 90


def test_mean_hazards_are_those_of_the_mean_chances_of_an_event_in_each_step() -> None:
    logits = np.random.default_rng(5).normal(size=(3, 4, 5)).astype(np.float32)
    hazards = 1 / (1 + np.exp(-logits.astype(np.float64)))
    chances = np.zeros((3, 4, 6))
    for k, b in np.ndindex(3, 4):
        left = 1.0
        for step in range(5):
            chances[k, b, step] = left * hazards[k, b, step]
            left *= 1 - hazards[k, b, step]
        chances[k, b, 5] = left
    mean, expected = chances.mean(axis=0), np.empty((4, 5))
    for b, step in np.ndindex(4, 5):
        expected[b, step] = mean[b, step] / mean[b, step:].sum()
    found = np.asarray(losses.mean_hazards(jnp.asarray(logits), 0), np.float64)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), expected, atol=1e-6)


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2], [1], []])
def test_misranking_is_what_worse_predictors_weigh_too_much(present: list[int]) -> None:
    rng = np.random.default_rng(5)
    weights, each, there = rng.uniform(size=(4, 3, 2)), rng.uniform(size=(4, 3)), np.zeros((4, 3), bool)
    there[:, present] = True
    given = [jnp.asarray(x, jnp.float32) for x in (weights, each)]
    found = jax.jit(losses.misranking)(*given, there)
    pairs = max(len(present) * (len(present) - 1) // 2, 1)
    for b in range(4):
        wrong = [
            max(weights[b, bad, c] - weights[b, good, c], 0.0)
            for good in present
            for bad in present
            for c in range(2)
            if each[b, good] < each[b, bad]
        ]
        assert float(found[b]) == pytest.approx(sum(wrong) / 2 / pairs, abs=1e-6)
    assert (np.asarray(found).max() > 0) == (len(present) > 1)
    slopes = jax.grad(lambda w, e: losses.misranking(w, e, there).sum(), argnums=(0, 1))(*given)
    assert not np.asarray(slopes[1]).any()
