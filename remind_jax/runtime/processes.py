"""Which process of how many this is, read off the environment, and how the processes of a job join.

JAX can guess by itself. It takes the wrong GPUs, or none of the other processes, in cases that are common on clusters
(launch/README.md lists them), and then hangs or trains several times over; here each has its own answer or one line.
"""

import contextlib
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from remind_jax import errors
from remind_jax.errors import UserError
from remind_jax.runtime import jobs

ADDRESS, COUNT, INDEX, DEVICES = (
    "JAX_COORDINATOR_ADDRESS",
    "JAX_NUM_PROCESSES",
    "JAX_PROCESS_ID",
    "JAX_LOCAL_DEVICE_IDS",
)
HEARTBEAT = "REMIND_HEARTBEAT_SECONDS"
_TASK = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")  # srun sets them all, sbatch, salloc and ssh only some
_PORTS = 4096  # above 61439, where Linux gives out none by itself
_GRACE = 2.0  # seconds for the others to say the same
_PATIENCE = 24 * 3600 * 1000  # milliseconds to wait for a process that lives
_BROKEN = 134  # exit code, that of XLA
_questions = itertools.count()  # all processes ask the same ones in the same order


class Place(NamedTuple):
    """The place of a process in its job.

    Attributes:
      found_by: who says so: `nothing`, `JAX_*`, `Slurm` or `MPI`.
      coordinator: HOST:PORT of process 0; empty for a process that is alone.
      processes: of the job.
      process: number of this one.
      devices: numbers of the GPUs that it takes among those it sees; None takes all.
      notes: lines that the user should see.
    """

    found_by: str = "nothing"
    coordinator: str = ""
    processes: int = 1
    process: int = 0
    devices: tuple[int, ...] | None = None
    notes: tuple[str, ...] = ()


def detect(environ: Mapping[str, str], gpus: int) -> Place:
    """Reads the place of this process off the environment variables; `gpus` is how many GPUs it sees.

    Raises UserError: the environment contradicts itself, or names other processes and no way to find them.
    """
    if environ.get(COUNT) == "1":
        return Place("JAX_*")
    if COUNT in environ or INDEX in environ:
        return _explicit(environ)
    for named, size, index, local, local_size in _MPI:
        if _number(environ, size, 1) > 1 and not _is_task(environ, size):
            return _mpi(environ, gpus, named, size, index, local, local_size)
    if "SLURM_JOB_ID" in environ:
        return _slurm(environ, gpus)
    _refuse_other_launchers(environ)
    notes = ()
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        notes = (f"an indexed Job of Kubernetes without {COUNT}: this process works alone (launch/k8s sets it)",)
    return Place(notes=notes)


