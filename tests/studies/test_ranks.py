import numpy as np
import pytest
from scipy import stats

from remind_jax.studies import ranks

# Demsar (2006), table 6: ranks of C4.5 with its parameters m and cf left alone or tuned, on fourteen data sets.
C45 = [4, 1, 4, 4, 4, 1, 3, 2.5, 4, 2.5, 4, 3, 4, 3]
C45_M = [3, 2, 1, 1, 2, 2.5, 2, 2.5, 3, 2.5, 2.5, 2, 1, 1]
C45_CF = [2, 3, 2, 3, 3, 4, 4, 4, 2, 2.5, 1, 4, 2, 4]
C45_M_CF = [1, 4, 3, 2, 1, 2.5, 1, 1, 1, 2.5, 2.5, 1, 3, 2]
DEMSAR = {"C4.5": C45, "C4.5+m": C45_M, "C4.5+cf": C45_CF, "C4.5+m+cf": C45_M_CF}
# Ranks (1, 2, 3), (1, 2, 3), (1, 3, 2), (2, 1, 3), by figures of which more is better.
SMALL = {"a": [9.0, 0.9, 90.0, 5.0], "b": [8.0, 0.8, 70.0, 6.0], "c": [7.0, 0.7, 80.0, 4.0]}


def drawn(n: int, k: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 12, (n, k)).astype(float)


# ---- Ranks ----------------------------------------------------------------------------------------------------------


def test_the_best_has_rank_one_by_the_direction_of_the_figure_and_ties_share():
    figures = np.array([[0.9, 0.7, 0.9], [3.0, 1.0, 2.0]])
    assert ranks.ranks(figures, np.array([True, False])).tolist() == [[1.5, 3, 1.5], [3, 1, 2]]
    assert ranks.ranks(figures, np.array([True, True])).tolist() == [[1.5, 3, 1.5], [1, 3, 2]]
    assert ranks.ranks(np.array([[0.1 + 0.2, 0.3]]), np.array([True])).tolist() == [[1.5, 1.5]]  # rounding is no rank


@pytest.mark.parametrize(("n", "k"), [(1, 2), (5, 20), (14, 4)])
def test_ranks_of_a_block_sum_to_the_same_and_go_with_their_methods(n, k):
    figures, more = drawn(n, k), np.arange(n) % 2 == 0
    found = ranks.ranks(figures, more)
    np.testing.assert_allclose(found.sum(axis=1), k * (k + 1) / 2)
    order = np.random.default_rng(1).permutation(k)
    np.testing.assert_array_equal(ranks.ranks(figures[:, order], more), found[:, order])
    np.testing.assert_array_equal(ranks.ranks(-figures, ~more), found)


# ---- Tests ----------------------------------------------------------------------------------------------------------


