"""Everything that can be said about a manifest before anything is trained on it."""

from typing import Any

import numpy as np

from remind_jax.data import check, groups, splits, targets
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError

_SEED = 0  # of the split that is shown when the manifest has no split column


def examine(manifest: Manifest) -> tuple[list[check.Finding], dict[str, Any]]:
    """Returns the findings of all checks, and the counts of `summarise`."""
    split, reason = None, ""
    try:
        split = splits.make_splits(manifest, _SEED)
    except UserError as error:
        reason = str(error)
    findings = check.find_problems(manifest, split)
    if reason and not any(finding.fatal for finding in findings):  # which usually say more
        findings.insert(0, check.Finding(reason[:4], reason[5:], True))
    return findings, summarise(manifest, split)


def fatal_problems(manifest: Manifest) -> list[check.Finding]:
    """Returns what training would refuse of a manifest, files aside."""
    findings = check.find_faults(manifest)
    try:
        splits.make_splits(manifest, _SEED)
    except UserError as error:
        findings.append(check.Finding(str(error)[:4], str(error)[5:], not any(f.fatal for f in findings)))
    return findings


def summarise(manifest: Manifest, split: np.ndarray | None) -> dict[str, Any]:
    """Counts what a manifest holds.

    Args:
      manifest: a manifest whose columns are all there.
      split: int8 [n], positions in `splits.SPLITS`, or None when the data cannot be split.

    Returns:
      JSON-able: name, samples, patients, classes (of other tasks `label`, see `targets.counts`) and combinations with
      their counts (most frequent first), and, with a split, samples of train, tuning and held_out.
    """
    schema = manifest.schema
    names = [modality.name for modality in schema.modalities]
    if schema.has_classes:
        labels = manifest.table[schema.label]
        label = {"classes": {name: int((labels == name).sum()) for name in schema.classes}}
    else:
        label = {"label": targets.counts(schema, manifest.table)}
    masks, counts, _ = groups.count_combinations(manifest.presence)
    summary = {
        "name": schema.name,
        "samples": manifest.table.height,
        "patients": manifest.table[schema.patient_id].drop_nulls().n_unique(),
        **label,
        "modalities": dict(zip(names, manifest.presence.sum(axis=0).tolist(), strict=True)),
        "combinations": {groups.group_name(m, names): int(c) for m, c in zip(masks, counts, strict=True)},
    }
    if split is not None:
        summary["splits"] = {name: int((split == i).sum()) for i, name in enumerate(splits.SPLITS)}
    return summary
