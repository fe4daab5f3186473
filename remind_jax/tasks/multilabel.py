"""Several labels that are each yes, no or unknown: a sigmoid for each, cross entropy over what is known.

The loss of a sample is the mean over its known labels, so that losses of combinations can be compared though one has
fewer known labels than another.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.evaluation import conformal, multilabel
from remind_jax.evaluation.judge import Weighed
from remind_jax.ops import losses
from remind_jax.tasks import isotonic
from remind_jax.tasks.task import LOWEST, AnswerSets, Task, entropy_of, log_of, softplus, written


@dataclasses.dataclass(frozen=True)
class Multilabel(Task):
    """Several labels. The baseline is the share of cases of each among the train rows in which it is known."""

    name: ClassVar[str] = "multilabel"
    tunes: ClassVar[bool] = True
    recalibrates: ClassVar[tuple[str, ...]] = ("none", "isotonic")
    explains: ClassVar[str] = "expected number of labels"
    titles: ClassVar[Mapping[str, str]] = multilabel.TITLES
    select: ClassVar[Mapping[str, bool]] = {"loss": False, "auroc_macro": True, "auprc_macro": True, "f1_macro": True}
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]  # from which on a label is predicted
    curves: tuple[isotonic.Curve, ...] = ()  # of each label

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        shares = (labels == 1).sum(axis=0) / (labels >= 0).sum(axis=0)
        return cls(tuple(shares.tolist()), schema.classes, (multilabel.THRESHOLD,) * len(schema.classes))

    @property
    def outputs(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.binary_cross_entropy(logits, labels)

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        return losses.mean_odds(logits, axis)

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        del scale
        found = logits.__array_namespace__().exp(-softplus(-logits))
        return isotonic.along(self.curves, found) if self.curves else found

    def logits(self, predictions: jax.Array) -> jax.Array:
        return log_of(predictions) - log_of(1 - predictions)

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return (predictions >= np.array(self.thresholds)).astype(np.int64)

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        return {f"p_{name}": predictions[:, j] for j, name in enumerate(self.labels)}

    def losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        known = labels >= 0
        right = np.where(labels == 1, predictions, 1 - predictions)
        return np.where(known, -np.log(np.maximum(right, LOWEST)), 0.0).sum(1) / np.maximum(known.sum(1), 1)

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        called = self.answers(predictions) == 1
        return lambda at, weights, gamma=None: multilabel.weighted(
            labels[at], predictions[at], called[at], weights, gamma
        )

    def rarer(self, labels: np.ndarray, patients: np.ndarray, rows: Any = slice(None)) -> Mapping[str, int]:
        return multilabel.rarer(labels, patients, rows)

    def explained(self, predictions: np.ndarray, whole: np.ndarray) -> np.ndarray:
        del whole
        return predictions.sum(axis=1)

    def misses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        odd = conformal.scores_of_classes(_both(np.asarray(predictions, np.float64)))
        return np.where(labels >= 0, np.where(labels == 1, odd[..., 1], odd[..., 0]), np.nan)

    def inside(self, predictions: Any, thresholds: Any) -> dict[str, Any]:
        return {"set": conformal.inside(_both(predictions), thresholds)}

    def sets(self, predictions: np.ndarray, thresholds: np.ndarray) -> AnswerSets:
        inside = self.inside(predictions, thresholds)["set"]
        columns = {f"set_{name}": written(inside[:, j], "01") for j, name in enumerate(self.labels)}

        def hold(labels: np.ndarray) -> np.ndarray:
            right = np.where(labels == 1, inside[..., 1], inside[..., 0])
            return np.where(labels >= 0, right.astype(float), np.nan)

        return AnswerSets(columns, inside.sum(axis=-1), hold)

    def entropy(self, predictions: np.ndarray) -> np.ndarray:
        return sum(entropy_of(np.stack([p, 1 - p], axis=1)) for p in predictions.T)

    def recalibrated(self, how: str, labels: np.ndarray, predictions: np.ndarray) -> Self:
        del how
        pairs = [(p[y >= 0], y[y >= 0] == 1) for p, y in zip(predictions.T, labels.T, strict=True)]
        # A label that no tuning sample has is left as it is.
        same = ((0.0, 1.0), (0.0, 1.0))
        curves = tuple(isotonic.fit(chances, cases) if len(cases) else same for chances, cases in pairs)
        return dataclasses.replace(self, curves=curves)

    def tuned(self, labels: np.ndarray, predictions: np.ndarray) -> Self:
        thresholds = multilabel.f1_thresholds(labels, predictions)
        return dataclasses.replace(self, thresholds=tuple(thresholds.tolist()))

    @property
    def told(self) -> dict[str, Any]:
        found = {"thresholds": self.thresholds} | ({"isotonic": self.curves} if self.curves else {})
        return {name: dict(zip(self.labels, each, strict=True)) for name, each in found.items()}

    def figures(
        self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any
    ) -> dict[str, Any]:
        options |= {"thresholds": np.array(self.thresholds)}
        return multilabel.compute(labels, predictions, self.labels, patients, **options)


def _both(chances: Any) -> Any:
    """Returns the chances of no and yes, [n, l] -> [n, l, 2]."""
    return chances.__array_namespace__().stack([1 - chances, chances], axis=-1)
