"""The plan of a run in stages, and the train step of a stage as a pure function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax import state as states
from remind_jax.models.model import Network, Params
from remind_jax.objectives import group_dro, reweigh
from remind_jax.ops import losses


class Stage(NamedTuple):
    """A stretch of training.

    Attributes:
      name: `joint` or `specialize`.
      start, stop: first step, and the step before which it ends.
      is_frozen: whether the parameter of a path is left as it is.
      train_gate, eval_gate: whether group routers act.
      robust: whether group weights act and move.
    """

    name: str
    start: int
    stop: int
    is_frozen: Callable[[str], bool]
    train_gate: str
    eval_gate: str
    robust: bool


def plan_stages(config: Any, num_train: int, kinds: Mapping[str, str]) -> list[Stage]:
    """The stages of a run and their lengths in steps.

    Methods without group routers train in one joint stage, unless `train.baselines_two_stage` holds.

    Args:
      config: of the run.
      num_train: number of training samples.
      kinds: kind of each modality by name.
    """
    train, fusion = config.train, config.fusion
    per_epoch = num_train / train.batch_size
    stop = max(1, round(train.epochs * per_epoch))
    routed = fusion.group_routers
    joint = min(round(train.joint_epochs * per_epoch), stop) if routed or train.baselines_two_stage else stop

    def is_encoder(path: str) -> bool:
        section, _, rest = path.partition("/")
        if section != "encoders" or train.freeze == "nothing":
            return False
        # The maps into the fusion width stay trainable, of which a patch encoder is one as a whole (peers' point 45).
        projection = kinds[rest.split("/")[0]] in ("tabular", "embedding") or "/adapter/" in path
        return train.freeze == "encoders+projections" or not projection

    late = config.dro.stages == "specialize" and joint < stop
    stages = [
        Stage("joint", 0, joint, lambda path: path.endswith("/group_router"), "never", "never", not late),
        Stage(
            "specialize",
            joint,
            stop,
            is_encoder,
            fusion.train_gate if routed else "never",
            fusion.eval_gate if routed else "never",
            True,
        ),
    ]
    return [stage for stage in stages if stage.stop > stage.start]


def make_loss(config: Any, class_fractions: np.ndarray) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Loss of single samples, (logits [b, c], labels [b]) -> [b]."""
    objective = config.objective
    if objective.loss == "cross_entropy":
        return losses.cross_entropy
    alpha = jnp.asarray(1.0 - class_fractions, jnp.float32) if objective.focal_alpha == "inverse_class" else None
    return functools.partial(losses.focal_loss, gamma=objective.focal_gamma, alpha=alpha, detach=objective.focal_detach)


def make_dro(config: Any, train_counts: np.ndarray) -> optax.GradientTransformationExtraArgs:
    """The transform that keeps λ."""
    counts = jnp.asarray(train_counts, jnp.float32)
    return group_dro.group_dro(
        len(train_counts),
        gamma=config.dro.gamma,
        every=config.dro.every,
        initial=group_dro.initial_weights(config.dro.initial, counts),
        offset=config.dro.adjustment / jnp.sqrt(counts) if config.dro.adjustment else None,
    )


def make_step(
    config: Any,
    stage: Stage,
    network: Network,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformationExtraArgs,
    dro: optax.GradientTransformationExtraArgs,
    train_counts: np.ndarray,
    decay: float,
) -> Callable[..., tuple[states.TrainState, dict[str, jax.Array]]]:
    """The step of a stage as a function of one device's share of a batch.

    The loss of a step is a sum over groups of (sum of losses) times a factor that holds the objective: sums and counts
    are added over devices before anything is divided, so that any number of devices gives the same step.

    Returns:
      (state, batch, axis_name=...) -> (state, metrics).
    """
    num_groups = len(train_counts)
    counts = jnp.asarray(train_counts, jnp.float32)
    robust = config.objective.kind == "group_dro" and stage.robust
    cap = config.objective.reweigh_cap or None
    static = reweigh.inverse_frequency_weights(counts, config.objective.reweigh_power, cap)
    static = static if config.objective.kind == "reweigh" else jnp.ones(num_groups)
    drops = config.model.encoder_dropout > 0 or config.fusion.dropout > 0

    def factors(dro_state, loss_sum, count):
        if not robust:
            return reweigh.weighted_mean_factors(static, count)
        if config.dro.weights == "updated":
            _, dro_state = dro.update({}, dro_state, group_loss_sum=loss_sum, group_count=count)
        weights = jnp.exp(dro_state.log_weights)
        return group_dro.robust_factors(weights, count, normalize_present=config.dro.normalize_present)

    def step(state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        total = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
        keys = _sample_keys(config.seed, state.step, len(batch["label"]), axis_name) if drops else None

        def objective(params: Params):
            output = network.apply({**state.frozen, **params}, batch, gate=stage.train_gate, keys=keys)
            each = loss(output.logits, batch["label"])
            local, count = losses.group_sums(each, batch["group"], batch["weight"], num_groups)
            count, loss_sum = total(count), total(jax.lax.stop_gradient(local))
            share = jax.lax.stop_gradient(factors(state.opt_state["dro"], loss_sum, count))
            open_sum = total(jnp.sum(output.open_rate * batch["weight"]))
            return jnp.sum(local * share), (loss_sum, count, open_sum)

        gradient, (loss_sum, count, open_sum) = jax.grad(objective, has_aux=True)(state.params)
        gradient = total(gradient)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, group_loss_sum=loss_sum, group_count=count
        )
        if not robust:
            opt_state = states.with_dro(opt_state, state.opt_state["dro"])
        params = optax.apply_updates(state.params, updates)
        ema = optax.incremental_update(params, state.ema, 1.0 - decay) if state.ema else state.ema
        samples = jnp.sum(count)
        metrics = {
            "train/loss": jnp.sum(loss_sum) / samples,
            "train/gradient_norm": optax.tree.norm(gradient),
            "gate/open_rate": open_sum / samples,
            "lambda": jnp.exp(opt_state["dro"].log_weights),
        }
        return states.TrainState(state.step + 1, params, state.frozen, opt_state, ema), metrics

    return step


def _sample_keys(seed: int, step: jax.Array, batch_size: int, axis_name: str | None) -> jax.Array:
    """A random key for each sample of the whole batch, whichever device it lies on, [b]."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(batch_size))
