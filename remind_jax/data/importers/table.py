"""Tables with one row a sample, and tables that are joined to them."""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import yaml

from remind_jax.data.cells import as_string, class_keys, looks_missing, numbers_of
from remind_jax.data.findings import listed
from remind_jax.data.importers.modalities import (
    column_kinds,
    columns_of,
    declared,
    free_name,
    guessed,
    name_of,
    path_columns,
)
from remind_jax.data.tables import format_of, read_table
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files

SPLITS = {
    **{"training": "train", "train": "train", "validation": "tuning", "val": "tuning", "tuning": "tuning"},
    **{"testing": "held_out", "test": "held_out", "held_out": "held_out"},
}


_SHOWN = 8  # columns that a note lists
_CLASSES = 20  # above so many numbers a label is rather a measurement


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
    name: str,
    label: str,
    classes: Iterable[str],
    modalities: Mapping[str, Any],
    split: str | None,
    ids: Sequence[str] = ("sample_id", "patient_id"),
) -> dict[str, Any]:
    """Returns the content of schema.yaml; `ids` are the columns of samples and patients.

    Raises UserError: there are no modalities, or not two classes.
    """
    classes = in_order(classes)
    if len(classes) < 2:
        raise UserError(f"column {label!r} has one class in the rows that have a modality; two are needed")
    if not modalities:
        raise UserError("no column can be taken for a modality: say which columns are one, and of what kind")
    schema = {"version": 1, "name": name, "sample_id": ids[0], "patient_id": ids[-1]}
    schema["label"] = {"column": label, "classes": classes}
    return schema | ({"split": split} if split else {}) | {"modalities": dict(modalities)}


def in_order(classes: Iterable[str]) -> list[str]:
    """Sorts classes: numbers by their values when all are numbers, else as texts."""

    def value(text: str) -> tuple[float, str]:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number, text

    classes = list(classes)
    try:
        return sorted(classes, key=value)
    except ValueError:
        return sorted(classes)


def read(
    source: pathlib.Path,
    joined: Sequence[pathlib.Path],
    *,
    name: str,
    label: str,
    kinds: Mapping[str, str],
    modalities: Mapping[str, Sequence[str]],
    **columns: str,
) -> Imported:
    """Reads samples and tables to join from files of `FORMATS`; a table is called as its file, the data set `name`.

    Other arguments are as for `from_table`.

    Raises UserError: as for `from_table`, or a file cannot be read, or a kind of column is unknown.
    """
    if not label:
        raise UserError("no label: name its column as --label=COLUMN")
    for column, word in kinds.items():
        if word not in (known := column_kinds()):
            hint = did_you_mean(word, known)
            raise UserError(f"--kind={column}={word} is unknown{hint}; known: {', '.join(known)}")
    notes: list[str] = []
    first, *others = [
        (path.name[: -len(format_of(path))], read_table(path, say=notes.append)) for path in (source, *joined)
    ]
    told = {"joined": dict(others), "kinds": kinds, "modalities": modalities}
    found = from_table(first[1], name=first[0], label=label, **told, **columns)
    return found._replace(schema=found.schema | {"name": name}, notes=notes + found.notes)


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
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any]] | None = None,
    rest: bool = True,
    prefix: str = "",
) -> Imported:
    """Makes a manifest of a table, one row a sample, and tables joined to it by the sample's or the patient's id.

    `modalities` are described as for `declared`. Of the other columns, the numbers and categories of a table become one
    modality, named as the table; each column of texts, codes or paths becomes one of its own; without `rest` they are
    left out. A sample that a joined table has no row for lacks its modalities.

    `name` is that of the data set and of the table's own modality. `label` names the column of classes, whose empty
    rows are left out; `sample` that of unique ids, empty counts rows; `patient` that of patients, empty takes every row
    for a patient and says so; `split` that of splits, empty leaves splitting to each run. `joined` are further tables
    by name, with at most one row an id; `kinds` kinds of columns, of `column_kinds`, where the guess is wrong; `prefix`
    leads from the manifest's folder to the one that paths in cells start from. Columns keep their names, but those of a
    joined table get its name in front where another table has them, too.

    Raises UserError: a column is not there, ids are not unique, or modalities are not as `declared` needs them.
    """
    _check_columns(table, label, sample, patient, split)
    table = without_words(table)
    labels, notes = _labels(table[label])
    if not patient:
        notes.append(
            "no column of patients: each row counts as one, and one person's rows may be in train and held out"
        )
    if not sample:
        notes.append("no column of samples: rows are counted, so predictions join by their order alone")
    table = table.with_columns(labels).drop_nulls(label)
    ids = _ids(table, sample, patient)
    columns = {**ids, label: table[label]}
    if split:
        columns[split] = _as_text(table[split]).str.to_lowercase().replace(SPLITS)
    parts = {name: table.drop({label, sample, patient, split} - {""})}
    for part, other in (joined or {}).items():
        matched = _matched(table, sample, patient, part, without_words(other))
        known = [c for c in (label, split) if c in matched.columns]  # the outcome is no input
        parts[part] = matched.drop(known)
        notes += [f"{part}: column {c!r} is left out, which the first table has" for c in known]
    inputs, owners = _side_by_side(parts, columns)
    if unknown := sorted(set(kinds or {}) - set(inputs.columns)):
        raise UserError(f"--kind names {unknown[0]!r}, which is no column{did_you_mean(unknown[0], inputs.columns)}")
    for key, wanted in (modalities or {}).items():
        if roles := [c for c in _named(wanted) if c in {label, sample, patient, split}]:
            raise UserError(f"modality {key!r}: column {roles[0]!r} is label, split or id, and no input")
    entries, left_out = _modalities(inputs, owners, kinds or {}, modalities or {}, rest)
    wanted = {c for entry in entries.values() for c in columns_of(entry)}
    used = [c for c in inputs.columns if c in wanted]
    inputs = inputs.select(used).with_columns(pl.col(pl.Categorical).cast(pl.String))
    paths = path_columns(inputs, entries)
    inputs = inputs.with_columns(pl.concat_str(pl.lit(prefix), pl.col(c)).alias(c) for c in paths)
    out, said = without_empty(pl.DataFrame(columns).hstack(inputs), used)
    if entries and not out.height:
        raise UserError("no row has a modality: all cells of its columns are empty")
    schema = schema_of(name, label, out[label].unique(), entries, split, list(ids))
    return Imported(out, schema, [*notes, *said, *_said(left_out)])


