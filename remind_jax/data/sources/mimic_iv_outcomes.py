"""Other outcomes of the twin of MIMIC-IV, one for each task; the stays and what is seen of them are the twin's.

All depend on the score on which death depends, so the best answer is known:

  * conditions: 25 labels, from frequent to rare. Each turns the factors by signs of its own before they are summed and
    multiplied; one cell in twenty is unknown.
  * length_of_stay: days, log-normal around a mean that is linear in the score.
  * time_to_death: days, Weibull with half the score as log hazard, censored where a follow-up of any length ends.

In every combination they are as frequent, as long and as late, so that presence tells nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.manifest import Manifest
from remind_jax.data.sources import mimic_iv_twin
from remind_jax.data.sources.mimic_iv_twin import Stays, logistic

CONDITIONS = tuple(f"condition_{j:02d}" for j in range(1, 26))
SHARES = np.geomspace(0.4, 0.04, len(CONDITIONS))
UNKNOWN = 0.05
YEAR, DEAD, SHAPE = 365.0, 0.4, 0.7  # days, share that would die in them, shape: the hazard falls with time
FOLLOWED = (30.0, 1_100.0)  # least and most days of follow-up
MEDIAN, SPREAD, NOISE = 5.0, 0.13, 0.4  # days; of their logarithm: by the score, and at random


def load(outcome: str, *, seed: int, **options: Any) -> Manifest:
    """Makes the twin's stays with an outcome out of `OUTCOMES`; the other arguments are those of `load_twin`."""
    found, fields = mimic_iv_twin.load_twin(seed=seed, **options), OUTCOMES[outcome].fields
    how = {key: options[key] for key in ("missing", "drop") if key in options}
    stays = mimic_iv_twin.draw(found.table.height, seed, **how)
    labels = OUTCOMES[outcome].draw(stays, seed, mimic_iv_twin.stream(seed, 9))
    schema = dataclasses.replace(
        found.schema, name=f"mimic_iv_twin_{outcome}", **{"title": "", "names": (), "classes": (), **fields}
    )
    columns = dict(zip(schema.label_columns, map(pl.Series, labels), strict=True))
    table = found.table.drop("died").with_columns(**columns).fill_nan(None)
    title = f"{found.title}, {outcome.replace('_', ' ')}"
    return dataclasses.replace(found, schema=schema, table=table, title=title)


def signs(seed: int) -> np.ndarray:
    """Draws by which signs each condition turns the factors, [j, m, l]."""
    shape = (len(CONDITIONS), len(mimic_iv_twin.MODALITIES), mimic_iv_twin.FACTORS)
    return mimic_iv_twin.stream(seed, 8).choice([-1.0, 1.0], shape)


def chances(stays: Stays, seed: int) -> np.ndarray:
    """Returns the chance of each condition, [n, j]."""
    turned = [stays._replace(latents=each * stays.latents) for each in signs(seed)]
    each = [mimic_iv_twin.scores(some, seed, share, logistic) for some, share in zip(turned, SHARES, strict=True)]
    return logistic(np.stack(each, axis=1))


def log_days(stays: Stays, seed: int) -> np.ndarray:
    """Returns the mean logarithm of the days of a stay, [n]."""
    return np.log(MEDIAN) + SPREAD * mimic_iv_twin.scores(stays, seed, 0.5, logistic)


def log_hazards(stays: Stays, seed: int) -> np.ndarray:
    """Returns log Λ, [n]: survival is exp(-Λ) at `YEAR`, at t days exp(-Λ (t / `YEAR`)^`SHAPE`)."""
    return mimic_iv_twin.scores(stays, seed, DEAD, lambda score: 1 - np.exp(-np.exp(score)), 0.5)


def _conditions(stays: Stays, seed: int, rng: np.random.Generator) -> np.ndarray:
    chance = chances(stays, seed)
    has = rng.random(chance.shape) < chance
    return np.where(rng.random(chance.shape) < UNKNOWN, np.nan, has).T


def _length(stays: Stays, seed: int, rng: np.random.Generator) -> np.ndarray:
    logs = log_days(stays, seed)
    return np.exp(logs + NOISE * rng.normal(size=logs.shape))[None]


def _time(stays: Stays, seed: int, rng: np.random.Generator) -> np.ndarray:
    logs = log_hazards(stays, seed)
    death = YEAR * (rng.exponential(size=logs.shape) * np.exp(-logs)) ** (1 / SHAPE)
    followed = rng.uniform(*FOLLOWED, logs.shape)
    return np.stack([np.maximum(np.minimum(death, followed), 0.01), death <= followed])


class Outcome(NamedTuple):
    """Fields of `Schema`, and what draws the columns of the label, [columns, n]."""

    fields: dict[str, Any]
    draw: Callable[[Stays, int, np.random.Generator], np.ndarray]


OUTCOMES = {
    "conditions": Outcome(
        {"task": "multilabel", "label": CONDITIONS[0], "more_labels": CONDITIONS[1:], "classes": CONDITIONS},
        _conditions,
    ),
    "length_of_stay": Outcome({"task": "regression", "label": "days", "transform": "log1p"}, _length),
    "time_to_death": Outcome(
        {"task": "survival", "label": "days", "more_labels": ("dead",), "horizons": (30.0, YEAR)}, _time
    ),
}
