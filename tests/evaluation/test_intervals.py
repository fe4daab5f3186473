import numpy as np
import pytest
from scipy.stats import gamma, t
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from remind_jax.evaluation.intervals import (
    CORRELATION,
    ERROR,
    FIT,
    RANK,
    SHARE,
    SQUARE,
    Spread,
    exact_interval,
    exact_share,
    f1,
    interval,
    intervals,
    patient_weights,
    spread_of,
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


# docs/intervals.md has what they hold in all worlds.
HELD = [
    ("numbers", (30, 2, 0.3), 0.85, ("mae", "spearman", "coverage")),
    ("numbers", (200, 1, 0.0), 0.85, ("rmse", "r2")),
    ("classes", (60, 1, 0.0), 0.6, ("accuracy", "auroc", "auprc", "sensitivity", "ppv")),
    ("classes", (100, 1, 0.0), 0.85, ("accuracy", "auroc", "specificity", "npv")),
    ("differences", (100, 1, 0.0), 0.6, ("accuracy, two models", "auroc, two models", "accuracy, two groups")),
]


@pytest.mark.slow  # hundreds of bootstraps each
@pytest.mark.parametrize(("world", "shape", "rate", "figures"), HELD)
def test_intervals_hold_the_truth_in_95_of_100_samples(world, shape, rate, figures):
    held = coverage.coverage(world, shape, rate, draws=600)
    for figure in figures:
        assert 0.935 - 0.018 <= held[figure].share <= 0.965 + 0.015, figure  # and what 600 draws may be off


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
    # Less what the noise of 450 draws adds to squares and fourth powers, see the next test.
    square = np.sum(np.square(influence)) / (1 + 45 / 450)
    kurtosis = 45 * (np.sum(np.power(influence, 4)) / square**2 - 6 / 450 - 3 * 45 / 450**2)
    whole = roc_auc_score(labels, p[:, 1])
    reach = t.ppf(0.975, 2 * 44 / (kurtosis - 1)) * np.std(slow, ddof=1) * (45 / 44) ** 0.5 / (whole * (1 - whole))
    expected = [1 / (1 + (1 - whole) / whole * np.exp(-sign * reach)) for sign in (-1, 1)]
    np.testing.assert_allclose(got["auroc_ci"], expected, atol=1e-9)
    assert notes == {}
    assert intervals(labels, p, owner, seed=9, resamples=450)[0] == got
    assert intervals(labels, p, owner, seed=10, resamples=450)[0] != got


FORMS = [(RANK, 0.8), (SHARE, 0.8), (ERROR, 3.0), (SQUARE, 3.0), (CORRELATION, -0.4), (FIT, 0.3), (FIT, -2.0)]


@pytest.mark.parametrize(("form", "value"), FORMS)
def test_every_form_is_students_where_the_spread_is_small(form, value):
    slope = 2 * value if form is SQUARE else 1.0
    low, high = form.bounds(value**form.power, Spread(1e-5 * slope, 30.0, 0.0, 31))
    ends = np.array([low, high]) ** (1 / form.power) - value
    np.testing.assert_allclose(ends, [-t.ppf(0.975, 30) * 1e-5, t.ppf(0.975, 30) * 1e-5], rtol=0.01)


def test_shares_have_wilsons_interval_of_as_many_samples_as_spread_alike():
    share, n = 0.9, 50
    spread = Spread((share * (1 - share) / n) ** 0.5, 3.0, 0.0, 51)
    z = t.ppf(0.975, 50)
    roots = np.roots([1 + z * z / n, -2 * share - z * z / n, share * share])  # of (share - x)² = z² x (1 - x) / n
    np.testing.assert_allclose(SHARE.bounds(share, spread), sorted(roots), atol=1e-12)


def test_skewed_errors_reach_further_up():
    low, high = ERROR.bounds(1.0, Spread(0.2, 30.0, 0.3, 31))
    even = ERROR.bounds(1.0, Spread(0.2, 30.0, 0.0, 31))
    assert 0 < even[0] < low < 1
    assert high - 1 > 1.4 * (even[1] - 1)
    assert ERROR.bounds(0.1, Spread(0.2, 30.0, 0.3, 31))[0] == 0
    # Hall's inverse: the bound's own cubed statistic, t + lean t² / 3 + lean² t³ / 27 + lean / 6, is -t of Student.
    lean, at = 1.5 * 0.3, (1 - high) / 0.2
    assert at + lean * at**2 / 3 + lean**2 * at**3 / 27 + lean / 6 == pytest.approx(-t.ppf(0.975, 30))


@pytest.mark.parametrize("resamples", [200, 1_000])
def test_skewness_and_kurtosis_are_those_of_the_patients_for_any_number_of_draws(resamples):
    values = np.random.default_rng(2).exponential(size=100)
    apart, found = values - values.mean(), []
    for seed in range(40):
        counts = np.concatenate(list(patient_weights(np.arange(100), 100, seed, resamples=resamples)))
        found.append(spread_of(counts @ values / 100, counts, 100))
    skew = np.mean(apart**3) / np.mean(apart**2) ** 1.5 * (100 * 99) ** 0.5 / 98 / 10
    assert np.mean([one.skew for one in found]) == pytest.approx(skew, rel=0.1)
    freedom = 198 / (np.mean(apart**4) / np.mean(apart**2) ** 2 - 1)
    assert np.mean([1 / one.freedom for one in found]) == pytest.approx(1 / freedom, rel=0.1)
    assert np.mean([one.deviation for one in found]) == pytest.approx(values.std(ddof=1) / 10, rel=0.02)


def test_f1_adds_half_a_count_of_each_kind():
    hits, there = np.array([0.0, 3.0]), np.array([4.0, 8.0])
    np.testing.assert_allclose(f1(hits, there), [0.0, 0.75])
    mean = f1(hits, there, lambda mean, shape: np.full(shape, mean))
    np.testing.assert_allclose(mean, [2 * 0.5 / (4 + 2), 2 * 3.5 / (8 + 2)])
    drawn = f1(np.zeros(20_000), np.full(20_000, 4.0), np.random.default_rng(0).standard_gamma)
    right, wrong = (gamma(a).rvs(20_000, random_state=i) for i, a in enumerate((0.5, 1.0)))
    assert drawn.mean() == pytest.approx(np.mean(2 * right / (4 + 2 * right + wrong)), abs=0.005)


def test_a_class_never_hit_does_not_narrow_the_interval_of_macro_f1():
    labels = (np.arange(60) % 10 == 0).astype(int)  # six cases, and none of three calls is right
    p_1 = np.where(np.isin(np.arange(60), (1, 2, 3)), 0.9, 0.1)
    values, _ = intervals(labels, np.stack([1 - p_1, p_1], axis=1), np.arange(60), seed=0)
    low, high = values["macro_f1_ci"]
    assert low < f1_score(labels, p_1 > 0.5, average="macro") < high
    assert high > 0.5 * (f1_score(labels, p_1 > 0.5, pos_label=0) + 0.3)  # F1 of the class may well be .3


def test_macro_f1_is_marked_where_a_class_lacks_or_five_patients_have_it_and_none_is_found():
    p_1 = np.where(np.arange(60) < 3, 0.9, 0.1)  # three are called
    for cases, marked in (
        ([], True),
        ([9], False),
        (range(9, 13), False),
        (range(9, 14), True),
        ([0, *range(9, 14)], False),
    ):
        labels = np.isin(np.arange(60), cases).astype(int)
        values, notes = intervals(labels, np.stack([1 - p_1, p_1], axis=1), np.arange(60), seed=0, resamples=100)
        assert values["macro_f1_ci"]
        why = "likely too narrow: of 1 of 2 classes no sample is there, or none is found"
        assert (notes.get("macro_f1_ci") == why) == marked, cases


def test_one_case_has_the_exact_interval_of_one():
    labels = (np.arange(60) == 7).astype(int)
    p_1 = np.linspace(0, 1, 60) * 0.9
    values, notes = intervals(labels, np.stack([1 - p_1, p_1], axis=1), np.arange(60), seed=0)
    assert values["auroc_ci"] == exact_share(7 / 59, 1)
    assert "over the 1 with" in notes["auroc_ci"]
    wider = values["auroc_ci"][1] - values["auroc_ci"][0]
    assert wider > 0.9  # which says that one case says nothing


def test_few_patients_who_decide_widen_the_interval():
    rng = np.random.default_rng(0)
    counts = np.concatenate(list(patient_weights(np.arange(40), 40, 0, resamples=400)))
    even, few = np.where(np.arange(40) % 2, 1.0, -1.0), np.where(np.arange(40) < 3, 1.0, -3 / 37)
    widths = []
    for parts in (even, few):
        drawn = 0.5 + counts @ parts * (0.02 / (counts @ parts).std())  # of the same spread
        low, high = interval(0.5, drawn, counts, 40, RANK, "x")[0]
        assert low < 0.5 < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.02 * (40 / 39) ** 0.5, rel=0.02)  # all alike: a normal's
    assert 1.1 < widths[1] / widths[0] < 1.6  # three decide
    noisy = rng.normal(0.5, 0.02, 400)
    assert np.ptp(interval(0.5, noisy, counts, 40, RANK, "x")[0]) > widths[0]


