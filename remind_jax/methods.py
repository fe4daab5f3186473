"""Methods of the paper and of this package, their published hyper-parameters, and the tables of sweeps, as data.

A config file ends in `apply_method(config, …)`, which applies the argument string of the config, for example
`configs/nhanes.py:method=soft_moe,size=small`.
"""

import copy
from typing import Any, NamedTuple

from remind_jax.config import set_value, value_of
from remind_jax.errors import UserError, did_you_mean

SOFT_MOE = {"fusion.group_routers": False, "model.imputation": "modality", "objective.kind": "erm"}
# Group-specific parts of REMIND; where a data set has many combinations, its config sets `group_imputation`.
REMIND = {"fusion.group_routers": True, "model.imputation": "<group>", "objective.kind": "group_dro"}

# A method is a fusion, an objective and a sampler, nothing else (design: methods of the paper).
METHODS = {
    "soft_moe": SOFT_MOE,
    # Chuang and Mroueh 2021, of latents: batches of two groups, and a penalty on how predictions differ between them.
    "fair_mixup": SOFT_MOE | {"sampler": "group_pairs", "objective.mixup_weight": 0.1},
    "reweigh": SOFT_MOE | {"objective.kind": "reweigh"},
    # Sagawa et al. 2020: every step, from uniform weights, the new weights at once, groups drawn evenly.
    "group_dro": SOFT_MOE
    | {
        "objective.kind": "group_dro",
        "sampler": "group_balanced",
        "dro.gamma": 0.01,
        "dro.every": 1,
        "dro.initial": "uniform",
        "dro.weights": "updated",
        "dro.normalize_present": False,
        "dro.absent": "zero",
    },
    # Roh et al. 2021, of training losses: the groups' shares of a batch move once an epoch.
    "fair_batch": SOFT_MOE | {"sampler": "fair_batch"},
    # Han et al. 2024: routers of each modality over shared experts, by distance.
    "fuse_moe": SOFT_MOE | {"fusion.kind": "fuse_moe"},
    # Yun et al. 2024: one router, taught which expert belongs to a combination; vectors of combination and modality.
    "flex_moe": SOFT_MOE
    | {
        "fusion.kind": "flex_moe",
        "fusion.top_k": 4,
        "fusion.routing": "joint",
        "fusion.scores": "softmax",
        "model.imputation": "bank",
        "sampler": "most_modalities_first",
        "objective.entropy_weight": 0.0,
    },
    # Menon et al. 2021: what "Distribution Adjustment" is if it is not `reweigh`.
    "logit_adjust": SOFT_MOE | {"objective.prior": "class"},
    "remind": REMIND,
    "remind_no_dro": REMIND | {"objective.kind": "erm"},
    "remind_no_specialization": REMIND | {"fusion.group_routers": False},
    # Ours, chosen on tuning rows (docs/remind_plus.md): four networks, two of them without group parts, all at once,
    # with a linear path next to the fusion, numbers in pieces and tokens that say which modality they are of.
    "remind_plus": REMIND
    | {
        "ensemble": 4,
        "ensemble_plain": 2,
        "data.numbers": "piecewise",
        "model.imputation": "modality+group",
        "model.modality_embedding": True,
        "model.wide": True,
        "train.joint_epochs": 0.0,
        "train.freeze": "nothing",
    },
    # Caruana et al. 2004: networks and plain models of several folds, weighed by their predictions of unseen rows. Keys
    # of its networks are those of their own methods (`in_stack`).
    "remind_stack": REMIND
    | {
        "data.folds": 5,
        "data.numbers": "piecewise",
        "model.text_encoder": "bag",
        "task.predicts": "mean",
        "train.patience": 2,  # as good as 5 for the networks of folds, of fewer steps (docs/remind_stack.md)
    },
}
# One split in place of folds: the networks of `remind_plus` and plain models, weighed by their predictions of tuning
# rows (docs/remind_stack.md). Where a run says nothing else, its keys are those of the networks.
METHODS["remind_blend"] = METHODS["remind_plus"] | {
    "data.folds": 1,
    "stack": "remind_plus,logistic_regression,ridge,cox,gradient_boosting",
    "task.predicts": "mean",
}
OWN = "remind_blend"
"""Method of own data where none is named, in `fit`, the estimators and configs/manifest.py (docs/own_data.md)."""
# Methods of other papers and the simple ones that they are compared with (docs/arena_methods.md). Most have no learned
# vector of a missing modality, which they leave out.
WITHOUT = SOFT_MOE | {"model.imputation": "zero"}
ARENA = {
    # The mean of what one network a modality says, each of which learns by itself.
    "late_fusion": WITHOUT | {"fusion.kind": "late_fusion", "objective.expert_share": 1.0},
    # Neverova et al. 2016: every modality of every training sample is hidden at random.
    "modality_dropout": SOFT_MOE | {"train.hide_samples": 1.0},
    # The mean token of a modality for what is missing, and which modalities are there as an input.
    "mean_imputation": SOFT_MOE | {"model.imputation": "mean", "model.mask_input": True},
    # Hemker et al. 2024: latent vectors read the modalities in turn, three times, by the same weights.
    "healnet": WITHOUT | {"fusion.kind": "healnet", "fusion.blocks": 3},
    # Hayat et al. 2022: encoders of each modality by itself first, then an LSTM over the modalities, all together.
    "medfuse": WITHOUT
    | {
        "fusion.kind": "medfuse",
        "objective.pretrain": True,
        "train.baselines_two_stage": True,
        "train.freeze": "nothing",
    },
    # Wang et al. 2023, with the released weights of the two penalties.
    "shaspec": WITHOUT | {"fusion.kind": "shaspec", "objective.align_weight": 0.1, "objective.distinct_weight": 0.02},
    # Yao et al. 2024: every part of the loss counts the same, those of the predictors of two modalities, of what they
    # share and of all together, which sum to one here.
    "drfuse": WITHOUT
    | {
        "fusion.kind": "drfuse",
        "objective.expert_share": 0.75,
        "objective.align_weight": 0.25,
        "objective.distinct_weight": 0.25,
        "objective.rank_weight": 0.25,
    },
    # Lee et al. 2023: attention within modalities, which meet in a bottleneck that missing ones skip.
    "umse": WITHOUT
    | {"fusion.kind": "umse", "fusion.blocks": 2, "fusion.latents": 4, "model.modality_embedding": True},
    # Li et al. 2025: experts of single modalities, first alone, then mixed by a gate; fewer modalities must not be
    # better than more.
    "simmlm": WITHOUT
    | {
        "fusion.kind": "simmlm",
        "objective.pretrain": True,
        "objective.fewer_weight": 1.0,
        "objective.mofe_weight": 0.1,
        "train.baselines_two_stage": True,
        "train.freeze": "nothing",
    },
    # Nizam et al. 2026: modalities are knocked out the more often, the more they add to predictions of tuning rows.
    "shapko": WITHOUT | {"sampler": "knockout"},
    # Zhang et al. 2022: what is missing comes from similar samples, of the batch or, in a trained model, of its bank.
    "m3care": WITHOUT | {"fusion.kind": "m3care"},
    # What the programs released with FuseMoE and Flex-MoE do, where a key can say it (docs/arena_training.md).
    "fuse_moe_released": METHODS["fuse_moe"]
    | {
        "fusion.routing": "joint",
        "fusion.attention": "own",
        "fusion.combine": "log",
        "model.imputation": "zero",
        "model.pooling": "modalities",
        "objective.balance_weight": 0.0,
        "objective.entropy_weight": 0.0,
    },
    "flex_moe_released": METHODS["flex_moe"] | {"fusion.attention_base": "itself", "model.pooling": "modalities"},
    # Ma et al. 2021: first without what is missing, then with mixtures of centres in its place, by meta-learning.
    "smil": WITHOUT
    | {
        "fusion.kind": "smil",
        "objective.meta_weight": 1.0,
        "train.baselines_two_stage": True,
        "train.freeze": "nothing",
    },
}
SIZES = ("small", "paper", "quick")
# The size of a smoke run, over what a config says: enough rows that every split has every class, as few steps and
# resamples as take all the paths of a real run. Keys that a data set does not have are left out.
QUICK = {
    "data.stays": 800,
    "data.exams": 400,
    "data.samples": 400,
    "data.train": 1_000,
    "data.tuning": 200,
    "data.held_out_per_group": 50,
    "data.max_tokens": 32,
    "data.frames": 4,
    "model.width": 16,
    "fusion.heads": 2,
    "fusion.experts": 8,
    "fusion.share_experts": True,
    "fusion.hidden": 32,
    "train.epochs": 2.0,
    "train.joint_epochs": 1.0,
    "train.evaluate_every": 1.0,
    "train.patience": 0,
    "eval.bootstrap": 50,
}
# Models without a network, of remind_jax.studies.baselines; of a config they use data, seed, selection and evaluation.
PLAIN = dict.fromkeys(("logistic_regression", "gradient_boosting", "extra_trees", "ridge", "cox"), SOFT_MOE)


