"""What training carries from step to step, and the optimizer that moves it."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.models import spare_rows
from remind_jax.models.model import Params
from remind_jax.training import row_adamw
from remind_jax.training.flat import BY_PATH, Flat, each

DECAYED = ("weights", "all")
"""What weight decay can shrink: all but biases and norm scales, or everything."""
# Their values are lengths and offsets, not directions: shrinking them does not regularise.
_LENGTH_OR_OFFSET = re.compile(r"(bias|scale)$")


class TrainState(NamedTuple):
    """Everything that a step reads and writes.

    Attributes:
      step: steps done over the whole run, shape=(), int32; of an ensemble [k].
      params: parameters that are trained in this stage, by path.
      frozen: the others; they have no optimizer state.
      opt_state: of the optimizer, group weights λ included.
      ema: averages of `params`, without tables that are trained by rows; empty when averaging is off.
      seed: of dropout and other draws, shape=(), uint32; of an ensemble [k]. Here and not in the step, so that one
        compiled program serves all seeds.
    """

    step: jax.Array
    params: Params
    frozen: Params
    opt_state: Any
    ema: Params
    seed: jax.Array

    @property
    def steps_done(self) -> int:
        """Steps done over the whole run, as a number on the host."""
        return int(np.max(self.step))

    def weights(self) -> Params:
        """Returns all parameters for evaluation: averaged ones where they exist."""
        return {**self.frozen, **self.params, **self.ema}


def partition(params: Params, is_frozen: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits parameters by path into (trained, frozen)."""
    trained = {path: x for path, x in params.items() if not is_frozen(path)}
    return trained, {path: x for path, x in params.items() if path not in trained}


def learning_rate(
    kind: str, lr: float, *, steps: int, warmup: float, decay_steps: int, decay_rate: float
) -> optax.Schedule:
    """Returns the learning rate by step, at most `lr`.

    `cosine` falls to zero at `steps`, those of the whole run, after a linear warm-up over a share `warmup` of them;
    `step` (StepLR of the paper) multiplies by `decay_rate` every `decay_steps`; `constant` stays.
    """
    if kind == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else lr, lr, int(warmup * steps), max(steps, 2))
    if kind == "step":
        return optax.exponential_decay(lr, decay_steps, decay_rate, staircase=True)
    return optax.constant_schedule(lr)


def clip_by_norm(largest: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm; with 0 leaves them as they are.

    Its `update` takes that norm as `gradient_norm` from whoever knows it. Taken here, XLA on CPU would write down all
    squares of the gradient, since the second moments of Adam read them too.
    """

    def update(updates, state, params=None, *, gradient_norm=None, **extra_args):
        del params, extra_args
        if not largest:
            return updates, state
        norm = optax.tree.norm(updates) if gradient_norm is None else gradient_norm
        scale = jnp.minimum(1.0, largest / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
        return jax.tree.map(lambda x: x * scale.astype(x.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def rejecting(make: Callable[[Any, Any], optax.GradientTransformation]) -> optax.GradientTransformationExtraArgs:
    """Makes an Adam that a rejected step leaves as it is, to the bit; `make` gives it from the decays of the moments.

    A choice between moments before and after would have to write both down, since the update reads them too: a third of
    a step on CPU. Decays of one and a gradient of zero keep the moments where they are. `update` takes `accepted`, bool
    ().
    """

    def update(updates, state, params, *, accepted=True, **extra_args):
        del extra_args
        kept = optax.tree.where(accepted, updates, optax.tree.zeros_like(updates))
        decays = (jnp.where(accepted, decay, 1.0) for decay in row_adamw.DECAYS)
        moved, after = make(*decays).update(kept, state, params)
        # What Adam divides by is zero where decays are one.
        return jax.tree.map(lambda x: jnp.where(accepted, x, jnp.zeros_like(x)), moved), _counts(accepted, after, state)

    return optax.GradientTransformationExtraArgs(make(*row_adamw.DECAYS).init, update)


def _counts(accepted: jax.Array, after: Any, before: Any) -> Any:
    """Returns the optimizer's state after a step, with the counts of steps from before where it is rejected."""
    return jax.tree.map(lambda x, y: jnp.where(accepted, x, y) if jnp.ndim(x) == 0 else x, after, before)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    clip: float,
    dro: optax.GradientTransformationExtraArgs,
    by_rows: bool = False,
    first_moment: str = "float32",
    decay: str = "weights",
) -> optax.GradientTransformationExtraArgs:
    """Makes AdamW with optional clipping of the global norm, next to the transform that keeps λ, `dro`.

    `schedule` goes by the optimizer's own count of steps; `weight_decay` is decoupled, times the learning rate, and
    shrinks what `decay`, one of `DECAYED`, says; `clip` is the largest global gradient norm, 0 for no clipping.
    `by_rows` trains tables of combinations by the rows of a batch, see `row_adamw`. `first_moment` is the type of the
    first moments, those of tables by rows left out; the second ones stay float32, since a step moves them by less than
    bfloat16 can tell.
    """

    def decayed(params: Params) -> dict[str, bool]:
        return {path: decay == "all" or not _LENGTH_OR_OFFSET.search(path) for path in params}

    def make(b1: Any, b2: Any) -> optax.GradientTransformation:
        return optax.adamw(schedule, b1, b2, weight_decay=weight_decay, mask=decayed, mu_dtype=first_moment)

    adamw = rejecting(make)
    parts = [("adamw", adamw)]
    if by_rows:
        parts = [("adamw", row_adamw.split_adamw(adamw)), ("rows", row_adamw.row_adamw(schedule, weight_decay))]
    return optax.named_chain(("clip", clip_by_norm(clip)), *parts, ("dro", dro))


