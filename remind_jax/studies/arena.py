"""The arena: methods, data sets, protocols of missingness and seeds; each set under a protocol is a sweep of its own.

The file of an arena has `SETS`, `PROTOCOLS`, `METHODS` and `SECONDS` (configs/arena.py). The sweep of a set and a
protocol lies in a folder SET-PROTOCOL, and is run, resumed and tabulated as any other; arena.csv has a row of each
finished run, see `arena_results`.
"""

import argparse
import csv
import io
import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli
from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.errors import UserError, did_you_mean
from remind_jax.methods import ARENA, METHODS, PLAIN
from remind_jax.runtime import files, records
from remind_jax.studies import arena_results as results
from remind_jax.studies import entries, runner
from remind_jax.studies.arena_results import Row
from remind_jax.studies.comparison import outcome_of
from remind_jax.studies.entries import Entry, Setup
from remind_jax.training import cost

TOLERANCE = 0.01
"""How far a figure may be from that of a file when its run is repeated, as a fraction: a point of a percentage."""
_RATE = "<rate>"
_UNKNOWN = 60.0  # seconds of a run of a set of which the file says nothing
_RECORD = {"runs?": {...: {"seconds": (float, None)}}, "failed?": [str], "processor?": str, ...: object}
Write = Callable[..., None]


class Cell(NamedTuple):
    """A data set under a protocol: their names, what is run, and the folder of its sweep."""

    data: str
    protocol: str
    runs: Sequence[Entry]
    folder: pathlib.Path

    @property
    def name(self) -> str:
        """The name in messages and of the folder."""
        return f"{self.data}-{self.protocol}"

    def record(self) -> dict[str, Any]:
        """Reads what the sweep has recorded of its runs, empty before it has."""
        return records.read(self.folder / "sweep.json", _RECORD, "remove it", default={})

    def finished(self) -> list[Entry]:
        """Returns the runs that are finished with the settings of this arena and did not fail."""
        failed = self.record().get("failed", [])
        return [each for each in self.runs if each.finished and each.name not in failed and runner.same_settings(each)]


