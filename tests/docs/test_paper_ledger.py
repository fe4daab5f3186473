"""docs/paper_ledger.md promises keys, defaults and values: all of them are there."""

import ast
import importlib
import pathlib
import re

import pytest

from remind_jax.config import base, validate
from remind_jax.data.sources import embed, mimic_iv_cohort

LEDGER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "paper_ledger.md"
POINTS = 85


def _rows() -> list[list[str]]:
    """Cells of all lines that begin with a number: #, point, choice, key, values, why."""
    lines = LEDGER.read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]


KEYED = [row for row in _rows() if row[3] != "-"]


def _config(key: str):
    """The config that has a key, and the key's path in it."""
    file, _, path = key.rpartition(":")
    if file:
        return importlib.import_module(f"configs.{file}").get_config(), path
    return base("synthetic"), path


def _values(cell: str) -> list:
    found = []
    for text in re.findall(r"`([^`]*)`", cell.replace("``", "`''`")):
        try:
            found.append(ast.literal_eval(text))
        except (SyntaxError, ValueError):
            found.append(text)
    return found


def test_every_point_is_there_in_order_and_has_six_cells():
    rows = _rows()
    assert {len(row) for row in rows} == {6}
    numbers = [int(row[0]) for row in rows]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, POINTS + 1))


def test_a_point_without_a_key_says_what_is_done():
    for number, point, choice, key, values, _ in _rows():
        if key == "-":
            assert choice, number
            assert not values, number
            assert point, number


@pytest.mark.parametrize("row", KEYED, ids=lambda row: f"{row[0]}-{row[3].strip('`')}")
def test_keys_exist_with_their_default_and_take_every_value(row):
    key, values = row[3].strip("`"), _values(row[4])
    config, path = _config(key)
    *sections, name = path.split(".")
    section = config
    for part in sections:
        section = section[part]
    assert name in section, f"{key} is no key"
    assert values, f"{key} has no values"
    assert section[name] == values[0]
    assert type(section[name]) is type(values[0])
    for value in values:
        section[name] = value
        validate(config)


def test_values_of_a_source_are_those_that_it_knows():
    known = {"mimic:data.label": mimic_iv_cohort.LABELS, "embed:data.unit": embed.UNITS, "embed:data.key": embed.KEYS}
    for row in KEYED:
        key = row[3].strip("`")
        if key in known:
            assert set(_values(row[4])) == set(known.pop(key))
    assert not known


def test_a_wrong_default_or_value_would_be_found():
    config, _ = _config("fusion.preset")
    config.fusion.preset = "paper_listings"
    with pytest.raises(Exception, match="paper_listings"):
        validate(config)
    assert _values("`()`, `0.1`, ``, `zero`, `True`") == [(), 0.1, "", "zero", True]
