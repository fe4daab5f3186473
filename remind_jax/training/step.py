"""The train step of a stage as a pure function, composed of network, objective, transforms and optimizer."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from remind_jax.models.model import Batch, Params, is_gate_threshold
from remind_jax.models.network import Network
from remind_jax.ops import draws
from remind_jax.training import joined, row_adamw
from remind_jax.training import optimizer as states
from remind_jax.training.flat import BY_PATH, Flat
from remind_jax.training.objective import NETWORKS, Factors, Objective, Pass
from remind_jax.training.stages import Stage
from remind_jax.training.transforms import Transforms


class StepOptions(NamedTuple):
    """How a step is computed, whatever it minimises.

    Attributes:
      networks: of an ensemble; 1 is a single network.
      batch_size: samples of a step, of all devices together; needed for several networks.
      accumulate: parts of a batch whose gradients are added one after the other.
      precision: type of the products.
      gradient: type of the gradient between devices, and between the two halves of a step.
      decay: of the averaged weights.
      flat: what lies in vectors in the state of the step.
      before: the stage whose step this is as well, see `joined`; None for a step of one stage.
    """

    networks: int = 1
    batch_size: int = 0
    accumulate: int = 1
    precision: str = "float32"
    gradient: str = "float32"
    decay: float = 0.0
    flat: Flat = BY_PATH
    before: Stage | None = None


def step_options(config: Any, steps: int, flat: Flat = BY_PATH, before: Stage | None = None) -> StepOptions:
    """Returns the options of a config for a run of a number of steps."""
    return StepOptions(
        networks=config.ensemble,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        precision=config.precision,
        gradient=config.optim.gradient,
        decay=states.effective_decay(config.optim.ema, steps),
        flat=flat,
        before=before,
    )


class Found(NamedTuple):
    """What the first half of a step finds next to the gradient; sums are over all devices.

    Attributes:
      loss_sum, count: sums of losses and samples of each combination, [g].
      open_sum: sum of the shares of tokens with an open gate, ().
      statistics: new running statistics of batch norms, by path; empty where they rest.
      extra: metrics of single objectives, () each.
      norm: of the gradient, (), once it is known.
      rows: of tables of combinations, to which their gradients belong, [r]; None where those are of whole tables.
    """

    loss_sum: jax.Array
    count: jax.Array
    open_sum: jax.Array
    statistics: Params
    extra: dict[str, jax.Array]
    norm: jax.Array | None = None
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
        """Runs both halves, (state, batch) -> (state, metrics)."""
        return self.update(state, *self.gradient(state, batch, axis_name=axis_name))


def make_step(
    network: Network,
    objective: Objective,
    transforms: Transforms,
    optimizer: optax.GradientTransformationExtraArgs,
    stage: Stage,
    options: StepOptions,
) -> Step:
    """Makes the step of a stage, (state, one device's share of a batch, axis_name=...) -> (state, metrics).

    The network is a single one; the optimizer has the objective's transform that keeps λ as its part `dro`. For an
    ensemble, arrays of the state have an axis of networks first, and metrics are means over them.
    """
    value = _make_value(network, objective, transforms, stage, options)
    gradient = _make_gradient(value, network, objective, transforms, stage, options)
    step = Step(gradient, _make_update(optimizer, objective, stage, options))
    return step if options.networks == 1 else _for_ensemble(step)


class _Samples(NamedTuple):
    """Samples of one device: as the network sees them, as they are, their keys, and what they predict unhidden."""

    seen: Batch
    batch: Batch
    keys: jax.Array | None
    unhidden: jax.Array | None


def _make_value(
    network: Network, objective: Objective, transforms: Transforms, stage: Stage, options: StepOptions
) -> Callable[..., tuple[jax.Array, Found]]:
    """Makes the loss of a step, a function whose gradient is this device's part of the step's.

    It maps (trained parameters, samples, factors [g] or None for those of these samples, state, frozen parameters,
    axis_name) to (value, sums over all devices).
    """

    def value(params, samples, share, state, frozen, axis_name):
        batch, total = samples.batch, _total(axis_name)
        # The gradient of the conversion brings that of the weights back to their own type.
        whole = {**frozen, **params}
        weights = {path: x if is_gate_threshold(path) else x.astype(options.precision) for path, x in whole.items()}
        weights = options.flat.unpack(weights)
        if transforms.hold is not None:
            weights = transforms.hold(weights)
        given = stage.network_options(axis_name)
        seen, gate, key = samples.seen, _gate(state, stage, options), _step_key(state)
        output = network.apply(weights, seen, gate=gate, keys=samples.keys, **given)
        drawn = (samples.unhidden, key, samples.keys)
        late = stage.name == "specialize"
        of = Pass(network, weights, batch, seen, gate, output, *drawn, total, stage.apart, late)
        local, count = objective.sums(batch, objective.losses(of))
        count, loss_sum = total(count), total(jax.lax.stop_gradient(local))
        if share is None:
            factors = _factors(state, objective, stage, options)
            share = jax.lax.stop_gradient(factors(state.opt_state["dro"], loss_sum, count))
        open_sum, found, extra = total(jnp.sum(output.open_rate * batch["weight"])), jnp.sum(local * share), {}
        for name, penalty in objective.penalties.items():
            extra[f"train/{name}"], term = penalty(of)
            found = found + term
        return found, Found(loss_sum, count, open_sum, output.statistics, extra)

    return value


def _make_gradient(
    value: Callable[..., tuple[jax.Array, Found]],
    network: Network,
    objective: Objective,
    transforms: Transforms,
    stage: Stage,
    options: StepOptions,
) -> Callable[..., tuple[Params, Found]]:
    """Makes the first half of a step, `Step.gradient`."""

    def gradient(state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        total = _total(axis_name)
        keys = _sample_keys(options, state, len(batch["label"]), axis_name) if transforms.draws else None
        seen = batch if transforms.hide is None else transforms.hide(batch, keys)
        # What the averaged weights say of samples that have lost nothing.
        weights = options.flat.unpack(state.weights())
        gate = _gate(state, stage, options)
        unhidden = network.apply(weights, batch, gate=gate).logits if objective.distills else None
        rows, params, frozen = None, state.params, state.frozen
        if transforms.by_rows:
            rows, local = row_adamw.of_batch(batch["group"], len(objective.counts), axis_name)
            params, frozen = row_adamw.take(params, rows), row_adamw.take(frozen, rows)
            seen = {**batch, "group": local}
        samples = _Samples(seen, batch, keys, unhidden)

        def find(samples: _Samples, share: jax.Array | None) -> tuple[Params, Found]:
            return jax.grad(value, has_aux=True)(params, samples, share, state, frozen, axis_name)

        if options.accumulate == 1:
            slopes, sums = find(samples, None)
        else:
            # What a sample counts does not depend on losses here, so that the parts can come one after the other.
            zeros, count = objective.sums(batch, jnp.zeros_like(batch["weight"]))
            share = _factors(state, objective, stage, options)(state.opt_state["dro"], zeros, total(count))
            slopes, sums = _summed(lambda part: find(part, share), _parts(samples, options.accumulate))
        if options.before is not None:
            slopes = joined.only_trained(state, slopes)
        slopes = total(optax.tree.cast(slopes, options.gradient))
        norm = optax.tree.norm(optax.tree.cast(slopes, jnp.float32))
        return slopes, sums._replace(norm=norm, rows=rows)

    return gradient


def _gate(state: states.TrainState, stage: Stage, options: StepOptions) -> str | jax.Array:
    """Returns whether group routers act, a bool () where the step is of two stages."""
    return stage.train_gate if options.before is None else state.opt_state[joined.PART].late


def _factors(state: states.TrainState, objective: Objective, stage: Stage, options: StepOptions) -> Factors:
    return joined.chosen(state, objective.factors(options.before or stage), objective.factors(stage))


def _total(axis_name: str | None) -> Callable[[Any], Any]:
    """Returns a function that sums arrays over all devices."""
    return (lambda x: x) if axis_name is None else (lambda x: jax.lax.psum(x, axis_name))


def _parts(whole: _Samples, count: int) -> _Samples:
    """Splits samples into `count` parts, an axis before theirs; sample i belongs to part i mod `count`.

    So each device, which has a stretch of the batch, has as many samples of one part as of another.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), whole)


