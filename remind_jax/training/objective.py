"""What a run minimises: losses of single samples, factors of groups, penalties."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.models.model import Batch, Network, Output, Params
from remind_jax.objectives import fair_mixup, group_dro, reweigh
from remind_jax.ops import losses, sparse_moe

NETWORKS = "networks"  # axis of an ensemble


def make_loss(config: Any, class_fractions: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Loss of single samples, (logits [b, c], labels [b]) -> [b]."""
    objective = config.objective
    if objective.loss == "cross_entropy":
        return losses.cross_entropy
    alpha = jnp.asarray(1.0 - class_fractions, jnp.float32) if objective.focal_alpha == "inverse_class" else None
    return functools.partial(losses.focal_loss, gamma=objective.focal_gamma, alpha=alpha, detach=objective.focal_detach)


def objective_counts(config: Any, label_counts: np.ndarray) -> np.ndarray:
    """Training samples of what the objective calls a group: combinations [g], or combinations by class [g, c].

    Args:
      config: of the run.
      label_counts: training samples by group and class, [g, c].
    """
    return label_counts if config.objective.cells == "combination_class" else label_counts.sum(axis=1)


def make_dro(config: Any, train_counts: np.ndarray) -> optax.GradientTransformationExtraArgs:
    """The transform that keeps λ; `train_counts` as for `make_step`."""
    counts = jnp.asarray(train_counts, jnp.float32).reshape(-1)
    return group_dro.group_dro(
        len(counts),
        gamma=config.dro.gamma,
        every=config.dro.every,
        initial=group_dro.initial_weights(config.dro.initial, counts),
        # A combination need not have every class: a cell that is never drawn only needs a finite number.
        offset=config.dro.adjustment / jnp.sqrt(jnp.maximum(counts, 1.0)) if config.dro.adjustment else None,
        absent=config.dro.absent,
    )


def make_factors(
    config: Any, robust: bool, dro: optax.GradientTransformationExtraArgs, train_counts: np.ndarray
) -> Callable[[Any, jax.Array, jax.Array], jax.Array]:
    """(state of λ, sums of losses [g], samples [g]) -> what the sum of each group counts in the loss [g]."""
    counts, objective = jnp.asarray(train_counts, jnp.float32).reshape(-1), config.objective
    static = jnp.ones(len(counts))
    if objective.kind == "reweigh" and objective.reweigh_rule == "effective_number":
        static = reweigh.effective_number_weights(counts, objective.reweigh_beta, objective.reweigh_cap or None)
    elif objective.kind == "reweigh":
        static = reweigh.inverse_frequency_weights(counts, objective.reweigh_power, objective.reweigh_cap or None)

    def factors(dro_state, loss_sum, count):
        if not robust:
            return reweigh.weighted_mean_factors(static, count)
        if config.dro.weights == "updated":
            _, dro_state = dro.update({}, dro_state, group_loss_sum=loss_sum, group_count=count)
        weights = jnp.exp(dro_state.log_weights)
        return group_dro.robust_factors(weights, count, normalize_present=config.dro.normalize_present)

    def with_plain(dro_state, loss_sum, count):
        plain = reweigh.weighted_mean_factors(jnp.ones_like(count), count)
        return jnp.where(is_plain(config), plain, factors(dro_state, loss_sum, count))

    return with_plain if config.ensemble_plain else factors


def is_plain(config: Any) -> jax.Array:
    """Whether the network whose step this is, one of an ensemble, trains without group parts."""
    return jax.lax.axis_index(NETWORKS) < config.ensemble_plain


def make_mixup(config: Any, network: Network, num_groups: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Fair Mixup's penalty over all devices, and a sum that has this device's part of its gradient.

    A mixed sample belongs to no combination: the router that all combinations share takes it. It has what either of its
    two samples has.
    """

    def mixup(weights: Params, batch: Batch, output: Output, key: jax.Array, keys: Any, total: Callable):
        first, second = fair_mixup.first_and_second(output.tokens)
        observed = jnp.logical_or(*fair_mixup.first_and_second(output.observed))
        groups = jnp.full(len(first), num_groups, batch["group"].dtype)
        pair_keys = None if keys is None else keys[0::2]
        t = fair_mixup.path_position(key, config.objective.mixup_beta)

        def logits(tokens: jax.Array) -> jax.Array:
            return network.fuse(weights, tokens, observed, groups, gate="never", keys=pair_keys).logits

        slopes = fair_mixup.path_slopes(logits, first, second, t)
        own, pairs = fair_mixup.slope_sums(slopes, jnp.prod(batch["weight"].reshape(-1, 2), axis=1))
        everywhere, pairs = total(jax.lax.stop_gradient(own)), total(pairs)
        return fair_mixup.penalty(everywhere, pairs), jnp.sum(own * fair_mixup.penalty_factors(everywhere, pairs))

    return mixup


def routing_penalty(objective: Any, routing: Any, total: Callable) -> tuple[jax.Array, jax.Array]:
    """The penalty on the routing of the whole batch, and a sum that has this device's part of its gradient."""

    def value(sums):
        return sum(
            sparse_moe.penalty(
                block,
                balance=objective.balance_weight,
                entropy=objective.entropy_weight,
                specialize=objective.specialize_weight,
            )
            for block in sums
        )

    penalty, slopes = jax.value_and_grad(value)(jax.lax.stop_gradient(jax.tree.map(total, routing)))
    return penalty, optax.tree.vdot(slopes, routing)


def cells_of(batch: Batch, train_counts: np.ndarray) -> jax.Array:
    """What the objective calls a group, [b]: the combination, or combination and class where counts are by class."""
    return batch["group"] if train_counts.ndim == 1 else batch["group"] * train_counts.shape[1] + batch["label"]


def sample_losses(loss: Callable[..., jax.Array], output: Output, batch: Batch, offset: np.ndarray | None):
    """Loss of each sample [b]; of several members the mean of theirs, so that each learns by itself."""
    shift = 0.0 if offset is None else jnp.asarray(offset)[batch["group"]]
    if output.members is None:
        return loss(output.logits + shift, batch["label"])
    members = output.members if offset is None else output.members + shift[:, None]
    return jnp.mean(jax.vmap(loss, (1, None), 1)(members, batch["label"]), axis=1)