def with_dro(opt_state: Any, dro_state: Any) -> Any:
    """Replaces the group weights of an optimizer state, whose type stays: another one would be compiled for anew."""
    return type(opt_state)(opt_state, dro=dro_state)


def effective_decay(decay: float, steps: int) -> float:
    """Shortens the memory 1 / (1 - decay) of averaged weights to a tenth of the run, to forget the initial weights."""
    return min(decay, 1.0 - min(1.0, 10.0 / max(steps, 1)))


def with_spare_rows(state: TrainState, spare: int) -> TrainState:
    """Adds spare rows to tables, and combinations with a λ of zero, to a state on the host; see `spare_rows`."""
    dro = state.opt_state["dro"]
    more = [(0, 0)] * (np.ndim(dro.log_weights) - 1) + [(0, spare)]
    longer = {name: np.pad(np.asarray(x), more) for name, x in dro._asdict().items() if name != "step"}
    longer["log_weights"] = np.pad(np.asarray(dro.log_weights), more, constant_values=-np.inf)
    state = each(functools.partial(spare_rows.add, spare=spare, axis=np.ndim(state.step)), state)
    return state._replace(opt_state=with_dro(state.opt_state, dro._replace(**longer)))


def without_spare_rows(state: TrainState, spare: int) -> TrainState:
    """Removes what `with_spare_rows` has added."""
    dro = state.opt_state["dro"]
    rest = np.shape(dro.log_weights)[-1] - spare
    shorter = {name: np.asarray(x)[..., :rest] for name, x in dro._asdict().items() if name != "step"}
    state = each(functools.partial(spare_rows.remove, spare=spare, axis=np.ndim(state.step)), state)
    return state._replace(opt_state=with_dro(state.opt_state, dro._replace(**shorter)))


def start(
    params: Params,
    is_frozen: Callable[[str], bool],
    optimizer: optax.GradientTransformation,
    step: int,
    ema: bool,
    ensemble: int = 1,
    by_rows: bool = False,
    seed: int = 0,
    flat: Flat = BY_PATH,
) -> TrainState:
    """Makes the state at the beginning of a stage, with a fresh optimizer; an ensemble's arrays have its axis first.

    Tables that are trained by rows are not averaged: averages move at every step. What lies in vectors in a step, by
    `flat`, has its moments made so, which compiles no program for each shape.
    """
    if ensemble > 1:
        options = {"by_rows": by_rows, "seed": seed, "flat": flat}
        return jax.vmap(lambda one: start(one, is_frozen, optimizer, step, ema, **options))(params)
    trained, frozen = partition(params, is_frozen)
    # Copies, because the buffers of a donated state must not alias each other.
    averaged = [path for path in trained if ema and not (by_rows and spare_rows.is_table(path))]
    average = {path: trained[path].copy() for path in averaged}
    moments = flat.unpack(optimizer.init(flat.pack(trained)))
    numbers = {"step": jnp.asarray(step, jnp.int32), "seed": jnp.asarray(seed, jnp.uint32)}
    return TrainState(params=trained, frozen=frozen, opt_state=moments, ema=average, **numbers)
