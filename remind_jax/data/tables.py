"""Tables in files as people have them: text, parquet, and, to be read, Excel's workbooks, SAS's transport files."""

import contextlib
import functools
import gzip
import importlib
import itertools
import math
import pathlib
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from types import ModuleType
from typing import Any, BinaryIO

import polars as pl

from remind_jax.data import delimited
from remind_jax.data.blocks import Columns
from remind_jax.data.files import read_parquet
from remind_jax.errors import UserError, needs
from remind_jax.runtime import files, texts

_TEXT = "{} whose rows fit the header"
FORMATS = {
    **{ending: _TEXT.format("CSV") for ending in (".csv", ".csv.gz")},
    **{ending: _TEXT.format("text with tabs") for ending in (".tsv", ".tsv.gz")},
    **{".parquet": "parquet", ".xlsx": "an Excel workbook", ".xpt": "a SAS transport file"},
}
"""What is read, by the ending of the file's name."""
MOST_UNPACKED = 4 * 2**30  # bytes of a packed file; a few megabytes may claim more than any memory
MOST_STREAMED = 2**36  # bytes of one that goes to the disk
STREAMED = 2**27
"""Bytes of text that importing reads at a time."""
_DELIMITED = (".csv", ".tsv")
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # gzip, zstd, zlib


def format_of(path: pathlib.Path) -> str:
    """Returns the key of `FORMATS` that a file's name ends with; "" for none."""
    return next((ending for ending in FORMATS if path.name.lower().endswith(ending)), "")


def read_table(
    path: pathlib.Path,
    most_rows: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    columns: Container[str] | None = None,
) -> pl.DataFrame:
    """Reads a file by its ending: text has strings only; other formats keep their types.

    Encoding and separator of text are found as `delimited` does. Of a workbook the first sheet is read. `say` is told
    of other encodings than UTF-8, unusual separators and further sheets. A parquet file that claims more than
    `most_rows`, and a packed one that unpacks to more than `MOST_UNPACKED`, are not read. Of parquet other columns than
    `columns` are left out.

    Raises UserError: the file is of another format or cannot be read, its header is none, or a package for it is not
    installed; says so without what the file holds.
    """
    with _readable(path) as form:
        if form == ".parquet":
            table = read_parquet(path, most_rows, columns=columns)
        elif form == ".xlsx":
            table = _read_workbook(path, say)
        elif form == ".xpt":
            table = _read_transport(path)
        else:
            table = delimited.read(_source(path, MOST_UNPACKED), _usual(form), path.name, say)
    _check_header(path, table.columns)
    return table


def read_columns(path: pathlib.Path, say: Callable[[str], None] = lambda _: None) -> Columns:
    """Reads a file as `read_table` does; text of more than `STREAMED` bytes goes to the disk, column by column.

    Raises UserError: as there, or what is packed unpacks to more than `MOST_STREAMED`, or the disk is full.
    """
    if not format_of(path).startswith(_DELIMITED):
        return Columns.of(read_table(path, say=say))
    with _readable(path) as form:
        blocks = delimited.blocks(_source(path, MOST_STREAMED), _usual(form), path.name, say, STREAMED)
        table = delimited.named(Columns.of_blocks(blocks))
    _check_header(path, table.columns)
    return table


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[str]:
    """Yields the format of a file; turns what goes wrong when it is read into a UserError that holds no cells."""
    form = format_of(path)
    if not form or not path.is_file():
        raise UserError(f"{path} must be a file that ends in {', '.join(FORMATS)}")
    try:
        yield form
    except (
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        zlib.error,
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
    ) as error:
        # Only those of this project hold no cells.
        why = error if type(error) is ValueError else type(error).__name__
        raise UserError(f"{path} cannot be read as {FORMATS[form]} ({why})") from None


def _check_header(path: pathlib.Path, names: Sequence[str]) -> None:
    if any(len(name) > 100 or not name.isprintable() for name in names):
        raise UserError(f"{path}: its header is not a line of short names; look for a quote that is not closed")
    double = [name.rsplit("_duplicated_", 1)[0] for name in names if re.search(r"_duplicated_\d+$", name)]
    if double:
        raise UserError(f"{path} has two columns named {double[0]!r}")


