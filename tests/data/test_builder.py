import concurrent.futures
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

from remind_jax.data import builder, preprocess
from remind_jax.data import manifest as manifest_lib
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.preprocess import Preprocessor
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


def fit(manifest: manifest_lib.Manifest, **options: int) -> Preprocessor:
    return Preprocessor.fit(manifest, np.arange(20), FitOptions(**{"max_tokens": 8, "vocabulary": 40} | options))


def prepare(manifest: manifest_lib.Manifest, cache: pathlib.Path, **options: builder.progress.Silent) -> dict:
    return builder.prepare(manifest, fit(manifest), cache, **options)


def assert_same(
    columns: dict[str, builder.Column], manifest: manifest_lib.Manifest, rows: np.ndarray | None = None
) -> None:
    """What is prepared is what decoding and encoding all rows at once gives."""
    expected = fit(manifest).encode(manifest_lib.decode(manifest, np.arange(manifest.table.height)))
    assert list(columns) == [modality.name for modality in manifest.schema.modalities]
    rows = np.arange(manifest.table.height) if rows is None else rows
    for name, column in columns.items():
        got = column.read(rows)
        assert (got.dtype, got.shape) == (expected[name].dtype, (len(rows), *expected[name].shape[1:]))
        np.testing.assert_array_equal(got, expected[name][rows], err_msg=name)


def folders(columns: dict[str, builder.Column]) -> set[pathlib.Path]:
    return {column.folder for column in columns.values()}


@pytest.fixture(scope="module")
def manifest() -> manifest_lib.Manifest:
    return make_manifest()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def columns(manifest: manifest_lib.Manifest, cache: pathlib.Path) -> dict[str, builder.Column]:
    return prepare(manifest, cache)


def test_what_is_prepared_is_what_models_receive(
    columns: dict[str, builder.Column], manifest: manifest_lib.Manifest
) -> None:
    assert_same(columns, manifest)
    rows = {name: int(manifest.presence[:, j].sum()) for j, name in enumerate(columns)}
    inputs = fit(manifest).inputs
    for name, column in columns.items():  # and of rows that lack it nothing
        size = (column.folder / "values").stat().st_size
        assert size == rows[name] * np.prod(inputs[name].shape) * inputs[name].dtype.itemsize
    assert rows["emb"] < ROWS
    assert "Ärztin".encode() not in b"".join(
        path.read_bytes() for folder in folders(columns) for path in folder.rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("positions", [[7], [49, 0, 7, 7, 3], []])
def test_rows_come_in_the_order_asked_for(
    columns: dict[str, builder.Column], manifest: manifest_lib.Manifest, positions: list[int]
) -> None:
    assert_same(columns, manifest, np.array(positions, dtype=np.int64))


def test_what_is_read_may_be_changed(columns: dict[str, builder.Column], manifest: manifest_lib.Manifest) -> None:
    rows = np.flatnonzero(manifest.presence[:, 4])[:1]
    first = columns["emb"].read(rows)
    first += 1
    assert not np.array_equal(first, columns["emb"].read(rows))


def test_threads_may_share_a_column(columns: dict[str, builder.Column], manifest: manifest_lib.Manifest) -> None:
    orders = [np.random.default_rng(seed).permutation(ROWS) for seed in range(40)]
    whole = columns["note"].read(np.arange(ROWS))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(columns["note"].read, orders), strict=True):
            np.testing.assert_array_equal(found, whole[order])


def test_a_prepared_manifest_is_used_again(
    manifest: manifest_lib.Manifest, cache: pathlib.Path, columns: dict[str, builder.Column]
) -> None:
    written = {path: path.stat().st_mtime_ns for folder in folders(columns) for path in folder.rglob("*")}
    bar = Bar()
    again = prepare(manifest, cache, bar=bar)
    assert folders(again) == folders(columns)
    assert bar.counts == bar.said == []
    assert {path: path.stat().st_mtime_ns for folder in folders(again) for path in folder.rglob("*")} == written


def test_another_manifest_gets_other_folders(cache: pathlib.Path, columns: dict[str, builder.Column]) -> None:
    other = prepare(make_manifest(seed=1), cache)
    assert not folders(other) & folders(columns)
    rows = np.arange(ROWS)
    assert not np.array_equal(other["emb"].read(rows), columns["emb"].read(rows))


