"""What runs leave behind, for tests that compare two of them."""

import pathlib
from typing import Any

from remind_jax.training.checkpoint import Checkpoints


def checkpoint(folder: pathlib.Path) -> Any:
    """The arrays of the newest checkpoint of a run."""
    saved = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        return saved.arrays(saved.latest_step())
    finally:
        saved.close()
