"""The trained model: training makes it, and predict, export, adapt and the analyses open it.

A `Predictor` holds weights and all that they need to turn rows into probabilities: config, schema, combinations, fitted
preprocessing, class counts, gate and class prior. `model_files` says how it is written, `model_folder` reads it.
"""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import polars as pl

from remind_jax import tasks
from remind_jax.data import pipeline, reading, targets
from remind_jax.data.dataset import Dataset, predictions_table
from remind_jax.data.groups import Groups, group_name
from remind_jax.data.manifest import Manifest
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.evaluation import binary, conformal
from remind_jax.evaluation import report as reports
from remind_jax.evaluation.finished import REPORT
from remind_jax.evaluation.report import Report
from remind_jax.evaluation.samples import Samples
from remind_jax.inference import forward, model_files, new_rows, stack
from remind_jax.inference.forward import Logits, Predicted
from remind_jax.inference.present import PresentRows
from remind_jax.models import spare_rows
from remind_jax.models.model import STORED, Params, is_statistic
from remind_jax.models.network import Network, ensemble_of, make_network
from remind_jax.models.spec import model_spec
from remind_jax.objectives import logit_adjust
from remind_jax.runtime import devices
from remind_jax.tasks.survival import Survival
from remind_jax.tasks.task import Task

FEW_PATIENTS = 10  # a combination with fewer training patients has a warning
Tables = Mapping[str, Any] | None
"""Frames of events, next to the rows that are predicted, by the name of their modality or table."""
THREADS = 2  # number of threads that read and encode rows ahead
LABEL_TYPES = {"text": str, "integer": int, "number": float, "boolean": "true".__eq__}
"""What turns the name of a class into the label that the user's data have, by the type of these labels."""


