"""Labels as people write them: classes, forms, words for missing, and what is no class."""

import polars as pl
import pytest

from remind_jax.data import labels
from remind_jax.errors import UserError


def _read(cells, **options):
    return labels.read(pl.Series("y", cells), **options)


@pytest.mark.parametrize(
    ("cells", "names", "classes"),
    [
        (["0", "0.0", "1", "1.00"], ["0", "0", "1", "1"], ["0", "1"]),
        ([0.0, 1.0, float("nan"), None], ["0", "1", None, None], ["0", "1"]),
        (["Yes", "yes", "yes", " No "], ["yes", "yes", "yes", "No"], ["No", "yes"]),
        (["True", "1", "False", "0"], ["1", "1", "0", "0"], ["0", "1"]),
        (["true", "yes", "no", "no"], ["yes", "yes", "no", "no"], ["no", "yes"]),
        (["Y", "y", "n", "N"], ["Y", "Y", "N", "N"], ["N", "Y"]),
        (["None", "Mild", "Severe"], ["None", "Mild", "Severe"], ["Mild", "None", "Severe"]),
        (["none", "None", "Mild", ""], ["None", "None", "Mild", None], ["Mild", "None"]),
        (["None", "1", "0", "NA"], [None, "1", "0", None], ["0", "1"]),
        (["None", "True", "False"], [None, "True", "False"], ["False", "True"]),
        (["NA", "Mild", "Severe", "null"], [None, "Mild", "Severe", None], ["Mild", "Severe"]),
        (["10", "2", "1.50", "1.5"], ["10", "2", "1.5", "1.5"], ["1.5", "2", "10"]),
        (["01", "02", "01"], ["01", "02", "01"], ["01", "02"]),
        (["a  b", "a b", "c"], ["a b", "a b", "c"], ["a b", "c"]),
        ([True, False, None], ["true", "false", None], ["false", "true"]),
    ],
)
def test_forms_of_one_value_are_one_class(cells, names, classes):
    found = _read(cells)
    assert found.cells.to_list() == names
    assert found.classes == classes


def test_what_was_done_is_told():
    assert _read(["Yes", "yes", "no", "NA"]).notes == [
        "label y: 1 cells with a word for missing (NA); listed among the classes it is one",
        "label y: forms of one value are one class: Yes = yes",
    ]
    assert _read(["a", "b"]).notes == []


def test_declared_classes_are_kept_in_their_order():
    found = _read(["NA", "b", "B", "a", "c"], declared=["b", "NA", "a"])
    assert found.classes == ["b", "NA", "a"]
    assert found.cells.to_list() == ["NA", "b", "b", "a", "c"]
    assert _read(["a", "A"], declared=["a", "A"]).cells.to_list() == ["a", "A"]
    many = [str(i) for i in range(40)]
    assert _read(many, declared=many).classes == many


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([i / 7 for i in range(60)], "60 different values: this is a number, not a class"),
        ([str(i) for i in range(60)], "60 different values: this is a number, not a class"),
        ([f"Jane {i} went home and is well, Jane said" for i in range(30)], "30 different texts of many words"),
        (["a", "b", "x" * 61], "3 different texts of many words"),
        (["a", "b", "患者主诉胸痛三天伴呼吸困难患者主诉"], "3 different texts"),
        ([f"Jane{i}" for i in range(60)], "60 different values in 60 rows"),
        ([1.0, float("inf")], r"1 cell \(row 2\) infinite"),
    ],
)
def test_what_is_no_class_is_refused_without_its_cells(cells, message):
    with pytest.raises(UserError, match=message) as caught:
        _read(cells)
    assert "Jane" not in str(caught.value)


def test_a_class_that_is_a_mark_is_told():
    assert labels.read(pl.Series("y", ["a", "b", "?"])).notes == [
        "label y: ? is a class; --missing=? reads it as no label"
    ]
    assert not labels.read(pl.Series("y", ["a", "b", "?"]), ["a", "b", "?"]).notes


@pytest.mark.parametrize(
    ("cells", "classes", "names"),
    [
        ([True, False, None], ["0", "1"], ["1", "0", None]),
        (["1.0", " 0 ", "7", "NA"], ["0", "1"], ["1", "0", "7", None]),
        (["YES", "no", "maybe", "1"], ["no", "yes"], ["yes", "no", "maybe", "yes"]),
        (["1", "01", "1.0"], ["01", "1"], ["1", "01", "1"]),  # 01 is a code
        (["1.0", "Yes"], ["1", "0", "yes"], ["1", "yes"]),
        (["a", "A"], ["a", "A"], ["a", "A"]),
        (["a  b", "none", "NA"], ["a  b", "None"], ["a  b", "None", None]),
    ],
)
def test_labels_of_known_classes_take_their_spelling(cells, classes, names):
    assert labels.as_classes(pl.Series("y", cells), classes).to_list() == names
