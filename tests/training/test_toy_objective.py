"""An objective and a sampler from outside: each its function and entry in a table, its name as a choice, a method."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.config.table import SECTIONS
from remind_jax.data import samplers
from remind_jax.errors import UserError
from remind_jax.methods import METHODS, SOFT_MOE
from remind_jax.training import objective
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


def worst_group(config, counts, dro):
    """Only the combination with the highest mean loss in the batch counts."""
    del config, dro

    def factors(dro_state, loss_sum, count):
        del dro_state
        means = jnp.where(count > 0, loss_sum / jnp.maximum(count, 1.0), -jnp.inf)
        return jnp.where(jnp.arange(len(counts)) == jnp.argmax(means), 1.0 / jnp.maximum(count, 1.0), 0.0)

    return factors, None


class InTurn(samplers.Sampler):
    """Takes the samples in the order of the table, and counts the steps that it has seen."""

    def __init__(self, n: int):
        super().__init__(lambda step, size: (step * size + np.arange(size)) % n)
        self.seen = [0]

    def observe(self, step, metrics):
        self.seen[0] += 1

    def record(self):
        return {"seen": self.seen[0]}

    def restore(self, record):
        self.seen[0] = record["seen"]


def _allow(monkeypatch, section: str, name: str, choice: str) -> None:
    key = SECTIONS[section][name]
    monkeypatch.setitem(SECTIONS[section], name, key._replace(allowed=(*key.allowed, choice)))


def test_a_method_made_of_an_objective_and_a_sampler_from_outside_trains_and_reports(tmp_path, monkeypatch):
    made = []

    def in_turn(config, rows):
        made.append(InTurn(len(rows.groups)))
        return made[-1]

    monkeypatch.setitem(objective.OBJECTIVES, "worst_group", worst_group)
    monkeypatch.setitem(samplers.SAMPLERS, "in_turn", in_turn)
    monkeypatch.setitem(METHODS, "toy", SOFT_MOE | {"objective.kind": "worst_group", "sampler": "in_turn"})
    with pytest.raises(UserError, match=r"worst_group|in_turn"):
        train_and_evaluate(tiny_runs.config(tmp_path, "toy"), tmp_path / "refused", verbose=False)
    _allow(monkeypatch, "objective", "kind", "worst_group")
    _allow(monkeypatch, "", "sampler", "in_turn")

    losses = {}
    for kind in ("worst_group", "erm"):
        keys = {"objective__kind": kind, "train__log_every": 1, "train__epochs": 1.0}
        # The order of each of two stages is told from the sampler's first record, which leaves the sampler as it is.
        keys |= {"train__baselines_two_stage": True, "train__joint_epochs": 0.5}
        config = tiny_runs.config(tmp_path, "toy", **keys)
        report = train_and_evaluate(config, tmp_path / kind, verbose=False)
        assert report["method"] == "toy"
        assert 0 < report["overall"]["accuracy"] <= 1
        lines = (tmp_path / kind / "metrics.jsonl").read_text().splitlines()
        losses[kind] = [record["train/loss"] for record in map(json.loads, lines) if "train/loss" in record]
    assert made[-1].record() == {"seen": 12}
    # The same samples from the same weights, and another gradient from the first step on.
    first, second = (np.array(losses[kind]) for kind in ("worst_group", "erm"))
    assert first[0] == second[0]
    assert (first[1:] != second[1:]).all()
