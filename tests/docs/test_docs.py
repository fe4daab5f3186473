"""What the documentation says exists: files, pages, keys, commands and their arguments."""

import ast
import csv
import importlib
import pathlib
import re
import shlex
import statistics
from typing import NamedTuple

import pytest
import yaml

from docs import reference
from remind_jax import __main__ as console
from remind_jax import cli, methods, sweep
from remind_jax.config import keys
from remind_jax.config.sources import OF_SOURCES
from remind_jax.errors import UserError
from remind_jax.studies import arena, entries
from tests import tiny_runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
    page = reference.configuration_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(keys()) + sum(map(len, OF_SOURCES.values()))
    assert {len(row.split("|")) for row in rows} == {6}
    assert "| `optim.lr` | `0.002` | above 0 and finite | highest learning rate |" in rows
    assert (
        "| `fusion.norm` | `'pre'` | `pre`, `post` | layer norm before each sublayer, or after its residual sum |"
        in rows
    )
    own = page.partition("## Only `data.source=mimic_iv`")[2]
    assert "`data.notes_root`" in own
    assert "`data.notes_root`" not in page.removesuffix(own)


def test_every_command_has_a_text():
    found = dict(reference.commands())
    assert {"remind_jax.main", "remind_jax.sweep", "remind_jax.analysis.what_if", "benchmarks.run"} < set(found)
    assert all(len(text) > 50 for text in found.values())
    assert list(found)[:2] == ["remind_jax", "remind_jax.main"]
    configs = {path.stem for path in ROOT.glob("configs/*.py")} - {"arena"}  # of sweeps alone
    assert {*methods.METHODS, *methods.SIZES, *configs} <= set(re.findall(r"\w+", found["remind_jax.main"]))
    page = reference.commands_page()
    assert page.count("```") == 2 * page.count("```text")


# ---- Commands --------------------------------------------------------------------------------------------------------


class Command(NamedTuple):
    """A command of a page: the module, what follows it, and the page."""

    module: str
    arguments: list[str]
    page: str


_COMMAND = re.compile(
    rf"python -m ((?:remind_jax|benchmarks)\.[^`\n]*)|(?:^ *|`)remind ((?:{'|'.join(console.commands())}) [^`\n]*)",
    re.MULTILINE,
)


def commands():
    """Every command of ours in the pages; what is optional counts as given."""
    found = {}
    for page, name in zip(PAGES, NAMES, strict=True):
        text = page.read_text(encoding="utf-8").replace("\\\\\n", " ").replace("\\\n", " ")
        for by_module, by_name in re.findall(_COMMAND, text):
            # Comments, what follows in a shell, and remarks.
            command = re.split(r"\s#\s|\s&&|\s\||\s{2,}\(| -->", by_module or by_name)[0]
            module, *arguments = shlex.split(command.replace("[", "").replace("]", "").replace("…", ""))
            if by_name:
                module, arguments = console.find([module, *arguments])
                module = f"remind_jax.{module}"
            if not module.endswith(".NAME"):  # to fill in
                found.setdefault((module, *arguments), Command(module.rstrip(","), arguments, name))
    return [pytest.param(each, id=f"{each.page}: {' '.join(key)}"[:110]) for key, each in found.items()]


def _refusal(module, arguments):
    with pytest.raises(UserError) as refusal:
        importlib.import_module(module).main(arguments)
    return str(refusal.value)


@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command, monkeypatch, tmp_path):
    """By what reads them when they are run; where that would train, by their options alone."""
    module, arguments = command.module, [x for x in command.arguments if not x.endswith("=A,B")]  # names to fill in
    file = ROOT / (module.replace(".", "/") + ".py")
    assert file.exists()
    if not arguments or {"--help", "--config.KEY=VALUE"} & {*arguments} or module == "remind_jax.completion":
        return
    if module.startswith("benchmarks."):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert [x for x in arguments if x.startswith("--") and x.partition("=")[0] not in text] == []
    elif any(argument.startswith("--config") for argument in arguments):
        monkeypatch.chdir(ROOT)
        if module in ("remind_jax.main", "remind_jax.plan"):
            cli.parse_config(arguments)
        elif module == "remind_jax.sweep" and (given := entries.arena_of(arguments)):
            asked = arena.read(given, arguments)
            assert [asked.cell(data, asked.values.protocols.split(",")[0], tmp_path).runs for data in asked.sets]
        elif module == "remind_jax.sweep":
            setup, workdir, _ = sweep.parse(arguments)
            assert setup.plan(workdir)
        else:
            assert importlib.import_module(module).parse(arguments)
    else:  # it comes as far as to look for the run or the data, of which there are none
        monkeypatch.chdir(tmp_path)
        assert re.search("holds no (finished )?run|does not exist|nothing to read", _refusal(module, arguments))


def test_the_table_of_the_preset_is_that_of_the_stored_runs():
    with (ROOT / "docs/results/remind_plus.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    with (ROOT / "docs/results/remind_plus_differences.csv").open(encoding="utf-8") as file:
        differences = list(csv.DictReader(file))
    page = (ROOT / "docs/remind_plus.md").read_text(encoding="utf-8")
    for method in [variant.name for variant in methods.TABLES["remind_plus"]]:
        mine = [run for run in runs if run["method"] == method]
        assert len(mine) == 4
        figures = ("accuracy", "auroc", "tail_auroc", "ece")
        cells = [f"{statistics.mean(float(run[figure]) for run in mine):.1f}" for figure in figures]
        for samples in ("all", "tail") if method != "soft_moe" else ():
            key = {"samples": samples, "figure": "auroc", "method": method}
            (row,) = [row for row in differences if key.items() <= row.items()]
            mean, low, high = (float(row[name]) for name in ("mean", "low", "high"))
            cells.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        assert f"`{method}`" in page
        assert f"| {' | '.join(cells)} |" in page, method
    assert f"Of the {len(differences)} differences" in page
    assert all(float(row["low"]) <= 0 <= float(row["high"]) for row in differences)
