"""Four encodings of a number (`NUMBERS`), each fitted on given rows only.

standard: minus the mean, divided by the standard deviation.

quantile: through the distribution function of the column to a standard normal distribution. Only the order of the
values matters; outliers and values outside the fitted range end at the range's ends. Equal values share their mid rank,
so a column of few values has less than unit variance.

piecewise: the standardised number and, next to it, one feature for each of a few intervals between quantiles: 0 below
the interval, 1 above it, the fraction inside (equation 1 of Gorishniy et al. 2022, arXiv 2203.05556). Unlike there the
outer intervals end at the range's ends as well, because the number next to them goes on. Each of these features is
minus its mean, so that 0, which a missing number or modality gives, says nothing. The number has half of a column's
variance and the intervals share the other half: together the features move a random linear map as far as one
standardised number does. A column with one interval, for example of two values, has no such features: they would repeat
the number.

periodic: the standardised number and, next to it, sines and cosines of it, of 1, 2, 3, … waves in a range of six
standard deviations about the mean. Frequencies are fixed; Gorishniy et al. (equation 2) train them. Values further out
count as at the range's ends. Means, variances and columns of two values as with piecewise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMBERS = ("standard", "quantile", "piecewise", "periodic")
NUMBER_SHARE = 0.5
"""Share of a column's variance that its number keeps next to intervals or waves."""
_MAX_KNOTS = 101  # of a distribution function
_REACH = 3.0  # standard deviations on either side of the mean that waves cover


@dataclasses.dataclass(frozen=True)
class Quantile:
    """The distribution function of one column, linear between knots.

    Attributes:
      knots: values of the column, strictly ascending; none for a constant column.
      ranks: at each knot the share of fitting rows below it plus half the share of those equal to it.
    """

    knots: tuple[float, ...]
    ranks: tuple[float, ...]

    @classmethod
    def fit(cls, seen: np.ndarray) -> "Quantile":
        """Fits on the present values of a column, float64 [n]."""
        ordered = np.sort(seen)
        knots = _knots(ordered, _MAX_KNOTS)
        below, up_to = (np.searchsorted(ordered, knots, side) for side in ("left", "right"))
        return cls(tuple(knots.tolist()), tuple(((below + up_to) / (2 * len(ordered))).tolist()))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Standard normal quantiles of values without NaN, float64 [n] -> [n]; 0 for a constant column."""
        from scipy.special import ndtri

        if not self.knots:
            return np.zeros_like(values)
        # The mid ranks of the smallest and the largest value are inside (0, 1), and interpolation stays between them.
        return ndtri(np.interp(values, self.knots, self.ranks))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Quantile":
        """From the fields as JSON gives them."""
        return cls(tuple(content["knots"]), tuple(content["ranks"]))


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Piecewise linear features of one column.

    Attributes:
      edges: of the intervals, strictly ascending; empty where there are fewer than two intervals.
      mean: of each interval's feature over the fitting rows, before it is scaled.
      scale: of all features; makes the sum of their variances what the number next to them leaves of 1.
    """

    edges: tuple[float, ...]
    mean: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, seen: np.ndarray, bins: int) -> "Pieces":
        """Fits at most `bins` intervals on the present values of a column, float64 [n]."""
        edges = _knots(np.sort(seen), bins + 1)
        if len(edges) < 3:
            return cls((), (), 1.0)
        fractions = _fractions(seen, edges)
        scale = np.sqrt((1 - NUMBER_SHARE) / fractions.var(axis=0).sum())
        return cls(tuple(edges.tolist()), tuple(fractions.mean(axis=0).tolist()), float(scale))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Centred and scaled features, float64 [n] -> [n, intervals]; zeros where a value is NaN."""
        if not self.edges:
            return np.zeros((len(values), 0))
        scaled = (_fractions(values, np.asarray(self.edges)) - np.asarray(self.mean)) * self.scale
        return np.where(np.isnan(values)[:, None], 0.0, scaled)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Pieces":
        """From the fields as JSON gives them."""
        return cls(tuple(content["edges"]), tuple(content["mean"]), content["scale"])


@dataclasses.dataclass(frozen=True)
class Waves:
    """Sines and cosines of one column.

    Attributes:
      centre, width: of the range that the first wave covers.
      mean: of each feature over the fitting rows, before it is scaled, sines first; empty for a column of two values.
      scale: of all features; makes the sum of their variances what the number next to them leaves of 1.
    """

    centre: float
    width: float
    mean: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, seen: np.ndarray, bins: int) -> "Waves":
        """Fits at most `bins` features, an even number, on the present values of a column, float64 [n]."""
        count = bins // 2
        if not count or len(np.unique(seen)) < 3:
            return cls(0.0, 1.0, (), 1.0)
        centre, width = float(seen.mean()), float(2 * _REACH * seen.std())
        waves = _waves(seen, centre, width, count)
        scale = np.sqrt((1 - NUMBER_SHARE) / waves.var(axis=0).sum())
        return cls(centre, width, tuple(waves.mean(axis=0).tolist()), float(scale))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Centred and scaled features, float64 [n] -> [n, features]; zeros where a value is NaN."""
        if not self.mean:
            return np.zeros((len(values), 0))
        waves = _waves(values, self.centre, self.width, len(self.mean) // 2)
        return np.where(np.isnan(values)[:, None], 0.0, (waves - np.asarray(self.mean)) * self.scale)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Waves":
        """From the fields as JSON gives them."""
        return cls(content["centre"], content["width"], tuple(content["mean"]), content["scale"])


def _knots(ordered: np.ndarray, most: int) -> np.ndarray:
    """Distinct values of a sorted column, ascending: all when they are at most `most`, else those at even ranks.

    They are values of the column and not means of two, so that they follow it through any strictly monotone function.
    """
    distinct = np.unique(ordered)
    if len(distinct) <= most:
        return distinct
    return np.unique(ordered[np.arange(most) * (len(ordered) - 1) // (most - 1)])


def _waves(values: np.ndarray, centre: float, width: float, count: int) -> np.ndarray:
    """Sines, then cosines, of 1 to `count` waves, [n] -> [n, 2 count]; NaN for NaN."""
    phase = 2 * np.pi * np.clip((values - centre) / width, -0.5, 0.5)[:, None] * np.arange(1, count + 1)
    return np.concatenate([np.sin(phase), np.cos(phase)], axis=1)


def _fractions(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How much of each interval lies below each value, in 0 to 1, [n] and [k + 1] -> [n, k]; NaN for NaN."""
    intervals = np.arange(len(edges) - 1)
    position = np.interp(values, edges, np.arange(len(edges)))
    return np.clip(position[:, None] - intervals, 0.0, 1.0)