def _check_columns(table: pl.DataFrame, label: str, sample: str, patient: str, split: str) -> None:
    roles = {"label": label, "sample": sample, "patient": patient, "split": split}
    for role, column in roles.items():
        if (column or role == "label") and column not in table.columns:
            raise UserError(f"{role}={column} is no column{did_you_mean(column, table.columns)}")
    several = [c for c in filter(None, (label, split)) if list(roles.values()).count(c) > 1]
    if several:
        raise UserError(f"column {several[0]!r} cannot be label, split or id at once")


def _labels(column: pl.Series) -> tuple[pl.Series, list[str]]:
    """Returns labels as strings, one spelling a class, and what is to be said of them.

    Raises UserError: there are none, or what they hold is no class.
    """
    where = f"column {column.name!r}"
    labels = _as_text(column)
    if column.dtype.is_temporal() or (labels.n_unique() > _CLASSES and (numbers_of(labels) % 1 != 0).any()):
        what = "times" if column.dtype.is_temporal() else f"{labels.drop_nulls().n_unique()} different numbers"
        raise UserError(f"{where} holds {what}, which are no classes: cut them into classes first")
    if labels.null_count() == len(labels):
        raise UserError(f"{where} has no label in any row")
    notes = [f"{n} rows without a label are left out"] if (n := labels.null_count()) else []
    keys = class_keys(labels)
    forms = pl.DataFrame({"key": keys, "form": labels}).drop_nulls().unique()
    forms = forms.sort(pl.col("form").str.len_chars(), "form").group_by("key", maintain_order=True).agg("form")
    for several in forms["form"].filter(forms["form"].list.len() > 1).to_list():
        notes.append(f"{where}: {listed(several, _SHOWN)} are taken for one class, {several[0]}")
    if forms.height > _CLASSES and numbers_of(labels).is_not_null().sum() == len(labels) - labels.null_count():
        notes.append(f"{where} has {forms.height} different numbers, each taken for a class; is it one?")
    names = dict(zip(forms["key"].to_list(), forms["form"].list.first().to_list(), strict=True))
    return keys.replace_strict(names, default=None, return_dtype=pl.String).alias(column.name), notes


