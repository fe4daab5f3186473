"""95 % intervals of figures, by a bootstrap of patients; the exact binomial one of few samples.

A patient's samples are not independent (two eyes, several stays), so whole patients are drawn with replacement. A
resample is a row of integer weights, and every metric of all resamples is computed at once from sorted cumulative sums;
no Python loop runs over resamples.

What the resamples tell is how far a figure spreads. Their percentiles hold the truth too seldom, above all where a few
patients decide (a rare class, one large error), for the spread is then itself a guess. So an interval is Student's, on
a scale on which the figure has no bounds, with the degrees of freedom of Satterthwaite: 2 (n - 1) / (κ - 1) of n
patients with the kurtosis κ of their influences on the figure, which are its covariances with how often each is drawn.
Shares, errors and F1 have forms of their own: `SHARE`, `ERROR` and `resampled`. docs/intervals.md has how often these
and other intervals held the truth.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation.metrics import TUNED, defined_classes

RESAMPLES = 1000
LEVEL = 0.95
MIN_SAMPLES = 30  # with fewer, the spread of resamples is itself no more than a guess
MIN_PATIENTS = 10  # the bootstrap resamples patients, not samples
CHUNK = 1 << 21  # weights held at a time
BLOCKS = 20, 2  # of patients whose influence is told apart: at least, and resamples a block
RARE = 2  # patients with the rarer of two outcomes, whose spread tells nothing
FEW = 5  # patients with the rarer outcome of a class among several, or on a side of a difference: fewer tell too little
NARROW = "likely too narrow"
TAIL = 1.5  # few patients show too little of a tail: skewness of errors is taken so often
RANKED = ("auroc", "auprc")
NAMES = ("accuracy", "macro_f1", *RANKED)


class Spread(NamedTuple):
    """How a figure spreads over draws of patients.

    Attributes:
      deviation: its standard deviation.
      freedom: degrees of freedom of this.
      skew: skewness of the influences of patients, over the root of their number.
      patients: their number.
    """

    deviation: float
    freedom: float
    skew: float
    patients: int

    def reach(self, freedom: float | None = None) -> float:
        """Returns half the width of Student's interval."""
        from scipy.special import stdtrit

        return float(stdtrit(freedom or self.freedom, (1 + LEVEL) / 2)) * self.deviation


class Form(NamedTuple):
    """Bounds of a figure's `power` from it and its spread."""

    bounds: Callable[[float, Spread], tuple[float, float]]
    power: int = 1


def _scaled(of: Callable[[Any], Any], back: Callable[[Any], Any], slope: Callable[[float], float]) -> Form:
    """Makes Student's interval on a scale, given with the way back and its slope."""

    def bounds(x: float, spread: Spread) -> tuple[float, float]:
        return back(of(x) - spread.reach() * slope(x)), back(of(x) + spread.reach() * slope(x))

    return Form(bounds)


def _score(x: float, spread: Spread) -> tuple[float, float]:
    part = spread.reach(spread.patients - 1) ** 2 / (x * (1 - x))
    half = (x * (1 - x) * part + part**2 / 4) ** 0.5
    return (x + part / 2 - half) / (1 + part), (x + part / 2 + half) / (1 + part)


def _skewed(x: float, spread: Spread) -> tuple[float, float]:
    lean = max(TAIL * spread.skew, 1e-6)

    def ends(t: float) -> float:
        return x - spread.deviation * 3 / lean * (float(np.cbrt(1 + lean * (t - lean / 6))) - 1)

    t = spread.reach() / spread.deviation
    return max(0.0, ends(t)), ends(-t)


