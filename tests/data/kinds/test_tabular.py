"""Tables: columns by hand; numbers in four encodings by hand, against plain loops, and what holds for any column."""

import dataclasses
import itertools
import json
import math
import statistics

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest

from remind_jax.data.kinds.numbers import NUMBERS, Pieces, Quantile, Waves
from remind_jax.data.kinds.tabular import FittedTable
from remind_jax.data.schema import Modality
from remind_jax.errors import UserError
from tests.data import fitting

NAN = math.nan
NORMAL = statistics.NormalDist()
LABS = Modality("labs", "tabular", ("a", "b", "c", "d", "e"), ("sex",))


def fit(values, numbers, bins=8):
    """A table with one numeric column [n]."""
    return FittedTable.fit(Modality("labs", "tabular", ("a",)), np.asarray(values)[:, None], None, numbers, bins)


def encode(table, values):
    return table.encode_columns(np.asarray(values)[:, None], None)


def table(n=400, seed=0):
    """Five columns: normal, skewed with holes, of two values, constant, mostly 0; and a category."""
    rng = np.random.default_rng(seed)
    skewed = rng.lognormal(sigma=1.5, size=n)
    skewed[rng.random(n) < 0.2] = NAN
    often = np.where(rng.random(n) < 0.6, 0.0, rng.gamma(2.0, size=n))
    numeric = np.stack([rng.normal(5, 3, n), skewed, rng.random(n) < 0.3, np.full(n, 0.1), often], axis=1)
    return numeric.astype(np.float32), rng.choice(["f", "m", ""], (n, 1)).astype(object)


# ---- Quantile --------------------------------------------------------------------------------------------------------


def test_quantile_by_hand():
    # Of eight values: 1 twice, 2 once, 4 four times, 10 once. Mid ranks 1, 2.5, 5 and 7.5 eighths.
    seen = [4.0, 1.0, 10.0, NAN, 4.0, 2.0, 4.0, 1.0, 4.0]
    found = encode(fit(seen, "quantile"), [1.0, 2.0, 4.0, 10.0, 3.0, 7.0, -50.0, 1e30, NAN])
    # 3 is half way from 2 to 4, 7 from 4 to 10; the median 4 stands in for what is missing.
    ranks = [1, 2.5, 5, 7.5, 3.75, 6.25, 1, 7.5, 5]
    np.testing.assert_allclose(found[:, 0], [NORMAL.inv_cdf(rank / 8) for rank in ranks], rtol=1e-6)
    np.testing.assert_array_equal(found[:, 1], [0] * 8 + [1])
    assert found.dtype == np.float32


def test_quantile_keeps_few_knots_and_few_ranks_of_many_values():
    values = np.random.default_rng(0).normal(size=5_000)
    (column,) = fit(values, "quantile").quantiles
    assert len(column.knots) == len(column.ranks) == 101
    assert set(column.knots) <= set(values.tolist())
    assert (column.knots[0], column.knots[-1]) == (values.min(), values.max())
    assert (column.ranks[0], column.ranks[-1]) == (1 / 10_000, 1 - 1 / 10_000)
    slow = [(np.sum(values < knot) + np.sum(values <= knot)) / 10_000 for knot in column.knots]
    np.testing.assert_allclose(column.ranks, slow, rtol=1e-12)


@pytest.mark.parametrize("draw", ["lognormal", "standard_cauchy", "uniform"])
def test_quantile_makes_any_continuous_column_normal(draw):
    values = getattr(np.random.default_rng(1), draw)(size=4_000)
    found = np.sort(encode(fit(values, "quantile"), values)[:, 0])
    expected = [NORMAL.inv_cdf((i + 0.5) / 4_000) for i in range(4_000)]
    # Linear pieces miss most in the two outermost percents, where a long tail bends the distribution function.
    np.testing.assert_allclose(found[80:-80], expected[80:-80], atol=0.06)
    assert abs(found.mean()) < 0.03
    assert abs(found.std() - 1) < 0.05
    assert np.abs(found).max() < 3.7
    raw = encode(fit(values, "standard"), values)[:, 0]
    assert np.abs(np.sort(raw)[80:-80] - expected[80:-80]).max() > 0.3


