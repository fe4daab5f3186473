"""How estimators of scikit-learn learn the labels of each task, and what they predict of it."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from remind_jax.tasks.task import Task

UNSEEN = -1e4  # score of a class that training has not seen
Weights = np.ndarray | None
"""What each row counts in training, [n]; None: all alike."""


def of_rows(weights: Weights, rows: np.ndarray) -> Weights:
    """Returns the weights of some rows, int [k]."""
    return None if weights is None else weights[rows]


class Classifiers:
    """Classifiers of one label of several classes, or of each of several labels on the rows in which it is known."""

    def __init__(self, make: Callable[[], Any], x: Any, labels: np.ndarray, task: Task, weights: Weights = None):
        self._one, self.outputs = labels.ndim == 1, len(task.names)
        self.models = []
        for y in [labels] if self._one else labels.T:
            known = np.flatnonzero(y >= 0)
            self.models.append(make().fit(x[known], y[known], sample_weight=of_rows(weights, known)))

    @property
    def columns(self) -> list[np.ndarray]:
        """The outputs that the scores of each model are of; of two classes there is the second's only."""
        if not self._one:
            return [np.array([j]) for j in range(len(self.models))]
        return [seen if len(seen) > 2 else seen[1:] for seen in [self.models[0].classes_]]

    @property
    def wide_columns(self) -> list[np.ndarray]:
        """The outputs that the probabilities of each model are of; of several labels that of a case only."""
        return [self.models[0].classes_] if self._one else self.columns

    def start(self) -> np.ndarray:
        """Returns what scores begin with, float64 [o]: nearly no chance for classes that training has not seen."""
        start = np.zeros(self.outputs)
        if self._one:
            start[np.setdiff1d(np.arange(self.outputs), self.models[0].classes_)] = UNSEEN
        for model, columns in zip(self.models, self.columns, strict=True):
            start[columns] += np.ravel(getattr(model, "_baseline_prediction", 0.0))
        return start

    def predict(self, x: Any) -> np.ndarray:
        return self._joined([model.predict_proba(x) for model in self.models])

    def staged(self, x: Any) -> Iterator[np.ndarray]:
        return map(self._joined, zip(*(model.staged_predict_proba(x) for model in self.models), strict=True))

    def _joined(self, found: Sequence[np.ndarray]) -> np.ndarray:
        if self._one:
            return _all_classes(found[0], self.models[0].classes_, self.outputs)
        return np.stack([chances[:, 1] for chances in found], axis=1)


class Value:
    """A regressor of standardised values."""

    outputs, columns, wide_columns = 1, [np.array([0])], [np.array([0])]

    def __init__(
        self, make: Callable[[str], Any], x: np.ndarray, labels: np.ndarray, task: Task, weights: Weights = None
    ):
        values = task.standard(labels.astype(np.float64))
        self._task, self.models = task, [make("Regressor").fit(x, values, sample_weight=weights)]

    def staged(self, x: np.ndarray) -> Iterator[np.ndarray]:
        return (self._task.predictions(found[:, None]) for found in self.models[0].staged_predict(x))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._task.predictions(self.models[0].predict(x)[:, None])

    def start(self) -> np.ndarray:
        return np.ravel(self.models[0]._baseline_prediction)


class Hazards:
    """A classifier of the hazard in each step, of a row a sample and step that it has come to."""

    outputs, columns, wide_columns = 1, [np.array([0])], [np.array([0])]
    start = Value.start

    def __init__(
        self, make: Callable[[str], Any], x: np.ndarray, labels: np.ndarray, task: Task, weights: Weights = None
    ):
        self._steps = task.outputs
        step, event = task.steps(labels)
        owner = np.repeat(np.arange(len(x)), np.minimum(step + 1, self._steps))
        at = np.concatenate([np.arange(min(last + 1, self._steps)) for last in step])
        ends, counted = event[owner] & (at == step[owner]), of_rows(weights, owner)
        self.models = [make("Classifier").fit(self._rows(x[owner], at), ends, sample_weight=counted)]

    def staged(self, x: np.ndarray) -> Iterator[np.ndarray]:
        return map(self._survival, self.models[0].staged_predict_proba(self._all_steps(x)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self._survival(self.models[0].predict_proba(self._all_steps(x)))

    def _survival(self, found: np.ndarray) -> np.ndarray:
        return np.cumprod(1 - found[:, 1].reshape(-1, self._steps), axis=1)

    def _all_steps(self, x: np.ndarray) -> np.ndarray:
        return self._rows(np.repeat(x, self._steps, axis=0), np.tile(np.arange(self._steps), len(x)))

    def _rows(self, x: np.ndarray, step: np.ndarray) -> np.ndarray:
        return np.concatenate([x, step[:, None].astype(x.dtype)], axis=1)


def _classifiers(make: Callable[[str], Any], *rest: Any) -> Classifiers:
    return Classifiers(functools.partial(make, "Classifier"), *rest)


LEARNERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("classes", "ordinal", "multilabel"), _classifiers),
    "regression": Value,
    "survival": Hazards,
}
"""How trees learn each task: (make, inputs, labels, task, weights) -> `models` and predictions, `staged` by trees."""


def _all_classes(found: np.ndarray, seen: np.ndarray, classes: int) -> np.ndarray:
    """Gives probabilities a column for every class, 0 for those that training has not seen, [n, c]."""
    probabilities = np.zeros((len(found), classes))
    probabilities[:, seen] = found
    return probabilities
