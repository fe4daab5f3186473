"""How often 95 % intervals hold the truth, in made-up worlds; the tables of docs/intervals.md.

    python -m tests.evaluation.coverage [--draws=400] [--worlds=numbers,survival]

A world is drawn at three rates (of right answers, cases, censoring, or how long the tails of errors are) and six
numbers of patients. None of these was used to choose the forms of intervals. The truth is that of many patients.
"""

import argparse
import functools
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri

from remind_jax.evaluation import binary, intervals, multilabel, ordinal, regression, survival
from remind_jax.evaluation.differences import between, drawn_together
from remind_jax.evaluation.judge import figures_of_classes, weighed_of_classes

SHAPES = ((15, 2, 0.5), (30, 2, 0.3), (60, 1, 0.0), (100, 1, 0.0), (200, 1, 0.0), (400, 1, 0.0))
"""Patients, samples of each, and the dependence between these."""
RATES = (0.6, 0.85, 0.93)
LEAST = 0.2  # of samples that must have an interval for a cell to tell of it
Found = dict[str, tuple[float | None, list[float] | None, bool]]
"""Figures by name, their intervals, and whether these are told to be likely too narrow."""


class Draws:
    """Draws numbers of samples whose patients have much in common, or nothing."""

    def __init__(self, patients: int, each: int, dependence: float, rng: np.random.Generator):
        self.patients, self.dependence, self.rng = patients, dependence, rng
        self.owner = np.repeat(np.arange(patients), each)
        self.options = {"seed": int(rng.integers(1_000_000)), "resamples": 400}

    def normal(self) -> np.ndarray:
        own, other = self.rng.normal(size=self.patients)[self.owner], self.rng.normal(size=len(self.owner))
        return np.sqrt(self.dependence) * own + np.sqrt(1 - self.dependence) * other

    def classes(self, rate: float, skill: float = 1.2) -> tuple[np.ndarray, np.ndarray]:
        """Draws which samples are cases, a share of 1 - rate, and risks."""
        case = self.normal() > ndtri(rate)
        return case.astype(int), expit(1.2 * (skill * case + self.normal()) - 0.72 + logit(1 - rate))

    def bounded(self, found: dict, names: tuple[str, ...]) -> Found:
        notes = found.get("notes", {})
        marked = {name: notes.get(f"{name}_ci", "").startswith(intervals.NARROW) for name in names}
        return {name: (found[name], found[f"{name}_ci"], marked[name]) for name in names}


def classes(draws: Draws, rate: float) -> Found:
    labels, risk = draws.classes(rate)
    both = np.stack([1 - risk, risk], axis=1)
    values = intervals.weighted_metrics(labels, both, np.ones((1, len(labels))))
    bounds, notes = intervals.intervals(labels, both, draws.owner, **draws.options)
    every = {name: float(values[name][0]) for name in intervals.NAMES} | bounds | {"notes": notes}
    found = draws.bounded(every, intervals.NAMES)
    threshold = 1 - rate
    shares = binary.compute(labels, risk, draws.owner, threshold, **draws.options)
    return found | draws.bounded(shares, tuple(binary.FIGURES))


def numbers(draws: Draws, rate: float) -> Found:
    errors, x = draws.normal(), draws.normal()
    if rate != RATES[0]:
        errors = np.sinh(0.8 * errors) if rate == RATES[1] else errors * np.where(draws.rng.random(x.size) < 0.05, 4, 1)
    predicted = np.stack([x, x - 1.64, x + 1.64], axis=1)
    found = regression.compute(x + errors, predicted, draws.owner, **draws.options)
    return draws.bounded(found, tuple(regression.TITLES))


def order(draws: Draws, rate: float) -> Found:
    cuts, x = ndtri([0.2, 0.5, rate]), draws.normal()
    labels = np.searchsorted(cuts, x)
    away = (np.arange(4) - np.searchsorted(cuts, 0.8 * x + 0.6 * draws.normal())[:, None]) ** 2
    p = np.exp(-away) / np.exp(-away).sum(axis=1, keepdims=True)
    return draws.bounded(ordinal.compute(labels, p, draws.owner, **draws.options), tuple(ordinal.TITLES))


def labels(draws: Draws, rate: float) -> Found:
    drawn = [draws.classes(each) for each in (0.5, rate, rate)]
    known, p = (np.stack(each, axis=1) for each in zip(*drawn, strict=True))
    found = multilabel.compute(known, p, "abc", draws.owner, **draws.options, thresholds=np.array([0.5, 0.2, 0.2]))
    return draws.bounded(found, tuple(multilabel.TITLES))


