"""Plain models as arrays: linear models, sums of trees and proportional hazards, of dense rows."""

import jax
import jax.numpy as jnp

Arrays = dict[str, jax.Array]


def tf_idf(counts: jax.Array, idf: jax.Array) -> jax.Array:
    """Returns 1 + log of counts times `idf` [v], each row of length one or zero, [b, v] -> [b, v]."""
    weights = jnp.where(counts > 0, 1.0 + jnp.log(jnp.maximum(counts, 1.0)), 0.0) * idf[None]
    length = jnp.sqrt(jnp.sum(jnp.square(weights), axis=1, keepdims=True))
    return weights / jnp.where(length > 0, length, 1.0)


def standardised(dense: jax.Array, arrays: Arrays) -> jax.Array:
    """Returns numbers [b, p] in deviations from their means, 0 where one is NaN."""
    return jnp.nan_to_num((dense - arrays["mean"][None]) / arrays["std"][None])


def linear(x: jax.Array, arrays: Arrays) -> jax.Array:
    """Returns scores [b, o] of rows [b, p]."""
    return jnp.matmul(x, arrays["coef"], precision=jax.lax.Precision.HIGHEST) + arrays["intercept"][None]


def trees(x: jax.Array, arrays: Arrays) -> jax.Array:
    """Sums the values of the leaves that rows [b, p] come to in each of t trees of at most k nodes, [b, o].

    A row goes to `left` [t, k] where its `feature` [t, k] is at most `threshold` [t, k], or is NaN and `default_left`
    holds, else to `right`; a leaf leads to itself. The sum of `value` [t, k, o] begins with `start` [o].
    """
    tree = jnp.arange(arrays["left"].shape[0])[None]

    def step(node: jax.Array) -> jax.Array:
        seen = jnp.take_along_axis(x, arrays["feature"][tree, node], axis=1)
        goes_left = jnp.where(
            jnp.isnan(seen), arrays["default_left"][tree, node], seen <= arrays["threshold"][tree, node]
        )
        return jnp.where(goes_left, arrays["left"][tree, node], arrays["right"][tree, node])

    start = jnp.zeros((x.shape[0], arrays["left"].shape[0]), jnp.int32)
    _, leaf = jax.lax.while_loop(
        lambda at: jnp.any(at[0] != at[1]), lambda at: (at[1], step(at[1])), (start - 1, start)
    )
    return jnp.sum(arrays["value"][tree, leaf], axis=1) + arrays["start"][None]


def hazards(x: jax.Array, arrays: Arrays) -> jax.Array:
    """Returns survival at the ends of k steps of rows [b, p] with proportional hazards, [b, k].

    `hazard` [k] is cumulated, that of a row whose `coef` [p] sum to `centre`.
    """
    risk = jnp.exp(jnp.matmul(x, arrays["coef"], precision=jax.lax.Precision.HIGHEST) - arrays["centre"])
    return jnp.exp(-risk[:, None] * arrays["hazard"][None])
