"""Uncertainty of the shared router: metrics of tokens and samples, and thresholds that do what the gate would do."""

import csv
import dataclasses
import json
import math
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from remind_jax import main as train_main
from remind_jax.analysis import command, opening, uncertainty
from remind_jax.errors import UserError
from remind_jax.models.network import make_network
from remind_jax.models.spec import model_spec
from remind_jax.ops import routing
from tests import tiny_runs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)]
METRICS = tuple(routing.UNCERTAINTY_METRICS)


@pytest.fixture(scope="module")
def folder(_quick_compilation, tmp_path_factory) -> pathlib.Path:
    """A REMIND run, a Soft MoE run, and one that says it is of two members."""
    path = tmp_path_factory.mktemp("runs")
    changes = {"remind": {"fusion__experts": 4}, "soft_moe": {"train__epochs": 0.5}}
    for method, own in changes.items():
        arguments = tiny_runs.arguments(path / "cache", method, eval__bootstrap=20, **own)
        train_main.main([*arguments, f"--workdir={path / method}"])
    shutil.copytree(path / "soft_moe", path / "members")
    config = json.loads((path / "members" / "config.json").read_text())
    config["model"]["members"] = 2
    (path / "members" / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def measured(folder) -> tuple[opening.Run, uncertainty.Measured]:
    """A run whose weights have strong group routers, and what is measured with them."""
    run = opening.open_run(folder / "remind")
    params = dict(run.model.params)
    shape = params["block_0/group_router"].shape
    params["block_0/group_router"] = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for path in ("block_0/router_scale", "block_0/expert_in", "block_0/expert_out"):
        params[path] = 4.0 * params[path]
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, params=params))
    return run, uncertainty.measure(run, command.Options(points=5, block=0, split="held_out"))


