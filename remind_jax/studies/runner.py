"""Runs the entries of a sweep, in this process, in several, or shared with other machines, and tabulates them."""

import contextlib
import functools
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from remind_jax import cli, methods, tasks
from remind_jax.config import complete
from remind_jax.data import dataset as datasets
from remind_jax.data import memory
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.runtime import claims, devices, files, jobs, processes, progress, records, signals, texts
from remind_jax.studies import engines, page
from remind_jax.studies.baselines import fit_and_evaluate, plain_config
from remind_jax.studies.comparison import outcome_of
from remind_jax.studies.entries import Entry, Options
from remind_jax.studies.record import Record
from remind_jax.studies.results import run_figures
from remind_jax.training.plain_models import TASKS_OF
from remind_jax.training.run import train_and_evaluate
from remind_jax.training.run_folder import DATA, changed_keys

_PROCESSOR = "processor.json"  # seconds
_MOVED = "its data have changed while the sweep ran: give the same command again"
_CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def run(
    entries: Sequence[Entry],
    workdir: pathlib.Path,
    options: Options,
    command: Sequence[str] = (),
    searches: Sequence[Any] = (),
) -> None:
    """Runs a sweep in a folder and writes its tables; finished runs are kept and stopped ones go on.

    A run that fails does not stop the others. With `options.share` other processes may run the same sweep: each takes
    what no other one runs, and the last one writes the tables. The record shows `command`, the arguments of the command
    line; tables show the `searches` (`search.Found`) that chose keys of the entries. Raises UserError: runs failed, or
    another sweep works in the folder.
    """
    for entry in (entries := learning(entries, options)):
        files.refuse_links(entry.folder)
    with jobs.hold(workdir, shared=options.share) as descriptor, signals.Signals():
        sweep = _Sweep(entries, workdir, options, command, searches)
        if options.share:
            _run_shared(sweep)
            return
        here = options.jobs == 1 and options.ray is None
        record, shared = sweep.record(), _shared_programs(here)
        with progress.make(len(entries), "runs") as bar, shared:
            if here:
                failed = _run_in_turn(entries, options, bar, record)
            else:
                failed = _run_in_processes(entries, options, descriptor, bar, record)
        sweep.close(failed, record)


def learning(entries: Sequence[Entry], options: Options) -> Sequence[Entry]:
    """Returns the entries, of a sweep of all methods those that learn the labels of its data, and names the others.

    Raises UserError: a baseline is one of these, or the data cannot be read.
    """
    if not options.whole:
        return entries
    task, every = datasets.read(entries[0].config).schema.task, methods.METHODS | methods.PLAIN
    able = [name for name, keys in every.items() if task in TASKS_OF.get(name, (task,)) and tasks.learns(task, keys)]
    others = [name for name in dict.fromkeys(entry.method for entry in entries) if name not in able]
    for baseline in options.baselines:
        if baseline in others:
            raise UserError(f"baseline={baseline} does not learn labels of task {task}: take one of {', '.join(able)}")
    if others:
        print(f"left out, since they do not learn labels of task {task}: {', '.join(others)}", flush=True)
    return [entry for entry in entries if entry.method in able]


def run_config(config: Any, folder: pathlib.Path, verbose: bool = True, on_changed_data: str = "refuse") -> None:
    """Trains the run of one config, or fits its plain model, and reports on it; a finished run is shown again.

    Raises UserError: a setting, the data or the folder cannot be used, or the data have changed since the run began
    and `on_changed_data` is not `restart`.
    """
    if config.method in methods.PLAIN:
        processes.run_on_first(lambda: fit_and_evaluate(config, folder, verbose, on_changed_data))
        return
    train_and_evaluate(config, folder, verbose, on_changed_data)


class _Sweep:
    """What all ways of running entries share: the record and the tables."""

    def __init__(
        self,
        entries: Sequence[Entry],
        workdir: pathlib.Path,
        options: Options,
        command: Sequence[str],
        searches: Sequence[Any],
    ):
        self.entries, self.workdir, self.options, self._command = entries, workdir, options, command
        self._searches = searches
        self._methods = list(dict.fromkeys(entry.method for entry in entries))

    def record(self) -> Record:
        """Opens the record of this call."""
        return Record(
            self.workdir / "sweep.json",
            self._command,
            methods=self._methods,
            seeds=list(dict.fromkeys(entry.seed for entry in self.entries)),
            baselines=list(self.options.baselines),
            resamples=self.options.resamples,
            jobs=self.options.jobs,
            runs=[entry.name for entry in self.entries],
        )

    def close(self, failed: dict[str, str], record: Record) -> None:
        """Writes the tables of all runs on the same data; `failed` has the reason for each run that failed."""
        failed = dict.fromkeys(_on_other_data(self.entries), _MOVED) | failed
        failures = [f"{name}: {reason}" for name, reason in failed.items()]
        # A run that failed may have a report all the same: that of other settings.
        outcomes = [outcome_of(entry) for entry in self.entries if entry.finished and entry.name not in failed]
        if not outcomes:
            raise UserError(f"no run finished; the first failure was {failures[0]}")
        start, drawn = time.monotonic(), {"resamples": self.options.resamples, "failures": failures}
        drawn |= {"searches": self._searches}
        page.tabulate(self.workdir, outcomes, self._methods, self.options.baselines, **drawn)
        record.close(
            data=outcomes[0].report["data"],
            failed=[entry.name for entry in self.entries if entry.name in failed],
            seconds=time.monotonic() - start,
            folders=[entry.folder for entry in self.entries if entry.finished],
        )
        if failed:
            raise UserError(f"{len(failed)} of {len(self.entries)} runs failed: {'; '.join(failures)}")


