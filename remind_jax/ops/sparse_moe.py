"""Sparse mixtures of experts: noisy top-k routing, exact expert computation, and penalties for unbalanced routing.

Sources: noise, importance and load from Shazeer et al. 2017; distance gates and modality routers from FuseMoE (Han et
al. 2024); the router that learns the expert of a combination from Flex-MoE (Yun et al. 2024).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from remind_jax.ops.soft_moe import Experts

SCORES = ("softmax", "gaussian", "laplace")
LEAST_NOISE = 0.01  # standard deviation that a router cannot go below


class Choice(NamedTuple):
    """The experts of each token.

    Attributes:
      experts: int [..., k], the chosen ones, best first.
      weights: [..., k], their shares; they sum to one.
      load: [..., e], probability that an expert is chosen under fresh noise; 0 or 1 without noise.
    """

    experts: jax.Array
    weights: jax.Array
    load: jax.Array


def scores(tokens: jax.Array, router: jax.Array, kind: str) -> jax.Array:
    """Affinity of tokens to experts, [..., d] and [d, e] -> [..., e].

    Args:
      tokens: to route.
      router: a direction (`softmax`) or a place (`gaussian`, `laplace`) for each expert.
      kind: of `SCORES`: the product, minus the squared distance, or minus the distance.
    """
    products = jnp.einsum("...d,de->...e", tokens, router)
    if kind == "softmax":
        return products
    lengths = jnp.sum(jnp.square(tokens), axis=-1, keepdims=True)
    places = jnp.expand_dims(jnp.sum(jnp.square(router), axis=0), range(tokens.ndim - 1))
    squared = jnp.maximum(lengths - 2.0 * products + places, 1e-6)  # the root has no slope at zero
    return -squared if kind == "gaussian" else -jnp.sqrt(squared)


def choose(clean: jax.Array, k: int, noise: jax.Array | None = None, deviation: jax.Array | None = None) -> Choice:
    """The k best experts of each token.

    Args:
      clean: scores without noise, [..., e]; minus infinity where an expert may not be chosen.
      k: number of experts of a token.
      noise: standard normal numbers [..., e]; None in evaluation.
      deviation: standard deviations that scale the noise, [..., e].
    """
    noisy = clean if noise is None else clean + noise * deviation
    best, experts = jax.lax.top_k(noisy, min(k + 1, clean.shape[-1]))
    experts, weights = experts[..., :k], jax.nn.softmax(best[..., :k], axis=-1)
    chosen = jnp.sum(jax.nn.one_hot(experts, clean.shape[-1]), axis=-2)
    if noise is None or best.shape[-1] == k:
        return Choice(experts, weights, chosen)
    # What an expert has to beat: the best of those left out, or, for one of these, the last of those chosen.
    bar = jnp.where(chosen > 0, best[..., k : k + 1], best[..., k - 1 : k])
    allowed, contested = jnp.isfinite(clean), jnp.isfinite(bar)
    # Infinities are kept out of the quotient: their zero slopes times infinity would be NaN in the gradient.
    margin = jnp.where(allowed & contested, clean, 0.0) - jnp.where(contested, bar, 0.0)
    load = jnp.where(contested, jax.scipy.stats.norm.cdf(margin / deviation), 1.0)
    return Choice(experts, weights, jnp.where(allowed, load, 0.0))


def shares(choice: Choice, num_experts: int) -> jax.Array:
    """The weight of every expert in each token, zero for those not chosen, [..., e]."""
    return jnp.einsum("...k,...ke->...e", choice.weights, jax.nn.one_hot(choice.experts, num_experts))


def apply_experts(tokens: jax.Array, choice: Choice, experts: Experts) -> jax.Array:
    """Weighted sum of what the chosen experts make of each token; no token is dropped.

    Pairs of token and expert are sorted by expert and laid out in blocks of equal length, each of one expert; the last
    block of an expert is filled up with zeros. All experts then are one batched product of at most twice the rows that
    are needed. `jax.lax.ragged_dot` without a kernel of its own computes each row once for every expert, and has no
    gradients of single samples.

    Args:
      tokens: [r, d].
      choice: for each token.
      experts: weights of the e experts.

    Returns:
      [r, d].
    """
    k, num_experts = choice.experts.shape[-1], len(experts.w_in)
    source, place, owner = _blocks(choice.experts.reshape(-1), num_experts)
    padded = jnp.concatenate([tokens, jnp.zeros_like(tokens[:1])])
    inputs = padded[jnp.minimum(source // k, len(tokens))]  # [blocks, rows, d]
    hidden = jnp.einsum("kqd,kdf->kqf", inputs, experts.w_in[owner]) + experts.b_in[owner][:, None]
    outputs = jnp.einsum("kqf,kfd->kqd", jax.nn.gelu(hidden), experts.w_out[owner]) + experts.b_out[owner][:, None]
    of_pairs = outputs.reshape(-1, outputs.shape[-1])[place].reshape(*choice.experts.shape, -1)
    return jnp.einsum("rkd,rk->rd", of_pairs, choice.weights.astype(of_pairs.dtype))


def _blocks(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A layout in which every block of rows belongs to one expert.

    Args:
      experts: of each pair of token and expert, int [q].
      num_experts: e.

    Returns:
      the pair in each row of each block [blocks, rows], q where there is none; the row of each pair among those of all
      blocks [q]; and the expert of each block [blocks].
    """
    pairs = len(experts)
    rows = -(-pairs // num_experts)
    blocks = (pairs + num_experts * (rows - 1)) // rows  # the most that rounding up each expert's pairs can need
    order = jnp.argsort(experts, stable=True)
    sizes = jnp.bincount(experts, length=num_experts)
    used = -(-sizes // rows)
    start, first = jnp.cumsum(sizes) - sizes, (jnp.cumsum(used) - used) * rows
    place = first[experts[order]] + jnp.arange(pairs) - start[experts[order]]
    source = jnp.full(blocks * rows, pairs).at[place].set(order).reshape(blocks, rows)
    owner = jnp.searchsorted(jnp.cumsum(used), jnp.arange(blocks), side="right")
    return source, jnp.zeros(pairs, place.dtype).at[order].set(place), jnp.minimum(owner, num_experts - 1)


def unevenness(sums: jax.Array) -> jax.Array:
    """Squared coefficient of variation over the last axis, summed over the others: 0 when all experts do the same."""
    variance = jnp.var(sums, axis=-1)
    return jnp.sum(variance / (jnp.square(jnp.mean(sums, axis=-1)) + 1e-10))


def modality_entropy(sums: jax.Array) -> jax.Array:
    """Mean entropy of each modality's average gate minus the entropy of the average of all (FuseMoE).

    It falls when a modality settles on few experts and rises when all modalities settle on the same ones.

    Args:
      sums: of the gate probabilities of each modality's tokens, [m, e].
    """

    def entropy(p):
        return -jnp.sum(p * jnp.log(p + 1e-10), axis=-1)

    average = sums / (jnp.sum(sums, axis=-1, keepdims=True) + 1e-10)
    return jnp.mean(entropy(average)) - entropy(jnp.mean(average, axis=0))


def penalty(sums: Mapping[str, jax.Array], *, balance: float, entropy: float, specialize: float) -> jax.Array:
    """What a block's routing adds to the loss, from sums over the whole batch.

    Args:
      sums: `importance` and `load` [p, e], for p parts of the batch that are balanced apart; where the block has
        them, `gates` [m, e] of each modality, and `surprise` and `surprised` (), the summed cross entropy to the
        experts of combinations and the number of tokens that have one.
      balance, entropy, specialize: weights of the terms.
    """
    value = balance * (unevenness(sums["importance"]) + unevenness(sums["load"]))
    if "gates" in sums:
        value += entropy * modality_entropy(sums["gates"])
    if "surprise" in sums:
        value += specialize * sums["surprise"] / jnp.maximum(sums["surprised"], 1.0)
    return value
