"""One class of several: softmax cross entropy or focal loss, probabilities of the classes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.evaluation import conformal, intervals, metrics
from remind_jax.evaluation import judge as judges
from remind_jax.evaluation.judge import Figures, Judge, Weighed
from remind_jax.ops import losses
from remind_jax.tasks import isotonic
from remind_jax.tasks.task import LOWEST, AnswerSets, Task, entropy_of, log_of, written

PRIOR_POWERS = tuple(i / 10 for i in range(-5, 16))
"""Powers of the class prior that `choose_prior_power` tries."""


def probabilities_of(logits: Any, offset: Any, scale: Any) -> Any:
    """Turns logits [b, c], a numpy or JAX array, into probabilities of their type; it is the only function that does.

    `offset` [b, c] is added to the logits; `scale` [c] divides the probabilities before they are made to sum to one.
    """
    xp = logits.__array_namespace__()
    shifted = logits + offset
    weights = xp.exp(shifted - xp.max(shifted, axis=-1, keepdims=True)) / scale[None]
    return weights / xp.sum(weights, axis=-1, keepdims=True)


def tuning_figures(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Returns the figures that weights can be chosen by: loss, accuracy, macro-F1 and AUROC."""
    values, _ = metrics.compute(labels, probabilities)
    chosen = probabilities[np.arange(len(labels)), labels]
    values = {name: values[name] for name in ("accuracy", "macro_f1", "auroc")}
    return {"loss": float(-np.mean(np.log(np.maximum(chosen, LOWEST)))), **values}


def choose_prior_power(
    labels: np.ndarray,
    probabilities: np.ndarray,
    prior: np.ndarray,
    metric: str,
    powers: Sequence[float] = PRIOR_POWERS,
) -> float:
    """Returns the power of the class prior that gives the best metric; of equal ones the power nearest to zero.

    Labels [n] and probabilities [n, c] are of tuning rows, without such an adjustment; `prior` [c] is the share of each
    class among the train rows; the metric is `accuracy` or `macro_f1`.
    """
    found, of = np.asarray(probabilities, np.float64), metrics.METRICS[metric].of

    def value(power: float) -> tuple[float, float]:
        return of(labels, found * _factors(prior, power))[0], -abs(power)

    return max(powers, key=value)


def _factors(prior: np.ndarray, power: float) -> np.ndarray:
    """Returns factors of probabilities that divide them by a power of the class prior [c]; the largest is 1."""
    found = np.maximum(prior, LOWEST) ** -power
    return found / found.max()


