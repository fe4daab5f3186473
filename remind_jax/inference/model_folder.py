"""A trained model on disk: `RUN/model/`, which training writes and all later commands read.

    model.safetensors   the weights by path
    model.json          {"format": 1, "made_by": "remind_jax 0.1.0", "sha256": of model.safetensors, "config": …,
                         "title": of the data, "schema": …, "groups": …, "kinds": fitted preprocessing,
                         "label_counts": …, "train_patients": …, "gate": …, "prior_power": …, "chosen": …}

`chosen` says which weights these are: their stage and step, the tuning metric that chose them and its value, and better
weights that an earlier stage had, if any (`evaluation.page.weights_text`). A model works without checkpoints.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
import safetensors.numpy

from remind_jax.config import complete, validate
from remind_jax.data.groups import Groups
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import schema_from_dict
from remind_jax.errors import UserError, did_you_mean
from remind_jax.inference.predictor import Predictor
from remind_jax.methods import PLAIN
from remind_jax.runtime import files

FORMAT = 1
FOLDER, FACTS, WEIGHTS = "model", "model.json", "model.safetensors"
ADAPTED = "adapted"
"""The key that marks the config of a folder written by `adapt`."""


def write(model: Predictor, folder: pathlib.Path) -> None:
    """Writes a model as a folder, whole or not at all, and replaces an old one; a UserError where it cannot."""
    weights = safetensors.numpy.save({path: np.array(x, order="C") for path, x in model.params.items()})
    facts = {
        "format": FORMAT,
        "made_by": f"remind_jax {importlib.metadata.version('remind-jax')}",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "config": model.config.to_dict(),
        "title": model.title,
        "schema": model.schema.to_dict(),
        "groups": model.groups.to_dict(),
        "kinds": model.preprocessor.to_dict(),
        "label_counts": model.label_counts.tolist(),
        "train_patients": model.train_patients.tolist(),
        "gate": model.gate,
        "prior_power": model.prior_power,
        "chosen": dict(model.chosen),
    }
    with files.writing(folder), files.whole_folder(folder, replace=True) as temporary:
        (temporary / WEIGHTS).write_bytes(weights)
        (temporary / FACTS).write_text(json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read(folder: pathlib.Path) -> Predictor:
    """Reads a model from its own folder.

    Raises UserError: the folder holds no model, another version wrote it, or it is damaged.
    """
    facts = _facts(folder)
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(weights).hexdigest() != facts.get("sha256"):
        raise UserError(f"{folder / WEIGHTS} has changed since it was written: train the run again")
    try:
        model = Predictor.assemble(
            config=_config(facts["config"]),
            title=facts["title"],
            schema=schema_from_dict(facts["schema"]),
            groups=Groups.from_dict(facts["groups"]),
            preprocessor=Preprocessor.from_dict(facts["kinds"]),
            label_counts=np.array(facts["label_counts"], np.int64),
            train_patients=np.array(facts["train_patients"], np.int64),
            params=safetensors.numpy.load(weights),
            gate=facts["gate"],
            prior_power=facts["prior_power"],
            chosen=facts["chosen"],
        )
    except UserError as error:
        raise UserError(f"{folder / FACTS}: {error}") from error
    except Exception as error:  # changed JSON can raise any error in the readers of its parts
        raise UserError(f"{folder / FACTS} is damaged ({type(error).__name__}): train the run again") from None
    _check_shapes(model, folder)
    return model


def _facts(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / FACTS
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no trained model: {FACTS} is missing; train the run again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}): train the run again") from None
    found = facts.get("format") if isinstance(facts, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{file} is of format {found!r} and this version reads {FORMAT}: train the run again, or use the version "
            "that wrote it"
        )
    return facts


def _check_shapes(model: Predictor, folder: pathlib.Path) -> None:
    """Refuses weights that do not fit the network of the config (UserError)."""
    wanted = model.network.shapes
    found = {path: np.shape(x) for path, x in model.params.items()}
    wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if wrong:
        raise UserError(f"{folder} does not fit its own settings: {wrong[0]} has another shape; train the run again")


def open_model(path: pathlib.Path) -> Predictor:
    """Opens the model of a finished or adapted run, with its report.

    Raises UserError: the folder holds no finished run with a model of this version.
    """
    read_config(path)  # its messages say best what a folder lacks
    model = read(path / FOLDER)
    try:
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'report.json'} cannot be read ({type(error).__name__})") from None
    return dataclasses.replace(model, report=report, path=path)


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads the config of a finished run from its config.json, without running Python from the folder.

    Raises UserError: the folder holds no finished run, or its config is not one of this version.
    """
    file = path / "config.json"
    if not file.is_file():
        near = [str(found.parent) for found in sorted(path.parent.glob("*/config.json"))]
        hint = f"{did_you_mean(str(path), near)}; runs there: {', '.join(near[:10])}" if near else ""
        raise UserError(f"{path} holds no run: config.json is missing{hint}")
    if not (path / "report.json").is_file():
        raise UserError(f"the run in {path} is not finished: give its command again to go on")
    try:
        config = _config(json.loads(file.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a config of this version: {error}") from error
    if config.method in PLAIN:
        raise UserError(f"{path} is a run of {config.method}, which has no network: take a run of another method")
    return config


def _config(content: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a checked config."""
    config = complete({key: value for key, value in content.items() if key != ADAPTED})
    validate(config)
    if ADAPTED in content:
        config[ADAPTED] = content[ADAPTED]
    return config
