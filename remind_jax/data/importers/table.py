"""Tables with one row a sample, and tables that are joined to them."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import yaml

from remind_jax.data.cells import as_string, looks_missing
from remind_jax.data.files import read_table
from remind_jax.data.kinds import KINDS
from remind_jax.data.schema import RESERVED
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files

SPLITS = {
    **{"training": "train", "train": "train", "validation": "tuning", "val": "tuning", "tuning": "tuning"},
    **{"testing": "held_out", "test": "held_out", "held_out": "held_out"},
}


class Imported(NamedTuple):
    """A manifest to be written."""

    table: pl.DataFrame  # one row a sample; null is missing
    schema: dict[str, Any]  # the content of schema.yaml
    notes: list[str]  # what was guessed, left out or should be looked at


def write(found: Imported, out: pathlib.Path) -> None:
    """Writes schema.yaml and manifest.csv (manifest.parquet where cells are lists) into a folder.

    Raises UserError: it holds a manifest already or cannot be written.
    """
    names = ("schema.yaml", "manifest.csv", "manifest.parquet")
    if there := [name for name in names if (out / name).exists()]:
        raise UserError(f"{out} holds {there[0]} already: choose another folder with --out=DIR, or delete it")
    nested = any(dtype.is_nested() for dtype in found.table.dtypes)
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with files.whole_file(out / ("manifest.parquet" if nested else "manifest.csv")) as temporary:
        found.table.write_parquet(temporary) if nested else found.table.write_csv(temporary)
    files.write_text(out / "schema.yaml", yaml.safe_dump(found.schema, sort_keys=False, allow_unicode=True))


def schema_of(
    name: str, label: str, classes: Iterable[Any], modalities: Mapping[str, Any], split: str | None
) -> dict[str, Any]:
    if not modalities:
        raise UserError("no column could be taken for a modality: name kinds with --kind=COLUMN=KIND,…")
    schema = {"version": 1, "name": name, "sample_id": "sample_id", "patient_id": "patient_id"}
    schema["label"] = {"column": label, "classes": sorted(map(str, classes))}
    return schema | ({"split": split} if split else {}) | {"modalities": dict(modalities)}


def name_of(text: str) -> str:
    """Makes a modality's name of a text; the words that batches keep for themselves get a tail."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "table"
    return f"{name}_" if name in RESERVED else name