@dataclasses.dataclass(frozen=True, repr=False)
class Predictor:
    """A trained model.

    Attributes:
      config: config of its training.
      title: title of its data in reports.
      schema: schema of its data.
      task: what it predicts.
      groups: the g combinations that have rows in its tables.
      preprocessor: preprocessing fitted on train rows.
      label_counts: train rows by combination and class, int [g', c], or [g', 1] without classes; combinations that an
        adaptation added have none.
      train_patients: patients with train rows of each combination, int [g].
      params: weights by path.
      gate: whether group routers act: `gated`, `always` or `never`.
      sets: thresholds of sets of answers, of several labels one each; () gives none.
      threshold: risk from which on an outcome is called, chosen on tuning rows; None where it was not.
      prior_power: probabilities are divided by the class prior to this power; 0 leaves them as they are.
      label_type: type of the labels that it was trained on: `text`, `integer`, `number` or `boolean`.
      chosen: origin of the weights, see `model_files`.
      single: network that the weights belong to; of an ensemble one of its networks, of a stack all of it.
      rows: choice of the inputs of batches.
      forward: compiled function (params, batch, gate) -> logits [b, c], features [b, d], share of open gates [b].
      members: of a stack; empty for one network or an ensemble.
      report: report of the held-out rows; empty while there is none.
      path: folder of the run that it was opened from.
    """

    config: Any
    title: str
    schema: Schema
    task: Task
    groups: Groups
    preprocessor: Preprocessor
    label_counts: np.ndarray
    train_patients: np.ndarray
    params: Params
    gate: str
    single: Network
    rows: PresentRows
    forward: Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
    prior_power: float = 0.0
    sets: tuple[conformal.Sets, ...] = ()
    threshold: float | None = None
    label_type: str = "text"
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    members: tuple[stack.Member, ...] = ()
    report: Report = dataclasses.field(default_factory=lambda: Report({}))
    path: pathlib.Path | None = None

    @classmethod
    def assemble(
        cls, *, config: Any, preprocessor: Preprocessor, groups: Groups, task: Task, **parts: Any
    ) -> "Predictor":
        """Makes a predictor with the network that its config describes; `parts` are the other fields."""
        fitted = {"config": config, "preprocessor": preprocessor, "groups": groups, "task": task}
        if members := parts.get("members"):
            single, spare = stack.network_of(members, parts["params"], preprocessor, len(groups), task), 0
        else:
            single = make_network(model_spec(config), preprocessor.inputs, len(groups), task.outputs, task.mean_logits)
            spare = spare_rows.count(single.shapes, len(groups))
        rows = PresentRows("dense" if members else config.encode, single, preprocessor.inputs)
        call = forward.compiled(config, ensemble_of(single, 1 if members else config.ensemble), spare)
        return cls(**fitted, **parts, single=single, rows=rows, forward=call)

    @classmethod
    def of_data(cls, config: Any, data: Dataset, params: Params, gate: str) -> "Predictor":
        """Makes the predictor of weights trained on a data set."""
        return cls.assemble(
            config=config,
            title=data.manifest.title,
            schema=data.manifest.schema,
            task=tasks.fit(data.manifest.schema, config, data.labels_to_fit(config)),
            groups=data.groups,
            preprocessor=data.preprocessor,
            label_counts=data.label_counts,
            train_patients=data.train_patients,
            params=params,
            gate=gate,
            label_type=data.manifest.label_type,
        )

    def with_groups(self, groups: Groups, train_patients: np.ndarray, params: Params) -> "Predictor":
        """Returns the model with tables for other combinations, the known ones first."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("single", "rows", "forward"):
            del parts[name]
        return self.assemble(**parts | {"groups": groups, "train_patients": train_patients, "params": params})

    @functools.cached_property
    def network(self) -> Network:
        """The network, or the ensemble as one network."""
        return ensemble_of(self.single, 1 if self.members else self.config.ensemble)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of probabilities."""
        return self.schema.classes

    @property
    def is_binary(self) -> bool:
        """Whether it predicts an outcome that is there or not, the second of two classes."""
        return self.task.name == "classes" and len(self.classes) == 2

    @property
    def class_fractions(self) -> np.ndarray:
        """Share of each class among the train rows, float64 [c]."""
        return self.label_counts.sum(axis=0) / self.label_counts.sum()

    @property
    def parameters(self) -> int:
        """Number of trained scalars."""
        return sum(int(np.prod(np.shape(x))) for path, x in self.params.items() if not is_statistic(path))

    @property
    def looks_at_batches(self) -> bool:
        """Whether the probabilities of a row depend on other rows of its batch."""
        return self.config.fusion.gate_granularity == "batch" and self.gate == "gated"

    @functools.cached_property
    def offset(self) -> np.ndarray:
        """The term that is added to logits, by combination and class, float32 [g + 1, c]; unknown combinations last."""
        prior = self.config.objective
        found = logit_adjust.predict_offset(prior.prior, prior.prior_mode, self.label_counts)
        shape = (len(self.groups) + 1, self.task.outputs)
        return np.zeros(shape, np.float32) if found is None else np.asarray(self.padded(found), np.float32)

    @functools.cached_property
    def scale(self) -> np.ndarray:
        """The divisor of probabilities before they are made to sum to one, float32 [c]."""
        return (np.maximum(self.class_fractions, 1e-12) ** self.prior_power).astype(np.float32)

    def padded(self, offset: np.ndarray) -> np.ndarray:
        """Pads offsets [g' + 1, c] to [g + 1, c]: added combinations use the last row, that of unknown combinations."""
        return np.concatenate([offset, np.repeat(offset[-1:], len(self.groups) + 1 - len(offset), axis=0)])

    def probabilities(self, logits: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Returns predictions [k, p] for logits [k, o] of rows whose combinations are int [k]."""
        return self.task.predictions(logits + self.offset[group], self.scale).astype(logits.dtype)

    def predict_store(self, store: pipeline.Store) -> Predicted:
        """Predicts all labelled rows of a store."""
        return self.predicted(self.logits_of(store))

    def predicted(self, found: Logits) -> Predicted:
        """Makes predictions of what the network has said of rows."""
        return Predicted(self.probabilities(found.logits, found.groups), found.labels, found.open_rate)

    def logits_of(self, store: pipeline.Store) -> Logits:
        """Runs the network on all labelled rows of a store.

        Several processes take the batches in turn and exchange their results, so that each has all rows.
        """
        params, size, found = jax.device_put(self.params), self.config.eval.batch_size, None
        process, processes = jax.process_index(), jax.process_count()
        count, choose = -(-len(store) // size), self._chooser(store, size)
        # With more processes than batches, the last ones read a batch only for its shapes.
        options = {"first": min(process, count - 1), "every": processes, "choose": choose}
        batches = pipeline.eval_batches(store, size, **options)
        for i, batch in zip(range(process, max(count, process + 1), processes), batches, strict=True):
            logits, _, open_rate = self.forward(params, batch, self.gate)
            values = tuple(map(np.asarray, (logits, batch["group"], batch["label"], open_rate)))
            if found is None:
                found = tuple(np.zeros((len(store), *x.shape[1:]), x.dtype) for x in values)
            rows = slice(i * size, (i + 1) * size)
            for x, value in zip(found, values, strict=True):
                x[rows] = value[: len(x[rows])]  # without the padding of the last batch
        *found, open_rate = devices.merged(found)
        return Logits(*found, float(np.mean(open_rate)))

    def _chooser(self, store: pipeline.Store, size: int) -> pipeline.Choose:
        """Chooses the inputs of batches; of all samples where one of them may look at those that pad a batch."""
        return pipeline.all_inputs if self.looks_at_batches else self.rows.of_evaluation(store, size)

    def predict_parts(self, store: pipeline.Store, positions: np.ndarray, presence: np.ndarray) -> np.ndarray:
        """Predicts samples with some of their modalities hidden, float64 [k, c].

        `positions`, int [k], are those of the samples in the split, which may repeat; `presence`, bool [k, m], has the
        modalities left of each, and missing ones stay missing. A sample without modalities gets the class frequencies
        of the train rows; a combination not seen in training is predicted by the shared router, as everywhere.

        Raises UserError: predictions of a sample depend on other samples.
        """
        if self.looks_at_batches:
            raise UserError("fusion.gate_granularity=batch makes predictions depend on the batch: nothing to compare")
        params, size = jax.device_put(self.params), self.config.eval.batch_size
        found = np.tile(self.task.baseline, (len(positions), 1))
        some = np.flatnonzero(presence.any(axis=1))
        for start in range(0, len(some), size):
            part = some[start : start + size]
            filled = np.resize(part, size)  # one shape, one program
            batch = self.hidden(store, positions[filled], presence[filled])
            logits = np.asarray(self.forward(params, batch, self.gate)[0], np.float64)[: len(part)]
            found[part] = self.probabilities(logits, batch["group"][: len(part)])
        return found

    def hidden(self, store: pipeline.Store, positions: np.ndarray, presence: np.ndarray) -> pipeline.Batch:
        """Returns a batch of rows with only the modalities of `presence` [k, m]; inputs of the others are zeros."""
        different, back = np.unique(positions, return_inverse=True)
        batch = {name: np.asarray(array).take(back, axis=0) for name, array in store.take(different).items()}
        left = presence & batch["present"]
        for j, name in enumerate(self.groups.modalities):
            batch[STORED + name if STORED + name in batch else name][~left[:, j]] = 0
        return batch | {"present": left, "group": self.groups.index(left)}

    def seen(self, presence: np.ndarray) -> np.ndarray:
        """Returns whether training had each combination, bool [k, m] -> bool [k]."""
        return self.groups.index(presence) < len(self.groups)

    def read(
        self, data: Any, bad_files: str = "", count: Callable[[int, int], None] | None = None, tables: Tables = None
    ) -> Manifest:
        """Reads rows in the model's order of modalities, see `new_rows.read`; "" takes `bad_files` of the config.

        Paths in a frame start where those of the frame did that `fit` was given, else from the current folder.
        """
        options = self.config.data
        root = options.root if "digest" in options and options.digest else ""
        sizes = {"image_size": options.image_size, "frames": options.frames, "window": options.window}
        bad_files = bad_files or options.bad_files
        known = self.schema, self.preprocessor
        return new_rows.read(data, *known, **sizes, bad_files=bad_files, count=count, root=root, given=tables)

    def _rows(self, data: Any, tables: Tables, level: int = 3) -> Manifest:
        """Reads rows for a caller in Python, whom warnings tell of rows and modalities of which nothing is there."""
        manifest = self.read(data, tables=tables)
        for note in manifest.notes if not isinstance(data, Manifest) else ():
            if note.code in ("W108", "E004"):
                warnings.warn(note.message, stacklevel=level)
        return manifest

    def predict_proba(self, data: Any, tables: Tables = None) -> np.ndarray:
        """Returns probabilities of the classes, float [n, c], adjusted as in the report; arguments as for `read`.

        Of several labels they are [n, l]. Raises UserError: the model predicts no classes.
        """
        if not self.schema.classes:
            raise UserError(f"a model of task {self.task.name} has no probabilities: use predict or table")
        return self.predictions(data, tables)

    def predictions(self, data: Any, tables: Tables = None) -> np.ndarray:
        """Returns predictions as the task makes them, float [n, p]; `task.names` tells what they are of."""
        return np.concatenate([predictions for predictions, _ in self.batches(self._rows(data, tables, level=4))])

    def embed(self, data: Any, tables: Tables = None) -> np.ndarray:
        """Returns the pooled tokens before the head, float32 [n, d]; for an ensemble the mean over its networks."""
        return np.concatenate([features for _, features in self.batches(self._rows(data, tables))])

    def batches(self, manifest: Manifest, size: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields predictions [k, p] and features [k, d] of rows from `read` in turn, holding a few batches at a time.

        Rows without any modality have the baseline of training, such as the class shares. `size` is the number of rows
        at a time; 0 is `eval.batch_size`. Few rows are padded to a power of two only, so that there are few programs
        and none does the work of many rows for them.
        """
        params = jax.device_put(self.params)
        store = pipeline.new_store(manifest, self.preprocessor, self.groups)
        size = size or self.config.eval.batch_size
        if not self.looks_at_batches:
            size = min(size, 1 << (len(store) - 1).bit_length())
        # A single batch is over before another program would be compiled.
        choose = self._chooser(store, size) if len(store) > size else pipeline.all_inputs
        for batch in pipeline.eval_batches(store, size, threads=THREADS, choose=choose):
            logits, features, _ = self.forward(params, batch, self.gate)
            found, real = self.probabilities(np.asarray(logits), batch["group"]), batch["weight"] > 0
            found[~batch["present"].any(axis=1)] = self.task.baseline
            yield found[real], np.asarray(features)[real]

    def predict(self, data: Any, tables: Tables = None) -> np.ndarray:
        """Returns the answer for each row, [n]: the most probable class, in the type of the labels of training.

        Of several labels it is 0 or 1 for each, [n, l]; of values the value; of survival the risk, higher is earlier.
        """
        answers = self.task.answers(self.predictions(data, tables))
        return self.labels[answers] if self.schema.has_classes else answers

    def predict_survival(self, data: Any, times: Sequence[float], tables: Tables = None) -> np.ndarray:
        """Returns the chance to be without the event at each of some times, float [n, times]; `data` as for `read`.

        Raises UserError: the model is of another task, or a time is negative or not finite.
        """
        if not isinstance(self.task, Survival):
            raise UserError(f"a model of task {self.task.name} predicts no survival: use predict or table")
        at = np.asarray(times, np.float64)
        if at.ndim != 1 or not (np.isfinite(at) & (at >= 0)).all():
            raise UserError("times must be a list of numbers of at least 0")
        return self.task.curves(self.predictions(data, tables)).at(at)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The classes in the order of probabilities, [c], in the type of the labels that the model was trained on."""
        return np.array([LABEL_TYPES[self.label_type](name) for name in self.classes])

    def evaluate(self, data: Any, tables: Tables = None) -> Report:
        """Returns the report of `evaluation.report.build_report` on the rows that have a label.

        Raises UserError: no row has a label, or a label is none of the classes.
        """
        manifest = self._rows(data, tables)
        labelled = targets.labelled(manifest.schema, manifest.table)
        if not labelled.any():
            raise UserError(f"no row has a label in column {manifest.schema.label!r}: there is nothing to evaluate")
        manifest = Manifest(manifest.schema, manifest.table.filter(labelled), manifest.root, manifest.title)
        _ = manifest.labels  # refuses wrong ones before anything slow
        found = np.concatenate([predictions for predictions, _ in self.batches(manifest)])
        table = predictions_table(manifest, self.groups, found)
        title = manifest.title or manifest.schema.name
        facts = {"parameters": self.parameters, "classes": self.classes, "judge": self.task.judge}
        facts |= self.judged(table) | {"split": "new rows"}
        return Report(reports.build_report(self.config.to_dict(), title, table, self.groups, **facts))

    def judged(self, table: pl.DataFrame, decided: bool = False) -> dict[str, Any]:
        """Returns `sets`, but of rows that `decided` them, and `binary` of a report of a table of predictions."""
        found, samples = {}, Samples.of(table)
        if self.sets and len(samples.labels) and not decided:
            sets = self.task.sets(samples.probabilities, conformal.thresholds(self.sets, samples.groups))
            held = sets.hold(samples.labels), sets.sizes
            found["sets"] = conformal.coverage_of(self.sets, self.task.names, *held, samples.groups)
        if self.is_binary:
            some = samples.labels, samples.probabilities[:, 1], table["patient_id"].to_numpy()
            options = {"seed": self.config.seed, "resamples": self.config.eval.bootstrap}
            at = 0.5 if self.threshold is None else self.threshold
            told = binary.compute(*some, at, **options)
            found["binary"] = told | {"chosen": self.threshold is not None, "outcome": self.classes[1]}
        return found

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the model and its report as a folder for `remind_jax.load`; an older model there is replaced.

        Raises UserError: the folder holds something else, or cannot be written.
        """
        folder = pathlib.Path(folder)
        if folder.exists() and not (folder / model_files.FACTS).is_file():
            raise UserError(f"{folder} exists and holds no model: choose another folder")
        text = json.dumps(dict(self.report), indent=1, ensure_ascii=False, allow_nan=False)
        model_files.write(self, folder, {REPORT: text.encode()} if self.report else {})

    def __repr__(self) -> str:
        names, classes = ", ".join(self.groups.modalities), ", ".join(self.classes)
        return f"Predictor({self.config.method} on {self.title}: {names} to {classes}; {self.parameters:,} parameters)"

    def _repr_html_(self) -> str:
        """Shows the report in a notebook."""
        return self.report._repr_html_()

    def combinations(self, manifest: Manifest) -> list[str]:
        """Returns the name of each row's combination."""
        return [group_name(mask, self.groups.modalities) for mask in manifest.presence]

    def table(self, data: Any, tables: Tables = None) -> Any:
        """Returns what `remind predict` writes of rows: ids, combination, prediction, probabilities and warnings.

        `data` is as for `read`. Ids of a frame keep their type, so that predictions join it. A pandas frame gives a
        pandas frame with its own index, everything else a polars one.
        """
        manifest, name = self._rows(data, tables), self.schema.sample_id
        probabilities = np.concatenate([probabilities for probabilities, _ in self.batches(manifest)])
        table = self.tabulate(manifest, probabilities)
        if isinstance(data, pl.DataFrame | pl.LazyFrame):
            frame = data.lazy().collect()
            return table.with_columns(frame[name]) if name in frame.columns else table
        if not reading.is_pandas(data):
            return table
        found = table.to_pandas().set_index(data.index)
        return found.assign(**{name: data[name].array}) if name in data.columns else found

    def tabulate(self, manifest: Manifest, probabilities: np.ndarray) -> pl.DataFrame:
        """Returns one row for each sample of a manifest from `read`, with its predictions [n, p] and warnings."""
        index = self.groups.index(manifest.presence)
        samples, patients = (np.append(counts, 0)[index] for counts in (self.groups.train_counts, self.train_patients))
        names = self.combinations(manifest)
        sets = self.task.sets(probabilities, conformal.thresholds(self.sets, names)).columns if self.sets else {}
        told = np.where(samples == 0, "never seen in training", "")
        few = (samples > 0) & (patients < FEW_PATIENTS)
        told = np.where(few, f"under {FEW_PATIENTS} training patients", told)
        told = np.where(manifest.presence.any(axis=1), told, "no modality: class shares of training")
        return pl.DataFrame(
            {
                manifest.schema.sample_id: manifest.table[manifest.schema.sample_id],
                "combination": names,
                "n_train": samples,
                "n_train_patients": patients,
                **self.task.columns(probabilities),
                **sets,
                "warning": told,
            }
        )
