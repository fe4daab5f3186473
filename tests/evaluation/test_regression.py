import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from remind_jax.evaluation import intervals
from remind_jax.evaluation.regression import TITLES, by_prediction, compute, weighted


def sample(n, seed, decimals=1):
    """Values and predictions with ties, and intervals of which some miss."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.gamma(2.0, 3.0, n), decimals)
    predicted = np.round(values + rng.normal(size=n) * 2, decimals)
    return values, np.stack([predicted, predicted - 2, predicted + 2], 1)


def test_by_hand():
    values, predicted = np.array([1.0, 2.0, 4.0, 5.0]), np.array([[2.0, 1, 3], [2, 1, 3], [3, 1, 4], [6, 5.5, 7]])
    found = compute(values, predicted, np.arange(4), seed=0)
    assert found["mae"] == 0.75  # 1, 0, 1, 1
    assert found["rmse"] == pytest.approx(np.sqrt(3 / 4))
    assert found["r2"] == pytest.approx(1 - 3 / 10)  # squares around the mean of 3: 4, 1, 1, 4
    # ranks 1 2 3 4 and 1.5 1.5 3 4: covariance (1.5 + .5 + .25 + 2.25)/4 over the root of 5/4 * 4.5/4
    assert found["spearman"] == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    assert found["coverage"] == 0.75  # bounds belong to an interval: 1 in [1, 3], 4 in [1, 4]; 5 is below 5.5
    assert set(found) == {*TITLES, *(f"{name}_ci" for name in TITLES), "notes"}


def test_equal_to_scikit_learn_and_scipy():
    values, predicted = sample(300, 1)
    found = compute(values, predicted, np.arange(300), seed=0, resamples=10)
    assert found["mae"] == pytest.approx(mean_absolute_error(values, predicted[:, 0]), abs=1e-12)
    assert found["rmse"] == pytest.approx(root_mean_squared_error(values, predicted[:, 0]), abs=1e-12)
    assert found["r2"] == pytest.approx(r2_score(values, predicted[:, 0]), abs=1e-12)
    assert found["spearman"] == pytest.approx(spearmanr(values, predicted[:, 0]).statistic, abs=1e-12)


def test_weights_equal_repeated_samples():
    values, predicted = sample(80, 2, decimals=0)
    weights = np.concatenate(list(intervals.patient_weights(np.arange(80) // 2, 40, seed=3, resamples=6)))
    got = weighted(values, predicted, weights)
    for r, w in enumerate(weights.astype(int)):
        again = compute(np.repeat(values, w), np.repeat(predicted, w, axis=0), np.arange(w.sum()), seed=0, resamples=2)
        for name in TITLES:
            assert got[name][r] == pytest.approx(again[name], abs=1e-12), name


def test_intervals_are_those_of_a_plain_loop_over_patients():
    values, predicted = sample(90, 4)
    owner = np.repeat(np.arange(45), 2)
    found = compute(values, predicted, owner, seed=5, resamples=450)
    slow, weights = [], np.concatenate(list(intervals.patient_weights(owner, 45, 5, resamples=450)))
    for w in weights.astype(int):
        rows = np.repeat(np.arange(90), w)
        slow.append(spearmanr(values[rows], predicted[rows, 0]).statistic)
    whole, form = spearmanr(values, predicted[:, 0]).statistic, intervals.CORRELATION
    expected, _ = intervals.interval(whole, np.array(slow), weights[:, ::2], 45, form, "x")
    np.testing.assert_allclose(found["spearman_ci"], expected, atol=1e-9)
    middle = np.arctanh(found["spearman_ci"]).mean()
    assert middle == pytest.approx(np.arctanh(whole))
    assert list(found["notes"]) == ["rmse_ci", "r2_ci"]  # 45 patients are few for squares
    assert all(note.startswith("likely too narrow") for note in found["notes"].values())
    for n in (199, 200):
        assert (compute(*sample(n, 4), np.arange(n), seed=5, resamples=50)["notes"] == {}) == (n == 200)


@pytest.mark.parametrize(
    ("values", "predicted", "undefined"),
    [
        (np.full(40, 3.0), np.arange(40.0), {"r2", "spearman"}),
        (np.full(40, 0.1), np.arange(40.0), {"r2", "spearman"}),  # whose mean is not .1 in floating point
        (np.arange(40.0), np.full(40, 3.0), {"spearman"}),
        (np.array([2.0]), np.array([3.0]), {"r2", "spearman"}),
    ],
)
def test_what_cannot_be_computed_is_none_with_a_reason(values, predicted, undefined):
    predicted = np.stack([predicted, predicted - 1, predicted + 1], 1)
    found = compute(values, predicted, np.arange(len(values)), seed=0, resamples=20)
    assert {name for name in TITLES if found[name] is None} == undefined
    assert undefined <= set(found["notes"])
    assert all(found[f"{name}_ci"] is None for name in undefined)


def test_without_intervals_there_is_no_coverage():
    values, predicted = sample(50, 6)
    found = compute(values, predicted[:, :1], np.arange(50), seed=0, resamples=20)
    assert found["coverage"] is None
    assert "no intervals" in found["notes"]["coverage"]
    assert found["mae_ci"] is not None


def test_coverage_of_few_samples_has_the_exact_interval():
    values, predicted = np.zeros(5), np.tile([0.0, -1.0, 1.0], (5, 1))
    found = compute(values, predicted, np.arange(5), seed=0)
    np.testing.assert_allclose(found["coverage_ci"], [0.025 ** (1 / 5), 1.0])
    assert found["mae_ci"] is None


def test_no_samples():
    found = compute(np.zeros(0), np.zeros((0, 3)), np.zeros(0), seed=0)
    assert {found[name] for name in TITLES} == {None}
    assert set(found["notes"]) == {*TITLES, *(f"{name}_ci" for name in TITLES)}


@pytest.mark.parametrize(
    ("values", "predicted", "message"),
    [
        (np.zeros(2), np.zeros((3, 3)), "should be"),
        (np.zeros(2), np.zeros((2, 2)), "should be"),
        (np.array([np.nan]), np.zeros((1, 3)), "not finite"),
        (np.zeros(1), np.full((1, 3), np.inf), "not finite"),
    ],
)
def test_bad_input_is_refused(values, predicted, message):
    with pytest.raises(ValueError, match=message):
        compute(values, predicted, np.arange(len(values)), seed=0)


def test_bins_by_prediction_are_of_equal_size_and_say_what_was_observed():
    values, predicted = np.arange(100.0), np.arange(100.0)[::-1] * 2  # the largest prediction is of the smallest value
    bins = by_prediction(values, predicted, np.median)
    assert [b["n"] for b in bins] == [20] * 5
    first = bins[0]  # values 80 to 99
    assert (first["predicted"], first["observed"]) == (19.0, 89.5)
    np.testing.assert_allclose(first["middle"], [81.9, 97.1])
    assert by_prediction(values, predicted, np.mean)[-1]["observed"] == 9.5
    assert by_prediction(values[:19], predicted[:19], np.mean) == []
