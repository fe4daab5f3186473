"""Tokens that replace missing modalities (REMIND section 3.2)."""

import jax
import jax.numpy as jnp

KINDS = ("group", "modality", "modality+group", "bank", "zero")


def group_rows(table: jax.Array, groups: jax.Array) -> jax.Array:
    """Returns rows of a table, [g, ...] and [b] -> [b, ...]; group g, not seen in training, gets the mean row."""
    return jnp.concatenate([table, jnp.mean(table, axis=0, keepdims=True)])[groups]


def imputed_tokens(groups: jax.Array, modality_table: jax.Array | None, group_table: jax.Array | None) -> jax.Array:
    """Returns one vector for each sample and modality, the sum of the given tables.

    Args:
      groups: group of each sample, [b]; g means not seen in training.
      modality_table: [m, d] or None.
      group_table: the learnable vector of each combination, [g, d], or of each combination and modality, [g, m, d],
        or None.

    Returns:
      [b, m, d]; where a table is absent, the first or the middle axis may have length one.
    """
    imputed = jnp.zeros((1, 1, 1)) if modality_table is None else modality_table[None]
    if group_table is None:
        return imputed
    rows = group_rows(group_table, groups)
    return imputed + (rows if rows.ndim == 3 else rows[:, None, :])


def fill_missing(tokens: jax.Array, observed: jax.Array, imputed: jax.Array) -> jax.Array:
    """Replaces the tokens of missing modalities, so that no gradient reaches the encoder of a missing modality.

    Args:
      tokens: [b, n, d].
      observed: False at tokens of missing modalities, [b, n].
      imputed: the tokens to use there, [b, n, d].

    Returns:
      [b, n, d].
    """
    return jnp.where(observed[:, :, None], tokens, imputed.astype(tokens.dtype))
