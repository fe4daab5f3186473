"""A table of samples and the tables joined to it, row by row: ids, columns, and where each row came from."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.blocks import Columns
from remind_jax.data.findings import in_rows, listed
from remind_jax.data.importers import keys
from remind_jax.data.importers.columns import INDEX, is_index
from remind_jax.data.importers.modalities import free_name
from remind_jax.errors import UserError


class Parts(NamedTuple):
    """The rows that are used of all tables, in the order of the samples."""

    ids: dict[str, pl.Series]  # of samples, then, where a column has them, of patients, by column
    tables: dict[str, Columns]  # of inputs by name, the samples' own first; null where a sample has no row
    rows: dict[str, np.ndarray]  # by table the row of each sample in it, [n], from 1
    left_out: dict[str, str]  # by column why
    notes: list[str]

    def side_by_side(self, taken: Iterable[str]) -> tuple[Columns, dict[str, str]]:
        """Returns the columns of all tables as one, and each one's table; names that are taken get others."""
        columns: Columns | None = None
        owners: dict[str, str] = {}
        for part, frame in self.tables.items():
            others, new = {*taken, *owners}, {}
            for name in frame.columns:
                new[name] = free_name(f"{part}_{name}", others | set(frame.columns)) if name in others else name
            renamed = frame.rename(new)
            columns = renamed if columns is None else columns.beside(renamed)
            owners |= dict.fromkeys(renamed.columns, part)
        return columns, owners


def read(
    table: Columns,
    roles: tuple[str, str, str, str],
    name: str,
    joined: Mapping[str, Columns],
    keep: np.ndarray,
    match: str,
    named: Collection[str],
) -> Parts:
    """Reads ids and joins tables by them.

    Args:
      table: of the samples.
      roles: the columns of label, samples, patients and splits, "" for none; label and split of other tables are no
        inputs.
      name: of that table.
      joined: other tables by name.
      keep: the rows that are used, int [n] from 0.
      match: one of `keys.MATCHES`.
      named: columns that the user has named, which are not taken for an index.

    Raises UserError: ids are empty or not unique, or a table cannot be joined.
    """
    label, sample, patient, split = roles
    own = {c: keys.texts(table[c]) for c in dict.fromkeys((sample, patient)) if c}
    inputs = table.drop(roles).take(keep)
    ids, found = _matched(own, joined, match, keep, inputs.bounds)
    if sample:
        _refuse_doubles(ids[sample], keep)
    else:
        counted = pl.Series([str(i + 1) for i in keep.tolist()], dtype=pl.String)
        ids = {free_name("sample_id", table.columns): counted} | ids
    rows = {name: keep + 1} | {part: each.rows.to_numpy() for part, each in found.items()}
    left_out, notes = {}, [note for each in found.values() for note in each.notes]
    tables = {}
    for part, frame in ({name: inputs} | {part: each.table for part, each in found.items()}).items():
        raw = table if part == name else joined[part]
        counts = [c for c in frame.columns if c not in named and is_index(raw[c])]
        left_out |= dict.fromkeys(counts, INDEX)
        known = [c for c in (label, split) if c and c in frame.columns]  # the outcome is no input
        notes += [f"{part}: column {c!r} is left out, which the first table has" for c in known]
        tables[part] = frame.drop({*counts, *known})
    return Parts(ids, tables, rows, left_out, notes)


def _matched(
    own: Mapping[str, pl.Series], joined: Mapping[str, Columns], match: str, keep: np.ndarray, bounds: np.ndarray
) -> tuple[dict[str, pl.Series], dict[str, keys.Joined]]:
    """Returns the samples' ids by column, of the rows to keep, and the joined tables in their order."""
    for c, ids in own.items():
        bad = ids.is_null().to_numpy() & np.isin(np.arange(len(ids)), keep)
        if bad.any():
            raise UserError(f"column {c!r}: {in_rows(bad)} empty; every row needs an id")
    by: dict[str, str] = {}
    for part, other in joined.items():
        if (key := next((c for c in own if c in other.columns), None)) is None:
            wanted = " or ".join(own) or "an id (name it with --sample or --patient)"
            raise UserError(f"the table {part!r} has no column {wanted} to join it by")
        by[part] = key
    found: dict[str, keys.Joined] = {}
    ids = {}
    for c in own:
        others = {f"table {part}": keys.texts(joined[part][c]) for part, key in by.items() if key == c}
        alike = keys.alike({f"column {c}": own[c]} | others, match)
        everyone = alike[f"column {c}"]
        ids[c] = everyone.gather(keep).alias(c)
        for part in (part for part, key in by.items() if key == c):
            found[part] = keys.join(everyone, alike[f"table {part}"], joined[part].drop(own), part, c, keep, bounds)
    return ids, {part: found[part] for part in joined}


def _refuse_doubles(ids: pl.Series, keep: np.ndarray) -> None:
    double = ids.is_duplicated().to_numpy()
    if double.any():
        rows = listed((keep[double] + 1).tolist())
        text = f"{double.sum():,} rows have an id that another row has (rows {rows}); make ids unique"
        raise UserError(f"column {ids.name!r}: {text}")
