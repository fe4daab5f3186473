"""Delimited text as programs of all countries write it: encoding and separator are found by evidence, and told."""

import codecs
import contextlib
import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_START = 2**18  # bytes that separators are looked for in
_BLOCK = 2**24
_LONGEST = 2**29  # bytes of a row
_REMEDY = "save it as UTF-8"


class Source(NamedTuple):
    """Where text comes from."""

    open: Callable[[], BinaryIO]  # at its beginning
    most: float = math.inf  # bytes, for what is packed: a few megabytes may claim more than any disk


def read(source: Source, usual: str, name: str, say: Callable[[str], None]) -> pl.DataFrame:
    """Reads text with a header line as strings, all of it at once; arguments and errors are as for `blocks`."""
    (table,) = blocks(source, usual, name, say)
    return named(table)


def blocks(source: Source, usual: str, name: str, say: Callable[[str], None], size: int = 0) -> Iterator[pl.DataFrame]:
    """Reads text with a header line as strings.

    Args:
      source: a file, packed or not.
      usual: the separator that the ending of its name stands for.
      name: of the file, for `say`.
      say: is told, in a line, of an encoding or a separator that is not UTF-8 or the usual one.
      size: bytes that are read at a time, 0 for all.

    Yields at least one table; rows of one follow those of the one before.

    Raises:
      ValueError: the text is of no encoding that is known, or its rows do not fit its header.
      polars.exceptions.PolarsError: as for `polars.read_csv`.
    """
    encoding = _encoding(source)
    if not encoding.startswith("utf-8"):
        say(f"{name} is read as {encoding}; {_REMEDY} if words of it come out wrong")
    with contextlib.closing(_recoded(source, encoding, _START)) as parts:
        start = next(parts, b"")[:_START].decode("utf-8", "ignore")
    line = re.match(r"\ufeff?sep=(.)\r?\n", start)  # Excel's own
    skipped = line[0] if line else ""
    start = start[len(skipped) :]
    separator = line[1] if line else _separator(start, usual)
    if separator != usual:
        say(f"{name}: {SEPARATORS.get(separator, 'the sign of its first line')} separate its cells")
    newline = b"\r" if "\r" in start and "\n" not in start else b"\n"  # of old Macintosh programs
    parts = _without_start(_recoded(source, encoding, size or _BLOCK), len(skipped.encode()))
    header, before, short = b"", 0, 0
    for block in _whole_rows(parts, newline) if size else [b"".join(parts)]:
        # Guessing types would turn codes such as 0401 into numbers.
        options = {"infer_schema": False, "separator": separator, "eol_char": newline.decode()}
        try:
            table = pl.read_csv(header + block, **options)
        except pl.exceptions.ComputeError as error:
            raise ValueError(_misfit(header + block, separator, before)) from error
        short += _short_rows(block, separator.encode(), newline, table.width)
        yield table.rename(lambda name: name.replace('""', '"'))  # as polars leaves them in headers
        header, before = header or _first_row(block, newline), before + table.height
    if short:
        rows = "1 row has" if short == 1 else f"{short:,} rows have"
        say(f"{name}: {rows} fewer cells than the header; the lacking ones are read as empty")


def _misfit(text: bytes, separator: str, before: int) -> str:
    """Says which row of a text with a header does not fit it, where there are some rows `before`."""
    rows = csv.reader(io.StringIO(text.decode("utf-8", "replace"), newline=""), delimiter=separator)
    with contextlib.suppress(csv.Error):
        width = len(next(rows, []))
        for number, row in enumerate(filter(None, rows), before + 1):
            if len(row) > width:
                hint = "quote cells that hold separators, and leave nothing above the header"
                return f"row {number:,} has {len(row):,} cells, the header {width:,}: {hint}"
    return "look for a quote that is not closed"


def _short_rows(text: bytes, separator: bytes, newline: bytes, width: int) -> int:
    """Counts rows with fewer cells than the header, among those that have no quotes and are not empty."""
    found, blank = 0, int(newline == b"\n" and b"\r\n" in text[:_BLOCK])
    for start in range(0, len(text), _BLOCK):
        begin = text.rfind(newline, 0, start) + 1 if start else 0
        end = len(text) if start + _BLOCK >= len(text) else text.rfind(newline, 0, start + _BLOCK) + 1
        part = np.frombuffer(text, np.uint8, max(0, end - begin), begin)
        ends = np.append(np.flatnonzero(part == newline[0]), len(part))
        signs, quotes = (np.searchsorted(np.flatnonzero(part == ord(sign)), ends) for sign in (separator, b'"'))
        lengths = np.diff(ends, prepend=-1) - 1
        is_full = np.diff(signs, prepend=0) >= width - 1
        found += int((~is_full & (np.diff(quotes, prepend=0) == 0) & (lengths > blank)).sum())
    return found


