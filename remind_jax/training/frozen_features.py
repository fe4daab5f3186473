"""Features of frozen encoders, computed once over the data instead of at every step of stage 2.

That the same sample always gives the same features is what this rests on: the data path has no augmentation, batch
norms of frozen encoders use their running statistics, and their dropout is off. What follows a frozen trunk, a map into
the fusion width, is trained and runs at every step. A modality that a sample lacks takes no space.
"""

import contextlib
import hashlib
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.data import builder, pipeline
from remind_jax.data import dataset as datasets
from remind_jax.errors import UserError
from remind_jax.models.encoders import registry
from remind_jax.models.model import STORED, Params
from remind_jax.models.network import Network
from remind_jax.runtime import files, processes, progress
from remind_jax.training.stages import Stage

KINDS = ("auto", "off", "memory", "device", "disk")
DTYPES = {"bfloat16": np.dtype(jnp.bfloat16), "float32": np.dtype(np.float32)}
SPLITS = ("train", "tuning")
_VERSION = "1"
_PAYS_FROM = 2.0  # epochs of a stage: filling costs about one
_FREE = 0.5  # share of the free device memory that features may take

_WHERE = {"memory": "in memory", "device": "in device memory", "disk": "on disk"}

Say = Callable[[str], None]
Pieces = Iterator[tuple[str, np.ndarray]]


class _OnDevice(pipeline.Kept):
    """What is kept of a modality in device memory."""

    def take(self, positions: np.ndarray) -> jax.Array:
        return _gather(self.values, self.places[positions])


@jax.jit
def _gather(values: jax.Array, where: jax.Array) -> jax.Array:
    return values.at[where].get(mode="fill", fill_value=0)


class _Layout(NamedTuple):
    """What is kept of one modality of one split: its name in batches, the samples that have it [n], shape and type."""

    key: str
    present: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def rows(self) -> int:
        return max(1, int(self.present.sum()))  # a file cannot be mapped that is empty

    @property
    def nbytes(self) -> int:
        return self.rows * math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def stores_of(
    config: Any, network: Network, data: datasets.Dataset, stage: Stage, params: Params, bar: progress.Silent
) -> Iterator[Mapping[str, pipeline.Store]]:
    """Yields the stores that a stage reads: those of the data, or with the features of encoders that rest in it.

    The network is a single one; `params` are those at the start of the stage, in which resting encoders do not change.
    Raises UserError: the features cannot be written.
    """
    trunks = _trunks(config, stage, data)
    layouts = {split: _layouts(config, network, params, data, split, trunks) for split in SPLITS} if trunks else {}
    needed = sum(one.nbytes for split in layouts.values() for one in split.values())
    # Features are rounded: either all processes keep them or none.
    kind = processes.run_on_first(lambda: _kind(config, needed, bar.say))
    if kind == "off" or not layouts:
        yield data.stores
        return
    folder, stores = pathlib.Path(), {}
    if kind == "disk":
        name = builder.features_name(data.manifest.digest, _digest(config, params, data, trunks))
        folder = datasets.cache_folder(config.data.cache) / name
    for split, layout in layouts.items():

        def encode(split: str = split, layout: Mapping[str, _Layout] = layout) -> Pieces:
            size = sum(one.nbytes for one in layout.values()) / 2**20
            bar.say(f"Encoding the {split} rows once for stage {stage.name}: {size:,.1f} MiB {_WHERE[kind]}")
            return _encoded(config, network, params, data.stores[split], layout, bar)

        arrays = _from_disk(folder / split, layout, encode, bar.say) if kind == "disk" else _in_memory(layout, encode())
        arrays = jax.device_put(arrays) if kind == "device" else arrays
        keep = _OnDevice if kind == "device" else pipeline.Kept
        kept = {one.key: keep(arrays[name], pipeline.places(one.present)) for name, one in layout.items()}
        stores[split] = pipeline.MemoryStore(_columns(data, split), kept, encoded=trunks)
    yield {**data.stores, **stores}
    # Reached when the stage has ended. Trained encoders never come again as they were at its start.
    if kind == "disk" and stage.start > 0:
        processes.wait()  # for those that still read them
        shutil.rmtree(folder, ignore_errors=True)


