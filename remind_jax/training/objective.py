"""What a run minimises, as one value: losses of single samples, what each group of them counts, and penalties.

The loss of a step is a sum over groups of (sum of losses) times a factor, and penalties. Sums and counts are added over
devices before anything is divided, so that any number of devices gives the same step.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.models.fusion import FUSIONS, smil
from remind_jax.models.model import Batch, Output, Params
from remind_jax.models.network import Network
from remind_jax.objectives import fair_mixup, group_dro, logit_adjust, reweigh
from remind_jax.ops import draws, hiding, losses
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task
from remind_jax.training.stages import Stage

NETWORKS = "networks"  # axis of an ensemble
_FEWER, _META = 5_000, 6_000  # separate what samples lose, and their noise without it, from other random numbers

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Loss of single samples: (logits [b, o], labels [b, ...]) -> [b]."""
Factors = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""What the sum of each group counts in the loss: (state of λ, sums of losses [g], samples [g]) -> [g]."""


class Pass(NamedTuple):
    """The forward pass of one device, as losses and penalties see it.

    Attributes:
      network: a single one.
      weights: its parameters by path.
      batch: the samples, with all their modalities.
      seen: the samples as the network sees them, without what modality dropout has taken.
      gate: whether group routers act, see `Model.__call__`.
      output: what the network gives for them.
      taught: logits that the samples should stay near, [b, c]; None without distillation.
      key: random key of the step.
      keys: random keys of the samples, [b]; None where nothing is drawn.
      total: sums arrays over all devices.
      apart: whether only the losses of `Output.experts` count.
      late: whether the stage is the second.
    """

    network: Network
    weights: Params
    batch: Batch
    seen: Batch
    gate: str | jax.Array
    output: Output
    taught: jax.Array | None
    key: jax.Array
    keys: jax.Array | None
    total: Callable[[Any], Any]
    apart: bool = False
    late: bool = False


Penalty = Callable[[Pass], tuple[jax.Array, jax.Array]]
"""Pass -> the penalty over all devices, to record, and a term of the loss with this device's part of its gradient."""


