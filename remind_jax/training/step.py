"""The train step of a stage as a pure function."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.models.model import Batch, Network, Params, is_group_router
from remind_jax.ops import hiding, losses
from remind_jax.training import optimizer as states
from remind_jax.training import row_adamw
from remind_jax.training.objective import (
    NETWORKS,
    cells_of,
    is_plain,
    make_factors,
    make_mixup,
    routing_penalty,
    sample_losses,
)
from remind_jax.training.stages import Stage


class Found(NamedTuple):
    """What the first half of a step finds besides the gradient; sums are over all devices.

    Attributes:
      loss_sum, count: sums of losses and samples of each group of the objective, [g] or [g * c].
      open_sum: sum of the shares of tokens with an open gate, ().
      norm: of the gradient, ().
      statistics: new running statistics of batch norms, by path; empty where they rest.
      extra: metrics of single objectives, () each.
      rows: of tables of combinations, to which their gradients belong, [r]; None where those are of whole tables.
    """

    loss_sum: jax.Array
    count: jax.Array
    open_sum: jax.Array
    norm: jax.Array
    statistics: Params
    extra: dict[str, jax.Array]
    rows: jax.Array | None = None


class Step(NamedTuple):
    """A train step in two halves, which run as one program or as two (`devices.make_program`).

    Attributes:
      gradient: (state, batch, axis_name=...) -> (gradient of the trained parameters over all devices, Found).
      update: (state, gradient, Found) -> (state, metrics). Where the loss, the gradient or the new λ is not finite, the
        state stays as it is but for its count of steps, and the metric `train/rejected` is 1.
    """

    gradient: Callable[..., tuple[Params, Found]]
    update: Callable[..., tuple[states.TrainState, dict[str, jax.Array]]]

    def __call__(self, state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        """Both halves, (state, batch) -> (state, metrics)."""
        return self.update(state, *self.gradient(state, batch, axis_name=axis_name))


def make_step(
    config: Any,
    stage: Stage,
    network: Network,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    optimizer: optax.GradientTransformationExtraArgs,
    dro: optax.GradientTransformationExtraArgs,
    train_counts: np.ndarray,
    decay: float,
    offset: np.ndarray | None = None,
    masks: np.ndarray | None = None,
) -> Step:
    """The step of a stage as a function of one device's share of a batch.

    The loss of a step is a sum over groups of (sum of losses) times a factor that holds the objective: sums and counts
    are added over devices before anything is divided, so that any number of devices gives the same step.

    Args:
      config: of the run.
      stage: to take steps of.
      network: as pure functions.
      loss: of single samples, from `make_loss`.
      optimizer: with the transform that keeps λ as its part `dro`.
      dro: that transform.
      train_counts: training samples of each group [g]; or by group and class [g, c], whose cells then are the groups of
        the objective.
      decay: of the averaged weights.
      offset: added to the logits of a sample before its loss is taken, by group and class [g + 1, c].
      masks: the combinations, bool [g, m]; needed for modality dropout.

    Returns:
      (state, batch, axis_name=...) -> (state, metrics); for an ensemble, arrays of the state have an axis of networks
      first, and metrics are means over them.
    """
    robust = config.objective.kind == "group_dro" and stage.robust
    gradient = _make_gradient(
        config, stage, network, loss, make_factors(config, robust, dro, train_counts), train_counts, offset, masks
    )
    step = Step(gradient, _make_update(optimizer, dro, robust, len(train_counts), decay))
    return step if config.ensemble == 1 else _for_ensemble(step)


def _make_gradient(
    config: Any,
    stage: Stage,
    network: Network,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    factors: Callable[[Any, jax.Array, jax.Array], jax.Array],
    train_counts: np.ndarray,
    offset: np.ndarray | None,
    masks: np.ndarray | None,
) -> Callable[..., tuple[Params, Found]]:
    """The first half of a step; `factors` from `make_factors`, the rest as for `make_step`."""
    mixup = make_mixup(config, network, len(train_counts)) if config.objective.mixup_weight else None
    noisy = config.fusion.kind != "soft_moe" and config.fusion.noise
    hides = config.train.hide_samples > 0
    draws = noisy or hides or config.model.encoder_dropout > 0 or config.fusion.dropout > 0
    distill = config.objective.distill_weight
    by_rows = row_adamw.only_of_batch(config, len(train_counts))

    def gradient(state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        total = (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))
        keys = _sample_keys(config, state, len(batch["label"]), axis_name) if draws else None
        seen = _hidden(batch, keys, config.train, masks) if hides else batch
        # What the averaged weights say of samples that have lost nothing.
        unhidden = network.apply(state.weights(), batch, gate=stage.train_gate).logits if distill else None

        where, params, frozen = None, state.params, state.frozen
        if by_rows:
            where, local = row_adamw.of_batch(batch["group"], len(train_counts), axis_name)
            params, frozen = row_adamw.take(params, where), row_adamw.take(frozen, where)
            seen = {**batch, "group": local}

        def objective(params: Params, part: _Part, share: jax.Array | None):
            seen, batch, keys, unhidden = part
            if config.ensemble_plain:
                params = _without_group_parts(params, is_plain(config))
            # The gradient of the conversion brings that of the weights back to their own type.
            weights = {path: x.astype(config.precision) for path, x in {**frozen, **params}.items()}
            options = {"statistics": True, "axis_name": axis_name} if stage.statistics else {}
            options |= {"resting": True} if stage.rests else {}
            output = network.apply(weights, seen, gate=stage.train_gate, keys=keys, **options)
            each = sample_losses(loss, output, batch, offset)
            if distill:
                each = each + distill * losses.divergence(output.logits, unhidden)
            local, count = losses.group_sums(each, cells_of(batch, train_counts), batch["weight"], train_counts.size)
            count, loss_sum = total(count), total(jax.lax.stop_gradient(local))
            if share is None:
                share = jax.lax.stop_gradient(factors(state.opt_state["dro"], loss_sum, count))
            open_sum, value, extra = total(jnp.sum(output.open_rate * batch["weight"])), jnp.sum(local * share), {}
            if mixup is not None:
                extra["train/mixup"], penalty = mixup(weights, batch, output, _step_key(state), keys, total)
                value = value + config.objective.mixup_weight * penalty
            if output.routing:
                extra["train/routing"], penalty = routing_penalty(config.objective, output.routing, total)
                value = value + penalty
            return value, (loss_sum, count, open_sum, output.statistics, extra)

        find, whole = jax.grad(objective, has_aux=True), _Part(seen, batch, keys, unhidden)
        if config.train.accumulate == 1:
            slopes, (loss_sum, count, open_sum, statistics, extra) = find(params, whole, None)
        else:
            # What a sample counts does not depend on losses here, so that the parts can come one after the other.
            cells = cells_of(batch, train_counts)
            zeros, count = losses.group_sums(jnp.zeros_like(batch["weight"]), cells, batch["weight"], train_counts.size)
            share = factors(state.opt_state["dro"], zeros, total(count))
            found = _summed(lambda part: find(params, part, share), _parts(whole, config.train.accumulate))
            slopes, (loss_sum, count, open_sum, statistics, extra) = found
        slopes = total(optax.tree.cast(slopes, config.optim.gradient))
        norm = optax.tree.norm(optax.tree.cast(slopes, jnp.float32))
        return slopes, Found(loss_sum, count, open_sum, norm, statistics, extra, where)

    return gradient


class _Part(NamedTuple):
    """Samples of one device: as the network sees them, as they are, their keys, and what they predict unhidden."""

    seen: Batch
    batch: Batch
    keys: jax.Array | None
    unhidden: jax.Array | None


def _parts(whole: _Part, count: int) -> _Part:
    """The samples in `count` parts, an axis before theirs; sample i belongs to part i mod `count`.

    So each device, which has a stretch of the batch, has as many samples of one part as of another.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), whole)


