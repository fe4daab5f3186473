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
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation", "no_page"),
]
# A fraction of the smallest text encoder.
TEXT = {"layers": 2, "width": 16, "heads": 2, "head_width": 8, "hidden": 24}
TWO = {"devices": 2, "train__accumulate": 2}
BLOCKS = {"devices", "train__accumulate"}


class BrokenOff(Exception):
    """The end of a run before it is done."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(how samples are encoded, changes of keys) -> (records, probabilities, shapes of inputs of batches).

    With `broken_off` the run breaks off at so many batches that are chosen, and goes on from its last checkpoint.
    """
    root = tmp_path_factory.mktemp("runs")
    write_manifest(root / "data", n=90, seed=3)

    @functools.cache
    def train(encode: str, broken_off: int = 0, **changes):
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
            if len(shapes) == broken_off:
                raise BrokenOff
            return rows, columns

        with mock.patch.dict(t5.SIZES, small=TEXT), mock.patch.object(Chooser, "__call__", choose):
            if broken_off:
                with pytest.raises(BrokenOff):
                    train_and_evaluate(config, folder, verbose=False)
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
    for one, two in zip(records, dense, strict=True):
        for key in one.keys() - {"time/step_ms"}:
            near = two[key] if isinstance(two[key], str) else pytest.approx(two[key], rel=1e-5, abs=1e-5)
            assert one[key] == near, key
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found) > 0.05


@pytest.mark.slow
def test_a_run_that_was_broken_off_has_the_numbers_of_one_left_alone_bit_for_bit(run):
    alone, expected, shapes = run("present")
    count = len(shapes)
    broken, found, chosen = run("present", broken_off=count * 2 // 3)
    assert len(chosen) > count  # some batches were chosen twice
    for one, two in zip(broken, alone, strict=True):
        assert one | {"time/step_ms": 0} == two | {"time/step_ms": 0}
    assert found.tobytes() == expected.tobytes()