def survived(draws: Draws, rate: float) -> Found:
    x, quick = draws.normal(), {0.6: 0.5, 0.85: 0.15, 0.93: 2.0}[rate]
    time = np.exp(-0.7 * x) * -np.log(ndtr(draws.normal()))
    censored = draws.rng.exponential(1 / quick, x.size)
    known, grid = survival.Outcomes(np.minimum(time, censored), time <= censored), np.linspace(0.1, 2.0, 20)
    curve = np.exp(-grid * np.exp(0.7 * x)[:, None])
    made = survival.Evaluation(known, survival.Predicted(grid, curve), (1.0,))
    found = made.figures(np.ones(x.size, bool), draws.owner, **draws.options)
    at = {f"{name} at 1": pair for name, pair in draws.bounded(found["horizons"]["1"], tuple(survival.HORIZON)).items()}
    return draws.bounded(found, tuple(survival.TITLES)) | at


def differences(draws: Draws, rate: float) -> Found:
    """Two models on the same samples, and two groups of samples, the second twice as large, of one model."""
    labels, risk = draws.classes(rate)
    second = expit(logit(risk) + 0.8 * draws.normal())
    one, two = (weighed_of_classes(labels, np.stack([1 - p, p], axis=1)) for p in (risk, second))
    everyone = np.arange(len(labels))

    def apart(weights: np.ndarray, gamma: intervals.Gamma | None = None) -> dict[str, np.ndarray]:
        values = one(everyone, weights, gamma), two(everyone, weights, gamma)
        return {f"{name}, two models": values[1][name] - values[0][name] for name in intervals.NAMES}

    rare = dict.fromkeys(
        [f"{name}, two models" for name in intervals.RANKED], intervals.rarer(labels == 1, draws.owner)
    )
    pairs = drawn_together(apart, draws.owner, rare=rare, **draws.options)
    figures = figures_of_classes(labels, np.stack([1 - risk, risk], axis=1), draws.owner, **draws.options)
    sides = [
        {"n": int(side.sum()), "n_patients": len(np.unique(draws.owner[side])), **figures(side)}
        for side in (draws.owner % 3 == 0, draws.owner % 3 > 0)
    ]
    gaps = {f"{name}, two groups": between(*sides, name) for name in intervals.NAMES}
    return {name: (each.value, each.ci, False) for name, each in pairs.items()} | {
        name: (gap["difference"], gap["ci"], "note" in gap) for name, gap in gaps.items()
    }


WORLDS: dict[str, Callable[[Draws, float], Found]] = {
    "classes": classes,
    "numbers": numbers,
    "order": order,
    "labels": labels,
    "survival": survived,
    "differences": differences,
}


@functools.cache
def truths(world: str, rate: float) -> dict[str, float]:
    """Computes the figures of many patients of one sample, in parts that fit in memory."""
    rng, size, parts = np.random.default_rng(99), *((3_000, 40) if world == "survival" else (100_000, 4))
    each = defaultdict(list)
    for _ in range(parts):
        draws = Draws(size, 1, 0.0, rng)
        draws.options["resamples"] = 2
        for name, (value, *_) in WORLDS[world](draws, rate).items():
            each[name].append(value)
    return {name: float(np.mean(values)) for name, values in each.items()}


class Held(NamedTuple):
    """How often intervals hold the truth, without a mark that they are likely too narrow and with it.

    Attributes:
      share, marked: of the intervals without and with the mark, those that hold it; NaN without any.
      plain, marks: of the samples, those with an interval without and with the mark.
    """

    share: float
    plain: float
    marked: float
    marks: float


def coverage(world: str, shape: tuple[int, int, float], rate: float, draws: int) -> dict[str, Held]:
    """Returns by figure how often the intervals of so many samples hold the truth."""
    held, true = defaultdict(list), truths(world, rate)
    for seed in range(draws):
        rng = np.random.default_rng((seed, shape[0], int(100 * rate)))
        for name, (_, bounds, mark) in WORLDS[world](Draws(*shape, rng), rate).items():
            within = np.nan if bounds is None else bounds[0] <= true[name] <= bounds[1]
            held[name].append((np.nan, within) if mark else (within, np.nan))
    found = {name: np.array(each, float).T for name, each in held.items()}
    return {name: Held(*(x for each in two for x in _share(each))) for name, two in found.items()}


def _share(held: np.ndarray) -> tuple[float, float]:
    known = np.isfinite(held)
    return float(held[known].mean()) if known.any() else np.nan, float(known.mean())


def cell(held: Held) -> str:
    """Writes what holds of intervals without a mark; with a star, of marked ones, where hardly any has none."""
    if held.plain >= LEAST:
        return f"{100 * held.share:.1f}"
    return f"{100 * held.marked:.1f}*" if held.marks >= LEAST else "-"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    options = parser.parse_args()
    print(
        "| figure | rate |", " | ".join(str(patients) for patients, *_ in SHAPES), "|\n|---|---|" + "---|" * len(SHAPES)
    )
    for world in options.worlds.split(","):
        for rate in RATES:
            columns = [coverage(world, shape, rate, options.draws) for shape in SHAPES]
            for name in columns[-1]:
                print(f"| {name} | {rate} |", " | ".join(cell(each[name]) for each in columns), "|", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
