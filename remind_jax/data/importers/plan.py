"""What an import makes of the data, in lines for a person; they hold names of columns and classes, no other cells."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import leaks, numerals, targets
from remind_jax.data.blocks import Columns
from remind_jax.data.findings import listed
from remind_jax.data.importers.modalities import columns_of, path_columns
from remind_jax.data.importers.table import Imported
from remind_jax.data.kinds import KINDS
from remind_jax.data.manifest import presence_of

_COLUMNS, _CLASSES, _MODALITIES = 5, 10, 20  # that are listed at most; the others are counted


def plan_lines(found: Imported) -> list[str]:
    """Returns at most about forty lines: ids, label, split, each modality with its columns, and what is left out."""
    table, schema = found.table, found.schema
    sample, patient = schema["sample_id"], schema["patient_id"]
    lines = [
        f"samples: {table.height:,} by {sample}, of {table[patient].n_unique():,} patients by {patient}",
        f"label: {_label(table, schema['label'])}",
        f"split: {_split(table, schema.get('split'))}",
        "modalities:",
    ]
    entries = schema["modalities"]
    width = max(len(name) for name in entries)
    presence = presence_of(table, [columns_of(entry) for entry in entries.values()])
    for (name, entry), present in list(zip(entries.items(), presence.sum(axis=0).tolist(), strict=True))[:_MODALITIES]:
        share = "all" if present == table.height else f"{present:,}"
        lines.append(f"  {name:<{width}}  {', '.join(_parts(table, name, entry))}; in {share} samples")
    if rest := [entry["kind"] for entry in list(entries.values())[_MODALITIES:]]:
        kinds = [f"{rest.count(kind)} {kind}" for kind in dict.fromkeys(rest)]
        lines.append(f"  and {len(rest)} more: {', '.join(kinds)}")
    lines += [f"figures by: {', '.join(schema['attributes'])}"] if "attributes" in schema else []
    if found.columns:
        lines += ["columns:", *(f"  {line}" for line in found.columns)]
    return lines + [f"note: {note}" for note in notes(found, presence)]


def _label(table: pl.DataFrame | Columns, entry: Mapping[str, Any]) -> str:
    """Says what is predicted."""
    about = targets.of_entry(entry)
    if not about.has_classes:
        return f"{about.task} of {listed(about.label_columns, _CLASSES)}"
    counts = dict(table[about.label].value_counts().iter_rows())
    classes = [f"{name} ({counts.get(name, 0):,})" for name in about.classes]
    return f"{about.label}, {len(classes)} classes: {listed(classes, _CLASSES)}"


def notes(found: Imported, present: np.ndarray | None = None) -> list[str]:
    """Returns what was left out or changed, and what should be looked at; `present` [n, m] is that of modalities."""
    table, schema = found.table, found.schema
    if present is None:
        present = presence_of(table, [columns_of(entry) for entry in schema["modalities"].values()])
    return [*found.notes, *_leaks(table, schema, present), *_stand_ins(table, schema)]


def _leaks(table: pl.DataFrame | Columns, schema: Mapping[str, Any], present: np.ndarray) -> list[str]:
    """Warns of columns that tell the label nearly by themselves, and of names that speak of what comes after."""
    entries, about = schema["modalities"], targets.of_entry(schema["label"])
    tabular = {n: columns_of(e) if e["kind"] == "tabular" else [] for n, e in entries.items()}
    cells = pl.DataFrame([table[c] for c in about.label_columns])
    if about.has_classes:
        positions = cells[about.label].cast(pl.Categorical).to_physical().to_numpy()
    else:
        positions = targets.strata(about, targets.arrays(about, cells))
    said = leaks.lines(table, tabular, present, positions, about.label)
    if after := leaks.named_after(c for entry in entries.values() for c in columns_of(entry)):
        said.append(f"{listed(after)}: known when the prediction is made? the names speak of what comes after")
    return said


def _stand_ins(table: pl.DataFrame | Columns, schema: Mapping[str, Any]) -> list[str]:
    """Warns of numbers that may stand for missing."""
    entries = [entry for entry in schema["modalities"].values() if entry["kind"] == "tabular"]
    return numerals.stand_in_lines(table, [c for entry in entries for c in entry.get("columns", ())])


def _split(table: pl.DataFrame | Columns, column: str | None) -> str:
    if column is None:
        return "made by each run, patient by patient"
    counts = table[column].value_counts(sort=True)
    return f"{column}, " + listed([f"{name or 'empty'} ({n:,})" for name, n in counts.iter_rows()], 4)


def _parts(table: pl.DataFrame | Columns, name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a modality's columns are, in some words."""
    kind = KINDS[entry["kind"]]
    if "column" in entry:
        what = f"{kind.name}, paths" if path_columns(table, {name: entry}) else kind.name
        yield what if entry["column"] == name else f"{what} (column {entry['column']})"
        return
    for word, key in kind.words.items():
        columns = entry.get(key, [])
        # How many values a category has says whether it is one.
        shown = [
            c if key == "columns" else f"{c}: {table[c].drop_nulls().n_unique()} values" for c in columns[:_COLUMNS]
        ]
        if columns:
            yield f"{_counted(len(columns), word)} ({listed([*shown, *columns[_COLUMNS:]], _COLUMNS)})"


def _counted(n: int, word: str) -> str:
    plural = f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"
    return f"{n} {word if n == 1 else plural}"
