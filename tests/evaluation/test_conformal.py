"""Sets that hold the truth: thresholds by hand, coverage over many splits, by combination, and what deferral gains."""

import math

import numpy as np
import polars as pl
import pytest

from remind_jax.data.targets import of_entry
from remind_jax.evaluation import conformal
from remind_jax.evaluation.conformal import Sets, scores_of_classes, threshold
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.regression import Regression
from tests import tiny_runs


def test_the_threshold_is_the_kth_smallest_of_n_plus_one() -> None:
    assert threshold(np.arange(1.0, 10.0), 0.9) == 9.0  # k = 9 of 9
    assert threshold(np.arange(1.0, 20.0), 0.9) == 18.0  # k = 18 of 19
    assert threshold(np.arange(1.0, 9.0), 0.9) == math.inf  # k = 9 of 8
    assert threshold(np.array([3.0, 1.0, 2.0]), 0.5) == 2.0
    assert threshold(np.array([]), 0.5) == math.inf


def test_scores_of_classes_by_hand() -> None:
    found = scores_of_classes(np.array([[0.2, 0.5, 0.3], [0.25, 0.25, 0.5]]))
    assert found == pytest.approx(np.array([[0.9, 0.25, 0.65], [0.625, 0.875, 0.25]]))


def classes(*names):
    return Classes(tuple(1 / len(names) for _ in names), names)


def simulated(n, seed):
    """Classes whose probabilities are right in one combination and far too sure in another, which is rarer."""
    rng = np.random.default_rng(seed)
    true = rng.dirichlet([1.0, 1.0, 1.0], n)
    labels = (rng.random((n, 1)) > true.cumsum(axis=1)).sum(axis=1)
    hard = rng.random(n) < 0.3
    told = np.where(hard[:, None], true**4 / (true**4).sum(axis=1, keepdims=True), true)
    return labels, told, np.where(hard, "labs", "labs+note")


def coverages(by_group: bool, splits=200):
    """Mean coverage of each combination over random splits into rows for thresholds and others."""
    labels, told, groups = simulated(900, 0)
    task, rng, found = classes("a", "b", "c"), np.random.default_rng(1), {}
    misses = task.misses(labels, told)
    for _ in range(splits):
        order = rng.permutation(len(labels))
        fit, rest = order[:450], order[450:]
        names = groups if by_group else np.full(len(groups), "all")
        sets = Sets.fit(misses[fit], names[fit].tolist(), 0.9)
        held = task.sets(told[rest], sets.of(names[rest])).hold(labels[rest])
        for name in set(groups):
            found.setdefault(name, []).append(held[groups[rest] == name].mean())
    return {name: np.mean(some) for name, some in found.items()}


def test_mean_coverage_is_what_is_promised_in_every_combination() -> None:
    assert coverages(by_group=True) == pytest.approx({"labs": 0.9, "labs+note": 0.9}, abs=0.015)


def test_one_threshold_for_all_breaks_the_promise_where_the_model_is_too_sure() -> None:
    assert coverages(by_group=False, splits=30)["labs"] < 0.88


def test_few_rows_lean_on_all_and_fewer_than_have_a_threshold_take_theirs() -> None:
    scores = np.concatenate([np.linspace(0, 1, 200), np.linspace(2, 3, 25), np.linspace(2, 3, 5)])
    groups = ["many"] * 200 + ["some"] * 25 + ["few"] * 5
    sets = Sets.fit(scores, groups, 0.9)
    assert sets.groups["many"] == (threshold(scores[:200], 0.9), 200)
    own = threshold(scores[200:225], 0.9)
    assert sets.groups["some"] == (pytest.approx(0.5 * own + 0.5 * sets.whole), 25)
    assert sets.groups["few"] == (sets.whole, 5)
    assert sets.of(["many", "unseen"]).tolist() == [sets.groups["many"][0], sets.whole]
    assert Sets.from_dict(sets.to_dict()) == sets
    assert Sets.fit(scores[:8], groups[:8], 0.9) is None


def test_sets_of_classes_name_all_that_are_no_odder_and_never_none() -> None:
    task, told = classes("a", "b", "c"), np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    found = task.sets(told, np.array([0.7, 0.1]))
    assert found.columns["set"].tolist() == ["b|c", "a"]
    assert found.sizes.tolist() == [2, 1]
    assert found.hold(np.array([0, 0])).tolist() == [False, True]


