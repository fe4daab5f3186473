"""Prepared data: what a model receives of each modality, made once, and read by row number.

A file holds the encoded rows of one modality, of the samples that have it, one behind the other: ids of tokens,
features, pixels of the size in use. A batch takes its rows out of it and has nothing left to decode. TFDS describes and
reads what is known of them: of each block the numbers of its rows and their check sums, one array_record shard a block,
written when the block's rows are. The shards are written here and not by a `GeneratorBasedBuilder`, which shuffles on
disk, knows no other place for values and reaches for TensorFlow as soon as the records exceed 1 GB.
"""

import concurrent.futures
import contextlib
import errno
import functools
import math
import os
import pathlib
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from remind_jax.data import files as data_files
from remind_jax.data import manifest as manifest_lib
from remind_jax.data.preprocess import Preprocessor, Reader, blocks
from remind_jax.data.schema import InputSpec
from remind_jax.errors import UserError
from remind_jax.runtime import files, progress

_NAME, _SPLIT = "modality", "blocks"  # TFDS reserves the split name "all"
_SHARD = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # names of files, as TFDS writes them down
_VERSION = "2.0.0"  # of what the files hold; raise it whenever `decode`, encoding or the records change
_VALUES = "values"  # the file of the rows
Check = Callable[[np.ndarray], None]  # raises UserError when what rows were read from is not what it was


