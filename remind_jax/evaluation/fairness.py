"""Who is served worse, and who lacks what: figures, differences and missing modalities by attributes of the samples.

A difference is between a value of an attribute and the one that most samples have, of whole patients drawn together;
its p is corrected by Holm over all differences in the same figure.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data.attributes import PREFIX
from remind_jax.evaluation import intervals
from remind_jax.evaluation.judge import Figures, Weighed

Columns = Mapping[str, pl.Series]
"""Values of each sample by attribute, as `data.attributes.values` gives them."""


def columns_of(predictions: pl.DataFrame) -> Columns:
    """Returns the attributes of a table of predictions, by name."""
    return {name.removeprefix(PREFIX): predictions[name] for name in predictions.columns if name.startswith(PREFIX)}


def figures(columns: Columns, of: Figures, groups: np.ndarray, patients: np.ndarray) -> list[dict[str, Any]]:
    """Returns a row for each value, in the order of `_values`: `attribute, value, n, n_patients, by_group`, and M.

    `by_group` has `group, n, n_patients` and M of each combination [n] that the value's samples have.
    """

    def row(rows: np.ndarray) -> dict[str, Any]:
        return {"n": int(rows.sum()), "n_patients": len(np.unique(patients[rows])), **of(rows)}

    found = []
    for attribute, value, rows in _values(columns):
        names = sorted(set(groups[rows]), key=lambda name: (-int((groups[rows] == name).sum()), name))
        by_group = [{"group": name, **row(rows & (groups == name))} for name in names]
        found.append({"attribute": attribute, "value": value, **row(rows), "by_group": by_group})
    return found


def gaps(
    columns: Columns, of: Weighed, names: Sequence[str], patients: np.ndarray, *, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Returns differences of the named figures to the most frequent value of each attribute.

    Each has `attribute, value, against, figure, difference`, `ci` and `p` and `p_holm` from `resamples` draws of
    patients [n], None where a side has too few samples for a bootstrap or the figure is undefined, and then a `note`.
    """
    found = []
    for attribute, column in columns.items():
        every = _values({attribute: column})
        most = max(every, key=lambda one: (one[1] is not None, int(one[2].sum())))
        for _, value, rows in (one for one in every if one is not most):
            told = {"attribute": attribute, "value": value, "against": most[1]}
            found += [told | one for one in _difference(of, names, rows, most[2], patients, seed, resamples)]
    for name in names:
        some = [one for one in found if one["figure"] == name]
        for one, p in zip(some, intervals.holm([one["p"] for one in some]), strict=True):
            one["p_holm"] = p
    return found


def presence(
    columns: Columns, present: np.ndarray, modalities: Sequence[str], patients: np.ndarray, *, seed: int, resamples: int
) -> list[dict[str, Any]]:
    """Returns how many samples of each value have each modality: `attribute, value, modality, share, ci`.

    `present` is bool [n, m]; intervals are those of `intervals.resampled` for shares.
    """
    found = []
    for attribute, value, rows in _values(columns):
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


def _values(columns: Columns) -> list[tuple[str, str | None, np.ndarray]]:
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


def _difference(
    of: Weighed,
    names: Sequence[str],
    rows: np.ndarray,
    base: np.ndarray,
    patients: np.ndarray,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """Returns `figure, difference, ci, p`, and a `note` where something is None, of rows against others, bool [n]."""

    def apart(weights: np.ndarray) -> dict[str, np.ndarray]:
        one, other = (of(np.flatnonzero(side), weights[:, side]) for side in (rows, base))
        return {name: one[name] - other[name] for name in names}

    with np.errstate(invalid="ignore", divide="ignore"):
        whole = apart(np.ones((1, len(rows))))
        few = any(
            side.sum() < intervals.MIN_SAMPLES or len(np.unique(patients[side])) < intervals.MIN_PATIENTS
            for side in (rows, base)
        )
        drawn = {name: np.empty(0) for name in names}
        if not few:
            owners, owner = np.unique(patients, return_inverse=True)
            weights = intervals.patient_weights(owner, len(owners), seed, resamples=resamples)
            parts = [apart(some) for some in weights]
            drawn = {name: np.concatenate([part[name] for part in parts]) for name in names}
    found = []
    for name in names:
        value = float(whole[name][0]) if np.isfinite(whole[name][0]) else None
        one: dict[str, Any] = {"figure": name, "difference": value, "ci": None, "p": None}
        if few:
            note = f"a side has fewer than {intervals.MIN_SAMPLES} samples or {intervals.MIN_PATIENTS} patients"
        elif value is None:
            note = "the figure is undefined on a side"
        else:
            one["ci"], note = intervals.percentile(drawn[name], "what the figure needs on a side")
            one["p"] = intervals.p_value(drawn[name][np.isfinite(drawn[name])]) if one["ci"] else None
        found.append(one | ({"note": note} if note else {}))
    return found
