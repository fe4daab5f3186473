"""Manifests from what people have: a folder with schema.yaml and a table, a single table, or a frame in memory."""

import collections
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import yaml

from remind_jax.data import attributes, check, tables, targets
from remind_jax.data.blocks import Columns
from remind_jax.data.cells import as_string, trim
from remind_jax.data.findings import Finding
from remind_jax.data.kinds import KINDS, images
from remind_jax.data.labels import as_classes
from remind_jax.data.manifest import Manifest
from remind_jax.data.scan import scan_files
from remind_jax.data.schema import RESERVED, Modality, Schema, mapping, shown, string, title_of
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import records

BAD_FILES = ("refuse", "missing")
SPLIT_ALIASES = {"val": "tuning", "test": "held_out"}
_MAX_SCHEMA = 2**24  # bytes
_MAX_ROWS = 20_000_000  # of a parquet file, whose size does not tell


def read_schema(path: pathlib.Path, image_size: int, frames: int) -> Schema:
    """Reads `schema.yaml`; images and frames of volumes are resized to `image_size`, volumes to `frames` in length.

    Raises UserError: the file is not there, not YAML, or does not say what it must.
    """
    try:
        content = yaml.safe_load(records.content(path, most=_MAX_SCHEMA).decode())
    except FileNotFoundError:
        hint = "a manifest folder needs one, which remind import writes"
        raise UserError(f"{path} does not exist: {hint}") from None
    except UserError:
        raise
    except Exception as error:  # what its tags cannot read ends in all kinds of errors
        place = getattr(error, "problem_mark", None)
        raise UserError(f"{path} is not YAML{f' (line {place.line + 1})' if place else ''}") from None
    try:
        return _parse_schema(content, image_size, frames)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None


def _parse_schema(content: object, image_size: int, frames: int) -> Schema:
    keys = ("version", "name", "sample_id", "patient_id", "label", "split", "modalities", "attributes")
    top = mapping(content, "the file", keys, ("split", "attributes"))
    if top["version"] != 1 or isinstance(top["version"], bool):
        raise UserError(f"version must be 1, not {shown(top['version'])}")
    label = targets.parse(top["label"])
    if not isinstance(entries := top["modalities"], dict) or not entries:
        raise UserError("modalities must be a mapping from names to descriptions")
    schema = Schema(
        name=string(top["name"], "name"),
        sample_id=string(top["sample_id"], "sample_id"),
        patient_id=string(top["patient_id"], "patient_id"),
        modalities=tuple(parse_modality(name, entry, image_size, frames) for name, entry in entries.items()),
        split=None if top.get("split") is None else string(top["split"], "split"),
        attributes=attributes.parse(top.get("attributes")),
        **label,
    )
    owners: dict[str, str] = {}
    for owner, column in schema.columns():
        shared = owner.startswith("attribute ") and owners.get(column, "").startswith("modality ")
        if column in owners and (owner, owners[column]) != ("patient_id", "sample_id") and not shared:
            raise UserError(f"column {column!r} is used twice, by {owners[column]} and {owner}")
        owners.setdefault(column, owner)
    shown_as = [each.title or each.name for each in schema.modalities]
    if twice := [name for name in shown_as if shown_as.count(name) > 1]:
        raise UserError(f"two modalities have the title {twice[0]!r}: give each its own")
    return schema


