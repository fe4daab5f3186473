"""Regular measurements of channels, [t, k], with gaps: npy files, or lists of lists in cells; NaN or null is a gap.

A series of any length is cut into as many stretches of equal length, of which a model receives the means of what was
measured, standardised by channel, and the share that was.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import polars as pl

from remind_jax.data import inputs
from remind_jax.data.files import Fault, Look, load
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.kinds.embedding import Embedding
from remind_jax.data.kinds.kind import FitOptions, FittedKind, Parts, Rows
from remind_jax.data.kinds.tabular import moments
from remind_jax.data.schema import InputSpec, Modality, shown
from remind_jax.errors import UserError

STEPS = 64
"""Most stretches of a series, unless the entry says otherwise."""
_CELLS = pl.List(pl.List(pl.Float64()))


@dataclasses.dataclass(frozen=True)
class FittedSeries(FittedKind):
    """Mean and spread of each channel."""

    has_parts: ClassVar[bool] = True
    steps: int
    mean: tuple[float, ...]  # over what was measured in the fitting rows
    std: tuple[float, ...]  # 0 marks a constant channel, which becomes 0

    @property
    def spec(self) -> InputSpec:
        return SERIES.spec((2 * self.steps * len(self.mean),))

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Returns means and shares of each stretch in turn, float32 [n, steps * 2 k], see `inputs.series`."""
        try:
            return inputs.series(self, list(raw[name]))
        except inputs.Unusable as error:
            raise UserError(f"E008 {name}: a series cannot be used: {error}") from None

    def plain(self, values: np.ndarray) -> np.ndarray:
        """Returns the mean of each channel over all stretches that have some, NaN without, and how many these are."""
        xp, width = values.__array_namespace__(), len(self.mean)
        found = values.reshape(values.shape[0], self.steps, 2 * width)
        counts = xp.sum(found[..., width:] > 0, axis=1).astype(np.float32)
        means = xp.sum(found[..., :width], axis=1) / xp.maximum(counts, np.float32(1))
        return xp.concat([xp.where(counts > 0, means, xp.asarray(np.float32(np.nan))), counts], axis=1)

    def parts(self, raw: Mapping[str, np.ndarray], name: str) -> Parts:
        """Returns the steps at which anything was measured; of each the mean of the standardised channels."""
        spread = np.where(np.array(self.std) > 0, self.std, 1.0)
        means = [np.nanmean((x[_steps(x)] - self.mean) / spread, axis=1) for x in raw[name]]
        row = np.repeat(np.arange(len(means)), [len(each) for each in means])
        steps = np.concatenate([_steps(x) for x in raw[name]])
        return Parts(row, steps.astype(np.float64), np.zeros(len(row), int), np.concatenate(means))

    def without(self, raw: Mapping[str, np.ndarray], name: str, lost: np.ndarray) -> dict[str, np.ndarray]:
        left, start = raw[name].copy(), 0
        for i, cell in enumerate(left):
            steps, left[i] = _steps(cell), cell.copy()
            left[i][steps[lost[start : start + len(steps)]]] = np.nan
            start += len(steps)
        return {name: left}

    def example(self, modality: Modality) -> dict[str, Any]:
        return {modality.columns[0]: {"ramp": [self.steps, len(self.mean)], "dtype": "float32"}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedSeries":
        found = cls(**cls.fields_of(content))
        if not 0 < len(found.mean) == len(found.std) or found.steps < 1:
            raise ValueError("channels")
        return found


class Series(Embedding):
    """Channels at regular times, all samples with the same channels."""

    name = "series"
    keys = ("column", "stored", "steps")
    optional = ("stored", "steps")
    forms = "npy [t, k] without pickled objects, up to 100 million numbers"
    fitted = FittedSeries
    ragged = True

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        if type(steps := entry.get("steps", STEPS)) is not int or steps < 1:
            raise UserError(f"modalities.{name}.steps must be a whole number of at least 1, not {shown(steps)}")
        modality = super().parse(name, entry, image_size, frames)
        return dataclasses.replace(modality, options={"steps": steps})

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns paths as strings; nested lists as they are, all null (E008) unless they are [t, k]."""
        if modality.stored == "file":
            return super()._typed_column(modality, column, where)
        try:
            values = column.cast(_CELLS)
        except pl.exceptions.PolarsError:
            values = None
        widths = pl.Series() if values is None else values.explode().list.len().drop_nulls().unique()
        if values is None or len(widths) != 1 or not widths[0]:
            text = f"{where}cells must be lists [t, k] of numbers or null, all with the same k; reshape them"
            return pl.Series(column.name, [None] * column.len(), _CELLS), [Finding("E008", text, True)]
        # A gap is NaN from here on, as in files.
        return values.list.eval(pl.element().list.eval(pl.element().fill_null(np.nan))), []

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        arrays = [None if cell is None else _array(cell) for cell in values]
        wrong = np.array([x is not None and bool(np.isinf(x).any() or np.isnan(x).all()) for x in arrays])
        text = f"{where}{in_rows(wrong)} with infinite values, or with nothing but gaps; fix or empty them"
        return [Finding("E008", text, True)] if wrong.any() else []

    def content(self, modality: Modality, table: pl.DataFrame, records: Mapping[str, Any]) -> pl.Series | None:
        return super().content(modality, table, records) if modality.stored == "file" else None

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> Look:
        try:
            inputs.sound_series(inputs.map_array(path))
        except inputs.Unusable as error:
            raise Fault("E008", f"naming a file that cannot be used: {error}") from None
        return Look()

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the series, object [n] of float32 [t, k], NaN in gaps; None where missing."""
        found = np.empty(len(rows.places), object)
        for i, cell in enumerate(rows.cells(modality.columns[0])):
            if cell is not None:
                found[i] = load(rows.root, cell, inputs.read_array) if isinstance(cell, str) else _array(cell)
        return {modality.name: found}

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedSeries:
        series = self.decode(modality, rows)[modality.name]
        if not len(series):
            raise UserError(f"no training row has the modality {modality.name!r}: leave it out of the schema")
        if len(widths := {each.shape[1] for each in series}) > 1:
            raise UserError(
                f"E008 {modality.name}: series have {min(widths)} to {max(widths)} channels; make all alike"
            )
        channels = np.concatenate(list(series)).astype(np.float64).T
        _, mean, std = zip(*(moments(channel[~np.isnan(channel)]) for channel in channels), strict=True)
        return FittedSeries(min(modality.options.get("steps", STEPS), max(map(len, series))), mean, std)


SERIES = Series()


def _array(cell: pl.Series) -> np.ndarray:
    """Returns a cell as float32 [t, k]."""
    return inputs.as_float(cell.explode().to_numpy().astype(np.float64)).reshape(cell.len(), -1)


def _steps(cell: np.ndarray) -> np.ndarray:
    """Returns the steps of a series at which any channel was measured, [t, k] -> int [u]."""
    return np.flatnonzero(~np.isnan(cell).all(axis=1))
