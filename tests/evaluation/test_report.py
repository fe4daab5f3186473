import io
import json

import numpy as np
import polars as pl
import pytest
import rich.console
from sklearn.metrics import f1_score

from remind_jax.data.groups import Groups
from remind_jax.evaluation.intervals import exact_interval
from remind_jax.evaluation.judge import of_classes
from remind_jax.evaluation.report import build_report, pooled_metrics, print_table, write_json
from remind_jax.studies.comparison import Outcome

MODALITIES = ("text", "labs", "icd")
METRICS = {"accuracy", "macro_f1", "auroc", "auprc", "ece", "brier"} | {
    f"{name}_ci" for name in ("accuracy", "macro_f1", "auroc", "auprc")
}


def train_groups():
    """Training combinations: text+labs 60, text 30, icd 8, labs+icd 2 of 100."""
    rows = [[1, 1, 0]] * 60 + [[1, 0, 0]] * 30 + [[0, 0, 1]] * 8 + [[0, 1, 1]] * 2
    return Groups.fit(np.array(rows, bool), MODALITIES)


def predictions(rows, confidence=0.8):
    """One row a `(patient, group, label, predicted)`."""
    p1 = [confidence if predicted else 1 - confidence for *_, predicted in rows]
    return pl.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(rows))],
            "patient_id": [row[0] for row in rows],
            "label": pl.Series([row[2] for row in rows], dtype=pl.Int32),
            "group": [row[1] for row in rows],
            "p_0": [1 - p for p in p1],
            "p_1": p1,
        }
    )


def held_out():
    """40 of text+labs (30 right), 12 of text (6 right), 3 of icd (3 right), 2 of text+icd, which training lacks."""
    rows = [(f"a{i}", "text+labs", i % 2, i % 2 if i < 30 else 1 - i % 2) for i in range(40)]
    rows += [(f"b{i // 2}", "text", i % 2, i % 2 if i < 6 else 1 - i % 2) for i in range(12)]
    rows += [(f"c{i}", "icd", 1, 1) for i in range(3)]
    rows += [("d0", "text+icd", 0, 1), ("d0", "text+icd", 0, 0)]
    return predictions(rows)


def report_of(frame, groups=None, extra=None, data="ward", seed=3):
    config = {"method": "remind", "seed": seed, "eval": {"bootstrap": 1000}}
    classes = [f"class {k}" for k in range(sum(name.startswith("p_") for name in frame.columns))]
    return build_report(config, data, frame, groups or train_groups(), parameters=10, classes=classes, **extra or {})


@pytest.fixture(scope="module")
def report():
    return report_of(held_out(), extra={"split_digest": "xyz"})


def by_name(report):
    return {row["group"]: row for row in report["groups"]}


def test_contract_keys(report):
    assert {
        *("data", "method", "seed", "config_digest", "split", "parameters", "n", "overall", "groups"),
        *("head_mean", "tail_mean", "worst_group", "split_digest"),
    } <= report.keys()
    assert report["split"] == "held_out"
    assert report["n"] == 57
    for row in report["groups"]:
        assert row.keys() - {"unseen"} == METRICS | {
            *("group", "modalities", "train_fraction", "tail", "n", "n_patients", "n_train", "notes")
        }
    for key in ("overall", "head_mean", "tail_mean", "head_pooled", "tail_pooled", "worst_group"):
        assert report[key].keys() >= METRICS | {"notes"}


def test_every_null_has_a_reason(report):
    parts = [report[k] for k in ("overall", "head_mean", "tail_mean", "head_pooled", "tail_pooled", "worst_group")]
    for part in parts + report["groups"]:
        nulls = {name for name in METRICS if part[name] is None}
        assert nulls <= part["notes"].keys(), part
    assert any(part["auroc"] is None for part in report["groups"])


def test_groups_by_falling_frequency_with_unseen_last(report):
    assert [row["group"] for row in report["groups"]] == ["text+labs", "text", "icd", "labs+icd", "text+icd"]
    row = by_name(report)["text"]
    assert (row["n"], row["n_patients"], row["n_train"], row["train_fraction"]) == (12, 6, 30, 0.3)
    assert row["tail"] is False
    assert row["accuracy"] == 0.5
    assert row["accuracy_ci"] == exact_interval(np.arange(6) < 3)
    assert "6 patients" in row["notes"]["accuracy_ci"]
    assert by_name(report)["icd"]["tail"] is True


