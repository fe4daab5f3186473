import numpy as np
import pytest

from remind_jax.studies import arena_words
from remind_jax.studies.arena_figures import Arena
from remind_jax.studies.ranks import Friedman, Ranking
from tests.studies import arena_rows


@pytest.fixture(scope="module")
def arena():
    return Arena(arena_rows.rows(), arena_rows.differences())


def test_the_answer_follows_from_the_figures(arena):
    said = arena_words.answer(arena)
    assert said[0] == (
        "new has the best mean rank, 1.0 of 3 methods, over 3 data sets as found (AUROC in 1, Uno's C in 1, MAE in 1; "
        "a set counts by its mean over seeds); soft_moe (2.0) and old (3.0) follow."
    )
    assert said[1] == "On the tail, the samples of rare combinations, the best is new with 1.0, too."
    # All blocks agree: chi square is 3 * 2; 2.343 * sqrt(3 * 4 / 18) is the critical difference.
    assert said[2] == (
        "Friedman's test, F(2, 4) = inf, p < .001, finds that they are not all alike; Nemenyi's critical difference is "
        "1.9 ranks. By it 1 pair of 3 is apart: new is ahead of old. Everything else is level, which is no proof of "
        "being equal."
    )
    assert said[3].startswith("With every set and seed as a block there are 6 blocks, which are not independent")
    assert "new leads with 1.0, 2 pairs of methods are apart" not in said[3]  # 1.35 lies above a rank, below two
    assert "1 pair of methods is apart (critical difference 1.4)" in said[3]
    assert said[4] == (
        "Against soft_moe, by the paired intervals with p by Holm within each set, new is better in 2 of 3 sets and "
        "worse in 0, on the tail better in 1 and worse in 0 of 1 with an interval."
    )
    assert said[5] == (
        "Better than soft_moe beyond chance in at least one of these sets, all samples: 1 (new) of 2 others; worse: "
        "1 (old)."
    )
    assert said[6] == (
        "A run of new takes 25.0 s of one processor (median over sets), 2.5 times what soft_moe takes. No other method "
        "is both better ranked and cheaper than new (25.0 s, rank 1.0), soft_moe (10.0 s, rank 2.0) and old (2.0 s, "
        "rank 3.0)."
    )
    assert len(said) == 7


def test_wilcoxon_speaks_where_blocks_suffice():
    seeds = {"soft_moe": range(70, 80), "new": range(72, 82), "old": np.arange(70, 80) + np.tile([1, -1], 5)}
    arena = Arena(arena_rows.rows({"ward": seeds, "trial": seeds}), arena_rows.differences())
    said = arena_words.dependent(arena)
    assert said.endswith("by Wilcoxon's test with Holm 1 (new) is better than soft_moe and none is worse.")
    few = Arena(arena_rows.rows({"ward": {m: list(v)[:2] for m, v in seeds.items()}}), arena_rows.differences())
    assert "Wilcoxon" not in arena_words.dependent(few)


def test_nothing_is_called_apart_without_friedman_s_test():
    ranking = Ranking({"a": 1.2, "b": 2.0, "c": 2.8}, 5, Friedman(2.0, 1.1, (2, 8), 0.4), 0.5)
    said = arena_words.told_apart(ranking)
    assert said.endswith("p = 0.400, does not tell the methods apart: all their ranks could be chance.")
    assert "ahead" not in said
    sure = Ranking(ranking.means, 5, Friedman(8.0, 9.0, (2, 8), 0.01), 1.0)
    assert "1 pair of 3 is apart: a is ahead of c." in arena_words.told_apart(sure)
    none = Ranking(ranking.means, 5, sure.friedman, 9.0)
    assert "By it no pair is apart" in arena_words.told_apart(none)
    assert arena_words.told_apart(Ranking(ranking.means, 1, None, None)).startswith("No test can be made")


def test_those_who_are_ahead_of_the_same_are_named_together():
    means = {f"m{i}": float(i) for i in range(8)}
    said = arena_words.told_apart(Ranking(means, 50, Friedman(9.0, 9.0, (7, 343), 0.001), 3.0))
    assert (
        "15 pairs of 28 are apart: m0 is ahead of m3 and the 4 ranked after it; m1 is ahead of m4, m5, m6 and" in said
    )
    low = {"a": 1.0, "b": 1.0, "c": 5.0}
    said = arena_words.told_apart(Ranking(low, 50, Friedman(9.0, 9.0, (2, 98), 0.001), 3.0))
    assert "2 pairs of 3 are apart: a and b are ahead of c." in said


def test_who_fails_somewhere_and_where_no_figure_is_are_named():
    values = {**arena_rows.VALUES, "days": {"soft_moe": (3.0, 3.2), "new": (None, None), "old": (5.0, 4.0)}}
    rows = [row | ({"tail": ""} if row["data"] == "trial" else {}) for row in arena_rows.rows(values)]
    said = arena_words.answer(Arena(rows, arena_rows.differences()))
    assert said[0].startswith("soft_moe has the best mean rank, 1.0 of 2 methods")
    assert said[0].endswith("old (2.0) follows.")
    assert "the best is soft_moe with 1.0 over 2 sets, too." in said[1]
    assert "Not ranked, for lack of figures in some sets and seeds: new (days seeds 0, 1)." in said
    assert "No method has a figure of the tail samples in trial seeds 0, 1, which is left out there." in said


def test_the_best_of_all_samples_may_not_be_that_of_the_tail():
    rows = [row | ({"tail": "99"} if row["method"] == "old" else {}) for row in arena_rows.rows()]
    rows = [row | ({"tail": "1"} if (row["method"], row["data"]) == ("old", "days") else {}) for row in rows]
    said = arena_words.answer(Arena(rows, {}))[1]
    assert said.endswith("the best is old with 1.0; new has 2.0 there, place 2.")
    holes = [row | ({"tail": ""} if (row["method"], row["seed"]) == ("new", "1") else {}) for row in arena_rows.rows()]
    said = arena_words.answer(Arena(holes, {}))[1]
    assert said.endswith("the best is soft_moe with 1.0; new is not ranked there.")


def test_an_arena_of_one_method_ranks_nothing():
    one = {"ward": {"new": (80.0,)}}
    assert arena_words.answer(Arena(arena_rows.rows(one), {})) == [
        "No two methods have a figure in every set and seed, so that nothing is ranked."
    ]


def test_protocols_have_a_sentence_where_there_are_several(arena):
    worse = {"ward": {"soft_moe": (80.0, 82.0), "new": (60.0, 61.0), "old": (70.0, 74.0)}}
    several = Arena([*arena.rows, *arena_rows.rows(worse, "mcar-0.3")], {})
    said = "Best mean rank by protocol of missingness: as found new (1.0, 3 sets); mcar-0.3 soft_moe (1.0, 1 set)."
    assert said in arena_words.answer(several)


def test_small_words():
    assert [arena_words.size(x) for x in (None, 12, 41_000, 2.5e6, 3e9)] == ["-", "12", "41.0 k", "2.5 M", "3.0 G"]
    assert [arena_words.seconds(x) for x in (None, 1.25, 2345.6)] == ["-", "1.2 s", "2,346 s"]
    assert [arena_words.p_text(p) for p in (0.0001, 0.25)] == ["< .001", "= 0.250"]
    assert arena_words.listed("ab") == "a and b"
    assert arena_words.listed(["a"]) == "a"
    assert arena_words.some([f"m{i}" for i in range(6)]) == "6 (m0, m1, m2, m3, …) are"
    assert arena_words.some([]) == "none is"
    assert arena_words.title("never_seen") == "never seen"
