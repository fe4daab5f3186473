"""Trains several methods over several seeds and tabulates them, with paired differences to a baseline.

    python -m remind_jax.sweep --config=configs/phenomenon.py --methods=soft_moe,remind --seeds=0,1,42 --workdir=DIR

    --config, --config.KEY=VALUE    as in remind_jax.main, of every run
    --methods=all        every method and plain model of remind_jax/methods.py, or the variants of the table
    --seeds=0,1,42       of the runs; a seed sets split, initial weights and order
    --baseline=A,B       what differences are drawn to, each in turn; soft_moe where it is run, else the first method
    --table=4            the paper's ablation (4), its sensitivity analysis (16) or that of remind_plus, not all methods
    --jobs=1             runs at a time, each in a process with its share of GPUs or processor cores
    --share              other processes, here or on other machines, run the same command in the same folder
    --resamples=2000     bootstrap replicates of the differences

Finished runs are kept and stopped ones go on: the same command continues a sweep. A run that fails does not stop the
others. Processes that share a sweep take runs in turn, and those of a process that was killed; the last one to end
writes the tables.

Writes runs.csv, groups.csv, differences.csv, table.md, table.tex, index.html and sweep.json (the command, the
time that it took and the machine) under DIR, and a folder a run.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from remind_jax import cli, methods
from remind_jax.errors import UserError
from remind_jax.runtime import claims, files, jobs, progress, signals
from remind_jax.studies.comparison import RESAMPLES, Outcome
from remind_jax.studies.record import Record


class Command(NamedTuple):
    """A sweep's command line: as given, arguments of single runs, and the sweep's own."""

    given: list[str]
    arguments: list[str]
    variants: list[methods.Variant]
    seeds: list[int]
    workdir: pathlib.Path
    baselines: list[str]
    jobs: int
    resamples: int
    share: bool


class Entry(NamedTuple):
    """One run of a sweep.

    Attributes:
      variant: what is run.
      seed: with which seed.
      arguments: command line that gives `config`, without the workdir.
      config: parsed.
      folder: of the run.
    """

    variant: methods.Variant
    seed: int
    arguments: list[str]
    config: Any
    folder: pathlib.Path

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.variant.name} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether the run has its report."""
        return (self.folder / "report.json").exists()


# ---- The command line -----------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Command:
    """Reads a sweep's command line."""
    parser = cli.Parser("python -m remind_jax.sweep --config=FILE --workdir=DIR …; see --help")
    for name, default in {"methods": "all", "seeds": "0,1,42", "workdir": "", "baseline": "", "table": ""}.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--share", action="store_true")
    parser.add_number("--jobs", 1, 1)
    parser.add_number("--resamples", RESAMPLES, 1)
    values, rest = parser.parse_known_args(arguments)
    try:
        seeds = [int(seed) for seed in values.seeds.split(",")]
    except ValueError as error:
        raise UserError(f"cannot read the command line: {error}") from error
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds={values.seeds} names a seed twice")
    cli.config_file(rest)  # must be there before its methods are looked at
    chosen = methods.choose(values.methods, values.table)
    names = [variant.name for variant in chosen]
    default = "soft_moe" if "soft_moe" in names else names[0]
    baselines = list(dict.fromkeys(filter(None, values.baseline.split(",")))) or [default]
    for baseline in baselines:
        if baseline not in names:
            raise UserError(f"baseline={baseline} is not among the methods: {', '.join(names)}")
    if values.share and values.jobs > 1:
        raise UserError(f"--share with --jobs={values.jobs}: start the same command {values.jobs} times instead")
    workdir = pathlib.Path(values.workdir)
    return Command(
        list(arguments), rest, chosen, seeds, workdir, baselines, values.jobs, values.resamples, values.share
    )


def plan(command: Command) -> list[Entry]:
    """All runs, seed by seed. Every config is read here, so that a mistake costs nothing."""
    entries = []
    for seed in command.seeds:
        for variant in command.variants:
            arguments = [*_with_method(command.arguments, variant.method), f"--config.seed={seed}"]
            if changes := variant.flags(cli.parse_config(arguments)[0]):
                arguments += changes
            config = cli.parse_config(arguments)[0]
            entries.append(Entry(variant, seed, arguments, config, command.workdir / f"{variant.name}-seed{seed}"))
    return entries


def _with_method(arguments: Sequence[str], method: str) -> list[str]:
    """The arguments of a run with the method put into the config's argument string."""
    result = list(arguments)
    for i, argument in enumerate(result):
        if argument.startswith("--config="):
            path, _, given = argument.partition(":")
            kept = [part for part in given.split(",") if part and not part.startswith("method=")]
            result[i] = f"{path}:{','.join([*kept, f'method={method}'])}"
    return result


