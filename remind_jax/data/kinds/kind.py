"""What a kind of modality answers, and what is fitted of it; a kind is a subclass of `Kind` and an entry of `KINDS`."""

import abc
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import polars as pl

from remind_jax.data import cells
from remind_jax.data.files import Look
from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.schema import InputSpec, Modality, shown, string
from remind_jax.errors import UserError
from remind_jax.runtime import records


class Rows(NamedTuple):
    """Some rows of a manifest, as kinds decode them and are fitted on them."""

    table: pl.DataFrame  # of all rows of the manifest, typed as `Manifest` says
    places: np.ndarray  # int [n], row numbers from 0
    root: pathlib.Path | None  # the folder that relative paths start from
    patient: str  # the column of patients

    def cells(self, column: str) -> pl.Series:
        """Returns the cells of a column in these rows, [n]."""
        return self.table[column].gather(self.places)


class Typed(NamedTuple):
    """A modality, its columns in the types that `Manifest` promises, and what had to be done or refused for them."""

    modality: Modality
    columns: dict[str, pl.Series]
    findings: list[Finding]


class Guess(NamedTuple):
    """What importing a table takes a column for; the surest guess of all kinds wins."""

    sure: int  # `BY_TYPE`, `BY_FORM`, `BY_COUNT` or `BY_LENGTH`
    word: str  # for the column, one of `Kind.words`


BY_LENGTH, BY_COUNT, BY_FORM, BY_TYPE = range(4)


