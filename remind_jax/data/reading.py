"""Manifests from what people have: a folder with schema.yaml and a table, a single table, or a frame in memory."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import check, files
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema, read_schema
from remind_jax.errors import UserError, did_you_mean

BAD_FILES = ("refuse", "missing")
SPLIT_ALIASES = {"val": "tuning", "test": "held_out"}
_MAX_ROWS = 20_000_000  # of a parquet file, whose size does not tell
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")  # gzip, zstd, zlib


def read_manifest(
    folder: str | pathlib.Path, *, image_size: int = 224, frames: int = 16, bad_files: str = "refuse"
) -> Manifest:
    """Reads `schema.yaml` and `manifest.csv` or `manifest.parquet`, and looks at every file they name.

    Words that people write for "missing" (NA, None, …) become null and are counted in the manifest's notes.

    Args:
      folder: the manifest's folder.
      image_size: height and width that images and the frames of volumes are resized to.
      frames: the length that volumes are resized to.
      bad_files: `refuse` (E007), or `missing`: the cell of a file that cannot be read becomes null, which a note counts
        (W106); every image and volume is then decoded once to find out, else only its header is read.

    Raises:
      UserError: the schema, the table or a file cannot be used; one line with the codes of `check`.
    """
    manifest = load_manifest(
        folder, image_size=image_size, frames=frames, bad_files=bad_files, thorough=bad_files == "missing"
    )
    check.refuse(manifest.notes)
    return manifest


def load_manifest(
    folder: str | pathlib.Path,
    *,
    image_size: int = 224,
    frames: int = 16,
    bad_files: str = "refuse",
    thorough: bool = True,
    count: Callable[[int, int], None] | None = None,
) -> Manifest:
    """`read_manifest` that keeps the fatal findings about cells and files in `notes` instead of raising them.

    Args:
      folder, image_size, frames, bad_files: as for `read_manifest`.
      thorough: decode every image and volume, not only its header.
      count: called with how many files of a column were read, and of how many.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        hint = f"; a table becomes one by python -m remind_jax.import_data --from=table --source={folder}"
        wrong = f"is not a folder{hint}" if root.exists() else "does not exist"
        raise UserError(f"data folder {str(folder)!r} {wrong}")
    if image_size < 1 or frames < 1:
        raise UserError(f"data.image_size and data.frames must be positive: {image_size}, {frames}")
    if bad_files not in BAD_FILES:
        raise UserError(f"data.bad_files must be {' or '.join(BAD_FILES)}, not {bad_files!r}")
    schema = read_schema(root / "schema.yaml", image_size, frames)
    return _typed(schema, _read_table(_table_of(root)), root, thorough, bad_files, count=count)


def _typed(
    schema: Schema,
    table: pl.DataFrame,
    root: pathlib.Path,
    thorough: bool,
    bad_files: str,
    notes: Sequence[Finding] = (),
    count: Callable[[int, int], None] | None = None,
) -> Manifest:
    """The columns that a schema names in the types that `Manifest` promises; what was found joins the notes."""
    check.refuse(check.absent_columns(schema, table.columns))
    notes = list(notes)
    series = {name: table[name] for _, name in schema.columns()}
    for name in (schema.sample_id, schema.patient_id, schema.label, *([schema.split] if schema.split else [])):
        series[name] = _trim(_as_string(series[name]))
    if schema.split is not None:
        series[schema.split] = series[schema.split].replace(SPLIT_ALIASES)
    modalities, records = [], {}
    for modality in schema.modalities:
        if modality.kind == "embedding" and modality.stored == "":
            nested = series[modality.columns[0]].dtype.is_nested()
            modality = dataclasses.replace(modality, stored="cell" if nested else "file")
        modalities.append(modality)
        for name in (*modality.columns, *modality.categorical):
            series[name], found = _type_column(modality, series[name], name in modality.categorical)
            notes += found
        if modality.stored == "file":
            name = modality.columns[0]
            scan = files.scan_files(root, modality, series[name], thorough=thorough, bad_files=bad_files, count=count)
            series[name] = scan.cells
            records |= scan.records
            notes += scan.findings
    schema = dataclasses.replace(schema, modalities=tuple(modalities))
    return Manifest(schema, pl.DataFrame(series), root, schema.name, tuple(notes), records)


