"""Your own data: a folder with schema.yaml and manifest.csv or manifest.parquet (README, "Your own data").

python -m remind_jax.main --config=configs/manifest.py --config.data.root=DIR
"""

from configs import common


def get_config(arg: str = ""):
    chosen = common.parse_arg(arg)
    config = common.base()
    config.size = chosen["size"]
    config.data.source = "manifest"
    config.model.update(width=64, tokens=4)
    config.fusion.hidden = 128
    if config.size == "paper":
        common.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.train.epochs = 20.0
    config.fusion.share_experts = True
    # A hospital's own data often have dozens of combinations, most of them rare.
    common.apply_method(config, chosen["method"], group_imputation="modality+group")
    return config
