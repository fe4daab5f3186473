"""Predictions of plain models by their arrays, of encoded rows and without scikit-learn."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data.preprocess import Preprocessor
from remind_jax.ops import plain
from remind_jax.ops.plain import Arrays
from remind_jax.tasks.task import Task


class Seen(NamedTuple):
    """What plain models see of b rows: numbers [b, p] with NaN for missing, counts [b, v] each, presence [b, m]."""

    dense: jax.Array
    bags: tuple[jax.Array, ...]
    present: jax.Array


def seen(preprocessor: Preprocessor, batch: Mapping[str, jax.Array]) -> Seen:
    """Turns a batch of encoded rows into numbers and bags, as `training.plain_models.features` does of a store."""
    present, dense, bags = batch["present"], [], []
    for j, (name, fitted) in enumerate(preprocessor.fitted.items()):
        values = fitted.plain(jnp.asarray(batch[name]))
        if fitted.spec.vocabulary and len(fitted.spec.shape) == 1:  # ids alone, without times and values
            bags.append(values)
        else:
            dense.append(jnp.where(present[:, j : j + 1], values.astype(jnp.float32), jnp.float32(np.nan)))
    dense.append(jnp.zeros((present.shape[0], 0), jnp.float32))
    return Seen(jnp.concatenate(dense, axis=1), tuple(bags), jnp.asarray(present))


def _counts(rows: Seen, arrays: Arrays) -> list[jax.Array]:
    return [bag[:, arrays[f"kept_{j}"]] for j, bag in enumerate(rows.bags)]


def _linear(rows: Seen, arrays: Arrays, task: Task) -> jax.Array:
    bags = [plain.tf_idf(bag, arrays[f"idf_{j}"]) for j, bag in enumerate(rows.bags)]
    x = jnp.concatenate([plain.standardised(rows.dense, arrays), rows.present.astype(jnp.float32), *bags], axis=1)
    return _linked(plain.linear(x, arrays), task)


def _boosting(rows: Seen, arrays: Arrays, task: Task) -> jax.Array:
    x = jnp.concatenate([rows.dense, rows.present.astype(jnp.float32), *_counts(rows, arrays)], axis=1)
    if task.name != "survival":
        return _linked(plain.trees(x, arrays), task)
    return _survival(jax.nn.sigmoid(plain.trees(_all_steps(x, task), arrays)), task)


def _forest(rows: Seen, arrays: Arrays, task: Task) -> jax.Array:
    numbers, present = plain.standardised(rows.dense, arrays), rows.present.astype(jnp.float32)
    x = jnp.concatenate([numbers, present, *_counts(rows, arrays)], axis=1)
    if task.name == "survival":
        return _survival(plain.trees(_all_steps(x, task), arrays), task)
    found = plain.trees(x, arrays)
    return task.predictions(found) if task.name == "regression" else found


def _cox(rows: Seen, arrays: Arrays, task: Task) -> jax.Array:
    del task
    counts = map(jnp.log1p, _counts(rows, arrays))
    numbers = plain.standardised(rows.dense, arrays)
    return plain.hazards(jnp.concatenate([numbers, rows.present.astype(jnp.float32), *counts], axis=1), arrays)


FORMS: dict[str, Callable[[Seen, Arrays, Task], jax.Array]] = {
    "logistic_regression": _linear,
    "ridge": _linear,
    "cox": _cox,
    "gradient_boosting": _boosting,
    "extra_trees": _forest,
}
"""(what is seen of rows, arrays of a model, task) -> predictions [b, p] of the task, float32."""


def predict(name: str, arrays: Mapping[str, Any], rows: Seen, task: Task) -> jax.Array:
    """Returns the predictions [b, p] of the model that has a name and arrays."""
    types = {"f": jnp.float32, "i": jnp.int32, "b": jnp.bool_}
    single = {key: jnp.asarray(x, types[np.dtype(x.dtype).kind]) for key, x in arrays.items()}
    return FORMS[name](rows, single, task)


def _linked(scores: jax.Array, task: Task) -> jax.Array:
    """Turns scores [b, o] into predictions: probabilities of classes or labels, or values."""
    if task.name == "regression":
        return task.predictions(scores)
    return jax.nn.sigmoid(scores) if task.name == "multilabel" else jax.nn.softmax(scores, axis=-1)


def _all_steps(x: jax.Array, task: Task) -> jax.Array:
    """Returns a row for each sample and step of survival, with the step as its last number, [b k, p + 1]."""
    step = jnp.tile(jnp.arange(task.outputs, dtype=jnp.float32), x.shape[0])
    return jnp.concatenate([jnp.repeat(x, task.outputs, axis=0), step[:, None]], axis=1)


def _survival(hazards: jax.Array, task: Task) -> jax.Array:
    return jnp.cumprod(1 - hazards.reshape(-1, task.outputs), axis=1)
