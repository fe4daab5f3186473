"""Viewers that follow a run besides its folder, by `train.track`; none unless the user names one."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from remind_jax.errors import UserError, needs
from remind_jax.training.trackers.mlflow import MLflow
from remind_jax.training.trackers.tensorboard import TensorBoard
from remind_jax.training.trackers.tracker import Record, Run, Tracker
from remind_jax.training.trackers.wandb import WandB

TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


class Trackers:
    """The trackers of a run. One that fails is told of once and left; training goes on."""

    def __init__(self, names: Iterable[str], run: Run):
        """Opens nothing yet. Raises UserError: a package is not installed."""
        for name in names:
            for package in TRACKERS[name].needs:
                if importlib.util.find_spec(package) is None:
                    raise UserError(
                        f"train.track={name}: {needs(package, 'track')}; metrics.jsonl has the same figures"
                    )
        self._open = {name: TRACKERS[name](run) for name in names}
        self._begun, self._finished, self._step = False, False, 0

    def restart(self, records: Iterable[Record]) -> None:
        """Begins anew with the records that stay."""
        kept = list(records)
        self._begun, self._step = True, kept[-1]["step"] if kept else 0
        self._each(lambda tracker: tracker.restart(kept))

    def add(self, record: Record) -> None:
        """Writes the numbers of a record at its step."""
        if not self._begun:
            self.restart([])
        self._step = record["step"]
        self._each(lambda tracker: tracker.add(record))

    def finish(self, figures: Mapping[str, float]) -> None:
        """Writes the figures of the report at the last step."""
        self.add({"step": self._step, **figures})
        self._finished = True

    def close(self) -> None:
        """Closes those that are open."""
        if self._begun:
            self._each(lambda tracker: tracker.close(self._finished))
            self._open = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                with _set(tracker.environment):
                    call(tracker)
            except Exception as error:  # a full disk, a locked database, a fault of the package
                del self._open[name]
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                print(f"note: {name} has failed and follows this run no more: {reason}", file=sys.stderr)
                with contextlib.suppress(Exception), _set(tracker.environment):
                    tracker.close(finished=False)


@contextlib.contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of the environment for as long as it is open."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