def parse_modality(name: object, entry: object, image_size: int, frames: int) -> Modality:
    """Makes a modality of its entry in schema.yaml; sizes are as for `read_schema`. Raises UserError: it is wrong."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in RESERVED:
        taken = ", ".join(RESERVED)
        raise UserError(f"modality name {shown(name)} must be letters, digits, _ and -, and none of {taken}")
    where = f"modalities.{name}"
    if not isinstance(entry, dict) or "kind" not in entry:
        raise UserError(f"{where} must be a mapping with a kind")
    if not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
        found = shown(entry["kind"])
        raise UserError(f"{where}: unknown kind {found}{did_you_mean(found, KINDS)}; kinds are {', '.join(KINDS)}")
    kind = KINDS[entry["kind"]]
    mapping(entry, where, ("kind", *kind.keys, "title"), (*kind.optional, "title"))
    modality = kind.parse(name, entry, image_size, frames)
    return dataclasses.replace(modality, title=title_of(entry, where))


def read_manifest(
    folder: str | pathlib.Path,
    *,
    image_size: int = 224,
    frames: int = 16,
    bad_files: str = "refuse",
    window: str = "stored",
) -> Manifest:
    """Reads `schema.yaml` and `manifest.csv` or `manifest.parquet`, and looks at every file they name.

    Words that people write for "missing" (NA, None, …) become null and are counted in the manifest's notes. With
    `bad_files="refuse"` a file that cannot be read is an error (E007); with `missing` its cell becomes null, which a
    note counts (W106), and every image and volume is decoded once to find out, else only its header is read. `window`
    is how values of pictures become bytes, one of `images.WINDOWS`.

    Raises UserError: the schema, the table or a file cannot be used; one line with the codes of `check`.
    """
    options = {"bad_files": bad_files, "thorough": bad_files == "missing", "window": window}
    manifest = load_manifest(folder, image_size=image_size, frames=frames, **options)
    check.refuse(manifest.notes)
    return manifest


def load_manifest(
    folder: str | pathlib.Path,
    *,
    image_size: int = 224,
    frames: int = 16,
    bad_files: str = "refuse",
    thorough: bool = True,
    window: str = "stored",
    count: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Reads a folder as `read_manifest` does, but keeps fatal findings about cells and files in `notes`.

    With `thorough` every image and volume is decoded, not only its header. `count` is called with how many files of a
    column were read, and of how many.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        hint = f"; a table becomes one by remind import --from=table --source={folder}"
        wrong = f"is not a folder{hint}" if root.exists() else "does not exist"
        raise UserError(f"data folder {str(folder)!r} {wrong}")
    if image_size < 1 or frames < 1:
        raise UserError(f"data.image_size and data.frames must be positive: {image_size}, {frames}")
    if bad_files not in BAD_FILES:
        raise UserError(f"data.bad_files must be {' or '.join(BAD_FILES)}, not {bad_files!r}")
    if window not in images.WINDOWS:
        raise UserError(f"data.window must be one of {', '.join(images.WINDOWS)}, not {window!r}")
    schema = read_schema(root / "schema.yaml", image_size, frames)
    table, notes = gathered(schema.modalities, tables.read_table(table_of(root), _MAX_ROWS), root, {}, True)
    return _typed(schema, table, root, thorough, bad_files, window, notes, count)


def of_frame(
    content: Mapping[str, Any],
    table: pl.DataFrame,
    root: str,
    *,
    image_size: int,
    frames: int,
    bad_files: str,
    window: str = "stored",
) -> Manifest:
    """Makes a manifest of a frame and of the content of a schema.yaml, as `read_manifest` does of a folder.

    Paths in cells start from `root`, or from the current folder where it is empty. Raises UserError: as there.
    """
    schema = _parse_schema(dict(content), image_size, frames)
    manifest = _typed(schema, table, pathlib.Path(root), bad_files == "missing", bad_files, window)
    check.refuse(manifest.notes)
    return manifest


def gathered(
    modalities: Sequence[Modality], table: pl.DataFrame, root: pathlib.Path, given: Mapping[str, Any], required: bool
) -> tuple[pl.DataFrame, list[Finding]]:
    """Adds the columns of modalities that have tables of their own, see `Kind.gathered`, and says what was found.

    `given` are frames by the name of a modality or a table. Raises UserError: a table cannot be used, or is unknown.
    """
    notes: list[Finding] = []
    names = {name for each in modalities for name in (each.name, each.options.get("table")) if name}
    if unknown := [name for name in given if not any(name in (known, pathlib.Path(known).stem) for known in names)]:
        raise UserError(f"tables={{{unknown[0]!r}: …}} is no table of these data{did_you_mean(unknown[0], names)}")
    given = {name: as_polars(frame) for name, frame in given.items()}
    for modality in modalities:
        cells, found = KINDS[modality.kind].gathered(modality, table, root, given, required)
        table = table if cells is None else table.with_columns(cells.alias(modality.columns[0]))
        notes += found
    return table, notes


def without_files(content: Mapping[str, Any], table: pl.DataFrame | Columns) -> Manifest:
    """Makes a manifest of a table and of the content of a schema.yaml that tells whether both can be used, files aside.

    What is wrong with cells stands in its notes, and each modality is one column that says where it is present.

    Raises UserError: the schema cannot be used, or a column is not there.
    """
    schema = _parse_schema(dict(content), 1, 1)
    check.refuse(check.absent_columns(schema, table.columns))
    (series, notes), modalities = _roles(schema, table), []
    for modality in schema.modalities:
        kind, present = KINDS[modality.kind], np.zeros(table.height, bool)
        alone = [(c, (c,), ()) for c in modality.columns] + [(c, (), (c,)) for c in modality.categorical]
        for name, columns, categorical in alone:
            part = dataclasses.replace(modality, columns=columns, categorical=categorical)
            part, cells, found = kind.typed(kind.windowed(part, "stored"), {name: table[name]})
            notes += [*found, *kind.problems(part, pl.DataFrame(cells))]
            present |= cells[name].is_not_null().to_numpy()
        series[name] = pl.Series(name, ["there"]).gather(pl.Series(np.where(present, 0, -1)).replace(-1, None))
        modalities.append(Modality(modality.name, "codes", (name,)))
    there = tuple(each for each in schema.attributes if each.column in series)
    schema = dataclasses.replace(schema, modalities=tuple(modalities), attributes=there)
    return Manifest(schema, pl.DataFrame(series), pathlib.Path(), schema.name, tuple(notes))


def _roles(schema: Schema, table: pl.DataFrame | Columns) -> tuple[dict[str, pl.Series], list[Finding]]:
    """Returns ids and splits as strings and labels as `targets.typed` says, by column, and what is wrong with these."""
    names = (schema.sample_id, schema.patient_id, *([schema.split] if schema.split else []))
    series = {name: trim(as_string(table[name])) for name in names}
    inputs = {column for modality in schema.modalities for column in modality.all_columns}
    series |= {a.column: trim(as_string(table[a.column])) for a in schema.attributes if a.column not in inputs}
    if schema.split is not None:
        series[schema.split] = series[schema.split].replace(SPLIT_ALIASES)
    labels, notes = targets.typed(schema, table)
    return series | labels, notes


def _typed(
    schema: Schema,
    table: pl.DataFrame,
    root: pathlib.Path,
    thorough: bool,
    bad_files: str,
    window: str,
    notes: Sequence[Finding] = (),
    count: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Brings the columns that a schema names into the types that `Manifest` promises; findings join the notes."""
    check.refuse(check.absent_columns(schema, table.columns))
    roles, of_labels = _roles(schema, table)
    notes, series = [*notes, *of_labels], {name: table[name] for _, name in schema.columns()} | roles
    modalities, records = [], {}
    for modality in schema.modalities:
        kind = KINDS[modality.kind]
        modality, columns, found = kind.typed(kind.windowed(modality, window), series)
        modalities.append(modality)
        series |= columns
        notes += found
        if modality.stored == "file":
            name = modality.columns[0]
            found = scan_files(root, modality, series[name], thorough=thorough, bad_files=bad_files, count=count)
            series[name] = found.cells
            records |= found.records
            notes += found.findings
    schema = dataclasses.replace(schema, modalities=tuple(modalities))
    return Manifest(schema, pl.DataFrame(series), root, schema.name, tuple(notes), records)