def _table(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# ---- Numbers --------------------------------------------------------------------------------------------------------


def test_metrics_of_tokens_and_samples_by_hand() -> None:
    e = 4
    uniform, sure = np.zeros((1, 2, e, 1)), np.zeros((1, 2, e, 1))
    sure[0, :, 2] = 40.0
    tokens, samples = uncertainty.measures(jnp.asarray(np.concatenate([uniform, sure]), jnp.float32))
    assert "joint_entropy" not in tokens
    assert set(samples) == set(METRICS)
    flat = {"entropy": 1.0, "joint_entropy": 1.0, "gini": 1 - 1 / e, "certainty": 0.0, "max_probability": 1 / e}
    flat |= {"margin": 0.0, "variance": 0.0, "kl": 0.0}
    peak = {"entropy": 0.0, "joint_entropy": math.log(2) / math.log(2 * e), "gini": 0.0, "certainty": 1.0}
    peak |= {"max_probability": 1.0, "margin": 1.0, "variance": 1 - 1 / e, "kl": math.log(e)}
    for name in METRICS:
        np.testing.assert_allclose(samples[name], [flat[name], peak[name]], atol=1e-5)
        if name in tokens:
            np.testing.assert_allclose(tokens[name], [[flat[name]] * 2, [peak[name]] * 2], atol=1e-5)
        # The grid of thresholds ends where the metric does.
        assert max(flat[name], peak[name]) == pytest.approx(uncertainty.largest(name, e))


@pytest.mark.parametrize("metric", METRICS)
def test_samples_open_where_the_gate_of_the_model_opens(metric: str) -> None:
    logits = jnp.asarray(2.0 * np.random.default_rng(3).normal(size=(40, 3, 4, 2)), jnp.float32)
    _, samples = uncertainty.measures(logits)
    values = np.asarray(samples[metric])
    threshold = float(np.sort(values)[17:19].mean())
    expected = routing.gate_is_open(logits, metric, threshold, "sample")[:, 0]
    found = uncertainty.is_open(metric, values, threshold)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() in (18, 22)


def test_thresholds_cover_what_can_be_and_what_is() -> None:
    values = np.array([0.2, 0.3, 0.3, 0.9])
    found = uncertainty.thresholds("kl", values, 8, 10)
    grid = [x for at, x in found if at == "grid"]
    np.testing.assert_allclose(grid, np.linspace(0.0, math.log(8), 11))
    inside = [x for at, x in found if at == "quantile"]
    assert (inside[0], inside[-1]) == (0.2, 0.9)
    assert [x for _, x in found] == sorted(x for _, x in found)


def test_answers_are_mixed_sample_by_sample() -> None:
    samples = {"entropy": np.array([0.1, 0.5, 0.6, 0.9])}
    never, always = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    groups = [{"group": "a", "tail": False}, {"group": "b", "tail": True}]
    found = uncertainty.Measured({}, samples, (never, always), groups, np.array([0, 0, 1, 1]), 4)
    row = uncertainty.threshold_row(found, "entropy", 0.6)  # from the third sample on
    assert (row["open_all"], row["open_head"], row["open_tail"]) == (0.5, 0.0, 1.0)
    assert (row["accuracy_all"], row["accuracy_head"], row["accuracy_tail"]) == (1.0, 1.0, 1.0)
    row = uncertainty.threshold_row(found, "entropy", 0.0)
    assert (row["accuracy_all"], row["accuracy_head"], row["accuracy_tail"]) == (0.5, 0.0, 1.0)
    shut = uncertainty.threshold_row(found._replace(marks=None), "entropy", 2.0)
    assert (shut["open_all"], shut["accuracy_all"]) == (0.0, None)


def test_a_threshold_gives_the_accuracy_of_the_network_gated_at_it(measured) -> None:
    run, found = measured
    values = found.samples["margin"]
    threshold = float(np.sort(values)[len(values) // 2 - 1 :][:2].mean())
    config = run.config.copy_and_resolve_references()
    config.fusion.gate_metric, config.fusion.gate_threshold = "margin", threshold
    single = make_network(model_spec(config), run.data.inputs, len(run.data.groups), len(run.data.classes))

    def right(params, batch):
        output = single.apply(params, batch, gate="gated")
        return jnp.argmax(output.logits, axis=-1) == batch["label"], output.open_rate

    gated, open_rate = command.over_rows(run, "held_out", right)
    row = uncertainty.threshold_row(found, "margin", threshold)
    assert 0.2 < row["open_all"] < 0.8
    np.testing.assert_array_equal(uncertainty.is_open("margin", values, threshold), open_rate == 1.0)
    assert row["accuracy_all"] == pytest.approx(float(gated.mean()))
    never, always = found.marks
    assert (never != always).any()  # or every threshold would do


# ---- The command ----------------------------------------------------------------------------------------------------


def test_tables_and_pictures_of_a_run(folder: pathlib.Path, capsys) -> None:
    run = folder / "remind"
    uncertainty.main([f"--workdir={run}", "--points=4"])
    rows = _table(run / "analysis" / "uncertainty.csv")
    assert tuple(rows[0]) == uncertainty.COLUMNS
    report = json.loads((run / "report.json").read_text())
    names = {row["group"] for row in report["groups"] if row["n"]} | set(uncertainty.PARTS)
    assert {(row["level"], row["metric"]) for row in rows} == {
        *(("sample", name) for name in METRICS),
        *(("token", name) for name in METRICS if name != "joint_entropy"),
    }
    assert {row["group"] for row in rows} == names
    for row in rows:
        at = [float(row[f"q{round(100 * q):02d}"]) for q in uncertainty.QUANTILES]
        assert at == sorted(at)
        assert at[0] - 1e-6 <= float(row["mean"]) <= at[-1] + 1e-6
    lines = _table(run / "analysis" / "uncertainty_thresholds.csv")
    assert tuple(lines[0]) == uncertainty.threshold_columns("accuracy")
    (own,) = [row for row in lines if row["configured"] == "true"]
    predictions = pl.read_parquet(run / "predictions.parquet")
    assert own["metric"] == "joint_entropy"
    assert int(own["n_all"]) == len(predictions) == report["n"]
    assert float(own["accuracy_all"]) == pytest.approx(report["overall"]["accuracy"], rel=1e-5)
    assert float(own["accuracy_tail"]) == pytest.approx(report["tail_pooled"]["accuracy"], rel=1e-5)
    assert float(own["open_all"]) == pytest.approx(report["gate"]["open_rate"], abs=1e-6)
    assert (run / "analysis" / "uncertainty.png").read_bytes().startswith(b"\x89PNG")
    svg = (run / "analysis" / "uncertainty.svg").read_text(encoding="utf-8")
    for word in ("max probability", "head", "tail", "gate open", "gate at 0.8", "accuracy"):
        assert word in svg
    assert "always shut" in capsys.readouterr().out


def test_a_run_without_a_gate_has_metrics_and_no_accuracies(folder: pathlib.Path, capsys) -> None:
    run = folder / "soft_moe"
    uncertainty.main([f"--workdir={run}", "--points=2", "--split=tuning"])
    lines = _table(run / "analysis" / "uncertainty_thresholds.csv")
    assert {row["accuracy_all"] for row in lines} == {""}
    assert {row["n_all"] for row in lines} == {"48"}
    assert "No gate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run"),
        (["--workdir=RUN", "--also=RUN"], "also"),
        (["--workdir=RUN", "--points=0"], "points"),
        (["--workdir=RUN", "--block=3"], "blocks of"),
        (["--workdir=MEMBERS"], "several predictors"),
    ],
)
def test_mistakes_are_named(folder: pathlib.Path, arguments: list[str], message: str) -> None:
    names = {"RUN": str(folder / "remind"), "MEMBERS": str(folder / "members")}
    for short, path in names.items():
        arguments = [argument.replace(short, path) for argument in arguments]
    with pytest.raises(UserError, match=message):
        uncertainty.main(arguments)
