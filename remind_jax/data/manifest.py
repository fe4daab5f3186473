"""The manifest: the one form in which every data set, the user's own included, enters the program.

A manifest is a table with one row a sample and a schema that says what each column is. Nothing after this module
knows which data set it is looking at. `check` says what can be wrong with one.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import files
from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.schema import PIXELS, Modality, Schema
from remind_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A schema and its table; a null cell means missing, nothing else does.

    Attributes:
      schema: what each column is.
      table: one row a sample; numeric columns are Float64, text, codes, categories and paths String, embeddings held
        in cells `Array(Float32, (t, d))`, images and volumes held in cells `Array(UInt8, modality.shape)`, the label a
        String out of `schema.classes`.
      root: the folder that relative paths in the table start from; None for a table made in memory.
      title: how reports name the data, for example "twin of MIMIC-IV (synthetic)".
      notes: what reading the folder found, for `check.find_problems` to pass on.
      files: a record of every sound file the table names, by path as written.
      published: share of the samples of each combination in the paper, by the combination's name; empty for data that
        are not the paper's.
    """

    schema: Schema
    table: pl.DataFrame
    root: pathlib.Path | None = None
    title: str = ""
    notes: tuple[Finding, ...] = ()
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def presence(self) -> np.ndarray:
        """Bool [n, m]: which modality each sample has. Tabular is missing when all its cells are."""
        columns = [(*modality.columns, *modality.categorical) for modality in self.schema.modalities]
        parts = [self.table.select(pl.any_horizontal(pl.col(names).is_not_null())).to_series() for names in columns]
        return np.stack([part.to_numpy() for part in parts], axis=1)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Int32 [n]: the position of each label in `schema.classes`. Raises UserError (E005) for any other label."""
        position = {name: i for i, name in enumerate(self.schema.classes)}
        labels = np.array([position.get(name, -1) for name in self.table[self.schema.label].to_list()], np.int32)
        if (labels < 0).any():
            raise UserError(f"E005 {in_rows(labels < 0)} without a label out of the declared classes")
        return labels

    @functools.cached_property
    def digest(self) -> str:
        """Sha256 (hex) of the schema, every cell in row order, and the content of the files the cells name."""
        sha = hashlib.sha256(json.dumps(_described(self.schema), sort_keys=True).encode())
        paths = {m.columns[0] for m in self.schema.modalities if m.stored == "file"}
        for _, column in self.schema.columns():
            cells = self.table[column]
            sha.update(np.packbits(cells.is_null().to_numpy()).tobytes())
            sha.update(_cell_bytes(cells))
            if column in paths:
                sha.update("".join(self._file_digest(cell) for cell in cells.drop_nulls().to_list()).encode())
        return sha.hexdigest()

    def _file_digest(self, cell: str) -> str:
        record = self.files.get(cell)
        return record.sha256 if record else hashlib.sha256(_load(self, cell, pathlib.Path.read_bytes)).hexdigest()


def _cell_bytes(cells: pl.Series) -> bytes:
    """The values of a column as bytes that do not depend on how the library lays them out."""
    if cells.dtype == pl.String:
        lengths = cells.str.len_bytes().fill_null(0).to_numpy().astype("<u8").tobytes()
        return lengths + "".join(cells.drop_nulls().to_list()).encode()
    values = cells.drop_nulls().to_numpy()
    if values.dtype != np.uint8:  # pixels
        values = values.astype("<f8" if cells.dtype.is_numeric() else "<f4")
    return np.ascontiguousarray(values).tobytes()


def _described(schema: Schema) -> dict[str, Any]:
    """The schema for the digest; kinds without a shape are described as before there was one."""
    described = dataclasses.asdict(schema)
    for modality in described["modalities"]:
        if not modality["shape"]:
            del modality["shape"]
    return described


# ---- raw columns ----------------------------------------------------------------------------------------------------


def decode(manifest: Manifest, rows: np.ndarray, *, labels: bool = True) -> dict[str, np.ndarray]:
    """Raw columns of some rows; files are read here.

    Args:
      manifest: the data.
      rows: int [n], row numbers from 0.
      labels: whether to read them; rows to predict have none.

    Returns:
      for a tabular modality `name/numeric` float32 [n, p], NaN where empty, and, when it has categorical columns,
      `name/categorical` object [n, q] of str, '' where empty; for text and codes `name` object [n] of str, '' where
      missing; for an embedding `name` float32 [n, t, d], zeros where missing ([n, 0, 0] when no row of the manifest
      has one); for an image or a volume `name` uint8 [n, *shape], zeros where missing; `present` bool [n, m], `label`
      int32 [n] if asked for, `row` int32 [n].

    Raises:
      UserError: a file that the rows name cannot be read or decoded (E007), or a label is none of the classes (E005).
    """
    rows = np.asarray(rows, np.int64)
    raw: dict[str, np.ndarray] = {}
    for modality in manifest.schema.modalities:
        if modality.kind == "tabular":
            raw |= _decode_tabular(manifest, modality, rows)
        elif modality.kind == "embedding":
            raw[modality.name] = _decode_embedding(manifest, modality, rows)
        elif modality.kind in PIXELS:
            raw[modality.name] = _decode_pixels(manifest, modality, rows)
        else:
            cells = manifest.table[modality.columns[0]].gather(rows).to_list()
            if modality.stored == "file":
                cells = [None if cell is None else _load(manifest, cell, files.read_text) for cell in cells]
            raw[modality.name] = _strings(cells)
    raw |= {"label": manifest.labels[rows]} if labels else {}
    return raw | {"present": manifest.presence[rows], "row": rows.astype(np.int32)}


def _decode_tabular(manifest: Manifest, modality: Modality, rows: np.ndarray) -> dict[str, np.ndarray]:
    numeric = np.empty((len(rows), len(modality.columns)), np.float32)
    for j, column in enumerate(modality.columns):
        numeric[:, j] = manifest.table[column].cast(pl.Float32).gather(rows).to_numpy()
    raw = {f"{modality.name}/numeric": numeric}
    if modality.categorical:
        columns = [_strings(manifest.table[column].gather(rows).to_list()) for column in modality.categorical]
        raw[f"{modality.name}/categorical"] = np.stack(columns, axis=1)
    return raw


def _decode_embedding(manifest: Manifest, modality: Modality, rows: np.ndarray) -> np.ndarray:
    column = manifest.table[modality.columns[0]]
    cells = column.gather(rows)
    here = cells.is_not_null().to_numpy()
    if modality.stored == "cell":
        values = np.zeros((len(rows), *column.dtype.shape), np.float32)
        if here.any():
            values[here] = cells.drop_nulls().to_numpy()
        return values
    first = column.drop_nulls().head(1).to_list()
    shape = _load(manifest, first[0], files.read_array).shape if first else (0, 0)
    values = np.zeros((len(rows), *shape), np.float32)
    for i, cell in zip(np.flatnonzero(here), cells.drop_nulls().to_list(), strict=True):
        values[i] = _load(manifest, cell, files.read_array)
    return values


def _decode_pixels(manifest: Manifest, modality: Modality, rows: np.ndarray) -> np.ndarray:
    cells = manifest.table[modality.columns[0]].gather(rows)
    here = np.flatnonzero(cells.is_not_null())
    cells = cells.drop_nulls()
    values = np.zeros((len(rows), *modality.shape), np.uint8)
    if modality.stored == "cell":
        if len(here):
            values[here] = cells.to_numpy()
        return values

    def read(position: int, cell: str) -> None:
        try:
            values[position] = files.read_pixels(files.safe_path(manifest.root, cell), modality.shape)
        except (ValueError, OSError) as error:
            # Messages of the system hold the path, and paths may hold a patient's name.
            reason = error.strerror if isinstance(error, OSError) else str(error)
            where = f"column {modality.columns[0]!r} ({modality.name}): row {rows[position] + 1}"
            raise UserError(f"E007 {where} names a file that cannot be used: {reason}; {files.REMEDY}") from None

    with concurrent.futures.ThreadPoolExecutor(files.THREADS) as pool:
        # The first failure of the lowest row is the one that is told.
        collections.deque(pool.map(read, here.tolist(), cells.to_list()), maxlen=0)
    return values


def _strings(cells: list[str | None]) -> np.ndarray:
    return np.array(["" if cell is None else cell for cell in cells], object)


def _load(manifest: Manifest, cell: str, read: Callable[[pathlib.Path], Any]) -> Any:
    """Reads a file the table names; files and links may have been changed since the manifest was read."""
    try:
        return read(files.safe_path(manifest.root, cell))
    except (ValueError, OSError) as error:
        reason = type(error).__name__
        raise UserError(f"E007 a file of the manifest cannot be read any more ({reason}); check the folder") from None
