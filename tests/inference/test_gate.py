"""Thresholds measured on tuning rows, and what reports say of gates that decided nothing."""

import dataclasses
import json

import jax
import numpy as np
import polars as pl
import pytest

from remind_jax import main
from remind_jax.config import base, set_value
from remind_jax.data import dataset as datasets
from remind_jax.errors import UserError
from remind_jax.inference import gate, model_folder
from remind_jax.models.network import ensemble_of, make_network
from remind_jax.models.spec import model_spec
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(cache):
    return datasets.load_dataset(tiny_runs.config(cache))


def rates_when_measured(cache, data, **changes):
    """Shares of open gates of the tuning rows under measured thresholds, network by network, and the thresholds."""
    config = tiny_runs.config(cache, fusion__gate_threshold="auto", **changes)
    single = make_network(model_spec(config), data.inputs, len(data.groups), len(data.classes))
    network, store = ensemble_of(single, config.ensemble), data.stores["tuning"]
    params = network.init(0)
    found = gate.measure(config, network, params, store)
    assert {path: np.shape(x) for path, x in found.items()} == {
        path: np.shape(x) for path, x in params.items() if path.endswith("/gate_threshold")
    }
    params, rows = {**params, **found}, store.take(np.arange(len(store)))
    networks = [params]
    if config.ensemble > 1:
        networks = [{path: x[i] for path, x in params.items()} for i in range(config.ensemble)]
    apply = jax.jit(single.apply, static_argnames="gate")
    rates = [float(np.mean(apply(one, rows, gate="gated").open_rate)) for one in networks]
    return rates, gate.thresholds(config, params)


@pytest.mark.parametrize(
    ("share", "changes"),
    [
        (0.25, {}),
        (0.75, {}),
        (0.25, {"fusion__gate_granularity": "token", "fusion__gate_metric": "kl", "eval__batch_size": 7}),
        (0.75, {"ensemble": 2}),
        (0.25, {"model__members": 2, "fusion__preset": "official"}),
        (0.75, {"fusion__blocks": 2, "fusion__router_rank": 2}),
        *(
            pytest.param(share, changes, marks=pytest.mark.slow)
            for share, changes in (
                (0.75, {"fusion__gate_granularity": "token", "fusion__gate_metric": "kl", "eval__batch_size": 7}),
                (0.25, {"ensemble": 2}),
                (0.75, {"model__members": 2, "fusion__preset": "official"}),
                (0.25, {"fusion__blocks": 2, "fusion__router_rank": 2}),
            )
        ),
    ],
)
def test_a_measured_threshold_opens_the_stated_share_of_the_tuning_rows(cache, data, share, changes):
    rates, thresholds = rates_when_measured(cache, data, fusion__gate_share=share, **changes)
    # 48 rows; the residual routers are zero, so that a first block leaves a second one what it measured.
    assert rates == pytest.approx([share] * len(rates), abs=0.011)
    assert len(thresholds) == len(set(thresholds)) == changes.get("ensemble", 1) * changes.get("fusion__blocks", 1)


def test_the_measured_threshold_goes_with_the_model_and_is_told(cache, tmp_path, capsys):
    changes = {"fusion__gate_threshold": "auto", "fusion__gate_share": 0.5, "eval__bootstrap": 20}
    main.main([*tiny_runs.arguments(cache, **changes), f"--workdir={tmp_path}"])
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    model = model_folder.open_model(tmp_path)
    threshold = float(model.params["block_0/gate_threshold"])
    assert report["gate"]["threshold"] == pytest.approx(threshold)
    assert 0 < threshold < 1
    assert f"open from joint_entropy {threshold:.6g}, as 50% of the tuning rows have it" in capsys.readouterr().out
    held_out = datasets.load_dataset(model.config).stores["held_out"]
    predicted, written = model.predict_store(held_out), pl.read_parquet(tmp_path / "predictions.parquet")
    np.testing.assert_allclose(predicted.probabilities[:, 0], written["p_0"], atol=1e-6)
    assert predicted.open_rate == pytest.approx(report["gate"]["open_rate"], abs=1e-6)
    # The number of the model decides, not the config's.
    shut = dataclasses.replace(model, params={**model.params, "block_0/gate_threshold": np.float32(2.0)})
    assert shut.predict_store(held_out).open_rate == 0


