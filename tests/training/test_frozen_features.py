"""Features of frozen encoders: the numbers of a stage with and without them, what is stored, what survives a kill."""

import dataclasses
import pathlib

import jax
import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import cli
from remind_jax.config import validate
from remind_jax.data import dataset as datasets
from remind_jax.errors import UserError
from remind_jax.models.model import STORED
from remind_jax.models.network import make_network
from remind_jax.models.spec import model_spec
from remind_jax.runtime import progress
from remind_jax.training import frozen_features
from remind_jax.training.run import make_trainer
from remind_jax.training.run_folder import RunFolder
from remind_jax.training.stages import plan_stages
from tests import tiny_runs
from tests.data.manifest_files import SCHEMA, write_manifest
from tests.models.pure import random_params

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]


def _config(folder: pathlib.Path, **changes):
    """One stage with frozen encoders over text, a table and embeddings, dropout everywhere."""
    keys = {"data__max_tokens": 8, "data__vocabulary": 64, "model__encoder_dropout": 0.3}
    keys |= {"train__joint_epochs": 0.0, "train__log_every": 1} | changes
    return cli.parse_config(tiny_runs.own_arguments(folder / "data", folder / "cache", **keys))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_manifest(folder / "data", n=60)
    modalities = {name: spec for name, spec in SCHEMA["modalities"].items() if name != "icd"}
    (folder / "data" / "schema.yaml").write_text(yaml.safe_dump(SCHEMA | {"modalities": modalities}, sort_keys=False))
    table = pl.read_csv(folder / "data" / "manifest.csv", infer_schema=False)
    table.filter(~pl.all_horizontal(pl.col("note", "sodium", "scan").is_null())).write_csv(
        folder / "data" / "manifest.csv"
    )
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return datasets.load_dataset(_config(folder))


class _Run:
    """A stage that was run: what was said, the records without times, the last weights."""

    def __init__(self, config, data, workdir):
        self.said = []
        self.folder = RunFolder(workdir, config.to_dict())
        self.trainer = make_trainer(config, data, self.folder)
        bar = progress.Silent()
        bar.say = self.said.append
        self.weights = self.trainer.train(bar).best
        self.history = [
            {key: value for key, value in record.items() if key != "time/step_ms"} for record in self.folder.history()
        ]
        self.folder.close()


@pytest.fixture(scope="module")
def plain(folder, data, tmp_path_factory):
    return _Run(_config(folder, train__feature_cache="off"), data, tmp_path_factory.mktemp("off"))


def _apart(first: _Run, second: _Run) -> float:
    """The largest difference between figures of two runs, and of their weights."""
    assert [record.keys() for record in first.history] == [record.keys() for record in second.history]
    assert len(first.history) > 5
    apart = [
        abs(one[key] - other[key])
        for one, other in zip(first.history, second.history, strict=True)
        for key in one
        if isinstance(one[key], float)
    ]
    return max(*apart, *(np.abs(x - second.weights[path]).max() for path, x in first.weights.items()))


def _features_in(run: _Run) -> list[str]:
    return [line for line in run.said if line.startswith("Encoding the")]


@pytest.mark.slow
def test_a_stage_with_features_in_float32_takes_the_steps_of_one_without(plain, folder, data, tmp_path):
    config = _config(folder, train__feature_cache="memory", train__feature_dtype="float32")
    run = _Run(config, data, tmp_path)
    assert len(_features_in(run)) == 2
    assert _features_in(plain) == []
    assert _apart(plain, run) < 1e-5


@pytest.mark.slow
def test_features_in_bfloat16_on_disk_are_near_and_are_found_again(plain, folder, data, tmp_path):
    config = _config(folder, train__feature_cache="disk")
    run = _Run(config, data, tmp_path / "first")
    assert len(_features_in(run)) == 2
    assert 1e-6 < _apart(plain, run) < 0.05  # rounded to 8 bits
    again = _Run(config, data, tmp_path / "second")
    assert _features_in(again) == []
    assert _apart(run, again) == 0


@pytest.fixture(scope="module")
def network(folder, data):
    """A network of the data and parameters of it."""
    single = make_network(model_spec(_config(folder)), data.inputs, len(data.groups), 2)
    return single, random_params(single.shapes)


def _stores(config, data, network, said=None, start=0, **params):
    """The stores of the last stage of a config, were it to begin at `start`, with other values of some parameters."""
    stage = plan_stages(config, len(data.stores["train"]), data.inputs)[-1]._replace(start=start)
    bar = progress.Silent()
    bar.say = [].append if said is None else said.append
    return frozen_features.stores_of(config, network[0], data, stage, network[1] | params, bar)


