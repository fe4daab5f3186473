"""The phenomenon generator `embed6-shift`: a long tail of modality combinations, each with a rule of its own.

Synthetic data in which the paper's claim can be tested: EMBED's six combinations with its published frequencies, a
label that depends on products of latents of two modalities, and weights of those products that differ between
combinations ("concept shift"). A seed is a world: observations, rules and samples all change with it.

The recipe, with m modalities, latent size l, groups k, classes c:

    u_i ~ N(0, I_l) for every modality i                        latents of one sample
    x_i = A_i u_i + noise * N(0, I)                             observed tokens, A_i entries ~ N(0, 1/l)
    W_k = sqrt(1 - shift^2) W_0 + shift W_a(k)                  weights of group k; a(k) one of a few shared atoms
    s_k = z_k * (sum over pairs i<j both present of W_k[ij] (u_i * u_j))      two or more modalities
    s_k = z_k * (W_k[i] u_i)                                                  a single modality
    label = argmax over classes of (sharpness * s_k + Gumbel noise)

Choices where the recipe says no more:
  * Classes: W_0 and each atom hold one weight vector of length l per class for every pair and every single modality,
    entries N(0, 1). A label of two classes is then a logistic one in the difference of the two scores.
  * Scale: z_k gives the difference of two class scores the standard deviation 1.25 (root mean square over the pairs of
    classes) in every combination, whatever its number of terms. So none is easy or hard by its scale alone, and with
    the defaults the best possible overall accuracy is 0.87 to 0.90 from seed to seed.
  * Atoms: in an order drawn per seed, one goes to all rare combinations (below 15 %), the others are given in turn to
    the frequent ones. A rare combination that shares its rule with a frequent one is learned from that one by any
    method; keeping them apart is what makes the shift a shift.
  * Training and tuning samples have the population's combination frequencies; held-out samples are equally many per
    combination, so that a rare one is measured as well as a frequent one. Overall figures are therefore to be weighted
    by `population_frequencies`.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl

from remind_jax.data.groups import group_name
from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import combination_mask, parse_combinations
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

MODALITIES = ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo")
"""EMBED's modalities in the order of the paper (M1 to M4)."""

EMBED = (
    ("ffdm_cc", 0.030),
    ("cview_cc+ffdm_cc", 0.006),
    ("ffdm_mlo", 0.012),
    ("ffdm_cc+ffdm_mlo", 0.578),
    ("cview_cc+ffdm_cc+ffdm_mlo", 0.003),
    ("cview_cc+cview_mlo+ffdm_cc+ffdm_mlo", 0.371),
)
"""EMBED's combinations and frequencies (paper, section 7.4.2)."""

RARE = 0.15
"""Combinations with a smaller probability are rare (the paper's tail rule)."""

SPREAD = 1.25
"""Standard deviation of the difference of two class scores, before the factor `sharpness`."""


@dataclasses.dataclass(frozen=True)
class World:
    """The rules of one seed.

    Attributes:
      modalities: m names.
      masks: bool [g,m], the combinations.
      probabilities: float64 [g], their population frequencies.
      mixing: float64 [m,t,d,l], latents to tokens.
      terms: int [j,2], the modalities of each term of the score: i<j for a product, i==j for a single modality.
      weights: float64 [g,j,c,l], W_k scaled by z_k and set to zero for the terms that group k does not use.
      noise: standard deviation of the observation noise.
      sharpness: factor of the scores in the logits.
    """

    modalities: tuple[str, ...]
    masks: np.ndarray
    probabilities: np.ndarray
    mixing: np.ndarray
    terms: np.ndarray
    weights: np.ndarray
    noise: float
    sharpness: float


