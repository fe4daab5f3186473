"""Time to an event, right-censored: hazards in steps between quantiles of the event times of train rows.

Survival at the end of step T is Π_{s≤T} (1 − h_s); horizons are ends of steps, too. The last step ends with the last
event or horizon, so a time after it tells only that all steps were survived.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.evaluation import survival
from remind_jax.evaluation.intervals import Weighted
from remind_jax.evaluation.judge import Figures
from remind_jax.ops import losses
from remind_jax.tasks.task import LOWEST, Task, defined, mean_of, softplus


@dataclasses.dataclass(frozen=True)
class Survival(Task):
    """Time to an event. The baseline is the Kaplan-Meier estimate over the train rows."""

    name: ClassVar[str] = "survival"
    titles: ClassVar[Mapping[str, str]] = survival.TITLES
    select: ClassVar[Mapping[str, bool]] = {"loss": False, "c_index": True, "c_uno": True, "ibs": False}
    ends: tuple[float, ...]  # of the steps, ascending
    horizons: tuple[float, ...]

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        known = _outcomes(labels)
        times = np.sort(known.time[known.event])
        bins = min(config.task.bins, len(times))
        quantiles = times[np.arange(1, bins + 1) * len(times) // bins - 1]
        ends = np.unique([*quantiles, *schema.horizons])
        return cls(tuple(survival.kaplan_meier(known).at(ends).tolist()), tuple(ends.tolist()), schema.horizons)

    @property
    def outputs(self) -> int:
        return len(self.ends)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        ends = jnp.asarray(self.ends, jnp.float32)
        time, event = labels[:, 0].astype(jnp.float32), labels[:, 1] > 0
        step = jnp.searchsorted(ends, time, side="left")
        return losses.hazards(logits, step, event & (step < len(self.ends)))

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        del scale
        xp = logits.__array_namespace__()
        return xp.exp(xp.cumsum(-softplus(logits), axis=-1))

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return self.curves(predictions).risk()

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        at = self.curves(predictions).at(np.array(self.horizons))
        return {"risk": self.answers(predictions), **{f"s_{t:g}": at[:, j] for j, t in enumerate(self.horizons)}}

    def tuning(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float | None]:
        each = self._losses(labels, predictions)
        if not len(labels):
            return {"loss": 0.0, **dict.fromkeys(("c_index", "c_uno", "ibs"))}
        found = self._evaluation(labels, predictions).weighted(np.arange(len(labels)), np.ones((1, len(labels))))
        return {"loss": mean_of(each), **defined(found, self.select)}

    def weighted(self, labels: np.ndarray, predictions: np.ndarray) -> Weighted:
        whole, every = self._evaluation(labels, predictions), np.arange(len(labels))
        return lambda weights: whole.weighted(every, weights)

    def evaluation(self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any) -> Figures:
        whole = self._evaluation(labels, predictions)
        return lambda rows: whole.figures(rows, patients, **options)

    def drawn(self, labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
        whole, every = self._evaluation(labels, predictions), np.ones(len(labels), bool)
        calibration = {f"{t:g}": whole.calibration(j, every) for j, t in enumerate(self.horizons)}
        return {"by_risk": whole.curves(), "calibration": calibration} if len(labels) else {}

    def curves(self, predictions: np.ndarray) -> survival.Predicted:
        """Returns predictions [n, k] as curves over time."""
        return survival.Predicted(np.array(self.ends), np.asarray(predictions, np.float64))

    def _evaluation(self, labels: np.ndarray, predictions: np.ndarray) -> survival.Evaluation:
        return survival.Evaluation(_outcomes(labels), self.curves(predictions), self.horizons)

    def _losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """Returns the losses of predicted survival, [n, 2] and [n, k] -> [n]: what `loss` says of the logits."""
        curve = np.pad(np.asarray(predictions, np.float64), ((0, 0), (1, 0)), constant_values=1.0)
        time = labels[:, 0].astype(np.float32)  # as the loss sees it
        step, rows = np.searchsorted(np.array(self.ends, np.float32), time, side="left"), np.arange(len(labels))
        event, last = (labels[:, 1] > 0) & (step < len(self.ends)), np.minimum(step + 1, len(self.ends))
        chance = np.where(event, curve[rows, np.minimum(step, last)] - curve[rows, last], curve[rows, last])
        return -np.log(np.maximum(chance, LOWEST))


def _outcomes(labels: np.ndarray) -> survival.Outcomes:
    return survival.Outcomes(np.asarray(labels[:, 0], np.float64), labels[:, 1] == 1)
