"""Looking at every file that a column names: what is wrong with them, and what is remembered of the sound ones."""

import concurrent.futures
import hashlib
import pathlib
import re
import stat
from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from remind_jax.data import files
from remind_jax.data.files import Fault
from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import described
from remind_jax.data.schema import Modality

_NONE = "no file of the column can be read, so none is taken for missing; check the folder"


class Scan(NamedTuple):
    """What looking at the files of one column found.

    Attributes:
      records: of each sound file, by path as written.
      findings: E006 to E009 and W106 with their rows.
      cells: the column; with `bad_files="missing"` the cells of bad files are null.
    """

    records: dict[str, FileRecord]
    findings: list[Finding]
    cells: pl.Series


def scan_files(
    root: pathlib.Path,
    modality: Modality,
    cells: pl.Series,
    *,
    thorough: bool = False,
    bad_files: str = "refuse",
    count: Callable[[int, int], None] | None = None,
) -> Scan:
    """Reads every file that a column names, once, several at a time.

    Args:
      root: the folder the paths start from.
      modality: a modality with `stored: file`.
      cells: its column, paths or null.
      thorough: decode images and volumes; else only their headers are checked, and a file whose body is damaged is
        refused when it is decoded.
      bad_files: `refuse`, or `missing` to empty the cells of files that cannot be read (E007 becomes W106). When no
        file at all can be read they stay E007: then the folder is wrong, not the files.
      count: called with how many files were read, and of how many.

    Returns:
      records, findings and the column.
    """
    paths, looks = cells.drop_nulls().unique(maintain_order=True).to_list(), {}
    with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
        for path, look in zip(paths, pool.map(lambda cell: _look(root, modality, cell, thorough), paths), strict=True):
            looks[path] = look
            if count:
                count(len(looks), len(paths))
    records = {cell: look.record for cell, look in looks.items() if look.record}
    faults = {cell: look.fault for cell, look in looks.items() if look.fault}
    shapes = {cell: look.shape for cell, look in looks.items() if look.shape}
    expected = next(iter(shapes.values()), None)
    other = f"naming an array whose shape is not {list(expected or ())} like the first; make all alike"
    faults |= {cell: _Fault("E008", other) for cell, shape in shapes.items() if shape != expected}
    bad = [cell for cell, fault in faults.items() if fault.code == "E007"]
    emptied = bad if bad_files == "missing" and len(bad) < len(paths) else []
    findings = _describe(faults, modality, cells, files.REMEDY if bad_files == "refuse" else _NONE, bool(emptied))
    return Scan(records, findings, cells.set(cells.is_in(emptied).fill_null(False), None) if emptied else cells)


class _Fault(NamedTuple):
    """The code of a finding about files, and what it says after their rows."""

    code: str
    text: str


class _Look(NamedTuple):
    """What looking at one file found: a fault, or what is to be remembered."""

    fault: _Fault | None
    record: FileRecord | None = None
    shape: tuple[int, ...] = ()


def _look(root: pathlib.Path, modality: Modality, cell: str, thorough: bool) -> _Look:
    if re.fullmatch(r"\s*-\d+(\.0*)?\s*", cell):
        return _bad("E009", "with a number used for missing; leave the cell empty")
    try:
        path = files.safe_path(root, cell)
    except (ValueError, OSError):
        return _bad("E006", "with a path that is not relative and below the folder; move the files below it")
    kind = KINDS[modality.kind]
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return _bad("E007", "naming an empty file or none at all")
        shape = kind.look(path, modality, thorough)
        with path.open("rb") as file:  # last: what claims to be huge need not be read
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return _bad("E007", "naming a file that is not there")
    except Fault as fault:
        return _bad(fault.code, fault.text)
    except (OSError, ValueError):
        return _bad("E007", f"naming a file that cannot be read ({kind.forms})")
    return _Look(None, FileRecord(status.st_size, digest), shape)


def _bad(code: str, text: str) -> _Look:
    return _Look(_Fault(code, text))


def _describe(
    faults: dict[str, _Fault], modality: Modality, cells: pl.Series, remedy: str, emptied: bool
) -> list[Finding]:
    """One finding a fault; files that cannot be read (E007) are told as read as missing (W106) where `emptied`."""
    findings = []
    for fault in sorted(set(faults.values())):
        rows = cells.is_in([cell for cell, found in faults.items() if found == fault]).fill_null(False)
        text = f"{described(modality.columns[0], modality)}{in_rows(rows)} {fault.text}"
        if fault.code != "E007":
            findings.append(Finding(fault.code, text, True))
        elif emptied:
            findings.append(Finding("W106", f"{text}, read as missing", False))
        else:
            findings.append(Finding("E007", f"{text}; {remedy}", True))
    return findings
