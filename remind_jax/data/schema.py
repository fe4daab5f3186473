"""The schema of a manifest: what each column is, and `schema.yaml`, in which users say so."""

import dataclasses
import json
import pathlib
import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from remind_jax.errors import UserError, did_you_mean

KINDS = ("tabular", "text", "codes", "embedding", "image", "volume")
PIXELS = ("image", "volume")
_RESERVED = ("present", "group", "label", "row", "weight")  # keys beside the modalities in decoded and encoded batches
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2
_KEYS = {
    "tabular": ("kind", "columns", "categorical"),
    "text": ("kind", "column", "stored"),
    "codes": ("kind", "column"),
    "embedding": ("kind", "column", "stored"),
    "image": ("kind", "column", "channels"),
    "volume": ("kind", "column", "channels"),
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
      shape: (height, width, channels) of an image, (frames, height, width, channels) of a volume, of which channels are
        1 or 3; () for the other kinds.
    """

    name: str
    kind: str
    columns: tuple[str, ...]
    categorical: tuple[str, ...] = ()
    stored: str = "cell"
    shape: tuple[int, ...] = ()


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def columns(self) -> Iterator[tuple[str, str]]:
        """What names a column, and the column, for every column the schema names."""
        yield from (("sample_id", self.sample_id), ("patient_id", self.patient_id), ("label", self.label))
        if self.split is not None:
            yield "split", self.split
        for modality in self.modalities:
            for column in (*modality.columns, *modality.categorical):
                yield f"modality {modality.name}", column


def schema_from_dict(content: Mapping[str, Any]) -> Schema:
    """The inverse of `Schema.to_dict`."""
    parts = ("columns", "categorical", "shape")
    modalities = tuple(Modality(**each | {key: tuple(each[key]) for key in parts}) for each in content["modalities"])
    return Schema(**{**content, "classes": tuple(content["classes"]), "modalities": modalities})


def read_schema(path: pathlib.Path, image_size: int, frames: int) -> Schema:
    """Reads `schema.yaml`.

    Args:
      path: of the file.
      image_size: height and width that images and frames of volumes are resized to.
      frames: the length that volumes are resized to.

    Raises:
      UserError: the file is not there, not YAML, or does not say what it must.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: a manifest folder needs one, which python -m remind_jax.import_data writes"
        ) from None
    except Exception as error:  # what its tags cannot read ends in all kinds of errors
        place = getattr(error, "problem_mark", None)
        raise UserError(f"{path} is not YAML{f' (line {place.line + 1})' if place else ''}") from None
    try:
        return _parse_schema(content, image_size, frames)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from None


def _parse_schema(content: object, image_size: int, frames: int) -> Schema:
    keys = ("version", "name", "sample_id", "patient_id", "label", "split", "modalities")
    top = _mapping(content, "the file", keys, ("split",))
    if top["version"] != 1 or isinstance(top["version"], bool):
        raise UserError(f"version must be 1, not {_shown(top['version'])}")
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
        modalities=tuple(_parse_modality(name, entry, image_size, frames) for name, entry in entries.items()),
        split=None if top.get("split") is None else _string(top["split"], "split"),
    )
    owners: dict[str, str] = {}
    for owner, column in schema.columns():
        if column in owners and (owner, owners[column]) != ("patient_id", "sample_id"):
            raise UserError(f"column {column!r} is used twice, by {owners[column]} and {owner}")
        owners[column] = owner
    return schema


def _parse_modality(name: object, entry: object, image_size: int, frames: int) -> Modality:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name in _RESERVED:
        taken = ", ".join(_RESERVED)
        raise UserError(f"modality name {_shown(name)} must be letters, digits, _ and -, and none of {taken}")
    where = f"modalities.{name}"
    if not isinstance(entry, dict) or "kind" not in entry:
        raise UserError(f"{where} must be a mapping with a kind")
    kind = entry["kind"]
    if kind not in KINDS:
        shown = _shown(kind)
        raise UserError(f"{where}: unknown kind {shown}{did_you_mean(shown, KINDS)}; kinds are {', '.join(KINDS)}")
    optional = ("stored", "channels") if kind != "tabular" else ("columns", "categorical")
    entry = _mapping(entry, where, _KEYS[kind], optional)
    if kind == "tabular":
        columns = _strings_of(entry.get("columns", []), f"{where}.columns")
        categorical = _strings_of(entry.get("categorical", []), f"{where}.categorical")
        if not columns and not categorical:
            raise UserError(f"{where} needs columns or categorical")
        return Modality(name, kind, columns, categorical)
    if kind in PIXELS:
        channels = entry.get("channels", 3)
        if channels not in (1, 3) or isinstance(channels, bool):
            raise UserError(f"{where}.channels must be 1 or 3, not {_shown(channels)}")
        shape = (image_size, image_size, channels)
        column = _string(entry["column"], f"{where}.column")
        return Modality(name, kind, (column,), (), "file", shape if kind == "image" else (frames, *shape))
    # An embedding that does not say is a file when its cells are strings, a value when they are nested lists.
    stored = entry.get("stored", "" if kind == "embedding" else "cell")
    if stored not in ("cell", "file") and "stored" in entry:
        raise UserError(f"{where}.stored must be cell or file, not {_shown(stored)}")
    return Modality(name, kind, (_string(entry["column"], f"{where}.column"),), (), stored)


def _shown(value: object) -> str:
    """A value in a few words: aliases may unfold to gigabytes, and integers may be too long to write."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return f"a long {type(value).__name__}"


def _mapping(value: object, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict:
    """`value` as a mapping that holds every key but the optional ones and no other."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            shown = _shown(key)
            raise UserError(f"unknown key {shown} in {where}{did_you_mean(shown, keys)}; keys are {', '.join(keys)}")
    for key in keys:
        if key not in value and key not in optional:
            raise UserError(f"{where} lacks the key {key!r}")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UserError(f"{where} must be a string, not {_shown(value)}; put no, on and numbers in quotes")
    return value


def _strings_of(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of column names, not {_shown(value)}")
    return tuple(_string(name, where) for name in value)
