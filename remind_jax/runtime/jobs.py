"""Runs several processes at a time, each with its share of the devices; holds a folder against a second sweep."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from remind_jax.errors import UserError
from remind_jax.runtime import claims, files

ALONE = {"JAX_NUM_PROCESSES": "1"}
"""Set for a process that must not join the job of a cluster in whose environment it starts, see `processes`."""
PARENT = "REMIND_PARENT"
"""Number of the process that this one must not outlive, see `end_with_parent`."""
_POLL = 0.2  # seconds between two looks at the processes
_PATIENCE = 15.0  # seconds a process has to end when it is asked to
_LAST_LINES = 4096  # bytes of a log that its last line is looked for in


class Slot(NamedTuple):
    """What one process at a time may use: variables, and its processor cores; without them the system places it."""

    environment: dict[str, str]
    cpus: tuple[int, ...] = ()


class Job(NamedTuple):
    """A command, the file that takes its output, and what it reads from standard input, less than 64 KiB."""

    command: list[str]
    log: pathlib.Path
    text: str = ""


class Event(NamedTuple):
    """A job of that number began (`ended` False) or ended, with what went wrong, if anything, and its exit code."""

    job: int
    ended: bool
    error: str = ""
    code: int = 0


def find_gpus() -> list[str]:
    """Returns the names of the GPUs that this process may use, without starting JAX, which would take their memory."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not any(name in platforms for name in ("cuda", "gpu", "rocm")):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def find_cpus() -> list[int]:
    """Returns the numbers of the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def divide(count: int, gpus: Sequence[str], cpus: Sequence[int]) -> list[Slot]:
    """Shares the devices among `count` processes.

    Each process gets whole GPUs while there are enough; beyond that several processes share one, and each may take its
    part of the memory. Cores, and with them the threads of XLA and OpenMP, are shared in the same way.
    """
    slots = []
    for i in range(count):
        environment = dict(ALONE)
        own = tuple(cpus[i::count]) or (cpus[i % len(cpus)],)
        environment["OMP_NUM_THREADS"] = str(len(own))
        if gpus:
            shared = -(-count // len(gpus))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[i::count] or [gpus[i % len(gpus)]])
            if shared > 1:
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / shared:.2f}"
        slots.append(Slot(environment, own))
    return slots


def run_all(jobs: Sequence[Job], slots: Sequence[Slot], keep_open: Sequence[int] = ()) -> Iterator[Event]:
    """Runs every job, one a slot at a time, in their order; whatever ends this generator ends the processes still
    running.

    The processes hold the descriptors `keep_open` as well, such as that of `hold`. Yields an event when a job begins
    and when it ends; a job that fails does not stop the others.
    """
    running: dict[int, tuple[subprocess.Popen, int]] = {}
    waiting = list(range(len(jobs)))[::-1]
    free = list(range(len(slots)))[::-1]
    try:
        while waiting or running:
            while waiting and free:
                job, slot = waiting.pop(), free.pop()
                running[job] = _start(jobs[job], slots[slot], keep_open), slot
                yield Event(job, False)
            ended = [job for job, (process, _) in running.items() if process.poll() is not None]
            for job in ended:
                process, slot = running.pop(job)
                free.append(slot)
                yield Event(job, True, _error(process.returncode, jobs[job].log), process.returncode)
            if not ended and running:
                time.sleep(_POLL)
    finally:
        _stop([process for process, _ in running.values()])


def _start(job: Job, slot: Slot, keep_open: Sequence[int]) -> subprocess.Popen:
    with files.open_log(job.log) as log:
        streams = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        environment = {**os.environ, **slot.environment}
        process = subprocess.Popen(job.command, **streams, env=environment, pass_fds=tuple(keep_open))
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # a process that has ended reads nothing
        pipe.write(job.text.encode("utf-8"))
    if slot.cpus and hasattr(os, "sched_setaffinity"):
        # Before its libraries are loaded: they make as many threads as there are cores to run on.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, slot.cpus)
    return process


def _error(code: int, log: pathlib.Path) -> str:
    """Returns nothing for exit code 0, else the last line of the log, or the signal."""
    if code == 0:
        return ""
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name}); output in {log}"
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_LINES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    return last.removeprefix("error: ")


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_with_parent() -> None:
    """Lets this process end with the one that `PARENT` names, however that ends: another may take up its work."""
    parent = os.environ.pop(PARENT, "")

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_POLL)
        os._exit(claims.LOST)

    if parent:
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def hold(folder: pathlib.Path, shared: bool = False) -> Iterator[int]:
    """Holds a folder for one sweep, or for all that share it; yields a descriptor that holds it on in child processes.

    Raises UserError: another sweep, or a run that a killed one has left behind, still works there.
    """

    def refuse() -> None:
        raise UserError(f"another sweep, or a run that it left behind, still works in {folder}: wait for it")

    with contextlib.ExitStack() as stack:
        try:
            files.make_folder(folder)
            lock = stack.enter_context(files.lock(folder / ".lock", shared=shared, busy=refuse))
        except OSError as error:
            raise UserError(f"cannot write to workdir {folder}: {error.strerror or error}") from error
        yield lock.descriptor
