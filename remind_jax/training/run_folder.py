"""The run folder: config, environment, metrics and, at the end, report and predictions."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from remind_jax.config import RETIRED, leaves
from remind_jax.data.findings import listed
from remind_jax.errors import UserError
from remind_jax.evaluation import finished, page
from remind_jax.evaluation import report as reports
from remind_jax.runtime import files, records
from remind_jax.training.trackers import Trackers
from remind_jax.training.trackers.tracker import Run, numbers

_FREE = {"train.track", *RETIRED}  # keys that may change in a folder: they say what is written, not what is computed
_RECORD = {"step": records.COUNT, "stage?": str, ...: (float, str, None)}
_MOST_RECORDS = 2**32  # bytes
_PARTS = ("overall", "head_mean", "tail_mean", "head_pooled", "tail_pooled", "worst_group")  # of a report


class RunFolder:
    """One run's folder; opening it a second time continues the run, and only with the config it was started with."""

    def __init__(self, path: pathlib.Path, config: Mapping[str, Any], track: str = "", writes: bool = True):
        """Creates or reopens the folder of a run with JSON-able settings.

        `track` is `train.track`: the trackers that are told what metrics.jsonl is. `writes` is False for the processes
        of a job that leave the folder to another one: to them it stays empty. Raises UserError: the folder cannot be
        written, or holds a run with another config, or a package is missing.
        """
        self.path, self.writes = path, writes
        self.config = json.loads(json.dumps(config))
        self._trackers = Trackers(track.split(",") if track else (), Run(path, self.config))
        if not writes:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._check_config()
            self._write_json("environment.json", files.environment())
            self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 open for the whole run
        except OSError as error:
            raise UserError(f"cannot write to workdir {path}: {error.strerror or error}") from error

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.exists():
            self._write_json("config.json", self.config)
            return
        there = records.read(file, {}, "choose another workdir")
        changed = changed_keys(there, self.config)
        if changed and not self._started():
            self._write_json("config.json", self.config)
        elif changed:
            differences = [f"{key} ({before!r} there, {now!r} now)" for key, (before, now) in changed.items()]
            raise UserError(f"workdir {self.path} holds a run with another config: {listed(differences, 8)}")

    def _started(self) -> bool:
        """Tells whether anything was trained here; a command that failed before that leaves nothing to protect."""
        metrics = self.path / "metrics.jsonl"
        return (self.path / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)

    def _write_json(self, name: str, value: Any) -> None:
        files.write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one record to metrics.jsonl, and tells the trackers."""
        if not self.writes:
            return
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        self._trackers.add(record)

    def history(self) -> list[dict[str, Any]]:
        """Reads all records of metrics.jsonl."""
        if not self.writes:
            return []
        return [record for _, record in self._records()]

    def _records(self) -> list[tuple[bytes, dict[str, Any]]]:
        """Reads lines of metrics.jsonl and what they say, but for a last one that a kill has cut.

        Raises UserError: a line is no record.
        """
        file, found = self.path / "metrics.jsonl", []
        *lines, last = records.content(file, most=_MOST_RECORDS).split(b"\n")
        for number, line in enumerate([*lines, *([last] if last else [])], 1):
            try:
                record = records.parse(line, finite=False)
                why = records.fault(record, _RECORD)
            except ValueError as error:
                if number > len(lines):
                    break
                why = str(error)
            if why:
                raise UserError(f"line {number} of {file} is no record ({why}): delete it")
            found.append((line, record))
        return found

    def report(self) -> dict[str, Any] | None:
        """Reads the report of a finished run, None while there is none, or one that a power cut has cut."""
        return finished.read_report(self.path) if self.writes and finished.is_there(self.path) else None

    def finish(self, report: Mapping[str, Any], predictions: pl.DataFrame) -> None:
        """Writes predictions, page and, last, report.json: a run counts as finished once it is there."""
        with files.whole_file(self.path / "predictions.parquet") as temporary:
            predictions.write_parquet(temporary)
        reports.write_html(self.path / "report.html", report, self.history())
        self._trackers.finish(_figures(report))
        reports.write_json(self.path / "report.json", report)

    def show(self, report: Mapping[str, Any], again: bool = False) -> None:
        """Prints a report, of a run that has just ended or (`again`) of one that had."""
        if again:
            print(f"{self.path} is a finished run; its report:")
        reports.print_table(report)
        if page.is_smoke_run(report["data"]):
            print(page.SMOKE)
        if not again:
            print(f"Report: {self.path / 'report.html'}")

    def rewind(self, step: int) -> None:
        """Forgets the records after `step`, which a resumed run writes again, and a last line cut by a kill."""
        if not self.writes:
            return
        kept = [line + b"\n" for line, record in self._records() if record["step"] <= step]
        self._metrics.close()
        files.write_bytes(self.path / "metrics.jsonl", b"".join(kept))
        self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._trackers.restart(self.history())

    def close(self) -> None:
        """Closes metrics and trackers."""
        if self.writes:
            self._metrics.close()
        self._trackers.close()


class InMemory(RunFolder):
    """Stands in for the folder of a run that writes nothing: no records are kept but those of this process."""

    def __init__(self, config: Mapping[str, Any]):
        self.path, self.writes, self.config = None, True, config
        self._records: list[dict[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self._records.append(dict(record))

    def history(self) -> list[dict[str, Any]]:
        return list(self._records)

    def report(self) -> None:
        return None

    def finish(self, report: Mapping[str, Any], predictions: pl.DataFrame) -> None:
        """Has nowhere to write; the caller keeps the report."""

    def rewind(self, step: int) -> None:
        self._records = [record for record in self._records if record["step"] <= step]

    def close(self) -> None:
        """Has nothing open."""


def changed_keys(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns both values of each key in which two JSON configs differ, but for keys that no figure depends on."""
    one, other = dict(leaves(there)), dict(leaves(now))
    names = sorted((one.keys() | other.keys()) - _FREE)
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Names the figures of a report for trackers, such as held_out/tail_mean/auroc."""
    parts = {part: report.get(part) or {} for part in _PARTS}
    return {f"{report['split']}/{part}/{name}": x for part, figures in parts.items() for name, x in numbers(figures)}