def _ids(table: pl.DataFrame, sample: str, patient: str) -> dict[str, pl.Series]:
    """Returns the ids of samples, then, where a column has them, of patients, by the names of their columns."""
    if sample:
        samples = {sample: _as_text(table[sample])}
    else:
        counted = pl.Series([str(i + 1) for i in range(table.height)], dtype=pl.String)
        samples = {free_name("sample_id", table.columns): counted}
    return samples | ({patient: _as_text(table[patient])} if patient else {})


def _side_by_side(parts: Mapping[str, pl.DataFrame], taken: Iterable[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Returns the columns of all tables as one, and the table of each by its name; names that are taken get others."""
    columns: dict[str, pl.Series] = {}
    owners: dict[str, str] = {}
    for part, frame in parts.items():
        others = {*taken, *columns}
        for column in frame.iter_columns():
            new = column.name
            if new in others:
                new = free_name(f"{part}_{new}", others | set(frame.columns))
            columns[new], owners[new] = column, part
    return pl.DataFrame(columns), owners


def _modalities(
    inputs: pl.DataFrame,
    owners: Mapping[str, str],
    kinds: Mapping[str, str],
    given: Mapping[str, Sequence[str] | Mapping[str, Any]],
    rest: bool,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns entries by name, those given first, and by column why it is left out."""
    entries, left_out = declared(given, inputs, kinds)
    used = {c for entry in entries.values() for c in columns_of(entry)}
    others = [c for c in inputs.columns if c not in used and c not in left_out]
    if not rest:
        return entries, left_out | dict.fromkeys(others, "no modality names them")
    for part in dict.fromkeys(owners.values()):
        found, unfit = guessed(part, inputs.select(c for c in others if owners[c] == part), kinds)
        left_out |= unfit
        for key, entry in found.items():
            other = f"{part}_rest" if key == name_of(part) else f"{part}_{key}"
            entries[free_name(name_of(other), entries) if key in entries else key] = entry
    return entries, left_out


def _named(wanted: Sequence[str] | Mapping[str, Any]) -> Sequence[str]:
    """Lists the columns, or patterns of them, that a user gives for a modality."""
    return columns_of(wanted) if isinstance(wanted, Mapping) else wanted


def _said(left_out: Mapping[str, str]) -> list[str]:
    """Says which columns are left out, one line a reason."""
    lines = []
    for why in dict.fromkeys(left_out.values()):
        columns = [c for c, reason in left_out.items() if reason == why]
        lines.append(f"{len(columns)} column{'s' * (len(columns) > 1)} left out ({why}): {listed(columns, _SHOWN)}")
    return lines


def without_empty(table: pl.DataFrame, used: Iterable[str]) -> tuple[pl.DataFrame, list[str]]:
    """Keeps rows that have a modality, and says how many had none."""
    kept = table.filter(pl.any_horizontal(pl.col(sorted(used)).is_not_null()))
    lost = table.height - kept.height
    return kept, [f"{lost} rows without any modality are left out"] if lost else []


def without_words(table: pl.DataFrame) -> pl.DataFrame:
    """Returns a table with words for missing, blanks and NaN as null."""
    texts = [c for c in table.iter_columns() if c.dtype in (pl.String, pl.Categorical, pl.Enum)]
    floats = [c.fill_nan(None) for c in table.iter_columns() if c.dtype.is_float()]
    # `set` knows no categories; these keep their kind.
    cleaned = [(c := text.cast(pl.String)).set(looks_missing(c), None) for text in texts]
    kept = [c if old.dtype == pl.String else c.cast(pl.Categorical) for c, old in zip(cleaned, texts, strict=True)]
    return table.with_columns(*kept, *floats)


def _as_text(column: pl.Series) -> pl.Series:
    return as_string(column).str.strip_chars()


def _matched(samples: pl.DataFrame, sample: str, patient: str, name: str, table: pl.DataFrame) -> pl.DataFrame:
    """Returns the rows of a joined table in the order of the samples, null where it has none."""
    key = next((c for c in (sample, patient) if c and c in table.columns), None)
    if key is None:
        wanted = " or ".join(filter(None, (sample, patient))) or "an id (name it with --sample or --patient)"
        raise UserError(f"the table {name!r} has no column {wanted} to join it by")
    table = table.with_columns(_as_text(table[key])).drop_nulls(key)
    if table[key].is_duplicated().any():
        raise UserError(f"the table {name!r} has several rows of one {key}: keep one, or make them columns")
    rest = table.drop([c for c in (sample, patient) if c not in ("", key)], strict=False)
    return samples.select(_as_text(samples[key])).join(rest, on=key, how="left", maintain_order="left").drop(key)
