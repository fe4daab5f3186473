"""EMBED: breast density from C-view and 2D mammograms, CC and MLO (paper 7.4.2).

    python -m remind_jax.main --config=configs/embed.py

With `data.root` empty it trains on the twin: drawn images with the published combinations and frequencies.
docs/embed.md says what is read of the real data.
"""

from configs import common


def get_config(arg: str = ""):
    chosen = common.parse_arg(arg)
    config = common.base()
    config.size = chosen["size"]
    config.data.source = "embed"
    config.data.unit = "exam"  # exam | breast: what a sample is
    config.data.key = "acc_anon"  # what joins files and findings: acc_anon | study_date (and patient)
    config.data.suffix = ".dcm"  # .dcm | .png | _conv.png | .jpg: how the names of the image files end
    config.data.exams = 3_000  # of the twin
    config.data.seed = 0  # of the twin; the run's own seed splits it
    config.model.update(width=64, image_encoder="vit_small", encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.train.epochs = 8.0
    config.train.joint_epochs = 5.0
    if config.size == "paper":
        common.paper_hyper_parameters(config, experts=128, width=768, lr=5e-5, decay=5e-5)
        config.model.update(image_encoder="vit_base")
        config.data.exams = 512  # images of the twin are held in memory, 0.2 MB a sample at this size
        config.train.epochs = 20.0
        if chosen["method"] == "fair_mixup":  # "because it takes larger GPU memory" (7.4.2)
            config.optim.lr, config.train.batch_size = 2e-5, 16
    common.apply_method(config, chosen["method"])
    return config