def _without_start(parts: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Leaves out the first bytes of a text."""
    for part in parts:
        yield part[count:]
        count = max(0, count - len(part))


def _whole_rows(parts: Iterator[bytes], newline: bytes) -> Iterator[bytes]:
    """Cuts a text where rows end: at newlines with an even number of quotes before them."""
    rest, begun = b"", False
    for part in parts:
        rest = rest + part if begun else (rest + part).lstrip(b"\r\n")
        if end := _end_of_rows(rest, newline):
            yield rest[:end]
            rest, begun = rest[end:], True
        elif len(rest) > _LONGEST:
            raise ValueError("it has an immense row; look for a quote that is not closed")
    if rest or not begun:
        yield rest


def _end_of_rows(text: bytes, newline: bytes) -> int:
    """Returns where the last whole row of a text ends, 0 if none does."""
    end = text.rfind(newline)
    quotes = text.count(b'"', 0, end + 1)
    while end >= 0 and quotes % 2:
        before = text.rfind(newline, 0, text.rfind(b'"', 0, end))
        quotes -= text.count(b'"', before + 1, end)
        end = before
    return end + 1


def _first_row(text: bytes, newline: bytes) -> bytes:
    """Returns the header of a text."""
    end = text.find(newline)
    while end >= 0 and text.count(b'"', 0, end) % 2:
        end = text.find(newline, end + 1)
    return text[: end + 1]


def too_large(most: float) -> str:
    """Says that a packed file holds more than so many bytes."""
    return f"it unpacks to more than {int(most) >> 20:,} MiB; unpack it, or write parquet"


def _bytes(source: Source, size: int) -> Iterator[bytes]:
    """Yields what a source holds. Raises ValueError: it is more than it may be."""
    count = 0
    with source.open() as file:
        while block := file.read(size):
            if (count := count + len(block)) > source.most:
                raise ValueError(too_large(source.most))
            yield block


def _encoding(source: Source) -> str:
    """Returns the encoding of a text: by its mark, by the zeros of UTF-16, UTF-8 if it is, else Western European."""
    with source.open() as file:
        start = file.read(_START)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    pairs = start[: len(start) // 2 * 2]
    for place, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if pairs and pairs[place::2].count(0) > len(pairs) // 4:
            return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for block in _bytes(source, _BLOCK):
            decoder.decode(block)
        decoder.decode(b"", final=True)
        return "utf-8"
    except UnicodeDecodeError as error:
        return _western(source, error)


def _western(source: Source, error: UnicodeDecodeError) -> str:
    """Returns cp1252 for a text whose letters beyond ASCII stand alone, as umlauts and accents do."""
    undefined, letters, several, beyond = False, False, 0, 0
    for block in _lines(_bytes(source, _BLOCK)):
        runs = re.findall(rb"[\x80-\xff]+", block)
        undefined |= re.search(rb"[\x81\x8d\x8f\x90\x9d]", block) is not None
        letters |= re.search(rb"[A-Za-z][\xc0-\xff]|[\xc0-\xff][A-Za-z]|[\xa0-\xbf]", block) is not None
        several, beyond = several + sum(len(run) > 1 for run in runs), beyond + len(runs)
    if undefined or several > beyond // 4 or not letters:
        raise ValueError(f"it is in no encoding that is known for certain; {_REMEDY}") from error
    return "cp1252"


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Cuts blocks anew at ends of lines, where they have any."""
    rest = b""
    for block in blocks:
        end = block.rfind(b"\n") + 1
        yield rest + block[:end]
        rest = block[end:]
    yield rest


def _recoded(source: Source, encoding: str, size: int) -> Iterator[bytes]:
    """Yields a text in UTF-8, so many bytes of it at a time."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in _bytes(source, size):
            yield block if encoding == "utf-8" else decoder.decode(block).encode()
        decoder.decode(b"", final=encoding != "utf-8")
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


def named(table: Any) -> Any:
    """Drops columns, of a frame or `blocks.Columns`, without a name and a cell; gives others without a name one.

    Spreadsheets leave such columns.
    """
    nameless = [c for c in table.columns if re.fullmatch(r"\s*(_duplicated_\d+)?", c)]
    table = table.drop(c for c in nameless if table[c].is_null().all())
    return table.rename({c: f"Unnamed: {i}" for i, c in enumerate(table.columns) if c in nameless})
