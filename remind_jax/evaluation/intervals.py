"""95 % intervals: Student's around a figure, by a bootstrap of patients; the exact binomial one of few samples.

A patient's samples are not independent (two eyes, several stays), so whole patients are drawn with replacement. A
resample is a row of integer weights, and every metric of all resamples is computed at once from sorted cumulative sums;
no Python loop runs over resamples.

The spread of the resamples is taken to a scale on which the figure has no bounds. Percentiles of few patients hold the
truth too seldom, above all where a few of them decide (a rare class, one large error), for their spread is then itself
a guess. So the degrees of freedom are those of Satterthwaite: 2 (n - 1) / (κ - 1) of n patients with the kurtosis κ of
their influences on the figure, which are its covariances with how often each is drawn. docs/intervals.md has how often
these and other intervals held the truth (benchmarks/coverage.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation.metrics import defined_classes

RESAMPLES = 1000
LEVEL = 0.95
MIN_SAMPLES = 30  # with fewer, percentile intervals are known to be too narrow
MIN_PATIENTS = 10  # the bootstrap resamples patients, not samples
CHUNK = 1 << 21  # weights held at a time
BLOCKS = 20, 10  # of patients whose influence is told apart: at least, and resamples a block
NAMES = ("accuracy", "macro_f1", "auroc", "auprc")


class Scale(NamedTuple):
    """A scale on which a figure has no bounds, the way back, and its slope."""

    of: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]


SHARE = Scale(lambda x: np.log(x / (1 - x)), lambda y: 1 / (1 + np.exp(-y)), lambda x: 1 / (x * (1 - x)))
"""Of figures between 0 and 1: their logit."""
ERROR = Scale(lambda x: -(x**-0.5), lambda y: y**-2 if y < 0 else np.inf, lambda x: x**-1.5 / 2)
"""Of figures above 0: the inverse of their root, as their spread grows faster than they do."""
CORRELATION = Scale(np.arctanh, np.tanh, lambda x: 1 / (1 - x * x))
FIT = Scale(lambda x: -np.log(1 - x), lambda y: 1 - np.exp(-y), lambda x: 1 / (1 - x))
"""Of R²: the logarithm of what is left unexplained."""

Weighted = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Figures of a sample under rows of weights [r, n], which count each sample so often: by name [r], NaN if undefined."""


def intervals(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    decision: Sequence[float] = (),
) -> tuple[dict[str, list[float] | None], dict[str, str]]:
    """Computes 95 % intervals of accuracy, macro-F1, AUROC and AUPRC.

    Labels are class indices, int [n], with probabilities [n, c] and patients [n] of any dtype that can be sorted; for
    `decision` see `weighted_metrics`. The answer is that of `resampled`, with accuracy as a share of the samples.
    """

    def of(weights: np.ndarray) -> dict[str, np.ndarray]:
        return weighted_metrics(labels, probabilities, weights, decision)

    shares = {"accuracy": probabilities.argmax(1) == labels}
    names = (*NAMES, "macro_f1_tuned") if len(decision) else NAMES
    return resampled(of, names, patients, seed=seed, resamples=resamples, shares=shares, lacks="a class")


