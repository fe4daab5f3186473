import csv
import dataclasses
import io
import re

import numpy as np
import polars as pl
import pytest

from remind_jax.runtime import texts
from remind_jax.studies import page, tables
from remind_jax.studies import results as collecting
from remind_jax.studies.comparison import Spread
from remind_jax.studies.published import Figure
from tests.evaluation.test_page import Balance
from tests.studies import sweep_runs

SKILLS = {"soft_moe": 0.7, "remind": 0.8, "new_method": 0.75}
TWIN = "twin of MIMIC-IV (synthetic)"


@pytest.fixture(scope="module")
def found():
    runs = sweep_runs.make(SKILLS, data=TWIN)
    return collecting.collect(
        runs, [*SKILLS, "never_run"], ["soft_moe", "remind"], resamples=60, failures=["x seed 1: why"]
    )


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _markdown_table(text: str, title: str) -> list[list[str]]:
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ---- Collecting ------------------------------------------------------------------------------------------------------


def test_rows_are_combinations_by_frequency_then_wholes(found):
    assert [row.label for row in found.rows] == [*sweep_runs.NAMES, *(label for label, _ in collecting.WHOLES)]
    assert [row.tail for row in found.combinations] == [False, False, True]
    assert found.rows[0].train_fraction == pytest.approx(80 / 126)
    assert found.rows[0].n_train == 80
    assert found.methods == ("soft_moe", "remind", "new_method")
    assert found.seeds == (0, 1, 2)


def test_cells_are_means_and_sample_deviations_of_the_reports(found):
    values = [100 * run.report["overall"]["macro_f1"] for run in found.runs if run.method == "remind"]
    cell = next(row for row in found.rows if row.label == "all samples").cells["macro_f1"]["remind"]
    assert cell == pytest.approx((np.mean(values), np.std(values, ddof=1), 3))


def test_published_figures_stand_beside_ours_by_modalities(found):
    row = next(row for row in found.combinations if row.label == "labs")
    assert row.published["accuracy"] == {"soft_moe": Figure(80.1, 1.4, 2), "remind": Figure(78.5, 1.33, 2)}
    assert row.published["macro_f1"]["remind"].mean == pytest.approx(57.3)
    assert "auroc" not in row.published
    other = collecting.collect(sweep_runs.make({"a": 0.7}, n=40), ["a"], ["a"], resamples=5)
    assert other.published is None
    assert all(row.published == {} for row in other.rows)


def test_sizes_over_seeds(found):
    sizes = {run.seed: run.report["groups"][2]["n"] for run in found.runs}
    assert sorted(found.combinations[2].n) == sorted(sizes.values())
    assert tables.size_text((5, 3, 4)) == "3–5"
    assert tables.size_text((1200, 1200)) == "1,200"
    assert tables.size_text(()) == ""


def test_summary_weighs_combinations_by_train_frequency():
    group = {"accuracy": 0.5, "train_fraction": 0.25}
    mean = {"accuracy": 0.1, "macro_f1": None}
    report = {
        "classes": ["no", "yes"],
        "groups": [{"accuracy": 1.0, "train_fraction": 0.75}, group, {"accuracy": 0.0, "train_fraction": 0.0}],
        "worst_group": mean,
        "tail_mean": mean,
        "overall": {"auroc": 0.9},
        "tail_pooled": {"auroc": None},
    }
    figures = collecting.run_figures(report)
    assert figures["overall"] == pytest.approx(87.5)
    assert (figures["tail"], figures["tail_f1"], figures["tail_auroc"]) == (pytest.approx(10.0), None, None)


# ---- Text ------------------------------------------------------------------------------------------------------------


def test_cells_of_text():
    assert tables.spread_text(Spread(84.25, 0.55, 3)) == "84.2 ± 0.6"
    assert tables.spread_text(Spread(84.0, None, 1)) == "84.0"
    assert tables.spread_text(None) == "-"
    assert tables.published_text(Figure(100.0, None, 3)) == "[100.0]"
    assert [tables.p_text(p) for p in (None, 0.0004, 0.0126, 1.0)] == ["-", "<.001", "0.013", "1.000"]


