import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from remind_jax.data import splits
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

MODALITIES = tuple(Modality(name, "text", (name,)) for name in ("a", "b"))


def make(n=400, seed=0, rows_a_patient=2, **columns):
    rng = np.random.default_rng(seed)
    here = rng.random((n, 2)) > 0.3
    here[:, 0] |= ~here.any(axis=1)
    table = {
        "id": [f"s{i}" for i in range(n)],
        "patient": [f"p{i // rows_a_patient}" for i in range(n)],
        "y": [str(int(v)) for v in rng.random(n) < 0.2],
        "a": ["x" if v else None for v in here[:, 0]],
        "b": ["x" if v else None for v in here[:, 1]],
    } | columns
    schema = Schema("t", "id", "patient", "y", ("0", "1"), MODALITIES, "split" if "split" in columns else None)
    return Manifest(schema, pl.DataFrame(table))


def shares(split):
    return np.bincount(split, minlength=3) / len(split)


@pytest.mark.parametrize("rows_a_patient", [1, 2, 5])
def test_fractions_are_met_and_patients_are_whole(rows_a_patient):
    manifest = make(500, rows_a_patient=rows_a_patient)
    split = splits.make_splits(manifest, 3)
    assert split.dtype == np.int8
    np.testing.assert_allclose(shares(split), [0.7, 0.1, 0.2], atol=0.015)
    assert splits.cut_patients(manifest.table["patient"].to_numpy(), split) == []


def test_labels_and_combinations_are_spread_alike():
    manifest = make(1000, rows_a_patient=1)
    split = splits.make_splits(manifest, 0)
    combination = manifest.presence @ np.array([1, 2])
    for stratum in {(c, y) for c in (1, 2, 3) for y in (0, 1)}:
        rows = (combination == stratum[0]) & (manifest.labels == stratum[1])
        np.testing.assert_allclose(
            np.bincount(split[rows], minlength=3), rows.sum() * np.array([0.7, 0.1, 0.2]), atol=2
        )


def test_row_order_changes_nothing_and_the_seed_changes_the_split():
    manifest = make()
    split = splits.make_splits(manifest, 0)
    order = np.random.default_rng(1).permutation(400)
    moved = dataclasses.replace(manifest, table=manifest.table[order])
    np.testing.assert_array_equal(splits.make_splits(moved, 0), split[order])
    other = splits.make_splits(manifest, 1)
    assert (other != split).mean() > 0.1
    assert splits.split_digest(other) != splits.split_digest(split) == splits.split_digest(split.copy())


@pytest.mark.parametrize("seed", range(20))
def test_a_class_with_one_patient_goes_to_train(seed):
    manifest = make(60)
    rare = manifest.table.with_columns(y=pl.Series(["1", *["0"] * 59]))
    split = splits.make_splits(dataclasses.replace(manifest, table=rare), seed)
    assert split[0] == splits.TRAIN


def test_given_column_is_honoured():
    given = [("train", "tuning", "held_out")[i // 2 % 3] for i in range(60)]
    split = splits.make_splits(make(60, split=given), 0)
    assert [splits.SPLITS[i] for i in split] == given


def test_tuning_is_carved_out_of_train_only():
    given = ["held_out" if i < 100 else "train" for i in range(400)]
    manifest = make(400, split=given)
    split = splits.make_splits(manifest, 0)
    np.testing.assert_array_equal(split == splits.HELD_OUT, np.arange(400) < 100)
    assert (split == splits.TUNING).sum() == pytest.approx(300 / 8, abs=3)
    assert splits.cut_patients(manifest.table["patient"].to_numpy(), split) == []


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (["train", "held_out"] * 30, "E003"),
        (["train"] * 60, "E001.*no held_out"),
        (["train"] * 40 + ["held_out"] * 18 + [None] * 2, "E001.*2 cells"),
    ],
)
def test_bad_columns_are_refused(given, code):
    with pytest.raises(UserError, match=code):
        splits.make_splits(make(60, split=given), 0)


def test_rows_without_patient_are_refused():
    with pytest.raises(UserError, match=r"E001 column 'patient'"):
        splits.make_splits(make(4, patient=["p", None, "q", "r"]), 0)


def test_class_absent_from_train_is_refused():
    given = ["train"] * 40 + ["tuning"] * 10 + ["held_out"] * 10
    labels = ["0"] * 50 + ["1"] * 10
    with pytest.raises(UserError, match=r"E005.*class 1"):
        splits.make_splits(make(60, split=given, y=labels), 0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.2, 0.0)])
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(UserError, match="fractions"):
        splits.make_splits(make(20), 0, fractions)


# ---- By hash ---------------------------------------------------------------------------------------------------------


