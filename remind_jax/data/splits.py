"""Patient-wise splits: deterministic in the seed and the patient ids, whatever the order of the rows."""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np

from remind_jax.data import groups
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError

SPLITS = ("train", "tuning", "held_out")
TRAIN, TUNING, HELD_OUT = range(3)
UNUSED = -1  # place of a row that no part of a run reads


def split_digest(splits: np.ndarray) -> str:
    """Returns the sha256 (hex) of the split of every row, for reports."""
    return hashlib.sha256(np.asarray(splits, np.int8).tobytes()).hexdigest()


def given_splits(manifest: Manifest) -> np.ndarray | None:
    """Reads the manifest's split column, int8 [n], -1 where it is empty or unknown; None without such a column."""
    if manifest.schema.split is None:
        return None
    column = manifest.table[manifest.schema.split]
    return np.array([SPLITS.index(value) if value in SPLITS else -1 for value in column.to_list()], np.int8)


def cut_patients(patients: np.ndarray, splits: np.ndarray) -> list[str]:
    """Lists the patients who have rows in more than one split, sorted; rows without a patient id are passed over."""
    sides: dict[str, int] = {}
    cut = set()
    for patient, split in zip(patients.tolist(), splits.tolist(), strict=True):
        if patient is not None and sides.setdefault(patient, split) != split:
            cut.add(patient)
    return sorted(cut)


def make_splits(
    manifest: Manifest, seed: int, fractions: Sequence[float] = (0.7, 0.1, 0.2), rule: str = "stratified"
) -> np.ndarray:
    """Assigns every row to train, tuning or held_out without cutting a patient; int8 [n], positions in `SPLITS`.

    A split column is honoured; if it names no tuning rows, tuning is carved by patient out of train (W105) in the
    proportion that `fractions` gives. Without the column, patients are split by `fractions`, as `rule` says: shares of
    rows, stratified by the patient's majority label (see `Manifest.strata`) and rarest combination; or by `hash`, where
    seed and patient id alone say where a patient goes, so that the shares, of patients, are met by chance only, and no
    other patient moves anybody. Another seed gives another split. A last share of 0 holds nobody out.

    Raises UserError: a patient is in two splits (E003), a class is absent from train or a label is not one of the
    classes (E005), or a patient id or the split column is incomplete (E001).
    """
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] == 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(f"split fractions must be three shares that sum to 1, train above 0; got {tuple(fractions)}")
    column = manifest.table[manifest.schema.patient_id]
    if column.has_nulls():
        raise UserError(f"E001 column {column.name!r} has empty cells; every row needs a patient id")
    patients, labels = column.to_numpy(), manifest.strata
    splits = given_splits(manifest)
    assign = _by_hash if rule == "hash" else _assign
    if splits is None:
        splits = assign(patients, labels, manifest.presence, seed, fractions)
    else:
        _check_given(manifest, patients, splits, held_out=fractions[2] > 0)
        if not (splits == TUNING).any() and fractions[1] > 0:
            rows = np.flatnonzero(splits == TRAIN)
            share = fractions[1] / (fractions[0] + fractions[1])
            splits[rows] = assign(patients[rows], labels[rows], manifest.presence[rows], seed, (1 - share, share, 0.0))
    if len(splits) and fractions[2] > 0 and not (splits == HELD_OUT).any():
        raise UserError(
            f"E001 no patient is held out of {len(set(patients.tolist()))}: add patients or raise the last share of "
            f"data.fractions, {tuple(fractions)}"
        )
    seen, schema = set(labels[splits == TRAIN].tolist()), manifest.schema
    if absent := [name for i, name in enumerate(schema.classes) if schema.has_classes and i not in seen]:
        instead = ", or take another seed or data.split=stratified" if rule == "hash" else ""
        raise UserError(f"E005 no row of train has the class {', '.join(absent)}: add rows or drop the class{instead}")
    return splits


def deal(manifest: Manifest, sides: np.ndarray, seed: int, folds: int, fold: int) -> np.ndarray:
    """Deals train and tuning rows to folds of nearly equal size, stratified as `make_splits` does; no patient is cut.

    `sides` is what `make_splits` returned. Of the result, int8 [n], the rows of `fold` are tuning rows, those of the
    others are train rows, and held-out rows are unused; a fold of -1 makes all of them train rows and leaves held-out
    ones as they are. One fold is the split as it is, since nothing can be dealt. Raises UserError: there are fewer
    patients than folds.
    """
    if folds == 1:
        return np.where((sides == HELD_OUT) & (fold >= 0), UNUSED, sides).astype(np.int8)
    dealt, rows = sides.copy(), np.flatnonzero((sides == TRAIN) | (sides == TUNING))
    patients = manifest.table[manifest.schema.patient_id].to_numpy()[rows]
    if len(set(patients.tolist())) < folds:
        raise UserError(f"data.folds={folds} needs as many patients to train on: set fewer")
    dealt[rows] = TRAIN
    if fold >= 0:
        side = _assign(patients, manifest.strata[rows], manifest.presence[rows], seed, (1 / folds,) * folds, False)
        dealt[sides == HELD_OUT] = UNUSED
        dealt[rows[side == fold]] = TUNING
    return dealt


