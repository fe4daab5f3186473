"""A run that is killed and started again ends in the same figures, bit for bit, as one that was left alone."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from remind_jax import cli, main
from remind_jax.errors import UserError
from tests import tiny_runs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]

# Two stages of 60 steps, evaluated and saved every sixth step, recorded every seventh: steps whose record is still open
# at a checkpoint are part of what must survive. Dropout is on.
CHANGES = {"train__epochs": 10.0, "train__joint_epochs": 5.0, "train__evaluate_every": 0.5, "train__log_every": 7}
EVERY = 6


def _arguments(folder: pathlib.Path, run: str, **changes) -> list[str]:
    return [*tiny_runs.arguments(folder / "cache", **CHANGES | changes), f"--workdir={folder / run}"]


def _start(folder: pathlib.Path, run: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "remind_jax.main", *_arguments(folder, run)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(tiny_runs.ROOT)}, **pipes)


def _finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def _kill_when(process: subprocess.Popen, folder: pathlib.Path, step: int) -> int:
    """Kills the process once a checkpoint of that step or a later one is complete, and returns the newest's step."""
    checkpoints = folder / "checkpoints"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        done = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        if done and max(done) >= step:
            process.send_signal(signal.SIGKILL)
            code, _, err = _finish(process)
            assert code == -signal.SIGKILL, err
            return max(done)
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    raise AssertionError(f"no checkpoint of step {step} in time")


class _Files:
    """What a run leaves."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.predictions = pl.read_parquet(folder / "predictions.parquet")
        self.report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        self.records = [{k: v for k, v in json.loads(x).items() if k != "time/step_ms"} for x in lines]

    def evaluations(self) -> list[dict]:
        return [record for record in self.records if "eval/loss" in record]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, quick_compilation):
    """A run left alone, and one that was killed in each stage."""
    folder, killed_at = tmp_path_factory.mktemp("runs"), []
    main.main(_arguments(folder, "alone"))
    for step in (2 * EVERY, 60 + 2 * EVERY):
        killed_at.append(_kill_when(_start(folder, "killed"), folder / "killed", step))
        assert not (folder / "killed" / "report.json").exists()
        with open(folder / "killed" / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write('{"step": 10')  # as if the kill had cut a line
    code, out, err = _finish(_start(folder, "killed"))
    assert code == 0, err
    return folder, killed_at, out


def test_kills_fell_into_both_stages(runs):
    _, (first, second), out = runs
    assert 0 < first < 60 < second < 120
    # The last start did not train the first stage again.
    assert "specialize" in out
    assert "joint  " not in out


def test_probabilities_are_equal_bit_for_bit(runs):
    alone, killed = (_Files(runs[0] / name).predictions for name in ("alone", "killed"))
    assert alone.equals(killed)
    for name in [name for name in alone.columns if name.startswith("p_")]:
        assert alone[name].to_numpy().tobytes() == killed[name].to_numpy().tobytes()


def test_evaluations_are_equal_and_each_is_there_once(runs):
    alone, killed = (_Files(runs[0] / name).evaluations() for name in ("alone", "killed"))
    assert [record["step"] for record in alone] == list(range(EVERY, 121, EVERY))
    assert alone == killed
    assert len({record["eval/loss"] for record in alone}) > 15  # the weights did move


def test_reports_are_equal(runs):
    alone, killed = (_Files(runs[0] / name) for name in ("alone", "killed"))
    assert alone.report == killed.report
    assert (alone.folder / "report.json").read_bytes() == (killed.folder / "report.json").read_bytes()


def test_records_of_steps_are_equal(runs):
    """Averages over the steps since the last record, some of them from before the checkpoint, included."""
    alone, killed = (_Files(runs[0] / name).records for name in ("alone", "killed"))
    assert alone == killed


def _snapshot(folder: pathlib.Path) -> dict[str, tuple[int, bytes]]:
    files = (
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != "environment.json" and path.parent.name != ".owner"
    )
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_finished_run_shows_its_report_and_trains_nothing(runs, capsys):
    folder = runs[0]
    before = _snapshot(folder / "alone")
    main.main(_arguments(folder, "alone"))
    out = capsys.readouterr().out
    assert "finished" in out
    assert "all samples" in out
    assert "tuning loss" not in out
    assert _snapshot(folder / "alone") == before


def test_a_changed_config_is_refused_in_one_line(runs, monkeypatch, capsys):
    folder = runs[0]
    before = _snapshot(folder / "alone")
    monkeypatch.setattr("sys.argv", ["train", *_arguments(folder, "alone", optim__lr=0.5)])
    with pytest.raises(SystemExit) as ended:
        cli.run(main.main, None)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "optim.lr" in err
    assert "0.5 now" in err
    assert out == ""
    assert _snapshot(folder / "alone") == before


def test_every_changed_key_is_named(runs):
    with pytest.raises(UserError, match=r"fusion\.dropout \(0\.1 there, 0\.2 now\), seed \(0 there, 5 now\)"):
        main.main(_arguments(runs[0], "killed", seed=5, fusion__dropout=0.2))
