"""Attributes: columns by whose values figures are given, such as sex, age in bins or hospital.

    attributes: {sex: sex, site: hospital, age: {column: age, bins: [40, 65, 80]}}

No column is an input by being named here; one that a modality has, too, is told. An empty cell is not recorded, which
is a value of its own.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import polars as pl

from remind_jax.data import numerals
from remind_jax.data.cells import as_string, trim
from remind_jax.data.findings import Finding, in_rows
from remind_jax.data.schema import Attribute, Schema, mapping, shown, string
from remind_jax.errors import UserError

MOST = 20
"""Most values of an attribute: with more of them figures of each say nothing."""
PREFIX = "attribute_"
"""Begins the names of columns of attributes in tables of predictions."""


def parse(entry: object) -> tuple[Attribute, ...]:
    """Reads the entry `attributes` of schema.yaml, or None. Raises UserError: it is none."""
    if entry is None:
        return ()
    if not isinstance(entry, dict) or not entry:
        raise UserError("attributes must be a mapping such as {sex: sex, age: {column: age, bins: [40, 65]}}")
    found = tuple(_parse_one(string(name, "a name in attributes"), one) for name, one in entry.items())
    if len({each.column for each in found}) < len(found):
        raise UserError("attributes: two of them name the same column")
    return found


def _parse_one(name: str, entry: object) -> Attribute:
    where = f"attributes.{name}"
    if not isinstance(entry, dict):
        return Attribute(name, string(entry, where))
    given = mapping(entry, where, ("column", "bins"))
    bins = given["bins"]
    if not isinstance(bins, list) or not bins or not all(type(x) in (int, float) for x in bins):
        raise UserError(f"{where}.bins must be a list of numbers, not {shown(bins)}")
    if not all(a < b for a, b in itertools.pairwise(bins)) or not np.isfinite(bins).all():
        raise UserError(f"{where}.bins must ascend, and be finite")
    return Attribute(name, string(given["column"], f"{where}.column"), tuple(float(x) for x in bins))


def values(attribute: Attribute, table: pl.DataFrame) -> pl.Series:
    """Returns the value of each row [n], null where it is not recorded: a string, or of bins their names in order."""
    column = table[attribute.column]
    if not attribute.bins:
        return _text(column)
    number, names = _numbers(column), bin_names(attribute.bins)
    place = pl.Series(np.searchsorted(np.array(attribute.bins), number.fill_null(0.0).to_numpy(), side="right"))
    return pl.Series(names, dtype=pl.Enum(names)).gather(place.set(number.is_null(), None))


def bin_names(bins: tuple[float, ...]) -> list[str]:
    """Names the ranges that edges make; an edge belongs to the range above it."""
    inner = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(bins)]
    return [f"below {bins[0]:g}", *inner, f"{bins[-1]:g} or more"]


def columns(schema: Schema, table: pl.DataFrame) -> dict[str, pl.Series]:
    """Returns the attributes of rows as columns of a table of predictions."""
    return {PREFIX + each.name: values(each, table) for each in schema.attributes}


def problems(schema: Schema, table: pl.DataFrame) -> Iterator[Finding]:
    """Finds attributes of too many values (E010), cells that are no numbers (W114), and attributes that are inputs."""
    owners = {column: each.name for each in schema.modalities for column in each.all_columns}
    for each in schema.attributes:
        where, column = f"attribute {each.name!r}", table[each.column]
        if each.bins and (odd := (_text(column).is_not_null() & _numbers(column).is_null())).any():
            yield Finding("W114", f"{where}: {in_rows(odd)} with no number count as not recorded", False)
        if (count := values(each, table).n_unique()) > MOST:
            remedy = f"give bins: {each.name}: {{column: {each.column}, bins: [40, 65]}}"
            yield Finding("E010", f"{where} has {count:,} values, more than {MOST}; {remedy}, or leave it out", True)
        if each.column in owners:
            text = f"{where} is an input, too: modality {owners[each.column]!r} has its column"
            yield Finding("W115", f"{text}, so that the model may use it", False)


def _text(column: pl.Series) -> pl.Series:
    return trim(as_string(column))


def _numbers(column: pl.Series) -> pl.Series:
    number = column.cast(pl.Float64) if column.dtype.is_numeric() else numerals.plain(_text(column))
    return number.set(~number.is_finite().fill_null(False), None)
