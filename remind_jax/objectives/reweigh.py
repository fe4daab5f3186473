"""Static weights of modality-combination groups."""

import jax
import jax.numpy as jnp


def inverse_frequency_weights(train_counts: jax.Array, power: float = 1.0, cap: float | None = None) -> jax.Array:
    """Weight of a sample by its group, w_g ∝ n_g^-power with Σ_g n_g w_g = Σ_g n_g, [g] -> [g].

    Power 1 makes every group count the same, power 0 every sample.

    Args:
      train_counts: n_g, number of training samples of each group, all positive, [g].
      power: how much of the imbalance is undone.
      cap: largest ratio of a weight to the mean weight of 1; None is no limit. Applied last, so that the weights of a
        capped set sum to less than the number of samples.
    """
    counts = jnp.asarray(train_counts, jnp.float32)
    weights = counts**-power
    weights = weights * jnp.sum(counts) / jnp.sum(counts * weights)
    return weights if cap is None else jnp.minimum(weights, cap)


def weighted_mean_factors(weights: jax.Array, group_count: jax.Array) -> jax.Array:
    """Factors f_g with which Σ_g f_g (sum of losses of g) is the mean of weighted losses over the batch, [g].

    Args:
      weights: weight of a sample of each group, [g]; ones give empirical risk minimisation.
      group_count: samples of each group in the step, over all devices, [g].
    """
    return weights / jnp.maximum(jnp.sum(group_count), 1e-12)
