"""Numbers as laboratories and spreadsheets write them: marks of thousands, decimal commas, limits, ranges, blanks."""

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
    POINT,
    RANGE,
    SURE_POINT,
    WITH_COMMA,
    WITH_DOT,
)

ODD = ("missing", "limit", "refuse")
"""What cells that are no numbers become in a column of numbers: nothing, the limit or the middle that they name."""
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
    present: int  # cells that are not null

    @property
    def share(self) -> float:
        """Tells how many of the cells that are not null are numbers, 0 to 1."""
        return 1 - sum(int(mask.sum()) for mask in self.odd.values()) / max(self.present, 1)


def plain(column: pl.Series) -> pl.Series:
    """Returns strings as Float64, null where they are no number; true and false are 1 and 0, as frames have them."""
    text = column.str.strip_chars().str.to_lowercase()  # polars writes true, pandas True, R TRUE
    return text.replace({"true": "1", "false": "0"}).cast(pl.Float64, strict=False)


def numbers(column: pl.Series, limits: bool = False) -> Numbers:
    """Reads strings [n], null for missing, as numbers; `limits` takes 200 for >200 and 7.5 for 5-10.

    A comma is a decimal mark or one of thousands by what the column's other cells show; where they do not show it, the
    cells are no numbers.
    """
    text, marks = column.str.strip_chars(), ""
    values = plain(text)
    if values.null_count() > text.null_count():
        text, marks = _without_marks(text)
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
    return Numbers(values, {form: mask.to_numpy() for form, mask in odd.items() if mask.any()}, marks, text.count())


def _without_marks(text: pl.Series) -> tuple[pl.Series, str]:
    """Returns cells with points for decimals and nothing between thousands, and what was there instead."""
    seen = []
    grouped = text.str.contains(GROUPED).fill_null(False)
    if grouped.any():
        text, seen = text.zip_with(~grouped, text.str.replace_all(r"['\s]", "")), ["blanks between thousands"]
    commas = text.filter(text.str.contains(WITH_COMMA).fill_null(False))
    dots = text.filter(text.str.contains(WITH_DOT).fill_null(False))
    if not len(commas):
        return text, seen[0] if seen else ""
    bare = commas.str.strip_chars(LIMIT_SIGNS)
    by_point = bare.str.contains(POINT).all()
    by_comma = bare.str.contains(COMMA).all() and dots.str.contains(DOTS).all()
    if by_point and by_comma:  # 1,234 is either; without a comma there are only whole numbers that need none
        others = plain(text).drop_nulls()
        by_comma, by_point = False, bool(len(others) and others.abs().max() < 1000 and (others % 1 == 0).all())
    if by_comma:
        text, seen = (
            text.str.replace_all(r"([0-9])\.([0-9])", "${1}${2}").str.replace_all(",", "."),
            [*seen, "decimal commas"],
        )
    elif by_point:
        text, seen = text.str.replace_all(r"([0-9]),([0-9])", "${1}${2}"), [*seen, "commas between thousands"]
    elif (sure := text.str.contains(SURE_POINT).fill_null(False)).any():
        text, seen = text.zip_with(~sure, text.str.replace_all(",", "")), [*seen, "commas between thousands"]
    return text, " and ".join(seen)


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
