"""One step for both stages of a run, where freezing saves nothing: what differs between them is data of the program.

A small network spends more time on compiling a second step than on gradients that nobody asked for. In such a step all
parameters of either stage are trained, those that rest in this one with a gradient and an update of zero, and the
gates of samples are shut where group routers do not act. Outside of the program a state is that of its stage.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.training.flat import SMALL, each
from remind_jax.training.optimizer import TrainState
from remind_jax.training.stages import Stage

MOST = 2**21
"""Most numbers of a network whose stages share a step."""
PART = "stage"  # of the optimizer's state


class Now(NamedTuple):
    """The stage of a step.

    Attributes:
      trained: True at the numbers that it trains, by path.
      late: whether it is the second, ().
    """

    trained: dict[str, Any]
    late: Any


def shares_step(stages: Sequence[Stage], shapes: Mapping[str, Any], rests: bool) -> bool:
    """Tells whether stages can have one step, and it costs little; `rests` if encoders do other work in the second."""
    sizes = [math.prod(x.shape) for x in shapes.values()]
    if len(stages) != 2 or rests or max(sizes, default=0) > SMALL or sum(sizes) > MOST:
        return False
    first, second = stages
    return (first.train_gate, second.train_gate) == ("never", "gated") and first.statistics == second.statistics


def enter(state: TrainState, stages: Sequence[Stage], stage: Stage) -> TrainState:
    """Makes the state of the shared step from that of a stage, both by path on the host."""
    resting = {path: x for path, x in state.frozen.items() if not all(one.is_frozen(path) for one in stages)}
    params = {**state.params, **resting}

    def whole(moments: dict[str, Any]) -> dict[str, Any]:
        missing = resting if moments and moments.keys() <= params.keys() else {}
        return {**moments, **{path: np.zeros_like(x, moments_type(moments)) for path, x in missing.items()}}

    def moments_type(moments: dict[str, Any]) -> Any:
        return next(iter(moments.values())).dtype

    opt_state = _clock(each(whole, state.opt_state), stage.start)
    trained = {path: np.full(np.shape(x), path in state.params) for path, x in params.items()}
    now = Now(trained, np.full(np.shape(state.step), stage is stages[-1]))
    return state._replace(
        params=params,
        frozen={path: x for path, x in state.frozen.items() if path not in resting},
        opt_state=type(opt_state)(opt_state, **{PART: now}),
        ema={**state.ema, **resting} if state.ema else {},
    )


def leave(state: TrainState, stage: Stage) -> TrainState:
    """Makes the state of a stage from that of the shared step, on the host; undoes `enter`."""

    def own(tree: dict[str, Any]) -> dict[str, Any]:
        return {path: x for path, x in tree.items() if not stage.is_frozen(path)}

    parts = {name: part for name, part in state.opt_state.items() if name != PART}
    resting = {path: x for path, x in state.params.items() if stage.is_frozen(path)}
    return state._replace(
        params=own(state.params),
        frozen={**state.frozen, **resting},
        opt_state=_clock(each(own, type(state.opt_state)(parts)), -stage.start),
        ema=own(state.ema),
    )


def _clock(opt_state: Any, steps: int) -> Any:
    """Moves the clock of the learning rate, which counts from the start of a stage in its own state."""

    def is_clock(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    def moved(x: Any) -> Any:
        return x._replace(count=np.asarray(x.count) + np.int32(steps)) if is_clock(x) else x

    return jax.tree.map(moved, opt_state, is_leaf=is_clock)


def only_trained(state: TrainState, tree: dict[str, Any]) -> dict[str, Any]:
    """Sets gradients or updates of what rests to zero."""
    trained = state.opt_state[PART].trained
    return {path: jnp.where(trained[path], x, jnp.zeros_like(x)) for path, x in tree.items()}


def chosen(state: TrainState, first: Callable[..., Any], second: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of the stage of a state; where they are the same, that one."""
    if first is second:
        return second

    def either(*arguments: Any) -> Any:
        return optax.tree.where(state.opt_state[PART].late, second(*arguments), first(*arguments))

    return either
