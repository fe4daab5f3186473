"""REMIND in JAX. `load` opens a finished run for predictions; everything else is a module of its own."""

import importlib
import pathlib
from typing import Any


def load(run: str | pathlib.Path) -> Any:
    """Opens a finished or adapted run as a `Predictor`: `remind_jax.load("runs/mine").predict_proba("new.csv")`.

    Raises UserError: the folder holds no finished run of this version.
    """
    # Importing the package alone costs nothing.
    return importlib.import_module("remind_jax.inference.model_folder").open_model(pathlib.Path(run))
