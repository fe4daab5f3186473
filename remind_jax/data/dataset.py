"""From a config to everything training needs of the data: manifest, splits, groups, preprocessing, stores."""

import copy
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from remind_jax.data import attributes, builder, check, missingness, pipeline, sources, splits
from remind_jax.data.groups import Groups, count_combinations, group_name
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.manifest import Manifest
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import InputSpec
from remind_jax.errors import UserError
from remind_jax.runtime import files, progress

DEFAULT_CACHE = "~/.cache/remind_jax"
UNPREPARED = "none"
"""Value of `data.cache` with which rows are decoded where they are needed, and nothing is written."""
FEW_TEXTS = 20_000
"""Number of samples below which a T5 from random weights is behind the mean of terms' vectors (docs/encoders.md)."""
SMOKE_RUN = " (smoke run)"  # at the end of a data set's title


@dataclasses.dataclass(frozen=True)
class FittedData:
    """A data set read, checked and split, and what was fitted on its train rows; nothing is prepared yet."""

    manifest: Manifest  # all rows
    split: np.ndarray  # int8 [n], positions in `splits.SPLITS`, or `splits.UNUSED`
    whole_split: np.ndarray  # int8 [n], the same without `data.leave_out`: no row is unused
    groups: Groups  # the combinations of the train rows
    preprocessor: Preprocessor
    findings: Sequence[check.Finding]  # warnings of the checks


@dataclasses.dataclass(frozen=True)
class Dataset(FittedData):
    """One data set, split and prepared."""

    stores: dict[str, pipeline.Store]  # encoded rows of each split by name, rows in manifest order

    @property
    def inputs(self) -> dict[str, InputSpec]:
        """Describes what each modality gives the model."""
        return self.preprocessor.inputs

    @property
    def classes(self) -> tuple[str, ...]:
        """Names the classes."""
        return self.manifest.schema.classes

    @property
    def class_fractions(self) -> np.ndarray:
        """Returns the share of each class among the train rows, float64 [c]."""
        labels = self.train_labels
        return np.bincount(labels, minlength=len(self.classes)) / len(labels)

    @property
    def train_labels(self) -> np.ndarray:
        """Returns the labels of the train rows, see `Manifest.labels`."""
        return self.manifest.labels[self.rows("train")]

    def labels_to_fit(self, config: Any) -> np.ndarray:
        """Returns the labels that a task is fitted on: of the train rows, with folds of the tuning rows, too."""
        some = np.isin(self.split, _fitted_on(config))
        return self.manifest.labels[some]

    @property
    def label_counts(self) -> np.ndarray:
        """Counts train rows by group and class, int64 [g, c]; of tasks without classes all are of one, [g, 1]."""
        rows, classes = self.rows("train"), self.manifest.schema.has_classes
        labels = self.train_labels if classes else np.zeros(len(rows), np.int32)
        counts = np.zeros((len(self.groups), len(self.classes) if classes else 1), np.int64)
        np.add.at(counts, (self.groups.index(self.manifest.presence[rows]), labels), 1)
        return counts

    @property
    def train_patients(self) -> np.ndarray:
        """Counts patients with train rows of each group, int64 [g]."""
        rows = self.rows("train")
        group = self.groups.index(self.manifest.presence[rows])
        table = pl.DataFrame({"group": group, "patient": self.manifest.table[self.manifest.schema.patient_id][rows]})
        return np.bincount(table.unique()["group"].to_numpy(), minlength=len(self.groups)).astype(np.int64)

    def rows(self, split: str) -> np.ndarray:
        """Returns the manifest rows of a split, int64, ascending."""
        return np.flatnonzero(self.split == splits.SPLITS.index(split))


def read(config: Any) -> Manifest:
    """Reads the rows of a config's data set: all, or those that have every modality; nothing is hidden yet.

    The title says where it is for a smoke run, and with it every log, report and table.
    """
    manifest = sources.load(config.data, config.seed)
    if config.size == "quick":
        manifest = dataclasses.replace(manifest, title=manifest.title + SMOKE_RUN)
    return missingness.complete_samples(manifest) if config.data.complete_only else manifest


def fit(config: Any, manifest: Manifest | None = None) -> FittedData:
    """Checks and splits a data set, by default that of the config, and fits groups and preprocessing on train rows.

    Raises UserError: the data cannot be used; the message names every coded error.
    """
    manifest = read(config) if manifest is None else manifest
    try:
        whole_split = splits.make_splits(manifest, config.seed, config.data.fractions, config.data.split)
    except UserError:
        # Usually the checks can say more than the first thing that was in the way.
        check.refuse(check.find_problems(manifest))
        raise
    if config.data.hide:  # after the split, so that it is the same whatever is hidden
        manifest = missingness.hide(manifest, config.data.hide, config.data.hide_rate, whole_split, config.seed)
    if config.data.lose:
        manifest = _lossy(config, manifest, whole_split)
    if config.data.folds:
        whole_split = splits.deal(manifest, whole_split, config.seed, config.data.folds, config.data.fold)
    split, names = whole_split, [modality.name for modality in manifest.schema.modalities]
    if left := (*config.data.leave_out, *missingness.rarest(manifest.presence, names, config.data.leave_rarest)):
        manifest, split = missingness.leave_out(manifest, left, whole_split)
    findings = check.find_problems(manifest, split)
    check.refuse(findings)
    train = np.flatnonzero(np.isin(split, _fitted_on(config)))
    tail_rule = {"tail_below": config.groups.tail_below, "tail": config.groups.tail}
    groups = Groups.fit(manifest.presence[train], names, **tail_rule)
    preprocessor = Preprocessor.fit(manifest, train, _options(config.data))
    findings += preprocessor.losses(manifest)
    return FittedData(manifest, split, whole_split, groups, preprocessor, findings)


