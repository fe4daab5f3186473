"""The run folder: config, environment, metrics and, at the end, report and predictions."""

import contextlib
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from remind_jax.config import RETIRED, keys, leaves
from remind_jax.data import builder, memory
from remind_jax.data.dataset import FittedData, cache_folder
from remind_jax.data.findings import listed
from remind_jax.data.memory import Memory
from remind_jax.errors import UserError
from remind_jax.evaluation import finished, page
from remind_jax.evaluation import report as reports
from remind_jax.inference.predictor import Predictor
from remind_jax.runtime import claims, files, records, texts
from remind_jax.training.trackers import Trackers
from remind_jax.training.trackers.tracker import Run, numbers

_FREE = {"train.track", *RETIRED}  # keys that may change in a folder: they say what is written, not what is computed
_RECORD = {"step": records.COUNT, "stage?": str, ...: (float, str, None)}
_MOST_RECORDS, _LONGEST = 2**32, 2**20  # bytes of the file, and of its first line
DATA = "data.npz"  # what is remembered of the data
_RECORDS = "metrics.jsonl"
_DIGESTS = "data/"  # before the names of the digests in the first record
# What commands have made of the data. The report goes first and the records last: until then they are known.
_OF_DATA = (
    *("report.json", "report.html", "predictions.parquet", "model", "checkpoints", "analysis", "adapted"),
    *("members", "search", "profile", "tensorboard", DATA),
)
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
        self._began = time.time()
        self._trackers = Trackers(track.split(",") if track else (), Run(path, self.config))
        if not writes:
            return
        try:
            files.make_folder(path, private=True)
            self._check_config()
            self._write_json("environment.json", files.environment())
            self._metrics = files.Lines(path / _RECORDS)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.exists() or not self._started():
            self._write_json("config.json", self.config)
            return
        there = records.read(file, {}, "choose another workdir")
        changed = changed_keys(there, self.config)
        if (self.path / DATA).exists():
            changed.pop("data.digest", None)  # which `admit` explains
        if changed:
            differences = [f"{key} ({before!r} there, {now!r} now)" for key, (before, now) in changed.items()]
            raise UserError(f"workdir {self.path} holds a run with another config: {listed(differences, 8)}")

    def _started(self) -> bool:
        """Tells whether anything was trained here; a command that failed before that leaves nothing to protect."""
        metrics = self.path / _RECORDS
        return (self.path / "checkpoints").exists() or (metrics.exists() and metrics.stat().st_size > 0)

    def _write_json(self, name: str, value: Any) -> None:
        files.write_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one record to metrics.jsonl, and tells the trackers."""
        if not self.writes:
            return
        self._metrics.add(json.dumps(record))
        self._trackers.add(record)

    def sync(self) -> None:
        """Waits until all records are on the disk, as they must be before a checkpoint that comes after them."""
        if self.writes:
            self._metrics.sync()

    def history(self) -> list[dict[str, Any]]:
        """Reads all records of metrics.jsonl."""
        if not self.writes:
            return []
        return [record for _, record in self._records()]

    def _records(self) -> list[tuple[bytes, dict[str, Any]]]:
        """Reads lines of metrics.jsonl and what they say, but for a last one that a kill has cut.

        Raises UserError: a line is no record.
        """
        file, found = self.path / _RECORDS, []
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

    def shows(self, stamp: str) -> bool:
        """Tells whether the run is finished, and its data look as they did by their `memory.stamp`, or are gone."""
        return self.report() is not None and (not stamp or memory.kept_stamp(self.path / DATA) in (None, stamp))

    def admit(self, fitted: FittedData, stamp: str, on_changed: str, say: Callable[[str], None] = print) -> bool:
        """Compares data with those that the run began with; returns whether it is finished on them.

        Data that have changed begin anew if `on_changed` is `restart`: all that was made of the old ones is removed,
        also from the cache, unless others use it. `say` shows a line. Raises UserError: they have changed.
        """
        if not self._started():
            return False
        known, kept = remembered(self.path), Memory.read(self.path / DATA)
        if not known:
            say(f"note: {self.path} does not tell which data it began with: they are taken for these")
        elif changes := memory.changed(known, kept, fitted):
            if on_changed != "restart":
                raise UserError(
                    f"the data have changed since the run in {self.path} began: {', '.join(changes)}; choose another "
                    "workdir, or begin anew in this one with --on-changed-data=restart"
                )
            say(f"The data have changed ({', '.join(changes)}): {self.path} begins anew")
            self._begin_anew(known["manifest"])
        elif kept is None or kept.stamp != stamp:
            Memory.of(fitted, stamp).write(self.path / DATA)
        return self.report() is not None

    def _begin_anew(self, digest: str) -> None:
        """Removes what was made of data with this digest; broken off, it can be called again."""
        with files.writing(self.path):
            for path in (self.path / name for name in _OF_DATA):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        builder.forget(cache_folder(self.config["data"]["cache"]), digest)
        self._replace([])
        self._write_json("config.json", self.config)

    def remember(self, fitted: FittedData, stage: str, stamp: str = "") -> None:
        """Keeps what training begins with: `DATA`, and the digests as the first record, unless they are there."""
        if self.writes and not remembered(self.path):
            Memory.of(fitted, stamp).write(self.path / DATA)
            digests = {f"{_DIGESTS}{name}": digest for name, digest in memory.digests(fitted).items()}
            first = json.dumps({"step": 0, "stage": stage, **digests}).encode()
            self._replace([first, *(line for line, _ in self._records())])

    def _replace(self, lines: Iterable[bytes]) -> None:
        """Writes other lines of records, whole."""
        files.write_bytes(self.path / _RECORDS, b"".join(line + b"\n" for line in lines))
        self._metrics.close()
        self._metrics = files.Lines(self.path / _RECORDS)

    def report(self) -> dict[str, Any] | None:
        """Reads the report of a finished run, None while there is none, or one that a power cut has cut."""
        return finished.read_report(self.path) if self.writes and finished.is_there(self.path) else None

    def finish(self, report: Mapping[str, Any], predictions: pl.DataFrame) -> None:
        """Writes predictions, page and, last, report.json: a run counts as finished once it is there."""
        with files.whole_file(self.path / "predictions.parquet", private=True) as temporary:
            predictions.write_parquet(temporary)
        reports.write_html(self.path / "report.html", report, self.history(), self._made())
        self._trackers.finish(_figures(report))
        reports.write_json(self.path / "report.json", report)

    def _made(self) -> dict[str, str]:
        """Says for the page, which alone may differ from run to run, how and when it was made."""
        now, program = time.time(), pathlib.PurePath(sys.argv[0] if sys.argv else "")
        command = {"remind": "remind", "__main__.py": "python -m remind_jax", "main.py": "python -m remind_jax.main"}
        found = {
            "Finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now)),
            "Took": _duration(now - self._began),
        }
        if program.name in command and (program.name == "remind" or program.parent.name == "remind_jax"):
            found["Command"] = texts.command_line(command[program.name], sys.argv[1:])
        return found

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
        self._replace([line for line, record in self._records() if record["step"] <= step])
        self._trackers.restart(self.history())

    def close(self) -> None:
        """Closes metrics and trackers."""
        if self.writes:
            self._metrics.close()
        self._trackers.close()


@contextlib.contextmanager
def opened(path: pathlib.Path, config: Mapping[str, Any], track: str = "") -> Iterator[RunFolder]:
    """Opens the folder of a run, see `RunFolder`, which no other process may have open; closes it at the end.

    Raises UserError: as `RunFolder` does, or another process works in the folder.
    """
    try:
        files.make_folder(path, private=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    with claims.owned(path, path / ".owner" / "run"), contextlib.closing(RunFolder(path, config, track)) as folder:
        files.remove_unfinished(path / "*")
        yield folder


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"cannot write to workdir {path}: {error.strerror or error}")


class InMemory(RunFolder):
    """Stands in for the folder of a run that writes nothing: no records are kept but those of this process."""

    def __init__(self, config: Mapping[str, Any]):
        self.path, self.writes, self.config = None, True, config
        self._records: list[dict[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self._records.append(dict(record))

    def sync(self) -> None:
        """Has no disk to wait for."""

    def history(self) -> list[dict[str, Any]]:
        return list(self._records)

    def report(self) -> None:
        return None

    def shows(self, stamp: str) -> bool:
        return False

    def admit(self, fitted: FittedData, stamp: str, on_changed: str, say: Callable[[str], None] = print) -> bool:
        return False

    def remember(self, fitted: FittedData, stage: str, stamp: str = "") -> None:
        """Remembers nothing: nobody goes on with this run."""

    def finish(self, report: Mapping[str, Any], predictions: pl.DataFrame) -> None:
        """Has nowhere to write; the caller keeps the report."""

    def rewind(self, step: int) -> None:
        self._records = [record for record in self._records if record["step"] <= step]

    def close(self) -> None:
        """Has nothing open."""


def _duration(seconds: float) -> str:
    """Writes seconds in the two largest units."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def remembered(path: pathlib.Path) -> dict[str, str]:
    """Returns the digests of the data that the run in a folder began with, see `memory.digests`; empty without any."""
    try:
        with records.opened(path / _RECORDS) as file:
            first = records.parse(file.readline(_LONGEST), finite=False)
        found = {name.removeprefix(_DIGESTS): x for name, x in first.items() if name.startswith(_DIGESTS)}
        return {name: digest for name, digest in found.items() if isinstance(digest, str)}
    except (OSError, UserError, ValueError, AttributeError):
        return {}


