"""Runs jobs on the machines of a Ray cluster, as `jobs` runs them on this one.

What travels is a command line and texts; what a job finds out, it writes to the folder that all machines share.
"""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from remind_jax import errors
from remind_jax.errors import UserError
from remind_jax.runtime import claims, jobs, signals

_POLL = 0.2  # seconds between two looks at the jobs
_PATIENCE = 20.0  # seconds jobs have to end when they are asked to, a little more than `jobs` gives them
_GRACE = 10.0  # seconds; after five a worker knows that the Ray of its node is gone, and ends, and its job with it
_LOST = {*signals.CODES.values(), claims.LOST}  # exit codes of jobs that did not end by themselves
# Ray listens at 127.0.0.1 alone where it shall make no clusters, refuses whoever does not know the token, and would let
# its workers wait for all other processes of the machine.
_PRIVATE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
_STORE = 80 * 2**20  # bytes for objects, of which there are none; Ray wants as many at least


class Given(NamedTuple):
    """How jobs are given to a cluster.

    Attributes:
      address: of the cluster, `auto` or HOST:PORT; without one a Ray of this machine is started, for this user alone.
      cpus: processor cores of each job.
      gpus: of each job that takes any, below 1 a part of one; None is what the job wants, on a cluster that has GPUs.
      retries: how often at most a job is run again whose node or process was lost.
    """

    address: str = ""
    cpus: float = 1.0
    gpus: float | None = None
    retries: int = 2


class Work(NamedTuple):
    """A job, how many GPUs it wants, and the number of the one that has to end before it, however."""

    job: jobs.Job
    gpus: float = 0.0
    after: int | None = None


def check(given: Given) -> None:
    """Raises UserError: Ray is not installed, or does not know what is given."""
    if importlib.util.find_spec("ray") is None:
        raise errors.needs("ray", "ray")
    if "://" in given.address:
        raise UserError(f"address={given.address}: give HOST:PORT or auto, on a machine of the cluster")
    if not all(math.isfinite(x) and (x < 1 or x == round(x)) for x in (given.cpus, given.gpus or 0.0)):
        raise UserError(f"cpus={given.cpus:g}, gpus={given.gpus or 0:g}: above 1 give whole numbers")


def run_all(work: Sequence[Work], given: Given) -> Iterator[jobs.Event]:
    """Runs jobs wherever the cluster has room; yields events as `jobs.run_all` does, and one when a job is lost.

    Nodes run the commands by their own Python, in the folder of this process, which they share. A job that was lost is
    run again; it has not ended, and the event says why. Whatever ends this generator ends the jobs still running.

    Raises UserError: there is no cluster of Ray's version at the address, or this machine has too little for a job.
    """
    with _joined(given.address) as gpus:
        jobs_gpus = [min(each.gpus, gpus) if given.gpus is None else bool(each.gpus) * given.gpus for each in work]
        _check(given, max(jobs_gpus, default=0.0))
        with _Tasks(work, jobs_gpus, given) as tasks:
            yield from tasks.run()


@contextlib.contextmanager
def _joined(address: str) -> Iterator[float]:
    """Joins the cluster, or starts a Ray; yields how many GPUs it has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    own = {}
    if not address:
        if "ray" in sys.modules and not _PRIVATE.items() <= os.environ.items():  # which looks where to listen then
            raise UserError(
                "Ray was imported before this started one of its own: start the sweep first, or give an address"
            )
        # A second Ray of this process has the token of the first, which its library keeps.
        os.environ |= _PRIVATE | {"RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)}
        own = {"num_cpus": len(jobs.find_cpus()), "num_gpus": len(jobs.find_gpus()), "object_store_memory": _STORE}
    import ray

    heard = signal.getsignal(signal.SIGTERM)  # which Ray would take for itself
    try:
        if address not in ("", "auto"):  # where nobody is, Ray goes on trying
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"cannot join the Ray cluster {address or 'of this machine'}: {reason}") from error
    finally:
        signal.signal(signal.SIGTERM, heard)
    try:
        yield ray.cluster_resources().get("GPU", 0.0)
    finally:
        ray.shutdown()


def _check(given: Given, gpus: float) -> None:
    """Tells of jobs that no node has room for; on a cluster, which may grow, they wait."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(node.get("CPU", 0.0) >= given.cpus and node.get("GPU", 0.0) >= gpus for node in nodes):
        return
    lacks = f"no node has {given.cpus:g} CPUs and {gpus:g} GPUs for a run"
    if not given.address:
        raise UserError(f"{lacks}: give less by --cpus and --gpus")
    print(f"note: {lacks}: they wait until one joins", file=sys.stderr)


