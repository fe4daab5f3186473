"""Config files of tasks other than classes run from a clone, here with a tiny network; the smoke runs are elsewhere."""

import pytest

from remind_jax import main
from remind_jax.evaluation import finished
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
KEYS = {key: value for key, value in tiny_runs.TINY.items() if not key.startswith("data.")}
KEYS |= {"train.batch_size": 64, "train.epochs": 0.2, "train.joint_epochs": 0.1, "eval.bootstrap": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "title"),
    [
        ("gbsg2", "survival", "GBSG2"),
        ("nhanes_grades", "ordinal", "NHANES 2017-18"),
        ("nhanes_conditions", "multilabel", "NHANES 2017-18, conditions"),
        ("nhanes_hba1c", "regression", "NHANES 2017-18, glycohemoglobin"),
    ],
)
def test_a_config_of_each_task_trains_and_reports(name, task, title, tmp_path):
    flags = [f"--config.{key}={value}" for key, value in {**KEYS, "data.cache": tmp_path / "cache"}.items()]
    main.main([f"--config={tiny_runs.ROOT}/configs/{name}.py", *flags, f"--workdir={tmp_path / 'run'}"])
    report = finished.read_report(tmp_path / "run")
    assert report["task"]["name"] == task
    assert report["data"].startswith(title)
    assert report["overall"][report["task"]["headline"]] is not None
    assert len(report["groups"]) > 1  # something is missing
    if task == "regression":
        assert report["overall"]["coverage"] is not None
    if task == "survival":
        assert list(report["overall"]["horizons"]) == ["365", "1095", "1825"]