def refuse_changed(path: pathlib.Path, model: Predictor, fitted: FittedData) -> None:
    """Refuses (UserError) data other than those that a finished run was trained on; tells what has changed."""
    # Of older versions, which have kept this much.
    before = {"split": model.report["split_digest"], "kinds": memory.digest_of(model.preprocessor.to_dict())}
    if changes := memory.changed(remembered(path) or before, Memory.read(path / DATA), fitted):
        told = ", ".join(changes)
        raise UserError(f"the data have changed since the run in {path} was trained: {told}; train a run of them")


def changed_keys(there: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns both values of each key in which two JSON configs differ, but for keys that no figure depends on.

    A key that is newer than the first config has had its default there.
    """
    one, other = dict(leaves(there)), dict(leaves(now))
    newer = {name: json.loads(json.dumps(key.default)) for name, key in keys(other.get("data.source", "")).items()}
    names = sorted((one.keys() | other.keys()) - _FREE)
    changed = [name for name in names if one.get(name, newer.get(name)) != other.get(name)]
    return {name: (one.get(name), other.get(name)) for name in changed}


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    """Names the figures of a report for trackers, such as held_out/tail_mean/auroc."""
    parts = {part: report.get(part) or {} for part in _PARTS}
    return {f"{report['split']}/{part}/{name}": x for part, figures in parts.items() for name, x in numbers(figures)}
