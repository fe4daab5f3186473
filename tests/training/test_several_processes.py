"""Several processes train one run: the same numbers as one process, one stop for all, and an end for all if one dies.

Real processes of this machine; JAX on CPU exchanges their sums over TCP.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import devices
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

ROOT = tiny_runs.ROOT
_LIMIT = 240  # seconds


def _environment(folder: pathlib.Path, devices: int, **changes: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "SLURM_"))}
    return clean | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"compiled{devices}"),
        "NPROC": "32",
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "REMIND_HEARTBEAT_SECONDS": "10",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        **changes,
    }


def _start(folder: pathlib.Path, processes: int, devices: int, *command: object) -> list[subprocess.Popen]:
    """Processes of one job that run a Python command."""
    address = f"127.0.0.1:{tiny_runs.free_port()}"
    started = []
    for i in range(processes):
        place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i)}
        arguments = [sys.executable, *map(str, command)]
        environment = _environment(folder, devices, **place)
        with open(folder / f"output{i}", "w", encoding="utf-8") as log:
            started.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT))
    return started


def _end(started: list[subprocess.Popen]) -> list[int]:
    """Exit codes. Ended by SIGKILL if they hang: they hear SIGTERM their own way."""
    try:
        return [process.wait(timeout=_LIMIT) for process in started]
    finally:
        for process in started:
            process.kill()


def _output(folder: pathlib.Path, process: int = 0) -> str:
    return (folder / f"output{process}").read_text(encoding="utf-8", errors="replace")


def _records(folder: pathlib.Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time/step_ms"} for line in lines]


def _assert_same_records(folder: pathlib.Path, other: pathlib.Path, tolerance: float) -> None:
    mine, theirs = _records(folder), _records(other)
    assert [list(record) for record in mine] == [list(record) for record in theirs]
    for one, two in zip(mine, theirs, strict=True):
        assert (one["step"], one["stage"]) == (two["step"], two["stage"])
        for key in one.keys() - {"stage"}:
            assert one[key] == pytest.approx(two[key], abs=tolerance), (one["step"], key)


def _assert_same(folder: pathlib.Path, other: pathlib.Path, tolerance: float) -> None:
    """Records, λ among them, predictions and report agree; of numbers, but for the last bits of sums."""
    _assert_same_records(folder, other, tolerance)
    one, two = (pl.read_parquet(path / "predictions.parquet") for path in (folder, other))
    assert one.drop("p_0", "p_1").equals(two.drop("p_0", "p_1"))
    np.testing.assert_allclose(one["p_1"], two["p_1"], atol=tolerance)
    one, two = (json.loads((path / "report.json").read_text(encoding="utf-8")) for path in (folder, other))
    for key in ("n", "parameters", "config_digest", "split_digest", "gate", "card"):
        assert one.get(key) == two.get(key), key  # only routed methods have a gate
    assert one["overall"]["accuracy"] == two["overall"]["accuracy"]
    assert one["overall"]["auroc"] == pytest.approx(two["overall"]["auroc"], abs=0.01)


# ---- What they exchange ---------------------------------------------------------------------------------------------

EXCHANGE = """
import jax, numpy as np
from remind_jax.runtime import devices, processes
from remind_jax.errors import UserError

with processes.joined(processes.here()):
    me, all_devices = jax.process_index(), devices.choose_devices(0, 8)
    assert [device.process_index for device in all_devices] == [0, 0, 1, 1]
    assert devices.choose_devices(2, 8) == [all_devices[0], all_devices[2]]
    for count, words in ((3, "shared evenly"), (6, "this machine has 4"), (-2, "this machine has 4")):
        try:
            devices.choose_devices(count, 8)
        except UserError as error:
            assert words in str(error)
        else:
            raise AssertionError(count)
    assert devices.own_rows(8) == slice(4 * me, 4 * me + 4)
    # Bit for bit whatever the bits are, and over the border of what goes at a time.
    odd = {"a": np.array([-0.0, np.nan, 1e-42], np.float32), "b": np.bool_(True), "c": np.int8([-1, 3])}
    odd |= {"d": np.zeros(0), "e": np.random.default_rng(0).integers(0, 2**63, 2**20)}
    got = devices.broadcast(odd if me == 0 else jax.tree.map(np.ones_like, odd))
    for name, x in odd.items():
        assert got[name].dtype == x.dtype and got[name].shape == x.shape and got[name].tobytes() == x.tobytes(), name
    halves = np.zeros(6, np.float32)
    halves[3 * me : 3 * me + 3] = me + 1.5
    assert devices.merged((halves,))[0].tolist() == [1.5] * 3 + [2.5] * 3
    agreement = devices.Agreement(all_devices)
    answers = [agreement.ask(10 if me and step == 2 else 0) for step in range(5)]
    assert answers == [0, 0, 0, 10, 0], answers
    assert agreement.settle(15 if me == 0 else 10) == 15
    assert processes.run_on_first(lambda: {"who": me}) == {"who": 0}
    try:
        processes.run_on_first(lambda: (_ for _ in ()).throw(UserError("cannot write")))
    except UserError as error:
        print("all know:", error)
