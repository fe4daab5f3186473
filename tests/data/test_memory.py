"""What a run remembers of its data tells every change, and nothing of anybody."""

import dataclasses
import json
import pathlib
import stat

import numpy as np
import polars as pl
import pytest

from remind_jax import cli
from remind_jax.data import dataset, memory
from remind_jax.data.manifest import Manifest
from remind_jax.data.memory import Memory
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality, Schema
from tests import tiny_runs
from tests.data.changes import CHANGES
from tests.data.manifest_files import edit_table, write_manifest
from tests.data.target_files import folder_of

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)


def _fitted(folder: pathlib.Path, **changes) -> dataset.FittedData:
    arguments = tiny_runs.own_arguments(folder, "none", data__max_tokens=8, data__vocabulary=64, **changes)
    return dataset.fit(cli.parse_config(arguments)[0])


@pytest.fixture
def folder(tmp_path):
    return write_manifest(tmp_path / "data")


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_told(name, folder):
    before = _fitted(folder)
    known, kept = memory.digests(before), Memory.of(before)
    assert memory.changed(known, kept, _fitted(folder)) == []
    told = CHANGES[name](folder, np.random.default_rng(3))
    after = _fitted(folder)
    said = ", ".join(memory.changed(known, kept, after))
    assert told in said
    assert "rows" in told or "rows added" not in said
    # Without the rows it is told that there is a change.
    assert memory.changed(known, None, after)


@pytest.mark.parametrize(("task", "column"), [("multilabel", "aki"), ("regression", "los"), ("survival", "dead")])
def test_changed_labels_of_other_tasks_are_counted_and_kept_as_hashes(tmp_path, task, column):
    folder = folder_of(tmp_path, task)
    before = _fitted(folder)
    known, kept = memory.digests(before), Memory.of(before)
    assert kept.labels.dtype == np.uint32
    assert memory.changed(known, kept, _fitted(folder)) == []
    cells = pl.read_csv(folder / "manifest.csv", infer_schema=False)[column].to_list()
    changed = [None if cell is None else "1" if cell in ("0", "") else "0" for cell in cells[:6]]
    edit_table(folder, **{column: [*changed, *cells[6:]]})
    different = sum(old is not None for old in cells[:6])
    assert f"labels changed {different}" in memory.changed(known, kept, _fitted(folder))


def test_the_file_is_its_owner_s_and_holds_no_text(folder, tmp_path):
    kept = Memory.of(_fitted(folder), "stamp")
    kept.write(file := tmp_path / "data.npz")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = Memory.read(file)
    for name, value in vars(kept).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert memory.kept_stamp(file) == "stamp"
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    content = file.read_bytes()
    cells = {cell for column in ("note", "icd", "sodium", "scan", "stay") for cell in table[column].drop_nulls()}
    assert len(cells) > 200
    assert [cell for cell in cells if len(cell) > 3 and cell.encode() in content] == []
    # Two runs on the same data have nothing in common but what is no secret.
    other = Memory.of(_fitted(folder))
    assert not set(kept.samples.tolist()) & set(other.samples.tolist())
    assert len(content) < 3000 + 40 * len(table)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 500])
def test_what_cannot_be_read_is_nothing(content, tmp_path):
    (file := tmp_path / "data.npz").write_bytes(content)
    assert Memory.read(file) is None
    assert memory.kept_stamp(file) is None
    assert Memory.read(tmp_path / "absent") is None


def test_a_pickle_is_not_opened(tmp_path):
    np.savez(tmp_path / "data.npz", facts=np.array([{}], object))
    assert Memory.read(tmp_path / "data.npz") is None


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("embedding", pl.Series("x", np.arange(24, dtype=np.float32).reshape(4, 2, 3))),
        ("image", pl.Series("x", np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3))),
        ("text", pl.Series("x", ["a", "b", "ab", "a b"])),
        ("tabular", pl.Series("x", [0.0, 1.0, -1.0, 1e-300])),
    ],
)
def test_cells_of_each_type_differ_where_they_differ(kind, cells):
    """One cell is emptied, another takes the place of a third: those two rows change, and they alone."""
    modality = Modality("x", kind, ("x",), shape=(2, 2, 3) if kind == "image" else ())
    schema = Schema("t", "id", "id", "y", ("0", "1"), (modality, Modality("z", "text", ("z",))))
    other = cells.gather([0, None, 0, 3])

    def remembered(column: pl.Series) -> Memory:
        table = pl.DataFrame({"id": list("abcd"), "y": list("0101"), "x": column, "z": ["z"] * 4})
        fitted = dataset.FittedData(
            Manifest(schema, table), np.zeros(4, np.int8), np.zeros(4, np.int8), _Nothing(), Preprocessor({}), ()
        )
        return Memory.of(fitted, key="k")

    before, after = remembered(cells), remembered(other)
    assert (before.cells != after.cells).tolist() == [[False] * 2, [True, False], [True, False], [False] * 2]
    assert before.changes(after) == ["cells changed in x 2"]
    assert len(np.unique(before.cells[:, 0])) == 4


class _Nothing:
    def to_dict(self):
        return {}


def test_a_tokenizer_that_was_exchanged_is_told(folder):
    before = _fitted(folder)
    (note,) = (x for name, x in before.preprocessor.fitted.items() if name == "note")
    other = dataclasses.replace(before, preprocessor=Preprocessor({**before.preprocessor.fitted, "icd": note}))
    assert memory.changed(memory.digests(before), Memory.of(before), other) == ["fitted preprocessing"]


def test_the_stamp_follows_the_files_and_costs_no_reading(folder):
    config = cli.parse_config(tiny_runs.own_arguments(folder, "none"))[0]
    places = memory.places(config.data)
    assert places == (str(folder),)
    before = memory.stamp(*places)
    assert before == memory.stamp(*places)
    assert before
    (folder / "schema.yaml").touch()
    touched = memory.stamp(*places)
    assert touched != before
    (folder / "scans" / "more.npy").write_bytes(b"x")
    assert memory.stamp(*places) not in (before, touched)
    assert memory.stamp(str(folder / "gone")) == memory.stamp() == ""
    config.data.digest = "abc"
    assert memory.stamp(*memory.places(config.data)) == "abc"


def test_digests_are_json(folder):
    found = memory.digests(_fitted(folder))
    assert list(json.loads(json.dumps(found))) == ["manifest", "split", "groups", "kinds"]
    assert all(len(digest) == 64 for digest in found.values())
