"""What checks find, and how they speak of rows; no message holds a cell's text, a sample id or a patient id."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing found: a code, one line of text, and whether training is refused for it."""

    code: str
    message: str
    fatal: bool


class FileRecord(NamedTuple):
    """Size in bytes and sha256 (hex) of a file that a manifest names."""

    size: int
    sha256: str


def listed(items: Sequence[object], most: int = 5) -> str:
    """Lists the first few of `items` and says how many more there are."""
    text = ", ".join(str(item) for item in items[:most])
    return f"{text} and {len(items) - most} more" if len(items) > most else text


def in_rows(mask: np.ndarray | pl.Series) -> str:
    """Says where `mask` [n] holds, rows counted from 1: "2 cells (rows 3, 8)"."""
    rows = np.flatnonzero(np.asarray(mask)) + 1
    s = "" if len(rows) == 1 else "s"
    return f"{len(rows)} cell{s} (row{s} {listed(rows)})"
