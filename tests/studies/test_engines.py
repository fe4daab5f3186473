"""A sweep on a cluster of Ray: what it leaves is what processes of this machine leave, also when a node is killed."""

import csv
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from remind_jax.data.dataset import cache_folder
from remind_jax.runtime import cluster
from remind_jax.studies import engines, entries
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
CHANGES = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 20, "data__tuning": 24}
TABLES = ("runs.csv", "groups.csv", "differences.csv", "calibration.csv")
ENVIRONMENT = {"PYTHONPATH": str(tiny_runs.ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


# ---- Without Ray -----------------------------------------------------------------------------------------------------


def test_the_data_are_prepared_before_runs_ask_for_them(tmp_path, monkeypatch):
    config = tiny_runs.config(tmp_path / "cache", **CHANGES)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(config.to_dict())))
    engines.prepare_given([])
    modalities = {path for path in cache_folder(config.data.cache).iterdir() if path.is_dir()}
    assert len(modalities) == 4
    assert all((folder / "values").exists() for folder in modalities)


def test_each_seed_is_prepared_once_and_networks_alone_want_gpus(tmp_path, monkeypatch):
    names, given = ("remind", "logistic_regression"), []
    planned = [
        entries.Entry(name, seed, tiny_runs.config(tmp_path / "cache", name, seed=seed), tmp_path / f"{name}{seed}")
        for seed in (0, 1)
        for name in names
    ]
    monkeypatch.setattr(cluster, "run_all", lambda work, options: given.append((work, options)) or iter(()))
    options = entries.Options(["remind"], ray=cluster.Given("here:1"))
    assert list(engines.events(planned, options, 0, None)) == []
    ((work, seen),) = given
    assert seen == options.ray
    assert [(each.gpus, each.after) for each in work] == [(1, 4), (0, 4), (1, 5), (0, 5), (0, None), (0, None)]
    texts = [json.loads(each.job.text) for each in work]
    assert [text["seed"] for text in texts] == [0, 0, 1, 1, 0, 1]
    assert [each.job.log.name for each in work[-2:]] == ["preparing-0.log", "preparing-1.log"]


# ---- With it ---------------------------------------------------------------------------------------------------------


def _start(
    folder: pathlib.Path, out: str, *more: str, what: str = "--methods=soft_moe,logistic_regression --seeds=0,1"
) -> subprocess.Popen:
    made = tiny_runs.arguments(folder / "cache", **CHANGES)
    given = [*what.split(), "--resamples=20", f"--workdir={folder / out}"]
    command = [sys.executable, "-m", "remind_jax.sweep", *made, *given, *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | ENVIRONMENT, **pipes)


def _finish(process: subprocess.Popen) -> str:
    printed = process.communicate(timeout=400)[0]
    assert process.returncode == 0, printed
    return printed


def _tables(folder: pathlib.Path) -> dict[str, str]:
    return {name: (folder / name).read_text(encoding="utf-8") for name in TABLES}


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder that has a finished sweep of this machine in `local`."""
    folder = tmp_path_factory.mktemp("engines")
    _finish(_start(folder, "local"))
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A cluster whose head runs nothing, so that nodes may come and go."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}.items():
            patch.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        yield made
        made.shutdown()


def _wait_for(folder: pathlib.Path, pattern: str, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while len(list(folder.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_nodes_of_which_one_is_killed_leave_the_tables_of_one_machine_and_each_run_is_run_once(local, head):
    first, second = (head.add_node(num_cpus=1) for _ in range(2))
    process = _start(local, "killed", "--engine=ray", f"--address={head.address}")
    _wait_for(local / "killed", "*-seed*.log", 2, process)
    head.remove_node(first, allow_graceful=False)
    printed = _finish(process)
    head.remove_node(second)
    assert printed.count("(run again, 1 of 2 times)") == 1
    assert _tables(local / "killed") == _tables(local / "local")
    for name in ("soft_moe", "logistic_regression"):
        for seed in (0, 1):
            assert printed.count(f"{name:<26} seed {seed:<4}") == 1
    assert not list((local / "killed").glob("*/checkpoints/*.tmp*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_that_is_stopped_leaves_no_process_and_goes_on(local, head):
    node = head.add_node(num_cpus=1)
    given = "--engine=ray", f"--address={head.address}"
    process = _start(local, "stopped", *given)
    _wait_for(local / "stopped", "*/report.json", 1, process)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130, printed
    assert not (local / "stopped" / "runs.csv").exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(local / "stopped") not in running
    printed = _finish(_start(local, "stopped", *given))
    head.remove_node(node)
    assert "(finished before)" in printed
    assert _tables(local / "stopped") == _tables(local / "local")


@pytest.mark.slow
def test_a_ray_of_this_machine_runs_the_same_and_a_failing_run_is_told(local):
    (local / "alone").mkdir()
    (local / "alone" / "soft_moe-seed1").touch()  # in the way of the folder
    process = _start(local, "alone", "--engine=ray")
    printed = process.communicate(timeout=400)[0]
    assert process.returncode == 2, printed
    assert "1 of 4 runs failed: soft_moe seed 1: cannot write to workdir" in printed
    assert "Traceback" not in printed
    (local / "alone" / "soft_moe-seed1").unlink()
    assert _finish(_start(local, "alone", "--engine=ray")).count("(finished before)") == 3
    assert _tables(local / "alone") == _tables(local / "local")
    with open(local / "alone" / "runs.csv", encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


def _trials(out: pathlib.Path) -> list[dict[str, str]]:
    with open(out / "soft_moe-seed0-search" / "trials.csv", encoding="utf-8", newline="") as file:
        return [{name: cell for name, cell in row.items() if name != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_search_on_nodes_of_which_one_is_killed_tries_and_chooses_what_one_machine_does(tmp_path, head):
    pytest.importorskip("optuna")
    what = "--methods=soft_moe --seeds=0 --search=tpe --trials=3 --space=optim.lr=1e-3..1e-1:log"
    _finish(_start(tmp_path, "local", what=what))
    first, second = (head.add_node(num_cpus=1) for _ in range(2))
    process = _start(tmp_path, "ray", "--engine=ray", f"--address={head.address}", what=what)
    _wait_for(tmp_path / "ray", "*-search/trial-*/fold-*/config.json", 4, process)  # the first trial has three
    head.remove_node(first, allow_graceful=False)
    printed = _finish(process)
    head.remove_node(second)
    assert "(run again, 1 of 2 times)" in printed
    for number in range(3):
        assert printed.count(f"soft_moe seed 0: trial {number:<3} ") == 1
    assert "3 trials, as many at a time as the cluster has room for" in printed
    assert "chosen among 3 trials" in printed
    assert _trials(tmp_path / "ray") == _trials(tmp_path / "local")
    assert len(_trials(tmp_path / "ray")) == 3
    assert _tables(tmp_path / "ray") == _tables(tmp_path / "local")