def test_unseen_combination(report):
    row = by_name(report)["text+icd"]
    assert row["unseen"] is True
    assert (row["n_train"], row["train_fraction"], row["tail"]) == (0, 0.0, True)
    assert row["modalities"] == ["text", "icd"]
    assert row["accuracy"] == 0.5
    assert not any("unseen" in row for row in report["groups"][:4])


def test_combination_without_held_out_samples_is_listed(report):
    row = by_name(report)["labs+icd"]
    assert row["n"] == 0
    assert all(row[name] is None for name in METRICS)
    assert row["notes"]["accuracy"] == "no samples"


def test_head_and_tail_means_weigh_groups_alike_and_pools_weigh_samples(report):
    assert report["head_mean"]["accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert report["head_pooled"]["accuracy"] == pytest.approx(36 / 52)
    # tail: icd 1.0, text+icd 0.5, labs+icd without samples
    assert report["tail_mean"]["accuracy"] == pytest.approx(0.75)
    assert "2 of 3 groups" in report["tail_mean"]["notes"]["accuracy"]
    assert report["tail_pooled"]["accuracy"] == pytest.approx(4 / 5)
    assert (report["head_pooled"]["n"], report["tail_pooled"]["n"]) == (52, 5)


def test_pooled_metrics_are_those_of_the_rows_named(report):
    frame = held_out()
    tail = np.array([name in ("icd", "text+icd") for name in frame["group"].to_list()])
    assert pooled_metrics(frame, tail, seed=3) == report["tail_pooled"]
    assert pooled_metrics(frame, ~tail, seed=3) == report["head_pooled"]
    assert pooled_metrics(frame, np.zeros(57, bool), seed=3)["accuracy"] is None


def test_worst_group_has_ten_samples_at_least(report):
    # text+icd is as low as text but has two samples
    assert report["worst_group"]["group"] == "text"
    small = report_of(held_out().head(9))
    assert small["worst_group"]["group"] is None
    assert small["worst_group"]["accuracy"] is None
    assert "10 held-out samples" in small["worst_group"]["notes"]["accuracy"]


def test_tail_without_groups_is_null():
    groups = Groups.fit(np.array([[1, 0, 0]] * 9, bool), MODALITIES)
    report = report_of(predictions([("a", "text", 0, 0)] * 9), groups)
    assert report["tail_mean"]["accuracy"] is None
    assert report["tail_mean"]["notes"]["auroc"] == "no such group"
    assert report["tail_pooled"]["n"] == 0


def test_sample_without_any_modality_is_an_unseen_group():
    report = report_of(predictions([("a", "none", 0, 0)] * 2))
    assert by_name(report)["none"]["unseen"] is True
    assert by_name(report)["none"]["modalities"] == []
    assert "none" in printed(report)


def test_same_input_same_report_other_seed_other_intervals():
    rows = [(f"a{i}", "text", i % 2, int(i % 3 > 0)) for i in range(60)]
    first = report_of(predictions(rows))
    assert first == report_of(predictions(rows))
    other = report_of(predictions(rows), seed=4)
    assert other["overall"]["accuracy"] == first["overall"]["accuracy"]
    assert other["overall"]["accuracy_ci"] != first["overall"]["accuracy_ci"]


def test_intervals_contain_the_figures(report):
    overall = report["overall"]
    for name in ("accuracy", "macro_f1", "auroc", "auprc"):
        low, high = overall[f"{name}_ci"]
        assert low <= overall[name] <= high
        assert low < high


def test_extra_may_not_replace_the_contract():
    with pytest.raises(ValueError, match="overall"):
        report_of(held_out(), extra={"overall": {}})


def test_json_round_trip_and_no_nan(report, tmp_path):
    write_json(tmp_path / "report.json", report)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "bad.json", report | {"gate": float("nan")})


