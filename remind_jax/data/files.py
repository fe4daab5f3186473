"""Files that a manifest names: where they may lie, how they are read, and what can be wrong with them."""

import concurrent.futures
import hashlib
import os
import pathlib
import re
import stat
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.kinds import images
from remind_jax.data.schema import PIXELS, Modality

MAX_NUMBERS = 100_000_000  # of an embedding
MAX_TEXT = 2**26  # bytes
THREADS = 8  # that read or decode files; more would need memory for as many large images
REMEDY = "replace the files, empty the cells or set data.bad_files to missing"
_NONE = "no file of the column can be read, so none is taken for missing; check the folder"


def safe_path(root: pathlib.Path, cell: str) -> pathlib.Path:
    """The real path of the file a cell names, which lies below `root`.

    Raises:
      ValueError: the path is absolute, a URL, holds `..`, a backslash or NUL, or a link leads out of `root`.
    """
    if "\0" in cell or "\\" in cell or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:", cell):
        raise ValueError("not a plain relative path")
    if cell.startswith(("/", "~")) or ".." in cell.split("/"):
        raise ValueError("not below the folder")
    base = os.path.realpath(root)
    real = os.path.realpath(os.path.join(base, cell))
    if os.path.commonpath([base, real]) != base:
        raise ValueError("a link leads out of the folder")
    return pathlib.Path(real)


