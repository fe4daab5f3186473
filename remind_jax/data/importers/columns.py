"""What a column is taken for, and why; and numbers out of columns of numbers with other cells among them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.blocks import Columns
from remind_jax.data.findings import listed
from remind_jax.data.importers.keys import FEWEST, looks_like_ids
from remind_jax.data.kinds import KINDS
from remind_jax.data.numerals import described, numbers, units
from remind_jax.errors import UserError

TIME, EMPTY, INDEX, IDS = "a time", "empty", "a count of the rows", "ids that no option names"
MANY = "too many different words for a category; naming its kind, text, takes them"
UNCLEAR = "numbers whose commas may stand for decimals or thousands; write them with points"
UNITS = "numbers with several units; bring them to one"
_DAY = r"\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})"
_MONTH = r"(jan|feb|mar|mär|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-zé]*\.?"
_NAMED = rf"\d{{1,2}}\.?[- ]?{_MONTH}[-, ]+\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{4}}"
_DATE = rf"(\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{4}}[-/](0[1-9]|1[0-2])|{_DAY}|{_NAMED})([T ,].*)?"
_TIMES = rf"(?i)^({_DATE}|\d{{1,2}}:\d\d(:\d\d(\.\d+)?)?( ?[ap]m)?)$"
_NEARLY = 0.95  # of the cells, for times and paths
_MOST, _HALF = (
    0.9,
    0.5,
)  # of the cells that must be numbers: where others are words, where all are limits, ranges, marks
_ODD_LINES = 8  # columns with odd cells that have a line of their own


class Decision(NamedTuple):
    """What a column is."""

    word: str  # one of `modalities.column_kinds`, or why it is left out
    why: str  # for a person


def decide(column: pl.Series, *, named: bool = False) -> Decision:
    """Guesses what a column is, or says why it is left out; the order of rows is of no account.

    A column that a user has `named` is not taken for ids.
    """
    cells = column.drop_nulls()
    if not len(cells):
        return Decision(EMPTY, "no cell holds anything")
    if column.dtype.is_temporal():
        return Decision(TIME, "its type")
    if column.dtype in (pl.Categorical, pl.Enum):
        return Decision("category", "its type")
    if column.dtype == pl.String:
        cells = cells.str.strip_chars()
        if (files := _files(cells)) is not None:
            return files
        if cells.str.contains(_TIMES).mean() >= _NEARLY:
            return Decision(TIME, "cells are written as dates or times")
    if not named and looks_like_ids(cells):
        return Decision(IDS, "all different and of one form, or named so")
    guesses = [guess for kind in KINDS.values() if (guess := kind.guess(cells))]
    word = max(guesses, key=lambda guess: guess.sure).word if guesses else ""
    if column.dtype == pl.String and word != "number" and (mixed := _mostly_numbers(cells)) is not None:
        return mixed
    if not word:
        several = column.dtype == pl.String and 2 * units(cells).count() > len(cells)
        return Decision(UNITS if several else MANY, f"{cells.n_unique():,} in {len(cells):,} cells")
    return Decision(word, _WHY.get(word, "its cells"))


_WHY = {
    "number": "every cell is a number",
    "category": "few different values",
    "codes": "every cell is codes",
    "text": "words in most cells",
    "embedding": "lists of numbers",
}


def _files(cells: pl.Series) -> Decision | None:
    """Takes a column for paths where nearly all cells end as files of a kind do, whatever signs are before that."""
    endings = cells.str.extract(r"((?i:\.nii\.gz)|\.[A-Za-z][A-Za-z0-9]*)$", 1).str.to_lowercase()
    known = {ending for kind in KINDS.values() for ending in kind.endings}
    if endings.is_in(list(known)).fill_null(False).mean() < _NEARLY:
        return None
    there = set(endings.drop_nulls().unique().to_list()) & known
    owners = [kind.name for kind in KINDS.values() if there <= set(kind.endings)]
    other = (~endings.is_in(list(known)).fill_null(True)).sum()
    why = f"cells end like its files{f', but for {other}' if other else ''}"
    return Decision(owners[0], why) if owners else Decision("files of several kinds", why)


def _mostly_numbers(cells: pl.Series) -> Decision | None:
    """Takes a column for numbers where most cells are, and the others limits, ranges and marks, or few words."""
    found = numbers(cells)
    unclear, words = (int(found.odd[form].sum()) if form in found.odd else 0 for form in ("unclear comma", "word"))
    if 2 * unclear > len(cells):
        return Decision(UNCLEAR, "each comma has three digits behind it")
    if cells.str.contains(r"^0\d").any() or found.share < (_MOST if words or unclear else _HALF):
        return None
    if words and cells.filter(pl.Series(found.odd["word"])).str.contains(r"^[A-Za-z]+\d").all():
        return None  # E11.9 among 401.9
    return Decision("number", "most cells are numbers" if found.odd else f"every cell is a number, with {found.marks}")


def is_index(column: pl.Series) -> bool:
    """Tells whether a column is pandas' index or another count of the rows: without a name, or 0, 1, 2, … in order."""
    if re.fullmatch(r"(Unnamed: \d+.*|__index_level_\d+__|\s*)", column.name):
        return True
    if column.has_nulls() or len(column) < FEWEST or not (column.dtype == pl.String or column.dtype.is_numeric()):
        return False
    values = column.cast(pl.Float64, strict=False)
    return bool(values[0] in (0.0, 1.0) and (values == values[0] + np.arange(len(values))).all())


