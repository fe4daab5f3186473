"""Case input: batches of each kind of modality, from memory and from prepared shards. Needs the data stack."""

import atexit
import csv
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import numpy as np

from remind_jax.data import builder, pipeline, samplers
from remind_jax.data.groups import Groups
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.reading import read_manifest

SAMPLES, BATCH, STEPS = 256, 32, 20
_WORDS = [f"word{i}" for i in range(2_000)]


def _array(make: Callable[[np.random.Generator], np.ndarray]) -> Callable:
    def cells(folder: pathlib.Path, i: int, rng: np.random.Generator) -> list[object]:
        np.save(folder / f"{i}.npy", make(rng))
        return [f"{i}.npy"]

    return cells


def _words(count: int) -> Callable:
    return lambda folder, i, rng: [" ".join(rng.choice(_WORDS, count))]


# Kind: what schema.yaml says of its columns, how many they are, and the cells of a sample.
KINDS: dict[str, tuple[str, int, Callable]] = {
    "tabular": ("columns: [x0, x1, x2, x3, x4, x5, x6, x7]", 8, lambda folder, i, rng: rng.normal(size=8).tolist()),
    "codes": ("column: x0", 1, _words(30)),
    "text": ("column: x0", 1, _words(300)),
    "embedding": ("column: x0, stored: file", 1, _array(lambda rng: rng.normal(size=(16, 512)).astype(np.float32))),
    "image": ("column: x0", 1, _array(lambda rng: rng.integers(0, 256, (224, 224, 3)).astype(np.uint8))),
    "volume": ("column: x0", 1, _array(lambda rng: rng.integers(0, 256, (16, 112, 112)).astype(np.uint8))),
}


def _write(folder: pathlib.Path, kind: str) -> None:
    """A manifest of samples with one modality."""
    described, count, cells = KINDS[kind]
    schema = ("version: 1", "name: input", "sample_id: id", "patient_id: id", "split: split")
    label = "label: {column: y, classes: ['0', '1']}"
    text = "\n".join((*schema, label, "modalities:", f"  m: {{kind: {kind}, {described}}}"))
    (folder / "schema.yaml").write_text(text + "\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "y", "split", *(f"x{j}" for j in range(count))])
        rows.writerows([f"s{i}", i % 2, "train", *cells(folder, i, rng)] for i in range(SAMPLES))


@functools.cache
def _folder() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="input-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _prepared(kind: str) -> tuple[builder.Source, np.ndarray, np.ndarray, Preprocessor, Groups]:
    folder = _folder() / kind
    folder.mkdir()
    _write(folder, kind)
    manifest = read_manifest(folder)
    rows = np.arange(SAMPLES)
    preprocessor = Preprocessor.fit(manifest, rows, FitOptions(512, 4_000))
    groups = Groups.fit(manifest.presence, ["m"], tail_below=0.15, tail=())
    return builder.prepare(manifest, _folder() / "cache"), rows, manifest.presence, preprocessor, groups


def reader(kind: str, memory_gib: float, threads: int) -> Callable[[], int]:
    """Reads `STEPS` batches of `BATCH` samples of a kind and counts the samples."""
    source, rows, presence, preprocessor, groups = _prepared(kind)
    store = pipeline.make_store(
        functools.partial(builder.read, source), rows, presence, preprocessor, groups, memory_gib=memory_gib
    )
    order = samplers.shuffled(0, SAMPLES)

    def call() -> int:
        batches = pipeline.train_batches(store, order, BATCH, 0, STEPS, threads=threads)
        return sum(len(batch["label"]) for batch in batches)

    return call
