"""From a long table, one row an event, to cells: the events of each sample up to the time of its prediction.

Of what comes later nothing is looked at but its key and its time, which tell that it does.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import numerals
from remind_jax.data.cells import as_string, looks_missing, trim
from remind_jax.data.findings import Finding, in_rows
from remind_jax.errors import UserError, did_you_mean

FIELDS = {"hours": pl.Float64(), "code": pl.String(), "value": pl.Float64()}
"""What is known of an event: hours from the time of the prediction, none above 0, and its value or null."""
CELLS = pl.List(pl.Struct(FIELDS))
_HOUR = 3_600_000_000  # microseconds
_FORMATS = [f"%Y-%m-%d{t}{time}" for t in " T" for time in ("%H:%M:%S%.f", "%H:%M")] + ["%Y-%m-%d"]


def gather(
    name: str, options: Mapping[str, Any], samples: pl.DataFrame, events: pl.DataFrame
) -> tuple[pl.Series, list[Finding]]:
    """Returns the newest events of each sample, `CELLS` [n], oldest first, null without any, and what is to be said.

    `options` are those of the modality `name`, see `events.Events`; `samples` is the table of samples, n rows, `events`
    the long one. Work grows with the number of pairs of a sample and an event of its key.

    Raises UserError: a column is not there or holds no times.
    """
    until, time, most = options["until"], options["time"], options["most"]
    _check_columns(name, samples, (options["key"], until), "the table of samples")
    _check_columns(name, events, (options["key"], time, options["code"], options.get("value")), options["table"])
    ids, keys = _alike(samples[options["key"]], events[options["key"]])
    (ends, form), (times, other) = _hours(samples[until], name), _hours(events[time], name)
    if form != other:
        raise UserError(f"E009 {name}: column {until!r} holds {form}, {time!r} {other}; write both alike")
    known = pl.DataFrame({"key": ids, "until": ends}).with_row_index("row").drop_nulls("key")
    long = pl.DataFrame({"key": keys, "time": times}).with_row_index("event")
    pairs = long.lazy().drop_nulls("key").join(known.lazy(), on="key")
    pairs = pairs.select("row", "event", hours=pl.col("time") - pl.col("until"), ends=pl.col("until")).collect()
    findings = []
    if len(rows := pairs.filter(pl.col("ends").is_null())["row"].unique()):
        text = (
            f"column {until!r} ({name}): {_at(rows, samples)} empty; each row with events needs its prediction's time"
        )
        findings.append(Finding("E009", text, True))
    seen, wrong = _read(name, options, pairs.filter(pl.col("hours") <= 0).select("row", "event", "hours"), events)
    findings += wrong
    counts = {
        f"after {until}": pairs.filter(pl.col("hours") > 0)["event"].n_unique(),
        "without a time": times.null_count(),
        "without a key": keys.null_count(),
        "of no sample": events.height - keys.null_count() - pairs["event"].n_unique(),
    }
    more = (seen.group_by("row").len()["len"].cast(pl.Int64) - most).clip(0)
    counts[f"of {int((more > 0).sum()):,} samples with more than the newest {most:,}"] = int(more.sum())
    left = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n) or "none"
    text = (
        f"{name}: {seen['row'].n_unique():,} of {samples.height:,} samples have events, {events.height:,} in the table"
    )
    return cells(seen, samples.height, most), [*findings, Finding("I001", f"{text}; left out: {left}", False)]


def _check_columns(name: str, table: pl.DataFrame, columns: tuple[str | None, ...], where: str) -> None:
    for column in filter(None, columns):
        if column not in table.columns:
            hint = did_you_mean(column, table.columns)
            raise UserError(
                f"E001 column {column!r} (modality {name}) is not in {where}{hint}; fix the header or the entry"
            )


def _alike(one: pl.Series, other: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Returns ids of two tables in one type, so that 7, 7.0 and "7" are one."""
    if one.dtype.is_integer() and other.dtype.is_integer():
        return one.cast(pl.Int64), other.cast(pl.Int64)
    return _words(one), _words(other)


