"""Prepared data: any manifest as array_record shards, written once by a TFDS builder and read by row number.

The shards hold the raw columns of `manifest.decode`, so that one preparation serves every split, seed and option.
`tfds.core.ShardBasedBuilder` is used and not `GeneratorBasedBuilder`: it keeps the rows in the manifest's order, and it
streams, whereas the latter shuffles on disk and reaches for TensorFlow as soon as the records exceed 1 GB.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import math
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from remind_jax.data import manifest as manifest_lib
from remind_jax.errors import UserError

_NAME, _SPLIT = "manifest", "samples"  # TFDS reserves the split name "all"
_VERSION = "1.0.0"  # of what the shards hold; raise it whenever `decode` or the features change
_BLOCK = 1024  # rows decoded or read at a time, fewer where pixels are many
_BLOCK_BYTES = 64 * 2**20  # of pixels in such a block
_SHARD_BYTES = 64 * 2**20  # TFDS keeps the rows of the shard being written in memory


@dataclasses.dataclass(frozen=True)
class Column:
    """One raw column: its name in `decode`, the shape of one row's value, and its numpy dtype (`object` is str)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Prepared rows of one manifest; record i is row i of the manifest.

    Attributes:
      folder: where the shards lie.
      columns: the raw columns, in the order of the records' features.
      records: random access to the serialized rows.
    """

    folder: pathlib.Path
    columns: tuple[Column, ...]
    records: Any

    def __len__(self) -> int:
        return len(self.records)


def prepare(
    manifest: manifest_lib.Manifest,
    cache_dir: pathlib.Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Source:
    """Writes the manifest's rows as shards, unless the cache has them, and opens them.

    The shards lie in `<cache_dir>/<start of the manifest's digest>-<version>/`. They are written to a temporary folder
    that is renamed when it is complete, so a preparation that is killed leaves nothing that could be taken for data; of
    two processes that prepare at once the second waits for the first.

    Args:
      manifest: the data; must have at least one row.
      cache_dir: made when it does not exist. The folder of a manifest is readable by its owner only.
      progress: called with the number of rows written so far and the number of all rows.

    Returns:
      The open source.

    Raises:
      UserError: the cache cannot be written, is full, or holds a damaged folder; or the manifest has no rows.
    """
    rows = manifest.table.height
    if rows == 0:
        raise UserError("the manifest has no rows, so there is nothing to prepare")
    cache_dir = pathlib.Path(cache_dir)
    folder = cache_dir / f"{manifest.digest[:16]}-{_VERSION}"
    if not folder.exists():
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with lock(cache_dir / f"{folder.name}.lock") as alone:
                if alone:
                    remove_leftovers(cache_dir, folder.name)
                if not folder.exists():
                    _write(manifest, folder, progress)
        except (OSError, RuntimeError) as error:
            if not _concerns(error, cache_dir, manifest.root):
                raise
            reason = error.strerror if isinstance(error, OSError) else str(error).partition(";")[0]
            raise UserError(
                f"cannot write prepared data to the cache folder {cache_dir} ({reason}): "
                "choose a folder that can be written and has space"
            ) from error
    return _open(folder, rows)


def read(source: Source, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Reads rows in bulk.

    Args:
      source: as `prepare` gives it.
      positions: int [b], row numbers of the manifest in any order, repeats allowed.

    Returns:
      The raw columns of `manifest.decode` for these rows, in this order: [b, ...] each.

    Raises:
      UserError: a shard is damaged.
    """
    positions = np.asarray(positions, dtype=np.int64)
    try:
        examples = _examples(source, positions)
        columns = {
            column.name: _stack(examples, f"c{j}", column, len(positions)) for j, column in enumerate(source.columns)
        }
    except Exception as error:  # array_record and protobuf have no common one
        raise _damaged(source.folder) from error
    if not np.array_equal(columns.get("row"), positions):
        raise _damaged(source.folder)
    return columns


