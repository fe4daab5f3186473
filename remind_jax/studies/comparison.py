"""Runs of several methods over several seeds side by side: means, spreads, paired differences to a baseline.

How differences are drawn. Methods are compared on the same held-out samples of the same seeds. One bootstrap replicate
draws patients with replacement, jointly for all methods and all seeds in which a patient is held out, and draws seeds
with replacement; its difference is the mean over the drawn seeds of (method - baseline). Patients and seeds are
crossed, not nested: a patient held out under two seeds counts as one, because a chance composition of the patients
moves both seeds alike. Such a bootstrap of both factors is known to err on the wide side (Owen 2007, "The pigeonhole
bootstrap"). With one seed only patients are drawn, and the interval says nothing about the chance of training. The
interval and the two-sided p are Student's by the spread of the replicates (`differences.difference`); p is corrected
over the methods by Holm.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from remind_jax import tasks
from remind_jax.errors import UserError
from remind_jax.evaluation import differences, finished, intervals
from remind_jax.evaluation.differences import holm
from remind_jax.evaluation.judge import Weighed
from remind_jax.evaluation.samples import Samples
from remind_jax.studies.entries import RESAMPLES, Entry
from remind_jax.studies.ranks import LEVEL
from remind_jax.tasks.task import Task

WHOLES = ("all", "head", "tail")
_ROUNDING = 1e-12  # differences of fractions that are closer are the same


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run leaves for comparisons: its method as tables call it, seed, report, predictions."""

    method: str
    seed: int
    report: Mapping[str, Any]
    predictions: pl.DataFrame

    @functools.cached_property
    def task(self) -> Task:
        """What the run predicts."""
        return tasks.of_report(self.report)

    @functools.cached_property
    def samples(self) -> Samples:
        """Its predictions as arrays."""
        return Samples.of(self.predictions)

    def figures(self, rows: np.ndarray) -> dict[str, Any]:
        """Returns `n` and the figures that are compared of some rows, bool [n]; None where undefined."""
        at = np.flatnonzero(rows)
        found = self.weighed(at, np.ones((1, len(at)))) if len(at) else {key: [np.nan] for key in self.task.compared}
        values = {name: float(found[name][0]) for name in self.task.compared}
        return {"n": len(at), **{name: value if np.isfinite(value) else None for name, value in values.items()}}

    @functools.cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Row numbers of sets of held-out samples, if any: `all`, `head`, `tail` and each combination."""
        names = self.samples.groups
        tail = {row["group"] for row in self.report["groups"] if row["tail"]}
        in_tail = np.array([name in tail for name in names], bool)
        chosen = {"all": np.arange(len(names)), "head": np.flatnonzero(~in_tail), "tail": np.flatnonzero(in_tail)}
        chosen |= {name: np.flatnonzero(names == name) for name in sorted(set(names.tolist()))}
        return {name: rows for name, rows in chosen.items() if len(rows)}

    @functools.cached_property
    def weighed(self) -> Weighed:
        """Makes the figures of some of its samples in many weightings."""
        return self.task.weighed(self.samples.labels, self.samples.probabilities)


def outcome(method: str, seed: int, folder: pathlib.Path) -> Outcome:
    """Reads the outcome of a finished run. Raises UserError: a file of it is damaged, or they are of two runs."""
    report = finished.read_report(folder)
    try:
        task = tasks.of_report(report)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} holds a damaged run: its report tells no task ({type(error).__name__})") from None
    table = finished.read_predictions(folder, len(task.names), task.name != "classes")
    there = dict(table["group"].value_counts().iter_rows())
    if {row["group"]: row["n"] for row in report["groups"] if row["n"]} != there or table.height != report["n"]:
        raise UserError(f"{folder} holds a damaged run: report and predictions are of other rows")
    found = Outcome(method, seed, report, table)
    try:
        _ = found.weighed
    except (IndexError, ValueError):
        raise UserError(f"{folder} holds a damaged run: its predictions are none of task {task.name}") from None
    return found


def outcome_of(entry: Entry) -> Outcome:
    """Reads the outcome of a finished run of a sweep; errors are those of `outcome`."""
    return outcome(entry.method, entry.seed, entry.folder)


class Spread(NamedTuple):
    """Mean and sample standard deviation (ddof 1; None for one value) of n values."""

    mean: float
    sd: float | None
    n: int


class Difference(NamedTuple):
    """Paired difference of a method to the baseline, in the unit of the figure.

    Attributes:
      mean: over the seeds that both have.
      low, high: 95 % interval by the bootstrap over patients and seeds; None where most replicates have no figure, all
        are alike, samples or patients are too few for a bootstrap, or fewer than `intervals.FEW` patients have the
        rarer of two outcomes that the figure compares.
      p: two-sided, by the same bootstrap.
      p_holm: p corrected over the methods compared with this baseline in this figure and these samples.
      sd: of the difference over seeds; None for one seed.
      p_seeds: of a paired t-test over seeds, uncorrected.
      wins: seeds with a gain.
      n: seeds.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    sd: float | None
    p_seeds: float | None
    wins: int
    n: int


