"""Precomputed tokens: npy files [t, d], or lists of lists in cells."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import cells
from remind_jax.data.files import Fault, Look, load
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.inputs import as_float, is_tokens, map_array, read_array
from remind_jax.data.kinds.kind import BY_TYPE, FitOptions, FittedKind, Guess, Kind, Rows, Typed
from remind_jax.data.schema import InputSpec, Modality
from remind_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FittedEmbedding(FittedKind):
    """Precomputed tokens, passed on as they are."""

    shape: tuple[int, int]

    @property
    def spec(self) -> InputSpec:
        return EMBEDDING.spec(self.shape)

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        values = raw[name]
        if values.shape[1:] == (0, 0):
            return np.zeros((len(values), *self.shape), np.float32)
        if values.shape[1:] != self.shape:
            raise UserError(f"E008 {name}: arrays are {list(values.shape[1:])}, in training {list(self.shape)}")
        return values.astype(np.float32)

    def example(self, modality: Modality) -> dict[str, Any]:
        return {modality.columns[0]: {"ramp": list(self.shape), "dtype": "float32"}}

    def plain(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of the tokens, [n, d]."""
        return values.mean(axis=1)


class Embedding(Kind):
    """Tokens that another model has made; all of one shape."""

    name = "embedding"
    encoder = "patch"
    dtype = np.dtype(np.float32)
    keys = ("column", "stored")
    optional = ("stored",)
    stored = ""
    endings = (".npy",)
    paths = True
    forms = "npy without pickled objects, up to 100 million numbers"
    fitted = FittedEmbedding
    ragged = False  # whether lists in cells are of different lengths

    def typed(self, modality: Modality, columns: Mapping[str, pl.Series]) -> Typed:
        if modality.stored == "":
            nested = columns[modality.columns[0]].dtype.is_nested()
            modality = dataclasses.replace(modality, stored="cell" if nested else "file")
        return super().typed(modality, columns)

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns paths as strings; nested lists as `Array(Float32, (t, d))`, all null (E008) if shapes differ."""
        if modality.stored == "file":
            return super()._typed_column(modality, column, where)
        dtype, depth = column.dtype, 0
        while dtype.is_nested() and hasattr(dtype, "inner"):
            dtype, depth = dtype.inner, depth + 1
        values = _rectangular(column.drop_nulls(), dtype) if depth == 2 and dtype.is_numeric() else None
        if values is None:
            text = f"{where}cells must be lists [t, d] of numbers, all of one shape and without nulls; reshape them"
            text += ", or declare a series, which may have any t and gaps"
            return pl.Series(column.name, [None] * column.len(), pl.String), [Finding("E008", text, True)]
        return cells.spread(pl.Series(column.name, values), column.is_not_null().to_numpy()), []

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        arrays = values.drop_nulls().to_numpy()
        wrong = ~np.isfinite(arrays).reshape(len(arrays), -1).all(axis=1)
        if not wrong.any():
            return []
        bad = np.zeros(values.len(), bool)
        bad[np.flatnonzero(values.is_not_null())[wrong]] = True
        return [Finding("E008", f"{where}{in_rows(bad)} with NaN or infinite values; fix them", True)]

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> Look:
        array = map_array(path)
        if not is_tokens(array):
            raise Fault("E008", "naming an array that is not [t, d] of real numbers; reshape it")
        if not np.isfinite(as_float(array)).all():
            raise Fault("E008", "naming an array with NaN or infinite values; fix it")
        return Look(array.shape)

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns tokens, float32 [n, t, d], zeros where missing; [n, 0, 0] when no row of the manifest has one."""
        column, values = rows.table[modality.columns[0]], rows.cells(modality.columns[0])
        here = values.is_not_null().to_numpy()
        if modality.stored == "cell":
            tokens = np.zeros((len(here), *column.dtype.shape), np.float32)
            if here.any():
                tokens[here] = values.drop_nulls().to_numpy()
            return {modality.name: tokens}
        first = column.drop_nulls().head(1).to_list()
        shape = load(rows.root, first[0], read_array).shape if first else (0, 0)
        tokens = np.zeros((len(here), *shape), np.float32)
        for i, path in zip(np.flatnonzero(here), values.drop_nulls().to_list(), strict=True):
            tokens[i] = load(rows.root, path, read_array)
        return {modality.name: tokens}

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedEmbedding:
        if not len(rows.places):
            raise UserError(f"no training row has the modality {modality.name!r}: leave it out of the schema")
        first = self.decode(modality, rows._replace(places=rows.places[:1]))
        return FittedEmbedding(first[modality.name].shape[1:])

    def guess(self, column: pl.Series) -> Guess | None:
        nested = column.dtype.is_nested() and not isinstance(getattr(column.dtype, "inner", None), pl.Struct)
        return Guess(BY_TYPE, self.name) if nested and is_ragged(column) == self.ragged else None


EMBEDDING = Embedding()


def is_ragged(column: pl.Series) -> bool:
    """Tells whether cells are lists of different lengths."""
    return isinstance(column.dtype, pl.List) and column.list.len().n_unique() > 1


def _rectangular(present: pl.Series, dtype: pl.DataType) -> np.ndarray | None:
    """Returns nested lists as float32 [n, t, d], or None when they are ragged or hold nulls."""
    lists = present.cast(pl.List(pl.List(dtype)))
    tokens = lists.list.len().unique().to_list()
    inner = lists.explode()
    widths = inner.list.len().unique().to_list()
    if len(tokens) != 1 or len(widths) != 1 or not tokens[0] or not widths[0]:
        return None
    flat = inner.explode()
    with np.errstate(over="ignore"):
        values = flat.to_numpy().astype(np.float32)
    return None if flat.has_nulls() else values.reshape(len(present), tokens[0], widths[0])
