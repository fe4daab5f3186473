"""Group distributionally robust optimisation over modality combinations (Sagawa et al. 2020; REMIND Eq. 3 and 4).

The group weights λ are state of an optax transform, so that they are saved, sharded and resumed with the optimizer. A
train step reads λ, weighs its loss with it, takes the gradient, and then updates the transform.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

INITIAL_WEIGHTS = ("uniform", "frequency", "sqrt_frequency")
ABSENT = ("last", "zero")


class GroupDroState(NamedTuple):
    """The state of group DRO between steps."""

    log_weights: jax.Array  # log λ, shape=(g,), float32
    loss_sum: jax.Array  # sums of losses since the last refresh, shape=(g,), float32
    loss_count: jax.Array  # samples since the last refresh, shape=(g,), float32
    last_loss: jax.Array  # mean loss in the last window that had samples of the group, shape=(g,), float32
    seen: jax.Array  # whether `last_loss` is known, shape=(g,), bool
    step: jax.Array  # shape=(), int32


def initial_weights(kind: str, train_counts: jax.Array) -> jax.Array:
    """Returns λ before the first refresh, which sums to one, [g] -> [g]; groups without train samples have zero.

    The kind is `uniform`, `frequency` (p_g, where robust and plain risk agree), or `sqrt_frequency` (∝ √p_g).
    """
    power = {"uniform": 0.0, "sqrt_frequency": 0.5, "frequency": 1.0}[kind]
    counts = jnp.asarray(train_counts, jnp.float32)
    weights = jnp.where(counts > 0, counts**power, 0.0)
    return weights / jnp.sum(weights)


def refresh(log_weights: jax.Array, losses: jax.Array, gamma: float | jax.Array) -> jax.Array:
    """Takes an exponentiated-gradient step, λ_g ∝ λ_g exp(γ R_g) (Eq. 4), in logs, [g] and [g] -> [g]."""
    return jax.nn.log_softmax(log_weights + gamma * losses)


def known_losses(loss_sum: jax.Array, loss_count: jax.Array, last_loss: jax.Array, seen: jax.Array) -> jax.Array:
    """Returns each group's mean loss in this window, else its last known one, else the known groups' mean, [g].

    A group absent from a window does not have loss zero: counted so, rare groups would lose weight to all others at
    each refresh, the opposite of the method's purpose.
    """
    current = jnp.where(loss_count > 0, loss_sum / jnp.maximum(loss_count, 1e-12), last_loss)
    known = seen | (loss_count > 0)
    mean_known = jnp.sum(jnp.where(known, current, 0.0)) / jnp.maximum(jnp.sum(known, dtype=jnp.float32), 1.0)
    return jnp.where(known, current, mean_known)


def group_dro(
    num_groups: int,
    gamma: float | optax.Schedule = 0.02,
    every: int = 10,
    initial: jax.Array | None = None,
    offset: jax.Array | None = None,
    absent: str = "last",
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transform that holds the group weights and leaves the updates as they are.

    Args:
      num_groups: g.
      gamma: sharpness of the weight update, Eq. 4. Over T steps weights move by about exp(γ ΔR T / every). A schedule
        of the steps taken, like that of a learning rate, is read at each refresh.
      every: steps between two refreshes of the weights (the paper's N).
      initial: λ before the first refresh, [g]; uniform when None.
      offset: added to each group's loss in the refresh, [g], such as C / sqrt(n_g) (Sagawa et al. 2020, section 3.3).
      absent: loss of a group without samples in the window, one of `ABSENT`: its `last` known loss, see
        `known_losses`, or `zero`, as in the program of Sagawa et al., who draw groups evenly and so miss few.

    Returns:
      A transform whose `update(updates, state, params, *, group_loss_sum, group_count)` takes the sums of losses and
      the number of samples of each group in the step, [g] each, summed over all devices.

    To accumulate gradients of k steps, put it next to `optax.MultiSteps` and count the k small steps in `every`:
    `optax.chain(optax.MultiSteps(adam, k).gradient_transformation(), group_dro(g, every=k * n))`. Inside MultiSteps it
    would see only one small step in k.

    Examples:
      >>> import jax.numpy as jnp
      >>> dro = group_dro(2, gamma=1.0, every=1)
      >>> losses = {"group_loss_sum": jnp.array([0.0, 2.0]), "group_count": jnp.array([1.0, 1.0])}
      >>> _, state = dro.update({}, dro.init({}), **losses)
      >>> [round(float(w), 3) for w in jnp.exp(state.log_weights)]
      [0.119, 0.881]
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    uniform = jnp.full(num_groups, 1.0 / num_groups, jnp.float32)
    start = uniform if initial is None else jnp.asarray(initial, jnp.float32)
    if start.shape != (num_groups,):
        raise ValueError(f"initial has shape {start.shape}, expected ({num_groups},)")

    def init(params) -> GroupDroState:
        del params
        # Each field has its own array, because a donated state may not hold the same buffer twice.
        return GroupDroState(
            jnp.log(start), *(jnp.zeros(num_groups) for _ in range(3)), jnp.zeros(num_groups, bool), jnp.int32(0)
        )

    def update(updates, state, params=None, *, group_loss_sum, group_count, **extra_args):
        del params, extra_args
        loss_sum, loss_count = state.loss_sum + group_loss_sum, state.loss_count + group_count
        losses = known_losses(loss_sum, loss_count, state.last_loss, state.seen)
        due = (state.step + 1) % every == 0
        counted = losses if absent == "last" else jnp.where(loss_count > 0, losses, 0.0)
        sharpness = gamma(state.step) if callable(gamma) else gamma
        refreshed = refresh(state.log_weights, counted if offset is None else counted + offset, sharpness)
        return updates, GroupDroState(
            log_weights=jnp.where(due, refreshed, state.log_weights),
            loss_sum=jnp.where(due, 0.0, loss_sum),
            loss_count=jnp.where(due, 0.0, loss_count),
            last_loss=jnp.where(due, losses, state.last_loss),
            seen=jnp.where(due, state.seen | (loss_count > 0), state.seen),
            step=state.step + 1,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def robust_factors(weights: jax.Array, group_count: jax.Array, *, normalize_present: bool = False) -> jax.Array:
    """Returns factors f_g [g] that make Σ_g f_g (sum of losses of g) equal Σ_g λ_g (mean loss of g) of groups present.

    Absent groups have zero. `weights` is λ [g], `group_count` [g] counts a step's samples over all devices, and
    `normalize_present` divides by the sum of λ over present groups, so that a step's weights sum to one.
    """
    present = group_count > 0
    factors = jnp.where(present, weights / jnp.maximum(group_count, 1e-12), 0.0)
    total = jnp.sum(jnp.where(present, weights, 0.0))
    return factors / jnp.maximum(total, 1e-12) if normalize_present else factors
