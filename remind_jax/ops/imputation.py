"""Tokens that replace missing modalities (REMIND section 3.2)."""

import jax
import jax.numpy as jnp

KINDS = ("group", "modality", "modality+group", "bank", "zero")


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
