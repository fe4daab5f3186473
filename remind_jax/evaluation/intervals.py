"""95 % intervals: a bootstrap that resamples patients, and the exact binomial interval for small samples.

A patient's samples are not independent (two eyes, several stays), so whole patients are drawn with replacement. A
resample is a row of integer weights, and every metric of all resamples is computed at once from sorted cumulative sums;
no Python loop runs over resamples.
"""

from collections.abc import Iterator

import numpy as np

from remind_jax.evaluation.metrics import defined_classes

RESAMPLES = 1000
LEVEL = 0.95
MIN_SAMPLES = 30  # with fewer, percentile intervals are known to be too narrow
MIN_PATIENTS = 10  # the bootstrap resamples patients, not samples
CHUNK = 1 << 21  # weights held at a time
NAMES = ("accuracy", "macro_f1", "auroc", "auprc")


def intervals(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> tuple[dict[str, list[float] | None], dict[str, str]]:
    """Computes 95 % intervals of accuracy, macro-F1, AUROC and AUPRC.

    At least 30 samples of at least 10 patients have percentile intervals of the patient bootstrap. With fewer, accuracy
    has the exact (Clopper-Pearson) interval over samples and the other metrics have None. A bootstrap interval of no
    width (every sample right, say) would be false certainty, so accuracy has the exact interval then, too.

    Labels are class indices, int [n], with probabilities [n, c] and patients [n] of any dtype that can be sorted.
    Returns `(values, notes)`: `accuracy_ci`, … as `[low, high]` or None, and the reason of each None or substitute.
    """
    owners, owner = np.unique(patients, return_inverse=True)
    n = len(labels)
    if n == 0:
        return {f"{k}_ci": None for k in NAMES}, {f"{k}_ci": "no samples" for k in NAMES}
    correct = probabilities.argmax(1) == labels
    if n < MIN_SAMPLES or len(owners) < MIN_PATIENTS:
        why = f"{n} samples of {len(owners)} patients are too few for a bootstrap"
        notes = {f"{k}_ci": why for k in NAMES[1:]} | {"accuracy_ci": _exact_note(n, len(owners))}
        return {f"{k}_ci": None for k in NAMES} | {"accuracy_ci": exact_interval(correct)}, notes
    weights = patient_weights(owner, len(owners), seed, resamples=resamples)
    parts = [weighted_metrics(labels, probabilities, rows) for rows in weights]
    values, notes = {}, {}
    for name in NAMES:
        value, note = _percentile(np.concatenate([p[name] for p in parts]))
        if name == "accuracy" and value is None:
            value, note = exact_interval(correct), _exact_note(n, len(owners))
        values[f"{name}_ci"] = value
        if note:
            notes[f"{name}_ci"] = note
    return values, notes


def exact_interval(correct: np.ndarray) -> list[float]:
    """Returns the Clopper-Pearson 95 % interval of the share of true values in `correct`, bool [n], n > 0."""
    from scipy.stats import binomtest

    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(LEVEL, method="exact")
    return [float(interval.low), float(interval.high)]


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


def weighted_metrics(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Computes accuracy, macro-F1, AUROC and AUPRC under rows of sample weights [r, n] at once, float64 [r] each.

    The values are those of `metrics.compute` on the samples repeated by weight, and NaN where undefined, with one
    exception: where a class of the sample is absent from a resample, AUROC and AUPRC are NaN rather than the mean over
    fewer classes, so that all resamples measure the same quantity.
    """
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1)
    true = labels[:, None] == np.arange(classes)
    called = predicted[:, None] == np.arange(classes)
    indicators = np.concatenate([true & called, true, called], axis=1).astype(np.float64)
    hit, actual, claimed = np.split(weights @ indicators, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(actual + claimed > 0, 2 * hit / (actual + claimed), 0.0)
        values = {
            "accuracy": hit.sum(1) / weights.sum(1),
            "macro_f1": f1.sum(1) / (actual + claimed > 0).sum(1),
        }
    use = defined_classes(labels, classes)
    ranked = np.array([_weighted_ranking(true[:, k], probabilities[:, k], weights) for k in use])
    nothing = np.full(len(weights), np.nan)
    auroc, auprc = ranked.mean(0) if use else (nothing, nothing)
    return values | {"auroc": auroc, "auprc": auprc}


def _weighted_ranking(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _percentile(values: np.ndarray) -> tuple[list[float] | None, str | None]:
    """Returns the percentile interval of the finite resamples [r], or None, and a note, the reason of None."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None, "the figure itself is undefined"
    if len(finite) < len(values) / 2:
        return None, f"undefined in {len(values) - len(finite)} of {len(values)} resamples: a class is too rare"
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if np.ptp(finite) < 1e-12:
        return None, "every resample gives the same value; an interval of no width would be false certainty"
    note = f"{len(values) - len(finite)} of {len(values)} resamples lack a class and are left out"
    return [float(low), float(high)], note if len(finite) < len(values) else None


def _exact_note(samples: int, patients: int) -> str:
    note = f"exact binomial interval over {samples} samples"
    return note if samples == patients else f"{note} of {patients} patients, as if independent: too narrow"