def resampled(
    of: Weighted,
    names: Sequence[str],
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    shares: Mapping[str, np.ndarray] = {},
    scales: Mapping[str, Scale] = {},
    whole: Mapping[str, np.ndarray] | None = None,
    lacks: str = "variety",
    width: int = 1,
) -> tuple[dict[str, list[float] | None], dict[str, str]]:
    """Computes 95 % intervals of figures by drawing patients [n], of any dtype that can be sorted, with replacement.

    At least 30 samples of at least 10 patients have Student's intervals on the figures' `scales`, by default `SHARE`.
    With fewer, figures in `shares`, which are shares of true values in bool [n], have the exact (Clopper-Pearson)
    interval of as many samples as there are patients, and the others have None. A bootstrap interval of no width (every
    sample right, say) would be false certainty, so shares have the exact interval then, too. `whole` are the figures of
    all samples [1] where they are known; `lacks` names what resamples without a figure lack; `width` is how many times
    the weights of a sample are held at once.

    Returns `(values, notes)`: `NAME_ci` as `[low, high]` or None, and the reason of each None or substitute.
    """
    owners, first, owner = np.unique(patients, return_index=True, return_inverse=True)
    n, people = len(owner), len(owners)
    if n == 0:
        return {f"{k}_ci": None for k in names}, {f"{k}_ci": "no samples" for k in names}
    if not enough(patients):
        why = f"{n} samples of {people} patients are too few for a bootstrap"
        notes = {f"{k}_ci": _exact_note(n, people) if k in shares else why for k in names}
        return {f"{k}_ci": exact_interval(shares[k], people) if k in shares else None for k in names}, notes
    parts, counts, starts = [], [], _blocks(people, resamples)
    for rows in patient_weights(owner, people, seed, resamples=resamples, chunk=CHUNK // width):
        parts.append(of(rows))
        counts.append(np.add.reduceat(rows[:, first], starts, axis=1))
    whole, drawn = whole or of(np.ones((1, n))), np.concatenate(counts)
    values, notes = {}, {}
    for name in names:
        resample = np.concatenate([p[name] for p in parts])
        value, note = student(whole[name][0], resample, drawn, people, scales.get(name, SHARE), lacks)
        if name in shares and value is None:
            value, note = exact_interval(shares[name], people), _exact_note(n, people)
        values[f"{name}_ci"] = value
        if note:
            notes[f"{name}_ci"] = note
    return values, notes


def measured(
    of: Weighted, why: Mapping[str, str], patients: np.ndarray, **options: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Computes the figures that are the keys of `why`, and their intervals; `options` are those of `resampled`.

    Returns `(values, notes)`: `NAME`, None where undefined, and `NAME_ci`; the note of an undefined figure is its
    reason in `why`.
    """
    if not len(patients):
        names = [*why, *(f"{name}_ci" for name in why)]
        return dict.fromkeys(names), dict.fromkeys(names, "no samples")
    found = of(np.ones((1, len(patients))))
    values = {name: float(found[name][0]) if np.isfinite(found[name][0]) else None for name in why}
    notes = {name: why[name] for name, value in values.items() if value is None}
    bounds, bound_notes = resampled(of, list(why), patients, whole=found, **options)
    return values | bounds, notes | bound_notes


def enough(patients: np.ndarray) -> bool:
    """Tells whether samples of patients [n] are enough for a bootstrap."""
    return len(patients) >= MIN_SAMPLES and len(np.unique(patients)) >= MIN_PATIENTS


def exact_interval(correct: np.ndarray, patients: int | None = None) -> list[float]:
    """Returns the Clopper-Pearson 95 % interval of the share of true values in `correct`, bool [n], n > 0.

    It is that of the same share of `patients`, by default of all n.
    """
    from scipy.special import betaincinv

    n = patients or len(correct)
    hits, side = float(correct.sum()) * n / len(correct), (1 - LEVEL) / 2
    low = betaincinv(hits, n - hits + 1, side) if hits > 0 else 0.0
    return [float(low), float(betaincinv(hits + 1, n - hits, 1 - side)) if hits < n else 1.0]


def student(
    whole: float, drawn: np.ndarray, counts: np.ndarray, patients: int, scale: Scale, lacks: str
) -> tuple[list[float] | None, str | None]:
    """Returns Student's interval of a figure from its resamples [r], or None, and the reason of None.

    `counts` [r, blocks] tells how many patients of each block are in a resample.
    """
    from scipy.special import stdtrit

    finite = np.isfinite(drawn)
    if why := _unusable(drawn, lacks):
        return None, why
    known, counts = drawn[finite], counts[finite]
    spread = known.std(ddof=1) * (patients / (patients - 1)) ** 0.5 * scale.slope(whole)
    reach = stdtrit(_freedom(known, counts, patients), (1 + LEVEL) / 2) * spread
    bounds = [float(scale.back(scale.of(whole) + sign * reach)) for sign in (-1, 1)]
    if not np.isfinite(bounds).all():
        return None, "resamples spread too widely for bounds"
    return bounds, _left_out(drawn, lacks)


def _blocks(patients: int, resamples: int) -> np.ndarray:
    """Returns where blocks of patients begin: with too many for the resamples an influence would be mostly noise."""
    least, each = BLOCKS
    blocks = min(patients, max(least, resamples // each))
    return np.arange(blocks) * patients // blocks


def _freedom(drawn: np.ndarray, counts: np.ndarray, patients: int) -> float:
    """Computes degrees of freedom of the spread of resamples [r]; `counts` are those of `student`.

    The excess kurtosis of sums over blocks is that of patients, divided by the patients of a block.
    """
    influence = (counts - counts.mean(axis=0)).T @ (drawn - drawn.mean())
    excess = len(influence) * (influence**4).sum() / (influence**2).sum() ** 2 - 3
    return max(2.0, 2 * (patients - 1) / max(0.1, 2 + excess * patients / len(influence)))


def patient_weights(
    owner: np.ndarray, patients: int, seed: int, *, resamples: int = RESAMPLES, chunk: int = CHUNK
) -> Iterator[np.ndarray]:
    """Yields the number of times that each sample is in each resample, float64 [rows, n], `resamples` rows in all.

    `owner` is the patient index of each sample, int [n]. `chunk` is the most weights in one array; the same seed gives
    the same weights for every chunk.
    """
    rng = np.random.default_rng(seed)
    rows = max(1, chunk // max(len(owner), patients))
    for start in range(0, resamples, rows):
        r = min(rows, resamples - start)
        draws = rng.integers(0, patients, size=(r, patients)) + np.arange(r)[:, None] * patients
        counts = np.bincount(draws.ravel(), minlength=r * patients).reshape(r, patients)
        yield counts.astype(np.float64)[:, owner]


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, decision: Sequence[float] = ()
) -> dict[str, np.ndarray]:
    """Computes accuracy, macro-F1, AUROC and AUPRC under rows of sample weights [r, n] at once, float64 [r] each.

    With factors of probabilities, `decision` [c], it also computes `macro_f1_tuned`, that of the answers by these.

    The values are those of `metrics.compute` on the samples repeated by weight, and NaN where undefined, with one
    exception: where a class of the sample is absent from a resample, AUROC and AUPRC are NaN rather than the mean over
    fewer classes, so that all resamples measure the same quantity.
    """
    classes = probabilities.shape[1]
    true = labels[:, None] == np.arange(classes)
    accuracy, f1 = _weighted_answers(true, probabilities.argmax(1), weights)
    values = {"accuracy": accuracy, "macro_f1": f1}
    if len(decision):
        values["macro_f1_tuned"] = _weighted_answers(true, (probabilities * decision).argmax(1), weights)[1]
    use = defined_classes(labels, classes)
    ranked = np.array([weighted_ranking(true[:, k], probabilities[:, k], weights) for k in use])
    nothing = np.full(len(weights), np.nan)
    auroc, auprc = ranked.mean(0) if use else (nothing, nothing)
    return values | {"auroc": auroc, "auprc": auprc}


def _weighted_answers(true: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns accuracy and macro-F1 of answers, int [n], under weights [r, n]; `true` bool [n, c]."""
    called = answers[:, None] == np.arange(true.shape[1])
    indicators = np.concatenate([true & called, true, called], axis=1).astype(np.float64)
    hit, actual, claimed = np.split(weights @ indicators, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(actual + claimed > 0, 2 * hit / (actual + claimed), 0.0)
        return hit.sum(1) / weights.sum(1), f1.sum(1) / (actual + claimed > 0).sum(1)


def weighted_ranking(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns AUROC (ties count half) and average precision of one score [n] under weights [r, n]."""
    order = np.argsort(-score, kind="stable")
    ordered, cases = score[order], np.flatnonzero(positive[order])
    # Samples of equal score form a block: the number of rows before it and up to its end, in descending order.
    before = np.searchsorted(-ordered, -ordered[cases], side="left")
    through = np.searchsorted(-ordered, -ordered[cases], side="right")
    w = weights[:, order]
    w_cases = w[:, cases]
    # A leading zero makes column i the total over the first i rows.
    total = np.pad(np.cumsum(w, axis=1), ((0, 0), (1, 0)))
    case_total = np.pad(np.cumsum(w * positive[order], axis=1), ((0, 0), (1, 0)))
    control_total = total - case_total
    beaten = control_total[:, -1:] - (control_total[:, before] + control_total[:, through]) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (w_cases * beaten).sum(1) / (case_total[:, -1] * control_total[:, -1])
        precision = np.where(w_cases > 0, case_total[:, through] / total[:, through], 0.0)
        auprc = (w_cases * precision).sum(1) / case_total[:, -1]
    return auroc, np.where(control_total[:, -1] > 0, auprc, np.nan)


def p_value(drawn: np.ndarray) -> float:
    """Computes a two-sided p of a difference from its replicates [r]: twice the smaller tail, at least 2 / (r + 1)."""
    below, above = (1 + int((drawn <= 0).sum())), (1 + int((drawn >= 0).sum()))
    return min(1.0, 2 * min(below, above) / (len(drawn) + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p by Holm: the k-th smallest of m times m - k + 1, never falling, at most 1; None is no comparison."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def tail(patients: int) -> float:
    """Returns the share of resamples on each side of an interval of so many patients, at least 2.

    A normal figure's resamples spread too little by √((n - 1) / n), and its interval should be Student's.
    """
    from scipy.special import ndtr, stdtrit

    return float(ndtr((patients / (patients - 1)) ** 0.5 * stdtrit(patients - 1, (1 - LEVEL) / 2)))


def percentile(values: np.ndarray, lacks: str, patients: int) -> tuple[list[float] | None, str | None]:
    """Returns the percentile interval of the finite resamples [r] of patients, or None, and the reason of None."""
    if why := _unusable(values, lacks):
        return None, why
    low, high = np.quantile(values[np.isfinite(values)], [tail(patients), 1 - tail(patients)])
    return [float(low), float(high)], _left_out(values, lacks)


def _unusable(values: np.ndarray, lacks: str) -> str | None:
    """Tells why resamples [r] have no interval, if so."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return "the figure itself is undefined"
    if len(finite) < len(values) / 2:
        return f"undefined in {len(values) - len(finite)} of {len(values)} resamples: {lacks} is too rare"
    if np.ptp(finite) < 1e-12:
        return "every resample gives the same value; an interval of no width would be false certainty"
    return None


def _left_out(values: np.ndarray, lacks: str) -> str | None:
    lost = len(values) - int(np.isfinite(values).sum())
    return f"{lost} of {len(values)} resamples lack {lacks} and are left out" if lost else None


def _exact_note(samples: int, patients: int) -> str:
    if samples == patients:
        return f"exact binomial interval over {samples} samples"
    return f"exact binomial interval over {patients} patients, each counted as one of the {samples} samples"