class Objective(NamedTuple):
    """What a run minimises; `make_objective` makes it from a config.

    Attributes:
      counts: training samples of each combination, [g].
      losses: pass -> losses of single samples, [b].
      static: factors where λ rests.
      dro: the transform that keeps λ.
      robust: factors where λ acts; None where it never does.
      penalties: by name; a step records each as `train/NAME`.
      distills: whether samples should stay near what the averaged weights predict for them unhidden.
    """

    counts: np.ndarray
    losses: Callable[[Pass], jax.Array]
    static: Factors
    dro: optax.GradientTransformationExtraArgs
    robust: Factors | None = None
    penalties: Mapping[str, Penalty] = {}
    distills: bool = False

    def is_robust(self, stage: Stage) -> bool:
        """Tells whether λ acts and moves in a stage."""
        return self.robust is not None and stage.robust

    def factors(self, stage: Stage) -> Factors:
        """Returns the factors of a stage."""
        return self.robust if self.is_robust(stage) else self.static

    def sums(self, batch: Batch, each: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums losses [b] and counts samples by combination on one device, [g] each."""
        return losses.group_sums(each, batch["group"], batch["weight"], len(self.counts))


def make_objective(
    config: Any,
    label_counts: np.ndarray,
    prior_counts: np.ndarray | None = None,
    task: Task | None = None,
    masks: np.ndarray | None = None,
) -> Objective:
    """Makes the objective of a run with `label_counts`, the training samples by combination and class, [g, c].

    The class priors are taken from `prior_counts` [g', c], g' <= g, by default the same; combinations that it lacks
    have the prior of all. The task is by default that of classes; `masks` bool [g, m], the combinations, are needed
    where a penalty makes others of them.
    """
    objective, counts = config.objective, label_counts.sum(axis=1)
    prior_counts = label_counts if prior_counts is None else prior_counts
    task = task or Classes.of_shares((), config, prior_counts.sum(axis=0) / prior_counts.sum())
    offset = loss_offset(objective, prior_counts, len(label_counts))
    dro = make_dro(config, counts)
    static, robust = OBJECTIVES[objective.kind](config, jnp.asarray(counts, jnp.float32), dro)
    if config.ensemble_plain:
        static = _but_plain(static, config.ensemble_plain)
        robust = robust and _but_plain(robust, config.ensemble_plain)
    penalties: dict[str, Penalty] = {}
    if objective.mixup_weight:
        penalties["mixup"] = mixup_penalty(objective.mixup_weight, len(counts), task.scores)
    fusion = FUSIONS[config.fusion.kind]
    if fusion.penalised:
        penalties[fusion.penalised] = fusion_penalty(functools.partial(fusion.penalty, objective=objective))
    distill = objective.distill_weight
    each = sample_losses(task.loss, offset, distill, objective.expert_share, objective.rank_weight)
    if objective.fewer_weight or objective.mofe_weight:
        penalties["fewer"] = fewer_penalty(objective.fewer_weight, objective.mofe_weight, masks, each)
    if objective.meta_weight:
        penalties["meta"] = meta_penalty(objective.meta_weight, objective.meta_rate, objective.meta_align, each)
    return Objective(
        counts,
        each,
        static,
        dro,
        robust,
        penalties,
        distills=bool(distill),
    )


def sample_losses(
    loss: Loss, offset: np.ndarray | None = None, distill: float = 0.0, expert_share: float = 0.0, rank: float = 0.0
) -> Callable[[Pass], jax.Array]:
    """Makes the losses of a pass, [b]; of several members they are the mean of theirs, so that each learns by itself.

    `offset` [g + 1, c] is added to the logits of a sample by group and class; `distill` weighs the distance from
    `Pass.taught`; a part `expert_share` of the loss is the mean loss of the `Output.experts` that a sample has, and
    `rank` weighs how wrong the order of their weights is.
    """

    def of_several(logits: jax.Array, shift: Any, labels: jax.Array) -> jax.Array:
        logits = logits if offset is None else logits + shift[:, None]
        return jax.vmap(loss, (1, None), 1)(logits, labels)

    def found(of: Pass) -> jax.Array:
        output, labels = of.output, of.batch["label"]
        shift = 0.0 if offset is None else jnp.asarray(offset)[of.batch["group"]]
        if output.members is None:
            each = loss(output.logits + shift, labels)
        else:
            each = jnp.mean(of_several(output.members, shift, labels), axis=1)
        share = 1.0 if of.apart else expert_share
        if share and output.experts is not None:
            experts, present = of_several(output.experts.logits, shift, labels), output.experts.present
            each = (1.0 - share) * each + share * losses.mean_where(experts, present)
            if rank and output.experts.weights is not None:
                each = each + rank * losses.misranking(output.experts.weights, experts, present)
        return each + distill * losses.divergence(output.logits, of.taught) if distill else each

    return found


def loss_offset(objective: Any, prior_counts: np.ndarray, num_groups: int) -> np.ndarray | None:
    """Returns what is added to logits in the loss, by combination and class, [g + 1, c]; None for nothing.

    Combinations that `prior_counts` [g', c] lacks have the prior of all, as those not seen in training have, the last
    row.
    """
    offset = logit_adjust.train_offset(objective.prior, objective.prior_mode, prior_counts)
    if offset is None:
        return None
    return np.concatenate([offset, np.repeat(offset[-1:], num_groups + 1 - len(offset), axis=0)])


def make_dro(config: Any, train_counts: np.ndarray) -> optax.GradientTransformationExtraArgs:
    """Makes the transform that keeps λ; `train_counts` are training samples of each combination, [g]."""
    counts = jnp.asarray(train_counts, jnp.float32)
    return group_dro.group_dro(
        len(counts),
        gamma=config.dro.gamma,
        every=config.dro.every,
        initial=group_dro.initial_weights(config.dro.initial, counts),
        absent=config.dro.absent,
    )


def static_factors(weights: jax.Array) -> Factors:
    """Makes the factors of a mean of weighted losses; `weights` are those of a sample by its group, [g]."""
    return lambda dro_state, loss_sum, count: reweigh.weighted_mean_factors(weights, count)


def mean_factors(dro_state: Any, loss_sum: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the factors of the mean over samples, which count the same."""
    del dro_state, loss_sum
    return reweigh.weighted_mean_factors(jnp.ones_like(count), count)


def robust_factors(dro: optax.GradientTransformationExtraArgs, uses: str, normalize_present: bool) -> Factors:
    """Makes the factors of Σ_g λ_g (mean loss of g), see `group_dro.robust_factors`.

    `uses` names the λ of a step: `current`, that before the step's losses, or `updated`, that after them.
    """

    def factors(dro_state, loss_sum, count):
        if uses == "updated":
            _, dro_state = dro.update({}, dro_state, group_loss_sum=loss_sum, group_count=count)
        weights = jnp.exp(dro_state.log_weights)
        return group_dro.robust_factors(weights, count, normalize_present=normalize_present)

    return factors


def _erm(config: Any, counts: jax.Array, dro: optax.GradientTransformationExtraArgs) -> tuple[Factors, None]:
    """Minimises the empirical risk: every sample counts the same."""
    del config, counts, dro
    return mean_factors, None


def _reweigh(config: Any, counts: jax.Array, dro: optax.GradientTransformationExtraArgs) -> tuple[Factors, None]:
    """Gives groups static weights by their training samples."""
    del dro
    if config.objective.reweigh_rule == "effective_number":
        return static_factors(reweigh.effective_number_weights(counts)), None
    return static_factors(reweigh.inverse_frequency_weights(counts)), None


def _group_dro(config: Any, counts: jax.Array, dro: optax.GradientTransformationExtraArgs) -> tuple[Factors, Factors]:
    """Minimises the empirical risk where λ rests, and Σ_g λ_g (mean loss of g) where it acts."""
    del counts
    return mean_factors, robust_factors(dro, config.dro.weights, config.dro.normalize_present)


OBJECTIVES: dict[str, Callable[..., tuple[Factors, Factors | None]]] = {
    "erm": _erm,
    "reweigh": _reweigh,
    "group_dro": _group_dro,
}
"""Values of `objective.kind`: (config, training samples of each combination [g], transform that keeps λ) -> the factors
where λ rests, and those where it acts, None for an objective without λ."""
ROOMY = ("erm", "group_dro")
"""Of them those whose factors take any number of combinations, so that a step may have spare ones."""


def _but_plain(factors: Factors, plain: int) -> Factors:
    """Replaces factors by those of empirical risk minimisation for the first `plain` networks of an ensemble."""

    def found(dro_state, loss_sum, count):
        mean = mean_factors(dro_state, loss_sum, count)
        return jnp.where(is_plain(plain), mean, factors(dro_state, loss_sum, count))

    return found


def is_plain(plain: int) -> jax.Array:
    """Tells whether the network whose step this is, one of an ensemble, is among the first `plain`."""
    return jax.lax.axis_index(NETWORKS) < plain


def mixup_penalty(
    weight: float,
    num_groups: int,
    scores: Callable[[jax.Array], jax.Array] = fair_mixup.class_probabilities,
    beta: float = 1.0,
) -> Penalty:
    """Makes Fair Mixup's penalty, which counts `weight` in the loss, for g groups, on `scores` of logits.

    A mixed sample belongs to no combination: the router that all combinations share takes it. It has what either of its
    two samples has. Positions on the path between two groups are drawn from Beta(beta, beta).
    """

    def mixup(of: Pass) -> tuple[jax.Array, jax.Array]:
        first, second = fair_mixup.first_and_second(of.output.tokens)
        observed = jnp.logical_or(*fair_mixup.first_and_second(of.output.observed))
        groups = jnp.full(len(first), num_groups, of.batch["group"].dtype)
        keys = None if of.keys is None else of.keys[0::2]
        t = fair_mixup.path_position(of.key, beta)

        def logits(tokens: jax.Array) -> jax.Array:
            return of.network.fuse(of.weights, tokens, observed, groups, gate="never", keys=keys).logits

        slopes = fair_mixup.path_slopes(logits, first, second, t, scores)
        own, pairs = fair_mixup.slope_sums(slopes, jnp.prod(of.batch["weight"].reshape(-1, 2), axis=1))
        everywhere, pairs = of.total(jax.lax.stop_gradient(own)), of.total(pairs)
        term = jnp.sum(own * fair_mixup.slope_penalty_factors(everywhere, pairs))
        return fair_mixup.slope_penalty(everywhere, pairs), weight * term

    return mixup


def fewer_penalty(
    weight: float, ranking: float, masks: np.ndarray | None, losses: Callable[[Pass], jax.Array]
) -> Penalty:
    """Makes SimMLM's terms for samples that have lost some of their modalities: `weight` times the loss that is left,
    and `ranking` times what it is below that of all modalities, which fewer must not be.

    The combinations are `masks` bool [g, m]. Samples that have one modality lose none. Predictors that learn by
    themselves have no such terms.
    """

    def fewer(of: Pass) -> tuple[jax.Array, jax.Array]:
        if of.apart:
            return jnp.zeros(()), jnp.zeros(())
        present = of.seen["present"]
        left = hiding.proper_part(present, draws.fold_in(of.keys, _FEWER))
        batch = {**of.seen, "present": left, "group": hiding.group_of(left, jnp.asarray(masks))}
        output = of.network.apply(of.weights, batch, gate=of.gate, keys=draws.fold_in(of.keys, _FEWER + 1))
        more, less = losses(of), losses(of._replace(output=output))
        lost = of.batch["weight"] * jnp.any(left != present, axis=1).astype(jnp.float32)
        each = weight * less + ranking * jnp.maximum(more - less, 0.0)
        term = jnp.sum(lost * each) / jnp.maximum(of.total(jnp.sum(lost)), 1.0)
        return of.total(jax.lax.stop_gradient(term)), term

    return fewer


def meta_penalty(
    weight: float, rate: float, align: float, losses: Callable[[Pass], jax.Array], main: str = smil.MAIN
) -> Penalty:
    """Makes SMIL's outer loss: that of samples which have lost modalities, after a step of the inner loop.

    The step moves the parameters whose paths begin with `main` against the loss of a random half of the samples, with
    noise. The other half then counts, `weight` times its loss without noise, and `align` in that times the mean squared
    distance of completed vectors from those of all that a sample has. Gradients pass through the step.
    """

    def meta(of: Pass) -> tuple[jax.Array, jax.Array]:
        if not of.late:
            return jnp.zeros(()), jnp.zeros(())
        keys = draws.fold_in(of.keys, _META)
        whole, first = of.output.observed, (draws.bits(keys, ()) & 1).astype(jnp.float32) * of.batch["weight"]
        left = hiding.proper_part(of.seen["present"], draws.fold_in(keys, 1))[:, of.network.owner]

        def run(moved: Params, observed: jax.Array, noise: jax.Array | None) -> Output:
            weights, tokens = {**of.weights, **moved}, of.output.tokens
            return of.network.fuse(weights, tokens, observed, of.seen["group"], gate="never", keys=noise)

        def mean(each: jax.Array, counts: jax.Array) -> jax.Array:
            return jnp.sum(counts * each) / jnp.maximum(of.total(jnp.sum(counts)), 1.0)

        def inner(moved: Params) -> jax.Array:
            return mean(losses(of._replace(output=run(moved, left, draws.fold_in(keys, 2)))), first)

        start = {path: x for path, x in of.weights.items() if path.startswith(main)}
        slopes = jax.tree.map(of.total, jax.grad(inner)(start))
        after = jax.tree.map(lambda x, slope: x - rate * slope, start, slopes)
        less, more = run(after, left, None), run(after, whole, None)
        away = jnp.mean(jnp.square(less.vectors - more.vectors), axis=(1, 2))
        each = losses(of._replace(output=less)) + align * away
        term = weight * mean(each, of.batch["weight"] - first)
        return of.total(jax.lax.stop_gradient(term)), term

    return meta


def fusion_penalty(of_block: Callable[[Mapping[str, jax.Array]], jax.Array]) -> Penalty:
    """Makes the penalty of a fusion over a batch, a function of the sums of each of its blocks."""

    def value(sums: Any) -> jax.Array:
        return sum(of_block(block) for block in sums)

    def penalty(of: Pass) -> tuple[jax.Array, jax.Array]:
        sums = jax.lax.stop_gradient(jax.tree.map(of.total, of.output.routing))
        found, slopes = jax.value_and_grad(value)(sums)
        return found, optax.tree.vdot(slopes, of.output.routing)

    return penalty
