"""Figures of merit of one sample of predictions: accuracy, macro-F1, AUROC, AUPRC, calibration error and Brier score.

Definitions, chosen so that small groups get an honest figure or none (research: peers.md 5.5, no. 58):

- macro-F1 averages over the classes present in the labels or in the predictions (scikit-learn's default);
- AUROC and AUPRC of a two-class problem are those of class 1; with more classes they are one-vs-rest and averaged,
  unweighted, over the classes of which the sample holds both a case and a non-case. A class left out is named in the
  notes; with none left the figure is None;
- ECE is the expected calibration error of the most probable class over 15 equal-width bins (Guo et al., 2017);
- the Brier score (1950) is half the mean squared distance between the probabilities and the class that it was: 0 is
  best, 1 worst. With two classes it is the mean squared error of the probability of class 1.
"""

import numpy as np

NAMES = ("accuracy", "macro_f1", "auroc", "auprc", "ece", "brier")
ECE_BINS = 15


def metrics(labels: np.ndarray, probabilities: np.ndarray) -> tuple[dict[str, float | None], dict[str, str]]:
    """Figures of one sample of n predictions.

    Args:
      labels: class indices, int [n].
      probabilities: predicted probabilities, float [n, c], c >= 2.

    Returns:
      `(values, notes)`: the six figures of `NAMES` (fractions between 0 and 1, or None), and for each figure that is
      None or covers only some of the classes the reason.

    Raises:
      ValueError: if the shapes disagree, a label is not a class, or a probability is not finite.
    """
    from sklearn.metrics import f1_score

    _check(labels, probabilities)
    if not len(labels):
        return dict.fromkeys(NAMES), dict.fromkeys(NAMES, "no samples")
    predicted = probabilities.argmax(1)
    values: dict[str, float | None] = {
        "accuracy": float((predicted == labels).mean()),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }
    ranked, notes = _ranking(labels, probabilities)
    calibration = {"ece": calibration_error(labels, probabilities), "brier": brier_score(labels, probabilities)}
    return values | ranked | calibration, notes


def defined_classes(labels: np.ndarray, classes: int) -> list[int]:
    """Classes whose one-vs-rest ranking figures are defined in `labels` [n]: with both a case and a non-case.

    For two classes the answer is [1] or nothing: class 1 is the positive one.
    """
    counts = np.bincount(labels, minlength=classes)
    defined = np.flatnonzero((counts > 0) & (counts < len(labels)))
    return [1] if classes == 2 and len(defined) else defined.tolist()


def reliability(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> list[dict[str, float | int]]:
    """Reliability curve of the most probable class.

    Args:
      labels: class indices, int [n].
      probabilities: float [n, c].
      bins: number of equal-width bins (low, high] over confidence; a confidence of 0 falls into the first.

    Returns:
      The bins that hold samples, in order: `low`, `high`, `n`, mean `confidence` and `accuracy`.
    """
    if not len(labels):
        return []
    confidence = np.asarray(probabilities, np.float64).max(1)
    correct = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    curve = []
    for b in np.unique(index):
        inside = index == b
        curve.append(
            {
                "low": float(b / bins),
                "high": float((b + 1) / bins),
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    return curve


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """Expected calibration error: Σ_bins n_bin/n · |accuracy - confidence| over the bins of `reliability`."""
    curve = reliability(labels, probabilities, bins)
    return float(sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in curve) / len(labels))


def brier_score(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """½ · mean over samples of Σ_k (p_k - [label is k])²; between 0 and 1."""
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((np.asarray(probabilities, np.float64) - truth) ** 2).sum(axis=1).mean() / 2)


def _ranking(labels: np.ndarray, probabilities: np.ndarray) -> tuple[dict[str, float | None], dict[str, str]]:
    """AUROC and AUPRC over the classes for which they are defined."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    classes = probabilities.shape[1]
    use = defined_classes(labels, classes)
    if not use:
        return {"auroc": None, "auprc": None}, dict.fromkeys(("auroc", "auprc"), "all samples are of one class")
    values: dict[str, float | None] = {
        "auroc": float(np.mean([roc_auc_score(labels == k, probabilities[:, k]) for k in use])),
        "auprc": float(np.mean([average_precision_score(labels == k, probabilities[:, k]) for k in use])),
    }
    if classes > 2 and len(use) < classes:
        absent = ", ".join(str(k) for k in range(classes) if k not in use)
        return values, dict.fromkeys(
            values, f"mean over {len(use)} of {classes} classes; no sample is of class {absent}"
        )
    return values, {}


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or probabilities.shape[1] < 2:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} should be [n] and [n, c >= 2]")
    if len(labels) and not (labels.min() >= 0 and labels.max() < probabilities.shape[1]):
        raise ValueError(f"labels lie in [{labels.min()}, {labels.max()}], not in [0, {probabilities.shape[1] - 1}]")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not finite")
