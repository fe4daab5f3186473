"""What the values of a config may be: choices by key, ranges of numbers, and rules about several keys."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from remind_jax.data import samplers
from remind_jax.data.kinds import numbers
from remind_jax.data.sources import SOURCES
from remind_jax.errors import UserError, did_you_mean
from remind_jax.models.encoders import registry, t5
from remind_jax.models.fusion.soft_moe import FusionSpec
from remind_jax.models.fusion.sparse_moe import ROUTINGS
from remind_jax.models.spec import ModelSpec
from remind_jax.objectives import group_dro, logit_adjust, reweigh
from remind_jax.ops import imputation, routing, soft_moe, sparse_moe
from remind_jax.runtime import devices, profiling
from remind_jax.training import frozen_features, optimizer, row_adamw

_GATES = ("gated", "always", "never")
CHOICES: dict[str, Iterable[str]] = {
    "parallel": devices.KINDS,
    "precision": ("float32", "bfloat16"),
    "programs": devices.PROGRAMS,
    "sampler": samplers.KINDS,
    "sampler_pairs": samplers.PAIRS,
    "sampler_move": samplers.MOVES,
    "data.source": SOURCES,
    "data.bad_files": ("refuse", "missing"),
    "data.numbers": numbers.NUMBERS,
    "model.text_size": t5.SIZES,
    "model.image_encoder": registry.IMAGE,
    "model.volume_encoder": registry.VOLUME,
    "model.imputation": imputation.KINDS,
    "model.pooling": ("mean", "observed", "first", "attention"),
    "fusion.kind": ("soft_moe", "fuse_moe", "flex_moe"),
    "fusion.routing": ROUTINGS,
    "fusion.scores": sparse_moe.SCORES,
    "fusion.preset": soft_moe.PRESETS,
    "fusion.norm": ("pre", "post"),
    "fusion.residual_init": ("zero", "sinusoidal"),
    "fusion.gate_metric": routing.UNCERTAINTY_METRICS,
    "fusion.gate_granularity": routing.GATE_GRANULARITY,
    "fusion.train_gate": _GATES,
    "fusion.eval_gate": _GATES,
    "objective.kind": ("erm", "reweigh", "group_dro"),
    "objective.loss": ("cross_entropy", "focal"),
    "objective.focal_alpha": ("none", "inverse_class"),
    "objective.cells": ("combination", "combination_class"),
    "objective.reweigh_rule": reweigh.RULES,
    "objective.prior": logit_adjust.PRIORS,
    "objective.prior_mode": logit_adjust.MODES,
    "dro.absent": group_dro.ABSENT,
    "dro.initial": group_dro.INITIAL_WEIGHTS,
    "dro.weights": ("current", "updated"),
    "dro.stages": ("both", "specialize"),
    "train.batch_norm": ("frozen", "batch"),
    "train.freeze": ("encoders", "encoders+projections", "nothing"),
    "train.feature_cache": frozen_features.KINDS,
    "train.feature_dtype": frozen_features.DTYPES,
    "train.select": ("loss", "accuracy", "macro_f1", "auroc", "last"),
    "eval.adjust_prior": ("none", "accuracy", "macro_f1"),
    "optim.decay": optimizer.DECAYED,
    "optim.first_moment": ("float32", "bfloat16"),
    "optim.gradient": ("float32", "bfloat16"),
    "optim.group_rows": row_adamw.KINDS,
    "optim.schedule": ("cosine", "step", "constant"),
}
AT_LEAST_ONE = (
    *("model.width", "model.tokens", "fusion.blocks", "fusion.heads", "fusion.slots"),
    *("fusion.hidden", "dro.every", "train.batch_size", "train.log_every", "eval.batch_size"),
    "train.max_rejected",
    *("ensemble", "data.bins", "model.members", "fusion.top_k", "eval.bootstrap", "data.image_size", "data.frames"),
    *("expert_devices", "train.accumulate"),
)
POSITIVE = (
    *("optim.lr", "train.epochs", "train.evaluate_every", "data.memory_gib", "optim.step_epochs"),
    *("objective.mixup_beta", "sampler_alpha"),
)
NOT_NEGATIVE = (
    *("objective.balance_weight", "objective.entropy_weight", "objective.specialize_weight"),
    *("seed", "devices", "groups.tail_below", "model.encoder_hidden", "objective.focal_gamma"),
    *("objective.reweigh_cap", "objective.mixup_weight", "objective.prior_tau", "objective.prior_smoothing"),
    *("sampler_epochs", "dro.gamma", "dro.adjustment", "train.joint_epochs", "train.patience"),
    *("ensemble_plain", "train.hide_samples", "objective.distill_weight", "fusion.router_rank"),
    *("train.keep", "train.threads", "optim.weight_decay", "optim.clip"),
)
BELOW_ONE = (
    *("train.hide_modalities", "model.encoder_dropout", "fusion.dropout", "optim.warmup", "optim.ema"),
    "objective.reweigh_beta",
)


def _value(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


class Rule(NamedTuple):
    """What values of several keys may not be together.

    Attributes:
      is_broken: by a config.
      says: what is wrong and what to do, with values of the config `c` in braces.
    """

    is_broken: Callable[[Any], bool]
    says: str


# Keys that look at whole batches, and the value at which they do not.
_OF_WHOLE_BATCHES = {
    "dro.weights": "current",
    "objective.mixup_weight": 0.0,
    "fusion.kind": "soft_moe",
    "train.batch_norm": "frozen",
    "fusion.gate_granularity": "sample",
}
RULES = (
    # Sharing weights among devices is left to XLA, which needs one program and equal parts.
    Rule(
        lambda c: c.fusion.experts % c.expert_devices,
        "fusion.experts={c.fusion.experts} does not divide among expert_devices={c.expert_devices}",
    ),
    Rule(
        lambda c: c.expert_devices > 1 and (c.parallel != "jit" or c.ensemble > 1),
        "expert_devices={c.expert_devices} needs parallel=jit and a single network",
    ),
    # Parts of a batch are added up where a step is a sum over samples.
    Rule(
        lambda c: c.train.batch_size % c.train.accumulate,
        "train.batch_size={c.train.batch_size} does not divide into train.accumulate={c.train.accumulate} parts",
    ),
    *(
        Rule(
            lambda c, key=key, allowed=allowed: c.train.accumulate > 1 and _value(c, key) != allowed,
            f"train.accumulate={{c.train.accumulate}} needs {key}={allowed}: {{c.{key}}} looks at whole batches",
        )
        for key, allowed in _OF_WHOLE_BATCHES.items()
    ),
    Rule(
        lambda c: c.precision != "float32" and c.train.batch_norm == "batch",
        "precision={c.precision} would round running statistics: set train.batch_norm=frozen",
    ),
    Rule(lambda c: c.seed >= 2**32, "seed={c.seed} must be below 2^32"),
    Rule(
        lambda c: c.model.width % c.fusion.heads,
        "model.width={c.model.width} is not a multiple of fusion.heads={c.fusion.heads}",
    ),
    Rule(
        lambda c: c.fusion.group_routers and c.train.joint_epochs >= c.train.epochs,
        "train.joint_epochs={c.train.joint_epochs} leaves nothing of train.epochs={c.train.epochs} for stage 2, in "
        "which the group routers act: shorten stage 1",
    ),
    Rule(
        lambda c: c.parallel == "pmap" and c.fusion.gate_granularity == "batch",
        "fusion.gate_granularity=batch needs the whole batch in one program: set parallel=jit",
    ),
    # Fair Mixup compares the two groups of a pair, and a batch is made of whole pairs.
    Rule(
        lambda c: c.objective.mixup_weight and c.sampler != "group_pairs",
        "objective.mixup_weight={c.objective.mixup_weight} needs batches of two groups: set sampler=group_pairs "
        "instead of {c.sampler}",
    ),
    Rule(
        lambda c: c.sampler == "group_pairs" and c.train.batch_size % 2,
        "train.batch_size={c.train.batch_size} must be even for sampler=group_pairs",
    ),
    Rule(
        lambda c: 0 < c.ensemble <= c.ensemble_plain,
        "ensemble_plain={c.ensemble_plain} leaves no network of ensemble={c.ensemble} with group parts",
    ),
    Rule(
        lambda c: c.train.feature_cache not in ("auto", "off") and (c.train.frozen_dropout or c.ensemble > 1),
        "train.feature_cache={c.train.feature_cache} keeps one result a sample, which train.frozen_dropout and "
        "ensemble > 1 do not give: set it to auto or off",
    ),
    Rule(
        lambda c: c.objective.distill_weight and not c.train.hide_samples,
        "objective.distill_weight teaches samples that lose modalities: set train.hide_samples",
    ),
    Rule(
        lambda c: c.fusion.kind != "soft_moe" and c.fusion.group_routers,
        "fusion.group_routers belong to fusion.kind=soft_moe, not {c.fusion.kind}",
    ),
    # Composed routers stand in for the table of routers, and start where the shared one is.
    Rule(
        lambda c: c.fusion.router_rank and not (c.fusion.kind == "soft_moe" and c.fusion.group_routers),
        "fusion.router_rank={c.fusion.router_rank} belongs to fusion.kind=soft_moe with fusion.group_routers=true",
    ),
    Rule(
        lambda c: c.fusion.router_rank and c.fusion.residual_init != "zero",
        "fusion.residual_init={c.fusion.residual_init} fills a table of routers: set it to zero for "
        "fusion.router_rank={c.fusion.router_rank}",
    ),
    # Rows of a batch alone do not serve samples of no known combination, nor experts that belong to combinations.
    Rule(
        lambda c: c.optim.group_rows == "batch" and c.train.hide_samples,
        "optim.group_rows=batch knows the combinations of the data only: set train.hide_samples=0",
    ),
    Rule(
        lambda c: c.optim.group_rows == "batch" and c.fusion.kind != "soft_moe",
        "optim.group_rows=batch belongs to fusion.kind=soft_moe, not {c.fusion.kind}",
    ),
    Rule(
        lambda c: c.fusion.experts < 2,
        "fusion.experts={c.fusion.experts} leaves nothing to route to: use at least 2",
    ),
)


def validate(config: Any) -> None:
    """Refuses values that no code path could use.

    Raises:
      UserError: names the key, its value and what it may be.
    """
    for key, choices in CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UserError(f"{key}={value!r} is unknown{did_you_mean(value, choices)}; known: {', '.join(choices)}")
    for keys, is_wrong, limit in (
        # Each is true of NaN as well.
        (AT_LEAST_ONE, lambda x: not x >= 1, "at least 1"),
        (POSITIVE, lambda x: not 0 < x < math.inf, "above 0 and finite"),
        (NOT_NEGATIVE, lambda x: not 0 <= x < math.inf, "at least 0 and finite"),
        (BELOW_ONE, lambda x: not 0 <= x < 1, "at least 0 and below 1"),
    ):
        for key in keys:
            if is_wrong(_value(config, key)):
                raise UserError(f"{key}={_value(config, key)} must be {limit}")
    profiling.span(config.profile)
    for rule in RULES:
        if rule.is_broken(config):
            raise UserError(rule.says.format(c=config))


def model_spec(config: Any) -> ModelSpec:
    """The network that a config describes."""
    fusion = {field.name: config.fusion[field.name] for field in dataclasses.fields(FusionSpec)}
    model = {field.name: config.model[field.name] for field in dataclasses.fields(ModelSpec) if field.name != "fusion"}
    return ModelSpec(fusion=FusionSpec(**fusion), **model)
