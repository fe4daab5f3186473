"""Where a process finds itself, from environments as launchers leave them."""

import os
import subprocess
import sys

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import jobs, processes
from remind_jax.runtime.processes import Place, detect
from tests import tiny_runs

JAX = {"JAX_COORDINATOR_ADDRESS": "gpu1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
# What Slurm sets for a job (sbatch, salloc), for the batch script beside that, and for a task of srun.
JOB = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[01-02]", "SLURM_TASKS_PER_NODE": "2(x2)"}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = BATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[01-02]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OMPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PMI = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
PORT = 61440 + 4242 - 4096

# name: (environment, GPUs that the process sees, (found by, address, processes, process, devices), words of a note)
FOUND = {
    "nothing": ({}, 0, ("nothing", "", 1, 0, None), ""),
    "nothing, with GPUs": ({}, 8, ("nothing", "", 1, 0, None), ""),
    "given": (JAX, 0, ("JAX_*", "gpu1:8476", 4, 2, None), ""),
    "given, within Slurm": (TASK | JAX, 0, ("JAX_*", "gpu1:8476", 4, 2, None), ""),
    "given, IPv6": (
        JAX | {"JAX_COORDINATOR_ADDRESS": "[fe80::1]:8476"},
        0,
        ("JAX_*", "[fe80::1]:8476", 4, 2, None),
        "",
    ),
    "given, with devices": (JAX | {"JAX_LOCAL_DEVICE_IDS": "2, 3"}, 4, ("JAX_*", "gpu1:8476", 4, 2, (2, 3)), ""),
    "told to be alone": (TASK | jobs.ALONE, 4, ("JAX_*", "", 1, 0, None), ""),
    "Slurm, CPU": (TASK, 0, ("Slurm", f"n01:{PORT}", 4, 3, None), ""),
    "Slurm, a GPU a task": (TASK, 2, ("Slurm", f"n01:{PORT}", 4, 3, (1,)), ""),
    "Slurm, several GPUs a task": (TASK, 8, ("Slurm", f"n01:{PORT}", 4, 3, (4, 5, 6, 7)), ""),
    # JAX looks for the GPU of the task's number, which a task of --gpus-per-task does not see (jax 28194).
    "Slurm, --gpus-per-task": (TASK, 1, ("Slurm", f"n01:{PORT}", 4, 3, None), ""),
    # JAX gives a task one GPU, however many it has to itself (jax 16788).
    "Slurm, a task a node": (
        TASK | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
        4,
        ("Slurm", f"n01:{PORT}", 4, 3, None),
        "",
    ),
    "Slurm, uneven nodes": (TASK | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, 4, ("Slurm", f"n01:{PORT}", 4, 3, None), ""),
    "Slurm, GPUs chosen": (TASK | {"JAX_LOCAL_DEVICE_IDS": "5"}, 8, ("Slurm", f"n01:{PORT}", 4, 3, (5,)), ""),
    "Slurm, address given": (
        TASK | {"JAX_COORDINATOR_ADDRESS": "n01-ib:999"},
        0,
        ("Slurm", "n01-ib:999", 4, 3, None),
        "",
    ),
    # Two steps of one job side by side would listen at one port.
    "Slurm, second step": (TASK | {"SLURM_STEP_ID": "1"}, 0, ("Slurm", f"n01:{PORT + 97}", 4, 3, None), ""),
    "Slurm, a part of the job": (
        TASK | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
        0,
        ("Slurm", f"n01:{PORT}", 2, 1, None),
        "",
    ),
    "Slurm, old srun": (
        {key: value for key, value in TASK.items() if key != "SLURM_STEP_NUM_TASKS"},
        0,
        ("Slurm", f"n01:{PORT}", 4, 3, None),
        "",
    ),
    "Slurm, PMI beside": (TASK | PMI | {"PMI_SIZE": "4"}, 0, ("Slurm", f"n01:{PORT}", 4, 3, None), ""),
    "Slurm, one task": (TASK | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 4, ("nothing", "", 1, 0, None), ""),
    "Slurm, array of single tasks": (
        BATCH | {"SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_ID": "3"},
        1,
        ("nothing", "", 1, 0, None),
        "",
    ),
    # Partly set variables: jax 30073.
    "Slurm, sbatch without srun": (BATCH, 4, ("nothing", "", 1, 0, None), "not started by srun"),
    "Slurm, salloc": (JOB, 4, ("nothing", "", 1, 0, None), "SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NODELIST"),
    "Slurm, ssh or an editor": (
        {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},
        4,
        ("nothing", "", 1, 0, None),
        "works alone",
    ),
    "Slurm, only the job": ({"SLURM_JOB_ID": "4242"}, 4, ("nothing", "", 1, 0, None), ""),
    "Slurm, srun --pty": (TASK | {"SLURM_PTY_PORT": "33333"}, 4, ("nothing", "", 1, 0, None), "--pty"),
    # Open MPI 5 sets no OMPI_MCA_orte_hnp_uri, without which JAX sees no cluster (jax 14576).
    "Open MPI 5": (OMPI | {"JAX_COORDINATOR_ADDRESS": "a:1"}, 2, ("MPI", "a:1", 4, 1, (1,)), ""),
    # Under mpirun the variables of Slurm are those of MPI's daemon.
    "Open MPI in Slurm": (TASK | OMPI, 0, ("MPI", f"n01:{PORT}", 4, 1, None), ""),
    "Open MPI, one process": ({"OMPI_COMM_WORLD_SIZE": "1"}, 2, ("nothing", "", 1, 0, None), ""),
    "MPICH": (PMI | {"JAX_COORDINATOR_ADDRESS": "a:1"}, 4, ("MPI", "a:1", 2, 1, (2, 3)), ""),
    "Kubernetes, JobSet": (
        JAX | {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"},
        8,
        ("JAX_*", "gpu1:8476", 4, 2, None),
        "",
    ),
    "Kubernetes, a plain Job": (
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "2"},
        0,
        ("nothing", "", 1, 0, None),
        "indexed Job",
    ),
    "Kubernetes, a pod": ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 0, ("nothing", "", 1, 0, None), ""),
    "SkyPilot, one node": ({"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, 0, ("nothing", "", 1, 0, None), ""),
}

# name: (environment, GPUs that the process sees, words of the error)
REFUSED = {
    "address missing": ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, 0, "JAX_COORDINATOR_ADDRESS not set"),
    "count missing": ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_PROCESS_ID": "0"}, 0, "JAX_NUM_PROCESSES not set"),
    "address alone": ({"JAX_COORDINATOR_ADDRESS": "a:1"}, 0, "nothing says how many"),
    "no port": (JAX | {"JAX_COORDINATOR_ADDRESS": "gpu1"}, 0, "HOST:PORT"),
    "no such port": (JAX | {"JAX_COORDINATOR_ADDRESS": "gpu1:70000"}, 0, "HOST:PORT"),
    "not a number": (JAX | {"JAX_PROCESS_ID": "one"}, 0, "JAX_PROCESS_ID='one'"),
    "counted from 1": (JAX | {"JAX_PROCESS_ID": "4"}, 0, "JAX_PROCESS_ID=4 is not below JAX_NUM_PROCESSES=4"),
    "devices not numbers": (JAX | {"JAX_LOCAL_DEVICE_IDS": "all"}, 0, "numbers of devices"),
    "Slurm, GPUs do not divide": (TASK, 3, "2 processes of this machine see 3 GPUs"),
    "Slurm, localhost over nodes": (TASK | {"JAX_COORDINATOR_ADDRESS": "localhost:1"}, 0, "cannot be reached"),
    "Slurm, heterogeneous": (TASK | {"SLURM_HET_SIZE": "2"}, 0, "heterogeneous"),
    "Slurm, broken list": (TASK | {"SLURM_STEP_NODELIST": "n[01-"}, 0, "node list"),
    "Open MPI without an address": (OMPI, 0, "Open MPI started 4 processes"),
    "torchrun": ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "a"}, 0, "torchrun"),
    "SkyPilot without its file": ({"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}, 0, "SkyPilot started 2"),
}


@pytest.mark.parametrize("name", FOUND)
def test_place_in_an_environment(name):
    environ, gpus, expected, note = FOUND[name]
    place = detect(environ, gpus)
    assert place[:5] == expected
    assert bool(place.notes) == bool(note)
    assert all(note in line for line in place.notes)


@pytest.mark.parametrize("name", REFUSED)
def test_environments_that_contradict_themselves_are_refused(name):
    environ, gpus, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        detect(environ, gpus)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_tasks_of_a_step_agree_and_share_the_gpus_of_their_node():
    places = [
        detect(TASK | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i % 2), "SLURM_NODEID": str(i // 2)}, 4)
        for i in range(4)
    ]
    assert [place.process for place in places] == [0, 1, 2, 3]
    assert len({(place.coordinator, place.processes) for place in places}) == 1
    assert [place.devices for place in places] == [(0, 1), (2, 3)] * 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001"),
        ("node[001-015],host2", "node001"),
        ("node[009,001-003]", "node009"),
        ("n[1-2]-ib", "n1-ib"),
        ("rack[1-2]-gpu[003,007-9],login", "rack1-gpu003"),
        ("a.b-c_d", "a.b-c_d"),
    ],
)
def test_first_host_of_a_node_list(nodes, first):
    assert processes.first_host(nodes) == first


