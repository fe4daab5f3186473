"""Sweeps: that they go on after a kill, what failures do to them, and the tables and the record that they leave."""

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import polars as pl
import pytest

from remind_jax import sweep
from remind_jax.errors import UserError
from remind_jax.methods import METHODS, PLAIN
from remind_jax.studies import runner
from remind_jax.studies.entries import Entry, Options
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs
from tests.data.manifest_files import write_manifest
from tests.data.target_files import folder_of

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]

QUICK = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20, "data__tuning": 24}
TABLES = {"runs.csv", "groups.csv", "differences.csv", "calibration.csv", "table.md", "table.tex", "index.html"}
RECORD = "sweep.json"


def _arguments(cache, workdir, *more: str, **changes) -> list[str]:
    return [*tiny_runs.arguments(cache, **QUICK | changes), f"--workdir={workdir}", "--resamples=50", *more]


def _run(arguments: list[str]) -> str:
    """What a sweep prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sweep.main(arguments)
    return printed.getvalue()


# ---- Runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished sweep of two methods and a plain model over two seeds: its folder, its arguments, what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    methods = "--methods=soft_moe,remind,logistic_regression"
    arguments = _arguments(folder / "cache", folder / "out", methods, "--seeds=0,1", "--baseline=soft_moe,remind")
    return folder / "out", arguments, _run(arguments)


def test_a_sweep_leaves_tables_and_run_folders(done):
    folder, _, printed = done
    runs = {f"{name}-seed{seed}" for name in ("soft_moe", "remind", "logistic_regression") for seed in (0, 1)}
    assert {path.name for path in folder.iterdir()} == TABLES | runs | {RECORD, ".lock"}
    assert (folder / "table.md").read_text(encoding="utf-8").rstrip() in printed
    for line in ("remind                     seed 1", "index.html"):
        assert line in printed


def test_tables_hold_the_figures_of_the_reports(done):
    folder, _, _ = done
    with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["seed"]) for row in rows] == [
        (name, seed) for seed in "01" for name in ("soft_moe", "remind", "logistic_regression")
    ]
    for row in rows:
        report = json.loads((folder / f"{row['method']}-seed{row['seed']}" / "report.json").read_text("utf-8"))
        assert float(row["accuracy"]) == pytest.approx(100 * report["overall"]["accuracy"])
        assert report["method"] == row["method"]


def _record(folder) -> dict:
    return json.loads((folder / RECORD).read_text("utf-8"))


def test_a_sweep_leaves_a_record_of_command_time_and_machine(done):
    folder, arguments, _ = done
    record = _record(folder)
    names = [f"{name} seed {seed}" for seed in (0, 1) for name in ("soft_moe", "remind", "logistic_regression")]
    assert list(record["runs"]) == names
    each = [run["seconds"] for run in record["runs"].values()]
    assert min(each) > 0
    assert record["seconds"]["running"] == pytest.approx(sum(each), abs=0.1)  # one after the other
    assert (record["data"], record["baselines"]) == (
        json.loads((folder / "remind-seed0" / "report.json").read_text("utf-8"))["data"],
        ["soft_moe", "remind"],
    )
    environment = json.loads((folder / "soft_moe-seed0" / "environment.json").read_text("utf-8"))
    assert record["environment"] == environment
    assert record["command"].startswith("python -m remind_jax.sweep --config=configs/phenomenon.py:method=remind ")
    assert "--workdir=DIR" in record["command"]
    assert str(tiny_runs.ROOT) not in json.dumps(record)
    assert str(folder.parent) not in json.dumps(record)
    assert len(record["command"].split()) == 3 + len(arguments)


def test_the_same_command_shows_the_tables_again_and_trains_nothing(done):
    folder, arguments, printed = done
    reports = sorted(folder.glob("*/report.json"))
    before = [path.stat().st_mtime_ns for path in reports]
    tables = {name: (folder / name).read_bytes() for name in TABLES}
    record = _record(folder)
    again = _run(arguments)
    assert [path.stat().st_mtime_ns for path in reports] == before
    assert {name: (folder / name).read_bytes() for name in TABLES} == tables
    assert _record(folder) | {"seconds": record["seconds"]} == record
    assert _record(folder)["seconds"]["running"] == record["seconds"]["running"]
    assert again.count("(finished before)") == 6
    assert "finished before" not in printed


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_other_settings_in_the_same_folder_are_refused_and_the_rest_is_tabulated(done, tmp_path, monkeypatch, jobs):
    monkeypatch.setenv("PYTHONPATH", str(tiny_runs.ROOT))
    folder, arguments, _ = done
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "soft_moe-seed1")
    changed = [argument.replace(str(folder), str(copy)) for argument in arguments]
    with pytest.raises(UserError, match=r"3 of 6 runs failed: .*soft_moe seed 0: workdir .* another config: optim.lr"):
        _run([*changed, "--config.optim.lr=0.5", f"--jobs={jobs}"])
    text = (copy / "table.md").read_text(encoding="utf-8")
    assert "Failed: remind seed 0" in text
    assert "| remind |" not in text  # its reports are those of other settings
    assert "| soft_moe | 1 |" in text
    assert "| logistic_regression | 2 |" in text
    # A refused run was not run: its time stays, and a run that goes on or is made anew adds to its own.
    before, after = _record(folder)["runs"], _record(copy)["runs"]
    longer = {name for name in before if after[name]["seconds"] != before[name]["seconds"]}
    assert longer == {"soft_moe seed 1"}
    assert after["soft_moe seed 1"]["seconds"] > before["soft_moe seed 1"]["seconds"]
    assert _record(copy)["failed"] == ["soft_moe seed 0", "remind seed 0", "remind seed 1"]


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    """A learning rate that no run survives fails the network's runs; the plain model has none."""
    arguments = _arguments(
        tmp_path / "cache",
        tmp_path / "out",
        "--methods=remind,logistic_regression",
        "--seeds=0",
        "--baseline=logistic_regression",
        optim__lr=1e30,
        optim__clip=0.0,
    )
    with pytest.raises(UserError, match=r"1 of 2 runs failed: remind seed 0: .*not finite"):
        _run(arguments)
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "Failed: remind seed 0" in text
    assert "| logistic_regression | 1 |" in text


