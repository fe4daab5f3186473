"""Tables that are read column by column, of which large ones lie in a file on the disk and not in memory."""

import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.runtime import files

Part = Any
"""The cells of a column: a series, or for each of its blocks what reads it from a `Room`."""


class Room:
    """A file without a name in the folder of `TMPDIR`, which is gone with the process; it holds pieces of columns."""

    def __init__(self) -> None:
        """Raises UserError: the folder cannot be written to."""
        self._file, self._folder = files.open_unnamed()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def keep(self, cells: pl.Series) -> Callable[[], pl.Series]:
        """Writes cells behind what is there; returns what reads them. Raises UserError: the disk is full."""
        content = io.BytesIO()  # by the old level no piece carries the texts of the column that it is cut from
        cells.alias("").to_frame().write_ipc_stream(content, compression="lz4", compat_level=pl.CompatLevel.oldest())
        with files.writing(self._folder):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(content.getbuffer())
        return functools.partial(self._read, start, content.tell())

    def _read(self, start: int, size: int) -> pl.Series:
        with files.writing(self._folder):  # what is still to be written
            self._file.seek(start)
            return pl.read_ipc_stream(io.BytesIO(self._file.read(size))).to_series()


class Columns:
    """A table that has a column in memory when it is asked for, and is changed column by column.

    Its rows are cut at `bounds`, which begin with 0 and end with their number. What is made of a table in a `Room`
    lies there, too; without one all columns stay in memory.
    """

    def __init__(self, parts: Mapping[str, Part], bounds: np.ndarray, room: Room | None = None):
        self._parts, self.bounds, self.room = dict(parts), np.asarray(bounds, np.int64), room

    @classmethod
    def of(cls, table: "pl.DataFrame | Columns") -> "Columns":
        """Returns a table as it is, a frame as a table in memory."""
        if isinstance(table, Columns):
            return table
        return cls({c.name: c for c in table.iter_columns()}, [0, table.height])

    @classmethod
    def of_blocks(cls, blocks: Iterable[pl.DataFrame]) -> "Columns":
        """Makes a table of frames of the same columns; more than one is put on the disk."""
        blocks = iter(blocks)
        first = next(blocks)
        if (second := next(blocks, None)) is None:
            return cls.of(first)
        room, bounds = Room(), [0]
        parts: dict[str, list[Callable[[], pl.Series]]] = {name: [] for name in first.columns}
        for block in itertools.chain((first, second), blocks):
            bounds.append(bounds[-1] + block.height)
            for cells in block.iter_columns():
                parts[cells.name].append(room.keep(cells))
        return cls(parts, bounds, room)

    @property
    def columns(self) -> list[str]:
        """Lists the names of the columns."""
        return list(self._parts)

    @property
    def height(self) -> int:
        """Returns the number of rows."""
        return int(self.bounds[-1])

    def __getitem__(self, name: str) -> pl.Series:
        part = self._parts[name]
        if not isinstance(part, pl.Series):
            part = pl.concat([read() for read in part])
        return part.alias(name)

    def keep(self, cells: pl.Series) -> Part:
        """Puts cells [n] where the table lies, for `replaced`."""
        if self.room is None:
            return cells
        return [self.room.keep(cells.slice(start, stop - start)) for start, stop in itertools.pairwise(self.bounds)]

    def replaced(self, parts: Mapping[str, Part]) -> "Columns":
        """Returns the table with other cells in some columns."""
        return Columns(self._parts | parts, self.bounds, self.room)

    def changed(self, change: Callable[[pl.Series], pl.Series], names: Iterable[str] | None = None) -> "Columns":
        """Returns the table with columns, by default all, changed one by one."""
        parts = {}
        for name in self.columns if names is None else names:
            if (new := change(old := self[name])) is not old:
                parts[name] = self.keep(new)
        return self.replaced(parts)

    def select(self, names: Iterable[str]) -> "Columns":
        """Returns the table with these columns alone, in their order."""
        return Columns({name: self._parts[name] for name in names}, self.bounds, self.room)

    def drop(self, names: Iterable[str]) -> "Columns":
        """Returns the table without some columns."""
        left_out = set(names)
        return self.select(name for name in self.columns if name not in left_out)

    def rename(self, names: Mapping[str, str]) -> "Columns":
        """Returns the table with other names for some columns."""
        return Columns({names.get(name, name): part for name, part in self._parts.items()}, self.bounds, self.room)

    def beside(self, other: "Columns") -> "Columns":
        """Returns the table with the columns of another one behind its own, which has as many rows in equal blocks."""
        return Columns(self._parts | other._parts, self.bounds, self.room or other.room)

    def take(self, rows: pl.Series | np.ndarray, bounds: np.ndarray | None = None) -> "Columns":
        """Returns some rows, [m] from 0, empty ones where there is null, cut at `bounds`.

        By default the rows ascend, and are cut where they are.
        """
        rows = pl.Series(rows, dtype=pl.Int64)
        if not rows.has_nulls() and len(rows) == self.height and (rows == pl.int_range(len(rows), eager=True)).all():
            return self
        bounds = np.searchsorted(rows.to_numpy(), self.bounds) if bounds is None else bounds
        found = Columns({}, bounds, self.room)
        return found.replaced({name: found.keep(self[name].gather(rows)) for name in self.columns})

    def filter(self, mask: np.ndarray) -> "Columns":
        """Returns the rows where `mask`, bool [n], holds."""
        return self.take(np.flatnonzero(mask))

    def blocks(self) -> Iterator[pl.DataFrame]:
        """Yields the rows of the table in turn."""
        for i, (start, stop) in enumerate(itertools.pairwise(self.bounds)):
            cells = {
                name: part.slice(start, stop - start) if isinstance(part, pl.Series) else part[i]()
                for name, part in self._parts.items()
            }
            yield pl.DataFrame(cells)

    def whole(self) -> "pl.DataFrame | Columns":
        """Returns a table in memory as a frame, one on the disk as it is."""
        return pl.DataFrame([self[name] for name in self.columns]) if self.room is None else self
