import math
import pathlib

import pytest

from docs import arena_store, rankings
from docs.standing import study
from remind_jax.errors import UserError

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAPERS = [
    {"method": "smil", "year": "2021", "paper": "SMIL", "link": "https://a.org", "says": "first"},
    {"method": "healnet", "year": "2023", "paper": "HEALNet", "link": "https://b.org", "says": "ahead"},
]


def _rows(values, figure="auroc", data=("a", "b", "c")):
    """Returns rows of methods that have the same value in each of four seeds of each set."""
    return [
        {"data": d, "protocol": "as_found", "method": m, "seed": str(s), "figure": figure, "value": str(value)}
        for d in data
        for s in range(4)
        for m, value in values.items()
    ]


def test_gains_count_what_is_better_and_leave_out_what_is_not_there():
    rows = _rows({"smil": 3.0, "healnet": 5.0}, data=("a",)) + _rows({"smil": 0.2, "healnet": 0.5}, "rmse", ("b",))
    rows[0]["value"] = ""  # smil, set a, seed 0
    found = rankings.gains(rows, "healnet", "smil")
    assert found == {"a": [2.0] * 3, "b": pytest.approx([-0.3] * 4)}


@pytest.mark.parametrize(("above", "below", "ties", "p"), [(5, 0, 0, 2 / 32), (3, 1, 2, 10 / 16), (0, 0, 3, 1.0)])
def test_the_test_of_signs_by_hand(above, below, ties, p):
    assert rankings.p_of_signs([1.0] * above + [-2.0] * below + [0.0] * ties) == pytest.approx(p)
    assert rankings.p_of_signs([-1.0] * above + [2.0] * below + [0.0] * ties) == pytest.approx(p)


def test_a_method_is_put_beside_older_and_simple_ones_only():
    values = {"smil": 70.0, "healnet": 72.0, "soft_moe": 75.0, "remind": 90.0}
    table = rankings.table(_rows(values), PAPERS)
    assert len(table) == 4
    assert table[2].split(" | ")[2:] == ["1", "0", "none", "`soft_moe` |"]  # not healnet, which is younger
    assert table[3].split(" | ")[2:] == ["2", "1", "`smil`", "`soft_moe` |"]


def test_few_seeds_are_no_evidence():
    rows = [row for row in _rows({"smil": 70.0, "healnet": 72.0}) if row["seed"] == "0"]
    assert rankings.table(rows, PAPERS)[3].split(" | ")[2:] == ["1", "1", "none", "none |"]
    assert math.isclose(rankings.p_of_signs([1.0] * 3), 0.25)


def test_other_protocols_and_methods_that_did_not_run_count_in_nothing():
    rows = _rows({"smil": 70.0, "soft_moe": 72.0})
    other = [row | {"protocol": "mcar-0.3", "value": "1"} for row in rows if row["method"] == "soft_moe"]
    assert rankings.table(rows + other, PAPERS) == rankings.table(rows, PAPERS)
    assert len(rankings.table(rows, PAPERS)) == 3


def test_a_page_without_a_place_is_refused():
    assert rankings.written("a\n<!-- rankings -->\nold\n<!-- end of rankings -->\nb", ["| x |"]).split() == [
        *("a", "<!--", "rankings", "-->", "|", "x", "|", "<!--", "end", "of", "rankings", "-->", "b")
    ]
    with pytest.raises(UserError, match="no place"):
        rankings.written("a page", [])


def test_the_page_of_the_repository_has_the_table_of_the_stored_arena():
    lines = rankings.table(
        study.read_table(DOCS / arena_store.KEPT), study.read_table(DOCS / "results" / "published_rankings.csv")
    )
    page = (DOCS / "comparison.md").read_text(encoding="utf-8")
    assert len(lines) == 15
    assert rankings.written(page, lines) == page
