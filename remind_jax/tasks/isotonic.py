"""Recalibration by curves that never fall: what share of tuning samples had an outcome whose chance was told so.

A curve is the isotonic regression of outcomes on chances. Each of its steps becomes one point, the mean chance and the
share of cases in it, with straight lines between (centred isotonic regression, Oron and Flournoy 2017), so that other
rounding of a chance moves the result by as little. Shares stay a case away from 0 and 1.
"""

from typing import Any

import numpy as np

Curve = tuple[tuple[float, ...], tuple[float, ...]]
"""Chances, ascending, and the shares that take their place; below the first and above the last they are level."""


def fit(chances: np.ndarray, cases: np.ndarray) -> Curve:
    """Fits a curve to the chances [n] of samples and whether they are cases, bool [n]."""
    from scipy.optimize import isotonic_regression

    at, place, counts = np.unique(np.asarray(chances, np.float64), return_inverse=True, return_counts=True)
    steps = isotonic_regression(np.bincount(place, cases) / counts, weights=counts)
    starts, least = steps.blocks[:-1], 1 / (len(cases) + 2)
    middles = np.add.reduceat(at * counts, starts) / np.add.reduceat(counts, starts)
    return tuple(middles.tolist()), tuple(np.clip(steps.x[starts], least, 1 - least).tolist())


def along(curves: tuple[Curve, ...], chances: Any) -> Any:
    """Puts each column of chances, a numpy or JAX array [n, k], through its curve; the type stays."""
    xp = chances.__array_namespace__()
    columns = [
        xp.interp(chances[:, k], *(xp.asarray(one, dtype=chances.dtype) for one in curve))
        for k, curve in enumerate(curves)
    ]
    return xp.stack(columns, axis=-1).astype(chances.dtype)
