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
        (["95%", "97 %", "100"], [95, 97, 100], [95, 97, 100], "the unit %"),
        (
            ["5 mg/dL", "1,234.5 mg/dl", ">9 mg/dl"],
            [5, 1234.5, None],
            [5, 1234.5, 9],
            "the unit mg/dl and commas between thousands",
        ),
        (["1 day", "2 days", "none"], [1, 2, None], [1, 2, None], "the unit day"),
        (["5 mg", "3 g", "7"], [None, None, 7], [None, None, 7], ""),  # several units
        (["1st", "2nd", "3A"], [None] * 3, [None] * 3, ""),
        (["−1.5", "2", "<−3"], [-1.5, 2, None], [-1.5, 2, -3], "long minus signs"),
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


def test_only_the_unit_that_is_known_is_taken_away():
    column = pl.Series(["5 mmol/L", "6 mg/dl", "7"])
    assert numerals.numbers(column, unit="mmol/l").values.to_list() == [5, None, 7]
    assert numerals.numbers(column, unit="").values.to_list() == [None, None, 7]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([60, 70, 80, 75, -999, -999], {-999: 2}),
        ([60, 70, 80, 75, -999], {}),  # one outlier is no word
        ([120, 130, 140, 9999, 9999, 7777, 7777], {7777: 2, 9999: 2}),
        ([1, 2, 3, 4, 9, 9], {9: 2}),
        ([96, 97, 98, 99, 99], {}),  # a saturation
        ([0, 3, 5, 200, -1, -1], {-1: 2}),
        ([-2, -1, -1, 0, 4], {}),  # a base excess
        ([0, 1, 9, 9], {}),  # too few values to tell
        ([0.5, 1.5, 2.5, 99.5, 99.5], {}),
        ([None, 1, 2, 3, 888, 888], {888: 2}),
    ],
)
def test_numbers_that_stand_for_missing(values, expected):
    assert numerals.stand_ins(pl.Series("x", values, dtype=pl.Float64, strict=False)) == expected


def test_forms_hold_no_cell():
    assert numerals.form_of("A-123 Jäne\n7") == "a-999 aaaa 9"
    assert numerals.form_of("x" * 30) == "a" * 20 + "…"
