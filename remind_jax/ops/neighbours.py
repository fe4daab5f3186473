"""What similar samples say of a modality (Zhang et al. 2022, M3Care): similarities over what two samples both have,
and means over neighbours. Letters next to the usual: q samples that ask, k samples that are asked.
"""

import jax
import jax.numpy as jnp


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Computes the mean squared difference of each modality's vectors, [q, m, d] and [k, m, d] -> [q, k, m]."""
    own, other = jnp.mean(jnp.square(x), axis=2), jnp.mean(jnp.square(y), axis=2)
    products = jnp.einsum("qmd,kmd->qkm", x, y) / x.shape[2]
    return jnp.maximum(own[:, None] + other[None] - 2.0 * products, 0.0)


def deep_kernel(hidden: jax.Array, plain: jax.Array, width: jax.Array, mix: jax.Array) -> jax.Array:
    """Computes ((1 - δ) k(φ, φ') + δ) k(h, h') with Gaussian kernels k, [q, k, m] from squared distances of that shape.

    `hidden` are those of φ, `plain` those of h; `width` [2, m] are the widths of the two kernels, `mix` [m] is δ.
    """
    inner, outer = (jnp.exp(-x / each[None, None]) for x, each in zip((hidden, plain), width, strict=True))
    return ((1.0 - mix[None, None]) * inner + mix[None, None]) * outer


def similarities(kernels: jax.Array, asking: jax.Array, asked: jax.Array) -> jax.Array:
    """Averages kernels [q, k, m] over the modalities that both samples have, bool [q, m] and [k, m] -> [q, k]; 0 where
    they have none in common.
    """
    common = asking[:, None] & asked[None]
    return jnp.sum(jnp.where(common, kernels, 0.0), axis=2) / jnp.maximum(
        jnp.sum(common, axis=2).astype(kernels.dtype), 1.0
    )


def above(similarity: jax.Array, threshold: jax.Array) -> jax.Array:
    """Keeps similarities [q, k] above a threshold, 0 for others; the threshold has the gradient of what it cuts off."""
    kept = (similarity > threshold).astype(similarity.dtype)
    return jax.nn.relu(similarity - threshold) + kept * jax.lax.stop_gradient(threshold)


def neighbour_means(
    own: jax.Array, has: jax.Array, others: jax.Array, have: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Averages each modality over a sample itself and its neighbours, of those that have it, [q, m, d].

    `own` [q, m, d] counts 1 where `has` [q, m], `others` [k, m, d] count `weights` [q, k] where they `have` [k, m].
    Returns zeros where nobody has a modality, and whether somebody has, bool [q, m].
    """
    mine, theirs = has.astype(own.dtype), have.astype(own.dtype)
    summed = own * mine[:, :, None] + jnp.einsum("qk,km,kmd->qmd", weights, theirs, others)
    total = mine + weights @ theirs
    return summed / jnp.where(total > 0, total, 1.0)[:, :, None], total > 0
