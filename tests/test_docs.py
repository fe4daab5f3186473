"""What the documentation says exists: files, pages, keys, commands and their arguments."""

import pathlib
import re
import shlex

import pytest
import yaml

from configs import common
from docs import reference
from remind_jax import cli
from tests import tiny_runs

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")), *ROOT.glob("*/README.md")]
MADE = set(reference.PAGES)  # by the build
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _prose(text):
    """Without code, which may hold brackets of its own."""
    return re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page.read_text(encoding="utf-8"))):
        target = link.partition("#")[0]
        if target and "://" not in target:
            known = target in MADE and page.parent == ROOT / "docs"
            assert known or (page.parent / target).exists(), link


def test_every_page_is_in_the_navigation():
    # The build's own tags would need its packages.
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    there = {page.name for page in ROOT.glob("docs/*.md")} | MADE
    assert sorted(listed) == sorted(there)


def test_every_key_is_explained():
    flat = {}

    def walk(config, path):
        for name, value in config.items():
            if hasattr(value, "items"):
                walk(value, f"{path}{name}.")
            else:
                flat[path + name] = value

    walk(common.base(), "")
    found = {key.path: key for key in reference.keys(ROOT / "configs" / "common.py")}
    assert set(found) == set(flat)
    assert all(eval(found[path].value) == value for path, value in flat.items())
    assert all(len(key.text) > 5 for key in found.values())
    assert "| `optim.lr` | `2e-3` | highest learning rate |" in reference.configuration_page()
    own = {key.path for key in reference.keys(ROOT / "configs" / "mimic.py")}
    assert {"data.notes_root", "data.label"} < own


def test_every_command_has_a_text():
    found = dict(reference.commands())
    assert {"remind_jax.main", "remind_jax.sweep", "remind_jax.analysis.what_if", "benchmarks.run"} < set(found)
    assert all(len(text) > 50 for text in found.values())
    assert next(iter(found)) == "remind_jax.main"
    page = reference.commands_page()
    assert page.count("```") == 2 * page.count("```text")


def _commands():
    """Commands with a config that stand in the pages, without those that hold a place for something."""
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text(encoding="utf-8").replace("\\\\\n", " ").replace("\\\n", " ")
        for command in re.findall(r"python -m (remind_jax\S* [^`\n]*--config=[^`\n]*)", text):
            command = re.split(r"\s{2,}#|\s&&|\s\|", command)[0]
            if not re.search(r"[\[\]…]|KEY|NAME|X\.py", command):
                yield pytest.param(command, id=f"{name}: {command}"[:110])


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.parametrize("command", list(_commands()))
def test_commands_are_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    module, *arguments = shlex.split(command)
    assert (ROOT / (module.replace(".", "/") + ".py")).exists()
    cli.parse_config([argument for argument in arguments if argument.startswith("--config")])
