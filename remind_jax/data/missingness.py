"""Missingness patterns: which modalities of a sample are present, boolean masks [n, m].

The MIMIC-IV table of the paper (section 7.4.2) is very nearly what `bernoulli_mask` gives with drop probability 0.266.
`lost` draws what goes under a named protocol. The others work on a manifest: `hide` takes a modality away, as the
paper's Table 5 does (section 7.5), `lose` any of them by a protocol, and `leave_out` keeps combinations from training
(section 5, Q4).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from remind_jax.data import groups, splits
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor, blocks
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
_MOST_NAMED = 4  # combinations in a title
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


def ranked(column: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Returns the rank of each value [u] among those of its column, in (0, 1), ties alike; one half where it is NaN."""
    frame = pl.DataFrame({"column": column, "value": pl.Series(value, dtype=pl.Float64).fill_nan(None)})
    rank = (pl.col("value").rank("average").over("column") - 0.5) / pl.col("value").count().over("column")
    return frame.select(rank.fill_null(0.5)).to_series().to_numpy()


def sizes(inputs: np.ndarray) -> np.ndarray:
    """Returns a number for inputs without parts, [k, ...] -> [k]: the mean of numbers and pixels, the count of ids."""
    flat = inputs.reshape(len(inputs), -1)
    return np.count_nonzero(flat, 1) if flat.dtype == np.int32 else flat.mean(1, np.float64)


def kept(presence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws the modality of each sample that stays, all alike, from bool [n, m]: int [n]."""
    return np.where(presence, rng.random(presence.shape), -1.0).argmax(axis=1)


def mean_of_parts(row: np.ndarray, rank: np.ndarray, samples: int) -> np.ndarray:
    """Returns the mean rank of the parts, [u], of each sample, float [n], NaN without any; `row` [u] says whose."""
    sums, counts = (np.bincount(row, weights, samples) for weights in (rank, None))
    with np.errstate(invalid="ignore"):
        return sums / counts


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
    gone = np.zeros_like(presence)
    gone[:, j] = chosen
    return _without(manifest, gone, f"{modality} taken from {100 * rate:g} %")


def _without(manifest: Manifest, gone: np.ndarray, says: str) -> Manifest:
    """Takes modalities from samples, bool [n, m], and says so in the title."""
    table = manifest.table
    for modality, lost_by in zip(manifest.schema.modalities, gone.T, strict=True):
        if lost_by.any():
            left = pl.when(pl.lit(pl.Series(~lost_by))).then(pl.col(modality.all_columns))
            table = table.with_columns(left)
    return dataclasses.replace(manifest, table=table, title=f"{manifest.title}, {says}", published={})


def levels(manifest: Manifest, preprocessor: Preprocessor) -> np.ndarray:
    """Returns how high the values of each modality are, among the samples that have it, as ranks in (0, 1), [n, m].

    A sample's value is the mean rank of its parts, of kinds that have none that of `sizes`; one half where it has none.
    """
    found = np.full(manifest.presence.shape, 0.5)
    readers = preprocessor.readers(manifest)
    for j, (name, fitted) in enumerate(preprocessor.fitted.items()):
        here = np.flatnonzero(manifest.presence[:, j])
        if not len(here):
            continue
        if fitted.has_parts:
            parts = preprocessor.parts(decode(manifest, here, labels=False, modalities=(name,)), name)
            values = mean_of_parts(parts.row, ranked(parts.column, parts.value), len(here))
        else:
            values = np.concatenate([sizes(readers[name](rows)) for rows in blocks(here, fitted.spec)])
        found[here, j] = ranked(np.zeros(len(here), int), values)
    return found


def lose(manifest: Manifest, protocol: str, rate: float, rows: np.ndarray, level: np.ndarray, seed: int) -> Manifest:
    """Takes whole modalities from samples by a protocol of `lost`; one of each sample, drawn anew, stays.

    Args:
      manifest: the data.
      protocol: `mcar`, `mar` or `mnar`; under `mar` the level of what stays decides, under `mnar` that of what goes.
      rate: share of the modalities that may go, in expectation over all samples.
      rows: bool [n], the samples that lose; what is drawn for one does not depend on which others do.
      level: float [n, m] in [0, 1], see `levels`.
      seed: of the draws; for one seed, more modalities go at a higher rate, and these too.
    """
    rng = np.random.default_rng((seed, PROTOCOLS.index(protocol)))
    stays = kept(manifest.presence, rng)
    row, j = np.nonzero(manifest.presence & (np.arange(manifest.presence.shape[1]) != stays[:, None]))
    gone = np.zeros_like(manifest.presence)
    goes = lost(protocol, rate, row, np.zeros(len(row)), level[row, j], level[row, stays[row]], rng)
    gone[row, j] = goes & rows[row]
    where = "" if rows.all() else " of held-out samples"
    return _without(manifest, gone, f"{100 * rate:g} % of modalities{where} lost ({protocol})")


def rarest(presence: np.ndarray, modalities: Sequence[str], share: float) -> tuple[str, ...]:
    """Names the rarest combinations, as many as together have at most a share of the samples, [n, m], but one at least.

    None is named for a share of 0. Of two that are equally rare the one with fewer modalities, then the first by name,
    is taken first.
    """
    masks, counts, _ = groups.count_combinations(presence)
    names = [groups.group_name(mask, modalities) for mask in masks]
    order = sorted(range(len(names)), key=lambda g: (counts[g], masks[g].sum(), names[g]))
    within = np.count_nonzero(np.cumsum(counts[order]) <= share * len(presence))
    return tuple(names[g] for g in order[: max(1, within)]) if share else ()


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
    names = ", ".join(gone.values()) if len(gone) <= _MOST_NAMED else f"{len(gone)} combinations"
    return dataclasses.replace(manifest, title=f"{manifest.title}, {names} kept from training"), used
