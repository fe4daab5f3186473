"""Fair Mixup in the latent space (Chuang and Mroueh 2021, manifold variant), for any number of groups and classes.

A batch is made of pairs: rows 2i and 2i + 1 come from two groups, so that each device's share of a batch holds
whole pairs. The tokens of a pair are mixed after encoders and imputation, because missing modalities have no raw
inputs, and the mean slope of the predictions along the path from one group to the other is penalised.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from remind_jax.ops import draws
from remind_jax.ops.transformer import tracing_for_gpu

_MIX = 4_000  # separates the random numbers of t from those of the samples


def first_and_second(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the first and the second member of every pair, [b, ...] -> twice [b/2, ...]."""
    return x[0::2], x[1::2]


def path_position(key: jax.Array, beta: float) -> jax.Array:
    """Draws a step's position on the path, t ~ Beta(beta, beta), one for the whole batch, shape=().

    `key` is the step's, the same on all devices; a beta of 1, the method's default, is uniform on [0, 1].
    """
    key = draws.fold_in(key, _MIX)
    # Beta(1, 1) is uniform; drawing it so spares every program the compilation of a rejection sampler.
    return jax.random.uniform(key) if beta == 1 else jax.random.beta(key, beta, beta)


def class_probabilities(logits: jax.Array) -> jax.Array:
    """Returns softmax in float32, [b, c] -> [b, c]."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def path_slopes(
    logits: Callable[[jax.Array], jax.Array],
    first: jax.Array,
    second: jax.Array,
    t: jax.Array,
    scores: Callable[[jax.Array], jax.Array] = class_probabilities,
) -> jax.Array:
    """Computes the slope of the predictions on the straight path from `second` (t = 0) to `first` (t = 1).

    It is d/dt scores(logits(t first + (1 - t) second)), [b, c] in float32, which sums to zero over classes where the
    scores are their probabilities; `logits` maps tokens [b, n, d] -> [b, c], first and second are tokens [b, n, d] of
    partners. As one forward-mode derivative, its gradient costs about two steps and needs no backward pass through a
    backward pass.
    """

    def predictions(tokens: jax.Array) -> jax.Array:
        return scores(logits(tokens))

    middle = t.astype(first.dtype) * first + (1 - t).astype(first.dtype) * second
    with tracing_for_gpu(False):
        return jax.jvp(predictions, (middle,), (first - second,))[1]


def slope_sums(slopes: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes a device's sums over its pairs, of slopes [c] and of pairs (), to be added to those of other devices.

    `slopes` [b, c] are from `path_slopes`; `weights` [b] is 0 for padding.
    """
    return jnp.einsum("bc,b->c", slopes, weights), jnp.sum(weights)


def slope_penalty(slope_sum: jax.Array, pairs: jax.Array) -> jax.Array:
    """Computes the penalty Σ_c |mean over pairs of the slope of p_c|, shape=(), from sums over all devices [c] and ().

    The absolute value is taken for each class, because slopes sum to zero over classes for every network: their
    probabilities sum to one. With two classes this is twice the published penalty of one probability.
    """
    return jnp.sum(jnp.abs(slope_sum)) / jnp.maximum(pairs, 1e-12)


def slope_penalty_factors(slope_sum: jax.Array, pairs: jax.Array) -> jax.Array:
    """Returns factors f_c [c] that make Σ_c f_c (a device's own sum of slopes) its part of `slope_penalty`.

    The values and gradients of these terms, summed over devices, are the value and the gradient of the penalty.
    """
    return jnp.sign(slope_sum) / jnp.maximum(pairs, 1e-12)
