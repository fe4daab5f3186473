"""Events of a patient, each a code at a time and often a value: labs, vital signs, drugs; at no regular times."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import polars as pl

from remind_jax.data import inputs, numerals
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.inputs import EVENT_IDS, safe_path
from remind_jax.data.kinds import long_table
from remind_jax.data.kinds.kind import BY_TYPE, FitOptions, FittedKind, Guess, Kind, Parts, Rows
from remind_jax.data.kinds.tabular import moments
from remind_jax.data.schema import InputSpec, Modality, shown, string
from remind_jax.data.tables import read_table
from remind_jax.errors import UserError

MOST = 256
"""Most events of a sample, unless the entry says otherwise."""
_ROLES = ("table", "key", "time", "code", "until")  # which an entry has all, unless it names a column of cells
_PLAIN = 64  # most frequent codes that plain models see
_ROOM = 32  # the length is a multiple of it, so that few rows have more events than any that was fitted on
_SPAN = 0.9  # share of the events that lie within one unit of time


@dataclasses.dataclass(frozen=True)
class FittedEvents(FittedKind):
    """A vocabulary of codes, mean and spread of each one's values, and a unit of time."""

    has_parts: ClassVar[bool] = True
    length: int  # most events of a sample
    codes: tuple[str, ...]  # the most frequent ones of the fitting rows, ties in string order
    mean: tuple[float, ...]  # of each code's values over the fitting rows
    std: tuple[float, ...]  # 0 marks a code without values, or with one value only, which becomes 0
    span: float  # hours that are one unit of time

    @property
    def spec(self) -> InputSpec:
        return EVENTS.spec((self.length, 3), EVENT_IDS + len(self.codes))

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Returns the newest events of each cell, int32 [n, t, 3], see `inputs.events`."""
        fields = long_table.FIELDS
        return inputs.events(self, [[cell.struct.field(part).to_list() for part in fields] for cell in raw[name]])

    def parts(self, raw: Mapping[str, np.ndarray], name: str) -> Parts:
        """Returns the events; values of one code are comparable."""
        events = pl.concat([cell.struct.unnest() for cell in raw[name]])
        row = np.repeat(np.arange(len(raw[name])), [len(cell) for cell in raw[name]])
        code = events["code"].rank("dense").to_numpy().astype(int)
        return Parts(row, events["hours"].to_numpy(), code, events["value"].cast(pl.Float64).to_numpy())

    def without(self, raw: Mapping[str, np.ndarray], name: str, lost: np.ndarray) -> dict[str, np.ndarray]:
        left, ends = raw[name].copy(), np.cumsum([len(cell) for cell in raw[name]])
        for i, own in enumerate(np.split(~lost, ends[:-1])):
            left[i] = left[i].filter(pl.Series(own))
        return {name: left}

    def losses(self, modality: Modality, table: pl.DataFrame) -> list[Finding]:
        counts = table[modality.columns[0]].list.len().fill_null(0).cast(pl.Int64)
        if not (longer := counts > self.length).any():
            return []
        lost = int((counts - self.length).filter(longer).sum())
        text = f"{in_rows(longer)} with more than {self.length} events, the most that the model takes"
        return [Finding("I001", f"{modality.name}: {text}; their {lost:,} oldest are left out", False)]

    def plain(self, values: np.ndarray) -> np.ndarray:
        """Returns the last value of each of the most frequent codes, NaN where there is none, and how often it is."""
        xp, codes = values.__array_namespace__(), np.arange(min(_PLAIN, len(self.codes)), dtype=np.int32) + EVENT_IDS
        is_code, numbers = values[..., :1] == xp.asarray(codes)[None, None], values.view(np.float32)[..., 1]
        there = is_code & ~xp.isnan(numbers)[..., None]
        place = there.shape[1] - 1 - xp.argmax(there[:, ::-1], axis=1)
        last = xp.take_along_axis(numbers, place, axis=1)
        missing = xp.asarray(np.float32(np.nan))
        counts = xp.sum(is_code, axis=1).astype(np.float32)
        return xp.concat([xp.where(xp.any(there, axis=1), last, missing), counts], axis=1)

    def example(self, modality: Modality) -> dict[str, Any]:
        known = list(zip(self.codes, self.mean, strict=True))[:3] or [("?", None)]
        return {modality.columns[0]: [[-float(i), code, mean] for i, (code, mean) in enumerate(known)]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedEvents":
        found = cls(**cls.fields_of(content))
        if not len(found.codes) == len(found.mean) == len(found.std) or found.length < 1 or not found.span > 0:
            raise ValueError("codes")
        return found


class Events(Kind):
    """Events in a long table with a row each, of which cells hold those up to the time of the prediction."""

    name = "events"
    encoder = "events"
    dtype = np.dtype(np.int32)
    keys = optional = ("column", *_ROLES, "value", "most", "odd")
    fitted = FittedEvents

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        named = [key for key in self.keys[:-2] if key in entry]
        if lacking := [role for role in _ROLES if role not in named and named != ["column"]]:
            needed = ", ".join(_ROLES)
            raise UserError(f"modalities.{name} lacks the key {lacking[0]!r}; events of a table need {needed}")
        options: dict[str, Any] = {key: string(entry[key], f"modalities.{name}.{key}") for key in named}
        column = options.pop("column", name)
        options["most"], odd = entry.get("most", MOST), entry.get("odd", "refuse")
        if type(most := options["most"]) is not int or most < 1:
            raise UserError(f"modalities.{name}.most must be a whole number of at least 1, not {shown(most)}")
        if odd not in numerals.ODD:
            raise UserError(f"modalities.{name}.odd must be {', '.join(numerals.ODD)}, not {shown(odd)}")
        return Modality(name, self.name, (column,), options=options | ({} if odd == "refuse" else {"odd": odd}))

    def gathered(
        self,
        modality: Modality,
        table: pl.DataFrame,
        root: pathlib.Path,
        tables: Mapping[str, pl.DataFrame],
        required: bool,
    ) -> tuple[pl.Series | None, list[Finding]]:
        source, column = modality.options.get("table", ""), modality.columns[0]
        names = (modality.name, source, pathlib.Path(source).stem)
        events = next((tables[name] for name in names if name in tables), None)
        if not source or (events is None and column in table.columns and table[column].dtype.is_nested()):
            return None, []  # the cells hold the events already
        events = _read(modality, root, required) if events is None else events
        return (None, []) if events is None else long_table.gather(modality.name, modality.options, table, events)

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns cells as `long_table.CELLS`, without events as null."""
        if column.is_null().all():
            return pl.Series(column.name, [None] * column.len(), long_table.CELLS), []
        if not _holds_events(column.dtype):
            text = f"{where}cells must be lists of events with {', '.join(long_table.FIELDS)}, or be made of a table"
            return pl.Series(column.name, [None] * column.len(), long_table.CELLS), [Finding("E008", text, True)]
        column = column.cast(long_table.CELLS)
        return column.set((column.list.len() == 0).fill_null(False), None), []

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        at = pl.Series(np.repeat(np.arange(values.len()), values.list.len().fill_null(0).to_numpy()))
        events = _all(values)
        faults = {
            "with events after the prediction, or without a time": ~(events["hours"] <= 0).fill_null(False),
            "with events without a code": events["code"].is_null(),
            "with values that are NaN, infinite or beyond float32": ~(
                events["value"].abs() <= np.finfo(np.float32).max
            ).fill_null(True),
        }
        found = []
        for text, mask in faults.items():
            if mask.any():
                rows = np.isin(np.arange(values.len()), at.filter(mask).to_numpy())
                found.append(Finding("E008", f"{where}{in_rows(rows)} {text}; fix or drop them", True))
        return found

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the events of each cell, object [n] of series, None where missing."""
        found = np.empty(len(rows.places), object)
        for i, cell in enumerate(rows.cells(modality.columns[0])):
            found[i] = cell
        return {modality.name: found}

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedEvents:
        cells = rows.cells(modality.columns[0])
        events = _all(cells)
        counts = events["code"].value_counts(name="n").sort("n", "code", descending=[True, False])
        codes = counts["code"].head(max(0, options.vocabulary - EVENT_IDS))
        known = events.filter(events["code"].is_in(codes.implode()) & events["value"].is_not_null())
        # In order of code and cells, so that sums have the same last bit on every machine.
        values = dict(known.group_by("code", maintain_order=True).agg("value").iter_rows())
        found = [moments(np.array(values.get(code, ()))) for code in codes]
        mean, std = tuple(centre for _, centre, _ in found), tuple(spread for *_, spread in found)
        span = float(np.quantile(-events["hours"].to_numpy(), _SPAN)) if events.height else 0.0
        longest = -(-(cells.list.len().max() or 1) // _ROOM) * _ROOM
        return FittedEvents(min(modality.options.get("most", MOST), longest), tuple(codes), mean, std, span or 1.0)

    def guess(self, column: pl.Series) -> Guess | None:
        return Guess(BY_TYPE, "events") if _holds_events(column.dtype) else None


EVENTS = Events()


def _holds_events(dtype: pl.DataType) -> bool:
    """Tells whether cells of a type are lists of events."""
    fields = getattr(getattr(dtype, "inner", None), "fields", ())
    return {field.name for field in fields} == set(long_table.FIELDS)


def _all(cells: pl.Series) -> pl.DataFrame:
    """Returns the events of all cells, one a row, in order."""
    return pl.DataFrame(cells.drop_nulls().explode().struct.unnest(), schema_overrides=long_table.FIELDS)


def _read(modality: Modality, root: pathlib.Path, required: bool) -> pl.DataFrame | None:
    """Reads the table of a modality; None where there is none and none is `required`. Raises UserError: it cannot."""
    source = modality.options["table"]
    try:
        path = safe_path(root, source)
    except (ValueError, OSError):
        raise UserError(f"E006 modalities.{modality.name}.table must be a file below the folder of the data") from None
    if path.is_file():
        return read_table(path, columns=set(modality.options.values()))
    if required:
        raise UserError(f"E007 modalities.{modality.name}.table: {source} is not there; add the file, or give tables=")
    return None
