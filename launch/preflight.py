"""Checks what a job needs before it trains: that its processes find each other, compute together and share a folder.

    python launch/preflight.py [--folder=DIR] [--not-shared] [--devices=N] [--free-gib=5] [--timeout=120]

Run it as the training would run: by `srun`, `launch/local.sh -p launch/preflight.py` or in a pod. Every process checks;
each line begins with ok, note or FAIL. `--devices` is how many the whole job should have; with `--not-shared` only
process 0 needs the folder. The exit code is that of the first check that failed:

    0   all is well
    2   the command line or the environment cannot be read; or the processes did not find each other
    10  fewer devices than asked for
    11  a sum over all devices did not come, or was wrong
    12  the folder cannot be written, is not shared, or a file in it can be seen half-written or claimed twice
    13  too little free space
    14  clocks of machines, or of the folder's server, are more than ten seconds apart
"""

import argparse
import os
import pathlib
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from remind_jax import cli
from remind_jax.errors import UserError, explain
from remind_jax.runtime import files, processes

DEVICES, SUM, FOLDER, SPACE, CLOCK = 10, 11, 12, 13, 14
_APART = 10.0  # seconds between clocks
_WRITES = 200  # of a file that others read


class Failed(Exception):
    """A check has failed; the text says what was found."""


def main(arguments: list[str]) -> None:
    """Runs the checks and ends the process with their code."""
    parser = cli.Parser(
        "python launch/preflight.py [--folder=DIR] [--not-shared] [--devices=N] [--free-gib=GIB] [--timeout=S]"
    )
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--not-shared", action="store_true")
    parser.add_argument("--devices", type=int, default=0)
    parser.add_argument("--free-gib", type=float, default=5.0)
    parser.add_argument("--timeout", type=int, default=120)
    given = parser.parse_args(arguments)
    place = processes.here()
    _say(place, "ok", f"process {place.process} of {place.processes}, as {place.found_by} says")
    processes.join(place, given.timeout)
    # A sum that never comes cannot be interrupted: its thread waits in another program's hands.
    watch = threading.Timer(given.timeout, lambda: _give_up(place, given.timeout))
    watch.daemon = True
    watch.start()
    code = 0
    for number, check in _checks(place, given).items():
        try:
            _say(place, "ok", check())
        except Failed as failure:
            _say(place, "FAIL", str(failure))
            code = code or number
    watch.cancel()
    # Over processes too, so that each ends with the code of the job.
    codes = _gather(float(code or np.inf))
    sys.exit(0 if np.isinf(codes.min()) else int(codes.min()))


def _checks(place: processes.Place, given: argparse.Namespace) -> dict[int, Callable[[], str]]:
    """By exit code, in the order in which they run: all processes take part in each."""
    return {
        SUM: _check_sum,
        DEVICES: lambda: _check_devices(given.devices),
        FOLDER: lambda: _check_folder(place, given.folder, not given.not_shared),
        SPACE: lambda: _check_space(given.folder, given.free_gib),
        CLOCK: lambda: _check_clock(given.folder),
    }


def _say(place: processes.Place, outcome: str, text: str) -> None:
    print(f"{outcome:<4}  [{place.process}] {text}", flush=True)


def _give_up(place: processes.Place, timeout: int) -> NoReturn:
    _say(
        place, "FAIL", f"nothing came from the other devices within {timeout} s: look at firewalls and NCCL_DEBUG=INFO"
    )
    os._exit(SUM)


