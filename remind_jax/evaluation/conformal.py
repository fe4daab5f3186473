"""Sets that hold the truth in a promised share of samples: split-conformal prediction by combination of modalities.

A score says how odd an answer is for a sample. On rows that were not trained on, the k-th smallest score of the truth,
k = ⌈(n + 1) level⌉, is the threshold; a set has all answers whose score is no larger. If rows and later samples are
exchangeable, at least that share of sets holds the truth, for any model. Each combination has its own threshold
(Mondrian), so that the promise holds in each; one with fewer than `LEAST` rows is shrunk to that of all.

Sources: Romano, Sesia and Candès 2020 (adaptive sets of classes), Romano, Patterson and Candès 2019 (intervals).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from remind_jax.evaluation.intervals import exact_interval

LEAST = 50
"""Rows from which on a combination has a threshold of its own."""
ROUNDING = 1e-5
"""Of scores: a sample of the tuning rows has the score of a threshold, and must not fall out of its set by rounding."""


class Sets(NamedTuple):
    """Thresholds of scores.

    Attributes:
      level: share of sets that should hold the truth.
      n: rows they were taken from.
      whole: threshold of all rows.
      groups: threshold and number of rows of each combination that has any.
    """

    level: float
    n: int
    whole: float
    groups: Mapping[str, tuple[float, int]]

    @classmethod
    def fit(cls, scores: np.ndarray, groups: Sequence[str], level: float) -> Self | None:
        """Takes thresholds from the scores [n] of the truth in rows that were not trained on; None with too few."""
        whole, names = threshold(scores, level), np.asarray(groups, object)
        if not np.isfinite(whole):
            return None
        found = {}
        for name in dict.fromkeys(groups):
            own = scores[names == name]
            weight = min(1.0, len(own) / LEAST) if np.isfinite(mine := threshold(own, level)) else 0.0
            found[name] = (weight * mine + (1 - weight) * whole if weight else whole, len(own))
        return cls(level, len(scores), whole, found)

    def of(self, groups: Sequence[str]) -> np.ndarray:
        """Returns the threshold of each sample's combination, [n]; of unknown ones that of all rows."""
        return np.array([self.groups.get(name, (self.whole, 0))[0] for name in groups], np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Returns the thresholds for JSON."""
        groups = [{"group": name, "threshold": at, "n": n} for name, (at, n) in self.groups.items()]
        return {"level": self.level, "n": self.n, "whole": self.whole, "groups": groups}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Inverts `to_dict`."""
        groups = {one["group"]: (one["threshold"], one["n"]) for one in content["groups"]}
        return cls(content["level"], content["n"], content["whole"], groups)


def fit_each(scores: np.ndarray, groups: Sequence[str], level: float) -> tuple[Sets, ...]:
    """Takes thresholds from scores [n], or of each of several labels [n, l], NaN where one is not known.

    There are none, (), where one has too few rows.
    """
    found, names = [], np.asarray(groups, object)
    for column in scores.reshape(len(scores), -1).T:
        known = np.isfinite(column)
        found.append(Sets.fit(column[known], names[known].tolist(), level))
    return () if None in found else tuple(found)


def thresholds(sets: Sequence[Sets], groups: Sequence[str]) -> np.ndarray:
    """Returns the threshold of each sample, [n], of several labels [n, l]."""
    found = np.stack([one.of(groups) for one in sets], axis=1)
    return found[:, 0] if len(sets) == 1 else found


def threshold(scores: np.ndarray, level: float) -> float:
    """Returns the k-th smallest of scores [n], k = ⌈(n + 1) level⌉; infinity where n is smaller."""
    k = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[k - 1]) if k <= len(scores) else math.inf


def scores_of_classes(probabilities: Any) -> Any:
    """Returns the probability of all classes that are more probable, and half of its own, [..., c] -> [..., c].

    Probabilities are a numpy or JAX array.

    The published score takes a random share of its own, with which sets differ from call to call; all of it would give
    the last class the same score in every sample, and sets that hold too much.
    """
    xp = probabilities.__array_namespace__()
    order = xp.argsort(-probabilities, axis=-1, stable=True)
    own = xp.take_along_axis(probabilities, order, axis=-1)
    return xp.take_along_axis(xp.cumsum(own, axis=-1) - own / 2, xp.argsort(order, axis=-1), axis=-1)


def inside(probabilities: Any, at: Any) -> Any:
    """Returns which classes are in sets, [..., c] and thresholds [...] -> bool [..., c]; the likeliest always is."""
    scores = scores_of_classes(probabilities)
    least = scores.min(axis=-1, keepdims=True)  # the likeliest has it
    return scores <= probabilities.__array_namespace__().maximum(at[..., None] + ROUNDING, least)


def coverage(sets: Sets, held: np.ndarray, sizes: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """Says how often sets held the truth, bool [n], how large they were [n], in all and by combination.

    Returns `level, n_calibration, overall` and `groups`: `n, coverage, ci, size`, with `group` and `n_calibration` of
    each combination, the most frequent first; `ci` is exact, over samples.
    """

    def of(rows: np.ndarray) -> dict[str, Any]:
        some = {
            "coverage": float(held[rows].mean()),
            "ci": exact_interval(held[rows]),
            "size": float(sizes[rows].mean()),
        }
        return {"n": int(rows.sum()), **some}

    names = np.asarray(groups, object)
    order = sorted(set(groups), key=lambda name: (-int((names == name).sum()), name))
    rows = [
        {
            "group": name,
            "n_calibration": sets.groups.get(name, (0.0, 0))[1],
            **of(names == name),
        }
        for name in order
    ]
    return {"level": sets.level, "n_calibration": sets.n, "overall": of(np.ones(len(held), bool)), "groups": rows}


def coverage_of(
    sets: Sequence[Sets], labels: Sequence[str], held: np.ndarray, sizes: np.ndarray, groups: Sequence[str]
) -> dict[str, Any]:
    """Returns `coverage`; of several `labels`, `held` and `sizes` [n, l], `level` and that of each in `labels`.

    `held` is NaN where a label is not known.
    """
    if held.ndim == 1:
        return coverage(sets[0], held, sizes, groups)
    names, found = np.asarray(groups, object), {}
    for label, one, right, size in zip(labels, sets, held.T, sizes.T, strict=True):
        known = np.isfinite(right)
        if known.any():
            found[label] = coverage(one, right[known] == 1, size[known], names[known].tolist())
    return {"level": sets[0].level, "labels": found}


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line for `sets` of a report, of several labels one each: how often the sets held the truth."""
    for name, one in found.get("labels", {"": found}).items():
        of, (low, high) = one["overall"], one["overall"]["ci"]
        share = f"{of['coverage']:.1%} (exact 95 % interval {low:.1%} to {high:.1%}) of {of['n']} held-out samples"
        yield f"Sets made to hold the truth{name and f' of {name}'} in {found['level']:.0%} held it in {share}"


def deferral(labels: np.ndarray, probabilities: np.ndarray, points: int = 20) -> list[dict[str, Any]]:
    """Says how right the most probable class is where a model answers only those it is surest of.

    Labels are int [n], probabilities [n, c]. Returns `share` of samples answered, from all down to 1 / `points`, their
    `n`, and `accuracy`.
    """
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = np.cumsum((probabilities.argmax(axis=1) == labels)[order])
    counts = sorted({max(1, round(len(labels) * i / points)) for i in range(1, points + 1)} if len(labels) else ())
    return [{"share": n / len(labels), "n": n, "accuracy": float(right[n - 1] / n)} for n in counts[::-1]]
