"""Delimited text as programs of all countries write it: encoding and separator are found by evidence, and told."""

import codecs
import csv
import io
import pathlib
import re
from collections.abc import Callable

import polars as pl

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_START = 2**18  # bytes that separators are looked for in
_BLOCK = 2**24
_REMEDY = "save it as UTF-8"


def read(source: pathlib.Path | bytes, usual: str, name: str, say: Callable[[str], None]) -> pl.DataFrame:
    """Reads text with a header line as strings.

    Args:
      source: a file, or what an unpacked one holds.
      usual: the separator that the ending of its name stands for.
      name: of the file, for `say`.
      say: is told, in a line, of an encoding or a separator that is not UTF-8 or the usual one.

    Raises:
      ValueError: the text is of no encoding that is known, or its rows do not fit its header.
      polars.exceptions.PolarsError: as for `polars.read_csv`.
    """
    encoding = _encoding(source)
    if encoding != "utf-8":
        source = _recoded(source, encoding)
        if encoding != "utf-8-sig":
            say(f"{name} is read as {encoding}; {_REMEDY} if words of it come out wrong")
    start = _first(source).decode("utf-8", "ignore")
    named = re.match(r"\ufeff?sep=(.)\r?\n", start)  # Excel's own line
    if named:
        source = (source if isinstance(source, bytes) else source.read_bytes())[len(named[0].encode()) :]
        start = start[named.end() :]
    separator = named[1] if named else _separator(start, usual)
    if separator != usual:
        say(f"{name}: {SEPARATORS.get(separator, 'the sign of its first line')} separate its cells")
    old_lines = "\r" in start and "\n" not in start  # of old Macintosh programs
    # Guessing types would turn codes such as 0401 into numbers.
    table = pl.read_csv(source, infer_schema=False, separator=separator, eol_char="\r" if old_lines else "\n")
    return _named(table.rename(lambda name: name.replace('""', '"')))  # as polars leaves them in headers


def _first(source: pathlib.Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:_START]
    with source.open("rb") as file:
        return file.read(_START)


def _encoding(source: pathlib.Path | bytes) -> str:
    """Returns the encoding of a text: by its mark, by the zeros of UTF-16, UTF-8 if it is, else Western European."""
    start = _first(source)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    pairs = start[: len(start) // 2 * 2]
    for place, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if pairs and pairs[place::2].count(0) > len(pairs) // 4:
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            while block := file.read(_BLOCK):
                decoder.decode(block)
        decoder.decode(b"", final=True)
        return "utf-8"
    except UnicodeDecodeError as error:
        return _western(source, error)


def _western(source: pathlib.Path | bytes, error: UnicodeDecodeError) -> str:
    """Returns cp1252 for a text whose letters beyond ASCII stand alone, as umlauts and accents do."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    beyond = re.findall(rb"[\x80-\xff]+", content)
    undefined = any(byte in b"\x81\x8d\x8f\x90\x9d" for run in beyond for byte in run)
    letters = re.findall(rb"[A-Za-z][\xc0-\xff]|[\xc0-\xff][A-Za-z]|[\xa0-\xbf]", content)
    if undefined or sum(len(run) > 1 for run in beyond) > len(beyond) // 4 or not letters:
        raise ValueError(f"it is in no encoding that is known for certain; {_REMEDY}") from error
    return "cp1252"


def _recoded(source: pathlib.Path | bytes, encoding: str) -> bytes:
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        return content.decode(encoding).encode()
    except UnicodeDecodeError:
        raise ValueError(f"it begins as {encoding} and goes on as none; {_REMEDY}") from None


def _separator(start: str, usual: str) -> str:
    """Returns the separator by which the rows have as many cells as the header, if there is one, and most cells."""
    lines = start.splitlines(keepends=True)
    text = "".join(lines[:-1] if len(start) >= _START // 4 and len(lines) > 1 else lines)  # the last may be cut
    sure: dict[str, tuple[bool, int, bool]] = {}
    for separator in SEPARATORS:
        try:
            rows = [len(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
        except csv.Error:
            continue
        if rows and rows[0] > 1:
            sure[separator] = (set(rows) == {rows[0]}, rows[0], separator == usual)
    return max(sure, key=lambda separator: sure[separator], default=usual)


def _named(table: pl.DataFrame) -> pl.DataFrame:
    """Drops columns without a name and a cell, as spreadsheets leave them; gives others without a name one."""
    nameless = [c for i, c in enumerate(table.columns) if re.fullmatch(r"\s*(_duplicated_\d+)?", c)]
    table = table.drop(c for c in nameless if table[c].is_null().all())
    return table.rename({c: f"Unnamed: {i}" for i, c in enumerate(table.columns) if c in nameless})
