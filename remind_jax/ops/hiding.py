"""Modality dropout: training samples lose some of their modalities."""

import jax
import jax.numpy as jnp

from remind_jax.ops import draws


def hide_modalities(present: jax.Array, keys: jax.Array, *, samples: float, modalities: float | jax.Array) -> jax.Array:
    """Hides modalities of some samples, bool [b, m] -> bool [b, m], never the last one of a sample.

    `keys` are random, [b]; a share `samples` may lose modalities, and such a sample loses each one with probability
    `modalities`, or those of a sample [b, m]. Where it would lose all, each is as likely to stay.
    """

    def left(present: jax.Array, key: jax.Array, rates: jax.Array) -> jax.Array:
        chance, draw = jax.random.uniform(jax.random.fold_in(key, 0)), jax.random.uniform(key, present.shape)
        draw = jnp.where(present, draw, -1.0)
        # The modality with the greatest draw stays, even when all draws are below the rate; a draw below its rate is
        # uniform up to there.
        among = draw / jnp.maximum(rates / jnp.max(rates), 1e-6)
        kept = (draw >= rates) | (jnp.arange(len(draw)) == jnp.argmax(among))
        return present & (kept | (chance >= samples))

    return jax.vmap(left)(present, keys, jnp.broadcast_to(jnp.float32(modalities), present.shape))


def group_of(present: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns each sample's index among combinations, [b, m] and [g, m] -> int32 [b]; g where it is none of them."""
    same = jnp.all(present[:, None, :] == masks[None, :, :], axis=-1)
    return jnp.where(jnp.any(same, axis=1), jnp.argmax(same, axis=1), len(masks)).astype(jnp.int32)


def proper_part(present: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns some of the modalities of each sample, bool [b, m] -> bool [b, m], random by `keys` [b].

    Every part but none and all of them is as likely; a sample that has one modality keeps it.
    """
    count = jnp.minimum(jnp.sum(present, axis=1, dtype=jnp.uint32), 31)
    parts = jnp.maximum((jnp.uint32(1) << count) - 2, 1)
    chosen = draws.bits(keys, ()) % parts + 1
    place = jnp.cumsum(present, axis=1, dtype=jnp.uint32) - 1
    taken = (chosen[:, None] >> jnp.minimum(place, 31)) & 1
    return present & (taken == 1)
