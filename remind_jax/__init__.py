"""REMIND in JAX. `load` opens a finished run for predictions; everything else is a module of its own."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remind_jax.predict import Predictor


def load(run: str) -> "Predictor":
    """Opens a finished or adapted run from its folder: `remind_jax.load("runs/mine").predict_proba("new.csv")`.

    Raises:
      remind_jax.errors.UserError: the folder holds no finished run of this version.
    """
    from remind_jax.predict import Predictor  # here, so that importing the package costs nothing

    return Predictor.open(run)
