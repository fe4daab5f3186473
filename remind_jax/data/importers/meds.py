"""Events and labels of the Medical Event Data Standard."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import labels as classes
from remind_jax.data.files import read_parquet
from remind_jax.data.findings import in_rows, listed
from remind_jax.data.importers.modalities import columns_of
from remind_jax.data.importers.table import SPLITS, Imported, schema_of, without_empty
from remind_jax.data.kinds import long_table
from remind_jax.data.kinds.events import MOST
from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import table_of
from remind_jax.data.tables import read_table
from remind_jax.errors import UserError, did_you_mean

_EARLIEST, _LATEST = -62_135_596_800_000_000, 253_402_300_799_999_999  # microseconds of the years 1 to 9999
VALUES = ("boolean_value", "integer_value", "categorical_value", "float_value")
"""Columns that labels stand in; the first that has any is taken."""
_COLUMNS = ("subject_id", "time", "code", "numeric_value", "text_value")


def read(folder: pathlib.Path, labels: str, *, name: str, **options: Any) -> Imported:
    """Reads a folder with `data` and, where there are splits, `metadata/subject_splits.parquet`.

    The labels are a parquet file or a folder of them. Other arguments are as for `from_meds`.

    Raises UserError: as for `from_meds`, or files are missing or cannot be read.
    """
    if not labels:
        raise UserError("no labels: give a parquet file, or a folder of them, as --labels=PATH")
    place, splits = pathlib.Path(labels), folder / "metadata" / "subject_splits.parquet"
    files = sorted((folder / "data").rglob("*.parquet"))
    label_files = sorted(place.rglob("*.parquet")) if place.is_dir() else [place]
    if not files or not all(file.is_file() for file in label_files) or not label_files:
        raise UserError(f"{folder}/data or {place} holds no parquet files: these are no MEDS events with labels")
    try:
        label_tables = [read_parquet(file) for file in label_files]
        split_table = read_parquet(splits) if splits.is_file() else None
    except ValueError as error:
        raise UserError(f"the labels or splits of {folder} cannot be read as parquet ({error})") from None
    try:
        joined = pl.concat(label_tables, how="diagonal_relaxed")
        subjects = joined.select(_id()) if "subject_id" in joined.columns else None
        events = pl.concat([_events(file, folder, subjects) for file in files]).lazy()
        return from_meds(events, joined, name=name, splits=split_table, **options)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise UserError(f"{folder} is not as MEDS says ({type(error).__name__})") from None


def from_meds(
    events: pl.LazyFrame,
    labels: pl.DataFrame,
    *,
    name: str,
    splits: pl.DataFrame | None = None,
    modalities: Mapping[str, Sequence[str]] | None = None,
    columns: int = 64,
    kinds: Mapping[str, str] | None = None,
) -> Imported:
    """Makes a manifest of events and labels of the Medical Event Data Standard 0.3 and 0.4.

    A sample is a label: subject and prediction time. It has the events at or before that time and those without a time.
    The codes that begin with one of a modality's prefixes become up to three modalities: `<name>_values` (the last
    number of each of the most frequent codes, at most `columns`), `<name>_codes` (codes without a number, newest first,
    each once) and `<name>_text` (texts, newest first). Where `kinds` says `events` of one, its newest events with their
    values are `<name>_events`, and codes are those without a time.

    `events` have `subject_id`, `time`, `code` and, where there are any, `numeric_value` and `text_value`; `labels` have
    `subject_id`, `prediction_time`, and values in one of `VALUES`; `splits` `subject_id` and `split`. Other columns are
    of no account. `modalities` are prefixes of codes by name, by default one modality `events` of all codes.

    Raises UserError: a column is not there, the labels are no classes, or no sample has an event.
    """
    events = _shard(events)
    if lacking := [c for c in ("subject_id", "prediction_time") if c not in labels.columns]:
        raise UserError(f"these are no MEDS events with labels: {', '.join(lacking)} is not there")
    value = next((v for v in VALUES if v in labels.columns and labels[v].count()), None)
    if value is None:
        raise UserError(f"these are no MEDS events with labels: none of {', '.join(VALUES)} has values")
    given = classes.read(labels[value].alias("label"))
    samples = labels.with_columns(given.cells, _id(), _time(labels.schema, "prediction_time"))
    samples = samples.drop_nulls(["subject_id", "label"]).sort("subject_id", "prediction_time").with_row_index("row")
    whole = samples["prediction_time"].cast(pl.Int64)
    if (outside := ((whole < _EARLIEST) | (whole > _LATEST)).fill_null(False)).any():
        raise UserError(f"column prediction_time: {in_rows(outside)} before the year 1 or after 9999: mend the labels")
    notes = [f"{n:,} labels without a value are left out"] if (n := labels.height - samples.height) else []
    table = samples.select(
        pl.format("{}_{}", "subject_id", pl.int_range(pl.len()).over("subject_id")).alias("sample_id"),
        pl.col("subject_id").cast(pl.String).alias("patient_id"),
        pl.col("label"),
        pl.col("prediction_time"),  # which only `for_evaluation` reads
    )
    if splits is not None:
        named = splits.select(_id(), pl.col("split").cast(pl.String).replace(SPLITS))
        table = table.with_columns(samples.join(named, on="subject_id", how="left", maintain_order="left")["split"])
        samples = samples.with_columns(table["split"])
    known = samples.select("row", "subject_id", "prediction_time", *(["split"] if splits is not None else []))
    seen = events.join(known.lazy(), on="subject_id").filter(
        pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time"))
    )
    seen = seen.sort("time", nulls_last=False, maintain_order=True).collect()
    schema: dict[str, Any] = {}
    parts = modalities or {"events": ("",)}
    if wrong := [name for name, kind in (kinds or {}).items() if name not in parts or kind != "events"]:
        hint = did_you_mean(wrong[0], parts)
        raise UserError(f"--kind={wrong[0]}=… is none that MEDS events have{hint}: give --kind=MODALITY=events")
    for part, prefixes in parts.items():
        inside = seen.filter(pl.any_horizontal(pl.col("code").str.starts_with(prefix) for prefix in prefixes))
        made = (_values(part, inside, columns), _words(part, inside))
        if part in (kinds or {}):
            words = inside.filter(pl.col("time").is_null() | pl.col("text_value").is_not_null())
            made = (_sets(part, inside.drop_nulls(["time", "code"]), table.height), _words(part, words))
        for wide, entries in made:
            table = table.with_row_index("row").join(wide, on="row", how="left", maintain_order="left").drop("row")
            schema |= entries
    used = [c for entry in schema.values() for c in columns_of(entry)]
    if not used:
        raise UserError("no sample has an event at or before its prediction time: check subject_id, times and prefixes")
    table, empty = without_empty(table, used)
    notes += [*given.notes, *empty]
    notes.append("events at the prediction time itself are input: make sure that none of them is the outcome")
    split = "split" if splits is not None else None
    there = set(table["label"].unique())
    found = schema_of(name, "label", [name for name in given.classes if name in there], schema, split)
    return Imported(table, found, notes)


def _events(file: pathlib.Path, folder: pathlib.Path, subjects: pl.DataFrame | None) -> pl.DataFrame:
    """Reads the events of a shard, those of some subjects; raises UserError: it is no shard, or is damaged."""
    try:
        events = _shard(read_parquet(file, below=folder, columns=_COLUMNS).lazy())
    except ValueError as error:
        raise UserError(f"{file} cannot be read as parquet ({error})") from None
    return (events if subjects is None else events.join(subjects.lazy(), on="subject_id", how="semi")).collect()


def for_evaluation(data: pathlib.Path, manifest: Manifest) -> Callable[[np.ndarray], pl.DataFrame]:
    """Reads what meds-evaluation needs beside predictions of a folder or a table that `from_meds` has made.

    Returns a function from probabilities, [n, 2], one row a row of the manifest that was read from the data, to a frame
    with `subject_id` Int64, `prediction_time` Datetime (us), `boolean_value` Boolean, null without a label,
    `predicted_boolean_value` Boolean and `predicted_boolean_probability` Float64.

    Raises UserError: the classes are not true and false in some form, or a subject or a time cannot be read.
    """
    schema, table = manifest.schema, read_table(table_of(data) if data.is_dir() else data)
    if (true := classes.positive(schema.classes)) is None:
        raise UserError(
            f"meds-evaluation knows true and false alone, the classes are {listed(schema.classes)}: leave out --as=meds"
        )
    if "prediction_time" not in table.columns:
        raise UserError(f"{data} has no column prediction_time; remind import --from=meds writes it")
    time = table["prediction_time"]
    if time.dtype == pl.String:
        time = time.str.to_datetime(time_unit="us", strict=False)
    subject = manifest.table[schema.patient_id].cast(pl.Int64, strict=False)
    for cells, what in ((subject, f"column {schema.patient_id!r}"), (time, "column 'prediction_time'")):
        if cells.has_nulls():
            raise UserError(
                f"{what}: {in_rows(cells.is_null())} not of MEDS: subjects are integers, times as 2020-01-31T12:00:00"
            )
    known = {
        "subject_id": subject,
        "prediction_time": time.cast(pl.Datetime("us")),
        "boolean_value": manifest.table[schema.label] == schema.classes[true],
    }

    def frame(probabilities: np.ndarray) -> pl.DataFrame:
        predicted = pl.Series(probabilities.argmax(axis=1) == true)
        probability = pl.Series(probabilities[:, true], dtype=pl.Float64)
        said = {"predicted_boolean_value": predicted, "predicted_boolean_probability": probability}
        return pl.DataFrame(known | said)

    return frame


def _shard(events: pl.LazyFrame) -> pl.LazyFrame:
    """Returns the columns that are used, in the types of the standard: shards may have others, wider or none."""
    schema = events.collect_schema()
    if lacking := [c for c in ("subject_id", "time", "code") if c not in schema]:
        raise UserError(f"these are no MEDS events with labels: {', '.join(lacking)} is not there")
    if nested := [c for c in _COLUMNS if c in schema and schema[c].is_nested()]:  # of which polars panics
        raise UserError(f"these are no MEDS events: cells of {nested[0]} hold lists or structures")
    rest = {"code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
    others = [(pl.col(c) if c in schema else pl.lit(None)).cast(dtype).alias(c) for c, dtype in rest.items()]
    return events.select(_id(), _time(schema, "time"), *others)


def _id() -> pl.Expr:
    return pl.col("subject_id").cast(pl.Int64)


def _time(schema: Mapping[str, Any], column: str) -> pl.Expr:
    """Returns a time of any unit or zone in microseconds without a zone. Raises UserError: it is no time."""
    if not (schema[column].is_temporal() or schema[column] in (pl.String, pl.Null)):
        raise UserError(f"column {column} holds {schema[column]}, not times")
    time = pl.col(column)
    if getattr(schema[column], "time_zone", None):
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return time.cast(pl.Datetime("us"))


def _values(part: str, events: pl.DataFrame, columns: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Returns a row a sample with the last number of each frequent code, and the modality."""
    numbers = events.filter(pl.col("numeric_value").is_finite())  # a NaN hides no number before it
    fitted = numbers.filter(pl.col("split") == "train") if "split" in numbers.columns else numbers
    subjects = fitted.group_by("code").agg(pl.col("subject_id").n_unique().alias("n"))
    codes = subjects.sort("n", "code", descending=[True, False])["code"].head(columns).to_list()
    if not codes:
        return pl.DataFrame({"row": pl.Series([], dtype=pl.UInt32)}), {}
    last = numbers.filter(pl.col("code").is_in(codes)).group_by("row", "code", maintain_order=True).last()
    wide = last.pivot("code", index="row", values="numeric_value").select("row", *codes)
    names = {code: f"{part}:{code}" for code in codes}
    return wide.rename(names), {f"{part}_values": {"kind": "tabular", "columns": list(names.values())}}