def read_new(
    data: str | pathlib.Path | Any,
    schema: Schema,
    *,
    image_size: int,
    frames: int,
    bad_files: str = "refuse",
    window: str = "stored",
    count: Callable[[int, int], None] | None = None,
    root: str | pathlib.Path = "",
    given: Mapping[str, Any] | None = None,
) -> Manifest:
    """Reads rows to predict: label, split, patient and sample ids, and all columns of a modality, may be absent.

    `data` is a manifest's folder, in which schema.yaml may be absent; a file of `tables.FORMATS`, whose paths start
    from its folder; or a polars or pandas frame, whose paths start from `root` or the current folder. `schema` says
    what columns mean where the data have no schema.yaml; `given` are frames of events by the name of their modality or
    table; the other arguments are as for `load_manifest`.

    Returns a manifest without splits. Labels may be null; rows without sample ids are counted from 1; each row without
    patient ids is a patient. Raises UserError: the rows cannot be used, in one line with the codes of `check`.
    """
    root = pathlib.Path(root)
    if isinstance(data, str | pathlib.Path):
        path = pathlib.Path(data)
        if not path.exists():
            raise UserError(f"data {str(path)!r} do not exist: give a manifest folder or a table")
        root = path if path.is_dir() else path.parent
        if path.is_dir() and (path / "schema.yaml").is_file():
            schema = read_schema(path / "schema.yaml", image_size, frames)
        table = tables.read_table(table_of(path) if path.is_dir() else path, _MAX_ROWS)
    else:
        table = as_polars(data)
    table, told = gathered(schema.modalities, table, root, given or {}, False)
    schema, table, notes = _completed(schema, table)
    if schema.has_classes and schema.label in table.columns:
        table = table.with_columns(as_classes(table[schema.label], schema.classes))
    manifest = _typed(schema, table, root, bad_files == "missing", bad_files, window, [*told, *notes], count)
    findings = check.find_problems_of_new(manifest)
    check.refuse(findings)
    return dataclasses.replace(manifest, notes=tuple(findings))


def is_pandas(data: Any) -> bool:
    """Tells whether the data are a pandas frame, without importing pandas."""
    return type(data).__module__.partition(".")[0] == "pandas"


