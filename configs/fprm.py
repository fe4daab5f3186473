"""FPRM: grades of deterioration from fundus photographs, flow videos, oxygen maps and a table (paper 7.4.1).

    remind train --config=fprm

The layout of the release is not public, so `data.root` is the folder of a manifest made from it (docs/fprm.md). With
`data.root` empty it trains on the twin: drawn images and volumes with the published combinations and frequencies.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("fprm")
    config.size = chosen["size"]
    # Table 3 counts all but the most frequent combination as tail.
    config.groups.tail = ("fundus", "fundus+flow+oxygen", "fundus+oxygen+tabular", "fundus+flow+oxygen+tabular")
    config.model.update(
        width=64, tokens=4, image_encoder="resnet_small", volume_encoder="r3d_small", encoder_dropout=0.1
    )
    config.fusion.update(experts=8, hidden=128, dropout=0.1)
    config.train.epochs = 6.0
    config.train.joint_epochs = 4.0
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=32, width=128, lr=5e-5, decay=5e-6)
        config.model.update(image_encoder="resnet50", volume_encoder="r3d_18")
        config.data.samples = 256  # images of the twin are held in memory, 2.8 MB a sample at this size
        config.data.frames = 16
        config.train.epochs = 50.0
    methods.apply_method(config, chosen["method"])
    return config
