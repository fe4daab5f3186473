"""The 25 conditions: which codes have which, and that no code has two."""

import itertools

import polars as pl
import pytest

from remind_jax.data.sources.phenotypes import LABEL, PHENOTYPES, told


def test_they_are_the_25_of_the_benchmark_as_labels():
    assert len(PHENOTYPES) == 25
    assert (LABEL["label"], *LABEL["more_labels"]) == LABEL["classes"] == tuple(PHENOTYPES)


@pytest.mark.parametrize("version", [0, 1])
def test_no_code_has_two_of_them(version):
    """No beginning of one is a beginning of another's, so each code has one; those that stand alone end there."""
    for one, other in itertools.permutations(PHENOTYPES, 2):
        for a, b in itertools.product(PHENOTYPES[one][version].split(), PHENOTYPES[other][version].split()):
            assert not b.startswith(a), (one, other, a, b)


@pytest.mark.parametrize(
    ("version", "code", "expected"),
    [
        (9, "4280", "congestive_heart_failure"),
        (10, "I509", "congestive_heart_failure"),
        (9, "5849", "acute_renal_failure"),
        (10, "N179", "acute_renal_failure"),
        (9, "0389", "septicemia"),
        (9, "99592", "septicemia"),
        (10, "R6520", "septicemia"),
        (9, "78552", "shock"),
        (10, "R6521", "shock"),
        (10, "E1121", "diabetes_with_complications"),
        (10, "E119", "diabetes_without_complication"),
        (9, "4019", "essential_hypertension"),
        (9, "4010", "hypertension_with_complications"),
        (9, "4140", "coronary_atherosclerosis"),
        (9, "41412", None),  # a dissection, of another category, though 4140 is a code by itself
        (9, "V420", "chronic_kidney_disease"),
        (10, "V420XXA", None),  # someone in a car
        (9, "I509", None),
        (10, "4280", None),
        (9, "7999", None),
    ],
)
def test_codes_have_the_category_of_the_published_tables(version, code, expected):
    row = told(pl.DataFrame({"stay": [7], "icd_version": [version], "icd_code": [code]}), "stay").row(0, named=True)
    assert row.pop("stay") == 7
    assert [name for name, value in row.items() if value] == ([expected] if expected else [])
    assert set(row.values()) <= {0.0, 1.0}


def test_all_codes_of_a_key_count():
    codes = pl.DataFrame({"stay": [1, 1, 2], "icd_version": [9, 10, 10], "icd_code": ["4280", "N179", "Z000"]})
    found = {row["stay"]: sum(row.values()) - row["stay"] for row in told(codes, "stay").iter_rows(named=True)}
    assert found == {1: 2.0, 2: 0.0}
