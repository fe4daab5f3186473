"""Datalists of MONAI."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import polars as pl

from remind_jax.data.findings import listed
from remind_jax.data.importers.table import SPLITS, Imported, from_table
from remind_jax.errors import UserError
from remind_jax.runtime import records


def read(path: pathlib.Path, **options: Any) -> Imported:
    """Reads a datalist from its JSON file; options and errors as for `from_monai`."""
    remedy = "a datalist has lists under training, validation, test"
    return from_monai(records.read(path, {}, remedy, below=records.ANYWHERE, finite=False), **options)


def from_monai(
    content: Mapping[str, Any], *, name: str, patient: str = "", label: str = "label", prefix: str = "", **rules: Any
) -> Imported:
    """Makes a manifest of a datalist as MONAI reads it: mappings under `training`, `validation` and `test`.

    Values that are paths become a modality a key, numbers and words together one that is called `table`; a key that an
    item lacks is missing. A list of paths becomes a modality a path, `image_0`, `image_1`, …. `content` is the file's
    JSON, `patient` and `label` are keys, `prefix` and `rules` are as for `from_table`.

    Raises UserError: there are no labelled items, or they are labelled by masks.
    """
    rows: list[dict[str, Any]] = []
    unlabelled = 0
    for section, split in SPLITS.items():
        if not isinstance(content.get(section, []), list):
            raise UserError(f"{section} is no list of items")
        for item in content.get(section, []):
            if not isinstance(item, dict) or item.get(label) is None:
                unlabelled += 1
                continue
            rows.append(_flat_item(item) | {"split": split})
    if not rows:
        raise UserError(f"no item under training, validation or test has the key {label!r}")
    if any(isinstance(row.get(label), str) and re.search(r"\.\w{2,4}(\.gz)?$", row[label]) for row in rows):
        raise UserError(f"{label!r} holds files: the datalist is of a segmentation, not of a classification")
    table = pl.DataFrame(rows, infer_schema_length=None, strict=False).drop("fold", strict=False)
    one = set(table["split"].unique()) == {"train"}
    table = table.drop("split") if one else table
    paths = {c: "volume" for c in table.columns if table[c].dtype == pl.String and _all_arrays(table[c])}
    options = {"split": "" if one else "split", "kinds": paths, "prefix": prefix, **rules}
    found = from_table(table, name="table", label=label, patient=patient, **options)
    notes = [f"{unlabelled} items without {label!r} are left out"] if unlabelled else []
    if other := [key for key, items in content.items() if isinstance(items, list) and items and key not in SPLITS]:
        notes.append(f"no list of items is looked for under {listed(other)}")
    if paths:
        notes.append(f"taken for volumes [t, h, w(, c)]: {listed(list(paths))}; for tokens [t, d] say kind: embedding")
    return found._replace(schema=found.schema | {"name": name}, notes=notes + found.notes)


def _flat_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """Puts the values of lists under keys of their own, and takes a leading ./ from paths."""
    flat: dict[str, Any] = {}
    for key, value in item.items():
        values = {f"{key}_{i}": one for i, one in enumerate(value)} if isinstance(value, list) else {key: value}
        if bad := [v for v in values.values() if not isinstance(v, str | int | float | None) or _is_immense(v)]:
            raise UserError(
                f"the key {key!r} of an item holds a {type(bad[0]).__name__} that is no path, word or number"
            )
        flat |= {k: v.removeprefix("./") if isinstance(v, str) else v for k, v in values.items()}
    return flat


def _is_immense(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= 2**63


def _all_arrays(column: pl.Series) -> bool:
    return column.drop_nulls().str.contains(r"\.(npy|nii|nii\.gz)$").all() and column.is_not_null().any()
