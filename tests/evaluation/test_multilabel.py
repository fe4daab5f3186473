import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from remind_jax.evaluation import intervals, multilabel
from remind_jax.evaluation.multilabel import TITLES, UNKNOWN, compute, f1_thresholds, weighted

NAMES = ("sepsis", "aki", "stroke")


def sample(n, seed, *, unknown=0.3, decimals=1):
    rng = np.random.default_rng(seed)
    labels = (rng.uniform(size=(n, 3)) < [0.5, 0.3, 0.2]).astype(int)
    p = np.round(np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0, 1), decimals)
    labels[rng.uniform(size=(n, 3)) < unknown] = UNKNOWN
    return labels, p


def test_by_hand():
    labels = np.array([[1, 0], [0, 1], [1, UNKNOWN], [UNKNOWN, 0]])
    p = np.array([[0.9, 0.2], [0.6, 0.6], [0.4, 0.9], [0.9, 0.6]])
    found = compute(labels, p, ("a", "b"), np.arange(4), seed=0)
    a, b = found["labels"]["a"], found["labels"]["b"]
    assert (a["n"], a["cases"], b["n"], b["cases"]) == (3, 2, 3, 1)
    assert a["auroc"] == 0.5  # cases .9 and .4 against .6
    assert b["auroc"] == 0.75  # .6 against .2 and .6
    assert a["f1"] == 0.5  # predicted .9 and .6: one hit, one miss, one false
    assert b["f1"] == pytest.approx(2 / 3)
    assert found["auroc_macro"] == 0.625
    # cells known: cases .9 .4 .6, others .6 .2 .6: .9 beats 3; .4 beats .2; .6 beats .2 and half of two
    assert found["auroc_micro"] == pytest.approx((3 + 1 + 2) / 9)
    assert found["f1_micro"] == pytest.approx(2 * 2 / (3 + 4))


@pytest.mark.parametrize("decimals", [1, 8])
def test_equal_to_scikit_learn_on_known_cells(decimals):
    labels, p = sample(200, 1, decimals=decimals)
    found = compute(labels, p, NAMES, np.arange(200), seed=0, resamples=5)
    for area, name in ((roc_auc_score, "auroc"), (average_precision_score, "auprc")):
        known = [labels[:, j] != UNKNOWN for j in range(3)]
        each = [area(labels[k, j], p[k, j]) for j, k in enumerate(known)]
        assert [found["labels"][n][name] for n in NAMES] == pytest.approx(each, abs=1e-12)
        assert found[f"{name}_macro"] == pytest.approx(np.mean(each), abs=1e-12)
        cells = labels != UNKNOWN
        assert found[f"{name}_micro"] == pytest.approx(area(labels[cells], p[cells]), abs=1e-12)


def test_equal_to_scikit_learns_means_where_all_is_known():
    labels, p = sample(150, 2, unknown=0.0)
    found = compute(labels, p, NAMES, np.arange(150), seed=0, resamples=5)
    for mean in ("macro", "micro"):
        assert found[f"auroc_{mean}"] == pytest.approx(roc_auc_score(labels, p, average=mean), abs=1e-12)
        assert found[f"auprc_{mean}"] == pytest.approx(average_precision_score(labels, p, average=mean), abs=1e-12)
        assert found[f"f1_{mean}"] == pytest.approx(f1_score(labels, p >= 0.5, average=mean), abs=1e-12)


def test_unknown_cells_count_in_nothing():
    labels, p = sample(120, 3)
    other = np.where(labels == UNKNOWN, 1 - p, p)
    assert not np.array_equal(p, other)
    assert compute(labels, p, NAMES, np.arange(120), seed=0) == compute(labels, other, NAMES, np.arange(120), seed=0)


