import numpy as np
import pytest
from scipy.stats import norm, t
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from remind_jax.evaluation.intervals import (
    CORRELATION,
    ERROR,
    FIT,
    SHARE,
    exact_interval,
    intervals,
    patient_weights,
    student,
    tail,
    weighted_metrics,
)
from remind_jax.evaluation.metrics import compute
from tests.evaluation import coverage


def sample(n, c, seed, *, ties=False, skill=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    logits = rng.normal(size=(n, c)) + skill * (labels[:, None] == np.arange(c))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return labels, np.round(p, 1) if ties else p


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_figures_equal_scikit_learns(ties):
    labels, p = sample(80, 3, 1, ties=ties)
    weights = np.random.default_rng(2).uniform(0.1, 3.0, size=(5, 80))
    got = weighted_metrics(labels, p, weights)
    for r, w in enumerate(weights):
        auroc = np.mean([roc_auc_score(labels == k, p[:, k], sample_weight=w) for k in range(3)])
        auprc = np.mean([average_precision_score(labels == k, p[:, k], sample_weight=w) for k in range(3)])
        f1 = f1_score(labels, p.argmax(1), average="macro", sample_weight=w)
        assert got["auroc"][r] == pytest.approx(auroc, abs=1e-12)
        assert got["auprc"][r] == pytest.approx(auprc, abs=1e-12)
        assert got["macro_f1"][r] == pytest.approx(f1, abs=1e-12)
        assert got["accuracy"][r] == pytest.approx(np.average(p.argmax(1) == labels, weights=w), abs=1e-12)


@pytest.mark.parametrize("c", [2, 3])
def test_integer_weights_equal_repeated_samples(c):
    labels, p = sample(60, c, 3, ties=True)
    weights = np.concatenate(list(patient_weights(np.arange(60) // 2, 30, seed=4, resamples=8)))
    got = weighted_metrics(labels, p, weights)
    for r, w in enumerate(weights.astype(int)):
        again, _ = compute(np.repeat(labels, w), np.repeat(p, w, axis=0))
        for name, values in got.items():
            assert values[r] == pytest.approx(again[name], abs=1e-12), name


def test_a_resample_without_a_class_is_undefined_not_averaged_over_fewer():
    labels, p = sample(20, 3, 5)
    weights = np.stack([np.ones(20), (labels != 2).astype(float)])
    got = weighted_metrics(labels, p, weights)
    assert np.isfinite(got["auroc"][0])
    assert np.isnan(got["auroc"][1])
    assert np.isnan(got["auprc"][1])
    assert np.isfinite(got["accuracy"]).all()


def test_patients_are_drawn_whole():
    owner = np.array([0, 0, 0, 1, 1, 2, 3, 3])
    weights = np.concatenate(list(patient_weights(owner, 4, seed=0, resamples=200)))
    for patient in range(4):
        block = weights[:, owner == patient]
        assert (block == block[:, :1]).all()
    per_patient = np.stack([weights[:, owner == k][:, 0] for k in range(4)], 1)
    assert (per_patient.sum(1) == 4).all()
    assert len(np.unique(per_patient, axis=0)) > 20


def test_weights_do_not_depend_on_the_chunk():
    owner = np.arange(7)
    whole = np.concatenate(list(patient_weights(owner, 7, seed=3, resamples=11)))
    pieces = list(patient_weights(owner, 7, seed=3, resamples=11, chunk=21))
    assert len(pieces) == 4
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    other = np.concatenate(list(patient_weights(owner, 7, seed=4, resamples=11)))
    assert not np.array_equal(whole, other)


def test_percentiles_are_further_out_with_fewer_patients():
    # Student's 2.5 % quantiles with 11 and 99 degrees of freedom are -2.20099 and -1.98422.
    assert tail(12) == pytest.approx(norm.cdf(-2.20099 * (12 / 11) ** 0.5), abs=1e-6)
    assert tail(100) == pytest.approx(norm.cdf(-1.98422 * (100 / 99) ** 0.5), abs=1e-6)
    assert 0.0249 < tail(10_000) < 0.025


# docs/intervals.md has what they and other forms hold in all worlds.
WORLDS = [
    ("accuracy", 12, 3, 0.3, 0.5),
    ("accuracy", 20, 2, 0.7, 0.5),
    ("mae", 12, 3, 0.3, 0.5),
    ("mae", 20, 2, 0.7, 0.5),
    ("auroc", 12, 3, 0.7, 0.8),
    ("auroc", 40, 1, 0.0, 0.9),
    ("auprc", 12, 3, 0.3, 0.5),
    ("brier", 12, 3, 0.3, 0.8),
    ("rmse", 20, 2, 0.7, 0.5),
    ("r2", 12, 3, 0.3, 0.5),
    ("c_index", 12, 3, 0.7, 0.8),
    ("macro_f1", 12, 3, 0.3, 0.5),
]


@pytest.mark.slow  # a thousand bootstraps each
@pytest.mark.parametrize(("figure", "patients", "each", "dependence", "rate"), WORLDS)
def test_intervals_hold_the_truth_in_95_of_100_samples(figure, patients, each, dependence, rate):
    held = coverage.coverage(figure, patients, each, dependence, rate, draws=1_000, every=False)[0]
    assert 0.935 - 0.007 <= held <= 0.965 + 0.012  # and what a thousand draws may be off


def test_interval_matches_a_plain_loop_bootstrap():
    labels, p = sample(90, 2, 6)
    owner = np.repeat(np.arange(45), 2)
    got, notes = intervals(labels, p, owner, seed=9, resamples=450)
    slow = []
    for w in np.concatenate(list(patient_weights(owner, 45, 9, resamples=450))).astype(int):
        rows = np.repeat(np.arange(90), w)
        slow.append(roc_auc_score(labels[rows], p[rows, 1]))
    counts = np.concatenate(list(patient_weights(np.arange(45), 45, 9, resamples=450)))
    influence = [np.cov(counts[:, i], slow)[0, 1] for i in range(45)]
    kurtosis = np.mean(np.power(influence, 4)) / np.mean(np.square(influence)) ** 2
    whole = roc_auc_score(labels, p[:, 1])
    reach = t.ppf(0.975, 2 * 44 / (kurtosis - 1)) * np.std(slow, ddof=1) * (45 / 44) ** 0.5 / (whole * (1 - whole))
    expected = [1 / (1 + (1 - whole) / whole * np.exp(-sign * reach)) for sign in (-1, 1)]
    np.testing.assert_allclose(got["auroc_ci"], expected, atol=1e-9)
    assert notes == {}
    assert intervals(labels, p, owner, seed=9, resamples=450)[0] == got
    assert intervals(labels, p, owner, seed=10, resamples=450)[0] != got


@pytest.mark.parametrize(("scale", "value"), [(SHARE, 0.8), (ERROR, 3.0), (CORRELATION, -0.4), (FIT, 0.3), (FIT, -2.0)])
def test_scales_go_there_and_back(scale, value):
    value = np.float64(value)
    assert scale.back(scale.of(value)) == pytest.approx(value)
    step = 1e-6
    assert (scale.of(value + step) - scale.of(value - step)) / (2 * step) == pytest.approx(scale.slope(value))
    assert scale.slope(value) > 0


def test_few_patients_who_decide_widen_the_interval():
    rng = np.random.default_rng(0)
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=400)))
    even, few = np.where(np.arange(40) % 2, 1.0, -1.0), np.where(np.arange(40) < 3, 1.0, -3 / 37)
    widths = []
    for parts in (even, few):
        drawn = 0.5 + counts @ parts * (0.02 / (counts @ parts).std())  # of the same spread
        low, high = student(np.float64(0.5), drawn, counts, 40, SHARE, "x")[0]
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.02 * (40 / 39) ** 0.5, rel=0.02)  # all alike: a normal's
    assert 1.1 < widths[1] / widths[0] < 1.6  # three decide
    noisy = rng.normal(0.5, 0.02, 400)
    assert np.ptp(student(np.float64(0.5), noisy, counts, 40, SHARE, "x")[0]) > widths[0]


