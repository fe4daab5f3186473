"""Columns of tables become modalities: as a user says, by patterns or entries, and the rest by what they look like."""

import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from remind_jax.data.blocks import Columns
from remind_jax.data.findings import listed
from remind_jax.data.importers.columns import decide
from remind_jax.data.kinds import KINDS
from remind_jax.data.reading import parse_modality
from remind_jax.data.schema import RESERVED
from remind_jax.errors import UserError, did_you_mean

Entry = dict[str, Any]
"""What schema.yaml says of a modality."""
_SHOWN = 5  # columns that a message lists


def name_of(text: str) -> str:
    """Makes a modality's name of a text; the words that batches keep for themselves get a tail."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "table"
    return f"{name}_" if name in RESERVED else name


def free_name(name: str, taken: Collection[str]) -> str:
    """Returns a name that is not taken: `name`, or the same with a tail."""
    while name in taken:
        name += "_"
    return name


def columns_of(entry: Mapping[str, Any]) -> list[str]:
    """Lists the columns of a modality's entry."""
    return [entry["column"]] if "column" in entry else [*entry.get("columns", ()), *entry.get("categorical", ())]


def path_columns(table: pl.DataFrame | Columns, modalities: Mapping[str, Any]) -> list[str]:
    """Lists the columns of a table whose cells are paths."""
    kinds = {entry["column"]: entry["kind"] for entry in modalities.values() if "column" in entry}
    return [column for column, kind in kinds.items() if KINDS[kind].paths and table[column].dtype == pl.String]


def column_kinds() -> list[str]:
    """Lists what a column can be: a word of some kind of modality, or `skip`."""
    return [*(word for kind in KINDS.values() for word in kind.words), "skip"]


def declared(
    given: Mapping[str, Sequence[str] | Mapping[str, Any]], table: Columns, kinds: Mapping[str, str]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Makes the modalities that a user describes, in the given order.

    `given` maps names to patterns of columns as in a shell, or to an entry as in schema.yaml, whose columns may be
    patterns, too. A column belongs to the first modality that matches it. `kinds` are kinds of columns where the guess
    is wrong.

    Returns entries by name, and by column why one that a pattern matches is left out. Raises UserError: an entry is
    not valid, a pattern matches nothing, or columns do not go together.
    """
    left, entries, unfit = list(table.columns), {}, {}
    for name, wanted in given.items():
        if isinstance(wanted, Mapping):
            entries[name] = _filled(name, wanted, table.columns, left)
        else:
            found = _matching(name, [wanted] if isinstance(wanted, str) else wanted, table.columns, left)
            entries[name], skipped = _one(name, _words(table.select(found), kinds))
            if wrong := [c for c, why in skipped.items() if c in wanted and why != "empty"]:
                hint = "name its kind, or leave it out"
                raise UserError(f"modality {name!r}: column {wrong[0]!r} cannot be used ({skipped[wrong[0]]}); {hint}")
            unfit |= skipped
        parse_modality(name, entries[name], 1, 1)  # refuses what a schema must not say
        left = [c for c in left if c not in {*columns_of(entries[name]), *unfit}]
    return entries, unfit


def guessed(part: str, table: Columns, kinds: Mapping[str, str]) -> tuple[dict[str, Entry], dict[str, str]]:
    """Makes modalities of all columns of a table, called `part`: those of several columns first.

    Returns entries by name, and by column why it is left out; `kinds` are as for `declared`.
    """
    together, alone, unfit = _sorted(_words(table, kinds))
    entries = {name_of(part if len(together) == 1 else f"{part}_{entry['kind']}"): entry for entry in together}
    for entry in alone:
        entries[free_name(name_of(entry["column"]), entries)] = entry
    return entries, unfit


def _words(table: Columns, kinds: Mapping[str, str]) -> dict[str, str]:
    return {column: kinds.get(column) or decide(table[column]).word for column in table.columns}


def _sorted(words: Mapping[str, str]) -> tuple[list[Entry], list[Entry], dict[str, str]]:
    """Makes entries of columns by their words: those of several columns, those of one, and the words of no kind."""
    together: dict[str, Entry] = {}
    alone, unfit = [], {}
    for column, word in words.items():
        kind = next((kind for kind in KINDS.values() if word in kind.words), None)
        if kind is None:
            unfit[column] = word
        elif kind.words[word] == "column":
            alone.append({"kind": kind.name, "column": column})
        else:
            lists = {key: [] for key in kind.words.values()}
            together.setdefault(kind.name, {"kind": kind.name} | lists)[kind.words[word]].append(column)
    return [{key: value for key, value in e.items() if value} for e in together.values()], alone, unfit


def _one(name: str, words: Mapping[str, str]) -> tuple[Entry, dict[str, str]]:
    """Makes the one entry that columns with these words can be; raises UserError when there is none or several."""
    together, alone, unfit = _sorted(words)
    if len(together) + len(alone) == 1:
        return [*together, *alone][0], unfit
    what = listed([f"{column} ({word})" for column, word in words.items()], _SHOWN)
    if not together and not alone:
        raise UserError(f"modality {name!r}: no column of it can be used: {what}; name its kind, or leave it out")
    hint = "numbers and categories go together, any other column needs a modality of its own"
    raise UserError(f"modality {name!r} has columns of several kinds: {what}; {hint}")


def _filled(name: str, entry: Mapping[str, Any], columns: Sequence[str], left: Sequence[str]) -> Entry:
    """Returns an entry with the columns that its patterns match."""
    filled = {key: list(value) if isinstance(value, tuple) else value for key, value in entry.items()}
    parse_modality(name, filled, 1, 1)
    for key in ("column", "columns", "categorical"):
        if not filled.get(key):
            continue
        found = _matching(name, [filled[key]] if key == "column" else filled[key], columns, left)
        if key == "column" and len(found) > 1:
            raise UserError(f"modality {name!r} needs one column, {filled[key]!r} matches {listed(found, _SHOWN)}")
        filled[key] = found[0] if key == "column" else found
        left = [c for c in left if c not in found]
    return filled


def _matching(name: str, patterns: Iterable[str], columns: Sequence[str], left: Sequence[str]) -> list[str]:
    """Returns the columns left that patterns match, in the order of the table; a column's own name matches it."""
    found: set[str] = set()
    for pattern in map(str, patterns):
        matched = {c for c in columns if c == pattern or fnmatch.fnmatchcase(c, pattern)}
        if not matched:
            raise UserError(f"modality {name!r}: no column matches {pattern!r}{did_you_mean(pattern, columns)}")
        if pattern in columns and pattern not in left:
            raise UserError(f"modality {name!r}: column {pattern!r} belongs to a modality before it")
        found |= matched
    free = [c for c in left if c in found]
    if not free:
        why = f": {listed(sorted(found), _SHOWN)} belong to modalities before it" if found else ""
        raise UserError(f"modality {name!r} has no columns{why}")
    return free
