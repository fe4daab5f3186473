"""What representations of modalities share and what is their own: distances, and pooling of those that are there.

Sources: ShaSpec (Wang et al. 2023, arXiv 2307.14126) and DrFuse (Yao et al. 2024, arXiv 2403.06197). `present` [b, m]
tells which modalities a sample has; what is at the others counts in nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np


def pair_distances(x: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums the mean absolute differences of pairs of modalities, [b, m, d] -> (), and counts the pairs, ()."""
    first, second = np.triu_indices(x.shape[1], 1)
    pairs = (present[:, first] & present[:, second]).astype(x.dtype)
    return jnp.sum(pairs * jnp.mean(jnp.abs(x[:, first] - x[:, second]), axis=2)), jnp.sum(pairs)


def pooled_logits(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the logits of the mean probabilities of modalities, [b, m, d] -> [b, d]; of all where none is there."""
    there = (present | ~jnp.any(present, axis=1, keepdims=True))[:, :, None]
    yes, no = (jax.nn.logsumexp(jax.nn.log_sigmoid(x), axis=1, where=there) for x in (logits, -logits))
    return yes - no


def divergences(logits: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the Jensen-Shannon divergence of a sample's modalities, each d chances of yes and no, [b, m, d] -> [b].

    It is the entropy of the mean distribution minus the mean entropy, summed over d; 0 with fewer than two modalities.
    """

    def entropy(x: jax.Array) -> jax.Array:
        return jax.nn.softplus(x) - x * jax.nn.sigmoid(x)

    weights = present.astype(logits.dtype) / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1).astype(
        logits.dtype
    )
    apart = entropy(pooled_logits(logits, present)) - jnp.einsum("bmd,bm->bd", entropy(logits), weights)
    return jnp.where(jnp.sum(present, axis=1) > 1, jnp.sum(apart, axis=1), 0.0)


def likeness(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the absolute cosine of the angles between vectors, twice [..., d] -> [...]."""
    lengths = jnp.sum(jnp.square(x), axis=-1) * jnp.sum(jnp.square(y), axis=-1)
    return jnp.abs(jnp.sum(x * y, axis=-1)) * jax.lax.rsqrt(lengths + 1e-12)
