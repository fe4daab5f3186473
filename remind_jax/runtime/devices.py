"""Training over devices of one or several processes: one step function, as one program over a mesh or as one a device.

Each process hands in its own rows of a batch and gets what all get. The only module that touches `jax.sharding`.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import platform
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remind_jax.errors import UserError
from remind_jax.runtime import files

AXIS, EXPERTS = "data", "expert"
KINDS = ("jit", "pmap")
PROGRAMS = ("auto", "one", "two")
_LARGE = 2**23  # bytes of parameters
# Options of mallopt: one arena for all threads, no memory from mmap, which is given back when freed, and no trimming.
_KEEP = {-8: 1, -4: 0, -1: 2**31 - 1}
_CHUNK = 2**22  # bytes that processes exchange at a time
# Arrays with the axis of experts first, and what belongs to them in the state of an optimizer.
_OF_EXPERTS = re.compile(r"/expert_(in|out)(_bias)?$")
WORTH_KEEPING = 0.2  # seconds of compilation

State = Any
Metrics = Any


class Program(NamedTuple):
    """A train step placed on devices.

    Attributes:
      step: (state on devices, this process's rows of a batch on the host) -> (state, metrics); the state is consumed.
      place: host state, the same on all processes -> state on devices.
      fetch: state on devices -> host arrays.
      read: metrics of a step -> host arrays; waits for the step.
    """

    step: Callable[[State, Mapping[str, np.ndarray]], tuple[State, Metrics]]
    place: Callable[[State], State]
    fetch: Callable[[State], State]
    read: Callable[[Metrics], Any]


def choose_devices(count: int, batch_size: int) -> list[jax.Device]:
    """Chooses the first `count` devices, as many of each process; all when 0. Raises UserError: too few, or a rest."""
    by_process = [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    each, rest = divmod(count, len(by_process))
    if not count:
        each = len(by_process[0])
    if rest or any(len(devices) != each for devices in by_process if not count):
        there = ", ".join(str(len(devices)) for devices in by_process)
        raise UserError(
            f"devices={count} cannot be shared evenly among {len(by_process)} processes, which have {there}"
        )
    if count < 0 or any(each > len(devices) for devices in by_process):
        raise UserError(f"devices={count}, but this machine has {min(map(len, by_process)) * len(by_process)}")
    devices = [device for own in by_process for device in own[:each]]
    if batch_size % len(devices):
        raise UserError(f"batch_size {batch_size} does not divide among {len(devices)} devices")
    return devices


def own_rows(batch_size: int) -> slice:
    """Returns the rows of a global batch that this process hands in, those of its devices."""
    each = batch_size // jax.process_count()
    return slice(jax.process_index() * each, (jax.process_index() + 1) * each)


@contextlib.contextmanager
def kept_programs(folder: pathlib.Path | None) -> Iterator[None]:
    """Keeps what is compiled in a folder, and takes from there what was compiled before; None changes nothing.

    A program that is read runs: a folder that is not the user's alone is not used, as a line on stderr says. JAX names
    an entry by the program, the versions of jax and XLA, the devices and the flags. Entries for a CPU are meant for
    machines of its kind.
    """
    folder = folder and _private(folder)
    changes = {
        "jax_compilation_cache_dir": folder and str(folder.resolve()),
        "jax_persistent_cache_min_compile_time_secs": WORTH_KEEPING,
    }
    before = {name: jax.config.values[name] for name in changes}

    def update(values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # which otherwise stays where the first compilation found it

    if folder is None:
        yield
        return
    update(changes)
    try:
        yield
    finally:
        update(before)


def users_programs() -> pathlib.Path | None:
    """Makes the user's own folder of programs for processors like this machine's; nobody else may enter it.

    Programs hold neither weights nor data. Returns None if JAX keeps programs already, or if there is no such folder,
    see `kept_programs`.
    """
    if jax.config.jax_compilation_cache_dir:
        return None
    folder = _private(pathlib.Path("~/.cache/remind_jax/programs"))
    return folder and folder / _processor()


def _private(folder: pathlib.Path) -> pathlib.Path | None:
    """Makes a folder of the user's alone; where there is another, says so on stderr and returns None."""
    try:
        folder = files.expanded(folder)
        files.make_folder(folder, private=True)
        there = folder.lstat()
        if not stat.S_ISDIR(there.st_mode):
            fault = "it is a link"
        elif there.st_uid != os.getuid():
            fault = "it is somebody else's"
        else:
            fault = "others may enter it (chmod 700 if all in it is yours)" if there.st_mode & 0o077 else ""
    except (OSError, UserError) as error:
        fault = getattr(error, "strerror", None) or str(error)
    if fault:
        print(f"warning: no compiled programs are kept in {folder}: {fault}", file=sys.stderr)
    return None if fault else folder


def _processor() -> str:
    """Returns a digest of what the instructions of this machine's processor are."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def make_program(
    step: Callable[..., Any], kind: str, devices: list[jax.Device], programs: str = "one", experts: int = 1
) -> Program:
    """Compiles a train step, (state, batch, axis_name=...) -> (state, metrics), for some devices.

    With `axis_name` None a step sees the whole batch; with a name, one device's share, and it sums over that axis what
    must be summed. `kind` is one of `KINDS`. `programs` is `one`; `two`, of which the first runs `step.gradient` and
    the second `step.update`, see `_two_programs`; or `auto`, which is `two` on CPU where the trained parameters take 8
    MiB or more. As many devices as `experts` says share the weights of the experts, each with an equal part, which only
    `jit` can; with 1 all have them all.
    """
    return _pmap_program(step, devices, programs) if kind == "pmap" else _jit_program(step, devices, programs, experts)


def compiled(
    step: Any, programs: str, platform: str, compile_it: Callable[..., Callable], axis_name: str | None = None
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """Makes a step of compiled programs, (state, batch) -> (state, metrics); `step` and `programs` as for
    `make_program`.

    `compile_it` is (function, donate_argnums=...) -> compiled function that leaves no argument out; `axis_name` is that
    of the devices of a `platform` when each runs programs of its own.
    """
    made = []

    def run(state: State, batch: Any) -> tuple[State, Metrics]:
        if not made:
            large = platform == "cpu" and _is_large(state)
            if large:
                keep_freed_memory()
            # Pays where a second program costs less than the page faults that it saves.
            several = programs == "two" or (programs == "auto" and large and axis_name is None)
            made.append((_two_programs if several else _one_program)(step, compile_it, axis_name))
        return made[0](state, batch)

    return run


def _is_large(state: State) -> bool:
    """Tells whether page faults weigh in the time of a step on CPU; measured at 11 KiB and 17 MiB of parameters."""
    trained = getattr(state, "params", state)  # a step may have another state than that of training
    return sum(x.nbytes for x in jax.tree.leaves(trained)) >= _LARGE


def keep_freed_memory() -> None:
    """Makes this process keep the memory that it frees, where its C library is glibc.

    XLA on CPU takes the temporary memory of a program anew at every call. Blocks above 32 MiB glibc gives back to the
    system in between, and every page of them costs a fault; docs/performance.md has the figures.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in _KEEP.items():
            ctypes.CDLL(None).mallopt(option, value)


def _one_program(step: Any, compile_it: Callable[..., Callable], axis_name: str | None) -> Callable[..., Any]:
    def train_step(state: State, batch: Any) -> tuple[State, Metrics]:
        return step(state, batch, axis_name=axis_name)

    return compile_it(train_step, donate_argnums=0)


def _two_programs(step: Any, compile_it: Callable[..., Callable], axis_name: str | None) -> Callable[..., Any]:
    """Splits a step into a program for the gradient and one for the update, with the numbers of both in one.

    XLA on CPU takes temporary memory anew at every run, at one page fault for each 4 KiB: gradients that are the result
    of a program of their own, written where the last ones lay, take none. And no weight is copied because the backward
    pass might read it after the update has written it. The gradient is kept between steps and is no part of the state.
    """
    # The old gradient is not read: its memory is what is wanted of it.
    gradient = compile_it(lambda state, batch, old: step.gradient(state, batch, axis_name=axis_name), donate_argnums=2)
    update = compile_it(lambda state, new, found: (*step.update(state, new, found), new), donate_argnums=(0, 1))
    kept = []

    def run(state: State, batch: Any) -> tuple[State, Metrics]:
        old = kept.pop() if kept else _room_for_gradient(step, state, batch, axis_name)
        state, metrics, new = update(state, *gradient(state, batch, old))
        kept.append(new)
        return state, metrics

    return run


def _room_for_gradient(step: Any, state: State, batch: Any, axis_name: str | None) -> Any:
    """Makes zeros of the shapes of the gradient, each on the devices of its parameter."""
    function = functools.partial(step.gradient, axis_name=axis_name)
    shapes, _ = jax.eval_shape(function if axis_name is None else jax.vmap(function, axis_name=axis_name), state, batch)
    return jax.tree.map(lambda x, like: jnp.zeros(x.shape, x.dtype, device=like.sharding), shapes, state.params)


def placements(devices: list[jax.Device], experts: int = 1) -> tuple[NamedSharding, NamedSharding]:
    """Returns how arrays lie that all devices have, and those of which each has an equal part, as of a batch.

    `experts` devices share the weights of the experts; XLA moves samples to them and back.
    """
    mesh = Mesh(np.array(devices).reshape(-1, experts), (AXIS, EXPERTS))
    return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec((AXIS, EXPERTS)))


