"""Probabilities of a finished or adapted run for new samples with any combination of its modalities.

    python -m remind_jax.predict --workdir=RUN --data=DATA --out=FILE.csv

    --data=DATA      a manifest folder, or a CSV or parquet file with the columns that the run was trained on; labels,
                     patient ids and the columns of whole modalities may be absent
    --out=FILE       .csv or .parquet: a row a sample with its combination, the training samples and patients that had
                     it, the most probable class, a probability of each class, and a warning or nothing
    --batch-size=0   rows at a time; 0 is the run's. Probabilities do not depend on it beyond rounding
    --bad-files=…    refuse | missing: what is done with files that cannot be read; by default as in the run

The same in Python: `remind_jax.load(RUN).predict_proba(DATA)`, `.embed(DATA)`, `.evaluate(DATA)`.
"""

import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np
import polars as pl

from remind_jax import cli
from remind_jax.data import pipeline, reading
from remind_jax.data.groups import group_name
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError
from remind_jax.evaluation import report as reports
from remind_jax.inference.predictions import make_forward
from remind_jax.inference.predictor import Finished, as_in_run, check_classes, open_finished
from remind_jax.runtime import files, progress
from remind_jax.runtime.files import config_digest

FEW_PATIENTS = 10  # training patients below which a combination is warned of
THREADS = 2  # that read and encode rows ahead


