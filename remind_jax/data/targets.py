"""What a label may be: the forms of `label:` in schema.yaml, the arrays that they become, what is wrong with cells.

{column: died, classes: ["0", "1"]}                                classes; with ordered: true, ordinal
{task: multilabel, columns: [pneumonia, sepsis]}                   an empty cell is unknown and counts in nothing
{task: regression, column: los_days, transform: log1p}             transform: none or log1p
{task: survival, time: days, event: died, horizons: [30, 365]}     event: 1, or 0 where the time is censored
"""

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import cells, numerals
from remind_jax.data.blocks import Columns
from remind_jax.data.findings import Finding, in_rows, listed
from remind_jax.data.schema import Schema, mapping, shown, string, strings, title_of
from remind_jax.errors import UserError, did_you_mean

TRANSFORMS = ("none", "log1p")
UNKNOWN = -1
"""What an empty cell of several labels is."""
_STRATA = 5  # of values, between which splits are even
_MOST_HORIZONS = 20


def parse(entry: object) -> dict[str, Any]:
    """Returns the fields of `Schema` that an entry `label` sets: label, classes, task, and those of other tasks.

    Raises UserError: the entry is none of the forms.
    """
    task = entry.get("task", "classes") if isinstance(entry, dict) else "classes"
    if not isinstance(task, str) or task not in _FORMS:
        raise UserError(
            f"label.task {shown(task)} is unknown{did_you_mean(task, _FORMS)}; tasks are {', '.join(_FORMS)}"
        )
    return {"task": task, "classes": ()} | _FORMS[task](entry)


def of_entry(entry: object) -> Schema:
    """Returns a schema of an entry `label` alone; raises UserError as `parse`."""
    return Schema("", "", "", modalities=(), **parse(entry))


def _classes(entry: object) -> dict[str, Any]:
    optional = ("ordered", "task", "names", "title")
    label = mapping(entry, "label", ("column", "classes", *optional), optional)
    classes, ordered = label["classes"], label.get("ordered", False)
    if not isinstance(classes, list) or not all(type(name) in (str, int) for name in classes):
        raise UserError("label.classes must be a list of strings; put yes, no, on, off and decimals in quotes")
    classes = tuple(str(name).strip() for name in classes)
    if len(classes) < 2 or len(set(classes)) != len(classes) or not all(c and c.isprintable() for c in classes):
        raise UserError("label.classes needs at least two different names, each one line")
    if not isinstance(ordered, bool):
        raise UserError(f"label.ordered must be true or false, not {shown(ordered)}")
    task = {"task": "ordinal"} if ordered or label.get("task") == "ordinal" else {}
    return {"label": string(label["column"], "label.column"), "classes": classes, **task} | _shown(label, classes)


def _multilabel(entry: object) -> dict[str, Any]:
    label = mapping(entry, "label", ("task", "columns", "names", "title"), ("names", "title"))
    first, *others = strings(label["columns"], "label.columns") or (None,)
    if not others or len({first, *others}) <= len(others):
        raise UserError("label.columns needs at least two different columns; one is a label with classes")
    columns = (first, *others)
    return {"label": first, "more_labels": columns[1:], "classes": columns} | _shown(label, columns)


def _regression(entry: object) -> dict[str, Any]:
    label = mapping(entry, "label", ("task", "column", "transform", "title"), ("transform", "title"))
    if (transform := label.get("transform", "none")) not in TRANSFORMS:
        raise UserError(f"label.transform must be {' or '.join(TRANSFORMS)}, not {shown(transform)}")
    return {"label": string(label["column"], "label.column"), "transform": transform} | _shown(label)


def _survival(entry: object) -> dict[str, Any]:
    label = mapping(entry, "label", ("task", "time", "event", "horizons", "title"), ("horizons", "title"))
    horizons = label.get("horizons", [])
    if not isinstance(horizons, list) or not all(type(x) in (int, float) and 0 < x < 1e30 for x in horizons):
        raise UserError("label.horizons must be a list of times above 0, such as [30, 365]")
    if sorted(set(horizons)) != horizons or len(horizons) > _MOST_HORIZONS:
        raise UserError(f"label.horizons must ascend, each once, at most {_MOST_HORIZONS}")
    time, event = (string(label[key], f"label.{key}") for key in ("time", "event"))
    return {"label": time, "more_labels": (event,), "horizons": tuple(map(float, horizons))} | _shown(label)