def test_blocks_of_patients_tell_the_same_as_patients():
    rng, found = np.random.default_rng(1), []
    values = rng.normal(size=400)
    counts = np.concatenate(list(patient_weights(np.arange(400), 400, 0, resamples=1_000)))
    drawn = 3 + counts @ values / 400
    for blocks in (400, 100):
        some = counts.reshape(1_000, blocks, -1).sum(axis=2)
        found.append(student(np.float64(3.0), drawn, some, 400, ERROR, "x")[0])
    np.testing.assert_allclose(*found, rtol=1e-3)


def test_a_spread_beyond_the_figure_has_no_bounds():
    drawn = np.abs(np.random.default_rng(0).normal(1, 3, 200))
    value, why = student(np.float64(1.0), drawn, np.ones((200, 12)) + np.eye(200, 12), 12, ERROR, "x")
    assert value is None
    assert "too widely" in why


def test_correlated_samples_widen_the_interval():
    rng = np.random.default_rng(0)
    correct = np.repeat(rng.integers(0, 2, 50), 8)  # eight samples of a patient are all right or all wrong
    labels = np.tile([0, 1], 200)
    p = np.where((labels == 0)[:, None] == (correct == 1)[:, None], [[0.8, 0.2]], [[0.3, 0.7]])
    by_patient, _ = intervals(labels, p, np.repeat(np.arange(50), 8), seed=0)
    by_sample, _ = intervals(labels, p, np.arange(400), seed=0)
    width = np.diff(by_patient["accuracy_ci"]) / np.diff(by_sample["accuracy_ci"])
    assert 2.2 < width[0] < 3.6  # the design effect of 8 identical copies is √8 = 2.83


