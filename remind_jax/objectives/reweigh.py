"""Static weights of modality-combination groups."""

import jax
import jax.numpy as jnp

RULES = ("power", "effective_number")


def inverse_frequency_weights(train_counts: jax.Array, power: float = 1.0, cap: float | None = None) -> jax.Array:
    """Returns the weight of each group's samples, w_g ∝ n_g^-power with Σ_g n_g w_g = Σ_g n_g, [g] -> [g].

    Power 1 gives every group the same total weight, power 0 every sample the same weight; those of groups without
    training samples are unused. `cap` is the largest weight, where the mean is 1; it comes last, so that capped weights
    sum to less than the number of samples.
    """
    counts = jnp.asarray(train_counts, jnp.float32)
    return _scaled(jnp.maximum(counts, 1.0) ** -power, counts, cap)


def effective_number_weights(train_counts: jax.Array, beta: float = 0.999, cap: float | None = None) -> jax.Array:
    """Returns the weight of each group's samples, w_g ∝ (1 - β) / (1 - β^n_g) with Σ_g n_g w_g = Σ_g n_g, [g] -> [g].

    It is the inverse of the effective number of samples (Cui et al. 2019), to which each further sample of a group adds
    less: β = 0 weighs every sample alike, β near 1, which it stays below, every group. `cap` is as for
    `inverse_frequency_weights`.
    """
    counts = jnp.asarray(train_counts, jnp.float32)
    # expm1 avoids cancellation in 1 - β^n; n is at least 1, so that β = 0 gives 1.
    return _scaled(-1.0 / jnp.expm1(jnp.maximum(counts, 1.0) * jnp.log(jnp.asarray(beta, jnp.float32))), counts, cap)


def _scaled(weights: jax.Array, counts: jax.Array, cap: float | None) -> jax.Array:
    """Scales weights to a mean of one over the training samples, then caps them, [g]."""
    weights = weights * jnp.sum(counts) / jnp.sum(counts * weights)
    return weights if cap is None else jnp.minimum(weights, cap)


def weighted_mean_factors(weights: jax.Array, group_count: jax.Array) -> jax.Array:
    """Returns factors f_g that make Σ_g f_g (sum of losses of g) the mean of weighted losses over the batch, [g].

    `weights` [g] of ones give empirical risk minimisation; `group_count` [g] counts a step's samples over all devices.
    """
    return weights / jnp.maximum(jnp.sum(group_count), 1e-12)