class Parts(NamedTuple):
    """What rows may lose one by one of a modality, in the order of rows: each measured cell, event or step, [u] each.

    Attributes:
      row: the row that has it, int.
      time: its place in the row, by which stretches are contiguous: hours, a step, or the number of a column.
      column: values of one number are comparable, int.
      value: what is measured, float, NaN where nothing is.
    """

    row: np.ndarray
    time: np.ndarray
    column: np.ndarray
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How kinds are fitted; each kind reads what concerns it."""

    max_tokens: int  # the most ids of a text or a list of codes, eos included; inputs are shorter when no row needs all
    vocabulary: int  # the most ids, pad, eos and unk included; there are fewer when the rows give no more
    # A folder or a hub name of a pretrained tokenizer for all text modalities, or by their names; empty: train one.
    tokenizer: str | Mapping[str, str] = ""
    numbers: str = "standard"  # how numbers of tables are encoded, one of `numbers.NUMBERS`
    bins: int = 8  # the most features of a column next to its number, where `numbers` is piecewise or periodic


class FittedKind(abc.ABC):
    """A kind fitted on some rows of one modality: it turns raw columns into what a model receives.

    Subclasses are dataclasses of numbers, strings and tuples of them, or have their own `to_dict` and `from_dict`.
    """

    @property
    @abc.abstractmethod
    def spec(self) -> InputSpec:
        """Describes what a model receives."""

    @abc.abstractmethod
    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Encodes rows that have the modality `name`, out of what `Kind.decode` gave for them.

        Returns:
          [n, *spec.shape] of `spec.dtype`.

        Raises UserError: the rows have another shape than those that the kind was fitted on.
        """

    has_parts: ClassVar[bool] = False  # whether rows may lose something of it and keep the rest

    def parts(self, raw: Mapping[str, np.ndarray], name: str) -> Parts:
        """Returns the parts of rows that have the modality, as for `encode`."""
        raise NotImplementedError(f"a modality like {name} has no parts")

    def without(self, raw: Mapping[str, np.ndarray], name: str, lost: np.ndarray) -> dict[str, np.ndarray]:
        """Returns raw columns as for `encode` without some of their `parts`, bool [u]."""
        raise NotImplementedError(f"a modality like {name} has no parts")

    def losses(self, modality: Modality, table: pl.DataFrame) -> list[Finding]:
        """Tells which rows of a table lose something when they are encoded."""
        del modality, table
        return []

    @abc.abstractmethod
    def plain(self, values: np.ndarray) -> Any:
        """Returns what logistic regression and boosting see of encoded rows, zeros in rows that lack the modality.

        These are numbers, float [n, p], NaN where one is missing; or counts of ids, a sparse matrix [n, v]. Of a JAX
        array they are one, too.
        """

    def example(self, modality: Modality) -> dict[str, Any]:
        """Returns a made-up cell for each column, out of what was fitted, for JSON; {} where there is none.

        An array is `{"ramp": shape, "dtype": name}`.
        """
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedKind":
        """Inverts `to_dict`. Raises ValueError: the content is none that it gave."""
        return cls(**cls.fields_of(content))

    @classmethod
    def fields_of(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that JSON holds, with tuples for lists. Raises ValueError: they are others."""
        if why := records.fault(content, records.of_class(cls)):
            raise ValueError(why)
        return tuples_of(content)

    def adopt(self, modality: Modality, where: str) -> Modality:
        """Brings a modality of new data, of this kind and name, into the form of the data that were fitted on.

        Raises UserError: its columns or its shape are others; the message calls the new data `where`.
        """
        return modality


class Kind(abc.ABC):
    """All that is special about a kind of modality."""

    name: str  # as in schema.yaml
    encoder: str  # the networks that turn its input into tokens, a key of `models.encoders.registry.ENCODERS`
    dtype: np.dtype  # of its input
    keys: tuple[str, ...] = ("column",)  # of its entry in schema.yaml, next to `kind`
    optional: tuple[str, ...] = ()  # those of the keys that may be left out
    stored: str = "cell"  # where values are unless the entry says so: cell, file, or "" where the cells' type tells
    endings: tuple[str, ...] = ()  # of files that importing a table takes for this kind
    folders: bool = False  # whether a path may name a folder
    paths: bool = False  # whether strings in the cells are paths, unless the entry says otherwise
    forms: str = ""  # of files, for messages
    fitted: ClassVar[type[FittedKind]]  # what fitting makes

    @property
    def words(self) -> Mapping[str, str]:
        """Maps what importing a table calls columns of this kind to the key of the entry that holds such a column."""
        return {self.name: "column"}

    def spec(self, shape: tuple[int, ...], vocabulary: int = 0) -> InputSpec:
        """Describes what a model receives of this kind; arguments as for `InputSpec`."""
        return InputSpec(self.name, shape, vocabulary, np.dtype(self.dtype), self.encoder)

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        """Makes a modality of its entry in schema.yaml, which has no other keys than `kind` and `keys`.

        Images and frames of volumes are resized to `image_size` in height and width, volumes to `frames` in length.

        Raises UserError: a value cannot be used.
        """
        column, stored = string(entry["column"], f"modalities.{name}.column"), entry.get("stored", self.stored)
        if "stored" in entry and stored not in ("cell", "file"):
            raise UserError(f"modalities.{name}.stored must be cell or file, not {shown(stored)}")
        return Modality(name, self.name, (column,), stored=stored)

    def as_new(self, modality: Modality) -> Modality:
        """Returns the modality as rows to predict may bring it: paths, wherever the run's own values were."""
        return dataclasses.replace(modality, stored=self.stored) if self.paths else modality

    def gathered(
        self,
        modality: Modality,
        table: pl.DataFrame,
        root: pathlib.Path,
        tables: Mapping[str, pl.DataFrame],
        required: bool,
    ) -> tuple[pl.Series | None, list[Finding]]:
        """Makes the modality's column, [n], of a table of its own, for a kind that has one, and says what it found.

        `table` has the samples, n rows; `tables` those that are given by name, else a file below `root` is read. None
        leaves the column as it is; so it does without any such table, which may be `required`.

        Raises UserError: the table cannot be used.
        """
        return None, []

    def typed(self, modality: Modality, columns: Mapping[str, pl.Series]) -> Typed:
        """Brings the modality's columns, as a file or a frame holds them, into the types that `Manifest` promises.

        Raises UserError: a column holds what no cell of this kind can be.
        """
        found: dict[str, pl.Series] = {}
        findings: list[Finding] = []
        for column in modality.all_columns:
            found[column], said = self._typed_column(modality, columns[column], described(column, modality))
            findings += said
        return Typed(modality, found, findings)

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns a column as strings, words for missing as null."""
        return cells.without_words(column, where)

    def problems(self, modality: Modality, table: pl.DataFrame) -> list[Finding]:
        """Finds E008 and E009 in the cells of a modality; reading a folder has put most of this right already."""
        findings = []
        for column in modality.all_columns:
            where = described(column, modality)
            if table[column].dtype == pl.String:
                words = cells.looks_missing(table[column])
                text = f"{where}{in_rows(words)} blank or a word for missing (NA, None, …); a missing cell must be null"
                findings += [Finding("E009", text, True)] if words.any() else []
            else:
                findings += self._value_problems(modality, table[column], where)
        return findings

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        """Finds what is wrong with the cells of a column that holds no strings."""
        return []

    def content(self, modality: Modality, table: pl.DataFrame, records: Mapping[str, FileRecord]) -> pl.Series | None:
        """Returns what two patients should not have in common (W103), where `records` has every sound file by its path.

        Strings [n], null where nothing is worth comparing; None for a kind whose cells are alike by chance.
        """
        if not self.paths:
            return None
        values = table[modality.columns[0]]
        return file_content(values, records) if modality.stored == "file" else _array_content(values)

    def windowed(self, modality: Modality, window: str) -> Modality:
        """Returns the modality with how its pictures' values become bytes (`data.window`); others stay as they are."""
        return modality

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> Look:
        """Looks at a file that a cell names, which is there and not empty; `thorough` decodes more than its header.

        Raises:
          Fault: it cannot be used, with what to say of it.
          ValueError, OSError: it cannot be read.
        """
        raise NotImplementedError(f"{self.name} is never stored in files")

    @abc.abstractmethod
    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Reads the raw columns of some rows: arrays [n, ...] called as the modality, or `name/part`.

        Raises UserError: a file that the rows name cannot be read or decoded (E007).
        """

    def check_options(self, options: FitOptions, names: list[str]) -> None:
        """Checks the options of fitting that concern this kind, of which the data set has modalities called `names`.

        Raises UserError: an option is out of range.
        """
        del options, names

    @abc.abstractmethod
    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedKind:
        """Fits on rows that have the modality and looks at no other. Raises UserError: the rows do not suffice."""

    def guess(self, column: pl.Series) -> Guess | None:
        """Guesses whether a column is of this kind, from at least one cell, without nulls and outer blanks."""
        return None


def described(column: str, modality: Modality) -> str:
    """Returns how findings begin that are about a column."""
    return f"column {column!r} ({modality.name}): "


def strings_of(cells: list[str | None]) -> np.ndarray:
    """Makes an object array [n] of str, '' where a cell is null."""
    return np.array(["" if cell is None else cell for cell in cells], object)


def tuples_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns fields of a dataclass with the tuples that JSON made lists of."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def file_content(column: pl.Series, found: Mapping[str, FileRecord], least: int = 0) -> pl.Series:
    """Returns the sha256 (hex) of each cell's file, [n]; null without one, or for one of fewer bytes than `least`."""
    digests = {cell: record.sha256 for cell, record in found.items() if record.size >= least}
    return pl.Series([digests.get(cell) for cell in column.to_list()], dtype=pl.String)


def _array_content(column: pl.Series) -> pl.Series:
    """Returns the sha256 (hex) of the array in each cell, [n]; null where it is null."""
    digests = [hashlib.sha256(array.tobytes()).hexdigest() for array in column.drop_nulls().to_numpy()]
    return cells.spread(pl.Series(digests, dtype=pl.String), column.is_not_null().to_numpy())
