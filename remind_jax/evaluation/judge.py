"""What reports need to know of a task, and that of classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation import intervals, metrics

Figures = Callable[[np.ndarray], dict[str, Any]]
"""Figures of some samples, bool [n] -> M of report.json: figures, their intervals, and `notes`."""
Weighed = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]
"""Figures of samples at places int [k] under rows of weights [r, k]: by name [r], NaN where undefined."""


class Judge(NamedTuple):
    """What a report needs to know of a task.

    Attributes:
      task: its name.
      titles: titles of the figures of M by name, in order.
      bounded: those with an interval.
      headline: that by which combinations are worst, and which stands first.
      more: whether more of it is better.
      evaluation: (labels, predictions, patients, seed=, resamples=) -> figures of samples evaluated together.
      weighed: (labels, predictions) -> figures of some samples in many weightings.
      drawn: (labels, predictions) -> what else the page draws, `curves` of the report; empty for nothing.
      fitted: the task for JSON, from which comparisons make it again; empty for classes.
    """

    task: str
    titles: Mapping[str, str]
    bounded: Sequence[str]
    headline: str
    more: bool
    evaluation: Callable[..., Figures]
    weighed: Callable[[np.ndarray, np.ndarray], Weighed]
    drawn: Callable[[np.ndarray, np.ndarray], dict[str, Any]] = lambda labels, predictions: {}
    fitted: Mapping[str, Any] = {}

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
) -> Figures:
    """Makes the figures of samples with one class of several; arguments are as for `intervals.intervals`."""

    def figures(rows: np.ndarray) -> dict[str, Any]:
        some = labels[rows], probabilities[rows]
        values, notes = metrics.compute(*some)
        bounds, bound_notes = intervals.intervals(*some, patients[rows], seed=seed, resamples=resamples)
        return {**values, **bounds, "notes": notes | bound_notes}

    return figures


def weighed_of_classes(labels: np.ndarray, probabilities: np.ndarray) -> Weighed:
    """Makes the figures with intervals of classes of some samples in many weightings."""
    return lambda at, weights: intervals.weighted_metrics(labels[at], probabilities[at], weights)


def of_classes() -> Judge:
    """Returns what a report needs to know of classes, with the metrics that are there by now."""
    titles = {name: metric.title for name, metric in metrics.METRICS.items()}
    return Judge("classes", titles, intervals.NAMES, "accuracy", True, figures_of_classes, weighed_of_classes)
