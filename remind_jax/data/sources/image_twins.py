"""The twins of EMBED and FPRM: synthetic exams in the shape of the paper's two imaging experiments.

Everything here is synthetic. Pictures are drawn by `pictures` from random numbers, none comes from a patient, and no
figure measured on them says anything about EMBED, FPRM or medicine. The twins are there so that the image and video
paths, the training loop and the reports can be run and tested by people without access to the data.

How a sample is made: a severity z ~ N(0, 1), partly shared by the samples of a patient, and in every modality three
factors. The first is sqrt(r) z + sqrt(1 - r) noise, so each modality tells of z and all of them together tell more.
The other two are independent and enter through a rule of the combination of modalities that is present (concept
shift): products of factors of two modalities, or weighted factors of a single one, drawn as in `synthetic`. The class
is the interval that

    main * z + interaction * rule + logistic noise

falls into. The ends of the intervals belong to the combination, so that every combination has the same class
frequencies and presence does not tell the label. Modalities are missing completely at random.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from remind_jax.data import cells
from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import combination_mask
from remind_jax.data.schema import Modality, Schema
from remind_jax.data.sources import embed, pictures, synthetic
from remind_jax.errors import UserError

FPRM_MODALITIES = ("fundus", "flow", "oxygen", "tabular")
"""In the order of the paper's section 7.4.1 (M1 to M4)."""

FPRM_PUBLISHED = (
    ("fundus+tabular", 0.599),
    ("fundus", 0.177),
    ("fundus+flow+oxygen+tabular", 0.162),
    ("fundus+flow+oxygen", 0.053),
    ("fundus+oxygen+tabular", 0.008),
)
"""The combinations and their frequencies in the paper's section 7.4.1."""

TABULAR_WIDTH = 64
"""Numbers in FPRM's tabular modality (section 7.4.1)."""