def _trunks(config: Any, stage: Stage, data: datasets.Dataset) -> list[str]:
    """Names the modalities whose features are kept; none when that is not wanted or would not pay."""
    choice = config.train.feature_cache
    if choice == "off" or not stage.rests or config.ensemble > 1:
        return []
    epochs = (stage.stop - stage.start) * config.train.batch_size / max(1, len(data.stores["train"]))
    # By the length of the stage, not by what is left of it: a resumed run must see the same numbers.
    if choice == "auto" and epochs < _PAYS_FROM:
        return []
    return [name for name, spec in data.inputs.items() if registry.has_trunk(spec.encoder)]


def _layouts(
    config: Any, network: Network, params: Params, data: datasets.Dataset, split: str, trunks: list[str]
) -> dict[str, _Layout]:
    presence, layouts = data.manifest.presence[data.rows(split)], {}
    for i, (name, spec) in enumerate(data.inputs.items()):
        if name in trunks:
            example = jax.ShapeDtypeStruct((1, *spec.shape), spec.dtype)
            shape = jax.eval_shape(lambda p, x, name=name: network.features(p, name, x), params, example).shape[1:]
            layouts[name] = _Layout(STORED + name, presence[:, i], shape, DTYPES[config.train.feature_dtype])
        else:
            layouts[name] = _Layout(name, presence[:, i], spec.shape, spec.dtype)
    return layouts


def _kind(config: Any, needed: int, say: Say) -> str:
    """Chooses where `needed` bytes go."""
    choice = config.train.feature_cache
    if choice != "auto" or not needed:
        return choice
    devices = jax.local_devices()[: config.devices or None]
    alone = len(devices) == jax.process_count() == 1
    memory = devices[0].memory_stats() if alone and devices[0].platform != "cpu" else None
    if memory and needed <= _FREE * (memory["bytes_limit"] - memory["bytes_in_use"]):
        return "device"
    if needed <= config.data.memory_gib * 2**30:
        return "memory"
    if config.data.cache == datasets.UNPREPARED:
        return "off"
    cache = datasets.cache_folder(config.data.cache)
    files.make_folder(cache, private=True)
    if needed <= shutil.disk_usage(cache).free:
        return "disk"
    say(f"no space in {cache} for {needed / 2**30:.1f} GiB of features: encoders run at every step")
    return "off"


def _columns(data: datasets.Dataset, split: str) -> pipeline.Batch:
    """Returns the columns of a batch that are no modalities, for all rows."""
    rows = data.rows(split)
    presence = data.manifest.presence[rows]
    columns = {
        "present": presence,
        "group": data.groups.index(presence),
        "label": data.manifest.labels_of_batches[rows],
    }
    columns |= {} if data.manifest.weights is None else {"weight": data.manifest.weights[rows]}
    return columns | {"row": rows.astype(np.int32)}


