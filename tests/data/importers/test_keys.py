"""Ids that match, tables that are joined by them, and ids that nobody declared."""

import numpy as np
import polars as pl
import pytest

from remind_jax.data.importers import keys
from remind_jax.data.importers.table import from_table
from remind_jax.errors import UserError


@pytest.mark.parametrize(
    ("left", "right", "match", "same"),
    [
        (["123", "7"], ["123.0", "7.00"], "exact", True),
        ([123, 7], ["123.0", "7"], "exact", True),
        ([123.0, None], ["123", "7"], "exact", True),
        (["00017"], ["17"], "exact", False),
        (["00017"], ["17"], "number", True),
        (["1.0", "1.1"], ["1", "1.1"], "exact", False),  # decimals say something
        (["A12", "7"], ["A12", "7.0"], "exact", True),
        (["a12"], ["A12"], "exact", False),
    ],
)
def test_ids_are_alike(left, right, match, same):
    columns = {"a": keys.texts(pl.Series("a", left)), "b": keys.texts(pl.Series("b", right))}
    found = keys.alike(columns, match)
    assert (found["a"][0] == found["b"][0]) == same


def test_different_ids_never_become_one():
    with pytest.raises(UserError, match="1 ids of a would be the same as others"):
        keys.alike({"a": pl.Series(["017", "17"])}, "number")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.0, float("inf")], r"row 2\) infinite"),
        ([1.0, 2.0**60], r"row 2\) lost digits"),
        (["2.0E7", "2.1E7", "3"], "has lost digits"),
    ],
)
def test_ids_that_are_damaged_are_refused(ids, message):
    with pytest.raises(UserError, match=message):
        keys.texts(pl.Series("id", ids))


def _joined(own, other, **more):
    frame = pl.DataFrame({"id": own, "y": [str(i % 2) for i in range(len(own))], "x": [0.5] * len(own)})
    labs = pl.DataFrame({"id": other, "k": [1.5 * i for i in range(len(other))]})
    return from_table(frame, name="t", label="y", sample="id", patient="id", joined={"labs": labs}, **more)


def test_a_join_says_what_matched_by_form():
    found = _joined(["A-100", "A-101", "A-102", "A-103"], ["A-101", "B7", None, "A-100"])
    (line,) = (note for note in found.notes if note.startswith("labs: "))
    assert line == (
        "labs: 4 rows by id, 2 matched; 1 unmatched, 0 duplicated; 2 of 4 samples have no row; unmatched rows are left "
        "out, with keys such as a9; 1 rows without a key are left out; keys such as a-999"
    )
    assert found.table["k"].to_list() == [4.5, 0.0, None, None]


@pytest.mark.parametrize(
    ("own", "other", "cause"),
    [
        (["00017", "00018"], ["17", "18"], "2 more would match, but leading zeros.*--match=number"),
        (["a1", "a2"], ["A1", "A2"], "2 more would match, but they differ in capital letters"),
        (["12-3", "12-4"], ["123", "124"], "2 more would match, but they differ in blanks or hyphens"),
        (["P1", "P2"], ["1", "2"], "2 more would match, but one has letters"),
        (["P1", "P2"], ["Q8", "Q9"], "are they keys of the same thing"),
    ],
)
def test_no_match_is_refused_with_its_likely_cause(own, other, cause):
    with pytest.raises(UserError, match=f"matches no row.*{cause}") as caught:
        _joined(own, other)
    assert own[0] not in str(caught.value)


def test_a_part_that_lost_its_zeros_is_told():
    own, other = [f"{i:03}" for i in range(95, 105)], [str(i) for i in range(95, 105)]
    (line,) = (note for note in _joined(own, other).notes if note.startswith("labs: "))
    assert "5 matched; 5 unmatched" in line
    assert "5 more would match, but leading zeros were lost" in line


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (["1", "1.0"], ["1", "2"], "2 rows have an id that another row has .rows 1, 2"),
        (["1", None], ["1", "2"], r"row 2\) empty; every row needs an id"),
        (["1", "2"], ["1", "1.0"], "several rows of one id: 2 of 2 rows"),
    ],
)
def test_ids_that_are_empty_or_not_unique_are_refused(own, other, message):
    with pytest.raises(UserError, match=message):
        _joined(own, other)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "cells", "ids"),
    [
        ("x", [str(20000 + 3 * i) for i in range(40)], True),
        ("x", [float(20000 + 3 * i) for i in range(40)], True),
        ("x", [f"{i:03}" for i in range(40)], True),
        ("x", RNG.permutation(40).tolist(), True),
        ("x", [f"P-{i}" for i in range(40)], True),
        ("x", [RNG.bytes(8).hex() for _ in range(40)], True),
        ("hadm_id", [i // 2 + 7 * (i // 4) for i in range(40)], True),
        ("covid", [i // 2 + 7 * (i // 4) for i in range(40)], False),
        ("x", [str(i * 13 % 101) for i in range(40)], False),
        ("x", [i + 0.5 for i in range(40)], False),
        ("x", [f"{i}.5" for i in range(40)], False),
        ("x", [f"{100 + i}/{60 + i}" for i in range(40)], False),
        ("x", [f"患者主诉{i}" for i in range(40)], False),
        ("x", ["E11.9", "I10"] * 20, False),
        ("x", [str(20000 + i) for i in range(10)], False),
    ],
)
def test_undeclared_ids(name, cells, ids):
    assert keys.looks_like_ids(pl.Series(name, cells)) == ids
