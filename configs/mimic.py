"""MIMIC-IV: in-hospital mortality from notes, labs and ICD-9 codes (paper 7.4.2).

    python -m remind_jax.main --config=configs/mimic.py

With `data.root` empty it trains on the twin: synthetic stays with the published combinations and frequencies. The real
data, with notes: `--config.data.root=DIR --config.data.notes_root=DIR`; docs/mimic.md says how to get them and what the
options mean.
"""

from configs import common


def get_config(arg: str = ""):
    chosen = common.parse_arg(arg)
    config = common.base()
    config.size = chosen["size"]
    config.data.source = "mimic_iv"
    config.data.notes_root = ""  # folder of MIMIC-IV-Note; empty looks for note/ under data.root
    config.data.label = "ihm48"  # ihm48 (death in hospital) | died_within_48h | one_year
    config.data.hours = 0  # of the input window; 0 is the label's: 48, 24, 24
    config.data.notes = "earlier"  # earlier (signed within the window) | paper (also later ones: leaks)
    config.data.note_characters = 8_000  # most of the notes of a stay, newest first
    config.data.labs = "text"  # text ("name value unit; …") | numeric (mean, min, max, last of each item)
    config.data.codes = "earlier"  # earlier (of admissions before) | paper (of this admission's discharge: leaks)
    config.data.icd = "codes"  # codes (a vocabulary of its own) | text (for a text encoder, such as a pretrained T5)
    config.data.icd_versions = (9,)  # (9,), (10,) or (9, 10)
    config.data.missing = ""  # empty: published (twin), natural (real data) | bernoulli (independent drops)
    config.data.drop = 0.266  # probability of a drop under bernoulli
    config.data.seed = 0  # of the twin and of bernoulli; the run's own seed splits the data
    config.data.stays = 6_000  # of the twin
    config.groups.tail = ("notes", "labs", "icd")  # Table 2 marks these three as tail
    config.model.update(width=64, tokens=4, encoder_dropout=0.1)
    config.fusion.update(experts=16, hidden=128, dropout=0.1)
    config.data.max_tokens = 256
    config.train.epochs = 5.0
    config.train.joint_epochs = 3.0
    if config.size == "paper":
        common.paper_hyper_parameters(config, experts=128, width=768, lr=1e-4, decay=5e-5)
        config.data.icd = "text"  # "we treat each modality as text input" (7.4.2)
        config.train.epochs = 20.0
    common.apply_method(config, chosen["method"])
    return config
