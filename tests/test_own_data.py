"""docs/own_data.md: what it says is run as it stands, from raw tables to a report and predictions."""

import os
import re
import shlex
import subprocess
import sys

import polars as pl
import pytest

from tests import tiny_runs

PAGE = tiny_runs.ROOT / "docs" / "own_data.md"
QUICK = ["--config.train.epochs=4", "--config.train.joint_epochs=2", "--config.eval.bootstrap=50"]


def _block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.slow
def test_the_worked_example_runs_as_it_stands(tmp_path):
    (tmp_path / "configs").symlink_to(tiny_runs.ROOT / "configs")
    environment = os.environ | {"PYTHONPATH": str(tiny_runs.ROOT), "HOME": str(tmp_path)}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-c", _block("python"))
    shown = []
    for line in _block("bash").strip().splitlines():
        _, *rest = shlex.split(line)  # python
        shown.append(run(sys.executable, *rest, *(QUICK if "remind_jax.main" in rest else [])))
    assert "stays (tabular), labs (tabular), note (text)" in shown[0]
    assert "the data can be used" in shown[1]
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
    table = pl.read_csv(tmp_path / "predictions.csv")
    assert table.height == 600
    assert set(table["combination"]) == {"stays", "stays+labs", "stays+note", "stays+labs+note"}
    truth = pl.read_csv(tmp_path / "raw" / "stays.csv")["died"]
    assert ((table["p_1"] > 0.5).cast(pl.Int64) == truth).mean() > 0.75  # of 0.6 for always the same answer


def test_the_example_has_at_most_thirty_lines_of_commands_and_data():
    assert len([line for line in (_block("python") + _block("bash")).splitlines() if line.strip()]) <= 30
