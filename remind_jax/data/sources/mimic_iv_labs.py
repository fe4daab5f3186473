"""Labs and vital signs of MIMIC-IV within a window of each stay: which items, what is plausible, text and numbers.

`ITEMS` is the one table of item ids, units and plausible ranges. A value that has no number, another unit than the
item's or lies outside its range is dropped and counted; ranges are wide (they are to catch typing errors and codes
such as 999999, not the very ill).
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.kinds import long_table
from remind_jax.data.sources import mimic_iv_tables as tables

STATISTICS = ("mean", "min", "max", "last")


class Item(NamedTuple):
    """One quantity.

    Attributes:
      name: in texts and column names.
      unit: of the values after reading.
      ids: item ids in `labevents` (50000 to 53999) or `chartevents` (220000 and above).
      low, high: the plausible range, ends included, in `unit`.
      units: other spellings of the unit in the files; compared in lower case.
    """

    name: str
    unit: str
    ids: tuple[int, ...]
    low: float
    high: float
    units: tuple[str, ...] = ()


_MOLAR = ("mmol/l",)
_PRESSURE = ("mm hg",)
ITEMS = (
    Item("heart rate", "bpm", (220045,), 10, 300),
    Item("systolic pressure", "mmHg", (220050, 220179), 20, 300, _PRESSURE),
    Item("diastolic pressure", "mmHg", (220051, 220180), 5, 225, _PRESSURE),
    Item("mean pressure", "mmHg", (220052, 220181), 10, 250, _PRESSURE),
    Item("respiratory rate", "per min", (220210,), 1, 80, ("insp/min", "bpm")),
    Item("oxygen saturation", "%", (220277,), 20, 100),
    Item("temperature", "C", (223761, 223762), 25, 45, ("°f", "f", "?f", "°c", "?c")),
    Item("inspired oxygen", "%", (223835,), 20, 100),
    Item("eye opening", "points", (220739,), 1, 4),
    Item("verbal response", "points", (223900,), 1, 5),
    Item("motor response", "points", (223901,), 1, 6),
    Item("fingerstick glucose", "mg/dL", (225664,), 10, 2_000),
    Item("sodium", "mEq/L", (50983,), 80, 200, _MOLAR),
    Item("potassium", "mEq/L", (50971,), 1, 15, _MOLAR),
    Item("chloride", "mEq/L", (50902,), 50, 180, _MOLAR),
    Item("bicarbonate", "mEq/L", (50882,), 1, 70, _MOLAR),
    Item("anion gap", "mEq/L", (50868,), -10, 80, _MOLAR),
    Item("urea nitrogen", "mg/dL", (51006,), 0.5, 350),
    Item("creatinine", "mg/dL", (50912,), 0.05, 60),
    Item("glucose", "mg/dL", (50931,), 5, 2_500),
    Item("magnesium", "mg/dL", (50960,), 0.2, 20),
    Item("calcium", "mg/dL", (50893,), 1, 25),
    Item("phosphate", "mg/dL", (50970,), 0.1, 30),
    Item("lactate", "mmol/L", (50813,), 0.05, 40),
    Item("pH", "", (50820,), 6.3, 8.2, ("units",)),
    Item("bilirubin", "mg/dL", (50885,), 0.02, 90),
    Item("ALT", "IU/L", (50861,), 0, 40_000, ("u/l",)),
    Item("AST", "IU/L", (50878,), 0, 60_000, ("u/l",)),
    Item("albumin", "g/dL", (50862,), 0.3, 8),
    Item("white cells", "K/uL", (51301,), 0, 1_000),
    Item("hemoglobin", "g/dL", (51222,), 1, 26),
    Item("hematocrit", "%", (51221,), 3, 80),
    Item("platelets", "K/uL", (51265,), 0, 3_000),
    Item("INR", "", (51237,), 0.3, 40, ("ratio",)),
    Item("PTT", "s", (51275,), 8, 300, ("sec", "seconds")),
)
ROLES = {
    **{"table": "labs.csv", "key": "stay_id", "time": "charttime", "code": "item", "value": "value"},
    "until": "end",
}
"""What rows to predict bring as events: names of a table and of its columns, in the words and units of `ITEMS`."""
_KINDS = {"itemid": "id", "charttime": "time", "valuenum": "number", "valueuom": "text"}
# First what ties a row to a stay.
TABLES = {"hosp/labevents": {"subject_id": "id", **_KINDS}, "icu/chartevents": {"stay_id": "id", **_KINDS}}
FIRST_CHART_ITEM = 200_000
_FAHRENHEIT, _INSPIRED_OXYGEN = 223761, 223835
# Faults of a value, in the order in which they are looked for.
_SOUND, _EMPTY, _UNIT, _RANGE = range(4)


class Measurements(NamedTuple):
    """The values of some stays, each by itself and aggregated.

    Attributes:
      events: a row for each value in the window: `stay_id`, `item` (position in `ITEMS`), `charttime`, `value`, in that
        order.
      table: a row for each item of each stay, in that order: `stay_id`, `item` (position in `ITEMS`), and
        `STATISTICS` of the values in the window, Float64.
      dropped: how many measurements of these stays were left out, by reason.
      kept: how many were used.
    """

    events: pl.DataFrame
    table: pl.DataFrame
    dropped: dict[str, int]
    kept: int


def read(root: pathlib.Path, stays: pl.DataFrame, by_admission: bool = False) -> Measurements:
    """Returns labs and vital signs that were taken within the window of each stay.

    Labs belong to a stay by patient and time: a quarter of them names no admission. `root` holds `hosp` and `icu`;
    `stays` has `stay_id`, `subject_id`, `intime` and `end`, one row a stay. With `by_admission`, `stay_id` is that of
    an admission, to which the vital signs of all its stays belong. Raises UserError: a table cannot be used.
    """
    windows = stays.lazy().with_columns(hadm_id="stay_id") if by_admission else stays.lazy()
    parts = []
    for name, kinds in TABLES.items():
        charted = "stay_id" in kinds
        key = ("hadm_id" if by_admission else "stay_id") if charted else "subject_id"
        table = tables.find(root, name, {key: "id", **_KINDS})
        wanted = [i for item in ITEMS for i in item.ids if (i >= FIRST_CHART_ITEM) == charted]
        rows = table.scan().filter(pl.col("itemid").is_in(wanted)).join(windows, on=key)
        rows = rows.with_columns(table.typed("charttime"), table.typed("valuenum"))
        rows = rows.filter(pl.col("charttime").is_between(pl.col("intime"), pl.col("end")))
        parts.append(table.collect(rows.select("stay_id", "charttime", *_judge())))
    rows = pl.concat(parts)
    counts = np.bincount(rows["fault"].to_numpy(), minlength=4)
    rows = rows.filter(pl.col("fault") == _SOUND).sort("stay_id", "item", "charttime", "value")
    dropped = {"without a number": counts[_EMPTY], "in another unit": counts[_UNIT], "implausible": counts[_RANGE]}
    return Measurements(rows, aggregate(rows), {reason: int(n) for reason, n in dropped.items()}, rows.height)


def _judge() -> tuple[pl.Expr, ...]:
    """`item`, `value` in the item's unit, and `fault` of a row of either table."""
    code = pl.col("itemid")
    by_id = {i: k for k, item in enumerate(ITEMS) for i in item.ids}
    item = code.replace_strict(list(by_id), list(by_id.values()), return_dtype=pl.UInt8)
    value = (
        pl.when(code == _FAHRENHEIT)
        .then((pl.col("valuenum") - 32) / 1.8)
        # Charted as a fraction by some and as a percentage by others.
        .when((code == _INSPIRED_OXYGEN) & (pl.col("valuenum") <= 1))
        .then(pl.col("valuenum") * 100)
        .otherwise(pl.col("valuenum"))
    )
    unit = pl.col("valueuom").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    spellings = [f"{k} {unit}" for k, item in enumerate(ITEMS) for unit in (item.unit.lower(), *item.units)]
    known = unit.is_null() | (unit == "") | pl.concat_str(item.cast(pl.String), pl.lit(" "), unit).is_in(spellings)
    places = list(range(len(ITEMS)))
    low = item.replace_strict(places, [float(item.low) for item in ITEMS])
    high = item.replace_strict(places, [float(item.high) for item in ITEMS])
    fault = (
        pl.when(value.is_null() | value.is_nan())
        .then(_EMPTY)
        .when(~known)
        .then(_UNIT)
        .when(~value.is_between(low, high))
        .then(_RANGE)
        .otherwise(_SOUND)
    )
    return item.alias("item"), value.alias("value"), fault.cast(pl.UInt8).alias("fault")


