"""Differences of figures between groups of people, models, or with and without gaps, with intervals and p.

Those of groups are made of the intervals of the groups. Others are of figures of the same samples, so that patients are
drawn together, and interval and p are Student's. F1 of a class hardly ever predicted hangs on calls that few samples
show, so each side draws what it has not shown, as in `intervals.resampled`. Figures that compare two outcomes have no
interval with fewer than `intervals.FEW` patients who have the rarer one: their spread tells too little.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation import intervals

SAME = 20  # resamples that tell whether sides differ at all
TOO_FEW = f"a side has fewer than {intervals.MIN_SAMPLES} samples or {intervals.MIN_PATIENTS} patients"


class Drawn(NamedTuple):
    """A figure, None if undefined, with its 95 % interval and p over draws of patients, or why there are none."""

    value: float | None
    ci: list[float] | None
    p: float | None
    note: str


def rarer_side(sides: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Returns the least of what sides of a difference have, by figure."""
    return {name: min(side[name] for side in sides) for name in sides[0]}


def between(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns `difference`, `ci` and `p` of a figure of two rows of figures, see `fairness.figures`, and any `note`.

    An end is as far from the difference as the ends of both sides are from their figures, by Pythagoras (Zou and Donner
    2008), so that the forms of `intervals` hold for it, too. People on both sides only make that wider than it need be.
    p is a normal's that is .05 where the interval ends at 0.
    """
    from scipy.special import ndtr, ndtri

    sides, found = (one, other), {"difference": None, "ci": None, "p": None}
    if None in (one[name], other[name]):
        return found | {"note": "the figure is undefined on a side"}
    found["difference"] = value = one[name] - other[name]
    if any(side["n"] < intervals.MIN_SAMPLES or side["n_patients"] < intervals.MIN_PATIENTS for side in sides):
        return found | {"note": TOO_FEW}
    notes = [side["notes"].get(f"{name}_ci", "") for side in sides]
    if None in (bounds := [side[f"{name}_ci"] for side in sides]):
        return found | {"note": f"a side has no interval: {next(filter(None, notes))}"}
    (low, high), (low_other, high_other) = np.abs(np.array(bounds) - [[one[name]], [other[name]]])
    found["ci"] = [float(value - np.hypot(low, high_other)), float(value + np.hypot(high, low_other))]
    reach = abs(value - found["ci"][0 if value > 0 else 1])
    found["p"] = float(2 * ndtr(-ndtri((1 + intervals.LEVEL) / 2) * abs(value) / reach))
    marks = [note for note in notes if note.startswith(intervals.NARROW)]
    return found | ({"note": marks[0]} if marks else {})


def drawn_together(
    of: intervals.Weighted, patients: np.ndarray, *, rare: Mapping[str, int] = {}, seed: int, resamples: int
) -> dict[str, Drawn]:
    """Computes figures that are differences, and draws patients [n] `resamples` times, 0 for no intervals.

    Each side draws what it has not shown of F1 for itself, but sides that never differ without differ by nothing.
    `rare` is as for `difference`, by figure.
    """
    found, people, once = {}, len(np.unique(patients)), np.ones((1, len(patients)))
    with np.errstate(invalid="ignore", divide="ignore"):
        whole, drawn = of(once), {}
        if resamples:
            gamma, centres = np.random.default_rng((seed, len(patients))).standard_gamma, of(once, intervals.expected)
            drawn, counts = intervals.draws(lambda rows: of(rows, gamma), patients, seed, resamples)
            plain, _ = intervals.draws(of, patients, seed, SAME)
    for name, (value,) in whole.items():
        ci, p, note = None, None, TOO_FEW
        if not np.isfinite(value):
            note = "the figure is undefined on a side"
        elif drawn:
            each, options = drawn[name] if plain[name].any() else plain[name], {"rare": rare.get(name)}
            options |= {"centre": float(centres[name][0]), "lacks": "what the figure needs on a side"}
            ci, p, note = difference(float(value), each, counts, people, **options)
        found[name] = Drawn(float(value) if np.isfinite(value) else None, ci, p, note or "")
    return found


def difference(
    value: float,
    drawn: np.ndarray,
    counts: np.ndarray,
    patients: int,
    lacks: str,
    *,
    centre: float | None = None,
    rare: int | None = None,
) -> tuple[list[float] | None, float | None, str | None]:
    """Returns the interval and two-sided p of a difference from its resamples [r], or None, and the reason of None.

    The interval is around `centre`, by default the value, and holds the value. `rare` is how many patients have the
    rarer of the outcomes that the figure compares, on the side with the fewest. Other arguments are as for
    `intervals.interval`.
    """
    from scipy.special import stdtr

    if why := intervals.unusable(drawn, lacks):
        return None, None, why
    if rare is not None and rare < intervals.FEW:
        return None, None, f"{rare} patients with the rarer outcome are too few"
    centre = value if centre is None else centre
    finite = np.isfinite(drawn)
    spread = intervals.spread_of(drawn[finite], counts[finite], patients)
    # Between a value and a centre of different signs lies 0, and so it does in the interval.
    p = float(2 * stdtr(spread.freedom, -abs(centre) / spread.deviation)) if value * centre > 0 else 1.0
    ends = [float(min(value, centre - spread.reach())), float(max(value, centre + spread.reach()))]
    return ends, p, intervals.left_out(drawn, lacks)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p by Holm: the k-th smallest of m times m - k + 1, never falling, at most 1; None is no comparison."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def corrected(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds `p_holm` to rows: their `p`, corrected over all rows of the same `figure`."""
    for name in {row["figure"] for row in rows}:
        some = [row for row in rows if row["figure"] == name]
        for row, p in zip(some, holm([row["p"] for row in some]), strict=True):
            row["p_holm"] = p
    return list(rows)
