"""The twin of MIMIC-IV: synthetic hospital stays in the shape of the paper's MIMIC experiment.

Everything here is synthetic. No text, value or code comes from a real patient; notes are put together from phrases
written for this file, lab lines and codes are drawn from random latents. The twin is there so that the text path, the
training loop and the reports of `configs/mimic.py` can be run and tested by people without access to the credentialed
data. No figure measured on it says anything about MIMIC-IV or about medicine.

How a stay is made: each modality has four latent factors (more is worse), partly shared by the stays of a patient. The
notes, labs and ICD-9-style codes show the factors of their own modality through noise. Death in hospital depends on
the factors of the modalities that are present: a sum of all of them that a bag of words can find, and products of
factors of two modalities whose weights differ between combinations, drawn as in `synthetic` (a stay with one modality
has weighted factors in place of products). Modalities are missing completely at random. `mimic_iv_outcomes` gives the
same stays other outcomes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import bernoulli_mask, combination_mask, parse_combinations
from remind_jax.data.schema import Modality, Schema
from remind_jax.data.sources import synthetic
from remind_jax.errors import UserError, did_you_mean

MODALITIES = ("notes", "labs", "icd")
"""In the order of the paper's section 7.4.2 (M1 clinical text, M2 labs, M3 ICD-9 codes)."""

ICD = ("codes", "text")
"""The kinds that the list of diagnoses can be read as."""

PUBLISHED = (
    ("notes", 0.048),
    ("labs", 0.052),
    ("notes+labs", 0.143),
    ("icd", 0.052),
    ("notes+icd", 0.155),
    ("labs+icd", 0.147),
    ("notes+labs+icd", 0.403),
)
"""The combinations and their frequencies in the paper's section 7.4.2."""

TITLE = "twin of MIMIC-IV (synthetic)"
SHOWN = {"title": "death in hospital", "names": (("0", "survived"), ("1", "died"))}  # by pages

_MAIN = 3.0  # standard deviation, in logits, of the main effects in a stay with all modalities
_INTERACTION = 1.6  # that of the cross-modal effects in every combination
_SHIFT = 0.7  # share of the cross-modal weights that is a combination's own, 0 (one rule for all) to 1
_PREVALENCE = 0.15  # expected share of deaths, the same in every combination
_MEMORY = 0.5  # correlation of the factors of two stays of one patient
FACTORS = 4
_STAYS_PER_PATIENT = 1.2

# A paragraph a factor of the notes (circulation, breathing, mind, strength): levels from good to bad, phrases of each.
_FINDINGS = tuple(
    [level.split("; ") for level in text.split(" / ")]
    for text in (
        "no chest pain or palpitations, warm extremities; hemodynamically stable, no edema; denies "
        "lightheadedness, strong pulses throughout / "
        "mild ankle edema, blood pressure acceptable; occasional palpitations, otherwise stable pressures; known "
        "murmur unchanged, trace edema / "
        "borderline low pressures responding to fluids; chest pain at rest, pulses weak; worsening edema and "
        "intermittent hypotension / "
        "profound hypotension requiring two vasopressors; shock with cold mottled extremities; refractory "
        "hypotension, pressors increased again",
        "breathing comfortably on room air, no distress; lungs clear, no shortness of breath; denies cough, no "
        "oxygen requirement / "
        "mild cough, two liters nasal cannula; slight wheeze at the bases, comfortable; short of breath on stairs "
        "only / "
        "increasing oxygen requirement on high flow; crackles in both lungs, visibly short of breath; labored "
        "breathing, started on face mask / "
        "intubated for respiratory failure; severe respiratory distress, mechanical ventilation continued; failed "
        "weaning trial, remains ventilated",
        "alert and oriented, no focal deficit; awake, conversant, no confusion; mental status at baseline, denies "
        "headache / "
        "mildly forgetful but easily redirected; sleepy yet arousable to voice; brief confusion overnight, now "
        "clear / "
        "disoriented and agitated, follows few commands; delirium persisting, restraints discussed; drowsy, "
        "answers only with single words / "
        "unresponsive off sedation; comatose, pupils sluggish, no purposeful movement; obtunded, does not open "
        "eyes to pain",
        "walking independently, no recent weight loss; lives independently, good appetite; tolerating a full diet, "
        "no falls / "
        "walks with a cane, appetite fair; needs some help with stairs; slightly deconditioned, works with therapy / "
        "frail, poor appetite, needs help with all transfers; marked weight loss over recent months; recurrent "
        "falls, mostly in bed or chair / "
        "bedbound and cachectic; family meeting held about goals of care, comfort measures considered; severe "
        "malnutrition with pressure ulcers, bedbound",
    )
)
_LEVELS = (-0.7, 0.4, 1.2)

