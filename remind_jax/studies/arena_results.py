"""arena.csv, the results of an arena, one row a run: how a row is made, who may add some, and what a second run says.

A row names the run (`data`, `protocol`, `method`, `seed`), its leading figure and one more with that of the tail, the
worst combination, what the run cost, and hashes: of the held-out samples (`rows`), of the predictions, and of the
settings (`config`), which leave out folders and the seed. Figures are in the unit of tables, those of classes in
percent. `worst` is of the figure that leads the task's tables.
"""

import csv
import hashlib
import io
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.config import keys, leaves
from remind_jax.data.manifest import cell_bytes
from remind_jax.errors import UserError
from remind_jax.runtime import files, records
from remind_jax.studies.comparison import Outcome
from remind_jax.studies.results import scaled

KEY = ("data", "protocol", "method", "seed")
FIGURES = ("value", "tail", "second_value", "second_tail", "worst")
COUNTS = ("seed", "n", "n_tail", "parameters")
_MADE = ("version", "jax", "python", "processor")
COLUMNS = (
    *(*KEY, "task", "figure", "value", "tail", "second", "second_value", "second_tail", "worst", "n", "n_tail"),
    *("parameters", "flops", "seconds", "processor_seconds", "rows", "predictions", "config"),
    *_MADE,
)
FILE = "arena.csv"
Row = Mapping[str, str]
Key = tuple[str, ...]
_HASH, _NAME = re.compile("[0-9a-f]{64}"), re.compile(r"[A-Za-z0-9][\w.+-]{0,79}", re.ASCII)
# Keys of a config that say where something lies, or what is written: no figure depends on them.
_PLACES = ("data.root", "data.notes_root", "data.images_root", "data.cache", "compilation_cache", "profile")
_UNSAID = {*_PLACES, "train.track", "seed"}


def key_of(row: Row) -> Key:
    """Returns what tells a row from the others of a file."""
    return tuple(row[name] for name in KEY)


def digest(table: pl.DataFrame) -> str:
    """Returns the sha256 (hex) of the names and cells of a table, however a library lays them out."""
    sha = hashlib.sha256()
    for column in table.iter_columns():
        sha.update(f"{column.name}\0".encode() + np.packbits(column.is_null().to_numpy()).tobytes())
        sha.update(cell_bytes(column))
    return sha.hexdigest()


def rows_digest(predictions: pl.DataFrame) -> str:
    """Returns the `digest` of which samples were held out, in their order, with labels and modalities that are left."""
    labels = [name for name in predictions.columns if name == "label" or name.startswith("label_")]
    return digest(predictions.select("sample_id", *labels, "group"))


def settings_digest(config: Mapping[str, Any]) -> str:
    """Returns the sha256 (hex) of what differs from the defaults in a config, but for folders and the seed."""
    known = keys(config["data"]["source"])
    there = {name: list(value) if isinstance(value, tuple) else value for name, value in leaves(config)}
    said = {name: value for name, value in there.items() if name not in known or value != _plain(known[name].default)}
    text = "".join(f"{name}={value!r}\n" for name, value in sorted(said.items()) if name not in _UNSAID)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def figures_of(run: Outcome) -> dict[str, str]:
    """Returns the columns of figures of a run."""
    task, report = run.task, run.report
    lead, (figure, second) = next(iter(task.compared)), chosen(task.compared)
    whole, tail, worst = report["overall"], report["tail_pooled"], report["worst_group"]
    values = {"value": whole[figure], "tail": tail[figure], "worst": worst[lead]}
    values |= {"second_value": whole[second], "second_tail": tail[second]}
    counts = {"n": report["n"], "n_tail": tail["n"], "parameters": report["parameters"]}
    found = {"task": task.name, "figure": figure, "second": second}
    return found | {name: text(scaled(value, task)) for name, value in values.items()} | _texts(counts)


def chosen(compared: Iterable[str]) -> tuple[str, str]:
    """Chooses two of the figures that a task compares: AUROC and macro-F1 where it does, else the first ones."""
    names = list(compared)
    figure = "auroc" if "auroc" in names else names[0]
    return figure, "macro_f1" if "macro_f1" in names else next(name for name in names if name != figure)


def text(value: float | None) -> str:
    """Writes a cell; None is empty."""
    return "" if value is None else repr(value)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """Reads a file of results. Raises UserError: it cannot be read, or a cell of it is not what its column holds."""
    try:
        table = csv.DictReader(io.StringIO(records.content(path).decode("utf-8"), newline=""))
        found = list(table)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path.name} is no file of results ({type(error).__name__})") from None
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path.name} is no file of results: its columns must be {','.join(COLUMNS)}")
    for number, row in enumerate(found, 2):
        if wrong := _wrong(row):
            raise UserError(f"{path.name} row {number}: {wrong} is not what the column holds")
    if len({key_of(row) for row in found}) < len(found):
        raise UserError(f"{path.name} has two rows of one data set, protocol, method and seed")
    return found


def _wrong(row: Mapping[Any, Any]) -> str:
    """Names a column whose cell cannot be, or nothing."""
    if None in row or None in row.values():
        return "the number of cells"
    names = ("data", "protocol", "method", "task", "figure", "second")
    sound = {name: bool(_NAME.fullmatch(row[name])) for name in names}
    sound |= {name: row[name].isdecimal() and row[name].isascii() for name in COUNTS}
    sound |= {name: bool(_HASH.fullmatch(row[name])) for name in ("rows", "predictions", "config")}
    numbers = (*FIGURES, "flops", "seconds", "processor_seconds")
    sound |= {name: _is_number(row[name]) or (not row[name] and name != "value") for name in numbers}
    sound |= {name: len(row[name]) <= 200 and row[name].isprintable() for name in _MADE}
    return next((name for name, is_sound in sound.items() if not is_sound), "")


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes a file of results, whole, sorted by set, protocol, method and seed as they come first."""
    out = io.StringIO()
    table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write_text(path, out.getvalue())


def compare(row: Row, again: Row) -> tuple[str, float]:
    """Says how a second run of a row came out, and how far apart its figures are at most, in the unit of tables.

    They are infinitely far apart where only one of both has a figure, or samples or numbers of them are others.
    """
    apart = {name: _apart(row[name], again[name]) for name in FIGURES}
    apart |= {name: math.inf for name in ("figure", "second", "n", "n_tail", "rows") if row[name] != again[name]}
    told = [f"{name} {_brief(again[name])} for {_brief(row[name])}" for name, by in apart.items() if by]
    told += [f"other {name}" for name in ("parameters", "config", "predictions") if row[name] != again[name]]
    return "; ".join(told) or "exactly the same", max(apart.values())


def _brief(cell: str) -> str:
    return cell[:12] or "nothing"


def _apart(one: str, other: str) -> float:
    if one == other:
        return 0.0
    return abs(float(one) - float(other)) if one and other else math.inf


def merged(rows: Sequence[Row], more: Sequence[Row]) -> list[Row]:
    """Returns rows with those of `more` in place of the same runs, in their order, and the others behind."""
    found = {key_of(row): row for row in rows}
    return list((found | {key_of(row): row for row in more}).values())
