"""One run from its config to its report."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from remind_jax import settings
from remind_jax.data import dataset as datasets
from remind_jax.data.manifest import Manifest
from remind_jax.evaluation import report as reports
from remind_jax.inference import model_folder
from remind_jax.inference.predictor import Predictor, choose_prior_power
from remind_jax.models.model import Params
from remind_jax.runtime import devices, files, processes, progress
from remind_jax.runtime.signals import Signals
from remind_jax.training.loop import Trainer
from remind_jax.training.run_folder import RunFolder

GATE_STUCK = 0.005  # an open rate this close to 0 or 1 is reported as a gate that decides nothing


def train_and_evaluate(config: Any, workdir: pathlib.Path, verbose: bool = True) -> dict[str, Any]:
    """Trains a method on a data set and reports on its held-out patients.

    A run that was stopped goes on from its newest checkpoint; a finished one is shown again.

    Args:
      config: the run's settings, see configs/common.py.
      workdir: the run's folder.
      verbose: whether to show progress and the table.

    Returns:
      The report, as in report.json; empty on all processes of a job but the first, which alone writes.

    Raises:
      UserError: a setting, the data or the folder cannot be used.
      Stopped: SIGTERM or SIGUSR1 asked for it; training is saved at the step where it was.
    """
    settings.validate(config)
    programs = devices.kept_programs(pathlib.Path(config.compilation_cache) if config.compilation_cache else None)
    own: list[RunFolder] = []
    processes.run_on_first(lambda: own.append(RunFolder(workdir, config.to_dict(), config.train.tensorboard)))
    folder = own[0] if own else RunFolder(workdir, config.to_dict(), writes=False)
    with contextlib.closing(folder), Signals() as signals, programs:
        return _run(config, folder, verbose and folder.writes, signals)


def _run(config: Any, folder: RunFolder, verbose: bool, signals: Signals) -> dict[str, Any]:
    finished = folder.report()
    if processes.run_on_first(lambda: finished is not None):
        if verbose:
            print(f"{folder.path} is a finished run; its report:")
            reports.print_table(finished)
        return finished or {}
    devices.choose_devices(config.devices, config.train.batch_size)  # refuses before the data are prepared
    with progress.make(0, "preparing", verbose) as bar:
        bar.say(f"Preparing data ({config.data.source})")
        data = datasets.load_dataset(config, bar)
        for line in cohort_lines(data.manifest):
            bar.say(line)
    trainer = Trainer(config, data, folder, signals=signals)
    with progress.make(trainer.steps, "training", verbose) as bar:
        bar.say(
            f"Training {config.method} on {data.manifest.title}: {len(trainer.train_store)} samples, "
            f"{len(data.groups)} combinations, {trainer.steps} steps"
        )
        weights = trainer.train(bar)
    with progress.make(0, "evaluating", verbose) as bar:
        report = _report(trainer, weights, bar)
    if verbose:
        reports.print_table(report)
        print(f"Report: {folder.path / 'report.html'}")
    return report


def cohort_lines(manifest: Manifest) -> Iterator[str]:
    """The combinations of a data set of the paper as lines, each beside its share in the paper."""
    rows = datasets.cohort(manifest) if manifest.published else []
    width = max((len(row["group"]) for row in rows), default=0)
    for row in rows:
        share = f"{100 * row['fraction']:5.1f} %  (paper {100 * row['published']:.1f} %)"
        yield f"  {row['group']:<{width}} {row['n']:>8,}  {share}"


def _report(trainer: Trainer, weights: Params, bar: progress.Silent) -> dict[str, Any]:
    """Makes the trained model, asks it for the held-out rows, once, and writes model, predictions and report."""
    config, data, folder = trainer.config, trainer.data, trainer.folder
    model, facts = _adjusted(dataclasses.replace(trainer.model, params=weights), data)
    predicted = model.predict_store(data.stores["held_out"])
    if not folder.writes:
        return {}
    facts |= _gate_summary(trainer, predicted.open_rate)
    report, table = reports.report_of(
        config.to_dict(), data, predicted.probabilities, parameters=model.parameters, count=bar.count, **facts
    )
    model_folder.write(model, folder.path / model_folder.FOLDER)
    with files.whole_file(folder.path / "predictions.parquet") as temporary:
        table.write_parquet(temporary)
    reports.write_html(folder.path / "report.html", report, folder.history())
    # Last, because a run counts as finished once it is there.
    reports.write_json(folder.path / "report.json", report)
    return report


def _adjusted(model: Predictor, data: datasets.Dataset) -> tuple[Predictor, dict[str, Any]]:
    """The model with the power of the class prior that its tuning rows choose, and for the report which that is."""
    figure = model.config.eval.adjust_prior
    if figure == "none":
        return model, {}
    power = choose_prior_power(model.predict_store(data.stores["tuning"]), model.class_fractions, figure)
    return dataclasses.replace(model, prior_power=power), {"prior_adjustment": {"figure": figure, "power": power}}


def _gate_summary(trainer: Trainer, open_rate: float) -> dict[str, Any]:
    """How often group routers acted on the held-out rows, and whether the gate decided anything at all."""
    if not trainer.config.fusion.group_routers:
        return {}
    rule = trainer.stages[-1].eval_gate
    rates = [open_rate]
    late = [record for record in trainer.folder.history() if record["stage"] == "specialize"]
    rates += [record["gate/eval_open_rate"] for record in late if "gate/eval_open_rate" in record]
    stuck = None
    if rule == "gated" and max(rates) <= GATE_STUCK:
        stuck = "closed"
    elif rule == "gated" and min(rates) >= 1 - GATE_STUCK:
        stuck = "open"
    return {"gate": {"rule": rule, "open_rate": open_rate, "stuck": stuck}}
