"""Static weights of modality-combination groups."""

import jax
import jax.numpy as jnp

RULES = ("power", "effective_number")


def inverse_frequency_weights(train_counts: jax.Array, power: float = 1.0, cap: float | None = None) -> jax.Array:
    """Weight of a sample by its group, w_g ∝ n_g^-power with Σ_g n_g w_g = Σ_g n_g, [g] -> [g].

    Power 1 makes every group count the same, power 0 every sample.

    Args:
      train_counts: n_g, number of training samples of each group, [g]; what a group without any gets does not matter.
      power: how much of the imbalance is undone.
      cap: largest ratio of a weight to the mean weight of 1; None is no limit. Applied last, so that the weights of a
        capped set sum to less than the number of samples.
    """
    counts = jnp.asarray(train_counts, jnp.float32)
    return _scaled(jnp.maximum(counts, 1.0) ** -power, counts, cap)


def effective_number_weights(train_counts: jax.Array, beta: float = 0.999, cap: float | None = None) -> jax.Array:
    """Weight of a sample by its group, w_g ∝ (1 - β) / (1 - β^n_g) with Σ_g n_g w_g = Σ_g n_g, [g] -> [g].

    The inverse of the effective number of samples (Cui et al. 2019), in which further samples of a large group count
    for less and less. β = 0 weighs every sample alike, β near 1 every group.

    Args:
      train_counts: n_g, as for `inverse_frequency_weights`, [g].
      beta: at least 0 and below 1.
      cap: as for `inverse_frequency_weights`.
    """
    counts = jnp.asarray(train_counts, jnp.float32)
    # 1 - β^n without cancellation; n is at least 1, so that β = 0 gives 1.
    return _scaled(-1.0 / jnp.expm1(jnp.maximum(counts, 1.0) * jnp.log(jnp.asarray(beta, jnp.float32))), counts, cap)


def _scaled(weights: jax.Array, counts: jax.Array, cap: float | None) -> jax.Array:
    """Weights whose mean over the training samples is one, then cut at `cap`, [g]."""
    weights = weights * jnp.sum(counts) / jnp.sum(counts * weights)
    return weights if cap is None else jnp.minimum(weights, cap)


def weighted_mean_factors(weights: jax.Array, group_count: jax.Array) -> jax.Array:
    """Factors f_g with which Σ_g f_g (sum of losses of g) is the mean of weighted losses over the batch, [g].

    Args:
      weights: weight of a sample of each group, [g]; ones give empirical risk minimisation.
      group_count: samples of each group in the step, over all devices, [g].
    """
    return weights / jnp.maximum(jnp.sum(group_count), 1e-12)
