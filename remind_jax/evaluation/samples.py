"""Held-out predictions as arrays, read from a table such as predictions.parquet."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import polars as pl

from remind_jax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class Samples:
    """Held-out samples: class indices int64 [n], probabilities float64 [n, c], and names of combinations, str [n]."""

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame) -> Self:
        """Reads the columns `label`, `group` and `p_0` … `p_{c-1}` of a table with one row a sample."""
        classes = sum(name.startswith("p_") and name[2:].isdigit() for name in table.columns)
        return cls(
            table["label"].to_numpy().astype(np.int64),
            table.select([f"p_{k}" for k in range(classes)]).to_numpy().astype(np.float64),
            np.array(table["group"].to_list(), dtype=object),
        )

    def metrics(self, rows: np.ndarray, names: Iterable[str]) -> dict[str, Any]:
        """Returns `n` and the named metrics of the samples that `rows`, bool [n], selects; None where undefined."""
        values, _ = metrics.compute(self.labels[rows], self.probabilities[rows])
        return {"n": int(rows.sum()), **{name: values[name] for name in names}}
