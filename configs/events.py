"""Made-up stays with vital signs as events at irregular times, whose course decides (docs/events.md).

remind train --config=events
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("events")
    config.size = chosen["size"]
    config.model.update(width=64, tokens=4, encoder_dropout=0.1)
    config.fusion.update(experts=8, hidden=128, dropout=0.1)
    config.train.update(keep_better_stage=True, patience=5)
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.train.epochs = 20.0
    methods.apply_method(config, chosen["method"], group_imputation="modality+group")
    return config
