"""The whole job in PyTorch: that it is the same job, and that the benchmark runs."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import manifest
from remind_jax.config import leaves
from remind_jax.objectives import group_dro
from remind_jax.training import optimizer

torch = pytest.importorskip("torch", reason="the torch references need torch: pip install -e .[torch]")

from benchmarks import job, torch_job  # noqa: E402


@pytest.fixture(autouse=True)
def standard_promotion() -> Iterator[None]:
    """As in a run: optax raises floats to integer powers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("job") / "data"
    job.write_data(folder, 240)
    return folder


def small(data: pathlib.Path) -> torch_job.Run:
    settings = torch_job.Settings(epochs=1.0, joint_epochs=0.5, batch_size=32, bootstrap=20)
    return torch_job.Run(torch_job.read(data, settings), settings)


def test_the_settings_are_the_defaults_of_the_config() -> None:
    config = manifest.get_config("method=remind")
    found: dict[str, list[Any]] = {}
    for path, value in leaves(config):
        found.setdefault(path.rpartition(".")[2], []).append(value)
    found |= {"batch_size": [config.train.batch_size], "every": [config.dro.every], "gamma": [config.dro.gamma]}
    found |= {"tokens": [config.model.tokens], "dropout": [config.fusion.dropout]}
    for name, value in dataclasses.asdict(torch_job.Settings()).items():
        assert found[name] == [value], name
    # What the job in PyTorch takes for granted.
    assert (config.train.select, config.train.evaluate_every, config.train.keep_better_stage) == ("loss", 1.0, True)
    assert (config.model.imputation, config.fusion.preset, config.fusion.kind) == (
        "modality+group",
        "official",
        "soft_moe",
    )
    assert (config.dro.initial, config.dro.weights, config.dro.absent) == ("sqrt_frequency", "current", "last")
    assert (config.optim.schedule, config.optim.decay, config.train.freeze) == ("cosine", "weights", "encoders")


def test_the_made_up_data_are_the_same_again_and_miss_much(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    job.write_data(tmp_path / "again", 240)
    for name in ("manifest.csv", "schema.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (data / name).read_bytes()
    found = torch_job.read(data, torch_job.Settings())
    assert found.inputs["note"].shape == (240, 96)
    assert (found.inputs["note"][found.present[:, 0]] != torch_job.PAD).float().mean() > 0.99
    counts = found.counts.numpy()
    assert len(counts) > 12  # combinations, of which
    assert counts[0] > 0.2 * counts.sum()  # one is frequent
    assert (counts < 0.05 * counts.sum()).sum() > len(counts) / 2  # and most are rare


def test_the_learning_rate_is_that_of_the_package() -> None:
    settings = torch_job.Settings()
    schedule = optimizer.learning_rate("cosine", settings.lr, steps=60, warmup=0.05, decay_steps=1, decay_rate=1.0)
    ours = [float(schedule(i)) for i in range(60)]
    np.testing.assert_allclose([torch_job.learning_rate(settings, 60, i) for i in range(60)], ours, rtol=1e-4)


def test_the_group_weights_move_as_those_of_the_package() -> None:
    counts, settings = np.array([50, 20, 5, 1]), torch_job.Settings(gamma=0.5, every=3)
    theirs = torch_job.GroupWeights(torch.tensor(counts), settings)
    initial = group_dro.initial_weights("sqrt_frequency", counts)
    ours = group_dro.group_dro(4, gamma=0.5, every=3, initial=initial)
    state, rng = ours.init({}), np.random.default_rng(0)
    for _ in range(12):
        group, losses = rng.choice(4, 8, p=counts / counts.sum()), rng.exponential(size=8).astype(np.float32)
        loss = theirs.loss(torch.tensor(losses), torch.tensor(group))
        sums, count = np.bincount(group, losses, 4), np.bincount(group, minlength=4)
        factors = group_dro.robust_factors(jnp.exp(state.log_weights), jnp.asarray(count, jnp.float32))
        np.testing.assert_allclose(loss, float(np.sum(np.asarray(factors) * sums)), rtol=1e-5)
        theirs.move()
        _, state = ours.update({}, state, group_loss_sum=jnp.asarray(sums), group_count=jnp.asarray(count, jnp.float32))
        np.testing.assert_allclose(theirs.log_weights, state.log_weights, rtol=1e-4)


def test_a_run_in_torch_learns_and_ends_where_it_is_told(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = small(data)
    before = {name: x.detach().clone() for name, x in run.network.named_parameters()}
    run.train(tmp_path / "run", stops=(2, 4))
    assert all((before[name] != x).any() for name, x in run.network.named_parameters() if "missing_of" not in name)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    ends = {record["stage"]: record["step"] for record in records if "eval/loss" in record}
    assert ends == {"joint": 2, "specialize": 4}
    report = run.report()
    assert report["overall"]["n"] == 48
    assert sum(report[name]["n"] for name in ("head", "tail")) == 48
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 49


def test_features_of_frozen_encoders_stand_for_their_inputs(data: pathlib.Path) -> None:
    run = small(data)
    rows = run.rows["tuning"]
    features = torch_job.encode(run.network, run.data, rows)
    assert features.keys() == {"note", "icd"}
    with_inputs, stored = (torch_job.predict(run.network, run.data, rows, kept, gated=True) for kept in ({}, features))
    np.testing.assert_allclose(stored, with_inputs, atol=5e-3)  # bfloat16
    assert np.abs(stored - with_inputs).max() > 0


@pytest.mark.slow
def test_the_job_in_torch_is_that_of_the_package(data: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = job.check_parity(data)
    assert errors.keys() == {"rows", "logits", "figures", "λ", "gradient", "step"}
    assert max(errors.values()) <= job.TOLERANCE
    monkeypatch.setattr(torch_job, "EOS", 2)
    with pytest.raises(RuntimeError, match="differ in rows: icd"):
        job.check_parity(data)


@pytest.mark.slow
def test_the_benchmark_times_both_and_writes_their_records(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "results" / "cpu" / "job.jsonl"
    job.main(["--rounds=1", "--patients=240", "--epochs=1", "--variants=cold,torch", f"--out={out}"])
    found = {record["variant"]: record for record in map(json.loads, out.read_text().splitlines())}
    assert found.keys() == {"cold", "torch"}
    assert found["cold"]["steps"] == found["torch"]["steps"]
    assert found["cold"]["evaluations"] == found["torch"]["evaluations"]
    assert found["cold"]["parameters"] == found["torch"]["parameters"]
    assert all(record["cpu_ms"] > 100 and record["ratios"]["torch"] > 0 for record in found.values())