def _summed(function: Callable[[_Part], Any], parts: _Part) -> Any:
    """The sum of what a function gives of each part, one after the other, so that memory is that of one."""
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts)[0]


def _make_update(
    optimizer: optax.GradientTransformationExtraArgs,
    dro: optax.GradientTransformationExtraArgs,
    robust: bool,
    num_groups: int,
    decay: float,
) -> Callable[..., tuple[states.TrainState, dict[str, jax.Array]]]:
    """The second half of a step, which a step that is not finite does not take; it only counts.

    Args:
      robust: whether λ moves.
      optimizer, dro, num_groups, decay: as for `make_step`.
    """

    def update(state: states.TrainState, gradient: Params, found: Found):
        gradient = optax.tree.cast(gradient, jnp.float32)  # a small part of one moment would be lost in another type
        sums = {"group_loss_sum": found.loss_sum, "group_count": found.count}
        dro_state = dro.update({}, state.opt_state["dro"], **sums)[1] if robust else state.opt_state["dro"]
        checked = (found.norm, found.loss_sum, jnp.exp(dro_state.log_weights))
        accepted = functools.reduce(jnp.logical_and, (jnp.isfinite(x).all() for x in checked))
        # Of tables that are trained by rows, a rejected step has none: a choice between whole tables would read them.
        where = None if found.rows is None else jnp.where(accepted, found.rows, num_groups)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, **sums, gradient_norm=found.norm, rows=where, accepted=accepted
        )
        opt_state = states.with_dro(opt_state, optax.tree.where(accepted, dro_state, state.opt_state["dro"]))
        params = row_adamw.add(state.params, updates, where)
        share = jnp.where(accepted, 1.0 - decay, 0.0)
        ema = optax.incremental_update({path: params[path] for path in state.ema}, state.ema, share)
        measured = {path: jnp.where(accepted, x, state.frozen[path]) for path, x in found.statistics.items()}
        after = state._replace(params=params, frozen={**state.frozen, **measured}, opt_state=opt_state, ema=ema)
        samples = jnp.sum(found.count)
        metrics = {
            "train/loss": jnp.sum(found.loss_sum) / samples,
            "train/gradient_norm": found.norm,
            "gate/open_rate": found.open_sum / samples,
            "lambda": jnp.exp(after.opt_state["dro"].log_weights),
            "group_loss_sum": found.loss_sum.reshape(num_groups, -1).sum(axis=1),
            "group_count": found.count.reshape(num_groups, -1).sum(axis=1),
            "train/rejected": 1.0 - accepted.astype(jnp.float32),
            **found.extra,
        }
        return after._replace(step=state.step + 1), metrics

    return update