_MPI = (
    # Open MPI 5 no longer says where its first process is, so that JAX finds no cluster and every rank trains alone.
    *[("Open MPI", *(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")))],
    ("MPI", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


def _is_task(environ: Mapping[str, str], size: str) -> bool:
    """Tells whether srun set the PMI variables next to its own. Under mpirun, Slurm's are of its daemon."""
    slurm = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS"))
    return size == "PMI_SIZE" and "SLURM_PROCID" in environ and slurm == environ[size]


def _explicit(environ: Mapping[str, str]) -> Place:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if not environ.get(name)]
    if missing:
        raise UserError(f"{' and '.join(missing)} not set: set {ADDRESS}, {COUNT} and {INDEX} together, or none")
    place = _place("JAX_*", environ, environ[ADDRESS], COUNT, INDEX)
    return place._replace(devices=_chosen(environ))


def _mpi(
    environ: Mapping[str, str], gpus: int, named: str, size: str, index: str, local: str, local_size: str
) -> Place:
    nodes = environ.get("SLURM_JOB_NODELIST")
    address = environ.get(ADDRESS) or (nodes and f"{first_host(nodes)}:{_slurm_port(environ)}")
    if not address:
        raise UserError(f"{named} started {environ[size]} processes: set {ADDRESS}=HOST:PORT, HOST that of rank 0")
    place = _place("MPI", environ, address, size, index)
    devices = _share(environ, gpus, _number(environ, local, 0), _number(environ, local_size, 1))
    return place._replace(devices=devices)


def _slurm(environ: Mapping[str, str], gpus: int) -> Place:
    if _number(environ, "SLURM_HET_SIZE", 1) > 1:
        raise UserError("a heterogeneous Slurm job has several steps side by side: use one kind of node")
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    tasks = _number(environ, count, 1)
    if tasks == 1:
        return Place()
    if "SLURM_PTY_PORT" in environ:
        return Place(notes=(f"a shell of srun --pty in a step of {tasks} tasks: this process works alone",))
    missing = [name for name in _TASK if name not in environ]
    if missing:
        asked = f"the Slurm job asked for {tasks} tasks, but {', '.join(missing)} not set"
        return Place(notes=(f"{asked}: not started by srun, so this process works alone",))
    nodes = environ["SLURM_STEP_NODELIST"]
    address = environ.get(ADDRESS) or f"{first_host(nodes)}:{_slurm_port(environ)}"
    place = _place("Slurm", environ, address, count, "SLURM_PROCID")
    several = any(mark in nodes for mark in ",[")
    if several and address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]"):
        raise UserError(f"{ADDRESS}={address} cannot be reached from the other nodes of {nodes}: name the first node")
    here = _tasks_here(environ, tasks)
    return place._replace(devices=_share(environ, gpus, _number(environ, "SLURM_LOCALID", 0), here))


def _refuse_other_launchers(environ: Mapping[str, str]) -> None:
    """Refuses launchers whose processes would each train alone, all into one folder."""
    together = f"set {ADDRESS}=HOST:PORT, {COUNT} and {INDEX}"
    if environ.get(ADDRESS):
        raise UserError(f"{ADDRESS} is set, but nothing says how many processes there are: {together}")
    if _number(environ, "WORLD_SIZE", 1) > 1 and "RANK" in environ:
        raise UserError(f"WORLD_SIZE={environ['WORLD_SIZE']} is torchrun's, which JAX does not read: {together}")
    if _number(environ, "SKYPILOT_NUM_NODES", 1) > 1:
        raise UserError(f"SkyPilot started {environ['SKYPILOT_NUM_NODES']} nodes: {together}, as launch/skypilot does")


def _place(found_by: str, environ: Mapping[str, str], address: str, size: str, index: str) -> Place:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"the address of process 0 is {address!r}: write it as HOST:PORT")
    count, number = _number(environ, size), _number(environ, index)
    if number >= count:
        raise UserError(f"{index}={number} is not below {size}={count}: processes count from 0")
    return Place(found_by, address, count, number)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environ.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.strip().isdecimal():
        raise UserError(f"{name}={value!r} in the environment is not a whole number of at least 0")
    return int(value)


def first_host(nodes: str) -> str:
    """Returns the first host of a Slurm node list, such as `rack[1-2]-gpu[003,007-9]-ib,login`."""
    first, depth = "", 0
    for letter in nodes:
        if letter == "," and not depth:
            break
        depth += (letter == "[") - (letter == "]")
        first += letter
    host = re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)
    if not host or depth:
        raise UserError(f"cannot read the Slurm node list {nodes!r}: set {ADDRESS}=HOST:PORT")
    return host


def _slurm_port(environ: Mapping[str, str]) -> int:
    """Returns a port that all tasks of a step share, and other steps and most other jobs do not."""
    step = environ.get("SLURM_STEP_ID", "0")
    return 2**16 - _PORTS + (_number(environ, "SLURM_JOB_ID") + 97 * int(step if step.isdecimal() else 0)) % _PORTS


def _tasks_here(environ: Mapping[str, str], tasks: int) -> int:
    """Returns how many tasks of the step run on this node; of `4(x2),3`, nodes 0 and 1 have 4 and node 2 has 3."""
    layout = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for part in layout.split(","):
        if found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            counts += [int(found[1])] * int(found[2] or 1)
    node = _number(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else tasks


def _chosen(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Returns the devices that the user chose."""
    given = environ.get(DEVICES)
    if not given:
        return None
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"{DEVICES}={given!r}: write numbers of devices separated by commas")
    return tuple(int(part) for part in parts)


def _share(environ: Mapping[str, str], gpus: int, local: int, processes: int) -> tuple[int, ...] | None:
    """Returns the GPUs of one of several processes of a machine.

    JAX gives each process the GPU of its own number: the others of a process that should drive several stay idle, and
    with --gpus-per-task, where each sees its own as number 0, there is none of that number.
    """
    if DEVICES in environ:
        return _chosen(environ)
    if processes == 1 or gpus <= 1:  # none, or one that Slurm has set apart for it
        return None
    if gpus % processes or local >= processes:
        raise UserError(f"{processes} processes of this machine see {gpus} GPUs: start as many, or one for all of them")
    each = gpus // processes
    return tuple(range(local * each, (local + 1) * each))


def here() -> Place:
    """Detects the place of this process and shows the notes."""
    place = detect(os.environ, len(jobs.find_gpus()))
    for note in place.notes:
        print(f"note: {note}", file=sys.stderr)
    return place


def join(place: Place, timeout: int = 300) -> None:
    """Waits `timeout` seconds for the other processes of a job, before JAX has looked for devices; one alone does not.

    Raises UserError: they did not come, or the port is taken.
    """
    if place.processes == 1:
        return
    import jax

    _pass_by_proxies(place.coordinator)
    # It would take SIGTERM for itself, and know nothing of SIGUSR1: stopping.py hears both, the step loop agrees on it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=_number(os.environ, HEARTBEAT, 60),
        )
    except Exception as error:  # of gRPC, many lines long
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"process {place.process} of {place.processes} cannot join at {place.coordinator} within {timeout} s "
            f"({reason}): check that all were started and that the port is free"
        ) from None


def _pass_by_proxies(address: str) -> None:
    """gRPC would send even the job's own messages to a web proxy, and wait there."""
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy") for name in os.environ):
        host = address.rpartition(":")[0].strip("[]")
        for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY"):
            os.environ[name] = ",".join(filter(None, (os.environ.get(name), host)))


@contextlib.contextmanager
def joined(place: Place) -> Iterator[None]:
    """Joins a job for as long as it is open; a process that fails ends at once, for the others would wait for it."""
    join(place)
    try:
        yield
    except BaseException as error:
        if place.processes == 1:
            raise
        if not getattr(error, "agreed", False):
            _leave(place, error)
        wait()
        raise
    wait()


def _leave(place: Place, error: BaseException) -> NoReturn:
    error = _without_address(error) or error
    code = _BROKEN if _is_broken(error) else errors.explain(error)
    if code == _BROKEN:
        reason = " ".join(str(error).split())[-160:]
        print(f"error: another process of the job has died or cannot be reached ({reason})", file=sys.stderr)
    elif code is None:
        traceback.print_exception(error)
    print(f"process {place.process} of {place.processes} ends the job", file=sys.stderr, flush=True)
    sys.stdout.flush()
    time.sleep(0.0 if place.process else _GRACE)  # the others lose process 0 the moment it ends
    os._exit(1 if code is None else code)


def _without_address(error: BaseException) -> UserError | None:
    """Returns what the user can fix where CPUs could not join because this machine does not know its own address."""
    if "gloo/transport/tcp/device" not in str(error):
        return None
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return UserError(f"this machine has no address for its own name {name!r}: add it to /etc/hosts")
    return None


def _is_broken(error: BaseException) -> bool:
    """Tells whether an exchange failed because another process is gone; mostly XLA says so itself and ends this one."""
    import jax

    return isinstance(error, jax.errors.JaxRuntimeError) and bool(
        re.search("gloo|peer|onnection|UNAVAILABLE", str(error))
    )


# Through JAX's coordination service and not its devices, whose sums may not be waited for as long as a report takes.


def is_first() -> bool:
    """Tells whether this is the process that writes."""
    import jax

    return jax.process_index() == 0


def run_on_first(make: Callable[[], Any]) -> Any:
    """Calls a function on process 0 alone; all return its JSON-able value, at most a few MB, or raise its UserError."""
    client = _client()
    if client is None:
        return make()
    key = f"remind_jax/{next(_questions)}"
    if not is_first():
        answer = json.loads(client.blocking_key_value_get(key, _PATIENCE))
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["value"]
    try:
        value = make()
    except UserError as error:
        client.key_value_set(key, json.dumps({"error": str(error)}))
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def wait() -> None:
    """Waits until all processes are here."""
    if (client := _client()) is not None:
        client.wait_at_barrier(f"remind_jax/{next(_questions)}", _PATIENCE)


def _client() -> Any:
    """Returns the client of the coordination service; None for a process that is alone."""
    from jax._src import distributed  # the service has no public name

    return distributed.global_state.client
