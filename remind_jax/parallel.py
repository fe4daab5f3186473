"""Training over the devices of one process: one step function, run as one program over a mesh or as one per device.

The only module that touches `jax.sharding`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remind_jax.errors import UserError

AXIS = "data"
KINDS = ("jit", "pmap")
PROGRAMS = ("auto", "one", "two")
_LARGE = 2**23  # bytes of parameters

State = Any
Metrics = Any


class Program(NamedTuple):
    """A train step placed on devices.

    Attributes:
      step: (state on devices, batch on the host) -> (state, metrics); the state given is consumed.
      place: host state -> state on devices.
      fetch: state on devices -> host arrays.
      read: metrics of a step -> host arrays; waits for the step.
    """

    step: Callable[[State, Mapping[str, np.ndarray]], tuple[State, Metrics]]
    place: Callable[[State], State]
    fetch: Callable[[State], State]
    read: Callable[[Metrics], Any]


def choose_devices(count: int, batch_size: int) -> list[jax.Device]:
    """The first `count` local devices, all when 0; the batch must divide among them."""
    devices = jax.local_devices()
    if count < 0 or count > len(devices):
        raise UserError(f"devices={count}, but this machine has {len(devices)}")
    devices = devices[: count or len(devices)]
    if batch_size % len(devices):
        raise UserError(f"batch_size {batch_size} does not divide among {len(devices)} devices")
    return devices


def make_program(step: Callable[..., Any], kind: str, devices: list[jax.Device], programs: str = "one") -> Program:
    """Compiles a train step.

    Args:
      step: (state, batch, axis_name=...) -> (state, metrics). With `axis_name` None it sees the whole batch; with a
        name it sees one device's share and sums over that axis what must be summed.
      kind: `jit` or `pmap`.
      devices: to use.
      programs: `one`; `two`, of which the first runs `step.gradient` and the second `step.update`, see `_two_programs`;
        or `auto`, which is `two` on CPU where the trained parameters take 8 MiB or more.
    """
    return {"jit": _jit_program, "pmap": _pmap_program}[kind](step, devices, programs)


def compiled(
    step: Any, programs: str, platform: str, compile_it: Callable[..., Callable], axis_name: str | None = None
) -> Callable[[State, Any], tuple[State, Metrics]]:
    """A step as compiled programs, (state, batch) -> (state, metrics).

    Args:
      step, programs: as for `make_program`.
      platform: of the devices.
      compile_it: (function, donate_argnums=...) -> compiled function that leaves no argument out.
      axis_name: of the devices, when each runs programs of its own.
    """
    made = []

    def run(state: State, batch: Any) -> tuple[State, Metrics]:
        if not made:
            several = programs == "two" or (programs == "auto" and platform == "cpu" and _pays_on_cpu(state, axis_name))
            made.append((_two_programs if several else _one_program)(step, compile_it, axis_name))
        return made[0](state, batch)

    return run


def _pays_on_cpu(state: State, axis_name: str | None) -> bool:
    """Whether a second program costs less than the page faults that it saves; measured at 11 KiB and at 17 MiB."""
    return axis_name is None and sum(x.nbytes for x in jax.tree.leaves(state.params)) >= _LARGE


def _one_program(step: Any, compile_it: Callable[..., Callable], axis_name: str | None) -> Callable[..., Any]:
    return compile_it(lambda state, batch: step(state, batch, axis_name=axis_name), donate_argnums=0)


def _two_programs(step: Any, compile_it: Callable[..., Callable], axis_name: str | None) -> Callable[..., Any]:
    """A step as a program for the gradient and one for the update, the same numbers as both in one.

    XLA on CPU takes temporary memory anew at every run, at one page fault for each 4 KiB: gradients that are the result
    of a program of their own, written where the last ones lay, take none. And no weight is copied because the backward
    pass might read it after the update has written it. The gradient is kept between steps and is no part of the state.

    Args:
      step: with `gradient` and `update`; its state has `params`.
      compile_it, axis_name: as for `compiled`.
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
    """Zeros of the shapes of the gradient, each where its parameter lies."""
    function = functools.partial(step.gradient, axis_name=axis_name)
    shapes, _ = jax.eval_shape(function if axis_name is None else jax.vmap(function, axis_name=axis_name), state, batch)
    return jax.tree.map(lambda x, like: jnp.zeros(x.shape, x.dtype, device=like.sharding), shapes, state.params)


def _jit_program(step: Callable[..., Any], devices: list[jax.Device], programs: str) -> Program:
    mesh = Mesh(np.array(devices), (AXIS,))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    run_step = compiled(step, programs, devices[0].platform, functools.partial(jax.jit, keep_unused=True))

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        return run_step(state, jax.device_put(dict(batch), split))

    return Program(run, lambda state: jax.device_put(state, replicated), jax.device_get, jax.device_get)


def _pmap_program(step: Callable[..., Any], devices: list[jax.Device], programs: str) -> Program:
    count = len(devices)
    compile_it = functools.partial(jax.pmap, axis_name=AXIS, devices=devices)
    run_step = compiled(step, programs, devices[0].platform, compile_it, AXIS)
    mesh = Mesh(np.array(devices), (AXIS,))
    stacked = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(state: State) -> State:
        return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(x, (count, *np.shape(x))), stacked), state)

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        shares = {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
        return run_step(state, jax.device_put(shares, stacked))

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    return Program(run, place, first, first)
