import fcntl
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from remind_jax.data import builder
from remind_jax.data import manifest as manifest_lib
from remind_jax.data.reading import read_manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from remind_jax.runtime import progress
from tests.data.manifest_files import write_manifest

ROWS = 50


def make_manifest(rows: int = ROWS, seed: int = 0) -> manifest_lib.Manifest:
    """Every kind, every kind of hole, names and texts that are awkward to store."""
    rng = np.random.default_rng(seed)
    here = rng.random((rows, 5)) < 0.7
    here[:, 0] = True
    numbers = rng.normal(size=(rows, 3))
    vectors = rng.normal(size=(rows, 2, 3)).astype(np.float32)
    table = pl.DataFrame(
        {
            "id": [f"s{i}" for i in range(rows)],
            "who": [f"p{i // 2}" for i in range(rows)],
            "y": [("no", "yes")[i % 2] for i in range(rows)],
            **{f"x{j}": [numbers[i, j] if here[i, 1] and (i + j) % 4 else None for i in range(rows)] for j in range(3)},
            "ward": [f"w{i % 3}" if here[i, 2] else None for i in range(rows)],
            "sex": ["f" if here[i, 2] and i % 2 else None for i in range(rows)],
            "note": [f"Ärztin, line\n{i}\0" + "x" * (i % 7) if here[i, 0] else None for i in range(rows)],
            "icd": [f"I10 E{i:02d}" if here[i, 3] else None for i in range(rows)],
            "emb": pl.Series(
                [vectors[i] if here[i, 4] else None for i in range(rows)], dtype=pl.Array(pl.Float32, (2, 3))
            ),
        },
        schema_overrides=dict.fromkeys(("x0", "x1", "x2"), pl.Float64),
    )
    schema = Schema(
        name="small",
        sample_id="id",
        patient_id="who",
        label="y",
        classes=("no", "yes"),
        modalities=(
            Modality("note", "text", ("note",)),
            Modality("labs/blood", "tabular", ("x0", "x1", "x2")),
            Modality("person", "tabular", (), ("ward", "sex")),
            Modality("icd", "codes", ("icd",)),
            Modality("emb", "embedding", ("emb",)),
        ),
    )
    return manifest_lib.Manifest(schema, table)


class Bar(progress.Silent):
    """Keeps what it is told; `then` is called at each count."""

    def __init__(self, then=lambda done, total: None):
        self.counts, self.said, self.then = [], [], then

    def count(self, done: int, total: int) -> None:
        self.counts.append((done, total))
        self.then(done, total)

    def say(self, text: str) -> None:
        self.said.append(text)


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype, name
        assert got[name].shape == array.shape, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


@pytest.fixture(scope="module")
def manifest() -> manifest_lib.Manifest:
    return make_manifest()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def source(manifest: manifest_lib.Manifest, cache: pathlib.Path) -> builder.Source:
    return builder.prepare(manifest, cache)


def test_everything_comes_back_as_decode_gives_it(source: builder.Source, manifest: manifest_lib.Manifest) -> None:
    everything = np.arange(ROWS)
    assert len(source) == ROWS
    assert_same(builder.read(source, everything), manifest_lib.decode(manifest, everything))


@pytest.mark.parametrize("positions", [[7], [49, 0, 7, 7, 3], []])
def test_rows_come_in_the_order_asked_for(
    source: builder.Source, manifest: manifest_lib.Manifest, positions: list[int]
) -> None:
    rows = np.array(positions, dtype=np.int64)
    got = builder.read(source, rows)
    everything = manifest_lib.decode(manifest, np.arange(ROWS))
    assert_same(got, {name: array[rows] for name, array in everything.items()})


def test_what_is_read_may_be_changed(source: builder.Source) -> None:
    first = builder.read(source, np.array([2]))
    first["emb"] += 1
    assert not np.array_equal(first["emb"], builder.read(source, np.array([2]))["emb"])