def _sides(manifest, seed=0, fractions=(0.7, 0.1, 0.2)):
    """The split of each patient."""
    split = splits.make_splits(manifest, seed, fractions, "hash")
    assert splits.cut_patients(manifest.table["patient"].to_numpy(), split) == []
    return dict(zip(manifest.table["patient"].to_list(), split.tolist(), strict=True))


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.data())
@settings(max_examples=30)
def test_adding_removing_and_reordering_patients_moves_nobody_by_hash(seed, draw, data):
    everybody = make(300, seed=draw % 7)
    before = _sides(everybody, seed)
    rng = np.random.default_rng(draw)
    rows = rng.permutation(300)[: data.draw(st.integers(150, 300))]
    labels = ["01"[int(x)] for x in rng.random(len(rows)) < 0.5]  # which have no say, either
    some = dataclasses.replace(everybody, table=everybody.table[rows].with_columns(y=pl.Series(labels)))
    after = _sides(some, seed)
    assert {name: before[name] for name in after} == after
    more = make(600, seed=1, patient=[f"p{i // 2}" if i < 300 else f"new{i % 40}" for i in range(600)])
    assert {name: side for name, side in _sides(more, seed).items() if name in before} == before


def test_the_stratified_split_does_move_patients():
    """What the hash is for: without it three more patients change the split of many others."""
    one, more = make(100), make(106)
    before, after = (splits.make_splits(each, 0) for each in (one, more))
    assert (before != after[:100]).any()
    assert _sides(one) == {name: side for name, side in _sides(more).items() if name in _sides(one)}


@pytest.mark.parametrize("fractions", [(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.9, 0.0, 0.1), (0.8, 0.2, 0.0)])
def test_shares_by_hash_are_within_binomial_bounds(fractions):
    names = [f"p{i}" for i in range(4000)]
    for seed in range(10):
        sides = _sides(make(4000, patient=names), seed, fractions)
        counts = np.bincount(list(sides.values()), minlength=3)
        for count, share in zip(counts, fractions, strict=True):
            # Of 120 counts one in a million lies outside.
            low, high = binom.interval(1 - 1e-8, 4000, share) if share else (0, 0)
            assert low <= count <= high
    assert _sides(make(400), 0) != _sides(make(400), 1)


def test_another_tuning_share_holds_out_the_same_patients():
    one, other = _sides(make(400), fractions=(0.7, 0.1, 0.2)), _sides(make(400), fractions=(0.5, 0.3, 0.2))
    held = [{name for name, side in sides.items() if side == splits.HELD_OUT} for sides in (one, other)]
    assert held[0] == held[1]
    assert one != other


def test_tuning_is_carved_out_of_train_by_hash_as_well():
    column = ["held_out" if i // 2 % 5 == 0 else "train" for i in range(400)]
    sides = _sides(make(400, split=column))
    fewer = _sides(make(300, split=column[:300]))
    assert fewer == {name: side for name, side in sides.items() if name in fewer}
    assert 10 <= list(sides.values()).count(splits.TUNING) <= 35  # about an eighth of 160 patients


def test_a_class_that_chance_keeps_from_train_is_refused_with_what_else_helps():
    labels = ["0"] * 60
    held = next(name for name, side in _sides(make(60)).items() if side == splits.HELD_OUT)
    row = make(60).table["patient"].to_list().index(held)
    labels[row] = "1"
    with pytest.raises(UserError, match=r"E005 no row of train has the class 1: .* or data\.split=stratified$"):
        splits.make_splits(make(60, y=labels), 0, rule="hash")
    splits.make_splits(make(60, y=labels), 0)


# ---- Folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 5])
def test_each_row_is_tuned_by_once_and_no_patient_is_cut(folds):
    manifest = make(rows_a_patient=3)
    sides = splits.make_splits(manifest, seed=1)
    patients, used = manifest.table["patient"].to_numpy(), sides != splits.HELD_OUT
    times = np.zeros(len(sides), int)
    for fold in range(folds):
        dealt = splits.deal(manifest, sides, 1, folds, fold)
        assert splits.cut_patients(patients[used], dealt[used]) == []
        assert (dealt[~used] == splits.UNUSED).all()
        assert (dealt[used] != splits.UNUSED).all()
        tuned = dealt == splits.TUNING
        assert tuned.sum() / used.sum() == pytest.approx(1 / folds, abs=0.02)
        positive = manifest.labels == 1
        assert positive[tuned].mean() == pytest.approx(positive[used].mean(), abs=0.08)
        times += tuned
    np.testing.assert_array_equal(times, used.astype(int))
    whole = splits.deal(manifest, sides, 1, folds, -1)
    np.testing.assert_array_equal(whole, np.where(used, splits.TRAIN, splits.HELD_OUT))


def test_one_fold_leaves_held_out_rows_unread_and_the_others_as_they_are():
    manifest = make()
    sides = splits.make_splits(manifest, seed=1)
    dealt = splits.deal(manifest, sides, 1, 1, 0)
    np.testing.assert_array_equal(dealt, np.where(sides == splits.HELD_OUT, splits.UNUSED, sides))
    assert dealt.dtype == np.int8
    np.testing.assert_array_equal(splits.deal(manifest, sides, 1, 1, -1), sides)  # the whole, of which it is the fold


def test_folds_follow_the_seed_and_need_as_many_patients():
    manifest = make()
    sides = splits.make_splits(manifest, seed=1)
    one = splits.deal(manifest, sides, 1, 5, 0)
    np.testing.assert_array_equal(one, splits.deal(manifest, sides, 1, 5, 0))
    assert (one != splits.deal(manifest, sides, 2, 5, 0)).any()
    with pytest.raises(UserError, match="needs as many patients"):
        splits.deal(make(8, rows_a_patient=4), np.zeros(8, np.int8), 0, 5, 0)
