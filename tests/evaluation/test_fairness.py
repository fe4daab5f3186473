"""Figures by attribute: equal to fairlearn's, differences as a slow bootstrap draws them, shares of modalities."""

import numpy as np
import polars as pl
import pytest
from fairlearn.metrics import MetricFrame
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from remind_jax.data.groups import Groups
from remind_jax.evaluation import differences, fairness, intervals, page
from remind_jax.evaluation.judge import of_classes
from remind_jax.evaluation.report import build_report

MODALITIES = ("labs", "note")
CONFIG = {"method": "remind", "seed": 3, "eval": {"bootstrap": 200}}


def predictions(n=240, seed=0):
    """Women are predicted better, have labs more often, and are the larger part; 20 samples have no sex recorded."""
    rng = np.random.default_rng(seed)
    woman, label = rng.random(n) < 0.6, rng.integers(0, 2, n)
    p1 = 1 / (1 + np.exp(-((2 * label - 1) * np.where(woman, 1.5, 0.2) + rng.normal(size=n))))
    sex = [None if i < 20 else "f" if w else "m" for i, w in enumerate(woman)]
    ages = ["below 40", "40 to below 65", "65 or more"]
    return pl.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "label": pl.Series(label, dtype=pl.Int32),
            "group": np.where(rng.random(n) < np.where(woman, 0.9, 0.4), "labs+note", "note"),
            "p_0": 1 - p1,
            "p_1": p1,
            "attribute_sex": sex,
            "attribute_age": pl.Series(rng.choice(ages, n), dtype=pl.Enum(ages)),
        }
    )


@pytest.fixture(scope="module")
def report():
    groups = Groups.fit(np.array([[1, 1]] * 6 + [[0, 1]] * 4, bool), MODALITIES)
    return build_report(CONFIG, "ward", predictions(), groups, parameters=1, classes=["no", "yes"])


def row_of(report, attribute, value):
    return next(r for r in report["attributes"] if (r["attribute"], r["value"]) == (attribute, value))


def test_figures_of_each_value_are_those_of_fairlearn(report) -> None:
    frame = predictions()
    label, p1 = frame["label"].to_numpy(), frame["p_1"].to_numpy()
    for attribute in ("sex", "age"):
        column = frame[f"attribute_{attribute}"].cast(pl.String).fill_null("not recorded").to_numpy()
        metrics = {"accuracy": accuracy_score, "macro_f1": lambda y, p: f1_score(y, p, average="macro")}
        found = MetricFrame(metrics=metrics, y_true=label, y_pred=(p1 > 0.5).astype(int), sensitive_features=column)
        ranked = MetricFrame(metrics=roc_auc_score, y_true=label, y_pred=p1, sensitive_features=column)
        for value, theirs in found.by_group.iterrows():
            ours = row_of(report, attribute, None if value == "not recorded" else value)
            assert ours["n"] == int((column == value).sum())
            assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-12)
            assert ours["macro_f1"] == pytest.approx(theirs["macro_f1"], abs=1e-12)
            assert ours["auroc"] == pytest.approx(ranked.by_group[value], abs=1e-12)


def test_values_stand_in_order_and_their_combinations_below_them(report) -> None:
    values = [(row["attribute"], row["value"]) for row in report["attributes"]]
    assert values[:3] == [("sex", "f"), ("sex", "m"), ("sex", None)]
    assert [value for _, value in values[3:]] == ["below 40", "40 to below 65", "65 or more"]
    frame = predictions().filter(pl.col("attribute_sex") == "m")
    parts = row_of(report, "sex", "m")["by_group"]
    assert {part["group"]: part["n"] for part in parts} == dict(frame["group"].value_counts().iter_rows())
    assert sum(part["n"] * part["accuracy"] for part in parts) == pytest.approx(
        row_of(report, "sex", "m")["n"] * row_of(report, "sex", "m")["accuracy"]
    )


