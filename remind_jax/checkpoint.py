"""Checkpoints on disk. The only module that imports orbax.

One checkpoint holds arrays (train state and best weights so far) and a JSON record (stage, best metric, fitted
preprocessing, shapes of the arrays), and is committed by one rename.
"""

import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("orbax").setLevel(logging.WARNING)
logging.getLogger("absl").setLevel(logging.WARNING)


class Restored(NamedTuple):
    """A checkpoint read back: its step, its arrays as numpy, its record."""

    step: int
    arrays: Any
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, by step."""

    def __init__(self, folder: pathlib.Path, keep: int = 1, read_only: bool = False):
        """Opens or creates the folder.

        Args:
          folder: absolute, or relative to the working directory.
          keep: how many of the newest to keep; 0 is all.
          read_only: leave the folder as it is, half-written checkpoints of a live run included.
        """
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_names=("arrays", "record"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep or None, cleanup_tmp_directories=not read_only, read_only=read_only
            ),
        )

    def save(self, step: int, arrays: Any, record: dict[str, Any]) -> None:
        """Saves in the background; `arrays` must be host copies that nobody writes to afterwards."""
        self._manager.save(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        )

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None when there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def record(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def arrays(self, step: int, like: Any) -> Any:
        """The arrays of a checkpoint as numpy, in the structure, shapes and types of `like`."""
        target = jax.tree.map(lambda x: np.empty(np.shape(x), x.dtype), like)
        return self._manager.restore(step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(target)))["arrays"]

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()


def host_copy(tree: Any) -> Any:
    """Arrays on the host that do not share memory with donated device buffers."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))
