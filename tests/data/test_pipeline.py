import dataclasses
import functools
import pathlib
import sys
import threading

import numpy as np
import polars as pl
import pytest

from remind_jax.data import builder, pipeline, samplers
from remind_jax.data import manifest as manifest_lib
from remind_jax.data.groups import Groups
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.kinds.pixels import FittedPixels
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

ROWS = 60
MODALITIES = ("note", "labs", "icd", "emb")


def make_manifest(names: tuple[str, ...] = MODALITIES) -> manifest_lib.Manifest:
    rng = np.random.default_rng(1)
    here = rng.random((ROWS, 4)) < 0.6
    here[:, 1] |= ~here.any(axis=1)
    here[-1] = [True, True, True, True]
    vectors = rng.normal(size=(ROWS, 2, 3)).astype(np.float32)
    words = ["pain", "fever", "cough", "stable", "home"]
    table = pl.DataFrame(
        {
            "id": [f"s{i}" for i in range(ROWS)],
            "who": [f"p{i}" for i in range(ROWS)],
            "y": [("no", "yes")[int(rng.random() < 0.5)] for _ in range(ROWS)],
            "note": [" ".join(rng.choice(words, 4)) if here[i, 0] else None for i in range(ROWS)],
            "na": [float(rng.normal()) if here[i, 1] else None for i in range(ROWS)],
            "sex": [str(rng.choice(["f", "m"])) if here[i, 1] else None for i in range(ROWS)],
            "icd": [f"I{i % 4} E{i % 3}" if here[i, 2] else None for i in range(ROWS)],
            "emb": pl.Series(
                [vectors[i] if here[i, 3] else None for i in range(ROWS)], dtype=pl.Array(pl.Float32, (2, 3))
            ),
        }
    )
    modalities = (
        Modality(names[0], "text", ("note",)),
        Modality(names[1], "tabular", ("na",), ("sex",)),
        Modality(names[2], "codes", ("icd",)),
        Modality(names[3], "embedding", ("emb",)),
    )
    return manifest_lib.Manifest(Schema("small", "id", "who", "y", ("no", "yes"), modalities), table)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The arguments of `make_store`, and what they are made from."""

    manifest: manifest_lib.Manifest
    source: builder.Source
    rows: np.ndarray
    preprocessor: Preprocessor
    groups: Groups

    def store(self, memory_gib: float) -> pipeline.Store:
        return pipeline.make_store(
            functools.partial(builder.read, self.source),
            self.rows,
            self.manifest.presence[self.rows],
            self.preprocessor,
            self.groups,
            memory_gib=memory_gib,
        )


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    manifest = make_manifest()
    rows = np.random.default_rng(2).permutation(ROWS)[:41]
    # Fitted on part of the rows, so that the store meets combinations that the groups have not seen.
    groups = Groups.fit(manifest.presence[rows[:12]], MODALITIES)
    preprocessor = Preprocessor.fit(manifest, rows[:12], FitOptions(8, 40))
    return Parts(manifest, builder.prepare(manifest, tmp_path_factory.mktemp("cache")), rows, preprocessor, groups)


@pytest.fixture(scope="module")
def memory(parts: Parts) -> pipeline.Store:
    return parts.store(memory_gib=1.0)


@pytest.fixture(scope="module")
def stream(parts: Parts) -> pipeline.Store:
    return parts.store(memory_gib=0.0)


def assert_same(got: pipeline.Batch, expected: pipeline.Batch) -> None:
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_a_store_holds_what_decode_and_encode_give(parts: Parts, memory: pipeline.Store) -> None:
    positions = np.array([40, 0, 3, 3])
    raw = manifest_lib.decode(parts.manifest, parts.rows[positions])
    expected = parts.preprocessor.encode(raw)
    expected["group"] = parts.groups.index(raw["present"])
    batch = memory.take(positions)
    assert_same(batch, expected)
    assert len(memory) == 41
    np.testing.assert_array_equal(batch["row"], parts.rows[positions])
    np.testing.assert_array_equal(batch["present"], parts.manifest.presence[parts.rows[positions]])
    np.testing.assert_array_equal(batch["label"], parts.manifest.labels[parts.rows[positions]])
    shapes = {name: (array.dtype.name, array.shape) for name, array in batch.items()}
    assert shapes["group"] == shapes["label"] == shapes["row"] == ("int32", (4,))
    assert shapes["present"] == ("bool", (4, 4))
    assert shapes["emb"] == ("float32", (4, 2, 3))
    assert {name: shape[1:] for name, (_, shape) in shapes.items() if name in MODALITIES} == {
        name: spec.shape for name, spec in parts.preprocessor.inputs.items()
    }


def test_combinations_not_seen_in_training_share_the_last_index(parts: Parts, memory: pipeline.Store) -> None:
    group = memory.take(np.arange(41))["group"]
    assert (group[:12] < len(parts.groups)).all()
    assert (group[12:] == len(parts.groups)).any()
    assert group.max() == len(parts.groups)


def test_memory_and_stream_give_the_same_batches(memory: pipeline.Store, stream: pipeline.Store) -> None:
    assert isinstance(memory, pipeline.MemoryStore)
    assert isinstance(stream, pipeline.StreamStore)
    assert len(memory) == len(stream)
    for positions in (np.arange(41), np.array([5]), np.array([7, 7, 40, 0]), np.zeros(0, np.int64)):
        assert_same(stream.take(positions), memory.take(positions))
    some = {"labs": np.array([[2, 0], [1, 3]]), "emb": np.array([[1], [3]])}
    batch, positions = stream.take(np.array([7, 7, 40, 0]), some), np.array([7, 7, 40, 0])
    assert_same(batch, memory.take(positions, some))
    whole = memory.take(positions)
    assert_same(batch, whole | {name: whole[name][places] for name, places in some.items()})


def test_the_memory_limit_decides(parts: Parts, memory: pipeline.Store) -> None:
    batch, present = memory.take(np.arange(41)), parts.manifest.presence[parts.rows]
    rows = dict(zip(MODALITIES, present.sum(axis=0), strict=True))  # a row that has no input takes no room for it
    assert 0 < rows["emb"] < 41
    size = sum(array[: rows.get(name, 41)].nbytes for name, array in batch.items())
    assert isinstance(parts.store(size / 2**30), pipeline.MemoryStore)
    assert isinstance(parts.store((size - 1) / 2**30), pipeline.StreamStore)


def test_filling_a_store_block_by_block(parts: Parts, memory: pipeline.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_BLOCK", 7)
    monkeypatch.setattr(pipeline, "_PROBE", 5)
    assert_same(parts.store(1.0).take(np.arange(41)), memory.take(np.arange(41)))


def test_blocks_are_bound_by_bytes(parts: Parts, memory: pipeline.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(4 * int(np.prod(spec.shape)) for spec in parts.preprocessor.inputs.values())
    taken = []
    take = pipeline.StreamStore.take
    monkeypatch.setattr(pipeline, "_BLOCK_BYTES", 3 * size + 1)
    monkeypatch.setattr(pipeline.StreamStore, "take", lambda self, rows: taken.append(len(rows)) or take(self, rows))
    assert_same(parts.store(1.0).take(np.arange(41)), memory.take(np.arange(41)))
    assert max(taken) == 3


def test_bytes_of_pixels_count_once(parts: Parts) -> None:
    pixels = Preprocessor({"flow": FittedPixels((16, 224, 224, 3)), "fundus": FittedPixels((224, 224, 3))})
    assert pipeline._rows_at_a_time(pixels) == 64 * 2**20 // (17 * 224 * 224 * 3)
    assert pipeline._rows_at_a_time(parts.preprocessor) == pipeline._BLOCK


def test_a_batch_may_be_changed(memory: pipeline.Store) -> None:
    memory.take(np.arange(41))["emb"][:] = 9
    assert not (memory.take(np.arange(41))["emb"] == 9).any()


def test_an_empty_split_has_no_batches(parts: Parts) -> None:
    for memory_gib in (0.0, 1.0):
        nothing = dataclasses.replace(parts, rows=np.zeros(0, np.int64)).store(memory_gib)
        assert len(nothing) == 0
        assert list(pipeline.eval_batches(nothing, 8)) == []


@pytest.mark.parametrize("name", ["group", "weight"])
def test_a_modality_must_not_take_the_name_of_a_column_of_the_batch(
    tmp_path: pathlib.Path, parts: Parts, name: str
) -> None:
    manifest = make_manifest((name, "labs", "icd", "emb"))
    preprocessor = Preprocessor.fit(manifest, parts.rows, FitOptions(8, 40))
    source = builder.prepare(manifest, tmp_path)
    with pytest.raises(UserError, match=f"rename in schema.yaml: {name}"):
        pipeline.make_store(
            functools.partial(builder.read, source),
            parts.rows,
            manifest.presence[parts.rows],
            preprocessor,
            parts.groups,
            memory_gib=1.0,
        )


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_every_training_row_comes_once_per_epoch(parts: Parts, memory: pipeline.Store, seed: int) -> None:
    order = samplers.shuffled(seed, len(memory))
    rows = np.concatenate([batch["row"] for batch in pipeline.train_batches(memory, order, 4, 0, 31)])
    for epoch in range(3):
        assert sorted(rows[epoch * 41 : (epoch + 1) * 41]) == sorted(parts.rows)


@pytest.mark.parametrize("threads", [0, 1, 4])
@pytest.mark.parametrize("form", ["memory", "stream"])
def test_neither_threads_nor_form_nor_resuming_change_the_stream(
    request: pytest.FixtureRequest, memory: pipeline.Store, form: str, threads: int
) -> None:
    store = request.getfixturevalue(form)
    steps = 11  # one epoch of 41 rows, and a little
    for seed in (0, 7):
        order = samplers.shuffled(seed, len(store))
        reference = [memory.take(order(step, 4)) | {"weight": np.ones(4, np.float32)} for step in range(steps)]
        for start in range(steps + 1):
            batches = list(pipeline.train_batches(store, order, 4, start, steps, threads=threads))
            assert len(batches) == steps - start
            for batch, expected in zip(batches, reference[start:], strict=True):
                assert_same(batch, expected)


def test_a_balanced_stream_resumes_too(parts: Parts, memory: pipeline.Store) -> None:
    group = memory.take(np.arange(41))["group"]
    whole = list(pipeline.train_batches(memory, samplers.group_balanced(3, group), 8, 0, 6))
    late = list(pipeline.train_batches(memory, samplers.group_balanced(3, group), 8, 4, 6))
    for batch, expected in zip(late, whole[4:], strict=True):
        assert_same(batch, expected)


def test_grain_is_not_imported_for_one_batch_or_none_ahead(memory: pipeline.Store, monkeypatch) -> None:
    expected = list(pipeline.eval_batches(memory, 8, threads=2))
    whole = list(pipeline.eval_batches(memory, 64, threads=2))
    monkeypatch.setitem(sys.modules, "grain", None)
    for batch, other in zip(pipeline.eval_batches(memory, 8), expected, strict=True):
        assert_same(batch, other)
    assert_same(next(pipeline.eval_batches(memory, 64, threads=2)), whole[0])
    with pytest.raises(ImportError):
        next(pipeline.eval_batches(memory, 8, threads=2))


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize(("batch_size", "count", "padded"), [(8, 6, 7), (41, 1, 0), (64, 1, 23), (1, 41, 0)])
def test_evaluation_sees_every_row_once(
    parts: Parts, memory: pipeline.Store, batch_size: int, count: int, padded: int, threads: int
) -> None:
    batches = list(pipeline.eval_batches(memory, batch_size, threads=threads))
    assert len(batches) == count
    assert {len(array) for batch in batches for array in batch.values()} == {batch_size}
    weight = np.concatenate([batch["weight"] for batch in batches])
    rows = np.concatenate([batch["row"] for batch in batches])
    assert weight.dtype == np.float32
    assert weight.tolist() == [1.0] * 41 + [0.0] * padded
    assert rows[:41].tolist() == parts.rows.tolist()
    assert set(rows[41:]) <= {parts.rows[-1]}


def _prefetching() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")}


def test_leaving_early_ends_the_threads(memory: pipeline.Store) -> None:
    before = _prefetching()
    batches = pipeline.train_batches(memory, samplers.shuffled(0, 41), 4, 0, 10**6, threads=2)
    next(batches)
    started = _prefetching() - before
    assert started
    batches.close()
    for thread in started:
        thread.join(timeout=30)
        assert not thread.is_alive()


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_in_a_thread_reaches_the_loop(memory: pipeline.Store, threads: int) -> None:
    def order(step: int, batch_size: int) -> np.ndarray:
        if step == 3:
            raise UserError("the prepared data are damaged")
        return np.zeros(batch_size, np.int64)

    seen = []
    with pytest.raises(UserError, match="damaged"):
        seen.extend(pipeline.train_batches(memory, order, 4, 0, 9, threads=threads))
    batches = pipeline.train_batches(memory, order, 4, 0, 9, threads=threads)
    assert [len(next(batches)["row"]) for _ in range(3)] == [4, 4, 4]
    batches.close()
