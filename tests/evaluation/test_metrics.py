import numpy as np
import pytest

from remind_jax.evaluation.metrics import calibration_error, compute, defined_classes, reliability_curve


def one_hot(classes, c, confidence=0.8):
    """Probabilities that put `confidence` on the named class and share the rest."""
    out = np.full((len(classes), c), (1 - confidence) / (c - 1))
    out[np.arange(len(classes)), classes] = confidence
    return out


def test_hand_derived_binary_figures():
    labels = np.array([0, 0, 1, 1])
    p1 = np.array([0.1, 0.6, 0.35, 0.8])
    values, notes = compute(labels, np.stack([1 - p1, p1], 1))
    assert values["accuracy"] == 0.5
    # class 0: tp 1, fp 1, fn 1 -> F1 1/2; class 1 the same
    assert values["macro_f1"] == pytest.approx(0.5)
    # pairs (case, control): .35>.1, .35<.6, .8>.1, .8>.6 -> 3 of 4
    assert values["auroc"] == pytest.approx(0.75)
    # by falling score: .8 case (P=1, R=1/2), .6, .35 case (P=2/3, R=1) -> 1/2 + 1/2 * 2/3
    assert values["auprc"] == pytest.approx(5 / 6)
    # of class 1: (.1² + .6² + .65² + .2²) / 4
    assert values["brier"] == pytest.approx(0.208125)
    assert notes == {}


def test_macro_f1_counts_only_classes_in_labels_or_predictions():
    values, _ = compute(np.array([0, 0, 1]), one_hot([0, 1, 1], 4))
    # class 0: 2/3, class 1: 2/3; classes 2 and 3 neither appear nor are predicted
    assert values["macro_f1"] == pytest.approx(2 / 3)


def test_brier_score_of_several_classes_lies_between_0_and_1():
    labels = np.array([0, 3])
    assert compute(labels, one_hot([0, 3], 4))[0]["brier"] == pytest.approx((0.2**2 + 3 * (0.2 / 3) ** 2) / 2)
    assert compute(labels, one_hot([0, 3], 4, 1.0))[0]["brier"] == 0
    assert compute(labels, one_hot([3, 0], 4, 1.0))[0]["brier"] == 1


def test_predicted_class_without_cases_counts_as_zero_f1():
    values, _ = compute(np.array([0, 0]), one_hot([0, 2], 3))
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_one_class_sample_has_no_ranking_figures():
    values, notes = compute(np.array([1, 1, 1]), one_hot([1, 1, 0], 2))
    assert values["auroc"] is None
    assert values["auprc"] is None
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert "one class" in notes["auroc"]


def test_class_absent_from_sample_is_left_out_and_named():
    labels = np.array([0, 2, 0, 2])
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.5, 0.1, 0.4]])
    values, notes = compute(labels, p)
    # class 0 scores: cases .7 .3, controls .1 .5 -> 3/4; class 2: cases .7 .4, controls .1 .4 -> (1+1+1+.5)/4
    assert values["auroc"] == pytest.approx((0.75 + 0.875) / 2)
    assert "2 of 3 classes" in notes["auroc"]
    assert notes["auroc"].endswith("class 1")


def test_empty_sample_is_null_with_a_reason():
    values, notes = compute(np.zeros(0, int), np.zeros((0, 3)))
    assert set(values.values()) == {None}
    assert set(notes) == set(values)
    assert reliability_curve(np.zeros(0, int), np.zeros((0, 3))) == []


def test_calibration_error_by_hand():
    # bin of .9: two right of two, gap .1; bin of .6: none right of two, gap .6
    labels = np.array([0, 1, 1, 1])
    p = np.array([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4], [0.6, 0.4]])
    assert calibration_error(labels, p) == pytest.approx(0.5 * 0.1 + 0.5 * 0.6)
    curve = reliability_curve(labels, p)
    assert [b["n"] for b in curve] == [2, 2]
    assert curve[0]["accuracy"] == 0.0


def test_calibrated_predictions_have_small_error():
    rng = np.random.default_rng(0)
    p1 = rng.uniform(size=20_000)
    labels = (rng.uniform(size=20_000) < p1).astype(int)
    assert calibration_error(labels, np.stack([1 - p1, p1], 1)) < 0.02
    assert calibration_error(labels, np.stack([p1, 1 - p1], 1)) > 0.3


def test_bin_edges_belong_to_the_lower_bin():
    curve = reliability_curve(np.array([0]), np.array([[0.5, 0.5]]), bins=2)
    assert (curve[0]["low"], curve[0]["high"]) == (0.0, 0.5)
    curve = reliability_curve(np.array([0]), np.array([[1.0, 0.0]]), bins=2)
    assert curve[0]["high"] == 1.0


def test_defined_classes():
    assert defined_classes(np.array([0, 1, 1]), 2) == [1]
    assert defined_classes(np.array([0, 0]), 2) == []
    assert defined_classes(np.array([0, 2, 2]), 4) == [0, 2]


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.array([0, 1]), np.ones((3, 2)), "should be"),
        (np.array([0, 2]), np.full((2, 2), 0.5), "not in"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), "finite"),
        (np.array([0]), np.ones((1, 1)), "should be"),
    ],
)
def test_bad_input_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        compute(labels, probabilities)
