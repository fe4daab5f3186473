"""EMBED: breast density from C-view and 2D mammograms, CC and MLO (paper 7.4.2).

    remind train --config=embed

With `data.root` empty it trains on the twin: drawn images with the published combinations and frequencies.
docs/embed.md says what is read of the real data.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("embed")
    config.size = chosen["size"]
    config.model.update(width=64, image_encoder="vit_small", encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.train.epochs = 8.0
    config.train.joint_epochs = 5.0
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=5e-5, decay=5e-5)
        config.model.update(image_encoder="vit_base")
        config.data.exams = 512  # images of the twin are held in memory, 0.2 MB a sample at this size
        config.train.epochs = 20.0
        if chosen["method"] == "fair_mixup":  # "because it takes larger GPU memory" (7.4.2)
            config.optim.lr, config.train.batch_size = 2e-5, 16
    methods.apply_method(config, chosen["method"])
    return config
