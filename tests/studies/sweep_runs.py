"""Runs made up for tests of comparisons and tables: labels, probabilities and patients without any training."""

import numpy as np
import polars as pl

from remind_jax.data.groups import Groups
from remind_jax.evaluation.report import build_report
from remind_jax.studies.comparison import Outcome

MODALITIES = ("notes", "labs", "icd")
NAMES = ("notes+labs+icd", "notes+icd", "labs")
COUNTS = (80, 40, 6)


def groups() -> Groups:
    """Three combinations of training, the last one rare."""
    masks = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
    return Groups.fit(np.repeat(masks, COUNTS, axis=0), MODALITIES)


def predictions(seed: int, n: int, skill: float, method_seed: int, patients: int = 0) -> pl.DataFrame:
    """Samples that depend on `seed` alone, and probabilities right with probability `skill`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    owner = rng.integers(0, patients or n, n) if patients else np.arange(n)
    group = rng.choice(NAMES, n, p=(0.6, 0.3, 0.1))
    own = np.random.default_rng((seed, method_seed))
    sure = own.uniform(0.5, 1.0, n)
    p_1 = np.where((own.uniform(size=n) < skill) == (label == 1), sure, 1 - sure)
    return pl.DataFrame(
        {
            "sample_id": [f"s{seed}-{i}" for i in range(n)],
            "patient_id": [f"p{i}" for i in owner],
            "label": label,
            "group": group.tolist(),
            "p_0": 1 - p_1,
            "p_1": p_1,
        }
    )


def run(method: str, seed: int, frame: pl.DataFrame, data: str = "ward", resamples: int = 20) -> Outcome:
    """A run with the report of these predictions."""
    config = {"method": method, "seed": seed, "eval": {"bootstrap": resamples}}
    report = build_report(config, data, frame, groups(), parameters=7, classes=["no", "yes"])
    return Outcome(method, seed, report, frame)


def make(skills: dict[str, float], seeds=(0, 1, 2), n: int = 120, data: str = "ward") -> list[Outcome]:
    """A run of each method under each seed."""
    return [
        run(method, seed, predictions(seed, n, skill, number), data)
        for number, (method, skill) in enumerate(skills.items())
        for seed in seeds
    ]
