import pytest

from remind_jax.studies.arena_figures import Arena
from tests.studies import arena_rows


@pytest.fixture(scope="module")
def arena():
    return Arena(arena_rows.rows(), arena_rows.differences())


def test_sets_are_ranked_by_their_mean_over_seeds_each_in_the_direction_of_its_figure(arena):
    view = arena.view("as_found", "value")
    assert view.values["soft_moe"] == pytest.approx([81.0, 0.71, 3.1])
    assert list(view.more) == [True, True, False]
    assert view.ranking.means == {"new": 1.0, "soft_moe": 2.0, "old": 3.0}
    assert view.ranking.blocks == 3
    assert arena.methods == ("new", "soft_moe", "old")


def test_a_seed_is_a_block_of_its_own_in_the_other_view():
    values = {**arena_rows.VALUES, "trial": {"soft_moe": (0.7, 0.9), "new": (0.75, 0.76), "old": (0.6, 0.5)}}
    arena = Arena(arena_rows.rows(values), {})
    view = arena.view("as_found", "value", by_seed=True)
    assert view.ranking.blocks == 6
    assert view.ranking.means == pytest.approx({"new": 7 / 6, "soft_moe": 11 / 6, "old": 3.0})
    assert list(view.more) == [True] * 4 + [False] * 2
    assert arena.view("as_found", "value").ranking.means["new"] == pytest.approx(4 / 3)


def test_a_method_without_a_seed_is_ranked_nowhere_and_stands_last():
    rows = [row for row in arena_rows.rows() if (row["data"], row["method"], row["seed"]) != ("trial", "new", "1")]
    arena = Arena(rows, arena_rows.differences())
    for by_seed in (False, True):
        view = arena.view("as_found", "value", by_seed=by_seed)
        assert view.found.lacking == {"new": [("trial", "1")]}
        assert list(view.ranking.means) == ["soft_moe", "old"]
    assert arena.methods == ("soft_moe", "old", "new")


def test_costs_are_medians_over_sets_of_medians_over_seeds():
    seconds = {"ward": (1.0, 3.0, 100.0), "trial": (7.0, 8.0, 9.0), "days": (50.0, 60.0, 70.0)}
    rows = [
        arena_rows.row(data, "new", seed, 1.0, processor_seconds=value, flops="")
        for data, values in seconds.items()
        for seed, value in enumerate(values)
    ]
    rows.append(arena_rows.row("ward", "new", 0, 1.0, "mcar-0.3", processor_seconds=1e6))
    assert Arena(rows, {}).cost("new", "processor_seconds") == 8.0
    assert Arena(rows, {}).cost("new", "flops") is None


def test_the_front_has_whom_nobody_beats_in_rank_and_time(arena):
    assert arena.front == ("new", "soft_moe", "old")
    slow = [row | {"processor_seconds": "11" if row["method"] == "old" else "9"} for row in arena_rows.rows()]
    assert Arena(slow, {}).front == ("new",)
    same = [row | {"processor_seconds": "9"} for row in arena_rows.rows()]
    assert Arena(same, {}).front == ("new",)


def test_differences_are_read_back_and_judged_by_interval_p_and_direction(arena):
    value = arena.difference("ward", "as_found", "new", "all")
    assert (value.mean, value.low, value.high) == pytest.approx((0.035, 0.025, 0.045))  # percent are fractions again
    assert (value.p_holm, value.sd, value.wins, value.n) == (0.004, None, 2, 2)
    assert arena.difference("days", "as_found", "new", "all").mean == pytest.approx(-1.05)
    assert arena.difference("days", "as_found", "new", "tail") is None
    told = {
        ("ward", "new", "all"): "better",
        ("ward", "new", "tail"): "better",
        ("ward", "old", "all"): "level",
        ("ward", "old", "tail"): "level",  # its p is below 0.05, its interval holds 0
        ("trial", "new", "all"): "level",
        ("trial", "old", "all"): "level",  # its interval leaves out 0, its p by Holm is above 0.05
        ("days", "new", "all"): "better",  # fewer days of error
        ("days", "old", "all"): "worse",
        ("days", "soft_moe", "all"): "untested",
    }
    assert {key: arena.verdict(key[0], "as_found", *key[1:]) for key in told} == told


def test_the_loss_by_a_protocol_is_positive_where_figures_get_worse():
    lost = {
        "ward": {"new": (80.0, 81.0)},
        "trial": {"new": (0.7, 0.71)},
        "days": {"new": (3.0, 3.1), "old": (1.0, 1.0)},
    }
    arena = Arena([*arena_rows.rows(), *arena_rows.rows(lost, "mcar-0.3")], {})
    assert arena.loss("new", "mcar-0.3", ["ward"]) == pytest.approx(4.0)
    assert arena.loss("new", "mcar-0.3", ["days"]) == pytest.approx(1.0)
    assert arena.loss("old", "mcar-0.3", ["days", "ward"]) == pytest.approx(-3.5)  # ward is not there
    assert arena.loss("soft_moe", "mcar-0.3", ["days"]) is None


def test_the_main_protocol_and_the_baseline():
    rows = [*arena_rows.rows(protocol="mcar-0.3"), *arena_rows.rows()]
    assert Arena(rows, {}).main == "as_found"
    assert Arena(rows[:4], {}).main == "mcar-0.3"
    assert Arena(rows, {}).baseline is None
    other = arena_rows.difference("auroc", "new", 1.0, 0.1, 0.01) | {"baseline": "old"}
    assert Arena(rows, {("ward", "as_found"): [other]}).baseline == "old"
    assert Arena(rows, {("ward", "as_found"): [other], **arena_rows.differences()}).baseline == "soft_moe"


def test_the_best_of_a_column_to_the_digit_printed(arena):
    unit = arena.unit("ward", "as_found")
    assert unit.factor == 100
    assert arena.unit("days", "as_found").factor == 1
    spreads = {m: arena.spread("value", method=m, data="ward", protocol="as_found") for m in arena.methods}
    assert spreads["new"] == pytest.approx((84.5, 0.5**0.5, 2))
    assert arena.best(spreads, "auroc", unit) == {"new"}
    assert arena.best(spreads, "mae", unit) == {"old"}
    near = {"a": spreads["new"], "b": spreads["new"]._replace(mean=84.51), "c": spreads["old"]}
    assert arena.best(near, "auroc", unit) == {"a", "b"}
    assert arena.best({"a": spreads["new"]}, "auroc", unit) == set()