def test_quantile_follows_a_monotone_function_of_the_column():
    values = np.random.default_rng(2).normal(size=1_000) * 2
    one, two = fit(values, "quantile"), fit(np.exp(values), "quantile")
    knots = np.array(one.quantiles[0].knots)
    assert two.quantiles[0].ranks == one.quantiles[0].ranks
    np.testing.assert_array_equal(encode(two, np.exp(knots)), encode(one, knots))
    standard = [encode(fit(v, "standard"), k) for v, k in ((values, knots), (np.exp(values), np.exp(knots)))]
    assert np.abs(standard[0] - standard[1]).max() > 1


# ---- Piecewise -------------------------------------------------------------------------------------------------------


def test_pieces_by_hand():
    values = np.array([0.0, 1.0, 2.0, 4.0, 8.0])
    pieces = Pieces.fit(values, bins=2)
    # Edges at ranks 0, 2 and 4 of five values: intervals from 0 to 2 and from 2 to 8.
    assert pieces.edges == (0.0, 2.0, 8.0)
    raw = np.array([[0, 0], [1 / 2, 0], [1, 0], [1, 1 / 3], [1, 1]])
    assert pieces.mean == pytest.approx((3.5 / 5, 4 / 15))
    # Sums of squares 3.25 and 10/9: variances 13/20 - 49/100 = 4/25 and 2/9 - 16/225 = 34/225, together 14/45.
    assert pieces.scale == pytest.approx(math.sqrt(0.5 / (14 / 45)))
    expected = (raw - [0.7, 4 / 15]) * math.sqrt(45 / 28)
    np.testing.assert_allclose(pieces.encode(values), expected, rtol=1e-12)
    outside = pieces.encode(np.array([-100.0, 1e30, NAN, 5.0]))
    np.testing.assert_allclose(outside[:2], expected[[0, 4]], rtol=1e-12)
    np.testing.assert_array_equal(outside[2], 0)
    # A row's features, uncentred, add up to the number of intervals below it: 5 is in the middle of the second.
    assert (outside[3] / pieces.scale + pieces.mean).sum() == pytest.approx(1.5)


