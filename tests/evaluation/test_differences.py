from functools import partial

import numpy as np
import polars as pl
import pytest
from scipy.stats import t

from remind_jax.evaluation import fairness, intervals
from remind_jax.evaluation.differences import difference, drawn_together
from remind_jax.evaluation.intervals import patient_weights
from remind_jax.evaluation.judge import rarer_of_classes, weighed_of_classes
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


def test_ranks_need_five_patients_with_the_rarer_outcome_on_each_side():
    people, score = np.arange(80), np.random.default_rng(0).uniform(size=80)
    sex = {"sex": pl.Series(np.where(people < 30, "f", "m"))}
    for cases in (4, 5):
        labels = ((people < cases) | (people >= 60)).astype(int)
        of = weighed_of_classes(labels, np.stack([1 - score, score], axis=1))
        options = {"rarer": partial(rarer_of_classes, labels, people), "seed": 0, "resamples": 200}
        gaps = {gap["figure"]: gap for gap in fairness.gaps(sex, of, intervals.NAMES, people, **options)}
        assert all(gaps[name]["ci"] for name in ("accuracy", "macro_f1"))
        for name in ("auroc", "auprc"):
            assert gaps[name]["difference"] is not None
            assert (gaps[name]["ci"] is None) == (gaps[name]["p"] is None) == (cases == 4)
        few = gaps["auroc"]["note"] == "4 patients with the rarer outcome are too few"
        assert few == (cases == 4)  # of five, a resample lacks all


def test_intervals_of_f1_differences_hold_the_truth_where_a_class_is_hardly_ever_predicted():
    held = coverage.coverage("differences", (100, 1, 0.0), 0.93, draws=60)
    assert held["macro_f1, two models"][0] > 0.92  # .80 without draws of what no sample shows