def paper_hyper_parameters(config: Any, *, experts: int, width: int, lr: float, decay: float):
    """Sets what the paper's data sets share (section 7.4): AdamW, StepLR(5, 0.1), focal loss, batch 32, 8 heads."""
    config.model.update(width=width, tokens=16, encoder_dropout=0.25, text_size="base", text_gated=False)
    config.fusion.update(heads=8, experts=experts, slots=1, hidden=4 * width, dropout=0.0)
    config.objective.update(loss="focal", focal_gamma=2.0)
    config.optim.update(lr=lr, weight_decay=decay, decay="all", clip=0.0, ema=0.0)
    config.optim.update(schedule="step", step_epochs=5.0, step_rate=0.1)
    config.train.update(batch_size=32, select="accuracy", joint_epochs=5.0, patience=0)
    config.dro.update(gamma=0.02, every=100, initial="uniform")
    config.data.update(max_tokens=512, vocabulary=32_000, image_size=224)


def parse_arg(arg: str, method: str = "remind") -> dict[str, str]:
    """Reads `key=value,key=value` with the keys `size` and `method`, by default `remind` at the paper's size."""
    choices = {"method": (*METHODS, *PLAIN, *ARENA), "size": SIZES}
    chosen = {"size": "small"}
    for part in filter(None, (arg or "").split(",")):
        key, _, value = part.partition("=")
        if key not in choices:
            raise UserError(f"unknown config argument {key!r}{did_you_mean(key, choices)}; known: {', '.join(choices)}")
        if value not in choices[key]:
            raise UserError(
                f"unknown {key} {value!r}{did_you_mean(value, choices[key])}; known: {', '.join(choices[key])}"
            )
        chosen[key] = value
    return {"method": "remind" if chosen["size"] == "paper" else method} | chosen


