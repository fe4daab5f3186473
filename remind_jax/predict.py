"""Probabilities of a finished or adapted run for new samples with any combination of its modalities.

    remind predict --workdir=RUN --data=DATA --out=FILE.csv

    --data=DATA      a manifest folder, or a table (csv, tsv, parquet, xlsx, xpt) with the run's
                     columns; labels, patient ids and the columns of whole modalities may be absent
    --out=FILE       .csv or .parquet: a row a sample with its combination, the training samples and
                     patients that had it, the most probable class, all probabilities, any warning
    --batch-size=0   rows at a time, 0 as in the run; changes no probability beyond rounding
    --bad-files=…    refuse | missing: what is done with unreadable files; by default as in the run
    --as=table       table | meds: a parquet file of meds-evaluation's columns, of data from MEDS
    --programs=keep  keep | forget: compiled programs, in ~/.cache/remind_jax/programs

The same in Python: `remind_jax.load(RUN).table(DATA)`; also `.predict`, `.embed`, `.evaluate`.
"""

import pathlib
import sys

import numpy as np
import polars as pl

from remind_jax import cli
from remind_jax.data import tables
from remind_jax.data.importers import meds
from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import BAD_FILES
from remind_jax.errors import UserError
from remind_jax.evaluation import conformal
from remind_jax.inference import model_folder
from remind_jax.inference.predictor import Predictor
from remind_jax.runtime import devices, progress, texts


def _warn(predictor: Predictor, manifest: Manifest, table: pl.DataFrame) -> None:
    """On stderr, what a reader of the file must know."""
    lines = [f"{finding.code} {finding.message}" for finding in manifest.notes]
    for warning, rows in table.filter(pl.col("warning") != "").group_by("warning", maintain_order=True):
        found = rows["combination"].value_counts(sort=True)
        named = ", ".join(f"{name} ({n})" for name, n in found.head(5).iter_rows())
        more = f" and {found.height - 5} more" if found.height > 5 else ""
        lines.append(f"{rows.height} rows of {found.height} combinations {warning[0]}: {named}{more}")
    if predictor.looks_at_batches:
        lines.append("fusion.gate_granularity=batch: a row's probabilities depend on the rows next to it")
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    strings, integers = {"data": "", "out": ""}, {"batch-size": (0, 0)}
    choices = {"bad-files": ("", *BAD_FILES), "programs": ("keep", "forget"), "as": ("table", "meds")}
    paths, options = cli.parse_runs(arguments, strings=strings, integers=integers, choices=choices, several=False)
    out = pathlib.Path(options["out"])
    if not options["data"]:
        raise UserError("no data: give a manifest folder or a table as --data=DATA")
    if out.suffix not in ((".parquet",) if options["as"] == "meds" else (".csv", ".parquet")):
        raise UserError(f"--out={options['out']} must be a .csv or a .parquet file, with --as=meds the latter")
    predictor = model_folder.open_model(paths[0])
    with progress.make(0, "reading files") as bar:
        manifest = predictor.read(options["data"], options["bad_files"], bar.count)
    as_meds = meds.for_evaluation(pathlib.Path(options["data"]), manifest) if options["as"] == "meds" else None
    parts, folder = [], devices.users_programs() if options["programs"] == "keep" else None
    with devices.kept_programs(folder), progress.make(manifest.table.height, "predicting") as bar:
        for probabilities, _ in predictor.batches(manifest, options["batch_size"]):
            parts.append(probabilities)
            bar.advance(sum(map(len, parts)))
    found = np.concatenate(parts)
    table = predictor.tabulate(manifest, found)
    if tables.write_table(as_meds(found) if as_meds else table, out):
        print(f"warning: {texts.TOLD}", file=sys.stderr)
    _warn(predictor, manifest, table)
    for line in conformal.told(predictor.report["sets"]) if "sets" in predictor.report else ():
        print(texts.one_line(line))
    print(f"{table.height} rows, {table['combination'].n_unique()} combinations; written: {out}")


if __name__ == "__main__":
    cli.run(main, __doc__)
