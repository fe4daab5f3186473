"""The folder of a trained model comes back whole, needs no checkpoints, and is refused when it has changed."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import remind_jax
from remind_jax.data import dataset as datasets
from remind_jax.errors import UserError
from remind_jax.inference import model_files, model_folder
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("runs")
    changes = {"objective__prior": "class_given_group", "objective__prior_mode": "posthoc", "eval__bootstrap": 20}
    changes |= {"eval__adjust_prior": "macro_f1"}
    train_and_evaluate(tiny_runs.config(path / "cache", "remind", **changes), path / "run", verbose=False)
    return path / "run"


@pytest.fixture
def copy(run, tmp_path) -> pathlib.Path:
    shutil.copytree(run, tmp_path / "run")
    return tmp_path / "run"


def _facts(run: pathlib.Path) -> dict:
    return json.loads((run / "model" / "model.json").read_text(encoding="utf-8"))


def _change(run: pathlib.Path, **facts) -> None:
    (run / "model" / "model.json").write_text(json.dumps(_facts(run) | facts), encoding="utf-8")


def test_no_checkpoint_is_needed(copy):
    expected = remind_jax.load(copy)
    shutil.rmtree(copy / "checkpoints")
    found = remind_jax.load(copy)
    assert found.params.keys() == expected.params.keys()
    assert found.report == json.loads((copy / "report.json").read_text(encoding="utf-8"))
    assert found.prior_power == found.report["prior_adjustment"]["power"]
    assert np.abs(found.offset).max() > 0.1


def test_what_is_written_again_is_the_same(run, tmp_path):
    model_files.write(model_folder.read(run / "model"), tmp_path / "again")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / "model" / name).read_bytes()


def test_the_model_predicts_the_held_out_rows_of_the_report(run):
    model, table = remind_jax.load(run), pl.read_parquet(run / "predictions.parquet")
    data = datasets.load_dataset(model.config)
    found = model.predict_store(data.stores["held_out"])
    np.testing.assert_allclose(found.probabilities, table.select("p_0", "p_1").to_numpy(), atol=1e-6)
    np.testing.assert_array_equal(found.labels, table["label"].to_numpy())


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"format": 2}, "format 2 and this version reads 1: train the run again"),
        ({"format": None}, "format None"),
        ({"sha256": "0"}, "has changed since it was written"),
        ({"groups": {}}, "is damaged"),
        ({"kinds": {"modalities": 3}}, "is damaged"),
        ({"label_counts": "x"}, "is damaged"),
        ({"schema": []}, "is damaged"),
        ({"config": {"seed": -1}}, "model.json"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(copy, facts, message):
    _change(copy, **facts)
    with pytest.raises(UserError, match=message) as caught:
        remind_jax.load(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"format": 1}', "{"])
def test_a_model_json_that_is_none_is_refused(copy, content):
    (copy / "model" / "model.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"model\.json|has changed"):
        remind_jax.load(copy)


def test_weights_of_another_network_are_refused(copy):
    facts = _facts(copy)
    facts["config"]["model"]["width"] = 16
    _change(copy, **facts)
    with pytest.raises(UserError, match="another shape"):
        remind_jax.load(copy)


def test_missing_files_are_named(copy):
    (copy / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        remind_jax.load(copy)
    shutil.rmtree(copy / "model")
    with pytest.raises(UserError, match="holds no trained model"):
        remind_jax.load(copy)


def test_opening_a_model_loads_nothing_of_training(run):
    code = f"""import sys, remind_jax
remind_jax.load({str(run)!r})
above = [m for m in sys.modules if m.split(".")[:1] == ["remind_jax"] and m.split(".")[1:2] and m.split(".")[1] in
         ("training", "studies", "analysis")]
print(above, "orbax.checkpoint" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tiny_runs.ROOT)
    assert done.stdout.strip() == "[] False"
