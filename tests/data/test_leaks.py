"""Columns that tell the label: which are found, and that ordinary ones are not."""

import numpy as np
import polars as pl

from remind_jax.data import leaks

N = 300
RNG = np.random.default_rng(0)
LABELS = np.arange(N) % 3
NOISE = RNG.normal(size=N)


def _found(labels=None, **columns):
    table = pl.DataFrame(columns)
    return leaks.columns(table, table.columns, (LABELS > 0).astype(int) if labels is None else labels)


def test_copies_maps_and_holes_tell_the_label():
    two = LABELS > 0
    names = np.array(["home", "ward", "dead"])
    assert set(_found(copy=two * 1.0, minus=-5.0 * two + 0.1 * NOISE, word=names[LABELS])) == {"copy", "minus", "word"}
    holes = pl.Series(NOISE).set(pl.Series(two), None)
    assert _found(holes=holes) == {"holes": 1.0}
    assert set(_found(LABELS, number=[(5.0, 1.0, 3.0)[i] for i in LABELS])) == {"number"}


def test_a_few_exceptions_hide_nothing():
    copy = (LABELS > 0).astype(float)
    copy[:2] = 1 - copy[:2]
    assert _found(copy=copy)["copy"] > leaks.SURE


def test_what_only_helps_is_no_leak():
    two = LABELS > 0
    helps = two + NOISE  # an area of about 0.76
    many = [f"w{i % 150}" for i in range(N)]  # as many values as there are pairs of rows
    assert _found(noise=NOISE, helps=helps, sex=["f", "m"] * (N // 2), many=many, constant=np.ones(N)) == {}
    assert _found(np.zeros(N, int), copy=np.zeros(N)) == {}


def test_presence_alone_and_in_pairs():
    two = LABELS > 0
    first = RNG.random(N) > 0.5
    present = np.stack([np.ones(N, bool), first, first ^ two, two], axis=1)
    assert leaks.presence(present, ["a", "b", "c", "d"], two.astype(int)) == ["d", "b with c"]
    assert leaks.presence(present[:, :2], ["a", "b"], two.astype(int)) == []


def test_names_of_what_comes_after():
    names = ["discharge_time", "hospital_expire_flag", "los", "icu_los_days", "dod", "lactose", "close", "age"]
    assert leaks.named_after(names) == names[:5]
