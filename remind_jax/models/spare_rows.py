"""Spare rows in tables of combinations, so that splits with other numbers of combinations have the same programs.

The length of a table is part of a program. In programs tables have a row for each combination and spare ones, up to a
multiple of `EACH`; files and all others have no spare rows.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

EACH = 8
MOST = 2**16
"""Most numbers of a table that gets spare rows: of larger ones the work would be too much."""
_TABLE = re.compile(r"/group_router$|^imputation/group$")


def is_table(path: str) -> bool:
    """Tells whether the first axis of a parameter is that of combinations."""
    return _TABLE.search(path) is not None


def count(shapes: Mapping[str, Any], num_groups: int) -> int:
    """Returns how many spare rows the tables among parameters get, 0 where one is large."""
    is_small = all(math.prod(x.shape) <= MOST for path, x in shapes.items() if is_table(path))
    return -num_groups % EACH if is_small else 0


def shapes_with(shapes: Mapping[str, Any], spare: int) -> dict[str, Any]:
    """Returns the shapes of parameters whose tables have spare rows."""

    def longer(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((x.shape[0] + spare, *x.shape[1:]), x.dtype)

    return {path: longer(x) if is_table(path) else x for path, x in shapes.items()}


def add(params: dict[str, Any], spare: int, axis: int, unseen: bool = False) -> dict[str, Any]:
    """Adds spare rows to the tables of parameters on the host, whose axis of combinations is `axis`.

    They are zeros; with `unseen`, what a combination reads that was not seen in training, as the number of
    combinations is now that of the first spare row.
    """

    def longer(path: str, x: Any) -> np.ndarray:
        mean = np.mean(x, axis, keepdims=True)
        rows = mean if unseen and path == "imputation/group" else np.zeros_like(mean)
        return np.concatenate([x, np.broadcast_to(rows, (*x.shape[:axis], spare, *x.shape[axis + 1 :]))], axis)

    return {path: longer(path, np.asarray(x)) if spare and is_table(path) else x for path, x in params.items()}


def remove(params: dict[str, Any], spare: int, axis: int) -> dict[str, Any]:
    """Removes spare rows from the tables of parameters, undoing `add`."""

    def shorter(x: Any) -> np.ndarray:
        return np.asarray(x).take(range(x.shape[axis] - spare), axis)

    return {path: shorter(x) if spare and is_table(path) else x for path, x in params.items()}