RANK = _scaled(lambda x: np.log(x / (1 - x)), lambda y: 1 / (1 + np.exp(-y)), lambda x: 1 / (x * (1 - x)))
"""Of figures between 0 and 1 that are no plain shares, such as AUROC: Student's on their logit."""
SHARE = Form(_score)
"""Of shares: Wilson's, of as many samples as would spread alike, with Student's quantile for n - 1."""
ERROR = Form(_skewed)
"""Of mean errors: Student's t freed of the skewness of the influences (Hall 1992), taken `TAIL` times."""
SQUARE = Form(_skewed, 2)
"""Of a root of a mean of squares: that of the mean."""
CORRELATION = _scaled(np.arctanh, np.tanh, lambda x: 1 / (1 - x * x))
FIT = _scaled(lambda x: -np.log(1 - x), lambda y: 1 - np.exp(-y), lambda x: 1 / (1 - x))
"""Of R²: Student's on the logarithm of what is left unexplained."""
Gamma = Callable[[float, tuple[int, ...]], np.ndarray]
"""Draws numbers of a gamma distribution, given by its mean, in a shape; or gives the mean itself."""
Weighted = Callable[..., Mapping[str, np.ndarray]]
"""Figures of a sample under rows of weights [r, n], which count each sample so often: by name [r], NaN if undefined.

A second argument, where one is taken, is a `Gamma` with which F1 is that of `f1`, or None."""


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

    def of(weights: np.ndarray, gamma: Gamma | None = None) -> dict[str, np.ndarray]:
        return weighted_metrics(labels, probabilities, weights, gamma, decision)

    shares = {"accuracy": probabilities.argmax(1) == labels}
    options: dict[str, Any] = {"seed": seed, "resamples": resamples, "lacks": "a class"}
    use = defined_classes(labels, probabilities.shape[1])
    options |= of_rare([rarer(labels == k, patients) for k in use], RANKED)
    smooth = ("macro_f1", TUNED) if len(decision) else ("macro_f1",)
    if absent := probabilities.shape[1] - len(np.unique(labels)):
        few = dict.fromkeys(smooth, f"no sample is of {absent} of {probabilities.shape[1]} classes")
        options["narrow"] = options.get("narrow", {}) | few
    return resampled(of, (*NAMES, *smooth[1:]), patients, shares=shares, smooth=smooth, **options)


def resampled(
    of: Weighted,
    names: Sequence[str],
    patients: np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    shares: Mapping[str, np.ndarray] = {},
    forms: Mapping[str, Form] = {},
    smooth: Sequence[str] = (),
    rare: Mapping[str, int] = {},
    narrow: Mapping[str, str] = {},
    whole: Mapping[str, np.ndarray] | None = None,
    lacks: str = "variety",
    width: int = 1,
) -> tuple[dict[str, list[float] | None], dict[str, str]]:
    """Computes 95 % intervals of figures by drawing patients [n], of any dtype that can be sorted, with replacement.

    At least 30 samples of at least 10 patients have intervals of the figures' `forms`, by default `SHARE` of `shares`,
    which are shares of true values in bool [n], and `RANK` of others. With fewer, shares have the exact
    (Clopper-Pearson) interval of as many samples as there are patients, and the others have None. A bootstrap interval
    of no width (every sample right, say) would be false certainty, so shares have the exact interval then, too.

    Figures in `smooth` are those that `of` changes where it is given a `Gamma`, too: what few samples have not shown is
    then drawn as well; the interval is around the figure with the mean of that, and holds the figure itself. `rare` has
    the number of patients with the rarer outcome for figures that compare two: with at most `RARE`, and where the
    resamples are all alike, they have the exact interval of so many. `narrow` has reasons why intervals are likely too
    narrow, for the notes.

    `whole` are the figures of all samples [1] where they are known; `lacks` names what resamples without a figure lack;
    `width` is how many times the weights of a sample are held at once.

    Returns `(values, notes)`: `NAME_ci` as `[low, high]` or None, and the reason of each None or substitute.
    """
    n, people = len(patients), len(np.unique(patients))
    if n == 0:
        return {f"{k}_ci": None for k in names}, {f"{k}_ci": "no samples" for k in names}
    if not enough(patients):
        why = f"{n} samples of {people} patients are too few for a bootstrap"
        notes = {f"{k}_ci": _exact_note(n, people) if k in shares else why for k in names}
        return {f"{k}_ci": exact_interval(shares[k], people) if k in shares else None for k in names}, notes
    added, all_once = (np.random.default_rng((seed, n)).standard_gamma,) if smooth else (), np.ones((1, n))
    drawn, counts = draws(lambda rows: of(rows, *added), patients, seed, resamples, width)
    whole, values, notes = whole or of(all_once), {}, {}
    centres = of(all_once, expected) if smooth else whole
    for name in names:
        x, form = float(whole[name][0]), SHARE if name in shares else forms.get(name, RANK)
        value, note = interval(float(centres[name][0]), drawn[name], counts, people, form, lacks)
        if name in shares and value is None:
            value, note = exact_interval(shares[name], people), _exact_note(n, people)
        elif 0 < rare.get(name, 0) <= (RARE if value else people):
            value = exact_share(x, rare[name])
            note = f"exact binomial interval over the {rare[name]} with the rarer outcome, counted in patients"
        elif value and name in smooth:
            value = [min(value[0], x), max(value[1], x)]
        if value and name in narrow:
            note = f"{NARROW}: {narrow[name]}" + (f"; {note}" if note else "")
        values[f"{name}_ci"] = value
        if note:
            notes[f"{name}_ci"] = note
    return values, notes