def read_array(path: pathlib.Path) -> np.ndarray:
    """An embedding file, npy [t, d] of real numbers, as float32; never unpickles.

    Raises:
      ValueError: it is not an npy file of that form ("shape" when it is npy), or empty. A header that claims more
        than the file holds is refused before memory is taken.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy parses the header as Python and lets all of the parser's errors through
        raise ValueError("not npy") from error
    if array.size > MAX_NUMBERS:
        raise ValueError("large")
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiub":
        raise ValueError("shape")
    with np.errstate(over="ignore"):
        return np.asarray(array, np.float32)


def read_text(path: pathlib.Path) -> str:
    """A UTF-8 text file; raises ValueError when it is not, is blank or longer than `MAX_TEXT`."""
    if path.stat().st_size > MAX_TEXT:
        raise ValueError("large")
    text = path.read_bytes().decode("utf-8-sig")
    if not text.strip():
        raise ValueError("blank")
    return text


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


class _Look(NamedTuple):
    """What looking at one file found: a fault as code and word or reason, or '' and what is to be remembered."""

    fault: str
    record: FileRecord | None = None
    shape: tuple[int, ...] = ()


def read_parquet(path: pathlib.Path, most_rows: int | None = None) -> pl.DataFrame:
    """A parquet file, by Arrow's reader: on some damaged pages that of polars ends the process.

    Args:
      path: of the file.
      most_rows: that it may claim to have.

    Raises:
      ValueError: it cannot be read, with the kind of error alone; what it holds is nobody's business.
    """
    try:
        with pa.parquet.ParquetFile(path) as file:
            if most_rows is not None and file.metadata.num_rows > most_rows:
                raise ValueError(f"it claims more than {most_rows:,} rows")
            names = file.schema_arrow.names  # those that are no UTF-8 raise here; polars would panic
            if len(set(names)) < len(names):
                raise ValueError("two columns have one name")
            return pl.from_arrow(file.read())
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise ValueError(type(error).__name__) from None


def read_table(path: pathlib.Path, most_rows: int | None = None) -> pl.DataFrame:
    """A CSV, all strings, or a parquet file by its ending; arguments and errors as for `read_parquet`."""
    if path.suffix == ".parquet":
        return read_parquet(path, most_rows)
    try:
        # Guessing types would turn codes such as 0401 into numbers.
        return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise ValueError(type(error).__name__) from None


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
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for path, look in zip(paths, pool.map(lambda cell: _look(root, modality, cell, thorough), paths), strict=True):
            looks[path] = look
            if count:
                count(len(looks), len(paths))
    records = {cell: look.record for cell, look in looks.items() if look.record}
    faults = {cell: look.fault for cell, look in looks.items() if look.fault}
    shapes = {cell: look.shape for cell, look in looks.items() if look.shape}
    expected = next(iter(shapes.values()), None)
    faults |= {cell: "E008 shape" for cell, shape in shapes.items() if shape != expected}
    bad = [cell for cell, fault in faults.items() if fault.startswith("E007")]
    emptied = bad if bad_files == "missing" and len(bad) < len(paths) else []
    findings = _describe_faults(faults, modality, cells, expected, bad_files, bool(emptied))
    return Scan(records, findings, cells.set(cells.is_in(emptied).fill_null(False), None) if emptied else cells)


def _look(root: pathlib.Path, modality: Modality, cell: str, thorough: bool) -> _Look:
    if re.fullmatch(r"\s*-\d+(\.0*)?\s*", cell):
        return _Look("E009 sentinel")
    try:
        path = safe_path(root, cell)
    except (ValueError, OSError):
        return _Look("E006 unsafe")
    shape: tuple[int, ...] = ()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return _Look("E007 empty")
        if modality.kind == "text":
            read_text(path)
        elif modality.kind == "embedding":
            array = read_array(path)
            if not np.isfinite(array).all():
                return _Look("E008 finite")
            shape = array.shape
        else:
            _look_at_pixels(path, modality, thorough)
        with path.open("rb") as file:  # last: what claims to be huge need not be read
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return _Look("E007 missing")
    except (OSError, ValueError) as error:
        if modality.kind in PIXELS and isinstance(error, ValueError):
            return _Look(f"E007 {error}")
        return _Look("E008 form" if str(error) == "shape" else "E007 undecodable")
    return _Look("", FileRecord(status.st_size, digest), shape)


def _look_at_pixels(path: pathlib.Path, modality: Modality, thorough: bool) -> None:
    """Raises ValueError with the reason when an image or a volume cannot be used."""
    if thorough:
        read_pixels(path, modality.shape)
    elif modality.kind == "image":
        images.check_image(path)
    else:
        images.check_volume(path)


def read_pixels(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray:
    """An image (three numbers in `shape`) or a volume (four) as uint8 [*shape]; raises ValueError with the reason."""
    return images.read_image(path, shape) if len(shape) == 3 else images.read_volume(path, shape)


_FAULTS = {
    "E009 sentinel": "with a number used for missing; leave the cell empty",
    "E006 unsafe": "with a path that is not relative and below the folder; move the files below it",
    "E007 missing": "naming a file that is not there",
    "E007 empty": "naming an empty file or none at all",
    "E007 undecodable": "naming a file that cannot be read ({form})",
    "E008 form": "naming an array that is not [t, d] of real numbers; reshape it",
    "E008 finite": "naming an array with NaN or infinite values; mend it",
    "E008 shape": "naming an array whose shape is not {expected} like the first; make all alike",
}
_FORMS = {
    "text": "UTF-8 text, not blank, up to 64 MiB",
    "embedding": "npy without pickled objects, up to 100 million numbers",
}


def _describe_faults(
    faults: dict[str, str],
    modality: Modality,
    cells: pl.Series,
    expected: tuple[int, ...] | None,
    bad_files: str,
    emptied: bool,
) -> list[Finding]:
    form = _FORMS.get(modality.kind, "png, jpeg, dicom or npy")
    findings = []
    for fault in sorted(set(faults.values())):
        rows = cells.is_in([cell for cell, found in faults.items() if found == fault]).fill_null(False)
        default = f"naming a file that cannot be used: {fault[5:]}"
        text = _FAULTS.get(fault, default).format(form=form, expected=list(expected or ()))
        where = f"column {modality.columns[0]!r} ({modality.name}): {in_rows(rows)} "
        if not fault.startswith("E007"):
            findings.append(Finding(fault[:4], where + text, True))
        elif emptied:
            findings.append(Finding("W106", f"{where}{text}, read as missing", False))
        else:
            remedy = REMEDY if bad_files == "refuse" else _NONE
            findings.append(Finding("E007", f"{where}{text}; {remedy}", True))
    return findings
