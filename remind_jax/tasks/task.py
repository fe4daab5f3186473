"""What a task is to the rest: outputs of the head, losses of single samples, predictions, figures.

Labels are what `Manifest.labels` gives: of classes int [n], of several labels int [n, l], of values float [n], of
survival float [n, 2]. Predictions are float [n, p].
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Schema
from remind_jax.evaluation.judge import Figures, Judge, Weighed

LOWEST = 1e-12  # of a probability whose logarithm is taken


class AnswerSets(NamedTuple):
    """Sets of answers of n samples.

    Attributes:
      columns: what `remind predict` writes of them, [n] each.
      sizes: number of answers, or width, [n]; of several labels [n, l].
      hold: (labels) -> which sets hold the truth, bool [n]; of several labels float [n, l], NaN where one is unknown.
    """

    columns: dict[str, np.ndarray]
    sizes: np.ndarray
    hold: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with what it learned of the labels of train rows; its fields are plain, so that they can be written.

    Attributes:
      name: key of `TASKS`.
      titles: titles of the figures with an interval, that which leads first.
      more: whether more of that is better.
      tunes: whether `tuned` chooses anything.
      recalibrates: choices of `eval.recalibrate`, see `recalibrated`.
      select: figures of `tuning` by which weights can be chosen, and whether more of each is better.
      made: what predictions are called in an exported program.
      factor, digits, unit: factor and digits of figures in tables of several runs, and what they are then in.
      explains: what of predictions is shared out among modalities, see `explained`.
      gradients: outputs whose gradients are compared, keys of `ops.ntk.OUTPUTS` or `loss`; the first by default.
      marked: what `marks` measures.
      baseline: prediction for a sample without any modality, [p].
    """

    name: ClassVar[str]
    titles: ClassVar[Mapping[str, str]]
    more: ClassVar[bool] = True
    tunes: ClassVar[bool] = False
    recalibrates: ClassVar[tuple[str, ...]] = ("none",)
    select: ClassVar[Mapping[str, bool]]
    made: ClassVar[str] = "probabilities"
    factor: ClassVar[float] = 1.0
    digits: ClassVar[int] = 3
    unit: ClassVar[str] = "each in its own unit"
    explains: ClassVar[str]
    gradients: ClassVar[tuple[str, ...]] = ("loss",)
    marked: ClassVar[str] = "loss"
    baseline: tuple[float, ...]

    @classmethod
    def fit(cls, schema: Schema, config: Any, labels: np.ndarray) -> Self:
        """Makes the task of a schema and a config from the labels of the train rows."""
        raise NotImplementedError

    @classmethod
    def suits(cls, config: Any, manifest: Manifest) -> dict[str, Any]:
        """Returns keys of a config that suit the task and its rows; `fit` sets those that it is not given."""
        del config, manifest
        return {}

    @property
    def outputs(self) -> int:
        """Number of outputs of the head."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the predictions of a sample is of, [p]: a class, a label, a bound or a time."""
        raise NotImplementedError

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns the loss of single samples, [b, o] and labels [b, ...] -> [b], in float32."""
        raise NotImplementedError

    def mean_logits(self, logits: jax.Array, axis: int) -> jax.Array:
        """Makes logits whose predictions are the means of those of k predictors, [..., k, ..., o] -> without `axis`."""
        raise NotImplementedError

    def predictions(self, logits: Any, scale: Any = None) -> Any:
        """Makes predictions of logits, a numpy or JAX array, [b, o] -> [b, p] of their type.

        `scale` [c] divides probabilities of classes before they are made to sum to one.
        """
        raise NotImplementedError

    def logits(self, predictions: jax.Array) -> jax.Array:
        """Inverts `predictions`, where they have no bounds, [b, p] -> [b, o] in float32."""
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
        if not len(labels):
            return {"loss": 0.0, **dict.fromkeys(name for name in self.select if name != "loss")}
        found = self.weighed(labels, predictions)(np.arange(len(labels)), np.ones((1, len(labels))))
        values = {name: float(found[name][0]) for name in self.select if name != "loss"}
        values = {name: value if np.isfinite(value) else None for name, value in values.items()}
        return {"loss": float(np.mean(self.losses(labels, predictions))), **values}

    def losses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """Returns the losses of predictions, [n, ...] and [n, p] -> [n]: what `loss` says of the logits behind them."""
        raise NotImplementedError

    def weighed(self, labels: np.ndarray, predictions: np.ndarray) -> Weighed:
        """Makes the figures that are cheap, those of `compared` among them, of some samples in many weightings."""
        raise NotImplementedError

    def rarer(self, labels: np.ndarray, patients: np.ndarray, rows: Any = slice(None)) -> Mapping[str, int]:
        """Returns how many patients [n] of some rows have the rarest of the outcomes among labels, by figure.

        It has the figures that compare people with one outcome and with another.
        """
        del labels, patients, rows
        return {}

    def explained(self, predictions: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """Returns the one number of each prediction that is explained, [n, p] -> [n].

        `whole` [n, p] are those from all modalities of the samples.
        """
        raise NotImplementedError

    def misses(self, labels: np.ndarray, predictions: np.ndarray) -> np.ndarray | None:
        """Returns how odd the truth is for predictions, float64 [n], see `evaluation.conformal`; None without sets.

        Of several labels it is [n, l], NaN where one is not known.
        """
        del labels, predictions
        return None

    def inside(self, predictions: Any, thresholds: Any) -> dict[str, Any]:
        """Returns sets of the answers that are no odder than thresholds [n], as exported programs have them.

        Predictions and thresholds are numpy or JAX arrays, thresholds of several labels [n, l].
        """
        raise NotImplementedError

    def sets(self, predictions: np.ndarray, thresholds: np.ndarray) -> AnswerSets:
        """Makes of `inside` what `remind predict` writes, and what a report counts."""
        raise NotImplementedError

    def entropy(self, predictions: np.ndarray) -> np.ndarray:
        """Returns how unsure predictions are, in nats, [n, p] -> [n]. Raises UserError: they do not say."""
        raise NotImplementedError

    def marks(self, logits: jax.Array, labels: jax.Array, scale: jax.Array) -> jax.Array:
        """Returns what single samples add to a mean that judges a gate, [b, o] and labels -> [b]; here their losses."""
        del scale
        return self.loss(logits, labels)

    @property
    def compared(self) -> dict[str, str]:
        """Titles of the figures by which runs are compared, that which leads first."""
        return {name: title for name, title in self.titles.items() if name in self.select}

    def is_better_high(self, figure: str) -> bool:
        """Tells whether more of a figure that is compared is better."""
        return self.select[figure]

    def shown(self, value: float | None) -> str:
        """Writes a figure as tables of runs do."""
        return "-" if value is None else f"{self.factor * value:.{self.digits}f}"

    def recalibrated(self, how: str, labels: np.ndarray, predictions: np.ndarray) -> Self:
        """Returns the task with predictions recalibrated on tuning samples, `how` being one of `recalibrates`."""
        raise NotImplementedError

    def tuned(self, labels: np.ndarray, predictions: np.ndarray) -> Self:
        """Returns the task with what is chosen on tuning samples."""
        del labels, predictions
        return self

    @property
    def told(self) -> dict[str, Any]:
        """Says for the report what `recalibrated` and `tuned` have chosen."""
        return {}

    def figures(
        self, labels: np.ndarray, predictions: np.ndarray, patients: np.ndarray, **options: Any
    ) -> dict[str, Any]:
        """Returns M of report.json of samples of patients [n]; `options`: `seed` and `resamples` of the intervals."""
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
        of = self.evaluation, self.drawn
        return Judge(self.name, self.titles, bounded, first, self.more, *of, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Returns the task for JSON; `tasks.from_dict` inverts it."""
        fields = dataclasses.asdict(self).items()
        return {"task": self.name, **{key: list(value) if isinstance(value, tuple) else value for key, value in fields}}


def written(inside: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Writes sets, bool [n, c], as the names of their answers with strokes between, [n]."""
    return np.array(["|".join(np.array([*names], object)[row]) for row in inside], object)


def entropy_of(chances: np.ndarray) -> np.ndarray:
    """Returns the entropy in nats, [k, c] -> [k]."""
    chances = np.asarray(chances, np.float64)
    return -np.sum(chances * np.log(np.maximum(chances, 1e-300)), axis=1)


def log_of(chances: jax.Array) -> jax.Array:
    """Returns logarithms of chances, finite ones of 0."""
    return jnp.log(jnp.maximum(chances, LOWEST))


def softplus(x: Any) -> Any:
    """Returns log(1 + exp(x)) of a numpy or JAX array."""
    xp = x.__array_namespace__()
    return xp.logaddexp(x, xp.zeros_like(x))