_OPENINGS = (
    "{age} year old {sex} admitted from {place} for further evaluation.",
    "This is a {age} year old {sex} transferred from {place} two days ago.",
    "{age} y/o {sex} brought in from {place}, history obtained from relatives.",
)
_PLACES = ("home", "an outside hospital", "a nursing facility", "the clinic", "the emergency department")
# A note has up to one sentence of each bank; they say nothing about the factors.
_FILLERS = tuple(
    text.split(" / ")
    for text in (
        "Diet and activity were reviewed with the patient. / Home medications were reconciled by pharmacy. / No known "
        "drug allergies. / Social work was consulted about insurance questions. / Denies alcohol use, former smoker.",
        "Peripheral line in the left arm, site clean. / No nausea, vomiting or abdominal pain. / Family updated by "
        "telephone in the afternoon. / Physical therapy will see the patient tomorrow. / Skin warm and dry, no rash.",
    )
)
_LINKS = ("", "On exam ", "Today ", "Overnight ", "Nursing reports ", "Currently ")
_CLOSINGS = (
    "Plan discussed with the team.",
    "Will continue current management.",
    "Labs to be repeated in the morning.",
    "Follow up as scheduled.",
)

# name, unit, decimals, centre, spread, lower and upper reference limit, on a logarithmic scale, loadings of the four
# factors of the labs (kidney, liver, inflammation, blood).
_LABS = (
    ("sodium", "mEq/L", 0, 138.0, 6.0, 135, 145, False, (0.0, -0.3, 0.0, 0.0)),
    ("potassium", "mEq/L", 1, 4.2, 0.6, 3.5, 5.0, False, (0.6, 0.0, 0.0, 0.0)),
    ("bicarbonate", "mEq/L", 0, 24.5, 3.5, 22, 29, False, (-0.5, 0.0, -0.4, 0.0)),
    ("urea nitrogen", "mg/dL", 0, 19.0, 0.5, 7, 20, True, (0.8, 0.0, 0.0, 0.2)),
    ("creatinine", "mg/dL", 1, 1.1, 0.5, 0.5, 1.2, True, (0.9, 0.0, 0.0, 0.0)),
    ("phosphate", "mg/dL", 1, 3.6, 0.9, 2.5, 4.5, False, (0.6, 0.0, 0.0, 0.0)),
    ("bilirubin", "mg/dL", 1, 0.9, 0.8, 0.1, 1.2, True, (0.0, 0.9, 0.0, 0.0)),
    ("ALT", "U/L", 0, 30.0, 0.8, 5, 40, True, (0.0, 0.8, 0.0, 0.0)),
    ("INR", "ratio", 1, 1.25, 0.2, 0.8, 1.2, True, (0.0, 0.8, 0.0, 0.0)),
    ("albumin", "g/dL", 1, 3.5, 0.6, 3.5, 5.2, False, (0.0, -0.7, -0.2, 0.0)),
    ("WBC", "K/uL", 1, 10.0, 0.45, 4.0, 11.0, True, (0.0, 0.0, 0.8, 0.0)),
    ("lactate", "mmol/L", 1, 1.7, 0.5, 0.5, 2.0, True, (0.0, 0.0, 0.8, 0.0)),
    ("CRP", "mg/L", 0, 14.0, 0.9, 0, 10, True, (0.0, 0.0, 0.8, 0.0)),
    ("neutrophils", "%", 0, 73.0, 9.0, 40, 75, False, (0.0, 0.0, 0.7, 0.0)),
    ("hemoglobin", "g/dL", 1, 11.4, 1.7, 12.0, 16.0, False, (0.0, 0.0, 0.0, -0.8)),
    ("hematocrit", "%", 1, 34.5, 5.0, 36.0, 46.0, False, (0.0, 0.0, 0.0, -0.8)),
    ("platelets", "K/uL", 0, 200.0, 0.6, 150, 400, True, (0.0, 0.0, 0.0, -0.8)),
    ("RDW", "%", 1, 14.6, 1.5, 11.5, 15.5, False, (0.0, 0.0, 0.0, 0.7)),
    ("glucose", "mg/dL", 0, 128.0, 0.7, 70, 110, True, (0.0, 0.0, 0.0, 0.0)),
    ("magnesium", "mg/dL", 1, 2.0, 0.5, 1.6, 2.6, False, (0.0, 0.0, 0.0, 0.0)),
)
_LAB_NOISE = 0.4
# In spreads; keeps percentages below 100 and concentrations above 0.
_LAB_LIMIT = 2.7
_LABS_A_STAY = (8, 14)