def test_markdown_has_the_paper_s_layout(found):
    text = tables.markdown(found)
    table = _markdown_table(text, "Accuracy by combination")
    assert table[0] == ["combination", "", "n", "soft_moe", "remind", "new_method"]
    labs = next(row for row in table if row[0] == "labs")
    assert labs[1] == "tail"
    assert labs[3].endswith("[80.1 ± 1.4]")
    assert labs[5].count("[") == 0  # the paper has no such method
    assert len(table) == 2 + 3 + len(collecting.WHOLES)
    assert "x seed 1: why" in text
    assert "synthetic twin of MIMIC-IV" in text
    assert {len(row) for row in table} == {6}


def test_best_is_bold_to_the_digit_printed(found):
    row = dataclasses.replace(found.rows[0], n=(30, 30, 30))
    cells = {"soft_moe": Spread(80.04, 1, 3), "remind": Spread(79.96, 1, 3), "new_method": Spread(79.9, 1, 3)}
    tie = dataclasses.replace(row, cells={"accuracy": cells})
    assert tables.best(tie, "accuracy") == {"soft_moe", "remind"}
    assert tables.best(dataclasses.replace(tie, n=(30, 29, 30)), "accuracy") == set()  # too few to rank
    alike = {"a": Spread(80.04, 1, 3), "b": Spread(80.0, 1, 3)}
    assert tables.best(dataclasses.replace(row, cells={"accuracy": alike}), "accuracy") == set()
    assert tables.best(dataclasses.replace(row, cells={"accuracy": {"a": Spread(1, 1, 1)}}), "accuracy") == set()


def test_differences_are_those_of_the_comparison(found):
    text = tables.markdown(found)
    table = _markdown_table(text, "Differences to `soft_moe`")
    assert [row[0] for row in table[2:]] == ["remind", "new_method"]
    value = found.differences["soft_moe"]["all", "accuracy", "remind"]
    assert table[2][1].startswith(f"{100 * value.mean:+.1f} ({100 * value.low:+.1f} to ")
    assert table[2][1].endswith(f"{value.wins}/3)")
    rows = _rows(tables.differences_csv(found))
    key = ("all", "accuracy", "remind", "soft_moe")
    row = next(r for r in rows if (r["samples"], r["figure"], r["method"], r["baseline"]) == key)
    assert float(row["mean"]) == pytest.approx(100 * value.mean)
    assert float(row["p_holm"]) == value.p_holm


def test_differences_are_read_back_as_they_were_written(found):
    rows = _rows(tables.differences_csv(found))
    assert rows
    for row in rows:
        value = found.differences[row["baseline"]][row["samples"], row["figure"], row["method"]]
        assert tables.read_difference(row, found.task) == pytest.approx(value)


def test_several_baselines_have_a_table_each_and_mirror_each_other(found):
    text = tables.markdown(found)
    table = _markdown_table(text, "Differences to `remind`")
    assert [row[0] for row in table[2:]] == ["soft_moe", "new_method"]
    there, back = found.differences["soft_moe"]["all", "auroc", "remind"], found.differences["remind"]
    assert back["all", "auroc", "soft_moe"].mean == pytest.approx(-there.mean)
    assert back["all", "auroc", "soft_moe"][1:3] == pytest.approx((-there.high, -there.low))
    alone = collecting.collect(found.runs, found.methods, ["remind"], resamples=60)
    assert alone.differences["remind"] == back  # the shared replicates are those of a comparison of its own


def test_single_combinations_are_compared_where_they_are_large_enough(found):
    sizes = {row.label: min(row.n) for row in found.combinations}
    large = [name for name, n in sizes.items() if n >= 30]
    assert 0 < len(large) < len(sizes)
    rows = [row for row in _rows(tables.differences_csv(found)) if row["baseline"] == "soft_moe"]
    assert list(dict.fromkeys(row["samples"] for row in rows)) == ["all", "head", "tail", *large]
    cells = next(row for row in found.combinations if row.label == large[0]).cells["accuracy"]
    row = next(r for r in rows if (r["samples"], r["figure"], r["method"]) == (large[0], "accuracy", "remind"))
    assert float(row["mean"]) == pytest.approx(cells["remind"].mean - cells["soft_moe"].mean)


