"""Figures of predicted numbers: mean absolute and root mean squared error, R², Spearman's correlation, coverage.

All are in the unit of the values. R² compares squared errors with those of the sample's own mean, so it is below 0 for
predictions worse than that; Spearman's correlation gives tied values their mean rank. Coverage is the share of values
inside their predicted intervals, bounds included, and is next to the share that the intervals promise.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from remind_jax.evaluation import intervals

TITLES = {"mae": "MAE", "rmse": "RMSE", "r2": "R²", "spearman": "Spearman", "coverage": "Coverage"}
BIN, BINS = 20, 10  # least samples of a bin of the curve, and most bins
MIDDLE = (0.1, 0.9)
_FORMS = {
    "mae": intervals.ERROR,
    "rmse": intervals.SQUARE,
    "r2": intervals.FIT,
    "spearman": intervals.CORRELATION,
}
SOLID = 200
"""Patients from which on intervals of squared errors bear some that are much larger than the others."""
_WHY = {
    "mae": "no samples",
    "rmse": "no samples",
    "r2": "all values are equal",
    "spearman": "all values, or all predictions, are equal",
    "coverage": "the model predicts no intervals",
}


def compute(
    values: np.ndarray, predicted: np.ndarray, patients: np.ndarray, *, seed: int, resamples: int = intervals.RESAMPLES
) -> dict[str, Any]:
    """Returns the figures of `TITLES` with intervals and `notes`, None where one cannot be computed.

    `values` are float [n]; `predicted` [n, 3] are values and lower and upper bounds, or [n, 1] without bounds;
    `patients` [n] are drawn as in `intervals.resampled`. A ValueError says that the shapes disagree or a number is not
    finite.
    """
    if values.ndim != 1 or predicted.shape not in ((len(values), 1), (len(values), 3)):
        raise ValueError(f"values {values.shape} and predictions {predicted.shape} should be [n] and [n, 1] or [n, 3]")
    if not (np.isfinite(values).all() and np.isfinite(predicted).all()):
        raise ValueError("a value or a prediction is not finite")
    options = {"seed": seed, "resamples": resamples, "lacks": "a second value"}
    if predicted.shape[1] == 3:
        options["shares"] = {"coverage": _inside(values, predicted)}
    if (people := len(np.unique(patients))) < SOLID:
        why = f"if some errors are much larger, {people} patients may not have shown one"
        options["narrow"] = dict.fromkeys(("rmse", "r2"), why)
    of = lambda w: weighted(values, predicted, w)  # noqa: E731
    found, notes = intervals.measured(of, _WHY, patients, forms=_FORMS, **options)
    return found | {"notes": notes}


def by_prediction(values: np.ndarray, predicted: np.ndarray, typical: Callable[..., Any]) -> list[dict[str, Any]]:
    """Compares what is `typical`, a mean or a median, of predictions and values, in bins of equal size by prediction.

    Each bin has `n`, at least `BIN` samples, `predicted`, `observed`, and `middle`, the quantiles `MIDDLE` of values.
    """
    order = np.argsort(predicted, kind="stable")
    return [
        {
            "n": len(rows),
            "predicted": float(typical(predicted[rows])),
            "observed": float(typical(values[rows])),
            "middle": np.quantile(values[rows], MIDDLE).tolist(),
        }
        for rows in np.array_split(order, max(1, min(BINS, len(order) // BIN)))
        if len(rows) >= BIN
    ]


def weighted(values: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the figures under rows of sample weights [r, n] at once, [r] each, NaN where undefined.

    They are those of the samples repeated by weight.
    """
    total = weights.sum(1)
    errors = predicted[:, 0] - values
    squares = weights @ errors**2
    spread = _moments(weights, values - values.mean(), values - values.mean())
    covered = _inside(values, predicted).astype(float) if predicted.shape[1] == 3 else np.full(len(values), np.nan)
    ranks = _weighted_ranks(values, weights), _weighted_ranks(predicted[:, 0], weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        shared, first, second = (_moments(weights, *pair) for pair in (ranks, ranks[:1] * 2, ranks[1:] * 2))
        alike = (np.ptp(values) == 0) | (spread <= 0)
        return {
            "mae": weights @ abs(errors) / total,
            "rmse": np.sqrt(squares / total),
            "r2": np.where(alike, np.nan, 1 - squares / (total * spread)),
            "spearman": np.where(first * second > 0, shared / np.sqrt(first * second), np.nan),
            "coverage": weights @ covered / total,
        }


def _inside(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return (predicted[:, 1] <= values) & (values <= predicted[:, 2])


def _moments(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the weighted covariance of x and y, each [n] or [r, n], under weights [r, n], [r]."""
    total = weights.sum(1)
    mean_x, mean_y = ((weights * each).sum(1) / total for each in (x, y))
    return (weights * (x - mean_x[:, None]) * (y - mean_y[:, None])).sum(1) / total


def _weighted_ranks(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean rank that each of x [n] has among the samples repeated by weights [r, n], [r, n]."""
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    before, through = (np.searchsorted(ordered, x, side=side) for side in ("left", "right"))
    total = np.pad(np.cumsum(weights[:, order], axis=1), ((0, 0), (1, 0)))
    return (total[:, before] + total[:, through] + 1) / 2