# One entry a factor of the codes (heart, lungs, tumors, infection and organ failure): codes of the bad end, of the
# good end; each list from frequent to rare.
_CODES = (
    (
        "4280 42823 42833 42731 78551 41071 42821 4275 42741 4271 4254 42831 42843 41011 41041 42820 42830 4151",
        "41401 V4581 V4582 412 4139 4240 4241 42789 42611 4532 V4501 V4502",
    ),
    (
        "51881 5070 486 51884 51882 5185 48241 48242 4820 5119 5121 4829 51919 1363 4821 5192",
        "49390 V1582 3051 49320 32723 4660 4779 4719 7862 49392 5128 47819",
    ),
    (
        "1977 1985 1970 1983 1972 1629 1976 1579 1550 20280 20500 1890 1519 20300 1534 1749 1991",
        "V1046 V103 V1005 V1083 2113 2189 V1051 V1082 2166 2252 2270 V1002",
    ),
    (
        "0389 99592 78552 5849 5845 2762 99591 03811 570 03842 2867 5722 03849 99859 1125 03812 78559 0380",
        "5990 6826 6827 00845 4659 0414 7806 1121 1101 5950 68110 07032",
    ),
)
_COMMON_CODES = (
    "4019 25000 2724 53081 2449 311 2859 30000 2761 2768 27800 71590 73300 V5861 2749 60000 2809 78052 V1254 5641 "
    "40390 5859 2720 V5867 56210 36250 7245 34690 33829 V090 29410 V4365 4439 2722 25060 E8490 E8788 E9320 7840 78791"
)
# Codes seen once in a while: what makes real code lists long-tailed.
_RARE_CODES = tuple(f"{stem}{digit}" for stem in range(801, 900, 6) for digit in range(0, 9, 2))
_CODE_SLOPE = 1.6


def load_twin(
    *, n: int = 6_000, seed: int, missing: str = "published", drop: float = 0.266, icd: str = "codes"
) -> Manifest:
    """Makes `n` synthetic stays with notes, lab lines and ICD-9-style codes (see the module's text).

    About one patient in five has two stays. `missing="published"` draws combinations at the paper's frequencies,
    `bernoulli` drops every modality with probability `drop`, at least one staying; 0.266 gives the paper's table within
    one point. `icd` is the kind of that modality, one of `ICD`; `seed` makes everything.

    Returns a manifest with the modalities `notes`, `labs` (text) and `icd`, without a split column; "1" is death in
    hospital. Raises UserError: a parameter is out of range.
    """
    if icd not in ICD:
        raise UserError(f"data.icd is {icd!r}{did_you_mean(icd, ICD)}; known: {', '.join(ICD)}")
    stays = draw(n, seed, missing, drop)
    facts, fate, words, values, codes = (stream(seed, part) for part in (2, 4, 5, 6, 7))
    died = fate.random(n) < logistic(scores(stays, seed, _PREVALENCE, logistic))
    cells = {
        "notes": _notes(stays.latents[:, 0], stays.patient, facts, words),
        "labs": _lab_lines(stays.latents[:, 1], values),
        "icd": _code_lists(stays.latents[:, 2], codes),
    }
    return _manifest(stays.patient, died, stays.present, cells, icd)


class Stays(NamedTuple):
    """What decides of n stays: patients int [n], factors of each modality [n, m, l], which of them are there [n, m]."""

    patient: np.ndarray
    latents: np.ndarray
    present: np.ndarray


def draw(n: int, seed: int, missing: str = "published", drop: float = 0.266) -> Stays:
    """Draws what decides of `n` stays; arguments and errors are those of `load_twin`."""
    if missing not in ("published", "bernoulli"):
        raise UserError(f"missing must be 'published' or 'bernoulli', not {missing!r}")
    if n < 1:
        raise UserError(f"the twin needs n of at least 1, not {n}")
    people, gaps = stream(seed, 1), stream(seed, 3)
    patient = _patients(n, people)
    latents = _latents(patient, _MEMORY, people)
    if missing == "published":
        return Stays(patient, latents, combination_mask(n, *parse_combinations(PUBLISHED, MODALITIES), gaps))
    return Stays(patient, latents, bernoulli_mask(n, len(MODALITIES), drop, gaps))


