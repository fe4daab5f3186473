"""A run in a process of its own that tells where it is, can be killed anywhere, and writes down what it did.

Processes come from multiprocessing's fork server, which has imported everything once and has started no device.
"""

import contextlib
import ctypes
import fnmatch
import hashlib
import importlib
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# What a run imports on its way; imported once, by the fork server.
for _name in (
    *("grain", "tensorflow_datasets", "sklearn.metrics", "sklearn.linear_model", "scipy.stats", "matplotlib.pyplot"),
    *("jinja2", "rich.progress", "tokenizers", "orbax.checkpoint", "polars", "pydicom", "PIL.Image", "yaml"),
    *("remind_jax.main", "remind_jax.training.run", "remind_jax.data.sources.synthetic"),
    *("remind_jax.predict", "remind_jax.export"),
):
    importlib.import_module(_name)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from remind_jax import cli  # noqa: E402
from remind_jax.data import builder, memory, samplers  # noqa: E402
from remind_jax.models.model import STORED  # noqa: E402
from remind_jax.runtime import devices, files  # noqa: E402
from remind_jax.runtime.signals import Signals  # noqa: E402
from remind_jax.training import checkpoint, frozen_features, loop, run_folder  # noqa: E402
from remind_jax.training import run as runs  # noqa: E402
from remind_jax.training.run_folder import RunFolder  # noqa: E402

POINTS = (
    *("config written", "shards", "shards written", "shards renamed", "before a step"),
    *(
        "in a step",
        "after a step",
        "λ refresh",
        "evaluation",
        "evaluated",
        "save begun",
        "before the digests",
        "before the commit",
        "in the rename",
        "renamed",
    ),
    *("stage switch", "record cut", "held-out rows read", "predictions written", "report written", "report renamed"),
)
"""Where a run can be killed by name."""
FEATURE_POINTS = ("features", "features written", "features renamed", "a step on features", "features removed")
"""Where a run can be killed too that keeps features of frozen encoders on disk."""


class Child:
    """One start of a run.

    Attributes:
      process: of multiprocessing.
    """

    def __init__(self, arguments: Sequence[str], folder: pathlib.Path, **options: Any):
        """Starts `remind_jax.main` with `arguments` and the workdir `folder`; `options` are those of `run`."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=run, args=(list(arguments), str(folder), send), kwargs=options)
        self.process.start()
        send.close()

    def wait_for(self, step: int, timeout: float = 300.0) -> bool:
        """Waits until a step is being read; whether the run came so far."""
        deadline = time.monotonic() + timeout
        try:
            while self._receive.poll(max(0.0, deadline - time.monotonic())):
                if int(self._receive.recv_bytes()) >= step:
                    return True
        except (EOFError, OSError):
            pass
        return False

    def finish(self, timeout: float = 300.0) -> int:
        """Waits for the end; the exit code, or minus the signal. A process that was stopped (SIGSTOP) is let go on."""
        self._receive.close()
        deadline = time.monotonic() + timeout
        while self.process.is_alive() and time.monotonic() < deadline:
            self.process.join(0.2)
            if _state(self.process.pid) == "T":
                os.kill(self.process.pid, signal.SIGCONT)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            return -999
        return self.process.exitcode


def _state(process: int) -> str:
    """The letter by which the kernel tells what a process does; empty when there is none."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return ""


