"""Every key that the configs share, with its meaning; the methods of the paper; the config argument string.

A config file ends in `common.apply_method(config, …)`, which applies the argument string, for example
`configs/nhanes.py:method=soft_moe,size=small`. Single keys are set on the command line: `--config.optim.lr=1e-3`.
"""

import ml_collections

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
    # with a linear path beside the fusion, numbers in pieces and tokens that say which modality they are of.
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
}
SIZES = ("small", "paper")


def base() -> ml_collections.ConfigDict:
    """The shared keys with their defaults, those of REMIND on small data."""
    c = ml_collections.ConfigDict()
    c.method = "remind"  # a key of METHODS; set by the argument string only
    c.size = "small"  # small: a CPU run in minutes; paper: the published hyper-parameters
    c.seed = 0  # of the split, the initial weights, the order of samples, dropout and the bootstrap
    c.parallel = "jit"  # jit: one program over a mesh; pmap: one program a device
    c.precision = "float32"  # of a step's products: float32 | bfloat16; weights, moments and losses stay float32
    c.programs = "auto"  # of a step: one | two (gradient, update; the same numbers) | auto: two for large ones on CPU
    c.compilation_cache = ""  # folder that keeps compiled programs for later runs; sweeps have one of their own
    c.profile = ""  # FIRST:STOP, steps of which a trace is written to profile/ in the workdir (docs/performance.md)
    c.devices = 0  # how many devices to use, of all processes together; 0 is all
    c.expert_devices = 1  # devices that share the experts' weights; divides devices and fusion.experts
    c.ensemble = 1  # networks of different initial weights, trained in one program; their probabilities are averaged
    c.ensemble_plain = 0  # how many of them train without group routers, group imputation and group weights
    c.sampler = "shuffled"  # shuffled | group_balanced | most_modalities_first | group_pairs | fair_batch
    c.sampler_epochs = 5  # most_modalities_first: epochs sorted by number of modalities before they are shuffled
    c.sampler_pairs = "random"  # group_pairs: random (two groups) | vs_rest (a group and all others)
    c.sampler_alpha = 0.005  # fair_batch: share of a batch that moves between groups after each epoch
    c.sampler_move = "minmax"  # fair_batch: minmax (lowest to highest loss) | adjacent (largest gap of neighbours)
    c.sampler_floor = True  # fair_batch: a combination whose share has fallen to nothing has a sample an epoch

    c.data = data = ml_collections.ConfigDict()
    data.source = ""  # a name of remind_jax.data.sources.SOURCES
    data.root = ""  # folder of the real data; empty trains on the twin where there is one
    data.cache = ""  # folder of prepared shards; empty is ~/.cache/remind_jax
    data.fractions = (0.7, 0.1, 0.2)  # train, tuning, held_out by patient, where the data bring no split
    data.max_tokens = 96  # longest text or code list, in tokens
    data.vocabulary = 4_000  # largest fitted vocabulary
    data.numbers = "standard"  # standard | quantile (to a normal distribution) | piecewise | periodic (waves beside it)
    data.bins = 8  # most pieces or waves of a column, data.numbers=piecewise or periodic
    data.tokenizer = ""  # folder or hub name of a pretrained tokenizer; empty fits one on the train rows
    data.image_size = 32  # images and frames are resized to this height and width; 224 for published encoders
    data.frames = 8  # frames of a volume
    data.bad_files = "refuse"  # refuse (E007) | missing: an unreadable file counts as missing, with a warning
    data.complete_only = False  # leave out samples that lack a modality
    data.hide = ""  # a modality taken away from a share of the samples, in every split (paper, Table 5)
    data.hide_rate = 0.8  # that share, of the samples that have it and something else
    data.leave_out = ()  # combinations kept from training and tuning, such as ("labs", "labs+icd"), and still held out
    data.memory_gib = 4.0  # encoded inputs up to this size are held in memory, larger ones read from shards

    c.groups = groups = ml_collections.ConfigDict()
    groups.tail_below = 0.15  # combinations with a smaller train fraction are tail (paper, section 4)
    groups.tail = ()  # or an explicit list of combinations, such as ("notes", "labs+icd")

    c.model = model = ml_collections.ConfigDict()
    model.width = 32  # d, of the tokens
    model.tokens = 1  # t, tokens of each modality
    model.encoder_hidden = 0  # hidden layer of patch encoders; 0 is the paper's linear map
    model.encoder_dropout = 0.4  # paper, tabular: 0.25
    model.text_size = "small"  # small | base (T5-base)
    model.text_gated = True  # gated GELU (T5 v1.1) or ReLU (v1.0)
    model.remat = False  # compute layers of text and ViT encoders again in the backward pass: less memory, more work
    model.image_encoder = "vit_small"  # vit_small | vit_tiny, vit_base (/16) | resnet_small | resnet50
    model.volume_encoder = "r3d_small"  # r3d_small | r3d_18
    model.imputation = "group"  # group (paper) | modality | modality+group | bank (group × modality) | zero
    model.modality_embedding = False  # add a learned vector of its modality to every token
    model.pooling = "mean"  # mean | observed | first | attention
    model.wide = False  # add a linear map from the tokens of present modalities to the logits, zero at first
    model.members = 1  # predictors that share all weights but rank-1 adapters and heads; probabilities are averaged

    c.pretrained = pretrained = ml_collections.ConfigDict()
    # Each a .safetensors file, a folder that holds one, or a hub name; empty starts from random weights.
    pretrained.text = ""  # T5 for model.text_size and text_gated; set data.tokenizer to the same folder or name
    pretrained.image = ""  # for model.image_encoder
    pretrained.volume = ""  # for model.volume_encoder

    c.fusion = fusion = ml_collections.ConfigDict()
    fusion.blocks = 1  # attention + soft-MoE blocks; the paper's parameter count fits one
    fusion.kind = "soft_moe"  # soft_moe | fuse_moe | flex_moe
    fusion.heads = 8  # h, of the attention
    fusion.experts = 8  # e, networks that tokens are mixed through
    fusion.slots = 1  # s, of each expert
    fusion.hidden = 64  # f, hidden width of an expert
    fusion.preset = "official"  # official | paper_eq | m4oe | paper_listing (remind_jax/ops/soft_moe.py)
    fusion.scale = 1.0  # initial length of a normalised router
    fusion.learn_scale = True  # train that length
    fusion.norm = "pre"  # pre | post
    fusion.residual = True  # add each sublayer to its input
    fusion.mask_missing = False  # hide imputed tokens from attention and dispatch
    fusion.group_routers = True  # Φ_g of Eq. 7
    fusion.router_rank = 0  # 0: Φ_g is a row of a table | r: the sum of pairs of rank r of the modalities present
    fusion.residual_init = "zero"  # zero | sinusoidal (Table 16)
    fusion.add_after_norm = False  # add Φ_g after the shared router is normalised
    fusion.gate_metric = "entropy"  # a key of remind_jax.ops.routing.UNCERTAINTY_METRICS
    fusion.gate_threshold = 0.8  # uncertainty from which on the gate is open; entropies as a share of their maximum
    fusion.gate_granularity = "sample"  # sample | token | batch
    fusion.train_gate = "gated"  # gated | always | never, in stage 2
    fusion.eval_gate = "gated"  # the same in evaluation
    fusion.top_k = 2  # experts of a token (fuse_moe, flex_moe)
    fusion.routing = "per_modality"  # joint (one router) | per_modality | disjoint (experts of each modality as well)
    fusion.scores = "laplace"  # softmax (product) | gaussian (minus squared distance) | laplace (minus distance)
    fusion.noise = True  # learnable noise on the scores in training
    fusion.share_experts = False  # flex_moe: combinations share experts in turn where there are more than experts
    fusion.dropout = 0.4  # rate on the outputs of attention and experts

    c.objective = objective = ml_collections.ConfigDict()
    objective.kind = "group_dro"  # erm | reweigh | group_dro
    objective.loss = "cross_entropy"  # cross_entropy | focal
    objective.focal_gamma = 2.0  # how strongly well classified samples are played down; 0 is cross entropy
    objective.focal_alpha = "none"  # none | inverse_class (1 - class fraction)
    objective.focal_detach = False  # no gradient through the modulating factor
    objective.cells = "combination"  # combination | combination_class: groups of reweigh, group_dro, group_balanced
    objective.reweigh_rule = "power"  # power | effective_number
    objective.reweigh_power = 1.0  # weight of a group ∝ n_g^-power
    objective.reweigh_beta = 0.999  # weight of a group ∝ (1 - beta) / (1 - beta^n_g)
    objective.reweigh_cap = 0.0  # largest weight; 0 is no limit
    objective.mixup_weight = 0.0  # of Fair Mixup's penalty, beside any kind; needs sampler=group_pairs
    objective.mixup_beta = 1.0  # positions on the path between two groups ~ Beta(beta, beta)
    objective.distill_weight = 0.0  # of the distance from what a sample predicts unhidden (train.hide_samples)
    objective.prior = "none"  # none | class | class_given_group: logit adjustment, beside any kind
    objective.prior_mode = "loss"  # loss: added to logits in training | posthoc: subtracted in predictions
    objective.prior_tau = 1.0  # times the log prior
    objective.prior_smoothing = 1.0  # samples added to each class of a group
    objective.balance_weight = 0.01  # of unevenly used experts (fuse_moe, flex_moe)
    objective.entropy_weight = 0.01  # of modalities that use the same experts (fuse_moe with per_modality)
    objective.specialize_weight = 0.01  # of a combination's expert that the router does not choose (flex_moe)

    c.dro = dro = ml_collections.ConfigDict()
    dro.gamma = 0.02  # sharpness of the weight update (Eq. 4)
    dro.every = 10  # steps between updates (N); what matters is gamma * steps / every
    dro.initial = "sqrt_frequency"  # uniform | frequency | sqrt_frequency
    dro.adjustment = 0.0  # C of the C / sqrt(n_g) adjustment
    dro.weights = "current"  # current: a step uses the λ before its update (Eq. 3) | updated: after (Sagawa et al.)
    dro.stages = "both"  # both | specialize: group weights act in stage 2 only
    dro.normalize_present = False  # divide by the λ of the groups in the batch
    dro.absent = "last"  # loss of a group without samples between updates: last known | zero (Sagawa et al.)

    c.train = train = ml_collections.ConfigDict()
    train.epochs = 20.0  # of both stages together
    train.joint_epochs = 5.0  # stage 1: everything but the group routers; 0 trains all at once
    train.batch_norm = "frozen"  # frozen: by running statistics, safe for small batches | batch: by those of the batch
    train.freeze = "encoders"  # in stage 2: encoders (maps into the fusion width stay) | encoders+projections | nothing
    train.frozen_dropout = False  # dropout inside frozen encoders too; their features cannot be kept then
    train.feature_cache = "auto"  # of frozen encoders in stage 2: off | memory | device | disk | auto: where it pays
    train.feature_dtype = "bfloat16"  # of kept features: bfloat16 | float32 (twice the space)
    train.hide_samples = 0.0  # modality dropout: share of a batch's samples that lose modalities
    train.hide_modalities = 0.3  # with what probability such a sample loses each; one always stays
    train.baselines_two_stage = False  # the same two stages for methods without group routers
    train.batch_size = 64  # of all devices together
    train.accumulate = 1  # parts of a batch whose gradients are added one after the other: less memory, the same step
    train.evaluate_every = 1.0  # epochs
    train.patience = 0  # evaluations of stage 2 without improvement before it ends; 0 never
    train.select = "loss"  # tuning metric that picks the weights: loss | accuracy | macro_f1 | auroc | last
    train.keep_better_stage = False  # stage 2 starts from the best weights of stage 1 and must beat them to count
    train.log_every = 10  # steps between two records of metrics.jsonl
    train.tensorboard = False  # write TensorBoard event files beside metrics.jsonl; needs tensorboardX
    train.keep = 2  # newest checkpoints to keep: the second is there for when the first is damaged; 0 is all
    train.threads = 2  # that prepare batches
    train.max_rejected = 5  # steps in a row that are not finite before a run goes back to a checkpoint, once, and ends

    c.optim = optim = ml_collections.ConfigDict()
    optim.lr = 2e-3  # highest learning rate
    optim.weight_decay = 0.3  # decoupled, times the learning rate
    optim.decay = "weights"  # what it shrinks: weights | all (biases and norm scales too, as PyTorch's AdamW does)
    optim.schedule = "cosine"  # cosine | step (StepLR) | constant
    optim.warmup = 0.05  # share of all steps, cosine only
    optim.step_epochs = 5.0  # StepLR period (paper 7.4)
    optim.step_rate = 0.1  # StepLR factor
    optim.first_moment = "float32"  # of AdamW: float32 | bfloat16 (a sixth less memory traffic in the update)
    optim.gradient = "float32"  # summed over devices, kept between two programs: float32 | bfloat16 (half the bytes)
    optim.group_rows = "auto"  # of combinations, moved by a step: all | batch (its own) | auto: batch from many on
    optim.clip = 1.0  # largest global gradient norm; 0 is no clipping
    optim.ema = 0.98  # decay of the averaged weights that are evaluated; 0 is off

    c.eval = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 256  # rows at a time; no figure depends on it
    evaluation.adjust_prior = "none"  # accuracy | macro_f1: divide by the power of the class prior best in tuning
    evaluation.bootstrap = 1_000  # resamples of patients for the intervals
    return c