def test_coverage_of_accuracy_interval():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        right = rng.uniform(size=120) < 0.7
        p = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        labels = np.zeros(120, int)
        low, high = intervals(labels, p, np.arange(120), seed=trial, resamples=200)[0]["accuracy_ci"]
        hits += low <= 0.7 <= high
    assert 51 <= hits <= 60


def test_small_sample_takes_the_exact_interval():
    labels = np.zeros(5, int)
    p = np.tile([0.9, 0.1], (5, 1))
    values, notes = intervals(labels, p, np.arange(5), seed=0)
    np.testing.assert_allclose(values["accuracy_ci"], [0.025 ** (1 / 5), 1.0])  # 0.478, the paper's tiny group
    assert values["auroc_ci"] is None
    assert values["macro_f1_ci"] is None
    assert "5 samples" in notes["accuracy_ci"]
    assert "too few" in notes["macro_f1_ci"]


def test_several_samples_a_patient_are_noted():
    values, notes = intervals(np.zeros(6, int), np.tile([0.9, 0.1], (6, 1)), np.array(list("aabbcc")), seed=0)
    np.testing.assert_allclose(values["accuracy_ci"], [0.025 ** (1 / 3), 1.0])
    assert "3 patients, each counted as one of the 6 samples" in notes["accuracy_ci"]


def test_few_patients_with_many_samples_are_not_bootstrapped():
    labels, p = sample(60, 2, 0)
    values, notes = intervals(labels, p, np.arange(60) % 4, seed=0)
    assert values["auroc_ci"] is None
    assert "60 samples of 4 patients" in notes["auroc_ci"]


def test_all_right_is_not_reported_as_certain():
    labels = np.tile([0, 1], 20)
    p = np.where(labels[:, None] == [[0, 1]], 0.9, 0.1)
    values, notes = intervals(labels, p, np.arange(40), seed=0)
    np.testing.assert_allclose(values["accuracy_ci"], [0.025 ** (1 / 40), 1.0])
    assert values["auroc_ci"] is None
    assert "same value" in notes["auroc_ci"]


def test_one_class_sample_has_no_ranking_interval():
    labels, p = np.zeros(40, int), sample(40, 2, 0)[1]
    values, notes = intervals(labels, p, np.arange(40), seed=0)
    assert values["auroc_ci"] is None
    assert "undefined" in notes["auroc_ci"]
    assert values["accuracy_ci"] is not None


def test_rare_class_is_counted_in_the_note():
    labels, p = sample(60, 2, 8)
    labels = np.zeros(60, int)
    labels[:2] = 1
    values, notes = intervals(labels, p, np.arange(60), seed=0)
    assert values["auroc_ci"] is not None
    assert "lack a class" in notes["auroc_ci"]


def test_no_samples():
    values, notes = intervals(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), seed=0)
    assert set(values.values()) == {None}
    assert set(notes) == set(values)


def test_exact_interval_against_published_value():
    # 8 of 10: the classic Clopper-Pearson interval is 0.4439 to 0.9748
    np.testing.assert_allclose(exact_interval(np.arange(10) < 8), [0.4439, 0.9748], atol=1e-4)