class Arena(NamedTuple):
    """What a command line asks: the file's content, the options, what is left of the arguments, and roots by set."""

    given: Mapping[str, Any]
    values: argparse.Namespace
    rest: Sequence[str]
    roots: Mapping[str, str]

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the arena."""
        return pathlib.Path(self.values.workdir)

    @property
    def sets(self) -> list[str]:
        """The sets that are asked for. Raises UserError: one is unknown."""
        return _sets(self.values.sets, self.given["SETS"])

    @property
    def file(self) -> pathlib.Path:
        """The file of results."""
        return self.folder / results.FILE

    def setup(self, data: str, **options: str) -> Setup:
        """Reads what is run of a set; `options` are other values of options of the command line."""
        config, changes = self.given["SETS"][data]
        values = argparse.Namespace(**vars(self.values) | options)
        argument = str(self.values.config).partition(":")[2]
        setup = entries.read_setup(values, [f"--config={config}:{argument}", *self.rest])
        changes = dict(changes) | ({"data.root": self.roots[data]} if data in self.roots else {})
        return setup._replace(given=setup.given._replace(changes=changes | dict(setup.given.changes)))

    def protocol(self, text: str) -> tuple[str, dict[str, Any]]:
        """Reads a protocol such as `mcar-0.3`; returns its full name and its keys. Raises UserError: there is none."""
        name, _, rate = text.partition("-")
        known = self.given["PROTOCOLS"]
        if name not in known:
            raise UserError(f"protocol {text!r} is unknown{did_you_mean(name, known)}; known: {', '.join(known)}")
        changes, default = known[name]
        if default is None:
            if rate:
                raise UserError(f"protocol {text!r}: {name} has no rate")
            return name, dict(changes)
        try:
            share = float(rate or default)
        except ValueError:
            share = math.nan
        if not 0 < share < 1:
            raise UserError(f"protocol {text!r}: its rate must be above 0 and below 1, such as {name}-{default:g}")
        return f"{name}-{share:g}", {key: share if value == _RATE else value for key, value in changes.items()}

    def cell(self, data: str, protocol: str, below: pathlib.Path, **options: str) -> Cell:
        """Plans the runs of a set under a protocol; `options` as for `setup`."""
        name, changes = self.protocol(protocol)
        folder = below / f"{data}-{name}"
        return Cell(data, name, self.setup(data, **options).plan(folder, changes), folder)

    def cells(self) -> list[Cell]:
        """Plans all runs. Raises UserError: something is unknown, or a set is not at hand."""
        names = dict.fromkeys(self.protocol(name)[0] for name in self.values.protocols.split(","))
        found = [self.cell(data, name, self.folder) for data in self.sets for name in names]
        for cell in found[:: len(names)]:
            _check(cell)
        return found


def _sets(names: str, known: Mapping[str, Any]) -> list[str]:
    """Returns the sets that are named, all by default. Raises UserError: one is unknown."""
    found = list(dict.fromkeys(filter(None, names.split(",")))) or list(known)
    for name in found:
        if name not in known:
            raise UserError(f"set {name!r} is unknown{did_you_mean(name, known)}; known: {', '.join(known)}")
    return found


def _check(cell: Cell) -> None:
    """Refuses a set that is not at hand, by its own reason (UserError)."""
    try:
        datasets.read(cell.runs[0].config)
    except UserError as error:
        how = f"--roots={cell.data}=DIR names a folder, --sets=… leaves the set out"
        raise UserError(f"set {cell.data} is not at hand: {error} (in the arena {how})") from None


def read(given: Mapping[str, Any], arguments: Sequence[str]) -> Arena:
    """Reads a command line whose config is the file of an arena, of this content. Raises UserError: it cannot be."""
    parser = cli.Parser("remind sweep --config=arena --workdir=DIR …; see docs/arena_run.md")
    for name in ("config", "workdir", "sets", "roots", "append", "verify"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--protocols", default="as_found")
    parser.add_argument("--plan", action="store_true")
    entries.add_options(parser)
    parser.set_defaults(methods=",".join(given["METHODS"]))
    values, rest = parser.parse_known_args(arguments)
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if values.table:
        raise UserError("--table is of the sweep of one data set: name methods")
    pairs = [pair.partition("=") for pair in filter(None, values.roots.split(","))]
    arena = Arena(given, values, rest, {name: folder for name, _, folder in pairs})
    _sets(",".join(arena.roots), given["SETS"])
    return arena


def main(given: Mapping[str, Any], arguments: Sequence[str], write: Write) -> None:
    """Does what a command line asks; `given` is the content of its file, and `write` is as `arena_page.write`.

    Raises UserError: something cannot be used, runs failed, or figures differ from those that were to be verified.
    """
    arena = read(given, arguments)
    if arena.values.append:
        append(arena, pathlib.Path(arena.values.append))
        _show(arena, write)
    elif arena.values.verify:
        verify(arena, arguments)
    elif arena.values.plan:
        print(plan(arena, arena.cells()))
    else:
        run(arena, arguments, write)


def run(arena: Arena, arguments: Sequence[str], write: Write) -> None:
    """Runs every cell and writes the file of results after each, and the page at the end.

    A cell that fails does not stop the others. Raises UserError: runs failed.
    """
    cells, failed = arena.cells(), []
    _known(arena)  # whose faults shall not be found after hours
    for number, cell in enumerate(cells, 1):
        print(f"== {cell.name} ({number} of {len(cells)})", flush=True)
        options = arena.setup(cell.data).options
        try:
            runner.run(cell.runs, cell.folder, options, arguments)
        except UserError as error:
            failed.append(f"{cell.name}: {error}")
            print(f"failed: {failed[-1]}", flush=True)
        collect(arena, cell)
    for cell in cells:  # when no other process needs the devices; others may have ended runs of a shared arena since
        collect(arena, cell, counted=True)
    _show(arena, write, failed)
    if failed:
        raise UserError(f"{len(failed)} of {len(cells)} sweeps have failed: {'; '.join(failed)}")


def collect(arena: Arena, cell: Cell, counted: bool = False) -> None:
    """Brings the finished runs of a cell into the file of results, with operations that are known or `counted` now."""
    work = {(*results.key_of(row)[:3], row["config"]): row["flops"] for row in _known(arena) if row["flops"]}
    found = []
    for entry in cell.finished():
        row = row_of(cell, entry)
        of = (*results.key_of(row)[:3], row["config"])
        if counted and of not in work:
            work[of] = results.text(cost.step_flops(entry.config))
        found.append(row | {"flops": work.get(of, "")})
    files.make_folder(arena.folder)
    results.write(arena.file, results.merged(_known(arena), found))  # to which others may have added by now


def row_of(cell: Cell, entry: Entry) -> dict[str, str]:
    """Makes the row of a finished run, without its operations."""
    outcome = outcome_of(entry)
    config = records.read(entry.folder / "config.json", {}, "remove the folder")
    shape = {**files.ENVIRONMENT, "python?": str, ...: object}
    made = records.read(entry.folder / "environment.json", shape, "remove it", default={})
    packages, sweep = made.get("packages", {}), cell.record()
    return {
        **{"data": cell.data, "protocol": cell.protocol, "method": entry.method, "seed": str(entry.seed)},
        **results.figures_of(outcome),
        "seconds": results.text(sweep.get("runs", {}).get(entry.name, {}).get("seconds")),
        "processor_seconds": results.text(runner.processor_seconds(entry.folder)),
        "rows": results.rows_digest(outcome.predictions),
        "predictions": results.digest(outcome.predictions),
        "config": results.settings_digest(config),
        **{"version": packages.get("remind-jax") or "", "jax": packages.get("jax") or ""},
        **{"python": made.get("python", ""), "processor": sweep.get("processor", "")},
    }


def _known(arena: Arena) -> list[dict[str, str]]:
    return results.read(arena.file) if arena.file.exists() else []


def _show(arena: Arena, write: Write, notes: Sequence[str] = ()) -> None:
    """Writes the page of all rows."""
    rows = _known(arena)
    there = {(row["data"], row["protocol"]): f"{row['data']}-{row['protocol']}" for row in rows}
    files_of = {key: arena.folder / name / "differences.csv" for key, name in there.items()}
    differences = {key: list(_table(path)) for key, path in files_of.items() if path.exists()}
    if rows:
        write(arena.folder, rows, differences, notes)
        print(f"\nArena: {arena.folder / 'index.html'}, {arena.file}")


def _table(path: pathlib.Path) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.StringIO(records.content(path).decode("utf-8"), newline=""))


def plan(arena: Arena, cells: Sequence[Cell]) -> str:
    """Says how many runs there are to run, and about how long they take, one after the other.

    A run takes what finished ones of its set and method took in the mean, else those of its set, else what the file of
    the arena says.
    """
    timed: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        for method, seconds in _seconds(cell):
            timed.setdefault((cell.data, method), []).append(seconds)
    lines = [f"{'set, protocol':<34} {'runs':>5} {'finished':>8} {'hours':>7}  by"]
    hours, count, left = 0.0, 0, 0
    for cell in cells:
        done = {entry.name for entry in cell.finished()}
        open_runs = [entry for entry in cell.runs if entry.name not in done]
        of_set = [second for (data, _), each in timed.items() if data == cell.data for second in each]
        default = of_set or [arena.given["SECONDS"].get(cell.data, _UNKNOWN)]
        spent = sum(statistics.fmean(timed.get((cell.data, entry.method), default)) for entry in open_runs) / 3600
        by = "finished runs" if of_set else "the file of the arena"
        lines.append(f"{cell.name:<34} {len(cell.runs):>5} {len(done):>8} {spent:>7.2f}  {by}")
        hours, count, left = hours + spent, count + len(cell.runs), left + len(open_runs)
    lines.append(f"{'all':<34} {count:>5} {count - left:>8} {hours:>7.2f}")
    jobs = arena.values.jobs
    several = f", {hours / jobs:.1f} at best with --jobs={jobs}" if jobs > 1 else ""
    return "\n".join([*lines, "", f"{left} runs are open: about {hours:.1f} hours one by one{several}"])


def _seconds(cell: Cell) -> Iterator[tuple[str, float]]:
    """Yields methods and seconds of the runs that a sweep has timed."""
    for name, run in cell.record().get("runs", {}).items():
        if run["seconds"]:
            yield name.rpartition(" seed ")[0], run["seconds"]


def append(arena: Arena, path: pathlib.Path) -> None:
    """Adds the rows of another file of results to those of the arena.

    Raises UserError, and adds none: a row is of an unknown set or protocol, of other held-out samples, or is there.
    """
    ours, theirs = _known(arena), results.read(path)
    there = {results.key_of(row) for row in ours}
    held_out = {(row["data"], row["protocol"], row["seed"]): row["rows"] for row in ours}
    for number, row in enumerate(theirs, 2):
        where, at = f"{path.name} row {number}", (row["data"], row["protocol"], row["seed"])
        _sets(row["data"], arena.given["SETS"])
        if arena.protocol(row["protocol"])[0] != row["protocol"]:
            raise UserError(f"{where}: protocol {row['protocol']!r} is written {arena.protocol(row['protocol'])[0]}")
        if results.key_of(row) in there:
            raise UserError(f"{where}: {' '.join(results.key_of(row))} is in {arena.file} already")
        if at not in held_out:
            held_out[at] = _held_out(arena, *at)
        if row["rows"] != held_out[at]:
            raise UserError(f"{where}: its held-out samples are others than ours of {' '.join(at)}")
    files.make_folder(arena.folder)
    results.write(arena.file, [*ours, *theirs])
    print(f"added {len(theirs)} rows of {path.name} to {arena.file}")


def _held_out(arena: Arena, data: str, protocol: str, seed: str) -> str:
    """Works out the hash of the held-out samples of a set under a protocol and a seed."""
    (entry,) = arena.cell(data, protocol, arena.folder, methods="soft_moe", seeds=seed, baseline="").runs
    fitted = datasets.fit(entry.config)
    rows = np.flatnonzero(fitted.split == splits.HELD_OUT)
    table = datasets.predictions_table(fitted.manifest, fitted.groups, np.zeros((len(rows), 0)), rows)
    return results.rows_digest(table)


def verify(arena: Arena, arguments: Sequence[str]) -> None:
    """Runs rows of a file of results again, in a folder `verify` of the arena's, and says how their figures differ.

    `--verify=FILE:N` takes N rows, evenly from the whole file. Raises UserError: a figure differs by more than
    `TOLERANCE`, or a row could not be run.
    """
    name, _, count = arena.values.verify.rpartition(":")
    path = pathlib.Path(name if count.isdecimal() and name else arena.values.verify)
    rows = results.read(path)
    if count.isdecimal() and name:
        rows = [rows[i * len(rows) // int(count)] for i in range(min(int(count), len(rows)))]
    of_others = [row for row in rows if row["method"] not in METHODS | PLAIN | ARENA]
    wrong = [name for row in of_others for name in _verified(None, row, None)]
    for (data, protocol), some in _by_cell(row for row in rows if row not in of_others).items():
        _sets(data, arena.given["SETS"])
        methods, seeds = (",".join(dict.fromkeys(row[name] for row in some)) for name in ("method", "seed"))
        asked = {"methods": methods, "seeds": seeds, "baseline": ""}
        cell = arena.cell(data, protocol, arena.folder / "verify", **asked)
        of = {(row["method"], row["seed"]): row for row in some}
        cell = cell._replace(runs=[each for each in cell.runs if (each.method, str(each.seed)) in of])
        try:
            runner.run(cell.runs, cell.folder, arena.setup(data, **asked).options, arguments)
        except UserError as error:
            print(f"failed: {cell.name}: {error}")
        done = {(entry.method, str(entry.seed)): entry for entry in cell.finished()}
        for key, row in of.items():
            wrong += _verified(cell, row, done.get(key))
    if wrong:
        raise UserError(f"{len(wrong)} of {len(rows)} rows of {path.name} do not hold: {'; '.join(wrong)}")


def _by_cell(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["data"], row["protocol"]), []).append(row)
    return found


def _verified(cell: Cell | None, row: Row, entry: Entry | None) -> list[str]:
    """Says how a row came out; returns its name if it does not hold."""
    name = " ".join(results.key_of(row))
    if cell is None or entry is None:
        print(f"{name}: could not be run")
        return [name]
    says, apart = results.compare(row, row_of(cell, entry))
    limit = TOLERANCE * outcome_of(entry).task.factor
    print(f"{name}: {says}" + (f" (more than {limit:g} apart)" if apart > limit else ""))
    return [name] if apart > limit else []