def test_a_difference_is_that_of_the_figures_with_the_interval_of_both(report) -> None:
    gaps = {(g["attribute"], g["value"], g["figure"]): g for g in report["attribute_gaps"]}
    gap, m, f = gaps["sex", "m", "accuracy"], row_of(report, "sex", "m"), row_of(report, "sex", "f")
    assert gap["against"] == "f"
    assert gap["difference"] == pytest.approx(m["accuracy"] - f["accuracy"], abs=1e-12)
    below = (m["accuracy"] - m["accuracy_ci"][0]) ** 2 + (f["accuracy_ci"][1] - f["accuracy"]) ** 2
    above = (m["accuracy_ci"][1] - m["accuracy"]) ** 2 + (f["accuracy"] - f["accuracy_ci"][0]) ** 2
    assert gap["ci"] == pytest.approx([gap["difference"] - below**0.5, gap["difference"] + above**0.5])
    frame = predictions()
    right = (frame["p_1"].to_numpy() > 0.5) == frame["label"].to_numpy()
    sex, patient = np.array(frame["attribute_sex"].to_list(), object), frame["patient_id"].to_numpy()
    owner = np.unique(patient, return_inverse=True)[1]
    counts, drawn = np.concatenate(list(intervals.patient_weights(np.arange(120), 120, 3, resamples=400))), []
    for weights in counts[:, owner]:
        drawn.append(np.average(right, weights=weights * (sex == "m")))
        drawn[-1] -= np.average(right, weights=weights * (sex == "f"))
    assert 0.95 < np.ptp(gap["ci"]) / (2 * 1.96 * np.std(drawn)) < 1.2  # some people are on both sides


def test_p_is_corrected_over_all_gaps_of_a_figure(report) -> None:
    some = [gap for gap in report["attribute_gaps"] if gap["figure"] == "accuracy"]
    assert [gap["p_holm"] for gap in some] == differences.holm([gap["p"] for gap in some])
    assert sum(gap["p"] is not None for gap in some) == 3  # 20 samples without a sex are too few
    unknown = next(gap for gap in some if gap["attribute"] == "sex" and gap["value"] is None)
    assert unknown["note"] == "a side has fewer than 30 samples or 10 patients"


def test_shares_of_modalities_have_intervals(report) -> None:
    found = {(one["value"], one["modality"]): one for one in report["attribute_presence"]}
    frame = predictions().filter(pl.col("attribute_sex").is_null())
    has = int((frame["group"] == "labs+note").sum())
    assert found[None, "labs"]["share"] == has / frame.height
    people = frame["patient_id"].n_unique()
    exact = binomtest(has * people // frame.height, people).proportion_ci(0.95)
    assert has * people % frame.height == 0
    assert found[None, "labs"]["ci"] == pytest.approx([exact.low, exact.high])
    assert found["f", "labs"]["ci"][0] > found["m", "labs"]["ci"][1]


def test_a_report_without_attributes_says_nothing_of_them() -> None:
    groups = Groups.fit(np.array([[1, 1]] * 6 + [[0, 1]] * 4, bool), MODALITIES)
    frame = predictions().drop("attribute_sex", "attribute_age")
    found = build_report(CONFIG, "ward", frame, groups, parameters=1, classes=["no", "yes"])
    assert not [key for key in found if key.startswith("attribute")]
    assert "By attribute" not in page.render(found, [])


def test_the_page_shows_who_is_served_worse(report) -> None:
    lead = next(text for lead, text in page.cautions(report) if lead == "Served worse")
    assert "sex m (" in lead
    assert "against f" in lead
    text = page.render(report, [])
    assert "sex: not recorded" in text
    assert "Who has which modality" in text


def test_gaps_hold_for_every_figure_with_an_interval(report) -> None:
    judge = of_classes()
    found = fairness.gaps(report["attributes"], judge.bounded)
    assert {gap["figure"] for gap in found} == set(judge.bounded)
    assert fairness.gaps(report["attributes"][:1], judge.bounded) == []