def test_demsar_s_example():
    found = ranks.compare(DEMSAR, [False] * 14)
    means = {"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert list(found.means) == list(means)
    assert found.means == pytest.approx(means, abs=5e-4)
    # Four groups of ties take 3 * 6 + 60 of 14 * 60, which the paper does not correct for.
    assert found.friedman.chi2 * (1 - 78 / 840) == pytest.approx(9.28, abs=5e-3)
    assert found.difference == pytest.approx(1.25, abs=5e-3)
    assert found.friedman.degrees == (3, 39)
    assert found.differs
    assert found.cliques == [(0, 3)]  # 3.143 - 1.964 is below it
    assert found.apart == {}


def test_a_table_worked_out_by_hand():
    found = ranks.compare(SMALL, [True] * 4)
    assert found.means == pytest.approx({"a": 1.25, "b": 2.0, "c": 2.75})
    # 12 * 4 / (3 * 4) * (1.25² + 2² + 2.75² - 12), then 3 * 4.5 / (4 * 2 - 4.5)
    assert found.friedman.chi2 == pytest.approx(4.5)
    assert found.friedman.f == pytest.approx(13.5 / 3.5)
    assert found.friedman.p == pytest.approx((1 + 2 * (13.5 / 3.5) / 6) ** -3)  # F(2, 6) in closed form
    assert not found.differs


@pytest.mark.parametrize("seed", range(4))
def test_friedman_is_scipy_s_with_and_without_ties(seed):
    figures = drawn(7, 5, seed)
    found = ranks.friedman(ranks.ranks(figures, np.ones(7, bool)))
    assert found.chi2 == pytest.approx(stats.friedmanchisquare(*figures.T).statistic)
    order = np.random.default_rng(seed).permutation(5)
    assert ranks.friedman(ranks.ranks(figures[:, order], np.ones(7, bool))).p == pytest.approx(found.p)


def test_the_critical_difference_is_that_of_the_tables():
    # Demsar (2006), table 5: q at 0.05 is 1.960 for two methods, 2.343 for three, 3.164 for ten.
    for k, q in ((2, 1.960), (3, 2.343), (10, 3.164)):
        assert ranks.critical_difference(k, 30) == pytest.approx(q * (k * (k + 1) / 180) ** 0.5, rel=3e-4)


def test_blocks_that_agree_and_those_that_say_nothing():
    agree = ranks.compare({"a": [3, 3, 3], "b": [2, 2, 2], "c": [1, 1, 1]}, [True] * 3)
    assert agree.friedman.chi2 == pytest.approx(6)
    assert (agree.friedman.f, agree.friedman.p) == (np.inf, 0.0)
    assert agree.apart == {"a": ("c",)}  # 2.343 * sqrt(2 / 3) = 1.91 lies between one rank and two
    assert agree.cliques == [(0, 1), (1, 2)]
    alike = ranks.compare({"a": [1, 2], "b": [1, 2]}, [True, True])
    assert (alike.friedman, alike.differs, alike.apart, alike.cliques) == (None, False, {}, [(0, 1)])
    one = ranks.compare({"a": [1], "b": [2]}, [True])
    assert (one.friedman, one.difference, one.cliques, one.apart) == (None, None, [], {})
    assert ranks.compare({"a": [1, 2]}, [True, True]) is None
    assert ranks.compare({"a": [], "b": []}, []) is None


def test_cliques_are_the_largest_runs_that_are_not_apart():
    assert ranks.cliques([1.0, 1.5, 2.5, 4.0, 9.0], 2.0) == [(0, 2), (2, 3)]
    assert ranks.cliques([1.0, 3.0], 2.0) == []  # as far as the difference is apart
    assert ranks.cliques([1.0, 2.0, 3.0], 9.0) == [(0, 2)]
    assert ranks.cliques([1.0, 1.0, 5.0, 5.0], 0.5) == [(0, 1), (2, 3)]


def test_ranks_without_friedman_s_consent_keep_nobody_apart():
    mixed = {"a": [9, 9, 1, 9], "b": [2, 1, 9, 2], "c": [1, 2, 2, 1]}
    found = ranks.Ranking({"a": 1.0, "b": 9.0}, 4, ranks.Friedman(1.0, 1.0, (1, 3), 0.4), 2.0)
    assert (found.apart, found.cliques) == ({}, [(0, 1)])
    sure = ranks.Ranking({"a": 1.0, "b": 9.0}, 4, ranks.Friedman(4.0, 9.0, (1, 3), 0.01), 2.0)
    assert (sure.apart, sure.cliques) == ({"a": ("b",)}, [])
    assert not ranks.compare(mixed, [True] * 4).differs


# ---- Wilcoxon -------------------------------------------------------------------------------------------------------


def test_wilcoxon_by_hand():
    base = np.arange(8.0)
    values = {"base": base, "up": base + base + 1, "mixed": base + (-1) ** base}
    more = [True] * 8
    assert ranks.wilcoxon({k: values[k] for k in ("base", "up")}, more, "base") == {"up": pytest.approx(2 / 2**8)}
    found = ranks.wilcoxon(values, more, "base")
    assert found["up"] == pytest.approx(2 * 2 / 2**8)  # Holm: the smaller of two counts twice
    assert found["mixed"] > 0.05
    same = ranks.wilcoxon({"base": base, "same": base}, more, "base")
    assert same == {"same": 1.0}


def test_wilcoxon_knows_no_units_and_turns_figures_of_which_less_is_better():
    rng = np.random.default_rng(3)
    values = {m: rng.normal(size=9) for m in "abc"}
    found = ranks.wilcoxon(values, [True] * 9, "a")
    scale, sign = np.where(np.arange(9) % 2, 100.0, 1.0), np.where(np.arange(9) % 3, 1, -1)
    turned = {m: sign * scale * each for m, each in values.items()}
    assert ranks.wilcoxon(turned, (sign > 0).tolist(), "a") == pytest.approx(found)
    assert ranks.wilcoxon(turned, [True] * 9, "a") != pytest.approx(found)


def test_too_few_blocks_are_not_tested():
    two = {"a": [1.0] * 5, "b": [2.0] * 5}
    assert ranks.wilcoxon(two, [True] * 5, "a") is None  # 2 / 2**5 is above 0.05
    assert ranks.wilcoxon({m: [*v, *v] for m, v in two.items()}, [True] * 10, "a") is not None
    assert ranks.wilcoxon({m: [*v, *v] for m, v in two.items()}, [True] * 10, "gone") is None


# ---- Holes ----------------------------------------------------------------------------------------------------------


def test_only_methods_with_every_block_are_ranked_and_the_others_are_named():
    cells = {
        ("ward", "0"): {"a": 1.0, "b": 2.0, "c": 3.0},
        ("ward", "1"): {"a": 1.0, "b": None, "c": 3.0},
        ("trial", "0"): {"a": 1.0, "b": 2.0},
        ("empty", "0"): {"a": None, "b": None},
    }
    found = ranks.complete(cells, ["a", "b", "c", "d"])
    assert found.values == {"a": [1.0, 1.0, 1.0]}
    assert found.blocks == (("ward", "0"), ("ward", "1"), ("trial", "0"))
    assert found.lacking == {"b": [("ward", "1")], "c": [("trial", "0")], "d": list(found.blocks)}
    assert found.undefined == (("empty", "0"),)