def make_world(
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    combinations: Sequence[tuple[str, float]] = EMBED,
    latent: int = 2,
    tokens: int = 2,
    token_width: int = 16,
    noise: float = 0.3,
    shift: float = 0.9,
    atoms: int = 3,
    sharpness: float = 6.0,
    classes: int = 2,
) -> World:
    """Draws the rules of a seed; see the module's text for the recipe.

    Args:
      seed: the world.
      modalities: their names, in declared order.
      combinations: (`"a+b"`, probability) pairs.
      latent: size of a modality's latent vector.
      tokens: tokens per modality.
      token_width: width of a token.
      noise: standard deviation of the observation noise.
      shift: share of a combination's own rule, 0 (one rule for all) to 1.
      atoms: number of own rules that the combinations share.
      sharpness: factor of the scores in the logits; larger means less label noise.
      classes: number of classes.

    Raises:
      UserError: a parameter is out of range or a combination cannot be read.
    """
    if not 0 <= shift <= 1:
        raise UserError(f"shift must lie between 0 and 1, not {shift}")
    if min(latent, tokens, token_width, atoms) < 1 or classes < 2 or min(noise, sharpness) < 0:
        raise UserError("the sizes of the synthetic data must be at least 1, classes at least 2, noise at least 0")
    masks, probabilities = parse_combinations(combinations, modalities)
    rng = np.random.default_rng(np.random.SeedSequence((seed, 0)))
    m = len(modalities)
    mixing = rng.normal(size=(m, tokens, token_width, latent)) / np.sqrt(latent)
    terms = np.array(list(itertools.combinations_with_replacement(range(m), 2)))
    shared = rng.normal(size=(len(terms), classes, latent))
    own = rng.normal(size=(atoms, len(terms), classes, latent))
    atom = _deal_atoms(probabilities, atoms, rng)
    weights = np.sqrt(1 - shift**2) * shared + shift * own[atom]
    weights = _scale(weights * _used_terms(masks, terms)[:, :, None, None])
    return World(tuple(modalities), masks, probabilities, mixing, terms, weights, noise, sharpness)


def _deal_atoms(probabilities: np.ndarray, atoms: int, rng: np.random.Generator) -> np.ndarray:
    """The atom of each group [g]: one for all rare groups, the others for the frequent; evenly if all are alike."""
    rare = probabilities < RARE
    if atoms == 1 or atoms >= len(rare) or rare.all() or not rare.any():
        return rng.permutation(np.arange(len(rare)) % atoms)
    order = rng.permutation(atoms)
    atom = np.full(len(rare), order[-1])
    atom[~rare] = order[np.arange(np.sum(~rare)) % (atoms - 1)]
    return atom


