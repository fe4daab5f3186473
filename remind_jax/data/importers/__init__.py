"""Manifest folders out of data in other forms, one file a form."""

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import Any

import polars as pl

from remind_jax.data import check, examine, reading
from remind_jax.data.importers import flex_moe, meds, modalities, monai, table
from remind_jax.data.tables import read_table
from remind_jax.errors import UserError


def pairs(text: str, option: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping. Raises UserError for anything else."""
    found = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in found:
            raise UserError(f"{option}: {item!r} must be NAME=VALUE, each name once")
        found[key] = value
    return found


def below(out: pathlib.Path, folder: pathlib.Path) -> str:
    """The path from the manifest's folder down to another one, to be put before paths; empty when they are the same."""
    relative = os.path.relpath(folder.resolve(), out.resolve())
    return "" if relative == "." else f"{pathlib.PurePath(relative).as_posix()}/"


def _modalities(options: argparse.Namespace) -> dict[str, list[str]]:
    """Returns by modality what its columns or codes look like."""
    return {key: value.split("+") for key, value in pairs(options.modality, "--modality").items()}


def _rules(options: argparse.Namespace) -> dict[str, Any]:
    """Returns how labels, ids and numbers are read."""
    classes = [name.strip() for name in options.classes.split(",") if name.strip()]
    missing = [word.strip() for word in options.missing.split(",") if word.strip()]
    return {"classes": classes, "match": options.match, "odd": options.odd_numbers, "missing": missing}


def attributes_of(text: str) -> dict[str, Any]:
    """Reads `sex,age:40:65`, columns and the edges of ranges of their numbers. Raises UserError for anything else."""
    found: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        column, *edges = item.split(":")
        try:
            found[column] = {"column": column, "bins": [float(edge) for edge in edges]} if edges else column
        except ValueError:
            raise UserError(
                f"--attributes: {item!r} must be COLUMN, or COLUMN:NUMBER:… with the edges of ranges"
            ) from None
    return found


def _label(options: argparse.Namespace) -> str | dict[str, Any]:
    """Returns the column of classes, or the entry `label` of another task. Raises UserError: it is none."""
    columns = [name.strip() for name in options.label.split(",") if name.strip()]
    if options.task in ("classes", "ordinal") or not columns:
        return options.label
    if options.task == "survival" and len(columns) != 2:
        raise UserError("--task=survival needs two columns, of the time and of the event: --label=TIME,EVENT")
    entry: dict[str, Any] = {"multilabel": {"columns": columns}, "regression": {"column": options.label}}.get(
        options.task, dict(zip(("time", "event"), columns, strict=False))
    )
    entry |= {"transform": options.transform} if options.transform else {}
    if options.horizons:
        try:
            entry["horizons"] = [float(number) for number in options.horizons.split(",")]
        except ValueError:
            raise UserError(f"--horizons={options.horizons} must be times such as 30,365") from None
    return {"task": options.task, **entry}


def _events(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """Returns the entries of long tables by modality, which is called as the file, and the tables by name."""
    entries, long = {}, {}
    for text in options.events:
        entry = pairs(text, "--events")
        path = pathlib.Path(entry.get("table", ""))
        numbers = {"most": int(entry["most"])} if entry.get("most", "").isdigit() else {}
        entries[modalities.name_of(path.name.partition(".")[0])] = (
            entry | {"kind": "events", "table": path.name} | numbers
        )
        long[path.name] = read_table(path)
    return entries, long


def _table(options: argparse.Namespace, name: str, prefix: str) -> table.Imported:
    joined = [pathlib.Path(path) for path in filter(None, options.join.split(","))]
    columns = {key: getattr(options, key) for key in ("sample", "patient", "split")}
    entries, long = _events(options)
    told = {"kinds": pairs(options.kind, "--kind"), "modalities": _modalities(options) | entries, **_rules(options)}
    told |= {"attributes": attributes_of(options.attributes) or None, "long": long}
    found = table.read(options.source, joined, name=name, label=_label(options), **columns, **told, prefix=prefix)
    if options.task == "ordinal":
        found.schema["label"]["ordered"] = True
    return found


def _monai(options: argparse.Namespace, name: str, prefix: str) -> table.Imported:
    label = options.label or "label"
    return monai.read(options.source, name=name, patient=options.patient, label=label, prefix=prefix, **_rules(options))


def _meds(options: argparse.Namespace, name: str, prefix: str) -> table.Imported:
    del prefix  # its cells name no files
    parts, kinds = _modalities(options), pairs(options.kind, "--kind")
    told = {"modalities": parts, "columns": options.columns, "kinds": kinds}
    return meds.read(options.source, options.labels, name=name, **told)


def _flex_moe(options: argparse.Namespace, name: str, prefix: str) -> table.Imported:
    del prefix  # its scans become files of the folder
    return flex_moe.from_flex_moe(options.source, name=name)


FORMS: dict[str, Callable[[argparse.Namespace, str, str], table.Imported]] = {
    "table": _table,
    "monai": _monai,
    "meds": _meds,
    "flex_moe": _flex_moe,
}
"""(options of the command, name of the data set, what paths begin with) -> the data, by the form that they have."""


def read(options: argparse.Namespace) -> table.Imported:
    """Reads the data that a command line names, and refuses what `remind check` would, files aside.

    Args:
      options: of `remind_jax.import_data`.

    Raises UserError: the data cannot be used, or lie where the manifest's folder does not hold them.
    """
    prefix = below(options.out, options.source.parent)
    found = FORMS[options.form](options, options.name or options.out.resolve().name, prefix)
    paths = modalities.path_columns(found.table, found.schema["modalities"])
    if prefix.startswith("..") and options.form in ("table", "monai") and paths:
        where = f"the files that cells name must lie below the folder of --out, {options.out}"
        raise UserError(f"{where}: give --out={options.source.parent}, or move them and the table there")
    check.refuse(examine.fatal_problems(reading.without_files(found.schema, found.table)))
    return found