def _jit_program(step: Any, devices: list[jax.Device], programs: str, experts: int) -> Program:
    replicated, split = placements(devices, experts)
    mesh = replicated.mesh

    def shardings(state: State) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: NamedSharding(mesh, PartitionSpec(EXPERTS)) if _is_of_experts(path) else replicated, state
        )

    if experts > 1:

        def update(*arguments: Any) -> tuple[State, Metrics]:
            state, metrics = unsharded(*arguments)
            return jax.lax.with_sharding_constraint(state, shardings(state)), metrics

        unsharded = step.update
        step = step._replace(update=update)
    # Left to itself XLA may cut a result over devices of which another process has some.
    compile_it = functools.partial(jax.jit, keep_unused=True, out_shardings=None if experts > 1 else replicated)
    run_step = compiled(step, programs, devices[0].platform, compile_it)

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        return run_step(state, _put(dict(batch), split))

    def place(state: State) -> State:
        return _put(state, replicated) if experts == 1 else jax.device_put(state, shardings(state))

    return Program(run, place, jax.device_get, jax.device_get)


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts this process's part of arrays on its devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def _is_of_experts(path: tuple[Any, ...]) -> bool:
    return any(_OF_EXPERTS.search(str(getattr(part, "key", ""))) for part in path)


