"""Numbers as laboratories and spreadsheets write them: marks of thousands, decimal commas, limits, ranges, blanks."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.findings import listed
from remind_jax.data.inputs import (
    COMMA,
    DOTS,
    GROUPED,
    LIMIT,
    LIMIT_SIGNS,
    LONG_MINUS,
    NO_UNITS,
    PLURAL,
    POINT,
    RANGE,
    SURE_POINT,
    UNIT,
    WITH_COMMA,
    WITH_DOT,
)

ODD = ("missing", "limit", "refuse")
"""What cells that are no numbers become in a column of numbers: nothing, the limit or the middle that they name."""
_LEAST_VALUES = 3  # different ones, so that a scale of few values stays
FORMS = {
    **{"limit": LIMIT, "range": RANGE, "unclear comma": r"^[+-]?[\d.,]*,[\d.,]*$"},
    "mark for nothing": r"^[\W_]+$",
}
"""What cells that are no numbers are, by their form; any other is a word."""


class Numbers(NamedTuple):
    """A column of strings as numbers."""

    values: pl.Series  # Float64 [n], null where there is no finite number
    odd: dict[str, np.ndarray]  # by form, a key of `FORMS` or "word", which cells are no numbers, bool [n]
    marks: str  # what had to be taken out of numbers, "" for nothing
    unit: str  # that stood behind them, "" for none
    present: int  # cells that are not null

    @property
    def share(self) -> float:
        """Tells how many of the cells that are not null are numbers, 0 to 1."""
        return 1 - sum(int(mask.sum()) for mask in self.odd.values()) / max(self.present, 1)


def plain(column: pl.Series) -> pl.Series:
    """Returns strings as Float64, null where they are no number; true and false are 1 and 0, as frames have them."""
    text = column.str.strip_chars().str.to_lowercase()  # polars writes true, pandas True, R TRUE
    return text.replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)


def numbers(column: pl.Series, limits: bool = False, unit: str | None = None) -> Numbers:
    """Reads strings [n], null for missing, as numbers; `limits` takes 200 for >200 and 7.5 for 5-10.

    `unit` may stand behind numbers, as `units` writes it; None takes the one that does, if there is one only.
    A comma is a decimal mark or one of thousands by what the column's other cells show; where they do not show it, the
    cells are no numbers.
    """
    text, marks, found = column.str.strip_chars(), [], ""
    values = plain(text)
    if values.null_count() > text.null_count():
        text, found = _without_unit(text, unit)
        marks = [f"the unit {found}"] if found else []
        for rule in (_without_minus, _without_blanks, _without_commas):
            text, what = rule(text)
            marks += [what] if what else []
        values = plain(text)
    values = values.set((values.abs() > float(np.finfo(np.float32).max)).fill_null(False), None).fill_nan(None)
    left = values.is_null() & text.is_not_null()
    odd = {}
    for form, pattern in (FORMS if left.any() else {}).items():
        mask = left & text.str.contains(pattern).fill_null(False)
        odd[form], left = mask, left & ~mask
    if limits and odd:
        ends = [text.str.extract(RANGE, i).cast(pl.Float64, strict=False) for i in (1, 2)]
        for named in (text.str.extract(LIMIT, 1).cast(pl.Float64, strict=False), (ends[0] + ends[1]) / 2):
            values = values.zip_with(values.is_not_null(), named)
    odd["word"] = left
    odd = {form: mask.to_numpy() for form, mask in odd.items() if mask.any()}
    return Numbers(values, odd, " and ".join(marks), found, text.count())


def _without_minus(text: pl.Series) -> tuple[pl.Series, str]:
    long = text.str.contains(LONG_MINUS).fill_null(False)
    return (text.str.replace_all("−", "-"), "long minus signs") if long.any() else (text, "")


def units(text: pl.Series) -> pl.Series:
    """Returns the unit that stands behind each number of a string column, null elsewhere, [n]; days are day."""
    found = text.str.extract(UNIT, 2).str.strip_chars().str.to_lowercase().str.replace(PLURAL, "$1")
    return found.set(found.is_in(NO_UNITS).fill_null(False), None)  # 1st is a word


def _without_unit(text: pl.Series, unit: str | None) -> tuple[pl.Series, str]:
    """Takes a unit away that stands behind numbers: the one given or, for None, the only one."""
    behind = units(text)
    there = behind.drop_nulls().unique().to_list()
    if unit is None:
        unit = there[0] if len(there) == 1 else ""
    if unit not in there:
        return text, ""
    return text.zip_with((behind != unit).fill_null(True), text.str.extract(UNIT, 1)), unit


def _without_blanks(text: pl.Series) -> tuple[pl.Series, str]:
    grouped = text.str.contains(GROUPED).fill_null(False)
    if not grouped.any():
        return text, ""
    return text.zip_with(~grouped, text.str.replace_all(r"['\s]", "")), "blanks between thousands"


def _without_commas(text: pl.Series) -> tuple[pl.Series, str]:
    commas = text.filter(text.str.contains(WITH_COMMA).fill_null(False))
    dots = text.filter(text.str.contains(WITH_DOT).fill_null(False))
    if not len(commas):
        return text, ""
    bare = commas.str.strip_chars(LIMIT_SIGNS)
    by_point = bare.str.contains(POINT).all()
    by_comma = bare.str.contains(COMMA).all() and dots.str.contains(DOTS).all()
    if by_point and by_comma:  # 1,234 is either; without a comma there are only whole numbers that need none
        others = plain(text).drop_nulls()
        by_comma, by_point = False, bool(len(others) and others.abs().max() < 1000 and (others % 1 == 0).all())
    if by_comma:
        return text.str.replace_all(r"([0-9])\.([0-9])", "${1}${2}").str.replace_all(",", "."), "decimal commas"
    if by_point:
        return text.str.replace_all(r"([0-9]),([0-9])", "${1}${2}"), "commas between thousands"
    sure = text.str.contains(SURE_POINT).fill_null(False)
    return text.zip_with(~sure, text.str.replace_all(",", "")), "commas between thousands" if sure.any() else ""


def stand_ins(values: pl.Series) -> dict[int, int]:
    """Finds numbers that may stand for missing, such as -999 or 99, and counts them.

    Each is written with one digit, 9, 8 or 7, or is -1, occurs twice at least, and is as far from all others as these
    are from each other, or the only negative one.
    """
    counted = dict(values.drop_nulls().value_counts().iter_rows())
    codes = sorted(value for value, n in counted.items() if n > 1 and _stands_in(value))
    others = counted.keys() - codes
    if len(others) < _LEAST_VALUES:
        return {}
    low, high = min(others), max(others)
    spread = high - low
    far = [x for x in codes if low - x >= spread or x - high >= spread or x < 0 <= low]
    return {int(value): counted[value] for value in far}


def stand_in_lines(table: pl.DataFrame, names: Iterable[str]) -> list[str]:
    """Warns of numbers in some columns of a table that may stand for missing."""
    columns = (plain(table[c]) if table[c].dtype == pl.String else table[c] for c in names)
    told = {column.name: found for column in columns if (found := stand_ins(column.cast(pl.Float64)))}
    if not told:
        return []
    shown = [
        f"{name} ({', '.join(f'{n:,} cells {value}' for value, n in found.items())})" for name, found in told.items()
    ]
    values = sorted({value for found in told.values() for value in found})
    remedy = f"missing: [{', '.join(map(str, values[:5]))}] in schema.yaml, or --missing= of import, empties them"
    return [f"{listed(shown)}: far from all other numbers; if they stand for missing, {remedy}"]


def _stands_in(value: float) -> bool:
    return value == round(value) and re.fullmatch(r"-?(9+|8+|7+)|-1", f"{value:.0f}") is not None


def form_of(cell: str) -> str:
    """Shows a cell by its form: 9 for digits, a for letters, at most 20 signs."""
    shown = "".join("9" if c.isdigit() else "a" if c.isalpha() else c if c.isprintable() else " " for c in cell[:20])
    return shown + ("…" if len(cell) > 20 else "")


def described(odd: dict[str, np.ndarray], rows: np.ndarray) -> str:
    """Says which cells of a column are no numbers, by `rows`, int [n], and form: "row 8 is not (limit)"."""
    where = {form: rows[mask].tolist() for form, mask in odd.items()}
    if sum(map(len, where.values())) == 1:
        return "".join(f"row {found[0]} is not ({form})" for form, found in where.items())
    return "rows " + ", ".join(f"{listed(found)} ({form})" for form, found in where.items()) + " are not"
