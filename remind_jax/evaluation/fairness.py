"""Who is served worse, and who lacks what: figures, differences and missing modalities by attributes of the samples.

A difference is between a value of an attribute and the one that most samples have; its p is corrected by Holm over all
differences in the same figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data.attributes import PREFIX
from remind_jax.evaluation import differences, intervals
from remind_jax.evaluation.judge import Figures

Value = tuple[str, str | None, np.ndarray]
"""An attribute, one of its values, and the samples that have it, bool [n]."""
Columns = Mapping[str, pl.Series]
"""Values of each sample by attribute, as `data.attributes.values` gives them."""


def columns_of(predictions: pl.DataFrame) -> Columns:
    """Returns the attributes of a table of predictions, by name."""
    return {name.removeprefix(PREFIX): predictions[name] for name in predictions.columns if name.startswith(PREFIX)}


def figures(columns: Columns, of: Figures, groups: np.ndarray, patients: np.ndarray) -> list[dict[str, Any]]:
    """Returns a row for each value, in the order of `values_of`: `attribute, value, n, n_patients, by_group`, and M.

    `by_group` has `group, n, n_patients` and M of each combination [n] that the value's samples have.
    """

    def row(rows: np.ndarray) -> dict[str, Any]:
        return {"n": int(rows.sum()), "n_patients": len(np.unique(patients[rows])), **of(rows)}

    found = []
    for attribute, value, rows in values_of(columns):
        names = sorted(set(groups[rows]), key=lambda name: (-int((groups[rows] == name).sum()), name))
        by_group = [{"group": name, **row(rows & (groups == name))} for name in names]
        found.append({"attribute": attribute, "value": value, **row(rows), "by_group": by_group})
    return found


def gaps(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns differences of the named figures to the most frequent value of each attribute, from rows of `figures`.

    Each has `attribute, value, against, figure, difference`, and `ci`, `p` and `p_holm`, None where a side has too few
    samples for a bootstrap or no interval, and then a `note`.
    """
    found = []
    for attribute in dict.fromkeys(row["attribute"] for row in rows):
        some = [row for row in rows if row["attribute"] == attribute]
        most = max(some, key=lambda row: (row["value"] is not None, row["n"]))
        for row in (row for row in some if row is not most):
            told = {"attribute": attribute, "value": row["value"], "against": most["value"]}
            found += [told | {"figure": name} | differences.between(row, most, name) for name in names]
    return differences.corrected(found)


def presence(
    columns: Columns, present: np.ndarray, modalities: Sequence[str], patients: np.ndarray, *, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Returns how many samples of each value have each modality: `attribute, value, modality, share, ci`.

    `present` is bool [n, m]; intervals are those of `intervals.resampled` for shares.
    """
    found = []
    for attribute, value, rows in values_of(columns):
        some = dict(zip(modalities, present[rows].T, strict=True))
        stacked = np.stack(list(some.values()), axis=1).astype(float)

        def of(weights: np.ndarray, stacked: np.ndarray = stacked) -> dict[str, np.ndarray]:
            return dict(zip(modalities, (weights @ stacked / weights.sum(1, keepdims=True)).T, strict=True))

        options = {"seed": seed, "resamples": resamples, "shares": some}
        bounds, _ = intervals.resampled(of, list(modalities), patients[rows], **options)
        for name, has in some.items():
            one = {"attribute": attribute, "value": value, "modality": name}
            found.append({**one, "share": float(has.mean()), "ci": bounds[f"{name}_ci"]})
    return found


def values_of(columns: Columns) -> list[Value]:
    """Lists attribute, value and its samples, bool [n]: ranges in order, others the most frequent first.

    What is not recorded comes last.
    """
    found = []
    for attribute, column in columns.items():
        text = np.array(column.cast(pl.String).to_list(), object)
        rows = {value: text == value for value in set(text) - {None}}
        order = sorted(rows, key=lambda value: (-int(rows[value].sum()), value))
        if column.dtype == pl.Enum:
            order = [value for value in column.dtype.categories if value in rows]
        found += [(attribute, value, rows[value]) for value in order]
        lacks = column.is_null().to_numpy()
        found += [(attribute, None, lacks)] if lacks.any() else []
    return found


def most_frequent(values: Sequence[Value]) -> Value:
    """Returns the value that most samples have, of those that are recorded."""
    return max(values, key=lambda one: (one[1] is not None, int(one[2].sum())))