def test_long_tables_are_cut_for_the_terminal_only(found):
    short = _markdown_table(tables.markdown(found, 2), "Accuracy by combination")
    assert [row[0] for row in short[2:5]] == [*sweep_runs.NAMES[:2], "all samples"]
    assert "1 rarer combinations are in table.md" in tables.markdown(found, 2)
    assert "rarer" not in tables.markdown(found)


def test_csv_holds_every_run_and_cell(found):
    runs = _rows(tables.runs_csv(found))
    assert len(runs) == 9
    assert float(runs[0]["accuracy"]) == pytest.approx(100 * found.runs[0].report["overall"]["accuracy"])
    cells = _rows(tables.groups_csv(found))
    assert len(cells) == 9 * 3 * 3  # rows, figures, methods
    row = next(r for r in cells if (r["samples"], r["figure"], r["method"]) == ("labs", "accuracy", "remind"))
    assert (row["tail"], row["published_mean"], row["seeds"]) == ("1", "78.5", "3")


def test_latex_is_balanced_and_escaped(found):
    text = tables.latex(found)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 5  # three figures, two baselines
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert r"new\_method" in text
    assert "new_method" not in text
    assert "±" not in text
    assert r"\textbf{" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    columns = {line.count("&") for line in body.splitlines() if line.endswith(r"\\")}
    assert columns == {5}