def verdict(value: Difference | None, more: bool = True) -> str:
    """Returns `better`, `worse`, `level`, or `untested` where there is no interval; `more` tells if more is better."""
    if value is None or value.p_holm is None or value.low is None or value.high is None:
        return "untested"
    if value.p_holm < LEVEL and (value.low > 0 or value.high < 0):
        return "better" if (value.low > 0) == more else "worse"
    return "level"


def spread(values: Iterable[float | None]) -> Spread | None:
    """Computes mean and deviation of the values that are there; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def t_test(differences: Sequence[float]) -> float | None:
    """Computes p of a two-sided t-test that the mean difference is 0; None for fewer than two, or without spread."""
    n = len(differences)
    if n < 2 or not statistics.stdev(differences) > _ROUNDING:
        return None
    from scipy import stats

    t = statistics.fmean(differences) / (statistics.stdev(differences) / n**0.5)
    return float(2 * stats.t.sf(abs(t), n - 1))


class Replicates:
    """Figures of runs under bootstrap replicates; the replicates are the same for every run."""

    def __init__(
        self, runs: Sequence[Outcome], *, chosen: Sequence[str] = WHOLES, resamples: int = RESAMPLES, seed: int = 0
    ):
        """Draws nothing yet.

        `runs` are those of a sweep, at most one a method and seed; `chosen` names the `parts` of which figures are
        wanted; `resamples` is r, the number of replicates, and `seed` that of the draws.
        """
        self._runs = {(run.method, run.seed): run for run in runs}
        everyone = pl.concat([run.predictions["patient_id"].cast(pl.String) for run in runs]).unique().sort()
        self._place = {patient: i for i, patient in enumerate(everyone.to_list())}
        self.resamples, self._chosen, self._seed = resamples, tuple(chosen), seed
        self._figures: dict[tuple[str, int], dict[str, dict[str, np.ndarray]]] = {}
        self._rarer: dict[tuple[str, ...], Mapping[str, int] | None] = {}

    @property
    def patients(self) -> int:
        """Counts the patients that are drawn."""
        return len(self._place)

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Returns how many patients of each block of them are in each replicate, [r, blocks]."""
        starts = intervals.blocks(self.patients, self.resamples)
        return np.concatenate([np.add.reduceat(weights, starts, axis=1) for weights in self._draws()])

    def _draws(self) -> Iterator[np.ndarray]:
        """Yields weights of the patients, by their number and the seed alone, so that all runs share them."""
        people = self.patients
        return intervals.patient_weights(np.arange(people), people, self._seed, resamples=self.resamples)

    def figures(self, method: str, seed: int) -> dict[str, dict[str, np.ndarray]]:
        """Returns samples -> figure -> its value in each replicate, NaN where undefined; samples as in `parts`.

        F1 has what the samples have not shown, drawn for each run, see `intervals.f1`. The first of [1 + r] values is
        that of all samples, with the mean of such draws.
        """
        key = (method, seed)
        if key not in self._figures:
            gamma = np.random.default_rng((self._seed, 1 + [*self._runs].index(key))).standard_gamma
            self._figures[key] = self._compute(self._runs[key], gamma)
        return self._figures[key]

    def rarer(self, runs: Sequence[Outcome], part: str) -> Mapping[str, int] | None:
        """Counts patients of some samples of runs of a method as `Task.rarer`; None: too few for a bootstrap."""
        key = (part, *(f"{run.method} {run.seed}" for run in runs))
        if key not in self._rarer:
            labels = np.concatenate([run.samples.labels for run in runs])
            patients = np.concatenate([self._owner(run) for run in runs])
            rows = np.concatenate([np.isin(np.arange(run.predictions.height), run.parts[part]) for run in runs])
            enough = intervals.enough(patients[rows])
            self._rarer[key] = runs[0].task.rarer(labels, patients, rows) if enough else None
        return self._rarer[key]

    def _owner(self, run: Outcome) -> np.ndarray:
        """Returns the place of the patient of each sample among all, int [n]."""
        return np.array([self._place[patient] for patient in run.predictions["patient_id"].cast(pl.String)], np.int64)

    def _compute(self, run: Outcome, gamma: intervals.Gamma) -> dict[str, dict[str, np.ndarray]]:
        owner = self._owner(run)
        found: dict[str, list[dict[str, np.ndarray]]] = {}
        chosen = {name: rows for name, rows in run.parts.items() if name in self._chosen}
        once = np.ones((1, self.patients)), intervals.expected
        for weights, draw in (once, *((weights, gamma) for weights in self._draws())):
            for name, rows in chosen.items():
                found.setdefault(name, []).append(run.weighed(rows, weights[:, owner[rows]], draw))
        return {
            name: {figure: np.concatenate([values[figure] for values in parts_]) for figure in run.task.compared}
            for name, parts_ in found.items()
        }

    def seeds_drawn(self, count: int) -> np.ndarray:
        """Draws how often each of `count` seeds is in each replicate, [r, count]; all once where there is one seed."""
        rng = np.random.default_rng((self._seed, count))
        drawn = rng.integers(0, count, size=(self.resamples, count))
        return np.stack([(drawn == i).sum(axis=1) for i in range(count)], axis=1).astype(np.float64)

    def differences(self, method: str, baseline: str, seeds: Sequence[int], part: str, figure: str) -> np.ndarray:
        """Averages (method - baseline) over the drawn seeds in each replicate, [1 + r], as `figures` has them."""
        one, two = ([self.figures(name, seed)[part][figure] for seed in seeds] for name in (method, baseline))
        each = np.stack(one, axis=1) - np.stack(two, axis=1)
        drawn = np.vstack([np.ones(len(seeds)), self.seeds_drawn(len(seeds))])
        used = np.where(np.isnan(each), 0.0, drawn)
        with np.errstate(invalid="ignore"):
            return np.nansum(used * np.nan_to_num(each), axis=1) / used.sum(axis=1)


