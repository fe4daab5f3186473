"""The schema of a manifest: what each column is, what a model receives of it, and the words a schema may be made of.

`reading.read_schema` makes one out of `schema.yaml`, in which users say it.
"""

import dataclasses
import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import records

RESERVED = ("present", "group", "label", "row", "weight")
"""Names of what a batch holds next to the modalities, which no modality may have."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2


@dataclasses.dataclass(frozen=True)
class Modality:
    """One modality of a data set."""

    name: str  # as written in tables and reports
    kind: str  # a key of `kinds.KINDS`
    columns: tuple[str, ...]  # the numeric columns of a table; the one column of the other kinds
    categorical: tuple[str, ...] = ()  # the string columns of a table
    stored: str = "cell"  # cell: the table holds the value; file: it holds a path relative to the manifest's folder
    # (height, width, channels) of an image, (frames, height, width, channels) of a volume; channels are 1 or 3;
    # () for kinds whose size follows from the data.
    shape: tuple[int, ...] = ()
    # What else the kind's entry in schema.yaml says, as JSON has it.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    title: str = ""  # how pages and figures name it; empty: as `name`

    @property
    def all_columns(self) -> tuple[str, ...]:
        """Lists every column that belongs to it."""
        return (*self.columns, *self.categorical)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a model receives for one modality; `Kind.spec` makes one."""

    kind: str  # a key of `kinds.KINDS`
    # Of one sample: (p,) features, (t,) token ids, (t, d) tokens, (height, width, channels) pixels, or (frames, height,
    # width, channels) pixels.
    shape: tuple[int, ...]
    vocabulary: int  # number of ids; 0 for inputs that are not ids
    dtype: np.dtype  # of the array
    encoder: str  # the networks that turn it into tokens, a key of `models.encoders.registry.ENCODERS`


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A column by whose values figures are given; `bins` are the ascending edges between ranges of numbers."""

    name: str
    column: str
    bins: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Schema:
    """What the columns of a manifest mean."""

    name: str
    sample_id: str
    patient_id: str
    label: str  # the column of the label, the first of several; of survival that of the time
    classes: tuple[str, ...]  # in order; of several labels their columns, else empty
    modalities: tuple[Modality, ...]
    split: str | None = None
    task: str = "classes"  # classes, ordinal, multilabel, regression or survival
    more_labels: tuple[str, ...] = ()  # the other columns of several labels; of survival that of the event
    transform: str = "none"  # what is made of values before they are learned, one of `targets.TRANSFORMS`
    horizons: tuple[float, ...] = ()  # times at which survival is judged, ascending
    attributes: tuple[Attribute, ...] = ()
    title: str = ""  # how pages name the label; empty: by its columns
    names: tuple[tuple[str, str], ...] = ()  # classes, and how pages name them

    @property
    def titles(self) -> dict[str, Any]:
        """Returns what pages write in place of names: of the `label`, and by name of `classes` and `modalities`."""
        modalities = {each.name: each.title for each in self.modalities if each.title}
        label = self.title or (f"time to {self.more_labels[0]}" if self.task == "survival" else "")
        given = {"label": label, "classes": dict(self.names), "modalities": modalities}
        return {key: value for key, value in given.items() if value}

    def untitled(self) -> "Schema":
        """Returns the schema without what pages alone read."""
        modalities = tuple(dataclasses.replace(each, title="") for each in self.modalities)
        return dataclasses.replace(self, modalities=modalities, title="", names=())

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Lists the columns of the label."""
        return (self.label, *self.more_labels)

    @property
    def has_classes(self) -> bool:
        """Tells whether a sample has one class of several, ordered or not."""
        return self.task in ("classes", "ordinal")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON; those of other tasks, attributes and titles only where there are any.

        So the digests of data of classes are those that they had when there was nothing else.
        """
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        for modality in fields["modalities"]:
            if not modality["title"]:
                del modality["title"]
        plain = {"task": "classes", "more_labels": [], "transform": "none", "horizons": [], "attributes": []}
        plain |= {"title": "", "names": []}
        return {key: value for key, value in fields.items() if plain.get(key, ...) != value}

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yields what names a column, and the column, for every column the schema names."""
        yield from (("sample_id", self.sample_id), ("patient_id", self.patient_id))
        yield from (("label", column) for column in self.label_columns)
        if self.split is not None:
            yield "split", self.split
        for modality in self.modalities:
            for column in modality.all_columns:
                yield f"modality {modality.name}", column
        for attribute in self.attributes:
            yield f"attribute {attribute.name}", attribute.column


def schema_from_dict(content: Mapping[str, Any]) -> Schema:
    """Inverts `Schema.to_dict`. Raises ValueError: the content is none that it gave."""
    if why := records.fault(content, records.of_class(Schema)):
        raise ValueError(why)
    parts = ("columns", "categorical", "shape")
    modalities = tuple(Modality(**each | {key: tuple(each[key]) for key in parts}) for each in content["modalities"])
    attributes = [Attribute(**each | {"bins": tuple(each["bins"])}) for each in content.get("attributes", ())]
    lists = {key: tuple(content.get(key, ())) for key in ("classes", "more_labels", "horizons")}
    lists["names"] = tuple(map(tuple, content.get("names", ())))
    return Schema(**{**content, **lists, "modalities": modalities, "attributes": tuple(attributes)})


def shown(value: object) -> str:
    """Shows a value in a few words: aliases may unfold to gigabytes, and integers may be too long to write."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return f"a long {type(value).__name__}"


def mapping(value: object, where: str, keys: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns `value`, a mapping that holds all keys but the optional ones and no other, or raises UserError."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with {', '.join(keys)}")
    for key in value:
        if key not in keys:
            found = shown(key)
            raise UserError(f"unknown key {found} in {where}{did_you_mean(found, keys)}; keys are {', '.join(keys)}")
    for key in keys:
        if key not in value and key not in optional:
            raise UserError(f"{where} lacks the key {key!r}")
    return value


def string(value: object, where: str) -> str:
    """Returns `value`, a string of one line that is not blank, or raises UserError."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise UserError(f"{where} must be a string, not {shown(value)}; put no, on and numbers in quotes")
    return value


def strings(value: object, where: str) -> tuple[str, ...]:
    """Returns a list of column names as a tuple, or raises UserError."""
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of column names, not {shown(value)}")
    return tuple(string(name, where) for name in value)


def title_of(entry: Mapping[str, Any], where: str) -> str:
    """Returns the `title` of an entry, "" where it has none, or raises UserError."""
    return string(entry["title"], f"{where}.title") if "title" in entry else ""
