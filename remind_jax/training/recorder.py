"""Where a run stands, and what it writes to metrics.jsonl."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from remind_jax.data.findings import listed
from remind_jax.errors import NotFiniteError, UserError
from remind_jax.runtime import progress, records
from remind_jax.tasks import SELECT
from remind_jax.training.run_folder import RunFolder

MAX_REJECTED = 5  # rejected steps in a row that end a run


@dataclasses.dataclass
class Cursor:
    """Where a run stands, arrays apart.

    Attributes:
      stage: number of the stage.
      best: best tuning value in it, larger being better.
      waited: evaluations since.
      ended: whether the stage ended early.
      chosen: whose weights are the best so far: `stage`, `step` and tuning figures; empty before the first evaluation.
      passed: what was chosen at the end of each earlier stage.
      sums, counted: sums of metrics over the steps since the last record of metrics.jsonl, and how many these are.
      rejected: steps since that record that were not finite.
      in_a_row, blamed: rejected steps since the last good one, and their combinations.
    """

    stage: int = 0
    best: float | None = None
    waited: int = 0
    ended: bool = False
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)
    passed: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    counted: int = 0
    rejected: int = 0
    in_a_row: int = 0
    blamed: list[str] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, found: Any, stages: int) -> "Cursor":
        """Makes a cursor of what a checkpoint holds, in a run of so many stages. Raises ValueError: it is none."""
        chosen = {"step?": records.COUNT, "stage?": str, ...: (float, str, None)}
        counts = dict.fromkeys(("waited", "counted", "rejected", "in_a_row"), records.COUNT)
        shape = {"stage": records.Number(int, 0, stages - 1), "best": (float, None), "ended": bool, "chosen": chosen}
        shape |= {"passed": [chosen], "sums": {...: float}, "blamed": [str], **counts}
        if (why := records.fault(found, shape)) or found.keys() - shape.keys():
            raise ValueError(why or "it has further keys")
        return cls(**found)

    def improves(self, values: Mapping[str, float | None], select: str) -> bool:
        """Tells whether weights are better than all before them in the stage; counts the evaluations since the best.

        By the figure `last` the newest weights are always better. Raises UserError: the figure could not be computed.
        """
        if select == "last":
            return True
        value = values[select]
        if value is None:
            raise UserError(f"{select} cannot be computed on the tuning rows: choose another train.select")
        gain = value if SELECT[select] else -value
        if self.best is not None and gain <= self.best:
            self.waited += 1
            return False
        self.best, self.waited = gain, 0
        return True

    def next_stage(self, index: int, keeps: bool) -> "Cursor":
        """Returns the cursor at the start of a stage; `keeps` says whether it must do better than the stage before."""
        passed = [*self.passed, self.chosen]
        if keeps:
            return Cursor(stage=index, best=self.best, chosen=self.chosen, passed=passed)
        return Cursor(stage=index, passed=passed)


class Recorder:
    """Averages the metrics of the steps of a stage between two records of metrics.jsonl."""

    def __init__(
        self,
        folder: RunFolder,
        stage: str,
        cursor: Cursor,
        *,
        groups: Sequence[str],
        every: int,
        max_rejected: int = MAX_REJECTED,
        say: Callable[[str], None],
    ):
        """Goes on from what a cursor holds, which has the open sums so that a checkpoint does.

        A record is written `every` so many steps; `max_rejected` rejected steps in a row end the run; `say` shows a
        line.
        """
        self._folder, self._stage, self._cursor, self._say = folder, stage, cursor, say
        self._groups, self._every, self._max_rejected = groups, every, max_rejected
        self._clock = progress.Clock()
        self.text = ""

    def add(
        self, step: int, metrics: Mapping[str, np.ndarray], by_group: Mapping[str, np.ndarray], close: bool = False
    ) -> None:
        """Takes the metrics of a step, counted from 1, and further figures of each combination by name, [g] each.

        `close` writes a record now, so that none is open at a checkpoint. Raises NotFiniteError: so many steps in a row
        were rejected that the run should not go on.
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
        weights = _named("dro/lambda", self._groups, metrics["lambda"])
        for name, values in by_group.items():
            weights |= _named(name, self._groups, values)
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
            self._say(f"step {step} is not finite and rejected: {', '.join(wrong)}, in combinations {listed(groups)}")
        if cursor.in_a_row >= self._max_rejected:
            raise NotFiniteError(
                f"{cursor.in_a_row} steps in a row, up to step {step}, were not finite and rejected: "
                f"{', '.join(wrong)}, in combinations {listed(cursor.blamed)}. Lower optim.lr, set optim.clip or look "
                "at these samples"
            )


def _named(name: str, parts: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {f"{name}/{part}": float(x) for part, x in zip(parts, values, strict=True)}
