"""REMIND in JAX: `fit` trains on a frame or a folder, `load` opens what was trained.

    import pandas as pd, remind_jax as rj
    model = rj.fit(df, label="died", patient="subject_id", modalities={"labs": ["na", "k"], "note": rj.Text("note")})
    model.predict_proba(new_df)

The names are imported when they are used: importing the package alone costs nothing.
"""

import importlib
import pathlib
from typing import Any

_MENU = {
    **dict.fromkeys(("fit", "read_folder", "Table", "Text", "Codes", "Image", "Volume", "Embedding"), "api"),
    **dict.fromkeys(("Series", "Events"), "api"),
    **dict.fromkeys(("MultimodalClassifier", "MultimodalRegressor", "MultimodalSurvival"), "estimators"),
    **{"Predictor": "inference.predictor", "Report": "evaluation.report"},
    "UserError": "errors",
}
__all__ = ["load", *_MENU]


def load(run: str | pathlib.Path) -> Any:
    """Opens a finished or adapted run, or a model that was saved: `remind_jax.load("runs/mine").predict_proba(frame)`.

    Returns a `Predictor`. Raises UserError: the folder holds no finished run, and no model, of this version.
    """
    return importlib.import_module("remind_jax.inference.model_folder").open_model(pathlib.Path(run))


def __getattr__(name: str) -> Any:
    if name not in _MENU:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MENU[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MENU])
