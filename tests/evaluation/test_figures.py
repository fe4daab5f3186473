import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from remind_jax.evaluation import figures


def history(steps=50):
    rows = [
        {"step": s, "stage": 1 if s < 30 else 2, "train/loss": 1 / (s + 1), "gate/open_rate": 0.5} for s in range(steps)
    ]
    return rows + [{"step": s, "stage": 1, "eval/loss": 0.5, "eval/accuracy": 0.7} for s in range(0, steps, 10)]


def test_series_keeps_the_last_record_of_a_step_in_order_and_finite_values_only():
    records = [{"step": 2, "x": 1.0}, {"step": 1, "x": 3.0}, {"step": 2, "x": 5.0}, {"step": 3, "y": 1.0}]
    records += [{"step": 4, "x": math.nan}, {"step": 5, "x": None}]
    steps, values = figures.series(records, "x")
    assert steps.tolist() == [1, 2]
    assert values.tolist() == [3.0, 5.0]


def test_nothing_to_draw_gives_no_figure():
    assert figures.losses([]) is None
    assert figures.lambdas([{"step": 0}], set(), str) is None
    assert figures.reliability([]) is None


def test_svg_is_inline_and_self_contained():
    svg = figures.losses(history())
    assert svg.startswith("<svg viewBox=")
    for forbidden in ("http", "xmlns", "<metadata", "#0a0b", "DejaVu", "<script", "2026"):
        assert forbidden not in svg
    assert "var(--c0)" in svg
    assert ">training<" in svg
    assert ">stage 2<" in svg
    used = set(re.findall(r"#(\w+)[\")]", svg))
    assert used <= set(re.findall(r'id="(\w+)"', svg))


def test_same_input_gives_the_same_bytes():
    assert figures.losses(history()) == figures.losses(history())
    assert figures.losses(history()) != figures.losses(history(40))


def test_lambda_figure_names_the_twelve_largest():
    records = [{"step": s, **{f"dro/lambda/g{i:02d}": (i + 1) / 100 for i in range(15)}} for s in range(5)]
    svg = figures.lambdas(records, {"g14"}, lambda name: f"<{name}>")
    named = set(re.findall(r"&lt;(g\d\d)&gt;", svg))
    assert named == {f"g{i:02d}" for i in range(3, 15)}
    assert "$" not in figures.lambdas(records, set(), lambda _: "x")
    far = [{"step": s, "dro/lambda/a": 1e-4, "dro/lambda/b": 1.0} for s in range(5)]
    svg = figures.lambdas(far, set(), lambda _: "x")  # on a log scale
    assert "$" not in svg
    assert ">0.01<" in svg
    assert "$a$" in figures.lambdas(records, set(), lambda _: "$a$")  # a name is not mathematics


def test_long_lines_are_thinned():
    short, long = figures.gate(history(100)), figures.gate(history(20_000))
    assert len(long) < 3 * len(short)


def test_spread_keeps_distance_and_stays_near():
    wanted = np.array([10.0, 10.0, 10.0, 50.0])
    places = figures.spread_apart(wanted, 4.0, 0.0, 60.0)
    np.testing.assert_allclose(places, [6, 10, 14, 50])  # the crowd spreads around its middle
    np.testing.assert_allclose(figures.spread_apart(np.array([0.0, 1.0]), 5.0, 0.0, 60.0), [0, 5])
    np.testing.assert_allclose(figures.spread_apart(np.array([59.0, 60.0]), 5.0, 0.0, 60.0), [55, 60])


@pytest.mark.parametrize("crowd", [2, 9])
def test_labels_do_not_overlap(crowd):
    records = [{"step": s, **{f"dro/lambda/g{i}": 0.1 + i * 1e-4 for i in range(crowd)}} for s in range(5)]
    svg = figures.lambdas(records, set(), lambda name: f"name {name}")
    heights = [float(m) for m in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>name g\d</text>', svg)]
    assert len(heights) == crowd
    assert np.diff(sorted(heights)).min() > figures.FONT


def test_predicted_and_observed_values_are_drawn_where_there_are_any():
    bins = [{"n": 20, "predicted": x, "observed": x + 1, "middle": [x - 1, x + 3]} for x in (1.0, 2.0, 4.0)]
    drawn = figures.of_values({"by_prediction": bins, "typical": "median"})
    assert "observed, median" in drawn
    assert "predicted, median" in drawn
    assert figures.of_values({}) is None
    assert figures.of_survival({"by_prediction": bins, "typical": "median"}) == {}


def test_a_name_s_leader_begins_where_its_line_ends():
    records = [{"step": s, "dro/lambda/a": 0.1 + s / 100, "dro/lambda/b": 0.5} for s in range(50)]
    svg = figures.lambdas(records, set(), str)
    lines = re.findall(r'd="M ([^"]*)"[^>]*clip-path[^>]*stroke: var\(--c[01]\)', svg)
    leaders = re.findall(r'd="M ([^"]*)"(?![^>]*clip-path)[^>]*stroke: var\(--c[01]\)', svg)
    ends = sorted(float(line.split()[-1]) for line in lines)
    assert len(ends) == 2
    for end, leader in zip(ends, sorted(float(path.split()[1]) for path in leaders), strict=True):
        assert leader == pytest.approx(end, abs=0.01)


def test_a_drawing_as_a_file_has_a_size_names_and_colours():
    svg = figures.standalone(figures.losses(history()), ":root { --c0: #0062a3; }\n")
    root = xml.etree.ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == (str(figures.SHOWN), f"{figures.SHOWN * 2.7 / figures.WIDTH:.0f}")
    assert "--c0: #0062a3" in svg
