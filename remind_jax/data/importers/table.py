"""Tables with one row a sample, and tables that are joined to them."""

import functools
import pathlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from remind_jax.data import attributes as figures_by
from remind_jax.data import check, labels, reading, targets
from remind_jax.data.blocks import Columns
from remind_jax.data.cells import as_string, emptied, means_missing
from remind_jax.data.findings import listed
from remind_jax.data.importers import parts
from remind_jax.data.importers.columns import (
    IDS,
    Decision,
    as_numbers,
    decide,
    signs_between,
    why_lines,
)
from remind_jax.data.importers.modalities import (
    column_kinds,
    columns_of,
    declared,
    free_name,
    guessed,
    name_of,
    path_columns,
)
from remind_jax.data.kinds import KINDS, codes
from remind_jax.data.manifest import presence_of
from remind_jax.data.reading import parse_modality
from remind_jax.data.tables import format_of, read_columns
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files

SPLITS = {
    **{"training": "train", "train": "train", "validation": "tuning", "val": "tuning", "tuning": "tuning"},
    **{"testing": "held_out", "test": "held_out", "held_out": "held_out"},
}


_SHOWN = 8  # columns that a note lists


class Imported(NamedTuple):
    """A manifest to be written."""

    table: pl.DataFrame | Columns  # one row a sample; null is missing
    schema: dict[str, Any]  # the content of schema.yaml
    notes: list[str]  # what was left out, changed or should be looked at
    columns: Sequence[str] = ()  # what the columns are taken for, and why
    arrays: Mapping[str, Callable[[], np.ndarray]] = {}  # what reads each file that is to be made, by path below it


def write(found: Imported, out: pathlib.Path) -> None:
    """Writes schema.yaml, manifest.csv (manifest.parquet where cells are lists) and arrays into a folder, all or none.

    They are their owner's alone. Raises UserError: the folder holds some of them already or cannot be written.
    """
    names = ("schema.yaml", "manifest.csv", "manifest.parquet", *{name.partition("/")[0] for name in found.arrays})
    if there := [name for name in names if (out / name).exists()]:
        raise UserError(f"{out} holds {there[0]} already: choose another folder with --out=DIR, or delete it")
    table = Columns.of(found.table)
    nested = any(dtype.is_nested() for dtype in next(table.blocks()).dtypes)
    with files.whole_files(out, private=True) as temporary:
        for name, array in found.arrays.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            np.save(temporary / name, array())
        if nested:
            pl.concat(table.blocks()).write_parquet(temporary / "manifest.parquet")
        else:
            with open(temporary / "manifest.csv", "wb") as file:
                for i, block in enumerate(table.blocks()):
                    block.write_csv(file, include_header=not i)
        schema = yaml.safe_dump(found.schema, sort_keys=False, allow_unicode=True)
        (temporary / "schema.yaml").write_text(schema, encoding="utf-8")


def schema_of(
    name: str,
    label: str | Mapping[str, Any],
    classes: Iterable[str],
    modalities: Mapping[str, Any],
    split: str | None,
    ids: Sequence[str] = ("sample_id", "patient_id"),
) -> dict[str, Any]:
    """Returns the content of schema.yaml; `ids` are the columns of samples and patients.

    `label` is the column of classes, or the entry of another task, for which `classes` are not used.

    Raises UserError: there are no modalities, or not two classes.
    """
    if not modalities:
        raise UserError("no column can be taken for a modality: say which columns are one, and of what kind")
    if isinstance(label, str) and len(classes := list(classes)) < 2:
        raise UserError(f"column {label!r} has one class in the rows that have a modality; two are needed")
    schema = {"version": 1, "name": name, "sample_id": ids[0], "patient_id": ids[-1]}
    schema["label"] = {"column": label, "classes": classes} if isinstance(label, str) else dict(label)
    return schema | ({"split": split} if split else {}) | {"modalities": dict(modalities)}


def read(
    source: pathlib.Path,
    joined: Sequence[pathlib.Path],
    *,
    name: str,
    label: str | Mapping[str, Any],
    kinds: Mapping[str, str],
    modalities: Mapping[str, Sequence[str]],
    **options: Any,
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
        (path.name[: -len(format_of(path))], read_columns(path, notes.append)) for path in (source, *joined)
    ]
    told = {"joined": dict(others), "kinds": kinds, "modalities": modalities}
    found = from_table(first[1], name=first[0], label=label, **told, **options)
    return found._replace(schema=found.schema | {"name": name}, notes=notes + found.notes)


