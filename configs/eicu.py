"""eICU-CRD: death in hospital from six modalities of the first 48 hours in the unit, in 208 hospitals.

    remind train --config=eicu --config.data.root=DIR

Real people; which modalities a stay has depends on the hospital. docs/eicu.md says how to get the data and what else
can be asked.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("eicu")
    config.size = chosen["size"]
    config.model.update(width=64, tokens=4, encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.data.max_tokens = 128
    config.train.epochs = 5.0
    config.train.joint_epochs = 3.0
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.train.epochs = 20.0
    methods.apply_method(config, chosen["method"])
    return config
