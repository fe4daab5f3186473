"""Finished runs side by side: figures of every combination, paired differences with intervals, calibration.

    python -m remind_jax.compare RUN1 RUN2 … --out=DIR [--baseline=NAME] [--resamples=2000]

    RUN          folder of a finished or adapted run; runs that differ in their seed alone count as one method
    --out=DIR    for index.html, table.md, table.tex, runs.csv, groups.csv, differences.csv, calibration.csv
    --resamples  of the bootstrap, 2000 by default
    --baseline   what differences are to, as the table calls it; by default the method of the first run

A method is called by its name, and by the name of its folder as well where two would be called alike. Differences are
drawn for the same held-out samples under the same seed; their intervals are those of a bootstrap over patients.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from remind_jax import cli
from remind_jax.data.files import read_parquet
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import progress
from remind_jax.studies import comparison, page, results, tables
from remind_jax.studies.comparison import Run

RESAMPLES = comparison.RESAMPLES


def read_runs(folders: Sequence[pathlib.Path]) -> list[Run]:
    """Finished runs, named so that those of one method and no others share a name.

    Raises:
      UserError: fewer than two, one that is not finished or given twice, other data, or a seed twice in a method.
    """
    if len(folders) < 2:
        raise UserError("give at least two runs: python -m remind_jax.compare RUN1 RUN2 --out=DIR")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is given twice")
    opened = [_read(folder) for folder in folders]
    names = _names(folders, [config for config, _, _ in opened])
    runs = [Run(n, config["seed"], r, p) for n, (config, r, p) in zip(names, opened, strict=True)]
    titles = list(dict.fromkeys(run.report["data"] for run in runs))
    if len(titles) > 1:
        raise UserError(f"the runs are of other data: {'; '.join(titles)}")
    seen: set[tuple[str, int]] = set()
    for run in runs:
        if (run.method, run.seed) in seen:
            raise UserError(f"two runs of {run.method} have the seed {run.seed} and the same config: give one of them")
        seen.add((run.method, run.seed))
    return runs


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], pl.DataFrame]:
    """Config, report and predictions of a finished run."""
    files = [folder / name for name in ("config.json", "report.json", "predictions.parquet")]
    for file in files:
        if not file.is_file():
            raise UserError(f"{folder} holds no finished run: {file.name} is missing")
    try:
        config, report = (json.loads(file.read_text(encoding="utf-8")) for file in files[:2])
        predictions = read_parquet(files[2])
    except (ValueError, OSError) as error:
        raise UserError(f"{folder} holds a damaged run ({type(error).__name__})") from None
    if not {"sample_id", "patient_id", "label", "group", "p_0", "p_1"} <= set(predictions.columns):
        raise UserError(f"{folder} holds a damaged run: predictions.parquet lacks columns")
    return config, report, predictions


def _names(folders: Sequence[pathlib.Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run: its method, with the first folder of its kind where two kinds would be called alike."""
    kinds = [json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True) for config in configs]
    first = {kind: (config["method"], folder.name) for kind, config, folder in _reversed(kinds, configs, folders)}
    alike = [method for method, _ in first.values()]
    called = {kind: m if alike.count(m) == 1 else f"{m} ({folder})" for kind, (m, folder) in first.items()}
    if len(set(called.values())) < len(called):
        raise UserError("two runs of other settings lie in folders of one name: rename one, so that the table tells")
    return [called[kind] for kind in kinds]


def _reversed(*columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows from last to first, so that of equal keys the first one stays."""
    return list(zip(*columns, strict=True))[::-1]


def compare(runs: Sequence[Run], baseline: str, out: pathlib.Path, resamples: int = RESAMPLES) -> results.Results:
    """Writes tables and page of runs into a folder.

    Raises:
      UserError: the folder cannot be written.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    with progress.make(len(runs), "bootstrap") as bar:
        found = results.collect(runs, methods, [baseline], resamples=resamples, count=bar.count)
    try:
        out.mkdir(parents=True, exist_ok=True)
        page.write(found, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return found


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("python -m remind_jax.compare RUN1 RUN2 … --out=DIR [--baseline=NAME]")
    parser.add_argument("runs", nargs="*", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--baseline", default="")
    parser.add_number("--resamples", RESAMPLES, 1)
    options = parser.parse_args(arguments)
    if options.out is None:
        raise UserError("nowhere to write: give a folder as --out=DIR")
    runs = read_runs(options.runs)
    methods = list(dict.fromkeys(run.method for run in runs))
    baseline = options.baseline or methods[0]
    if baseline not in methods:
        hint = did_you_mean(baseline, methods)
        raise UserError(f"--baseline={baseline} is no method of these runs{hint}; they are {', '.join(methods)}")
    found = compare(runs, baseline, options.out, options.resamples)
    print(tables.markdown(found, most_rows=12))
    print(f"Tables: {options.out / 'index.html'}")


if __name__ == "__main__":
    cli.run(main, __doc__)
