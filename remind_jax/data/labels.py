"""Labels as people write them become classes: forms of one value are one class, and what is no class is refused."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import polars as pl

from remind_jax.data.cells import as_string, looks_missing, trim
from remind_jax.data.findings import listed
from remind_jax.errors import UserError

MOST_NUMBERS, MOST_NAMES = 20, 50  # different values of a label that are taken for classes
_WORDS, _SIGNS = 6, 60  # of the longest name of a class
_PAIRS = (("1", "0"), ("true", "false"), ("yes", "no"), ("y", "n"), ("t", "f"))
_SAME = {word: positive for pair in _PAIRS for word, positive in zip(pair, (True, False), strict=True)}


class Labels(NamedTuple):
    """The label of each row."""

    cells: pl.Series  # String [n], null without a label
    classes: list[str]  # in order
    notes: list[str]


def read(column: pl.Series, declared: Sequence[str] = ()) -> Labels:
    """Makes classes of a label's cells [n].

    `0` and `0.0`, `Yes` and `yes`, and words and numbers for true and false are one class. Empty cells, NaN and words
    for missing are no label; but `None` next to classes that are words is one of them. With `declared` names these are
    the classes in their order, and a cell that is one of them is never missing.

    Raises UserError: no row has a label, or the label is a number, a time, free text, or has too many values to be a
    class; without any of its cells.
    """
    if column.dtype.is_temporal():
        raise UserError(f"label {column.name!r} holds times, which are no classes: make a few classes of them")
    text = _text(column, declared)
    words = looks_missing(text) & text.is_not_null() & ~text.is_in(list(declared))
    others = text.filter(~words).drop_nulls().unique()
    notes = []
    is_word = len(others) and not any(_number(form) is not None or form.lower() in _SAME for form in others.to_list())
    if is_word and not declared:  # "None" of None, Mild, Severe
        named = words & (text.str.to_lowercase() == "none").fill_null(False)
        if named.any():
            notes.append(
                f"label {column.name}: {int(named.sum()):,} cells None are a class; empty them if they are none"
            )
        words &= ~named
    if words.any():
        shown = listed(sorted(set(text.filter(words).to_list())))
        hint = "listed among the classes it is one"
        notes.append(f"label {column.name}: {int(words.sum()):,} cells with a word for missing ({shown}); {hint}")
    text = text.set(words, None)
    if not text.count():
        raise UserError(f"column {column.name!r} has no label in any row")
    if not declared:
        _refuse_what_is_no_class(column.name, text)
    names = _names(text, declared)
    if merged := [f"{name} = {form}" for form, name in sorted(names.items()) if form != name]:
        notes.append(f"label {column.name}: forms of one value are one class: {listed(merged, 8)}")
    cells = text.replace(names)
    classes = list(declared) or in_order(cells.drop_nulls().unique().to_list())
    if marks := [name for name in classes if name not in declared and re.fullmatch(r"[\W_]+", name)]:
        notes.append(f"label {column.name}: {listed(marks)} is a class; --missing={marks[0]} reads it as no label")
    return Labels(cells.alias(column.name), classes, notes)


def as_classes(column: pl.Series, classes: Sequence[str]) -> pl.Series:
    """Returns labels [n] of known classes in their spelling; words for missing become null, what is no class stays."""
    text = _text(column, classes)
    found = text.replace(_names(text, classes))
    return found.set(looks_missing(found) & ~found.is_in(list(classes)), None)


def positive(classes: Sequence[str]) -> int | None:
    """Returns which of two classes stands for yes, true or 1, where the other is its opposite; None for others."""
    found = [_SAME.get(_plain(name)) for name in classes]
    return found.index(True) if sorted(map(str, found)) == ["False", "True"] else None


def _text(column: pl.Series, declared: Sequence[str]) -> pl.Series:
    """Returns labels without blanks around them, single ones within unless a class has more; blank ones are null."""
    text = trim(as_string(column.fill_nan(None) if column.dtype.is_float() else column))
    return text.zip_with(text.is_in(list(declared)).fill_null(False), text.str.replace_all(r"\s+", " "))


def in_order(classes: Iterable[str]) -> list[str]:
    """Sorts classes: numbers by their values when all are numbers, else as texts."""
    classes = list(classes)
    values = {name: _number(name) for name in classes}
    if None in values.values():
        return sorted(classes)
    return sorted(classes, key=lambda name: (values[name], name))


def _number(text: str) -> float | None:
    """Returns the value of a finite number, None for anything else, as for a code such as 01."""
    try:
        value = float(text) if re.fullmatch(r"[+-]?(?!0\d)[\d.]+([eE][+-]?\d+)?", text) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _refuse_what_is_no_class(name: str, text: pl.Series) -> None:
    forms = text.drop_nulls().unique().to_list()
    values = {_number(form) for form in forms} - {None}
    if len(values) > MOST_NUMBERS and len(values) > len(forms) // 2:
        hint = "take it as a value (task regression), or make a column of a few classes of it"
        raise UserError(f"label {name!r}: {len(values):,} different values: this is a number, not a class; {hint}")
    scripts = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]{15,}"
    long = [form for form in forms if len(form.split()) > _WORDS or len(form) > _SIGNS]
    if long or text.str.contains(scripts).any():
        hint = "name a column of classes, or give them names of a few words"
        raise UserError(f"label {name!r}: {len(forms):,} different texts of many words: this is no class; {hint}")
    if len(forms) > MOST_NAMES or (len(forms) > MOST_NUMBERS and len(forms) > text.count() // 5):
        hint = "name a column of few classes, or list its values as classes"
        raise UserError(f"label {name!r}: {len(forms):,} different values in {text.count():,} rows: no class; {hint}")


def _names(text: pl.Series, declared: Sequence[str]) -> dict[str, str]:
    """Returns by the form of a cell the name of its class."""
    counts = dict(text.drop_nulls().value_counts().iter_rows())
    keys = {form: _key(form) for form in [*counts, *declared]}
    plain = {form: _SAME.get(_plain(form)) for form in keys}
    both = {plain[form] for form in declared or counts} == {True, False}  # words and numbers for yes and no
    pair = {form: key if not both or plain[form] is None else plain[form] for form, key in keys.items()}
    every = (pair, keys, {form: form for form in keys})  # classes that are declared are different ones
    groups = next(each for each in every if len({each[name] for name in declared}) == len(set(declared)))
    by_key: dict[object, list[str]] = {}
    for form in sorted(counts, key=lambda form: (-counts[form], form)):
        by_key.setdefault(groups[form], []).append(form)
    known = {groups[name]: name for name in declared}
    names = {key: known.get(key) or _name(forms) for key, forms in by_key.items()}
    if both and not declared:
        names |= _pair([form for forms in by_key.values() for form in forms], names)
    return {form: form if form in declared else names[groups[form]] for form in counts}


def _key(form: str) -> float | str:
    """Returns what forms of one value share: the number, or the word without its capitals."""
    value = _number(form)
    return form.casefold() if value is None else value


def _plain(form: str) -> str:
    """Returns that in one spelling, as `_PAIRS` has it."""
    key = _key(form)
    return f"{key:g}" if isinstance(key, float) else key


def _name(forms: list[str]) -> str:
    """Returns the name of the forms of one value: the shortest of a number, the most frequent of a word."""
    if _number(forms[0]) is None:
        return forms[0]
    return min((re.sub(r"\.0*$", "", form) for form in forms), key=lambda form: (len(form), form))


def _pair(forms: list[str], names: dict[object, str]) -> dict[object, str]:
    """Returns names of yes and no that go together, where their most frequent forms do not."""
    used = {key: _plain(name) for key, name in names.items()}
    if (used.get(True), used.get(False)) in _PAIRS:
        return {}
    there = {_plain(form) for form in forms}
    pair = next((pair for pair in _PAIRS if set(pair) <= there), _PAIRS[0])
    return {True: pair[0], False: pair[1]}