def _pmap_program(step: Callable[..., Any], devices: list[jax.Device], programs: str) -> Program:
    count = len(devices) // jax.process_count()  # of this process
    compile_it = functools.partial(jax.pmap, axis_name=AXIS, devices=devices)
    run_step = compiled(step, programs, devices[0].platform, compile_it, AXIS)
    mesh = Mesh(np.array(devices), (AXIS,))
    stacked = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(state: State) -> State:
        return _put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), state), stacked)

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        shares = {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
        return run_step(state, _put(shares, stacked))

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    return Program(run, place, first, first)


def merged(tree: Any) -> Any:
    """Adds up host arrays of which at most one process has an entry that is not zero, on all, bit for bit.

    All processes take part, with arrays of the same shapes and types.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    size = sum(x.nbytes for x in leaves)
    chunk = min(_CHUNK, 1 << max(size - 1, 3).bit_length())
    room = np.zeros(-(-size // chunk) * chunk, np.uint8)
    room[:size] = np.concatenate([np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in leaves])
    mesh = Mesh(np.array(choose_devices(0, 0)), (AXIS,))
    split, add = NamedSharding(mesh, PartitionSpec(AXIS)), _adder(mesh)
    for start in range(0, len(room), chunk):
        # In the place of this process's first device; the others add zeros.
        parts = np.zeros((len(jax.local_devices()), chunk), np.uint8)
        parts[0] = room[start : start + chunk]
        room[start : start + chunk] = jax.device_get(add(_put(parts.view(np.int32), split))).view(np.uint8)
    stops = np.cumsum([x.nbytes for x in leaves])
    parts = [room[stop - x.nbytes : stop].copy() for x, stop in zip(leaves, stops, strict=True)]
    found = [part.view(x.dtype).reshape(x.shape) for x, part in zip(leaves, parts, strict=True)]
    return jax.tree.unflatten(structure, found)


@functools.cache
def _adder(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=NamedSharding(mesh, PartitionSpec()))


def broadcast(tree: Any) -> Any:
    """Gives all processes the host arrays of process 0; the others pass arrays of the same shapes and types."""
    if jax.process_count() == 1:
        return tree
    return merged(tree if jax.process_index() == 0 else jax.tree.map(np.zeros_like, tree))


class Agreement:
    """A number that processes ask each other for at every step, so that all act on it at the same one: the largest."""

    def __init__(self, devices: list[jax.Device]):
        """`devices` of all processes."""
        mesh = Mesh(np.array(devices), (AXIS,))
        self._split, self._count = NamedSharding(mesh, PartitionSpec(AXIS)), len(devices) // jax.process_count()
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def ask(self, number: int) -> int:
        """Passes on a number and returns the largest of the call before; with one process its own at once."""
        if jax.process_count() == 1:
            return number
        before, self._asked = self._asked, self._largest(_put(np.full(self._count, number, np.int32), self._split))
        return 0 if before is None else int(before)

    def settle(self, number: int) -> int:
        """Returns the largest number of all processes now; waits for them."""
        return max(self.ask(number), self.ask(number))


def host_copy(tree: Any) -> Any:
    """Copies arrays to the host, so that they share no memory with donated device buffers."""
    return jax.tree.map(lambda x: np.array(x, copy=True), jax.device_get(tree))
