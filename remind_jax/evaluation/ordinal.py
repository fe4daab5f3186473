"""Figures of ordered classes, next to those of all classes: how far off predictions are.

The predicted class is the most probable one, as for accuracy. The mean absolute error counts classes between it and the
true one; the quadratic weighted kappa compares squared distances with those of predictions dealt out at random: 1 is
best, 0 what chance gives.
"""

from typing import Any

import numpy as np

from remind_jax.evaluation import intervals, metrics

TITLES = {"qwk": "Weighted kappa", "mae": "MAE"}
_FORMS = {"mae": intervals.ERROR, "qwk": intervals.CORRELATION}
_WHY = {"mae": "no samples", "qwk": "labels and predictions are all of one class"}


def compute(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
) -> dict[str, Any]:
    """Returns the metrics of `metrics.METRICS` and of `TITLES` with their intervals and `notes`.

    Labels are class indices in the order of the classes, int [n], with probabilities [n, c] and patients [n].
    """
    options = {"seed": seed, "resamples": resamples}
    values, notes = metrics.compute(labels, probabilities)
    bounds, bound_notes = intervals.intervals(labels, probabilities, patients, **options)
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    of = lambda weights: weighted(labels, predicted, classes, weights)  # noqa: E731
    options |= {"forms": _FORMS, "lacks": "a second class"}
    more, more_notes = intervals.measured(of, _WHY, patients, **options)
    return {**values, **bounds, **more, "notes": {**notes, **bound_notes, **more_notes}}


def weighted(labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the figures of predicted classes, int [n], under rows of sample weights [r, n], [r] each."""
    apart = abs(labels - predicted)
    actual, claimed = (weights @ (each[:, None] == np.arange(classes)) for each in (labels, predicted))
    squares = (np.arange(classes)[:, None] - np.arange(classes)) ** 2
    total = weights.sum(1)
    by_chance = np.einsum("rc,rk,ck->r", actual, claimed, squares) / total
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa = np.where(by_chance > 0, 1 - weights @ apart**2 / by_chance, np.nan)
    return {"mae": weights @ apart / total, "qwk": kappa}
