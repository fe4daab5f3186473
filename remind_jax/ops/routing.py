"""Routers of modality-combination groups, and the gate that turns them on (REMIND Eq. 7 and 8, section 7.2)."""

import math
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.ops.soft_moe import unit_length


def token_logits(tokens: jax.Array, router: jax.Array, normalize: bool) -> jax.Array:
    """Computes the affinities of tokens to slots, [b, n, d] -> [b, n, e, s].

    The router is one for all samples, [d, e, s], or one a sample, [b, d, e, s]; it is not normalised here. `normalize`
    scales the tokens to unit length first.
    """
    tokens = unit_length(tokens, axis=-1) if normalize else tokens
    return jnp.einsum("bnd,des->bnes" if router.ndim == 3 else "bnd,bdes->bnes", tokens, router)


def effective_routers(
    shared: jax.Array, residual: jax.Array, scale: jax.Array, *, normalize: bool, add_after_norm: bool = False
) -> jax.Array:
    """Returns the routers in use: shared [d, e, s] plus residual [k, d, e, s], one a group or a sample (Eq. 7).

    With `normalize` the sum is scaled to the length `scale` () over d; with `add_after_norm` only the shared router is,
    and the residuals come after. A residual alone is never normalised: it starts at zero, where it has no direction.
    """
    if not normalize:
        return shared[None] + residual
    if add_after_norm:
        return scale * unit_length(shared, axis=0)[None] + residual
    return scale * unit_length(shared[None] + residual, axis=1)


def group_routers(
    shared: jax.Array, residual: jax.Array, groups: jax.Array, scale: jax.Array, **options: bool
) -> jax.Array:
    """Returns the routers [b, d, e, s] of a batch's groups [b], whose residuals are rows of a table [g, d, e, s].

    Group g, a combination not seen in training, uses the shared router alone; the options are those of
    `effective_routers`. Routers are built once a group or once a sample, whichever are fewer, so that groups outside
    the batch cost nothing.
    """
    rows = groups.shape[0]  # no integer in a program for any number of rows
    if not isinstance(rows, int) or len(residual) >= rows:
        return effective_routers(shared, residual.at[groups].get(mode="fill", fill_value=0), scale, **options)
    table = jnp.concatenate([residual, jnp.zeros_like(residual[:1])])
    return effective_routers(shared, table, scale, **options)[groups]


def composed_residuals(down: jax.Array, up: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the sum Σ_i U_i V_i of the present modalities' low-rank residual routers, [b, d, e, s].

    U is `down` [m, d, r] and V is `up` [m, r, e, s]; a sample without modalities in `present` [b, m] has a zero
    residual.
    """
    # The products come first because they are the same for all samples.
    each = jnp.einsum("mdr,mres->mdes", down, up)
    return jnp.einsum("bm,mdes->bdes", present.astype(each.dtype), each)


def entropy(logits: jax.Array) -> jax.Array:
    """Returns each token and slot's entropy over experts in nats, [b, n, e, s] -> [b, n, s], at most ln e (7.2.5)."""
    return _entropy(_experts_last(logits))


def joint_entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy of one distribution over tokens, experts and slots in nats, [b, n, e, s] -> [b] (Eq. 8)."""
    return _entropy(logits.astype(jnp.float32).reshape(len(logits), -1))


def _entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy over the last axis, at the cost of one exponential an entry."""
    shifted = logits - jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=-1)
    return jnp.log(total) - jnp.sum(weights * shifted, axis=-1) / total


def _experts_last(logits: jax.Array) -> jax.Array:
    """Moves experts last, [b, n, e, s] -> [b, n, s, e] in float32; XLA on CPU is slow over a last axis of one slot."""
    return jnp.moveaxis(logits.astype(jnp.float32), 3, 2)