@contextlib.contextmanager
def _shared_programs(here: bool) -> Iterator[None]:
    """Lets runs compile once, in this process (`here`) or others, unless the user keeps programs elsewhere.

    Programs lie in the user's own folder and not in the sweep's, where others might put some.
    """
    if (folder := devices.users_programs()) is None:
        yield
        return
    before = os.environ.copy()
    os.environ |= dict(zip(_CACHE, (str(folder), str(devices.WORTH_KEEPING)), strict=True))
    try:
        with devices.kept_programs(folder if here else None):
            yield
    finally:
        for name in _CACHE:
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}


def _run_in_turn(entries: Sequence[Entry], options: Options, bar: progress.Silent, record: Record) -> dict[str, str]:
    """Runs one after the other; returns the names of the runs that failed, each with the reason."""
    failed: dict[str, str] = {}
    other = _on_other_data(entries)
    for done, entry in enumerate(entries):
        bar.advance(done, entry.name)
        kept = entry.finished and entry.name not in other
        with contextlib.nullcontext() if kept else record.timed(entry.name):
            reason = _run_here(entry, options, bar)
        if reason:
            failed[entry.name] = reason
    return failed


def _run_here(entry: Entry, options: Options, bar: progress.Silent) -> str:
    """Runs one, or shows that it is finished; returns why it failed, or nothing."""
    before = _written(entry.folder)
    try:
        with _clocked(entry.folder):
            run_config(entry.config, entry.folder, False, options.on_changed_data)
    except Exception as error:  # whatever it is, the other runs shall have their turn
        reason = " ".join(str(error).split()) or type(error).__name__
        bar.say(f"failed: {entry.name}: {reason}")
        if not isinstance(error, UserError):
            files.write_text(entry.log, texts.visible(traceback.format_exc()))
        return reason
    bar.say(_summary(entry, kept=before == _written(entry.folder)))
    return ""


def _written(folder: pathlib.Path) -> int:
    """Returns when a run's report was written, in nanoseconds; 0 while there is none."""
    return (folder / finished.REPORT).stat().st_mtime_ns if finished.is_there(folder) else 0


@contextlib.contextmanager
def _clocked(folder: pathlib.Path) -> Iterator[None]:
    """Adds the processor time of this process, of all its threads, to that of a run; not of one that is only shown."""
    before, start = _written(folder), time.process_time()
    try:
        yield
    finally:
        spent = time.process_time() - start
        if folder.is_dir() and not before == _written(folder) > 0:
            total = spent if before else (processor_seconds(folder) or 0.0) + spent
            files.write_text(folder / _PROCESSOR, json.dumps(round(total, 2)))


def processor_seconds(folder: pathlib.Path) -> float | None:
    """Reads the processor time of a run of a sweep in seconds, added up over its calls; None where none was noted."""
    return records.read(folder / _PROCESSOR, float, "remove it", default=None)


def _summary(entry: Entry, kept: bool) -> str:
    """Says in one line what a run has reached."""
    figures = run_figures(entry.report())
    shown = "  ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
    return f"{entry.method:<26} seed {entry.seed:<4} {shown}{'  (finished before)' if kept else ''}"


def _run_in_processes(
    entries: Sequence[Entry], options: Options, descriptor: int, bar: progress.Silent, record: Record
) -> dict[str, str]:
    """Runs several at a time; returns the names of the runs that failed, each with the reason."""
    failed: dict[str, str] = {}
    # A finished run of the same settings and data needs no process; of others, its own process says what differs.
    other = _on_other_data(entries)
    open_entries = [each for each in entries if not (each.finished and same_settings(each)) or each.name in other]
    for entry in entries:
        if entry not in open_entries:
            bar.say(_summary(entry, kept=True))
    done = len(entries) - len(open_entries)
    running: dict[str, contextlib.ExitStack] = {}
    with contextlib.ExitStack() as clocks:
        for event in engines.events(open_entries, options, descriptor, bar):
            entry = open_entries[event.job]
            if event.ended or event.error:
                running.pop(entry.name, contextlib.ExitStack()).close()
            if event.ended:
                done += 1
                if event.error:
                    failed[entry.name] = event.error
                bar.say(f"failed: {entry.name}: {event.error}" if event.error else _summary(entry, kept=False))
            else:
                clock = clocks.enter_context(contextlib.ExitStack())
                if not entry.finished or entry.name in other:  # else of other settings, which its process refuses
                    clock.enter_context(record.timed(entry.name))
                running[entry.name] = clock
            bar.advance(done, ", ".join(running))
    return failed