"""


def test_what_processes_tell_each_other(tmp_path):
    assert _end(_start(tmp_path, 2, 2, "-c", EXCHANGE)) == [0, 0], _output(tmp_path) + _output(tmp_path, 1)
    assert all("all know: cannot write" in _output(tmp_path, i) for i in range(2))


def test_a_process_that_is_alone_exchanges_nothing():
    tree = {"a": np.arange(3)}
    assert devices.merged(tree) is tree
    assert devices.broadcast(tree) is tree
    agreement = devices.Agreement(devices.choose_devices(0, 8))
    assert [agreement.ask(x) for x in (0, 10, 0)] == [0, 10, 0]
    with pytest.raises(UserError, match="this machine has 4"):
        devices.choose_devices(5, 8)


# ---- Runs -----------------------------------------------------------------------------------------------------------


def _arguments(folder: pathlib.Path, name: str, **changes) -> list[str]:
    changes = {"devices": 0, "train__evaluate_every": 0.5, "eval__bootstrap": 20} | changes
    return [*tiny_runs.arguments(folder / "cache", **changes), f"--workdir={folder / name}"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a run of one process with four devices, in two stages of 12 steps."""
    folder = tmp_path_factory.mktemp("processes")
    assert _end(_start(folder, 1, 4, "-m", "remind_jax.main", *_arguments(folder, "alone"))) == [0], _output(folder)
    return folder


@pytest.mark.slow
def test_four_processes_with_a_device_each_are_one_with_four(base):
    environment = _environment(base, 1)
    command = ["launch/local.sh", "-n", "4", *_arguments(base, "four")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Training remind on") == 1  # one of them speaks
    assert json.loads((base / "four" / "environment.json").read_text(encoding="utf-8"))["processes"] == 4
    _assert_same(base / "four", base / "alone", 1e-5)


@pytest.mark.slow
def test_two_tasks_of_slurm_with_two_devices_each_are_one_process_with_four(base):
    path = f"{ROOT / 'tests' / 'launch'}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_NTASKS": "2", "FAKE_NODES": "2", "PATH": path}
    command = ["bash", "launch/slurm/train.sbatch", *_arguments(base, "two")]
    environment = _environment(base, 2, **slurm)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    _assert_same(base / "two", base / "alone", 1e-5)
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_LIMIT)
    assert again.returncode == 0
    assert again.stdout.count("is a finished run") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "programs"), [("pmap", "one"), ("jit", "two")])
def test_other_forms_of_the_step_give_the_same_numbers_too(kind, programs, base):
    arguments = _arguments(base, f"{kind}-{programs}", parallel=kind, programs=programs)
    assert _end(_start(base, 2, 2, "-m", "remind_jax.main", *arguments)) == [0, 0], _output(base)
    _assert_same_records(base / f"{kind}-{programs}", base / "alone", 1e-5)


@pytest.mark.slow
def test_experts_shared_by_eight_devices_give_the_numbers_of_one(tmp_path):
    for name, changes in {
        "alone": {"devices": 1},
        "eight": {"devices": 8, "expert_devices": 8},
        "four by two": {"devices": 8, "expert_devices": 4},
    }.items():
        arguments = _arguments(tmp_path, name, fusion__experts=8, **changes)
        assert _end(_start(tmp_path, 1, 8, "-m", "remind_jax.main", *arguments)) == [0], _output(tmp_path)
    _assert_same_records(tmp_path / "eight", tmp_path / "alone", 1e-5)
    _assert_same_records(tmp_path / "four by two", tmp_path / "alone", 1e-5)


