import html
import re

import pytest

from remind_jax.studies import arena_page
from remind_jax.studies.arena_figures import Arena
from tests.evaluation.test_page import Balance
from tests.studies import arena_rows

MOVED = {
    "ward": {"soft_moe": (79.0, 81.0), "new": (80.0, 81.0), "old": (60.0, 60.0)},
    "days": {"soft_moe": (3.3, 3.3), "new": (3.0, 3.1), "old": (5.0, 4.0)},
}


def written(folder, rows, differences=None, notes=()):
    arena_page.write(folder, rows, differences or {}, notes)
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    rows = [*arena_rows.rows(), *arena_rows.rows(MOVED, "mcar-0.3")]
    return written(tmp_path_factory.mktemp("arena"), rows, arena_rows.differences(), ["Failed: one of ward."])


def table(text: str, title: str) -> list[list[str]]:
    """The cells of the table of a section of Markdown."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_both_pages_say_the_same(pages):
    assert set(pages) == {"index.html", "arena.md", "ranks.svg", "cost.svg"}
    parser = Balance()
    parser.feed(pages["index.html"])
    assert parser.stack == []
    text = " ".join(parser.text)
    for line in pages["arena.md"].splitlines():
        if line.startswith(("- ", "## ")):
            assert re.sub(r"\\(.)", r"\1", line.lstrip("-# ")) in text
    assert "- Failed: one of ward." in pages["arena.md"]
    assert "12 runs, 2 seeds" not in text
    assert (
        "30 runs, 2 seeds, 2 protocols of missingness; remind_jax 0.2.0, JAX 0.10.2, Python 3.11.7, Some CPU." in text
    )


def test_the_page_loads_nothing_and_is_the_same_again(pages, tmp_path):
    parser = Balance()
    parser.feed(pages["index.html"])
    assert not parser.tags & {"script", "link", "img", "iframe", "object"}
    assert "http" not in pages["index.html"]
    assert all(link.startswith("#") for link in parser.links)
    assert len(parser.ids) == len(set(parser.ids))
    rows = [*arena_rows.rows(), *arena_rows.rows(MOVED, "mcar-0.3")]
    assert written(tmp_path, rows, arena_rows.differences(), ["Failed: one of ward."]) == pages


def test_drawings_beside_markdown_bring_their_colours(pages):
    assert re.findall(r"!\[[^]]*\]\((.*)\)", pages["arena.md"]) == ["ranks.svg", "cost.svg"]
    for name in ("ranks.svg", "cost.svg"):
        parser = Balance()
        parser.feed(pages[name])
        assert parser.stack == []
        assert 'xmlns="http://www.w3.org/2000/svg"' in pages[name]
        used = set(re.findall(r"var\((--\w+)\)", pages[name]))
        light, dark = pages[name].split("prefers-color-scheme: dark")
        assert all(f"{variable}: #" in part for variable in used for part in (light, dark))
        assert {"soft_moe", "new", "old"} <= set(parser.text)


def test_costs_stand_beside_ranks(pages):
    rows = table(pages["arena.md"], "Mean ranks and costs")
    assert rows[0][1:] == [*("Mean rank", "tail", "set × seed", "Processor time", "Wall time", "Parameters", "FLOPs")]
    assert rows[2] == ["new (front)", "1.0", "1.0", "1.0", "25.0 s", "5.0 s", "41.0 k", "2.5 M"]
    assert [row[0] for row in rows[3:]] == ["soft_moe (front)", "old (front)"]


def test_a_cell_has_means_differences_and_what_is_best_in_bold(pages):
    rows = table(pages["arena.md"], "ward, as found")
    assert rows[0] == [
        *("Method", "AUROC", "AUROC, tail", "Macro-F1"),
        *("AUROC against soft_moe, all samples", "AUROC against soft_moe, tail"),
    ]
    assert rows[2] == [
        *("new", "**84.5 ± 0.7**", "**76.1 ± 0.6**", "**42.2 ± 0.4**"),
        *("**+3.5** (+2.5 to +4.5; p 0.004; 2/2)", "**+2.0** (+1.5 to +2.5; p 0.010; 2/2)"),
    ]
    assert rows[3] == ["soft_moe", "81.0 ± 1.4", "72.9 ± 1.3", "40.5 ± 0.7", "", ""]
    assert rows[4][-2:] == ["-9.0 (-21.0 to +3.0; p 0.200; 2/2)", "-1.0 (-3.0 to +1.0; p 0.010; 2/2)"]
    days = table(pages["arena.md"], "days, as found")
    assert days[2][1] == "**2.050 ± 0.071**"  # fewer are better
    assert days[2][-1] == "**-1.050** (-1.250 to -0.850; p 0.001; 2/2)"
    assert len(table(pages["arena.md"], "ward, mcar-0.3")[0]) == 4  # no differences were made of it
    assert (
        "Held-out samples of a seed: 100–101, tail 20. Mean ± standard deviation over 2 seeds, in percent"
        in (pages["arena.md"])
    )


def test_protocols_are_compared_by_rank_and_by_what_is_lost(pages):
    rows = table(pages["arena.md"], "Mean ranks by protocol")
    assert rows[0] == ["Method", "as found (3 sets)", "mcar-0.3 (2 sets)"]
    assert rows[2:] == [["new", "**1.0**", "**1.0**"], ["soft_moe", "2.0", "2.0"], ["old", "3.0", "3.0"]]
    rows = table(pages["arena.md"], "Loss by protocol: AUROC")
    assert rows[2:] == [["new", "+4.0"], ["soft_moe", "**+1.0**"], ["old", "+12.0"]]
    rows = table(pages["arena.md"], "Loss by protocol: MAE")
    assert rows[2:] == [["new", "+1.000"], ["soft_moe", "+0.200"], ["old", "**+0.000**"]]
    rows = table(pages["arena.md"], "Loss by protocol: Uno's C")
    assert [row[1] for row in rows[2:]] == ["-", "-", "-"]
    folded = re.findall(r"<summary>(.*?)</summary>", pages["index.html"])
    assert folded == ["ward, mcar-0.3", "days, mcar-0.3"]


def test_combinations_that_training_has_not_seen_are_no_tail(tmp_path):
    rows = [*arena_rows.rows(), *arena_rows.rows(MOVED, "unseen-0.2")]
    text = written(tmp_path, rows, arena_rows.differences())["arena.md"]
    assert table(text, "ward, unseen-0.2")[0][1:] == ["AUROC", "AUROC, unseen", "Macro-F1"]
    assert "Held-out samples of a seed: 100–101, unseen 20." in text
    assert "AUROC, tail" in table(text, "ward, as found")[0]
    alone = written(tmp_path, arena_rows.rows(MOVED, "unseen-0.2"))
    assert "\n- On samples of combinations that training has not seen, the best is new" in alone["arena.md"]
    assert ">unseen<" in alone["ranks.svg"]


def test_one_protocol_has_no_tables_of_protocols(tmp_path):
    text = written(tmp_path, arena_rows.rows(), arena_rows.differences())["arena.md"]
    assert "protocol" not in text
    assert "\n## ward\n" in text


def test_text_from_outside_is_escaped(tmp_path):
    bad = "<script>x</script>|[a](http://b)`"
    rows = [row | {"data": bad, "processor": bad, "method": f"{bad} {row['method']}"} for row in arena_rows.rows()]
    rows = [row for row in rows if row["figure"] == "auroc"]
    rows += [row | {"protocol": bad, "second": bad} for row in rows]
    compared = arena_rows.difference("auroc", f"{bad} new", 1.0, 0.5, 0.01) | {"baseline": bad}
    pages = written(tmp_path, rows, {(bad, "as_found"): [compared]}, [bad])
    assert len(pages) == 4
    for name, text in pages.items():
        assert not re.search(r"(?<!\\)<script", text), name
    assert html.escape("<script>x</script>") in pages["index.html"]
    assert not re.search(r"(?<!\\)\]\(http", pages["arena.md"])
    assert not re.search(r"(?<!\\)[|`]", re.sub(r"^\||( |:|-)\|", "", pages["arena.md"], flags=re.MULTILINE))


def test_twins_are_announced(tmp_path):
    rows = [row | {"data": "twin of ward (synthetic)"} for row in arena_rows.rows() if row["figure"] == "auroc"]
    assert '<div class="banner"' in written(tmp_path, rows)["index.html"]
    assert '<div class="banner"' not in written(tmp_path, arena_rows.rows())["index.html"]


@pytest.mark.parametrize("values", [{}, {"ward": {"new": (80.0,)}}, {"ward": {"new": (80.0,), "old": (None,)}}])
def test_an_arena_that_has_just_begun_has_a_page_without_drawings(tmp_path, values):
    pages = written(tmp_path, arena_rows.rows(values))
    assert set(pages) == {"index.html", "arena.md"}
    assert "nothing is ranked" in pages["arena.md"]
    assert "![" not in pages["arena.md"]


def test_what_was_not_timed_is_drawn_by_rank_alone(tmp_path):
    rows = [row | {"processor_seconds": ""} for row in arena_rows.rows()]
    assert set(written(tmp_path, rows)) == {"index.html", "arena.md", "ranks.svg"}
    assert Arena(rows, {}).front == ()
