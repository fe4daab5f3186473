"""From a config to everything training needs of the data: manifest, splits, groups, preprocessing, stores."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from remind_jax.data import builder, check, missingness, pipeline, sources, splits
from remind_jax.data.groups import Groups, count_combinations, group_name
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.manifest import Manifest
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import InputSpec
from remind_jax.errors import UserError
from remind_jax.runtime import progress

DEFAULT_CACHE = "~/.cache/remind_jax"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set, split and prepared.

    Attributes:
      manifest: all rows.
      split: int8 [n], positions in `splits.SPLITS`, or `splits.UNUSED`.
      whole_split: int8 [n], the same without `data.leave_out`: no row is unused.
      groups: the combinations of the train rows.
      preprocessor: fitted on the train rows.
      stores: encoded rows of each split by name, rows in manifest order.
      findings: warnings of the checks.
    """

    manifest: Manifest
    split: np.ndarray
    whole_split: np.ndarray
    groups: Groups
    preprocessor: Preprocessor
    stores: dict[str, pipeline.Store]
    findings: Sequence[check.Finding]

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """What each modality gives the model."""
        return self.preprocessor.inputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.manifest.schema.classes

    @property
    def class_fractions(self) -> np.ndarray:
        """Share of each class among the train rows, float64 [c]."""
        labels = self.manifest.labels[self.rows("train")]
        return np.bincount(labels, minlength=len(self.classes)) / len(labels)

    @property
    def label_counts(self) -> np.ndarray:
        """Train rows by group and class, int64 [g, c]."""
        rows, shape = self.rows("train"), (len(self.groups), len(self.classes))
        group = self.groups.index(self.manifest.presence[rows])
        cells = np.ravel_multi_index((group, self.manifest.labels[rows]), shape)
        return np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)

    @property
    def train_patients(self) -> np.ndarray:
        """Patients with train rows of each group, int64 [g]."""
        rows = self.rows("train")
        group = self.groups.index(self.manifest.presence[rows])
        table = pl.DataFrame({"group": group, "patient": self.manifest.table[self.manifest.schema.patient_id][rows]})
        return np.bincount(table.unique()["group"].to_numpy(), minlength=len(self.groups)).astype(np.int64)

    def rows(self, split: str) -> np.ndarray:
        """Manifest rows of a split, int64, ascending."""
        return np.flatnonzero(self.split == splits.SPLITS.index(split))


class FittedData(NamedTuple):
    """A data set read, checked and split, and what was fitted on its train rows; nothing is prepared yet."""

    manifest: Manifest
    split: np.ndarray
    whole_split: np.ndarray
    groups: Groups
    preprocessor: Preprocessor
    findings: Sequence[check.Finding]


def read(config: Any) -> Manifest:
    """The rows of a config's data set: all of them, or those that have every modality; nothing is hidden yet."""
    manifest = sources.load(config.data, config.seed)
    return missingness.complete_samples(manifest) if config.data.complete_only else manifest


def fit(config: Any) -> FittedData:
    """Reads, checks and splits the data set of a config and fits groups and preprocessing on its train rows.

    Args:
      config: with the sections `data` and `groups` and the key `seed`.

    Raises:
      UserError: the data cannot be used; the message names every coded error.
    """
    manifest = read(config)
    try:
        whole_split = splits.make_splits(manifest, config.seed, config.data.fractions)
    except UserError:
        # Usually the checks can say more than the first thing that was in the way.
        check.refuse(check.find_problems(manifest))
        raise
    if config.data.hide:  # after the split, so that it is the same whatever is hidden
        manifest = missingness.hide(manifest, config.data.hide, config.data.hide_rate, whole_split, config.seed)
    split = whole_split
    if config.data.leave_out:
        manifest, split = missingness.leave_out(manifest, config.data.leave_out, whole_split)
    findings = check.find_problems(manifest, split)
    check.refuse(findings)
    train = np.flatnonzero(split == splits.TRAIN)
    groups = Groups.fit(
        manifest.presence[train],
        [modality.name for modality in manifest.schema.modalities],
        tail_below=config.groups.tail_below,
        tail=config.groups.tail,
    )
    options = FitOptions(
        max_tokens=config.data.max_tokens,
        vocabulary=config.data.vocabulary,
        tokenizer=config.data.tokenizer,
        numbers=config.data.numbers,
        bins=config.data.bins,
    )
    preprocessor = Preprocessor.fit(manifest, train, options)
    return FittedData(manifest, split, whole_split, groups, preprocessor, findings)