def test_a_process_that_is_alone_joins_nothing():
    with processes.joined(Place()):
        pass
    with pytest.raises(ZeroDivisionError), processes.joined(Place()):
        raise ZeroDivisionError


CODE = """
import sys
from remind_jax import cli
from remind_jax.runtime import processes
from remind_jax.errors import UserError
def main(arguments):
    with processes.joined(processes.here()):
        import jax
        if arguments == ["mistake"]:
            raise UserError("what the user can mend")
        if arguments != ["fault"] and arguments:  # names may fail to be found for whatever reason
            import socket
            def getaddrinfo(*arguments):
                raise socket.gaierror(-2, "Name or service not known")
            socket.getaddrinfo = getaddrinfo
        if arguments == ["broken"]:
            raise jax.errors.JaxRuntimeError("FAILED: [gloo/transport/tcp/pair.cc:547] Connection closed by peer")
        if arguments == ["unnamed"]:
            raise RuntimeError("[enforce fail at external/gloo/gloo/transport/tcp/device.cc:99] rv == 0. -2 vs 0")
        if arguments == ["fault"]:
            raise jax.errors.JaxRuntimeError("out of memory")
        print(jax.process_count(), jax.device_count())
cli.run(main, "")
"""


def _started(index: int, *arguments: str, port: int, **environment: str) -> subprocess.Popen:
    given = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT), **given, **environment}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; SIGKILL, because these processes hear SIGTERM their own way."""
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_processes_join_past_a_proxy_that_leads_nowhere():
    port = tiny_runs.free_port()
    proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    ends = _ends([_started(i, port=port, **proxy) for i in range(2)])
    assert [(code, out) for code, out, _ in ends] == [(0, "2 8\n")] * 2


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        pytest.param("mistake", 2, "error: what the user can mend", marks=pytest.mark.slow),
        pytest.param("unnamed", 2, "error: this machine has no address for its own name", marks=pytest.mark.slow),
        ("broken", 134, "error: another process of the job has died or cannot be reached"),
        pytest.param("fault", 1, "JaxRuntimeError: out of memory", marks=pytest.mark.slow),
    ],
)
def test_what_happens_to_all_processes_ends_each_with_its_code(how, code, words):
    port = tiny_runs.free_port()
    ends = _ends([_started(i, how, port=port) for i in range(2)])
    assert [found for found, _, _ in ends] == [code, code]
    for _, _, err in ends:
        assert words in err
        assert "ends the job" in err
        assert ("Traceback" in err) == (how == "fault")
