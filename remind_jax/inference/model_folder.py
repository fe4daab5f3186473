"""A trained model on disk: `RUN/model/`, which training writes and all later commands read."""

import dataclasses
import json
import pathlib

import ml_collections
import numpy as np

from remind_jax.errors import UserError, did_you_mean
from remind_jax.evaluation.report import REPORT, Report
from remind_jax.inference.model_files import FACTS, WEIGHTS, checked_config, parts
from remind_jax.inference.predictor import Predictor
from remind_jax.methods import PLAIN

FOLDER = "model"


def read(folder: pathlib.Path) -> Predictor:
    """Reads a model from its own folder.

    Raises UserError: the folder holds no model, another version wrote it, or it is damaged.
    """
    found = {}
    for name in (FACTS, WEIGHTS):
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{folder} holds no trained model: {name} is missing; train the run again") from None
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror or error}") from None
    model = Predictor.assemble(**parts(found, folder))
    _check_shapes(model, folder)
    return model


def _check_shapes(model: Predictor, folder: pathlib.Path) -> None:
    """Refuses weights that do not fit the network of the config (UserError)."""
    wanted = {path: x.shape for path, x in model.network.shapes.items()}
    found = {path: np.shape(x) for path, x in model.params.items()}
    wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if wrong:
        raise UserError(f"{folder} does not fit its own settings: {wrong[0]} has another shape; train the run again")


def open_model(path: pathlib.Path) -> Predictor:
    """Opens the model of a finished or adapted run, or one that `Predictor.save` wrote, with its report.

    Raises UserError: the folder holds no finished run, and no model, of this version.
    """
    if (path / FACTS).is_file():
        return dataclasses.replace(read(path), report=_report(path) if (path / REPORT).is_file() else Report({}))
    read_config(path)  # its messages say best what a folder lacks
    return dataclasses.replace(read(path / FOLDER), report=_report(path), path=path)


def _report(path: pathlib.Path) -> Report:
    try:
        return Report(json.loads((path / REPORT).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / REPORT} cannot be read ({type(error).__name__})") from None


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads the config of a finished run from its config.json, without running Python from the folder.

    Raises UserError: the folder holds no finished run, or its config is not one of this version.
    """
    file = path / "config.json"
    if not file.is_file():
        near = [str(found.parent) for found in sorted(path.parent.glob("*/config.json"))]
        hint = f"{did_you_mean(str(path), near)}; runs there: {', '.join(near[:10])}" if near else ""
        raise UserError(f"{path} holds no run: config.json is missing{hint}")
    if not (path / REPORT).is_file():
        raise UserError(f"the run in {path} is not finished: give its command again to go on")
    try:
        config = checked_config(json.loads(file.read_text(encoding="utf-8")))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not a config of this version: {error}") from error
    if config.method in PLAIN:
        raise UserError(f"{path} is a run of {config.method}, which has no network: take a run of another method")
    return config
