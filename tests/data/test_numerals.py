"""Numbers as laboratories write them: what each cell is, by hand."""

import numpy as np
import polars as pl
import pytest

from remind_jax.data import numerals


@pytest.mark.parametrize(
    ("cells", "missing", "limit", "marks"),
    [
        (["1", "2.5", None, "True", "1e2", ".5"], [1, 2.5, None, 1, 100, 0.5], [1, 2.5, None, 1, 100, 0.5], ""),
        ([">200", "<0.1", "≥ 3", "<=4"], [None] * 4, [200, 0.1, 3, 4], ""),
        (["5-10", "5 – 10", "-2 to 4", "-5"], [None, None, None, -5], [7.5, 7.5, 1, -5], ""),
        (["___", "-", "?", "pending"], [None] * 4, [None] * 4, ""),
        (["inf", "-inf", "1e400", "1e39"], [None] * 4, [None] * 4, ""),
        (["65,5", "1,25", "3"], [65.5, 1.25, 3], [65.5, 1.25, 3], "decimal commas"),
        (["1.234,5", "65,5", "<0,1"], [1234.5, 65.5, None], [1234.5, 65.5, 0.1], "decimal commas"),
        (["0,123", "0,456"], [0.123, 0.456], [0.123, 0.456], "decimal commas"),
        (["1,234.5", "12", "1.5"], [1234.5, 12, 1.5], [1234.5, 12, 1.5], "commas between thousands"),
        (["1,234", "987", "12"], [1234, 987, 12], [1234, 987, 12], "commas between thousands"),
        (["1,234", "5,678"], [None, None], [None, None], ""),  # either decimals or thousands
        (["1,234", "0.5", "x"], [1234, 0.5, None], [1234, 0.5, None], "commas between thousands"),
        (["1.5", "2,5"], [1.5, None], [1.5, None], ""),  # which of them is wrong is not known
        (["1 234,5", "2"], [1234.5, 2], [1234.5, 2], "blanks between thousands and decimal commas"),
        (["1'234", "5.5"], [1234, 5.5], [1234, 5.5], "blanks between thousands"),
    ],
)
def test_cells_are_numbers_or_none(cells, missing, limit, marks):
    column = pl.Series("x", cells, dtype=pl.String)
    for limits, expected in ((False, missing), (True, limit)):
        found = numerals.numbers(column, limits)
        assert found.values.to_list() == expected
        assert found.marks == marks
    odd = sum(int(mask.sum()) for mask in found.odd.values())
    assert odd == sum(new is None and old is not None for new, old in zip(missing, cells, strict=True))
    assert found.share == pytest.approx(1 - odd / max(sum(cell is not None for cell in cells), 1))


def test_cells_that_are_none_are_described_by_row_and_form():
    rows = np.array([3, 8, 9, 12])
    found = numerals.numbers(pl.Series(["1", ">2", "5-7", "Jane"]))
    assert numerals.described(found.odd, rows) == "rows 8 (limit), 9 (range), 12 (word) are not"
    found = numerals.numbers(pl.Series(["1", "2", "1,234", "4.5.6"]))
    assert numerals.described({"limit": np.array([False, True, False, False])}, rows) == "row 8 is not (limit)"
    assert set(found.odd) == {"unclear comma", "word"} or set(found.odd) == {"word"}


def test_forms_hold_no_cell():
    assert numerals.form_of("A-123 Jäne\n7") == "a-999 aaaa 9"
    assert numerals.form_of("x" * 30) == "a" * 20 + "…"
