"""Shows a person how far a command is: bars in a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

if TYPE_CHECKING:
    from rich import progress

EVERY = 30.0  # seconds between plain lines about one step
Item = TypeVar("Item")


class Clock:
    """Measures wall time between laps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        """Returns the milliseconds since the last lap."""
        now = time.perf_counter()
        lap, self._last = now - self._last, now
        return 1e3 * lap


class Silent:
    """Shows nothing."""

    def __init__(self, total: int = 0, title: str = ""):
        """`total` is the number of parts of the step, 0 while that is unknown."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def below(self, total: int, title: str) -> "Silent":
        """Makes another of the same kind, for a step within this one."""
        return type(self)(total, title)

    def say(self, text: str) -> None:
        """Shows a message."""

    def count(self, done: int, total: int) -> None:
        """Counts what is done, of what is there."""

    def advance(self, step: int, text: str = "") -> None:
        """Counts a step."""

    def note(self, step: int, stage: str, values: Mapping[str, float | None]) -> None:
        """Prints the tuning metrics at a step."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self.say(f"step {step:>6}  {stage:<10}  tuning {shown}")


class Lines(Silent):
    """Plain lines: one a message, and one now and then that says how far a slow step is."""

    def __init__(self, total: int, title: str):
        self._total, self._title, self._last = total, title, time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._last = time.monotonic()

    def count(self, done: int, total: int) -> None:
        self._total = total
        self.advance(done)

    def advance(self, step: int, text: str = "") -> None:
        if time.monotonic() - self._last >= EVERY:
            of = f" of {self._total}" if self._total else ""
            self.say(f"{self._title} {step}{of}  {text}".rstrip())


class Bar(Silent):
    """A bar with remaining time, messages above it; a bar that begins while another is shown stands below it."""

    _shown: ClassVar["progress.Progress | None"] = None

    def __init__(self, total: int, title: str):
        self._total, self._title, self._owns = total or None, title, False

    def __enter__(self) -> Self:
        self._owns = Bar._shown is None
        if self._owns:
            Bar._shown = _display()
            Bar._shown.start()
        self._display = Bar._shown
        self._task = self._display.add_task(self._title, total=self._total, text="")
        return self

    def __exit__(self, *error: object) -> None:
        self._display.remove_task(self._task)
        if self._owns:
            self._display.stop()
            Bar._shown = None

    def say(self, text: str) -> None:
        self._display.console.print(text, highlight=False, markup=False)

    def count(self, done: int, total: int) -> None:
        self._display.update(self._task, completed=done, total=total)

    def advance(self, step: int, text: str = "") -> None:
        self._display.update(self._task, completed=step, text=text)


def _display() -> "progress.Progress":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        transient=True,
    )


def make(total: int, title: str, verbose: bool = True) -> Silent:
    """Makes a bar over `total` steps if standard output is a terminal, else plain lines; 0 if the length is unknown."""
    if not verbose:
        return Silent()
    return Bar(total, title) if sys.stdout.isatty() else Lines(total, title)


def over(items: Iterable[Item], title: str, total: int = 0) -> Iterator[Item]:
    """Yields the items in turn and shows how many; `total` says how many there are where they have no length."""
    with make(total or (len(items) if hasattr(items, "__len__") else 0), title) as bar:
        for done, item in enumerate(items):
            bar.advance(done)
            yield item