class Predictor:
    """A finished run's network with everything it was fitted with; `data` is whatever `read` takes.

    Attributes:
      run: as its folder tells it.
      classes: names of the classes in order.
      batch_size: rows at a time.
    """

    def __init__(self, run: Finished, batch_size: int = 0):
        """Compiles nothing yet; a batch size of 0 is the run's."""
        self.run, self.classes = run, tuple(run.report["classes"])
        self.batch_size = batch_size or run.config.eval.batch_size
        self._params = jax.device_put(run.params)
        groups = len(run.groups)
        self._forward = make_forward(run.network(groups), run.offset(groups))

    @classmethod
    def open(cls, path: str | pathlib.Path, batch_size: int = 0) -> Self:
        """Of a folder. Raises UserError when it holds no finished run."""
        return cls(open_finished(pathlib.Path(path)), batch_size)

    def read(self, data: Any, bad_files: str = "", count: Callable[[int, int], None] | None = None) -> Manifest:
        """Rows in the run's order of modalities.

        Args:
          data: a manifest's folder, a CSV or parquet file, a polars or pandas frame, or a `Manifest`; files and frames
            have the columns of the run's own data.
          bad_files: `refuse` or `missing`; empty is the run's.
          count: called with how many files of a column were read, and of how many.

        Raises:
          UserError: the rows cannot be used, or are not of the run's modalities and classes.
        """
        options, where = self.run.config.data, data if isinstance(data, str | pathlib.Path) else "the data"
        if not isinstance(data, Manifest):
            data = reading.read_new(
                data,
                self.run.schema,
                image_size=options.image_size,
                frames=options.frames,
                bad_files=bad_files or options.bad_files,
                count=count,
            )
        check_classes(data, self.run, where)
        return as_in_run(data, self.run.preprocessor, where)

    def predict_proba(self, data: Any) -> np.ndarray:
        """Probabilities of the classes, float [n, c], adjusted as those of the run's report."""
        return np.concatenate([probabilities for probabilities, _ in self.batches(self.read(data))])

    def embed(self, data: Any) -> np.ndarray:
        """Pooled tokens before the head, float32 [n, d]; of an ensemble the mean of its networks."""
        return np.concatenate([features for _, features in self.batches(self.read(data))])

    def evaluate(self, data: Any) -> dict[str, Any]:
        """The figures of `evaluation.report.build_report` over the rows that have a label.

        Raises:
          UserError: no row has one, or one is none of the classes.
        """
        manifest = self.read(data)
        labelled = manifest.table[manifest.schema.label].is_not_null()
        if not labelled.any():
            raise UserError(f"no row has a label in column {manifest.schema.label!r}: there is nothing to evaluate")
        manifest = Manifest(manifest.schema, manifest.table.filter(labelled), manifest.root, manifest.title)
        labels = manifest.labels  # refuses wrong ones before anything slow
        probabilities = self.predict_proba(manifest)
        run, columns = self.run, {f"p_{k}": probabilities[:, k] for k in range(len(self.classes))}
        ids = {name: manifest.table[getattr(manifest.schema, name)] for name in ("sample_id", "patient_id")}
        table = pl.DataFrame({**ids, "label": labels, "group": self.combinations(manifest), **columns})
        return reports.build_report(
            data=manifest.title or manifest.schema.name,
            method=run.config.method,
            seed=run.config.seed,
            config_digest=config_digest(run.config.to_dict()),
            parameters=run.report["parameters"],
            predictions=table,
            groups=run.groups,
            resamples=run.config.eval.bootstrap,
            extra={"classes": list(self.classes)},
        )

    def combinations(self, manifest: Manifest) -> list[str]:
        """The name of each row's combination."""
        return [group_name(mask, self.run.groups.modalities) for mask in manifest.presence]

    def batches(self, manifest: Manifest) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Probabilities [k, c] and features [k, d] of the rows in turn; no more than a few batches are held.

        Args:
          manifest: as `read` gives it.
        """
        store = pipeline.NewStore(manifest, self.run.preprocessor, self.run.groups)
        for batch in pipeline.eval_batches(store, self.batch_size, threads=THREADS):
            logits, features, _ = self._forward(self._params, batch, self.run.stage.eval_gate)
            real = batch["weight"] > 0
            probabilities = np.asarray(jax.nn.softmax(logits))[real]
            yield self.run.adjusted(probabilities), np.asarray(features)[real]

    def table(self, manifest: Manifest, probabilities: np.ndarray) -> pl.DataFrame:
        """What the command writes: a row a sample of a manifest that `read` gave, with its probabilities [n, c]."""
        groups = self.run.groups
        index = groups.index(manifest.presence)
        samples, patients = (np.append(counts, 0)[index] for counts in (groups.train_counts, self.run.train_patients))
        warnings = np.where(samples == 0, "never seen in training", "")
        few = (samples > 0) & (patients < FEW_PATIENTS)
        warnings = np.where(few, f"under {FEW_PATIENTS} training patients", warnings)
        return pl.DataFrame(
            {
                "sample_id": manifest.table[manifest.schema.sample_id],
                "combination": self.combinations(manifest),
                "n_train": samples,
                "n_train_patients": patients,
                "prediction": [self.classes[k] for k in probabilities.argmax(axis=1)],
                **{f"p_{name}": probabilities[:, k] for k, name in enumerate(self.classes)},
                "warning": warnings,
            }
        )


# ---- Command --------------------------------------------------------------------------------------------------------


def write_table(table: pl.DataFrame, file: pathlib.Path) -> None:
    """Writes a CSV or parquet file whole or not at all. Raises UserError when it cannot be written."""
    with files.whole_file(file) as temporary:
        table.write_csv(temporary) if file.suffix == ".csv" else table.write_parquet(temporary)


def _warn(predictor: Predictor, manifest: Manifest, table: pl.DataFrame) -> None:
    """On stderr, what a reader of the file must know."""
    lines = [f"{finding.code} {finding.message}" for finding in manifest.notes]
    for warning, rows in table.filter(pl.col("warning") != "").group_by("warning", maintain_order=True):
        found = rows["combination"].value_counts(sort=True)
        named = ", ".join(f"{name} ({n})" for name, n in found.head(5).iter_rows())
        more = f" and {found.height - 5} more" if found.height > 5 else ""
        lines.append(f"{rows.height} rows of {found.height} combinations {warning[0]}: {named}{more}")
    config = predictor.run.config
    if config.fusion.gate_granularity == "batch" and predictor.run.stage.eval_gate == "gated":
        lines.append("fusion.gate_granularity=batch: a row's probabilities depend on the rows beside it")
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    paths, options = cli.parse_runs(
        arguments,
        strings={"data": "", "out": ""},
        integers={"batch-size": (0, 0)},
        choices={"bad-files": ("", *reading.BAD_FILES)},
        several=False,
    )
    out = pathlib.Path(options["out"])
    if not options["data"]:
        raise UserError("no data: give a manifest folder or a CSV or parquet file as --data=DATA")
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={options['out']} must be a .csv or a .parquet file")
    predictor = Predictor.open(paths[0], options["batch_size"])
    with progress.make(0, "reading files") as bar:
        manifest = predictor.read(options["data"], options["bad_files"], bar.count)
    parts, done = [], 0
    with progress.make(manifest.table.height, "predicting") as bar:
        for probabilities, _ in predictor.batches(manifest):
            parts.append(probabilities)
            done += len(probabilities)
            bar.advance(done)
    table = predictor.table(manifest, np.concatenate(parts))
    write_table(table, out)
    _warn(predictor, manifest, table)
    print(f"{table.height} rows, {table['combination'].n_unique()} combinations; written: {out}")


if __name__ == "__main__":
    cli.run(main, __doc__)