def test_weights_equal_repeated_samples():
    labels, p = sample(90, 4)
    weights = np.concatenate(list(intervals.patient_weights(np.arange(90) // 2, 45, seed=5, resamples=6)))
    got = weighted(labels, p, p >= 0.5, weights)
    for r, w in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(90), w)
        again = compute(labels[rows], p[rows], NAMES, np.arange(len(rows)), seed=0, resamples=2)
        for name in TITLES:
            assert got[name][r] == pytest.approx(again[name], abs=1e-12), name


def test_a_label_of_one_class_is_left_out_of_the_means_and_named():
    labels, p = sample(80, 6)
    labels[:, 1] = np.where(labels[:, 1] == UNKNOWN, UNKNOWN, 0)
    found = compute(labels, p, NAMES, np.arange(80), seed=0, resamples=50)
    assert found["labels"]["aki"]["auroc"] is None
    assert "no case" in found["labels"]["aki"]["notes"]["auroc"]
    each = [found["labels"][name]["auroc"] for name in ("sepsis", "stroke")]
    assert found["auroc_macro"] == pytest.approx(np.mean(each))
    assert found["notes"]["auroc_macro"] == "mean over 2 of 3 labels, without aki"
    assert found["auroc_macro_ci"] is not None


def test_a_label_with_few_cases_marks_the_macro_means_and_has_an_exact_interval_of_its_own():
    labels, p = sample(80, 6, unknown=0.0)
    labels[:, 1] = np.arange(80) < 2
    found = compute(labels, p, NAMES, np.arange(80), seed=0, resamples=50)
    assert found["notes"]["auroc_macro_ci"].startswith("likely too narrow: of one class 2 patients")
    assert not any("narrow" in note for name, note in found["notes"].items() if "macro" not in name)
    of_one = found["labels"]["aki"]
    assert of_one["auroc_ci"] == intervals.exact_share(of_one["auroc"], 2)


def test_nothing_known_is_none_with_a_reason():
    found = compute(np.full((40, 3), UNKNOWN), sample(40, 7)[1], NAMES, np.arange(40), seed=0, resamples=20)
    assert {found[name] for name in TITLES} == {None}
    assert set(TITLES) <= set(found["notes"])
    assert found["labels"]["aki"]["n"] == 0
    assert found["labels"]["aki"]["notes"]["f1"] == "no samples"


def test_thresholds_have_the_best_f1():
    labels, p = sample(150, 8)
    thresholds = f1_thresholds(labels, p)
    for j in range(3):
        known = labels[:, j] != UNKNOWN
        slow = [f1_score(labels[known, j], p[known, j] >= t) for t in np.arange(-0.05, 1.05, 0.1)]
        assert f1_score(labels[known, j], p[known, j] >= thresholds[j]) == pytest.approx(max(slow))
    found = compute(labels, p, NAMES, np.arange(150), seed=0, resamples=2, thresholds=thresholds)
    plain = compute(labels, p, NAMES, np.arange(150), seed=0, resamples=2)
    assert all(found["labels"][name]["f1"] >= plain["labels"][name]["f1"] for name in NAMES)
    assert found["f1_macro"] > plain["f1_macro"]


def test_thresholds_of_labels_that_say_nothing():
    labels = np.array([[UNKNOWN, 0, 1], [UNKNOWN, 0, 1]])
    # The last label is always there: any threshold up to the lowest probability is best, and .3 the nearest to .5.
    np.testing.assert_array_equal(f1_thresholds(labels, np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7]])), [0.5, 0.5, 0.3])


@pytest.mark.parametrize(
    ("labels", "p", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((2, 2)), "should be"),
        (np.full((2, 3), 2), np.zeros((2, 3)), "none of 0, 1"),
        (np.zeros((2, 3), int), np.full((2, 3), np.nan), "finite"),
    ],
)
def test_bad_input_is_refused(labels, p, message):
    with pytest.raises(ValueError, match=message):
        compute(labels, p, NAMES, np.arange(2), seed=0)


def test_the_rarest_value_of_a_label_is_counted_in_patients():
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, -1], [0, 0]])
    patients = np.array(list("aabcde"))
    counts = multilabel.rarer(labels, patients)
    assert counts == {"auroc_macro": 2, "auprc_macro": 2, "auroc_micro": 3, "auprc_micro": 3}  # a, b; b, c; a, b, c
    some = multilabel.rarer(labels, patients, np.arange(6) < 2)  # all of one patient, none of whose values differ
    assert some == {"auroc_macro": 0, "auprc_macro": 0, "auroc_micro": 1, "auprc_micro": 1}