def stream(seed: int, part: int) -> np.random.Generator:
    """Makes the random numbers of a part of the data; part 0 draws the rules (`synthetic.make_world`)."""
    return np.random.default_rng(np.random.SeedSequence((seed, part)))


def interaction_world(seed: int) -> synthetic.World:
    """Draws the cross-modal rules of a seed, an own one for each of the seven combinations."""
    return synthetic.interaction_world(MODALITIES, PUBLISHED, FACTORS, seed, _SHIFT)


def mortality_logits(
    latents: np.ndarray, group: np.ndarray, world: synthetic.World, main: float = _MAIN, cross: float = _INTERACTION
) -> np.ndarray:
    """Returns the logits of death up to the intercept, float64 [n].

    `latents` are the factors of every modality, present or not, [n,m,l]; `group`, int [n], is the row of `world.masks`
    that says what is present.
    """
    m, factors = latents.shape[1:]
    sums = np.einsum("nml,nm->n", latents, world.masks[group]) / np.sqrt(m * factors)
    return main * sums + cross * synthetic.contrast(world, latents, group)


def _manifest(
    patient: np.ndarray, died: np.ndarray, present: np.ndarray, cells: dict[str, list[str]], icd: str
) -> Manifest:
    columns = {
        "stay": [f"stay{i:06d}" for i in range(len(patient))],
        "patient": [f"patient{i:06d}" for i in patient],
        "died": np.where(died, "1", "0").tolist(),
    }
    for j, name in enumerate(MODALITIES):
        columns[name] = [cell if here else None for cell, here in zip(cells[name], present[:, j], strict=True)]
    table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    kinds = {"notes": "text", "labs": "text", "icd": icd}
    modalities = tuple(
        Modality(name, kind, (name,), title="ICD codes" * (name == "icd")) for name, kind in kinds.items()
    )
    schema = Schema("mimic_iv_twin", "stay", "patient", "died", ("0", "1"), modalities, **SHOWN)
    return Manifest(schema=schema, table=table, title=TITLE, published=dict(PUBLISHED))