def test_nothing_finished_is_an_error(tmp_path):
    arguments = _arguments(
        tmp_path / "cache", tmp_path / "out", "--methods=remind", "--seeds=0", optim__lr=1e30, optim__clip=0.0
    )
    with pytest.raises(UserError, match="no run finished; the first failure was remind seed 0"):
        _run(arguments)
    assert not (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize(
    ("task", "others"),
    [
        ("classes", {"ridge", "cox"}),
        ("survival", {"logit_adjust", "logistic_regression", "ridge"}),
        ("regression", {"logit_adjust", "logistic_regression", "cox"}),
    ],
)
def test_a_sweep_of_all_methods_leaves_out_those_of_other_tasks_and_names_them(
    tmp_path, monkeypatch, capsys, task, others
):
    (write_manifest if task == "classes" else functools.partial(folder_of, task=task))(tmp_path / "data")
    tried = []

    def refuse(config, *_):
        tried.append(config.method)
        raise UserError("not today")

    monkeypatch.setattr(runner, "run_config", refuse)
    flags = [f"--config={tiny_runs.ROOT}/configs/manifest.py", f"--config.data.root={tmp_path}/data"]
    flags += [f"--workdir={tmp_path}/out", "--seeds=0"]
    with pytest.raises(UserError, match="not today"):
        sweep.main(flags)
    assert tried == [name for name in (*METHODS, *PLAIN) if name not in others]
    said = f"left out, since they do not learn labels of task {task}: "
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(said)]
    assert set(line.removeprefix(said).split(", ")) == others
    with pytest.raises(UserError, match=r"baseline=(ridge|cox) does not learn"):
        sweep.main([*flags, f"--baseline={min(others & {'ridge', 'cox'})}"])


def test_a_method_of_another_task_that_is_named_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_config", lambda config, *_: (_ for _ in ()).throw(UserError(config.method)))
    with pytest.raises(UserError, match="the first failure was cox seed 0: cox"):
        sweep.main(_arguments(tmp_path / "cache", tmp_path / "out", "--methods=cox", "--seeds=0"))


