"""Linear models and gradient boosting on the inputs that the network gets, as rows of every results table.

    remind train --config=nhanes:method=logistic_regression

Same splits, same preprocessing, same selection rule (`train.select` on the tuning rows), same report as a run of
remind_jax.main; `training.plain_models` says what a model sees of a sample. Everything is fitted on the train rows.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

from remind_jax import tasks
from remind_jax.config import keys, validate
from remind_jax.data import dataset as datasets
from remind_jax.data import memory
from remind_jax.data.dataset import Dataset
from remind_jax.errors import UserError
from remind_jax.evaluation import report as reports
from remind_jax.runtime import progress
from remind_jax.tasks.task import Task
from remind_jax.training import run_folder
from remind_jax.training.plain_models import MODELS, TASKS_OF, PlainModel, features, score_of
from remind_jax.training.run_folder import RunFolder

# The keys that decide a plain model; the others are the network's.
_SECTIONS = ("data", "groups", "eval")


def plain_config(config: Any) -> dict[str, Any]:
    """Returns the settings that decide a plain model's run, as they are written to config.json."""
    sections = {name: config[name].to_dict() for name in _SECTIONS}
    changed = {key: value for key, value in config.task.items() if value != keys()[f"task.{key}"].default}
    sections |= {"task": changed} if changed else {}
    return {"method": config.method, "seed": config.seed, "train": {"select": config.train.select}, **sections}


def fit_and_evaluate(
    config: Any, workdir: pathlib.Path, verbose: bool = True, on_changed_data: str = "refuse"
) -> dict[str, Any]:
    """Fits a plain model on a config's data and reports on its held-out patients; a finished run is shown again.

    Of the config only `method`, a key of `MODELS`, data, seed, selection rule and evaluation are used. Returns the
    report, as in report.json, and in it `chosen`, what the tuning rows decided. Changed data are as for
    `training.run.train_and_evaluate`. Raises UserError: a setting, the data or the folder cannot be used.
    """
    validate(config)
    with run_folder.opened(workdir, plain_config(config), config.train.track) as folder:
        report = _run(config, folder, verbose, on_changed_data)
        finished = report is None
        report = folder.report() if finished else report
        if verbose:
            folder.show(report, again=finished)
        return report


def _run(config: Any, folder: RunFolder, verbose: bool, on_changed: str) -> dict[str, Any] | None:
    """Fits and reports; returns the report, None for a finished run."""
    stamp = memory.stamp(*memory.places(config.data))
    if folder.shows(stamp):
        return None
    with progress.make(0, "preparing", verbose) as bar:
        bar.say(f"Preparing data ({config.data.source})")
        split = datasets.fit(config)
        if folder.admit(split, stamp, on_changed, bar.say):
            return None
        _check(config, split.manifest.schema.task)
        data = datasets.prepare(split, config.data, bar)
        bar.say(f"Fitting {config.method} on {data.manifest.title}: {len(data.stores['train'])} samples")
        fitted, task = _fit(config, data)
        folder.remember(data, "fit", stamp)
    with progress.make(0, "evaluating", verbose) as bar:
        return _report(config, data, fitted, task, folder, bar.count)


def _check(config: Any, task: str) -> None:
    """Refuses models and selection rules of other tasks (UserError)."""
    if task not in TASKS_OF[config.method]:
        fits = ", ".join(name for name, known in TASKS_OF.items() if task in known)
        raise UserError(f"method={config.method} does not learn labels of task {task}: take one of {fits}")
    tasks.check_select(task, config.train.select)


def _fit(config: Any, data: Dataset) -> tuple[PlainModel, Task]:
    """Fits a model; returns it, and the task with what tuning rows have chosen of it."""
    train, tuning, model = features(data, "train"), features(data, "tuning"), config.method
    if not len(tuning.labels):
        raise UserError(f"{model} is chosen by tuning rows, and there are none: give data.fractions a second share")
    if data.manifest.schema.has_classes and len(np.unique(train.labels)) < 2:
        raise UserError(f"{model} needs two classes among the train rows")
    plain = ml_collections.ConfigDict(config.to_dict())
    plain.task.predicts = "mean"  # a model of a value has no bounds
    task = tasks.fit(data.manifest.schema, plain, data.train_labels)
    fitted = MODELS[model](train, task, config.seed, score_of(config.train.select, task, tuning.labels), tuning)
    return fitted, task.tuned(tuning.labels, fitted.predict(tuning))


def _report(
    config: Any, data: Dataset, fitted: PlainModel, task: Task, folder: RunFolder, count: Callable[[int, int], None]
) -> dict[str, Any]:
    """Reads the held-out rows, once, and writes predictions and report as a run of the network does."""
    facts = {"chosen": fitted.chosen} | ({"chosen_on_tuning": task.told} if task.tunes else {})
    facts |= {"parameters": fitted.parameters, "count": count, "judge": task.judge}
    predictions = fitted.predict(features(data, "held_out"))
    report, table = reports.report_of(plain_config(config), data, predictions, **facts)
    folder.finish(report, table)
    return report