def _patients(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the patient of each stay, int [n]: everyone has one stay, some a second one."""
    patients = max(1, round(n / _STAYS_PER_PATIENT), -(-n // 2))
    second = rng.choice(patients, size=n - patients, replace=False)
    return rng.permutation(np.concatenate([np.arange(patients), second]))


def _latents(patient: np.ndarray, memory: float, rng: np.random.Generator) -> np.ndarray:
    shape = (len(MODALITIES), FACTORS)
    lasting = rng.normal(size=(patient.max() + 1, *shape))[patient]
    return np.sqrt(memory) * lasting + np.sqrt(1 - memory) * rng.normal(size=(len(patient), *shape))


def scores(
    stays: Stays, seed: int, share: float, chance: Callable[[np.ndarray], np.ndarray], strength: float = 1.0
) -> np.ndarray:
    """Returns each stay's score, [n]: its logits, times `strength`, and a constant of its combination.

    The constant makes the mean of `chance`, a function of scores, `share` in every combination.
    """
    world, found = interaction_world(seed), np.zeros(len(stays.patient))
    for k, mask in enumerate(world.masks):
        # The rule of this combination is applied to all stays, so that a rare one gets a steady constant too.
        every = strength * mortality_logits(stays.latents, np.full(len(found), k), world)
        rows = (stays.present == mask).all(axis=1)
        found[rows] = every[rows] + _intercept(every, share, chance)
    return found


def logistic(score: np.ndarray) -> np.ndarray:
    """Returns the chance of an event with these logits."""
    return 1 / (1 + np.exp(-score))


def _intercept(scored: np.ndarray, share: float, chance: Callable[[np.ndarray], np.ndarray]) -> float:
    """Finds the constant that gives the scores the mean chance `share`, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(chance(scored + middle)) < share else (low, middle)
    return middle


def _notes(latents: np.ndarray, patient: np.ndarray, facts: np.random.Generator, rng: np.random.Generator) -> list[str]:
    n, patients = len(latents), patient.max() + 1
    age = np.clip(facts.normal(66, 15, patients), 18, 91).astype(int)[patient]
    sex = facts.choice(["man", "woman"], patients)[patient]
    level = np.digitize(latents + 0.25 * rng.normal(size=latents.shape), _LEVELS)
    careless = rng.random(level.shape) < 0.03
    level = np.where(careless, rng.integers(0, len(_LEVELS) + 1, level.shape), level)
    vitals = _vitals(latents, rng)
    # Every choice of the loop below is one uniform number drawn beforehand: single draws are slow.
    choice = rng.random((n, 2 * FACTORS + 6))
    order = rng.permuted(np.tile(np.arange(FACTORS + 3), (n, 1)), axis=1)
    notes = []
    for i in range(n):
        draw = choice[i]
        said = [
            _sentence(_pick(_LINKS, draw[2 * f]), _pick(_FINDINGS[f][level[i, f]], draw[2 * f + 1]))
            for f in range(FACTORS)
        ]
        rest = draw[2 * FACTORS :]
        fillers = [bank[int(u * 1.25 * len(bank))] if u < 0.8 else "" for bank, u in zip(_FILLERS, rest, strict=False)]
        parts = [*said, *fillers, vitals[i] if rest[2] < 0.6 else ""]
        opening = _pick(_OPENINGS, rest[3]).format(age=age[i], sex=sex[i], place=_pick(_PLACES, rest[4]))
        middle = (parts[j] for j in order[i] if parts[j])
        notes.append(" ".join([opening, *middle, _pick(_CLOSINGS, rest[5])]))
    return notes


def _pick(bank: Sequence[str], uniform: float) -> str:
    return bank[int(uniform * len(bank))]


def _sentence(link: str, finding: str) -> str:
    text = f"{link}{finding}."
    return text[0].upper() + text[1:]


def _vitals(latents: np.ndarray, rng: np.random.Generator) -> list[str]:
    noise = rng.normal(size=(len(latents), 4))
    rate = np.clip(86 + 9 * latents[:, 0] + 12 * noise[:, 0], 40, 170)
    pressure = np.clip(120 - 12 * latents[:, 0] + 12 * noise[:, 1], 60, 210)
    breaths = np.clip(19 + 3 * latents[:, 1] + 3 * noise[:, 2], 8, 45)
    oxygen = np.clip(95.5 - 1.5 * latents[:, 1] + 1.5 * noise[:, 3], 74, 100)
    rows = np.stack([rate, pressure, breaths, oxygen], axis=1).round().astype(int).tolist()
    return [f"Vitals HR {hr}, systolic BP {bp}, RR {rr}, SpO2 {spo2} percent." for hr, bp, rr, spo2 in rows]


def _lab_lines(latents: np.ndarray, rng: np.random.Generator) -> list[str]:
    n, panel = len(latents), len(_LABS)
    loadings = np.array([lab[8] for lab in _LABS])
    centre, spread, logarithmic = (np.array([lab[i] for lab in _LABS]) for i in (3, 4, 7))
    deviation = latents @ loadings.T + _LAB_NOISE * rng.normal(size=(n, panel))
    effect = spread * np.clip(deviation, -_LAB_LIMIT, _LAB_LIMIT)
    value = np.where(logarithmic, centre * np.exp(effect), centre + effect)
    rank = rng.random((n, panel)).argsort(axis=1).argsort(axis=1)
    taken = rank < rng.integers(_LABS_A_STAY[0], _LABS_A_STAY[1] + 1, size=(n, 1))
    lines = []
    for row, use in zip(value.tolist(), taken.tolist(), strict=True):
        items = []
        for lab, number, used in zip(_LABS, row, use, strict=True):
            if used:
                name, unit, decimals, _, _, low, high, *_ = lab
                shown = f"{number:.{decimals}f}"
                flag = " low" if float(shown) < low else " high" if float(shown) > high else ""
                items.append(f"{name} {shown} {unit}{flag}")
        lines.append("; ".join(items))
    return lines


def _code_lists(latents: np.ndarray, rng: np.random.Generator) -> list[str]:
    n = len(latents)
    codes, weight, slope = [], [], []
    axes = np.eye(FACTORS) * _CODE_SLOPE
    banks = [(ends[side].split(), 1.0, (1 - 2 * side) * axes[f]) for f, ends in enumerate(_CODES) for side in (0, 1)]
    banks += [(_COMMON_CODES.split(), 2.0, 0 * axes[0]), (list(_RARE_CODES), 0.4, 0 * axes[0])]
    for bank, mass, direction in banks:
        codes += bank
        weight += [mass / rank for rank in range(1, len(bank) + 1)]
        slope += [direction] * len(bank)
    # The largest of log weight plus Gumbel noise: draws without repetition, in proportion to the weights.
    score = np.log(weight) + latents @ np.array(slope).T + rng.gumbel(size=(n, len(codes)))
    count = np.clip(4 + rng.poisson(4.0, n), 4, 15).tolist()
    best = np.argsort(-score, axis=1)[:, :15]
    names = np.array(codes)[best].tolist()
    return [" ".join(row[:k]) for row, k in zip(names, count, strict=True)]
