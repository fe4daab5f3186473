"""Figures of predicted survival with right-censored times: concordance; AUROC, Brier score, calibration at horizons.

A sample's time is that of its event, or of the last moment it is known to have had none (censored, which at a time of
events comes after them). G(t), the chance to be under observation after t, is the Kaplan-Meier estimate over all
samples that are evaluated together, also for figures of some of them.

- Harrell's C is the share of pairs, of which one has an event before the other's time, where that one has the higher
  risk; risks closer than `TIED` count half. Uno's C weighs a pair by 1/G² at the event, so that it does not depend on
  who was censored; events at or after `until`, by default the last horizon, are left out.
- AUROC at a horizon T compares those with an event by T, weighted by 1/G at it, with those known to have none by T.
- The Brier score at T is the mean squared distance of S(T) from what is known at T, weighted by 1/G (Graf et al. 1999);
  the integrated one is its mean over the times of the predictions that are below the last time seen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax.evaluation import intervals

TITLES = {"c_uno": "Uno's C", "c_index": "Harrell's C", "ibs": "Integrated Brier"}
HORIZON = {"auroc": "AUROC", "brier": "Brier"}
"""Figures at a horizon, with their titles."""
TIED = 1e-8
BIN, MOST_BINS = 30, 10  # samples in a bin of a calibration curve, and bins
POINTS = 200  # of a curve that is drawn
_PAIRS = "no sample has an event before the time of another"
_WHY = {"c_index": _PAIRS, "c_uno": _PAIRS, "ibs": "fewer than two times of predictions are below the last time seen"}
_WHY_HORIZON = {
    "auroc": "nobody has an event by then, or nobody is known to have none",
    "brier": "nobody is followed so long",
}


class Outcomes(NamedTuple):
    """What is known of samples: times, float [n] above 0, and whether each is that of an event, bool [n]."""

    time: np.ndarray
    event: np.ndarray

    def take(self, rows: np.ndarray) -> "Outcomes":
        """Returns some of them."""
        return Outcomes(self.time[rows], self.event[rows])


class Steps(NamedTuple):
    """A curve that is 1 from 0 on and takes each value [k] at its time [k], ascending, until the next."""

    times: np.ndarray
    values: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """Returns the values at times of any shape."""
        return np.append(1.0, self.values)[np.searchsorted(self.times, times, side="right")]


class Predicted(NamedTuple):
    """Survival [n, k] at times [k], ascending; at other times it falls as if the hazard were constant between them."""

    times: np.ndarray
    survival: np.ndarray

    def at(self, times: np.ndarray) -> np.ndarray:
        """Returns survival at times [j], [n, j]; after the last time it is what it is there."""
        known = np.append(0.0, self.times)
        logs = np.log(np.maximum(np.pad(self.survival, ((0, 0), (1, 0)), constant_values=1.0), 1e-300))
        right = np.clip(np.searchsorted(known, times, side="left"), 1, len(known) - 1)
        share = np.clip((np.asarray(times) - known[right - 1]) / (known[right] - known[right - 1]), 0.0, 1.0)
        found = np.exp(logs[:, right - 1] + share * (logs[:, right] - logs[:, right - 1]))
        return np.where(share == 1.0, self.survival[:, right - 1], found)  # as predicted, without rounding

    def risk(self) -> np.ndarray:
        """Returns the share of the time up to the last of `times` that is expected to be lost, [n], between 0 and 1."""
        curve, steps = np.pad(self.survival, ((0, 0), (1, 0)), constant_values=1.0), np.diff(self.times, prepend=0.0)
        return 1 - (curve[:, 1:] + curve[:, :-1]) @ steps / (2 * self.times[-1])


def kaplan_meier(known: Outcomes, censoring: bool = False) -> Steps:
    """Estimates survival from outcomes, or with `censoring` the chance to be under observation."""
    times, place = np.unique(known.time, return_inverse=True)
    events = np.bincount(place, known.event, len(times))
    leaving = np.bincount(place, minlength=len(times))
    at_risk = leaving[::-1].cumsum()[::-1]
    if censoring:
        events, at_risk = leaving - events, at_risk - events
    with np.errstate(invalid="ignore", divide="ignore"):
        return Steps(times, np.cumprod(np.where(events > 0, 1 - events / at_risk, 1.0)))


class Evaluation:
    """Evaluates predictions of survival of all samples together, and of some of them.

    Raises ValueError: shapes disagree, or a time or a prediction is none.
    """

    def __init__(self, known: Outcomes, predicted: Predicted, horizons: Sequence[float], until: float | None = None):
        """Takes outcomes [n], survival of all n samples, the horizons, and for Uno's C where events end to count."""
        _check(known, predicted)
        self.known, self.horizons = known, tuple(horizons)
        self.risk, self.at_horizons = predicted.risk(), predicted.at(np.array(self.horizons))
        self._observed = kaplan_meier(known, censoring=True)
        until = max(self.horizons, default=np.inf) if until is None else until
        self._squared = np.where(known.time < until, self._weights(known.time) ** 2, 0.0)
        self._grid = predicted.times[predicted.times < known.time.max(initial=0.0)]
        self._brier = self._brier_parts(self.at_horizons, np.array(self.horizons))
        self._along = self._brier_parts(predicted.at(self._grid), self._grid)

    def figures(
        self, rows: np.ndarray, patients: np.ndarray, *, seed: int, resamples: int = intervals.RESAMPLES
    ) -> dict[str, Any]:
        """Returns the figures of `TITLES` of some rows with intervals and `notes`, and under `horizons` those of each.

        `rows`, bool [n], selects them, of patients [n]. Keys of `horizons` are the horizons as text; each has
        `events` by then and the figures of `HORIZON`.
        """
        at = np.flatnonzero(rows)
        why = {**_WHY, **{f"{name}@{j}": w for j in range(len(self.horizons)) for name, w in _WHY_HORIZON.items()}}
        errors = [name for name in why if name.startswith(("ibs", "brier"))]
        options = {"seed": seed, "resamples": resamples, "lacks": "a pair to compare"}
        options["forms"] = dict.fromkeys(errors, intervals.ERROR)
        counts = rarer(self.known.take(at), self.horizons, patients[at])
        few = f"{min(counts, default=0)} patients have had the event by a horizon, or are known to be free of it"
        options["rare"] = {f"auroc@{j}": count for j, count in enumerate(counts)}
        options["narrow"] = {f"brier@{j}": few for j, count in enumerate(counts) if count < intervals.FEW}
        seen = len(np.unique(patients[at][self.known.time[at] > max(self._grid, default=0.0)]))
        ends = f"{seen} patients are followed to the last of its times"
        if options["narrow"] or seen < intervals.FEW:
            options["narrow"]["ibs"] = few if options["narrow"] else ends
        values, notes = intervals.measured(lambda w: self.weighted(at, w), why, patients[at], **options)
        known, by_horizon = self.known.take(at), {}
        for j, horizon in enumerate(self.horizons):
            events = int((known.event & (known.time <= horizon)).sum())
            by_horizon[f"{horizon:g}"] = {"events": events, **_of_horizon(values, j), "notes": _of_horizon(notes, j)}
        return {**_whole(values), "horizons": by_horizon, "notes": _whole(notes)}

    def weighted(self, at: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Computes all figures of rows at places int [k] under rows of weights [r, k] at once, [r] each."""
        nothing = np.full(len(weights), np.nan)
        own = np.stack([np.ones(len(at)), self._squared[at]])
        harrell, uno = concordance(self.known.take(at), self.risk[at], own, weights)
        found = {"c_index": harrell, "c_uno": uno, "ibs": nothing}
        inverse, horizons = self._inverse(at, weights), np.array(self.horizons)
        if len(self._grid) > 1:
            along = self._brier_in(self._along, self._grid, at, weights, inverse)
            found["ibs"] = np.trapezoid(along, self._grid, axis=1) / (self._grid[-1] - self._grid[0])
        brier = self._brier_in(self._brier, horizons, at, weights, inverse)
        had, free = (each[at] for each in self._status(horizons))
        single = self._weights(self.known.time[at])
        for j in range(len(self.horizons)):
            cases, controls = weights * (had[:, j] * single), weights * free[:, j]
            found[f"auroc@{j}"] = weighted_auroc(1 - self.at_horizons[at, j], cases, controls)
            some = ((cases + controls).sum(1) > 0) & (self.horizons[j] < self.known.time.max(initial=0.0))
            found[f"brier@{j}"] = np.where(some, brier[:, j], np.nan)
        return found

    def calibration(self, horizon: int, rows: np.ndarray) -> list[dict[str, Any]]:
        """Compares predicted with observed risk at a horizon, given by its place, in bins of equal size of some rows.

        Each bin has `n`, at least `BIN` samples, and `predicted` and `observed`, the mean risk to have had the event by
        then, and that by Kaplan-Meier, None where the last of the bin is censored earlier.
        """
        risk, known = 1 - self.at_horizons[rows, horizon], self.known.take(rows)
        bins = np.array_split(np.argsort(risk, kind="stable"), max(1, min(MOST_BINS, len(risk) // BIN)))
        curve = []
        for inside in bins if len(risk) >= BIN else ():
            part, until = known.take(inside), self.horizons[horizon]
            followed = part.time.max() >= until or kaplan_meier(part).values[-1] == 0
            observed = float(1 - kaplan_meier(part).at(until)) if followed else None
            curve.append({"n": len(inside), "predicted": float(risk[inside].mean()), "observed": observed})
        return curve

    def curves(self, parts: int = 3) -> list[dict[str, Any]]:
        """Returns Kaplan-Meier curves of parts of equal size by predicted risk, the lowest first.

        Each has `n`, `events`, `survival` from 1, and its `times`: 0, at most `POINTS` at which it falls, and the last
        time seen.
        """
        curves = []
        for inside in np.array_split(np.argsort(self.risk, kind="stable"), min(parts, len(self.risk))):
            part = self.known.take(inside)
            falls = kaplan_meier(part)
            use = np.flatnonzero(np.isin(falls.times, part.time[part.event]))
            use = use[np.unique(np.linspace(0, len(use) - 1, min(len(use), POINTS)).round().astype(int))]
            at = np.concatenate([[0.0], falls.times[use], falls.times[-1:]])
            curve = {"times": at.tolist(), "survival": falls.at(at).tolist()}
            curves.append({"n": len(inside), "events": int(part.event.sum()), **curve})
        return curves

    def _weights(self, times: np.ndarray) -> np.ndarray:
        """Returns 1/G at times, 0 where nobody is under observation any more."""
        observed = self._observed.at(times)
        return np.where(observed > 0, 1 / np.maximum(observed, 1e-300), 0.0)

    def _brier_parts(self, survival: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what Brier scores at times [j] are sums of, of samples with and without the event, [n, j]."""
        had, free = self._status(times)
        return survival**2 * had, (1 - survival) ** 2 * free

    def _brier_in(
        self,
        parts: tuple[np.ndarray, np.ndarray],
        times: np.ndarray,
        at: np.ndarray,
        weights: np.ndarray,
        inverse: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Computes Brier scores at times [j] of rows at places int [k] under weights [r, k], [r, j]."""
        had, free = (part[at] for part in parts)
        sums = (weights * inverse(self.known.time[at])) @ had + (weights @ free) * inverse(times)
        return sums / weights.sum(1, keepdims=True)

    def _inverse(self, at: np.ndarray, weights: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Returns 1/G at times [j], as a function, [r, j]: of all samples under their weights, of some as it is.

        With G held fixed, intervals of Brier scores of all samples hold the truth in 98 to 100 %: G is a guess from the
        same people, and errs with them.
        """
        if len(at) < len(self.known.time):
            return lambda times: self._weights(times)[None]
        order = np.argsort(self.known.time, kind="stable")
        times, first = np.unique(self.known.time[order], return_index=True)
        leaving, events = (
            np.add.reduceat(each[:, order], first, axis=1) for each in (weights, weights * self.known.event)
        )
        at_risk, gone = leaving[:, ::-1].cumsum(1)[:, ::-1] - events, leaving - events
        with np.errstate(invalid="ignore", divide="ignore"):
            observed = np.cumprod(np.where(gone > 0, 1 - gone / at_risk, 1.0), axis=1)
        steps = np.pad(
            np.where(observed > 0, 1 / np.maximum(observed, 1e-300), 0.0), ((0, 0), (1, 0)), constant_values=1
        )
        return lambda at_times: steps[:, np.searchsorted(times, at_times, side="right")]

    def _status(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tells who has had the event by each of times [j], and who is known to be free of it, bool [n, j] each."""
        free = self.known.time[:, None] > times
        return self.known.event[:, None] & ~free, free


def rarer(known: Outcomes, horizons: Sequence[float], patients: np.ndarray) -> list[int]:
    """Returns for each horizon how many patients [n] have had the event by it, or are known not to, if fewer."""
    apart = [known.event & (known.time <= each) for each in horizons], [known.time > each for each in horizons]
    return [intervals.rarer(had[had | free], patients[had | free]) for had, free in zip(*apart, strict=True)]


def few_of(known: Outcomes, horizons: Sequence[float], patients: np.ndarray) -> dict[str, int]:
    """Counts the patients [n] on whom a figure of `TITLES` hangs: those with an event; of Brier scores, `rarer`."""
    events = len(np.unique(patients[known.event]))
    return dict.fromkeys(TITLES, events) | {"ibs": min([events, *rarer(known, horizons, patients)])}


def concordance(known: Outcomes, risk: np.ndarray, own: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the concordance of risks [n] under rows of sample weights [r, n], [p, r], NaN without a pair.

    The weights of pairs [p, n], of which each gives a row of the answer, are those of the sample that has the event.
    """
    events = np.flatnonzero(known.event & (own > 0).any(axis=0))
    size = max(1, intervals.CHUNK // max(1, len(risk)))
    agree, pairs = np.zeros((2, len(own), len(weights)))
    for start in range(0, len(events), size):
        part = events[start : start + size]
        time, above = known.time[part, None], risk[part, None] - risk
        later = (known.time > time) | ((known.time == time) & ~known.event)
        right = np.where(abs(above) <= TIED, 0.5, above > 0) * later
        of_events = weights[:, part]
        agree += own[:, part] @ (of_events * (weights @ right.T)).T
        pairs += own[:, part] @ (of_events * (weights @ later.T)).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, agree / pairs, np.nan)


def weighted_auroc(score: np.ndarray, cases: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """Returns the AUROC of a score [n] for rows of weights of cases and of controls [r, n], [r]; ties count half."""
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    before, through = (np.searchsorted(ordered, score, side=side) for side in ("left", "right"))
    total = np.pad(np.cumsum(controls[:, order], axis=1), ((0, 0), (1, 0)))
    beaten = (cases * (total[:, before] + total[:, through])).sum(1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return beaten / (cases.sum(1) * controls.sum(1))


def _of_horizon(found: Mapping[str, Any], j: int) -> dict[str, Any]:
    """Returns what `measured` found at one horizon, under the names of `HORIZON`."""
    mark = f"@{j}"
    return {key.replace(mark, ""): value for key, value in found.items() if key.removesuffix("_ci").endswith(mark)}


def _whole(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if "@" not in key}


def _check(known: Outcomes, predicted: Predicted) -> None:
    rows, times = len(known.time), len(predicted.times)
    if known.event.shape != (rows,) or predicted.survival.shape != (rows, times) or not times:
        raise ValueError(f"times [{rows}], events {known.event.shape} and survival {predicted.survival.shape} disagree")
    if not (np.isfinite(known.time).all() and (known.time >= 0).all()):
        raise ValueError("a time is negative or not finite")
    if not (np.diff(predicted.times, prepend=0.0) > 0).all():
        raise ValueError("times of predictions do not ascend from above 0")
    if not ((predicted.survival >= 0) & (predicted.survival <= 1)).all():
        raise ValueError("a survival is none between 0 and 1")