def apply_method(config: Any, method: str, group_imputation: str = "group"):
    """Sets the keys that a method stands for; a plain model, which has no network, has those of `soft_moe`.

    Where `config.size` is quick it sets those of `QUICK` before.
    """
    config.method = method
    for key, value in QUICK.items() if config.size == "quick" else ():
        section, _, name = key.partition(".")
        if name in config[section]:
            set_value(config, key, value)
    for key, value in (METHODS | PLAIN | ARENA)[method].items():
        set_value(config, key, group_imputation if value == "<group>" else value)


def apply_to_tables(config: Any, chosen: dict[str, str], classes: bool = True):
    """Sets what data sets of few people in tables share, and the method and size of `parse_arg`.

    They have too many combinations, or too few people, for experts and a vector of each combination of its own. With
    `classes` False the paper's size is without what looks at classes.
    """
    config.size = chosen["size"]
    if config.size == "paper":
        paper_hyper_parameters(config, experts=32, width=128, lr=5e-5, decay=5e-6)
        config.train.epochs = 50.0
        if not classes:
            config.objective.loss, config.train.select = "cross_entropy", "loss"
    config.fusion.share_experts = True
    apply_method(config, chosen["method"], group_imputation="modality+group")


def in_stack(config: Any, method: str, fold: int) -> Any:
    """Returns the config of a candidate network of a stack, which tunes by one fold.

    Data and encodings are those of the stack's config; predictions are left as they are, since the stack adjusts its
    own. Of `remind_plus` there are two networks of each fold, one of each kind; in a blend, of one split, all its keys
    are the config's own.
    """
    found = copy.deepcopy(config)
    found.method, found.data.fold, found.stack = method, fold, ""
    keys = METHODS[method]
    if method == "remind_plus":
        keys = {} if config.method == "remind_blend" else keys | {"ensemble": 2, "ensemble_plain": 1}
    for key, value in keys.items():
        if key != "data.numbers":
            set_value(found, key, config.model.imputation if value == "<group>" else value)
    if config.pretrained.text:
        found.model.text_encoder = "t5"  # whose weights these are
    found.eval.update(adjust_prior="none", recalibrate="none", coverage=0.0)
    return found