def _expert_probabilities(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(_experts_last(logits), axis=-1)


def normalized_entropy(logits: jax.Array) -> jax.Array:
    """Returns the entropy over experts as a share of its maximum ln e, [b, n, e, s] -> [b, n, s] in [0, 1]."""
    return entropy(logits) / math.log(logits.shape[2])


def certainty(logits: jax.Array) -> jax.Array:
    """Returns the normalized certainty 1 - H / ln e, [b, n, e, s] -> [b, n, s] (Table 6)."""
    return 1.0 - normalized_entropy(logits)


def max_probability(logits: jax.Array) -> jax.Array:
    """Returns the largest expert probability, [b, n, e, s] -> [b, n, s] (Table 6)."""
    return jnp.max(_expert_probabilities(logits), axis=-1)


def margin(logits: jax.Array) -> jax.Array:
    """Returns the largest minus the second largest expert probability, [b, n, e, s] -> [b, n, s] (Table 6)."""
    top, _ = jax.lax.top_k(_expert_probabilities(logits), 2)
    return top[..., 0] - top[..., 1]


def gini(logits: jax.Array) -> jax.Array:
    """Returns the Gini impurity 1 - sum p^2, [b, n, e, s] -> [b, n, s] (Table 6)."""
    return 1.0 - jnp.sum(jnp.square(_expert_probabilities(logits)), axis=-1)


def variance(logits: jax.Array) -> jax.Array:
    """Returns the squared distance to the uniform distribution, Σ (p - 1/e)², [b, n, e, s] -> [b, n, s] (Table 6)."""
    return jnp.sum(jnp.square(_expert_probabilities(logits) - 1.0 / logits.shape[2]), axis=-1)


def kl_from_uniform(logits: jax.Array) -> jax.Array:
    """Returns the KL divergence from a uniform distribution in nats, ln e - H, [b, n, e, s] -> [b, n, s] (Table 6)."""
    return math.log(logits.shape[2]) - entropy(logits)


def normalized_joint_entropy(logits: jax.Array) -> jax.Array:
    """Returns the joint entropy of Eq. 8 as a share of its maximum ln(n e s), [b, n, e, s] -> [b, 1, 1] in [0, 1]."""
    return (joint_entropy(logits) / math.log(math.prod(logits.shape[1:])))[:, None, None]


# Each metric with its sign: +1 grows with uncertainty, -1 shrinks with it.
UNCERTAINTY_METRICS: dict[str, tuple[Callable[[jax.Array], jax.Array], int]] = {
    "entropy": (normalized_entropy, +1),
    "joint_entropy": (normalized_joint_entropy, +1),
    "gini": (gini, +1),
    "certainty": (certainty, -1),
    "max_probability": (max_probability, -1),
    "margin": (margin, -1),
    "variance": (variance, -1),
    "kl": (kl_from_uniform, -1),
}

# Axes of a [b, n, s] uncertainty that are averaged before it is compared with the threshold.
GATE_GRANULARITY = {"sample": (1, 2), "token": (2,), "batch": (0, 1, 2)}


def gate_values(logits: jax.Array, metric: str, granularity: str = "sample") -> jax.Array:
    """Computes the metric that a gate compares with its threshold, in float32, broadcastable to [b, n].

    `logits` [b, n, e, s] are affinities under the shared router, `metric` a key of `UNCERTAINTY_METRICS`; there is one
    value for each `sample`, each `token` or the `batch`.
    """
    function, _ = UNCERTAINTY_METRICS[metric]
    return jnp.mean(function(logits), axis=GATE_GRANULARITY[granularity], keepdims=True)[..., 0]


def gate_is_open(
    logits: jax.Array, metric: str, threshold: float | jax.Array, granularity: str = "sample"
) -> jax.Array:
    """Returns whether the shared router is unsure enough for the group routers to act, bool, broadcastable to [b, n].

    The gate is open at the threshold () and above it for entropies and gini, at it and below for the other metrics.
    Entropies are shares of their maximum: the paper's 0.8 H_max is 0.8. The other arguments are those of `gate_values`.
    """
    _, sign = UNCERTAINTY_METRICS[metric]
    return sign * gate_values(logits, metric, granularity) >= sign * threshold


def threshold_for_share(values: np.ndarray, metric: str, share: float) -> float:
    """Returns the threshold that opens the gate for a share, in (0, 1), of at least two `gate_values` of any shape.

    It is halfway between the last value that opens the gate and the first that does not, so rounding decides nothing;
    the gate opens for at least one and stays shut for at least one.
    """
    _, sign = UNCERTAINTY_METRICS[metric]
    ascending = np.sort(sign * np.asarray(values, np.float64), axis=None)
    shut = min(max(round((1.0 - share) * len(ascending)), 1), len(ascending) - 1)
    return float(sign * (ascending[shut - 1] + ascending[shut]) / 2)


def scale_that_closes(threshold: float, experts: int, width: int) -> float:
    """Returns the scale at which the entropy over experts of unit-length routing falls to a share of its maximum.

    The threshold is that share, above 0 and below 1; `width` is d of tokens and routers. The estimate is for random
    directions, right to about a tenth near 0.8: products of random unit vectors of width d are nearly normal with
    deviation d^-1/2, so quantiles of that distribution replace them.
    """
    normal = statistics.NormalDist()
    scores = np.array([normal.inv_cdf((i + 0.5) / experts) for i in range(experts)])
    scores /= np.sqrt(np.mean(np.square(scores)))

    def share(scale: float) -> float:
        logits = scale * (scores - scores.max())
        p = np.exp(logits) / np.exp(logits).sum()
        return float(-np.sum(p * np.log(np.maximum(p, 1e-300))) / math.log(experts))

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) > threshold else (low, middle)
    return middle * math.sqrt(width)