def test_blocks_of_patients_tell_the_same_as_patients():
    rng, found = np.random.default_rng(1), []
    values = rng.normal(size=400)
    counts = np.concatenate(list(patient_weights(np.arange(400), 400, 0, resamples=1_000)))
    drawn = 3 + counts @ values / 400
    for blocks in (400, 100):
        some = counts.reshape(1_000, blocks, -1).sum(axis=2)
        found.append(interval(3.0, drawn, some, 400, ERROR, "x")[0])
    np.testing.assert_allclose(*found, rtol=1e-3)


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
    np.testing.assert_allclose(values["auroc_ci"], [0.025 ** (1 / 20), 1.0])  # half have the rarer outcome
    assert "over the 20 with the rarer outcome" in notes["auroc_ci"]
    assert values["macro_f1_ci"][1] == 1.0


def test_one_class_sample_has_no_ranking_interval():
    labels, p = np.zeros(40, int), sample(40, 2, 0)[1]
    values, notes = intervals(labels, p, np.arange(40), seed=0)
    assert values["auroc_ci"] is None
    assert "undefined" in notes["auroc_ci"]
    assert values["accuracy_ci"] is not None


def test_rare_class_is_counted_in_the_note():
    labels, p = sample(60, 2, 8)
    labels = np.zeros(60, int)
    labels[:3] = 1
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
