"""What reports need to know of a task, and that of classes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation import intervals, metrics
from remind_jax.evaluation.metrics import TUNED

Figures = Callable[[np.ndarray], dict[str, Any]]
"""Figures of some samples, bool [n] -> M of report.json: figures, their intervals, and `notes`."""
Weighed = Callable[..., Mapping[str, np.ndarray]]
"""Figures of samples at places int [k] under rows of weights [r, k]: by name [r], NaN where undefined.

A third argument, None by default, is an `intervals.Gamma` with which F1 is that of `intervals.f1`."""
TUNED_TITLE = {TUNED: "Macro-F1, tuned"}


class Judge(NamedTuple):
    """What a report needs to know of a task.

    Attributes:
      task: its name.
      titles: titles of the figures of M by name, in order.
      bounded: those with an interval.
      headline: that by which combinations are worst, and which stands first.
      more: whether more of it is better.
      evaluation: (labels, predictions, patients, seed=, resamples=) -> figures of samples evaluated together.
      drawn: (labels, predictions) -> what else the page draws, `curves` of the report; empty for nothing.
      fitted: the task for JSON, from which comparisons make it again; empty for classes.
      decision: of classes, factors of probabilities by which answers are given that tuning rows chose; () for none.
    """

    task: str
    titles: Mapping[str, str]
    bounded: Sequence[str]
    headline: str
    more: bool
    evaluation: Callable[..., Figures]
    drawn: Callable[[np.ndarray, np.ndarray], dict[str, Any]] = lambda labels, predictions: {}
    fitted: Mapping[str, Any] = {}
    decision: Sequence[float] = ()

    @property
    def names(self) -> list[str]:
        """Lists the figures of M and their intervals."""
        return [*self.titles, *(f"{name}_ci" for name in self.bounded)]


def figures_of_classes(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
    decision: Sequence[float] = (),
) -> Figures:
    """Makes the figures of samples with one class of several; arguments are as for `intervals.intervals`."""

    def figures(rows: np.ndarray) -> dict[str, Any]:
        some = labels[rows], probabilities[rows]
        values, notes = metrics.compute(*some)
        if decision and rows.any():
            values[TUNED] = metrics.macro_f1(some[0], some[1] * decision)[0]
        elif decision:
            values[TUNED], notes[TUNED] = None, "no samples"
        options = {"seed": seed, "resamples": resamples, "decision": decision}
        bounds, bound_notes = intervals.intervals(*some, patients[rows], **options)
        return {**values, **bounds, "notes": notes | bound_notes}

    return figures


def weighed_of_classes(labels: np.ndarray, probabilities: np.ndarray, decision: Sequence[float] = ()) -> Weighed:
    """Makes the figures with intervals of classes of some samples in many weightings."""
    return lambda at, weights, gamma=None: intervals.weighted_metrics(
        labels[at], probabilities[at], weights, gamma, decision
    )


def of_classes(decision: Sequence[float] = ()) -> Judge:
    """Returns what a report needs to know of classes, with the metrics that are there by now."""
    titles = titles_of_classes(bool(decision))
    names = [name for name in titles if name in (*intervals.NAMES, TUNED)]
    of = functools.partial(figures_of_classes, decision=decision)
    return Judge("classes", titles, names, "accuracy", True, of, decision=decision)


def titles_of_classes(tuned: bool) -> dict[str, str]:
    """Returns titles of the figures of classes, with macro-F1 of answers by `decision` where they are `tuned`."""
    found: dict[str, str] = {}
    for name, metric in metrics.METRICS.items():
        found |= {name: metric.title} | (TUNED_TITLE if tuned and name == "macro_f1" else {})
    return found