def paper_hyper_parameters(config: ml_collections.ConfigDict, *, experts: int, width: int, lr: float, decay: float):
    """Sets what the paper's data sets share (section 7.4): AdamW, StepLR(5, 0.1), focal loss, batch 32, 8 heads."""
    config.model.update(width=width, tokens=16, encoder_dropout=0.25, text_size="base", text_gated=False)
    config.fusion.update(heads=8, experts=experts, slots=1, hidden=4 * width, dropout=0.0)
    config.objective.update(loss="focal", focal_gamma=2.0)
    config.optim.update(lr=lr, weight_decay=decay, decay="all", clip=0.0, ema=0.0)
    config.optim.update(schedule="step", step_epochs=5.0, step_rate=0.1)
    config.train.update(batch_size=32, select="accuracy", joint_epochs=5.0, patience=0)
    config.dro.update(gamma=0.02, every=100, initial="uniform")
    config.data.update(max_tokens=512, vocabulary=32_000, image_size=224)


def parse_arg(arg: str) -> dict[str, str]:
    """Reads `key=value,key=value` with the keys `method` and `size`."""
    choices = {"method": tuple(METHODS), "size": SIZES}
    chosen = {"method": "remind", "size": "small"}
    for part in filter(None, (arg or "").split(",")):
        key, _, value = part.partition("=")
        if key not in choices:
            raise UserError(f"unknown config argument {key!r}{did_you_mean(key, choices)}; known: {', '.join(choices)}")
        if value not in choices[key]:
            raise UserError(
                f"unknown {key} {value!r}{did_you_mean(value, choices[key])}; known: {', '.join(choices[key])}"
            )
        chosen[key] = value
    return chosen


def apply_method(config: ml_collections.ConfigDict, method: str, group_imputation: str = "group"):
    """Sets the keys that a method stands for."""
    config.method = method
    for key, value in METHODS[method].items():
        *path, name = key.split(".")
        section = config
        for part in path:
            section = section[part]
        section[name] = group_imputation if value == "<group>" else value