def read_frame(path: pathlib.Path) -> pl.DataFrame:
    """Reads a CSV or parquet file, words for "missing" as null; raises UserError when it cannot be read."""
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{path} is not a .csv or .parquet file")
    try:
        table = read_table(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    strings = [name for name, dtype in table.schema.items() if dtype == pl.String]
    return table.with_columns(table[name].set(looks_missing(table[name]), None) for name in strings)


def read(
    source: pathlib.Path,
    joined: Sequence[pathlib.Path],
    *,
    name: str,
    label: str,
    kinds: Mapping[str, str],
    **columns: str,
) -> Imported:
    """Reads samples and tables to join from CSV or parquet files; a table is called as its file, the data set `name`.

    Other arguments are as for `from_table`.

    Raises UserError: as for `from_table`, or a file cannot be read, or a kind of column is unknown.
    """
    if not label:
        raise UserError("no label: name its column as --label=COLUMN")
    for column, word in kinds.items():
        if word not in (known := column_kinds()):
            hint = did_you_mean(word, known)
            raise UserError(f"--kind={column}={word} is unknown{hint}; known: {', '.join(known)}")
    others = {path.stem: read_frame(path) for path in joined}
    found = from_table(read_frame(source), name=source.stem, label=label, joined=others, kinds=kinds, **columns)
    return found._replace(schema=found.schema | {"name": name})


def from_table(
    table: pl.DataFrame,
    *,
    name: str,
    label: str,
    sample: str = "",
    patient: str = "",
    split: str = "",
    joined: Mapping[str, pl.DataFrame] | None = None,
    kinds: Mapping[str, str] | None = None,
    prefix: str = "",
) -> Imported:
    """Makes a manifest of a table, one row a sample, and tables joined to it by the sample's or the patient's id.

    The numbers and categories of a table become one modality, named as the table; each column of texts, codes or paths
    becomes one of its own. A sample that a joined table has no row for lacks its modalities.

    `name` is that of the data set and of the table's own modality. `label` names the column of classes, whose empty
    rows are left out; `sample` that of unique ids, empty counts rows; `patient` that of patients, empty takes every row
    for a patient and says so; `split` that of splits, empty leaves splitting to each run. `joined` are further tables
    by name, with at most one row an id; `kinds` kinds of columns, of `column_kinds`, where the guess is wrong; `prefix`
    leads from the manifest's folder to the one that paths in cells start from.

    Raises UserError: a column is not there, ids are not unique, or no modality is found.
    """
    kinds, notes = dict(kinds or {}), []
    _check_columns(table, label, sample, patient, split)
    table = table.filter(pl.col(label).is_not_null())
    ids = _ids(table, sample, patient)
    if not patient:
        notes.append("no --patient: each row counts as a patient, and rows of one person may be in train and held out")
    columns = {**ids, label: _as_text(table[label])}
    if split:
        columns[split] = _as_text(table[split]).str.to_lowercase().replace(SPLITS)
    own = table.drop({label, sample, patient, split} - {""})
    parts = {name: own, **{key: _matched(table, sample, patient, key, t) for key, t in (joined or {}).items()}}
    modalities: dict[str, Any] = {}
    for part, frame in parts.items():
        frame = frame.rename({c: f"{part}_{c}" for c in frame.columns if c in columns})
        found, said = _modalities(part, frame, kinds)
        modalities |= {
            name_of(key if key not in modalities else f"{part}_{key}"): entry for key, entry in found.items()
        }
        columns |= {c: frame[c] for c in frame.columns}
        notes += said
    if unknown := set(kinds) - set(columns):
        column = sorted(unknown)[0]
        raise UserError(f"--kind names {column!r}, which is no column{did_you_mean(column, columns)}")
    out, used = pl.DataFrame(columns), {c for entry in modalities.values() for c in columns_of(entry)}
    paths = path_columns(out, modalities)
    out = out.with_columns(pl.concat_str(pl.lit(prefix), pl.col(c)).alias(c) for c in paths)
    out = out.select([*ids, label, *([split] if split else []), *(c for c in out.columns if c in used)])
    out, said = without_empty(out, used)
    schema = schema_of(name, label, out[label].unique(), modalities, split)
    return Imported(out, schema, notes + said)


def _check_columns(table: pl.DataFrame, label: str, sample: str, patient: str, split: str) -> None:
    for role, column in (("--label", label), ("--sample", sample), ("--patient", patient), ("--split", split)):
        if (column or role == "--label") and column not in table.columns:
            raise UserError(f"{role}={column} is no column{did_you_mean(column, table.columns)}")


def _ids(table: pl.DataFrame, sample: str, patient: str) -> dict[str, pl.Series]:
    counted = pl.Series([str(i + 1) for i in range(table.height)], dtype=pl.String)
    samples = _as_text(table[sample]) if sample else counted
    return {"sample_id": samples, "patient_id": _as_text(table[patient]) if patient else samples}


def path_columns(table: pl.DataFrame, modalities: Mapping[str, Any]) -> list[str]:
    """Lists the columns of a table whose cells are paths."""
    kinds = {entry["column"]: entry["kind"] for entry in modalities.values() if "column" in entry}
    return [column for column, kind in kinds.items() if KINDS[kind].paths and table[column].dtype == pl.String]


def columns_of(entry: Mapping[str, Any]) -> list[str]:
    return [entry["column"]] if "column" in entry else [*entry.get("columns", ()), *entry.get("categorical", ())]


def without_empty(table: pl.DataFrame, used: Iterable[str]) -> tuple[pl.DataFrame, list[str]]:
    """Keeps rows that have a modality, and says how many had none."""
    kept = table.filter(pl.any_horizontal(pl.col(sorted(used)).is_not_null()))
    lost = table.height - kept.height
    return kept, [f"{lost} rows without any modality are left out"] if lost else []


def _as_text(column: pl.Series) -> pl.Series:
    return as_string(column).str.strip_chars()


def _matched(samples: pl.DataFrame, sample: str, patient: str, name: str, table: pl.DataFrame) -> pl.DataFrame:
    """Returns the rows of a joined table in the order of the samples, null where it has none."""
    key = next((c for c in (sample, patient) if c and c in table.columns), None)
    if key is None:
        wanted = " or ".join(filter(None, (sample, patient))) or "an id (name it with --sample or --patient)"
        raise UserError(f"the table {name!r} has no column {wanted} to join it by")
    table = table.with_columns(_as_text(table[key]))
    if table[key].is_duplicated().any():
        raise UserError(f"the table {name!r} has several rows of one {key}: keep one, or make them columns")
    rest = table.drop([c for c in (sample, patient) if c not in ("", key)], strict=False)
    return samples.select(_as_text(samples[key])).join(rest, on=key, how="left", maintain_order="left").drop(key)


def _modalities(
    part: str, table: pl.DataFrame, kinds: Mapping[str, str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Makes modalities of a table's columns, those of several columns first, and says what was left out."""
    together: dict[str, dict[str, list[str]]] = {}
    alone: dict[str, dict[str, Any]] = {}
    notes = []
    for column in table.columns:
        word = kinds.get(column) or guess_kind(table[column])
        kind = next((kind for kind in KINDS.values() if word in kind.words), None)
        if kind is None:
            notes.append(f"column {column!r} is left out ({word}); to keep it give --kind={column}=KIND")
        elif kind.words[word] == "column":
            alone[name_of(column)] = {"kind": kind.name, "column": column}
        else:
            lists = together.setdefault(kind.name, {key: [] for key in kind.words.values()})
            lists[kind.words[word]].append(column)
    whole = {}
    for kind_name, lists in together.items():
        name = part if len(together) == 1 else f"{part}_{kind_name}"
        whole[name] = {"kind": kind_name} | {key: columns for key, columns in lists.items() if columns}
    return whole | alone, notes


def column_kinds() -> list[str]:
    """Lists what a column can be: a word of some kind of modality, or `skip`."""
    return [*(word for kind in KINDS.values() for word in kind.words), "skip"]


def guess_kind(column: pl.Series) -> str:
    """Guesses one of `column_kinds`, or says why the column is none of them."""
    cells = column.drop_nulls()
    if not len(cells):
        return "empty"
    if column.dtype.is_temporal():
        return "a time"
    if not (column.dtype.is_numeric() or column.dtype.is_nested() or column.dtype == pl.Boolean):
        cells = cells.cast(pl.String).str.strip_chars()
        endings = set(cells.str.extract(r"(\.[A-Za-z]+)$", 1).str.to_lowercase().unique().to_list())
        known = {ending for kind in KINDS.values() for ending in kind.endings}
        if endings <= known and not cells.str.contains(" ").any():
            owners = [kind.name for kind in KINDS.values() if endings <= set(kind.endings)]
            return owners[0] if owners else "files of several kinds"
        if cells.str.contains(r"^\d{4}-\d\d-\d\d([T ]|$)").all():
            return "a time"
    guesses = [guess for kind in KINDS.values() if (guess := kind.guess(cells))]
    return max(guesses, key=lambda guess: guess.sure).word if guesses else "many different words"
