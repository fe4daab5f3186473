"""Reading the tables of MIMIC-IV and eICU-CRD: found by name, scanned in a stream, refused in one line when damaged.

A table is looked up as `hosp/labevents.csv.gz` or `hosp/labevents.csv`, in lower case, too. Columns are taken by name,
so the versions may order them as they like and have more of them. No message holds a cell or an id.
"""

import csv
import dataclasses
import gzip
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import IO

import polars as pl

from remind_jax.errors import UserError, did_you_mean

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"
# What a column may hold: how to read it, and what a message calls it. An empty cell is null in every kind.
KINDS: dict[str, tuple[Callable[[pl.Expr, bool], pl.Expr], str]] = {
    "id": (lambda cell, strict: cell.cast(pl.Int64, strict=strict), "whole numbers"),
    "number": (lambda cell, strict: cell.cast(pl.Float64, strict=strict), "numbers"),
    "time": (lambda cell, strict: cell.str.to_datetime(TIME_FORMAT, strict=strict), "times (YYYY-MM-DD HH:MM:SS)"),
    "date": (lambda cell, strict: cell.str.to_date("%Y-%m-%d", strict=strict), "dates (YYYY-MM-DD)"),
    "text": (lambda cell, strict: cell, "text"),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """One table of the folder.

    Attributes:
      path: the file.
      name: as messages write it, `hosp/labevents.csv.gz`.
      kinds: the columns that are used, each with its key of `KINDS`.
    """

    path: pathlib.Path
    name: str
    kinds: Mapping[str, str]

    def scan(self) -> pl.LazyFrame:
        """The columns of `kinds`; ids as Int64 at once, the rest as String until `typed` is applied."""
        return self._scan_all().select(list(self.kinds))

    def _scan_all(self) -> pl.LazyFrame:
        ids = {column: pl.Int64() for column, kind in self.kinds.items() if kind == "id"}
        return pl.scan_csv(self.path, infer_schema=False, schema_overrides=ids)

    def typed(self, column: str) -> pl.Expr:
        """A column in its type. Applied after the filters, because parsing every time of a large table takes long."""
        return KINDS[self.kinds[column]][0](pl.col(column), True)

    def collect(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Runs a query over `scan` in a stream.

        Raises UserError: the file is cut off, is no CSV or has a cell of another kind in a column that is used.
        """
        try:
            return frame.collect(engine="streaming")
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(self._diagnosis(type(error).__name__)) from None

    def read(self) -> pl.DataFrame:
        """The whole table in its types, for the small ones."""
        others = [column for column, kind in self.kinds.items() if kind not in ("id", "text")]
        # With all columns, because a row with too many is only noticed when none is skipped.
        frame = self.collect(self._scan_all().with_columns(self.typed(column) for column in others))
        return frame.select(list(self.kinds))

    def _diagnosis(self, error: str) -> str:
        """What is wrong with a file that could not be read; reads it again, slowly."""
        if _is_damaged(self.path):
            return f"{self.name} is cut off or damaged; get it again and compare it with SHA256SUMS.txt"
        counts = [
            (KINDS[kind][0](pl.col(column), False).is_null() & pl.col(column).is_not_null()).sum().alias(column)
            for column, kind in self.kinds.items()
        ]
        try:
            row = pl.scan_csv(self.path, infer_schema=False).select(counts).collect(engine="streaming").row(0)
        except (pl.exceptions.PolarsError, OSError):
            row = (0,) * len(self.kinds)
        for (column, kind), count in zip(self.kinds.items(), row, strict=True):
            if count:
                return f"{self.name}: column {column!r} has {count} cells that are not {KINDS[kind][1]}"
        return f"{self.name} cannot be read as UTF-8 CSV whose rows fit the header ({error})"


def find(root: pathlib.Path, name: str, kinds: Mapping[str, str], release: str = "MIMIC-IV") -> Table:
    """Looks a table up and checks its header.

    Args:
      root: the folder that `name` starts from.
      name: the table without an ending, `hosp/labevents`.
      kinds: the columns that are used, each with its key of `KINDS`.
      release: whose tables they are, for messages.

    Raises UserError: there is no such file, its header cannot be read, or a column is not in it.
    """
    files = [f"{spelled}{ending}" for spelled in (name, name.lower()) for ending in (".csv.gz", ".csv")]
    paths = [root / file for file in files if (root / file).is_file()]
    if not paths:
        raise UserError(f"{name}.csv.gz is not in the folder, nor is {name}.csv; every version of {release} has it")
    path = paths[0]
    table = Table(path, f"{name}{''.join(path.suffixes)}", kinds)
    columns = _header(table)
    for column in kinds:
        if column not in columns:
            hint = did_you_mean(column, columns)
            raise UserError(f"{table.name} has no column {column!r}{hint}; is it the file that PhysioNet gives out?")
    return table


def _open(path: pathlib.Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _header(table: Table) -> list[str]:
    try:
        with _open(table.path) as file:
            line = file.readline(1 << 16)
    except gzip.BadGzipFile:
        raise UserError(f"{table.name} is not a gzip file; name it .csv if it is unpacked") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{table.name} is cut off or cannot be read ({type(error).__name__}); get it again") from None
    return next(csv.reader([line.decode("utf-8-sig", "replace").strip()]), [])


def _is_damaged(path: pathlib.Path) -> bool:
    """Whether the file ends early or fails its checksum."""
    try:
        with _open(path) as file:
            while file.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error):
        return True
    return False
