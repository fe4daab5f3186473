"""The arena: methods of several papers on open data sets, under several ways to lack modalities.

    remind sweep --config=arena --roots=heart=DIR --workdir=DIR

Everybody can get the data: docs/open_sets.md says where, docs/arena_run.md how the arena is run, grows and is checked.
"""

from remind_jax.methods import ARENA

# name of the set -> its config, and keys that differ in it; a set of your own is a line in a copy of this file.
SETS = {
    "heart": ("heart", {}),
    "nhanes": ("nhanes", {}),
    "nhanes_conditions": ("nhanes_conditions", {}),
    "gbsg2": ("gbsg2", {}),
    "support2": ("support2", {}),
}
METHODS = ("soft_moe", "remind", "remind_plus", "fuse_moe", "flex_moe", *ARENA, "gradient_boosting")
# How modalities are missing: keys, in which "<rate>" stands for the number behind the name (mcar-0.5), and its default.
PROTOCOLS = {
    "as_found": ({}, None),
    "mcar": ({"data.lose": "mcar", "data.lose_rate": "<rate>"}, 0.3),
    "mar": ({"data.lose": "mar", "data.lose_rate": "<rate>"}, 0.3),
    "mnar": ({"data.lose": "mnar", "data.lose_rate": "<rate>"}, 0.3),
    # Training as found; held-out samples lose what they lose under mcar.
    "shift": ({"data.lose": "mcar", "data.lose_rate": "<rate>", "data.lose_in": "held_out"}, 0.3),
    # No other combination is tail, so that figures of the tail are those of combinations that training has not seen.
    "unseen": ({"data.leave_rarest": "<rate>", "groups.tail_below": 0.0}, 0.2),
}
# Mean processor seconds of a run of these methods on an AMD EPYC: the guess before any run of the set has been timed.
SECONDS = {"heart": 7, "nhanes": 12, "nhanes_conditions": 13, "gbsg2": 9, "support2": 31}


def get_config(arg: str = ""):
    raise ValueError("configs/arena.py holds many data sets, not one: it is of remind sweep")
