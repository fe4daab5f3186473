"""Tables: numbers, is-missing indicators and one-hot categories; `numbers` has the encodings of a number."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl

from remind_jax.data import cells, inputs, numerals
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.kinds.kind import (
    BY_COUNT,
    BY_TYPE,
    FitOptions,
    FittedKind,
    Guess,
    Kind,
    Parts,
    Rows,
    strings_of,
    tuples_of,
)
from remind_jax.data.kinds.numbers import NUMBERS, Pieces, Quantile, Waves
from remind_jax.data.schema import InputSpec, Modality, mapping, shown, string, strings
from remind_jax.errors import UserError, did_you_mean

FEW_CATEGORIES = 20
"""Most different words in a column that importing takes for categories."""
_ENCODINGS = {"quantiles": Quantile, "pieces": Pieces, "waves": Waves}


@dataclasses.dataclass(frozen=True)
class FittedTable(FittedKind):
    """Median imputation, encoded numbers, is-missing indicators and one-hot categories of one modality."""

    has_parts: ClassVar[bool] = True
    columns: tuple[str, ...]  # the numeric and
    categorical: tuple[str, ...]  # the categorical columns in raw order
    median: tuple[float, ...]  # per numeric column, over the fitting rows
    mean: tuple[float, ...]
    std: tuple[float, ...]  # 0 marks a constant column, which becomes 0
    numeric_holes: tuple[int, ...]  # positions of the columns that get an is-missing indicator
    categorical_holes: tuple[int, ...]
    categories: tuple[tuple[str, ...], ...]  # per categorical column, sorted
    quantiles: tuple[Quantile, ...] = ()  # per numeric column where its encoding is in use, as are
    pieces: tuple[Pieces, ...] = ()
    waves: tuple[Waves, ...] = ()

    @classmethod
    def fit(
        cls,
        modality: Modality,
        numeric: np.ndarray,
        categorical: np.ndarray | None,
        numbers: str = "standard",
        bins: int = 8,
    ) -> "FittedTable":
        """Fits on rows that have the modality: `numeric` [n, p], NaN for empty, `categorical` [n, q], "" for empty.

        `numbers` and `bins` are those of `FitOptions`.

        Raises UserError: the encoding is unknown or `bins` is not positive.
        """
        _check_numbers(numbers, bins)
        columns = [column[~np.isnan(column)] for column in numeric.T.astype(np.float64)]
        median, mean, std = zip(*map(moments, columns), strict=True) if columns else ((), (), ())
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
    def extras(self) -> tuple[Pieces | Waves, ...]:
        """Returns what makes the features next to each numeric column; empty where the encoding has none."""
        return self.pieces or self.waves

    @property
    def features(self) -> tuple[str, ...]:
        """Says what each of the encoded features is, in order; the first are the numeric columns."""
        missing = [f"{self.columns[j]} is missing" for j in self.numeric_holes]
        one_hot = [f"{c} = {v}" for c, values in zip(self.categorical, self.categories, strict=True) for v in values]
        missing_category = [f"{self.categorical[j]} is missing" for j in self.categorical_holes]
        what = "interval" if self.pieces else "wave"
        extras = [
            f"{self.columns[j]}, {what} {k} of {len(features.mean)}"
            for j, features in enumerate(self.extras)
            for k in range(1, len(features.mean) + 1)
        ]
        return (*self.columns, *missing, *one_hot, *missing_category, *extras)

    @property
    def spec(self) -> InputSpec:
        return TABULAR.spec((len(self.features),))

    def parts(self, raw: Mapping[str, np.ndarray], name: str) -> Parts:
        """Returns the cells that are not empty; the value of a category is its place among those of its column."""
        values = raw[f"{name}/numeric"].astype(np.float64)
        for words in raw.get(f"{name}/categorical", np.empty((0, 0))).T:
            places = np.where(words == "", np.nan, np.unique(words.astype(str), return_inverse=True)[1])
            values = np.column_stack([values, places])
        row, column = np.nonzero(~np.isnan(values))
        return Parts(row, column.astype(np.float64), column, values[row, column])

    def without(self, raw: Mapping[str, np.ndarray], name: str, lost: np.ndarray) -> dict[str, np.ndarray]:
        left, cells, numbers = (
            {key: column.copy() for key, column in raw.items()},
            self.parts(raw, name),
            len(self.median),
        )
        row, column = cells.row[lost], cells.column[lost]
        number = column < numbers
        left[f"{name}/numeric"][row[number], column[number]] = np.nan
        if not number.all():
            left[f"{name}/categorical"][row[~number], column[~number] - numbers] = ""
        return left

    def features_of(self, column: int) -> list[int]:
        """Returns the positions of the features made from a column's numbers; its indicator is not among them."""
        lengths = [len(features.mean) for features in self.extras]
        start = len(self.features) - sum(lengths[column:])
        return [column, *range(start, start + sum(lengths[column : column + 1]))]

    def encode(self, raw: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        return self.encode_columns(raw[f"{name}/numeric"], raw.get(f"{name}/categorical"))

    def encode_columns(self, numeric: np.ndarray, categorical: np.ndarray | None) -> np.ndarray:
        """Returns float32 [n, p']: numbers, indicators, one-hot categories, their indicators, more of the numbers.

        For an empty number the median is filled in, and what is next to the number is 0. Arguments are as for `fit`.
        """
        return inputs.table(self, numeric, categorical)

    def plain(self, values: np.ndarray) -> np.ndarray:
        """Returns the features with NaN for empty cells instead of what was filled in; the indicators stay."""
        xp, told = values.__array_namespace__(), np.full(len(self.features), -1)  # the indicator of each feature
        for place, column in enumerate(self.numeric_holes):
            told[self.features_of(column)] = len(self.columns) + place
        empty = (values[:, told] > 0) & xp.asarray(told >= 0)[None]
        return xp.where(empty, xp.asarray(values.dtype.type(np.nan)), values)

    def adopt(self, modality: Modality, where: str) -> Modality:
        here, there = (modality.columns, modality.categorical), (self.columns, self.categorical)
        if any(set(found) != set(wanted) for found, wanted in zip(here, there, strict=True)):
            wanted = ", ".join((*self.columns, *self.categorical))
            raise UserError(f"{where}: the table {modality.name!r} has other columns than in the run: {wanted}")
        return dataclasses.replace(modality, columns=self.columns, categorical=self.categorical)

    def example(self, modality: Modality) -> dict[str, Any]:
        categories = zip(self.categorical, self.categories, strict=True)
        return dict(zip(self.columns, self.median, strict=True)) | {c: known[0] for c, known in categories if known}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON, without those of encodings that are not in use."""
        return {name: value for name, value in super().to_dict().items() if value or name not in _ENCODINGS}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "FittedTable":
        fields = cls.fields_of(content)
        fields["categories"] = tuple(map(tuple, fields["categories"]))
        for name in _ENCODINGS.keys() & fields:
            fields[name] = tuple(_ENCODINGS[name](**tuples_of(entry)) for entry in fields[name])
        found = cls(**fields)
        wide, words = len(found.columns), len(found.categorical)
        fits = {len(found.median), len(found.mean), len(found.std), len(found.extras or found.median)} == {wide}
        fits &= len(found.categories) == words and len(found.quantiles) in (0, wide)
        for places, most in ((found.numeric_holes, wide), (found.categorical_holes, words)):
            fits &= all(0 <= place < most for place in places)
        if not fits:
            raise ValueError("columns")
        return found


class Tabular(Kind):
    """Numeric and categorical columns; a sample lacks the modality when every cell is empty."""

    name = "tabular"
    encoder = "patch"
    dtype = np.dtype(np.float32)
    keys = optional = ("columns", "categorical", "odd", "missing", "units")
    fitted = FittedTable

    @property
    def words(self) -> Mapping[str, str]:
        return {"number": "columns", "category": "categorical"}

    def parse(self, name: str, entry: Mapping[str, Any], image_size: int, frames: int) -> Modality:
        columns, categorical = (strings(entry.get(key, []), f"modalities.{name}.{key}") for key in self.keys[:2])
        if not columns and not categorical:
            raise UserError(f"modalities.{name} needs columns or categorical")
        if (odd := entry.get("odd", "refuse")) not in numerals.ODD:
            raise UserError(f"modalities.{name}.odd must be {', '.join(numerals.ODD)}, not {shown(odd)}")
        options: dict[str, Any] = {} if odd == "refuse" else {"odd": odd}
        if missing := entry.get("missing", []):
            options["missing"] = _missing_words(missing, f"modalities.{name}.missing")
        if (units := entry.get("units", {})) and not options.get("odd"):
            raise UserError(f"modalities.{name}.units needs odd: missing or limit, which says what other cells become")
        if units:
            options["units"] = _units(units, columns, f"modalities.{name}.units")
        return Modality(name, self.name, columns, categorical, options=options)

    def _typed_column(self, modality: Modality, column: pl.Series, where: str) -> tuple[pl.Series, list[Finding]]:
        """Returns numbers as Float64, NaN as null; categories as strings without blanks around."""
        if words := modality.options.get("missing", ()):
            column = column.set(cells.means_missing(column, words), None)
        if column.name in modality.categorical:
            column, notes = cells.without_words(column, where)
            return column.str.strip_chars(), notes
        if column.dtype.is_numeric() or column.dtype == pl.Boolean:
            values = column.cast(pl.Float64)
            return values.fill_nan(None), cells.normalised(values.is_nan().fill_null(False), where)
        column, notes = cells.without_words(column, where)
        odd, unit = modality.options.get("odd"), modality.options.get("units", {}).get(column.name, "")
        values = numerals.numbers(column, odd == "limit", unit).values if odd else numerals.plain(column)
        wrong = values.is_null() & column.is_not_null()
        if wrong.any():
            remedy = "read as missing" if odd else "fix or empty them, or declare the column categorical"
            notes.append(Finding("E009", f"{where}{in_rows(wrong)} not a number; {remedy}", not odd))
        return values, notes

    def _value_problems(self, modality: Modality, values: pl.Series, where: str) -> list[Finding]:
        findings = []
        values = values.cast(pl.Float64)
        nan = values.is_nan().fill_null(False)
        if nan.any():
            findings.append(Finding("E009", f"{where}{in_rows(nan)} NaN; a missing cell must be null", True))
        # Models compute in float32, so what overflows there is as bad as infinity.
        large = (values.abs() > np.finfo(np.float32).max).fill_null(False) & ~nan
        if large.any():
            findings.append(Finding("E008", f"{where}{in_rows(large)} infinite or beyond float32; empty them", True))
        return findings

    def decode(self, modality: Modality, rows: Rows) -> dict[str, np.ndarray]:
        """Returns `name/numeric` float32 [n, p], NaN if empty, and `name/categorical` object [n, q], '' if empty."""
        numeric = np.empty((len(rows.places), len(modality.columns)), np.float32)
        for j, column in enumerate(modality.columns):
            numeric[:, j] = rows.cells(column).cast(pl.Float32).to_numpy()
        raw = {f"{modality.name}/numeric": numeric}
        if modality.categorical:
            columns = [strings_of(rows.cells(column).to_list()) for column in modality.categorical]
            raw[f"{modality.name}/categorical"] = np.stack(columns, axis=1)
        return raw

    def check_options(self, options: FitOptions, names: list[str]) -> None:
        _check_numbers(options.numbers, options.bins)

    def fit(self, modality: Modality, rows: Rows, options: FitOptions) -> FittedTable:
        raw, name = self.decode(modality, rows), modality.name
        columns = raw[f"{name}/numeric"], raw.get(f"{name}/categorical")
        return FittedTable.fit(modality, *columns, options.numbers, options.bins)

    def guess(self, column: pl.Series) -> Guess | None:
        if column.dtype.is_numeric() or column.dtype == pl.Boolean:
            return Guess(BY_TYPE, "number")
        if column.dtype != pl.String:
            return None
        is_number = numerals.plain(column).is_finite().fill_null(False).all()
        if is_number and not column.str.contains(r"^0\d").any():  # 0401 is a code
            return Guess(BY_TYPE, "number")
        few = column.n_unique() <= min(FEW_CATEGORIES, max(2, len(column) // 5))
        return Guess(BY_COUNT, "category") if few else None


TABULAR = Tabular()


def _units(value: object, columns: Sequence[str], where: str) -> dict[str, str]:
    """Returns the unit that may stand behind numbers, by column, or raises UserError."""
    units = mapping(value, where, tuple(columns), tuple(columns))
    return {column: string(unit, f"{where}.{column}") for column, unit in units.items()}


def _missing_words(value: object, where: str) -> list[str]:
    """Returns words and numbers that mean missing as strings, or raises UserError."""
    if not isinstance(value, list) or not all(isinstance(word, str | int | float) for word in value):
        raise UserError(f"{where} must be a list of words and numbers such as [-999, unknown]")
    return [str(word).strip() for word in value]


def _check_numbers(numbers: str, bins: int) -> None:
    """Refuses an encoding of numbers that is unknown, and `bins` that are not positive."""
    if numbers not in NUMBERS:
        raise UserError(f"numbers: {numbers!r} is unknown{did_you_mean(numbers, NUMBERS)}; known: {', '.join(NUMBERS)}")
    if bins < 1:
        raise UserError(f"bins must be at least 1: {bins}")


def moments(seen: np.ndarray) -> tuple[float, float, float]:
    """Returns median, mean and standard deviation of a column's present values; 0 for what is not there or constant."""
    if not len(seen):
        return 0.0, 0.0, 0.0
    centre, spread = float(seen.mean()), float(seen.std())
    # The spread of equal numbers is rounding noise, not exactly 0.
    return float(np.median(seen)), centre, spread if spread > 1e-7 * max(abs(centre), 1e-30) else 0.0
