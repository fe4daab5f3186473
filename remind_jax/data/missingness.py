"""Missingness patterns: which modalities of a sample are present, boolean masks [n, m].

The MIMIC-IV table of the paper (section 7.4.2) is very nearly what `bernoulli_mask` gives with drop probability 0.266.
`lost` draws what goes under a named protocol. The last three functions work on a manifest: two take modalities away, as
the paper's Table 5 does (section 7.5), one keeps combinations from training (section 5, Q4).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from remind_jax.data import groups, splits
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError, did_you_mean


def bernoulli_mask(n: int, m: int, p: float, rng: np.random.Generator, drop_empty: bool = True) -> np.ndarray:
    """Drops each of m modalities of n samples independently with probability `p`; True [n, m] means present.

    With `drop_empty` the outcome is conditioned on at least one modality being present. Exactly n*m uniform numbers are
    drawn whatever the outcome, so that later draws from `rng` do not depend on it.

    Raises UserError: `p` is not in [0, 1), or [0, 1] when `drop_empty` is False.
    """
    if not 0 <= p <= 1 or (drop_empty and p == 1):
        raise UserError(f"the drop probability must be at least 0 and below 1, not {p}")
    uniform = rng.random((n, m))
    if not drop_empty:
        return uniform >= p
    present = np.zeros((n, m), dtype=bool)
    for j in range(m):
        # While a row is still empty, "at least one of the m - j modalities left" raises the chance of this one.
        keep = np.where(present.any(axis=1), 1 - p, (1 - p) / (1 - p ** (m - j)))
        present[:, j] = uniform[:, j] < keep
    return present


def combination_mask(
    n: int, masks: np.ndarray, probabilities: np.ndarray | Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Draws one of the combinations `masks` [g, m] for each of n samples, by probabilities [g] of sum 1: [n, m]."""
    masks = np.asarray(masks, dtype=bool)
    return masks[rng.choice(len(masks), size=n, p=np.asarray(probabilities, dtype=np.float64))]


