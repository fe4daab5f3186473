"""Jobs on a cluster of Ray: two nodes on this machine, of which one is killed; what each is given; who hears Ray."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import cluster, jobs, signals
from remind_jax.runtime.cluster import Given, Work
from tests import tiny_runs

# Ray leaves pipes and files to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of a head without cores and a node with one."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tiny_runs.ROOT))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_worker_niceness", "0")  # else they wait for all others
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
        made.add_node(num_cpus=1, num_gpus=2)
        yield made
        made.shutdown()


def _work(folder: pathlib.Path, name: str, code: str, gpus: float = 0.0, after: int | None = None) -> Work:
    """A job that runs Python, in whose folder it finds itself."""
    command = [sys.executable, "-c", f"import os, pathlib, sys, time\nhere = pathlib.Path({str(folder)!r})\n{code}"]
    return Work(jobs.Job(command, folder / f"{name}.log", "told"), gpus, after)


def _events(work: list[Work], given: Given) -> list[tuple]:
    return [(event.job, event.ended, event.error) for event in cluster.run_all(work, given)]


def test_jobs_get_their_share_and_one_that_fails_does_not_stop_the_others(nodes, tmp_path):
    names = "CUDA_VISIBLE_DEVICES", "PJRT_NPROC", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_NUM_PROCESSES"
    show = f"print(sys.stdin.read(), *[os.environ.get(name) for name in {names}], os.getcwd())"
    work = [
        _work(tmp_path, "whole", show, gpus=1),
        _work(tmp_path, "fails", "sys.exit('error: too bad')", after=0),
        _work(tmp_path, "none", show, after=1),
    ]
    found = _events(work, Given(nodes.address))
    assert found == [
        (0, False, ""),
        (0, True, ""),
        (1, False, ""),
        (1, True, "too bad"),
        (2, False, ""),
        (2, True, ""),
    ]
    shown = (tmp_path / "whole.log").read_text().split(maxsplit=5)
    assert shown[0] == "told"
    assert shown[1] in ("0", "1")
    assert shown[2:5] == ["1", "None", "1"]
    assert shown[5].strip() == os.getcwd()
    assert (tmp_path / "none.log").read_text().startswith("told  1 None")
    _events(work[:1], Given(nodes.address, gpus=0.5))
    assert (tmp_path / "whole.log").read_text().split()[3] == "0.45"


def test_a_job_that_is_killed_is_run_again_as_often_as_was_said_and_one_that_fails_is_not(nodes, tmp_path):
    killed = "print('x', file=open(here / 'tries', 'a'), flush=True)\nos.kill(os.getpid(), 9)"
    fails = "once = here / 'once'\nif once.exists(): sys.exit(3)\nonce.touch()\nos.kill(os.getpid(), 9)"
    work = [_work(tmp_path, "killed", killed), _work(tmp_path, "fails", fails, after=0)]
    events = _events(work, Given(nodes.address, retries=1))
    assert [event[:2] for event in events] == [(job, done) for job in (0, 1) for done in (False, False, False, True)]
    for said in (events[1][2], events[3][2], events[5][2]):
        assert "SIGKILL" in said
    assert "(run again, 1 of 1 times)" in events[1][2]
    assert "run again" not in events[3][2]
    assert events[7][2] == "exit code 3"
    assert len((tmp_path / "tries").read_text().split()) == 2


def test_a_killed_node_loses_no_job(nodes, tmp_path):
    """Its job ends with it, before another node begins the job anew."""
    code = (
        "from remind_jax.runtime import jobs\njobs.end_with_parent()\n"
        "pids = here / 'pids'\nthere = pids.read_text().split() if pids.exists() else []\n"
        "print(*there, os.getpid(), file=open(pids, 'w'), flush=True)\n"
        "assert not any(os.path.exists(f'/proc/{pid}') for pid in there), 'two at once'\n"
        "time.sleep(0 if there else 120)"
    )
    large = {"num_cpus": 2}
    victim = nodes.add_node(**large)
    running = cluster.run_all([_work(tmp_path, "long", code)], Given(nodes.address, cpus=2))
    assert next(running) == jobs.Event(0, False)
    other = nodes.add_node(**large)
    _wait_for(tmp_path / "pids")
    nodes.remove_node(victim, allow_graceful=False)
    try:
        lost, begun, ended = running
    finally:
        nodes.remove_node(other)
    assert not lost.ended
    assert "lost with its node" in lost.error
    assert (begun, ended) == (jobs.Event(0, False), jobs.Event(0, True))
    assert len((tmp_path / "pids").read_text().split()) == 2


def test_what_ends_the_generator_ends_the_jobs_and_lets_them_save(nodes, tmp_path):
    code = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit((here / 'saved').touch()))\n"
        "(here / 'begun').touch()\ntime.sleep(120)"
    )
    running = cluster.run_all([_work(tmp_path, str(i), code) for i in range(2)], Given(nodes.address))
    next(running)
    _wait_for(tmp_path / "begun")
    running.close()
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "1.log").exists()  # for which there was no room


def _wait_for(file: pathlib.Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_folder_that_a_node_does_not_have_is_told(nodes, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(os, "getcwd", lambda: str(tmp_path / "gone"))
    ((_, is_ended, error),) = _events([_work(tmp_path, "a", "pass")], Given(nodes.address))
    assert is_ended
    assert "could not start it: [Errno 2] No such file or directory" in error


def test_jobs_that_no_node_has_room_for_wait_and_say_so(nodes, tmp_path, capsys):
    running = cluster.run_all([_work(tmp_path, "a", "pass", gpus=4)], Given(nodes.address, gpus=4))
    threading.Timer(4, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with signals.Signals(), pytest.raises(signals.Stopped, match="SIGUSR1"):
        next(running)
    assert "note: no node has 1 CPUs and 4 GPUs for a run: they wait until one joins" in capsys.readouterr().err


def test_an_address_where_nobody_is_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot join the Ray cluster 127\.0\.0\.1:1: "):
        _events([_work(tmp_path, "a", "pass")], Given("127.0.0.1:1"))


OWN = """
import pathlib, psutil, subprocess, sys
from remind_jax.runtime import cluster, jobs
_, log, stranger = sys.argv
job = jobs.Job([sys.executable, "-c", "import time; time.sleep(1)"], pathlib.Path(log))
for event in cluster.run_all([cluster.Work(job)], cluster.Given()):
    assert not event.error, event
    if not event.ended:
        import ray
        sockets = [each for own in psutil.Process().children(recursive=True) for each in own.net_connections()]
        heard = [each.laddr.ip for each in sockets if each.status == "LISTEN"]
        print(len(heard), set(heard) - {"127.0.0.1", "::ffff:127.0.0.1"}, flush=True)
        address = ray.get_runtime_context().gcs_address
        here = {"HOME": "/nowhere", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # else it looks elsewhere
        subprocess.run([sys.executable, "-c", stranger, address], env=here, timeout=60)
"""
STRANGER = """
import os, sys, ray
try:
    ray.init(sys.argv[1], logging_level="CRITICAL")
    print("let in")
except Exception as error:
    print(f"kept out: {type(error).__name__}")
"""


def test_a_ray_of_this_machine_hears_this_machine_alone_and_asks_for_its_token(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT), "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", OWN, str(tmp_path / "log"), STRANGER]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    listening, told = found.stdout.strip().split("\n", 1)
    assert listening.endswith(" set()"), found
    assert int(listening.split()[0]) > 2
    assert told.startswith("kept out: "), found
    assert not (tmp_path / ".ray").exists()


def test_a_ray_that_was_imported_before_is_told_apart(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="Ray was imported before"):
        _events([_work(tmp_path, "a", "pass")], Given())