def test_a_table_of_pieces_by_hand():
    found = encode(fit([0.0, 1.0, 2.0, 4.0, 8.0, NAN], "piecewise", bins=2), [2.0, NAN, 11.0])
    # The mean is 3, the variance 85/5 - 9 = 8, the median 2; half of the variance is the number's.
    first, second = (np.array([1, 0]) - [0.7, 4 / 15]) * math.sqrt(45 / 28)
    last = (np.array([1, 1]) - [0.7, 4 / 15]) * math.sqrt(45 / 28)
    expected = [[-1 / 4, 0, first, second], [-1 / 4, 1, 0, 0], [8 / 4, 0, *last]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def slow_pieces(value, edges):
    """The features of one value, by the words of the definition."""
    features = []
    for low, high in itertools.pairwise(edges):
        if value < low:
            features.append(0.0)
        elif value >= high:
            features.append(1.0)
        else:
            features.append((value - low) / (high - low))
    return features


def slow_edges(values, bins):
    """Distinct values if few, else the values at ranks 0, 1/bins, …, 1 of the way through the sorted column."""
    if len(set(values)) <= bins + 1:
        return sorted(set(values))
    ordered = sorted(values)
    return sorted({ordered[int(k * (len(values) - 1) / bins)] for k in range(bins + 1)})


@pytest.mark.parametrize(("column", "bins"), [(0, 2), (0, 3), (0, 50), (4, 8), (4, 50)])
def test_pieces_are_those_of_plain_loops(column, bins):
    values = table()[0][:, column].astype(np.float64)
    pieces = Pieces.fit(values, bins)
    edges = slow_edges(values.tolist(), bins)
    assert list(pieces.edges) == edges
    raw = np.array([slow_pieces(value, edges) for value in values])
    mean = raw.mean(axis=0)
    # Squared distances from the mean, of the average row: half of a standardised number's.
    total = sum(sum((x - m) ** 2 for x, m in zip(row, mean, strict=True)) for row in raw) / len(raw)
    new = np.linspace(values.min() - 1, values.max() + 1, 97)
    expected = (np.array([slow_pieces(value, edges) for value in new]) - mean) * math.sqrt(0.5 / total)
    np.testing.assert_allclose(pieces.encode(new), expected, rtol=1e-9, atol=1e-9)


def test_few_values_get_an_interval_each_however_rare():
    grades = np.array([1.0] * 990 + [2.0, 3.0, 5.0] + [7.0] * 7)
    for bins in (4, 8):
        assert Pieces.fit(grades, bins).edges == (1.0, 2.0, 3.0, 5.0, 7.0)
    assert Pieces.fit(grades, bins=3).edges == ()  # 1 at three of four ranks, and 7: one interval


@pytest.mark.parametrize("bins", [1, 8])
def test_one_interval_would_repeat_the_number(bins):
    binary = np.array([0.0, 1, 0, 0, NAN, 1])
    one, two = fit(binary, "standard"), fit(binary, "piecewise", bins)
    assert two.features == ("a", "a is missing")
    np.testing.assert_array_equal(encode(one, binary), encode(two, binary))
    many = np.arange(100.0)
    assert fit(many, "piecewise", 1).features == ("a",)
    assert len(fit(many, "piecewise", 2).features) == 3


# ---- Periodic --------------------------------------------------------------------------------------------------------


def test_waves_by_hand():
    # Mean 0 and standard deviation 2: the first wave goes from -6 to 6, twelve units long.
    values = np.array([-2.0, -2.0, 2.0, 2.0, -2 * math.sqrt(2), 2 * math.sqrt(2), 0.0, 0.0])
    waves = Waves.fit(values, bins=3)  # room for one sine and one cosine
    assert (waves.centre, waves.width) == (0.0, pytest.approx(12.0))
    assert len(waves.mean) == 2
    found = waves.encode(np.array([3.0, 6.0, 60.0, -3.0, NAN])) / waves.scale + [*waves.mean]
    np.testing.assert_allclose(found[:4], [[1, 0], [0, -1], [0, -1], [-1, 0]], atol=1e-9)
    np.testing.assert_array_equal(waves.encode(np.array([NAN])), 0)
    two = Waves.fit(values, bins=4)
    second = two.encode(np.array([1.5]))[0] / two.scale + [*two.mean]  # sines of one and two waves, then cosines
    np.testing.assert_allclose(second, [math.sqrt(0.5), 1, math.sqrt(0.5), 0], atol=1e-9)


def test_two_values_and_room_for_one_wave_have_none():
    binary = np.array([0.0, 1, 0, 0, NAN, 1])
    assert fit(binary, "periodic").features == ("a", "a is missing")
    np.testing.assert_array_equal(encode(fit(binary, "standard"), binary), encode(fit(binary, "periodic"), binary))
    assert fit(np.arange(100.0), "periodic", 1).features == ("a",)


@pytest.mark.parametrize("numbers", ["piecewise", "periodic"])
def test_a_columns_features_weigh_as_much_as_one_standardised_number(numbers):
    numeric, categorical = table()
    found = FittedTable.fit(LABS, numeric, categorical, numbers)
    batch = found.encode_columns(numeric, categorical).astype(np.float64)
    for j in range(5):
        here = ~np.isnan(numeric[:, j])
        features = batch[here][:, found.features_of(j)]
        np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
        assert features.var(axis=0).sum() == pytest.approx(0 if j == 3 else 1, abs=1e-5)
        assert features.shape[1] == {2: 1, 3: 1, 4: 5 if numbers == "piecewise" else 9}.get(j, 9)


def test_positions_of_a_columns_features_follow_their_names():
    numeric, categorical = table()
    for numbers in NUMBERS:
        found = FittedTable.fit(LABS, numeric, categorical, numbers)
        names = found.features
        assert names[:8] == (*LABS.columns, "b is missing", "sex = f", "sex = m")
        assert found.spec.shape == (len(names),) == found.encode_columns(numeric, categorical).shape[1:]
        for j, column in enumerate(LABS.columns):
            of_column = [i for i, name in enumerate(names) if name == column or name.startswith(f"{column}, ")]
            assert found.features_of(j) == of_column
        if numbers == "piecewise":
            assert names[-4:] == tuple(f"e, interval {k} of 4" for k in (1, 2, 3, 4))


# ---- All encodings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", ["standard", "quantile", "piecewise"])
@hypothesis.given(
    seen=arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    new=arrays.arrays(np.float32, 20, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    bins=st.integers(1, 6),
)
@hypothesis.settings(max_examples=60)
def test_every_feature_grows_with_the_number_and_is_finite(numbers, seen, new, bins):
    found = fit(seen, numbers, bins)
    batch = encode(found, np.sort(np.concatenate([seen, new])))
    assert batch.dtype == np.float32
    assert np.isfinite(batch).all()
    assert (np.diff(batch.astype(np.float64), axis=0) >= 0).all()
    if numbers != "standard":
        assert np.abs(batch[:, 0 if numbers == "quantile" else slice(1, None)]).max(initial=0) < 8


@pytest.mark.parametrize("numbers", NUMBERS)
def test_constant_and_empty_columns_are_zero(numbers):
    for seen in ([0.1] * 9, [NAN] * 5, [3.0], [1.0, 1.0 + 1e-12, 1.0 - 1e-12] * 3):
        found = encode(fit(seen, numbers), [0.1, 7.0, -2.0, NAN])
        np.testing.assert_array_equal(found[:, 0], 0)
        assert found.shape[1] == (2 if math.isnan(seen[0]) else 1)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_order_of_rows_does_not_matter(numbers):
    numeric, categorical = table()
    order = np.random.default_rng(3).permutation(len(numeric))
    one = FittedTable.fit(LABS, numeric, categorical, numbers).encode_columns(numeric, categorical)
    two = FittedTable.fit(LABS, numeric[order], categorical[order], numbers).encode_columns(numeric, categorical)
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_round_trip_through_json(numbers):
    numeric, categorical = table()
    found = FittedTable.fit(LABS, numeric, categorical, numbers)
    again = FittedTable.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found
    np.testing.assert_array_equal(
        again.encode_columns(numeric, categorical), found.encode_columns(numeric, categorical)
    )
    own = {"quantile": {"quantiles"}, "piecewise": {"pieces"}, "periodic": {"waves"}}
    assert {"quantiles", "pieces", "waves"} & found.to_dict().keys() == own.get(numbers, set())


def test_a_dictionary_of_the_version_with_one_encoding_still_loads():
    old = {
        "columns": ["a", "b"],
        "categorical": ["sex"],
        "median": [3.0, 0.0],
        "mean": [5.0, 0.5],
        "std": [2.0, 0.0],
        "numeric_holes": [0],
        "categorical_holes": [],
        "categories": [["f", "m"]],
    }
    found = FittedTable.from_dict(old)
    batch = found.encode_columns(np.array([[7.0, 9.0], [NAN, 1.0]]), np.array([["m"], ["x"]], object))
    np.testing.assert_array_equal(batch, [[1, 0, 0, 0, 1], [-1, 0, 1, 0, 0]])
    assert json.loads(json.dumps(found.to_dict())) == old
    assert {field.name for field in dataclasses.fields(FittedTable)} - set(old) == {"quantiles", "pieces", "waves"}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_a_table_of_categories_only(numbers):
    cells = np.array([["f"], ["m"], [""]], object)
    found = FittedTable.fit(Modality("who", "tabular", (), ("sex",)), np.zeros((3, 0)), cells, numbers)
    np.testing.assert_array_equal(found.encode_columns(np.zeros((3, 0)), cells), [[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_encodings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match=r"'quantiles' is unknown.*did you mean 'quantile'"):
        fit([1.0, 2.0], "quantiles")
    with pytest.raises(UserError, match="at least 1"):
        fit([1.0, 2.0], "piecewise", 0)
    assert Quantile((), ()).encode(np.ones(2)).tolist() == [0, 0]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_plain_models_see_nan_for_empty_cells_and_not_what_was_filled_in(numbers):
    numeric = np.array([[1, 2, np.nan], [np.nan, 5, 6], [4, 6, 8], [7, 9, 7]], np.float32)
    modality = Modality("labs", "tabular", ("a", "b", "c"), ("sex",))
    sex = np.array([["f"]] * 4, object)
    fitted = FittedTable.fit(modality, numeric, sex, numbers, bins=2)
    encoded = fitted.encode_columns(numeric, sex)
    found = fitted.plain(encoded)
    assert not np.isnan(encoded).any()
    # Features: a, b, c, "a is missing", "c is missing", one category, two intervals or waves each of a, b and c.
    more = numbers in ("piecewise", "periodic")
    expected = np.zeros((4, 12 if more else 6))
    expected[1, [0, *((6, 7) if more else ())]] = 1
    expected[0, [2, *((10, 11) if more else ())]] = 1
    np.testing.assert_array_equal(np.isnan(found), expected)


# ---- In manifests ----------------------------------------------------------------------------------------------------


def test_tabular_by_hand():
    labs = Modality("labs", "tabular", ("a", "b", "c"), ("sex", "ward"))
    columns = {
        "a": [1.0, 3.0, None, 11.0, None, 100.0],  # train median 3, mean 5, variance (16 + 4 + 36) / 3
        "b": [2.0, 4.0, 2.0, 4.0, None, None],  # no hole among train rows that have the modality
        "c": [0.1, 0.1, 0.1, 0.1, None, 5.0],  # constant
        "sex": ["m", "f", None, "m", None, "x"],
        "ward": ["w", "w", "w", "w", None, None],
    }
    manifest = fitting.table_manifest(columns, labs)
    preprocessor = fitting.fit(manifest, np.arange(5))  # row 4 lacks the modality
    assert preprocessor.fitted["labs"].features == (
        *("a", "b", "c", "a is missing"),
        *("sex = f", "sex = m", "ward = w", "sex is missing"),
    )
    std = np.sqrt(56 / 3)
    expected = [
        [-4 / std, -1, 0, 0, 0, 1, 1, 0],
        [-2 / std, 1, 0, 0, 1, 0, 1, 0],
        [-2 / std, -1, 0, 1, 0, 0, 1, 1],
        [6 / std, 1, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [95 / std, -1, 0, 0, 0, 0, 0, 0],  # median of b is 3, its mean: 0
    ]
    expected[5][1] = 0
    batch = fitting.encode(preprocessor, manifest)["labs"]
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch, expected, rtol=1e-6, atol=1e-7)
    assert preprocessor.inputs["labs"].shape == (8,)


def test_column_that_train_never_has_is_zero():
    labs = Modality("labs", "tabular", ("a", "b"))
    manifest = fitting.table_manifest({"a": [1.0, 2.0, 3.0, 4.0], "b": pl.Series([None, None, 7.0, 8.0])}, labs)
    batch = fitting.encode(fitting.fit(manifest, np.array([0, 1])), manifest)["labs"]
    np.testing.assert_array_equal(batch[:, 1:], [[0, 1], [0, 1], [0, 0], [0, 0]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"median": [1.0]}, "columns"),
        ({"numeric_holes": [7]}, "columns"),
        ({"categories": "ab"}, "categories is no list"),
        ({"mean": [1.0, None]}, r"mean\[1\] is no number"),
    ],
)
def test_what_was_not_written_by_to_dict_is_refused(change, says):
    modality = Modality("labs", "tabular", ("a", "b"), ("sex",))
    found = FittedTable.fit(modality, np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([["f"], ["m"]], object))
    content = json.loads(json.dumps(found.to_dict()))
    assert FittedTable.from_dict(content) == found
    with pytest.raises(ValueError, match=says):
        FittedTable.from_dict(content | change)