class _Tasks:
    """The jobs that Ray has, each by the stream of what its node says of it."""

    def __init__(self, work: Sequence[Work], gpus: Sequence[float], given: Given):
        import ray

        self._work, self._gpus, self._given = work, gpus, given
        self._task, self._lost = ray.remote(_task), [0] * len(work)
        self._running: dict[Any, int] = {}

    def __enter__(self) -> Self:
        self._start_those_after(None)
        return self

    def __exit__(self, *error: object) -> None:
        """Asks jobs to end and waits until they have."""
        import ray

        for stream in self._running:
            ray.cancel(stream)
        deadline = time.monotonic() + _PATIENCE
        while self._running and time.monotonic() < deadline:
            self.look()

    def look(self) -> list[jobs.Event]:
        """Waits a while for events."""
        import ray

        time.sleep(_POLL)  # and not in Ray, which would make an ordinary KeyboardInterrupt of any signal
        ready = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)[0]
        return [self._settled(stream, _next(stream, self._running[stream])) for stream in ready]

    def run(self) -> Iterator[jobs.Event]:
        """Yields events until all jobs have ended."""
        while self._running:
            for event in self.look():
                if event.ended:
                    self._start_those_after(event.job)
                elif event.error:
                    self._start(event.job)
                yield event

    def _start_those_after(self, number: int | None) -> None:
        for later, each in enumerate(self._work):
            if each.after == number:
                self._start(later)

    def _start(self, number: int) -> None:
        job, gpus, cpus = self._work[number].job, self._gpus[number], self._given.cpus
        wait = _GRACE * self._lost[number]
        told = job.command[1:], str(job.log), job.text, os.getcwd(), _environment(cpus, gpus), wait
        task = self._task.options(num_cpus=cpus, num_gpus=gpus, max_retries=0)
        self._running[task.remote(json.dumps(told))] = number

    def _settled(self, stream: Any, event: jobs.Event) -> jobs.Event:
        """Strikes off what has ended; of what was lost and may be run again returns an event that says so."""
        if not event.ended:
            return event
        del self._running[stream]
        was_lost, most = event.code < 0 or event.code in _LOST, self._given.retries
        if not was_lost or self._lost[event.job] == most:
            return event
        self._lost[event.job] += 1
        return event._replace(ended=False, error=f"{event.error} (run again, {self._lost[event.job]} of {most} times)")


def _next(stream: Any, number: int) -> jobs.Event:
    """Reads what a node says of a job; a node that says nothing more has lost it."""
    import ray

    try:
        return jobs.Event(number, *json.loads(ray.get(next(stream))))
    except ray.exceptions.RayTaskError as error:
        return jobs.Event(number, True, f"a node could not start it: {error.cause}", UserError.code)
    except ray.exceptions.RayError as error:
        return jobs.Event(number, True, f"lost with its node or process ({type(error).__name__})", claims.LOST)


def _environment(cpus: float, gpus: float) -> dict[str, str]:
    """Returns what keeps a job to its share, as far as Ray does not."""
    own = {**jobs.ALONE, "PJRT_NPROC": str(max(1, round(cpus)))}  # threads of XLA
    if gpus == 0:
        own["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus < 1:
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * gpus:.2f}"
    return own


def _task(told: str) -> Iterator[str]:
    """Runs a command on a node and says when it begins and how it ends; it ends with this process, however."""
    command, log, text, folder, environment, wait = json.loads(told)
    time.sleep(wait)
    os.chdir(folder)
    job = jobs.Job([sys.executable, *command], pathlib.Path(log), text)
    slot = jobs.Slot(environment | {jobs.PARENT: str(os.getpid())})
    for event in jobs.run_all([job], [slot]):
        yield json.dumps(event[1:])
