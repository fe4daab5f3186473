"""Metrics of a sample of predictions: accuracy, macro-F1, AUROC, AUPRC, calibration error and Brier score.

Their definitions, chosen so that small groups get an honest value or none:

- macro-F1 averages over the classes present in the labels or in the predictions (scikit-learn's default);
- AUROC and AUPRC of a two-class problem are those of class 1; with more classes they are one-vs-rest and averaged,
  unweighted, over the classes of which the sample holds both a case and a non-case. The notes name classes left out;
  with no class left the value is None;
- ECE is the expected calibration error of the most probable class over 15 equal-width bins (Guo et al., 2017);
- the Brier score (1950) is half the mean squared distance between the probabilities and the true class: 0 is best, 1
  worst. With two classes it is the mean squared error of the probability of class 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ECE_BINS = 15
TUNED = "macro_f1_tuned"  # macro-F1 of answers by factors of probabilities that tuning rows chose

Value = tuple[float | None, str]
"""A value, and a note on why it is None or covers only some of the classes; the note is empty for all other values."""


class Metric(NamedTuple):
    """A metric: its title in tables, and (labels int [n], probabilities [n, c]) -> its value, with n at least 1."""

    title: str
    of: Callable[[np.ndarray, np.ndarray], Value]


def compute(labels: np.ndarray, probabilities: np.ndarray) -> tuple[dict[str, float | None], dict[str, str]]:
    """Computes all metrics of predictions from class indices, int [n], and predicted probabilities [n, c], c >= 2.

    Returns `(values, notes)`: the values of `METRICS` (None where one cannot be computed), and the reason for each
    value that is None or covers only some of the classes. A ValueError says that the shapes disagree, a label is not a
    class, or a probability is not finite.
    """
    _check(labels, probabilities)
    if not len(labels):
        return dict.fromkeys(METRICS), dict.fromkeys(METRICS, "no samples")
    found = {name: metric.of(labels, probabilities) for name, metric in METRICS.items()}
    return {name: value for name, (value, _) in found.items()}, {name: why for name, (_, why) in found.items() if why}


def accuracy(labels: np.ndarray, probabilities: np.ndarray) -> Value:
    """Returns the share of samples whose most probable class is the true one."""
    return float((probabilities.argmax(1) == labels).mean()), ""


def macro_f1(labels: np.ndarray, probabilities: np.ndarray) -> Value:
    """Returns the mean F1 score over the classes among the labels or the predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, probabilities.argmax(1), average="macro", zero_division=0)), ""


def auroc(labels: np.ndarray, probabilities: np.ndarray) -> Value:
    """Returns the area under the ROC curve, averaged over the classes for which it is defined."""
    from sklearn.metrics import roc_auc_score

    return _one_against_rest(roc_auc_score, labels, probabilities)


def auprc(labels: np.ndarray, probabilities: np.ndarray) -> Value:
    """Returns the average precision, averaged over the classes for which it is defined."""
    from sklearn.metrics import average_precision_score

    return _one_against_rest(average_precision_score, labels, probabilities)


def _one_against_rest(
    area: Callable[[np.ndarray, np.ndarray], float], labels: np.ndarray, probabilities: np.ndarray
) -> Value:
    """Returns the mean of an area over the classes for which it is defined."""
    classes = probabilities.shape[1]
    use = defined_classes(labels, classes)
    if not use:
        return None, "all samples are of one class"
    value = float(np.mean([area(labels == k, probabilities[:, k]) for k in use]))
    if classes == 2 or len(use) == classes:
        return value, ""
    absent = ", ".join(str(k) for k in range(classes) if k not in use)
    return value, f"mean over {len(use)} of {classes} classes; no sample is of class {absent}"


def defined_classes(labels: np.ndarray, classes: int) -> list[int]:
    """Returns the classes with both a case and a non-case in `labels` [n], so that one-vs-rest metrics are defined.

    For two classes the answer is [1] or nothing: class 1 is the positive one.
    """
    counts = np.bincount(labels, minlength=classes)
    defined = np.flatnonzero((counts > 0) & (counts < len(labels)))
    return [1] if classes == 2 and len(defined) else defined.tolist()


def reliability_curve(
    labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS
) -> list[dict[str, float | int]]:
    """Computes the reliability curve of the most probable class from labels, int [n], and probabilities [n, c].

    Of the equal-width bins (low, high] over confidence (0 falls into the first) it has those that hold samples, in
    order: `low`, `high`, `n`, mean `confidence` and `accuracy`.
    """
    if not len(labels):
        return []
    confidence = np.asarray(probabilities, np.float64).max(1)
    correct = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    curve = []
    for b in np.unique(index):
        inside = index == b
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        curve.append({"low": float(b / bins), "high": float((b + 1) / bins), "n": int(inside.sum()), **means})
    return curve


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Returns the expected calibration error, Σ n_bin/n · |accuracy - confidence| over the bins."""
    curve = reliability_curve(labels, probabilities, bins)
    return float(sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / len(labels))


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns ½ · mean over samples of Σ_k (p_k - [label is k])², between 0 and 1."""
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((np.asarray(probabilities, np.float64) - truth) ** 2).sum(axis=1).mean() / 2)


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or probabilities.shape[1] < 2:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} should be [n] and [n, c >= 2]")
    if len(labels) and not (labels.min() >= 0 and labels.max() < probabilities.shape[1]):
        raise ValueError(f"labels lie in [{labels.min()}, {labels.max()}], not in [0, {probabilities.shape[1] - 1}]")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not finite")


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", accuracy),
    "macro_f1": Metric("Macro-F1", macro_f1),
    "auroc": Metric("AUROC", auroc),
    "auprc": Metric("AUPRC", auprc),
    "ece": Metric("ECE", lambda labels, probabilities: (calibration_error(labels, probabilities), "")),
    "brier": Metric("Brier", lambda labels, probabilities: (brier_score(labels, probabilities), "")),
}
"""Every metric by its name in report.json."""
