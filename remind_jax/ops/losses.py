"""Losses of single samples and their sums over modality-combination groups."""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the softmax cross entropy in nats, [b, c] and [b] -> [b], in float32."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]


def focal_loss(
    logits: jax.Array, labels: jax.Array, *, gamma: float = 2.0, alpha: jax.Array | None = None, detach: bool = False
) -> jax.Array:
    """Returns the softmax focal loss -alpha_y (1 - p_y)^gamma ln p_y (Lin et al. 2017, for several classes), [b].

    A higher gamma weighs well classified samples less, and 0 is cross entropy; `alpha` [c] weighs the classes; `detach`
    stops the gradient through the modulating factor (1 - p_y)^gamma. Logits are [b, c]; the result is in float32.
    """
    nll = cross_entropy(logits, labels)
    # expm1 avoids cancellation in 1 - p_y; at zero a power below one would have an infinite slope.
    modulation = jnp.maximum(-jnp.expm1(-nll), 1e-12) ** gamma
    loss = (jax.lax.stop_gradient(modulation) if detach else modulation) * nll
    return loss if alpha is None else alpha[labels] * loss


def group_sums(
    losses: jax.Array, groups: jax.Array, weights: jax.Array, num_groups: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of weighted losses [g] and of weights [g] over groups, from losses, groups and weights [b].

    Groups outside 0..num_groups - 1 (combinations not seen in training) are not counted; padding has weight 0.
    """
    total = jax.ops.segment_sum(jnp.stack([losses * weights, weights], axis=-1), groups, num_groups)
    return total[:, 0], total[:, 1]


def mean_prediction(logits: jax.Array, axis: int) -> jax.Array:
    """Returns the log of k predictors' mean probabilities, [..., k, ..., c] -> [..., c] without the axis of k."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jax.nn.logsumexp(log_p, axis=axis) - jnp.log(jnp.float32(logits.shape[axis]))


def mean_hazards(logits: jax.Array, axis: int) -> jax.Array:
    """Returns the hazards, as logits, of k predictors' mean chances of an event in each step, as `mean_prediction`."""
    logits = logits.astype(jnp.float32)
    passed = jnp.cumsum(-jax.nn.softplus(logits), axis=-1)
    before = jnp.concatenate([jnp.zeros_like(passed[..., :1]), passed[..., :-1]], axis=-1)
    each = jnp.concatenate([before - jax.nn.softplus(-logits), passed[..., -1:]], axis=-1)  # of the steps, and of none
    log_p = jax.nn.logsumexp(each, axis=axis)
    return log_p[..., :-1] - jax.lax.cumlogsumexp(log_p, axis=log_p.ndim - 1, reverse=True)[..., 1:]


def mean_odds(logits: jax.Array, axis: int) -> jax.Array:
    """Returns the log odds of k predictors' mean probabilities of labels, as `mean_prediction`."""
    logits = logits.astype(jnp.float32)
    yes, no = (jax.nn.logsumexp(-jax.nn.softplus(x), axis=axis) for x in (-logits, logits))
    return yes - no


def misranking(weights: jax.Array, losses: jax.Array, present: jax.Array) -> jax.Array:
    """Returns by how much weights of k predictors are in another order than their losses, [b, k, c] -> [b].

    It is the mean over pairs of those that are `present`, bool [b, k], and over c, of the weight that the one with the
    larger loss, [b, k], has above the other's (Yao et al. 2024). No gradient reaches the losses.
    """
    first, second = np.triu_indices(weights.shape[1], 1)
    weights, pairs = weights.astype(jnp.float32), present[:, first] & present[:, second]
    better = jnp.where(losses[:, first] < losses[:, second], 1.0, -1.0)[:, :, None]
    wrong = jnp.mean(jnp.maximum(better * (weights[:, second] - weights[:, first]), 0.0), axis=2)
    return mean_where(wrong, pairs)


def mean_where(x: jax.Array, known: jax.Array) -> jax.Array:
    """Returns the mean over what is `known` of each sample, twice [b, k] -> [b]; 0 where nothing is."""
    return jnp.sum(jnp.where(known, x, 0.0), axis=1) / jnp.maximum(jnp.sum(known.astype(x.dtype), axis=1), 1.0)


def divergence(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """Returns the Kullback-Leibler divergence from target to prediction in nats, twice [..., c] -> [...], float32."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    target = jax.nn.log_softmax(target_logits.astype(jnp.float32))
    return jnp.sum(jnp.exp(target) * (target - log_p), axis=-1)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross entropy of a sample's known labels in nats, twice [b, l] -> [b], in float32.

    Labels are 1, 0 or negative where they are unknown, which count in nothing; a sample without a known one has 0.
    """
    logits, known = logits.astype(jnp.float32), labels >= 0
    each = jax.nn.softplus(jnp.where(labels == 1, -logits, logits))
    return jnp.sum(jnp.where(known, each, 0.0), axis=1) / jnp.maximum(jnp.sum(known, axis=1, dtype=jnp.float32), 1.0)


def gaussian(outputs: jax.Array, values: jax.Array, floor: float = 1e-2) -> jax.Array:
    """Returns the negative log likelihood of values under normal distributions, [b, 2] and [b] -> [b], in float32.

    The outputs are a mean and what softplus makes a standard deviation of, at least `floor`; the constant ½ log 2π is
    left out.
    """
    mean, deviation = outputs[:, 0].astype(jnp.float32), jax.nn.softplus(outputs[:, 1].astype(jnp.float32)) + floor
    return jnp.square((values - mean) / deviation) / 2 + jnp.log(deviation)


def pinball(quantiles: jax.Array, values: jax.Array, levels: jax.Array) -> jax.Array:
    """Returns the mean over levels [q] of the pinball loss of quantiles, [b, q] and [b] -> [b], in float32."""
    above, levels = values[:, None] - quantiles.astype(jnp.float32), levels[None].astype(jnp.float32)
    return jnp.mean(jnp.maximum(levels * above, (levels - 1) * above), axis=1)


def hazards(logits: jax.Array, last: jax.Array, event: jax.Array) -> jax.Array:
    """Returns the negative log likelihood of discrete hazards, [b, k], int [b] and bool [b] -> [b], in float32.

    Hazard h_s, the sigmoid of logit s, is the chance of an event in step s for who has had none before. With T the last
    step seen, a sample counts −log h_T Π_{s<T} (1 − h_s) if it has the event in T, and −log Π_{s≤T} (1 − h_s) if not.
    """
    logits, steps = logits.astype(jnp.float32), jnp.arange(logits.shape[1])[None]
    survived = steps < jnp.where(event, last, last + 1)[:, None]
    at = event[:, None] & (steps == last[:, None])
    return jnp.sum(jnp.where(survived, jax.nn.softplus(logits), jnp.where(at, jax.nn.softplus(-logits), 0.0)), axis=1)
