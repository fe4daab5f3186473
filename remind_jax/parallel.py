"""Training over the devices of one process: one step function, run as one program over a mesh or as one per device.

The only module that touches `jax.sharding`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from remind_jax.errors import UserError

AXIS = "data"
KINDS = ("jit", "pmap")

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


def make_program(step: Callable[..., Any], kind: str, devices: list[jax.Device]) -> Program:
    """Compiles a train step.

    Args:
      step: (state, batch, axis_name=...) -> (state, metrics). With `axis_name` None it sees the whole batch; with a
        name it sees one device's share and sums over that axis what must be summed.
      kind: `jit` or `pmap`.
      devices: to use.
    """
    return {"jit": _jit_program, "pmap": _pmap_program}[kind](step, devices)


def _jit_program(step: Callable[..., Any], devices: list[jax.Device]) -> Program:
    mesh = Mesh(np.array(devices), (AXIS,))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    compiled = jax.jit(lambda state, batch: step(state, batch, axis_name=None), donate_argnums=0)

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        return compiled(state, jax.device_put(dict(batch), split))

    return Program(run, lambda state: jax.device_put(state, replicated), jax.device_get, jax.device_get)


def _pmap_program(step: Callable[..., Any], devices: list[jax.Device]) -> Program:
    count = len(devices)
    compiled = jax.pmap(
        lambda state, batch: step(state, batch, axis_name=AXIS), axis_name=AXIS, devices=devices, donate_argnums=0
    )
    mesh = Mesh(np.array(devices), (AXIS,))
    stacked = NamedSharding(mesh, PartitionSpec(AXIS))

    def place(state: State) -> State:
        return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(x, (count, *np.shape(x))), stacked), state)

    def run(state: State, batch: Mapping[str, np.ndarray]) -> tuple[State, Metrics]:
        shares = {name: x.reshape(count, x.shape[0] // count, *x.shape[1:]) for name, x in batch.items()}
        return compiled(state, jax.device_put(shares, stacked))

    def first(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    return Program(run, place, first, first)