def _check_given(manifest: Manifest, patients: np.ndarray, splits: np.ndarray, held_out: bool) -> None:
    column = manifest.schema.split
    if (splits < 0).any():
        raise UserError(
            f"E001 column {column!r} has {(splits < 0).sum()} cells that are not train, tuning or held_out: "
            "fill all of them or leave `split` out of the schema"
        )
    cut = cut_patients(patients, splits)
    if cut:
        raise UserError(f"E003 {len(cut)} patients have rows in two splits: give all rows of a patient one split")
    if held_out and not (splits == HELD_OUT).any():
        raise UserError(f"E001 column {column!r} names no held_out rows: mark some or leave `split` out of the schema")


def _assign(
    patients: np.ndarray,
    labels: np.ndarray,
    presence: np.ndarray,
    seed: int,
    fractions: Sequence[float],
    whole_train: bool = True,
) -> np.ndarray:
    """Assigns patients to splits so that the data, each class and each stratum stay as near to `fractions` as they can.

    Patients come stratum by stratum, in an order that a hash of seed and patient id fixes. Each goes to the split that
    lacks most rows, summed over the data, the patient's class and the patient's stratum so far. With `whole_train` the
    first split has every class.
    """
    names, majority, rarest, sizes, holds = _describe(patients, labels, presence)
    keys = [_key(seed, name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (majority[i], rarest[i], keys[i]))
    forced = _first_of_each_class(order, keys, holds, int(labels.max(initial=0)) + 1) if whole_train else set()
    sides = range(len(fractions))
    lacking: dict[object, list[float]] = collections.defaultdict(lambda: [0.0 for _ in sides])
    side = np.zeros(len(names), np.int8)
    # Forced patients come first, so that the others make up for them.
    for i in sorted(forced) + [i for i in order if i not in forced]:
        books = (lacking["all"], lacking[majority[i]], lacking[majority[i], rarest[i]])
        for book in books:
            for s in sides:
                book[s] += fractions[s] * sizes[i]
        choices = [TRAIN] if i in forced else [s for s in sides if fractions[s] > 0]
        side[i] = max(choices, key=lambda s: sum(book[s] for book in books))
        for book in books:
            book[side[i]] -= sizes[i]
    position = {name: i for i, name in enumerate(names)}
    return side[[position[patient] for patient in patients.tolist()]] if len(names) else np.zeros(0, np.int8)


def _by_hash(
    patients: np.ndarray, labels: np.ndarray, presence: np.ndarray, seed: int, fractions: Sequence[float]
) -> np.ndarray:
    """Assigns each patient by a hash of seed and id: held_out below the last share, then tuning, then train.

    In this order another tuning share holds out the same patients.
    """
    del labels, presence
    places = np.array([int.from_bytes(_key(seed, name)[:6], "big") / 2**48 for name in patients.tolist()])
    return (HELD_OUT - np.searchsorted(np.cumsum(fractions[::-1])[:2], places, "right")).astype(np.int8)


def _key(seed: int, patient: str) -> bytes:
    """Returns bytes that look drawn, but follow from seed and patient."""
    return hashlib.sha256(f"{seed}\0{patient}".encode()).digest()


def _describe(
    patients: np.ndarray, labels: np.ndarray, presence: np.ndarray
) -> tuple[list[str], list[int], list[int], list[int], list[set[int]]]:
    """Lists ids of patients, sorted, and of each majority label, bit mask of the rarest combination, rows, labels."""
    masks, counts, inverse = groups.count_combinations(presence)
    # Rarity is ranked by count and bit mask, so that the row order has no say in ties.
    rank = {i: (int(counts[i]), groups.bitmask(masks[i])) for i in range(len(masks))}
    rows: dict[str, list[int]] = collections.defaultdict(list)
    for row, patient in enumerate(patients.tolist()):
        rows[patient].append(row)
    names = sorted(rows)
    majority, rarest, holds = [], [], []
    for name in names:
        tally = collections.Counter(labels[rows[name]].tolist())
        majority.append(min(tally, key=lambda label: (-tally[label], label)))
        rarest.append(min(rank[i] for i in set(inverse[rows[name]].tolist()))[1])
        holds.append(set(tally))
    return names, majority, rarest, [len(rows[name]) for name in names], holds


def _first_of_each_class(order: list[int], keys: list[bytes], holds: list[set[int]], classes: int) -> set[int]:
    """Picks a patient for each class, the lowest key that holds it: train must see every class."""
    first: dict[int, int] = {}
    for i in sorted(order, key=lambda i: keys[i]):
        for label in holds[i]:
            first.setdefault(label, i)
        if len(first) == classes:
            break
    return set(first.values())