class Column:
    """The prepared rows of one modality of a manifest; threads may share it."""

    def __init__(self, folder: pathlib.Path, spec: InputSpec, places: np.ndarray, sums: np.ndarray, share: files.Share):
        """Takes the place of each row of the manifest, int [n], -1 where it is missing, and check sums by place."""
        self.folder, self._spec, self._places, self._sums, self._share = folder, spec, places, sums, share
        self._is_sound = np.zeros(len(sums), bool)  # of rows that this process has read before
        self._file = os.open(folder / _VALUES, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns the modality of some rows of the manifest, int [n], in any order, repeats allowed: [n, *spec.shape].

        It is zero in rows that lack it. Raises UserError: the file was cut, cannot be read any more, or holds another
        row than was written, which is looked at when this process first reads one.
        """
        values = np.zeros((len(rows), *self._spec.shape), self._spec.dtype)
        places = self._places[rows]
        for i in np.flatnonzero(places >= 0).tolist():
            self._read_into(values[i], int(places[i]))
        return values

    def _read_into(self, value: np.ndarray, place: int) -> None:
        """Not by mapping the file: a disk that fails would end the process by a signal."""
        try:
            count = os.preadv(self._file, [value], place * value.nbytes)
        except OSError as error:
            raise _damaged(self.folder) from error
        # Summing takes longer than reading what the system has in memory, so each row is summed once.
        if count != value.nbytes or not (self._is_sound[place] or zlib.crc32(value) == self._sums[place]):
            raise _damaged(self.folder)
        self._is_sound[place] = True


def prepare(
    manifest: manifest_lib.Manifest,
    preprocessor: Preprocessor,
    cache_dir: pathlib.Path,
    *,
    bar: progress.Silent | None = None,
) -> dict[str, Column]:
    """Writes what models receive of each modality, unless the cache has it, and opens it; by name, in declared order.

    A modality lies in `<cache_dir>/<start of the manifest's digest>-<digest of what was fitted>-<version>/`: other
    seeds, tokenizers, sizes and windows have folders of their own, and share those of modalities that are the same. It
    is written to a temporary folder that is renamed when it is complete, so a preparation that is killed leaves nothing
    that could be taken for data. Of several processes that prepare the same at once, on any machines that share the
    cache, one writes and the others wait for it; when it dies the next one keeps its whole blocks and makes the rest,
    where the cache has locks. The folder is readable by its owner only.

    The bar counts the inputs written, of all inputs, and says when another process is waited for.

    Raises UserError: the cache cannot be written, is full, or holds a damaged folder; or the manifest has no rows.
    """
    if manifest.table.height == 0:
        raise UserError("the manifest has no rows, so there is nothing to prepare")
    columns, bar = {}, bar or progress.Silent()
    done, total = 0, int(manifest.presence.sum())
    for j, name in enumerate(preprocessor.fitted):
        rows = np.flatnonzero(manifest.presence[:, j])
        columns[name] = _prepare(manifest, preprocessor, name, rows, pathlib.Path(cache_dir), _Part(bar, done, total))
        done += len(rows)
    return columns


class _Part:
    """A bar's part for one modality: what came before it, and what there is in all."""

    def __init__(self, bar: progress.Silent, before: int, total: int):
        self.bar, self._done, self._total = bar, before, total

    def count(self, more: int) -> None:
        self._done += more
        self.bar.count(self._done, self._total)


def _prepare(
    manifest: manifest_lib.Manifest,
    preprocessor: Preprocessor,
    name: str,
    rows: np.ndarray,
    cache_dir: pathlib.Path,
    part: _Part,
) -> Column:
    """Writes one modality, of the rows that have it, int [k], unless it is there, and opens it."""
    fitted = preprocessor.fitted[name]
    key = files.config_digest({"name": name, "kind": fitted.spec.kind, "fitted": fitted.to_dict()})
    folder = cache_dir / f"{manifest.digest[:16]}-{key}-{_VERSION}"
    if not folder.exists():
        with _disk_errors(cache_dir, manifest.root):
            files.make_folder(cache_dir, private=True)
            with files.lock(cache_dir / f"{folder.name}.lock", busy=_waiting(part.bar)) as lock:
                if lock.held:
                    files.remove_unfinished(folder)
                if not folder.exists():
                    check = functools.partial(_check_files, manifest, name)
                    _write(folder, rows, fitted.spec, preprocessor.readers(manifest)[name], check, part, lock.held)
    places = np.full(manifest.table.height, -1, np.int32)
    places[rows] = np.arange(len(rows))
    return _open(folder, rows, fitted.spec, places, files.Share(cache_dir / f"{folder.name}.lock"))


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


def _waiting(bar: progress.Silent) -> Callable[[], None]:
    """Makes what a process shows as long as another one writes."""
    said: list[str] = []

    def show() -> None:
        if not said:
            said.append("another process prepares these data: waiting for it")
            bar.say(said[0])
        bar.advance(0, "waiting for another process")

    return show


def _check_files(manifest: manifest_lib.Manifest, name: str, rows: np.ndarray) -> None:
    """Refuses files that have changed since their digests were taken, under which their rows would be found again."""
    paths = [each.columns[0] for each in manifest.schema.modalities if each.name == name and each.stored == "file"]
    for column in paths:
        for cell in manifest.table[column].gather(rows).unique().to_list():
            known = manifest.files.get(cell)
            if known and data_files.load(manifest.root, cell, data_files.record) != known:
                raise UserError(f"a file of column {column!r} has changed meanwhile: give the same command again")


def _write(
    folder: pathlib.Path, rows: np.ndarray, spec: InputSpec, read: Reader, check: Check, part: _Part, resume: bool
) -> None:
    """Writes rows block by block into a folder that appears when it is complete.

    Kinds decode and encode a block on all cores; what has been read is checked, summed and written meanwhile. The
    main thread reads, so that a signal need not wait for a block. With `resume` it keeps the whole blocks of a writer
    that was killed or stopped.
    """
    with _content_if_there(), files.whole_folder(folder, private=True, resume=resume) as temporary:
        writer = _Writer(temporary, rows, spec, check)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            written = pool.submit(int)
            for number, block in enumerate(writer.blocks):
                if not writer.keeps(number):
                    values = read(block)
                    written.result()
                    written = pool.submit(writer.write, number, values)
                part.count(len(block))
            written.result()
        writer.close()


class _Writer:
    """Writes the rows of one modality, and array_record shards of one record a block as TFDS reads them.

    The same rows are the same bytes in every process, which TFDS's own writer does not promise.
    """

    def __init__(self, folder: pathlib.Path, rows: np.ndarray, spec: InputSpec, check: Check):
        import tensorflow_datasets as tfds

        self.blocks, size = blocks(rows, spec), math.prod(spec.shape) * spec.dtype.itemsize
        self._starts = np.cumsum([0, *map(len, self.blocks)]) * size  # of the blocks among the values, in bytes
        self._bytes = [0] * len(self.blocks)  # of the records
        self._values, self._place, self._spec, self._check = folder / _VALUES, folder / _NAME / _VERSION, spec, check
        self._place.mkdir(parents=True, exist_ok=True)
        files.write_at(self._values, 0, b"")  # a modality may have no rows
        version = tfds.core.Version(_VERSION)
        identity = tfds.core.DatasetIdentity(_NAME, version, data_dir=str(self._place), module_name=__name__)
        self._features = tfds.features.FeaturesDict(
            {name: tfds.features.Tensor(shape=(None,), dtype=np.int64) for name in ("row", "crc32")}
        )
        self._info = tfds.core.DatasetInfo(builder=identity, features=self._features)
        self._serializer = tfds.core.ExampleSerializer(self._features.get_serialized_info())
        for file in sorted(self._place.glob("*.array_record-*"))[len(self.blocks) :]:  # of a writer with more blocks
            file.unlink()

    def keeps(self, number: int) -> bool:
        """Tells whether all rows of a block are there, and not cut or another one's."""
        stored, shape = _records(self._shard(number)), (len(self.blocks[number]), *self._spec.shape)
        if len(stored) != 1 or self._values.stat().st_size < self._starts[number + 1]:
            return False
        values = np.fromfile(self._values, self._spec.dtype, math.prod(shape), offset=self._starts[number])
        self._bytes[number] = len(stored[0])
        return stored[0] == self._record(number, values.reshape(shape))

    def write(self, number: int, values: np.ndarray) -> None:
        """Writes a block, and then its record, which says that it is there."""
        from array_record.python import array_record_module

        rows = self.blocks[number]
        if (values.shape, values.dtype) != ((len(rows), *self._spec.shape), self._spec.dtype):
            raise TypeError("rows are not of the shape and type that were fitted")
        self._check(rows)
        files.write_at(self._values, self._starts[number], values.tobytes())
        record, file = self._record(number, np.ascontiguousarray(values)), str(self._shard(number))
        with contextlib.closing(array_record_module.ArrayRecordWriter(file, "group_size:1")) as shard:
            shard.write(record)
        self._bytes[number] = len(record)

    def _record(self, number: int, values: np.ndarray) -> bytes:
        example = {"row": self.blocks[number], "crc32": np.array([zlib.crc32(value) for value in values], np.int64)}
        found = self._serializer.get_tf_example(self._features.encode_example(example))
        return found.SerializeToString(deterministic=True)

    def _shard(self, number: int) -> pathlib.Path:
        return self._place / f"{_NAME}-{_SPLIT}.array_record-{number:05}"

    def close(self) -> None:
        """Writes what TFDS must know of the shards."""
        import tensorflow_datasets as tfds

        self._info.set_file_format("array_record")
        template = tfds.core.ShardedFileTemplate(self._place, _SHARD, _NAME, _SPLIT, "array_record")
        split = tfds.core.SplitInfo(_SPLIT, [1] * len(self.blocks), sum(self._bytes), template)
        self._info.set_splits(tfds.core.SplitDict([split]))
        self._info.write_to_directory(self._place)


def _records(file: pathlib.Path) -> list[bytes]:
    """Reads all records of a shard; none of one that is not there or was cut, as its end says where they are."""
    from array_record.python import array_record_module

    try:
        with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
            return reader.read_all()
    except Exception:  # array_record has none of its own
        return []


def _open(folder: pathlib.Path, rows: np.ndarray, spec: InputSpec, places: np.ndarray, share: files.Share) -> Column:
    """Opens a complete folder and checks that it holds the rows, int [k]."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder / _NAME / _VERSION)
        records = list(builder.as_data_source(_SPLIT))
        found, sums = (np.concatenate([record[key] for record in records]) for key in ("row", "crc32"))
        size = len(rows) * math.prod(spec.shape) * spec.dtype.itemsize
        if np.array_equal(found, rows) and (folder / _VALUES).stat().st_size == size:
            return Column(folder, spec, places, sums.astype(np.uint32), share)
    except PermissionError as error:
        raise UserError(f"cannot read the prepared data in {folder}: choose a cache folder of your own") from error
    except Exception as error:  # the readers of TFDS, protobuf and array_record have no common one
        raise _damaged(folder) from error
    raise _damaged(folder)


@contextlib.contextmanager
def _content_if_there() -> Iterator[None]:
    """Is content when another process has made the folder first, which is possible only where locks do not work."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


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
