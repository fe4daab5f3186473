"""How often 95 % intervals of few patients hold the truth, in made-up worlds; the table of docs/intervals.md.

    python -m tests.evaluation.coverage [--draws=1000] [--figures=accuracy,auroc]

A world has 12 patients of 3 samples, 20 of 2 or 40 of 1, dependence 0, .3 or .7 between the samples of a patient, and
one of three rates: of right answers (accuracy), of cases (AUROC, AUPRC, macro-F1, Brier), of censoring (C index); for
numbers it is 1 with normal errors, else errors have long tails. The truth is that of 400,000 samples.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, ndtri, stdtrit

from remind_jax.evaluation import intervals, regression, survival

SHAPES = ((12, 3), (20, 2), (40, 1))
DEPENDENCE = (0.0, 0.3, 0.7)
RATES = (0.5, 0.8, 0.9)
SCALES = {
    **dict.fromkeys(("mae", "rmse", "brier"), intervals.ERROR),
    "r2": intervals.FIT,
    "spearman": intervals.CORRELATION,
}
FORMS = ("percentiles", "further out", "BCa", "jackknife, n - 1", "Student, n - 1", "Student")
"""The last is the package's; the one before has n - 1 degrees of freedom, the second is that of differences."""


class Sample(NamedTuple):
    """Patient of each sample int [n], its figure under weights, and where it is a share, what it is a share of."""

    owner: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]
    share: np.ndarray | None = None


def draw(figure, patients, each, dependence, rate, rng) -> Sample:
    """Draws a sample of a world."""
    owner = np.repeat(np.arange(patients), each)
    n = len(owner)

    def normal():
        own, other = rng.normal(size=patients)[owner], rng.normal(size=n)
        return np.sqrt(dependence) * own + np.sqrt(1 - dependence) * other

    z, x = normal(), normal()
    if figure == "accuracy":
        right = z < ndtri(rate)
        return Sample(owner, lambda w: w @ right / w.sum(1), right)
    if figure in ("mae", "rmse"):
        errors = np.sinh(0.8 * z) if rate != RATES[0] else z
        return Sample(owner, lambda w: regression.weighted(errors, np.zeros((n, 1)), w)[figure])
    if figure in ("r2", "spearman"):
        slope = {0.5: 1.0, 0.8: 0.5, 0.9: 2.0}[rate]
        return Sample(owner, lambda w: regression.weighted(slope * x + z, slope * x[:, None], w)[figure])
    if figure == "c_index":
        time, censoring = np.exp(-0.7 * x) * -np.log(ndtr(z)), rng.exponential({0.5: 1.0, 0.8: 3.0, 0.9: 0.3}[rate], n)
        known = survival.Outcomes(np.minimum(time, censoring), time <= censoring)
        return Sample(owner, lambda w: survival.concordance(known, x, np.ones((1, n)), w)[0])
    case = x < ndtri(rate)
    risk = expit(1.2 * (1.2 * case + z) - 0.72 + logit(rate))
    if figure == "brier":
        return Sample(owner, lambda w: w @ (risk - case) ** 2 / w.sum(1))
    both = np.stack([1 - risk, risk], axis=1)
    if figure == "macro_f1":
        return Sample(owner, lambda w: intervals.weighted_metrics(case.astype(int), both, w)["macro_f1"])
    at = ("auroc", "auprc").index(figure)
    return Sample(owner, lambda w: intervals.weighted_ranking(case, risk, w)[at])


FIGURES = ("accuracy", "macro_f1", "auroc", "auprc", "brier", "mae", "rmse", "r2", "spearman", "c_index")


def truth(figure, dependence, rate) -> float:
    """Computes the figure of many patients of one sample, in parts that fit in memory."""
    rng, size, parts = np.random.default_rng(99), *((2_000, 100) if figure == "c_index" else (400_000, 1))
    values = []
    for _ in range(parts):
        values.append(draw(figure, size, 1, dependence, rate, rng).of(np.ones((1, size)))[0])
    return float(np.mean(values))


def package(figure, sample, seed, resamples):
    """The package's interval of a sample, or None."""
    found, _ = intervals.resampled(
        lambda w: {"x": sample.of(w)},
        ["x"],
        sample.owner,
        seed=seed,
        resamples=resamples,
        scales={"x": SCALES.get(figure, intervals.SHARE)},
        shares={} if sample.share is None else {"x": sample.share},
    )
    return found["x_ci"]


def others(figure, sample, seed, resamples):
    """The intervals of the other `FORMS`, where the package's is one of a bootstrap."""
    owner, patients, scale = sample.owner, sample.owner.max() + 1, SCALES.get(figure, intervals.SHARE)
    parts = [sample.of(w) for w in intervals.patient_weights(owner, patients, seed, resamples=resamples)]
    drawn, whole = np.concatenate(parts), sample.of(np.ones((1, len(owner))))[0]
    drawn = drawn[np.isfinite(drawn)]
    left = sample.of((owner != np.arange(patients)[:, None]).astype(float))
    left = left[np.isfinite(left)]
    influence = left.mean() - left
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5 + 1e-300)
    below = np.clip(((drawn < whole).mean() + (drawn <= whole).mean()) / 2, 1 / len(drawn), 1 - 1 / len(drawn))
    z = ndtri(below) + ndtri([0.025, 0.975])
    corrected = ndtr(ndtri(below) + z / (1 - acceleration * z))
    error = np.sqrt((len(left) - 1) / len(left) * (influence**2).sum())
    spread = drawn.std(ddof=1) * (patients / (patients - 1)) ** 0.5

    def student(by):
        reach = stdtrit(patients - 1, 0.975) * by * scale.slope(whole)
        return [scale.back(scale.of(whole) + sign * reach) for sign in (-1, 1)]

    yield np.quantile(drawn, [0.025, 0.975])
    yield np.quantile(drawn, [intervals.tail(patients), 1 - intervals.tail(patients)])
    yield np.quantile(drawn, corrected)
    yield student(error)
    yield student(spread)


def coverage(figure, patients, each, dependence, rate, *, draws, resamples=400, every=True):
    """Shares of intervals that hold the truth, by form; with `every` False of the package's alone."""
    true, held = truth(figure, dependence, rate), []
    for seed in range(draws):
        rng = np.random.default_rng((seed, patients, int(10 * dependence), int(10 * rate)))
        sample = draw(figure, patients, each, dependence, rate, rng)
        with np.errstate(invalid="ignore", divide="ignore"):
            ours = package(figure, sample, seed, resamples)
            if ours is None:
                continue
            drawn = 0 < sample.of(np.ones((1, len(sample.owner))))[0] != 1
            rest = list(others(figure, sample, seed, resamples)) if every and drawn else [ours] * (len(FORMS) - 1)
        held.append([low <= true <= high for low, high in (*rest, ours)])
    return np.mean(held, axis=0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=1_000)
    parser.add_argument("--figures", default=",".join(FIGURES))
    options = parser.parse_args()
    print("| figure | rate |", " | ".join(FORMS), "|\n|---|---|" + "---|" * len(FORMS))
    for figure in options.figures.split(","):
        for rate in RATES:
            worlds = [(*shape, d) for shape in SHAPES for d in DEPENDENCE if shape[1] > 1 or d == 0]
            found = np.array([coverage(figure, *world, rate, draws=options.draws) for world in worlds])
            cells = [f"{100 * x.min():.1f} to {100 * x.max():.1f}" for x in found.T]
            print(f"| {figure} | {rate} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