def _used_terms(masks: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Which terms enter the score of each group: bool [g,j]."""
    single = terms[:, 0] == terms[:, 1]
    alone = masks.sum(axis=1) == 1
    return masks[:, terms].all(axis=2) & (single == alone[:, None])


def _scale(weights: np.ndarray) -> np.ndarray:
    """Scales each group's weights [g,j,c,l] so that two class scores differ with standard deviation `SPREAD`.

    The terms are uncorrelated with unit variance, so the variance of a difference is the sum of squared differences of
    weights; the mean over pairs of classes is twice the unbiased variance over classes.
    """
    variance = 2 * weights.var(axis=2, ddof=1).sum(axis=(1, 2))
    return weights * (SPREAD / np.sqrt(variance))[:, None, None, None]


def scores(world: World, latents: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Class scores s_k before the factor `sharpness`.

    Args:
      world: the rules.
      latents: [n,m,l]; those of absent modalities have no influence.
      group: int [n], the combination of each sample.

    Returns:
      float64 [n,c].
    """
    first, second = world.terms.T
    # A term of a single modality is the latent itself, not its square.
    partner = np.where((first == second)[None, :, None], 1.0, latents[:, second])
    features = latents[:, first] * partner
    return np.einsum("njl,njcl->nc", features, world.weights[group])


def bayes_accuracy(world: World, samples: int = 20_000, seed: int = 0) -> dict[str, float]:
    """The accuracy of the best rule that sees the latents, by simulation.

    No model can exceed it; the observation noise takes about one point more (0.9 with the defaults).

    Args:
      world: the rules.
      samples: simulated samples per combination (standard error below 0.002 with the default).
      seed: of the simulation.

    Returns:
      The accuracy of each combination by its name, and `overall`, weighted by the population frequencies.
    """
    rng = np.random.default_rng(seed)
    m, latent = len(world.modalities), world.mixing.shape[-1]
    accuracy = np.zeros(len(world.masks))
    for k in range(len(world.masks)):
        latents = rng.normal(size=(samples, m, latent))
        logits = world.sharpness * scores(world, latents, np.full(samples, k))
        logits -= logits.max(axis=1, keepdims=True)
        # After the shift the most probable class has logit 0, so its probability is 1 / sum of the exponentials.
        accuracy[k] = np.mean(1.0 / np.exp(logits).sum(axis=1))
    result = {group_name(mask, world.modalities): float(a) for mask, a in zip(world.masks, accuracy, strict=True)}
    result["overall"] = float(accuracy @ world.probabilities)
    return result


def population_frequencies(
    combinations: Sequence[tuple[str, float]] = EMBED, modalities: Sequence[str] = MODALITIES
) -> dict[str, float]:
    """The weight of each combination in an overall figure, by its name with modalities in declared order."""
    masks, probabilities = parse_combinations(combinations, modalities)
    return {group_name(mask, modalities): float(p) for mask, p in zip(masks, probabilities, strict=True)}


def load(
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    combinations: Sequence[tuple[str, float]] = EMBED,
    n_train: int = 12_000,
    n_tuning: int = 1_500,
    n_test_per_group: int = 1_000,
    latent: int = 2,
    tokens: int = 2,
    token_width: int = 16,
    noise: float = 0.3,
    shift: float = 0.9,
    atoms: int = 3,
    sharpness: float = 6.0,
    classes: int = 2,
) -> Manifest:
    """Draws a world and its samples (`make_world` says the parameters of the world).

    Args:
      seed: the world and its samples.
      modalities: their names, in declared order.
      combinations: (`"a+b"`, probability) pairs.
      n_train: training samples, at the population's frequencies.
      n_tuning: tuning samples, at the population's frequencies.
      n_test_per_group: held-out samples of every combination.
      latent: see `make_world`.
      tokens: see `make_world`.
      token_width: see `make_world`.
      noise: see `make_world`.
      shift: see `make_world`.
      atoms: see `make_world`.
      sharpness: see `make_world`.
      classes: see `make_world`.

    Returns:
      A manifest of embedding modalities held in cells `[t,d]`, with a split column; every sample is a patient of its
      own.

    Raises:
      UserError: a parameter is out of range or a combination cannot be read.
    """
    if min(n_train, n_tuning, n_test_per_group) < 1:
        raise UserError("the synthetic data needs at least one sample in every split")
    world = make_world(
        seed=seed,
        modalities=modalities,
        combinations=combinations,
        latent=latent,
        tokens=tokens,
        token_width=token_width,
        noise=noise,
        shift=shift,
        atoms=atoms,
        sharpness=sharpness,
        classes=classes,
    )
    rng = np.random.default_rng(np.random.SeedSequence((seed, 1)))
    groups = len(world.masks)
    natural = combination_mask(n_train + n_tuning, np.eye(groups, dtype=bool), world.probabilities, rng).argmax(axis=1)
    group = np.concatenate([natural, np.repeat(np.arange(groups), n_test_per_group)])
    split = np.repeat(["train", "tuning", "held_out"], [n_train, n_tuning, groups * n_test_per_group])
    return _manifest(world, group, split, rng)


def _manifest(world: World, group: np.ndarray, split: np.ndarray, rng: np.random.Generator) -> Manifest:
    n, (m, _, _, latent), classes = len(group), world.mixing.shape, world.weights.shape[2]
    latents = rng.normal(size=(n, m, latent))
    observed = np.einsum("nml,mtdl->nmtd", latents, world.mixing)
    observed += world.noise * rng.normal(size=observed.shape)
    logits = world.sharpness * scores(world, latents, group)
    label = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    names = [f"class {c}" for c in range(classes)]
    identity = pl.Series("sample", [f"s{i:06d}" for i in range(n)])
    columns = [
        identity,
        identity.alias("patient"),
        pl.Series("label", np.array(names)[label], dtype=pl.String),
        pl.Series("split", split, dtype=pl.String),
    ]
    present = world.masks[group]
    table = pl.DataFrame(columns).with_columns(
        _embedding(name, observed[:, j], present[:, j]) for j, name in enumerate(world.modalities)
    )
    schema = Schema(
        name="phenomenon",
        sample_id="sample",
        patient_id="patient",
        label="label",
        classes=tuple(names),
        modalities=tuple(Modality(name, "embedding", (name,)) for name in world.modalities),
        split="split",
    )
    return Manifest(schema=schema, table=table, title="phenomenon (synthetic)")


def _embedding(name: str, values: np.ndarray, present: np.ndarray) -> pl.Expr:
    series = pl.Series(name, values.astype(np.float32), dtype=pl.Array(pl.Float32, values.shape[1:]))
    return pl.when(pl.Series(present)).then(series).otherwise(None).alias(name)
