"""Time to an event, right-censored: hazards in steps between quantiles of the event times of train rows.

Outputs are added to the hazards of the Kaplan-Meier estimate, so that what is learned is how samples differ from it.
Survival at the end of step T is Π_{s≤T} (1 − h_s); horizons are ends of steps, too. The last step ends with the last
event or horizon, so a time after it tells only that all steps were survived.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Schema
from remind_jax.evaluation import survival
from remind_jax.evaluation.judge import Figures, Weighed
from remind_jax.ops import losses
from remind_jax.tasks.task import LOWEST, Task, entropy_of, log_of, softplus

_LEAST = 1e-4  # of a hazard that a network begins with
_FEW = 1_000  # events


@dataclasses.dataclass(frozen=True)
class Survival(Task):
    """Time to an event. The baseline is the Kaplan-Meier estimate over the train rows."""

    name: ClassVar[str] = "survival"
    titles: ClassVar[Mapping[str, str]] = survival.TITLES
    made: ClassVar[str] = "survival"
    explains: ClassVar[str] = "risk"
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

    @classmethod
    def suits(cls, config: Any, manifest: Manifest) -> dict[str, Any]:
        """Returns what came nearest to a Cox model out of fold (docs/own_data.md): a linear path; of few events, more.

        Weights are then not chosen by the tuning rows, which hold too few events; one network alone needs more steps.
        """
        if manifest.labels[:, 1].sum() >= _FEW:
            return {"model.wide": True}
        return {"model.wide": True, "train.select": "last"} | ({"train.batch_size": 16} if config.ensemble == 1 else {})

    @property
    def outputs(self) -> int:
        return len(self.ends)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{end:g}" for end in self.ends)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.hazards(self._started(logits.astype(np.float32)), *self.steps(labels))

    @functools.cached_property
    def start(self) -> np.ndarray:
        """The hazards of the baseline as logits, float32 [k], to which outputs are added: a network begins there."""
        curve = np.array([1.0, *self.baseline])
        hazard = np.clip(1 - curve[1:] / np.maximum(curve[:-1], LOWEST), _LEAST, 1 - _LEAST)
        return np.log(hazard / (1 - hazard)).astype(np.float32)

    def steps(self, labels: Any) -> tuple[Any, Any]:
        """Returns in which step each time is, int [n], after the last one more, and who has an event in it, bool [n].

        Labels [n, 2] are a numpy or JAX array; times are compared in float32, as batches have them.
        """
        xp = labels.__array_namespace__()
        step = xp.searchsorted(xp.asarray(self.ends, dtype=xp.float32), labels[:, 0].astype(xp.float32), side="left")
        return step, (labels[:, 1] > 0) & (step < len(self.ends))

    def _started(self, logits: Any, sign: int = 1) -> Any:
        """Adds the start to logits [..., k], or takes it away, in their type."""
        xp = logits.__array_namespace__()
        return logits + xp.broadcast_to(xp.asarray(sign * self.start, dtype=logits.dtype), logits.shape)

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        return self._started(losses.mean_hazards(self._started(logits.astype(np.float32)), axis), -1)

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        del scale
        xp = logits.__array_namespace__()
        return xp.exp(xp.cumsum(-softplus(self._started(logits)), axis=-1))

    def logits(self, predictions: jax.Array) -> jax.Array:
        before = jnp.concatenate([jnp.ones_like(predictions[:, :1]), predictions[:, :-1]], axis=1)
        return self._started(log_of(before - predictions) - log_of(predictions), -1)

    def answers(self, predictions: np.ndarray) -> np.ndarray:
        return self.curves(predictions).risk()

    def columns(self, predictions: np.ndarray) -> dict[str, np.ndarray]:
        at = self.curves(predictions).at(np.array(self.horizons))
        return {"risk": self.answers(predictions), **{f"s_{t:g}": at[:, j] for j, t in enumerate(self.horizons)}}

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        whole = self._evaluation(labels, predictions)
        return lambda at, weights, gamma=None: whole.weighted(at, weights)

    def rarer(self, labels: np.ndarray, patients: np.ndarray, rows: Any = slice(None)) -> Mapping[str, int]:
        return survival.few_of(_outcomes(labels[rows]), self.horizons, patients[rows])

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

    def explained(self, predictions: np.ndarray, whole: np.ndarray) -> np.ndarray:
        del whole
        return self.answers(predictions)

    def entropy(self, predictions: np.ndarray) -> np.ndarray:
        """Returns the entropy of the step in which the event is, or of none of them."""
        return entropy_of(-np.diff(predictions, axis=1, prepend=1.0, append=0.0))

    def losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        curve = np.pad(np.asarray(predictions, np.float64), ((0, 0), (1, 0)), constant_values=1.0)
        (step, event), rows = self.steps(labels), np.arange(len(labels))
        last = np.minimum(step + 1, len(self.ends))
        chance = np.where(event, curve[rows, np.minimum(step, last)] - curve[rows, last], curve[rows, last])
        return -np.log(np.maximum(chance, LOWEST))


def _outcomes(labels: np.ndarray) -> survival.Outcomes:
    return survival.Outcomes(np.asarray(labels[:, 0], np.float64), labels[:, 1] == 1)
