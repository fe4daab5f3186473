"""What others add from outside the package, by just the places that CONTRIBUTING names.

A kind of modality is added in tests/data/kinds/test_toy_kind.py, an objective and a sampler in
tests/training/test_toy_objective.py.
"""

import json
import runpy
import sys

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

import remind_jax
from remind_jax.errors import UserError
from remind_jax.evaluation import metrics
from remind_jax.methods import METHODS, SOFT_MOE
from remind_jax.models.fusion import FUSIONS
from remind_jax.models.fusion.soft_moe import FusionBlock, Routed
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


class Gated(FusionBlock):
    """Attention, and a gate for each modality in place of experts."""

    def __init__(self, spec, width, num_groups, num_modalities, rngs):
        super().__init__(spec, width, rngs)
        self.gates = nnx.Param(jnp.zeros((num_modalities, width)))

    def __call__(self, x, tokens, mask, gate, keys):
        gates = nnx.sigmoid(self.gates[...])[tokens.owner]
        return Routed(x + gates[None] * self.attend(self.moe_norm(x), mask), jnp.zeros(x.shape[0]))


def test_a_fusion_is_a_file_its_entry_and_a_method(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "gated", SOFT_MOE | {"fusion.kind": "gated"})
    with pytest.raises(UserError, match=r"fusion\.kind='gated' is unknown; known: soft_moe, fuse_moe, flex_moe"):
        train_and_evaluate(tiny_runs.config(tmp_path, "gated"), tmp_path / "refused", verbose=False)
    monkeypatch.setitem(FUSIONS, "gated", Gated)
    config = tiny_runs.config(tmp_path, "gated", eval__bootstrap=20, train__epochs=4.0)
    report = train_and_evaluate(config, tmp_path / "run", verbose=False)
    model = remind_jax.load(tmp_path / "run")
    assert report["method"] == "gated"
    assert model.params["block_0/gates"].shape == (4, 8)
    assert np.abs(model.params["block_0/gates"]).max() > 0  # it was trained
    assert not any("expert" in path for path in model.params)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [record["eval/loss"] for record in map(json.loads, lines) if "eval/loss" in record]
    assert min(losses[1:]) < losses[0]


def test_a_metric_is_a_function_and_its_title(tmp_path, monkeypatch):
    def confidence(labels, probabilities):
        return float(probabilities.max(axis=1).mean()), ""

    monkeypatch.setitem(metrics.METRICS, "confidence", metrics.Metric("Mean confidence", confidence))
    report = train_and_evaluate(tiny_runs.config(tmp_path, "soft_moe", eval__bootstrap=20), tmp_path / "run", False)
    found = pl.read_parquet(tmp_path / "run" / "predictions.parquet").select("p_0", "p_1").to_numpy().max(axis=1)
    assert report["overall"]["confidence"] == pytest.approx(found.mean())
    assert all(0.5 <= row["confidence"] <= 1.0 for row in report["groups"])
    assert "Mean confidence" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


ANALYSIS = '''"""How sure a run is of each combination, as CSV."""

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening


def main(arguments):
    paths, _ = cli.parse_runs(arguments)
    for run in opening.open_runs(paths):
        predicted = run.model.predict_store(run.data.stores["held_out"])
        groups, index = command.combinations(run, "held_out")
        rows = [
            {"group": group["group"], "sure": float(np.mean(predicted.probabilities.max(axis=1)[index == i]))}
            for i, group in enumerate(groups)
        ]
        command.write_csv(opening.output_folder(run.path) / "sureness.csv", ("group", "sure"), rows)


if __name__ == "__main__":
    cli.run(main, __doc__)
'''


def test_an_analysis_is_one_file(tmp_path, monkeypatch):
    train_and_evaluate(tiny_runs.config(tmp_path, "soft_moe", eval__bootstrap=20), tmp_path / "run", verbose=False)
    (tmp_path / "sureness.py").write_text(ANALYSIS, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["sureness", f"--workdir={tmp_path / 'run'}"])
    runpy.run_path(str(tmp_path / "sureness.py"), run_name="__main__")
    table = pl.read_csv(tmp_path / "run" / "analysis" / "sureness.csv")
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert set(table["group"]) == {row["group"] for row in report["groups"] if row["n"]}
    assert table["sure"].is_between(0.5, 1.0).all()