def test_latex_escapes_every_special_character():
    assert texts.latex("a_b & 5 % $x$ #1 {y} ~ ^ \\") == (
        r"a\_b \& 5 \% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_one_seed_and_one_method_make_tables_too():
    found = collecting.collect(sweep_runs.make({"a": 0.7}, seeds=(4,)), ["a"], ["a"], resamples=5)
    text = tables.markdown(found)
    assert "Differences" not in text
    assert "±" not in _markdown_table(text, "Accuracy by combination")[2][3]
    tables.latex(found)
    page.render(found)


def test_a_baseline_that_failed_leaves_the_other_tables():
    found = collecting.collect(sweep_runs.make({"a": 0.7, "b": 0.7}), ["gone", "a", "b"], ["gone"], resamples=5)
    assert found.differences == {"gone": {}}
    assert "| a | 3 |" in tables.markdown(found)
    assert "Differences" not in tables.markdown(found)
    assert "Differences" not in page.render(found)


# ---- The page --------------------------------------------------------------------------------------------------------


def test_page_is_whole_and_loads_nothing(found):
    text = page.render(found)
    parser = Balance()
    parser.feed(text)
    assert parser.stack == []
    assert not parser.tags & {"script", "link", "img", "iframe", "object"}
    assert "http" not in text
    assert all(link.startswith("#") for link in parser.links)
    assert len(parser.ids) == len(set(parser.ids))
    assert text.count("<svg") == 2 + 2 * 4  # accuracy by combination, calibration
    assert text.index('<div class="banner"') < text.index("<main>")
    assert "[80.1 ± 1.4]" in text
    assert not re.search(r"s\d-\d|\bp\d+\b", "".join(parser.text))  # no sample or patient
    assert text == page.render(found)


def test_text_from_outside_is_escaped_on_the_page():
    runs = sweep_runs.make({"<b>a</b>": 0.7, "b": 0.8}, seeds=(0, 1), data="<script>x</script>")
    text = page.render(collecting.collect(runs, ["<b>a</b>", "b"], ["b", "<b>a</b>"], resamples=5))
    assert "<script" not in text
    assert "<b>a</b>" not in text


def test_plots_show_every_method_and_combination(found):
    svg = page.accuracy_by_combination(found)
    for text in (*found.methods, "labs (tail)", "all samples"):
        assert f">{text}<" in svg
    texts = re.findall(r"<text[^>]*>", svg)
    assert texts
    assert all("fill: var(--" in text for text in texts)  # readable on a light and on a dark page
    assert page.differences(found, "soft_moe", "tail", "auroc").count(">remind<") == 1
    assert ">remind<" not in page.differences(found, "remind", "tail", "auroc")
    assert page.differences(found, "soft_moe", "no such samples", "auroc") is None


# ---- Attributes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(0,), (0, 1)], ids=["one seed", "two seeds"])
def by_sex(request):
    """Results of runs with an attribute: of two methods one is mostly wrong in men."""
    runs = []
    for number, method in enumerate(("even", "uneven")):
        for seed in request.param:
            frame = sweep_runs.predictions(seed, 200, 0.9, number)
            women = pl.Series(["f"] * 120 + ["m"] * 74 + [None] * 6)
            wrong = (women == "m").fill_null(False) if number else pl.Series([False] * 200)
            flipped = pl.when(wrong).then(pl.col("p_0")).otherwise(pl.col("p_1"))
            frame = frame.with_columns(flipped.alias("p_1"), women.alias("attribute_sex"))
            runs.append(sweep_runs.run(method, seed, frame.with_columns(p_0=1 - pl.col("p_1")), resamples=300))
    return collecting.collect(runs, ["even", "uneven"], ["even"], resamples=20)


def test_values_of_attributes_have_rows_of_their_own_in_all_tables_and_gaps(by_sex):
    assert [row.label for row in by_sex.attributes] == ["sex: f", "sex: m", "sex: not recorded"]
    assert [row.label for row in by_sex.wholes] == [label for label, _ in collecting.WHOLES]
    men = by_sex.attributes[1]
    assert men.n == (74,) * len(by_sex.seeds)
    reports = [run.report["attributes"][1] for run in by_sex.runs if run.method == "uneven"]
    expected = 100 * np.mean([row["accuracy"] for row in reports])
    assert men.cells["accuracy"]["uneven"].mean == pytest.approx(expected)
    assert expected < 25 < 75 < men.cells["accuracy"]["even"].mean
    assert tables.best(men, "accuracy") == {"even"}
    unknown = dataclasses.replace(men, n=(6,))
    assert tables.best(unknown, "accuracy") == set()
    rows = _markdown_table(tables.markdown(by_sex), "Accuracy by combination")
    assert next(row for row in rows if row[0] == "sex: m")[2] == "74"
    assert {"sex: f", "sex: m"} <= {row["samples"] for row in _rows(tables.groups_csv(by_sex))}
    told = [r for r in _rows(tables.attributes_csv(by_sex)) if r["method"] == "uneven" and r["figure"] == "accuracy"]
    first = {row["value"]: row for row in told if row["seed"] == "0"}
    assert float(first["m"]["estimate"]) == pytest.approx(100 * reports[0]["accuracy"])
    assert float(first["m"]["gap_low"]) < float(first["m"]["gap"]) < float(first["m"]["gap_high"]) < -40
    assert (first["m"]["against"], first["f"]["gap"]) == ("f", "")
    assert float(first["m"]["p_holm"]) < 0.02
    assert first[""]["gap_low"] == ""  # six samples have no interval


def test_the_page_shows_gaps_by_attribute_and_only_where_there_are_any(by_sex, found):
    text, small = tables.gap_texts(by_sex, "uneven", "sex: m")
    assert float(text.split()[0]) < -50
    assert (
        small == "p < .05 in 2 of 2"
        if len(by_sex.seeds) > 1
        else re.fullmatch(r"-\d+\.\d to -\d+\.\d; p <?0?\.\d+", small)
    )
    assert tables.gap_texts(by_sex, "uneven", "sex: f") == ("-", "")
    html = page.render(by_sex)
    assert "Gaps by attribute" in html
    assert ">sex: m<" in html
    assert "Gaps by attribute" not in page.render(found)
    assert tables.attributes_csv(found) == ""
