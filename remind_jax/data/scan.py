"""Looking at every file that a column names: what is wrong with them, and what is remembered of the sound ones."""

import concurrent.futures
import pathlib
import re
import stat
from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from remind_jax.data import files
from remind_jax.data.files import Fault, Look
from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import described
from remind_jax.data.schema import Modality

_ALIKE = 1.5  # distances of slices that differ by less than this factor are not told
_NONE = "no file of the column can be read, so none is taken for missing; check the folder"


class Scan(NamedTuple):
    """What looking at the files of one column found."""

    records: dict[str, FileRecord]  # of each sound file, by path as written
    findings: list[Finding]  # E006 to E009 and warnings with their rows
    cells: pl.Series  # the column; with `bad_files="missing"` the cells of bad files are null


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
    """

    def look(cell: str) -> tuple[FileRecord, Look] | Fault:
        try:
            return _look(root, modality, cell, thorough)
        except Fault as fault:
            return fault

    paths = cells.drop_nulls().unique(maintain_order=True).to_list()
    records, faults, remarks, spacings, expected = {}, {}, {}, [], ()
    with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
        for done, (path, found) in enumerate(zip(paths, pool.map(look, paths), strict=True), start=1):
            if isinstance(found, Fault):
                faults[path] = (found.code, found.text)
            else:
                records[path], (shape, spacing, remark) = found
                remarks |= {path: remark} if remark else {}
                spacings += [spacing] if spacing else []
                expected = expected or shape
                if shape and shape != expected:
                    other = f"naming an array whose shape is not {list(expected)} like the first; make all alike"
                    faults[path] = ("E008", other)
            if count:
                count(done, len(paths))
    bad = [cell for cell, (code, _) in faults.items() if code == "E007"]
    emptied = bad if bad_files == "missing" and len(bad) < len(paths) else []
    findings = _describe(faults, modality, cells, files.REMEDY if bad_files == "refuse" else _NONE, bool(emptied))
    findings += _remarks(remarks, spacings, modality, cells)
    return Scan(records, findings, cells.set(cells.is_in(emptied).fill_null(False), None) if emptied else cells)


def _look(root: pathlib.Path, modality: Modality, cell: str, thorough: bool) -> tuple[FileRecord, Look]:
    """Looks at one file, and returns its record and what `Kind.look` does; raises Fault when it cannot be used."""
    if re.fullmatch(r"\s*-\d+(\.0*)?\s*", cell):
        raise Fault("E009", "with a number used for missing; leave the cell empty")
    try:
        path = files.safe_path(root, cell)
    except (ValueError, OSError):
        text = "with a path that is not relative and below the folder; move the files below it"
        raise Fault("E006", text) from None
    kind = KINDS[modality.kind]
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode) and not kind.folders:
            raise Fault("E007", "naming a folder, which only a volume may be (kind: volume)")
        if not stat.S_ISDIR(status.st_mode) and not (stat.S_ISREG(status.st_mode) and status.st_size):
            raise Fault("E007", "naming an empty file or none at all")
        found = kind.look(path, modality, thorough)
        return files.record(path), found  # last: what claims to be huge need not be read
    except FileNotFoundError:
        raise Fault("E007", "naming a file that is not there") from None
    except Fault:
        raise
    except (OSError, ValueError):
        raise Fault("E007", f"naming a file that cannot be read ({kind.forms})") from None


def _remarks(
    remarks: dict[str, tuple[str, str]], spacings: list[float], modality: Modality, cells: pl.Series
) -> list[Finding]:
    """Makes one warning of each remark, and one of the distances of slices where volumes differ in them."""
    findings, where = [], described(modality.columns[0], modality)
    for code, text in sorted(set(remarks.values())):
        rows = cells.is_in([cell for cell, told in remarks.items() if told == (code, text)]).fill_null(False)
        findings.append(Finding(code, f"{where}{in_rows(rows)} {text}", False))
    if not spacings:
        return findings
    low, high = f"{min(spacings):.3g}", f"{max(spacings):.3g}"
    apart = f"slices of {len(spacings)} volumes are {low if low == high else f'{low} to {high}'} mm apart"
    if max(spacings) <= _ALIKE * min(spacings):
        return [*findings, Finding("I001", f"{where}{apart}", False)]
    return [*findings, Finding("W111", f"{where}{apart}: their frames stand for different distances", False)]


def _describe(
    faults: dict[str, tuple[str, str]], modality: Modality, cells: pl.Series, remedy: str, emptied: bool
) -> list[Finding]:
    """Makes one finding of each fault; files that cannot be read (E007) are read as missing (W106) where `emptied`."""
    findings = []
    for fault in sorted(set(faults.values())):
        code, what = fault
        rows = cells.is_in([cell for cell, found in faults.items() if found == fault]).fill_null(False)
        text = f"{described(modality.columns[0], modality)}{in_rows(rows)} {what}"
        if code != "E007":
            findings.append(Finding(code, text, True))
        elif emptied:
            findings.append(Finding("W106", f"{text}, read as missing", False))
        else:
            findings.append(Finding("E007", f"{text}; {remedy}", True))
    return findings