@pytest.mark.parametrize("kind", ["memory", "device", "disk"])
def test_batches_hold_the_features_of_what_is_there(folder, data, network, kind, tmp_path):
    config = _config(folder, train__feature_cache=kind, train__feature_dtype="float32", data__cache=tmp_path)
    params, features = network[1], jax.jit(network[0].features, static_argnums=1)
    rounding = _config(folder, train__feature_cache=kind, data__cache=tmp_path)
    with _stores(config, data, network) as stores, _stores(rounding, data, network) as stores_of_bfloat16:
        for split in frozen_features.SPLITS:
            assert len(stores[split]) == len(data.stores[split])
            positions = np.arange(len(stores[split]))[::-1]
            found, raw = stores[split].take(positions), data.stores[split].take(positions)
            assert not raw["present"].all(axis=0).any() or split == "tuning"
            renamed = {STORED + name if name == "note" else name for name in raw}
            assert found.keys() == renamed
            for i, name in enumerate(data.inputs):
                here = raw["present"][:, i]
                expected = features(params, name, raw[name]) if name == "note" else raw[name]
                values = np.asarray(found[STORED + name if name == "note" else name])
                np.testing.assert_allclose(values[here], np.asarray(expected)[here], rtol=1e-4, atol=1e-5)
                assert not values[~here].any()
                if name == "note":
                    rounded = stores_of_bfloat16[split].take(positions)[STORED + name]
                    np.testing.assert_array_equal(np.asarray(rounded), values.astype(rounded.dtype))
            for name in ("present", "group", "label", "row"):
                np.testing.assert_array_equal(found[name], raw[name])
                assert found[name].dtype == raw[name].dtype
        assert stores["held_out"] is data.stores["held_out"]


def test_missing_modalities_take_no_space_and_trained_encoders_leave_no_files(folder, data, network, tmp_path):
    config = _config(folder, train__feature_cache="disk", data__cache=tmp_path)
    with _stores(config, data, network, start=3):
        (kept,) = tmp_path.glob("features-*")
        rows = data.manifest.presence[data.rows("train")].sum(axis=0)
        for name, count in zip(data.inputs, rows, strict=True):
            array = np.load(kept / "train" / f"{name}.npy")
            assert len(array) == count < len(data.rows("train"))
            assert array.dtype == (np.uint16 if name == "note" else np.float32)
    assert not kept.exists()


def test_damaged_files_are_made_anew(folder, data, network, tmp_path):
    config, said = _config(folder, train__feature_cache="disk", data__cache=tmp_path), []
    with _stores(config, data, network, said):
        pass
    (file,) = tmp_path.glob("features-*/train/note.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with _stores(config, data, network, said):
        assert file.read_bytes() == whole
    (file.parent / "SHA256SUMS").unlink()
    with _stores(config, data, network, said):
        pass
    with _stores(config, data, network, said):
        pass
    assert [line.split()[0] for line in said] == ["Encoding", "Encoding", "the", "Encoding", "the", "Encoding"]


def test_what_a_killed_process_leaves_is_not_taken_for_features(folder, data, network, tmp_path):
    config, said = _config(folder, train__feature_cache="disk", data__cache=tmp_path), []

    class Killed(BaseException):
        pass

    class Dying:
        """A store whose reader dies after the first rows."""

        def __len__(self):
            return len(data.stores["train"])

        def take(self, positions, inputs):
            if positions[0]:
                raise Killed
            return data.stores["train"].take(positions, inputs)

    broken = dataclasses.replace(data, stores=data.stores | {"train": Dying()})
    with pytest.raises(Killed), _stores(config, broken, network):
        pass
    (kept,) = tmp_path.glob("features-*")
    assert not [path for path in kept.iterdir() if path.is_dir()]
    (kept / "train.tmp-dead").mkdir()  # as a process leaves it that had no time to clean up
    with _stores(config, data, network, said):
        pass
    assert [line.split()[0] for line in said] == ["Encoding", "Encoding"]
    assert sorted(path.name for path in kept.iterdir() if path.is_dir()) == ["train", "tuning"]


def test_other_encoders_and_settings_have_features_of_their_own(folder, data, network, tmp_path):
    config = _config(folder, train__feature_cache="disk", data__cache=tmp_path)
    float32 = _config(folder, train__feature_dtype="float32", train__feature_cache="disk", data__cache=tmp_path)
    twice = {path: 2 * network[1][path] for path in ("encoders/note/adapter/kernel", "encoders/note/query")}

    def count(config=config, data=data, **params) -> int:
        with _stores(config, data, network, **params):
            return len(list(tmp_path.glob("features-*")))

    assert count() == 1
    assert count(**{"encoders/note/adapter/kernel": twice["encoders/note/adapter/kernel"]}) == 1  # is no part of them
    assert count(**{"encoders/note/query": twice["encoders/note/query"]}) == 2
    assert count(float32) == 3


def test_features_are_kept_where_they_pay_only(folder, data, network):
    for changes, expected in (
        ({}, 2),
        ({"train__epochs": 1.0}, 0),
        ({"train__freeze": "nothing"}, 0),
        ({"ensemble": 2}, 0),
        ({"train__feature_cache": "off"}, 0),
    ):
        config, said = _config(folder, **changes), []
        with _stores(config, data, network, said) as stores:
            assert (stores is data.stores) == (not expected), changes
        assert len(said) == expected, changes
    assert all(line.endswith(" MiB in memory") for line in said)
    with _stores(_config(folder, data__memory_gib=1e-9), data, network, said):
        assert said[-1].endswith(" MiB on disk")


def test_a_cache_that_cannot_be_is_refused(folder):
    with pytest.raises(UserError, match=r"^train.feature_cache=disk keeps one result a sample[^\n]+$"):
        validate(_config(folder, train__feature_cache="disk", ensemble=2))


def test_a_folder_that_cannot_be_written_is_named(folder, data, network, tmp_path):
    (tmp_path / "file").write_text("")
    config = _config(folder, train__feature_cache="disk", data__cache=tmp_path / "file")
    with (
        pytest.raises(UserError, match=r"^cannot keep features in [^\n]+train.feature_cache=off$"),
        _stores(config, data, network),
    ):
        pass
