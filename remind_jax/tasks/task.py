"""What a task is to the rest: outputs of the head, losses of single samples, predictions, figures.

Labels are what `Manifest.labels` gives: of classes int [n], of several labels int [n, l], of values float [n], of
survival float [n, 2]. Predictions are float [n, p].
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import jax
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.evaluation.intervals import Weighted
from remind_jax.evaluation.judge import Figures, Judge

LOWEST = 1e-12  # of a probability whose logarithm is taken


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with what it learned of the labels of train rows; its fields are plain, so that they can be written.

    Attributes:
      name: key of `TASKS`.
      titles: titles of the figures with an interval, that which leads first.
      more: whether more of that is better.
      tunes: whether `tuned` chooses anything.
      select: figures of `tuning` by which weights can be chosen, and whether more of each is better.
      baseline: prediction for a sample without any modality, [p].
    """

    name: ClassVar[str]
    titles: ClassVar[Mapping[str, str]]
    more: ClassVar[bool] = True
    tunes: ClassVar[bool] = False
    select: ClassVar[Mapping[str, bool]]
    baseline: tuple[float, ...]

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        """Makes the task of a schema and a config from the labels of the train rows."""
        raise NotImplementedError

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        raise NotImplementedError

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of single samples, [b, o] and labels [b, ...] -> [b], in float32."""
        raise NotImplementedError

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        """Makes predictions of logits, a numpy or JAX array, [b, o] -> [b, p] of their type.

        `scale` [c] divides probabilities of classes before they are made to sum to one.
        """
        raise NotImplementedError

    def scores(self, logits: jax.Array) -> jax.Array:
        """Returns what Fair Mixup holds even between combinations, predictions of one size in float32, [b, p]."""
        return self.predictions(logits.astype("float32"))

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the one answer for each sample, [n, p] -> [n] or, of several labels, [n, l]."""
        raise NotImplementedError

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what `remind predict` writes of predictions, [n, p] -> [n] each."""
        raise NotImplementedError

    def tuning(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
        """Returns figures of tuning samples without intervals: `loss`, and those that are cheap; None if undefined."""
        raise NotImplementedError

    def tuned(self, labels: np.ndarray, predictions: np.ndarray) -> Self:
        """Returns the task with what is chosen on tuning samples."""
        del labels, predictions
        return self

    @property
    def told(self) -> dict[str, Any]:
        """Says for the report what `tuned` has chosen."""
        return {}

    def figures(
        self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any
    ) -> dict[str, Any]:
        """Returns M of report.json of samples of patients [n]; `options`: `seed` and `resamples` of the intervals."""
        raise NotImplementedError

    def weighted(self, labels: np.ndarray, predictions: np.ndarray) -> Weighted:
        """Makes the figures in `titles` of samples under weights of them."""
        raise NotImplementedError

    def evaluation(self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any) -> Figures:
        """Makes the figures of samples that are evaluated together; `options` as for `figures`."""
        return lambda rows: self.figures(labels[rows], predictions[rows], patients[rows], **options)

    def drawn(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
        """Returns what else a page draws of samples, see `report.build_report`; empty for nothing."""
        del labels, predictions
        return {}

    @property
    def judge(self) -> Judge:
        """What a report needs to know of the task."""
        first, bounded = next(iter(self.titles)), tuple(self.titles)
        return Judge(self.name, self.titles, bounded, first, self.more, self.evaluation, self.weighted, self.drawn)

    def to_dict(self) -> dict[str, Any]:
        """Returns the task for JSON; `tasks.from_dict` inverts it."""
        return {"task": self.name, **dataclasses.asdict(self)}


def mean_of(losses: np.ndarray) -> float:
    """Returns the mean of losses [n], 0 of none."""
    return float(np.mean(losses)) if len(losses) else 0.0


def defined(found: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, float | None]:
    """Returns figures under one weighting, [1] each, of some names but `loss`; None of what is not finite."""
    values = {name: float(found[name][0]) for name in names if name != "loss"}
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def softplus(x: Any) -> Any:
    """Returns log(1 + exp(x)) of a numpy or JAX array."""
    xp = x.__array_namespace__()
    return xp.logaddexp(x, xp.zeros_like(x))