def as_numbers(
    table: Columns, columns: Iterable[str], rows: Mapping[str, np.ndarray], odd: str
) -> tuple[Columns, list[str], dict[str, str]]:
    """Reads columns of numbers as such.

    Args:
      table: of all columns.
      columns: those that are numbers.
      rows: by column the rows of its table that the cells stand in, int [n].
      odd: one of `numerals.ODD`.

    Returns:
      the table with numbers; lines that count the cells that are none, by row and form, and what was taken out of
      numbers; by column that holds such cells or marks its unit, "" for none.

    Raises UserError: a cell is no number and `odd` is `refuse`.
    """
    lines, found, marks, behind = {}, {}, {}, {}
    for column in columns:
        cells = table[column]
        if cells.dtype != pl.String:
            continue
        read = numbers(cells, odd == "limit")
        if read.marks:
            marks.setdefault(read.marks, []).append(column)
        if read.odd:
            count = sum(int(mask.sum()) for mask in read.odd.values())
            lines[column] = (cells.count(), count, described(read.odd, rows[column]))
        if read.odd or read.marks:
            found[column], behind[column] = table.keep(read.values), read.unit
    texts = [f"{column}: {n - bad:,} of {n:,} cells are numbers, {what}" for column, (n, bad, what) in lines.items()]
    if texts and odd == "refuse":
        raise UserError(f"{texts[0]}; --odd-numbers=missing empties such cells, limit takes the number that they name")
    done = "read as missing; by the rule odd: limit they are the number that limits and ranges name"
    if odd == "limit":
        done = "limits are read as their number, ranges as their middle, others as missing"
    said = [f"{text}; {done}" for text in texts[:_ODD_LINES]]
    if len(texts) > _ODD_LINES:
        count = sum(bad for _, bad, _ in list(lines.values())[_ODD_LINES:])
        said.append(f"{len(texts) - _ODD_LINES} more columns of numbers hold {count:,} cells that are none; {done}")
    said += [f"{what} in numbers of {listed(names)}: read as such" for what, names in marks.items()]
    return table.replaced(found), said, behind


def why_lines(decisions: Mapping[str, Decision], shown: int = 5) -> list[str]:
    """Says for every column what it is and why, columns of one kind and reason in one line."""
    groups: dict[Decision, list[str]] = {}
    for column, decision in decisions.items():
        groups.setdefault(decision, []).append(column)
    return [f"{word} ({why}): {listed(columns, shown)}" for (word, why), columns in groups.items()]


def signs_between(column: pl.Series, signs: Sequence[str]) -> str:
    """Returns which of some signs stand in a column of codes."""
    return "".join(sign for sign in signs if column.str.contains(sign, literal=True).any())