def _encoded(
    config: Any,
    network: Network,
    params: Params,
    store: pipeline.Store,
    layout: Mapping[str, _Layout],
    bar: progress.Silent,
) -> Pieces:
    """Yields names of modalities with their next rows, of the samples that have them."""
    size = config.train.batch_size
    encode, weights = jax.jit(network.features, static_argnums=1), jax.device_put(params)
    waiting: dict[str, np.ndarray] = {}

    def run(name: str, inputs: np.ndarray) -> tuple[str, np.ndarray]:
        # Always as many rows, so that there is one program.
        padded = np.zeros((size, *inputs.shape[1:]), inputs.dtype)
        padded[: len(inputs)] = inputs
        return name, np.asarray(encode(weights, name, padded))[: len(inputs)]

    with bar.below(-(-len(store) // size), "encoding") as counted:
        for done, batch in enumerate(pipeline.eval_batches(store, size, threads=config.train.threads)):
            counted.advance(done)
            here = (batch["weight"] > 0)[:, None] & batch["present"]
            for i, (name, one) in enumerate(layout.items()):
                inputs = batch[name][here[:, i]]
                if one.key == name:
                    yield name, inputs
                    continue
                inputs = np.concatenate([waiting[name], inputs]) if name in waiting else inputs
                if len(inputs) >= size:
                    yield run(name, inputs[:size])
                    inputs = inputs[size:]
                waiting[name] = inputs
    for name, inputs in waiting.items():
        if len(inputs):
            yield run(name, inputs)


def _in_memory(layout: Mapping[str, _Layout], pieces: Pieces) -> dict[str, np.ndarray]:
    arrays = {name: np.zeros((one.rows, *one.shape), one.dtype) for name, one in layout.items()}
    _fill(arrays, pieces)
    return arrays


def _fill(arrays: Mapping[str, np.ndarray], pieces: Pieces) -> None:
    done = dict.fromkeys(arrays, 0)
    for name, rows in pieces:
        arrays[name][done[name] : done[name] + len(rows)] = rows
        done[name] += len(rows)


def _digest(config: Any, params: Params, data: datasets.Dataset, trunks: list[str]) -> str:
    """Digests everything that features depend on: data, splits, preprocessing, encoders, and how they are stored."""
    options = {key: value for key, value in config.model.items() if key != "encoder_dropout"}
    described = {
        "version": _VERSION,
        "data": data.manifest.digest,
        "preprocessor": data.preprocessor.to_dict(),
        "model": options,
        "dtype": config.train.feature_dtype,
    }
    sha = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for split in SPLITS:
        rows = data.rows(split)
        sha.update(rows.astype("<i8").tobytes())
        sha.update(np.packbits(data.manifest.presence[rows]).tobytes())
    starts = tuple(f"encoders/{name}/" for name in trunks)
    for path in sorted(path for path in params if path.startswith(starts) and "/adapter/" not in path):
        value = np.asarray(params[path])
        sha.update(f"{path} {value.dtype} {value.shape}".encode())
        sha.update(np.ascontiguousarray(value).tobytes())
    return sha.hexdigest()


def _from_disk(
    folder: pathlib.Path, layout: Mapping[str, _Layout], encode: Callable[[], Pieces], say: Say
) -> dict[str, np.ndarray]:
    """Maps the files of a folder into memory; of several processes that want them the first makes them."""
    try:
        files.make_folder(folder.parent, private=True)
        files.refuse_links(folder.parent)
        with files.lock(folder.parent / f"{folder.name}.lock") as lock:
            if lock.held:
                files.remove_unfinished(folder)
            if not _is_whole(folder, say):
                _write(folder, layout, encode())
    except OSError as error:
        raise UserError(
            f"cannot keep features in {folder.parent} ({error.strerror or error}): set data.cache to a folder that "
            "can be written and has space, or train.feature_cache=off"
        ) from error
    return {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(one.dtype)
        for name, one in layout.items()
    }


def _write(folder: pathlib.Path, layout: Mapping[str, _Layout], pieces: Pieces) -> None:
    """Writes the files of a folder, and their digests, in place of what is there."""
    with files.whole_folder(folder, private=True, replace=True) as temporary:
        arrays = {}
        for name, one in layout.items():
            # Numpy's files know no bfloat16: its bits are stored.
            kind = np.uint16 if one.dtype == DTYPES["bfloat16"] else one.dtype
            shape = (one.rows, *one.shape)
            file = temporary / f"{name}.npy"
            arrays[name] = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape).view(one.dtype)
            files.reserve(file)
        _fill(arrays, pieces)
        for array in arrays.values():
            array.flush()
        files.write_text(temporary / files.SUMS, files.sums(temporary))


def _is_whole(folder: pathlib.Path, say: Say) -> bool:
    if not folder.exists():
        return False
    try:
        whole = (folder / files.SUMS).read_text(encoding="utf-8") == files.sums(folder)
    except (OSError, UnicodeDecodeError):
        whole = False
    if not whole:
        say(f"the features in {folder} are damaged: they are made anew")
    return whole