def printed(report, **options):
    out = io.StringIO()
    print_table(report, rich.console.Console(file=out, **{"width": 100, **options}))
    return out.getvalue()


def test_table_shows_figures_and_marks(report):
    text = printed(report)
    line = {row.split()[0]: row for row in text.splitlines() if row.split()}
    assert line["text"].split() == ["text", "30.0%", "30", "12", "0.500", "(0.12-0.88)", "0.500", "0.500"]
    assert "tail" in line["icd"]
    assert "unseen" in line["text+icd"]
    assert line["labs+icd"].split()[-3:] == ["-", "-", "-"]
    assert "head, pooled" in text
    assert "57 held-out samples" in text
    assert "\x1b" not in text


def test_default_console_prints_plainly_to_a_pipe(report, capsys):
    print_table(report)
    out = capsys.readouterr().out
    assert "text+labs" in out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 100


def wide_report(modalities, count):
    rng = np.random.default_rng(0)
    masks = np.unique(rng.integers(0, 2, (4 * count, len(modalities))).astype(bool), axis=0)
    masks = masks[masks.any(1)][:count]
    groups = Groups.fit(np.repeat(masks, np.arange(count, 0, -1), axis=0), modalities)
    return report_of(predictions([(f"a{i}", groups.names[i % count], i % 2, 1) for i in range(3 * count)]), groups)


def test_long_names_fit_and_stay_distinct():
    modalities = ("demographics", "questionnaire", "blood_pressure", "body_measures", "laboratory", "dietary_recall")
    modalities += ("medication", "occupation", "activity", "smoking")
    report = wide_report(modalities, 40)
    text = printed(report)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert "16 more in report.json" in text
    assert "bod = body_measures" in text
    rows = [line for line in lines if "tail" in line.split() and "% " in line and "95 %" not in line]
    assert len(rows) == 24  # no name is broken over two lines
    assert len({row[:26] for row in rows}) == 24


def test_markup_in_names_is_printed_as_it_is():
    modalities = ("[red]x", "b")
    groups = Groups.fit(np.array([[1, 0]] * 5, bool), modalities)
    assert "[red]x" in printed(report_of(predictions([("p", "[red]x", 0, 0)] * 3), groups, data="[bold]"))


def test_ascii_output_stream(report):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_table(report, rich.console.Console(file=stream, width=100))
    stream.flush()
    assert b"text+labs" in raw.getvalue()


def test_answers_that_tuning_rows_chose_have_a_macro_f1_beside_that_of_the_most_probable_class():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.1).astype(int)  # one case in ten, which no probability makes the likelier answer
    p1 = np.clip(0.15 + 0.2 * labels + 0.1 * rng.normal(size=400), 0.01, 0.49)
    rows = [(f"p{i}", "text", label, 0) for i, label in enumerate(labels)]
    frame = predictions(rows).with_columns(p_1=pl.Series(p1), p_0=pl.Series(1 - p1))
    decision = (0.3, 1.0)
    found = report_of(frame, extra={"judge": of_classes(decision)})
    expected = f1_score(labels, p1 > 0.3 * (1 - p1), average="macro")
    assert found["overall"]["macro_f1_tuned"] == pytest.approx(expected)
    assert found["overall"]["macro_f1_tuned"] > found["overall"]["macro_f1"] + 0.1
    low, high = found["overall"]["macro_f1_tuned_ci"]
    assert low < expected < high
    assert found["decision"] == [0.3, 1.0]
    plain = report_of(frame)["overall"]
    assert {key: value for key, value in found["overall"].items() if "tuned" not in key} == plain
    outcome = Outcome("remind", 0, found, frame)
    assert outcome.figures(np.ones(400, bool))["macro_f1_tuned"] == pytest.approx(expected)
    empty = next(row for row in found["groups"] if not row["n"])
    assert empty["macro_f1_tuned"] is None
    assert empty["notes"]["macro_f1_tuned"] == "no samples"
    out = io.StringIO()
    print_table(found, rich.console.Console(file=out, width=100))
    assert f"chose for it: {expected:.3f}" in out.getvalue()