# ---- Running --------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    command = parse(arguments)
    entries = plan(command)
    with jobs.hold(command.workdir, shared=command.share) as descriptor, signals.Signals():
        if command.share:
            _shared(command, entries)
            return
        record = _record(command, entries)
        shared = _shared_programs(command.workdir / "compiled", here=command.jobs == 1)
        with progress.make(len(entries), "runs") as bar, shared:
            if command.jobs == 1:
                failed = _in_this_process(entries, bar, record)
            else:
                failed = _in_processes(entries, command.jobs, descriptor, bar, record)
        _close(command, entries, failed, record)


def _close(command: Command, entries: Sequence[Entry], failed: dict[str, str], record: Record) -> None:
    """Writes the tables of all runs; `failed` has the reason for each run that failed."""
    failures = [f"{name}: {reason}" for name, reason in failed.items()]
    # A run that failed may have a report all the same: that of other settings.
    finished = read_runs([entry for entry in entries if entry.name not in failed])
    if not finished:
        raise UserError(f"no run finished; the first failure was {failures[0]}")
    start = time.monotonic()
    _tabulate(command, finished, failures)
    record.close(
        data=finished[0].report["data"],
        failed=[entry.name for entry in entries if entry.name in failed],
        seconds=time.monotonic() - start,
        folders=[entry.folder for entry in entries if entry.finished],
    )
    if failed:
        raise UserError(f"{len(failed)} of {len(entries)} runs failed: {'; '.join(failures)}")


@contextlib.contextmanager
def _shared_programs(folder: pathlib.Path, here: bool) -> Iterator[None]:
    """Runs that differ in the seed alone are compiled once, unless the user keeps compiled programs elsewhere.

    Args:
      folder: for programs.
      here: whether runs are in this process; those in other processes read the environment.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:  # which JAX takes from the environment, too
        yield
        return
    from remind_jax.runtime import devices

    names = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    before = os.environ.copy()
    os.environ |= dict(zip(names, (str(folder.resolve()), str(devices.WORTH_KEEPING)), strict=True))
    try:
        with devices.kept_programs(folder if here else None):
            yield
    finally:
        for name in names:
            os.environ.pop(name)
            os.environ |= {name: before[name]} if name in before else {}


def _record(command: Command, entries: Sequence[Entry]) -> Record:
    return Record(
        command.workdir / "sweep.json",
        command.given,
        methods=[variant.name for variant in command.variants],
        seeds=command.seeds,
        baselines=command.baselines,
        resamples=command.resamples,
        jobs=command.jobs,
        runs=[entry.name for entry in entries],
    )


def _in_this_process(entries: Sequence[Entry], bar: progress.Silent, record: Record) -> dict[str, str]:
    """Runs one after the other; returns the names of the runs that failed, each with the reason."""
    failed: dict[str, str] = {}
    for done, entry in enumerate(entries):
        bar.advance(done, entry.name)
        with contextlib.nullcontext() if entry.finished else record.timed(entry.name):
            reason = _run_here(entry, bar)
        if reason:
            failed[entry.name] = reason
    return failed


def _run_here(entry: Entry, bar: progress.Silent) -> str:
    """Runs one, or shows that it is finished; returns why it failed, or nothing."""
    shown = entry.finished
    try:
        _runner(entry)()
    except Exception as error:  # whatever it is, the other runs shall have their turn
        reason = " ".join(str(error).split()) or type(error).__name__
        bar.say(f"failed: {entry.name}: {reason}")
        if not isinstance(error, UserError):
            _log(entry).write_text(traceback.format_exc(), encoding="utf-8")
        return reason
    bar.say(_outcome(entry, kept=shown))
    return ""


def _runner(entry: Entry) -> Callable[[], Any]:
    if entry.config.method in methods.PLAIN:
        from remind_jax.studies.baselines import fit_and_evaluate

        return lambda: fit_and_evaluate(entry.config, entry.folder, verbose=False)
    from remind_jax.training.run import train_and_evaluate

    return lambda: train_and_evaluate(entry.config, entry.folder, verbose=False)


def _in_processes(
    entries: Sequence[Entry], count: int, descriptor: int, bar: progress.Silent, record: Record
) -> dict[str, str]:
    """Runs several at a time; returns the names of the runs that failed, each with the reason."""
    failed: dict[str, str] = {}
    # A finished run of the same settings needs no process; of other settings, its own process says what differs.
    open_entries = [entry for entry in entries if not (entry.finished and _same_settings(entry))]
    for entry in entries:
        if entry not in open_entries:
            bar.say(_outcome(entry, kept=True))
    done = len(entries) - len(open_entries)
    slots = jobs.divide(min(count, max(1, len(open_entries))), jobs.find_gpus(), jobs.find_cpus())
    todo = [jobs.Job(_child(entry), _log(entry)) for entry in open_entries]
    running: dict[str, contextlib.ExitStack] = {}
    with contextlib.ExitStack() as clocks:
        for event in jobs.run_all(todo, slots, (descriptor,)):
            entry = open_entries[event.job]
            if event.ended:
                running.pop(entry.name).close()
                done += 1
                if event.error:
                    failed[entry.name] = event.error
                    bar.say(f"failed: {entry.name}: {event.error}")
                else:
                    bar.say(_outcome(entry, kept=False))
            else:
                clock = clocks.enter_context(contextlib.ExitStack())
                if not entry.finished:  # of other settings, which its process refuses
                    clock.enter_context(record.timed(entry.name))
                running[entry.name] = clock
            bar.advance(done, ", ".join(running))
    return failed


# ---- Sharing --------------------------------------------------------------------------------------------------------


def _shared(command: Command, entries: Sequence[Entry]) -> None:
    """Runs what no other process runs, until all is done or the others have the rest; the last writes the tables."""
    with claims.Claims(command.workdir / "claims") as held, progress.make(len(entries), "runs") as bar:
        begin = held.now()
        while left := [entry for entry in entries if not _settled(entry, begin)]:
            bar.advance(len(entries) - len(left), left[0].name)
            took = [entry for entry in left if _take(entry, held, begin, bar)]
            if not took and not held.wait_for_news([entry.folder.name for entry in left]):
                bar.say(f"{len(left)} runs are under way elsewhere; the last process to end writes the tables")
                return
        with held.taken("tables") as mine:
            if mine:
                bar.say("all runs are done: writing the tables")
                failed = {entry.name: reason for entry in entries if (reason := _failure(entry, begin))}
                record = _record(command, entries)
                record.add_spans({entry.name: _spans(entry) for entry in entries})
                _close(command, entries, failed, record)


def _take(entry: Entry, held: claims.Claims, begin: float, bar: progress.Silent) -> bool:
    """Runs one that is free; whether it was."""
    with held.taken(entry.folder.name) as mine:
        if mine and not _settled(entry, begin):  # by the last to hold it
            start = held.now()
            with _noted(entry, start):
                reason = _run_here(entry, bar)
            if reason:
                files.write_text(_failure_file(entry), json.dumps(reason))
        return mine


def _settled(entry: Entry, begin: float) -> bool:
    """Whether a run is finished, or has failed since this process began: an older failure gets another try."""
    return (entry.finished and _same_settings(entry)) or bool(_failure(entry, begin))


def _failure(entry: Entry, begin: float) -> str:
    file = _failure_file(entry)
    if not file.exists() or file.stat().st_mtime < begin:
        return ""
    return json.loads(file.read_text(encoding="utf-8"))


def _failure_file(entry: Entry) -> pathlib.Path:
    return entry.folder.parent / "claims" / f"{entry.folder.name}.failed"


@contextlib.contextmanager
def _noted(entry: Entry, start: float) -> Iterator[None]:
    """Notes from when to when a run was run; only the holder of its claim writes there."""
    clock = time.monotonic()
    try:
        yield
    finally:
        spans = [*_spans(entry), (start, start + time.monotonic() - clock)]
        files.write_text(_span_file(entry), json.dumps(spans))


def _spans(entry: Entry) -> list[tuple[float, float]]:
    file = _span_file(entry)
    return [tuple(span) for span in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def _span_file(entry: Entry) -> pathlib.Path:
    return entry.folder.parent / "claims" / f"{entry.folder.name}.spans"


def _same_settings(entry: Entry) -> bool:
    """Whether the run's folder was made with the settings of this sweep."""
    if entry.config.method in methods.PLAIN:
        from remind_jax.studies.baselines import plain_config

        settings = plain_config(entry.config)
    else:
        settings = entry.config.to_dict()
    there = (entry.folder / "config.json").read_text(encoding="utf-8")
    return json.loads(there) == json.loads(json.dumps(settings))


