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
LEAST_NOISE = 0.01  # lower bound of a router's standard deviation


class TopExperts(NamedTuple):
    """The experts chosen for each token.

    Attributes:
      experts: the chosen experts, best first, int [..., k].
      weights: their shares, which sum to one, [..., k].
      load: probability that an expert is chosen under fresh noise, 0 or 1 without noise, [..., e].
    """

    experts: jax.Array
    weights: jax.Array
    load: jax.Array


def expert_scores(tokens: jax.Array, router: jax.Array, kind: str) -> jax.Array:
    """Computes the affinities of tokens to experts, [..., d] and [d, e] -> [..., e], of a kind in `SCORES`.

    The router has a direction (`softmax`) or a place (`gaussian`, `laplace`) for each expert; the score is the product,
    minus the squared distance, or minus the distance.
    """
    products = jnp.einsum("...d,de->...e", tokens, router)
    if kind == "softmax":
        return products
    lengths = jnp.sum(jnp.square(tokens), axis=-1, keepdims=True)
    places = jnp.expand_dims(jnp.sum(jnp.square(router), axis=0), range(tokens.ndim - 1))
    squared = jnp.maximum(lengths - 2.0 * products + places, 1e-6)  # the root has no slope at zero
    return -squared if kind == "gaussian" else -jnp.sqrt(squared)


def top_experts(
    clean: jax.Array, k: int, noise: jax.Array | None = None, deviation: jax.Array | None = None
) -> TopExperts:
    """Chooses the k best experts of each token by `clean` scores [..., e], minus infinity where one may not be chosen.

    In training, standard normal `noise` [..., e], scaled by `deviation` [..., e], is added.
    """
    noisy = clean if noise is None else clean + noise * deviation
    best, experts = jax.lax.top_k(noisy, min(k + 1, clean.shape[-1]))
    experts, weights = experts[..., :k], jax.nn.softmax(best[..., :k], axis=-1)
    chosen = jnp.sum(jax.nn.one_hot(experts, clean.shape[-1]), axis=-2)
    if noise is None or best.shape[-1] == k:
        return TopExperts(experts, weights, chosen)
    # A chosen expert must beat the best of the others, each of the others the worst of the chosen ones.
    bar = jnp.where(chosen > 0, best[..., k : k + 1], best[..., k - 1 : k])
    allowed, contested = jnp.isfinite(clean), jnp.isfinite(bar)
    # The quotient must not see infinities: their zero slopes times infinity would be NaN in the gradient.
    margin = jnp.where(allowed & contested, clean, 0.0) - jnp.where(contested, bar, 0.0)
    load = jnp.where(contested, jax.scipy.stats.norm.cdf(margin / deviation), 1.0)
    return TopExperts(experts, weights, jnp.where(allowed, load, 0.0))


def shares(chosen: TopExperts, num_experts: int) -> jax.Array:
    """Returns the weight of every expert in each token, zero for experts not chosen, [..., e]."""
    return jnp.einsum("...k,...ke->...e", chosen.weights, jax.nn.one_hot(chosen.experts, num_experts))


def apply_top_experts(tokens: jax.Array, chosen: TopExperts, experts: Experts, in_logs: bool = False) -> jax.Array:
    """Returns the weighted sum of the chosen experts' outputs for each token, [r, d] -> [r, d]; no token is dropped.

    With `in_logs` it is the logarithm of the weighted sum of the softmax of outputs, as FuseMoE was released.

    Pairs of token and expert are sorted by expert and laid out in blocks of equal length, each of one expert; zeros
    fill up the last block of an expert. All experts then are one batched product of at most twice the rows needed.
    `jax.lax.ragged_dot`, where it has no kernel, computes each row once for every expert, and it has no gradients of
    single samples.
    """
    k, num_experts = chosen.experts.shape[-1], len(experts.w_in)
    source, place, owner = _blocks(chosen.experts.reshape(-1), num_experts)
    padded = jnp.concatenate([tokens, jnp.zeros_like(tokens[:1])])
    inputs = padded[jnp.minimum(source // k, len(tokens))]  # [blocks, rows, d]
    hidden = jnp.einsum("kqd,kdf->kqf", inputs, experts.w_in[owner]) + experts.b_in[owner][:, None]
    outputs = jnp.einsum("kqf,kfd->kqd", jax.nn.gelu(hidden), experts.w_out[owner]) + experts.b_out[owner][:, None]
    of_pairs = outputs.reshape(-1, outputs.shape[-1])[place].reshape(*chosen.experts.shape, -1)
    weights = chosen.weights.astype(of_pairs.dtype)
    if in_logs:
        return jax.nn.logsumexp(jax.nn.log_softmax(of_pairs, axis=-1), axis=1, b=weights[:, :, None])
    return jnp.einsum("rkd,rk->rd", of_pairs, weights)


def _blocks(experts: jax.Array, num_experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Lays out pairs of token and expert, given the expert of each, int [q], in blocks of rows of one expert each.

    Returns the pair in each row of each block [blocks, rows], q in empty rows; the row of each pair, counted over all
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
    """Sums the squared coefficient of variation of the last axis over the others: 0 when all experts do the same."""
    variance = jnp.var(sums, axis=-1)
    return jnp.sum(variance / (jnp.square(jnp.mean(sums, axis=-1)) + 1e-10))


def modality_entropy(sums: jax.Array) -> jax.Array:
    """Returns the mean entropy of the modalities' average gates minus the entropy of the average of all (FuseMoE).

    `sums` [m, e] are of the gate probabilities of each modality's tokens. It falls when a modality settles on few
    experts and rises when all modalities settle on the same ones.
    """

    def entropy(p):
        return -jnp.sum(p * jnp.log(p + 1e-10), axis=-1)

    average = sums / (jnp.sum(sums, axis=-1, keepdims=True) + 1e-10)
    return jnp.mean(entropy(average)) - entropy(jnp.mean(average, axis=0))


def block_penalty(sums: Mapping[str, jax.Array], *, balance: float, entropy: float, specialize: float) -> jax.Array:
    """Returns the term that a block's routing adds to the loss, from sums over the whole batch and the terms' weights.

    `sums` has `importance` and `load` [p, e], for p parts of the batch that are balanced apart; where the block has
    them, `gates` [m, e] of each modality, and `surprise` and `surprised` (), the summed cross entropy to the experts of
    combinations and the number of tokens that have one.
    """
    value = balance * (unevenness(sums["importance"]) + unevenness(sums["load"]))
    if "gates" in sums:
        value += entropy * modality_entropy(sums["gates"])
    if "surprise" in sums:
        value += specialize * sums["surprise"] / jnp.maximum(sums["surprised"], 1.0)
    return value
