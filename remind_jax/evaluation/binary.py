"""What a clinician reads first of an outcome that is there or not: figures at a threshold, curves, net benefit.

The threshold is chosen on tuning rows: the highest sensitivity + specificity - 1 (Youden 1950), of equal ones the
nearest to one half. Net benefit is that of Vickers and Elkin 2006: cases found, less other patients flagged, each
weighed by the odds of the threshold; all shares are of all samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from remind_jax.evaluation import intervals

FIGURES = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV"}
READ_AT = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds at which a page has figures next to the chosen one."""
BIN, BINS, POINTS = 20, 10, 60  # least samples of a bin of calibration, most bins, most points of a curve


def youden(labels: np.ndarray, risk: np.ndarray) -> float | None:
    """Returns the threshold of tuning samples, labels 0 or 1 [n] and risks [n]; None where one outcome lacks."""
    from sklearn.metrics import roc_curve

    if len(np.unique(labels)) < 2:
        return None
    false, true, at = roc_curve(labels, np.asarray(risk, np.float64), drop_intermediate=False)
    best = at[(true - false >= (true - false).max() - 1e-12) & np.isfinite(at)]
    return float(best[np.argmin(np.abs(best - 0.5))])


def counts(labels: np.ndarray, risk: np.ndarray, threshold: float) -> dict[str, int]:
    """Counts true and false, positive and negative answers; positive is a risk of at least the threshold."""
    case, called = labels == 1, risk >= threshold
    cells = {"tp": case & called, "fp": ~case & called, "fn": case & ~called, "tn": ~case & ~called}
    return {name: int(cell.sum()) for name, cell in cells.items()}


def compute(
    labels: np.ndarray,
    risk: np.ndarray,
    patients: np.ndarray,
    threshold: float,
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
) -> dict[str, Any]:
    """Reports samples with labels 0 or 1 [n], risks [n] and patients [n].

    Returns `threshold`, `prevalence`, `counts` as `counts`, the figures of `FIGURES` with `_ci`, None where nothing
    counts, `at` (`threshold`, counts and figures at the chosen threshold and those of `READ_AT`), and `roc`, `pr`,
    `net_benefit` and `calibration`, lists of points.
    """
    case, called = labels == 1, risk >= threshold
    shares = {
        "sensitivity": (called, case),
        "specificity": (~called, ~case),
        "ppv": (case, called),
        "npv": (~case, ~called),
    }
    found: dict[str, Any] = {"threshold": threshold, "prevalence": float(case.mean()) if len(case) else None}
    found["counts"], options = counts(labels, risk, threshold), {"seed": seed, "resamples": resamples}
    for name, (right, among) in shares.items():
        found |= _share(name, right[among], patients[among], **options)
    at = [{"threshold": t, **counts(labels, risk, t)} for t in sorted({*READ_AT, threshold})]
    curves = {"roc": _roc(case, risk), "pr": _pr(case, risk), "net_benefit": _net_benefit(case, risk)}
    return found | {"at": [one | _figures(one) for one in at], **curves, "calibration": calibration(labels, risk)}


def calibration(labels: np.ndarray, risk: np.ndarray) -> list[dict[str, Any]]:
    """Compares mean risk with the share of cases and its `ci` in bins of equal size, of at least `BIN` samples each."""
    bins = np.array_split(np.argsort(risk, kind="stable"), max(1, min(BINS, len(risk) // BIN)))
    return [
        {
            "n": len(rows),
            "predicted": float(risk[rows].mean()),
            "observed": float((labels[rows] == 1).mean()),
            "ci": intervals.exact_interval(labels[rows] == 1),
        }
        for rows in bins
        if len(rows) >= BIN
    ]


def _share(name: str, right: np.ndarray, patients: np.ndarray, **options: Any) -> dict[str, Any]:
    """Returns the share of true values in bool [k], and its interval."""
    if not len(right):
        return {name: None, f"{name}_ci": None}
    hits = right.astype(float)[:, None]

    def of(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: (weights @ hits)[:, 0] / weights.sum(1)}

    bounds, _ = intervals.resampled(of, [name], patients, shares={name: right}, **options)
    return {name: float(right.mean()), **bounds}


def _figures(cells: dict[str, int]) -> dict[str, float | None]:
    tp, fp, fn, tn = (cells[name] for name in ("tp", "fp", "fn", "tn"))
    parts = {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
    return {name: hits / among if among else None for name, (hits, among) in parts.items()}


def _roc(case: np.ndarray, risk: np.ndarray) -> list[list[float]]:
    """Returns points (1 - specificity, sensitivity)."""
    from sklearn.metrics import roc_curve

    return _thinned(*roc_curve(case, risk)[:2]) if 0 < case.sum() < len(case) else []


def _pr(case: np.ndarray, risk: np.ndarray) -> list[list[float]]:
    """Returns points (sensitivity, PPV)."""
    from sklearn.metrics import precision_recall_curve

    return _thinned(*precision_recall_curve(case, risk)[1::-1]) if 0 < case.sum() < len(case) else []


def _net_benefit(case: np.ndarray, risk: np.ndarray) -> list[list[float]]:
    """Returns points (threshold, net benefit of the model, of flagging everybody), up to the largest risks."""
    if not len(case):
        return []
    points, odds = np.linspace(0.01, max(0.05, min(0.95, float(np.quantile(risk, 0.99)))), POINTS), []
    for at in points:
        called, cost = risk >= at, at / (1 - at)
        model = (case & called).mean() - cost * (~case & called).mean()
        odds.append([float(at), float(model), float(case.mean() - cost * (~case).mean())])
    return odds


def _thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    """Returns points of a curve, at most `POINTS` of them, with both ends."""
    keep: Sequence[int] = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).round().astype(int)).tolist()
    return [[float(x[i]), float(y[i])] for i in keep]