def _child(entry: Entry) -> list[str]:
    """The command of a run in a process of its own."""
    return [sys.executable, "-m", "remind_jax.main", *entry.arguments, f"--workdir={entry.folder}"]


def _log(entry: Entry) -> pathlib.Path:
    return entry.folder.with_name(f"{entry.folder.name}.log")


def _outcome(entry: Entry, kept: bool) -> str:
    from remind_jax.studies.results import run_figures

    figures = run_figures(json.loads((entry.folder / "report.json").read_text(encoding="utf-8")))
    shown = "  ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
    return f"{entry.variant.name:<26} seed {entry.seed:<4} {shown}{'  (finished before)' if kept else ''}"


# ---- Tables ---------------------------------------------------------------------------------------------------------


def read_runs(entries: Sequence[Entry]) -> list[Outcome]:
    """The finished runs."""
    import polars as pl

    return [
        Outcome(
            entry.variant.name,
            entry.seed,
            json.loads((entry.folder / "report.json").read_text(encoding="utf-8")),
            pl.read_parquet(entry.folder / "predictions.parquet"),
        )
        for entry in entries
        if entry.finished
    ]


def _tabulate(command: Command, runs: Sequence[Outcome], failed: Sequence[str]) -> None:
    from remind_jax.studies import page

    names = [variant.name for variant in command.variants]
    page.tabulate(command.workdir, runs, names, command.baselines, resamples=command.resamples, failures=failed)


if __name__ == "__main__":
    cli.run(main, __doc__)
