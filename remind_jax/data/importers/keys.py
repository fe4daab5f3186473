"""Ids of samples and patients, and tables that are joined by them; no id is ever shown but by its form."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.blocks import Columns
from remind_jax.data.cells import as_string, looks_missing
from remind_jax.data.findings import in_rows, listed
from remind_jax.data.numerals import form_of
from remind_jax.errors import UserError

MATCHES = ("exact", "number")
"""How ids match: as they are written, a .0 aside, or as numbers, so that 00017 and 17 are one."""
FEWEST = 20  # rows in which ids and counts of rows show
_KEY, _ROW = "\0key", "\0row"  # names that no column has
_EXACT = 2.0**53  # whole numbers that floats hold


class Joined(NamedTuple):
    """A table in the order of the samples."""

    table: Columns  # null where a sample has no row; without its ids
    rows: pl.Series  # the row of each sample in its own table, from 1; null without one
    notes: list[str]


def texts(column: pl.Series) -> pl.Series:
    """Returns ids as strings [n], null where there is none.

    Raises UserError: an id is infinite, a list, or a number that is too large for the float that holds it.
    """
    if column.dtype.is_float():
        column = column.fill_nan(None)  # of which comparisons would be true
        if (bad := column.is_infinite().fill_null(False)).any():
            raise UserError(f"ids {column.name!r}: {in_rows(bad)} infinite; fix them or drop the rows")
        if (bad := (column.abs() >= _EXACT).fill_null(False)).any():
            raise UserError(f"ids {column.name!r}: {in_rows(bad)} lost digits as a decimal number; read ids as text")
    ids = as_string(column).str.strip_chars()
    bad = ids.str.contains(r"^\d(\.\d+)?[eE]\+?\d+$").fill_null(False)
    if 2 * bad.sum() > ids.len():
        raise UserError(f"ids {column.name!r}: {in_rows(bad)} like 9.9E+9, which has lost digits; write ids as text")
    return ids.set(looks_missing(ids), None)


def alike(columns: Mapping[str, pl.Series], match: str = "exact") -> dict[str, pl.Series]:
    """Writes ids, strings [n] by table, so that those of one value are equal.

    123.0 becomes 123 unless some id has decimals that say something; with `match="number"` leading zeros go, too.

    Raises UserError: by number, different ids of one table would be the same.
    """
    whole = {name: ids.str.replace(r"^([+-]?\d+)\.0*$", "${1}") for name, ids in columns.items()}
    decimals = any(ids.str.contains(r"^[+-]?\d+\.\d*[1-9]\d*$").any() for ids in columns.values())
    found = dict(columns) if decimals else whole
    if match == "number":
        for name, ids in found.items():
            short = _without_zeros(ids)
            if short.n_unique() < ids.n_unique():
                lost = ids.n_unique() - short.n_unique()
                raise UserError(f"--match=number: {lost} ids of {name} would be the same as others: 017 and 17 are two")
            found[name] = short
    return found


def join(
    everyone: pl.Series,
    other: pl.Series,
    table: Columns,
    name: str,
    key: str,
    keep: np.ndarray,
    bounds: Sequence[int] | np.ndarray,
) -> Joined:
    """Puts the rows of a table beside samples.

    Args:
      everyone, other: ids, as `alike` writes them, of all samples and [m].
      table: what is joined, m rows, without its ids.
      name, key: of the table and of the ids, for messages.
      keep: the samples that are used, int [n] from 0.
      bounds: where these are cut.

    Raises UserError: an id has several rows, or no id matches; names the likely cause.
    """
    rows = pl.int_range(1, table.height + 1, eager=True)
    known = pl.DataFrame({_KEY: other, _ROW: rows}).drop_nulls(_KEY)
    double = known[_KEY].is_duplicated()
    if double.any():
        where = listed(known.filter(double)[_ROW].to_list())
        text = f"{double.sum():,} of {table.height:,} rows, among them rows {where}: keep one, or make them columns"
        raise UserError(f"the table {name!r} has several rows of one {key}: {text}")
    samples = everyone.gather(keep)
    found = pl.DataFrame({_KEY: samples}).join(known, on=_KEY, how="left", maintain_order="left")
    matched = known[_KEY].is_in(everyone.drop_nulls().implode())
    without = ~samples.is_in(known[_KEY].implode())
    lacking = samples.filter(without)
    counts = f"{table.height:,} rows by {key}, {int(matched.sum()):,} matched"
    lost = known.filter(~matched)[_KEY]
    if not matched.any():
        forms = f"its keys look like {_forms(known[_KEY])}, those of the samples like {_forms(everyone)}"
        why = _cause(everyone, known[_KEY]) or "; are they keys of the same thing?"
        raise UserError(f"the table {name!r} matches no row: {counts}; {forms}{why}")
    unused = int((matched & ~known[_KEY].is_in(samples.implode())).sum())
    parts = [counts + (f" ({unused:,} with samples that are left out)" if unused else "")]
    parts.append(f"{len(lost):,} unmatched, 0 duplicated; {len(lacking):,} of {len(samples):,} samples have no row")
    if len(lost):
        parts.append(f"unmatched rows are left out, with keys such as {_forms(lost)}")
    if empty := table.height - known.height:
        parts.append(f"{empty:,} rows without a key are left out")
    parts.append(f"keys such as {_forms(known.filter(matched)[_KEY])}")
    why = _cause(lacking, lost) if len(lost) and len(lacking) else ""
    return Joined(table.take(found[_ROW] - 1, bounds), found[_ROW], [f"{name}: {'; '.join(parts)}{why}"])


def _forms(ids: pl.Series) -> str:
    """Shows up to three forms of ids, the most frequent first."""
    forms = pl.Series([form_of(key) for key in ids.drop_nulls().head(100_000).to_list()], dtype=pl.String)
    counts = forms.value_counts(name="n").sort(["n", forms.name], descending=[True, False])
    return " and ".join(counts[forms.name].head(3).to_list()) or "nothing"


def _cause(samples: pl.Series, other: pl.Series) -> str:
    """Says by which change most of the ids that do not match would, "" for none."""

    def both(change: Callable[[pl.Series], pl.Series]) -> int:
        return int(change(other).is_in(change(samples).drop_nulls().unique().implode()).sum())

    causes = {
        "leading zeros were lost on one side; write ids as text, or say --match=number": _without_zeros,
        "they differ in capital letters; write them alike": lambda ids: ids.str.to_lowercase(),
        "they differ in blanks or hyphens; write them alike": lambda ids: ids.str.replace_all(r"[\s_-]", ""),
        "one has letters in front of numbers; write them alike": lambda ids: ids.str.replace(r"^[A-Za-z_-]+", ""),
    }
    counts = {text: both(change) for text, change in causes.items()}
    best = max(counts, key=lambda text: counts[text])
    return f"; {counts[best]:,} more would match, but {best}" if counts[best] else ""


def _without_zeros(ids: pl.Series) -> pl.Series:
    return ids.str.replace(r"^0+(\d)", "${1}")


def looks_like_ids(column: pl.Series) -> bool:
    """Tells whether cells [n] without nulls are ids that nobody has declared.

    They are strings of one form with digits, or whole numbers of one length from five digits up, all different; or
    whole numbers that count the rows in another order; or most are different and the column has a name of ids.
    """
    if column.dtype.is_float():
        column = as_string(column)
    text = column.cast(pl.String) if column.dtype.is_integer() else column
    if text.dtype != pl.String or len(text) < FEWEST or (share := text.n_unique() / len(text)) < 0.5:
        return False
    if text.str.contains(r"^-?\d+$").all():
        values = text.cast(pl.Float64)
        widths = text.str.len_chars()
        one_form = widths.min() == widths.max() and (widths.max() >= 5 or text.str.starts_with("0").any())
        one_form |= values.max() - values.min() + 1 == len(values)
    elif not text.str.contains(r"^[A-Za-z0-9._/:#-]{1,40}$").all() or not text.str.contains(r"\d").all():
        return False
    elif text.str.contains(r"[A-Za-z]|^[\d_-]{8,}$").all():  # not 120/80
        forms = text.str.replace_all(r"\d+", "9").str.replace_all(r"[A-Za-z]", "a")
        one_form = forms.n_unique() == 1 or text.str.contains(r"^[0-9a-fA-F-]{16,}$").all()
    else:
        return False
    named = re.search(r"(?i:(^|[_\W])(ids?|mrn|uuid|uid|pid)$)|[a-z]I[dD]$", column.name)
    return (one_form and share == 1.0) or named is not None