def figure_of(report: Mapping[str, Any], part: str, figure: str) -> float | None:
    """Returns a figure of a report for one of the sets of `parts`; None where the report has none."""
    if part in WHOLES:
        section = {"all": "overall", "head": "head_pooled", "tail": "tail_pooled"}[part]
        return report[section].get(figure)
    return next((row.get(figure) for row in report["groups"] if row["group"] == part), None)


def same_samples(one: Outcome, other: Outcome) -> bool:
    """Tells whether two runs were evaluated on the same samples in the same order, so that they can be paired."""
    return one.predictions["sample_id"].cast(pl.String).equals(other.predictions["sample_id"].cast(pl.String))


def large_combinations(runs: Sequence[Outcome]) -> tuple[str, ...]:
    """Returns the combinations with enough samples and patients for a bootstrap under every seed, in order."""
    sizes: dict[str, dict[int, tuple[int, int]]] = {}
    for run in runs:
        for row in run.report["groups"]:
            sizes.setdefault(row["group"], {})[run.seed] = row["n"], row["n_patients"]
    seeds = {run.seed for run in runs}
    return tuple(
        name
        for name, by_seed in sizes.items()
        if by_seed.keys() == seeds
        and all(n >= intervals.MIN_SAMPLES and p >= intervals.MIN_PATIENTS for n, p in by_seed.values())
    )