def aggregate(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns statistics of each run of equal stay and item, a row each as in `Measurements.table`.

    `rows` are sorted by stay, item, time and value. The sums run in row order, so that a mean has the same last bit on
    every machine, which a parallel one has not.
    """
    stay, item, value = (rows[name].to_numpy() for name in ("stay_id", "item", "value"))
    change = np.ones(len(stay), bool)
    change[1:] = (stay[1:] != stay[:-1]) | (item[1:] != item[:-1])
    start = np.flatnonzero(change)
    stop = np.append(start[1:], len(stay))
    columns = {"stay_id": stay[start], "item": item[start].astype(np.int64)}
    if len(start):
        mean = np.add.reduceat(value, start) / (stop - start)
        columns |= {"mean": mean, "min": np.minimum.reduceat(value, start), "max": np.maximum.reduceat(value, start)}
        columns["last"] = value[stop - 1]
    else:
        columns |= {name: np.zeros(0) for name in STATISTICS}
    return pl.DataFrame(columns)


def as_text(measured: pl.DataFrame, stay_ids: Sequence[int]) -> pl.Series:
    """The last value of each item as "name value unit; …" in the order of `ITEMS`; null for a stay without any.

    Args:
      measured: the table of `Measurements`.
      stay_ids: the stays asked for, in order.
    """
    phrases: dict[int, list[str]] = {}
    for stay, item, last in measured.select("stay_id", "item", "last").iter_rows():
        name, unit = ITEMS[item].name, ITEMS[item].unit
        phrases.setdefault(stay, []).append(f"{name} {round(last, 2):g} {unit}".rstrip())
    cells = ["; ".join(phrases[stay]) if stay in phrases else None for stay in stay_ids]
    return pl.Series("labs", cells, dtype=pl.String)


def as_events(events: pl.DataFrame, stays: pl.DataFrame, most: int) -> pl.Series:
    """The newest `most` values of each stay as cells of events, at hours from the end of the window.

    Args:
      events: those of `Measurements`.
      stays: `stay_id` and `end`, one row a stay; distinct.
    """
    rows = events.join(stays.select("stay_id", "end").with_row_index("row"), on="stay_id")
    hours = (pl.col("charttime") - pl.col("end")).dt.total_seconds() / 3600
    code = pl.col("item").replace_strict(list(range(len(ITEMS))), [item.name for item in ITEMS])
    return long_table.cells(rows.select("row", "value", hours=hours, code=code), stays.height, most)


def as_numbers(measured: pl.DataFrame, stay_ids: Sequence[int]) -> pl.DataFrame:
    """A Float64 column for each statistic of each item, `sodium_mean`, …, null where the item was not measured.

    Args:
      measured: the table of `Measurements`.
      stay_ids: the stays asked for, in order; distinct.
    """
    position = {stay: i for i, stay in enumerate(stay_ids)}
    row = np.array([position[stay] for stay in measured["stay_id"].to_list()], np.int64)
    cells = np.full((len(stay_ids), len(ITEMS), len(STATISTICS)), np.nan)
    cells[row, measured["item"].to_numpy()] = measured.select(STATISTICS).to_numpy()
    flat = cells.reshape(len(stay_ids), -1)
    return pl.DataFrame(dict(zip(number_columns(), flat.T, strict=True))).fill_nan(None)


def number_columns() -> tuple[str, ...]:
    """The columns of `as_numbers`, in order."""
    return tuple(f"{item.name.replace(' ', '_')}_{name}" for item in ITEMS for name in STATISTICS)