def from_table(
    table: pl.DataFrame | Columns,
    *,
    name: str,
    label: str | Mapping[str, Any],
    sample: str = "",
    patient: str = "",
    split: str = "",
    joined: Mapping[str, pl.DataFrame | Columns] | None = None,
    kinds: Mapping[str, str] | None = None,
    modalities: Mapping[str, Sequence[str] | Mapping[str, Any]] | None = None,
    rest: bool = True,
    prefix: str = "",
    classes: Sequence[str] = (),
    match: str = "exact",
    odd: str = "missing",
    missing: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
    long: Mapping[str, pl.DataFrame] | None = None,
) -> Imported:
    """Makes a manifest of a table, one row a sample, and tables joined to it by the sample's or the patient's id.

    `modalities` are described as for `declared`. Of the other columns, the numbers and categories of a table become one
    modality, named as the table; each column of texts, codes or paths becomes one of its own; without `rest` they are
    left out. A sample that a joined table has no row for lacks its modalities.

    `name` is that of the data set and of the table's own modality. `label` names the column of classes, or is the entry
    `label` of schema.yaml of another task; rows without one are left out; `sample` that of unique ids, empty counts
    rows; `patient` that of patients, empty takes every row for a patient and says so; `split` that of splits, empty
    leaves splitting to each run. `joined` are further tables by name, with at most one row an id; `kinds` kinds of
    columns, of `column_kinds`, where the guess is wrong; `prefix` leads from the manifest's folder to the one that
    paths in cells start from. `classes` are as for `labels.read`, `match` one of `keys.MATCHES`, `odd` one of
    `numerals.ODD`; `missing` are words and numbers that stand for empty cells, in inputs and label. `attributes` is
    that entry of schema.yaml, whose columns are inputs only where `modalities` names them, too; `long` are tables of
    events by name. Columns keep their names, but those of a joined table get its name in front where another table has
    them, too.

    Raises UserError: a column is not there, ids are empty or not unique, a joined table matches no row, the label is no
    class, or modalities are not as `declared` needs them.
    """
    table, entry = Columns.of(table), label
    label, *others = [label] if isinstance(label, str) else targets.of_entry(label).label_columns
    _check_columns(table, label, sample, patient, split)
    _check_more(table, others, (label, sample, patient, split))
    for key, wanted in (modalities or {}).items():
        if roles := sorted(_named({key: wanted}) & {label, *others, sample, patient, split} - {""}):
            raise UserError(f"modality {key!r}: column {roles[0]!r} is label, split or id, and no input")
    kinds, apart = dict(kinds or {}), [each.column for each in figures_by.parse(attributes)]
    _check_more(table, apart, (label, *others, sample, patient, split), "attribute")
    table, modalities, events = _with_events(table, modalities or {}, long or {}, {label, sample, patient, split})
    apart = [column for column in apart if column not in _named(modalities)]
    labelled = _labelled(table, entry, missing, classes)
    keep = np.flatnonzero(labelled.there)
    notes = [*events, *([f"{n:,} rows without a label are left out"] if (n := table.height - len(keep)) else [])]
    if not patient:
        notes.append(
            "no column of patients: each row counts as one, and one person's rows may be in train and held out"
        )
    if not sample:
        notes.append("no column of samples: rows are counted, so predictions join by their order alone")
    found = parts.read(
        table.drop([*others, *apart]),
        (label, sample, patient, split),
        name,
        {part: Columns.of(other) for part, other in (joined or {}).items()},
        keep,
        match,
        {*kinds, *_named(modalities or {})},
    )
    columns = {**found.ids, **{name: cells.gather(keep) for name, cells in labelled.cells.items()}}
    columns |= {name: emptied(_without(table[name].gather(keep), missing))[0] for name in apart}
    if split:
        columns[split] = as_string(table[split].gather(keep)).str.strip_chars().str.to_lowercase().replace(SPLITS)
    inputs, owners = found.side_by_side(columns)
    inputs = inputs.changed(functools.partial(_without, words=missing))
    inputs, words = _emptied(inputs)
    entries, decisions, unfit = _sorted(inputs, owners, kinds, modalities or {}, rest)
    used = [c for c in inputs.columns if c in decisions]
    inputs = inputs.select(used).changed(lambda c: c.cast(pl.String) if c.dtype == pl.Categorical else c)
    inputs, told = _cleaned(inputs, entries, {c: found.rows[owners[c]] for c in used}, odd, missing)
    paths = path_columns(inputs, entries)
    inputs = inputs.changed(lambda c: prefix + c, paths if prefix else ())
    out, empty = without_empty(Columns(columns, inputs.bounds).beside(inputs), used)
    if entries and not out.height:
        raise UserError("no row has a modality: all cells of its columns are empty")
    there = set(out[label].unique())
    names = [c for c in labelled.classes if classes or c in there]
    schema = schema_of(name, entry, names, entries, split, list(found.ids))
    schema |= {"attributes": dict(attributes)} if attributes else {}
    notes += [*labelled.notes, *found.notes, *words, *told, *empty, *_said(found.left_out | unfit)]
    return Imported(out.whole(), schema, notes, why_lines(decisions))


