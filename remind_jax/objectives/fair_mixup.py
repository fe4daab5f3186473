"""Fair Mixup in the latent space (Chuang and Mroueh 2021, manifold variant), for any number of groups and classes.

A batch is made of pairs: rows 2i and 2i + 1 come from two groups, so that each device's share of a batch holds
whole pairs. The tokens of a pair are mixed after encoders and imputation, because raw inputs of missing modalities do
not exist, and the mean slope of the predictions on the way from one group to the other is penalised.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_MIX = 4_000  # keeps the stream of t apart from those of the samples


def first_and_second(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two members of every pair, [b, ...] -> twice [b/2, ...]."""
    return x[0::2], x[1::2]


def path_position(key: jax.Array, beta: float) -> jax.Array:
    """Where on the path a step looks, t ~ Beta(beta, beta), one for the whole batch, shape=().

    Args:
      key: of the step, the same on all devices.
      beta: 1 is uniform on [0, 1], the default of the method.
    """
    key = jax.random.fold_in(key, _MIX)
    # The same distribution, without the rejection sampler that every program would have to compile.
    return jax.random.uniform(key) if beta == 1 else jax.random.beta(key, beta, beta)


def path_slopes(
    logits: Callable[[jax.Array], jax.Array], first: jax.Array, second: jax.Array, t: jax.Array
) -> jax.Array:
    """Slope of the class probabilities on the straight path from `second` (t = 0) to `first` (t = 1).

    One forward-mode derivative: taking the gradient of it costs about two steps, without a backward pass through a
    backward pass.

    Args:
      logits: of tokens, [b, n, d] -> [b, c].
      first: tokens [b, n, d].
      second: tokens of the partners [b, n, d].
      t: position, shape=().

    Returns:
      d/dt softmax(logits(t first + (1 - t) second)), [b, c], float32; it sums to zero over classes.
    """

    def probabilities(tokens: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits(tokens).astype(jnp.float32), axis=-1)

    middle = t.astype(first.dtype) * first + (1 - t).astype(first.dtype) * second
    return jax.jvp(probabilities, (middle,), (first - second,))[1]


def slope_sums(slopes: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over pairs that a device adds to those of the others.

    Args:
      slopes: [b, c], from `path_slopes`.
      weights: of the pairs [b]; 0 for padding.

    Returns:
      Sums of slopes [c] and number of pairs, shape=().
    """
    return jnp.einsum("bc,b->c", slopes, weights), jnp.sum(weights)


def penalty(slope_sum: jax.Array, pairs: jax.Array) -> jax.Array:
    """Σ_c |mean over pairs of the slope of p_c|, shape=().

    The absolute value is taken for each class: a sum over classes before it would be zero whatever the network does,
    for probabilities sum to one. With two classes this is twice the published penalty of one probability.

    Args:
      slope_sum: of all devices [c].
      pairs: of all devices, shape=().
    """
    return jnp.sum(jnp.abs(slope_sum)) / jnp.maximum(pairs, 1e-12)


def penalty_factors(slope_sum: jax.Array, pairs: jax.Array) -> jax.Array:
    """Factors f_c [c] with which Σ_c f_c (a device's own sum of slopes) has its part of the penalty's gradient.

    The gradients of all devices then add up to that of `penalty`, and the values to the value.
    """
    return jnp.sign(slope_sum) / jnp.maximum(pairs, 1e-12)
