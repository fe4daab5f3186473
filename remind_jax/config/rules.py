"""What values of several keys may not be together."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What values of several keys may not be together: whether a config breaks it, and what is wrong and what to do,
    with values of the config `c` in braces.
    """

    is_broken: Callable[[Any], bool]
    says: str


# Keys that look at whole batches, and the values at which they do not.
_OF_WHOLE_BATCHES = {
    "dro.weights": ("current",),
    **{f"objective.{name}_weight": (0.0,) for name in ("mixup", "fewer", "mofe", "meta")},
    "fusion.kind": ("soft_moe", "late_fusion", "healnet", "medfuse", "umse"),
    "train.batch_norm": ("frozen",),
    "fusion.gate_granularity": ("sample",),
}
STACKS = ("remind_stack", "remind_blend")  # methods that weigh networks and plain models
RULES = (
    # Sharing weights among devices is left to XLA, which needs one program and equal parts.
    Rule(
        lambda c: c.fusion.experts % c.expert_devices,
        "fusion.experts={c.fusion.experts} does not divide among expert_devices={c.expert_devices}",
    ),
    Rule(
        lambda c: c.expert_devices > 1 and (c.parallel != "jit" or c.ensemble > 1),
        "expert_devices={c.expert_devices} needs parallel=jit and a single network, such as that of method=remind",
    ),
    # Parts of a batch are added up where a step is a sum over samples.
    Rule(
        lambda c: c.train.batch_size % c.train.accumulate,
        "train.batch_size={c.train.batch_size} does not divide into train.accumulate={c.train.accumulate} parts",
    ),
    *(
        Rule(
            lambda c, key=key, allowed=allowed: c.train.accumulate > 1 and operator.attrgetter(key)(c) not in allowed,
            f"train.accumulate={{c.train.accumulate}} needs {key}={' or '.join(map(str, allowed))}: "
            f"{{c.{key}}} looks at whole batches",
        )
        for key, allowed in _OF_WHOLE_BATCHES.items()
    ),
    Rule(
        lambda c: c.precision != "float32" and c.train.batch_norm == "batch",
        "precision={c.precision} would round running statistics: set train.batch_norm=frozen",
    ),
    Rule(
        lambda c: c.model.imputation == "mean" and (c.precision != "float32" or c.train.accumulate > 1),
        "model.imputation=mean keeps running means of whole batches: set precision=float32 and train.accumulate=1",
    ),
    Rule(lambda c: c.seed >= 2**32, "seed={c.seed} must be below 2^32"),
    Rule(
        lambda c: c.model.width % c.fusion.heads,
        "model.width={c.model.width} is not a multiple of fusion.heads={c.fusion.heads}",
    ),
    Rule(
        lambda c: c.fusion.group_routers and c.train.joint_epochs >= c.train.epochs,
        "train.joint_epochs={c.train.joint_epochs} leaves nothing of train.epochs={c.train.epochs} for stage 2, in "
        "which the group routers act: set train.joint_epochs below it",
    ),
    Rule(
        lambda c: c.optim.group_rows == "batch" and (c.objective.fewer_weight or c.objective.mofe_weight),
        "optim.group_rows=batch knows the combinations of the data only: set objective.fewer_weight=0 and "
        "objective.mofe_weight=0",
    ),
    Rule(
        lambda c: c.sampler == "knockout" and (c.train.hide_samples or c.optim.group_rows == "batch"),
        "sampler=knockout takes modalities from samples itself: set train.hide_samples=0 and optim.group_rows=all",
    ),
    Rule(
        lambda c: c.fusion.gate_threshold == "auto" and c.fusion.gate_granularity == "batch",
        "fusion.gate_threshold=auto opens the gate for a share of samples: set fusion.gate_granularity=sample or token",
    ),
    Rule(
        lambda c: c.parallel == "pmap" and c.fusion.gate_granularity == "batch",
        "fusion.gate_granularity=batch needs the whole batch in one program: set parallel=jit",
    ),
    Rule(
        lambda c: c.model.pooling == "modalities" and c.model.members > 1,
        "model.pooling=modalities has one head for all: set model.members=1 instead of {c.model.members}",
    ),
    Rule(
        lambda c: c.objective.meta_weight and (c.fusion.kind != "smil" or not c.train.baselines_two_stage),
        "objective.meta_weight={c.objective.meta_weight} moves the main network of fusion.kind=smil in stage 2: set "
        "both that and train.baselines_two_stage=true",
    ),
    Rule(
        lambda c: c.fusion.kind == "m3care" and c.model.members > 1,
        "fusion.kind=m3care would find a sample's other members next to it: set model.members=1",
    ),
    Rule(
        lambda c: c.parallel == "pmap" and c.fusion.kind == "m3care",
        "fusion.kind=m3care finds neighbours in the whole batch, which needs one program: set parallel=jit",
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
        lambda c: c.train.feature_cache not in ("auto", "off") and c.ensemble > 1,
        "train.feature_cache={c.train.feature_cache} keeps one result a sample, of which ensemble={c.ensemble} has "
        "several: set it to auto or off",
    ),
    Rule(
        lambda c: c.objective.distill_weight and not c.train.hide_samples,
        "objective.distill_weight teaches samples that lose modalities: set train.hide_samples",
    ),
    Rule(
        lambda c: c.fusion.kind != "soft_moe" and c.fusion.group_routers,
        "fusion.group_routers belong to fusion.kind=soft_moe, not {c.fusion.kind}",
    ),
    # Composed routers take the place of the table of routers, and start where the shared one is.
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
        lambda c: c.method in STACKS and (c.data.folds < 1 or c.data.fold >= 0),
        "method={c.method} needs data.folds of at least 1, and no data.fold: found {c.data.folds} and {c.data.fold}",
    ),
    Rule(
        lambda c: c.method == "remind_blend" and c.data.folds != 1,
        "method=remind_blend has one split, found data.folds={c.data.folds}: take method=remind_stack for more",
    ),
    Rule(
        lambda c: c.method in STACKS and c.task.predicts != "mean",
        "method={c.method} averages values without bounds: set task.predicts=mean, or a method such as remind_plus",
    ),
    Rule(
        lambda c: c.method in STACKS and c.fusion.gate_granularity == "batch",
        "method={c.method} predicts rows one by one: set fusion.gate_granularity=sample or token",
    ),
    Rule(
        lambda c: c.data.fold >= c.data.folds,
        "data.fold={c.data.fold} must be below data.folds={c.data.folds}",
    ),
    Rule(
        lambda c: c.data.cache == "none" and c.train.feature_cache == "disk",
        "train.feature_cache=disk writes below data.cache, which is none: name a folder",
    ),
    Rule(
        lambda c: c.fusion.experts < 2, "fusion.experts={c.fusion.experts} leaves nothing to route to: use at least 2"
    ),
)
