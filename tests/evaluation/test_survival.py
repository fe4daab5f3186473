import numpy as np
import pytest
from sksurv import metrics as sksurv
from sksurv.nonparametric import CensoringDistributionEstimator, kaplan_meier_estimator
from sksurv.util import Surv

from remind_jax.evaluation import intervals
from remind_jax.evaluation.survival import (
    HORIZON,
    TITLES,
    Evaluation,
    Outcomes,
    Predicted,
    concordance,
    few_of,
    kaplan_meier,
    rarer,
    weighted_auroc,
)

TIMES = np.array([2.0, 4.0, 6.0, 9.0])
HORIZONS = (4.0, 6.0)


def sample(n, seed, *, ties=False):
    """Outcomes of which about half are censored, followed up to 12, and predictions that know something."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    event, censoring = rng.exponential(6 * np.exp(-0.7 * x)), np.minimum(rng.exponential(9, n), 12)
    time = np.minimum(event, censoring)
    if ties:
        time, x = np.ceil(time), np.round(x)
    hazard = 1 / (1 + np.exp(1.0 - 0.7 * x[:, None] - np.linspace(0, 0.5, 4)))
    known = Outcomes(time, event <= censoring)
    return known, Predicted(TIMES, np.cumprod(1 - hazard, axis=1))


def as_sksurv(known):
    return Surv.from_arrays(known.event, known.time)


def figures(known, predicted, rows=None, **options):
    n = len(known.time)
    rows = np.ones(n, bool) if rows is None else rows
    return Evaluation(known, predicted, HORIZONS).figures(rows, np.arange(n), **{"seed": 0, "resamples": 4} | options)


@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_scikit_survival(ties):
    known, predicted = sample(250, 1, ties=ties)
    if ties:
        assert len(np.unique(predicted.risk())) < 12
        assert len(np.unique(known.time)) < 15
    both, found, risk = as_sksurv(known), figures(known, predicted), predicted.risk()
    assert found["c_index"] == pytest.approx(
        sksurv.concordance_index_censored(known.event, known.time, risk)[0], abs=1e-12
    )
    assert found["c_uno"] == pytest.approx(sksurv.concordance_index_ipcw(both, both, risk, tau=6.0)[0], abs=1e-12)
    assert found["ibs"] == pytest.approx(
        sksurv.integrated_brier_score(both, both, predicted.survival, TIMES), abs=1e-12
    )
    for j, horizon in enumerate(HORIZONS):
        survival = predicted.survival[:, j + 1]
        auroc, brier = (found["horizons"][f"{horizon:g}"][name] for name in HORIZON)
        assert auroc == pytest.approx(sksurv.cumulative_dynamic_auc(both, both, 1 - survival, [horizon])[1], abs=1e-12)
        assert brier == pytest.approx(sksurv.brier_score(both, both, survival[:, None], [horizon])[1][0], abs=1e-12)


def test_some_samples_are_weighted_by_the_censoring_of_all():
    known, predicted = sample(250, 2)
    rows = np.arange(250) % 3 == 0
    found = figures(known, predicted, rows)
    whole, some, risk = as_sksurv(known), as_sksurv(known.take(rows)), predicted.risk()[rows]
    assert found["c_uno"] == pytest.approx(sksurv.concordance_index_ipcw(whole, some, risk, tau=6.0)[0], abs=1e-12)
    expected = sksurv.integrated_brier_score(whole, some, predicted.survival[rows], TIMES)
    assert found["ibs"] == pytest.approx(expected, abs=1e-12)
    alone = sksurv.integrated_brier_score(some, some, predicted.survival[rows], TIMES)
    assert abs(expected - alone) > 1e-4


def test_events_after_the_last_horizon_count_in_unos_concordance_only_if_asked():
    known, predicted = sample(250, 3)
    known = Outcomes(known.time, known.event & (known.time < known.time.max()))
    both, whole = as_sksurv(known), Evaluation(known, predicted, HORIZONS, until=np.inf)
    found = whole.figures(np.ones(250, bool), np.arange(250), seed=0, resamples=2)
    expected = sksurv.concordance_index_ipcw(both, both, predicted.risk())[0]
    assert found["c_uno"] == pytest.approx(expected, abs=1e-12)
    assert abs(found["c_uno"] - figures(known, predicted)["c_uno"]) > 1e-4


@pytest.mark.parametrize("ties", [False, True])
def test_kaplan_meier_equals_scikit_survivals(ties):
    known, _ = sample(120, 4, ties=ties)
    times, survival = kaplan_meier_estimator(known.event, known.time)
    found = kaplan_meier(known)
    np.testing.assert_allclose(found.times, times)
    np.testing.assert_allclose(found.values, survival, atol=1e-14)
    theirs = CensoringDistributionEstimator().fit(as_sksurv(known))
    at = np.concatenate([np.linspace(0, known.time.max(), 50), known.time])
    np.testing.assert_allclose(kaplan_meier(known, censoring=True).at(at), theirs.predict_proba(at), atol=1e-14)


def test_kaplan_meier_by_hand():
    known = Outcomes(np.array([1.0, 2, 2, 3, 4]), np.array([True, True, False, False, True]))
    found = kaplan_meier(known)
    np.testing.assert_allclose(found.values, [4 / 5, 3 / 5, 3 / 5, 0.0])
    np.testing.assert_allclose(found.at(np.array([0.0, 0.9, 1.0, 3.5, 9.0])), [1, 1, 0.8, 0.6, 0])
    # The event at 2 comes before the censoring at 2, of which three are then left to be seen.
    np.testing.assert_allclose(kaplan_meier(known, censoring=True).values, [1, 2 / 3, 1 / 3, 1 / 3])


def test_concordance_by_hand():
    known = Outcomes(np.array([1.0, 2, 2, 3]), np.array([True, True, False, False]))
    risk = np.array([0.5, 0.9, 0.5, 0.1])
    # of 1: .9 higher, .5 equal, .1 lower; of the event at 2: those censored at 2 and 3 are lower
    assert concordance(known, risk, np.ones((1, 4)), np.ones((1, 4)))[0, 0] == pytest.approx((0 + 0.5 + 1 + 2) / 5)


def test_auroc_of_weights_by_hand():
    score = np.array([0.1, 0.5, 0.5, 0.9])
    cases, controls = np.array([[0.0, 0, 1, 2]]), np.array([[1.0, 3, 0, 0]])
    # the case at .5, of weight 1, beats 1 and half of 3; that at .9, of weight 2, beats all 4
    assert weighted_auroc(score, cases, controls)[0] == pytest.approx((2.5 + 2 * 4) / (3 * 4))


def test_risk_and_survival_between_times():
    predicted = Predicted(np.array([1.0, 3.0]), np.array([[0.8, 0.2], [1.0, 1.0]]))
    # lost of 3: the area above 1 .. .8 .. .2, which is .1 + (.2 + .8)/2 * 2 = 1.1
    np.testing.assert_allclose(predicted.risk(), [1.1 / 3, 0.0])
    found = predicted.at(np.array([0.0, 0.5, 1.0, 2.0, 3.0, 7.0]))
    np.testing.assert_allclose(found[0], [1, np.sqrt(0.8), 0.8, 0.4, 0.2, 0.2])
    assert found[0, 2] == 0.8
    np.testing.assert_allclose(found[1], 1.0)


def test_survival_of_zero_stays_zero():
    found = Predicted(np.array([1.0, 2.0]), np.array([[0.5, 0.0]])).at(np.array([1.5, 2.0]))
    assert 0 <= found[0, 0] < 1e-9
    assert found[0, 1] == 0


def test_integer_weights_equal_repeated_samples():
    known, predicted = sample(60, 5, ties=True)
    evaluation, at = Evaluation(known, predicted, HORIZONS), np.arange(60)
    weights = np.concatenate(list(intervals.patient_weights(at // 2, 30, seed=6, resamples=5)))
    got = evaluation.weighted(at, weights)
    for r, w in enumerate(weights.astype(int)):
        again = evaluation.weighted(np.repeat(at, w), np.ones((1, w.sum())))
        for name, values in got.items():
            if not name.startswith(("ibs", "brier")):
                assert values[r] == pytest.approx(again[name][0], abs=1e-12), name


def test_brier_scores_of_all_samples_have_the_observation_of_their_weights():
    known, predicted = sample(60, 5, ties=True)
    evaluation, at = Evaluation(known, predicted, HORIZONS), np.arange(60)
    weights = np.concatenate(list(intervals.patient_weights(at // 2, 30, seed=6, resamples=5)))
    got, some = evaluation.weighted(at, weights), evaluation.weighted(at[:59], weights[:, :59])
    for r, w in enumerate(weights.astype(int)):
        rows = np.repeat(at, w)
        again = figures(known.take(rows), Predicted(TIMES, predicted.survival[rows]))
        assert got["ibs"][r] == pytest.approx(again["ibs"], abs=1e-12)
        assert [got[f"brier@{j}"][r] for j in (0, 1)] == pytest.approx(
            [each["brier"] for each in again["horizons"].values()], abs=1e-12
        )
        # Of some rows it is held fixed: a sum over these rows of parts of their own.
        each = [evaluation.weighted(at[i : i + 1], np.ones((1, 1)))["ibs"][0] for i in range(59)]
        assert some["ibs"][r] == pytest.approx(np.average(each, weights=weights[r, :59]), abs=1e-12)


def test_intervals_hold_the_figures_and_draw_patients():
    known, predicted = sample(200, 7)
    one = figures(known, predicted, resamples=200)
    for name in TITLES:
        assert one[f"{name}_ci"][0] < one[name] < one[f"{name}_ci"][1]
    twice = Outcomes(np.repeat(known.time, 2), np.repeat(known.event, 2))
    double = Evaluation(twice, Predicted(TIMES, np.repeat(predicted.survival, 2, axis=0)), HORIZONS)
    every, options = np.ones(400, bool), {"seed": 0, "resamples": 200}
    width = [
        np.diff(double.figures(every, who, **options)["ibs_ci"])[0] for who in (np.arange(400) // 2, np.arange(400))
    ]
    assert width[0] > 1.25 * width[1]  # √2 were it exact


def test_the_integrated_brier_score_is_marked_where_few_are_followed_to_its_end():
    known, predicted = sample(60, 7)
    for followed in (4, 5):
        time = np.where(np.arange(60) < followed, 10.0, np.minimum(known.time, 8.5))  # the last time below 10 is 9
        notes = figures(Outcomes(time, known.event & (time < 8.5)), predicted, resamples=50)["notes"]
        assert (notes.get("ibs_ci") == f"{intervals.NARROW}: 4 patients are followed to the last of its times") == (
            followed == 4
        )


def test_patients_on_whom_figures_hang_are_counted():
    time, event = np.array([1.0, 2, 3, 5, 5, 7, 8]), np.array([True, True, False, True, True, False, False])
    patients = np.array(list("aabcdef"))
    assert rarer(Outcomes(time, event), HORIZONS, patients) == [
        1,
        2,
    ]  # by 4 a against c, d, e, f; by 6 a, c, d, and e, f
    assert few_of(Outcomes(time, event), HORIZONS, patients) == {"c_uno": 3, "c_index": 3, "ibs": 1}


def test_brier_scores_of_few_who_are_followed_are_marked():
    known, predicted = sample(60, 7)
    time = np.where(np.arange(60) < 57, np.minimum(known.time, 5.0), 8.0)  # three are free of it at 6
    found = figures(Outcomes(time, known.event & (time < 5)), predicted, resamples=50)
    marked = [name for name, note in found["notes"].items() if note.startswith(intervals.NARROW)]
    assert marked == ["ibs_ci"]
    assert "brier_ci" not in found["horizons"]["4"]["notes"]
    assert found["horizons"]["6"]["notes"]["brier_ci"].startswith(f"{intervals.NARROW}: 3 patients")


def test_all_censored_is_none_with_a_reason():
    known, predicted = sample(80, 8)
    found = figures(Outcomes(known.time, np.zeros(80, bool)), predicted)
    assert (found["c_index"], found["c_uno"]) == (None, None)
    assert "event" in found["notes"]["c_index"]
    assert found["ibs"] is not None  # nobody's survival should have been below 1
    for horizon in found["horizons"].values():
        assert (horizon["events"], horizon["auroc"]) == (0, None)
        assert "event" in horizon["notes"]["auroc"]


def test_constant_predictions_are_worth_a_coin():
    known, predicted = sample(80, 9)
    found = figures(known, Predicted(TIMES, np.tile(predicted.survival[:1], (80, 1))))
    assert (found["c_index"], found["c_uno"]) == (0.5, 0.5)
    assert [horizon["auroc"] for horizon in found["horizons"].values()] == pytest.approx([0.5, 0.5], abs=1e-12)
    assert "same value" in found["notes"]["c_index_ci"]


def test_a_horizon_that_nobody_reaches():
    known, predicted = sample(80, 10)
    evaluation = Evaluation(known, predicted, (4.0, 500.0))
    found = evaluation.figures(np.ones(80, bool), np.arange(80), seed=0, resamples=2)
    assert found["horizons"]["4"]["brier"] is not None
    assert (found["horizons"]["500"]["brier"], found["horizons"]["500"]["auroc"]) == (None, None)
    assert "followed" in found["horizons"]["500"]["notes"]["brier"]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tiny_groups(rows):
    known, predicted = sample(60, 11)
    found = figures(known, predicted, np.arange(60) < rows)
    assert all(found[f"{name}_ci"] is None for name in TITLES)
    undefined = {name for name in TITLES if found[name] is None}
    assert undefined <= set(found["notes"])
    assert "c_index" in undefined if rows < 2 else True
    assert ("ibs" in undefined) == (rows == 0)


def test_the_last_time_of_a_censored_sample_has_no_infinite_weight():
    known, predicted = sample(60, 12)
    time, event = known.time.copy(), known.event.copy()
    time[:2], event[:2] = 20.0, (True, False)  # G is 0 at the event at 20
    found = Evaluation(Outcomes(time, event), predicted, HORIZONS, until=np.inf)
    values = found.figures(np.ones(60, bool), np.arange(60), seed=0, resamples=2)
    assert 0 < values["c_uno"] < 1
    assert 0 < values["ibs"] < 1


def test_calibration_of_true_survival_lies_on_the_diagonal():
    rng = np.random.default_rng(13)
    scale = rng.uniform(2, 12, 6000)
    event, censoring = rng.exponential(scale), rng.exponential(15, 6000)
    known = Outcomes(np.minimum(event, censoring), event <= censoring)
    truth = Predicted(TIMES, np.exp(-TIMES / scale[:, None]))
    curve = Evaluation(known, truth, HORIZONS).calibration(0, np.ones(6000, bool))
    assert [b["n"] for b in curve] == [600] * 10
    assert max(abs(b["predicted"] - b["observed"]) for b in curve) < 0.06
    wrong = Evaluation(known, Predicted(TIMES, truth.survival**2), HORIZONS).calibration(0, np.ones(6000, bool))
    assert max(abs(b["predicted"] - b["observed"]) for b in wrong) > 0.15


def test_calibration_of_few_samples():
    known, predicted = sample(70, 14)
    evaluation = Evaluation(known, predicted, HORIZONS)
    assert [b["n"] for b in evaluation.calibration(1, np.ones(70, bool))] == [35, 35]
    assert evaluation.calibration(1, np.arange(70) < 29) == []
    short = Evaluation(Outcomes(np.minimum(known.time, 3.0), known.event & (known.time <= 3)), predicted, HORIZONS)
    assert short.calibration(0, np.ones(70, bool))[0]["observed"] is None


def test_curves_by_risk_fall_in_order():
    known, predicted = sample(301, 15)
    curves = Evaluation(known, predicted, HORIZONS).curves()
    assert [curve["n"] for curve in curves] == [101, 100, 100]
    assert sum(curve["events"] for curve in curves) == known.event.sum()
    at_6 = [np.interp(6.0, curve["times"], curve["survival"]) for curve in curves]
    assert at_6[0] > at_6[1] > at_6[2]
    for curve in curves:
        assert (curve["times"][0], curve["survival"][0]) == (0.0, 1.0)
        assert (np.diff(curve["survival"])[:-1] < 0).all()
        assert curve["times"][-1] in known.time
        assert len(curve["times"]) == len(curve["survival"]) <= 202


@pytest.mark.parametrize(
    ("time", "survival", "times", "message"),
    [
        ([1.0, 2.0], [[0.5]], [1.0], "disagree"),
        ([-1.0], [[0.5]], [1.0], "negative"),
        ([np.nan], [[0.5]], [1.0], "not finite"),
        ([1.0], [[1.5]], [1.0], "between 0 and 1"),
        ([1.0], [[0.5, 0.4]], [2.0, 1.0], "ascend"),
        ([1.0], [[0.5]], [0.0], "ascend"),
    ],
)
def test_bad_input_is_refused(time, survival, times, message):
    known = Outcomes(np.array(time), np.ones(len(time), bool))
    with pytest.raises(ValueError, match=message):
        Evaluation(known, Predicted(np.array(times), np.array(survival)), HORIZONS)
