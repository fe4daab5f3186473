"""From the raw columns of a tabular modality to features: numbers, is-missing indicators and one-hot categories.

Four encodings of a number (`NUMBERS`), each fitted on given rows only:

standard: minus the mean, divided by the standard deviation.

quantile: through the distribution function of the column to a standard normal distribution. Only the order of the
values matters; outliers and values outside the fitted range end at the range's ends. Equal values share their mid rank,
so a column of few values has less than unit variance.

piecewise: the standardised number and, beside it, one feature for each of a few intervals between quantiles: 0 below
the interval, 1 above it, the fraction inside (equation 1 of Gorishniy et al. 2022, arXiv 2203.05556). Unlike there the
outer intervals end at the range's ends as well, because the number beside them goes on. Each of these features is minus
its mean, so that 0, which a missing number or modality gives, says nothing. The number has half of a column's variance
and the intervals share the other half: together the features move a random linear map as far as one standardised number
does. A column with one interval, for example of two values, has no such features: they would repeat the number.

periodic: the standardised number and, beside it, sines and cosines of it, of 1, 2, 3, … waves in a range of six
standard deviations about the mean. Frequencies are fixed; Gorishniy et al. (equation 2) train them. Values further out
count as at the range's ends. Means, variances and columns of two values as with piecewise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from remind_jax.data import manifest as manifests
from remind_jax.errors import UserError, did_you_mean

NUMBERS = ("standard", "quantile", "piecewise", "periodic")
_MAX_KNOTS = 101  # of a distribution function
_NUMBER_SHARE = 0.5  # of a column's variance, encodings piecewise and periodic
_REACH = 3.0  # standard deviations on either side of the mean that waves cover


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What a model receives for one modality.

    Attributes:
      kind: one of `schema.KINDS`.
      shape: of one sample: (p,) features, (t,) token ids, (t, d) tokens, (height, width, channels) pixels, or
        (frames, height, width, channels) pixels.
      vocabulary: number of ids; 0 for inputs that are not ids.
    """

    kind: str
    shape: tuple[int, ...]
    vocabulary: int = 0


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
      scale: of all features; makes the sum of their variances what the number beside them leaves of 1.
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
        scale = np.sqrt((1 - _NUMBER_SHARE) / fractions.var(axis=0).sum())
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
      scale: of all features; makes the sum of their variances what the number beside them leaves of 1.
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
        scale = np.sqrt((1 - _NUMBER_SHARE) / waves.var(axis=0).sum())
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