class Variant(NamedTuple):
    """A named entry of a sweep.

    Attributes:
      name: in tables and in the names of run folders.
      method: of the config's argument string.
      changes: keys of the config and their values, over whatever the command line says.
      shares: keys of whole numbers and what part of the config's own value they become.
    """

    name: str
    method: str
    changes: tuple[tuple[str, Any], ...] = ()
    shares: tuple[tuple[str, float], ...] = ()

    def apply(self, config: Any) -> None:
        """Turns a config of the variant's method into that of the variant."""
        shares = [(key, max(1, round(share * value_of(config, key)))) for key, share in self.shares]
        for key, value in (*self.changes, *shares):
            set_value(config, key, value)


def _plus(name: str, **changes: Any) -> Variant:
    """`remind_plus` with something else; two underscores stand for the dot of a key."""
    return Variant(name, "remind_plus", tuple((key.replace("__", "."), value) for key, value in changes.items()))


TABLES: dict[str, tuple[Variant, ...]] = {
    # Ablation: what group DRO and the group routers each add.
    "4": tuple(Variant(name, name) for name in ("soft_moe", "remind_no_dro", "remind_no_specialization", "remind")),
    # Sensitivity. What Table 16 calls η is γ of Eq. 4 (section 7.6 has the same runs under that name); its 32, 64 and
    # 128 experts are a quarter, a half and all of those of the main experiments.
    "16": (
        Variant("remind", "remind"),
        Variant("dro_gamma_0.1", "remind", (("dro.gamma", 0.1),)),
        Variant("dro_gamma_0.5", "remind", (("dro.gamma", 0.5),)),
        Variant("experts_quarter", "remind", shares=(("fusion.experts", 0.25),)),
        Variant("experts_half", "remind", shares=(("fusion.experts", 0.5),)),
        Variant("imputation_zero", "remind", (("model.imputation", "zero"),)),
        Variant("residual_sinusoidal", "remind", (("fusion.residual_init", "sinusoidal"),)),
    ),
    # What each part of our preset adds, and parts that it has not (docs/remind_plus.md).
    "remind_plus": (
        Variant("soft_moe", "soft_moe"),
        Variant("remind_plus", "remind_plus"),
        _plus("one_network", ensemble=1, ensemble_plain=0),
        _plus("eight_networks", ensemble=8, ensemble_plain=4),
        _plus("eight_members", ensemble=1, ensemble_plain=0, model__members=8),
        _plus("all_with_group_parts", ensemble_plain=0),
        _plus("without_linear_path", model__wide=False),
        _plus("without_modality_embedding", model__modality_embedding=False),
        _plus("numbers_standard", data__numbers="standard"),
        _plus("numbers_quantile", data__numbers="quantile"),
        _plus("numbers_periodic", data__numbers="periodic"),
        _plus("modality_dropout", train__hide_samples=0.3),
        _plus("distilled", train__hide_samples=0.3, objective__distill_weight=1.0),
        _plus("prior_adjusted", eval__adjust_prior="macro_f1"),
    ),
}


def choose(names: str, table: str) -> list[Variant]:
    """Returns the variants that a command line names, separated by commas.

    `all` is every variant of the table or, without a table, every method and plain model; `arena` is every method of
    `ARENA`. `table` is a key of `TABLES`, or empty; its variants come before methods of the same name. Raises
    UserError: a name or the table is unknown.
    """
    if table and table not in TABLES:
        raise UserError(f"table={table} is not a sweep; known: {', '.join(TABLES)}")
    whole = [Variant(name, name) for name in (*METHODS, *PLAIN, *ARENA)]
    known = {variant.name: variant for variant in (*whole, *TABLES.get(table, ()))}
    if names == "all":
        return list(TABLES[table]) if table else [variant for variant in whole if variant.name not in ARENA]
    names = ",".join(ARENA) if names == "arena" else names
    chosen = list(dict.fromkeys(filter(None, names.split(","))))
    for name in chosen:
        if name not in known:
            raise UserError(f"unknown method {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    if not chosen:
        raise UserError("no methods: name some as --methods=soft_moe,remind or say --methods=all")
    return [known[name] for name in chosen]
