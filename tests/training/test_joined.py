import jax
import numpy as np
import pytest

from remind_jax.training import joined
from remind_jax.training.loop import Trainer
from remind_jax.training.run import train_and_evaluate
from remind_jax.training.stages import Stage
from tests import programs, tiny_runs
from tests.training.runs import assert_same_arrays, checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation", "no_page"),
]
SHORT = {"train__epochs": 0.6, "train__joint_epochs": 0.3, "eval__bootstrap": 20, "optim__weight_decay": 0.3}
RUNS = {
    "remind": {"fusion__gate_threshold": 0.9},
    "λ acts late, clipped, kept in bfloat16": {
        "dro__stages": "specialize",
        "optim__clip": 0.1,
        "optim__first_moment": "bfloat16",
    },
    "frozen encoders, a measured gate, composed routers": {
        "train__freeze": "encoders+projections",
        "fusion__gate_threshold": "auto",
        "fusion__router_rank": 2,
    },
    "an ensemble, taught": {
        "ensemble": 2,
        "objective__distill_weight": 1.0,
        "train__hide_samples": 0.5,
    },
}


@pytest.mark.parametrize("name", RUNS)
def test_a_shared_step_has_the_numbers_of_one_for_each_stage(name, tmp_path, monkeypatch) -> None:
    config = tiny_runs.config(tmp_path, "remind", **SHORT | RUNS[name])
    with programs.compiled() as names:
        train_and_evaluate(config, tmp_path / "shared", verbose=False)
    assert names.count("jit(train_step)") == 1
    monkeypatch.setattr(joined, "shares_step", lambda *arguments: False)
    with programs.compiled() as names:
        train_and_evaluate(config, tmp_path / "apart", verbose=False)
    assert names.count("jit(train_step)") == 2
    one, other = (checkpoint(tmp_path / folder) for folder in ("shared", "apart"))
    assert_same_arrays(one, other, 1e-2 if "bfloat16" in name else 3e-5)


def test_the_state_of_a_stage_comes_back_to_the_bit(tmp_path, monkeypatch) -> None:
    """What `enter` adds `leave` takes away, in both stages, so that a run goes on from where it was stopped."""
    seen = []
    program = Trainer.program

    def looked_at(self, stage):
        made = program(self, stage)

        def place(state):
            placed = made.place(state)
            seen.append((state, made.fetch(placed)))
            return placed

        return made._replace(place=place)

    monkeypatch.setattr(Trainer, "program", looked_at)
    train_and_evaluate(tiny_runs.config(tmp_path, "remind", **SHORT), tmp_path / "run", verbose=False)
    assert len(seen) == 2
    for before, after in seen:
        assert jax.tree.structure(before) == jax.tree.structure(after)
        jax.tree.map(np.testing.assert_array_equal, before, after)
    assert "block_0/group_router" in seen[0][0].frozen
    assert "block_0/group_router" in seen[1][0].params


def _stage(name: str, gate: str, statistics: bool = False) -> Stage:
    return Stage(name, 0, 1, lambda path: False, gate, gate, robust=True, statistics=statistics)


def test_large_networks_and_stages_that_differ_in_more_have_steps_of_their_own() -> None:
    small = {f"{i}": jax.ShapeDtypeStruct((256, 256), np.float32) for i in range(32)}
    stages = _stage("joint", "never"), _stage("specialize", "gated")
    assert joined.shares_step(stages, small, rests=False)
    assert not joined.shares_step(stages, small, rests=True)
    assert not joined.shares_step(stages[:1], small, rests=False)
    assert not joined.shares_step((stages[0], _stage("specialize", "always")), small, rests=False)
    assert not joined.shares_step((stages[0], _stage("specialize", "gated", statistics=True)), small, rests=False)
    assert not joined.shares_step(stages, {**small, "33": small["0"]}, rests=False)
    assert not joined.shares_step(stages, {"0": jax.ShapeDtypeStruct((256, 257), np.float32)}, rests=False)
