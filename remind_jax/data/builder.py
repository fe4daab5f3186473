"""Prepared data: any manifest as array_record shards, written once and read by row number.

The shards hold the raw columns of `manifest.decode`, so that one preparation serves every split, seed and option.
TFDS describes and reads them. They are written here and not by a `GeneratorBasedBuilder`: rows keep the manifest's
order and stream, whereas that one shuffles on disk and reaches for TensorFlow as soon as the records exceed 1 GB.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from remind_jax.data import files as data_files
from remind_jax.data import manifest as manifest_lib
from remind_jax.errors import UserError
from remind_jax.runtime import files, progress

_NAME, _SPLIT = "manifest", "samples"  # TFDS reserves the split name "all"
_SHARD = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # names of files, as TFDS writes them down
_VERSION = "1.0.0"  # of what the shards hold; raise it whenever `decode` or the features change
_BLOCK = 1024  # rows decoded or read at a time, fewer where pixels are many
_BLOCK_BYTES = 64 * 2**20  # of pixels in such a block
_SHARD_BYTES = 64 * 2**20  # about what a shard holds


@dataclasses.dataclass(frozen=True)
class Column:
    """One raw column: its name in `decode`, the shape of one row's value, and its numpy dtype (`object` is str)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Prepared rows of one manifest; record i is row i of the manifest."""

    folder: pathlib.Path  # where the shards lie
    columns: tuple[Column, ...]  # the raw columns, in the order of the records' features
    records: Any  # random access to the serialized rows
    share: files.Share  # keeps `forget` from them

    def __len__(self) -> int:
        return len(self.records)


def prepare(manifest: manifest_lib.Manifest, cache_dir: pathlib.Path, *, bar: progress.Silent | None = None) -> Source:
    """Writes the manifest's rows as shards, unless the cache has them, and opens them.

    The shards lie in `<cache_dir>/<start of the manifest's digest>-<version>/`. They are written to a temporary folder
    that is renamed when it is complete, so a preparation that is killed leaves nothing that could be taken for data. Of
    several processes that prepare the same at once, on any machines that share the cache, one writes and the others
    wait for it; when it dies the next one keeps its whole shards and makes the rest, where the cache has locks. The
    folder is readable by its owner only.

    The bar counts the rows written, of all rows, and says when another process is waited for.

    Raises UserError: the cache cannot be written, is full, or holds a damaged folder; or the manifest has no rows.
    """
    rows, bar = manifest.table.height, bar or progress.Silent()
    if rows == 0:
        raise UserError("the manifest has no rows, so there is nothing to prepare")
    cache_dir = pathlib.Path(cache_dir)
    folder = cache_dir / f"{manifest.digest[:16]}-{_VERSION}"
    if not folder.exists():
        with _disk_errors(cache_dir, manifest.root):
            files.make_folder(cache_dir, private=True)
            with files.lock(cache_dir / f"{folder.name}.lock", busy=_waiting(bar)) as lock:
                if lock.held:
                    files.remove_unfinished(folder)
                if not folder.exists():
                    _write(manifest, folder, bar, resume=lock.held)
    return _open(folder, rows, files.Share(cache_dir / f"{folder.name}.lock"))


def features_name(data: str, digest: str) -> str:
    """Names the folder of a cache for features with this digest, computed of data with the digest `data`."""
    return f"features-{data[:16]}-{digest[:16]}"


def forget(cache_dir: pathlib.Path, digest: str) -> None:
    """Removes what a cache holds of a manifest with this digest, rows and features, but for what is in use."""
    for lock in cache_dir.glob(f"{digest[:16]}-*.lock"):
        _remove_unused(lock.with_suffix(""), [lock])
    for folder in cache_dir.glob(features_name(digest, "*")):
        _remove_unused(folder, folder.glob("*.lock"))


def _remove_unused(folder: pathlib.Path, locks: Iterable[pathlib.Path]) -> None:
    with contextlib.ExitStack() as opened:
        held = [files.try_lock(opened.enter_context(os.fdopen(files.open_here(lock))).fileno()) for lock in locks]
        if all(held):
            files.remove_unfinished(folder)
            files.remove_folder(folder)


