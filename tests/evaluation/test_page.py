import html.parser
import json
import re

import numpy as np
import polars as pl
import pytest

from remind_jax.data.groups import Groups
from remind_jax.evaluation import page
from remind_jax.evaluation.names import words
from remind_jax.evaluation.report import build_report, write_html

VOID = {"wbr", "meta", "br", "link", "img"}


class Balance(html.parser.HTMLParser):
    """Collects what is opened and not closed in order, and the tags and attributes seen."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.text, self.links, self.ids = [], set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def make(data="ward", n=60, extra=None, skill=0.9, confidence=0.9, classes=2):
    rng = np.random.default_rng(0)
    groups = Groups.fit(np.array([[1, 1]] * 80 + [[1, 0]] * 20 + [[0, 1]] * 5, bool), ("text", "labs"))
    label = rng.integers(0, classes, n)
    predicted = np.where(rng.uniform(size=n) < skill, label, (label + 1) % classes)
    p = np.full((n, classes), (1 - confidence) / (classes - 1))
    p[np.arange(n), predicted] = confidence
    frame = pl.DataFrame(
        {
            "sample_id": [f"sample{i}" for i in range(n)],
            "patient_id": [f"patient{i}" for i in range(n)],
            "label": label,
            "group": ["text+labs" if i % 4 else "text" for i in range(n)],
            **{f"p_{k}": p[:, k] for k in range(classes)},
        }
    )
    config = {"method": "remind", "seed": 0, "eval": {"bootstrap": 1000}}
    extra = {"classes": [str(k) for k in range(classes)]} | (extra or {})
    return build_report(config, data, frame, groups, parameters=12345, **extra)


CARD = {
    "splits": {"train": {"n": 105, "patients": 90}, "tuning": {"n": 10, "patients": 9}},
    "classes": [{"name": "alive", "train_fraction": 0.75}, {"name": "<b>dead</b>", "train_fraction": 0.25}],
    "modalities": [{"name": "text", "kind": "text", "present_fraction": 0.95}],
    "label": "48-hour mortality",
}
HISTORY = [
    {
        "step": s,
        "stage": 1 + s // 5,
        "train/loss": 1.0 - s / 20,
        "eval/loss": 1.0,
        "eval/accuracy": 0.5,
        "dro/lambda/text": 0.4,
        "dro/lambda/text+labs": 0.6,
        "gate/open_rate": 0.0,
    }
    for s in range(10)
]


@pytest.fixture(scope="module")
def good():
    """A report that gives little reason for caution."""
    return make(n=1000)


def parsed(report, history=()):
    text = page.render(report, list(history))
    parser = Balance()
    parser.feed(text)
    assert parser.stack == []
    return text, parser


def leads(report):
    return [lead for lead, _ in page.cautions(report)]


def test_page_is_whole_and_loads_nothing():
    text, parser = parsed(make(extra={"card": CARD}), HISTORY)
    assert not parser.tags & {"script", "link", "img", "iframe", "object"}
    assert "http" not in text
    assert "@import" not in text
    assert all(link.startswith("#") for link in parser.links)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text
    assert text.count("<svg") == 6


def test_page_without_card_and_history():
    text, parser = parsed(make())
    assert text.count("<svg") == 2  # calibration and deferral need neither
    assert "Accuracy" in "".join(parser.text)


def test_page_of_an_empty_held_out_set():
    _, parser = parsed(make(n=0))
    assert "–" in "".join(parser.text)


def test_text_from_the_data_is_escaped():
    text, parser = parsed(make(data="<script>alert(1)</script>", extra={"card": CARD}), HISTORY)
    assert "<script" not in text
    assert "<b>dead</b>" not in text
    assert "<b>dead</b>" in "".join(parser.text)


def test_no_patient_or_sample_id_is_on_the_page():
    text, _ = parsed(make(extra={"card": CARD}), HISTORY)
    assert not re.search(r"patient\d|sample\d", text)


def test_banner_names_synthetic_data_at_the_top():
    text, _ = parsed(make(data="twin of MIMIC-IV (synthetic)"))
    assert text.index('<div class="banner"') < text.index("<main>")
    assert "Synthetic data: twin of MIMIC-IV (synthetic)." in text
    assert '<div class="banner"' not in parsed(make(data="NHANES 2017-18"))[0]


def test_figures_and_intervals_are_printed():
    report = make()
    text = " ".join("".join(parsed(report)[1].text).split())
    overall = report["overall"]
    assert f"{100 * overall['accuracy']:.1f}\u00a0%" in "".join(parsed(report)[1].text)
    low, high = overall["accuracy_ci"]
    assert f"95 %: {100 * low:.1f} to {100 * high:.1f}" in text
    assert "12,345" in text


def test_same_input_gives_the_same_page(tmp_path):
    report = make(extra={"card": CARD})
    write_html(tmp_path / "a.html", report, HISTORY)
    write_html(tmp_path / "b.html", report, HISTORY)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_good_model_on_many_patients_has_few_cautions(good):
    assert leads(good) == ["Fewer than 10 held-out patients"]  # labs alone, which nobody held out has


@pytest.mark.parametrize(
    ("options", "lead"),
    [
        ({"data": "twin of X (synthetic)"}, "Synthetic data"),
        ({"skill": 0.5, "n": 400}, "Accuracy not clearly better than a constant answer"),
        ({"skill": 0.6, "confidence": 0.99, "n": 400}, "Do not read its probabilities as risks"),
        ({"n": 30}, "Few held-out cases of a class"),
        ({"n": 60, "classes": 8}, "Intervals that are likely too narrow"),
        ({"n": 60}, "Accuracy known to no better than 20 points"),
        ({"extra": {"gate": {"stuck": "closed", "why": "W"}}}, "Gate closed throughout"),
        ({"extra": {"gate": {"stuck": "open", "why": "W"}}}, "Gate open throughout"),
        ({"extra": {"findings": [{"code": "W104", "message": "m"}]}}, "Data check W104"),
    ],
)
def test_each_caution_is_drawn_from_the_figures(options, lead, good):
    assert lead in leads(make(**options))
    assert lead not in leads(good)


def test_a_gate_that_decided_is_no_caution_and_one_that_did_not_says_why():
    assert not any("Gate" in lead for lead in leads(make(extra={"gate": {"open_rate": 0.2, "stuck": None}})))
    assert not any("Gate" in lead for lead in leads(make()))  # a method without one
    told = dict(page.cautions(make(extra={"gate": {"stuck": "open", "why": "Because. Set fusion.scale."}})))
    assert told["Gate open throughout"].endswith("on every sample. Because. Set fusion.scale.")


def test_unseen_and_weak_tail_are_named(good):
    report = dict(good)
    row = {**report["groups"][0], "group": "icd", "modalities": ["icd"], "unseen": True, "n": 7, "tail": True}
    report["groups"] = [*report["groups"], row]
    report["tail_pooled"] = {**report["tail_pooled"], "accuracy": 0.5}
    report["head_pooled"] = {**report["head_pooled"], "accuracy": 0.9}
    found = dict(page.cautions(report))
    assert found["Combinations never seen in training"].startswith("7 held-out samples with 1 such combination (icd)")
    assert "50.0\u00a0% correct on rare" in found["Weaker on rare combinations"]
    assert ">unseen<" in page.render(report, [])


def test_many_groups_fold_away():
    masks = (np.arange(1, 41)[:, None] >> np.arange(6)) & 1
    groups = Groups.fit(masks.astype(bool), [f"m{j}" for j in range(6)])
    frame = pl.DataFrame({"patient_id": ["a"], "label": [0], "group": [groups.names[0]], "p_0": [0.6], "p_1": [0.4]})
    config = {"method": "m", "seed": 0, "eval": {"bootstrap": 1000}}
    report = build_report(config, "x", frame, groups, parameters=1, classes=["no", "yes"])
    text, _ = parsed(report)
    assert "<summary>15 more</summary>" in text
    assert text.count('class="bar-row"') == 40


def test_counts_are_told_as_data_and_only_warnings_as_warnings():
    findings = [{"code": "I001", "message": "74 stays, 12 died"}, {"code": "W107", "message": "codes leak"}]
    rows = [{"group": "text+labs", "n": 45, "fraction": 0.75, "published": 0.403}]
    report = make(extra={"card": {**CARD, "combinations": rows}, "findings": findings})
    assert [lead for lead in leads(report) if lead.startswith("Data check")] == ["Data check W107"]
    text = " ".join("".join(parsed(report)[1].text).split())
    assert "What was read 74 stays, 12 died" in text
    assert re.search(r"Here\s*Paper\s*text\W+labs\s*45\s*75\.0 %\s*40\.3 %", text)
    without = make(extra={"card": {**CARD, "combinations": [{"group": "text", "n": 1, "fraction": 1.0}]}})
    assert "next to the paper" not in "".join(parsed(without)[1].text)


def test_every_cell_of_what_becomes_cards_on_a_phone_names_its_column():
    text, _ = parsed(make(extra={"card": CARD}), HISTORY)
    tables = re.findall(r"<table class=\"[^\"]*cards\">.*?</table>", text, re.DOTALL)
    assert len(tables) == 2  # all figures, and those by combination
    for table in tables:
        cells = re.findall(r"<td[^>]*>", table)
        assert len(cells) > 10
        assert all(re.search(r"data-head=\"[^\"]+\"", cell) for cell in cells)
    assert ".cards thead { display: none; }" in text


def test_the_page_says_how_it_was_made_and_which_weights_were_chosen(tmp_path):
    weights = {"stage": "joint", "step": 7, "value": 0.5, "selected_by": "loss", "passed_over": None}
    report = make(extra={"weights": weights})
    made = {"Finished": "2026-01-01 10:00 UTC", "Took": "3 s", "Command": "remind train --config=<x>"}
    write_html(tmp_path / "a.html", report, HISTORY, made)
    shown = Balance()
    shown.feed((tmp_path / "a.html").read_text(encoding="utf-8"))
    run = " ".join("".join(shown.text).split()).split("This run")[1]
    for title, text in made.items():
        assert f"{title}{text}" in run
    assert "WeightsWeights of step 7, stage joint: chosen by tuning loss (0.5000)." in run


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"rule": "gated", "open_rate": 0.25, "stuck": None}, "It was open for 25.0\u00a0% of the held-out rows."),
        (
            {"rule": "gated", "open_rate": 1.0, "stuck": "open", "why": "W"},
            "Once group routers act it was always open.",
        ),
        (
            {"rule": "gated", "open_rate": 0.0, "stuck": "closed", "why": "W"},
            "Once group routers act it was never open.",
        ),
        ({"rule": "never", "open_rate": 0.0, "stuck": None}, "It was always closed."),
    ],
)
def test_the_gate_is_said_in_words(gate, says):
    assert f"<dt>Gate</dt><dd>{says}</dd>" in page.render(make(extra={"gate": gate}), HISTORY)


def test_names_are_words_on_the_page_and_stay_names_where_they_are_looked_up():
    assert [words(name) for name in ("vital_signs", "_x", "a__b", "x_")] == ["vital signs", "_x", "a b", "x_"]
    card = {**CARD, "modalities": [{"name": "vital_signs", "kind": "tabular", "present_fraction": 0.5}]}
    text, _ = parsed(make(extra={"card": card, "classes": ["went_home", "died_here"]}))
    assert "vital signs" in text
    assert "went home" in text or "died here" in text
    assert 'title="text+labs"' in text


def test_sets_by_label_have_a_row_each_with_the_exact_interval():
    one = {"n": 40, "coverage": 0.925, "ci": [0.796, 0.984], "size": 1.25}
    of = {"level": 0.9, "n_calibration": 33, "overall": one, "groups": []}
    report = make(extra={"sets": {"level": 0.9, "labels": {"kidney_injury": of}}})
    shown = " ".join("".join(parsed(report)[1].text).split())
    assert re.search(r"kidney injury\s*40\s*92\.5 %79\.6 to 98\.4\s*1\.25\s*33", shown)


TITLED = {
    **{"label": "died", "splits": {}, "combinations": [{"group": "labs", "n": 3, "fraction": 0.1, "published": 0.2}]},
    "classes": [{"name": "0", "train_fraction": 0.75}, {"name": "1", "train_fraction": 0.25}],
    "modalities": [{"name": name, "kind": "tabular", "present_fraction": 0.95} for name in ("text", "labs")],
}


def test_titles_stand_on_the_page_and_names_in_the_report():
    titles = {"label": "death", "classes": {"0": "survived"}, "modalities": {"labs": "Laboratory"}}
    presence = [{"attribute": "sex", "value": "f", "modality": "labs", "share": 0.4321, "ci": None}]
    extra = {"card": {**TITLED, "titles": titles}, "attribute_presence": presence, "attributes": []}
    report = make(data="ward", skill=0.3, extra=extra)
    before = json.dumps(report, sort_keys=True)
    text, parser = parsed(report, HISTORY)
    assert json.dumps(report, sort_keys=True) == before
    seen = " ".join("".join(parser.text).split())
    assert "predicts death on" in seen
    assert "text + Laboratory" in seen
    assert "text + labs" not in seen
    assert re.search("Always answering “(survived|died = 1)” is right", seen)
    assert {"survived", "died = 1"} <= {part.strip() for part in parser.text}  # a bare number says of what
    assert "text+Laboratory" in text.partition("Weight of each combination")[2]  # in the drawing
    assert re.search(r"Laboratory\s*3\s*10\.0", seen)  # next to the paper's
    assert 'title="text+labs"' in text
    assert "Laboratory" in page.cell(report)


def test_titles_of_labels_stand_in_their_tables():
    one = {"n": 40, "coverage": 0.925, "ci": [0.796, 0.984], "size": 1.25}
    of = {"level": 0.9, "n_calibration": 33, "overall": one, "groups": []}
    card = {**TITLED, "label": "aki, stroke", "titles": {"classes": {"aki": "kidney injury"}}}
    report = make(extra={"sets": {"level": 0.9, "labels": {"aki": of}}, "card": card})
    row = {"n": 60, "cases": 7, "notes": {}, "auroc": 0.8765}
    report["overall"]["labels"] = {"aki": row, "stroke": row}
    seen = " ".join("".join(parsed(report)[1].text).split())
    assert "predicts kidney injury, stroke on" in seen
    assert re.search(r"kidney injury\s*7 of 60\s*0\.876", seen)
    assert re.search(r"kidney injury\s*40\s*92\.5", seen)


def test_what_nobody_has_is_left_out():
    report = make(n=60)  # of which none has a rare combination
    tail = ("Tail accuracy", "Rare combinations (tail)", "Mean over tail")
    text = "".join(parsed(report)[1].text)
    assert not any(part in text for part in tail)
    assert "Common combinations (head)" in text
    assert "60 samples of 60 patients" not in text  # who have one each
    report |= {"n_patients": 30, "tail_pooled": report["head_pooled"]}
    text = "".join(parsed(report)[1].text)
    assert "60 samples of 30 patients" in text
    assert "Rare combinations (tail)" in text
    assert "Mean over tail" in text


def test_a_figure_stands_on_the_page_only_where_it_is_drawn():
    title = "Predicted and observed"
    assert title not in "".join(parsed(make())[1].text)
    bins = [{"n": 20, "predicted": x, "observed": x + 1, "middle": [x - 1, x + 3]} for x in (1.0, 2.0)]
    text, _ = parsed(make(extra={"curves": {"by_prediction": bins, "typical": "mean"}}))
    assert re.search(rf"<figcaption><b>{title}</b>[^<]*</figcaption><svg", text)


def test_a_figure_that_nobody_has_has_no_column():
    report = make()
    assert ">ECE</th>" in page.render(report, [])
    for row in (report["overall"], *report["groups"], *(report[key] for key, _ in page.HEADLINES)):
        row["ece"] = None
    assert ">ECE</th>" not in page.render(report, [])


def test_findings_begin_with_a_capital_unless_with_a_name():
    findings = [{"code": "W104", "message": "which are"}, {"code": "W105", "message": "labs: 3 rows"}]
    found = dict(page.cautions(make(extra={"findings": findings})))
    assert (found["Data check W104"], found["Data check W105"]) == ("Which are", "labs: 3 rows")
