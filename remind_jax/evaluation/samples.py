"""Held-out predictions as arrays, read from a table such as predictions.parquet."""

import dataclasses
from typing import Self

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class Samples:
    """Held-out samples: labels, predictions float64 [n, p], such as probabilities, and names of combinations, str [n].

    Labels are int64 where the table has integers, else float64: [n], or [n, l] of several columns.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, table: pl.DataFrame) -> Self:
        """Reads the columns `label`, or `label_0` …, `group` and `p_0` … of a table with one row a sample."""
        labels = table["label"] if "label" in table.columns else _numbered(table, "label_")
        labels = labels.to_numpy()
        return cls(
            labels.astype(np.int64 if labels.dtype.kind in "iu" else np.float64),
            _numbered(table, "p_").to_numpy().astype(np.float64),
            np.array(table["group"].to_list(), dtype=object),
        )


def _numbered(table: pl.DataFrame, start: str) -> pl.DataFrame:
    """Returns the columns whose names are `start` and a number, in the order of these."""
    count = sum(name.startswith(start) and name[len(start) :].isdigit() for name in table.columns)
    return table.select([f"{start}{k}" for k in range(count)])
