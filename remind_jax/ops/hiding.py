"""Modality dropout: training samples that lose some of their modalities."""

import jax
import jax.numpy as jnp


def hide_modalities(present: jax.Array, keys: jax.Array, *, samples: float, modalities: float) -> jax.Array:
    """Takes modalities away from some samples, never the last one.

    Args:
      present: [b, m].
      keys: random keys [b].
      samples: share of the samples that may lose modalities.
      modalities: with what probability such a sample loses each modality that it has.

    Returns:
      What is left, [b, m].
    """

    def left(present: jax.Array, key: jax.Array) -> jax.Array:
        chance, draws = jax.random.uniform(jax.random.fold_in(key, 0)), jax.random.uniform(key, present.shape)
        draws = jnp.where(present, draws, -1.0)
        # The greatest draw stays: it falls below the rate only when all do.
        kept = (draws >= modalities) | (jnp.arange(len(draws)) == jnp.argmax(draws))
        return present & (kept | (chance >= samples))

    return jax.vmap(left)(present, keys)


def group_of(present: jax.Array, masks: jax.Array) -> jax.Array:
    """Combination of each sample, [b, m] and the combinations [g, m] -> int32 [b]; g for one that is not among them."""
    same = jnp.all(present[:, None, :] == masks[None, :, :], axis=-1)
    return jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), len(masks)).astype(jnp.int32)
