"""What a model is asked for: one file a task, and the table of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from remind_jax.data.schema import Schema
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.multilabel import Multilabel
from remind_jax.tasks.ordinal import Ordinal
from remind_jax.tasks.regression import Regression
from remind_jax.tasks.survival import Survival
from remind_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classes, Ordinal, Multilabel, Regression, Survival)}
"""Every task by its name in schema.yaml."""


def fit(schema: Schema, config: Any, labels: np.ndarray) -> Task:
    """Makes the task of a schema and a config from the labels of the train rows, as `Manifest.labels` gives them."""
    return TASKS[schema.task].fit(schema, config, labels)


def from_dict(content: Mapping[str, Any]) -> Task:
    """Inverts `Task.to_dict`. Raises ValueError or TypeError: the content is none that it gave."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    made = TASKS[fields.pop("task")](**fields)
    if any(each.name not in fields for each in dataclasses.fields(made)):
        raise ValueError("a field is missing")
    return made
