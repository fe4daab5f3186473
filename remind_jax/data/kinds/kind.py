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
from remind_jax.data.findings import FileRecord, Finding, in_rows
from remind_jax.data.schema import InputSpec, Modality, shown, string
from remind_jax.errors import UserError


class Rows(NamedTuple):
    """Some rows of a manifest, as kinds decode them and are fitted on them.

    Attributes:
      table: of all rows of the manifest, typed as `Manifest` says.
      places: int [n], row numbers from 0.
      root: the folder that relative paths start from; None without one.
      patient: the column of patients.
    """

    table: pl.DataFrame
    places: np.ndarray
    root: pathlib.Path | None
    patient: str

    def cells(self, column: str) -> pl.Series:
        """The cells of a column in these rows, [n]."""
        return self.table[column].gather(self.places)


class Typed(NamedTuple):
    """A modality, its columns in the types that `Manifest` promises, and what had to be done or refused for them."""

    modality: Modality
    columns: dict[str, pl.Series]
    findings: list[Finding]


class Guess(NamedTuple):
    """What importing a table takes a column for, one of `Kind.words`; the surest guess of all kinds wins.

    Attributes:
      sure: `BY_TYPE`, `BY_FORM`, `BY_COUNT` or `BY_LENGTH`.
      word: for the column.
    """

    sure: int
    word: str


BY_LENGTH, BY_COUNT, BY_FORM, BY_TYPE = range(4)


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How kinds are fitted; each kind reads what concerns it.

    Attributes:
      max_tokens: the most ids a text or a list of codes may have, eos included; shorter when no row needs as many.
      vocabulary: the most ids, pad, eos and unk included; fewer when the rows give no more.
      tokenizer: a folder or a hub name of a pretrained tokenizer for all text modalities, or a mapping from names of
        text modalities; empty: train one.
      numbers: how numbers of tabular modalities are encoded, one of `numbers.NUMBERS`.
      bins: the most features of a column next to its number, `numbers` piecewise and periodic.
    """

    max_tokens: int
    vocabulary: int
    tokenizer: str | Mapping[str, str] = ""
    numbers: str = "standard"
    bins: int = 8


class FittedKind(abc.ABC):
    """A kind fitted on some rows of one modality: from raw columns to what a model receives."""

    @property
    @abc.abstractmethod
    def spec(self) -> InputSpec:
        """What a model receives."""

    @abc.abstractmethod
    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Encodes rows that have the modality.

        Args:
          raw: what `Kind.decode` gave for these rows.
          name: of the modality.

        Returns:
          [n, *spec.shape] of `spec.dtype`.

        Raises:
          UserError: the rows have another shape than those that the kind was fitted on.
        """

    @abc.abstractmethod
    def plain(self, values: np.ndarray) -> Any:
        """Returns what logistic regression and boosting see of encoded rows.

        Args:
          values: as `encode` gives them, zeros in rows that lack the modality.

        Returns:
          numbers, float [n, p], NaN where a number is missing; or counts of ids, a sparse matrix [n, v].
        """

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """For JSON."""

    @classmethod
    @abc.abstractmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedKind":
        """The inverse of `to_dict`."""

    def adopt(self, modality: Modality, where: str) -> Modality:
        """Brings the modality of new data into the form of the data that the kind was fitted on.

        Args:
          modality: of the same kind and name.
          where: what messages call the new data.

        Raises:
          UserError: its columns or its shape are others.
        """
        del where
        return modality


