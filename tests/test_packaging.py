"""What is installed: a wheel that works from any folder, and what it says that it needs."""

import ast
import functools
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator

import pytest
import yaml
from packaging.requirements import Requirement

from tests import tiny_runs

ROOT = tiny_runs.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MOST = 20  # packages that every user installs
OWN = {"remind_jax", "encode"}  # encode.py stands next to load.py in an exported folder
NO_NETWORK = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1"}


# ---- What it needs ---------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


CORE = {_plain(Requirement(line).name) for line in PROJECT["dependencies"]}
EXTRAS = {
    extra: {_plain(Requirement(x).name) for x in each} for extra, each in PROJECT["optional-dependencies"].items()
}

# `errors.needs` says how to install them.
OPTIONAL = set().union(*(EXTRAS[extra] for extra in ("images", "ray", "search", "survival", "tables", "track")))


def test_few_packages_are_needed_and_each_has_its_reason():
    assert len(CORE) == len(PROJECT["dependencies"]) <= MOST
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text.partition("\ndependencies = [\n")[2].partition("\n]")[0]
    reasons = re.findall(r'^  "([\w-]+)[^"]*", # .{3,}$', block, re.MULTILINE)
    assert {_plain(name) for name in reasons} == CORE


def _imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every outside package that a source imports, and whether a function does."""
    for node in ast.iter_child_nodes(tree):
        within = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        yield from ((name.partition(".")[0], within) for name in names)
        yield from _imports(node, within)


_owners = functools.cache(importlib.metadata.packages_distributions)


@functools.cache
def _coming() -> set[str]:
    """The packages that every user gets for certain: those that are declared, and what these need."""
    lines = [line for name in CORE for line in importlib.metadata.requires(name) or () if "extra ==" not in line]
    return CORE | {_plain(Requirement(line).name) for line in lines}


def _unmet(tree: ast.AST) -> list[str]:
    """What a source imports that neither comes with the package nor is asked for."""
    found = []
    for name, inside in _imports(tree):
        packages = {_plain(owner) for owner in _owners().get(name, [name])}
        if name in sys.stdlib_module_names or name in OWN or packages & _coming():
            continue
        if not (inside and packages & OPTIONAL):
            found.append(name)
    return found


def test_what_is_imported_is_needed_or_asked_for():
    files = [*(ROOT / "remind_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]
    found = {str(file): _unmet(ast.parse(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import numpy, scipy.stats, yaml, absl.flags\nfrom remind_jax import cli", []),
        ("import hypothesis", ["hypothesis"]),
        ("def f():\n  import openpyxl", []),
        ("import openpyxl", ["openpyxl"]),
        ("def f():\n  import pandas", ["pandas"]),
    ],
)
def test_what_is_not_met_is_found(source, names):
    assert _unmet(ast.parse(source)) == names


def test_extras_for_users_hold_nothing_that_comes_anyway():
    assert {extra for extra, names in EXTRAS.items() if names <= CORE} == {"cuda"}  # of jax itself


# ---- Where it is published -------------------------------------------------------------------------------------------


def _workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))


def test_the_hosted_check_is_that_of_the_repository_on_every_python():
    (job,) = _workflow("ci")["jobs"].values()
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert job["strategy"]["matrix"]["python"] == versions
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_may_do_no_more_than_they_must(name):
    workflow = _workflow(name)
    assert workflow["permissions"] == {"contents": "read"}
    writes = {
        right
        for job in workflow["jobs"].values()
        for right, how in job.get("permissions", {}).items()
        if how == "write"
    }
    assert writes == ({"id-token", "attestations"} if name == "release" else set())
    for step in (step for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step):
        assert re.fullmatch(r"(actions|pypa)/[\w-]+@(v\d+|release/v1)", step["uses"])


def test_forms_and_citation_can_be_read():
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert file.stem == "config" or {"name", "description", "body"} <= set(form)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])


# ---- The wheel -------------------------------------------------------------------------------------------------------


def _run(command: list[str], cwd: pathlib.Path, **environment: str) -> str:
    whole = os.environ | NO_NETWORK | environment
    done = subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The folder of a wheel that was built and installed, without the checkout."""
    base = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    _run([*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", f"--wheel-dir={base}"], base)
    (file,) = base.glob("*.whl")
    assert file.name.startswith(f"remind_jax-{PROJECT['version']}-")
    _run([*pip, "install", str(file), "--no-deps", f"--target={base / 'site'}"], base)
    return base / "site"


def test_an_editable_install_holds_nothing_that_grows_old(tmp_path):
    """Only the path of the clone; `cli.CONFIGS` finds the configs there."""
    build = f"import hatchling.build; print(hatchling.build.build_editable({str(tmp_path)!r}))"
    name = _run([sys.executable, "-c", build], ROOT).strip().splitlines()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        path, *others = sorted(archive.namelist(), key=lambda name: ".dist-info/" in name)
        assert all(".dist-info/" in other for other in others)
        assert archive.read(path).decode() == str(ROOT)


@pytest.fixture
def remind(wheel, tmp_path, monkeypatch):
    """Runs `remind` as installed, in an empty folder."""
    own = {"PYTHONPATH": str(wheel), "HOME": str(tmp_path / "home")}
    own["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
    (tmp_path / "empty").mkdir()

    def run(*arguments: str, script: str = "") -> str:
        command = [sys.executable, "-c", script] if script else [str(wheel / "bin" / "remind")]
        return _run([*command, *arguments], tmp_path / "empty", **own)

    where = "import remind_jax; print(remind_jax.__file__)"
    assert _run([sys.executable, "-c", where], tmp_path / "empty", **own).startswith(str(wheel))
    return run


def test_a_wheel_holds_all_that_is_read(wheel):
    there = {path.relative_to(wheel / "remind_jax") for path in (wheel / "remind_jax").rglob("*")}
    package = {path.relative_to(ROOT / "remind_jax") for path in (ROOT / "remind_jax").rglob("*")}
    read = {path for path in package if path.suffix in (".py", ".jinja", ".csv", ".typed")}
    assert {pathlib.Path("py.typed"), pathlib.Path("evaluation/report.html.jinja")} < read
    assert read <= there
    assert {path.name for path in (ROOT / "configs").glob("*.py")} == {
        path.name for path in there if path.parts[0] == "configs" and path.suffix == ".py"
    }
    assert not {path.parts[0] for path in wheel.iterdir() if path.is_dir()} & {"configs", "tests", "docs"}


@pytest.mark.slow
def test_a_wheel_trains_from_an_empty_folder(remind, tmp_path):
    out = remind("train", "--config=nhanes", "--quick")
    run = tmp_path / "empty" / "runs" / "nhanes-remind-seed0-quick"
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["runs"]
    assert {"report.json", "report.html", "model"} < {path.name for path in run.iterdir()}
    assert "smoke run" in out
    assert "figures mean nothing" in out
    assert f"remind_jax {PROJECT['version']}" in (run / "model" / "model.json").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_wheel_finds_its_configs_by_path_and_tells_of_its_machine(remind):
    assert "remind on nhanes, size=small" in remind("plan", "--config=configs/nhanes.py")
    assert "space in " in remind("doctor")  # with exit code 0
    assert remind("--version") == f"remind_jax {PROJECT['version']}\n"
    assert remind("train", "--help").startswith("Trains a method")


TEN_LINES = """\
import numpy as np, pandas as pd, remind_jax as rj

rng = np.random.default_rng(0)
df = pd.DataFrame({"who": rng.integers(0, 60, 90), "na": rng.normal(140, 4, 90), "note": ["ill", "well", None] * 30})
df["died"] = df.na > 140
quick = {"train.epochs": 2.0, "train.joint_epochs": 1.0, "eval.bootstrap": 20}
model = rj.fit(df, label="died", patient="who", modalities={"labs": ["na"], "note": rj.Text("note")}, **quick)
print(model.report)
print(model.table(df.head(3)))
print(rj.__file__)
"""


@pytest.mark.slow
def test_a_wheel_fits_a_frame_in_ten_lines(remind, wheel, tmp_path):
    assert len(TEN_LINES.replace("\n\n", "\n").splitlines()) <= 10
    out = remind(script=TEN_LINES)
    assert "all samples" in out
    assert out.strip().splitlines()[-1].startswith(str(wheel))
    assert list((tmp_path / "empty").iterdir()) == []
