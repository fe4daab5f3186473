"""The manifest: the one form in which every data set, the user's own included, enters the program.

A manifest is a table with one row a sample and a schema that says what each column is. Nothing after this module
knows which data set it is looking at. `check` says what can be wrong with one.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
import yaml

from remind_jax.data import check
from remind_jax.errors import UserError, did_you_mean

KINDS = ("tabular", "text", "codes", "embedding")
LATER_KINDS = ("image", "volume")
SPLIT_ALIASES = {"val": "tuning", "test": "held_out"}
_RESERVED = ("present", "group", "label", "row", "weight")  # keys beside the modalities in decoded and encoded batches
_KEYS = {
    "tabular": ("kind", "columns", "categorical"),
    "text": ("kind", "column", "stored"),
    "codes": ("kind", "column"),
    "embedding": ("kind", "column", "stored"),
}


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality of a data set.

    Attributes:
      name: as written in tables and reports.
      kind: one of `KINDS`.
      columns: the numeric columns of a tabular modality; the one column of the other kinds.
      categorical: the string columns of a tabular modality.
      stored: `cell` (the table holds the value) or `file` (the table holds a path relative to the manifest's folder).
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    stored: str = "cell"


@dataclasses.dataclass(frozen=True)
class Schema:
    """What the columns of a manifest mean."""

    name: str
    sample_id: str
    patient_id: str
    label: str
    classes: tuple[str, ...]
    modalities: tuple[Modality, ...]
    split: str | None = None

    def columns(self) -> Iterator[tuple[str, str]]:
        """What names a column, and the column, for every column the schema names."""
        yield from (("sample_id", self.sample_id), ("patient_id", self.patient_id), ("label", self.label))
        if self.split is not None:
            yield "split", self.split
        for modality in self.modalities:
            for column in (*modality.columns, *modality.categorical):
                yield f"modality {modality.name}", column


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A schema and its table; a null cell means missing, nothing else does.

    Attributes:
      schema: what each column is.
      table: one row a sample; numeric columns are Float64, text, codes, categories and paths String, embeddings held
        in cells `Array(Float32, (t, d))`, the label a String out of `schema.classes`.
      root: the folder that relative paths in the table start from; None for a table made in memory.
      title: how reports name the data, for example "twin of MIMIC-IV (synthetic)".
      notes: what reading the folder found, for `check.find_problems` to pass on.
      files: a record of every sound file the table names, by path as written.
    """

    schema: Schema
    table: pl.DataFrame
    root: pathlib.Path | None = None
    title: str = ""
    notes: tuple[check.Finding, ...] = ()
    files: Mapping[str, check.FileRecord] = dataclasses.field(default_factory=dict)

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
            raise UserError(f"E005 {check.in_rows(labels < 0)} without a label out of the declared classes")
        return labels

    @functools.cached_property
    def digest(self) -> str:
        """Sha256 (hex) of the schema, every cell in row order, and the content of the files the cells name."""
        sha = hashlib.sha256(json.dumps(dataclasses.asdict(self.schema), sort_keys=True).encode())
        files = {m.columns[0] for m in self.schema.modalities if m.stored == "file"}
        for _, column in self.schema.columns():
            cells = self.table[column]
            sha.update(np.packbits(cells.is_null().to_numpy()).tobytes())
            sha.update(_cell_bytes(cells))
            if column in files:
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
    return np.ascontiguousarray(
        cells.drop_nulls().to_numpy().astype("<f8" if cells.dtype.is_numeric() else "<f4")
    ).tobytes()


# ---- raw columns ----------------------------------------------------------------------------------------------------