def write_table(table: pl.DataFrame, file: pathlib.Path) -> bool:
    """Writes a CSV or parquet file whole or not at all, for its owner alone.

    Returns whether texts of CSV are as `texts.TOLD` says. Raises UserError: it cannot be written.
    """
    given, text = table, pl.col(pl.String)
    if file.suffix == ".csv":
        is_formula = text.str.contains(texts.FORMULA) & ~text.str.contains(texts.NUMBER)
        table = table.with_columns(pl.when(is_formula).then(text.str.replace("^", "'")).otherwise(text)).rename(
            texts.cell
        )
    with files.whole_file(file, private=True) as temporary:
        table.write_csv(temporary) if file.suffix == ".csv" else table.write_parquet(temporary)
    return table.columns != given.columns or not table.equals(given)


def _source(path: pathlib.Path, most: int) -> delimited.Source:
    """Returns how text is opened; what is packed holds `most` bytes at most."""
    packed = path.name.lower().endswith(".gz")
    source = delimited.Source(
        functools.partial(gzip.open if packed else open, path, "rb"), most if packed else math.inf
    )
    with source.open() as file:
        start = file.read(4)
    if start.startswith(_COMPRESSED):  # polars would unpack it, however large it gets
        raise ValueError("it is compressed; name it .csv.gz or .tsv.gz if it is gzip, or unpack it")
    return source


def _usual(form: str) -> str:
    return "\t" if form.startswith(".tsv") else ","


def _read_workbook(path: pathlib.Path, say: Callable[[str], None]) -> pl.DataFrame:
    """Reads the first sheet by openpyxl, which unpacks no more than the file claims and shows each cell as it is."""
    openpyxl = _package("openpyxl", path)
    try:
        with path.open("rb") as file:  # which openpyxl leaves open when it fails
            fits = sum(part.file_size for part in zipfile.ZipFile(file).infolist()) <= MOST_UNPACKED
            rows, titles = _first_sheet(openpyxl, file) if fits else ([], [])
    except Exception:  # a damaged file ends in all kinds of errors, whose texts may hold cells
        raise ValueError("it is damaged, an old .xls, or protected by a password") from None
    if not rows:
        raise ValueError("its first sheet is empty" if fits else delimited.too_large(MOST_UNPACKED))
    if len(titles) > 1:
        say(f"{path.name}: the first of {len(titles)} sheets is read, {titles[0]!r}")
    errors, columns = {*openpyxl.cell.cell.ERROR_CODES}, {}
    for i, (name, *cells) in enumerate(itertools.zip_longest(*rows), 1):
        values = [None if cell in errors else cell for cell in cells]
        if name is None and not any(value is not None for value in values):
            continue
        if name is None or str(name) in columns:
            what = "no name" if name is None else "the name of another"
            raise ValueError(f"column {i} has {what}; the first row must name each, and no cells may be merged")
        columns[str(name)] = pl.Series(str(name), values, strict=False)  # cells of several types become strings
    return pl.DataFrame(columns).filter(pl.any_horizontal(pl.all().is_not_null()))


def _first_sheet(openpyxl: ModuleType, file: BinaryIO) -> tuple[list[tuple[Any, ...]], list[str]]:
    """Returns the rows of the first sheet and the titles of all."""
    with warnings.catch_warnings(action="ignore"):  # of drop-down lists and the like, which hold no cells
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        book.worksheets[0].reset_dimensions()  # not every program writes the right ones
        return list(book.worksheets[0].iter_rows(values_only=True)), [sheet.title for sheet in book.worksheets]


def _read_transport(path: pathlib.Path) -> pl.DataFrame:
    """Reads a SAS transport file by pyreadstat: pandas reads its zeros as 5e-79."""
    pyreadstat = _package("pyreadstat", path)
    try:
        try:
            return pyreadstat.read_xport(path, output_format="polars")[0]
        except UnicodeDecodeError:  # the format names no encoding
            return pyreadstat.read_xport(path, output_format="polars", encoding="WINDOWS-1252")[0]
    except (pyreadstat.ReadstatError, pyreadstat.PyreadstatError, UnicodeError) as error:
        raise ValueError(type(error).__name__) from None


def _package(name: str, path: pathlib.Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{path} cannot be read: {needs(name, 'tables')}") from None
