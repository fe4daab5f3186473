"""Soft mixture of experts (Puigcerver et al. 2024; REMIND Eq. 5 and 6, section 7.2).

Every slot of an expert reads a weighted mix of the tokens (dispatch), every token a weighted mix of the slots' outputs
(combine). All experts are in one stacked array whose expert axis comes first in both operands of a product.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

# It is added inside the root, so that the gradient of a zero vector is zero and not NaN.
EPSILON = 1e-6
# Rows are few when each expert has at least this many inputs for each row; measured at 96, 4, 2 and 1/2.
_FEW = 4


@dataclasses.dataclass(frozen=True)
class Routing:
    """A form of soft routing: three independent choices in which the published forms differ.

    Attributes:
      normalize: whether to scale tokens and routers to unit length over d, times a learned scale.
      expert_input: whether slots mix the raw or the unit-length tokens.
      dispatch_over: axis of the dispatch softmax, the tokens (Eq. 5) or the experts (the listing in 7.2.10).
    """

    normalize: bool
    expert_input: Literal["raw", "normalized"]
    dispatch_over: Literal["tokens", "experts"]


PRESETS = {
    "official": Routing(normalize=True, expert_input="raw", dispatch_over="tokens"),
    "paper_eq": Routing(normalize=False, expert_input="raw", dispatch_over="tokens"),
    "m4oe": Routing(normalize=True, expert_input="normalized", dispatch_over="tokens"),
    "paper_listing": Routing(normalize=True, expert_input="normalized", dispatch_over="experts"),
}


class Experts(NamedTuple):
    """The weights of all expert networks, d -> f -> d with GELU."""

    w_in: jax.Array  # [e, d, f]
    b_in: jax.Array  # [e, f]
    w_out: jax.Array  # [e, f, d]
    b_out: jax.Array  # [e, d]


def unit_length(x: jax.Array, axis: int) -> jax.Array:
    """Scales `x` to (almost) unit Euclidean length along `axis`; a zero vector stays zero, with zero gradient."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + EPSILON)


def dispatch_weights(logits: jax.Array, over: str, mask: jax.Array | None = None) -> jax.Array:
    """Returns the weights with which slots read tokens, [b, n, e, s] -> [b, n, e, s] in float32 (Eq. 5).

    Over `tokens` each slot reads a convex combination of the tokens. Over `experts` each token spends a total weight of
    one on the experts, so that slots read sums and not averages. Tokens where `mask` [b, n] is False are not read.
    """
    if over == "experts":
        where = None if mask is None else mask[:, :, None, None]
        weights = jax.nn.softmax(jnp.moveaxis(logits.astype(jnp.float32), 2, 3), axis=-1, where=where)
        return jnp.moveaxis(weights, 3, 2)
    where = None if mask is None else mask[:, :, None]
    return jax.nn.softmax(_slots(logits), axis=1, where=where).reshape(logits.shape)


def _slots(logits: jax.Array) -> jax.Array:
    """Joins the slots, [b, n, e, s] -> [b, n, e * s] in float32; XLA on CPU is 14 times slower over one last slot."""
    return logits.astype(jnp.float32).reshape(*logits.shape[:2], -1)


def combine_weights(logits: jax.Array) -> jax.Array:
    """Returns the weights with which tokens read slots, [b, n, e, s] -> [b, n, e, s] in float32 (Eq. 6)."""
    return jax.nn.softmax(_slots(logits), axis=-1).reshape(logits.shape)


def apply_experts(slots: jax.Array, experts: Experts) -> jax.Array:
    """Runs every expert on its own slots, [e, q, d] -> [e, q, d], with q any number of slots."""
    hidden = _product(slots, experts.w_in) + experts.b_in[:, None, :]
    return _product(jax.nn.gelu(hidden), experts.w_out) + experts.b_out[:, None, :]


def _product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Multiplies each expert's rows with its weights, [e, q, i] and [e, i, o] -> [e, q, o].

    Few rows an expert are stored with i first on CPU: the product of their gradient then reads the weights in the
    order they are stored in, and XLA packs the small operand instead of the large one (benchmarks/README.md).
    """
    rows = x.shape[1]  # no integer in a program for any number of rows
    if not isinstance(rows, int) or _FEW * rows > x.shape[2]:
        return jnp.einsum("eqi,eio->eqo", x, weights)
    # The barrier keeps XLA from folding the transpose back into the product.
    x = jax.lax.platform_dependent(jnp.swapaxes(x, 1, 2), cpu=jax.lax.optimization_barrier, default=lambda x: x)
    return jnp.einsum("eiq,eio->eqo", x, weights)


def soft_moe(
    tokens: jax.Array, logits: jax.Array, experts: Experts, routing: Routing, mask: jax.Array | None = None
) -> jax.Array:
    """Mixes tokens [b, n, d] through the experts, [b, n, d] in the type of the tokens.

    `logits` [b, n, e, s] is the affinity of each token to each slot; no slot reads tokens where `mask` [b, n] is False.
    """
    dispatch = dispatch_weights(logits, routing.dispatch_over, mask).astype(tokens.dtype)
    combine = combine_weights(logits).astype(tokens.dtype)
    inputs = unit_length(tokens, axis=-1) if routing.expert_input == "normalized" else tokens
    # The expert axis comes first from here on: batch-major experts are several times slower on every device.
    with jax.named_scope("dispatch"):
        slots = jnp.einsum("bnd,bnes->ebsd", inputs, dispatch)
    with jax.named_scope("experts"):
        outputs = apply_experts(rearrange(slots, "e b s d -> e (b s) d"), experts)
    with jax.named_scope("combine"):
        return jnp.einsum("ebsd,bnes->bnd", rearrange(outputs, "e (b s) d -> e b s d", b=tokens.shape[0]), combine)
