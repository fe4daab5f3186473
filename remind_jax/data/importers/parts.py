"""A table of samples and the tables joined to it, row by row: ids, columns, and where each row came from."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.findings import in_rows, listed
from remind_jax.data.importers import keys
from remind_jax.data.importers.columns import INDEX, is_index
from remind_jax.data.importers.modalities import free_name
from remind_jax.errors import UserError


class Parts(NamedTuple):
    """The rows that are used of all tables, in the order of the samples."""

    ids: dict[str, pl.Series]  # of samples, then, where a column has them, of patients, by column
    tables: dict[str, pl.DataFrame]  # of inputs by name, the samples' own first; null where a sample has no row
    rows: dict[str, np.ndarray]  # by table the row of each sample in it, [n], from 1
    left_out: dict[str, str]  # by column why
    notes: list[str]

    def side_by_side(self, taken: Iterable[str]) -> tuple[pl.DataFrame, dict[str, str]]:
        """Returns the columns of all tables as one, and each one's table; names that are taken get others."""
        columns: dict[str, pl.Series] = {}
        owners: dict[str, str] = {}
        for part, frame in self.tables.items():
            others = {*taken, *columns}
            for column in frame.iter_columns():
                new = column.name
                if new in others:
                    new = free_name(f"{part}_{new}", others | set(frame.columns))
                columns[new], owners[new] = column, part
        return pl.DataFrame(columns), owners


def read(
    table: pl.DataFrame,
    roles: tuple[str, str, str, str],
    name: str,
    joined: Mapping[str, pl.DataFrame],
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
    ids, found = _matched(own, joined, match, keep)
    if sample:
        _refuse_doubles(ids[sample], keep)
    else:
        counted = pl.Series([str(i + 1) for i in keep.tolist()], dtype=pl.String)
        ids = {free_name("sample_id", table.columns): counted} | ids
    inputs = table.drop(c for c in dict.fromkeys(roles) if c)[keep]
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
    own: Mapping[str, pl.Series], joined: Mapping[str, pl.DataFrame], match: str, keep: np.ndarray
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
            rest = joined[part].drop(key for key in own if key in joined[part].columns)
            found[part] = keys.join(everyone, alike[f"table {part}"], rest, part, c, keep)
    return ids, {part: found[part] for part in joined}


def _refuse_doubles(ids: pl.Series, keep: np.ndarray) -> None:
    double = ids.is_duplicated().to_numpy()
    if double.any():
        rows = listed((keep[double] + 1).tolist())
        text = f"{double.sum():,} rows have an id that another row has (rows {rows}); make ids unique"
        raise UserError(f"column {ids.name!r}: {text}")
