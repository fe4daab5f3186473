"""A trace of some steps of a run, for Perfetto or XProf (docs/performance.md)."""

import pathlib
import re
from collections.abc import Callable
from typing import Any, Self

import jax

from remind_jax.errors import UserError


def span(text: str) -> tuple[int, int] | None:
    """Reads `FIRST:STOP`, the steps from FIRST up to, not including, STOP; nothing when empty.

    Raises:
      UserError: the text is neither.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not text:
        return None
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"profile={text!r} must be FIRST:STOP with FIRST below STOP, for example 10:20")
    return int(found[1]), int(found[2])


class Tracer:
    """Runs steps, and traces those of a span; on leaving it ends a trace that is still open."""

    def __init__(self, text: str, folder: pathlib.Path):
        """Plans a trace.

        Args:
          text: as for `span`.
          folder: of the trace.
        """
        self._span, self._folder, self._open = span(text), folder, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def run(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function(*arguments)` gives, which is the step with this number, counted from 0."""
        if self._span is None or not self._span[0] <= step < self._span[1]:
            return function(*arguments)
        if not self._open:
            jax.profiler.start_trace(self._folder)
            self._open = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = function(*arguments)
        if step + 1 == self._span[1]:
            jax.block_until_ready(result)
            self._stop()
        return result

    def _stop(self) -> None:
        if self._open:
            jax.profiler.stop_trace()
            self._open = False