def load_dataset(config: Any, bar: progress.Silent | None = None) -> Dataset:
    """`fit`, and the rows of every split prepared for reading.

    Args:
      config: as for `fit`.
      bar: shows how many rows are written to shards, or that another process is waited for.
    """
    return prepare(fit(config), config.data, bar)


def prepare(fitted: FittedData, data: Any, bar: progress.Silent | None = None) -> Dataset:
    """The rows of every split prepared for reading.

    Args:
      fitted: the data.
      data: the section of a config, of which `cache` and `memory_gib` are read.
      bar: as for `load_dataset`.
    """
    manifest, split, whole_split, groups, preprocessor, findings = fitted
    memory = data.memory_gib
    cache = pathlib.Path(data.cache or DEFAULT_CACHE).expanduser()
    source = builder.prepare(manifest, cache, bar=bar)
    stores = {
        name: pipeline.make_store(source, np.flatnonzero(split == i), preprocessor, groups, memory_gib=memory)
        for i, name in enumerate(splits.SPLITS)
    }
    return Dataset(manifest, split, whole_split, groups, preprocessor, stores, findings)


def cohort(manifest: Manifest) -> list[dict[str, Any]]:
    """Every combination with its number of samples, most frequent first.

    Returns:
      One entry a combination of the data or of the paper: `group`, `n`, `fraction`, and `published`, its share in the
      paper (0 for one that the paper does not have), where the data set is one of the paper's.
    """
    names = [modality.name for modality in manifest.schema.modalities]
    masks, counts, _ = count_combinations(manifest.presence)
    here = {group_name(mask, names): int(n) for mask, n in zip(masks, counts, strict=True)}
    rows = []
    for name in [*here, *(name for name in manifest.published if name not in here)]:
        n = here.get(name, 0)
        row = {"group": name, "n": n, "fraction": n / manifest.table.height}
        rows.append(row | ({"published": manifest.published.get(name, 0.0)} if manifest.published else {}))
    return rows


def describe(dataset: Dataset) -> dict[str, Any]:
    """The data card of a report: sizes of the splits, class frequencies, presence of modalities."""
    schema, table = dataset.manifest.schema, dataset.manifest.table
    patients = table[schema.patient_id]
    presence = dataset.manifest.presence
    return {
        "label": schema.label,
        "splits": {
            name: {"n": len(dataset.rows(name)), "patients": patients.gather(dataset.rows(name)).n_unique()}
            for name in splits.SPLITS
        },
        "classes": [
            {"name": name, "train_fraction": float(share)}
            for name, share in zip(schema.classes, dataset.class_fractions, strict=True)
        ],
        "modalities": [
            {"name": modality.name, "kind": modality.kind, "present_fraction": float(np.mean(presence[:, j]))}
            for j, modality in enumerate(schema.modalities)
        ],
        "combinations": cohort(dataset.manifest),
    }


def predictions_table(dataset: Dataset, split: str, probabilities: np.ndarray) -> pl.DataFrame:
    """Predictions of a split with its ids, labels and combinations, one row a sample in manifest order.

    Args:
      dataset: the data.
      split: name of the split.
      probabilities: [n, c] in the order of the split's rows.
    """
    rows, schema = dataset.rows(split), dataset.manifest.schema
    table = dataset.manifest.table[rows]
    presence = dataset.manifest.presence[rows]
    modalities = dataset.groups.modalities
    return pl.DataFrame(
        {
            "sample_id": table[schema.sample_id],
            "patient_id": table[schema.patient_id],
            "label": pl.Series(dataset.manifest.labels[rows]),
            "group": [group_name(mask, modalities) for mask in presence],
            **{f"p_{k}": probabilities[:, k] for k in range(probabilities.shape[1])},
        }
    )
