import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from remind_jax.evaluation import intervals, metrics
from remind_jax.evaluation.ordinal import TITLES, compute, weighted


def certain(predicted, classes):
    return np.eye(classes)[np.asarray(predicted)]


def test_by_hand():
    labels, predicted = np.array([0, 1, 2, 2]), [0, 2, 2, 0]
    found = compute(labels, certain(predicted, 3), np.arange(4), seed=0)
    assert found["mae"] == 0.75  # 0, 1, 0, 2
    # squares 0 1 0 4; by chance: labels 1/4 1/4 1/2, predictions 1/2 0 1/2 -> 4 (1/8 + 1/4) + 1 (1/8 + 1/8) = 7/4
    assert found["qwk"] == pytest.approx(1 - (5 / 4) / (7 / 4))
    assert found["accuracy"] == 0.5
    assert {*metrics.METRICS, *TITLES} <= set(found)


@pytest.mark.parametrize("classes", [2, 5])
def test_kappa_equals_scikit_learns(classes):
    rng = np.random.default_rng(classes)
    labels, p = rng.integers(0, classes - 1, 200), rng.uniform(size=(200, classes))  # the last class is only predicted
    found = compute(labels, p, np.arange(200), seed=0, resamples=5)
    expected = cohen_kappa_score(labels, p.argmax(1), labels=range(classes), weights="quadratic")
    assert found["qwk"] == pytest.approx(expected, abs=1e-12)


def test_weights_equal_repeated_samples():
    rng = np.random.default_rng(3)
    labels, predicted = rng.integers(0, 4, 60), rng.integers(0, 4, 60)
    weights = np.concatenate(list(intervals.patient_weights(np.arange(60) // 2, 30, seed=4, resamples=6)))
    got = weighted(labels, predicted, 4, weights)
    for r, w in enumerate(weights.astype(int)):
        again = compute(np.repeat(labels, w), certain(np.repeat(predicted, w), 4), np.arange(w.sum()), seed=0)
        assert got["mae"][r] == pytest.approx(again["mae"], abs=1e-12)
        assert got["qwk"][r] == pytest.approx(again["qwk"], abs=1e-12)


def test_one_class_has_no_kappa():
    found = compute(np.ones(40, int), certain(np.ones(40, int), 3), np.arange(40), seed=0)
    assert (found["qwk"], found["qwk_ci"], found["mae"]) == (None, None, 0.0)
    assert "one class" in found["notes"]["qwk"]
    assert "same value" in found["notes"]["mae_ci"]


def test_a_far_miss_costs_more_than_a_near_one():
    labels = np.tile([0, 1, 2], 20)
    near, far = labels.copy(), labels.copy()
    near[0], far[0] = 1, 2
    one, other = (compute(labels, certain(p, 3), np.arange(60), seed=0) for p in (near, far))
    assert one["accuracy"] == other["accuracy"]
    assert one["qwk"] > other["qwk"]
    assert one["mae"] < other["mae"]