def _shown(label: Mapping[str, Any], classes: Sequence[str] = ()) -> dict[str, Any]:
    """Returns `title` and `names` of an entry `label`, which pages show; raises UserError as `parse`."""
    if not isinstance(names := label.get("names", {}), dict):
        raise UserError("label.names must be a mapping from classes to what pages write")
    names = {str(name).strip(): string(text, "each of label.names") for name, text in names.items()}
    if unknown := [name for name in names if name not in classes]:
        known = f"{did_you_mean(unknown[0], classes)}; they are {listed(classes)}"
        raise UserError(f"label.names: {shown(unknown[0])} is none of the classes{known}")
    if len({names.get(name, name) for name in classes}) < len(classes):
        raise UserError("label.names must differ from each other")
    return {"title": title_of(label, "label"), "names": tuple(names.items())}


_FORMS: Mapping[str, Callable[[object], dict[str, Any]]] = {
    "classes": _classes,
    "ordinal": _classes,
    "multilabel": _multilabel,
    "regression": _regression,
    "survival": _survival,
}
TASKS = tuple(_FORMS)


def typed(schema: Schema, table: pl.DataFrame | Columns) -> tuple[dict[str, pl.Series], list[Finding]]:
    """Returns the columns of the label: classes as strings without blanks around them, others as Float64.

    Findings count words for missing, which become null, and cells that are no numbers (E005, fatal).
    """
    if schema.has_classes:
        return {schema.label: cells.trim(cells.as_string(table[schema.label]))}, []
    series, notes = {}, []
    for name in schema.label_columns:
        column, where = table[name], f"column {name!r}: "
        if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
            column, found = cells.without_words(column, where)
            notes += found
            wrong = numerals.plain(column).is_null() & column.is_not_null()
            if wrong.any():
                text = f"{where}{in_rows(wrong)} not a number, as a label of task {schema.task} must be; fix them"
                notes.append(Finding("E005", text, True))
            column = numerals.plain(column)
        series[name] = column.cast(pl.Float64).fill_nan(None).alias(name)
    return series, notes


def problems(schema: Schema, table: pl.DataFrame | Columns, complete: bool = True) -> Iterator[Finding]:
    """Finds cells of a label that can be none (E005, fatal), of a table from `typed`; those of classes stay to `check`.

    With `complete` a row without a label is one of them: of several labels, one without any.
    """
    columns, empty = [table[name] for name in schema.label_columns], ~labelled(schema, table)
    if complete and empty.any():
        lacks = "any label" if schema.task == "multilabel" else "a label"
        names = f"column{'s' * (len(columns) > 1)} {listed([repr(name) for name in schema.label_columns])}"
        yield Finding("E005", f"{names}: {in_rows(empty)} without {lacks}; fill them or drop the rows", True)
    for column, holds, says in _limits(schema, columns):
        if (wrong := ~holds & column.is_not_null()).any():
            yield Finding("E005", f"column {column.name!r}: {in_rows(wrong)} {says}; fix the cells", True)


def _limits(schema: Schema, columns: list[pl.Series]) -> Iterator[tuple[pl.Series, pl.Series, str]]:
    """Yields a column, where it holds what it may, and what it holds elsewhere."""
    large = np.finfo(np.float32).max  # models compute in float32
    for column in columns:
        yield column, (column.abs() <= large).fill_null(False), "infinite or beyond float32"
    if schema.task == "multilabel":
        for column in columns:
            yield column, column.is_in([0.0, 1.0]), "neither 0 nor 1 (an empty cell is unknown)"
    if schema.task == "regression" and schema.transform == "log1p":
        yield columns[0], columns[0] > -1, "at or below -1, of which log1p makes no number; set transform: none"
    if schema.task == "survival":
        yield columns[0], columns[0] > 0, "not above 0, as a time must be (an event at once may have half of a unit)"
        yield columns[1], columns[1].is_in([0.0, 1.0]), "neither 1 (event) nor 0 (censored)"