def run(
    arguments: list[str],
    folder: str,
    send: Any,
    *,
    point: str = "",
    occurrence: int = 1,
    sends: Sequence[int] = (signal.SIGKILL,),
    again: str = "",
    delay: float = 0.0,
    devices: int = 1,
    compiled: str = "",
    broken: str = "",
    command: str = "main",
    attempts: str = "",
    full: str = "",
) -> None:
    """What the process does.

    Args:
      arguments: of the command, without the workdir.
      folder: the workdir; what the run did is written beside it.
      send: a pipe that is told each step.
      point, occurrence: where to send oneself signals, and at which time of coming there.
      sends: the signals; for SIGPIPE the reader of what is printed goes away.
      again: where to send them once more, after that.
      delay: seconds after coming there; without, what follows has not begun.
      devices: of JAX.
      compiled: folder of compiled programs.
      broken: what to take away from the program, see `_break`.
      command: the module of `remind_jax` to run.
      full: the pattern of a name; the disk is full from the time on, the `occurrence`-th, when it is to be written.
      attempts: a file that is told what tried to reach the network, which is then cut off; empty leaves it be.
    """
    beside = pathlib.Path(folder)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the rows run under nohup
    os.environ |= {"NPROC": "32", "JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_cpu_parallel_codegen_split_count=1"
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    if compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
    reader = -1
    if signal.SIGPIPE in sends:
        reader, writer = os.pipe()
        os.dup2(writer, sys.stdout.fileno())
        os.close(writer)
    if attempts:
        _cut_off(attempts)
    _break(broken)
    at = _Point(point, occurrence, sends, again, delay, reader, beside)
    _watch(beside, at, send)
    if full:
        _fill(full, occurrence)
    sys.argv = ["remind_jax", *arguments, f"--workdir={folder}"]
    main = importlib.import_module(f"remind_jax.{command}").main

    def begin(arguments: list[str]) -> None:
        _tell(send, -1)
        at("begun")
        main(arguments)

    cli.run(begin, "")


def _tell(send: Any, step: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        send.send_bytes(str(step).encode())


class _Point:
    """Sends the process signals when it comes to a place for a given time, and at another place after that."""

    def __init__(
        self,
        name: str,
        occurrence: int,
        sends: Sequence[int],
        again: str,
        delay: float,
        reader: int,
        folder: pathlib.Path,
    ):
        self._name, self._left, self._sends, self._again = name, occurrence, sends, again
        self._delay, self._reader, self._folder = delay, reader, folder

    def comes(self, name: str) -> bool:
        """Whether the process ends at the next call with this name."""
        return name == self._name and self._left == 1

    def __call__(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                if self._delay:
                    timer = threading.Timer(self._delay, self._send)
                    timer.daemon = True  # the process may end before
                    timer.start()
                else:
                    self._send()
                self._name, self._left, self._again = self._again, 1, ""

    def _send(self) -> None:
        if not (self._folder / "report.json").exists():
            pathlib.Path(f"{self._folder}.asked").touch()  # in time: the run has not ended
        for number in self._sends:
            if number == signal.SIGPIPE:
                if self._reader >= 0:
                    os.close(self._reader)
                self._reader = -1
            else:
                os.kill(os.getpid(), number)


def _around(owner: Any, name: str, before: Callable[..., Any] | None = None, after: Callable[..., Any] | None = None):
    """Calls `before` with the arguments of a function, and `after` too when it has returned."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if before is not None:
            before(*arguments, **options)
        result = original(*arguments, **options)
        if after is not None:
            after(*arguments, **options)
        return result

    setattr(owner, name, wrapped)


def _watch(folder: pathlib.Path, at: _Point, send: Any) -> None:
    """Puts points, a notice of each step, and records of batches and checkpoints into the program."""
    steps = {"next": 0, "refresh": 4}

    def record(kind: str, step: int, arrays: Any) -> None:
        digest = hashlib.sha256()
        leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(arrays)}
        for path, x in sorted(leaves.items(), key=lambda item: item[0]):
            digest.update(f"{path} {x.dtype} {x.shape}".encode() + x.tobytes())
        with open(f"{folder}.{kind}", "a", encoding="utf-8") as file:
            file.write(f"{step} {digest.hexdigest()}\n")

    make = devices.make_program

    def make_program(*arguments: Any, **options: Any) -> Any:
        program = make(*arguments, **options)

        def place(state: Any) -> Any:
            steps["next"] = state.steps_done
            return program.place(state)

        def step(state: Any, batch: Mapping[str, Any]) -> Any:
            at("before a step")
            result = program.step(state, batch)
            record("batches", steps["next"], dict(batch))
            steps["next"] += 1
            at("in a step")
            if any(name.startswith(STORED) for name in batch):
                at("a step on features")
            if steps["next"] % steps["refresh"] == 0:
                at("λ refresh")
            return result

        return program._replace(place=place, step=step)

    devices.make_program = make_program

    def told(trainer: Any, recorder: Any, step: int, *rest: Any, **options: Any) -> None:
        del trainer, recorder, rest, options
        _tell(send, step)

    _around(loop.Trainer, "_take", told, lambda *a, **o: at("after a step"))
    _around(loop.Trainer, "_evaluate", lambda *a, **o: at("evaluation"), lambda *a, **o: at("evaluated"))
    _around(loop.Trainer, "begin", lambda trainer, stage, *a: at("stage switch") if stage.start else None)
    _around(
        checkpoint.Checkpoints,
        "save",
        lambda self, step, arrays, told: record("saves", step, arrays),
        lambda *a, **o: at("save begun"),
    )
    _around(
        checkpoint.Checkpoints,
        "_write_sums",
        lambda *a: at("before the digests"),
        lambda *a: at("before the commit"),
    )

    def is_checkpoint(path: pathlib.Path) -> bool:
        return path.name.isdigit() and path.parent.name == "checkpoints"

    def is_features(path: pathlib.Path) -> bool:
        return path.parent.name.startswith("features-")

    def is_shards(path: pathlib.Path) -> bool:
        return path.name.endswith(f"-{builder._VERSION}")

    def renames(name: str, to: Callable[[pathlib.Path], bool]) -> Callable[..., None]:
        return lambda source, target, **options: at(name) if to(pathlib.Path(target)) else None

    _around(os, "rename", renames("features written", is_features), renames("features renamed", is_features))
    fill = frozen_features._fill

    def filled(arrays: Any, pieces: Any) -> None:
        def told() -> Any:
            for piece in pieces:
                yield piece
                at("features")

        fill(arrays, told())

    frozen_features._fill = filled

    def removed(path: Any, *rest: Any, **options: Any) -> None:
        if pathlib.Path(path).name.startswith("features-"):
            at("features removed")

    _around(shutil, "rmtree", None, removed)
    for function in ("rename", "replace"):
        _around(os, function, renames("in the rename", is_checkpoint), renames("renamed", is_checkpoint))
    _around(builder._Part, "count", lambda *a: at("shards"))
    _around(os, "rename", renames("shards written", is_shards), renames("shards renamed", is_shards))
    _around(files, "write_text", None, lambda file, text: at("config written") if file.name == "config.json" else None)
    _around(runs, "_gate_summary", lambda *a: at("held-out rows read"))
    _around(runs.reports, "write_html", lambda *a: at("predictions written"))
    _around(runs.reports, "write_json", lambda *a: at("report written"), lambda *a: at("report renamed"))

    def cut(self: RunFolder, line: Mapping[str, Any]) -> None:
        if at.comes("record cut"):
            text = json.dumps(dict(line))
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(text[: len(text) // 2])
        at("record cut")

    _around(RunFolder, "log", cut)


def _fill(name: str, occurrence: int) -> None:
    """Lets no file grow any more when the one with a name is to be written; there is room again for the last line."""
    left = [occurrence]

    def reached(path: pathlib.Path, room: int = 40) -> None:
        if fnmatch.fnmatch(path.name, name):
            left[0] -= 1
            if not left[0]:
                limit_files(room)

    for function in ("whole_file", "whole_folder", "whole_files"):
        _around(files, function, lambda path, **options: reached(path))
    _around(files.Lines, "add", lambda self, line: reached(self._path, self._path.stat().st_size + len(line) // 2))
    _around(checkpoint.Checkpoints, "_begin", lambda self: reached(pathlib.Path("checkpoint")))
    _around(cli, "explain", lambda error: limit_files(resource.RLIM_INFINITY))


def limit_files(size: int) -> None:
    """Lets this process make no file larger than so many bytes: what is beyond fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _cut_off(attempts: str) -> None:
    """Takes the network away as far as this process may, and writes down who asks Python for it."""
    ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET: a network of its own without any device; needs root

    def note(event: str, arguments: tuple) -> None:
        is_local = event == "socket.connect" and arguments[0].family == socket.AF_UNIX
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") and not is_local:
            with open(attempts, "a", encoding="utf-8") as file:
                file.write(f"{event} {arguments[1:] if event == 'socket.connect' else arguments}\n")
            raise OSError("there is no network")

    sys.addaudithook(note)


def _break(what: str) -> None:
    """Takes something away from the program that a row relies on."""
    if what == "λ":  # comes back from a checkpoint as it was at the start
        arrays = checkpoint.Checkpoints.arrays

        def forgetful(self: Any, step: int, like: Any) -> Any:
            restored = arrays(self, step, like)
            if "state" not in restored:
                return restored
            dro = like["state"].opt_state["dro"]
            state = restored["state"]._replace(
                opt_state=type(restored["state"].opt_state)(
                    restored["state"].opt_state, dro=jax.tree.map(np.asarray, dro)
                )
            )
            return restored | {"state": state}

        checkpoint.Checkpoints.arrays = forgetful
    elif what == "moments":  # of the optimizer come back from a checkpoint as they were at the start
        whole = checkpoint.Checkpoints.arrays

        def numb(self: Any, step: int, like: Any) -> Any:
            restored = whole(self, step, like)
            start = jax.tree.map(np.asarray, like["state"].opt_state)
            return restored | {"state": restored["state"]._replace(opt_state=start)}

        checkpoint.Checkpoints.arrays = numb
    elif what == "deferred":  # a signal ends the run where it is
        Signals._receive = lambda self, number, frame: os._exit({15: 143}.get(number, 75))
    elif what == "order":  # of samples follows the number of devices
        shuffled = samplers.shuffled
        samplers.shuffled = lambda seed, rows: shuffled(seed + jax.device_count(), rows)
    elif what == "digests":  # of the data are not compared
        memory.changed = lambda *given: []
    elif what == "crash":  # in the first evaluation, with a patient's row at hand
        loop.Trainer._evaluate = lambda self, *rest: 1 / 0
    elif what == "talkative":
        loaded = runs.datasets.prepare

        def telling(*rest: Any) -> Any:
            data = loaded(*rest)
            print(data.manifest.table.row(0))
            return data

        runs.datasets.prepare = telling
    elif what == "network":
        loaded = runs.datasets.prepare

        def calling(*rest: Any) -> Any:
            with contextlib.suppress(OSError):
                socket.create_connection(("192.0.2.1", 80), timeout=1)
            return loaded(*rest)

        runs.datasets.prepare = calling
    elif what == "in place":  # files are written where they are, and lines as far as there is room

        @contextlib.contextmanager
        def in_place(file: pathlib.Path, **options: Any) -> Any:
            yield file

        files.whole_file = in_place
        files.Lines.add = lambda self, line: self._file.write(f"{line}\n".encode())
    elif what == "shared":  # a run folder is everybody's
        run_folder.claims.owned = lambda *rest: contextlib.nullcontext()
    elif what:
        raise ValueError(what)