@dataclasses.dataclass(frozen=True)
class Tabular:
    """Median imputation, encoded numbers, is-missing indicators and one-hot categories of one modality.

    Attributes:
      columns, categorical: the columns in raw order.
      median, mean, std: per numeric column, over the fitting rows; std 0 marks a constant column, which becomes 0.
      numeric_holes, categorical_holes: positions of the columns that get an is-missing indicator.
      categories: per categorical column, sorted.
      quantiles: per numeric column, encoding quantile; empty for the others.
      pieces: per numeric column, encoding piecewise; empty for the others.
      waves: per numeric column, encoding periodic; empty for the others.
    """

    columns: tuple[str, ...]
    categorical: tuple[str, ...]
    median: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    numeric_holes: tuple[int, ...]
    categorical_holes: tuple[int, ...]
    categories: tuple[tuple[str, ...], ...]
    quantiles: tuple[Quantile, ...] = ()
    pieces: tuple[Pieces, ...] = ()
    waves: tuple[Waves, ...] = ()

    @classmethod
    def fit(
        cls,
        modality: manifests.Modality,
        numeric: np.ndarray,
        categorical: np.ndarray | None,
        numbers: str = "standard",
        bins: int = 8,
    ) -> "Tabular":
        """Fits on rows that have the modality.

        Args:
          modality: its columns.
          numeric: [n, p] with NaN for empty.
          categorical: [n, q] strings, "" for empty, or None.
          numbers: one of `NUMBERS`.
          bins: the most features of a column beside its number, encodings piecewise and periodic.

        Raises:
          UserError: the encoding is unknown or `bins` is not positive.
        """
        check_numbers(numbers, bins)
        columns = [column[~np.isnan(column)] for column in numeric.T.astype(np.float64)]
        median, mean, std = zip(*map(_moments, columns), strict=True) if columns else ((), (), ())
        # What counts as constant has rounding noise at most, and no order worth keeping.
        varied = [seen if spread else seen[:0] for seen, spread in zip(columns, std, strict=True)]
        strings = categorical.T if categorical is not None else np.empty((0, len(numeric)), object)
        return cls(
            modality.columns,
            modality.categorical,
            median,
            mean,
            std,
            tuple(np.flatnonzero(np.isnan(numeric).any(axis=0)).tolist()),
            tuple(j for j, column in enumerate(strings) if (column == "").any()),
            tuple(tuple(sorted(set(column.tolist()) - {""})) for column in strings),
            quantiles=tuple(map(Quantile.fit, varied)) if numbers == "quantile" else (),
            pieces=tuple(Pieces.fit(seen, bins) for seen in varied) if numbers == "piecewise" else (),
            waves=tuple(Waves.fit(seen, bins) for seen in varied) if numbers == "periodic" else (),
        )

    @property
    def beside(self) -> tuple[Pieces | Waves, ...]:
        """What makes the features beside the number of each numeric column; empty where the encoding has none."""
        return self.pieces or self.waves

    @property
    def features(self) -> tuple[str, ...]:
        """What each of the encoded features is, in order; the first are the numeric columns."""
        missing = [f"{self.columns[j]} is missing" for j in self.numeric_holes]
        one_hot = [f"{c} = {v}" for c, values in zip(self.categorical, self.categories, strict=True) for v in values]
        missing_category = [f"{self.categorical[j]} is missing" for j in self.categorical_holes]
        what = "interval" if self.pieces else "wave"
        beside = [
            f"{self.columns[j]}, {what} {k} of {len(features.mean)}"
            for j, features in enumerate(self.beside)
            for k in range(1, len(features.mean) + 1)
        ]
        return (*self.columns, *missing, *one_hot, *missing_category, *beside)

    @property
    def spec(self) -> InputSpec:
        """A vector of features."""
        return InputSpec("tabular", (len(self.features),))

    def features_of(self, column: int) -> list[int]:
        """Positions of the features made from the numbers of a numeric column; its indicator is not among them."""
        lengths = [len(features.mean) for features in self.beside]
        start = len(self.features) - sum(lengths[column:])
        return [column, *range(start, start + sum(lengths[column : column + 1]))]

    def encode(self, numeric: np.ndarray, categorical: np.ndarray | None) -> np.ndarray:
        """Float32 [n, p']: numbers, their indicators, one-hot categories, their indicators, more of the numbers.

        Args:
          numeric: [n, p] with NaN for empty: the median stands in, and what is beside the number is 0.
          categorical: [n, q] strings, "" for empty; None where the modality has no categorical columns.
        """
        holes = np.isnan(numeric)
        values = numeric.astype(np.float64)
        parts = [self._numbers(np.where(holes, np.asarray(self.median), values)), holes[:, list(self.numeric_holes)]]
        if categorical is not None:
            for j, known in enumerate(self.categories):
                parts.append(categorical[:, j, None] == np.array(known, object)[None, :])
            parts.append(categorical[:, list(self.categorical_holes)] == "")
        parts += [features.encode(values[:, j]) for j, features in enumerate(self.beside)]
        return np.concatenate([part.astype(np.float32) for part in parts], axis=1)

    def _numbers(self, filled: np.ndarray) -> np.ndarray:
        """One feature a numeric column, float64 [n, p] -> [n, p]."""
        if self.quantiles:
            return np.stack([column.encode(filled[:, j]) for j, column in enumerate(self.quantiles)], axis=1)
        std = np.asarray(self.std)
        scaled = np.where(std > 0, (filled - np.asarray(self.mean)) / np.where(std > 0, std, 1.0), 0.0)
        if self.beside:
            scaled *= np.array([np.sqrt(_NUMBER_SHARE) if features.mean else 1.0 for features in self.beside])
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the fields of encodings that are not in use, as versions that had only one wrote it."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value or name not in ("quantiles", "pieces", "waves")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Tabular":
        """The inverse of `to_dict`."""
        fields = {name: tuple(value) for name, value in content.items()}
        nested = {
            "categories": tuple(tuple(values) for values in fields["categories"]),
            "quantiles": tuple(map(Quantile.from_dict, fields.get("quantiles", ()))),
            "pieces": tuple(map(Pieces.from_dict, fields.get("pieces", ()))),
            "waves": tuple(map(Waves.from_dict, fields.get("waves", ()))),
        }
        return cls(**fields | nested)


def check_numbers(numbers: str, bins: int) -> None:
    """Refuses an encoding of numbers that cannot be used.

    Raises:
      UserError: the encoding is unknown or `bins` is not positive.
    """
    if numbers not in NUMBERS:
        raise UserError(f"numbers: {numbers!r} is unknown{did_you_mean(numbers, NUMBERS)}; known: {', '.join(NUMBERS)}")
    if bins < 1:
        raise UserError(f"bins must be at least 1: {bins}")


def _moments(seen: np.ndarray) -> tuple[float, float, float]:
    """Median, mean and standard deviation of the present values of a column; 0 for what is not there or constant."""
    if not len(seen):
        return 0.0, 0.0, 0.0
    centre, spread = float(seen.mean()), float(seen.std())
    # The spread of equal numbers is rounding noise, not exactly 0.
    return float(np.median(seen)), centre, spread if spread > 1e-7 * max(abs(centre), 1e-30) else 0.0


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