def _sets(part: str, events: pl.DataFrame, rows: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Returns a row a sample with its events, and the modality."""
    hours = (pl.col("time") - pl.col("prediction_time").cast(pl.Datetime("us"))).dt.total_microseconds() / 3.6e9
    value = pl.when(pl.col("numeric_value").is_finite()).then(pl.col("numeric_value").cast(pl.Float64))
    cells, column = (
        long_table.cells(events.select("row", "code", hours=hours, value=value), rows, MOST),
        f"{part}_events",
    )
    wide = pl.DataFrame({"row": pl.int_range(rows, dtype=pl.UInt32, eager=True), column: cells})
    return wide, {column: {"kind": "events", "column": column}} if cells.count() else {}


def _words(part: str, events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Returns a row a sample with codes and texts, newest first, and the modalities."""
    newest = events.reverse()
    text = pl.col("text_value")
    found = newest.group_by("row", maintain_order=True).agg(
        pl.col("code")
        .filter(pl.col("numeric_value").is_null() & text.is_null())
        .str.replace_all(r"\s+", "_")
        .unique(maintain_order=True)
        .str.join(" ")
        .replace("", None)
        .alias(f"{part}_codes"),
        text.drop_nulls().str.join("\n").replace("", None).alias(f"{part}_text"),
    )
    kinds = {f"{part}_codes": "codes", f"{part}_text": "text"}
    kept = {c: kind for c, kind in kinds.items() if found[c].is_not_null().any()}
    return found.select("row", *kept), {c: {"kind": kind, "column": c} for c, kind in kept.items()}
