"""How close products, the update and a whole step come to what the machine can do, measured beside them.

A limit is a rate that is timed in the same rounds: operations a second of one large product, bytes a second of a copy
from memory to memory. What is timed is one phase or several after each other, each of which takes no less than its
operations by the one rate or its bytes by the other, whichever is more. The share of the limit is the sum of these
times over the measured one: 1 at best, on any machine, but where caches keep what is counted as moved.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import setups
from remind_jax.ops import soft_moe

PRODUCT, COPY = "large product", "copy"
Phase = dict[str, float]  # amounts, by the limit that they are held against
Part = tuple[Callable[[], Any], list[Phase]]  # what is timed, and its phases
SIDE, COPIED = 1_024, 2**26  # of the product's square matrices; numbers of the copied array
# AdamW reads gradient, weight and two moments, and writes the last three, 4 bytes each.
UPDATE_BYTES = 7 * 4


def product() -> Part:
    """The product of two square matrices of `SIDE`, as XLA computes it."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32))
    program = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(program(x, x)), [{PRODUCT: 2.0 * SIDE**3}]


def copy() -> Part:
    """A copy of an array that no cache holds, each number read once and written once."""
    source, target = np.ones(COPIED, np.float32), np.ones(COPIED, np.float32)
    return lambda: np.copyto(target, source), [{COPY: 2.0 * source.nbytes}]


def experts(size: setups.Size, backward: bool) -> Part:
    """All experts on one slot of each sample, forward or forward and backward."""
    rng, (e, d, f) = np.random.default_rng(0), (size.e, size.d, size.f)
    shapes = ((e, d, f), (e, f), (e, f, d), (e, d))
    weights = soft_moe.Experts(*(jnp.asarray(0.05 * rng.normal(size=shape).astype(np.float32)) for shape in shapes))
    slots = jnp.asarray(rng.normal(size=(e, size.b, d)).astype(np.float32))
    # Weights are read forward and backward, and a slope of each is written.
    times = setups.TRAIN_FACTOR if backward else 1
    phase = {PRODUCT: times * 4.0 * e * size.b * d * f, COPY: times * 8.0 * e * d * f}
    return _call(soft_moe.apply_experts, slots, weights, backward), [phase]


def linear(size: setups.Size) -> Part:
    """The map of all tokens to queries, keys and values, forward and backward."""
    rng, rows = np.random.default_rng(0), size.b * size.m * size.t
    x, w = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in ((rows, size.d), (size.d, 3 * size.d)))
    phase = {PRODUCT: 2.0 * setups.TRAIN_FACTOR * rows * size.d * 3 * size.d}
    return _call(jnp.matmul, x, w, backward=True), [phase]


def _call(function: Callable[..., jax.Array], x: jax.Array, weights: Any, backward: bool) -> Callable[[], Any]:
    """Times a product alone: what comes back along the other direction is an array that is given."""

    def both(x: jax.Array, weights: Any, slope: jax.Array) -> Any:
        y, back = jax.vjp(function, x, weights)
        return y, back(slope)

    if not backward:
        program = jax.jit(function)
        return lambda: jax.block_until_ready(program(x, weights))
    slope, program = jnp.ones_like(jax.eval_shape(function, x, weights)), jax.jit(both)
    return lambda: jax.block_until_ready(program(x, weights, slope))


def update(step: Any, state: Any, batch: Any) -> Part:
    """The second half of a train step, its state and the gradient donated."""
    gradient = jax.jit(functools.partial(step.gradient, axis_name=None))
    program = jax.jit(lambda state, new, found: (*step.update(state, new, found), new), donate_argnums=(0, 1))
    new, found = gradient(state, batch)
    held = [jax.tree.map(lambda x: jnp.array(x, copy=True), state), new]

    def call() -> None:
        held[0], _, held[1] = jax.block_until_ready(program(*held, found))

    return call, [update_phase(state)]


def update_phase(state: Any) -> Phase:
    """The bytes that AdamW cannot but move."""
    return {COPY: float(UPDATE_BYTES * sum(x.size for x in jax.tree.leaves(state.params)))}