@pytest.mark.parametrize("predicts", ["mean", "quantiles"])
def test_intervals_of_values_hold_the_promised_share(predicts) -> None:
    rng = np.random.default_rng(0)
    wide = rng.uniform(0.5, 3, 4_000)
    values, middle = rng.normal(0, wide), np.zeros(4_000)
    told = middle[:, None] if predicts == "mean" else np.stack([middle, middle - wide, middle + wide], axis=1)
    schema = of_entry({"task": "regression", "column": "x"})
    baseline = (0.0,) if predicts == "mean" else (0.0, -1.0, 1.0)
    task = Regression(baseline, predicts, schema.transform, 0.0, 1.0, 0.9)
    sets = Sets.fit(task.misses(values[:2_000], told[:2_000]), ["x"] * 2_000, 0.9)
    found = task.sets(told[2_000:], sets.of(["x"] * 2_000))
    assert found.hold(values[2_000:]).mean() == pytest.approx(0.9, abs=0.02)
    assert found.columns.keys() == {"lower", "upper"}
    follows = np.ptp(found.sizes) > 1 and np.corrcoef(found.sizes, wide[2_000:])[0, 1] > 0.99
    assert follows == (predicts == "quantiles")


def test_coverage_has_the_exact_interval_of_all_and_of_each_combination() -> None:
    sets = Sets(0.9, 60, 0.8, {"a": (0.7, 60)})
    held = np.array([True] * 8 + [False] * 2)
    found = conformal.coverage(sets, held, np.arange(10), ["a"] * 7 + ["b"] * 3)
    assert found["overall"] == {"n": 10, "coverage": 0.8, "ci": pytest.approx([0.4439, 0.9748], abs=1e-4), "size": 4.5}
    assert [(row["group"], row["n"], row["n_calibration"]) for row in found["groups"]] == [("a", 7, 60), ("b", 3, 0)]


def test_coverage_is_told_with_its_exact_interval_and_by_label() -> None:
    sets = Sets(0.9, 60, 0.8, {"a": (0.7, 60)})
    held = np.array([True] * 8 + [False] * 2)
    found = conformal.coverage(sets, held, np.arange(10), ["a"] * 10)
    share = "in 90% held it in 80.0% (exact 95 % interval 44.4% to 97.5%) of 10 held-out samples"
    assert list(conformal.told(found)) == [f"Sets made to hold the truth {share}"]
    assert list(conformal.told({"level": 0.9, "labels": {"aki": found}})) == [
        f"Sets made to hold the truth of aki {share}"
    ]


def test_samples_of_the_tuning_rows_do_not_fall_out_of_their_sets_by_rounding() -> None:
    told = np.random.default_rng(0).dirichlet(np.ones(3), 500).astype(np.float32)
    own = scores_of_classes(told.astype(np.float64)).max(axis=1)
    assert conformal.inside(told, own).all()
    assert not conformal.inside(told, own - 1e-4).all()


def test_deferral_is_the_accuracy_of_the_surest() -> None:
    labels, told, _ = simulated(400, 3)
    curve = conformal.deferral(labels, told)
    sure = np.argsort(-told.max(axis=1), kind="stable")
    for point in curve:
        some = sure[: point["n"]]
        assert point["accuracy"] == pytest.approx(np.mean(told[some].argmax(axis=1) == labels[some]))
    assert [curve[0]["share"], curve[-1]["share"]] == [1.0, 0.05]
    assert curve[-1]["accuracy"] > curve[0]["accuracy"]
    assert conformal.deferral(labels[:0], told[:0]) == []


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.slow  # trains on NHANES
def test_on_nhanes_sets_hold_the_truth_in_nine_of_ten_samples_of_every_combination(tmp_path) -> None:
    import remind_jax as rj
    from remind_jax import main

    main.main([f"--config={tiny_runs.ROOT}/configs/nhanes.py", f"--workdir={tmp_path}"])
    model = rj.load(tmp_path)
    held = pl.read_parquet(tmp_path / "predictions.parquet")
    labels, groups = held["label"].to_numpy(), np.array(held["group"].to_list(), object)
    told = held.select(f"p_{k}" for k in range(len(model.classes))).to_numpy()
    misses, rng, found = model.task.misses(labels, told), np.random.default_rng(0), {}
    for _ in range(200):
        order = rng.permutation(len(labels))
        fit, rest = order[: len(order) // 2], order[len(order) // 2 :]
        sets = Sets.fit(misses[fit], groups[fit].tolist(), 0.9)
        right = model.task.sets(told[rest], sets.of(groups[rest])).hold(labels[rest])
        for name, (_, n) in sets.groups.items():
            if n >= conformal.LEAST:
                found.setdefault(name, []).append(right[groups[rest] == name].mean())
    assert len(found) >= 2
    means = {name: float(np.mean(some)) for name, some in found.items() if len(some) == 200}
    assert len(means) >= 2
    assert means == pytest.approx(dict.fromkeys(means, 0.9), abs=0.015)