def test_too_few_tuning_rows_are_refused(cache, tmp_path):
    changes = {"fusion__gate_threshold": "auto", "data__tuning": 1}
    with pytest.raises(UserError, match=r"gate_threshold=auto on: set a number"):
        main.main([*tiny_runs.arguments(cache, **changes), f"--workdir={tmp_path}"])


def config_of(**changes):
    config = base("synthetic")
    for key, value in changes.items():
        set_value(config, key.replace("__", "."), value)
    return config


PARAMS = {"block_0/router_scale": np.float32(1.25), "head/bias": np.zeros(2)}


@pytest.mark.parametrize(
    ("rule", "rates", "stuck"),
    [
        ("gated", [1.0, 0.999], "open"),
        ("gated", [0.001, 0.0], "closed"),
        ("gated", [1.0, 0.5], None),
        ("gated", [0.3], None),
        ("always", [1.0], None),
        ("never", [0.0], None),
    ],
)
def test_a_gate_is_stuck_where_it_never_decided(rule, rates, stuck):
    found = gate.summary(config_of(), PARAMS, rule, rates)
    assert (found["rule"], found["open_rate"], found["stuck"]) == (rule, rates[0], stuck)
    assert ("why" in found) == bool(stuck)
    assert ("threshold" in found) == (rule == "gated")


def test_a_gate_that_unit_lengths_keep_open_is_told_with_the_scale_it_needs_and_three_ways_out():
    paper = config_of(model__width=768, fusion__experts=128)
    why = gate.summary(paper, PARAMS, "gated", [1.0])["why"]
    assert "a scale of about 41 (width 768, 128 experts), and the scale is 1.25" in why
    for remedy in ("fusion.gate_threshold=auto", "fusion.scale=41", "fusion.preset=paper_eq"):
        assert remedy in why
    for other in (
        {"fusion__preset": "paper_eq"},
        {"fusion__gate_metric": "joint_entropy"},
        {"fusion__gate_metric": "kl", "fusion__gate_threshold": 0.1},
    ):
        why = gate.summary(config_of(**other), PARAMS, "gated", [1.0])["why"]
        assert "unit length" not in why
        assert "fusion.gate_threshold=auto" in why
    wide = PARAMS | {"block_0/router_scale": np.float32(60.0)}
    assert "unit length" not in gate.summary(paper, wide, "gated", [1.0])["why"]
    assert "unit length" not in gate.summary(paper, PARAMS, "gated", [0.0])["why"]


def test_measured_thresholds_are_told_and_a_stage_that_left_them_behind_too():
    config = config_of(fusion__gate_threshold="auto", fusion__gate_share=0.6)
    params = PARAMS | {"block_0/gate_threshold": np.float32(0.9875)}
    assert gate.told(config, params) == "Gate: open from entropy 0.9875, as 60% of the tuning rows have it"
    assert gate.summary(config, params, "gated", [0.4])["threshold"] == pytest.approx(0.9875)
    assert "train.joint_epochs" in gate.summary(config, params, "gated", [0.0])["why"]
    config.fusion.gate_metric = "kl"
    assert "up to kl" in gate.told(config, params)
    config.fusion.blocks = 2
    two = params | {"block_1/gate_threshold": np.float32(0.5)}
    assert gate.summary(config, two, "gated", [0.4])["threshold"] == pytest.approx([0.9875, 0.5])


def test_methods_without_group_routers_measure_nothing():
    config = config_of(fusion__gate_threshold="auto", fusion__group_routers=False)
    assert not gate.is_measured(config)
    assert gate.thresholds(config, PARAMS) == [0.8]
    assert gate.thresholds(config_of(fusion__gate_threshold=0.7, fusion__blocks=2), PARAMS) == [0.7, 0.7]