class Kind(abc.ABC):
    """All that is special about a kind of modality.

    Attributes:
      name: as in schema.yaml.
      encoder: the family of networks that turns its input into tokens, a key of `models.encoders.registry.ENCODERS`.
      dtype: of its input.
      keys: of its entry in schema.yaml, next to `kind`.
      optional: those of the keys that may be left out.
      endings: of files that importing a table takes for this kind.
      paths: whether strings in the cells are paths, unless the entry says otherwise.
      forms: of files, for messages.
      fitted: the class of what is fitted.
    """

    name: str
    encoder: str
    dtype: np.dtype
    keys: tuple[str, ...] = ("column",)
    optional: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    paths: bool = False
    forms: str = ""
    fitted: ClassVar[type[FittedKind]]

    @property
    def words(self) -> Mapping[str, str]:
        """What importing a table calls a column of this kind, and the key of the entry that holds such a column."""
        return {self.name: "column"}

    def spec(self, shape: tuple[int, ...], vocabulary: int = 0) -> InputSpec:
        """What a model receives of this kind; arguments as for `InputSpec`."""
        return InputSpec(self.name, shape, vocabulary, np.dtype(self.dtype), self.encoder)

    # ---- Schema -----------------------------------------------------------------------------------------------------

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        """Makes a modality of its entry in schema.yaml.

        Args:
          name: of the modality.
          entry: with no other keys than `kind` and `keys`.
          image_size: height and width that images and frames of volumes are resized to.
          frames: the length that volumes are resized to.

        Raises:
          UserError: a value cannot be used.
        """
        del image_size, frames  # of pixels
        return Modality(name, self.name, (string(entry["column"], f"modalities.{name}.column"),))

    def as_new(self, modality: Modality) -> Modality:
        """The modality as rows to predict may bring it: where data were stored says nothing about new ones."""
        return modality

    # ---- Columns ----------------------------------------------------------------------------------------------------

    def typed(self, modality: Modality, columns: Mapping[str, pl.Series]) -> Typed:
        """Brings the modality's columns, as a file or a frame holds them, into the types that `Manifest` promises.

        Raises:
          UserError: a column holds what no cell of this kind can be.
        """
        found: dict[str, pl.Series] = {}
        findings: list[Finding] = []
        for column in modality.all_columns:
            found[column], said = self._typed_column(modality, columns[column], described(column, modality))
            findings += said
        return Typed(modality, found, findings)

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """One column as strings, words for missing as null."""
        del modality
        return cells.without_words(column, where)

    def problems(self, modality: Modality, table: pl.DataFrame) -> list[Finding]:
        """E008 and E009 for the cells of one modality; reading a folder has put most of this right already."""
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
        """What is wrong with the cells of a column that holds no strings."""
        del modality, values, where
        return []

    def content(self, modality: Modality, table: pl.DataFrame, records: Mapping[str, FileRecord]) -> pl.Series | None:
        """What two patients should not have in common (W103): a string a row, null where nothing is worth comparing.

        Args:
          modality: of this kind.
          table: of the manifest.
          records: of every sound file, by path as written.

        Returns:
          strings [n], or None for a kind whose cells are alike by chance.
        """
        del modality, table, records
        return None

    # ---- Files ------------------------------------------------------------------------------------------------------

    def look(self, path: pathlib.Path, modality: Modality, thorough: bool) -> tuple[int, ...]:
        """Looks at a file that a cell names.

        Args:
          path: of the file, which is there and not empty.
          modality: with `stored: file`.
          thorough: decode it all, not only its header, where that takes long.

        Returns:
          the shape that all files of the column must have, () where each may have its own.

        Raises:
          Fault: it cannot be used, with what to say of it.
          ValueError, OSError: it cannot be read.
        """
        raise NotImplementedError(f"{self.name} is never stored in files")

    # ---- Arrays -----------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Reads the raw columns of some rows.

        Returns:
          arrays [n, ...] called as the modality, or `name/part`.

        Raises:
          UserError: a file that the rows name cannot be read or decoded (E007).
        """

    def check_options(self, options: FitOptions, names: list[str]) -> None:
        """Checks the options of fitting that concern this kind.

        Args:
          options: of the fit.
          names: of the data set's modalities of this kind.

        Raises:
          UserError: an option is out of range.
        """
        del options, names

    @abc.abstractmethod
    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedKind:
        """Fits on rows that have the modality and looks at no other.

        Raises:
          UserError: the rows do not suffice.
        """

    # ---- Import -----------------------------------------------------------------------------------------------------

    def guess(self, column: pl.Series) -> Guess | None:
        """Guesses whether a column of a table is of this kind.

        Args:
          column: its cells without nulls, at least one; strings have no blanks around.

        Returns:
          None where it is not.
        """
        del column
        return None


def described(column: str, modality: Modality) -> str:
    """How findings begin that are about a column."""
    return f"column {column!r} ({modality.name}): "


def strings_of(cells: list[str | None]) -> np.ndarray:
    """Object [n] of str, '' where null."""
    return np.array(["" if cell is None else cell for cell in cells], object)


def with_storage(modality: Modality, entry: Mapping[str, Any], default: str) -> Modality:
    """The modality with where its values are, as its entry in schema.yaml says under `stored`."""
    stored = entry.get("stored", default)
    if stored not in ("cell", "file") and "stored" in entry:
        raise UserError(f"modalities.{modality.name}.stored must be cell or file, not {shown(stored)}")
    return dataclasses.replace(modality, stored=stored)


def file_content(column: pl.Series, records: Mapping[str, FileRecord], least: int = 0) -> pl.Series:
    """Sha256 (hex) of the file that each cell names, [n]; null without one, or for one of fewer bytes than `least`."""
    large = {cell: record for cell, record in records.items() if record.size >= least}
    values = [large[cell].sha256 if cell in large else None for cell in column.to_list()]
    return pl.Series(values, dtype=pl.String)


def array_content(column: pl.Series) -> pl.Series:
    """Sha256 (hex) of the array in each cell, [n]; null where it is null."""
    arrays = iter(column.drop_nulls().to_numpy())
    here = column.is_not_null().to_list()
    values = [hashlib.sha256(next(arrays).tobytes()).hexdigest() if present else None for present in here]
    return pl.Series(values, dtype=pl.String)
