"""One class of several: softmax cross entropy or focal loss, probabilities of the classes."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.evaluation import intervals, metrics
from remind_jax.ops import losses
from remind_jax.tasks.task import LOWEST, Figures, Headline, Task, mean_of


def probabilities_of(logits: Any, offset: Any, scale: Any) -> Any:
    """Turns logits [b, c], a numpy or JAX array, into probabilities of their type; it is the only function that does.

    `offset` [b, c] is added to the logits; `scale` [c] divides the probabilities before they are made to sum to one.
    """
    xp = logits.__array_namespace__()
    shifted = logits + offset
    weights = xp.exp(shifted - xp.max(shifted, axis=-1, keepdims=True)) / scale[None]
    return weights / xp.sum(weights, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Classes(Task):
    """Classes without order. The baseline is the share of each among the train rows."""

    name: ClassVar[str] = "classes"
    headline: ClassVar[Headline] = Headline("accuracy", "Accuracy")
    select: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True, "macro_f1": True, "auroc": True}
    classes: tuple[str, ...]
    focal_gamma: float | None = None  # None for cross entropy
    focal_alpha: tuple[float, ...] | None = None  # factors of the classes
    focal_detach: bool = False

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        shares = np.bincount(labels, minlength=len(schema.classes)) / len(labels)
        return cls.of_shares(schema, config, shares)

    @classmethod
    def of_shares(cls, schema: Schema, config: Any, shares: np.ndarray) -> Self:
        """Makes the task from the share of each class among the train rows, float64 [c]."""
        objective, focal = config.objective, {}
        if objective.loss == "focal":
            alpha = tuple((1.0 - shares).tolist()) if objective.focal_alpha == "inverse_class" else None
            focal = {"focal_gamma": objective.focal_gamma, "focal_alpha": alpha, "focal_detach": objective.focal_detach}
        return cls(tuple(shares.tolist()), schema.classes, **focal)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self.focal_gamma is None:
            return losses.cross_entropy(logits, labels)
        alpha = None if self.focal_alpha is None else jnp.asarray(self.focal_alpha, jnp.float32)
        return losses.focal_loss(logits, labels, gamma=self.focal_gamma, alpha=alpha, detach=self.focal_detach)

    def predictions(self, logits: Any) -> Any:
        xp = logits.__array_namespace__()
        return probabilities_of(logits, xp.zeros_like(logits), xp.ones_like(logits[0]))

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return predictions.argmax(axis=1)

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        named = np.array(self.classes, object)[self.answers(predictions)]
        return {"prediction": named, **{f"p_{name}": predictions[:, k] for k, name in enumerate(self.classes)}}

    def tuning(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
        values, _ = metrics.compute(labels, predictions)
        chosen = predictions[np.arange(len(labels)), labels]
        values = {name: values[name] for name in ("accuracy", "macro_f1", "auroc")}
        return {"loss": mean_of(-np.log(np.maximum(chosen, LOWEST))), **values}

    def evaluation(
        self,
        labels: np.ndarray,
        predictions: np.ndarray,
        patients: np.ndarray,
        *,
        seed: int,
        resamples: int = intervals.RESAMPLES,
    ) -> Figures:
        def figures(rows: np.ndarray) -> dict[str, Any]:
            some = labels[rows], predictions[rows]
            values, notes = metrics.compute(*some)
            bounds, bound_notes = intervals.intervals(*some, patients[rows], seed=seed, resamples=resamples)
            return {**values, **bounds, "notes": notes | bound_notes}

        return figures