def _for_ensemble(step: Step) -> Step:
    """The same step for several networks at once, each with a state of its own."""

    def gradient(state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        one = functools.partial(step.gradient, axis_name=axis_name)
        return jax.vmap(one, in_axes=(0, None), axis_name=NETWORKS)(state, batch)

    def update(state: states.TrainState, gradient: Params, found: Found):
        state, metrics = jax.vmap(step.update)(state, gradient, found)
        return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

    return Step(gradient, update)


def _without_group_parts(params: Params, is_plain: jax.Array) -> Params:
    """The parameters, those of combinations held where they are in a plain network."""
    of_groups = {path for path in params if row_adamw.is_table(path) or is_group_router(path)}
    held = {path: jnp.where(is_plain, jax.lax.stop_gradient(params[path]), params[path]) for path in of_groups}
    return {path: held.get(path, x) for path, x in params.items()}


def _hidden(batch: Batch, keys: jax.Array, train: Any, masks: np.ndarray) -> Batch:
    """The batch after modality dropout, each sample with what it has left and the combination that this is."""
    own = jax.vmap(jax.random.fold_in, (0, None))(keys, 3_000)
    present = hiding.hide_modalities(
        batch["present"], own, samples=train.hide_samples, modalities=train.hide_modalities
    )
    return {**batch, "present": present, "group": hiding.group_of(present, jnp.asarray(masks))}


def _sample_keys(config: Any, state: states.TrainState, batch_size: int, axis_name: str | None) -> jax.Array:
    """A random key for each sample of the whole batch, whichever device it lies on, [b]; others for each network."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    if config.ensemble > 1:
        first = first + jax.lax.axis_index(NETWORKS) * config.train.batch_size
    return jax.vmap(jax.random.fold_in, (None, 0))(_step_key(state), first + jnp.arange(batch_size))


def _step_key(state: states.TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.key(state.seed), state.step)
