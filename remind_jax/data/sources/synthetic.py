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
    by the population's frequencies.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.config.sources import EMBED
from remind_jax.data import cells
from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import combination_mask, parse_combinations
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

MODALITIES = ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo")
"""EMBED's modalities in the order of the paper (M1 to M4)."""

RARE = 0.15
"""Combinations with a smaller probability are rare (the paper's tail rule)."""

SPREAD = 1.25
"""Standard deviation of the difference of two class scores, before the factor `sharpness`."""


@dataclasses.dataclass(frozen=True)
class World:
    """The rules of one seed."""

    modalities: tuple[str, ...]  # m names
    masks: np.ndarray  # bool [g,m], the combinations
    probabilities: np.ndarray  # float64 [g], their population frequencies
    mixing: np.ndarray  # float64 [m,t,d,l], latents to tokens
    terms: np.ndarray  # int [j,2], the modalities of each term of the score: i<j for a product, i==j for a single one
    weights: np.ndarray  # float64 [g,j,c,l], W_k scaled by z_k, zero for the terms that group k does not use
    noise: float  # standard deviation of the observation noise
    sharpness: float  # factor of the scores in the logits


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
    """Draws the rules of a seed; see the module's text for the recipe and `config.sources.OF_SOURCES` for its numbers.

    `combinations` are (`"a+b"`, probability) pairs over `modalities`. Raises UserError: a parameter is out of range or
    a combination cannot be read.
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
    atom = _atoms(probabilities, atoms, rng)
    weights = np.sqrt(1 - shift**2) * shared + shift * own[atom]
    weights = _scale(weights * _used_terms(masks, terms)[:, :, None, None])
    return World(tuple(modalities), masks, probabilities, mixing, terms, weights, noise, sharpness)


def interaction_world(
    modalities: Sequence[str], combinations: Sequence[tuple[str, float]], latent: int, seed: int, shift: float
) -> World:
    """Draws the rules of a twin of real data, an own one for each combination; arguments as for `make_world`."""
    sizes = {"latent": latent, "tokens": 1, "token_width": 1, "atoms": len(combinations)}
    return make_world(seed=seed, modalities=modalities, combinations=combinations, shift=shift, **sizes)


def _atoms(probabilities: np.ndarray, atoms: int, rng: np.random.Generator) -> np.ndarray:
    """Draws each group's atom [g]: one for all rare groups, the others for the frequent; evenly if all are alike."""
    rare = probabilities < RARE
    if atoms == 1 or atoms >= len(rare) or rare.all() or not rare.any():
        return rng.permutation(np.arange(len(rare)) % atoms)
    order = rng.permutation(atoms)
    atom = np.full(len(rare), order[-1])
    atom[~rare] = order[np.arange(np.sum(~rare)) % (atoms - 1)]
    return atom


def _used_terms(masks: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Tells which terms enter the score of each group, bool [g,j]."""
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
    """Returns class scores s_k before the factor `sharpness`, float64 [n,c].

    `latents` are [n,m,l], those of absent modalities have no influence; `group`, int [n], is the combination of each.
    """
    first, second = world.terms.T
    # A term of a single modality is the latent itself, not its square.
    partner = np.where((first == second)[None, :, None], 1.0, latents[:, second])
    features = latents[:, first] * partner
    return np.einsum("njl,njcl->nc", features, world.weights[group])


def contrast(world: World, latents: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Returns the second class's score minus the first's, of unit variance, float64 [n]; arguments as for `scores`."""
    score = scores(world, latents, group)
    return (score[:, 1] - score[:, 0]) / SPREAD


def load(
    *, seed: int, n_train: int = 12_000, n_tuning: int = 1_500, n_test_per_group: int = 1_000, **rules: Any
) -> Manifest:
    """Draws the world of a seed and its samples; `rules` are the other arguments of `make_world`.

    There are `n_train` and `n_tuning` samples at the population's frequencies and `n_test_per_group` held-out ones of
    every combination. Returns a manifest of embedding modalities held in cells [t, d], with a split column; every
    sample is a patient of its own. Raises UserError: a parameter is out of range or a combination cannot be read.
    """
    if min(n_train, n_tuning, n_test_per_group) < 1:
        raise UserError("the synthetic data needs at least one sample in every split")
    world = make_world(seed=seed, **rules)
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
    names = tuple(f"class {c}" for c in range(classes))
    identity = pl.Series("sample", [f"s{i:06d}" for i in range(n)])
    columns = {
        "sample": identity,
        "patient": identity,
        "label": pl.Series(np.array(names)[label], dtype=pl.String),
        "split": pl.Series(split, dtype=pl.String),
    }
    present, tokens = world.masks[group], pl.Array(pl.Float32, observed.shape[2:])
    for j, name in enumerate(world.modalities):
        here = present[:, j]
        columns[name] = cells.spread(pl.Series(observed[here, j].astype(np.float32), dtype=tokens), here)
    modalities = tuple(Modality(name, "embedding", (name,)) for name in world.modalities)
    schema = Schema("phenomenon", "sample", "patient", "label", names, modalities, split="split")
    return Manifest(schema=schema, table=pl.DataFrame(columns), title="phenomenon (synthetic)")
