"""What values a config may hold, and the network it describes."""

import dataclasses

import pytest

from configs import common
from remind_jax import settings
from remind_jax.errors import UserError
from remind_jax.models.fusion.soft_moe import FusionSpec
from remind_jax.models.spec import ModelSpec


@pytest.fixture
def config():
    made = common.base()
    made.data.source = "synthetic"
    return made


def _set(config, key: str, value) -> None:
    *path, name = key.split(".")
    for part in path:
        config = config[part]
    config[name] = value


def _get(config, key: str):
    for part in key.split("."):
        config = config[part]
    return config


def _message(config) -> str:
    with pytest.raises(UserError) as error:
        settings.validate(config)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shared_defaults_are_valid(config):
    settings.validate(config)


def test_every_rule_can_say_what_is_wrong(config):
    said = [rule.says.format(c=config) for rule in settings.RULES]
    assert len(set(said)) == len(said)
    assert not [text for text in said if "{" in text or "\n" in text]


@pytest.mark.parametrize("key", settings.CHOICES)
def test_unknown_choice_is_refused_with_the_known_ones(config, key):
    known = list(settings.CHOICES[key])
    assert len(known) > 1
    _set(config, key, f"{known[-1]}x")
    message = _message(config)
    assert message.startswith(f"{key}='{known[-1]}x' is unknown")
    assert f"did you mean {known[-1]!r}" in message
    assert message.endswith(", ".join(known))
    _set(config, key, "#")
    assert "did you mean" not in _message(config)


@pytest.mark.parametrize(
    ("key", "choice"), [(key, choice) for key in settings.CHOICES for choice in settings.CHOICES[key]]
)
def test_every_known_choice_is_valid(config, key, choice):
    _set(config, key, choice)
    config.fusion.group_routers = config.fusion.kind == "soft_moe"
    settings.validate(config)


def test_group_routers_are_parts_of_the_soft_moe_block(config):
    config.fusion.kind = "fuse_moe"
    with pytest.raises(UserError, match=r"group_routers belong to fusion\.kind=soft_moe"):
        settings.validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_routers": False}, "with fusion.group_routers=true"),
        ({"group_routers": False, "kind": "fuse_moe"}, "belongs to fusion.kind=soft_moe"),
        ({"residual_init": "sinusoidal"}, "fusion.residual_init=sinusoidal"),
    ],
)
def test_composed_routers_stand_in_for_a_table_of_routers(config, changes, message):
    config.fusion.router_rank = 2
    settings.validate(config)
    config.fusion.update(changes)
    assert message in _message(config)


@pytest.mark.parametrize(
    ("keys", "wrong", "edge", "rule"),
    [
        (settings.AT_LEAST_ONE, 0, 1, "at least 1"),
        (settings.POSITIVE, 0.0, 1e-9, "above 0 and finite"),
        (settings.NOT_NEGATIVE, -1, 0, "at least 0 and finite"),
        (settings.BELOW_ONE, 1.0, 0.0, "at least 0 and below 1"),
        (settings.BELOW_ONE, -0.1, 0.999, "at least 0 and below 1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(config, keys, wrong, edge, rule):
    config.fusion.heads, config.train.joint_epochs = 1, 0.0  # so that no other rule is in the way at the edges
    for key in keys:
        before = _get(config, key)
        _set(config, key, type(before)(wrong))
        assert _message(config) == f"{key}={type(before)(wrong)} must be {rule}"
        _set(config, key, type(before)(edge))
        settings.validate(config)
        _set(config, key, before)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("key", ["optim.lr", "dro.gamma", "train.epochs", "fusion.dropout"])
def test_numbers_that_are_none_are_refused(config, key, value):
    """NaN is neither below nor above a bound; taken on, it would turn every weight into NaN."""
    _set(config, key, float(value))
    assert key in _message(config)


def test_heads_must_divide_the_width(config):
    config.model.width, config.fusion.heads = 12, 8
    assert "model.width=12" in _message(config)
    assert "fusion.heads=8" in _message(config)


def test_one_expert_is_refused(config):
    """The entropy over experts, by which the gate decides, is zero for one whatever the number of slots."""
    config.fusion.experts, config.fusion.slots = 1, 2
    assert "fusion.experts=1" in _message(config)
    config.fusion.experts = 2
    settings.validate(config)


def test_gate_over_a_batch_is_refused_where_devices_see_shares_of_it(config):
    """One decision a batch needs the whole batch; a device under pmap has its share only."""
    config.parallel, config.fusion.gate_granularity = "pmap", "batch"
    message = _message(config)
    assert "fusion.gate_granularity" in message
    assert "parallel" in message
    config.parallel = "jit"
    settings.validate(config)


def test_model_spec_carries_every_key_over():
    config = common.base()
    change = {bool: lambda v, i: not v, str: lambda v, i: f"{v}!", int: lambda v, i: v + i, float: lambda v, i: v + i}
    for section, spec in (("model", ModelSpec), ("fusion", FusionSpec)):
        for i, field in enumerate(dataclasses.fields(spec)):
            if field.name != "fusion":
                value = config[section][field.name]
                config[section][field.name] = change[type(value)](value, i + 1)
    spec = settings.model_spec(config)
    assert dataclasses.asdict(spec) == {**config.model.to_dict(), "fusion": config.fusion.to_dict()}
    assert spec != settings.model_spec(common.base())
