"""Every key of a config, once: its default, its meaning, and the values that it may have.

Those of single data sets stand in `sources`.
"""

from remind_jax.config.limits import (
    AT_LEAST_ONE,
    BELOW_ONE,
    FINITE,
    LAST_FOLD,
    NOT_NEGATIVE,
    PART,
    POSITIVE,
    SHARE,
    SPAN,
    TRACK,
    Key,
)
from remind_jax.config.sources import OF_SOURCES

_FLOATS = ("float32", "bfloat16")
_GATES = ("gated", "always", "never")

# Keys that files of older versions have, which decided no figure.
RETIRED = ("train.tensorboard",)

# By section; "" is the top of a config.
SECTIONS: dict[str, dict[str, Key]] = {
    "": {
        "method": Key(
            "remind", "a key of METHODS, ARENA or PLAIN in remind_jax/methods.py; by the argument string only"
        ),
        "size": Key("small", "small: a CPU run in minutes; paper: published hyper-parameters; quick: a smoke run"),
        "seed": Key(0, "of split, initial weights, order of samples, dropout and bootstrap", NOT_NEGATIVE),
        "parallel": Key("jit", "jit: one program over a mesh; pmap: one program a device", ("jit", "pmap")),
        "precision": Key("float32", "of a step's products; weights, moments and losses stay float32", _FLOATS),
        "programs": Key(
            "auto", "two: gradient and update; auto: two for large ones on CPU (same numbers)", ("auto", "one", "two")
        ),
        "encode": Key(
            "auto",
            "encoders run on all samples (dense) or those that have their modality; auto: so where it saves 5 % of a "
            "forward pass, tables apart",
            ("auto", "present", "dense"),
        ),
        "compilation_cache": Key("", "folder of yours that keeps compiled programs; empty: one in ~/.cache; off: none"),
        "profile": Key("", "FIRST:STOP, steps traced to profile/ in the workdir (docs/performance.md)", SPAN),
        "devices": Key(0, "how many devices to use, of all processes together; 0 is all", NOT_NEGATIVE),
        "expert_devices": Key(1, "devices that share the experts; divides devices and fusion.experts", AT_LEAST_ONE),
        "ensemble": Key(
            1, "networks of different initial weights, in one program; probabilities averaged", AT_LEAST_ONE
        ),
        "ensemble_plain": Key(
            0, "how many of them train without routers, imputation and weights of groups", NOT_NEGATIVE
        ),
        "stack": Key(
            "flex_moe,remind_plus,logistic_regression,ridge,cox,gradient_boosting",
            "of remind_stack and remind_blend: the candidates; plain models of other tasks are passed over",
        ),
        "chosen_among": Key(0, "trials of the search that chose these keys, which the report tells", NOT_NEGATIVE),
        "sampler": Key(
            "shuffled",
            "order of the training samples",
            ("shuffled", "group_balanced", "most_modalities_first", "group_pairs", "fair_batch", "knockout"),
        ),
        "sampler_epochs": Key(
            5, "most_modalities_first: epochs sorted by number of modalities before they are shuffled", NOT_NEGATIVE
        ),
        "sampler_alpha": Key(0.005, "fair_batch: share of a batch that moves between groups an epoch", POSITIVE),
        "sampler_every": Key(1.0, "knockout: epochs between two looks at what modalities add", POSITIVE),
        "sampler_power": Key(1.0, "knockout: how strongly rates follow it; 0: the same for all", NOT_NEGATIVE),
        "sampler_least": Key(0.02, "knockout: lowest rate of a modality", BELOW_ONE),
        "sampler_most": Key(0.5, "knockout: highest rate of a modality", BELOW_ONE),
        "sampler_floor": Key(True, "fair_batch: a combination whose share has fallen to nothing has a sample an epoch"),
    },
    "data": {
        "source": Key("", "the data set", tuple(OF_SOURCES)),
        "root": Key("", "folder of the real data; empty trains on the twin where there is one"),
        "cache": Key("", "folder of prepared shards; empty is ~/.cache/remind_jax; none decodes rows each time"),
        "fractions": Key((0.7, 0.1, 0.2), "train, tuning, held_out by patient, where the data bring no split"),
        "split": Key(
            "stratified",
            "by class and combination; hash: by seed and patient id alone, so that new patients move nobody",
            ("stratified", "hash"),
        ),
        "max_tokens": Key(96, "longest text or code list, in tokens"),
        "vocabulary": Key(4_000, "largest fitted vocabulary"),
        "numbers": Key(
            "standard",
            "how numbers are encoded; quantile: to a normal distribution; periodic: waves next to it",
            ("standard", "quantile", "piecewise", "periodic"),
        ),
        "bins": Key(8, "most pieces or waves of a column, data.numbers=piecewise or periodic", AT_LEAST_ONE),
        "tokenizer": Key("", "folder or hub name of a pretrained tokenizer; empty fits one on the train rows"),
        "image_size": Key(32, "height and width of images and frames; 224 for published encoders", AT_LEAST_ONE),
        "frames": Key(8, "frames of a volume", AT_LEAST_ONE),
        "window": Key(
            "stored",
            "values of pictures of more than 8 bits: all of them; dicom: the file's window; percentile: 0.5 to 99.5",
            ("stored", "dicom", "percentile"),
        ),
        "bad_files": Key(
            "refuse", "an unreadable file: refuse (E007), or count it as missing, with a warning", ("refuse", "missing")
        ),
        "complete_only": Key(False, "leave out samples that lack a modality"),
        "hide": Key("", "a modality taken away from a share of the samples, in every split (paper, Table 5)"),
        "hide_rate": Key(0.8, "that share, of the samples that have it and something else"),
        "lose": Key(
            "",
            "modalities of samples taken away, but for one; mcar: all alike, mar: by what stays, mnar: by their values",
            ("", "mcar", "mar", "mnar"),
        ),
        "lose_rate": Key(0.3, "the share of them that goes, but for those that stay", PART),
        "lose_in": Key("all", "from all samples, or from held-out ones only", ("all", "held_out")),
        "leave_rarest": Key(
            0.0, "the rarest combinations, up to this share of the samples, are held out only", BELOW_ONE
        ),
        "leave_out": Key((), 'combinations held out only, such as ("labs", "labs+icd")'),
        "folds": Key(
            0,
            "deal train and tuning rows to so many folds, by patient (remind_stack, searches); 0 deals none, 1 is the "
            "split as it is (remind_blend)",
            NOT_NEGATIVE,
        ),
        "fold": Key(
            -1,
            "the fold that this run tunes by, counted from 0, held-out rows unread; -1: all are train rows",
            LAST_FOLD,
        ),
        "memory_gib": Key(4.0, "encoded inputs up to this size are held in memory, others read from shards", POSITIVE),
    },
    "groups": {
        "tail_below": Key(0.15, "combinations with a smaller train fraction are tail (paper, section 4)", NOT_NEGATIVE),
        "tail": Key((), 'or an explicit list of combinations, such as ("notes", "labs+icd")'),
    },
    "model": {
        "width": Key(32, "d, of the tokens", AT_LEAST_ONE),
        "tokens": Key(1, "t, tokens of each modality; embeddings and a ViT keep their own number", AT_LEAST_ONE),
        "encoder_hidden": Key(0, "hidden layer of patch encoders; 0 is the paper's linear map", NOT_NEGATIVE),
        "encoder_dropout": Key(
            0.4, "rate on encoders' tokens and inside text encoders and hidden layers; paper, tabular: 0.25", BELOW_ONE
        ),
        "text_encoder": Key(
            "t5",
            "of texts and lists of codes; bag: the mean of learned vectors of their terms; auto: bag with fewer than "
            "20,000 samples, where pretrained.text is empty",
            ("t5", "bag", "auto"),
        ),
        "text_size": Key("small", "of the text encoder; base is T5-base", ("small", "base")),
        "text_gated": Key(True, "gated GELU (T5 v1.1) or ReLU (v1.0)"),
        "remat": Key(False, "compute text and ViT layers again in the backward pass: less memory, more work"),
        "event_layers": Key(
            0, "of attention between events; their work grows with the square of the number", NOT_NEGATIVE
        ),
        "image_encoder": Key(
            "vit_small", "vit_base is ViT-B/16", ("vit_small", "vit_tiny", "vit_base", "resnet_small", "resnet50")
        ),
        "volume_encoder": Key("r3d_small", "of flow and other volumes", ("r3d_small", "r3d_18")),
        "imputation": Key(
            "group",
            "tokens of a missing modality; group: the paper's; bank: one per group and modality; mean: a running mean",
            ("group", "modality", "modality+group", "bank", "zero", "mean"),
        ),
        "modality_embedding": Key(False, "add a learned vector of its modality to every token"),
        "mask_input": Key(False, "add a linear map of which modalities a sample has to every token"),
        "pooling": Key(
            "mean",
            "of tokens before the head: over all, observed: of present modalities, modalities: of each, side by side",
            ("mean", "observed", "first", "attention", "modalities"),
        ),
        "wide": Key(False, "add a linear map from the tokens of present modalities to the logits, zero at first"),
        "members": Key(
            1, "predictors that share all but rank-1 adapters and heads; probabilities averaged", AT_LEAST_ONE
        ),
    },
    # Each a .safetensors file, a folder that holds one, or a hub name; empty starts from random weights.
    "pretrained": {
        "text": Key(
            "", "T5 for model.text_size and text_gated (file, folder or hub name); set data.tokenizer to the same"
        ),
        "image": Key("", "weights for model.image_encoder: file, folder or hub name"),
        "volume": Key("", "weights for model.volume_encoder: file, folder or hub name"),
    },
    "fusion": {
        "blocks": Key(1, "attention and mixture-of-experts blocks; the paper's parameter count fits one", AT_LEAST_ONE),
        "kind": Key("soft_moe", "how tokens reach experts: a key of models.fusion.FUSIONS"),
        "heads": Key(8, "h, of the attention", AT_LEAST_ONE),
        "experts": Key(8, "e, networks that tokens are mixed through"),
        "slots": Key(1, "s, of each expert", AT_LEAST_ONE),
        "hidden": Key(64, "f, hidden width of an expert", AT_LEAST_ONE),
        "preset": Key(
            "official", "form of the router (ops/soft_moe.py)", ("official", "paper_eq", "m4oe", "paper_listing")
        ),
        "scale": Key(1.0, "initial length of a normalised router"),
        "learn_scale": Key(True, "train that length"),
        "norm": Key("pre", "layer norm before each sublayer, or after its residual sum", ("pre", "post")),
        "residual": Key(True, "add each sublayer to its input"),
        "mask_missing": Key(False, "hide imputed tokens from attention and dispatch"),
        "group_routers": Key(True, "Φ_g of Eq. 7: a residual router of each combination"),
        "router_rank": Key(
            0, "0: Φ_g is a row of a table; r: the sum of pairs of rank r of the modalities present", NOT_NEGATIVE
        ),
        "residual_init": Key("zero", "initial Φ_g; sinusoidal is of Table 16", ("zero", "sinusoidal")),
        "add_after_norm": Key(False, "add Φ_g after the shared router is normalised"),
        "gate_metric": Key(
            "entropy",
            "uncertainty by which the gate decides",
            ("entropy", "joint_entropy", "gini", "certainty", "max_probability", "margin", "variance", "kl"),
        ),
        "gate_threshold": Key(
            0.8,
            "uncertainty from which on the gate is open, entropies as a share of the largest; auto: by gate_share",
            FINITE,
            ("auto",),
        ),
        # With the logits and the threshold of Eq. 8 it was open for .72 to .94 of the samples (docs/methods.md).
        "gate_share": Key(
            0.8, "gate_threshold=auto: share of the tuning rows that the gate opens as stage 2 begins", SHARE
        ),
        "gate_granularity": Key("sample", "what has a gate of its own", ("sample", "token", "batch")),
        "train_gate": Key("gated", "whether group routers act in stage 2", _GATES),
        "eval_gate": Key("gated", "the same in evaluation", _GATES),
        "top_k": Key(2, "experts of a token (fuse_moe, flex_moe)", AT_LEAST_ONE),
        "routing": Key(
            "per_modality",
            "joint: one router; disjoint: experts of each modality as well",
            ("joint", "per_modality", "disjoint"),
        ),
        "scores": Key(
            "laplace",
            "softmax: product; gaussian: minus squared distance; laplace: minus distance",
            ("softmax", "gaussian", "laplace"),
        ),
        "share_experts": Key(False, "flex_moe: combinations share experts in turn where there are more than experts"),
        "attention": Key("all", "what tokens read (fuse_moe, flex_moe); own: of their modality", ("all", "own")),
        "attention_base": Key("input", "what attention is added to; itself: Flex-MoE as released", ("input", "itself")),
        "combine": Key("sum", "of sparse experts; log: of probabilities, FuseMoE as released", ("sum", "log")),
        "centres": Key(10, "k, of the vectors of each modality, that missing ones are mixed of (smil)", AT_LEAST_ONE),
        "bank": Key(256, "train rows that a model keeps, encoded, to find neighbours among (m3care)", AT_LEAST_ONE),
        "latents": Key(8, "l, vectors that read the modalities (healnet, umse)", AT_LEAST_ONE),
        "dropout": Key(0.4, "rate on the outputs of attention and experts", BELOW_ONE),
    },
    "task": {  # of labels other than classes
        "predicts": Key("mean", "of a number; the others have bounds, too", ("mean", "gaussian", "quantiles")),
        "level": Key(0.9, "share of values that the bounds of a number promise to hold", SHARE),
        "bins": Key(10, "steps of survival, between quantiles of the event times of training", AT_LEAST_ONE),
    },
    "objective": {
        "kind": Key("group_dro", "how groups are weighted", ("erm", "reweigh", "group_dro")),
        "loss": Key("cross_entropy", "of a sample", ("cross_entropy", "focal")),
        "focal_gamma": Key(2.0, "how strongly well classified samples are played down; 0: cross entropy", NOT_NEGATIVE),
        "focal_alpha": Key("none", "factor of a class; inverse_class is 1 - class fraction", ("none", "inverse_class")),
        "focal_detach": Key(False, "no gradient through the modulating factor"),
        "reweigh_rule": Key(
            "power", "by train samples, or their effective number (β = 0.999)", ("power", "effective_number")
        ),
        "mixup_weight": Key(0.0, "of Fair Mixup's penalty, next to any kind; needs sampler=group_pairs", NOT_NEGATIVE),
        "expert_share": Key(0.0, "of a loss what the mean loss of single modalities' predictors is", PART),
        "align_weight": Key(0.1, "of what modalities share being apart (shaspec, drfuse)", NOT_NEGATIVE),
        "distinct_weight": Key(0.02, "of what is a modality's own being like the rest (shaspec, drfuse)", NOT_NEGATIVE),
        "rank_weight": Key(0.0, "of outputs that weigh a worse predictor more (drfuse)", NOT_NEGATIVE),
        "meta_weight": Key(0.0, "of the loss after a step of the inner loop, in stage 2 (smil)", NOT_NEGATIVE),
        "meta_rate": Key(0.001, "learning rate of that step", NOT_NEGATIVE),
        "meta_align": Key(0.01, "of completed vectors away from true ones, as a part of meta_weight", NOT_NEGATIVE),
        "stability_weight": Key(0.1, "of lengths that the space of similarity changes (m3care)", NOT_NEGATIVE),
        "pretrain": Key(False, "stage 1 trains the predictors of single modalities, each by itself (medfuse)"),
        "fewer_weight": Key(0.0, "of the loss after losing modalities at random (simmlm)", NOT_NEGATIVE),
        "mofe_weight": Key(0.0, "of what that loss is below the loss with all of them (simmlm)", NOT_NEGATIVE),
        "distill_weight": Key(0.0, "of the distance from the unhidden prediction (train.hide_samples)", NOT_NEGATIVE),
        "prior": Key(
            "none", "logit adjustment by this prior, next to any kind", ("none", "class", "class_given_group")
        ),
        "prior_mode": Key(
            "loss", "loss: added to logits in training; posthoc: subtracted in predictions", ("loss", "posthoc")
        ),
        "balance_weight": Key(0.01, "of unevenly used experts (fuse_moe, flex_moe)", NOT_NEGATIVE),
        "entropy_weight": Key(0.01, "of modalities that use the same experts (fuse_moe, per_modality)", NOT_NEGATIVE),
        "specialize_weight": Key(0.01, "of a combination's expert not chosen by the router (flex_moe)", NOT_NEGATIVE),
    },
    "dro": {
        "gamma": Key(0.02, "sharpness of the weight update (Eq. 4)", NOT_NEGATIVE),
        "every": Key(10, "steps between updates (N); what matters is gamma * steps / every", AT_LEAST_ONE),
        "initial": Key("sqrt_frequency", "first λ", ("uniform", "frequency", "sqrt_frequency")),
        "weights": Key(
            "current",
            "current: λ before a step's update (Eq. 3); updated: after (Sagawa et al.)",
            ("current", "updated"),
        ),
        "stages": Key("both", "specialize: group weights act in stage 2 only", ("both", "specialize")),
        "normalize_present": Key(False, "divide by the λ of the groups in the batch"),
        "absent": Key("last", "loss of an absent group between updates: last known or zero (Sagawa)", ("last", "zero")),
    },
    "train": {
        "epochs": Key(20.0, "of both stages together", POSITIVE),
        "joint_epochs": Key(5.0, "stage 1: everything but the group routers; 0 trains all at once", NOT_NEGATIVE),
        "batch_norm": Key(
            "frozen",
            "frozen: by running statistics, safe for small batches; batch: by the batch's",
            ("frozen", "batch"),
        ),
        "freeze": Key(
            "encoders",
            "in stage 2; encoders: the maps into the fusion width stay trainable",
            ("encoders", "encoders+projections", "nothing"),
        ),
        "feature_cache": Key(
            "auto",
            "where features of frozen encoders are kept in stage 2; auto: where it pays",
            ("auto", "off", "memory", "device", "disk"),
        ),
        "feature_dtype": Key("bfloat16", "of kept features; float32 takes twice the space", _FLOATS),
        "hide_samples": Key(0.0, "modality dropout: share of a batch's samples that lose modalities", NOT_NEGATIVE),
        "hide_modalities": Key(0.3, "with what probability such a sample loses each; one always stays", BELOW_ONE),
        "baselines_two_stage": Key(False, "the same two stages for methods without group routers"),
        "batch_size": Key(64, "samples of a step, of all devices together", AT_LEAST_ONE),
        "accumulate": Key(
            1, "parts of a batch whose gradients add up in turn: less memory, the same step", AT_LEAST_ONE
        ),
        "evaluate_every": Key(1.0, "epochs between evaluations on the tuning rows", POSITIVE),
        "patience": Key(0, "evaluations of stage 2 without improvement before it ends; 0 never", NOT_NEGATIVE),
        "select": Key(
            "loss",
            "tuning metric that picks the weights; one of the task's",
            (
                *("loss", "accuracy", "macro_f1", "auroc", "last"),  # of classes, as the next line of ordered ones
                *("mae", "qwk"),
                *("auroc_macro", "auprc_macro", "f1_macro"),  # of several labels
                *("rmse", "r2", "spearman"),  # of numbers, next to mae
                *("c_index", "c_uno", "ibs"),  # of survival
            ),
        ),
        "keep_better_stage": Key(False, "stage 2 starts from the best weights of stage 1 and must beat them to count"),
        "log_every": Key(10, "steps between two records of metrics.jsonl", AT_LEAST_ONE),
        "track": Key("", "who else is told of the run: tensorboard, mlflow, wandb, several by commas", TRACK),
        "keep": Key(2, "newest checkpoints to keep, in case one is damaged; 0 is all", NOT_NEGATIVE),
        "threads": Key(2, "that prepare batches", NOT_NEGATIVE),
    },
    "optim": {
        "lr": Key(2e-3, "highest learning rate", POSITIVE),
        "weight_decay": Key(0.3, "decoupled, times the learning rate", NOT_NEGATIVE),
        "decay": Key("weights", "what it shrinks; all: biases and norm scales too, as in PyTorch", ("weights", "all")),
        "schedule": Key("cosine", "of the learning rate; step is StepLR", ("cosine", "step", "constant")),
        "warmup": Key(0.05, "share of all steps, cosine only", BELOW_ONE),
        "step_epochs": Key(5.0, "StepLR period (paper 7.4)", POSITIVE),
        "step_rate": Key(0.1, "StepLR factor"),
        "first_moment": Key("float32", "of AdamW; bfloat16 is a sixth less memory traffic in the update", _FLOATS),
        "gradient": Key("float32", "summed over devices, kept between programs; bfloat16: half the bytes", _FLOATS),
        "group_rows": Key(
            "auto", "of combinations a step moves; batch: its own; auto: batch from many on", ("auto", "all", "batch")
        ),
        "clip": Key(1.0, "largest global gradient norm; 0 is no clipping", NOT_NEGATIVE),
        "ema": Key(0.98, "decay of the averaged weights that are evaluated; 0 is off", BELOW_ONE),
    },
    "eval": {
        "batch_size": Key(256, "rows at a time; no figure depends on it", AT_LEAST_ONE),
        "adjust_prior": Key(
            "none", "divide by the power of the class prior best in tuning by this", ("none", "accuracy", "macro_f1")
        ),
        "recalibrate": Key(
            "none",
            "probabilities by what fits tuning rows: a temperature, or curves that never fall",
            ("none", "temperature", "isotonic"),
        ),
        "coverage": Key(0.9, "share of sets of answers that should hold the truth; 0: no sets", BELOW_ONE),
        "bootstrap": Key(1_000, "resamples of patients for the intervals", AT_LEAST_ONE),
    },
}
