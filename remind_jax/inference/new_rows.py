"""Reads new rows for a model and puts them into the order of its modalities."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from remind_jax.data import reading
from remind_jax.data.manifest import Manifest
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError, did_you_mean


def read(
    data: Any,
    schema: Schema,
    preprocessor: Preprocessor,
    *,
    image_size: int,
    frames: int,
    bad_files: str,
    window: str = "stored",
    count: Callable[[int, int], None] | None = None,
    root: str = "",
    given: Mapping[str, Any] | None = None,
) -> Manifest:
    """Reads rows for a model, and returns them with modalities, and columns of tables, in the model's order.

    `data` is a manifest's folder, a CSV or parquet file, a polars or pandas frame, or a `Manifest`; files and frames
    have the columns of the model's own data, of which `schema` is the schema. Pictures and volumes are resized to
    `image_size` and `frames`; `bad_files` and `window` are the keys of section `data`; `count` is called with the
    number of files of a column that were read, and the number of all; paths in a frame start from `root`; `given` are
    frames of events by the name of their modality or table.

    Raises UserError: the rows cannot be used, or are not of the model's modalities and classes.
    """
    where = data if isinstance(data, str | pathlib.Path) else "the data"
    if not isinstance(data, Manifest):
        options = {"image_size": image_size, "frames": frames, "bad_files": bad_files, "window": window}
        data = reading.read_new(data, schema, **options, count=count, root=root, given=given)
    check_classes(data, schema, where)
    return in_order(data, preprocessor, where)


def in_order(manifest: Manifest, preprocessor: Preprocessor, where: pathlib.Path | str) -> Manifest:
    """Returns the manifest with modalities, and columns of tables, in the model's order; `where` names it in messages.

    Raises UserError: the modalities, kinds or columns differ from the model's.
    """
    there, fitted, modalities = {each.name: each for each in manifest.schema.modalities}, preprocessor.fitted, []
    for name in there:
        if name not in fitted:
            raise UserError(f"{where}: the run has no modality {name!r}{did_you_mean(name, fitted)}")
    for name, each in fitted.items():
        if name not in there:
            raise UserError(f"{where}: schema.yaml lacks the run's modality {name!r}; its column may be empty")
        if there[name].kind != each.spec.kind:
            raise UserError(f"{where}: {name!r} is of kind {there[name].kind}, in the run {each.spec.kind}")
        modalities.append(each.adopt(there[name], str(where)))
    manifest = dataclasses.replace(manifest, schema=dataclasses.replace(manifest.schema, modalities=tuple(modalities)))
    return dataclasses.replace(manifest, notes=(*manifest.notes, *preprocessor.losses(manifest)))


def check_classes(manifest: Manifest, schema: Schema, where: pathlib.Path | str) -> None:
    """Refuses data whose task, or classes in order, differ from the model's (UserError)."""
    if (here := manifest.schema.task) != schema.task:
        raise UserError(f"{where} has a label of task {here}; the run is of task {schema.task}")
    here, there = manifest.schema.classes, schema.classes
    if here != there:
        raise UserError(f"{where} has the classes {', '.join(here)}; the run has {', '.join(there)}, in this order")
