"""What the values of a config may be: choices by key, and numbers that must be positive."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from remind_jax import features, parallel, profiling, rows
from remind_jax.data import samplers, tabular
from remind_jax.data.sources import SOURCES
from remind_jax.errors import UserError, did_you_mean
from remind_jax.models.encoders import registry, t5
from remind_jax.models.fusion.soft_moe import FusionSpec
from remind_jax.models.fusion.sparse_moe import ROUTINGS
from remind_jax.models.model import ModelSpec
from remind_jax.objectives import group_dro, logit_adjust, reweigh
from remind_jax.ops import imputation, routing, soft_moe, sparse_moe

_GATES = ("gated", "always", "never")
CHOICES: dict[str, Iterable[str]] = {
    "parallel": parallel.KINDS,
    "precision": ("float32", "bfloat16"),
    "programs": parallel.PROGRAMS,
    "sampler": samplers.KINDS,
    "sampler_pairs": samplers.PAIRS,
    "sampler_move": samplers.MOVES,
    "data.source": SOURCES,
    "data.bad_files": ("refuse", "missing"),
    "data.numbers": tabular.NUMBERS,
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
    "train.feature_cache": features.KINDS,
    "train.feature_dtype": features.DTYPES,
    "train.select": ("loss", "accuracy", "macro_f1", "auroc", "last"),
    "eval.adjust_prior": ("none", "accuracy", "macro_f1"),
    "optim.first_moment": ("float32", "bfloat16"),
    "optim.gradient": ("float32", "bfloat16"),
    "optim.group_rows": rows.KINDS,
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


def validate(config: Any) -> None:
    """Refuses values that no code path could use.

    Raises:
      UserError: names the key, its value and what it may be.
    """
    for key, choices in CHOICES.items():
        value = _value(config, key)
        if value not in choices:
            raise UserError(f"{key}={value!r} is unknown{did_you_mean(value, choices)}; known: {', '.join(choices)}")
    for keys, is_wrong, rule in (
        # Each is true of NaN as well.
        (AT_LEAST_ONE, lambda x: not x >= 1, "at least 1"),
        (POSITIVE, lambda x: not 0 < x < math.inf, "above 0 and finite"),
        (NOT_NEGATIVE, lambda x: not 0 <= x < math.inf, "at least 0 and finite"),
        (BELOW_ONE, lambda x: not 0 <= x < 1, "at least 0 and below 1"),
    ):
        for key in keys:
            if is_wrong(_value(config, key)):
                raise UserError(f"{key}={_value(config, key)} must be {rule}")
    profiling.span(config.profile)
    _validate_experts(config)
    _validate_accumulation(config)
    if config.precision != "float32" and config.train.batch_norm == "batch":
        raise UserError(f"precision={config.precision} would round running statistics: set train.batch_norm=frozen")
    if config.seed >= 2**32:
        raise UserError(f"seed={config.seed} must be below 2^32")
    if config.model.width % config.fusion.heads:
        raise UserError(f"model.width={config.model.width} is not a multiple of fusion.heads={config.fusion.heads}")
    if config.fusion.group_routers and config.train.joint_epochs >= config.train.epochs:
        raise UserError(
            f"train.joint_epochs={config.train.joint_epochs} leaves nothing of train.epochs={config.train.epochs} "
            "for stage 2, in which the group routers act: shorten stage 1"
        )
    if config.parallel == "pmap" and config.fusion.gate_granularity == "batch":
        raise UserError("fusion.gate_granularity=batch needs the whole batch in one program: set parallel=jit")
    _validate_pairs(config)
    if config.ensemble_plain and config.ensemble_plain >= config.ensemble:
        raise UserError(
            f"ensemble_plain={config.ensemble_plain} leaves no network of ensemble={config.ensemble} with group parts"
        )
    if config.train.feature_cache not in ("auto", "off") and (config.train.frozen_dropout or config.ensemble > 1):
        raise UserError(
            f"train.feature_cache={config.train.feature_cache} keeps one result a sample, which train.frozen_dropout "
            "and ensemble > 1 do not give: set it to auto or off"
        )
    if config.objective.distill_weight and not config.train.hide_samples:
        raise UserError("objective.distill_weight teaches samples that lose modalities: set train.hide_samples")
    if config.fusion.kind != "soft_moe" and config.fusion.group_routers:
        raise UserError(f"fusion.group_routers belong to fusion.kind=soft_moe, not {config.fusion.kind}")
    _validate_rank(config)
    _validate_rows(config)
    if config.fusion.experts < 2:
        raise UserError(f"fusion.experts={config.fusion.experts} leaves nothing to route to: use at least 2")


def _validate_experts(config: Any) -> None:
    """Sharing weights among devices is left to XLA, which needs one program and equal parts."""
    if config.expert_devices == 1:
        return
    if config.fusion.experts % config.expert_devices:
        raise UserError(
            f"fusion.experts={config.fusion.experts} does not divide among expert_devices={config.expert_devices}"
        )
    if config.parallel != "jit" or config.ensemble > 1:
        raise UserError(f"expert_devices={config.expert_devices} needs parallel=jit and a single network")


def _validate_accumulation(config: Any) -> None:
    """Parts of a batch are added up where a step is a sum over samples."""
    parts, size = config.train.accumulate, config.train.batch_size
    if parts == 1:
        return
    if size % parts:
        raise UserError(f"train.batch_size={size} does not divide into train.accumulate={parts} parts")
    for key, allowed in (
        ("dro.weights", "current"),
        ("objective.mixup_weight", 0.0),
        ("fusion.kind", "soft_moe"),
        ("train.batch_norm", "frozen"),
    ):
        if _value(config, key) != allowed:
            raise UserError(
                f"train.accumulate={parts} needs {key}={allowed}: {_value(config, key)} looks at whole batches"
            )
    if config.fusion.gate_granularity == "batch":
        raise UserError(f"train.accumulate={parts} cannot gate whole batches: set fusion.gate_granularity=sample")


def _validate_rank(config: Any) -> None:
    """Composed routers stand in for the table of routers, and start where the shared one is."""
    rank = config.fusion.router_rank
    if not rank:
        return
    if config.fusion.kind != "soft_moe" or not config.fusion.group_routers:
        raise UserError(f"fusion.router_rank={rank} belongs to fusion.kind=soft_moe with fusion.group_routers=true")
    if config.fusion.residual_init != "zero":
        raise UserError(
            f"fusion.residual_init={config.fusion.residual_init} fills a table of routers: set it to zero for "
            f"fusion.router_rank={rank}"
        )


def _validate_rows(config: Any) -> None:
    """Rows of a batch alone do not serve samples of no known combination, nor experts that belong to combinations."""
    if config.optim.group_rows != "batch":
        return
    if config.train.hide_samples:
        raise UserError("optim.group_rows=batch knows the combinations of the data only: set train.hide_samples=0")
    if config.fusion.kind != "soft_moe":
        raise UserError(f"optim.group_rows=batch belongs to fusion.kind=soft_moe, not {config.fusion.kind}")


def _validate_pairs(config: Any) -> None:
    """Fair Mixup compares the two groups of a pair, and a batch is made of whole pairs."""
    if config.objective.mixup_weight and config.sampler != "group_pairs":
        raise UserError(
            f"objective.mixup_weight={config.objective.mixup_weight} needs batches of two groups: "
            f"set sampler=group_pairs instead of {config.sampler}"
        )
    if config.sampler == "group_pairs" and config.train.batch_size % 2:
        raise UserError(f"train.batch_size={config.train.batch_size} must be even for sampler=group_pairs")


def model_spec(config: Any) -> ModelSpec:
    """The network that a config describes."""
    fusion = {field.name: config.fusion[field.name] for field in dataclasses.fields(FusionSpec)}
    model = {field.name: config.model[field.name] for field in dataclasses.fields(ModelSpec) if field.name != "fusion"}
    return ModelSpec(fusion=FusionSpec(**fusion), **model)
