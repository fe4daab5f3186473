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
import itertools
import json
import math
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from remind_jax.data import manifest as manifest_lib
from remind_jax.errors import UserError
from remind_jax.runtime import claims, files

_NAME, _SPLIT = "manifest", "samples"  # TFDS reserves the split name "all"
_VERSION = "1.0.0"  # of what the shards hold; raise it whenever `decode` or the features change
_BLOCK = 1024  # rows decoded or read at a time, fewer where pixels are many
_BLOCK_BYTES = 64 * 2**20  # of pixels in such a block
_POLL = 0.1  # seconds between two looks at what others do
_PLAN = "plan.json"  # what a helper must know
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
    that is renamed when it is complete, so a preparation that is killed leaves nothing that could be taken for data. Of
    several processes that prepare the same at once, on any machines that share the cache, one leads and the others
    write shards for it.

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
            with lock(cache_dir / f"{folder.name}.lock", lambda: _help(manifest, folder)) as alone:
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
def lock(path: pathlib.Path, meanwhile: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Waits for a lock, which ends with its process.

    Args:
      path: of its file.
      meanwhile: what to do as long as another process has it; returns whether there was anything to do.

    Yields:
      Whether it is held; some network file systems have no locks.
    """
    with path.open("w") as file:
        held = None
        while held is None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except BlockingIOError:
                if not meanwhile():
                    time.sleep(_POLL)
            except OSError:
                held = False
        yield held


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
        described = [dataclasses.asdict(column) for column in columns]
        with _Shards(temporary / "together", manifest, columns, shards, block) as together:
            files.write_text(
                together.folder / _PLAN, json.dumps([described, [[x.start, x.stop] for x in shards], block])
            )
            builder = _builder_class()(temporary, together, progress)
            builder.download_and_prepare(file_format="array_record", download_dir=temporary / "downloads")
        for rest in ("downloads", "together"):
            shutil.rmtree(temporary / rest, ignore_errors=True)
        (temporary / "columns.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
        _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---- Several processes ----------------------------------------------------------------------------------------------


class _Shards(claims.Claims):
    """The shards of a preparation; each is written by whoever takes it first."""

    def __init__(
        self,
        folder: pathlib.Path,
        manifest: manifest_lib.Manifest,
        columns: tuple[Column, ...],
        shards: list[range],
        block: int,
        make: bool = True,
    ):
        super().__init__(folder, make=make)
        self.folder, self.manifest, self.columns, self.shards, self.block = folder, manifest, columns, shards, block
        self.by_helpers: set[int] = set()

    def ready(self, number: int) -> pathlib.Path:
        """Where a helper puts a shard that is whole."""
        return self.folder / f"ready-{number}"

    def placed(self, number: int) -> pathlib.Path:
        """There when the leader has put a shard in its place."""
        return self.folder / f"placed-{number}"

    @contextlib.contextmanager
    def own(self, number: int) -> Iterator[bool]:
        """Takes a shard, or waits for the helper who has it; yields whether it is to be written."""
        while True:
            with self.taken(f"shard{number}") as mine:
                if mine or self.ready(number).exists():
                    yield not self.ready(number).exists()
                    return
            time.sleep(_POLL)

    def blocks(self, number: int) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        """The rows of a shard as TFDS wants them, some at a time."""
        shard = self.shards[number]
        for start in range(shard.start, shard.stop, self.block):
            rows = np.arange(start, min(start + self.block, shard.stop))
            raw = manifest_lib.decode(self.manifest, rows)
            names = [(f"c{j}", column.name) for j, column in enumerate(self.columns)]
            yield [(int(row), {key: raw[name][i] for key, name in names}) for i, row in enumerate(rows)]


def _help(manifest: manifest_lib.Manifest, folder: pathlib.Path) -> bool:
    """Writes shards for the process that leads; whether there were any left."""
    plans = list(folder.parent.glob(f"{folder.name}.tmp-*/together/{_PLAN}"))
    if len(plans) != 1:
        return False
    wrote = False
    # Its folder goes away under the helper when the leader ends; a row that cannot be read is for the leader to say.
    with contextlib.suppress(OSError, RuntimeError, UserError):
        described, ranges, block = json.loads(plans[0].read_text(encoding="utf-8"))
        columns = tuple(Column(c["name"], tuple(c["shape"]), c["dtype"]) for c in described)
        shards = [range(*ends) for ends in ranges]
        with _Shards(plans[0].parent, manifest, columns, shards, block, make=False) as together:
            for number in reversed(range(len(shards))):  # the leader begins at the front
                with together.taken(f"shard{number}") as mine:
                    if mine and not together.ready(number).exists() and not together.placed(number).exists():
                        _write_shard(together, number)
                        wrote = True
    return wrote


def _write_shard(together: _Shards, number: int) -> None:
    """Writes a shard as TFDS does, and gives it its name when it is whole."""
    from tensorflow_datasets.core import example_serializer, file_adapters, writer

    features = _features(together.columns)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    example_writer = writer.ExampleWriter(file_adapters.FileFormat.ARRAY_RECORD)
    part = together.folder / f"part-{number}-{uuid.uuid4().hex}"
    examples = itertools.chain.from_iterable(together.blocks(number))
    writer.ShardWriter(features, serializer, example_writer).write(examples, part)
    part.rename(together.ready(number))


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
    from tensorflow_datasets.core import writer

    class Info(tfds.core.DatasetInfo):
        def initialize_from_bucket(self) -> None:
            """Asks no bucket: the data of a manifest are on this machine only."""

    class Writer(writer.ExampleWriter):
        """Writes the shards that no helper has written, in their order."""

        def __init__(self, together, file_format):
            super().__init__(file_format)
            self._together, self._numbers = together, itertools.count()

        def write(self, path, examples):
            number = next(self._numbers)
            with self._together.own(number) as mine:
                if mine:
                    super().write(path, examples)
                else:
                    self._together.by_helpers.add(number)
                    self._together.ready(number).rename(path)
                self._together.placed(number).touch()

    class ManifestShards(tfds.core.ShardBasedBuilder, skip_registration=True):
        """Raw columns of a manifest; one split, rows in the manifest's order."""

        name = _NAME
        VERSION = tfds.core.Version(_VERSION)

        def __init__(self, folder, together, progress):
            self._together, self._progress = together, progress
            super().__init__(data_dir=folder)

        def _info(self):
            return Info(builder=self, features=_features(self._together.columns))

        def _shard_iterators_per_split(self, dl_manager):
            del dl_manager  # nothing is downloaded
            return {_SPLIT: [functools.partial(self._generate, i) for i in range(len(self._together.shards))]}

        def _generate(self, number):
            if number in self._together.by_helpers:  # TFDS only counts them
                blocks = iter([[(row, {}) for row in self._together.shards[number]]])
            else:
                blocks = self._together.blocks(number)
            for block in blocks:
                yield from block
                if self._progress is not None:
                    self._progress(block[-1][0] + 1, self._together.manifest.table.height)

        def _example_writer(self):
            return Writer(self._together, self.info.file_format)

        def _log_download_bytes(self):
            """Says nothing; the caller has `progress`."""

        _log_download_done = _log_download_bytes

    return ManifestShards


def _features(columns: tuple[Column, ...]) -> Any:
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict({f"c{j}": _feature(column) for j, column in enumerate(columns)})


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
