"""Keys of section `data` that single data sets have, by `data.source`."""

from remind_jax.config.limits import AT_LEAST_ONE, BELOW_ONE, NOT_NEGATIVE, Key

_LEAKS = ("earlier", "paper")
# Combinations of EMBED and their frequencies (paper, section 7.4.2).
EMBED = (
    ("ffdm_cc", 0.030),
    ("cview_cc+ffdm_cc", 0.006),
    ("ffdm_mlo", 0.012),
    ("ffdm_cc+ffdm_mlo", 0.578),
    ("cview_cc+ffdm_cc+ffdm_mlo", 0.003),
    ("cview_cc+cview_mlo+ffdm_cc+ffdm_mlo", 0.371),
)
_LENGTHS = ("length_of_stay", "length_classes", "remaining_classes", "long_stay")
_TWIN_SEED = Key(0, "of the twin; the run's own seed splits it", NOT_NEGATIVE)
OF_SOURCES: dict[str, dict[str, Key]] = {
    "eicu": {
        "outcome": Key("died", "what is asked (docs/eicu.md)", ("died", "conditions", *_LENGTHS)),
        "hours": Key(48, "of the input window", AT_LEAST_ONE),
        "labs": Key(
            "numeric",
            "numeric: mean, min, max, last of items; last: that alone; events: all values, hourly means of vital signs",
            ("numeric", "last", "events"),
        ),
        "max_events": Key(512, "labs=events: most of a stay, the newest", AT_LEAST_ONE),
    },
    "embed": {
        "unit": Key("exam", "what a sample is", ("exam", "breast")),
        "key": Key("acc_anon", "what joins files and findings; study_date: and patient", ("acc_anon", "study_date")),
        "suffix": Key(".dcm", "how the names of the image files end", (".dcm", ".png", "_conv.png", ".jpg")),
        "exams": Key(3_000, "of the twin", AT_LEAST_ONE),
        "seed": _TWIN_SEED,
    },
    "events": {
        "stays": Key(3_000, "of the made-up data", AT_LEAST_ONE),
        "max_events": Key(256, "most events of a stay, the newest", AT_LEAST_ONE),
        "seed": Key(0, "of the made-up data; the run's own seed splits them", NOT_NEGATIVE),
    },
    "fprm": {"samples": Key(3_394, "of the twin", AT_LEAST_ONE), "seed": _TWIN_SEED},
    "manifest": {"digest": Key("", "of rows from memory (fit): a run folder serves these rows only")},
    "mimic_iv": {
        "notes_root": Key("", "folder of MIMIC-IV-Note; empty looks for note/ under data.root"),
        "images_root": Key("", "folder of MIMIC-CXR-JPG: adds the modality film; empty: there is none"),
        "label": Key("ihm48", "ihm48 is death in hospital", ("ihm48", "died_within_48h", "one_year")),
        "hours": Key(0, "of the input window; 0 is the label's: 48, 24, 24", NOT_NEGATIVE),
        "notes": Key("earlier", "earlier: signed within the window; paper: also later ones (leaks)", _LEAKS),
        "note_characters": Key(8_000, "most of the notes of a stay, newest first", AT_LEAST_ONE),
        "labs": Key(
            "text",
            'text: "name value unit; …"; numeric: mean, min, max, last of items; last: that alone; events: all values',
            ("text", "numeric", "last", "events"),
        ),
        "max_events": Key(512, "labs=events: most of a stay, the newest", AT_LEAST_ONE),
        "codes": Key("earlier", "earlier: of admissions before; paper: of this admission's discharge (leaks)", _LEAKS),
        "icd": Key("codes", "codes: their own vocabulary; text: for a text encoder such as T5", ("codes", "text")),
        "icd_versions": Key((9,), "(9,), (10,) or (9, 10)"),
        "missing": Key("", "empty: published (twin), natural (real data); bernoulli: independent drops"),
        "drop": Key(0.266, "probability of a drop under bernoulli", BELOW_ONE),
        "seed": Key(0, "of the twin and of bernoulli; the run's own seed splits the data", NOT_NEGATIVE),
        "stays": Key(6_000, "of the twin", AT_LEAST_ONE),
        "outcome": Key(
            "died",
            "what is asked (docs/mimic.md); the twin has died, conditions, length_of_stay and time_to_death",
            ("died", "conditions", *_LENGTHS, "time_to_death"),
        ),
        "cohort": Key(
            "stays",
            "single: stays that are alone in their admission and unit; admissions: rows are whole admissions",
            ("stays", "single", "admissions"),
        ),
    },
    "gbsg2": {},
    "nhanes": {
        "views": Key(7, "how many views: 5, 7 or 10"),
        "label": Key(
            "health",
            "self-rated health as classes or ordered grades, diagnoses (multilabel), glycated haemoglobin (regression)",
            ("health", "grades", "conditions", "glycohemoglobin"),
        ),
    },
    "support2": {
        "label": Key("hospital_death", "hospital_death (classes) or survival", ("hospital_death", "survival"))
    },
    "synthetic": {
        "combinations": Key(EMBED, "combinations and frequencies"),
        "train": Key(12_000, "training samples", AT_LEAST_ONE),
        "tuning": Key(1_500, "tuning samples", AT_LEAST_ONE),
        "held_out_per_group": Key(1_000, "held-out samples of each combination", AT_LEAST_ONE),
        "classes": Key(2, "of the label"),
        "latent": Key(2, "width of a modality's latent", AT_LEAST_ONE),
        "tokens": Key(2, "observed tokens of a modality", AT_LEAST_ONE),
        "token_width": Key(16, "numbers in a token", AT_LEAST_ONE),
        "noise": Key(0.3, "of the observation, in standard deviations", NOT_NEGATIVE),
        "shift": Key(0.9, "share of a combination's rule that is not common to all"),
        "atoms": Key(3, "different rules that combinations share", AT_LEAST_ONE),
        "sharpness": Key(6.0, "of the label against its Gumbel noise", NOT_NEGATIVE),
    },
    "uci_heart": {},
}
