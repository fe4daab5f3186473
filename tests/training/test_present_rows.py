"""A run whose encoders run on the samples that have their modality has the numbers of one that runs them on all."""

import functools
import json
import math
from unittest import mock

import numpy as np
import polars as pl
import pytest

from remind_jax import cli
from remind_jax.inference.present import Chooser
from remind_jax.models.encoders import t5
from remind_jax.models.model import SOURCE
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
# A fraction of the smallest text encoder.
TEXT = {"layers": 2, "width": 16, "heads": 2, "head_width": 8, "hidden": 24}
TWO = {"devices": 2, "train__accumulate": 2}
BLOCKS = {"devices", "train__accumulate"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(how samples are encoded, changes of keys) -> (records, probabilities, shapes of inputs of training batches)."""
    root = tmp_path_factory.mktemp("runs")
    write_manifest(root / "data", n=90, seed=3)

    @functools.cache
    def train(encode: str, **changes):
        keys = {"train__log_every": 1, "train__batch_size": 16, "train__evaluate_every": 0.5, "optim__lr": 1e-3}
        # Few have the note, so that the smallest block has room to spare.
        keys |= {"data__hide": "note", "data__hide_rate": 0.8, "train__feature_cache": "off", "eval__bootstrap": 20}
        keys |= {"encode": encode, **changes}
        config, _ = cli.parse_config(tiny_runs.own_arguments(root / "data", root / "cache", **keys))
        folder, shapes = root / f"run{len(list(root.iterdir()))}", []

        def choose(self, positions, original=Chooser.__call__):
            rows, columns = original(self, positions)
            assert columns.keys() == {SOURCE + name for name in rows}
            shapes.append({name: x.shape for name, x in rows.items()})
            return rows, columns

        with mock.patch.dict(t5.SIZES, small=TEXT), mock.patch.object(Chooser, "__call__", choose):
            train_and_evaluate(config, folder, verbose=False)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        table = pl.read_parquet(folder / "predictions.parquet").sort("sample_id")
        return [json.loads(line) for line in lines], table["p_1"].to_numpy(), shapes

    return train


SLOW = [
    {},
    {"parallel": "pmap", "devices": 2},
    {"train__hide_samples": 0.5, "train__freeze": "nothing"},
    {"ensemble": 2},
    {"method": "fair_batch"},
    {"train__feature_cache": "memory", "train__feature_dtype": "float32"},
]


@pytest.mark.parametrize("changes", [TWO, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW)], ids=str)
def test_a_run_has_the_numbers_of_one_that_encodes_all(run, changes):
    records, found, shapes = run("present", **changes)
    dense, expected, none = run("dense", **changes)
    blocks = {shape[0] for one in shapes for shape in one.values()}
    assert blocks == {1, math.prod(changes.get(name, 1) for name in BLOCKS)}  # evaluations have one
    assert not none
    assert len({str(one) for one in shapes}) <= 6  # of two stages and two kinds of evaluation
    assert [record.keys() for record in records] == [record.keys() for record in dense]
    worst = max(
        abs(one[key] - two[key]) / max(1.0, abs(two[key]))
        for one, two in zip(records, dense, strict=True)
        for key in one.keys() - {"stage", "time/step_ms"}
    )
    assert worst < 1e-5
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0.05
