import json

import numpy as np
import pytest

from remind_jax.data import groups
from remind_jax.errors import UserError

NAMES = ("note", "labs", "icd")


def slow_table(presence):
    """Combinations by a plain dictionary, most frequent first, ties by bit mask."""
    counts = {}
    for row in presence:
        key = sum(1 << j for j, here in enumerate(row) if here)
        counts[key] = counts.get(key, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("width", [1, 3, 8, 63, 64, 65, 130])
def test_fit_and_index_agree_with_a_dictionary_at_any_width(width):
    rng = np.random.default_rng(width)
    kinds = rng.random((12, width)) > 0.5
    kinds[:, 0] |= ~kinds.any(axis=1)
    presence = kinds[rng.integers(0, 12, 300)]
    fitted = groups.Groups.fit(presence, [f"m{j}" for j in range(width)])
    expected = slow_table(presence)
    assert [groups.bitmask(mask) for mask in fitted.masks] == [key for key, _ in expected]
    assert fitted.train_counts.tolist() == [count for _, count in expected]
    position = {key: i for i, (key, _) in enumerate(expected)}
    np.testing.assert_array_equal(fitted.index(presence), [position[groups.bitmask(row)] for row in presence])
    assert fitted.index(presence).dtype == np.int32


def test_groups_survive_json():
    fitted = groups.Groups.fit(np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]], bool), NAMES, tail_below=0.5)
    again = groups.Groups.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert (again.names, again.tail.tolist()) == (("note+icd", "labs"), [False, True])
    np.testing.assert_array_equal(again.train_counts, fitted.train_counts)
    presence = np.array([[0, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    np.testing.assert_array_equal(again.index(presence), fitted.index(presence))


def test_bitmask_of_a_wide_mask_is_exact():
    mask = np.zeros(100, bool)
    mask[[0, 3, 99]] = True
    assert groups.bitmask(mask) == 1 + 8 + 2**99


def test_names_are_joined_in_declared_order():
    assert groups.group_name(np.array([True, False, True]), NAMES) == "note+icd"


def test_unseen_combination_has_the_index_after_the_last_group():
    fitted = groups.Groups.fit(np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0]], bool), NAMES)
    assert fitted.names == ("note+labs", "note")
    assert fitted.index(np.array([[0, 0, 1], [1, 0, 0], [1, 1, 0]], bool)).tolist() == [2, 1, 0]
    assert fitted.index(np.zeros((0, 3), bool)).tolist() == []


def test_tail_is_below_fifteen_percent_and_not_at_it():
    presence = np.array([[1, 1, 1]] * 71 + [[1, 0, 0]] * 15 + [[0, 1, 0]] * 14, bool)
    fitted = groups.Groups.fit(presence, NAMES)
    assert dict(zip(fitted.names, fitted.tail.tolist(), strict=True)) == {
        "note+labs+icd": False,
        "note": False,
        "labs": True,
    }
    np.testing.assert_allclose(fitted.frequencies, [0.71, 0.15, 0.14])


def test_explicit_tail_replaces_the_rule_whatever_the_order_of_names():
    presence = np.array([[1, 1, 1]] * 90 + [[1, 1, 0]] * 10, bool)
    fitted = groups.Groups.fit(presence, NAMES, tail=["icd+note+labs", "icd"])
    assert fitted.tail.tolist() == [True, False]


def test_unknown_tail_name_is_refused_with_a_hint():
    with pytest.raises(UserError, match=r"'lab' is not a modality.*did you mean 'labs'"):
        groups.Groups.fit(np.ones((3, 3), bool), NAMES, tail=["note+lab"])


def test_training_row_without_modality_is_refused():
    with pytest.raises(UserError, match="E004"):
        groups.Groups.fit(np.array([[1, 0, 0], [0, 0, 0]], bool), NAMES)


def test_mask_auroc_sees_a_mask_that_tells_the_label_and_not_one_that_does_not():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    patients = np.array([f"p{i // 2}" for i in range(900)])
    blind = rng.random((900, 3)) > 0.5
    telling = blind.copy()
    telling[:, 1] = labels == 2
    assert groups.mask_auroc(blind, labels, patients) < 0.56
    # One class is told perfectly (area 1), each of the others from two of three classes (area 3/4): mean 5/6.
    assert groups.mask_auroc(telling, labels, patients) == pytest.approx(5 / 6, abs=0.02)


def test_mask_auroc_needs_a_varying_mask_and_patients():
    labels = np.arange(40) % 2
    patients = np.arange(40).astype(str)
    mask = np.arange(80).reshape(40, 2) % 3 > 0
    assert groups.mask_auroc(mask, labels, patients) is not None
    assert groups.mask_auroc(np.ones((40, 2), bool), labels, patients) is None
    assert groups.mask_auroc(mask, labels, np.array(["a", "b"] * 20)) is None


def test_damaged_parts_are_refused():
    whole = groups.Groups.fit(np.array([[True, False], [True, True]]), ("a", "b"))
    for key, value in {"modalities": ["a"], "train_counts": [1], "tail": []}.items():
        with pytest.raises(ValueError, match="do not fit"):
            groups.Groups.from_dict(whole.to_dict() | {key: value})
