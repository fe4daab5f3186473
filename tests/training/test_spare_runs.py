"""Runs whose tables have spare rows in their steps, against runs whose tables have none."""

import numpy as np
import pytest

from remind_jax.data import dataset as datasets
from remind_jax.models import spare_rows
from remind_jax.training.loop import Trainer
from remind_jax.training.run import make_trainer, train_and_evaluate
from remind_jax.training.run_folder import InMemory
from tests import tiny_runs
from tests.training.runs import assert_same_arrays, checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation", "no_page"),
]
SHORT = {"train__epochs": 0.6, "train__joint_epochs": 0.3, "eval__bootstrap": 20, "optim__weight_decay": 0.3}
RUNS = {
    "routers and λ": ("remind", {"fusion__gate_threshold": 0.9}),
    "imputation": ("remind", {"model__imputation": "modality+group", "dro__weights": "updated"}),
    "an ensemble": ("remind_plus", {"ensemble": 2, "ensemble_plain": 1, "model__imputation": "bank"}),
    "two devices": ("group_dro", {"devices": 2, "parallel": "pmap"}),
    "pairs": ("fair_mixup", {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_numbers_of_one_without_spare_rows(name, tmp_path, monkeypatch) -> None:
    method, changes = RUNS[name]
    config = tiny_runs.config(tmp_path, method, **SHORT | changes)
    seen = []
    program = Trainer.program
    monkeypatch.setattr(Trainer, "program", lambda self, stage: seen.append(self.spare) or program(self, stage))
    reports = [train_and_evaluate(config, tmp_path / "spare", verbose=False)]
    monkeypatch.setattr(spare_rows, "count", lambda shapes, num_groups: 0)
    reports.append(train_and_evaluate(config, tmp_path / "none", verbose=False))
    assert seen[0] == 4
    assert seen[-1] == 0
    one, other = (checkpoint(tmp_path / folder) for folder in ("spare", "none"))
    assert_same_arrays(one, other, 3e-5)
    assert reports[0]["overall"]["accuracy"] == reports[1]["overall"]["accuracy"]


@pytest.mark.parametrize(
    "changes",
    [{"optim__group_rows": "batch"}, {"train__hide_samples": 0.5}, {"objective__kind": "reweigh"}],
    ids=["rows of a batch", "hidden modalities", "weights of combinations"],
)
def test_steps_that_depend_on_all_combinations_have_no_spare_rows(changes, tmp_path) -> None:
    found = []
    for more in ({}, changes):
        config = tiny_runs.config(tmp_path, "remind", **SHORT | more)
        data = datasets.load_dataset(config)
        assert len(data.groups) == 4
        found.append(make_trainer(config, data, InMemory(config.to_dict())).spare)
    assert found == [4, 0]


def test_large_tables_have_no_spare_rows() -> None:
    small, large = (np.zeros((3, n)) for n in (2**14, 2**15))
    assert spare_rows.count({"imputation/group": small, "head/kernel": large}, 3) == 5
    assert spare_rows.count({"imputation/group": large}, 3) == 0
    assert spare_rows.count({"imputation/group": small}, 16) == 0
