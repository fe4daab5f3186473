"""The manifest as a type: presence, digest, raw columns of some rows."""

import os

import numpy as np
import polars as pl
import pytest

from remind_jax.data.manifest import decode
from remind_jax.data.reading import read_manifest
from remind_jax.errors import UserError
from tests.data.manifest_files import edit_cell, edit_table, write_manifest, write_schema


def test_digest_changes_with_cells_order_schema_and_file_content(tmp_path):
    folder = write_manifest(tmp_path, n=20)
    digests = [read_manifest(folder).digest]
    assert read_manifest(folder).digest == digests[0]
    scan = next((folder / "scans").iterdir())
    np.save(scan, np.load(scan) + 1)
    digests.append(read_manifest(folder).digest)
    edit_cell(folder, "sodium", 3, "141.25")
    digests.append(read_manifest(folder).digest)
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    table.reverse().write_csv(folder / "manifest.csv")
    digests.append(read_manifest(folder).digest)
    write_schema(folder, name="other")
    digests.append(read_manifest(folder).digest)
    assert len(set(digests)) == 5


def test_decode_gives_the_cells_of_the_rows_asked_for(tmp_path):
    folder = write_manifest(tmp_path, n=30)
    manifest = read_manifest(folder)
    rows = np.array([7, 2, 2, 19])
    raw = decode(manifest, rows)
    table = manifest.table[rows]
    assert raw["note"].tolist() == table["note"].fill_null("").to_list()
    assert raw["labs/categorical"][:, 0].tolist() == table["sex"].fill_null("").to_list()
    expected = table.select("sodium", "wbc").cast(pl.Float32).to_numpy()
    np.testing.assert_array_equal(raw["labs/numeric"], expected)
    assert raw["labs/numeric"].dtype == raw["scan"].dtype == np.float32
    for values, path in zip(raw["scan"], table["scan"].to_list(), strict=True):
        np.testing.assert_array_equal(values, np.zeros((3, 4)) if path is None else np.load(folder / path))
    assert raw["row"].tolist() == rows.tolist()
    np.testing.assert_array_equal(raw["present"], manifest.presence[rows])
    np.testing.assert_array_equal(raw["label"], manifest.labels[rows])


def test_tabular_is_present_when_any_cell_is(tmp_path):
    folder = write_manifest(tmp_path, n=6)
    edit_table(folder, sodium=[None] * 6, wbc=[None, "1", None] * 2, sex=[None, None, "f"] * 2, note=["x"] * 6)
    assert read_manifest(folder).presence[:, 2].tolist() == [False, True, True] * 2


def test_a_link_changed_after_reading_is_refused(tmp_path):
    np.save(tmp_path / "secret.npy", np.ones((3, 4), np.float32))
    folder = write_manifest(tmp_path / "m", n=8)
    np.save(folder / "inside.npy", np.ones((3, 4), np.float32))
    edit_cell(folder, "scan", 0, "inside.npy")
    manifest = read_manifest(folder)
    os.remove(folder / "inside.npy")
    os.symlink(tmp_path / "secret.npy", folder / "inside.npy")
    for _ in range(2):  # first with the link, then without the file
        with pytest.raises(UserError, match="E007 a file of the manifest cannot be read any more"):
            decode(manifest, np.array([0]))
        (folder / "inside.npy").unlink(missing_ok=True)