def test_configs_are_run_without_any_command_line(tmp_path):
    planned = []
    for seed in (0, 1):
        config = tiny_runs.config(tmp_path / "cache", "logistic_regression", **QUICK, seed=seed)
        planned.append(Entry("mine", seed, config, tmp_path / "out" / f"mine{seed}"))
    with contextlib.redirect_stdout(io.StringIO()):
        runner.run(planned, tmp_path / "out", Options(["mine"], resamples=20))
    with open(tmp_path / "out" / "runs.csv", encoding="utf-8", newline="") as file:
        assert [(row["method"], row["seed"]) for row in csv.DictReader(file)] == [("mine", "0"), ("mine", "1")]
    assert _record(tmp_path / "out")["command"] == "python -m remind_jax.sweep"


def test_a_config_that_went_through_json_is_the_same(tmp_path, monkeypatch):
    """As a process of its own reads it."""
    config, seen = tiny_runs.config(tmp_path / "cache", **QUICK, data__leave_out="('ffdm_cc',)"), []
    monkeypatch.setattr(runner, "run_config", lambda config, *rest, **options: seen.append((config, *rest, options)))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(config.to_dict())))
    runner.run_given(["some/run", "restart"])
    ((read, folder, options),) = seen
    assert options == {"on_changed_data": "restart"}
    assert json.dumps(read.to_dict()) == json.dumps(config.to_dict())
    assert (read.data.leave_out, str(folder)) == (("ffdm_cc",), "some/run")


def test_processor_time_adds_up_over_the_calls_of_a_run_and_is_not_that_of_showing_it(tmp_path, monkeypatch):
    config, ends = tiny_runs.config(tmp_path / "cache", **QUICK), []

    def burn(config, folder, **options):
        folder.mkdir(exist_ok=True)
        start = time.process_time()
        while time.process_time() < start + 0.05:
            pass
        if not ends:
            raise KeyboardInterrupt
        if ends.pop():
            (folder / "report.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(runner, "run_config", burn)
    seconds = []
    for end in (None, True, False):
        ends[:] = [] if end is None else [end]
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(config.to_dict())))
        with contextlib.suppress(KeyboardInterrupt):
            runner.run_given([str(tmp_path / "run"), "refuse"])
        seconds.append(runner.processor_seconds(tmp_path / "run"))
    assert runner.processor_seconds(tmp_path / "another") is None
    assert 0.05 <= seconds[0] < seconds[1] == seconds[2]


# ---- Several processes -----------------------------------------------------------------------------------------------


def _start(arguments: list[str]) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(tiny_runs.ROOT)}
    command = [sys.executable, "-m", "remind_jax.sweep", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _figures(folder) -> dict[str, dict]:
    """Reports of all runs without what depends on the machine."""
    return {path.parent.name: json.loads(path.read_text("utf-8"))["overall"] for path in folder.glob("*/report.json")}


@pytest.mark.slow
def test_a_killed_sweep_of_several_processes_goes_on(done, tmp_path):
    folder, arguments, _ = done
    other = [argument.replace(str(folder), str(tmp_path / "out")) for argument in arguments]
    process = _start([*other, "--jobs=2"])
    deadline = time.monotonic() + 240
    while not list((tmp_path / "out").glob("*/report.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (tmp_path / "out" / "table.md").exists()
    finished = len(list((tmp_path / "out").glob("*/report.json")))
    process = _start([*other, "--jobs=2"])
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert out.count("(finished before)") == finished < 6
    assert {path.name for path in (tmp_path / "out").iterdir()} >= TABLES
    there, here = _figures(folder), _figures(tmp_path / "out")
    assert there.keys() == here.keys()
    assert all(here[name]["accuracy"] == pytest.approx(there[name]["accuracy"], abs=0.05) for name in there)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_of_a_sweep_share_programs_and_are_those_of_runs_alone(tmp_path, jobs, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    chosen, kept = ("--methods=remind", "--seeds=0,1"), jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        _run(_arguments(tmp_path / "cache", tmp_path / "sweep", f"--jobs={jobs}", *chosen))
        assert not list((tmp_path / "sweep").rglob("*-cache"))  # where others might put some
        assert list((tmp_path / ".cache" / "remind_jax" / "programs").rglob("*-cache"))
        assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
        assert jax.config.jax_compilation_cache_dir is None
        config = tiny_runs.config(tmp_path / "cache", **QUICK, seed=1)
        train_and_evaluate(config, tmp_path / "alone", verbose=False)
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)
    shared, alone = (
        pl.read_parquet(path / "predictions.parquet")
        for path in (tmp_path / "sweep" / "remind-seed1", tmp_path / "alone")
    )
    assert shared.equals(alone)
