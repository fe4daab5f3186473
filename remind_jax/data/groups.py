"""Modality combinations ("groups"): names, bit masks of any width, and the table of those seen in training."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from remind_jax.errors import UserError, did_you_mean


def bitmask(mask: np.ndarray) -> int:
    """Returns a combination as an integer: bit j is modality j of `mask` [m]; a Python int, so that any width fits."""
    return int.from_bytes(np.packbits(np.asarray(mask, bool), bitorder="little").tobytes(), "little")


def group_name(mask: np.ndarray, modalities: Sequence[str]) -> str:
    """Joins the names of the modalities present in `mask` [m] with `+` in declared order; "none" for none."""
    return "+".join(name for name, here in zip(modalities, mask, strict=True) if here) or "none"


def count_combinations(presence: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the distinct rows of `presence` [n, m].

    Returns:
      masks bool [g, m], most frequent first and equal counts by bit mask; counts int64 [g]; index int32 [n], the
      position in `masks` of every row.
    """
    presence = np.asarray(presence, bool)
    rows, width = presence.shape
    # 64 modalities to a machine word: sorting words is what makes a million rows cheap.
    padded = np.zeros((rows, max(1, -(-width // 64)) * 64), bool)
    padded[:, :width] = presence
    words = np.packbits(padded, axis=1, bitorder="little").view("<u8")
    keys, axis = (words[:, 0], None) if words.shape[1] == 1 else (words, 0)
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True, axis=axis)
    masks = presence[first]
    order = sorted(range(len(first)), key=lambda i: (-int(counts[i]), bitmask(masks[i])))
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    return masks[order], counts[order].astype(np.int64), position[inverse.reshape(-1)]


@dataclasses.dataclass(frozen=True)
class Groups:
    """The combinations seen in training; row i of every table of the model belongs to group i.

    Those that `adapt` adds come after the fitted ones, whatever their frequency.
    """

    modalities: tuple[str, ...]  # names in declared order (m of them)
    masks: np.ndarray  # bool [g, m], the modalities present in each group; most frequent group first, ties by bit mask
    train_counts: np.ndarray  # int [g], number of training samples
    tail: np.ndarray  # bool [g], whether reports count the group to the tail

    @classmethod
    def fit(
        cls, presence: np.ndarray, modalities: Sequence[str], *, tail_below: float = 0.15, tail: Sequence[str] = ()
    ) -> "Groups":
        """Counts the combinations of the training rows, `presence` bool [n, m], of the m modalities in declared order.

        A group with a smaller share of the samples than `tail_below` is tail (the paper's "approximately less than
        15 %"), or, when names are given as `tail`, those are. The modalities of a name may come in any order, and a
        combination that no training sample has is passed over.

        Raises UserError: a name in `tail` holds something that is not a modality, or a row has no modality.
        """
        masks, counts, _ = count_combinations(presence)
        if not masks.any(axis=1).all():
            raise UserError("E004 training rows without any modality: drop them")
        if tail:
            wanted = {parse_group(name, modalities, "tail group") for name in tail}
            is_tail = np.array([bitmask(mask) in wanted for mask in masks], bool)
        else:
            is_tail = counts / max(counts.sum(), 1) < tail_below
        return cls(tuple(modalities), masks, counts, is_tail)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def names(self) -> tuple[str, ...]:
        """Names the groups in order, each by its modalities joined with `+`."""
        return tuple(group_name(mask, self.modalities) for mask in self.masks)

    @property
    def frequencies(self) -> np.ndarray:
        """Returns the share of the training samples, float64 [g]; sums to one."""
        return self.train_counts / self.train_counts.sum()

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        return {bitmask(mask): i for i, mask in enumerate(self.masks)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        fields = {"masks": self.masks.astype(int), "train_counts": self.train_counts, "tail": self.tail}
        return {"modalities": list(self.modalities)} | {name: array.tolist() for name, array in fields.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Groups":
        """Inverts `to_dict`. Raises ValueError: its parts do not go together."""
        masks, counts = np.array(content["masks"], bool), np.array(content["train_counts"], np.int64)
        if masks.shape != (len(counts), len(content["modalities"])) or len(content["tail"]) != len(counts):
            raise ValueError("combinations do not fit the modalities")
        return cls(tuple(content["modalities"]), masks, counts, np.array(content["tail"], bool))

    def index(self, presence: np.ndarray) -> np.ndarray:
        """Finds the group of every row of `presence` [n, m], int32 [n]; `len(self)` for a combination not fitted on."""
        masks, _, inverse = count_combinations(presence)
        known = np.array([self._positions.get(bitmask(mask), len(self)) for mask in masks], np.int32)
        return known[inverse] if len(known) else np.zeros(0, np.int32)


def parse_group(name: str, modalities: Sequence[str], what: str) -> int:
    """Returns the bit mask that a written group name means; the modalities may stand in any order.

    Raises UserError: a part of the name is not a modality; the message begins with `what`.
    """
    parts = [part.strip() for part in str(name).split("+")]
    for part in parts:
        if part not in modalities:
            hint = did_you_mean(part, modalities)
            raise UserError(f"{what} {name!r}: {part!r} is not a modality of this data{hint}")
    return bitmask(np.array([modality in parts for modality in modalities]))


def mask_auroc(presence: np.ndarray, labels: np.ndarray, patients: np.ndarray, folds: int = 5) -> float | None:
    """Measures by AUROC how well a logistic regression tells the label, int [n], from the presence mask, bool [n, m].

    The `folds` never cut one of the `patients` [n]; each class needs at least as many patients as there are folds.
    Returns the area for the second of two classes, else the mean of one class against the rest; None when the mask is
    the same everywhere or a class has too few patients.
    """
    classes = np.unique(labels)
    enough = len(classes) > 1 and min(len(np.unique(patients[labels == c])) for c in classes) >= folds
    if not enough or (presence == presence[:1]).all():
        return None
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold

    features = presence.astype(np.float64)
    patients = np.unique(patients, return_inverse=True)[1]  # scikit-learn is slow with ids that are text
    scores = np.zeros((len(labels), len(classes)))
    for fit, test in GroupKFold(folds, shuffle=True, random_state=0).split(features, labels, patients):
        if len(np.unique(labels[fit])) < 2:
            return None
        model = LogisticRegression(max_iter=1000).fit(features[fit], labels[fit])
        scores[np.ix_(test, np.searchsorted(classes, model.classes_))] = model.predict_proba(features[test])
    columns = range(1, 2) if len(classes) == 2 else range(len(classes))
    return float(np.mean([roc_auc_score(labels == classes[c], scores[:, c]) for c in columns]))
