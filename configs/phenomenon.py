"""The long tail on purpose: EMBED's six combinations, each with a rule of its own (`embed6-shift`).

    remind train --config=phenomenon

Synthetic: four modalities of two tokens, labels from interactions of latents that differ between combinations, rare
combinations under-fitted after five epochs. The setting in which group robustness and group routing pay.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("synthetic")
    config.size = chosen["size"]
    config.model.update(width=64, encoder_hidden=64, encoder_dropout=0.0)
    config.fusion.update(preset="paper_eq", experts=16, hidden=128, dropout=0.0)
    config.fusion.update(gate_metric="joint_entropy", train_gate="always")
    config.optim.update(lr=1e-3, weight_decay=5e-5, warmup=0.0, clip=0.0, ema=0.0)
    config.train.update(epochs=5.0, joint_epochs=0.0, freeze="nothing", select="last")
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=5e-5, decay=5e-5)
        config.train.epochs = 20.0
    methods.apply_method(config, chosen["method"])
    return config
