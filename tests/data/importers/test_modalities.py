"""Which columns become which modality: guesses, patterns, entries, and what does not go together."""

import polars as pl
import pytest

from remind_jax.data.importers import modalities
from remind_jax.errors import UserError

TABLE = pl.DataFrame(
    {
        "a_1": [1.0, 2.0, 3.0],
        "a_2": ["x", "x", "y"],
        "b[1]": [3, 4, 5],
        "note": ["in bed", "at home", "on a walk"],
        "plan": ["go home", "stay on", "wait and see"],
        "gone": pl.Series([None, None, None], dtype=pl.String),
    }
)


@pytest.mark.parametrize(
    ("given", "entries", "left_out"),
    [
        ({"a": ["a_*"]}, {"a": {"kind": "tabular", "columns": ["a_1"], "categorical": ["a_2"]}}, {}),
        (
            {"b": "b[1]"},
            {"b": {"kind": "tabular", "columns": ["b[1]"]}},
            {},
        ),  # its name, though no pattern that fits it
        ({"n": ["not?"]}, {"n": {"kind": "text", "column": "note"}}, {}),
        ({"x": ["a_1", "gone"]}, {"x": {"kind": "tabular", "columns": ["a_1"]}}, {"gone": "empty"}),
        (
            {"b": ["b*", "a_2"], "a": ["a_*"]},  # the first takes a column, in the order of the table
            {
                "b": {"kind": "tabular", "columns": ["b[1]"], "categorical": ["a_2"]},
                "a": {"kind": "tabular", "columns": ["a_1"]},
            },
            {},
        ),
        ({"n": {"kind": "text", "column": "pla*"}}, {"n": {"kind": "text", "column": "plan"}}, {}),
        (
            {"n": {"kind": "tabular", "columns": (), "categorical": ("a_*", "b*")}},
            {"n": {"kind": "tabular", "columns": [], "categorical": ["a_1", "a_2", "b[1]"]}},
            {},
        ),
    ],
)
def test_modalities_as_a_user_says(given, entries, left_out):
    assert modalities.declared(given, TABLE, {}) == (entries, left_out)


def test_kinds_override_guesses():
    entries, left_out = modalities.declared({"a": ["a_*"]}, TABLE, {"a_1": "category", "a_2": "skip"})
    assert (entries, left_out) == ({"a": {"kind": "tabular", "categorical": ["a_1"]}}, {"a_2": "skip"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a b": ["a_*"]}, "modality name 'a b' must be letters"),
        ({"label": ["a_*"]}, "modality name 'label'"),
        ({"a": ["c_*"]}, r"'a': no column matches 'c_\*'"),
        ({"a": []}, "'a' has no columns$"),
        ({"a": ["a_*"], "b": ["a_1"]}, "'b': column 'a_1' belongs to a modality before it"),
        ({"a": ["a_1", "note"]}, r"'a' has columns of several kinds: a_1 \(number\), note \(text\)"),
        ({"a": ["note", "plan"]}, "several kinds"),
        ({"a": ["gone"]}, r"no column of it can be used: gone \(empty\)"),
        ({"a": {"kind": "txt", "column": "note"}}, r"unknown kind 'txt' \(did you mean 'text'\?\)"),
        ({"a": {"kind": "text", "columns": ["note"]}}, "unknown key 'columns'"),
        ({"a": {"kind": "text", "column": "*"}}, "needs one column"),
        ({"a": {"kind": "tabular"}}, "needs columns or categorical"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        modalities.declared(given, TABLE, {})
    assert "\n" not in str(caught.value)


def test_names_of_single_columns_do_not_collide():
    frame = pl.DataFrame({"a b": TABLE["note"], "a_b": TABLE["plan"]})
    entries, _ = modalities.guessed("t", frame, {})
    assert {name: entry["column"] for name, entry in entries.items()} == {"a_b": "a b", "a_b_": "a_b"}
