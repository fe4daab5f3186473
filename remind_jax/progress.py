"""What a person sees while a run works: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Self


class Clock:
    """Wall time between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        """Milliseconds since the last lap."""
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        return 1e3 * lap


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Shows a message."""

    def preparing(self, done: int, total: int) -> None:
        """Counts rows written to shards."""

    def advance(self, step: int, text: str) -> None:
        """Counts a step."""

    def note(self, step: int, stage: str, values: Mapping[str, float | None]) -> None:
        """Prints the tuning metrics at a step."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self.say(f"step {step:>6}  {stage:<10}  tuning {shown}")


class Lines(Silent):
    """Plain lines: one a message, one an evaluation."""

    def say(self, text: str) -> None:
        print(text, flush=True)


class Bar(Silent):
    """A bar with rate and remaining time, messages above it."""

    def __init__(self, total: int, title: str):
        from rich import progress

        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[text]}"),
        )
        self._progress = progress.Progress(*columns, transient=True)
        self._task = self._progress.add_task(title, total=total or None, text="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def preparing(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, step: int, text: str) -> None:
        self._progress.update(self._task, completed=step, text=text)


def make(total: int, title: str, verbose: bool = True) -> Silent:
    """A bar over `total` steps if standard output is a terminal, else plain lines; 0 while the length is unknown."""
    if not verbose:
        return Silent()
    return Bar(total, title) if sys.stdout.isatty() else Lines()