def _words(column: pl.Series) -> pl.Series:
    """Returns single values as strings, words for missing as null."""
    column = trim(as_string(column))
    return column.set(looks_missing(column), None)


def _hours(column: pl.Series, name: str) -> tuple[pl.Series, str]:
    """Returns times as hours, Float64 [n], null for none, and what they were; raises UserError for anything else."""
    form = "times"
    if column.dtype in (pl.String, pl.Categorical):
        words, column = _words(column), column.cast(pl.String)
        column = numerals.plain(words)
        if column.null_count() > words.null_count():
            column = pl.select(pl.coalesce(words.str.to_datetime(form, strict=False) for form in _FORMATS)).to_series()
        if (wrong := column.is_null() & words.is_not_null()).any():
            text = f"{in_rows(wrong)} no times; write hours or 2150-01-31 12:00:00"
            raise UserError(f"E009 column {words.name!r} ({name}): {text}")
    if column.dtype.is_numeric():
        return column.cast(pl.Float64).fill_nan(None), "numbers of hours"
    if column.dtype not in (pl.Date, pl.Datetime):
        raise UserError(f"E009 column {column.name!r} ({name}) holds {column.dtype}, not times or hours")
    if getattr(column.dtype, "time_zone", None):
        form, column = "times of a zone", column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return column.cast(pl.Datetime("us")).cast(pl.Int64) / _HOUR, form


def _read(
    name: str, options: Mapping[str, Any], seen: pl.DataFrame, events: pl.DataFrame
) -> tuple[pl.DataFrame, list[Finding]]:
    """Adds code and value to events that are used, and finds those that cannot be (E009)."""
    odd, column, values = options.get("odd", "refuse"), options.get("value"), pl.lit(None, pl.Float64)
    codes = _words(events[options["code"]].gather(seen["event"]))
    wrong = [(options["code"], codes.is_null(), "empty; each event needs a code", True)]
    if column:
        values, words = _numbers(events[column].gather(seen["event"]), odd)
        large = (values.abs() > np.finfo(np.float32).max).fill_null(False)
        remedy = "read as none" if odd != "refuse" else "fix or empty them, or say odd: missing in the entry"
        wrong.append((column, words, f"not a number; {remedy}", odd == "refuse"))
        wrong.append((column, large, "infinite or beyond float32; empty them", True))
    found = [
        Finding("E009", f"column {column!r} ({name}): {_at(seen['event'].filter(mask), events)} {text}", fatal)
        for column, mask, text, fatal in wrong
        if mask.any()
    ]
    return seen.select("row", "hours", code=codes, value=values), found


def _numbers(column: pl.Series, odd: str) -> tuple[pl.Series, pl.Series]:
    """Returns values as Float64 [n], null where there is none, and which cells are no numbers, bool [n]."""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        values = column.cast(pl.Float64).fill_nan(None)
        return values, values.is_null() & False
    words = _words(column)
    values = numerals.plain(words) if odd == "refuse" else numerals.numbers(words, odd == "limit").values
    return values, values.is_null() & words.is_not_null()


def _at(places: pl.Series, table: pl.DataFrame) -> str:
    """Says in which rows of a table something is."""
    mask = np.zeros(table.height, bool)
    mask[places.to_numpy()] = True
    return in_rows(mask)


def cells(seen: pl.DataFrame, rows: int, most: int) -> pl.Series:
    """Puts the newest `most` events of each row, of a frame with `row` and `FIELDS`, into its cell, [rows]."""
    every = pl.DataFrame({"row": pl.int_range(rows, dtype=pl.UInt32, eager=True)})
    seen = (
        seen.sort("row", *FIELDS).group_by("row", maintain_order=True).agg(pl.struct(*FIELDS).tail(most).alias("cell"))
    )
    return every.join(seen, on="row", how="left", maintain_order="left")["cell"].cast(CELLS)