def draws(
    of: Weighted, patients: np.ndarray, seed: int, resamples: int, width: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draws patients [n]; returns the figures of the resamples by name [r], and the counts that `interval` takes."""
    owners, first, owner = np.unique(patients, return_index=True, return_inverse=True)
    parts, counts, starts = [], [], blocks(len(owners), resamples)
    for rows in patient_weights(owner, len(owners), seed, resamples=resamples, chunk=CHUNK // width):
        parts.append(of(rows))
        counts.append(np.add.reduceat(rows[:, first], starts, axis=1))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, np.concatenate(counts)


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
    return exact_share(float(correct.mean()), patients or len(correct))


def exact_share(share: float, n: int) -> list[float]:
    """Returns the Clopper-Pearson 95 % interval of a share of n samples."""
    from scipy.special import betaincinv

    hits, side = share * n, (1 - LEVEL) / 2
    low = betaincinv(hits, n - hits + 1, side) if hits > 0 else 0.0
    return [float(low), float(betaincinv(hits + 1, n - hits, 1 - side)) if hits < n else 1.0]


def rarer(case: np.ndarray, patients: np.ndarray) -> int:
    """Returns how many patients [n] have the rarer of two outcomes, bool [n]."""
    return min(len(np.unique(patients[side])) for side in (case, ~case))


def of_rare(counts: Sequence[int], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns options of `resampled` for means over classes, given `rarer` of each: of one `rare`, of more `narrow`."""
    if len(counts) == 1:
        return {"rare": dict.fromkeys(names, counts[0])}
    if not counts or min(counts) >= FEW:
        return {}
    return {"narrow": dict.fromkeys(names, f"of one class {min(counts)} patients have the rarer outcome")}


def interval(
    whole: float, drawn: np.ndarray, counts: np.ndarray, patients: int, form: Form, lacks: str
) -> tuple[list[float] | None, str | None]:
    """Returns the interval of a figure from its resamples [r], or None, and the reason of None.

    `counts` [r, blocks] tells how many patients of each block are in a resample.
    """
    if why := unusable(drawn, lacks):
        return None, why
    finite = np.isfinite(drawn)
    spread = spread_of(drawn[finite] ** form.power, counts[finite], patients)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        bounds = np.array(form.bounds(whole**form.power, spread)) ** (1 / form.power)
    if not np.isfinite(bounds).all():
        return None, "resamples spread too widely for bounds"
    return bounds.tolist(), left_out(drawn, lacks)


def blocks(patients: int, resamples: int) -> np.ndarray:
    """Returns where blocks of patients begin: with too many for the resamples an influence would be mostly noise."""
    least, each = BLOCKS
    blocks = min(patients, max(least, resamples // each))
    return np.arange(blocks) * patients // blocks


def spread_of(drawn: np.ndarray, counts: np.ndarray, patients: int) -> Spread:
    """Computes the spread of resamples [r]; `counts` are those of `interval`.

    Covariances of few resamples [r] are noisy: their squares are too large by blocks / r in the mean, and their fourth
    powers as those of normal noise. The excess kurtosis and squared skewness of sums over blocks are those of patients,
    divided by the patients of a block.
    """
    influence = (counts - counts.mean(axis=0)).T @ (drawn - drawn.mean())
    size, noise = len(influence), 1 / len(drawn)
    squares = (influence**2).sum() / (1 + size * noise)
    fourth = (influence**4).sum() / squares**2 - 6 * noise - 3 * size * noise**2
    freedom = 2 * (patients - 1) / max(0.1, 2 + (size * fourth - 3) * patients / size)
    skew = (influence**3).sum() / squares**1.5 * (size * (size - 1)) ** 0.5 / (size - 2)
    return Spread(drawn.std(ddof=1) * (patients / (patients - 1)) ** 0.5, max(2.0, freedom), skew, patients)


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
    labels: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
    gamma: Gamma | None = None,
    decision: Sequence[float] = (),
) -> dict[str, np.ndarray]:
    """Computes accuracy, macro-F1, AUROC and AUPRC under rows of sample weights [r, n] at once, float64 [r] each.

    With factors of probabilities, `decision` [c], it also computes `macro_f1_tuned`, that of the answers by these.

    The values are those of `metrics.compute` on the samples repeated by weight, and NaN where undefined, with one
    exception: where a class of the sample is absent from a resample, AUROC and AUPRC are NaN rather than the mean over
    fewer classes, so that all resamples measure the same quantity. With `gamma` macro-F1 is that of `f1`, over the
    classes among the labels and predictions of the sample.
    """
    classes = probabilities.shape[1]
    true = labels[:, None] == np.arange(classes)
    answers = {"macro_f1": probabilities.argmax(1)}
    answers |= {TUNED: (probabilities * decision).argmax(1)} if len(decision) else {}
    values = {name: _macro_f1(true, answer, weights, gamma) for name, answer in answers.items()}
    values["accuracy"] = weights @ (answers["macro_f1"] == labels) / weights.sum(1)
    use = defined_classes(labels, classes)
    ranked = np.array([weighted_ranking(true[:, k], probabilities[:, k], weights) for k in use])
    nothing = np.full(len(weights), np.nan)
    auroc, auprc = ranked.mean(0) if use else (nothing, nothing)
    return values | {"auroc": auroc, "auprc": auprc}


def _macro_f1(true: np.ndarray, answers: np.ndarray, weights: np.ndarray, gamma: Gamma | None) -> np.ndarray:
    """Returns macro-F1 of answers, int [n], under weights [r, n]; `true` bool [n, c]."""
    called = answers[:, None] == np.arange(true.shape[1])
    indicators = np.concatenate([true & called, true, called], axis=1).astype(np.float64)
    hit, actual, claimed = np.split(weights @ indicators, 3, axis=1)
    there, seen = actual + claimed, (true | called).any(0)
    if gamma:
        return f1(hit[:, seen], there[:, seen], gamma).mean(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there > 0, f1(hit, there), 0.0).sum(1) / (there > 0).sum(1)


def f1(hits: np.ndarray, there: np.ndarray, gamma: Gamma | None = None) -> np.ndarray:
    """Computes F1 from weights of any shape: of hits, and of cases and of predicted cases together.

    With `gamma` half a hit, half a case missed and half a false one, in the mean, are added (Jeffreys' prior).
    """
    if gamma:
        right, wrong = gamma(0.5, hits.shape), gamma(1.0, hits.shape)
        hits, there = hits + right, there + 2 * right + wrong
    return 2 * hits / there


def expected(mean: float, shape: tuple[int, ...]) -> np.ndarray:
    """Gives the mean itself, as a `Gamma`."""
    return np.full(shape, mean)


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


def unusable(values: np.ndarray, lacks: str) -> str | None:
    """Tells why resamples [r] have no interval, if so."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return "the figure itself is undefined"
    if len(finite) < len(values) / 2:
        return f"undefined in {len(values) - len(finite)} of {len(values)} resamples: {lacks} is too rare"
    if np.ptp(finite) < 1e-12:
        return "every resample gives the same value; an interval of no width would be false certainty"
    return None


def left_out(values: np.ndarray, lacks: str) -> str | None:
    """Tells how many of resamples [r] have no value, if so."""
    lost = len(values) - int(np.isfinite(values).sum())
    return f"{lost} of {len(values)} resamples lack {lacks} and are left out" if lost else None


def _exact_note(samples: int, patients: int) -> str:
    if samples == patients:
        return f"exact binomial interval over {samples} samples"
    return f"exact binomial interval over {patients} patients, each counted as one of the {samples} samples"