def parse_combinations(
    combinations: Sequence[tuple[str, float]], modalities: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Reads combinations written as (`"a+b"`, probability), names in any order, the form that configs use.

    Returns:
      masks bool [g, m], modalities in declared order, and probabilities float64 [g]. Published percentages are rounded,
      so a sum within 0.02 of 1 is accepted and scaled to 1.

    Raises UserError: an unknown or repeated modality, a combination given twice, a negative probability, a sum off 1.
    """
    position = {name: j for j, name in enumerate(modalities)}
    masks = np.zeros((len(combinations), len(position)), dtype=bool)
    for row, (group, _) in zip(masks, combinations, strict=True):
        names = group.split("+")
        unknown = [name for name in names if name not in position]
        if unknown:
            raise UserError(f"combination {group!r} names {unknown[0]!r}; the modalities are {', '.join(modalities)}")
        if len(set(names)) < len(names):
            raise UserError(f"combination {group!r} names a modality twice")
        row[[position[name] for name in names]] = True
    if len(np.unique(masks, axis=0)) < len(masks):
        raise UserError("a combination of modalities is listed twice")
    probabilities = np.array([p for _, p in combinations], dtype=np.float64)
    if not len(probabilities) or (probabilities < 0).any() or abs(probabilities.sum() - 1) > 0.02:
        raise UserError("the probabilities of the combinations must be 0 or more and sum to 1")
    return masks, probabilities / probabilities.sum()


PROTOCOLS = ("mcar", "mar", "mnar", "segments")
STEEPNESS = 4.0
"""Logits between what goes least often and what goes most often under MAR and MNAR: odds 55 times as high."""


def chances(rate: float, level: np.ndarray) -> np.ndarray:
    """Returns chances to go, [u], of mean `rate`, whose logits rise by `STEEPNESS` from a level of 0 to one of 1."""
    if not len(level) or not 0 < rate < 1:
        return np.full(len(level), float(rate))
    from scipy import optimize, special

    slopes = STEEPNESS * level
    start = optimize.brentq(lambda start: special.expit(start + slopes).mean() - rate, -40.0, 40.0)
    return special.expit(start + slopes)


def lost(
    protocol: str,
    rate: float,
    owner: np.ndarray,
    time: np.ndarray,
    hidden: np.ndarray,
    observed: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws which parts go, bool [u], a share `rate` of them in expectation.

    Under `mcar` all alike, under `mar` more often where what stays, `observed` [u] in [0, 1], is high, under `mnar`
    where their own value, `hidden` [u] in [0, 1], is. Under `segments` each owner, int [u], loses one stretch that is
    contiguous by `time` [u], of a share `rate` of its parts, anywhere. For one seed, more go at a higher rate, and
    these too, but for segments.
    """
    if protocol == "segments":
        return _stretches(rate, owner, time, rng)
    level = {"mcar": np.zeros(len(owner)), "mar": observed, "mnar": hidden}[protocol]
    return rng.random(len(owner)) < chances(rate, level)


def _stretches(rate: float, owner: np.ndarray, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, owner, counts = np.unique(owner, return_inverse=True, return_counts=True)
    rounding, places = rng.random((2, len(counts)))
    length = np.minimum(np.floor(rate * counts + rounding), counts)
    start = np.floor(places * (counts - length + 1))
    order, found = np.lexsort((time, owner)), np.empty(len(owner), bool)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = np.repeat(start, counts)
    found[order] = (begins <= place) & (place < begins + np.repeat(length, counts))
    return found


def complete_samples(manifest: Manifest) -> Manifest:
    """Keeps the samples that have all modalities; raises UserError when there are none."""
    whole = manifest.presence.all(axis=1)
    if not whole.any():
        raise UserError("data.complete_only=True leaves nothing: no sample has all modalities")
    title = f"{manifest.title}, samples with all modalities"
    return dataclasses.replace(manifest, table=manifest.table.filter(pl.Series(whole)), title=title, published={})


def hide(manifest: Manifest, modality: str, rate: float, parts: np.ndarray, seed: int) -> Manifest:
    """Takes a modality away from a share of the samples that have it, never the last one of a sample.

    Args:
      manifest: the data.
      modality: its name.
      rate: share of the samples that have it and something else, met in each part as nearly as its size allows.
      parts: int [n], splits.
      seed: of the choice of samples; for one seed, a higher rate takes it from these samples and more.

    Raises UserError: there is no such modality, or the rate is not between 0 and 1.
    """
    names = [each.name for each in manifest.schema.modalities]
    if modality not in names:
        hint = did_you_mean(modality, names)
        raise UserError(f"data.hide={modality} is no modality of these data{hint}: {', '.join(names)}")
    if not 0 <= rate <= 1:
        raise UserError(f"data.hide_rate={rate} must be at least 0 and at most 1")
    j, presence = names.index(modality), manifest.presence
    chosen = np.zeros(len(presence), bool)
    for part in np.unique(parts):
        able = np.flatnonzero((parts == part) & presence[:, j] & (presence.sum(axis=1) > 1))
        order = np.random.default_rng((seed, int(part), j)).permutation(able)
        chosen[order[: round(rate * len(order))]] = True
    columns = manifest.schema.modalities[j].all_columns
    table = manifest.table.with_columns(pl.when(pl.lit(pl.Series(~chosen))).then(pl.col(columns)))
    title = f"{manifest.title}, {modality} taken from {100 * rate:g} %"
    return dataclasses.replace(manifest, table=table, title=title, published={})


def leave_out(manifest: Manifest, names: Sequence[str], split: np.ndarray) -> tuple[Manifest, np.ndarray]:
    """Keeps combinations from training and tuning; their held-out rows stay where they are.

    A name joins modalities with `+` in any order; one text may hold several names, separated by commas.

    Returns:
      the manifest with a title that says so, and the split, int8 [n], with `splits.UNUSED` for the rows left out.

    Raises:
      UserError: a name holds something that is no modality, no row has such a combination, or none is left to train on.
    """
    modalities = [each.name for each in manifest.schema.modalities]
    masks, _, index = groups.count_combinations(manifest.presence)
    there = {groups.bitmask(mask): groups.group_name(mask, modalities) for mask in masks}
    gone = {}
    for name in (part for text in names for part in str(text).split(",") if part.strip()):
        wanted = groups.parse_group(name, modalities, "data.leave_out:")
        if wanted not in there:
            hint = did_you_mean(name, there.values())
            raise UserError(f"data.leave_out: no row has the combination {name.strip()!r}{hint}")
        gone[wanted] = there[wanted]
    is_gone = np.array([groups.bitmask(mask) in gone for mask in masks])[index]
    used = np.where(is_gone & (split != splits.HELD_OUT), splits.UNUSED, split).astype(np.int8)
    if not (used == splits.TRAIN).any():
        raise UserError("data.leave_out leaves nothing to train on: name fewer combinations")
    return dataclasses.replace(manifest, title=f"{manifest.title}, {', '.join(gone.values())} kept from training"), used
