"""A finished run, or an adapted one, opened from its folder alone: settings, fitted preprocessing, weights."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from remind_jax import analysis, settings
from remind_jax.data.groups import Groups
from remind_jax.data.kinds.tabular import FittedTable
from remind_jax.data.manifest import Manifest
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality, Schema, schema_from_dict
from remind_jax.errors import UserError, did_you_mean
from remind_jax.inference.predictions import adjust_prior, logit_offset
from remind_jax.models.model import Network, Params, ensemble_of, make_network
from remind_jax.training.checkpoint import Checkpoints
from remind_jax.training.stages import Stage, plan_stages


class Finished(NamedTuple):
    """A finished run as its folder tells it, without its data.

    Attributes:
      path: the folder.
      config: its settings.
      report: report.json.
      schema: of its data; of a run whose checkpoint has none, columns are called as what they hold.
      groups: the combinations that its tables have rows for.
      preprocessor: as fitted.
      label_counts: rows that it was first trained on, by combination and class, [g', c]; combinations that were added
        later have none.
      train_patients: patients with train rows of each combination, [g]; of an older run the numbers of those rows.
      params: the weights of its report.
      stage: the last one of its plan.
    """

    path: pathlib.Path
    config: ml_collections.ConfigDict
    report: Mapping[str, Any]
    schema: Schema
    groups: Groups
    preprocessor: Preprocessor
    label_counts: np.ndarray
    train_patients: np.ndarray
    params: Params
    stage: Stage

    @property
    def class_fractions(self) -> np.ndarray:
        """Share of each class among the train rows, float64 [c]."""
        return self.label_counts.sum(axis=0) / self.label_counts.sum()

    def network(self, groups: int) -> Network:
        """Its network, or its ensemble of them, with tables for a number of combinations."""
        spec = settings.model_spec(self.config)
        single = make_network(spec, self.preprocessor.inputs, groups, self.label_counts.shape[1])
        return ensemble_of(single, self.config.ensemble)

    def padded(self, offset: np.ndarray | None, groups: int) -> np.ndarray | None:
        """Offsets of logits, [g' + 1, c] -> [g + 1, c]: added combinations have those of unknown ones, the last row."""
        if offset is None:
            return None
        return np.concatenate([offset, np.repeat(offset[-1:], groups + 1 - len(offset), axis=0)])

    def offset(self, groups: int) -> np.ndarray | None:
        """What predictions add to the logits, by group and class, [g + 1, c]."""
        return self.padded(logit_offset(self.config, self.label_counts), groups)

    @property
    def prior_power(self) -> float:
        """The power of the class prior that its probabilities are divided by, 0 for none."""
        return (self.report.get("prior_adjustment") or {"power": 0.0})["power"]

    def adjusted(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities [n, c] after the adjustment of the prior that its report was made with."""
        return (
            adjust_prior(probabilities, self.class_fractions, self.prior_power) if self.prior_power else probabilities
        )


def open_finished(path: pathlib.Path) -> Finished:
    """Reads a finished run, or what `adapt` wrote, from its folder alone.

    Raises:
      UserError: there is none, or an older version made it, which did not keep what this needs.
    """
    config = analysis.read_config(path)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"{path} holds no checkpoints")
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    with contextlib.closing(Checkpoints(path / "checkpoints", keep=0, read_only=True)) as checkpoints:
        step = checkpoints.latest_step()
        record = {} if step is None else checkpoints.record(step)
        if "label_counts" not in record:
            raise UserError(f"the run in {path} was made by an older version, which kept no combinations: run it again")
        counts = np.array(record["label_counts"], np.int64)
        preprocessor = Preprocessor.from_dict(record["preprocessor"])
        stages = plan_stages(config, int(counts.sum()), preprocessor.inputs)
        groups = Groups.from_dict(record["groups"])
        schema = schema_from_dict(record["schema"]) if "schema" in record else _plain_schema(report, preprocessor)
        patients = np.array(record.get("train_patients", groups.train_counts), np.int64)
        run = Finished(path, config, report, schema, groups, preprocessor, counts, patients, {}, stages[-1])
        shapes = jax.eval_shape(run.network(len(groups)).init, jax.random.key(0))
        like = {"best": shapes}
        if analysis.ADAPTED not in config:
            like = analysis.checkpoint_shapes(config, stages[record["cursor"]["stage"]], shapes, counts)
        return run._replace(params=checkpoints.arrays(step, like)["best"])


def _plain_schema(report: Mapping[str, Any], preprocessor: Preprocessor) -> Schema:
    """Columns called as what they hold: `sample_id`, `patient_id`, `label`, and each modality by its name."""

    def modality(name: str) -> Modality:
        fitted = preprocessor.fitted[name]
        kind, shape = fitted.spec.kind, fitted.spec.shape
        if isinstance(fitted, FittedTable):
            return Modality(name, kind, fitted.columns, fitted.categorical)
        if kind in ("image", "volume"):
            return Modality(name, kind, (name,), (), "file", shape)
        return Modality(name, kind, (name,), (), "" if kind == "embedding" else "cell")

    modalities = tuple(map(modality, preprocessor.fitted))
    return Schema(report["data"], "sample_id", "patient_id", "label", tuple(report["classes"]), modalities)


def as_in_run(manifest: Manifest, preprocessor: Preprocessor, where: pathlib.Path | str) -> Manifest:
    """The manifest with modalities, and columns of tables, in the run's order.

    Args:
      manifest: of new data.
      preprocessor: of the run.
      where: what messages call the data.

    Raises:
      UserError: its modalities, kinds or columns are not those of the run.
    """
    there, fitted, modalities = {each.name: each for each in manifest.schema.modalities}, preprocessor.fitted, []
    for name in there:
        if name not in fitted:
            raise UserError(f"{where}: the run has no modality {name!r}{did_you_mean(name, fitted)}")
    for name, each in fitted.items():
        if name not in there:
            raise UserError(f"{where}: schema.yaml lacks the run's modality {name!r}; its column may be empty")
        if there[name].kind != each.spec.kind:
            raise UserError(f"{where}: {name!r} is of kind {there[name].kind}, in the run {each.spec.kind}")
        modalities.append(each.adopt(there[name], str(where)))
    return dataclasses.replace(manifest, schema=dataclasses.replace(manifest.schema, modalities=tuple(modalities)))


def check_classes(manifest: Manifest, run: Finished, where: pathlib.Path | str) -> None:
    """Raises a UserError when the classes are not those of the run in their order."""
    here, there = manifest.schema.classes, tuple(run.report["classes"])
    if here != there:
        raise UserError(f"{where} has the classes {', '.join(here)}; the run has {', '.join(there)}, in this order")
