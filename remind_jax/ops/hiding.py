"""Modality dropout: training samples lose some of their modalities."""

import jax
import jax.numpy as jnp


def hide_modalities(present: jax.Array, keys: jax.Array, *, samples: float, modalities: float) -> jax.Array:
    """Hides modalities of some samples, bool [b, m] -> bool [b, m], never the last one of a sample.

    `keys` are random, [b]; a share `samples` may lose modalities, and such a sample loses each one with probability
    `modalities`.
    """

    def left(present: jax.Array, key: jax.Array) -> jax.Array:
        chance, draws = jax.random.uniform(jax.random.fold_in(key, 0)), jax.random.uniform(key, present.shape)
        draws = jnp.where(present, draws, -1.0)
        # The modality with the greatest draw stays, even when all draws are below the rate.
        kept = (draws >= modalities) | (jnp.arange(len(draws)) == jnp.argmax(draws))
        return present & (kept | (chance >= samples))

    return jax.vmap(left)(present, keys)


def group_of(present: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns each sample's index among combinations, [b, m] and [g, m] -> int32 [b]; g where it is none of them."""
    same = jnp.all(present[:, None, :] == masks[None, :, :], axis=-1)
    return jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), len(masks)).astype(jnp.int32)
