import numpy as np
import pytest
from scipy.stats import binomtest, norm, t

from remind_jax.evaluation.differences import between, difference, drawn_together
from remind_jax.evaluation.intervals import patient_weights
from remind_jax.evaluation.judge import weighed_of_classes
from tests.evaluation import coverage


def test_differences_are_students_with_a_p_that_fits():
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1.0, 40)
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=2_000)))
    ci, p, note = difference(values.mean(), counts @ values / 40, counts, 40, "x")
    error = values.std(ddof=1) / 40**0.5
    assert np.mean(ci) == pytest.approx(values.mean())
    assert (ci[1] - ci[0]) / 2 / error == pytest.approx(t.ppf(0.975, 39), rel=0.05)
    assert p == pytest.approx(2 * t.sf(abs(values.mean()) / error, 39), rel=0.2)
    assert note is None
    assert (p < 0.05) == (ci[0] > 0 or ci[1] < 0)
    assert difference(0.1, np.full(9, 0.1), np.ones((9, 4)), 4, "x")[:2] == (None, None)


def calls_of(*called):
    """Two classes of 60 patients of which the first six are cases, with the answers of two models, to compare."""
    labels = (np.arange(60) < 6).astype(int)
    models = [weighed_of_classes(labels, np.eye(2)[np.isin(np.arange(60), each).astype(int)]) for each in called]

    def apart(weights, gamma=None):
        one, two = (model(np.arange(60), weights, gamma) for model in models)
        return {name: two[name] - one[name] for name in ("accuracy", "macro_f1")}

    return drawn_together(apart, np.arange(60), seed=0, resamples=400)


def test_f1_of_a_class_that_neither_model_finds_may_differ_by_a_case_found():
    found = calls_of([], [30])["macro_f1"]  # the second calls one, wrongly
    # F1 with half a hit, half a miss and half a false case more: of cases 1/8 and 1/9, of others 109/116 and 107/115.
    centre = ((1 / 9 - 1 / 8) + (107 / 115 - 109 / 116)) / 2
    assert np.mean(found.ci) == pytest.approx(centre)
    assert found.value == pytest.approx((2 * 53 / 113 - 2 * 54 / 114) / 2)
    one_hit = 2 / (6 + 1) / 2  # a model that finds one of the six and calls no other
    assert found.ci[0] < -one_hit < one_hit < found.ci[1]
    assert found.p > 0.5


@pytest.mark.parametrize("called", [[], [0, 30], range(60)])
def test_models_with_the_same_answers_differ_by_nothing(called):
    for one in calls_of(called, called).values():
        assert (one.value, one.ci, one.p) == (0.0, None, None)
        assert "every resample gives the same value" in one.note


def test_p_goes_with_an_interval_that_is_not_around_the_value():
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=400)))
    drawn = counts @ np.where(np.arange(40) % 2, 1.0, -1.0) / 40
    for value, centre in ((0.01, 0.6), (-0.01, 0.6), (0.6, 0.01), (-0.9, 0.6)):
        (low, high), p, _ = difference(value, drawn, counts, 40, "x", centre=centre)
        assert low <= value <= high
        assert (p < 0.05) == (low > 0 or high < 0), (value, centre)


def test_figures_that_compare_two_outcomes_need_five_patients_with_the_rarer():
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=100)))
    drawn = counts @ np.arange(40) / 800
    assert difference(0.9, drawn, counts, 40, "x", rare=5) == difference(0.9, drawn, counts, 40, "x")
    why = "4 patients with the rarer outcome are too few"
    assert difference(0.9, drawn, counts, 40, "x", rare=4) == (None, None, why)


def row(hits, n, **more):
    low, high = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return {"n": n, "n_patients": n, "x": hits / n, "x_ci": [low, high], "notes": {}} | more


def test_gaps_of_shares_are_newcombes():
    found = between(row(56, 70), row(48, 80), "x")
    assert found["ci"] == pytest.approx([0.0524, 0.3339], abs=5e-5)  # Newcombe 1998, method 10
    assert found["difference"] == pytest.approx(0.2)
    turned = between(row(48, 80), row(56, 70), "x")
    assert turned["ci"] == pytest.approx([-0.3339, -0.0524], abs=5e-5)
    assert found["p"] == turned["p"] == pytest.approx(2 * norm.sf(norm.ppf(0.975) * 0.2 / (0.2 - found["ci"][0])))
    assert "note" not in found
    for hits in range(40, 57):
        gap = between(row(hits, 70), row(48, 80), "x")
        assert (gap["p"] < 0.05) == (gap["ci"][0] > 0 or gap["ci"][1] < 0)
    assert between(row(42, 70), row(48, 80), "x")["p"] == 1.0


def test_gaps_say_why_they_have_no_interval_or_one_too_narrow():
    narrow = {"notes": {"x_ci": "likely too narrow: y"}}
    cases = {
        "the figure is undefined on a side": {"x": None},
        "a side has fewer than 30 samples or 10 patients": {"n_patients": 9},
        "a side has no interval: z": {"x_ci": None, "notes": {"x_ci": "z"}},
    }
    for why, more in cases.items():
        for sides in ((row(9, 40), row(9, 40, **more)), (row(9, 40, **more), row(9, 40))):
            found = between(*sides, "x")
            assert (found["ci"], found["p"], found["note"]) == (None, None, why)
    assert between(row(9, 40), row(9, 40, **narrow), "x")["note"] == "likely too narrow: y"
    assert between(row(9, 40), row(9, 40, notes={"x_ci": "exact"}), "x").get("note") is None


@pytest.mark.slow
def test_intervals_of_f1_differences_hold_the_truth_where_a_class_is_hardly_ever_predicted():
    held = coverage.coverage("differences", (100, 1, 0.0), 0.93, draws=60)
    assert held["macro_f1, two models"].share > 0.92  # .80 without draws of what no sample shows