@contextlib.contextmanager
def lock(path: pathlib.Path) -> Iterator[bool]:
    """Waits for the lock; yields whether it is held (some network file systems have none). Ends with the process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True


def remove_leftovers(cache_dir: pathlib.Path, name: str) -> None:
    """Removes what a killed preparation left; only its lock's holder may call this."""
    for leftover in cache_dir.glob(f"{name}.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(manifest: manifest_lib.Manifest, folder: pathlib.Path, progress: Callable[[int, int], None] | None) -> None:
    """Writes everything to a temporary folder beside `folder` and renames it."""
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        block = _block(modality.shape for modality in manifest.schema.modalities)
        first = manifest_lib.decode(manifest, np.arange(min(block, manifest.table.height)))
        columns = tuple(Column(name, value.shape[1:], value.dtype.name) for name, value in first.items())
        shards = _shards(manifest.table.height, first)
        del first
        builder = _builder_class()(temporary, manifest, columns, shards, block, progress)
        builder.download_and_prepare(file_format="array_record", download_dir=temporary / "downloads")
        shutil.rmtree(temporary / "downloads", ignore_errors=True)
        described = [dataclasses.asdict(column) for column in columns]
        (temporary / "columns.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: pathlib.Path, folder: pathlib.Path) -> None:
    """Renames, and is content when another process was first (possible only where locks do not work)."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _shards(rows: int, sample: dict[str, np.ndarray]) -> list[range]:
    """Cuts the rows into consecutive ranges of about `_SHARD_BYTES` each, judged by the first rows."""
    size = 0
    for value in sample.values():
        size += sum(len(cell.encode()) for cell in value.flat) if value.dtype == object else value.nbytes
    total = size * rows // len(sample["row"])
    step = -(-rows // (1 + total // _SHARD_BYTES))
    return [range(start, min(start + step, rows)) for start in range(0, rows, step)]


def _block(shapes: Iterable[tuple[int, ...]]) -> int:
    """How many rows to hold at a time, given the shapes of their pixels; () stands for none."""
    pixels = sum(math.prod(shape) for shape in shapes if shape)
    return max(1, min(_BLOCK, _BLOCK_BYTES // max(1, pixels)))


@functools.cache
def _builder_class() -> type:
    """The TFDS builder; made on first use because importing TFDS takes most of a second."""
    import tensorflow_datasets as tfds

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Asks no bucket: the data of a manifest are on this machine only."""

    class ManifestShards(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Raw columns of a manifest; one split, rows in the manifest's order."""

        name = _NAME
        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, folder, manifest, columns, shards, block, progress):
            self._manifest, self._columns, self._shards = manifest, columns, shards
            self._block, self._progress = block, progress
            super().__init__(data_dir=folder)

        def _info(self):
            features = {f"c{j}": _feature(column) for j, column in enumerate(self._columns)}
            return Info(builder=self, features=tfds.features.FeaturesDict(features))

        def _shard_iterators_per_split(self, dl_manager):
            del dl_manager  # nothing is downloaded
            return {_SPLIT: [functools.partial(self._generate, shard) for shard in self._shards]}

        def _generate(self, shard):
            for start in range(shard.start, shard.stop, self._block):
                stop = min(start + self._block, shard.stop)
                block = manifest_lib.decode(self._manifest, np.arange(start, stop))
                for i in range(stop - start):
                    yield start + i, {f"c{j}": block[column.name][i] for j, column in enumerate(self._columns)}
                if self._progress is not None:
                    self._progress(stop, self._manifest.table.height)

        def _log_download_bytes(self):
            """Says nothing; the caller has `progress`."""

        _log_download_done = _log_download_bytes

    return ManifestShards


def _feature(column: Column) -> Any:
    """Numbers as one string of bytes, which serializes many times faster than a list of floats; strings as they are."""
    import tensorflow_datasets as tfds

    if column.dtype == "object":
        return tfds.features.Tensor(shape=column.shape, dtype=np.str_)
    return tfds.features.Tensor(shape=column.shape, dtype=np.dtype(column.dtype), encoding="bytes")


def _open(folder: pathlib.Path, rows: int) -> Source:
    """Opens a complete folder and checks that it holds all rows."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import decode as tfds_decode

    try:
        described = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
        columns = tuple(Column(c["name"], tuple(c["shape"]), c["dtype"]) for c in described)
        builder = tfds.builder_from_directory(folder / _NAME / _VERSION)
        raw = tfds_decode.DeserializeMethod.RAW_BYTES  # `read` parses whole blocks, 4 times faster than TFDS row by row
        source = Source(folder, columns, builder.as_data_source(_SPLIT, deserialize_method=raw))
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
    """The feature maps of the rows, [b]."""
    from tensorflow_datasets.proto import tf_example_pb2

    examples: list[Any] = []
    block = _block(column.shape for column in source.columns if column.dtype == "uint8")
    for start in range(0, len(positions), block):
        records: Sequence[bytes] = source.records.__getitems__(positions[start : start + block].tolist())
        examples += [tf_example_pb2.Example.FromString(record).features.feature for record in records]
    return examples


def _stack(examples: list[Any], key: str, column: Column, rows: int) -> np.ndarray:
    """One column of parsed rows, [b, ...]; strings come back as str, numbers as a writable array."""
    if column.dtype != "object":
        joined = bytearray().join(example[key].bytes_list.value[0] for example in examples)
        return np.frombuffer(joined, dtype=column.dtype).reshape(rows, *column.shape)
    cells = np.empty((rows, *column.shape), dtype=object)
    cells.flat = [cell.decode() for example in examples for cell in example[key].bytes_list.value]
    return cells


def _concerns(error: OSError | RuntimeError, cache_dir: pathlib.Path, root: pathlib.Path | None) -> bool:
    """Whether the cache is at fault, and not a file of the manifest below `root`."""
    if isinstance(error, RuntimeError):  # array_record's, for example when the disk is full
        return str(cache_dir) in str(error)
    if error.filename is None or root is None:
        return True
    path = pathlib.Path(error.filename)
    return cache_dir in (path, *path.parents) or root not in path.parents


def _damaged(folder: pathlib.Path) -> UserError:
    return UserError(f"the prepared data in {folder} are damaged: delete this folder and run the same command again")
