"""The long tail on purpose: EMBED's six combinations, each with a rule of its own (`embed6-shift`).

    python -m remind_jax.main --config=configs/phenomenon.py

Synthetic: four modalities of two tokens, labels from interactions of latents that differ between combinations, rare
combinations under-fitted after five epochs. The setting in which group robustness and group routing pay.
"""

from configs import common
from remind_jax.data.sources import synthetic


def get_config(arg: str = ""):
    chosen = common.parse_arg(arg)
    config = common.base()
    config.size = chosen["size"]
    config.data.source = "synthetic"
    config.data.combinations = synthetic.EMBED
    config.data.train = 12_000
    config.data.tuning = 1_500
    config.data.held_out_per_group = 1_000
    config.data.classes = 2
    config.data.latent = 2  # width of a modality's latent
    config.data.tokens = 2  # observed tokens of a modality
    config.data.token_width = 16
    config.data.noise = 0.3
    config.data.shift = 0.9  # share of a combination's rule that is not common to all
    config.data.atoms = 3  # different rules that combinations share
    config.data.sharpness = 6.0  # of the label against its Gumbel noise
    config.model.update(width=64, encoder_hidden=64, encoder_dropout=0.0)
    config.fusion.update(preset="paper_eq", experts=16, hidden=128, dropout=0.0)
    config.fusion.update(gate_metric="joint_entropy", train_gate="always")
    config.optim.update(lr=1e-3, weight_decay=5e-5, warmup=0.0, clip=0.0, ema=0.0)
    config.train.update(epochs=5.0, joint_epochs=0.0, freeze="nothing", select="last")
    if config.size == "paper":
        common.paper_hyper_parameters(config, experts=128, width=768, lr=5e-5, decay=5e-5)
        config.train.epochs = 20.0
    common.apply_method(config, chosen["method"])
    return config
