"""From prepared rows to batches of model inputs: a store of encoded rows, and Grain to read it ahead of the step.

A batch is a flat dict of numpy arrays: one array per modality under its name, `present` bool [b,m], `group`, `label`
and `row` int32 [b], and `weight` float32 [b]: what a sample counts in training, or 0 for the rows that pad the last
batch of an evaluation and 1 for the others.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from remind_jax.data import samplers
from remind_jax.data.groups import Groups
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import RESERVED
from remind_jax.errors import UserError

Batch = dict[str, np.ndarray]
# (positions of a batch, [b], below 0 those that pad it) -> for some modalities the samples whose inputs are read, as
# places in the batch, of any shape; and what the batch says of them.
Choose = Callable[[np.ndarray], tuple[Mapping[str, np.ndarray], Batch]]
_ALL: Mapping[str, np.ndarray] = {}

_BLOCK = 2048  # rows read and encoded at a time while a store is filled
_PROBE = 256  # rows encoded to learn what a row costs in memory
_BLOCK_BYTES = 64 * 2**20  # of inputs; images and volumes make blocks and probe shorter
_AHEAD = 2  # batches prepared ahead, per thread


def all_inputs(positions: np.ndarray) -> tuple[Mapping[str, np.ndarray], Batch]:
    """Chooses the inputs of all samples, as batches have them of which nobody chooses."""
    del positions
    return _ALL, {}


class Store(Protocol):
    """The encoded rows of one split; both forms give the same batches.

    Attributes:
      presence: modalities of each row, bool [n, m].
      encoded: modalities of which batches have what an encoder has found in place of the input.
    """

    presence: np.ndarray
    encoded: frozenset[str] = frozenset()

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def take(self, positions: np.ndarray, inputs: Mapping[str, np.ndarray] = _ALL) -> Batch:
        """The rows at `positions` (int [b], places in the split), in this order, repeats allowed; no `weight`.

        Of a modality in `inputs` it gives the inputs of those samples only, places in the batch of any shape.
        """
        ...


class StreamStore(Store):
    """Reads and encodes the rows anew each time; for splits that do not fit into memory, and for rows to predict."""

    def __init__(
        self,
        rows: np.ndarray,
        presence: np.ndarray,
        read: Callable[[np.ndarray], Batch],
        preprocessor: Preprocessor,
        groups: Groups,
    ):
        """Takes the numbers of the rows, int [n], their modalities, bool [n, m], and what decodes some of them."""
        self._rows, self.presence, self._read = np.asarray(rows, np.int64), presence, read
        self._preprocessor, self._groups = preprocessor, groups

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, positions: np.ndarray, inputs: Mapping[str, np.ndarray] = _ALL) -> Batch:
        batch = self._preprocessor.encode(self._read(self._rows[positions]))
        batch |= {name: batch[name][places] for name, places in inputs.items()}
        return {**batch, "group": self._groups.index(batch["present"])}


def new_store(manifest: Manifest, preprocessor: Preprocessor, groups: Groups) -> StreamStore:
    """Makes a store of a manifest's rows that prepares nothing; batches have no labels."""
    read = functools.partial(decode, manifest, labels=False)
    return StreamStore(np.arange(manifest.table.height), manifest.presence, read, preprocessor, groups)


class Kept(NamedTuple):
    """One modality of a split: the rows that have it [k, ...], and each row's place among them [n], k for none."""

    values: Any
    places: np.ndarray

    def take(self, positions: np.ndarray) -> Any:
        """Returns the modality of rows, zeros where it is missing."""
        where = self.places[positions]
        rows = np.asarray(self.values).take(np.minimum(where, len(self.values) - 1), axis=0)
        rows[where == len(self.values)] = 0
        return rows


def places(present: np.ndarray) -> np.ndarray:
    """Returns the place of each row among those kept of a modality, bool [n] -> int [n]; at least one is kept."""
    return np.where(present, np.cumsum(present) - 1, max(1, present.sum()))


class MemoryStore(Store):
    """Holds encoded rows, of each modality those that have it; a batch costs one `numpy.take` per array."""

    def __init__(self, columns: Batch, kept: Mapping[str, Kept], encoded: Iterable[str] = ()):
        """Takes all other arrays of a batch for all rows, and modalities by their name in batches."""
        self._columns, self._kept = columns, kept
        self.presence, self.encoded = columns["present"], frozenset(encoded)

    def __len__(self) -> int:
        return len(self._columns["row"])

    def take(self, positions: np.ndarray, inputs: Mapping[str, np.ndarray] = _ALL) -> Batch:
        batch = {name: column.take(positions, axis=0) for name, column in self._columns.items()}
        at = {name: positions[chosen] for name, chosen in inputs.items()}
        return batch | {name: kept.take(at.get(name, positions)) for name, kept in self._kept.items()}


