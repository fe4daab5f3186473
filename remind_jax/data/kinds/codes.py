"""Codes separated by spaces, such as diagnoses: a vocabulary of the most frequent ones."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import cells, inputs
from remind_jax.data.findings import Finding
from remind_jax.data.kinds.kind import BY_FORM, FitOptions, FittedKind, Guess, Kind, Rows, strings_of
from remind_jax.data.kinds.text import SPECIAL, UNK, bag, check_lengths
from remind_jax.data.schema import InputSpec, Modality, shown
from remind_jax.errors import UserError

_CODE = r"(?:[A-Z]*\d[A-Z0-9.]*|[a-z]\d\w?\w?(?:\.\w{1,4})?)"  # such as I10, E11.9, 401.9, and ICD's as i10, e11.9
SIGNS = ";,|"
"""What people put between codes next to blanks."""
_SURE = 0.99  # share of the different cells that hold nothing but codes


@dataclasses.dataclass(frozen=True)
class FittedCodes(FittedKind):
    """A vocabulary of codes: the most frequent ones of the fitting rows from id 3 up, ties in string order."""

    length: int
    codes: tuple[str, ...]

    @classmethod
    def fit(cls, cells: Sequence[str], max_tokens: int, vocabulary: int) -> "FittedCodes":
        """Fits on the cells of rows that have the modality; `vocabulary` counts pad, eos and unk."""
        lists = [cell.split() for cell in cells]
        counts, longest = collections.Counter(itertools.chain(*lists)), max(map(len, lists), default=0)
        ranked = sorted(counts, key=lambda code: (-counts[code], code))
        return cls(min(max_tokens, longest + 1), tuple(ranked[: vocabulary - len(SPECIAL)]))

    @property
    def spec(self) -> InputSpec:
        return CODES.spec((self.length,), len(SPECIAL) + len(self.codes))

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """Returns the first codes of each cell, eos, pad, int32 [n, t]."""
        return inputs.codes(self, raw[name].tolist())

    def example(self, modality: Modality) -> dict[str, Any]:
        return {modality.columns[0]: " ".join(self.codes[:3]) or SPECIAL[UNK]}

    def plain(self, values: np.ndarray) -> Any:
        return bag(values, self.spec.vocabulary)


class Codes(Kind):
    """Codes in cells, separated by spaces."""

    name = "codes"
    encoder = "codes"
    dtype = np.dtype(np.int32)
    keys = ("column", "between")
    optional = ("between",)
    fitted = FittedCodes

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        modality, between = super().parse(name, entry, image_size, frames), entry.get("between", "")
        if not isinstance(between, str) or set(between) - set(SIGNS):
            raise UserError(f"modalities.{name}.between must be some of {SIGNS}, not {shown(between)}")
        return dataclasses.replace(modality, options={"between": between} if between else {})

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns cells with blanks between codes, words for missing as null."""
        column, notes = cells.without_words(column, where)
        for sign in modality.options.get("between", ""):
            column = column.str.replace_all(sign, " ", literal=True)
        return cells.trim(column), notes

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns the cells, object [n] of str, '' where missing."""
        return {modality.name: strings_of(rows.cells(modality.columns[0]).to_list())}

    def check_options(self, options: FitOptions, names: list[str]) -> None:
        check_lengths(options)

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedCodes:
        cells = self.decode(modality, rows)[modality.name].tolist()
        return FittedCodes.fit(cells, options.max_tokens, options.vocabulary)

    def guess(self, column: pl.Series) -> Guess | None:
        """Looks for cells in which every word is letters, if any, and then digits."""
        if column.dtype != pl.String:
            return None
        share = column.unique().str.contains(rf"^{_CODE}([\s{SIGNS}]+{_CODE})*[\s{SIGNS}]*$").mean()
        return Guess(BY_FORM, "codes") if share >= _SURE else None


CODES = Codes()