def _on_other_data(entries: Sequence[Entry]) -> set[str]:
    """Names the finished runs whose data's files do not look as they did, so that the data may be others by now."""
    stamp = functools.cache(memory.stamp)  # of all runs on the same data at once
    kept = [(entry, memory.kept_stamp(entry.folder / DATA)) for entry in entries if entry.finished]
    known = [(entry, then) for entry, then in kept if then is not None]
    return {entry.name for entry, then in known if stamp(*memory.places(entry.config.data)) not in (then, "")}


def same_settings(entry: Entry) -> bool:
    """Tells whether the run's folder was made with the settings of this sweep."""
    settings = entry.config.to_dict()
    if entry.config.method in methods.PLAIN:
        settings = plain_config(entry.config)
    there = records.read(entry.folder / "config.json", {}, "remove the folder")
    return not changed_keys(there, json.loads(json.dumps(settings)))


def _run_shared(sweep: _Sweep) -> None:
    """Runs what no other process runs, until all is done or the others have the rest; the last writes the tables."""
    entries, other = sweep.entries, _on_other_data(sweep.entries)
    with claims.Claims(sweep.workdir / "claims") as held, progress.make(len(entries), "runs") as bar:
        begin = held.now()
        while left := [entry for entry in entries if not _settled(entry, begin, other)]:
            bar.advance(len(entries) - len(left), left[0].name)
            took = [entry for entry in left if _take(entry, sweep.options, held, begin, other, bar)]
            if not took and not held.wait_for_news([entry.folder.name for entry in left]):
                bar.say(f"{len(left)} runs are under way elsewhere; the last process to end writes the tables")
                return
        with held.taken("tables") as mine:
            if mine:
                bar.say("all runs are done: writing the tables")
                failed = {entry.name: reason for entry in entries if (reason := _failure(entry, begin))}
                record = sweep.record()
                record.add_spans({entry.name: _spans(entry) for entry in entries})
                sweep.close(failed, record)


def _take(
    entry: Entry, options: Options, held: claims.Claims, begin: float, other: set[str], bar: progress.Silent
) -> bool:
    """Runs one that is free, or looks at its data again, and strikes it off `other`; returns whether it was free."""
    with held.taken(entry.folder.name) as mine:
        if mine and not _settled(entry, begin, other):  # by the last to hold it
            start = held.now()
            with _noted(entry, start):
                reason = _run_here(entry, options, bar)
            other.discard(entry.name)
            if reason:
                files.write_text(_beside_claim(entry, "failed"), json.dumps(reason))
        return mine


def _settled(entry: Entry, begin: float, other: set[str]) -> bool:
    """Tells whether a run is finished, or has failed since this process began: older failures get another try.

    Those in `other` may be of other data, which has to be looked at.
    """
    is_done = entry.finished and same_settings(entry) and entry.name not in other
    return is_done or bool(_failure(entry, begin))


def _failure(entry: Entry, begin: float) -> str:
    """Reads why a run has failed since this process began; empty if it has not."""
    file = _beside_claim(entry, "failed")
    if not file.exists() or file.stat().st_mtime < begin:
        return ""
    return records.read(file, str, "remove it")


@contextlib.contextmanager
def _noted(entry: Entry, start: float) -> Iterator[None]:
    """Notes from when to when a run was run; only the holder of its claim writes there."""
    clock = time.monotonic()
    try:
        yield
    finally:
        spans = [*_spans(entry), (start, start + time.monotonic() - clock)]
        files.write_text(_beside_claim(entry, "spans"), json.dumps(spans))


def _spans(entry: Entry) -> list[tuple[float, float]]:
    """Reads from when to when a run was run, by all processes."""
    found = records.read(_beside_claim(entry, "spans"), [[float, float]], "remove it", default=[])
    return [tuple(span) for span in found]


def _beside_claim(entry: Entry, kind: str) -> pathlib.Path:
    """Names the file next to a run's claims in which processes tell each other something about it."""
    return entry.folder.parent / "claims" / f"{entry.folder.name}.{kind}"


def child() -> None:
    """Does the work of a process that `engines` starts."""
    jobs.end_with_parent()
    cli.run(run_given, None)


def run_given(arguments: Sequence[str]) -> None:
    """Runs the config that is on standard input as JSON; the arguments are its folder and what changed data do."""
    folder, on_changed_data = arguments
    with _clocked(pathlib.Path(folder)):
        run_config(complete(json.loads(sys.stdin.read())), pathlib.Path(folder), on_changed_data=on_changed_data)