def test_a_prepared_manifest_is_used_again(
    manifest: manifest_lib.Manifest, cache: pathlib.Path, source: builder.Source
) -> None:
    written = {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")}
    bar = Bar()
    again = builder.prepare(manifest, cache, bar=bar)
    assert again.folder == source.folder
    assert bar.counts == bar.said == []
    assert {path: path.stat().st_mtime_ns for path in source.folder.rglob("*")} == written


def test_another_manifest_gets_another_folder(cache: pathlib.Path, source: builder.Source) -> None:
    other = builder.prepare(make_manifest(seed=1), cache)
    assert other.folder != source.folder
    rows = np.arange(ROWS)
    assert not np.array_equal(builder.read(other, rows)["emb"], builder.read(source, rows)["emb"])


def test_many_shards_hold_the_same_rows(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(builder, name, value)
    bar = Bar()
    source = builder.prepare(manifest, tmp_path, bar=bar)
    assert len(list(source.folder.rglob("*.array_record*"))) > 3
    assert bar.counts == [*((done, ROWS) for done in range(7, ROWS, 7)), (ROWS, ROWS)]
    assert bar.said == []
    rows = np.random.default_rng(0).permutation(ROWS)
    everything = manifest_lib.decode(manifest, np.arange(ROWS))
    assert_same(builder.read(source, rows), {name: array[rows] for name, array in everything.items()})


def test_nothing_is_printed_and_nothing_else_is_left(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = builder.prepare(manifest, tmp_path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.folder.name, f"{source.folder.name}.lock"]
    assert source.folder.stat().st_mode & 0o077 == 0, "others can read the patients' data"


def test_a_changed_file_is_prepared_again(tmp_path: pathlib.Path) -> None:
    table = pl.DataFrame({"id": ["a", "b"], "who": ["a", "b"], "y": ["0", "1"], "emb": ["a.npy", None]})
    modality = Modality("emb", "embedding", ("emb",), stored="file")
    schema = Schema("files", "id", "who", "y", ("0", "1"), (modality,))
    manifest = manifest_lib.Manifest(schema, table, root=tmp_path)
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    first = builder.prepare(manifest, tmp_path / "cache")
    assert builder.prepare(manifest, tmp_path / "cache").folder == first.folder
    np.save(tmp_path / "a.npy", np.full((2, 3), 5, np.float32))
    changed = manifest_lib.Manifest(schema, table, root=tmp_path)  # as the next run reads it
    second = builder.prepare(changed, tmp_path / "cache")
    assert second.folder != first.folder
    assert builder.read(second, np.array([0]))["emb"].max() == 5


def test_a_file_that_changes_while_it_is_prepared_is_refused(tmp_path: pathlib.Path) -> None:
    """Its numbers would be found again under the digest of those before."""
    manifest = read_manifest(write_manifest(tmp_path / "data", n=20))
    path = tmp_path / "data" / manifest.table["scan"].drop_nulls()[-1]
    np.save(path, np.load(path) + np.float32(1))
    with pytest.raises(UserError, match="a file of column 'scan' has changed meanwhile: give the same command again"):
        builder.prepare(manifest, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/"))
    again = read_manifest(tmp_path / "data")
    assert len(builder.prepare(again, tmp_path / "cache")) == 20


def test_a_cache_that_cannot_be_made_is_one_line(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    for cache_dir in (blocker, blocker / "below"):
        with pytest.raises(UserError, match="cache folder") as caught:
            builder.prepare(manifest, cache_dir)
        assert "\n" not in str(caught.value)


def _prepare_on_a_full_disk(cache: str, queue: multiprocessing.Queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        builder.prepare(make_manifest(2000), pathlib.Path(cache))
    except UserError as error:
        queue.put(str(error))
    else:
        queue.put("no error")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_prepare_on_a_full_disk, args=(str(tmp_path), queue))
    process.start()
    message = queue.get(timeout=120)
    process.join()
    assert f"cache folder {tmp_path} (write() failed: File too large)" in message
    assert "\n" not in message
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_an_unreadable_file_of_the_manifest_is_not_blamed_on_the_cache(tmp_path: pathlib.Path) -> None:
    root, cache = tmp_path / "data", tmp_path / "data" / "cache"

    def blamed(path: pathlib.Path) -> bool:
        return builder._concerns(PermissionError(13, "Permission denied", str(path)), cache, root)

    assert not blamed(root / "a.npy")
    assert blamed(cache / "x")
    assert blamed(cache)
    assert blamed(pathlib.Path("/elsewhere"))


def test_a_manifest_without_rows_is_refused(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    empty = manifest_lib.Manifest(manifest.schema, manifest.table.head(0))
    with pytest.raises(UserError, match="no rows"):
        builder.prepare(empty, tmp_path)


def test_an_error_while_preparing_leaves_nothing(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    def stop(done: int, total: int) -> None:
        raise UserError("row 3, column emb: not a file")

    with pytest.raises(UserError, match="row 3"):
        builder.prepare(manifest, tmp_path, bar=Bar(stop))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert len(builder.prepare(manifest, tmp_path)) == ROWS


SMALL = {"_SHARD_BYTES": 1000, "_BLOCK": 7}  # shards of 13 rows, written 7 at a time


def _prepare_and_hang(cache: str) -> None:
    def hang(done: int, total: int) -> None:
        if done == 28:  # two shards are whole
            pathlib.Path(cache, "reached").touch()
            time.sleep(600)

    vars(builder).update(SMALL)
    builder.prepare(make_manifest(), pathlib.Path(cache), bar=Bar(hang))


def _contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("damage", ["", "cut", "in another form"])
def test_a_killed_preparation_goes_on_after_its_whole_shards(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_prepare_and_hang, args=(str(tmp_path),))
    process.start()
    while not (tmp_path / "reached").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (begun,) = tmp_path.glob("*.part")
    first, second, *_ = sorted(begun.rglob("*.array_record*"))
    kept = first.stat().st_mtime_ns
    for name, value in SMALL.items():
        monkeypatch.setattr(builder, name, value)
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-100])
    elif damage:
        monkeypatch.setattr(builder, "_SHARD_BYTES", 2000)
    decoded, decode = [], manifest_lib.decode
    monkeypatch.setattr(manifest_lib, "decode", lambda of, rows: decoded.append(rows[0]) or decode(of, rows))
    source = builder.prepare(manifest, tmp_path)
    # After the first block, which tells shapes and types.
    assert decoded[1] == {"": 26, "cut": 13, "in another form": 0}[damage]
    assert (next(source.folder.rglob("*-00000")).stat().st_mtime_ns == kept) == (damage != "in another form")
    assert _contents(source.folder) == _contents(builder.prepare(manifest, tmp_path / "other").folder)
    assert not begun.exists()


def _prepare_slowly(cache: str) -> None:
    """Prepares, and in between waits until it is told to go on."""

    def wait(done: int, total: int) -> None:
        pathlib.Path(cache, "reached").touch()
        while not pathlib.Path(cache, "go").exists():
            time.sleep(0.01)

    builder.prepare(make_manifest(), pathlib.Path(cache), bar=Bar(wait))


def test_of_two_processes_one_writes_and_the_other_waits(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(str(tmp_path),))
    process.start()
    try:
        while not (tmp_path / "reached").exists():
            assert process.is_alive()
            time.sleep(0.01)

        class Impatient(Bar):
            def advance(self, step: int, text: str = "") -> None:
                assert text == "waiting for another process"
                (tmp_path / "go").touch()

        bar = Impatient()
        source = builder.prepare(manifest, tmp_path, bar=bar)
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert bar.said == ["another process prepares these data: waiting for it"]
    assert bar.counts == []  # it wrote nothing itself
    assert_same(builder.read(source, np.arange(ROWS)), manifest_lib.decode(manifest, np.arange(ROWS)))
    assert sorted(path.name for path in source.folder.iterdir()) == ["columns.json", "manifest"]


def test_a_process_that_waits_takes_the_place_of_a_writer_that_dies(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_prepare_slowly, args=(str(tmp_path),))
    process.start()
    try:
        while not (tmp_path / "reached").exists():
            assert process.is_alive()
            time.sleep(0.01)

        class Murderous(Bar):
            def advance(self, step: int, text: str = "") -> None:
                process.kill()

        bar = Murderous()
        source = builder.prepare(manifest, tmp_path, bar=bar)
    finally:
        process.kill()
        process.join()
    assert bar.counts == []  # the only shard of the dead one was whole
    assert_same(builder.read(source, np.arange(ROWS)), manifest_lib.decode(manifest, np.arange(ROWS)))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [source.folder.name]


def test_a_row_that_cannot_be_encoded_is_not_shown(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = manifest_lib.decode

    def swapped(of: manifest_lib.Manifest, rows: np.ndarray) -> dict[str, np.ndarray]:
        raw = decode(of, rows)
        return raw if rows[0] == 0 else raw | {"emb": raw["emb"][:, 0]}

    monkeypatch.setattr(builder, "_BLOCK", 7)
    monkeypatch.setattr(manifest_lib, "decode", swapped)
    with pytest.raises(TypeError, match="a row is not of the shapes and types") as caught:
        builder.prepare(manifest, tmp_path)
    assert caught.value.__suppress_context__
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_where_locks_do_not_work_the_second_rename_loses_quietly(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, source: builder.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def meanwhile(done: int, total: int) -> None:
        if not list(tmp_path.glob(f"{source.folder.name}/columns.json")):
            builder.prepare(manifest, tmp_path)

    assert len(builder.prepare(manifest, tmp_path, bar=Bar(meanwhile))) == ROWS
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("damage", ["columns", "swapped", "no_columns", "truncated", "flipped", "info"])
def test_damaged_data_are_one_line(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, damage: str) -> None:
    folder = builder.prepare(manifest, tmp_path).folder
    shard = next(folder.rglob("*.array_record*"))
    content = bytearray(shard.read_bytes())
    if damage == "columns":
        columns = json.loads((folder / "columns.json").read_text())
        (folder / "columns.json").write_text(json.dumps(columns[::-1]))
    elif damage == "swapped":  # the label where the row number should be: all shapes and types fit
        columns = json.loads((folder / "columns.json").read_text())
        label, row = (next(c for c in columns if c["name"] == name) for name in ("label", "row"))
        label["name"], row["name"] = "row", "label"
        (folder / "columns.json").write_text(json.dumps(columns))
    elif damage == "no_columns":
        (folder / "columns.json").unlink()
    elif damage == "truncated":
        shard.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 4 : len(content) // 4 * 3] = bytes(len(content) // 4 * 2)
        shard.write_bytes(content)
    elif damage == "info":
        next(folder.rglob("dataset_info.json")).write_text("{")
    with pytest.raises(UserError, match="damaged: delete this folder") as caught:
        builder.read(builder.prepare(manifest, tmp_path), np.arange(ROWS))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_rows_are_found_before_training_starts(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    info = next(builder.prepare(manifest, tmp_path).folder.rglob("dataset_info.json"))
    content = json.loads(info.read_text())
    assert content["splits"][0]["shardLengths"] == [str(ROWS)]
    content["splits"][0]["shardLengths"] = [str(ROWS - 1)]
    info.write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        builder.prepare(manifest, tmp_path)


def test_tensorflow_is_never_imported(tmp_path: pathlib.Path) -> None:
    code = f"""
import pathlib, sys
import numpy as np
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_builder import make_manifest
from remind_jax.data import builder
source = builder.prepare(make_manifest(), pathlib.Path({str(tmp_path)!r}))
builder.read(source, np.arange(5))
import grain
assert "tensorflow_datasets" in sys.modules
print([name for name in sys.modules if name.split(".")[0] == "tensorflow"])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