@pytest.mark.parametrize(
    ("options", "changed"),
    [({"max_tokens": 3}, {"note"}), ({"vocabulary": 12}, {"note", "icd"}), ({"numbers": "quantile"}, {"labs/blood"})],
)
def test_what_is_fitted_otherwise_lies_elsewhere_and_the_rest_is_shared(
    manifest: manifest_lib.Manifest, cache: pathlib.Path, columns: dict[str, builder.Column], options, changed
) -> None:
    other = builder.prepare(manifest, fit(manifest, **options), cache)
    assert {name for name in columns if other[name].folder != columns[name].folder} == changed
    expected = fit(manifest, **options).encode(manifest_lib.decode(manifest, np.arange(ROWS)))
    for name in changed:
        np.testing.assert_array_equal(other[name].read(np.arange(ROWS)), expected[name])


def test_many_blocks_hold_the_same_rows(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocess, "_BLOCK", 7)
    bar = Bar()
    columns = prepare(manifest, tmp_path, bar=bar)
    assert len(list(columns["note"].folder.rglob("*.array_record*"))) == -(-ROWS // 7)
    total = int(manifest.presence.sum())
    assert bar.counts[:8] == [*((done, total) for done in range(7, ROWS, 7)), (ROWS, total)]
    assert bar.counts[-1] == (total, total)
    assert sorted(bar.counts) == bar.counts
    assert bar.said == []
    assert_same(columns, manifest, np.random.default_rng(0).permutation(ROWS))


def test_a_modality_that_no_row_has_is_zeros(tmp_path: pathlib.Path) -> None:
    manifest = make_manifest()
    empty = manifest.table.with_columns(icd=pl.lit(None, pl.String))
    nothing = manifest_lib.Manifest(manifest.schema, empty)
    columns = builder.prepare(nothing, fit(manifest), tmp_path)
    assert not columns["icd"].read(np.arange(ROWS)).any()
    assert not builder.prepare(nothing, fit(manifest), tmp_path)["icd"].read(np.array([3])).any()


def test_nothing_is_printed_and_nothing_else_is_left(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    columns = prepare(manifest, tmp_path)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    names = [folder.name for folder in folders(columns)]
    assert {path.name for path in tmp_path.iterdir()} == {*names, *(f"{name}.lock" for name in names)}
    for folder in folders(columns):
        for path in (folder, *folder.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, "others can read the patients' data"


def test_a_changed_file_is_prepared_again(tmp_path: pathlib.Path) -> None:
    table = pl.DataFrame({"id": ["a", "b"], "who": ["a", "b"], "y": ["0", "1"], "emb": ["a.npy", None]})
    modality = Modality("emb", "embedding", ("emb",), stored="file")
    schema = Schema("files", "id", "who", "y", ("0", "1"), (modality,))
    manifest = manifest_lib.Manifest(schema, table, root=tmp_path)
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    preprocessor = Preprocessor.fit(manifest, np.arange(1), FitOptions(8, 40))
    first = builder.prepare(manifest, preprocessor, tmp_path / "cache")
    assert folders(builder.prepare(manifest, preprocessor, tmp_path / "cache")) == folders(first)
    np.save(tmp_path / "a.npy", np.full((2, 3), 5, np.float32))
    changed = manifest_lib.Manifest(schema, table, root=tmp_path)  # as the next run reads it
    second = builder.prepare(changed, preprocessor, tmp_path / "cache")
    assert folders(second) != folders(first)
    assert second["emb"].read(np.array([0])).max() == 5


def test_a_file_that_changes_while_it_is_prepared_is_refused(tmp_path: pathlib.Path) -> None:
    """Its numbers would be found again under the digest of those before."""
    manifest = read_manifest(write_manifest(tmp_path / "data", n=20))
    path, preprocessor = tmp_path / "data" / manifest.table["scan"].drop_nulls()[-1], fit(manifest)
    np.save(path, np.load(path) + np.float32(1))
    with pytest.raises(UserError, match="a file of column 'scan' has changed meanwhile: give the same command again"):
        builder.prepare(manifest, preprocessor, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob(f"{manifest.digest[:16]}-*/{builder._VALUES}.part"))
    assert not [folder for folder in (tmp_path / "cache").glob("*/") if (folder / "values").read_bytes() == b""]
    again = read_manifest(tmp_path / "data")
    assert_same(prepare(again, tmp_path / "cache"), again)


def test_a_cache_that_cannot_be_made_is_one_line(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    for cache_dir in (blocker, blocker / "below"):
        with pytest.raises(UserError, match="cache folder") as caught:
            prepare(manifest, cache_dir)
        assert "\n" not in str(caught.value)


def _prepare_on_a_full_disk(cache: str, queue: multiprocessing.Queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        prepare(make_manifest(2000), pathlib.Path(cache))
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
    assert f"cache folder {tmp_path} (File too large)" in message
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
        builder.prepare(empty, fit(manifest), tmp_path)


def test_an_error_while_preparing_leaves_nothing(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    def stop(done: int, total: int) -> None:
        raise UserError("row 3, column emb: not a file")

    with pytest.raises(UserError, match="row 3"):
        prepare(manifest, tmp_path, bar=Bar(stop))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert_same(prepare(manifest, tmp_path), manifest)


@pytest.mark.parametrize("part", ["keeps", "write"])
def test_after_a_block_that_fails_no_further_one_is_written(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Whether the thread that reads or the one that writes fails."""
    monkeypatch.setattr(preprocess, "_BLOCK", 2)
    begun, original = [], getattr(builder._Writer, part)

    def failing(writer: builder._Writer, number: int, *values: np.ndarray) -> bool | None:
        begun.append(number)
        if number >= 3:
            raise UserError(f"block {number} cannot be read")
        return original(writer, number, *values)

    monkeypatch.setattr(builder._Writer, part, failing)
    with pytest.raises(UserError, match="block 3"):
        prepare(manifest, tmp_path)
    assert begun == [0, 1, 2, 3]
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def _prepare_and_hang(cache: str) -> None:
    write = builder._Writer.write

    def hang(writer: builder._Writer, number: int, values: np.ndarray) -> None:
        if number == 5:
            pathlib.Path(cache, "reached").touch()
            time.sleep(600)
        write(writer, number, values)

    preprocess._BLOCK, builder._Writer.write = 7, hang
    prepare(make_manifest(), pathlib.Path(cache))


def _contents(columns: dict[str, builder.Column]) -> dict[str, bytes]:
    found = [(folder, path) for folder in folders(columns) for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder.parent)): path.read_bytes() for folder, path in found}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "a record is cut", "values are flipped", "values are cut", "in another form"])
def test_a_killed_preparation_goes_on_and_keeps_its_whole_blocks(
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
    assert begun.stat().st_mode & 0o077 == 0
    first, second, *_ = sorted(begun.rglob("*.array_record*"))
    kept, values = first.stat().st_mtime_ns, bytearray((begun / "values").read_bytes())
    monkeypatch.setattr(preprocess, "_BLOCK", 5 if damage == "in another form" else 7)
    row = len(values) // (7 * 5)  # bytes of one: blocks 0 to 4 are there
    if damage == "a record is cut":
        second.write_bytes(second.read_bytes()[:-100])
    elif damage == "values are flipped":
        values[row * (7 * 3 + 1)] ^= 1
        (begun / "values").write_bytes(values)
    elif damage == "values are cut":
        (begun / "values").write_bytes(values[:-1])
    again, write = [], builder._Writer.write
    monkeypatch.setattr(
        builder._Writer, "write", lambda of, number, values: again.append(number) or write(of, number, values)
    )
    columns = prepare(manifest, tmp_path)
    more = {"a record is cut": [1], "values are flipped": [3], "values are cut": [4], "": []}
    expected = list(range(10)) if damage == "in another form" else [*more[damage], 5, 6, 7]
    assert again[: len(expected)] == expected
    first = columns["note"].folder / first.relative_to(begun)
    assert (first.stat().st_mtime_ns == kept) == (damage != "in another form")
    assert _contents(columns) == _contents(prepare(manifest, tmp_path / "other"))
    assert not begun.exists()


def _prepare_slowly(cache: str) -> None:
    """Prepares, and in between waits until it is told to go on."""

    def wait(done: int, total: int) -> None:
        pathlib.Path(cache, "reached").touch()
        while not pathlib.Path(cache, "go").exists():
            time.sleep(0.01)

    prepare(make_manifest(), pathlib.Path(cache), bar=Bar(wait))


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
        columns = prepare(manifest, tmp_path, bar=bar)
        process.join(60)
        assert process.exitcode == 0
    finally:
        process.kill()
    assert bar.said[0] == "another process prepares these data: waiting for it"
    assert_same(columns, manifest)
    assert sorted(path.name for path in columns["note"].folder.iterdir()) == ["modality", "values"]


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
        columns = prepare(manifest, tmp_path, bar=bar)
    finally:
        process.kill()
        process.join()
    assert_same(columns, manifest)
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == folders(columns)


def test_rows_of_another_shape_than_was_fitted_are_refused(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path
) -> None:
    """Whatever a kind of modality gives, what lies in a file has one shape and type."""
    fitted = fit(manifest)
    fitted.fitted["note"].tokenizer.enable_truncation(4)
    object.__setattr__(fitted.fitted["emb"], "encode", lambda raw, name: raw[name].astype(np.float64))
    with pytest.raises(TypeError, match="rows are not of the shape and type"):
        builder.prepare(manifest, fitted, tmp_path)
    assert not [path for path in tmp_path.iterdir() if ".tmp-" in path.name or path.suffix == ".part"]


def test_where_locks_do_not_work_the_second_rename_loses_quietly(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, columns: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)

    def meanwhile(done: int, total: int) -> None:
        if not list(tmp_path.glob(f"{columns['note'].folder.name}/values")):
            prepare(manifest, tmp_path)

    assert_same(prepare(manifest, tmp_path, bar=Bar(meanwhile)), manifest)
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("damage", ["values cut", "values flipped", "no values", "another's", "truncated", "info"])
def test_damaged_data_are_one_line(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, damage: str) -> None:
    columns = prepare(manifest, tmp_path)
    folder = columns["labs/blood"].folder
    values, shard = folder / "values", next(folder.rglob("*.array_record*"))
    content = bytearray(values.read_bytes())
    if damage == "values cut":
        values.write_bytes(content[:-1])
    elif damage == "values flipped":
        content[len(content) // 2] ^= 1
        values.write_bytes(content)
    elif damage == "no values":
        values.unlink()
    elif damage == "another's":  # all rows are there, and others
        shard.write_bytes(next(columns["emb"].folder.rglob("*.array_record*")).read_bytes())
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "info":
        next(folder.rglob("dataset_info.json")).write_text("{")
    with pytest.raises(UserError, match="damaged: delete this folder") as caught:
        prepare(manifest, tmp_path)["labs/blood"].read(np.arange(ROWS))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", ["cut while it is read", "fails"])
def test_a_file_that_fails_while_it_is_read_is_one_line(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    column = prepare(manifest, tmp_path)["note"]
    if count == "fails":

        def failing(*args: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "preadv", failing)
    else:
        (column.folder / "values").write_bytes(b"")
    with pytest.raises(UserError, match="damaged: delete this folder"):
        column.read(np.arange(ROWS))


def test_missing_rows_are_found_before_training_starts(manifest: manifest_lib.Manifest, tmp_path: pathlib.Path) -> None:
    info = next(prepare(manifest, tmp_path)["note"].folder.rglob("dataset_info.json"))
    content = json.loads(info.read_text())
    assert content["splits"][0]["shardLengths"] == ["1"]
    content["splits"][0]["shardLengths"] = ["0"]
    info.write_text(json.dumps(content))
    with pytest.raises(UserError, match="damaged"):
        prepare(manifest, tmp_path)


def test_what_an_earlier_version_prepared_is_not_read(
    manifest: manifest_lib.Manifest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "_VERSION", "1.9.0")
    before = folders(prepare(manifest, tmp_path))
    monkeypatch.undo()
    columns = prepare(manifest, tmp_path)
    assert not before & folders(columns)
    assert_same(columns, manifest)
    columns.clear()
    builder.forget(tmp_path, manifest.digest)
    assert not list(tmp_path.glob("*/"))


def test_tensorflow_is_never_imported(tmp_path: pathlib.Path) -> None:
    code = f"""
import pathlib, sys
import numpy as np
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
from test_builder import make_manifest, prepare
prepare(make_manifest(), pathlib.Path({str(tmp_path)!r}))["note"].read(np.arange(5))
import grain
assert "tensorflow_datasets" in sys.modules
print([name for name in sys.modules if name.split(".")[0] == "tensorflow"])
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
