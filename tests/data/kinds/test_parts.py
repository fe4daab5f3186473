"""Parts that rows may lose of tables, events and series: each is encoded without them as if it had never been there."""

import numpy as np
import polars as pl
import pytest

from remind_jax.data.kinds.events import FittedEvents
from remind_jax.data.kinds.series import FittedSeries
from remind_jax.data.kinds.tabular import FittedTable
from remind_jax.data.schema import Modality


def _table():
    numeric = np.array([[1, np.nan], [2, 5], [4, 7]], np.float32)
    words = np.array([["b"], [""], ["a"]], object)
    fitted = FittedTable.fit(Modality("x", "tabular", ("p", "q"), categorical=("w",)), numeric, words)
    left = {"x/numeric": np.array([[np.nan, np.nan], [2, 5], [4, np.nan]], np.float32)}
    left["x/categorical"] = np.array([["b"], [""], [""]], object)
    # In the order of rows and columns: p, w | p, q | p, q, w.
    places = [[0, 0, 1], [0, 2, 2], [1, 0, 2], [1, 1, 5], [2, 0, 4], [2, 1, 7], [2, 2, 1]]  # "", a, b
    return fitted, {"x/numeric": numeric, "x/categorical": words}, left, places, [0, 5, 6]


def _cell(*events):
    return pl.Series([{"hours": h, "code": c, "value": v} for h, c, v in events], dtype=_TYPE)


_TYPE = pl.Struct({"hours": pl.Float64(), "code": pl.String(), "value": pl.Float64()})


def _objects(*cells):
    found = np.empty(len(cells), object)
    found[:] = cells
    return found


def _events():
    one, other = ((-3.0, "k", 4.0), (-1.0, "na", 140.0), (-1.0, "k", None)), ((-2.0, "na", 130.0),)
    fitted = FittedEvents(4, ("k", "na"), (4.0, 135.0), (1.0, 5.0), 3.0)
    left = {"x": _objects(_cell(one[0], one[2]), _cell(*other))}
    places = [[0, -3, 4], [0, -1, 140], [0, -1, np.nan], [1, -2, 130]]
    return fitted, {"x": _objects(_cell(*one), _cell(*other))}, left, places, [1]


def _series():
    gap = np.nan
    one, other = np.array([[1, gap], [gap, gap], [3, 4]], np.float32), np.array([[gap, 2]], np.float32)
    fitted = FittedSeries(3, (1.0, 2.0), (2.0, 0.0))
    left = {"x": _objects(np.array([[1, gap], [gap, gap], [gap, gap]], np.float32), other)}
    return fitted, {"x": _objects(one, other)}, left, [[0, 0, 0.0], [0, 2, 1.5], [1, 0, 0.0]], [1]


@pytest.mark.parametrize("make", [_table, _events, _series])
def test_parts_are_named_and_taken_away(make):
    fitted, raw, left, places, gone = make()
    before = fitted.encode(raw, "x").copy()
    parts = fitted.parts(raw, "x")
    np.testing.assert_array_equal(np.stack([parts.row, parts.time, parts.value], axis=1), places)
    lost = np.isin(np.arange(len(parts.row)), gone)
    found = fitted.encode(fitted.without(raw, "x", lost), "x")
    np.testing.assert_array_equal(found, fitted.encode(left, "x"))
    assert (found != before).any()
    np.testing.assert_array_equal(fitted.encode(raw, "x"), before)  # what came in is as it was
    np.testing.assert_array_equal(fitted.encode(fitted.without(raw, "x", ~lost & lost), "x"), before)


def test_values_of_one_code_or_column_are_comparable():
    fitted, raw, *_ = _events()
    assert fitted.parts(raw, "x").column.tolist() == [1, 2, 1, 2]
    fitted, raw, *_ = _table()
    assert fitted.parts(raw, "x").column.tolist() == [0, 2, 0, 1, 0, 1, 2]