def _with_events(
    table: Columns,
    given: Mapping[str, Sequence[str] | Mapping[str, Any]],
    long: Mapping[str, pl.DataFrame],
    roles: Container[str],
) -> tuple[Columns, Mapping[str, Any], list[str]]:
    """Adds the cells of modalities that have long tables, without the times of prediction, which are no input.

    Returns the table, the modalities with the columns of these cells, and what is to be said.
    """
    entries = {
        name: {**entry, "column": free_name(name, table.columns)}
        for name, entry in given.items()
        if isinstance(entry, Mapping) and "until" in entry
    }
    modalities = [parse_modality(name, entry, 1, 1) for name, entry in entries.items()]
    named = dict.fromkeys(c for e in entries.values() for c in (e["key"], e["until"]) if c in table.columns)
    samples, found = reading.gathered(modalities, pl.DataFrame([table[c] for c in named]), pathlib.Path(), long, True)
    check.refuse(found)
    table = table.drop({entry["until"] for entry in entries.values() if entry["until"] not in roles})
    table = table.replaced({e["column"]: table.keep(samples[e["column"]]) for e in entries.values()})
    return table, {**given, **entries}, [each.message for each in found]


class _Labelled(NamedTuple):
    """The label of each row: its columns, which rows have one, [n], classes in order, and what was read how."""

    cells: dict[str, pl.Series]
    there: pl.Series
    classes: list[str]
    notes: list[str]


def _labelled(
    table: Columns, label: str | Mapping[str, Any], missing: Sequence[str], classes: Sequence[str]
) -> _Labelled:
    """Reads the label of a table; arguments are as for `from_table`."""
    if isinstance(label, str):
        found = labels.read(_without(table[label], missing), classes)
        return _Labelled({label: found.cells}, found.cells.is_not_null(), found.classes, found.notes)
    schema = targets.of_entry(label)
    cells, notes = targets.typed(schema, pl.DataFrame([_without(table[c], missing) for c in schema.label_columns]))
    if wrong := [each.message for each in notes if each.fatal]:
        raise UserError(wrong[0])
    return _Labelled(cells, targets.labelled(schema, pl.DataFrame(cells)), [], [each.message for each in notes])


def _check_more(table: Columns, others: Sequence[str], roles: Sequence[str], what: str = "label") -> None:
    """Refuses further columns of a label, or `what` they are, that are not there or something else, too (UserError)."""
    for column in others:
        if column not in table.columns:
            raise UserError(f"{what}={column} is no column{did_you_mean(column, table.columns)}")
        if column in roles:
            raise UserError(f"column {column!r} cannot be {what}, split or id at once")


def _check_columns(table: Columns, label: str, sample: str, patient: str, split: str) -> None:
    roles = {"label": label, "sample": sample, "patient": patient, "split": split}
    for role, column in roles.items():
        if (column or role == "label") and column not in table.columns:
            raise UserError(f"{role}={column} is no column{did_you_mean(column, table.columns)}")
    several = [c for c in filter(None, (label, split)) if list(roles.values()).count(c) > 1]
    if several:
        raise UserError(f"column {several[0]!r} cannot be label, split or id at once")


