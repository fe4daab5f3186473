"""The run folder: config, environment, metrics and, at the end, report and predictions."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from remind_jax.config import leaves
from remind_jax.data.findings import listed
from remind_jax.errors import UserError
from remind_jax.evaluation import page
from remind_jax.evaluation import report as reports
from remind_jax.runtime import files
from remind_jax.training.tensorboard import EventFiles

_FREE = "train.tensorboard"  # the key that may change in a folder: it says what is written, not what is computed


class RunFolder:
    """One run's folder; opening it a second time continues the run, and only with the config it was started with."""

    def __init__(self, path: pathlib.Path, config: Mapping[str, Any], tensorboard: bool = False, writes: bool = True):
        """Creates or reopens the folder of a run with JSON-able settings.

        `tensorboard` keeps event files next to metrics.jsonl. `writes` is False for the processes of a job that leave
        the folder to another one: to them it stays empty. Raises UserError: the folder cannot be written, or holds a
        run with another config, or a package is missing.
        """
        self.path, self.writes = path, writes
        self._events = EventFiles(path / "tensorboard") if tensorboard else None
        self.config = json.loads(json.dumps(config))
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
        try:
            before = dict(leaves(json.loads(file.read_text(encoding="utf-8"))))
        except ValueError as error:
            raise UserError(f"{file} is not JSON: choose another workdir") from error
        now = dict(leaves(self.config))
        changed = sorted(key for key in (before.keys() | now.keys()) - {_FREE} if before.get(key) != now.get(key))
        if changed and not self._started():
            self._write_json("config.json", self.config)
        elif changed:
            differences = [f"{key} ({before.get(key)!r} there, {now.get(key)!r} now)" for key in changed]
            raise UserError(f"workdir {self.path} holds a run with another config: {listed(differences, 8)}")

    def _started(self) -> bool:
        """Tells whether anything was trained here; a command that failed before that leaves nothing to protect."""
        metrics = self.path / "metrics.jsonl"
        return (self.path / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)

    def _write_json(self, name: str, value: Any) -> None:
        files.write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one record to metrics.jsonl, and to the event files."""
        if not self.writes:
            return
        self._metrics.write(json.dumps(record) + "\n")
        self._metrics.flush()
        if self._events:
            self._events.add(record)

    def history(self) -> list[dict[str, Any]]:
        """Reads all records of metrics.jsonl."""
        if not self.writes:
            return []
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def report(self) -> dict[str, Any] | None:
        """Reads the report of a finished run, None while there is none."""
        file = self.path / "report.json"
        return json.loads(file.read_text(encoding="utf-8")) if self.writes and file.exists() else None

    def finish(self, report: Mapping[str, Any], predictions: pl.DataFrame) -> None:
        """Writes predictions, page and, last, report.json: a run counts as finished once it is there."""
        with files.whole_file(self.path / "predictions.parquet") as temporary:
            predictions.write_parquet(temporary)
        reports.write_html(self.path / "report.html", report, self.history())
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
        kept = []
        for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["step"] <= step:
                kept.append(line)
        self._metrics.close()
        files.write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))
        self._metrics = open(self.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        if self._events:
            self._events.restart(self.history())

    def close(self) -> None:
        """Closes metrics and event files."""
        if self.writes:
            self._metrics.close()
        if self._events:
            self._events.close()


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
