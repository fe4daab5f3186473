"""Columns that tell the label nearly by themselves, and names that speak of what comes after."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data.blocks import Columns
from remind_jax.data.findings import listed

SURE = 0.98  # AUROC of a number, or balanced accuracy of a category or of what is missing
_ROWS = 5_000  # that are looked at
_LEAST = 5  # rows of each class
_PAIRED = 30  # modalities whose pairs are looked at
_REMEDY = "leave out what is not known when the prediction is made"
_AFTER = (
    r"(?i)(^|[_\W])(discharge\w*|disch\w*|dischtime|death\w*|deathtime|died|dead|deceased|expired?\w*|dod|mortality|"
    r"los|length_?of_?stay|outcome|survival|autopsy|hospice)([_\W]|$)"
)


def columns(table: pl.DataFrame | Columns, names: Iterable[str], labels: np.ndarray) -> dict[str, float]:
    """Finds columns of numbers and categories that tell the label, int [n], by their values or by being empty.

    Returns by column the area under the ROC curve of a number, or the mean over classes of how many rows the best
    guess from a value gets right, where that is `SURE` or more.
    """
    step = -(-table.height // _ROWS) or 1
    labels = labels[::step]
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < _LEAST:
        return {}
    labels = np.searchsorted(classes, labels)
    found = {}
    for name in names:
        cells = table[name].gather_every(step)
        scores = [_by_value(cells, labels), _by_map(cells.is_null().to_numpy(), labels)]
        if (score := max(scores)) >= SURE:
            found[name] = score
    return found


def presence(present: np.ndarray, names: list[str], labels: np.ndarray) -> list[str]:
    """Lists modalities, or pairs of them, whose presence, bool [n, m], tells the label, int [n]."""
    classes, labels = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or np.bincount(labels).min() < _LEAST:
        return []
    alone = [name for name, mask in zip(names, present.T, strict=True) if _by_map(mask, labels) >= SURE]
    pairs = itertools.combinations(range(min(len(names), _PAIRED)), 2)
    together = [
        f"{names[i]} with {names[j]}"
        for i, j in pairs
        if names[i] not in alone
        and names[j] not in alone
        and _by_map(2 * present[:, i] + present[:, j], labels) >= SURE
    ]
    return alone + together


def lines(
    table: pl.DataFrame | Columns, entries: Mapping[str, Any], present: np.ndarray, labels: np.ndarray, label: str
) -> list[str]:
    """Warns of columns of tables and of presence that tell the label; `entries` are modalities' numbers and categories
    by name, `present` is bool [n, m] in their order."""
    names = [c for values in entries.values() for c in values]
    said = []
    if found := columns(table, names, labels):
        shown = listed([f"{name} ({score:.2f})" for name, score in found.items()])
        said.append(f"{shown} tell{'s' * (len(found) == 1)} {label} nearly without any other column; {_REMEDY}")
    if pairs := presence(present, list(entries), labels):
        said.append(f"whether {listed(pairs)} is there tells {label} nearly without any value; {_REMEDY}")
    return said


def named_after(names: Iterable[str]) -> list[str]:
    """Lists columns whose names speak of discharge, death, outcome or length of stay."""
    return [name for name in names if re.search(_AFTER, name)]


def _by_value(column: pl.Series, labels: np.ndarray) -> float:
    """Returns how well the present values of a column tell the label, 0 to 1."""
    here = column.is_not_null().to_numpy()
    values, labels = column.drop_nulls(), labels[here]
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < _LEAST:
        return 0.0
    codes = values.rank("dense").to_numpy() if values.dtype.is_numeric() else values.cast(pl.Categorical).to_physical()
    codes = np.asarray(codes, np.int64)
    few = len(np.unique(codes)) * 10 <= len(codes)
    score = _by_map(np.unique(codes, return_inverse=True)[1], np.searchsorted(classes, labels)) if few else 0.0
    if not values.dtype.is_numeric():
        return score
    ranks = values.rank("average").to_numpy()
    areas = [_area(ranks, labels == c) for c in classes]
    return max(score, min(max(area, 1 - area) for area in areas))


def _area(ranks: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve from ranks, [n], of which some are positive, bool [n]."""
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n)))


def _by_map(codes: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over classes of the rows that the likeliest class of each code, int [n], gets right."""
    codes = np.asarray(codes, np.int64)
    counts = np.zeros((codes.max(initial=0) + 1, labels.max(initial=0) + 1))
    np.add.at(counts, (codes, labels), 1.0)
    shares = counts / np.maximum(counts.sum(axis=0), 1.0)
    return float(shares[np.arange(len(shares)), shares.argmax(axis=1)].sum() / shares.shape[1])