def best_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the temperature with the least loss on tuning rows, between 1/20 and 20 (Guo et al. 2017).

    Labels are int [n], probabilities [n, c]; the logarithms of these, divided by it, are the new logits.
    """
    from scipy.optimize import minimize_scalar

    logits = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-300))
    rows, one = np.arange(len(labels)), np.ones(1)

    def loss(log_temperature: float) -> float:
        found = probabilities_of(logits / np.exp(log_temperature), 0.0, one)
        return float(-np.mean(np.log(np.maximum(found[rows, labels], LOWEST))))

    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded").x))


@dataclasses.dataclass(frozen=True)
class Classes(Task):
    """Classes without order. The baseline is the share of each among the train rows."""

    name: ClassVar[str] = "classes"
    titles: ClassVar[Mapping[str, str]] = {name: metrics.METRICS[name].title for name in intervals.NAMES}
    select: ClassVar[Mapping[str, bool]] = {"loss": False, "accuracy": True, "macro_f1": True, "auroc": True}
    tunes: ClassVar[bool] = True
    factor: ClassVar[float] = 100.0
    digits: ClassVar[int] = 1
    unit: ClassVar[str] = "in percent"
    explains: ClassVar[str] = "predicted class's probability"
    gradients: ClassVar[tuple[str, ...]] = ("margin", "loss", "logit")
    recalibrates: ClassVar[tuple[str, ...]] = ("none", "temperature", "isotonic")
    marked: ClassVar[str] = "accuracy"
    classes: tuple[str, ...]
    focal_gamma: float | None = None  # None for cross entropy
    focal_alpha: tuple[float, ...] | None = None  # factors of the classes
    focal_detach: bool = False
    temperature: float = 1.0  # logits are divided by it
    curves: tuple[isotonic.Curve, ...] = ()  # of each class against the rest, before they are made to sum to one
    decision: tuple[float, ...] = ()  # factors of probabilities by which one is largest where macro-F1 is to be high

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        shares = np.bincount(labels, minlength=len(schema.classes)) / len(labels)
        return cls.of_shares(schema.classes, config, shares)

    @classmethod
    def of_shares(cls, classes: tuple[str, ...], config: Any, shares: np.ndarray) -> Self:
        """Makes the task from the share of each class among the train rows, float64 [c]."""
        objective, focal = config.objective, {}
        if objective.loss == "focal":
            alpha = tuple((1.0 - shares).tolist()) if objective.focal_alpha == "inverse_class" else None
            focal = {"focal_gamma": objective.focal_gamma, "focal_alpha": alpha, "focal_detach": objective.focal_detach}
        return cls(tuple(shares.tolist()), classes, **focal)

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        if self.focal_gamma is None:
            return losses.cross_entropy(logits, labels)
        alpha = None if self.focal_alpha is None else jnp.asarray(self.focal_alpha, jnp.float32)
        return losses.focal_loss(logits, labels, gamma=self.focal_gamma, alpha=alpha, detach=self.focal_detach)

    def scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        return losses.mean_prediction(logits, axis)

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        scale = np.ones(1, np.float32) if scale is None else scale
        if self.temperature != 1.0:
            logits, scale = logits / self.temperature, scale ** (1 / self.temperature)
        found = probabilities_of(logits, 0.0, scale)
        if not self.curves:
            return found
        weights = isotonic.along(self.curves, found)
        return weights / weights.sum(-1, keepdims=True)

    def logits(self, predictions: jax.Array) -> jax.Array:
        return log_of(predictions)

    def recalibrated(self, how: str, labels: np.ndarray, predictions: np.ndarray) -> Self:
        if how == "temperature":
            return dataclasses.replace(self, temperature=self.temperature * best_temperature(labels, predictions))
        curves = (isotonic.fit(predictions[:, k], labels == k) for k in range(predictions.shape[1]))
        return dataclasses.replace(self, curves=tuple(curves))

    def tuned(self, labels: np.ndarray, predictions: np.ndarray) -> Self:
        if not len(labels):
            return self
        prior = np.array(self.baseline)
        power = choose_prior_power(labels, predictions, prior, "macro_f1")
        return dataclasses.replace(self, decision=tuple(_factors(prior, power).tolist()))

    @property
    def told(self) -> dict[str, Any]:
        found = {"temperature": self.temperature} if self.temperature != 1.0 else {}
        found |= {"isotonic": dict(zip(self.classes, self.curves, strict=True))} if self.curves else {}
        return found | ({"decision": dict(zip(self.classes, self.decision, strict=True))} if self.decision else {})

    @property
    def compared(self) -> dict[str, str]:
        return super().compared | (judges.TUNED_TITLE if self.decision else {})

    def is_better_high(self, figure: str) -> bool:
        return figure in judges.TUNED_TITLE or super().is_better_high(figure)

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return predictions.argmax(axis=1)

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        named = np.array(self.classes, object)[self.answers(predictions)]
        return {"prediction": named, **{f"p_{name}": predictions[:, k] for k, name in enumerate(self.classes)}}

    def tuning(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
        return tuning_figures(labels, predictions)

    def losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        return -np.log(np.maximum(predictions[np.arange(len(labels)), labels], LOWEST))

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        return judges.weighed_of_classes(labels, predictions, self.decision)

    def rarer(self, labels: np.ndarray, patients: np.ndarray, rows: Any = slice(None)) -> Mapping[str, int]:
        counts = [intervals.rarer(labels[rows] == k, patients[rows]) for k in np.unique(labels)]
        return dict.fromkeys(intervals.RANKED, min(counts))

    def explained(self, predictions: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return predictions[np.arange(len(whole)), whole.argmax(axis=1)]

    def misses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        return conformal.scores_of_classes(np.asarray(predictions, np.float64))[np.arange(len(labels)), labels]

    def inside(self, predictions: Any, thresholds: Any) -> dict[str, Any]:
        return {"set": conformal.inside(predictions, thresholds)}

    def sets(self, predictions: np.ndarray, thresholds: np.ndarray) -> AnswerSets:
        inside = self.inside(predictions, thresholds)["set"]
        columns = {"set": written(inside, self.classes)}
        return AnswerSets(columns, inside.sum(axis=1), lambda labels: inside[np.arange(len(inside)), labels])

    def entropy(self, predictions: np.ndarray) -> np.ndarray:
        return entropy_of(predictions)

    def marks(self, logits: jax.Array, labels: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.argmax(self.predictions(logits, scale), axis=-1) == labels

    def evaluation(self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any) -> Figures:
        return judges.figures_of_classes(labels, predictions, patients, decision=self.decision, **options)

    @property
    def judge(self) -> Judge:
        return judges.of_classes(self.decision)
