"""A trace of some steps of a run, for Perfetto or XProf (docs/performance.md)."""

import pathlib
from collections.abc import Callable
from typing import Any, Self

import jax

from remind_jax.runtime import files


class Tracer:
    """Runs steps, and traces those of a span; on leaving it ends a trace that is still open."""

    def __init__(self, text: str, folder: pathlib.Path):
        """Plans a trace of the steps `FIRST:STOP`, STOP left out, into a folder; an empty text plans none."""
        self._span = tuple(map(int, text.split(":"))) if text else None
        self._folder, self._open = folder, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def run(self, step: int, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function(*arguments)` gives, which is the step with this number, counted from 0."""
        if self._span is None or not self._span[0] <= step < self._span[1]:
            return function(*arguments)
        if not self._open:
            files.refuse_links(self._folder, below=True)
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
