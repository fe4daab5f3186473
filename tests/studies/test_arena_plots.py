import re

import numpy as np
import pytest

from remind_jax.evaluation import figures
from remind_jax.studies import arena_plots, ranks

METHODS = [f"a_method_of_{i}" for i in range(20)]


def ranking(n: int, k: int = 20) -> ranks.Ranking:
    rng = np.random.default_rng(0)
    values = {m: (rng.normal(size=n) - 0.15 * i).tolist() for i, m in enumerate(METHODS[:k])}
    return ranks.compare(values, [True] * n)


def heights(svg: str) -> dict[str, float]:
    """The height of the text of each method."""
    found = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(a_method_of_\d+)</text>', svg)
    found += re.findall(r"<text[^>]*translate\([\d.]+ ([\d.]+)\)[^>]*>(a_method_of_\d+)</text>", svg)
    return {name: float(y) for y, name in found}


@pytest.mark.parametrize("blocks", [5, 60])
def test_twenty_names_do_not_overlap_and_stand_in_order_of_rank(blocks):
    found = ranking(blocks)
    seconds = {m: 10.0 + i for i, m in enumerate(METHODS)}
    for svg in (arena_plots.ranks(found, {}), arena_plots.costs(found.means, seconds, METHODS[:1])):
        places = heights(svg)
        means = [found.means[m] for m in sorted(places, key=places.__getitem__)]
        assert means == sorted(found.means.values())
        assert np.diff(sorted(places.values())).min() > figures.FONT
        assert "#0a0b" not in svg
        width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
        assert width == 72 * figures.WIDTH  # as wide as a phone


def test_a_bar_spans_each_group_that_is_not_apart():
    for blocks in (5, 60):
        found = ranking(blocks)
        bars = re.findall(
            r'd="M ([\d.]+) ([\d.]+) \nL \1 ([\d.]+) \n"[^>]*stroke-width: 2.6', arena_plots.ranks(found, {})
        )
        assert len(bars) == len(found.cliques)
        places = {m: y - 0.4 * figures.FONT for m, y in heights(arena_plots.ranks(found, {})).items()}
        for (_, top, bottom), (first, last) in zip(bars, found.cliques, strict=True):
            inside = [m for m, y in places.items() if float(top) < y < float(bottom)]
            assert set(inside) == set(found.methods[first : last + 1])
    assert len(ranking(60).cliques) > 5


def test_the_critical_difference_is_drawn_unless_there_is_none():
    assert "CD 13.3" in arena_plots.ranks(ranking(5), {})
    assert "CD 21.0, more than there are ranks" in arena_plots.ranks(ranking(2), {})
    assert "CD" not in arena_plots.ranks(ranking(1), {})


def test_the_tail_is_marked_where_it_is_known():
    found = ranking(5)
    plain, marked = arena_plots.ranks(found, {}), arena_plots.ranks(found, {found.methods[0]: 20.0})
    assert plain != marked
    assert ">tail<" in marked


def test_costs_without_times_are_not_drawn():
    assert arena_plots.costs({"a": 1.0}, {}, []) is None
    svg = arena_plots.costs({"a": 1.0, "b": 2.0}, {"a": 0.02, "b": 2_000.0}, ["a", "b"])
    assert "$" not in svg
    assert {">0.1<", ">1000<"} <= set(re.findall(r">[\d.]+<", svg))


def test_ticks_are_few_and_within():
    for k in (2, 3, 5, 6, 20, 47, 100):
        found = arena_plots.ticks(k)
        assert found == sorted(set(found))
        assert (found[0], found[-1] <= k, len(found) <= 6) == (1, True, True)
