"""Training as it was: initial weights, every step, and what comes out, against stored numbers (see `__main__`)."""

import functools

import numpy as np
import pytest

from tests import tiny_runs
from tests.golden import runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation", "no_page"),
]
TOLERANCE = 2e-4
# The programs of the others differ from these in a fusion, an objective, a sampler or dropout, with tests of their own.
FAST = ("soft_moe", "remind", "remind_plus", "hospital")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(name, changes of keys) -> numbers of that run from its stored initial weights; trained once."""
    cache = tmp_path_factory.mktemp("cache")

    @functools.cache
    def train(name, **changes):
        folder = tmp_path_factory.mktemp("run") / "run"
        return runs.train(runs.RUNS[name], folder, cache, runs.read_weights(name), **changes)

    return train


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, run in runs.RUNS.items() if not run.start])
def test_a_run_draws_the_stored_initial_weights(trained, name):
    drawn, stored = trained(name).initial, runs.read_weights(name)
    assert {path: x.shape for path, x in drawn.items()} == {path: x.shape for path, x in stored.items()}
    for path, x in stored.items():
        np.testing.assert_allclose(drawn[path], x, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in runs.RUNS]
)
def test_ten_steps_give_the_stored_numbers(trained, name):
    found, stored = trained(name), runs.read_numbers(name)
    assert found.steps["step"].tolist() == list(range(1, 11))
    assert found.evaluations["step"].tolist() == [5, 10]
    far = runs.differences(found, stored)
    assert max(far.values()) <= TOLERANCE, far


@pytest.mark.parametrize("changes", [{"seed": 1}, {"optim__lr": 0.0202}], ids=str)
def test_the_numbers_tell_of_small_changes(trained, changes):
    """From the same initial weights: another seed's data and draws, and a rate that is one per cent higher."""
    far = runs.differences(trained("soft_moe", **changes), runs.read_numbers("soft_moe"))
    kinds = ("loss", "gradient", "held_out", "norms")
    assert min(far[kind] for kind in kinds) > 3 * TOLERANCE, far


def test_the_runs_reach_what_they_are_there_for():
    """Both stages, a gate that is open for some, λ and shares that move: numbers that stand still tell little."""
    for name in ("remind", "hospital"):
        rates = runs.read_numbers(name).steps["gate/open_rate"]
        assert not rates[:5].any()
        assert np.unique(rates[5:]).size > 1
    for name in ("remind", "hospital", "remind_plus", "group_dro"):
        steps = runs.read_numbers(name).steps
        assert all(np.ptp(column) > 1e-3 for key, column in steps.items() if key.startswith("dro/lambda/"))
    shares = [column for key, column in runs.read_numbers("fair_batch").steps.items() if key.startswith("sampler/")]
    assert max(np.ptp(column) for column in shares) > 0.01
    for name in ("fuse_moe", "flex_moe"):
        assert np.ptp(runs.read_numbers(name).steps["train/routing"]) > 1e-3
    assert np.ptp(runs.read_numbers("fair_mixup").steps["train/mixup"]) > 1e-3
