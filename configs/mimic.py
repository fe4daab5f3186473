"""MIMIC-IV: in-hospital mortality from notes, labs and ICD-9 codes (paper 7.4.2).

    python -m remind_jax.main --config=configs/mimic.py

With `data.root` empty it trains on the twin: synthetic stays with the published combinations and frequencies.
"""

from configs import common


def get_config(arg: str = ""):
    chosen = common.parse_arg(arg)
    config = common.base()
    config.size = chosen["size"]
    config.data.source = "mimic_iv"
    config.data.stays = 6_000  # of the twin
    config.data.seed = 0  # of the twin; the run's own seed splits it
    config.data.missing = "published"  # published | bernoulli (independent drops, empty rows redrawn)
    config.data.drop = 0.266  # probability of a drop under bernoulli
    config.groups.tail = ("notes", "labs", "icd")  # Table 2 marks these three as tail
    config.model.update(width=64, tokens=4, encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.data.max_tokens = 64
    config.train.epochs = 5.0
    config.train.joint_epochs = 3.0
    if config.size == "paper":
        common.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.train.epochs = 20.0
    common.apply_method(config, chosen["method"])
    return config
