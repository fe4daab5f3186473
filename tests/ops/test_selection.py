"""Greedy selection with replacement, next to a slow version of it, and what it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.ops import selection


def _slow(predictions, loss, rounds):
    """The same by lists of names, the mean of which is taken anew each time."""
    bag, kept, best = [], None, float("inf")
    for _ in range(rounds):
        values = [loss(np.mean([predictions[j] for j in [*bag, i]], axis=0)) for i in range(len(predictions))]
        bag.append(min(range(len(values)), key=lambda i: values[i]))
        if min(values) < best - 1e-12:
            best, kept = min(values), list(bag)
    return np.array([kept.count(i) / len(kept) for i in range(len(predictions))])


def _case(seed, candidates=4, rows=30):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    logits = rng.normal(size=(candidates, rows, 3)) + 1.5 * rng.random((candidates, 1, 1)) * np.eye(3)[labels]
    predictions = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return predictions, lambda found: float(-np.mean(np.log(found[np.arange(rows), labels])))


def test_selection_is_that_of_the_slow_version():
    several = 0
    for predictions, loss in map(_case, range(5)):
        found = selection.greedy(predictions, loss, rounds=12)
        np.testing.assert_allclose(found, _slow(predictions, loss, 12), atol=1e-12)
        several += np.count_nonzero(found) > 1
    assert several >= 3


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_mean_is_never_worse_than_the_best_candidate(seed, candidates):
    predictions, loss = _case(seed, candidates)
    weights = selection.greedy(predictions, loss, rounds=8)
    assert weights.sum() == pytest.approx(1.0)
    assert loss(np.tensordot(weights, predictions, axes=1)) <= min(map(loss, predictions)) + 1e-12
    np.testing.assert_array_equal(weights, selection.greedy(predictions, loss, rounds=8))


def test_of_equal_candidates_the_first_has_all():
    predictions, loss = _case(0, 1)
    assert selection.greedy(np.repeat(predictions, 3, axis=0), loss).tolist() == [1.0, 0.0, 0.0]


def test_weights_of_few_rows_are_near_equal_ones():
    weights = np.array([1.0, 0.0])
    assert selection.smoothed(weights, 100, 100).tolist() == [0.75, 0.25]
    assert selection.smoothed(weights, 10**9, 100) == pytest.approx([1.0, 0.0], abs=1e-6)
    assert selection.smoothed(weights, 0, 100).tolist() == [0.5, 0.5]