def read_new(
    data: str | pathlib.Path | Any,
    schema: Schema,
    *,
    image_size: int,
    frames: int,
    bad_files: str = "refuse",
    count: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Rows to predict: label, split, patient and sample ids, and all columns of a modality, may be absent.

    Args:
      data: a manifest's folder, in which schema.yaml may be absent; a CSV or parquet file, whose paths start from its
        folder; or a polars or pandas frame, whose paths start from the current folder.
      schema: what columns mean where the data have no schema.yaml.
      image_size, frames, bad_files, count: as for `load_manifest`.

    Returns:
      A manifest without splits. Labels may be null; rows without sample ids are counted from 1; each row without
      patient ids is a patient.

    Raises:
      UserError: the rows cannot be used, in one line with the codes of `check`.
    """
    root = pathlib.Path()
    if isinstance(data, str | pathlib.Path):
        path = pathlib.Path(data)
        if not path.exists():
            raise UserError(f"data {str(path)!r} do not exist: give a manifest folder, a CSV or a parquet file")
        root = path if path.is_dir() else path.parent
        if path.is_dir() and (path / "schema.yaml").is_file():
            schema = read_schema(path / "schema.yaml", image_size, frames)
        table = _read_table(_table_of(path) if path.is_dir() else path)
    else:
        table = _as_polars(data)
    schema, table, notes = _completed(schema, table)
    manifest = _typed(schema, table, root, bad_files == "missing", bad_files, notes, count)
    findings = check.find_problems_of_new(manifest)
    check.refuse(findings)
    return dataclasses.replace(manifest, notes=tuple(findings))


def _as_polars(frame: Any) -> pl.DataFrame:
    """A polars frame as it is, a pandas one column by column, its kinds of missing values as null."""
    if isinstance(frame, pl.DataFrame):
        return frame
    if not all(hasattr(frame, name) for name in ("columns", "iloc")):
        raise UserError(f"data must be a path or a polars or pandas frame, not {type(frame).__name__}")
    columns = [frame.iloc[:, i] for i in range(len(frame.columns))]
    cells = [(str(x.name), x.astype(object).where(x.notna(), None).tolist()) for x in columns]
    return pl.DataFrame([pl.Series(name, values, strict=False) for name, values in cells])


def _completed(schema: Schema, table: pl.DataFrame) -> tuple[Schema, pl.DataFrame, list[Finding]]:
    """Rows to predict with the columns that they may lack, and warnings of modalities that no row has."""

    def absent(names: Sequence[str]) -> bool:
        return not set(names) & set(table.columns)

    empty, notes = pl.lit(None, pl.String), []
    # A schema of a run tells how its own data were stored; new ones may hold files in place of values.
    stored = {"embedding": "", "image": "file", "volume": "file"}
    modalities = [dataclasses.replace(each, stored=stored.get(each.kind, each.stored)) for each in schema.modalities]
    lacking = [each for each in modalities if absent((*each.columns, *each.categorical))]
    schema = dataclasses.replace(schema, modalities=tuple(modalities), split=None)
    if len(lacking) == len(modalities):
        return schema, table, []  # as wrong a table as can be, which the checks say better
    added = {schema.label: empty, **{c: empty for each in lacking for c in (*each.columns, *each.categorical)}}
    added |= {schema.sample_id: pl.int_range(1, pl.len() + 1)} if absent([schema.sample_id]) else {}
    table = table.with_columns(**{name: value for name, value in added.items() if name not in table.columns})
    if schema.patient_id not in table.columns:
        table = table.with_columns(pl.col(schema.sample_id).alias(schema.patient_id))
    for each in lacking:
        hint = did_you_mean((*each.columns, *each.categorical)[0], table.columns)
        text = f"no column of the modality {each.name!r} is in the table{hint}; it is missing in all rows"
        notes.append(Finding("W108", text, False))
    return schema, table, notes


def _table_of(root: pathlib.Path) -> pathlib.Path:
    paths = [path for path in (root / "manifest.csv", root / "manifest.parquet") if path.is_file()]
    if len(paths) != 1:
        raise UserError(f"{root}: needs manifest.csv or manifest.parquet, and has {'both' if paths else 'neither'}")
    return paths[0]


def _read_table(path: pathlib.Path) -> pl.DataFrame:
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} must be a .csv or a .parquet file")
    with path.open("rb") as file:
        start = file.read(4)
    if path.suffix == ".csv" and start.startswith(_COMPRESSED):
        raise UserError(f"{path} is compressed; unpack it, so that its size can be seen")
    try:
        table = files.read_table(path, _MAX_ROWS)
    except ValueError as error:
        kind = "UTF-8 CSV whose rows fit the header" if path.suffix == ".csv" else "parquet"
        raise UserError(f"{path} cannot be read as {kind} ({error})") from None
    if any(len(name) > 100 or not name.isprintable() for name in table.columns):
        raise UserError(f"{path}: its header is not a line of short names; look for a quote that is not closed")
    double = [name.rsplit("_duplicated_", 1)[0] for name in table.columns if re.search(r"_duplicated_\d+$", name)]
    if double:
        raise UserError(f"{path} has two columns named {double[0]!r}")
    return table


def _as_string(column: pl.Series) -> pl.Series:
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        raise UserError(f"column {column.name!r} holds {column.dtype}; it must hold single values")
    if column.dtype.is_float() and ((column.round() == column) | column.is_null() | column.is_nan()).all():
        # Integers with holes come out of pandas as floats; "1.0" would match no class.
        column = column.fill_nan(None).cast(pl.Int64, strict=False)
    return column.cast(pl.String)


def _trim(column: pl.Series) -> pl.Series:
    """Without blanks around; blank cells become null."""
    column = column.str.strip_chars()
    return column.set((column == "").fill_null(False), None)


def _type_column(modality: Modality, column: pl.Series, categorical: bool) -> tuple[pl.Series, list[Finding]]:
    """One modality's column in the type that `Manifest` promises, and what had to be done or refused."""
    where = f"column {column.name!r} ({modality.name}): "
    if modality.kind == "embedding" and modality.stored == "cell":
        return _type_embedding(column, where)
    numeric = modality.kind == "tabular" and not categorical
    if numeric and (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        values = column.cast(pl.Float64)
        words = values.is_nan().fill_null(False)
        return values.fill_nan(None), _normalised(words, where)
    column = _as_string(column)
    words = check.looks_missing(column)
    column = column.set(words, None)
    notes = _normalised(words, where)
    if not numeric:
        return (column.str.strip_chars() if categorical else column), notes
    values = column.str.strip_chars().cast(pl.Float64, strict=False)
    wrong = values.is_null() & column.is_not_null()
    if wrong.any():
        text = f"{where}{in_rows(wrong)} not a number; mend or empty them, or declare the column categorical"
        notes.append(Finding("E009", text, True))
    return values, notes


def _normalised(words: pl.Series, where: str) -> list[Finding]:
    text = f"{where}{in_rows(words)} blank or a word for missing (NA, None, …), read as missing; leave them empty"
    return [Finding("E009", text, False)] if words.any() else []


def _type_embedding(column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
    """Nested lists as `Array(Float32, (t, d))`; all null with an E008 when they have not one shape."""
    dtype, depth = column.dtype, 0
    while dtype.is_nested() and hasattr(dtype, "inner"):
        dtype, depth = dtype.inner, depth + 1
    values = _rectangular(column.drop_nulls(), dtype) if depth == 2 and dtype.is_numeric() else None
    if values is None:
        text = f"{where}cells must be lists [t, d] of numbers, all of one shape and without nulls; reshape them"
        return pl.Series(column.name, [None] * column.len(), pl.String), [Finding("E008", text, True)]
    index = pl.Series([None] * column.len(), dtype=pl.Int64)
    here = np.flatnonzero(column.is_not_null())
    index[here] = np.arange(len(here))
    return pl.Series(column.name, values).gather(index), []


def _rectangular(present: pl.Series, dtype: pl.DataType) -> np.ndarray | None:
    """Nested lists as float32 [n, t, d], or None when they are ragged or hold nulls."""
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
