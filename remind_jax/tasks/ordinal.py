"""Ordered classes: the chance to stop at each of them for who has come so far, and with it that of every class.

Output k is the logit of P(y = k | y ≥ k), so that P(y > k) = Π_{j≤k} (1 − P(y = j | y ≥ j)) falls with k whatever the
outputs are, and the loss is the likelihood of the class. Each cumulative chance has weights of its own. That is the
conditional form of CORN (Shi et al. 2021), whose authors measured it above CORAL (Cao et al. 2020), which keeps the
order by one weight vector for all classes; with all terms in one likelihood, as Jenkinson et al. (2021) derive it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.evaluation import ordinal
from remind_jax.evaluation.intervals import Gamma
from remind_jax.evaluation.judge import Judge, Weighed, of_classes
from remind_jax.ops import losses
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task, log_of, softplus


@dataclasses.dataclass(frozen=True)
class Ordinal(Classes):
    """Classes in their order."""

    name: ClassVar[str] = "ordinal"
    titles: ClassVar[Mapping[str, str]] = {**ordinal.TITLES, **Classes.titles}
    select: ClassVar[Mapping[str, bool]] = {**Classes.select, "mae": False, "qwk": True}

    @classmethod
    def of_shares(cls, classes: tuple[str, ...], config: Any, shares: np.ndarray) -> Self:
        return cls(tuple(shares.tolist()), classes)

    factor, digits, unit, gradients = Task.factor, Task.digits, Task.unit, Task.gradients
    recalibrates = Task.recalibrates
    scores, tunes, compared = Task.scores, Task.tunes, Task.compared

    @property
    def outputs(self) -> int:
        return len(self.classes) - 1

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        # Who stops at no output has come past all of them, to the last class.
        last = len(self.classes) - 1
        return losses.hazards(logits, labels, labels < last)

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        return losses.mean_hazards(logits, axis)

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        del scale
        xp = logits.__array_namespace__()
        passed = xp.cumsum(-softplus(logits), axis=-1)
        before = xp.concat([xp.zeros_like(passed[:, :1]), passed[:, :-1]], axis=-1)
        return xp.concat([xp.exp(before - softplus(-logits)), xp.exp(passed[:, -1:])], axis=-1)

    def logits(self, predictions: jax.Array) -> jax.Array:
        later = jnp.cumsum(predictions[:, :0:-1], axis=1)[:, ::-1]  # chances of all classes after each
        return log_of(predictions[:, :-1]) - log_of(later)

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        of_classes, answers = super().weighed(labels, predictions), predictions.argmax(1)

        def figures(at: np.ndarray, weights: np.ndarray, gamma: Gamma | None = None) -> Mapping[str, np.ndarray]:
            ordered = ordinal.weighted(labels[at], answers[at], predictions.shape[1], weights)
            return {**of_classes(at, weights, gamma), **ordered}

        return figures

    tuning = Task.tuning

    @property
    def judge(self) -> Judge:
        titles = {**ordinal.TITLES, **of_classes().titles}
        return Judge(
            self.name,
            titles,
            tuple(self.titles),
            "qwk",
            self.more,
            self.evaluation,
            fitted=self.to_dict(),
        )

    def figures(
        self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any
    ) -> dict[str, Any]:
        return ordinal.compute(labels, predictions, patients, **options)

    evaluation = Task.evaluation
