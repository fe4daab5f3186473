"""Cells of one column: which words mean missing, how numbers become strings, how values get into their rows."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.inputs import MISSING_TOKENS
from remind_jax.data.numerals import plain
from remind_jax.errors import UserError


def looks_missing(column: pl.Series) -> pl.Series:
    """Tells which cells of a string column hold a blank or a word for missing (NA, None, null, …), bool [n]."""
    return column.str.strip_chars().str.to_lowercase().is_in(list(MISSING_TOKENS)).fill_null(False)


def as_string(column: pl.Series) -> pl.Series:
    """Returns single values as strings; whole numbers in a column of floats are written without a point.

    Raises UserError: the column holds lists, structures, bytes, spans of time or infinite numbers.
    """
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Duration, pl.Object):
        raise UserError(f"column {column.name!r} holds {column.dtype}; it must hold single values")
    if column.dtype.is_decimal():
        column = column.cast(pl.Float64)
    if column.dtype.is_float() and (infinite := column.is_infinite().fill_null(False)).any():
        raise UserError(f"column {column.name!r}: {in_rows(infinite)} infinite; empty them")
    if column.dtype.is_float() and ((column.round() == column) | column.is_null() | column.is_nan()).all():
        # Integers with holes come out of pandas as floats; "1.0" would match no class.
        column = column.fill_nan(None).cast(pl.Int64, strict=False)
    return column.cast(pl.String)


def trim(column: pl.Series) -> pl.Series:
    """Returns strings without blanks around them; blank cells become null."""
    column = column.str.strip_chars()
    return column.set((column == "").fill_null(False), None)


def emptied(column: pl.Series) -> tuple[pl.Series, int]:
    """Returns a column of any type with words for missing, blanks and NaN as null, and how many words there were.

    A column without any is returned itself.
    """
    if column.dtype.is_float():
        return (column.fill_nan(None) if column.is_nan().any() else column), 0
    if column.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return column, 0
    text = column.cast(pl.String)  # `set` knows no categories; these keep their kind
    words = looks_missing(text)
    if not words.any():
        return column, 0
    n = int((words & (text.str.strip_chars() != "")).sum())
    text = text.set(words, None)
    return text if column.dtype == pl.String else text.cast(pl.Categorical), n


def without_words(column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
    """Returns single values as strings, blanks and words for missing as null, and a finding that counts these."""
    column = as_string(column)
    words = looks_missing(column)
    return column.set(words, None), normalised(words, where)


def normalised(words: pl.Series, where: str) -> list[Finding]:
    """Says (E009, not fatal) which cells [n] were words for missing and are null now."""
    text = f"{where}{in_rows(words)} blank or a word for missing (NA, None, …), read as missing; leave them empty"
    return [Finding("E009", text, False)] if words.any() else []


def means_missing(column: pl.Series, words: Sequence[str]) -> pl.Series:
    """Tells which single values are one of some words or numbers that stand for missing; -999 is -999.0, bool [n]."""
    text = column.cast(pl.String).str.strip_chars()
    numbers = plain(pl.Series(words, dtype=pl.String)).drop_nulls()
    return (text.is_in(list(words)) | plain(text).is_in(numbers.to_list())).fill_null(False)


def spread(values: pl.Series, present: np.ndarray) -> pl.Series:
    """Puts values into the rows where `present` [n] holds, in order, and null into the others, [n]."""
    return values.gather(pl.Series(np.where(present, np.cumsum(present) - 1, -1)).replace(-1, None))
