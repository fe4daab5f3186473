"""The files of a trained model: what training, `save` and pickles of estimators write, and its parts when read.

    model.safetensors   the weights by path
    model.json          {"format": 1, "made_by": "remind_jax 0.1.0", "sha256": of model.safetensors, "config": …,
                         "title": of the data, "schema": …, "task": …, "groups": …, "kinds": fitted preprocessing,
                         "label_counts": …, "train_patients": …, "gate": …, "prior_power": …, "label_type": …,
                         "sets" and "threshold" where there are any, "chosen": …, "members" of a stack}

`chosen` says which weights these are: their stage and step, the tuning metric that chose them and its value, and better
weights that an earlier stage had, if any (`evaluation.page.weights_text`). A model works without checkpoints.
"""

import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import safetensors.numpy

from remind_jax import tasks
from remind_jax.config import complete, validate
from remind_jax.data.groups import Groups
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Schema, schema_from_dict, shown
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation.conformal import Sets
from remind_jax.inference import plain
from remind_jax.inference.stack import Member
from remind_jax.runtime import files, records
from remind_jax.runtime.records import COUNT, SHARE, Number
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task

FORMAT = 1
_REMEDY = "train the run again"
SHAPE = {
    "sha256": str,
    "config": {"data?": {"source?": str}},
    "title": str,
    "task?": {"task": tuple(tasks.TASKS), "baseline": [float], ...: object},
    "schema": {**dict.fromkeys(("name", "sample_id", "patient_id", "label"), str), "classes": [str]},
    "groups": {"modalities": [str], "masks": [[(0, 1)]], "train_counts": [COUNT], "tail": [bool]},
    "kinds": {"modalities": [{"name": str, "kind": str}]},
    "label_counts": [[COUNT]],
    "train_patients": [COUNT],
    "gate": ("gated", "always", "never"),
    "prior_power": Number(float, -10, 10),
    "sets?": [{"level": float, "n": COUNT, "whole": float, "groups": [{"group": str, "threshold": float, "n": COUNT}]}],
    "threshold?": Number(float, 0, 1),
    "label_type?": ("text", "integer", "number", "boolean"),
    "chosen": finished.WEIGHTS,
    "members?": [{"name": str, "weight": SHARE, "gate": ("gated", "always", "never"), "config": ({...: object}, None)}],
}
FACTS, WEIGHTS = "model.json", "model.safetensors"
ADAPTED = "adapted"
"""The key that marks the config of a folder written by `adapt`."""


def contents(model: Any) -> dict[str, bytes]:
    """Returns the files of a `Predictor` by name."""
    weights = safetensors.numpy.save({path: np.array(x, order="C") for path, x in model.params.items()})
    facts = {
        "format": FORMAT,
        "made_by": f"remind_jax {importlib.metadata.version('remind-jax')}",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "config": model.config.to_dict(),
        "title": model.title,
        "schema": model.schema.to_dict(),
        "task": model.task.to_dict(),
        "groups": model.groups.to_dict(),
        "kinds": model.preprocessor.to_dict(),
        "label_counts": model.label_counts.tolist(),
        "train_patients": model.train_patients.tolist(),
        "gate": model.gate,
        "prior_power": model.prior_power,
        "label_type": model.label_type,
        "chosen": dict(model.chosen),
    } | ({"sets": [one.to_dict() for one in model.sets]} if model.sets else {})
    facts |= {"members": [member.to_dict() for member in model.members]} if model.members else {}
    facts |= {} if model.threshold is None else {"threshold": model.threshold}
    return {WEIGHTS: weights, FACTS: (json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n").encode()}


def write(model: Any, folder: pathlib.Path, more: Mapping[str, bytes] = {}) -> None:
    """Writes a `Predictor`, and more files, as a folder, whole or not at all, and replaces an old one.

    Raises UserError: the folder cannot be written.
    """
    files.write_folder(folder, contents(model) | dict(more), replace=True)


def parts(found: Mapping[str, bytes], folder: pathlib.Path) -> dict[str, Any]:
    """Returns what `Predictor.assemble` takes, out of the files; `folder` names them in messages.

    Raises UserError: another version wrote them, or they are damaged.
    """
    facts, weights = _facts(found[FACTS], folder / FACTS), found[WEIGHTS]
    if hashlib.sha256(weights).hexdigest() != facts.get("sha256"):
        raise UserError(f"{folder / WEIGHTS} has changed since it was written: train the run again")
    try:
        schema, config = schema_from_dict(facts["schema"]), checked_config(facts["config"])
        return {
            "config": config,
            "title": facts["title"],
            "schema": schema,
            "task": _task(facts, schema, config),
            "groups": Groups.from_dict(facts["groups"]),
            "preprocessor": Preprocessor.from_dict(facts["kinds"]),
            "label_counts": np.array(facts["label_counts"], np.int64),
            "train_patients": np.array(facts["train_patients"], np.int64),
            "params": safetensors.numpy.load(weights),
            "gate": facts["gate"],
            "prior_power": facts["prior_power"],
            "sets": tuple(map(Sets.from_dict, facts.get("sets", ()))),
            "threshold": facts.get("threshold"),
            "label_type": facts.get("label_type", "text"),
            "chosen": facts["chosen"],
            "members": tuple(_member(member) for member in facts.get("members", ())),
        }
    except UserError as error:
        raise UserError(f"{folder / FACTS}: {error}") from error
    except Exception as error:  # changed JSON can raise any error in the readers of its parts
        raise UserError(f"{folder / FACTS} is damaged ({type(error).__name__}): train the run again") from None


def _task(facts: Mapping[str, Any], schema: Schema, config: Any) -> Task:
    """Returns what a model predicts; one that was written before there were tasks predicts classes."""
    if "task" not in facts:
        counts = np.array(facts["label_counts"], np.int64).sum(axis=0)
        return Classes.of_shares(schema.classes, config, counts / counts.sum())
    task = tasks.from_dict(facts["task"])
    if task.name != schema.task:
        raise ValueError("its task is not that of its label")
    return task


def _member(content: Mapping[str, Any]) -> Member:
    """Returns a member of a stack. Raises ValueError: it is no network and no plain model of this version."""
    config = content["config"]
    if (config is None) != (content["name"] in plain.FORMS):
        raise ValueError(f"member {content['name']}")
    return Member(**{**content, "config": config and checked_config(config)})


def _facts(content: bytes, file: pathlib.Path) -> dict[str, Any]:
    facts = records.of_shape(content, {"format?": object}, f"{file}", _REMEDY)
    if (found := facts.get("format")) != FORMAT or isinstance(found, bool):
        raise UserError(
            f"{file} is of format {shown(found)} and this version reads {FORMAT}: {_REMEDY}, or use the version that "
            "wrote it"
        )
    if why := records.fault(facts, SHAPE):
        raise UserError(f"{file} is damaged ({why}): {_REMEDY}")
    return facts


def checked_config(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that a file holds. Raises UserError: it is none of this version."""
    config = complete({key: value for key, value in content.items() if key != ADAPTED})
    validate(config)
    if ADAPTED in content:
        config[ADAPTED] = content[ADAPTED]
    return config
