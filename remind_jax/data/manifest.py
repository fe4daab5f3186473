"""The manifest: the one form in which every data set, the user's own included, enters the program.

A manifest is a table with one row a sample and a schema that says what each column is. Nothing after this module
knows which data set it is looking at. `check` says what can be wrong with one.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Container, Iterable, Mapping

import numpy as np
import polars as pl

from remind_jax.data import files, targets
from remind_jax.data.blocks import Columns
from remind_jax.data.findings import FileRecord, Finding, in_rows, listed
from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.kind import Rows
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A schema and its table, one row a sample; a null cell means missing, nothing else does.

    Numeric columns are Float64, text, codes, categories and paths String, embeddings held in cells
    `Array(Float32, (t, d))`, images and volumes held in cells `Array(UInt8, modality.shape)`, the label a String out of
    `schema.classes`, or as `targets.typed` says of other tasks.
    """

    schema: Schema
    table: pl.DataFrame
    root: pathlib.Path | None = None  # the folder that relative paths start from; None for a table made in memory
    title: str = ""  # how reports name the data, for example "twin of MIMIC-IV (synthetic)"
    notes: tuple[Finding, ...] = ()  # what reading the folder found, for `check.find_problems` to pass on
    files: Mapping[str, FileRecord] = dataclasses.field(default_factory=dict)  # of sound files, by path as written
    # Share of each combination in the paper by its name; empty for data that are not the paper's.
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: np.ndarray | None = None  # what each row counts in the loss of training, float32 [n]; None: all alike
    label_type: str = "text"  # of the user's labels: text, integer, number or boolean

    @functools.cached_property
    def presence(self) -> np.ndarray:
        """Tells which modality each sample has, bool [n, m]; a table is missing when all its cells are."""
        return presence_of(self.table, [modality.all_columns for modality in self.schema.modalities])

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Returns each label's position in `schema.classes`, int32 [n], or of other tasks what `targets.arrays` says.

        Raises UserError (E005): a label is none.
        """
        if not self.schema.has_classes:
            wrong = [f"{each.code} {each.message}" for each in targets.problems(self.schema, self.table)]
            if wrong:
                raise UserError("; ".join(wrong))
            return targets.arrays(self.schema, self.table)
        position = {name: i for i, name in enumerate(self.schema.classes)}
        labels = np.array([position.get(name, -1) for name in self.table[self.schema.label].to_list()], np.int32)
        if (labels < 0).any():
            where, classes = f"column {self.schema.label!r}: {in_rows(labels < 0)}", listed(self.schema.classes)
            raise UserError(f"E005 {where} without a label out of the declared classes {classes}")
        return labels

    @property
    def labels_of_batches(self) -> np.ndarray:
        """Returns the labels as batches have them: numbers in float32."""
        return self.labels.astype(np.float32) if self.labels.dtype == np.float64 else self.labels

    @functools.cached_property
    def strata(self) -> np.ndarray:
        """Returns the samples between which splits are even, see `targets.strata`, int32 [n]."""
        return targets.strata(self.schema, self.labels)

    @functools.cached_property
    def digest(self) -> str:
        """Returns the sha256 (hex) of the schema, all cells in row order, the content of their files, and weights.

        Titles are no part of the data.
        """
        sha = hashlib.sha256(json.dumps(self.schema.untitled().to_dict(), sort_keys=True).encode())
        paths = {m.columns[0] for m in self.schema.modalities if m.stored == "file"}
        for _, column in self.schema.columns():
            cells = self.table[column]
            sha.update(np.packbits(cells.is_null().to_numpy()).tobytes())
            sha.update(cell_bytes(cells))
            if column in paths:
                sha.update("".join(self.file_digest(cell) for cell in cells.drop_nulls().to_list()).encode())
        sha.update(b"" if self.weights is None else self.weights.tobytes())
        return sha.hexdigest()

    def rows(self, places: np.ndarray) -> Rows:
        """Returns some rows, int [n] from 0, as kinds take them."""
        return Rows(self.table, np.asarray(places, np.int64), self.root, self.schema.patient_id)

    def file_digest(self, cell: str) -> str:
        """Returns the sha256 (hex) of the file that a cell names."""
        return (self.files.get(cell) or files.load(self.root, cell, files.record)).sha256


def presence_of(table: pl.DataFrame | Columns, modalities: Iterable[Iterable[str]]) -> np.ndarray:
    """Tells in which rows of a table any of the columns of each modality holds something, bool [n, m]."""
    modalities = [list(columns) for columns in modalities]
    present = np.zeros((table.height, len(modalities)), bool)
    for j, columns in enumerate(modalities):
        for column in columns:
            present[:, j] |= table[column].is_not_null().to_numpy()
    return present


def cell_bytes(cells: pl.Series) -> bytes:
    """Returns the values of a column as bytes that do not depend on how the library lays them out."""
    if cells.dtype == pl.String:
        lengths = cells.str.len_bytes().fill_null(0).to_numpy().astype("<u8").tobytes()
        return lengths + "".join(cells.drop_nulls().to_list()).encode()
    if isinstance(cells.dtype, pl.List):
        return cell_bytes(cells.drop_nulls().list.len()) + cell_bytes(cells.drop_nulls().explode())
    if isinstance(cells.dtype, pl.Struct):
        fields = cells.struct.unnest().iter_columns()
        return b"".join(field.is_null().to_numpy().tobytes() + cell_bytes(field) for field in fields)
    values = cells.drop_nulls().to_numpy()
    if values.dtype != np.uint8:  # pixels
        values = values.astype("<f8" if cells.dtype.is_numeric() else "<f4")
    return np.ascontiguousarray(values).tobytes()


def decode(
    manifest: Manifest, rows: np.ndarray, *, labels: bool = True, modalities: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """Decodes some rows, int [n] from 0; files are read here. Rows to predict have no labels.

    Returns:
      for each modality, or those of the names given, what `Kind.decode` of its kind gives, under its name or
      `name/part`; `present` bool [n, m], `label` of `Manifest.labels_of_batches` if asked for, and then `weight`
      float32 [n] of a manifest that has weights; `row` int32 [n].

    Raises:
      UserError: a file that the rows name cannot be read or decoded (E007), or a label is none of the classes (E005).
    """
    chosen, raw = manifest.rows(rows), {}
    for modality in manifest.schema.modalities:
        if modalities is None or modality.name in modalities:
            raw |= KINDS[modality.kind].decode(modality, chosen)
    places = chosen.places
    raw |= {"label": manifest.labels_of_batches[places]} if labels else {}
    raw |= {"weight": manifest.weights[places]} if labels and manifest.weights is not None else {}
    return raw | {"present": manifest.presence[places], "row": places.astype(np.int32)}