def make_store(
    read: Callable[[np.ndarray], Batch],
    rows: np.ndarray,
    presence: np.ndarray,
    preprocessor: Preprocessor,
    groups: Groups,
    *,
    memory_gib: float,
) -> Store:
    """Makes the store of a split: in memory when what its encoded rows have takes at most `memory_gib`, else streaming.

    `read` gives what `manifest.decode` gives for some rows; `rows`, int [n], are the split's row numbers in the
    manifest, and `presence`, bool [n, m], their modalities. A combination that `groups` does not know gets the index
    `len(groups)`; with 0 GiB the store always streams. Raises UserError: a modality has the name of one of the batch's
    own columns, or the prepared data are damaged.
    """
    clashes = sorted(set(preprocessor.inputs) & set(RESERVED))
    if clashes:
        raise UserError(f"modality names {', '.join(RESERVED)} are taken, rename in schema.yaml: {', '.join(clashes)}")
    stream = StreamStore(rows, presence, read, preprocessor, groups)
    block = _rows_at_a_time(preprocessor)
    probe = stream.take(np.arange(min(_PROBE, block, len(stream))))
    every, modalities = np.arange(len(stream)), tuple(preprocessor.inputs)
    at = {name: places(presence[:, j]) for j, name in enumerate(modalities)}
    rows_of = {name: max(1, presence[:, j].sum()) for j, name in enumerate(modalities)}
    shapes = {name: (rows_of.get(name, len(stream)), *array.shape[1:]) for name, array in probe.items()}
    if sum(math.prod(shape) * probe[name].itemsize for name, shape in shapes.items()) > memory_gib * 2**30:
        return stream
    # Nobody fills the row of a modality that is nowhere.
    arrays = {name: np.zeros(shape, probe[name].dtype) for name, shape in shapes.items()}
    for start in range(0, len(stream), block):
        positions = every[start : start + block]
        for name, values in stream.take(positions).items():
            where = at.get(name, every)[positions]
            here = where < len(arrays[name])
            arrays[name][where[here]] = values[here]
    return MemoryStore(
        {name: array for name, array in arrays.items() if name not in at},
        {name: Kept(arrays[name], at[name]) for name in modalities},
    )


def _rows_at_a_time(preprocessor: Preprocessor) -> int:
    """Returns how many rows a block may hold, by number and by bytes of their inputs."""
    size = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in preprocessor.inputs.values())
    return max(1, min(_BLOCK, _BLOCK_BYTES // max(1, size)))


def train_batches(
    store: Store,
    order: samplers.Order,
    batch_size: int,
    start_step: int,
    stop_step: int,
    *,
    threads: int = 1,
    rows: slice = slice(None),
    choose: Choose = all_inputs,
) -> Iterator[Batch]:
    """Yields the batches of steps `start_step` up to, not including, `stop_step`; `weight` is 1 where rows have none.

    The batch of a step depends on the order and the step only: neither the number of threads that prepare batches ahead
    (0 prepares each when it is asked for) nor the step at which a run was resumed changes it. Steps count from 0 over
    the whole run; `rows` of each batch are read, by default all, and of modalities the inputs that `choose` names.
    """
    ones = np.ones(batch_size, np.float32)[rows]

    def batch(i: int) -> Batch:
        positions = order(start_step + i, batch_size)
        inputs, facts = choose(positions)
        return {"weight": ones.copy(), **store.take(positions[rows], inputs), **facts}

    return _read_ahead(batch, stop_step - start_step, threads)


def eval_batches(
    store: Store, batch_size: int, *, threads: int = 0, first: int = 0, every: int = 1, choose: Choose = all_inputs
) -> Iterator[Batch]:
    """Yields all rows once, in the split's order, in batches of one size.

    The last batch is filled up with repetitions of the last row, whose `weight` is 0. Batches before `first` are left
    out, and between it and the last all but each `every`-th. Of modalities they have the inputs that `choose` names.
    """

    def batch(i: int) -> Batch:
        start = (first + i * every) * batch_size
        positions = np.arange(start, start + batch_size)
        real = positions < len(store)
        inputs, facts = choose(np.where(real, positions, -1))
        batch = store.take(np.minimum(positions, len(store) - 1), inputs)
        return {**batch, "weight": real.astype(np.float32), **facts}

    count = -(-len(store) // batch_size)
    return _read_ahead(batch, -(-(count - first) // every), threads)


class _Batches:
    """Random access to batches, as Grain wants it."""

    def __init__(self, batch: Callable[[int], Batch], count: int):
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Batch:
        return self._batch(i)

    def __repr__(self) -> str:
        return f"Batches({self._count})"


def _read_ahead(batch: Callable[[int], Batch], count: int, threads: int) -> Iterator[Batch]:
    """Yields batch(0) to batch(count - 1), prepared by Grain's threads where that gains anything."""
    if count <= 1 or not threads:
        yield from map(batch, range(count))
        return
    import grain  # which takes half a second

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD * threads)
    iterator = iter(grain.MapDataset.source(_Batches(batch, count)).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()  # left to the interpreter's exit, its threads end with noise
