"""Processes of a sweep: how devices are shared, that a failure is one line, and that nothing is left behind."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import jobs, processes
from remind_jax.runtime.jobs import Event, Job, Slot, divide


def _job(folder: pathlib.Path, name: str, code: str) -> Job:
    return Job([sys.executable, "-S", "-c", code], folder / f"{name}.log")


# ---- Devices ---------------------------------------------------------------------------------------------------------


def test_cores_are_dealt_out_without_overlap():
    slots = divide(3, [], list(range(8)))
    assert sorted(cpu for slot in slots for cpu in slot.cpus) == list(range(8))
    assert [slot.environment["OMP_NUM_THREADS"] for slot in slots] == ["3", "3", "2"]
    assert all("CUDA_VISIBLE_DEVICES" not in slot.environment for slot in slots)


def test_runs_of_a_sweep_join_no_job_of_a_cluster():
    task = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    (slot,) = divide(1, [], [0])
    assert processes.detect(task | {"SLURM_STEP_NODELIST": "a"}, 0).processes == 2
    assert processes.detect(task | {"SLURM_STEP_NODELIST": "a"} | slot.environment, 0).processes == 1


def test_more_processes_than_cores_share_them():
    assert [slot.cpus for slot in divide(3, [], [4, 5])] == [(4,), (5,), (4,)]


def test_gpus_are_dealt_out_whole():
    slots = divide(2, ["0", "1", "2", "3"], range(4))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0,2", "1,3"]
    assert all("XLA_PYTHON_CLIENT_MEM_FRACTION" not in slot.environment for slot in slots)


def test_processes_that_share_a_gpu_share_its_memory():
    slots = divide(3, ["a", "b"], range(4))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["a", "b", "a"]
    assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in slots} == {"0.45"}


def test_gpus_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    monkeypatch.delenv("JAX_PLATFORMS")
    assert jobs.find_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert jobs.find_gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert jobs.find_gpus() == []


# ---- Processes -------------------------------------------------------------------------------------------------------


def test_jobs_get_their_slot_and_a_failure_does_not_stop_the_others(tmp_path):
    cpu = jobs.find_cpus()[0]
    report = "import os; print(os.environ['WHO'], sorted(os.sched_getaffinity(0)))"
    codes = [
        "import time; time.sleep(0.5); " + report,
        "import sys; print('error: no such data', file=sys.stderr); print(); sys.exit(2)",
        "import os; os.kill(os.getpid(), 9)",
        report,
    ]
    todo = [_job(tmp_path, str(i), code) for i, code in enumerate(codes)]
    events = list(jobs.run_all(todo, [Slot({"WHO": "one"}, (cpu,))]))
    assert [event for event in events if not event.ended] == [Event(i, False) for i in range(4)]
    ended = {event.job: event.error for event in events if event.ended}
    assert ended[0] == ended[3] == ""
    assert ended[1] == "no such data"
    assert ended[2].startswith("ended by signal 9 (SIGKILL)")
    # The first one slept until it was placed.
    assert (tmp_path / "0.log").read_text(encoding="utf-8") == f"one [{cpu}]\n"


def test_as_many_run_at_a_time_as_there_are_slots(tmp_path):
    todo = [_job(tmp_path, str(i), "pass") for i in range(5)]
    running, most = 0, 0
    for event in jobs.run_all(todo, [Slot({}), Slot({})]):
        running += -1 if event.ended else 1
        most = max(most, running)
    assert (running, most) == (0, 2)


def test_an_interrupted_sweep_leaves_no_process(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    events = jobs.run_all([_job(tmp_path, str(i), code) for i in range(2)], [Slot({}), Slot({})])
    next(events), next(events)
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    while not all(log.read_text(encoding="utf-8").endswith("\n") for log in logs):
        time.sleep(0.01)
    events.close()
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text(encoding="utf-8")), 0)


# ---- Lock ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_held_by_one_sweep_at_a_time(tmp_path):
    with jobs.hold(tmp_path), pytest.raises(UserError, match="still works in"), jobs.hold(tmp_path):
        pass
    with jobs.hold(tmp_path):
        pass


def test_a_process_left_behind_holds_the_folder(tmp_path):
    with jobs.hold(tmp_path / "new") as descriptor:
        command = [sys.executable, "-S", "-c", "input()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(descriptor,))
    with process:
        with pytest.raises(UserError, match="still works in"), jobs.hold(tmp_path / "new"):
            pass
        process.communicate(b"\n")
    with jobs.hold(tmp_path / "new"):
        pass
