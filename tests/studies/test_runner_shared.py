"""A sweep that several processes share: each run once, none lost with a process that is killed, tables by the last."""

import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from remind_jax import sweep
from remind_jax.errors import UserError
from remind_jax.runtime import claims, jobs
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)

PLAIN = "--methods=logistic_regression"


def _arguments(folder, out: str, *more: str) -> list[str]:
    given = tiny_runs.arguments(folder / "cache", eval__bootstrap=20)
    return [*given, f"--workdir={folder / out}", "--resamples=20", *more]


def _run(*arguments: str) -> str:
    """What a sweep prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sweep.main(list(arguments))
    return printed.getvalue()


def _runs(folder) -> list[dict]:
    with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A sweep of two runs, of which another process held one at first: its folder, and what was printed each time."""
    folder = tmp_path_factory.mktemp("shared")
    arguments = _arguments(folder, "out", PLAIN, "--seeds=0,1", "--share")
    with claims.Claims(folder / "out" / "claims") as other, other.taken("logistic_regression-seed1"):
        first = _run(*arguments)
        tables = (folder / "out" / "index.html").exists()
    assert not tables
    return folder, arguments, first, _run(*arguments)


def test_runs_of_others_are_left_to_them_and_the_last_process_writes_the_tables(shared):
    folder, _, first, second = shared
    assert "1 runs are under way elsewhere" in first
    assert "seed 0" in first
    assert "seed 1" not in first
    assert "seed 1" in second
    assert [row["seed"] for row in _runs(folder / "out")] == ["0", "1"]


def test_the_record_has_the_time_of_all_processes(shared):
    record = json.loads((shared[0] / "out" / "sweep.json").read_text("utf-8"))
    each = [run["seconds"] for run in record["runs"].values()]
    assert min(each) > 0
    assert record["seconds"]["running"] == pytest.approx(sum(each), abs=0.05)  # one after the other
    assert "--share" in record["command"]


def test_a_run_that_fails_is_told_once_and_tried_again_by_the_next_command(shared, tmp_path):
    folder, arguments, _, _ = shared
    shutil.copytree(folder / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "logistic_regression-seed1")
    (tmp_path / "out" / "logistic_regression-seed1").touch()  # in the way of the folder
    arguments = [argument.replace(str(folder / "out"), str(tmp_path / "out")) for argument in arguments]
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 of 2 runs failed: logistic_regression seed 1: cannot write to workdir"):
            _run(*arguments)
        assert [row["seed"] for row in _runs(tmp_path / "out")] == ["0"]
    (tmp_path / "out" / "logistic_regression-seed1").unlink()
    _run(*arguments)
    assert [row["seed"] for row in _runs(tmp_path / "out")] == ["0", "1"]


def test_a_sweep_that_shares_keeps_one_that_does_not_out(tmp_path):
    for first, second in ((True, False), (False, True)):
        with jobs.hold(tmp_path, first), pytest.raises(UserError, match="another sweep"), jobs.hold(tmp_path, second):
            pass
    with jobs.hold(tmp_path, shared=True), jobs.hold(tmp_path, shared=True):
        pass


@pytest.mark.slow
def test_three_processes_of_which_one_is_killed_do_what_one_does(tmp_path):
    given = [PLAIN + ",soft_moe", "--seeds=0,1,2"]
    alone, together = _arguments(tmp_path, "alone", *given), _arguments(tmp_path, "together", *given, "--share")
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT)}

    command = [sys.executable, "-m", "remind_jax.sweep"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, *together], env=environment, **pipes) for _ in range(3)]
    outputs: list[str] = []
    try:
        # Killed within a run: its folder is there and its report is not.
        open_runs = set()
        while not open_runs:
            time.sleep(0.01)
            folders = (tmp_path / "together").glob("*-seed*")
            open_runs = {path for path in folders if path.is_dir() and not (path / "report.json").exists()}
        held = {path.name: path for path in (tmp_path / "together" / "claims").glob("*-seed*.1")}
        owners = {name: json.loads(path.read_text("utf-8"))["process"] for name, path in held.items()}
        victim = next(process for process in started if process.pid in owners.values())
        victim.kill()
        lost = next(name.removesuffix(".1") for name, pid in owners.items() if pid == victim.pid)
    finally:
        outputs += [process.communicate()[0] for process in started]
    assert sorted(process.returncode for process in started) == [-9, 0, 0], outputs
    assert (tmp_path / "together" / "claims" / f"{lost}.2").exists()  # taken over
    shown = "".join(outputs)
    for name in ("logistic_regression", "soft_moe"):
        for seed in range(3):
            assert shown.count(f"{name:<26} seed {seed:<4}") <= 1
    assert sum("all runs are done: writing the tables" in output for output in outputs) >= 1
    assert subprocess.run([*command, *alone], env=environment, check=False, **pipes).returncode == 0
    mine, theirs = _runs(tmp_path / "together"), _runs(tmp_path / "alone")
    assert len(mine) == 6
    assert [{k: v for k, v in row.items() if "second" not in k} for row in mine] == theirs
