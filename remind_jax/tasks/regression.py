"""A number: its mean alone, or with a normal distribution or quantiles, from which intervals follow.

What is learned is the transformed value, standardised on train rows, so that losses are of one size whatever the unit;
predictions are in the unit of the column. After log1p the predicted value is therefore a median rather than a mean.
"""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.evaluation import regression
from remind_jax.evaluation.judge import Weighed
from remind_jax.ops import losses
from remind_jax.tasks.task import AnswerSets, Task, softplus

OUTPUTS = {"mean": 1, "gaussian": 2, "quantiles": 3}
"""Outputs of the head by `task.predicts`."""
_FLOOR = 1e-2  # of a standard deviation, in those of the train rows
_FARTHEST = 60.0  # a standardised prediction, beyond which exp would leave what a float can hold


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """A number, and with `predicts` other than `mean` bounds.

    The baseline is the mean of the train rows, and the quantiles between which lie `level` of them.
    """

    name: ClassVar[str] = "regression"
    titles: ClassVar[Mapping[str, str]] = regression.TITLES
    more: ClassVar[bool] = False
    made: ClassVar[str] = "values"
    explains: ClassVar[str] = "predicted value"
    select: ClassVar[Mapping[str, bool]] = {"loss": False, "mae": False, "rmse": False, "r2": True, "spearman": True}
    predicts: str  # a key of `OUTPUTS`
    level: float  # the share that intervals promise
    transform: str  # none or log1p
    mean: float  # of the transformed train rows
    scale: float  # their standard deviation

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        options = {"predicts": config.task.predicts, "level": config.task.level, "transform": schema.transform}
        values = _transformed(labels, schema.transform)
        centre, (low, high) = float(values.mean()), np.quantile(values, _sides(config.task.level)).tolist()
        bounds = (low, high) if options["predicts"] != "mean" else ()
        baseline = _inverse(np.array([centre, *bounds]), schema.transform)
        return cls(tuple(baseline.tolist()), mean=centre, scale=float(values.std()), **options)

    @property
    def outputs(self) -> int:
        return OUTPUTS[self.predicts]

    @property
    def names(self) -> tuple[str, ...]:
        return ("value", "lower", "upper")[: len(self.baseline)]

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        values = self.standard(labels)
        if self.predicts == "quantiles":
            return losses.pinball(self._quantiles(logits), values, jnp.array([0.5, *_sides(self.level)]))
        if self.predicts == "gaussian":
            return losses.gaussian(logits, values, _FLOOR)
        return jnp.square(logits[:, 0].astype(jnp.float32) - values)

    def standard(self, values: Any) -> Any:
        """Returns what is learned of values: transformed, in standard deviations from the mean."""
        return (_transformed(values, self.transform) - self.mean) / self.scale

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        """Averages values and bounds; of normal distributions takes the mean and variance of their mixture."""
        logits = logits.astype(jnp.float32)
        middle, widths = jnp.mean(logits[..., :1], axis=axis), softplus(logits[..., 1:])
        if self.predicts == "gaussian":
            spread = jnp.var(logits[..., :1], axis=axis)
            widths = jnp.sqrt(jnp.mean(jnp.square(widths + _FLOOR), axis=axis) + spread) - _FLOOR
        else:
            widths = jnp.mean(widths, axis=axis)
        widths = jnp.maximum(widths, 1e-6)
        return jnp.concatenate([middle, widths + jnp.log(-jnp.expm1(-widths))], axis=-1)  # softplus, inverted

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        del scale
        xp, middle = logits.__array_namespace__(), logits[:, :1]
        if self.predicts == "quantiles":
            found = self._quantiles(logits)
        elif self.predicts == "gaussian":
            reach = self._reach() * (softplus(logits[:, 1:]) + _FLOOR)
            found = xp.concat([middle, middle - reach, middle + reach], axis=-1)
        else:
            found = middle
        return _inverse(xp.clip(found, -_FARTHEST, _FARTHEST) * self.scale + self.mean, self.transform)

    def logits(self, predictions: jax.Array) -> jax.Array:
        return self.standard(predictions)

    def scores(self, logits: jax.Array) -> jax.Array:
        return logits[:, :1].astype(jnp.float32)  # in standard deviations, whatever the unit

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return predictions[:, 0]

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self.names, predictions.T, strict=True))

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        return lambda at, weights, gamma=None: regression.weighted(labels[at], predictions[at], weights)

    def figures(
        self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any
    ) -> dict[str, Any]:
        return regression.compute(labels, predictions, patients, **options)

    def drawn(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
        # After a transform, or as a quantile, what is predicted is a median.
        typical = "mean" if self.transform == "none" and self.predicts != "quantiles" else "median"
        bins = regression.by_prediction(labels, predictions[:, 0].astype(np.float64), getattr(np, typical))
        return {"by_prediction": bins, "typical": typical} if bins else {}

    def explained(self, predictions: np.ndarray, whole: np.ndarray) -> np.ndarray:
        del whole
        return predictions[:, 0]

    def misses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        low, high = _bounds(predictions)
        return np.maximum(low - labels, labels - high).astype(np.float64)

    def inside(self, predictions: Any, thresholds: Any) -> dict[str, Any]:
        xp, (low, high) = predictions.__array_namespace__(), _bounds(predictions)
        low, high = low - thresholds, xp.maximum(high + thresholds, low - thresholds)
        return {"lower": xp.maximum(low, 0.0) if self.transform == "log1p" else low, "upper": high}

    def sets(self, predictions: np.ndarray, thresholds: np.ndarray) -> AnswerSets:
        low, high = (columns := self.inside(predictions, thresholds)).values()
        return AnswerSets(columns, high - low, lambda labels: (low <= labels) & (labels <= high))

    def entropy(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the width of intervals before the transform, which is the entropy but for a term."""
        if len(self.baseline) == 1:
            raise UserError("task.predicts=mean says nothing of how sure it is: train with gaussian or quantiles")
        lower, upper = map(self.standard, predictions[:, 1:].T)
        return np.log(np.maximum(upper - lower, 1e-12))

    def losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        value, *bounds = map(self.standard, (labels, *predictions.T))
        if self.predicts == "quantiles":
            levels = np.array([0.5, *_sides(self.level)])
            above = value[:, None] - np.stack(bounds, axis=1)
            return np.maximum(levels * above, (levels - 1) * above).mean(axis=1)
        if self.predicts == "gaussian":
            deviation = (bounds[2] - bounds[1]) / (2 * self._reach())
            return ((value - bounds[0]) / deviation) ** 2 / 2 + np.log(deviation)
        return (value - bounds[0]) ** 2

    def _quantiles(self, logits: Any) -> Any:
        """Returns median, lower and upper quantile, [b, 3], which cannot cross."""
        xp, middle = logits.__array_namespace__(), logits[:, :1]
        below, above = softplus(logits[:, 1:2]), softplus(logits[:, 2:])
        return xp.concat([middle, middle - below, middle + above], axis=-1)

    def _reach(self) -> float:
        """Returns how many standard deviations an interval of a normal distribution reaches to either side."""
        return statistics.NormalDist().inv_cdf(_sides(self.level)[1])


def _bounds(predictions: Any) -> tuple[Any, Any]:
    """Returns lower and upper bound of each prediction [n, p]; without bounds both are its value."""
    return (predictions[:, -2], predictions[:, -1]) if predictions.shape[1] > 1 else (predictions[:, 0],) * 2


def _sides(level: float) -> tuple[float, float]:
    """Returns the levels of the quantiles between which a share lies."""
    return (1 - level) / 2, (1 + level) / 2


def _transformed(values: Any, transform: str) -> Any:
    return values.__array_namespace__().log1p(values) if transform == "log1p" else values


def _inverse(values: Any, transform: str) -> Any:
    xp = values.__array_namespace__()
    return xp.expm1(xp.clip(values, None, 80.0)) if transform == "log1p" else values
