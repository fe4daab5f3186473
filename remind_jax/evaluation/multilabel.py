"""Figures of several labels that are each yes, no or unknown: by label, and their macro and micro means.

An unknown cell counts in nothing: figures of a label are those of the samples in which it is known. A macro mean is the
unweighted mean over labels that have the figure, and the notes name the others; a micro figure takes all known cells
together. AUROC and AUPRC need a case and a non-case, F1 a case or a predicted one. A label is predicted where its
probability is at least its threshold.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from remind_jax.evaluation import intervals

FIGURES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
"""Figures of a label, with their titles."""
TITLES = {f"{name}_{mean}": f"{title}, {mean}" for name, title in FIGURES.items() for mean in ("macro", "micro")}
UNKNOWN = -1
THRESHOLD = 0.5
_WHY_LABEL = {
    **dict.fromkeys(("auroc", "auprc"), "no case, or no non-case, is known"),
    "f1": "no case is known or predicted",
}
_UNFOUND = "of {} no case is there, or none is found"
_WHY = {name: f"{_WHY_LABEL[name.partition('_')[0]]} of any label" for name in TITLES}


def compute(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
    thresholds: np.ndarray | float = THRESHOLD,
) -> dict[str, Any]:
    """Returns the means of `TITLES` with intervals and `notes`, and the figures of each label under `labels`.

    `labels`, int [n, l], are 1, 0 or `UNKNOWN`, with probabilities [n, l], names of the l labels, patients [n], and
    thresholds [l]. Each of `labels` has `n` known samples, `cases`, and the figures of `FIGURES`. A ValueError says
    that the shapes disagree, a label is none, or a probability is not finite.
    """
    _check(labels, probabilities, names)
    called = probabilities >= thresholds
    options = {"seed": seed, "resamples": resamples, "lacks": "a case or a non-case"}
    by_label, counts, lost = {}, [], 0
    for j, name in enumerate(names):
        known = labels[:, j] != UNKNOWN
        parts = labels[known, j] == 1, probabilities[known, j], called[known, j]
        rarer = intervals.rarer(parts[0], patients[known])
        counts += [rarer] if rarer else []
        of, more = functools.partial(_label, *parts), {"smooth": ("f1",), **options}
        more |= intervals.of_rare([rarer], intervals.RANKED)
        lost += (unfound := intervals.unfound(parts[0], parts[2], patients[known]))
        more |= {"narrow": {"f1": _UNFOUND.format("the label")}} if unfound else {}
        found, notes = intervals.measured(of, _WHY_LABEL, patients[known], **more)
        by_label[name] = {"n": int(known.sum()), "cases": int(parts[0].sum()), **found, "notes": notes}
    of = functools.partial(weighted, labels, probabilities, called)
    options |= {"smooth": ("f1_macro", "f1_micro"), "width": len(names)}
    if len(counts) > 1:
        options |= intervals.of_rare(counts, ("auroc_macro", "auprc_macro"))
    if lost:
        why = {"f1_macro": _UNFOUND.format(f"{lost} of {len(names)} labels")}
        options["narrow"] = options.get("narrow", {}) | why
    values, notes = intervals.measured(of, _WHY, patients, **options)
    for figure in FIGURES:
        left = [name for name in names if by_label[name][figure] is None]
        if left and values[f"{figure}_macro"] is not None:
            notes[f"{figure}_macro"] = (
                f"mean over {len(names) - len(left)} of {len(names)} labels, without {_few(left)}"
            )
    return {**values, "labels": by_label, "notes": notes}


def rarer(labels: np.ndarray, patients: np.ndarray, rows: Any = slice(None)) -> dict[str, int]:
    """Counts patients [n] of some rows with the rarest value of a label that has both, by figure that ranks."""
    known, some, people = labels != UNKNOWN, labels[rows], patients[rows]
    use = [j for j, k in enumerate(known.T) if len(np.unique(labels[k, j])) == 2]
    counts = [intervals.rarer(some[known[rows, j], j] == 1, people[known[rows, j]]) for j in use]
    pooled = intervals.rarer(some[known[rows]] == 1, np.repeat(people, labels.shape[1])[known[rows].ravel()])
    each = {"macro": min(counts, default=0), "micro": pooled}
    return {f"{name}_{mean}": count for name in intervals.RANKED for mean, count in each.items()}


def weighted(
    labels: np.ndarray,
    probabilities: np.ndarray,
    called: np.ndarray,
    weights: np.ndarray,
    gamma: intervals.Gamma | None = None,
) -> dict[str, np.ndarray]:
    """Computes the macro and micro means under rows of sample weights [r, n] at once, [r] each, NaN where undefined.

    `called`, bool [n, l], tells which labels are predicted. Where a label that has a case and a non-case in the sample
    lacks one in a resample, macro AUROC and AUPRC are NaN rather than means over fewer labels. With `gamma` F1 is that
    of `intervals.f1`.
    """
    known = labels != UNKNOWN
    parts = [(labels[k, j] == 1, probabilities[k, j], called[k, j], weights[:, k]) for j, k in enumerate(known.T)]
    each = [_label(*part, gamma) for part in parts]
    use = [j for j, k in enumerate(known.T) if len(np.unique(labels[k, j])) == 2]
    cells = np.repeat(weights, labels.shape[1], axis=1)[:, known.ravel()]
    pooled = _label(labels[known] == 1, probabilities[known], called[known], cells, gamma)
    nothing = np.full(len(weights), np.nan)
    macro = {name: np.mean([each[j][name] for j in use], axis=0) if use else nothing for name in ("auroc", "auprc")}
    f1 = np.array([figures["f1"] for figures in each])
    there = np.isfinite(f1)
    with np.errstate(invalid="ignore"):
        macro["f1"] = np.where(there, f1, 0.0).sum(0) / there.sum(0)
    return {f"{name}_macro": macro[name] for name in FIGURES} | {f"{name}_micro": pooled[name] for name in FIGURES}


def f1_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns for each label the threshold with the highest F1 on tuning samples, float [l].

    Candidates are midpoints between probabilities that follow each other; of equal ones the nearest to `THRESHOLD`. A
    label without a known case keeps `THRESHOLD`.
    """
    found = np.full(labels.shape[1], THRESHOLD)
    for j in range(labels.shape[1]):
        known = labels[:, j] != UNKNOWN
        case, score = labels[known, j] == 1, np.asarray(probabilities[known, j], np.float64)
        if not case.any():
            continue
        values = np.unique(score)
        at = np.concatenate([[values[0]], (values[1:] + values[:-1]) / 2])
        order = np.argsort(score, kind="stable")
        above = len(score) - np.searchsorted(score[order], at, side="left")
        hits = np.pad(np.cumsum(case[order][::-1]), (1, 0))[above]
        f1 = 2 * hits / (above + case.sum())
        best = at[f1 == f1.max()]
        found[j] = best[np.argmin(abs(best - THRESHOLD))]
    return found


def _label(
    case: np.ndarray, score: np.ndarray, called: np.ndarray, weights: np.ndarray, gamma: intervals.Gamma | None = None
) -> dict[str, np.ndarray]:
    """Computes the figures of one label's known samples [n] under weights [r, n]."""
    both = case.any() and not case.all()
    nothing = np.full(len(weights), np.nan)
    auroc, auprc = intervals.weighted_ranking(case, score, weights) if both else (nothing, nothing)
    hits, there = weights @ (case & called), weights @ (case.astype(float) + called)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = intervals.f1(hits, there, gamma) if (case | called).any() else nothing
    return {"auroc": auroc, "auprc": auprc, "f1": f1}


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def _check(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> None:
    if labels.ndim != 2 or labels.shape != probabilities.shape or len(names) != labels.shape[1]:
        raise ValueError(f"labels {labels.shape} and probabilities {probabilities.shape} should be [n, {len(names)}]")
    if not np.isin(labels, (0, 1, UNKNOWN)).all():
        raise ValueError(f"a label is none of 0, 1 and {UNKNOWN}")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not finite")
