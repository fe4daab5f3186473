"""Four encodings of a number (`NUMBERS`), each fitted on the present values of a column, float64 [n], of given rows.

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

import numpy as np

from remind_jax.data import inputs
from remind_jax.data.inputs import NUMBER_SHARE

NUMBERS = ("standard", "quantile", "piecewise", "periodic")
_MAX_KNOTS = 101  # of a distribution function
_REACH = 3.0  # standard deviations on either side of the mean that waves cover


@dataclasses.dataclass(frozen=True)
class Quantile:
    """The distribution function of one column, linear between knots."""

    knots: tuple[float, ...]  # values of the column, strictly ascending; none for a constant column
    ranks: tuple[float, ...]  # at each knot the share of fitting rows below it plus half the share of those equal to it

    @classmethod
    def fit(cls, seen: np.ndarray) -> "Quantile":
        ordered = np.sort(seen)
        knots = _knots(ordered, _MAX_KNOTS)
        below, up_to = (np.searchsorted(ordered, knots, side) for side in ("left", "right"))
        return cls(tuple(knots.tolist()), tuple(((below + up_to) / (2 * len(ordered))).tolist()))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Returns standard normal quantiles of values without NaN, float64 [n] -> [n]; 0 for a constant column."""
        return inputs.normal_quantile(self, values)


class _Features:
    """Features next to a number, centred and scaled."""

    mean: tuple[float, ...]  # of each feature over the fitting rows, before it is scaled; empty where there are none
    scale: float  # of all features; makes the sum of their variances what the number next to them leaves of 1

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Encodes float64 [n] -> [n, features]; zeros where a value is NaN."""
        return inputs.beside(self, values)

    @staticmethod
    def _moments(raw: np.ndarray) -> tuple[tuple[float, ...], float]:
        """Returns `mean` and `scale` of the features of the fitting rows, [n, features]."""
        return tuple(raw.mean(axis=0).tolist()), float(np.sqrt((1 - NUMBER_SHARE) / raw.var(axis=0).sum()))


@dataclasses.dataclass(frozen=True)
class Pieces(_Features):
    """Piecewise linear features of one column, one for each interval."""

    edges: tuple[float, ...]  # of the intervals, strictly ascending; empty where there are fewer than two intervals
    mean: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, seen: np.ndarray, bins: int) -> "Pieces":
        """Fits at most `bins` intervals."""
        edges = _knots(np.sort(seen), bins + 1)
        if len(edges) < 3:
            return cls((), (), 1.0)
        return cls(tuple(edges.tolist()), *cls._moments(inputs.fractions(seen, edges)))


@dataclasses.dataclass(frozen=True)
class Waves(_Features):
    """Sines, then cosines, of one column; none of a column of two values."""

    centre: float  # of the range that the first wave covers
    width: float
    mean: tuple[float, ...]
    scale: float

    @classmethod
    def fit(cls, seen: np.ndarray, bins: int) -> "Waves":
        """Fits at most `bins` features, an even number."""
        count = bins // 2
        if not count or len(np.unique(seen)) < 3:
            return cls(0.0, 1.0, (), 1.0)
        centre, width = float(seen.mean()), float(2 * _REACH * seen.std())
        return cls(centre, width, *cls._moments(inputs.waves(seen, centre, width, count)))


def _knots(ordered: np.ndarray, most: int) -> np.ndarray:
    """Returns distinct values of a sorted column, ascending: all if they are at most `most`, else those at even ranks.

    They are values of the column and not means of two, so that they follow it through any strictly monotone function.
    """
    distinct = np.unique(ordered)
    if len(distinct) <= most:
        return distinct
    return np.unique(ordered[np.arange(most) * (len(ordered) - 1) // (most - 1)])
