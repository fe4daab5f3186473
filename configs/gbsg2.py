"""GBSG2: time to recurrence or death of 686 women with breast cancer, right-censored, in four views.

    pip install lifelines
    remind train --config=gbsg2

Real people; the data arrive with pip (`lifelines`). Nothing is missing in them: 40 % of the women lose the view of
receptors, `--config.data.hide=` keeps it.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("gbsg2")
    config.data.update(hide="receptors", hide_rate=0.4)
    config.size = chosen["size"]
    config.train.update(batch_size=32, patience=5)
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=32, width=128, lr=5e-5, decay=5e-6)
        config.objective.loss, config.train.select, config.train.epochs = "cross_entropy", "loss", 50.0
    config.fusion.share_experts = True
    methods.apply_method(config, chosen["method"], group_imputation="modality+group")
    return config
