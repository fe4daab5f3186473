"""GBSG2: time to recurrence or death of 686 women with breast cancer, right-censored, in four views.

    pip install lifelines
    remind train --config=gbsg2

Real people; the data arrive with pip (`lifelines`). Nothing is missing in them: 40 % of the women lose the view of
receptors, `--config.data.hide=` keeps it.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    config = base("gbsg2")
    config.data.update(hide="receptors", hide_rate=0.4)
    config.model.wide = True  # 299 events: what `fit` sets of itself (docs/own_data.md)
    config.train.update(batch_size=16, select="last")
    methods.apply_to_tables(config, methods.parse_arg(arg), classes=False)
    return config