def _named(given: Mapping[str, Sequence[str] | Mapping[str, Any]]) -> set[str]:
    """Lists the columns and patterns that a user's modalities name."""
    entries = [e if isinstance(e, Mapping) else {"columns": [e] if isinstance(e, str) else e} for e in given.values()]
    return {str(column) for entry in entries for column in columns_of(entry)}


def _cleaned(
    inputs: Columns,
    entries: Mapping[str, dict[str, Any]],
    rows: Mapping[str, np.ndarray],
    odd: str,
    missing: Sequence[str],
) -> tuple[Columns, list[str]]:
    """Reads numbers as such, and notes in the entries how rows to come are read; says what was no number."""
    told = []
    for entry in entries.values():
        if entry["kind"] == "tabular":
            rule = entry.get("odd", odd)
            own = [str(word) for word in entry.get("missing", ())]
            if own or missing:  # which is emptied already
                entry["missing"] = [*missing, *own]
            inputs = inputs.changed(functools.partial(_without, words=own), columns_of(entry) if own else ())
            inputs, said, changed = as_numbers(inputs, entry.get("columns", ()), rows, rule)
            told += said
            if changed and rule != "refuse":
                entry["odd"] = rule
                entry |= {"units": units} if (units := {c: unit for c, unit in changed.items() if unit}) else {}
        elif entry["kind"] == "codes" and (signs := signs_between(inputs[entry["column"]], codes.SIGNS)):
            entry.setdefault("between", signs)
            told.append(f"{entry['column']}: codes are taken apart at {' '.join(signs)}")
    return inputs, told


def _without(column: pl.Series, words: Sequence[str]) -> pl.Series:
    """Empties cells that hold one of some words; lists and such have none."""
    return column if not words or column.dtype.is_nested() else column.set(means_missing(column, words), None)


def _sorted(
    inputs: Columns,
    owners: Mapping[str, str],
    kinds: Mapping[str, str],
    given: Mapping[str, Sequence[str] | Mapping[str, Any]],
    rest: bool,
) -> tuple[dict[str, Any], dict[str, Decision], dict[str, str]]:
    """Returns entries by name; what each column of them is taken for, in their order; by column why it is left out."""
    if unknown := sorted(set(kinds) - set(inputs.columns)):
        raise UserError(f"--kind names {unknown[0]!r}, which is no column{did_you_mean(unknown[0], inputs.columns)}")
    named, told = _named(given), {c for e in given.values() if isinstance(e, Mapping) for c in columns_of(e)}
    decisions = {
        c: Decision(kinds[c], "as told") if c in kinds else decide(inputs[c], named=c in named) for c in inputs.columns
    }
    entries, unfit = _modalities(inputs, owners, {c: each.word for c, each in decisions.items()}, given, rest)
    used = {}
    for entry in entries.values():
        words = {key: word for word, key in KINDS[entry["kind"]].words.items()}
        for key, word in words.items():
            for c in [entry[key]] if key == "column" else entry.get(key, ()):
                same = decisions[c].word == word and c not in told
                used[c] = decisions[c] if same else Decision(word, "as told")
    return entries, used, unfit


def _modalities(
    inputs: Columns,
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


def _said(left_out: Mapping[str, str]) -> list[str]:
    """Says which columns are left out, one line a reason."""
    lines = []
    for why in dict.fromkeys(left_out.values()):
        columns = [c or "one without a name" for c, reason in left_out.items() if reason == why]
        remedy = "; naming its kind keeps one" if why == IDS else ""
        lines.append(
            f"{len(columns)} column{'s' * (len(columns) > 1)} left out ({why}): {listed(columns, _SHOWN)}{remedy}"
        )
    return lines


def without_empty(table: pl.DataFrame | Columns, used: Iterable[str]) -> tuple[Any, list[str]]:
    """Keeps rows that have a modality, and says how many had none."""
    kept = table.filter(presence_of(table, [used])[:, 0])
    lost = table.height - kept.height
    return kept, [f"{lost:,} rows without any modality are left out"] if lost else []


def _emptied(table: Columns) -> tuple[Columns, list[str]]:
    """Returns a table without words for missing, and says how many there were."""
    counts = {}

    def change(column: pl.Series) -> pl.Series:
        column, counts[column.name] = emptied(column)
        return column

    table = table.changed(change)
    shown = listed([f"{name} ({n:,})" for name, n in counts.items() if n])
    return table, [f"words for missing (NA, None, null, …) are read as empty cells: {shown}"] if shown else []
