"""Precomputed tokens: files and nested cells, sound and bad ones."""

import concurrent.futures
import gc
import os
import sys
import time

import numpy as np
import polars as pl
import pytest

from remind_jax.data import inputs
from remind_jax.data.manifest import decode
from remind_jax.data.reading import load_manifest, read_manifest
from remind_jax.data.schema import Modality
from remind_jax.errors import UserError
from tests.data.fitting import encode, fit, table_manifest
from tests.data.manifest_files import edit_table, with_modality, write_manifest, write_schema


def codes(folder):
    return [(note.code, note.fatal) for note in load_manifest(folder).notes]


def save_objects(path):
    np.save(path, np.array([[{}]], object), allow_pickle=True)


def save_bomb(path):
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**6)})
        file.write(b"\0" * 64)


@pytest.mark.parametrize(
    ("write", "code"),
    [
        (lambda path: None, "E007"),
        (lambda path: path.write_bytes(b""), "E007"),
        (lambda path: path.write_bytes(b"not an array"), "E007"),
        (lambda path: path.mkdir(), "E007"),
        (os.mkfifo, "E007"),
        (save_objects, "E007"),
        (save_bomb, "E007"),
        (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00\x08\x00{'a': ((" + b" " * 64), "E007"),
        (lambda path: np.save(path, np.ones(4, np.float32)), "E008"),
        (lambda path: np.save(path, np.ones((3, 5), np.float32)), "E008"),
        (lambda path: np.save(path, np.full((3, 4), np.nan)), "E008"),
        (lambda path: np.save(path, np.full((3, 4), 1e300)), "E008"),
        (lambda path: np.save(path, np.full((3, 4), "a")), "E008"),
    ],
)
def test_bad_embedding_files_are_refused(tmp_path, write, code):
    folder = write_manifest(tmp_path, n=8)
    np.save(folder / "good.npy", np.ones((3, 4)))
    write(folder / "bad.npy")
    edit_table(folder, scan=["good.npy"] * 7 + ["bad.npy"])
    assert codes(folder) == [(code, True)]


def nested_folder(tmp_path, cells, dtype=None):
    folder = write_manifest(tmp_path, n=len(cells), parquet=True)
    table = pl.read_parquet(folder / "manifest.parquet").with_columns(
        scan=pl.Series(cells, dtype=dtype), note=pl.Series(["x"] * len(cells))
    )
    table.write_parquet(folder / "manifest.parquet")
    write_schema(folder, **with_modality("scan", kind="embedding", column="scan"))
    return folder


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.List(pl.Float64)), pl.Array(pl.Float32, (2, 3)), pl.List(pl.List(pl.Int64))]
)
def test_parquet_holds_embeddings_in_nested_columns(tmp_path, dtype):
    cells = [[[1, 2, 3], [4, 5, 6]], None, [[7, 8, 9], [10, 11, 12]]]
    manifest = read_manifest(nested_folder(tmp_path, cells, dtype))
    assert manifest.table.schema["scan"] == pl.Array(pl.Float32, (2, 3))
    assert manifest.schema.modalities[3].stored == "cell"
    expected = np.array([cells[0], np.zeros((2, 3)), cells[2]], np.float32)
    np.testing.assert_array_equal(decode(manifest, np.arange(3))["scan"], expected)


@pytest.mark.parametrize(
    "cells",
    [
        [[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]],
        [[[1.0, 2.0]], [[1.0]]],
        [[[1.0, None]], [[1.0, 2.0]]],
        [[[1.0, 2.0]], [[]]],
    ],
)
def test_ragged_nested_embeddings_are_e008(tmp_path, cells):
    with pytest.raises(UserError, match="E008 column 'scan'"):
        read_manifest(nested_folder(tmp_path, cells))


def test_embedding_of_another_shape_is_refused():
    emb = Modality("emb", "embedding", ("emb",))
    train = table_manifest({"emb": pl.Series(np.ones((4, 2, 3), np.float32))}, emb)
    other = table_manifest({"emb": pl.Series(np.ones((4, 2, 5), np.float32))}, emb)
    with pytest.raises(UserError, match=r"E008 emb: arrays are \[2, 5\], in training \[2, 3\]"):
        encode(fit(train), other)


def test_sound_files_are_read_by_many_threads(tmp_path):
    """Python 3.11 took their headers for damaged where a callback of the garbage collector changed the thread."""
    np.save(tmp_path / "a.npy", np.zeros((3, 4), np.float32))

    def change_thread(*_):
        time.sleep(0)

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(10)
    gc.callbacks.append(change_thread)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            shapes = list(pool.map(lambda _: inputs.map_array(tmp_path / "a.npy").shape, range(5000)))
    finally:
        gc.callbacks.remove(change_thread)
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
    assert shapes == [(3, 4)] * 5000
