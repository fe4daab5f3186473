"""An outcome that is there or not: figures at a threshold beside scikit-learn's, net benefit by hand, the page."""

import re

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import confusion_matrix, precision_score, recall_score, roc_curve

from remind_jax.data.groups import Groups
from remind_jax.evaluation import binary, page
from remind_jax.evaluation.intervals import exact_interval
from remind_jax.evaluation.report import build_report


def outcome(n=300, seed=0):
    rng = np.random.default_rng(seed)
    risk = rng.beta(1, 6, n)
    return (rng.random(n) < risk).astype(int), risk, np.array([f"p{i // 2}" for i in range(n)])


@pytest.fixture(scope="module")
def found():
    return binary.compute(*outcome(), 0.2, seed=0, resamples=200)


def test_figures_are_those_of_scikit_learn(found) -> None:
    labels, risk, _ = outcome()
    called = (risk >= 0.2).astype(int)
    cells = found["counts"]
    assert [[cells["tn"], cells["fp"]], [cells["fn"], cells["tp"]]] == confusion_matrix(labels, called).tolist()
    assert found["sensitivity"] == pytest.approx(recall_score(labels, called), abs=1e-12)
    assert found["specificity"] == pytest.approx(recall_score(labels, called, pos_label=0), abs=1e-12)
    assert found["ppv"] == pytest.approx(precision_score(labels, called), abs=1e-12)
    assert found["npv"] == pytest.approx(precision_score(labels, called, pos_label=0), abs=1e-12)
    assert found["prevalence"] == labels.mean()
    for row in found["at"]:
        called = risk >= row["threshold"]
        assert row["tp"] + row["fp"] == called.sum()
        assert row["sensitivity"] == pytest.approx(called[labels == 1].mean())
    assert [row["threshold"] for row in found["at"]] == sorted({*binary.READ_AT, 0.2})


def test_intervals_draw_patients_among_those_that_count(found) -> None:
    labels, risk, patients = outcome()
    for name in binary.FIGURES:
        low, high = found[f"{name}_ci"]
        assert low < found[name] < high
    few = binary.compute(labels[:40], risk[:40], patients[:40], 0.2, seed=0, resamples=50)
    case = labels[:40] == 1
    assert few["sensitivity_ci"] == exact_interval((risk[:40] >= 0.2)[case], len(set(patients[:40][case])))
    none = binary.compute(np.zeros(40, int), risk[:40], patients[:40], 0.2, seed=0, resamples=50)
    assert none["sensitivity"] is None
    assert none["sensitivity_ci"] is None
    assert none["roc"] == none["pr"] == []


def test_the_threshold_is_the_best_of_all_and_the_nearest_to_one_half_of_equal_ones() -> None:
    labels, risk, _ = outcome()
    chosen = binary.youden(labels, risk)
    false, true, _ = roc_curve(labels, risk, drop_intermediate=False)
    called = risk >= chosen
    gain = called[labels == 1].mean() - called[labels == 0].mean()
    assert gain == pytest.approx((true - false).max())
    assert binary.youden(np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.8, 0.2])) == 0.2  # .2 and .9 gain as much
    assert binary.youden(np.ones(4, int), np.linspace(0, 1, 4)) is None


def test_net_benefit_by_hand() -> None:
    labels, risk = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.3, 0.6, 0.1, 0.1])
    points = binary.compute(labels, risk, np.arange(5), 0.5, seed=0, resamples=10)["net_benefit"]
    at, model, everybody = next(point for point in points if 0.45 < point[0] < 0.55)
    odds = at / (1 - at)
    assert model == pytest.approx(1 / 5 - odds * 1 / 5)  # one case found, one other flagged
    assert everybody == pytest.approx(2 / 5 - odds * 3 / 5)


def test_bins_of_calibration_hold_enough_people() -> None:
    labels, risk, _ = outcome(230)
    bins = binary.calibration(labels, risk)
    assert sum(one["n"] for one in bins) == 230
    assert min(one["n"] for one in bins) >= binary.BIN
    assert [one["predicted"] for one in bins] == sorted(one["predicted"] for one in bins)
    first = np.argsort(risk, kind="stable")[: bins[0]["n"]]
    assert bins[0]["observed"] == labels[first].mean()
    assert bins[0]["ci"] == exact_interval(labels[first] == 1)
    assert binary.calibration(labels[:10], risk[:10]) == []


def test_the_page_of_an_outcome_leads_with_it_and_not_with_accuracy(found) -> None:
    labels, risk, patients = outcome()
    table = pl.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(len(labels))],
            "patient_id": patients,
            "label": pl.Series(labels, dtype=pl.Int32),
            "group": ["labs"] * len(labels),
            "p_0": 1 - risk,
            "p_1": risk,
        }
    )
    config = {"method": "remind", "seed": 0, "eval": {"bootstrap": 20}}
    groups = Groups.fit(np.ones((10, 1), bool), ("labs",))
    told = found | {"chosen": True, "outcome": "died"}
    report = build_report(config, "ward", table, groups, parameters=1, classes=["no", "died"], binary=told)
    text = page.render(report, [])
    tiles = text[text.index('class="tiles"') : text.index("Where not to trust it")]
    assert "Accuracy" not in tiles
    assert [name for name in ("AUROC", "AUPRC", "Sensitivity", "PPV") if f">{name}<" in tiles] == [
        "AUROC",
        "AUPRC",
        "Sensitivity",
        "PPV",
    ]
    assert "At a threshold" in text
    assert "Decision curve" in text
    assert "<script" not in text
    # The threshold moves without a script: a choice for each, and the matrix that it shows.
    choice = re.compile(r'<label><input type="radio" name="threshold"( checked)?>([\d.]+)</label>')
    chosen = [(at, bool(checked)) for checked, at in choice.findall(text)]
    assert chosen == [(f"{row['threshold']:.3f}", row["threshold"] == 0.2) for row in found["at"]]
    matrices = text.split('<div class="matrix')[1:]
    assert [matrix.startswith(" chosen") for matrix in matrices] == [checked for _, checked in chosen]
    for k, (matrix, row) in enumerate(zip(matrices, found["at"], strict=True), 1):
        cells = re.findall(r'<td class="num">([\d,]+)<small>', matrix.partition("</table>")[0])
        assert [int(cell.replace(",", "")) for cell in cells] == [row[name] for name in ("tp", "fn", "fp", "tn")]
        assert f".at:has(label:nth-of-type({k}) :checked) .matrix:nth-of-type({k})" in text
