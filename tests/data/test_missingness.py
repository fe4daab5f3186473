import itertools

import numpy as np
import pytest

from remind_jax.data import missingness
from remind_jax.errors import UserError

# Rows 100, 010, 110, 001, 101, 011, 111 of the paper's MIMIC table (section 7.4.2), in percent.
MIMIC_MASKS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=bool)
MIMIC_PERCENT = np.array([4.8, 5.2, 14.3, 5.2, 15.5, 14.7, 40.3])


def test_bernoulli_reproduces_the_papers_table_within_a_point():
    expected = 100 * missingness.bernoulli_frequencies(MIMIC_MASKS, 0.266)
    np.testing.assert_allclose(expected, [5.3, 5.3, 14.6, 5.3, 14.6, 14.6, 40.3], atol=0.05)
    assert np.abs(expected - MIMIC_PERCENT).max() < 1
    present = missingness.bernoulli_mask(100_000, 3, 0.266, np.random.default_rng(0))
    drawn = 100 * missingness.group_frequencies(present, MIMIC_MASKS)
    assert np.abs(drawn - MIMIC_PERCENT).max() < 1.1
    # Five standard errors of a share of 40 % over 100,000 draws.
    np.testing.assert_allclose(drawn, expected, atol=0.8)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_dropping_empty_rows_is_exact_conditioning(m, p):
    masks = np.array([mask for mask in itertools.product([False, True], repeat=m) if any(mask)])
    expected = missingness.bernoulli_frequencies(masks, p)
    assert expected.sum() == pytest.approx(1)
    n = 40_000
    present = missingness.bernoulli_mask(n, m, p, np.random.default_rng(1))
    assert present.any(axis=1).all()
    error = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(missingness.group_frequencies(present, masks) - expected) <= 5 * error).all()


def test_empty_rows_stay_when_asked():
    present = missingness.bernoulli_mask(20_000, 2, 0.5, np.random.default_rng(0), drop_empty=False)
    assert 0.23 < np.mean(~present.any(axis=1)) < 0.27
    assert not missingness.bernoulli_mask(10, 3, 1.0, np.random.default_rng(0), drop_empty=False).any()
    assert missingness.bernoulli_mask(10, 3, 0.0, np.random.default_rng(0)).all()


def test_later_draws_do_not_depend_on_the_probability():
    after = []
    for p in (0.1, 0.9):
        rng = np.random.default_rng(3)
        missingness.bernoulli_mask(50, 3, p, rng)
        after.append(rng.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_probability_out_of_range_is_refused(p):
    with pytest.raises(UserError, match="drop probability"):
        missingness.bernoulli_mask(5, 3, p, np.random.default_rng(0))


def test_combination_mask_follows_the_probabilities():
    probabilities = np.array([0.0, 0.25, 0.75])
    masks = MIMIC_MASKS[[0, 2, 6]]
    present = missingness.combination_mask(20_000, masks, probabilities, np.random.default_rng(0))
    assert present.shape == (20_000, 3)
    assert present.dtype == bool
    drawn = missingness.group_frequencies(present, masks)
    assert drawn[0] == 0
    np.testing.assert_allclose(drawn, probabilities, atol=0.016)


def test_group_frequencies_by_hand():
    present = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], dtype=bool)
    frequencies = missingness.group_frequencies(present, np.array([[1, 1], [1, 0]], dtype=bool))
    np.testing.assert_array_equal(frequencies, [0.25, 0.5])


def test_combinations_are_read_in_any_order_of_names():
    masks, probabilities = missingness.parse_combinations([("c+a", 0.2), ("b", 0.79)], ("a", "b", "c"))
    np.testing.assert_array_equal(masks, [[True, False, True], [False, True, False]])
    np.testing.assert_allclose(probabilities, [0.2 / 0.99, 0.79 / 0.99])


@pytest.mark.parametrize(
    ("combinations", "message"),
    [
        ([("a+x", 1.0)], "'x'"),
        ([("a+a", 1.0)], "twice"),
        ([("a+b", 0.5), ("b+a", 0.5)], "listed twice"),
        ([("a", 0.5), ("b", 0.4)], "sum to 1"),
        ([("a", 1.5), ("b", -0.5)], "sum to 1"),
        ([("", 1.0)], "''"),
        ([], "sum to 1"),
    ],
)
def test_bad_combinations_are_refused(combinations, message):
    with pytest.raises(UserError, match=message):
        missingness.parse_combinations(combinations, ("a", "b"))
