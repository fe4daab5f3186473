"""What the records of metrics.jsonl are made of, and where a run stands."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from remind_jax.errors import NotFiniteError
from remind_jax.runtime import progress
from remind_jax.training.run_folder import RunFolder


@dataclasses.dataclass
class Cursor:
    """Where a run stands, besides its arrays.

    Attributes:
      stage: number of the stage.
      best: best tuning value in it.
      waited: evaluations since.
      ended: whether the stage ended early.
      sums, counted: sums of metrics over the steps since the last record of metrics.jsonl, and how many these are.
      rejected: steps since that record that were not finite.
      in_a_row, blamed: rejected steps since the last good one, and their combinations.
    """

    stage: int = 0
    best: float | None = None
    waited: int = 0
    ended: bool = False
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    counted: int = 0
    rejected: int = 0
    in_a_row: int = 0
    blamed: list[str] = dataclasses.field(default_factory=list)


class Recorder:
    """Averages the metrics of steps between two records of metrics.jsonl."""

    def __init__(
        self,
        folder: RunFolder,
        stage: str,
        groups: tuple[str, ...],
        cells: tuple[str, ...],
        every: int,
        max_rejected: int,
        cursor: Cursor,
        say: Callable[[str], None],
    ):
        self._folder, self._stage, self._groups, self._cells = folder, stage, groups, cells
        self._every, self._max_rejected, self._say = every, max_rejected, say
        self._cursor = cursor  # holds the open sums, so that a checkpoint does
        self._clock = progress.Clock()
        self.text = ""

    def add(self, step: int, metrics: Mapping[str, np.ndarray], close: bool = False) -> None:
        """Takes the metrics of one step; `close` writes a record now, so that none is open at a checkpoint.

        Raises:
          NotFiniteError: so many steps in a row were rejected that the run should not go on.
        """
        cursor = self._cursor
        if metrics["train/rejected"]:
            self._reject(step, metrics)
        else:
            cursor.in_a_row, cursor.blamed = 0, []
            for name, value in metrics.items():
                if np.ndim(value) == 0 and name != "train/rejected":
                    cursor.sums[name] = cursor.sums.get(name, 0.0) + float(value)
            cursor.counted += 1
        if step % self._every and not close:
            return
        means = {name: total / cursor.counted for name, total in cursor.sums.items()}
        weights = {f"dro/lambda/{name}": float(x) for name, x in zip(self._cells, metrics["lambda"], strict=True)}
        if "shares" in metrics:
            shares = zip(self._groups, metrics["shares"], strict=True)
            weights |= {f"sampler/share/{name}": float(x) for name, x in shares}
        time = {"time/step_ms": self._clock.lap_ms() / (cursor.counted + cursor.rejected)}
        counts = {"train/rejected": cursor.rejected}
        self._folder.log({"step": step, "stage": self._stage, **means, **counts, **weights, **time})
        self.text = f"loss {means['train/loss']:.3f}" if means else "not finite"
        cursor.sums, cursor.counted, cursor.rejected = {}, 0, 0

    def _reject(self, step: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Counts a step that the program has rejected, says why, and ends the run when there are too many in a row."""
        cursor = self._cursor
        cursor.rejected, cursor.in_a_row = cursor.rejected + 1, cursor.in_a_row + 1
        names = {"train/loss": "loss", "train/gradient_norm": "gradient"}
        wrong = [name for key, name in names.items() if not np.isfinite(metrics[key])] or ["group weights"]
        losses, here = metrics["group_loss_sum"], np.asarray(metrics["group_count"]) != 0
        guilty = ~np.isfinite(losses) if not np.isfinite(losses).all() else here
        groups = [name for name, is_guilty in zip(self._groups, guilty, strict=True) if is_guilty]
        cursor.blamed += [name for name in groups if name not in cursor.blamed]
        if cursor.in_a_row == 1:
            self._say(f"step {step} is not finite and rejected: {', '.join(wrong)}, in combinations {_some(groups)}")
        if cursor.in_a_row >= self._max_rejected:
            raise NotFiniteError(
                f"{cursor.in_a_row} steps in a row, up to step {step}, were not finite and rejected: "
                f"{', '.join(wrong)}, in combinations {_some(cursor.blamed)}. Lower optim.lr, set optim.clip or look "
                "at these samples"
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