def read(source: Source, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Reads rows in bulk: what `manifest.decode` gives for `positions`, int [b], in any order, repeats allowed.

    Raises UserError: a shard is damaged.
    """
    positions, columns = np.asarray(positions, dtype=np.int64), {}
    try:
        examples = _examples(source, positions)
        for j, column in enumerate(source.columns):
            columns[column.name] = _stack(examples, f"c{j}", column, len(positions))
    except Exception as error:  # array_record and protobuf have no common one
        raise _damaged(source.folder) from error
    if not np.array_equal(columns.get("row"), positions):
        raise _damaged(source.folder)
    return columns


def _waiting(bar: progress.Silent) -> Callable[[], None]:
    """Makes what a process shows as long as another one writes."""
    said: list[str] = []

    def show() -> None:
        if not said:
            said.append("another process prepares these data: waiting for it")
            bar.say(said[0])
        bar.advance(0, "waiting for another process")

    return show


def _write(manifest: manifest_lib.Manifest, folder: pathlib.Path, bar: progress.Silent, resume: bool) -> None:
    """Writes the rows block by block into a folder that appears when it is complete.

    With `resume` it goes on after the whole shards of a writer that was killed or stopped.
    """
    rows, block = manifest.table.height, _block(modality.shape for modality in manifest.schema.modalities)
    first = manifest_lib.decode(manifest, np.arange(min(block, rows)))
    columns = tuple(Column(name, value.shape[1:], value.dtype.name) for name, value in first.items())
    shard_rows = _shard_rows(rows, first)
    del first
    with _content_if_there(), files.whole_folder(folder, private=True, resume=resume) as temporary:
        writer = _Writer(temporary / _NAME / _VERSION, columns, shard_rows, rows)
        for start in range(writer.rows, rows, block):
            stop = min(start + block, rows)
            raw = manifest_lib.decode(manifest, np.arange(start, stop))
            _check_files(manifest, start, stop)
            _add(writer, columns, raw, stop - start)
            bar.count(stop, rows)
        writer.close()
        described = [dataclasses.asdict(column) for column in columns]
        files.write_text(temporary / "columns.json", json.dumps(described, indent=1))


def _check_files(manifest: manifest_lib.Manifest, start: int, stop: int) -> None:
    """Refuses files that have changed since their digests were taken, under which their rows would be found again."""
    for column in (modality.columns[0] for modality in manifest.schema.modalities if modality.stored == "file"):
        for cell in manifest.table[column][start:stop].drop_nulls().unique().to_list():
            known = manifest.files.get(cell)
            if known and data_files.load(manifest.root, cell, data_files.record) != known:
                raise UserError(f"a file of column {column!r} has changed meanwhile: give the same command again")


class _Writer:
    """Writes array_record shards of so many rows each, as TFDS reads them, after the whole ones that are there.

    The same rows are the same bytes in every process, which TFDS's own writer does not promise. `rows` are written.
    """

    def __init__(self, place: pathlib.Path, columns: tuple[Column, ...], shard_rows: int, rows: int):
        import tensorflow_datasets as tfds

        version = tfds.core.Version(_VERSION)
        identity = tfds.core.DatasetIdentity(name=_NAME, version=version, data_dir=str(place), module_name=__name__)
        self._features = tfds.features.FeaturesDict({f"c{j}": _feature(column) for j, column in enumerate(columns)})
        self._info = tfds.core.DatasetInfo(builder=identity, features=self._features)
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())
        self._place, self._shard_rows, self._shard = place, shard_rows, None
        place.mkdir(parents=True, exist_ok=True)
        self._lengths, self._num_bytes = _whole_shards(place, shard_rows, rows)

    @property
    def rows(self) -> int:
        return sum(self._lengths)

    def add(self, example: dict[str, Any]) -> None:
        from array_record.python import array_record_module

        record = self._serializer.get_tf_example(self._features.encode_example(example))
        record = record.SerializeToString(deterministic=True)
        if self._shard is None:
            file = _shard_file(self._place, len(self._lengths))
            self._shard = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
            self._lengths.append(0)
        self._shard.write(record)
        self._lengths[-1] += 1
        self._num_bytes += len(record)
        if self._lengths[-1] == self._shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None

    def close(self) -> None:
        """Writes what TFDS must know of the shards."""
        import tensorflow_datasets as tfds

        self._close_shard()
        self._info.set_file_format("array_record")
        template = tfds.core.ShardedFileTemplate(self._place, _SHARD, _NAME, _SPLIT, "array_record")
        split = tfds.core.SplitInfo(_SPLIT, self._lengths, self._num_bytes, template)
        self._info.set_splits(tfds.core.SplitDict([split]))
        self._info.write_to_directory(self._place)


def _shard_file(place: pathlib.Path, number: int) -> pathlib.Path:
    return place / f"{_NAME}-{_SPLIT}.array_record-{number:05}"


def _whole_shards(place: pathlib.Path, shard_rows: int, rows: int) -> tuple[list[int], int]:
    """Finds the first shards that hold all their rows, and removes the others; returns their lengths and bytes."""
    lengths, num_bytes = [], 0
    for number in range(-(-rows // shard_rows)):
        records = _records(_shard_file(place, number))
        if len(records) != min(shard_rows, rows - sum(lengths)):
            break
        lengths.append(len(records))
        num_bytes += sum(map(len, records))
    for file in sorted(place.glob("*.array_record-*"))[len(lengths) :]:
        file.unlink()
    return lengths, num_bytes


def _records(file: pathlib.Path) -> list[bytes]:
    """Reads all records of a shard; none of one that is not there or was cut, as its end says where they are."""
    from array_record.python import array_record_module

    try:
        with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
            return reader.read_all()
    except Exception:  # array_record has none of its own
        return []


def _add(writer: _Writer, columns: tuple[Column, ...], raw: dict[str, np.ndarray], rows: int) -> None:
    """Adds rows to the shards. A row that TFDS cannot encode is in the text of its error, which is kept back."""
    for i in range(rows):
        try:
            writer.add({f"c{j}": raw[column.name][i] for j, column in enumerate(columns)})
        except (AttributeError, TypeError, ValueError):
            raise TypeError("a row is not of the shapes and types of the first ones") from None


@contextlib.contextmanager
def _content_if_there() -> Iterator[None]:
    """Is content when another process has made the folder first, which is possible only where locks do not work."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _shard_rows(rows: int, sample: dict[str, np.ndarray]) -> int:
    """Returns how many rows make a shard of about `_SHARD_BYTES`, judged by the first rows."""
    size = 0
    for value in sample.values():
        size += sum(len(cell.encode()) for cell in value.flat) if value.dtype == object else value.nbytes
    total = size * rows // len(sample["row"])
    return -(-rows // (1 + total // _SHARD_BYTES))


def _block(shapes: Iterable[tuple[int, ...]]) -> int:
    """Returns how many rows to hold at a time, given the shapes of their pixels; () stands for none."""
    pixels = sum(math.prod(shape) for shape in shapes if shape)
    return max(1, min(_BLOCK, _BLOCK_BYTES // max(1, pixels)))


def _feature(column: Column) -> Any:
    """Describes numbers as one string of bytes, many times faster than a list of floats, and strings as they are."""
    import tensorflow_datasets as tfds

    if column.dtype == "object":
        return tfds.features.Tensor(shape=column.shape, dtype=np.str_)
    return tfds.features.Tensor(shape=column.shape, dtype=np.dtype(column.dtype), encoding="bytes")


def _open(folder: pathlib.Path, rows: int, share: files.Share) -> Source:
    """Opens a complete folder and checks that it holds all rows."""
    import tensorflow_datasets as tfds

    try:
        described = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
        columns = tuple(Column(c["name"], tuple(c["shape"]), c["dtype"]) for c in described)
        builder = tfds.builder_from_directory(folder / _NAME / _VERSION)
        raw = tfds.decode.DeserializeMethod.RAW_BYTES  # `read` parses whole blocks, 4 times faster than TFDS row by row
        source = Source(folder, columns, builder.as_data_source(_SPLIT, deserialize_method=raw), share)
        if len(source) != rows:
            raise _damaged(folder)
        return source
    except PermissionError as error:
        raise UserError(f"cannot read the prepared data in {folder}: choose a cache folder of your own") from error
    except UserError:
        raise
    except Exception as error:  # the readers of TFDS, protobuf and array_record have no common one
        raise _damaged(folder) from error


def _examples(source: Source, positions: np.ndarray) -> list[Any]:
    """Parses the feature maps of the rows, [b]."""
    from tensorflow_datasets.proto import tf_example_pb2

    examples: list[Any] = []
    block = _block(column.shape for column in source.columns if column.dtype == "uint8")
    for start in range(0, len(positions), block):
        records: Sequence[bytes] = source.records.__getitems__(positions[start : start + block].tolist())
        examples += [tf_example_pb2.Example.FromString(record).features.feature for record in records]
    return examples


def _stack(examples: list[Any], key: str, column: Column, rows: int) -> np.ndarray:
    """Stacks one column of parsed rows, [b, ...]; strings come back as str, numbers as a writable array."""
    if column.dtype != "object":
        joined = bytearray().join(example[key].bytes_list.value[0] for example in examples)
        return np.frombuffer(joined, dtype=column.dtype).reshape(rows, *column.shape)
    cells = np.empty((rows, *column.shape), dtype=object)
    cells.flat = [cell.decode() for example in examples for cell in example[key].bytes_list.value]
    return cells


@contextlib.contextmanager
def _disk_errors(cache_dir: pathlib.Path, root: pathlib.Path | None) -> Iterator[None]:
    """Turns what the disk of the cache refuses into a UserError; others pass, also those of files below `root`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _concerns(error, cache_dir, root):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error).partition(";")[0]
        remedy = "choose a folder that can be written and has space"
        raise UserError(f"cannot write prepared data to the cache folder {cache_dir} ({reason}): {remedy}") from error


def _concerns(error: OSError | RuntimeError, cache_dir: pathlib.Path, root: pathlib.Path | None) -> bool:
    """Tells whether the cache is at fault, and not a file of the manifest below `root`."""
    if isinstance(error, RuntimeError):  # array_record's, for example when the disk is full
        return str(cache_dir) in str(error)
    if error.filename is None or root is None:
        return True
    path = pathlib.Path(error.filename)
    return cache_dir in (path, *path.parents) or root not in path.parents


def _damaged(folder: pathlib.Path) -> UserError:
    return UserError(f"the prepared data in {folder} are damaged: delete this folder and run the same command again")