def decode(manifest: Manifest, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Raw columns of some rows; files are read here.

    Args:
      manifest: the data.
      rows: int [n], row numbers from 0.

    Returns:
      for a tabular modality `name/numeric` float32 [n, p], NaN where empty, and, when it has categorical columns,
      `name/categorical` object [n, q] of str, '' where empty; for text and codes `name` object [n] of str, '' where
      missing; for an embedding `name` float32 [n, t, d], zeros where missing ([n, 0, 0] when no row of the manifest
      has one); `present` bool [n, m], `label` int32 [n], `row` int32 [n].
    """
    rows = np.asarray(rows, np.int64)
    raw: dict[str, np.ndarray] = {}
    for modality in manifest.schema.modalities:
        if modality.kind == "tabular":
            raw |= _decode_tabular(manifest, modality, rows)
        elif modality.kind == "embedding":
            raw[modality.name] = _decode_embedding(manifest, modality, rows)
        else:
            cells = manifest.table[modality.columns[0]].gather(rows).to_list()
            if modality.stored == "file":
                cells = [None if cell is None else _load(manifest, cell, check.read_text) for cell in cells]
            raw[modality.name] = _strings(cells)
    return raw | {"present": manifest.presence[rows], "label": manifest.labels[rows], "row": rows.astype(np.int32)}


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
    shape = _load(manifest, first[0], check.read_array).shape if first else (0, 0)
    values = np.zeros((len(rows), *shape), np.float32)
    for i, cell in zip(np.flatnonzero(here), cells.drop_nulls().to_list(), strict=True):
        values[i] = _load(manifest, cell, check.read_array)
    return values


def _strings(cells: list[str | None]) -> np.ndarray:
    return np.array(["" if cell is None else cell for cell in cells], object)


def _load(manifest: Manifest, cell: str, read: Callable[[pathlib.Path], Any]) -> Any:
    """Reads a file the table names; files and links may have been changed since the manifest was read."""
    try:
        return read(check.safe_path(manifest.root, cell))
    except (ValueError, OSError) as error:
        reason = type(error).__name__
        raise UserError(f"E007 a file of the manifest cannot be read any more ({reason}); check the folder") from None


# ---- reading a folder -----------------------------------------------------------------------------------------------


def read_manifest(folder: str | pathlib.Path) -> Manifest:
    """Reads `schema.yaml` and `manifest.csv` or `manifest.parquet`, and looks at every file they name.

    Words that people write for "missing" (NA, None, …) become null and are counted in the manifest's notes.

    Raises:
      UserError: the schema, the table or a file cannot be used; one line with the codes of `check`.
    """
    manifest = load_manifest(folder)
    check.refuse(manifest.notes)
    return manifest


def load_manifest(folder: str | pathlib.Path) -> Manifest:
    """`read_manifest` that keeps the fatal findings about cells and files in `notes` instead of raising them."""
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise UserError(f"data folder {str(folder)!r} does not exist or is not a folder")
    schema = _read_schema(root / "schema.yaml")
    table = _read_table(root)
    check.refuse(check.absent_columns(schema, table.columns))
    notes: list[check.Finding] = []
    series = {name: table[name] for _, name in schema.columns()}
    for name in (schema.sample_id, schema.patient_id, schema.label, *([schema.split] if schema.split else [])):
        series[name] = _trim(_as_string(series[name]))
    if schema.split is not None:
        series[schema.split] = series[schema.split].replace(SPLIT_ALIASES)
    modalities, files = [], {}
    for modality in schema.modalities:
        if modality.kind == "embedding" and modality.stored == "":
            nested = series[modality.columns[0]].dtype.is_nested()
            modality = dataclasses.replace(modality, stored="cell" if nested else "file")
        modalities.append(modality)
        for name in (*modality.columns, *modality.categorical):
            series[name], found = _type_column(modality, series[name], name in modality.categorical)
            notes += found
        if modality.stored == "file":
            records, found = check.scan_files(root, modality, series[modality.columns[0]])
            files |= records
            notes += found
    schema = dataclasses.replace(schema, modalities=tuple(modalities))
    return Manifest(schema, pl.DataFrame(series), root, schema.name, tuple(notes), files)


def _read_table(root: pathlib.Path) -> pl.DataFrame:
    paths = [path for path in (root / "manifest.csv", root / "manifest.parquet") if path.is_file()]
    if len(paths) != 1:
        raise UserError(f"{root}: needs manifest.csv or manifest.parquet, and has {'both' if paths else 'neither'}")
    path = paths[0]
    try:
        # All strings first: guessing types would turn codes such as 0401 into numbers.
        table = pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        kind = "UTF-8 CSV whose rows fit the header" if path.suffix == ".csv" else "parquet"
        raise UserError(f"{path} cannot be read as {kind} ({type(error).__name__})") from None
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


def _type_column(modality: Modality, column: pl.Series, categorical: bool) -> tuple[pl.Series, list[check.Finding]]:
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
        text = f"{where}{check.in_rows(wrong)} not a number; mend or empty them, or declare the column categorical"
        notes.append(check.Finding("E009", text, True))
    return values, notes


def _normalised(words: pl.Series, where: str) -> list[check.Finding]:
    text = f"{where}{check.in_rows(words)} blank or a word for missing (NA, None, …), read as missing; leave them empty"
    return [check.Finding("E009", text, False)] if words.any() else []


def _type_embedding(column: pl.Series, where: str) -> tuple[pl.Series, list[check.Finding]]:
    """Nested lists as `Array(Float32, (t, d))`; all null with an E008 when they have not one shape."""
    dtype, depth = column.dtype, 0
    while dtype.is_nested() and hasattr(dtype, "inner"):
        dtype, depth = dtype.inner, depth + 1
    values = _rectangular(column.drop_nulls(), dtype) if depth == 2 and dtype.is_numeric() else None
    if values is None:
        text = f"{where}cells must be lists [t, d] of numbers, all of one shape and without nulls; reshape them"
        return pl.Series(column.name, [None] * column.len(), pl.String), [check.Finding("E008", text, True)]
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


# ---- schema.yaml ----------------------------------------------------------------------------------------------------


def _read_schema(path: pathlib.Path) -> Schema:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: a manifest folder needs schema.yaml") from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        place = getattr(error, "problem_mark", None)
        raise UserError(f"{path} is not YAML{f' (line {place.line + 1})' if place else ''}") from None
    try:
        return _parse_schema(content)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None


def _parse_schema(content: object) -> Schema:
    keys = ("version", "name", "sample_id", "patient_id", "label", "split", "modalities")
    top = _mapping(content, "the file", keys, ("split",))
    if top["version"] != 1 or isinstance(top["version"], bool):
        raise UserError(f"version must be 1, not {top['version']!r}")
    label = _mapping(top["label"], "label", ("column", "classes"))
    classes = label["classes"]
    if not isinstance(classes, list) or not all(type(name) in (str, int) for name in classes):
        raise UserError("label.classes must be a list of strings; put yes, no, on, off and decimals in quotes")
    classes = tuple(str(name).strip() for name in classes)
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(c and c.isprintable() for c in classes):
        raise UserError("label.classes needs at least two different names, each one line")
    if not isinstance(entries := top["modalities"], dict) or not entries:
        raise UserError("modalities must be a mapping from names to descriptions")
    schema = Schema(
        name=_string(top["name"], "name"),
        sample_id=_string(top["sample_id"], "sample_id"),
        patient_id=_string(top["patient_id"], "patient_id"),
        label=_string(label["column"], "label.column"),
        classes=classes,
        modalities=tuple(_parse_modality(name, entry) for name, entry in entries.items()),
        split=None if top.get("split") is None else _string(top["split"], "split"),
    )
    owners: dict[str, str] = {}
    for owner, column in schema.columns():
        if column in owners and (owner, owners[column]) != ("patient_id", "sample_id"):
            raise UserError(f"column {column!r} is used twice, by {owners[column]} and {owner}")
        owners[column] = owner
    return schema


def _parse_modality(name: object, entry: object) -> Modality:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in _RESERVED:
        raise UserError(f"modality name {name!r} must be letters, digits, _ and -, and none of {', '.join(_RESERVED)}")
    where = f"modalities.{name}"
    if not isinstance(entry, dict) or "kind" not in entry:
        raise UserError(f"{where} must be a mapping with a kind")
    kind = entry["kind"]
    if kind in LATER_KINDS:
        raise UserError(f"{where}: kind {kind!r} is not read by this version; use a precomputed embedding")
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind {kind!r}{did_you_mean(kind, KINDS)}; kinds are {', '.join(KINDS)}")
    optional = ("stored",) if kind != "tabular" else ("columns", "categorical")
    entry = _mapping(entry, where, _KEYS[kind], optional)
    if kind == "tabular":
        columns = _strings_of(entry.get("columns", []), f"{where}.columns")
        categorical = _strings_of(entry.get("categorical", []), f"{where}.categorical")
        if not columns and not categorical:
            raise UserError(f"{where} needs columns or categorical")
        return Modality(name, kind, columns, categorical)
    # An embedding that does not say is a file when its cells are strings, a value when they are nested lists.
    stored = entry.get("stored", "" if kind == "embedding" else "cell")
    if stored not in ("cell", "file") and "stored" in entry:
        raise UserError(f"{where}.stored must be cell or file, not {stored!r}")
    return Modality(name, kind, (_string(entry["column"], f"{where}.column"),), (), stored)


def _mapping(value: object, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict:
    """`value` as a mapping that holds every key but the optional ones and no other."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            raise UserError(f"unknown key {key!r} in {where}{did_you_mean(key, keys)}; keys are {', '.join(keys)}")
    for key in keys:
        if key not in value and key not in optional:
            raise UserError(f"{where} lacks the key {key!r}")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UserError(f"{where} must be a string, not {value!r}; put words such as no, on and numbers in quotes")
    return value


def _strings_of(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of column names, not {value!r}")
    return tuple(_string(name, where) for name in value)