@pytest.mark.slow
def test_kept_features_of_frozen_encoders_serve_all_processes(tmp_path):
    write_manifest(tmp_path / "data", n=60)
    changes = {"train__epochs": 4.0, "train__feature_cache": "disk", "train__select": "last", "devices": 0}
    changes |= {"data__max_tokens": 8, "data__vocabulary": 64, "data__bad_files": "missing", "eval__bootstrap": 20}
    for name, processes in (("one", 1), ("two", 2)):
        flags = tiny_runs.own_arguments(tmp_path / "data", tmp_path / f"cache-{name}", **changes)
        flags.append(f"--workdir={tmp_path / name}")
        codes = _end(_start(tmp_path, processes, 4 // processes, "-m", "remind_jax.main", *flags))
        assert codes == [0] * processes, _output(tmp_path) + _output(tmp_path, processes - 1)
        # Of two, the one that comes first encodes, and only process 0 speaks.
        assert processes == 2 or "Encoding the train rows once for stage specialize" in _output(tmp_path)
        assert not list((tmp_path / f"cache-{name}").glob("features-*/*"))
    _assert_same_records(tmp_path / "one", tmp_path / "two", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_processes_that_read_present_inputs_only_give_the_numbers_of_one_that_encodes_all(kind, tmp_path):
    write_manifest(tmp_path / "data", n=90)
    changes = {"train__batch_size": 16, "train__feature_cache": "off", "devices": 0, "eval__bootstrap": 20}
    changes |= {"data__hide": "note", "data__max_tokens": 8, "data__vocabulary": 64, "parallel": kind}
    for name, processes, encode in (("one", 1, "dense"), ("two", 2, "present")):
        flags = tiny_runs.own_arguments(tmp_path / "data", tmp_path / f"cache-{name}", encode=encode, **changes)
        flags.append(f"--workdir={tmp_path / name}")
        codes = _end(_start(tmp_path, processes, 4 // processes, "-m", "remind_jax.main", *flags))
        assert codes == [0] * processes, _output(tmp_path) + _output(tmp_path, processes - 1)
    _assert_same_records(tmp_path / "one", tmp_path / "two", 1e-5)


def _wait_for(condition, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["remind", "fair_batch"])
def test_a_run_goes_on_in_another_layout_after_a_stop_and_a_death(method, base):
    """Two processes, of which one is asked to stop; four, of which one dies; then one: as if nothing had happened."""
    given = {"method": method, "train__epochs": 20.0, "train__joint_epochs": 15.0, "train__evaluate_every": 2.0}
    main = ("-m", "remind_jax.main")
    alone, moved = (_arguments(base, f"{method}-{name}", **given) for name in ("alone", "moved"))
    assert _end(_start(base, 1, 4, *main, *alone)) == [0], _output(base)
    folder = base / f"{method}-moved"
    metrics = folder / "metrics.jsonl"

    def newest() -> int:
        return max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())

    started = _start(base, 2, 2, *main, *moved)
    _wait_for(lambda: metrics.exists() and "train/loss" in metrics.read_text(encoding="utf-8"), started)
    started[1].send_signal(signal.SIGUSR1)
    assert _end(started) == [75, 75], _output(base) + _output(base, 1)
    assert all("stopped; run the same command again" in _output(base, i) for i in range(2))
    stopped = newest()
    assert 4 <= stopped < 240
    assert f"asked to stop: saving step {stopped}" in _output(base)

    started = _start(base, 4, 1, *main, *moved)
    _wait_for(lambda: newest() > stopped, started)
    started[3].kill()
    codes = _end(started)
    assert codes[3] == -signal.SIGKILL
    assert all(code not in (0, 75) for code in codes)
    # XLA's word, or ours where the exchange breaks first.
    assert re.search("another (task died|process of the job has died)", _output(base))
    assert not (folder / "report.json").exists()

    assert _end(_start(base, 1, 4, *main, *moved)) == [0], _output(base)
    _assert_same(folder, base / f"{method}-alone", 1e-3)
