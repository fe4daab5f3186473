"""What a model is asked for: one file a task, and the table of them."""

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.multilabel import Multilabel
from remind_jax.tasks.ordinal import Ordinal
from remind_jax.tasks.regression import Regression
from remind_jax.tasks.survival import Survival
from remind_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classes, Ordinal, Multilabel, Regression, Survival)}
"""Every task by its name in schema.yaml."""


SELECT = {name: more for task in TASKS.values() for name, more in task.select.items()}
"""Figures by which weights can be chosen, and whether more of each is better."""
_FOR_CLASSES = {
    "objective.loss": "cross_entropy",
    "objective.prior": "none",
    "objective.distill_weight": 0.0,
    "eval.adjust_prior": "none",
}
"""Keys that look at classes, and the value at which they do not."""


def learns(task: str, keys: Mapping[str, Any]) -> bool:
    """Tells whether a method that sets these keys of a config learns labels of a task."""
    return task == "classes" or all(keys.get(path, plain) == plain for path, plain in _FOR_CLASSES.items())


def check(task: str, config: Any) -> None:
    """Refuses settings of a config that a task has no use for (UserError)."""
    check_select(task, config.train.select)
    for path, plain in _FOR_CLASSES.items() if task != "classes" else ():
        value = operator.attrgetter(path)(config)
        if value != plain:
            raise _unfit(path, value, "classes", task, plain)
    if (how := config.eval.recalibrate) not in TASKS[task].recalibrates:
        able = " and ".join(name for name, each in TASKS.items() if how in each.recalibrates)
        raise _unfit("eval.recalibrate", how, able, task, "none")


def _unfit(path: str, value: Any, able: str, task: str, plain: Any) -> UserError:
    return UserError(f"{path}={value} is for {able} only, and the label is of task {task}: set {path}={plain}")


def fit(schema: Schema, config: Any, labels: np.ndarray) -> Task:
    """Makes the task of a schema and a config from the labels of the train rows, as `Manifest.labels` gives them."""
    return TASKS[schema.task].fit(schema, config, labels)


def check_select(task: str, select: str) -> None:
    """Refuses a rule of selection that is none of a task (UserError)."""
    if select not in (names := (*TASKS[task].select, "last")):
        raise UserError(f"train.select={select} is no figure of task {task}: choose one of {', '.join(names)}")


def of_report(report: Mapping[str, Any]) -> Task:
    """Returns the task of a report. Raises KeyError, ValueError or TypeError: it is damaged."""
    if "task" in report:
        return from_dict(report["task"]["fitted"])
    return Classes((), tuple(report["classes"]), decision=tuple(report.get("decision", ())))


def from_dict(content: Mapping[str, Any]) -> Task:
    """Inverts `Task.to_dict`. Raises ValueError or TypeError: the content is none that it gave."""
    fields = {key: _tuples(value) for key, value in content.items()}
    made = TASKS[fields.pop("task")](**fields)
    late = {"temperature", "curves", "decision"}  # which older models lack
    if any(each.name not in fields for each in dataclasses.fields(made) if each.name not in late):
        raise ValueError("a field is missing")
    return made


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
