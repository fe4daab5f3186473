"""docs/arena_methods.md and docs/arena_training.md have every method of the table, and keys that exist."""

import pathlib
import re

import pytest

from remind_jax.config import keys
from remind_jax.methods import ARENA

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("arena_methods", "arena_training")}


def table_of(page: str) -> dict[str, set[str]]:
    """The keys of each preset in the first table of a page."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    return {
        preset: {key.partition("=")[0] for key in re.findall(r"`([\w.=]+)`", row[2])}
        for row in rows
        if len(row) == 3
        for preset in re.findall(r"`(\w+)`", row[0])
        if preset in ARENA
    }


TABLE = {preset: found for page in PAGES.values() for preset, found in table_of(page).items()}


def test_every_method_of_the_arena_is_described_once():
    assert set(TABLE) == set(ARENA)
    assert not set(table_of(PAGES["arena_methods"])) & set(table_of(PAGES["arena_training"]))


@pytest.mark.parametrize("preset", TABLE)
def test_the_keys_of_a_method_exist_and_those_that_it_sets_are_told(preset):
    assert TABLE[preset] <= keys().keys()
    page = next(page for page in PAGES.values() if preset in table_of(page))
    told = {key.removeprefix("objective.") for key in ARENA[preset] if key.startswith("objective.")} - {"kind"}
    assert all(name in page for name in told)
