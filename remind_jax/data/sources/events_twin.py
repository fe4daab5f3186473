"""Made-up stays whose outcome hides in the course of their vital signs; the best answer is known.

Everything here is synthetic; no figure measured on it says anything about medicine. A stay has two days of `vitals`,
events at irregular times, and an `admission` table; each may be missing, at random. The logit of the outcome sums what
is seen of three parts that are independent of each other:

  * the slope of the heart rate. It begins anywhere and ends at its own level, so the last value tells nothing of it;
  * whether a drug came within two hours of a fall in pressure, or at another time: two events that mean nothing alone;
  * age, of the table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.kinds import long_table
from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import combination_mask, parse_combinations
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

MODALITIES = ("vitals", "admission")
COMBINATIONS = (("vitals", 0.2), ("admission", 0.15), ("vitals+admission", 0.65))
TITLE = "made-up stays with events (synthetic)"
HOURS = 48
_CODES = ("heart rate", "pressure", "temperature", "oxygen saturation")
_CENTRE, _SPREAD = np.array([85.0, 80.0, 37.0, 96.0]), np.array([12.0, 8.0, 0.5, 1.5])
_SLOPE, _RESPONSE, _AGE = 1.6, 1.6, 0.8  # of the logit, by the standard deviation of each part
_FALL = 45.0  # the pressure of a fall, mmHg


def load(*, n: int = 3_000, seed: int = 0, most: int = 256) -> Manifest:
    """Makes `n` stays of as many patients, of whose events the newest `most` are used.

    Raises UserError: `n` or `most` is below 1.
    """
    if n < 1 or most < 1:
        raise UserError(f"data.stays and data.max_events must be at least 1, not {n} and {most}")
    rng = np.random.default_rng(seed)
    stays = draw(n, rng)
    died, present = rng.random(n) < stays.risk, stays.present
    events = pl.concat([_signs(stays.slope, rng), _fall(stays.response, rng)])
    events = events.filter(pl.Series(present[:, 0]).gather(events["row"]))
    ids = [f"s{i}" for i in range(n)]
    columns = {"stay_id": ids, "patient_id": ids, "died": died.astype(np.int64).astype(str)}
    columns["vitals"] = long_table.cells(events, n, most)
    columns["age"] = pl.Series(np.where(present[:, 1], np.round(60 + 15 * stays.age, 1), np.nan)).fill_nan(None)
    modalities = (
        Modality("vitals", "events", ("vitals",), options={"most": most}),
        Modality("admission", "tabular", ("age",)),
    )
    schema = Schema(
        "events_twin", "stay_id", "patient_id", "died", ("0", "1"), modalities, names=(("0", "survived"), ("1", "died"))
    )
    return Manifest(schema=schema, table=pl.DataFrame(columns), title=TITLE)


class Stays(NamedTuple):
    """What decides of n stays: modalities bool [n, m], three parts [n], and the risk that follows, [n]."""

    present: np.ndarray
    slope: np.ndarray
    age: np.ndarray
    response: np.ndarray
    risk: np.ndarray


def draw(n: int, rng: np.random.Generator) -> Stays:
    """Draws what decides of `n` stays, the first that `load` draws."""
    present = combination_mask(n, *parse_combinations(COMBINATIONS, MODALITIES), rng)
    slope, age, response = rng.normal(size=n), rng.normal(size=n), rng.integers(0, 2, n) * 2.0 - 1.0
    parts = np.stack([_SLOPE * slope + _RESPONSE * response, _AGE * age], axis=1)
    risk = 1 / (1 + np.exp(-np.where(present, parts, 0.0).sum(axis=1)))
    return Stays(present, slope, age, response, risk)


def _signs(slope: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """Draws 20 to 60 measurements of each stay at any times; only the heart rate has a slope, to a level of its own."""
    row = np.repeat(np.arange(len(slope)), rng.integers(20, 61, len(slope)))
    code, hours = rng.integers(0, len(_CODES), len(row)), -HOURS * rng.random(len(row))
    level = rng.normal(size=(len(slope), len(_CODES)))
    z = level[row, code] + 0.3 * rng.normal(size=len(row)) + np.where(code == 0, slope[row] * hours / HOURS * 1.5, 0.0)
    return _frame(row, hours, np.array(_CODES)[code], _CENTRE[code] + _SPREAD[code] * z)


def _fall(response: np.ndarray, rng: np.random.Generator) -> pl.DataFrame:
    """Draws a fall in pressure, and a drug: within two hours of it, or six hours or more before or after."""
    n = len(response)
    fall = rng.uniform(-HOURS + 16, -16, n)
    soon, apart = rng.uniform(0, 2, n), rng.uniform(6, 16, n) * rng.choice([-1, 1], n)
    drug = fall + np.where(response < 0, soon, apart)
    rows = np.tile(np.arange(n), 2)
    values = np.concatenate([_FALL + 3 * rng.normal(size=n), np.full(n, np.nan)])
    return _frame(rows, np.concatenate([fall, drug]), np.repeat(["pressure", "vasopressor"], n), values)


def _frame(row: np.ndarray, hours: np.ndarray, code: Sequence[str] | np.ndarray, value: np.ndarray) -> pl.DataFrame:
    columns = {"row": row.astype(np.uint32), "hours": hours, "code": pl.Series(code, dtype=pl.String), "value": value}
    return pl.DataFrame(columns).with_columns(pl.col("value").round(1).fill_nan(None))