def paired_differences(
    runs: Sequence[Outcome],
    methods: Sequence[str],
    baseline: str,
    chosen: Sequence[str] = WHOLES,
    *,
    resamples: int = RESAMPLES,
    replicates: Replicates | None = None,
) -> dict[tuple[str, str, str], Difference]:
    """Computes the paired differences of every method to the baseline, which is passed over among the methods.

    `runs` has at most one a method and seed; `chosen` are names of `parts`. `replicates` of the same runs and parts can
    be shared by the comparisons with several baselines; else `resamples` are drawn here.

    Returns (samples, figure, method) -> difference, where both have the figure under at least one seed.
    """
    replicates = replicates or Replicates(runs, chosen=chosen, resamples=resamples)
    by_key = {(run.method, run.seed): run for run in runs}
    seeds = sorted({run.seed for run in runs})
    pairs = {
        method: [
            (by_key[method, s], by_key[baseline, s])
            for s in seeds
            if {(method, s), (baseline, s)} <= by_key.keys() and same_samples(by_key[method, s], by_key[baseline, s])
        ]
        for method in methods
        if method != baseline
    }
    found: dict[tuple[str, str, str], Difference] = {}
    for part in chosen:
        for figure in runs[0].task.compared:
            row: dict[str, Difference] = {}
            for method, paired in pairs.items():
                if difference := _difference(replicates, paired, part, figure):
                    row[method] = difference
            corrected = holm([difference.p for difference in row.values()])
            for (method, difference), p_holm in zip(row.items(), corrected, strict=True):
                found[part, figure, method] = difference._replace(p_holm=p_holm)
    return found


def _difference(
    replicates: Replicates, pairs: Sequence[tuple[Outcome, Outcome]], part: str, figure: str
) -> Difference | None:
    """Computes the difference of paired runs, uncorrected; None where no pair has the figure."""
    known = []
    for one, two in pairs:
        values = figure_of(one.report, part, figure), figure_of(two.report, part, figure)
        if None not in values:
            known.append((one, two, values[0] - values[1]))
    if not known:
        return None
    ones, twos, each = zip(*known, strict=True)
    centre, *drawn = replicates.differences(ones[0].method, twos[0].method, [one.seed for one in ones], part, figure)
    mean, bounds, p = statistics.fmean(each), [0.0, 0.0], 1.0
    if (rarer := replicates.rarer(ones, part)) is None:
        bounds, p = None, None
    elif not all(_same_predictions(one, two, part) for one, two, _ in known):
        options = {"centre": float(centre), "rare": rarer.get(figure), "lacks": "a figure"}
        bounds, p, _ = differences.difference(mean, np.array(drawn), replicates.counts, replicates.patients, **options)
    low, high = bounds or (None, None)
    sd = statistics.stdev(each) if len(each) > 1 else None
    more = ones[0].task.is_better_high(figure)
    wins = sum(value > 0 if more else value < 0 for value in each)
    return Difference(mean, low, high, p, None, sd, t_test(each), wins, len(each))


def _same_predictions(one: Outcome, two: Outcome, part: str) -> bool:
    return np.array_equal(*(run.samples.probabilities[run.parts[part]] for run in (one, two)))
