"""A trained model on disk: `RUN/model/`, which training writes and all later commands read."""

import dataclasses
import pathlib

import ml_collections
import numpy as np

from remind_jax.config.rules import STACKS
from remind_jax.errors import UserError, did_you_mean
from remind_jax.evaluation import finished
from remind_jax.evaluation.report import Report
from remind_jax.inference.model_files import FACTS, WEIGHTS, checked_config, parts
from remind_jax.inference.predictor import Predictor
from remind_jax.methods import PLAIN
from remind_jax.runtime import records

FOLDER = "model"
_MOST_WEIGHTS = 2**36  # bytes


def read(folder: pathlib.Path, below: pathlib.Path | None = None) -> Predictor:
    """Reads a model from its own folder, whose files must lie below that or another one.

    Raises UserError: the folder holds no model, another version wrote it, or it is damaged.
    """
    found = {}
    for name, most in ((FACTS, records.MOST), (WEIGHTS, _MOST_WEIGHTS)):
        try:
            found[name] = records.content(folder / name, below, most)
        except FileNotFoundError:
            raise UserError(f"{folder} holds no trained model: {name} is missing; train the run again") from None
    made = parts(found, folder)
    try:
        model = Predictor.assemble(**made)
        _check_shapes(model, folder)
    except UserError:
        raise
    except Exception as error:  # of a network that no data could have
        raise UserError(f"{folder / FACTS} is damaged ({type(error).__name__}): train the run again") from None
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
        report = Report(finished.read_report(path) if finished.is_there(path) else {})
        return dataclasses.replace(read(path), report=report)
    read_config(path)  # its messages say best what a folder lacks
    return dataclasses.replace(read(path / FOLDER, path), report=Report(finished.read_report(path)), path=path)


def refuse_stack(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a stack where a single network is needed (UserError), and names those that it has."""
    if config.method in STACKS:
        raise UserError(f"{path} is a stack: name the run of one of its networks, below {path / 'members'}")


def refuse_several(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a stack or an ensemble where one network's tokens, routes or weights are asked for (UserError)."""
    if config.method == "remind_blend":  # whose network is an ensemble
        raise UserError(f"{path} blends several networks and plain models: train one network, such as by method=remind")
    refuse_stack(path, config)
    if config.ensemble > 1:
        raise UserError(f"{path} is an ensemble of {config.ensemble} networks: train one, such as by method=remind")


def read_config(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Reads the config of a finished run from its config.json, without running Python from the folder.

    Raises UserError: the folder holds no finished run, or its config is not one of this version.
    """
    file = path / "config.json"
    if not file.is_file():
        near = [str(found.parent) for found in sorted(path.parent.glob("*/config.json"))]
        hint = f"{did_you_mean(str(path), near)}; runs there: {', '.join(near[:10])}" if near else ""
        raise UserError(f"{path} holds no run: config.json is missing{hint}")
    if not finished.is_there(path):
        raise UserError(f"the run in {path} is not finished: give its command again to go on")
    content = records.read(file, {"data?": {"source?": str}}, "train the run again")
    try:
        config = checked_config(content)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except Exception as error:  # a changed one can raise any error in the rules of its keys
        raise UserError(f"{file} is not a config of this version ({type(error).__name__})") from error
    if config.method in PLAIN:
        raise UserError(f"{path} is a run of {config.method}, which has no network: take a run of another method")
    return config