def _options(data: Any) -> FitOptions:
    return FitOptions(data.max_tokens, data.vocabulary, data.tokenizer, data.numbers, data.bins)


def _lossy(config: Any, manifest: Manifest, split: np.ndarray) -> Manifest:
    """Returns the data without what `data.lose` takes away; levels are of raw values, however numbers are encoded."""
    data, rows = config.data, np.full(len(split), True)
    if data.lose_in == "held_out":
        rows = split == splits.HELD_OUT
    level = np.full(manifest.presence.shape, 0.5)
    if data.lose != "mcar":
        train = np.flatnonzero(split == splits.TRAIN)
        level = missingness.levels(manifest, Preprocessor.fit(manifest, train, _options(data)))
    return missingness.lose(manifest, data.lose, data.lose_rate, rows, level, config.seed)


def _fitted_on(config: Any) -> tuple[int, ...]:
    """Returns the splits whose rows are fitted on; all folds have one fit, so that their networks can be averaged."""
    return (splits.TRAIN, splits.TUNING) if config.data.folds > 1 else (splits.TRAIN,)


def with_text_encoder(config: Any, samples: int) -> Any:
    """Returns a config whose `model.text_encoder` is what `auto` stands for with so many samples."""
    if config.model.text_encoder != "auto":
        return config
    found = copy.deepcopy(config)
    found.model.text_encoder = "bag" if samples < FEW_TEXTS and not config.pretrained.text else "t5"
    return found


def load_dataset(config: Any, bar: progress.Silent | None = None, manifest: Manifest | None = None) -> Dataset:
    """Fits a data set and prepares its rows; arguments as for `fit` and `prepare`."""
    return prepare(fit(config, manifest), config.data, bar)


def prepare(fitted: FittedData, data: Any, bar: progress.Silent | None = None) -> Dataset:
    """Prepares the rows of every split for reading, by `cache` and `memory_gib` of the section `data` of a config.

    The bar shows how many inputs are written to the cache, or that another process is waited for.
    """
    manifest, preprocessor, readers = fitted.manifest, fitted.preprocessor, {}
    if data.cache == UNPREPARED:
        readers = preprocessor.readers(manifest)
    else:
        prepared = builder.prepare(manifest, preprocessor, cache_folder(data.cache), bar=bar)
        readers = {name: column.read for name, column in prepared.items()}
    stores = {}
    for i, name in enumerate(splits.SPLITS):
        known = manifest, np.flatnonzero(fitted.split == i), readers, preprocessor.inputs, fitted.groups
        stores[name] = pipeline.make_store(*known, memory_gib=data.memory_gib)
    return Dataset(**vars(fitted), stores=stores)


def cache_folder(cache: str) -> pathlib.Path:
    """Returns the folder that `data.cache` of a config names."""
    return files.expanded(cache or DEFAULT_CACHE)


def cohort(manifest: Manifest) -> list[dict[str, Any]]:
    """Lists every combination of the data or of the paper with `group`, `n` and `fraction`, most frequent first.

    Where the data set is one of the paper's they have `published` too, their share there (0 for one not in the paper).
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
    """Returns the data card of a report: sizes of the splits, class frequencies, presence of modalities."""
    schema, presence = dataset.manifest.schema, dataset.manifest.presence
    patients = dataset.manifest.table[schema.patient_id]
    rows = {name: dataset.rows(name) for name in splits.SPLITS}
    shares = zip(schema.classes, dataset.class_fractions.tolist(), strict=True) if schema.has_classes else ()
    present = zip(schema.modalities, presence.mean(axis=0).tolist(), strict=True)
    return {
        "label": ", ".join(schema.label_columns),
        "splits": {name: {"n": len(at), "patients": patients.gather(at).n_unique()} for name, at in rows.items()},
        **({"classes": [{"name": name, "train_fraction": share} for name, share in shares]} if shares else {}),
        "modalities": [{"name": each.name, "kind": each.kind, "present_fraction": share} for each, share in present],
        "combinations": cohort(dataset.manifest),
        **({"titles": schema.titles} if schema.titles else {}),
    }


def predictions_table(
    manifest: Manifest, groups: Groups, probabilities: np.ndarray, rows: np.ndarray | slice = slice(None)
) -> pl.DataFrame:
    """Returns predictions [n, p] of some rows, or of all, with ids, labels and combinations, one row a sample.

    Labels of several columns stand in `label_0`, `label_1`, …, all others in `label`; attributes in columns that begin
    with `attributes.PREFIX`.
    """
    table, schema, labels = manifest.table[rows], manifest.schema, manifest.labels[rows]
    several = {f"label_{j}": pl.Series(column) for j, column in enumerate(labels.T)} if labels.ndim > 1 else {}
    columns = {
        "sample_id": table[schema.sample_id],
        "patient_id": table[schema.patient_id],
        **(several or {"label": pl.Series(labels)}),
        "group": [group_name(mask, groups.modalities) for mask in manifest.presence[rows]],
    }
    columns |= attributes.columns(schema, table)
    return pl.DataFrame(columns | {f"p_{k}": column for k, column in enumerate(probabilities.T)})