def as_polars(frame: Any) -> pl.DataFrame:
    """Returns a polars frame as it is, a pandas one with its kinds of missing values as null and categories as such.

    Names of columns become strings, cells of several types in one column strings, too. An index is not used; a warning
    says so where it may hold something: it has a name or is not of integers.

    Raises UserError: it is no frame, or two columns have one name.
    """
    if isinstance(frame, pl.DataFrame | pl.LazyFrame):
        return frame.lazy().collect()
    if not all(hasattr(frame, name) for name in ("columns", "iloc")):
        raise UserError(f"data must be a path or a polars or pandas frame, not {type(frame).__name__}")
    names = [str(name) for name in frame.columns]
    if double := [name for name, n in collections.Counter(names).items() if n > 1]:
        raise UserError(f"two columns are named {double[0]!r}: rename or drop one")
    if any(name is not None for name in frame.index.names) or frame.index.dtype.kind not in "iu":
        what = ", ".join(str(name) for name in frame.index.names if name is not None)
        text = f"the index {what}".rstrip() + " of the frame is not used; reset_index() makes it a column"
        warnings.warn(text, stacklevel=2)
    return pl.DataFrame([_of_pandas(column).alias(n) for n, (_, column) in zip(names, frame.items(), strict=True)])


def values_of(frame: Any, column: str) -> pl.Series:
    """Returns a column of a frame in the type that it has for its user: of categories that of what they stand for."""
    if not is_pandas(frame):
        return as_polars(frame)[column]
    found = frame.iloc[:, [str(name) for name in frame.columns].index(column)]
    return _of_pandas(found.cat.categories.to_series() if hasattr(found.dtype, "categories") else found)


def _of_pandas(column: Any) -> pl.Series:
    """Returns a pandas column by way of Arrow, or cell by cell where that does not know its type."""
    if hasattr(column.dtype, "categories"):
        places = pl.Series(column.cat.codes.to_numpy()).replace(-1, None)
        return as_string(_of_pandas(column.cat.categories.to_series())).gather(places).cast(pl.Categorical)
    try:
        arrow = pa.Array.from_pandas(column)
        if not isinstance(arrow.type, pa.BaseExtensionType):
            return pl.Series(pl.from_arrow(arrow))
    except (pa.ArrowException, TypeError, ValueError):
        pass
    cells = column.astype(object).where(column.notna(), None).tolist()
    cells = [cell.tolist() if isinstance(cell, np.ndarray) else cell for cell in cells]
    found = pl.Series(cells, strict=False)
    return found if found.dtype != pl.Object else pl.Series([None if cell is None else str(cell) for cell in cells])


def _completed(schema: Schema, table: pl.DataFrame) -> tuple[Schema, pl.DataFrame, list[Finding]]:
    """Adds the columns that rows to predict may lack, and warns of modalities that no row has (W108)."""

    def absent(names: Sequence[str]) -> bool:
        return not set(names) & set(table.columns)

    empty, notes = pl.lit(None, pl.String), []
    used = {column for _, column in schema.columns()}
    free = [column for column in table.columns if column not in used]
    # A schema of a run tells how its own data were stored; new ones may hold files in place of values.
    modalities = [KINDS[each.kind].as_new(each) for each in schema.modalities]
    lacking = [each for each in modalities if absent(each.all_columns)]
    there = tuple(each for each in schema.attributes if each.column in table.columns)
    schema = dataclasses.replace(schema, modalities=tuple(modalities), split=None, attributes=there)
    if len(lacking) == len(modalities):
        return schema, table, []  # as wrong a table as can be, which the checks say better
    added = {**dict.fromkeys(schema.label_columns, empty), **{c: empty for each in lacking for c in each.all_columns}}
    added |= {schema.sample_id: pl.int_range(1, pl.len() + 1)} if absent([schema.sample_id]) else {}
    table = table.with_columns(**{name: value for name, value in added.items() if name not in table.columns})
    if schema.patient_id not in table.columns:
        table = table.with_columns(pl.col(schema.sample_id).alias(schema.patient_id))
    for each in lacking:
        hint = did_you_mean(each.all_columns[0], free)
        text = f"no column of the modality {each.name!r} is in the table{hint}; it is missing in all rows"
        notes.append(Finding("W108", text, False))
    return schema, table, notes


def table_of(root: pathlib.Path) -> pathlib.Path:
    """Returns the table of a manifest folder. Raises UserError: there is none, or there are two."""
    paths = [path for path in (root / "manifest.csv", root / "manifest.parquet") if path.is_file()]
    if len(paths) != 1:
        raise UserError(f"{root}: needs manifest.csv or manifest.parquet, and has {'both' if paths else 'neither'}")
    with records.opened(paths[0], root):  # refuses what is no regular file of this folder
        return paths[0]
