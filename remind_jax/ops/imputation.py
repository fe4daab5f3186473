"""Tokens that replace missing modalities (REMIND section 3.2)."""

import jax
import jax.numpy as jnp

from remind_jax.ops.convolution import MOMENTUM

KINDS = ("group", "modality", "modality+group", "bank", "zero", "mean")


def group_rows(table: jax.Array, groups: jax.Array) -> jax.Array:
    """Returns rows of a table, [g, ...] and [b] -> [b, ...]; group g, not seen in training, gets the mean row."""
    return jnp.concatenate([table, jnp.mean(table, axis=0, keepdims=True)])[groups]


def imputed_tokens(groups: jax.Array, modality_table: jax.Array | None, group_table: jax.Array | None) -> jax.Array:
    """Returns one vector for each sample and modality, the sum of the given tables, [b, m, d].

    `groups` [b] are as for `group_rows`; `modality_table` is [m, d]; `group_table` has the learnable vector of each
    combination, [g, d], or of each combination and modality, [g, m, d]. Where a table is None, the first or the middle
    axis may have length one.
    """
    imputed = jnp.zeros((1, 1, 1)) if modality_table is None else modality_table[None]
    if group_table is None:
        return imputed
    rows = group_rows(group_table, groups)
    return imputed + (rows if rows.ndim == 3 else rows[:, None, :])


def fill_missing(tokens: jax.Array, observed: jax.Array, imputed: jax.Array) -> jax.Array:
    """Replaces tokens [b, n, d] where `observed` [b, n] is False by `imputed` [b, n, d].

    So no gradient reaches the encoder of a missing modality.
    """
    return jnp.where(observed[:, :, None], tokens, imputed.astype(tokens.dtype))


def running_means(running: jax.Array, x: jax.Array, present: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Moves the running mean of each modality, [m, d], towards that of a batch's vectors [b, m, d], where `present`.

    A modality that the batch lacks keeps its own; `axis_name` is that of the devices that share the batch. No gradient
    passes.
    """
    known = jnp.where(present[:, :, None], jax.lax.stop_gradient(x).astype(running.dtype), 0.0)
    sums = jnp.sum(known, axis=0), jnp.sum(present.astype(running.dtype), axis=0)
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    share = jnp.where(count > 0, MOMENTUM, 0.0)[:, None]
    return running + share * (total / jnp.maximum(count, 1.0)[:, None] - running)