def labelled(schema: Schema, table: pl.DataFrame | Columns) -> pl.Series:
    """Tells which rows have a label, bool [n]: of several labels, at least one."""
    there = [table[name].is_not_null() for name in schema.label_columns]
    return functools.reduce(operator.or_ if schema.task == "multilabel" else operator.and_, there)


def problems_of_train(schema: Schema, labels: np.ndarray, where: str = "in train") -> Iterator[Finding]:
    """Finds what no model could learn from train rows with some labels (E005, fatal); classes stay to `check`."""
    if schema.task == "multilabel":
        lacking = [name for name, column in zip(schema.classes, labels.T, strict=True) if not {0, 1} <= set(column)]
        if lacking:
            text = f"no row {where} is 1, or none is 0, in {listed(lacking)}; add rows or drop the label"
            yield Finding("E005", text, True)
    if schema.task == "regression" and len(labels) and np.ptp(labels) == 0:
        yield Finding("E005", f"column {schema.label!r}: all values {where} are equal; there is nothing to learn", True)
    if schema.task == "survival" and not (labels[:, 1] == 1).any():
        text = f"column {schema.more_labels[0]!r}: no row {where} has an event; there is nothing to learn"
        yield Finding("E005", text, True)


def arrays(schema: Schema, table: pl.DataFrame) -> np.ndarray:
    """Returns the labels of a table from `typed` without problems, of other tasks than classes.

    They are of several labels int8 [n, l], 1, 0 or `UNKNOWN`; of values float64 [n]; of survival float64 [n, 2], time
    and event.
    """
    columns = [table[name].to_numpy() for name in schema.label_columns]
    if schema.task == "multilabel":
        return np.nan_to_num(np.stack(columns, axis=1), nan=UNKNOWN).astype(np.int8)
    return columns[0] if schema.task == "regression" else np.stack(columns, axis=1)


def strata(schema: Schema, labels: np.ndarray) -> np.ndarray:
    """Returns which samples should be split evenly, int32 [n] from 0: those of a class, or of labels much alike.

    Of several labels these are samples with the same rarest positive label, or with none; of values, those between two
    quantiles; of survival, those with and without the event, in the earlier or the later half.
    """
    if schema.task == "multilabel":
        rarity = np.argsort(np.argsort((labels == 1).sum(axis=0), kind="stable"))
        found = np.where(labels == 1, labels.shape[1] - rarity, 0).max(axis=1, initial=0)
    elif schema.task == "regression":
        found = np.searchsorted(_quantiles(labels, _STRATA), labels, side="left")
    elif schema.task == "survival":
        found = 2 * labels[:, 1] + (labels[:, 0] > _quantiles(labels[:, 0], 2)[:1])
    else:
        return labels
    return np.unique(found, return_inverse=True)[1].astype(np.int32)


def _quantiles(values: np.ndarray, parts: int) -> np.ndarray:
    """Returns the values that lie between equal parts, which are values themselves; [parts - 1]."""
    ordered = np.sort(values)
    return ordered[np.arange(1, parts) * len(values) // parts] if len(values) else np.zeros(parts - 1)


def counts(schema: Schema, table: pl.DataFrame) -> dict[str, Any]:
    """Counts labels of a table from `typed`, of other tasks than classes, for `remind check`."""
    labels = arrays(schema, table)
    if schema.task == "multilabel":
        known, cases = ((labels >= 0).sum(axis=0).tolist(), (labels == 1).sum(axis=0).tolist())
        return {name: f"{c} of {k}" for name, c, k in zip(schema.classes, cases, known, strict=True)}
    if schema.task == "regression":
        known = labels[np.isfinite(labels)]
        middle = np.quantile(known, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist() if len(known) else []
        return dict(zip(("least", "quarter", "median", "three quarters", "most"), middle, strict=False))
    events = labels[:, 1] == 1
    by_horizon = {f"events by {t:g}": int((events & (labels[:, 0] <= t)).sum()) for t in schema.horizons}
    return {"events": int(events.sum()), "censored": int((labels[:, 1] == 0).sum()), **by_horizon}
