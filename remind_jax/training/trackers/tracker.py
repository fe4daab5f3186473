"""What a tracker is told of a run, and what it does with it."""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from remind_jax.config import leaves
from remind_jax.runtime import files, records

Record = Mapping[str, Any]  # a line of metrics.jsonl: `step`, `stage` and numbers by name
_IDS = "tracking.json"


class Run(NamedTuple):
    """A run as trackers know it: its folder, by whose name they show it, and its JSON-able settings."""

    folder: pathlib.Path
    config: Mapping[str, Any]

    @property
    def project(self) -> str:
        """What the runs of a data set have in common: its source and the name of its folder."""
        keys = dict(leaves(self.config))
        parts = keys.get("data.source", ""), pathlib.PurePath(keys.get("data.root", "")).name
        return re.sub(r"[^\w.-]+", "-", "-".join(filter(None, parts))) or "remind_jax"

    def known_as(self, tracker: str) -> str | None:
        """Reads the id of this run in a tracker, which outlives the process; None while it has none."""
        return self._ids().get(tracker)

    def keep_id(self, tracker: str, name: str) -> None:
        """Writes the id of this run in a tracker to the run's folder."""
        files.write_text(self.folder / _IDS, json.dumps(self._ids() | {tracker: name}) + "\n")

    def _ids(self) -> dict[str, str]:
        return records.read(self.folder / _IDS, {...: str}, "remove it", default={})


class Tracker(Protocol):
    """A copy of what a run's folder says, for a viewer: settings, records, and the figures of its report.

    It gets numbers and settings alone: no predictions, no text, no ids of patients. Whatever it raises ends the
    tracking, never the run. It opens nothing before the first `restart`, so that a run that cannot begin leaves none.

    Attributes:
      needs: the packages that it imports.
      environment: variables that are set while it works, since its package takes some settings from nowhere else.
    """

    needs: tuple[str, ...]
    environment: Mapping[str, str]

    def __init__(self, run: Run): ...

    def restart(self, records: Iterable[Record]) -> None:
        """Opens the run, forgets what was written of it and writes the records that stay: no step is there twice."""

    def add(self, record: Record) -> None:
        """Writes the numbers of a record at its step."""

    def close(self, finished: bool) -> None:
        """Ends the writing; `finished` tells whether the run has come to its report."""


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """Yields names and values of the numbers of a record."""
    for name, value in record.items():
        if name != "step" and isinstance(value, int | float):
            yield name, value
