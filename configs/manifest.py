"""Your own data: a folder with schema.yaml and manifest.csv or manifest.parquet (README, "Your own data").

    remind train --config=manifest --config.data.root=DIR

`remind import` makes such a folder of a table, `remind check` tells what is wrong with it.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg, methods.OWN)
    config = base("manifest")
    config.size = chosen["size"]
    config.model.update(width=64, tokens=4, text_encoder="auto")
    config.fusion.hidden = 128
    # Stage 2 must do better than the best of stage 1, and training ends where neither gains.
    config.train.update(keep_better_stage=True, patience=5)
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.train.epochs, config.model.text_encoder = 20.0, "t5"
    config.fusion.share_experts = True
    # A hospital's own data often have dozens of combinations, most of them rare.
    methods.apply_method(config, chosen["method"], group_imputation="modality+group")
    return config