_MAIN = 8.0  # standard deviation, in logits, of the effect of the severity
_INTERACTION = 3.0  # that of the combination's rule
_SHIFT = 0.7  # share of a combination's rule that is its own, 0 (one rule for all) to 1
_MEMORY = 0.5  # correlation of the severities of two samples of one patient
_CLARITY = 0.7  # r, the share of the variance of a modality's first factor that is the severity's
_RULE_FACTORS = 2
_REFERENCE = 8_192  # simulated samples that place the ends of the classes' intervals
_PIXELS_AT_ONCE = 1 << 18


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What the two twins differ in."""

    name: str  # of the schema
    title: str  # how reports name the data
    label: str  # how they name the label
    published: tuple[tuple[str, float], ...]  # combinations of modalities with their frequencies
    classes: tuple[str, ...]  # in order of severity
    shares: tuple[float, ...]  # frequency of each class
    samples_per_patient: float  # mean


@dataclasses.dataclass(frozen=True)
class _View:
    """One modality: its entry in the schema and what draws it, `draw(factors [n, 3], body [n, BODY], rng=rng)`."""

    modality: Modality
    draw: Callable[..., np.ndarray]


# EMBED: 72,770 exams of 23,253 patients. The class shares are chosen: about those of women who are screened.
_EMBED = _Recipe(
    name="embed_twin",
    title="twin of EMBED (synthetic)",
    label=embed.LABEL,
    published=embed.PUBLISHED,
    classes=embed.CLASSES,
    shares=(0.10, 0.42, 0.41, 0.07),
    samples_per_patient=72_770 / 23_253,
)
# FPRM: 3,394 samples of 1,683 patients. Number and shares of the grades are not published; three are chosen.
_FPRM = _Recipe(
    name="fprm_twin",
    title="twin of FPRM (synthetic)",
    label="grade of deterioration",
    published=FPRM_PUBLISHED,
    classes=("grade 0", "grade 1", "grade 2"),
    shares=(0.50, 0.30, 0.20),
    samples_per_patient=3_394 / 1_683,
)


def load_embed_twin(*, n: int = 3_000, seed: int, image_size: int = 32, missing: str = "published") -> Manifest:
    """Makes `n` synthetic mammography exams with a density class from A to D (see the module's text).

    `image_size` is s, height and width of the pictures, at least 16. `missing="published"` draws combinations at the
    paper's frequencies, `none` leaves every exam complete; `seed` makes everything.

    Returns a manifest with four modalities of kind image, uint8 [s, s, 1] held in cells, without a split column. Raises
    UserError: a parameter is out of range.
    """
    shape = (image_size, image_size, 1)
    views = []
    for name, title in embed.TITLES.items():
        how = {"oblique": name.endswith("mlo"), "synthetic": name.startswith("c_view")}
        draw = functools.partial(pictures.mammogram, size=image_size, **how)
        views.append(_View(Modality(name, "image", (name,), shape=shape, title=title), draw))
    return _load(_EMBED, views, n, seed, image_size, missing)


def load_fprm_twin(
    *, n: int = 3_394, seed: int, image_size: int = 32, frames: int = 8, missing: str = "published"
) -> Manifest:
    """Makes synthetic eye examinations with one of three grades (see the module's text).

    The flow video has `frames` (t), at least 2; the other arguments are as for `load_embed_twin`. Returns a manifest
    with `fundus` and `oxygen` (image, uint8 [s, s, 3]), `flow` (volume, uint8 [t, s, s, 1]) and `tabular` (64 numbers),
    without a split column. Raises UserError: a parameter is out of range.
    """
    if frames < 2:
        raise UserError(f"a video needs at least 2 frames, not {frames}")
    colour, video = (image_size, image_size, 3), (frames, image_size, image_size, 1)
    columns = tuple(f"value{i:02d}" for i in range(TABULAR_WIDTH))
    loadings = np.random.default_rng(np.random.SeedSequence((seed, 90))).normal(size=(3, TABULAR_WIDTH))
    fundus, oxygen = (functools.partial(draw, size=image_size) for draw in (pictures.fundus, pictures.oxygen))
    flow = functools.partial(pictures.flow, size=image_size, frames=frames)
    views = (
        _View(Modality("fundus", "image", ("fundus",), shape=colour), fundus),
        _View(Modality("flow", "volume", ("flow",), shape=video), flow),
        _View(Modality("oxygen", "image", ("oxygen",), shape=colour), oxygen),
        _View(Modality("tabular", "tabular", columns), functools.partial(_numbers, loadings)),
    )
    return _load(_FPRM, views, n, seed, image_size, missing)


def _numbers(loadings: np.ndarray, factors: np.ndarray, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws sums of the factors, float32 [n, 64], each number with noise twice as strong."""
    noise = 2.0 * rng.normal(size=(len(factors), loadings.shape[1]))
    return (factors @ loadings / np.sqrt(len(loadings)) + noise).astype(np.float32)


def _load(recipe: _Recipe, views: Sequence[_View], n: int, seed: int, image_size: int, missing: str) -> Manifest:
    if missing not in ("published", "none"):
        raise UserError(f"missing must be 'published' or 'none', not {missing!r}")
    if n < 1 or image_size < 16:
        raise UserError("the twin needs n of at least 1, image_size of at least 16")
    names = tuple(view.modality.name for view in views)
    world = synthetic.interaction_world(names, recipe.published, _RULE_FACTORS, seed, _SHIFT)
    people, gaps, fate = (np.random.default_rng(np.random.SeedSequence((seed, part))) for part in (1, 2, 3))
    patient = _patients(n, recipe.samples_per_patient, people)
    body = people.normal(size=(patient.max() + 1, pictures.BODY))[patient]
    severity, factors = draw_factors(patient, len(views), _CLARITY, _MEMORY, people)
    present = np.ones((n, len(views)), bool)
    if missing == "published":
        present = combination_mask(n, world.masks, world.probabilities, gaps)
    group = (present[:, None] == world.masks).all(axis=2).argmax(axis=1)
    score = scores(severity, factors[:, :, 1:], group, world) + fate.logistic(size=n)
    label = (score[:, None] > _cut_points(world, recipe.shares, seed)[group]).sum(axis=1)
    columns = {
        "sample": [f"sample{i:06d}" for i in range(n)],
        "patient": [f"patient{i:06d}" for i in patient],
        "label": np.array(recipe.classes)[label].tolist(),
    }
    for j, view in enumerate(views):
        rng = np.random.default_rng(np.random.SeedSequence((seed, 10 + j)))
        columns |= _cells(view, factors[:, j], body, present[:, j], rng)
    table, modalities = pl.DataFrame(columns), tuple(view.modality for view in views)
    schema = Schema(recipe.name, "sample", "patient", "label", recipe.classes, modalities, title=recipe.label)
    return Manifest(schema=schema, table=table, title=recipe.title, published=dict(recipe.published))


def draw_factors(
    patient: np.ndarray, m: int, clarity: float, memory: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the severity [n] and three factors of each of m modalities [n, m, 3], all of unit variance.

    `patient`, int [n], counts from 0. `clarity` is the share of the variance of each first factor that is the
    severity's, `memory` the correlation of the severities of two samples of one patient.
    """
    n = len(patient)
    lasting = rng.normal(size=patient.max() + 1)[patient]
    severity = np.sqrt(memory) * lasting + np.sqrt(1 - memory) * rng.normal(size=n)
    factors = rng.normal(size=(n, m, 1 + _RULE_FACTORS))
    factors[:, :, 0] = np.sqrt(clarity) * severity[:, None] + np.sqrt(1 - clarity) * factors[:, :, 0]
    return severity, factors


def scores(
    severity: np.ndarray,
    rules: np.ndarray,
    group: np.ndarray,
    world: synthetic.World,
    main: float = _MAIN,
    cross: float = _INTERACTION,
) -> np.ndarray:
    """Returns what the class depends on, before the noise, float64 [n].

    Besides the severity [n] this is `rules`, the second and third factor of every modality, present or not, [n, m, 2];
    `group`, int [n], is the row of `world.masks` that says what is present.
    """
    return main * severity + cross * synthetic.contrast(world, rules, group)


def _cut_points(world: synthetic.World, shares: tuple[float, ...], seed: int) -> np.ndarray:
    """Finds the inner ends of the classes' intervals, float64 [g, c - 1], from samples that are not in the data."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, 4)))
    severity, noise = rng.normal(size=_REFERENCE), rng.logistic(size=_REFERENCE)
    rules = rng.normal(size=(_REFERENCE, len(world.modalities), _RULE_FACTORS))
    inner = np.cumsum(shares)[:-1]
    cuts = []
    for k in range(len(world.masks)):
        score = scores(severity, rules, np.full(_REFERENCE, k), world) + noise
        cuts.append(np.quantile(score, inner))
    return np.array(cuts)


def _patients(n: int, samples_per_patient: float, rng: np.random.Generator) -> np.ndarray:
    """Draws the patient of each sample, int [n]; everyone has one or more."""
    patients = max(1, round(n / samples_per_patient))
    return rng.permutation(np.concatenate([np.arange(patients), rng.integers(patients, size=n - patients)]))


def _cells(
    view: _View, factors: np.ndarray, body: np.ndarray, present: np.ndarray, rng: np.random.Generator
) -> dict[str, pl.Series]:
    """Makes the columns of one modality; only what is present is drawn."""
    here = np.flatnonzero(present)
    modality = view.modality
    shape = modality.shape or (len(modality.columns),)
    values = np.empty((len(here), *shape), np.uint8 if modality.shape else np.float32)
    # In blocks: the drawings compute in float32 and need many times the memory of the result.
    step = max(1, _PIXELS_AT_ONCE // int(np.prod(shape)))
    for start in range(0, len(here), step):
        rows = here[start : start + step]
        values[start : start + step] = view.draw(factors[rows], body[rows], rng=rng)
    if modality.shape:
        return {modality.name: cells.spread(pl.Series(values, dtype=pl.Array(pl.UInt8, shape)), present)}
    return {c: cells.spread(pl.Series(values[:, i]).cast(pl.Float64), present) for i, c in enumerate(modality.columns)}
