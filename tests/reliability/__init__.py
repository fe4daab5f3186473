"""Reliability and security as figures: one row a promise of docs/reliability.md, each able to fail.

    python -m tests.reliability [--full] [--only=ROW,…] --out=FILE.json

A row is a function of a count and of whether it is to be broken: then it takes away what it is about, and must fail.
"""

import dataclasses
from collections.abc import Callable

SHOWN = 20  # failures that a row keeps in words


@dataclasses.dataclass
class Tally:
    """What a row has tried.

    Attributes:
      tried, passed: attempts and those that went as promised.
      failed: the others in words, the first `SHOWN`.
      notes: what a reader of the figures must know.
      figures: measured beside the counts.
    """

    tried: int = 0
    passed: int = 0
    failed: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    def largest(self, name: str, value: float) -> None:
        """Keeps the largest of a figure beside the counts."""
        self.figures[name] = max(value, self.figures.get(name, value))

    def check(self, is_good: bool, what: str, times: int = 1) -> bool:
        """Counts one attempt, or several that stand and fall together."""
        self.tried += times
        self.passed += times if is_good else 0
        if not is_good and len(self.failed) < SHOWN:
            self.failed.append(what)
        return is_good


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: for `--only`.
      title: what is done to the program.
      target: what is promised.
      unit: what `reduced` and `full` count.
      reduced, full: how much is tried.
      broken: what the broken variant takes away.
      run: the row, (count, whether it is broken) -> Tally.
    """

    name: str
    title: str
    target: str
    unit: str
    reduced: int
    full: int
    broken: str
    run: Callable[[int, bool], Tally]


ROWS: dict[str, Row] = {}


def row(**fields: object) -> Callable[[Callable[[int, bool], Tally]], Callable[[int, bool], Tally]]:
    """Enters a function into `ROWS`, with the fields of `Row` but `run`."""

    def enter(run: Callable[[int, bool], Tally]) -> Callable[[int, bool], Tally]:
        ROWS[fields["name"]] = Row(run=run, **fields)
        return run

    return enter