def _gather(value: float) -> np.ndarray:
    """That of every process."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return np.array([value])
    return np.asarray(multihost_utils.process_allgather(np.float32(value))).reshape(-1)


def _check_sum() -> str:
    import jax
    import jax.numpy as jnp

    count, start = jax.device_count(), time.perf_counter()
    ones = jnp.arange(jax.local_device_count(), dtype=jnp.float32) + 1
    local = jax.pmap(lambda x: jax.lax.psum(x, "all"), axis_name="all")(ones)
    parts = _gather(float(ones.sum()))
    if not np.allclose(np.asarray(local), parts.sum()):
        raise Failed(f"the sum over {count} devices is {np.asarray(local)[0]:g} instead of {parts.sum():g}")
    return f"a sum over {count} devices in {time.perf_counter() - start:.1f} s"


def _check_devices(wanted: int) -> str:
    import jax

    found, kinds = jax.device_count(), sorted({device.device_kind for device in jax.devices()})
    if found < wanted:
        raise Failed(f"{found} devices ({', '.join(kinds)}) instead of {wanted}")
    if shutil.which("nvidia-smi") and jax.devices()[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        raise Failed('there are GPUs, but JAX uses the CPU: pip install -e ".[cuda]"')
    return f"{found} devices ({', '.join(kinds)}), {jax.local_device_count()} of this process"


def _check_folder(place: processes.Place, folder: pathlib.Path, shared: bool) -> str:
    """Whether files appear whole on all machines, and only one process can make a file that is not there."""
    token = int(_gather(float(uuid.uuid4().int % 2**20))[0])  # of process 0, the same for all
    file, claim = folder / f".preflight-{token}", folder / f".preflight-{token}-claim"
    problem, won = "", 0.0
    try:
        if shared or place.process == 0:
            folder.mkdir(parents=True, exist_ok=True)
        if place.process == 0:
            problem = replace_while_reading(file, str(token))
    except OSError as error:
        problem = f"{folder} cannot be written: {error.strerror}"
    _gather(0.0)  # process 0 has written
    if shared and not problem and not _appears(file, str(token)):
        problem = f"{folder} is not the same folder as that of process 0"
    if not problem:
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
            won = 1.0
        except OSError:
            pass
    winners, problems = _gather(won).sum(), _gather(float(bool(problem))).sum()
    if place.process == 0:
        for path in (file, claim):
            path.unlink(missing_ok=True)
    if problem:
        raise Failed(problem)
    if shared and not problems and winners != 1:
        raise Failed(f"{winners:g} processes made the same file in {folder}, which must be one")
    return f"{folder}: renames are atomic" + (", all processes see the same files" if shared else "")


def replace_while_reading(file: pathlib.Path, text: str) -> str:
    """What goes wrong when a file is replaced while it is read; nothing if all is well."""
    files.write_text(file, text)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(file.read_text(encoding="utf-8"))
            except OSError as error:
                seen.add(f"{error.strerror}")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(_WRITES):
        files.write_text(file, text)
    done.set()
    reader.join()
    odd = seen - {text}
    return f"a file in {file.parent} was seen half-written or missing while it was replaced" if odd else ""


def _appears(file: pathlib.Path, text: str) -> bool:
    """Whether a file of another machine is seen; network file systems take a while to ask again."""
    for _ in range(20):
        try:
            return file.read_text(encoding="utf-8") == text
        except OSError:
            time.sleep(0.25)
    return False


def _check_space(folder: pathlib.Path, wanted: float) -> str:
    try:
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        raise Failed(f"cannot ask {folder} for its free space: {error.strerror}") from None
    if free < wanted:
        raise Failed(f"{free:.1f} GiB free in {folder}, less than --free-gib={wanted:g}")
    return f"{free:.1f} GiB free"


def _check_clock(folder: pathlib.Path) -> str:
    _gather(0.0)
    now = time.time()
    clocks = _gather(now % 2**14)  # float32 still tells milliseconds apart
    spread = float(clocks.max() - clocks.min())
    spread = min(spread, 2**14 - spread)
    file = folder / f".preflight-{uuid.uuid4().hex}"
    try:
        file.touch()
        server = abs(file.stat().st_mtime - time.time())
        file.unlink()
    except OSError:
        server = 0.0  # said by the check of the folder
    if spread > _APART or server > _APART:
        raise Failed(f"clocks are apart: {spread:.0f} s between processes, {server:.0f} s from the folder's server")
    return f"clocks agree ({spread:.1f} s between processes, {server:.1f} s from the folder's server)"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(explain(error))
