import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.evaluation.differences import holm
from remind_jax.studies import comparison
from remind_jax.studies.comparison import Replicates, paired_differences, spread, t_test
from tests.studies import sweep_runs

# ---- Means and tests -------------------------------------------------------------------------------------------------


def test_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 6.0]) == pytest.approx((3.0, 7.0**0.5, 3))  # sum of squares 14, over 2
    assert spread([2.0, None]) == (2.0, None, 1)
    assert spread([None]) is None


def test_standard_deviation_of_the_paper_s_tail_group_is_ddof_1():
    """Table 14, four samples and three seeds: 3, 2 and 3 of 4 right give the published 0.667 ± 0.144."""
    value = spread([0.5, 0.75, 0.75])
    assert (round(value.mean, 3), round(value.sd, 3)) == (0.667, 0.144)


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04: times 4 3 2 1 is .04 .06 .06 .04, and the last must not fall below .06.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_lies_between_p_and_bonferroni(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= min(1.0, len(p_values) * p) + 1e-12 for p, c in zip(p_values, corrected, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)


def test_t_test_by_hand():
    # Mean 2, sd 1, n 3: t = 2 √3, and with 2 degrees of freedom p = 1 - t / √(2 + t²).
    t = 2 * 3**0.5
    assert t_test([1.0, 2.0, 3.0]) == pytest.approx(1 - t / (2 + t * t) ** 0.5)
    assert t_test([1.0]) is None
    assert t_test([1.0, 1.0]) is None
    assert t_test([0.3 - 0.1, 0.2]) is None  # differ by rounding


# ---- The bootstrap ---------------------------------------------------------------------------------------------------


def _slow(runs, replicates, method, baseline, part):
    """The same replicates, each by counting accuracy over the samples of drawn patients one by one."""
    everyone = sorted({p for run in runs for p in run.predictions["patient_id"].to_list()})
    draws = np.concatenate(
        list(
            comparison.intervals.patient_weights(
                np.arange(len(everyone)), len(everyone), 0, resamples=replicates.resamples
            )
        )
    )
    seeds = sorted({run.seed for run in runs})
    seed_counts = replicates.seeds_drawn(len(seeds))
    found = []
    for r, times in enumerate(draws):
        total = 0.0
        for s, seed in enumerate(seeds):
            values = {}
            for run in runs:
                if run.seed == seed:
                    hit = weight = 0.0
                    for row in run.predictions.iter_rows(named=True):
                        if part in ("all", row["group"]):
                            w = times[everyone.index(row["patient_id"])]
                            weight += w
                            hit += w * ((row["p_1"] > row["p_0"]) == (row["label"] == 1))
                    values[run.method] = hit / weight
            total += seed_counts[r, s] * (values[method] - values[baseline])
        found.append(total / len(seeds))
    return np.array(found)


@pytest.mark.parametrize("part", ["all", "notes+labs+icd"])
def test_replicates_equal_a_slow_count(part):
    runs = [
        sweep_runs.run(method, seed, sweep_runs.predictions(seed, 40, skill, i, patients=25))
        for i, (method, skill) in enumerate({"a": 0.6, "b": 0.8}.items())
        for seed in (0, 1)
    ]
    replicates = Replicates(runs, chosen=[part], resamples=12)
    _, *fast = replicates.differences("b", "a", [0, 1], part, "accuracy")
    np.testing.assert_allclose(fast, _slow(runs, replicates, "b", "a", part), atol=1e-12)
    assert np.ptp(fast) > 0


def test_equal_methods_do_not_differ():
    runs = sweep_runs.make({"a": 0.7})
    runs += [dataclasses.replace(run, method="b") for run in runs]
    for value in paired_differences(runs, ["a", "b"], "a", resamples=50).values():
        assert (value.mean, value.low, value.high, value.p, value.wins, value.n) == (0.0, 0.0, 0.0, 1.0, 0, 3)


def test_equal_answers_are_no_equal_methods():
    run = sweep_runs.make({"a": 0.7}, seeds=(0,))[0]
    surer = run.predictions.with_columns(p_1=(pl.col("p_1") > 0.5).cast(float)).with_columns(p_0=1 - pl.col("p_1"))
    found = paired_differences([run, sweep_runs.run("b", 0, surer)], ["b"], "a", resamples=50)
    accuracy, f1 = (found["all", name, "b"] for name in ("accuracy", "macro_f1"))
    assert (accuracy.mean, accuracy.low, accuracy.high, accuracy.p) == (0.0, None, None, None)
    assert f1.low < 0 < f1.high
    assert f1.mean == 0


def test_ranks_of_few_cases_have_no_interval_unless_other_seeds_have_more():
    frames = [sweep_runs.predictions(seed, 60, 0.8, i) for i in range(2) for seed in (0, 1)]
    for seed, frame in enumerate(frames):
        place = pl.int_range(60)
        case = ((place >= 4 * (seed % 2)) & (place < 4 * (seed % 2) + 4)).cast(int)  # four patients, four others
        frames[seed] = frame.with_columns(label=case, group=pl.lit("labs"))
    runs = [sweep_runs.run("ab"[i // 2], i % 2, frame) for i, frame in enumerate(frames)]
    for some, known in ((runs, True), (runs[::2], False)):
        found = paired_differences(some, ["b"], "a", ["all"], resamples=200)
        assert found["all", "accuracy", "b"].low is not None
        value = found["all", "auroc", "b"]
        assert (value.low is not None) == (value.p is not None) == (value.p_holm is not None) == known


def test_a_clear_difference_is_found_and_an_unclear_one_is_not():
    found = paired_differences(
        sweep_runs.make({"a": 0.6, "b": 0.9, "c": 0.62}, n=200), ["a", "b", "c"], "a", resamples=400
    )
    clear, unclear = found["all", "accuracy", "b"], found["all", "accuracy", "c"]
    assert clear.low > 0.15
    assert clear.mean == pytest.approx(0.3, abs=0.08)
    assert clear.p_holm == pytest.approx(2 * clear.p)
    assert clear.p < 1e-4
    assert (clear.wins, clear.n) == (3, 3)
    assert unclear.low < 0 < unclear.high
    assert unclear.p_holm == unclear.p > 0.05  # the largest of two is not multiplied


def test_mean_difference_is_that_of_the_reports():
    runs = sweep_runs.make({"a": 0.6, "b": 0.8})
    by_key = {(run.method, run.seed): run.report["tail_pooled"]["auroc"] for run in runs}
    each = [by_key["b", seed] - by_key["a", seed] for seed in (0, 1, 2)]
    value = paired_differences(runs, ["b", "a"], "a", resamples=20)["tail", "auroc", "b"]
    assert value.mean == pytest.approx(np.mean(each))
    assert value.sd == pytest.approx(np.std(each, ddof=1))


def test_pairing_narrows_the_interval():
    """Methods that fail on the same samples differ less by chance than methods that fail on others."""
    base = sweep_runs.make({"a": 0.7}, seeds=(0,), n=300)[0]
    p_1 = base.predictions["p_1"].to_numpy().copy()
    wrong = np.flatnonzero((p_1 > 0.5) != (base.predictions["label"].to_numpy() == 1))[:12]
    p_1[wrong] = 1 - p_1[wrong]
    mended = base.predictions.with_columns(p_1=pl.Series(p_1), p_0=pl.Series(1 - p_1))
    runs = [base, sweep_runs.run("b", 0, mended)]
    near = paired_differences(runs, ["a", "b"], "a", resamples=400)["all", "accuracy", "b"]
    far_runs = [base, *sweep_runs.make({"x": 0.1, "b": 0.74}, seeds=(0,), n=300)[1:]]
    far = paired_differences(far_runs, ["a", "b"], "a", resamples=400)["all", "accuracy", "b"]
    assert near.mean == pytest.approx(12 / 300)
    assert near.low > 0
    assert near.high - near.low < 0.6 * (far.high - far.low)


def test_patients_are_drawn_whole():
    """Ten samples a patient, all alike, say no more than one: the interval is about √10 wider than sample by sample."""
    rng = np.random.default_rng(3)
    right = {name: np.repeat(rng.uniform(size=60) < skill, 10) for name, skill in (("a", 0.5), ("b", 0.7))}

    def runs(patients):
        frames = []
        for name in ("a", "b"):
            label = np.tile([0, 1], 300)
            p_1 = np.where(right[name] == (label == 1), 0.9, 0.1)
            frame = pl.DataFrame(
                {
                    "sample_id": [f"s{i}" for i in range(600)],
                    "patient_id": patients,
                    "label": label,
                    "group": ["labs"] * 600,
                    "p_0": 1 - p_1,
                    "p_1": p_1,
                }
            )
            frames.append(sweep_runs.run(name, 0, frame))
        return paired_differences(frames, ["a", "b"], "a", resamples=400)["all", "accuracy", "b"]

    whole = runs([f"p{i // 10}" for i in range(600)])
    apart = runs([f"p{i}" for i in range(600)])
    ratio = (whole.high - whole.low) / (apart.high - apart.low)
    assert ratio == pytest.approx(10**0.5, rel=0.25)


def test_seeds_are_drawn_too_and_one_seed_is_kept():
    runs = sweep_runs.make({"a": 0.7, "b": 0.8})
    replicates = Replicates(runs, resamples=500)
    drawn = replicates.seeds_drawn(3)
    assert np.all(drawn.sum(axis=1) == 3)
    assert drawn.mean() == pytest.approx(1.0)
    assert np.all(replicates.seeds_drawn(1) == 1)
    assert drawn.max() == 3


def test_runs_on_other_samples_are_not_paired():
    same, other = (sweep_runs.predictions(seed, 120, 0.8, 1) for seed in (0, 5))
    runs = [*sweep_runs.make({"a": 0.7}, seeds=(0, 1)), sweep_runs.run("b", 0, same), sweep_runs.run("b", 1, other)]
    assert paired_differences(runs, ["a", "b"], "a", resamples=20)["all", "accuracy", "b"].n == 1


def test_missing_runs_and_figures_leave_holes():
    runs = sweep_runs.make({"a": 0.7, "b": 0.8})[:-1]  # b has no seed 2
    found = paired_differences(runs, ["a", "b", "c"], "a", ["all", "no such combination"], resamples=20)
    assert {part for part, _, _ in found} == {"all"}
    assert {method for _, _, method in found} == {"b"}
    assert found["all", "accuracy", "b"].n == 2