def _summed(function: Callable[[_Samples], Any], parts: _Samples) -> Any:
    """Sums a function over parts, one after the other, so that memory is that of one."""
    first = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None), zeros, parts)[0]


def _sample_keys(options: StepOptions, state: states.TrainState, batch_size: int, axis_name: str | None) -> jax.Array:
    """Draws a key for each sample of the whole batch, whichever device it lies on, [b]; others for each network."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch_size
    if options.networks > 1:
        first = first + jax.lax.axis_index(NETWORKS) * options.batch_size
    return draws.fold_in(_step_key(state), first + jnp.arange(batch_size))


def _step_key(state: states.TrainState) -> jax.Array:
    return draws.fold_in(jax.random.key(state.seed), state.step)


def _make_update(
    optimizer: optax.GradientTransformationExtraArgs, objective: Objective, stage: Stage, options: StepOptions
) -> Callable[..., tuple[states.TrainState, dict[str, jax.Array]]]:
    """Makes the second half of a step, which a step that is not finite only counts; λ moves where it acts."""
    num_groups = len(objective.counts)

    def moved(dro_state: Any, sums: dict[str, jax.Array]) -> Any:
        return objective.dro.update({}, dro_state, **sums)[1]

    def resting(dro_state: Any, sums: dict[str, jax.Array]) -> Any:
        return dro_state

    first, last = (moved if objective.is_robust(one) else resting for one in (options.before or stage, stage))

    def update(state: states.TrainState, gradient: Params, found: Found):
        gradient = optax.tree.cast(gradient, jnp.float32)  # a small part of one moment would be lost in another type
        sums = {"group_loss_sum": found.loss_sum, "group_count": found.count}
        before = state.opt_state["dro"]
        dro_state = joined.chosen(state, first, last)(before, sums)
        checked = (found.norm, found.loss_sum, jnp.exp(dro_state.log_weights))
        accepted = functools.reduce(jnp.logical_and, (jnp.isfinite(x).all() for x in checked))
        # Of tables that are trained by rows, a rejected step has none: a choice between whole tables would read them.
        where = None if found.rows is None else jnp.where(accepted, found.rows, num_groups)
        updates, opt_state = optimizer.update(
            gradient, state.opt_state, state.params, **sums, gradient_norm=found.norm, rows=where, accepted=accepted
        )
        if options.before is not None:
            updates = joined.only_trained(state, updates)
            opt_state = type(opt_state)(opt_state, **{joined.PART: state.opt_state[joined.PART]})
        opt_state = states.with_dro(opt_state, optax.tree.where(accepted, dro_state, before))
        params = row_adamw.add(state.params, updates, where)
        share = jnp.where(accepted, 1.0 - options.decay, 0.0)
        ema = optax.incremental_update({path: params[path] for path in state.ema}, state.ema, share)
        measured = {path: jnp.where(accepted, x, state.frozen[path]) for path, x in found.statistics.items()}
        after = state._replace(params=params, frozen={**state.frozen, **measured}, opt_state=opt_state, ema=ema)
        metrics = _metrics(found) | {
            "lambda": jnp.exp(after.opt_state["dro"].log_weights),
            "train/rejected": 1.0 - accepted.astype(jnp.float32),
        }
        return after._replace(step=state.step + 1), metrics

    return update


def _metrics(found: Found) -> dict[str, jax.Array]:
    """Returns the figures of a step that its first half has found; those by group are of combinations, [g]."""
    samples = jnp.sum(found.count)
    return {
        "train/loss": jnp.sum(found.loss_sum) / samples,
        "train/gradient_norm": found.norm,
        "gate/open_rate": found.open_sum / samples,
        "group_loss_sum": found.loss_sum,
        "group_count": found.count,
        **found.extra,
    }


def _for_ensemble(step: Step) -> Step:
    """Makes the same step for several networks at once, each with a state of its own."""

    def gradient(state: states.TrainState, batch: Mapping[str, jax.Array], *, axis_name: str | None):
        one = functools.partial(step.gradient, axis_name=axis_name)
        return jax.vmap(one, in_axes=(0, None), axis_name=NETWORKS)(state, batch)

    def update(state: states.TrainState, gradient: Params, found: Found):
        state, metrics = jax.vmap(step.update)(state, gradient, found)
        return state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)

    return Step(gradient, update)
