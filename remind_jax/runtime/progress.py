"""Shows a person how far a command is: bars in a terminal or a notebook, plain lines elsewhere."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from remind_jax.runtime import signals, texts

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


def duration(seconds: float) -> str:
    """Writes a time as people do: 12 s, 3:05 min, 2:40:00 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def pace(done: int, seconds: float, left: int) -> str:
    """Says how fast `done` steps of the last `seconds` were, and how long the `left` ones take at this pace."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    often = f"{rate:.3g} a second" if rate >= 1 else f"{1 / rate:.3g} s each"
    return f"{often}, {duration(left / rate)} left" if left > 0 else often


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

    @contextlib.contextmanager
    def slow(self, what: str) -> Iterator[None]:
        """Shows what goes on while a block runs that may take long, and then how long it took."""
        start = time.monotonic()
        self._begin(f"{what} …")
        yield
        self.say(f"{what} … took {duration(time.monotonic() - start)}")

    def _begin(self, text: str) -> None:
        """Shows what begins."""

    def note(self, step: int, stage: str, values: Mapping[str, float | None]) -> None:
        """Prints the tuning metrics at a step."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
        self.say(f"step {step:>6}  {stage:<10}  tuning {shown}")


class Lines(Silent):
    """Plain lines: one a message, and one now and then that says how far a slow step is and how long it takes."""

    def __init__(self, total: int, title: str):
        self._total, self._title = total, title
        self._start = self._last = time.monotonic()
        self._counted: tuple[int, float] | None = None  # the step that the pace is counted from, and when it was

    def say(self, text: str) -> None:
        try:
            print(text, flush=True)
        except BrokenPipeError as error:
            signals.no_reader(error)
        self._last = time.monotonic()

    def _begin(self, text: str) -> None:
        self.say(text)
        self._counted = None

    def count(self, done: int, total: int) -> None:
        self._total = total
        self.advance(done)

    def advance(self, step: int, text: str = "") -> None:
        now = time.monotonic()
        if self._counted is None:  # what came before a first step, such as compiling it, is no part of the pace
            self._counted = step, now
        if now - self._last < EVERY:
            return
        of, (first, began) = f" of {self._total}" if self._total else "", self._counted
        passed = [f"{duration(now - self._start)} passed", pace(step - first, now - began, self._total - step)]
        self.say(f"{self._title} {step}{of}  ({', '.join(filter(None, passed))})  {text}".rstrip())
        self._counted = step, now


class Bar(Silent):
    """A bar with the time passed and left, messages above it; one within another stands below it."""

    _shown: ClassVar["progress.Progress | None"] = None

    def __init__(self, total: int, title: str):
        self._total, self._title, self._owns = total or None, title, False

    def __enter__(self) -> Self:
        from rich.file_proxy import FileProxy

        self._owns = Bar._shown is None
        if self._owns:
            Bar._shown = _display()
            Bar._shown.start()
            if type(sys.stdout) is FileProxy:  # which takes colours out of what is printed
                sys.stdout, sys.stderr = texts.Visible(sys.stdout), texts.Visible(sys.stderr)
        self._display = Bar._shown
        self._task = self._display.add_task(texts.one_line(self._title), total=self._total, text="")
        return self

    def __exit__(self, *error: object) -> None:
        self._display.remove_task(self._task)
        if self._owns:
            self._display.stop()
            Bar._shown = None

    def say(self, text: str) -> None:
        self._display.console.print(texts.visible(text), highlight=False, markup=False)

    def count(self, done: int, total: int) -> None:
        self._display.update(self._task, completed=done, total=total)

    def advance(self, step: int, text: str = "") -> None:
        self._display.update(self._task, completed=step, text=texts.one_line(text))

    def _begin(self, text: str) -> None:
        self._display.update(self._task, text=texts.one_line(text))


def _display() -> "progress.Progress":
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        transient=True,
        console=console.Console(file=texts.raw(sys.stdout)),
    )


def make(total: int, title: str, verbose: bool = True) -> Silent:
    """Makes a bar over `total` steps in a terminal or a notebook, else plain lines; 0 if the length is unknown."""
    if not verbose:
        return Silent()
    # A notebook's standard output is no terminal; rich draws there by ipywidgets.
    in_notebook = "ipykernel" in sys.modules and importlib.util.find_spec("ipywidgets") is not None
    return Bar(total, title) if in_notebook or sys.stdout.isatty() else Lines(total, title)


def over(items: Iterable[Item], title: str, total: int = 0) -> Iterator[Item]:
    """Yields the items in turn and shows how many; `total` says how many there are where they have no length."""
    with make(total or (len(items) if hasattr(items, "__len__") else 0), title) as bar:
        for done, item in enumerate(items):
            bar.advance(done)
            yield item
