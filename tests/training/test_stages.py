"""Stages in which predictors of single modalities learn alone, and those that move running means."""

import pytest

from remind_jax.config import base
from remind_jax.methods import apply_method
from remind_jax.training.stages import plan_stages
from tests.models.test_model import TABULAR


def stages(method: str, **changes):
    config = base("manifest")
    apply_method(config, method)
    for name, value in changes.items():
        config.train[name] = value
    return plan_stages(config, 640, TABULAR)


@pytest.mark.parametrize("method", ["medfuse", "simmlm"])
def test_predictors_of_modalities_come_first_with_their_encoders_alone(method):
    first, second = stages(method)
    assert (first.apart, second.apart) == (True, False)
    apart = [
        path
        for path in (
            "encoders/labs/kernel",
            "block_0/experts/head",
            "block_0/step/kernel",
            "block_0/out/kernel",
            "wide",
        )
        if not first.is_frozen(path)
    ]
    assert apart == ["encoders/labs/kernel", "block_0/experts/head"]
    assert not any(second.is_frozen(path) for path in ("encoders/labs/kernel", "block_0/step/kernel", "head/kernel"))
    # Without a first stage all learn together.
    (only,) = stages(method, joint_epochs=0.0)
    assert not only.apart
    assert not only.is_frozen("block_0/step/kernel")


def test_running_means_move_in_training_and_are_not_trained():
    (stage,) = stages("mean_imputation")
    assert stage.network_options("devices") == {"means": True, "axis_name": "devices"}
    assert stage.is_frozen("imputation/running_mean")
    (other,) = stages("modality_dropout")
    assert other.network_options("devices") == {}
