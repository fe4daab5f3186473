"""Survival on complete tables of open data, next to a Cox model on the same held-out patients."""

import jax
import numpy as np
import pytest
from lifelines import CoxPHFitter
from lifelines.datasets import load_gbsg2, load_kidney_transplant, load_rossi
from lifelines.utils import concordance_index

import remind_jax as rj

SEEDS = range(4)
SETS = {
    # name: table, time, event, modalities, horizons
    "rossi": (load_rossi, "week", "arrest", {"a": ["fin", "age", "race"], "b": ["wexp", "mar", "paro", "prio"]}, [26]),
    "kidney": (
        load_kidney_transplant,
        "time",
        "death",
        {"a": ["age", "black_male"], "b": ["white_male", "black_female"]},
        [365, 1825],
    ),
    "gbsg2": (
        load_gbsg2,
        "time",
        "cens",
        {"a": ["age", "menostat"], "b": ["tsize", "tgrade", "pnodes"], "c": ["progrec", "estrec"], "d": ["horTh"]},
        [365, 1095],
    ),
}


def c_of_cox(frame, time, event, test):
    import pandas as pd

    inputs = pd.get_dummies(frame.drop(columns=[time, event]), drop_first=True).astype(float)
    table = inputs.assign(**{time: frame[time], event: frame[event]})
    risk = CoxPHFitter().fit(table[~test], time, event).predict_partial_hazard(table[test])
    return concordance_index(frame[time][test], -risk, frame[event][test])


def c_of_ours(frame, time, event, test, method, seed, modalities, horizons):
    order = np.random.default_rng((seed, 1)).permutation(np.flatnonzero(~test))
    split = np.full(len(frame), "train", object)
    split[test], split[order[: len(frame) // 10]] = "held_out", "tuning"
    label = {"task": "survival", "time": time, "event": event, "horizons": horizons}
    keys = {"eval.bootstrap": 2, "devices": 1}
    options = {"split": "split", "modalities": modalities, "method": method, "seed": seed, "progress": False}
    with jax.numpy_dtype_promotion("standard"):  # which optax's Adam needs
        model = rj.fit(frame.assign(split=split), label, **options, **keys)
        risk = model.predict(frame[test])
    return concordance_index(frame[time][test], -risk, frame[event][test])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in SETS for method in ("soft_moe", "remind")),
        ("rossi", "remind_plus"),
        ("gbsg2", "remind_plus"),
    ],
)
def test_harrells_c_is_within_a_hundredth_of_the_cox_models(name, method):
    load, time, event, modalities, horizons = SETS[name]
    frame, found = load(), []
    frame[time] = frame[time].astype(float)
    for seed in SEEDS:
        test = np.zeros(len(frame), bool)
        test[np.random.default_rng(seed).permutation(len(frame))[: 3 * len(frame) // 10]] = True
        ours = c_of_ours(frame, time, event, test, method, seed, modalities, horizons)
        found.append((ours, c_of_cox(frame, time, event, test)))
    ours, cox = np.mean(found, axis=0)
    assert ours > cox - 0.01, found
