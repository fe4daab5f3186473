"""MIMIC-IV: in-hospital mortality from notes, labs and ICD-9 codes (paper 7.4.2).

    remind train --config=mimic

With `data.root` empty it trains on the twin: synthetic stays with the published combinations and frequencies. The real
data, with notes: `--config.data.root=DIR --config.data.notes_root=DIR`; docs/mimic.md says how to get them and what the
options mean.
"""

from remind_jax import methods
from remind_jax.config import base


def get_config(arg: str = ""):
    chosen = methods.parse_arg(arg)
    config = base("mimic_iv")
    config.size = chosen["size"]
    config.groups.tail = ("notes", "labs", "icd")  # Table 2 marks these three as tail
    config.model.update(width=64, tokens=4, encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.data.max_tokens = 256
    config.train.epochs = 5.0
    config.train.joint_epochs = 3.0
    if config.size == "paper":
        methods.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.data.icd = "text"  # "we treat each modality as text input" (7.4.2)
        config.train.epochs = 20.0
    methods.apply_method(config, chosen["method"])
    return config
