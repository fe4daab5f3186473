"""From prepared rows to batches of model inputs: a store of encoded rows, and Grain to read it ahead of the step.

A batch is a flat dict of numpy arrays: one array per modality under its name, `present` bool [b,m], `group`, `label`
and `row` int32 [b], and `weight` float32 [b]: what a sample counts in training, or 0 for the rows that pad the last
batch of an evaluation and 1 for the others.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from remind_jax.data import samplers
from remind_jax.data.groups import Groups
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor, Reader, blocks
from remind_jax.data.schema import RESERVED, InputSpec
from remind_jax.errors import UserError

Batch = dict[str, np.ndarray]
# (positions of a batch, [b], below 0 those that pad it) -> for some modalities the samples whose inputs are read, as
# places in the batch, of any shape; and what the batch says of them.
Choose = Callable[[np.ndarray], tuple[Mapping[str, np.ndarray], Batch]]
_ALL: Mapping[str, np.ndarray] = {}

_AHEAD = 2  # batches prepared ahead, per thread


def all_inputs(positions: np.ndarray) -> tuple[Mapping[str, np.ndarray], Batch]:
    """Chooses the inputs of all samples, as batches have them of which nobody chooses."""
    del positions
    return _ALL, {}


class Read(NamedTuple):
    """One modality of a split that is read, or decoded and encoded, anew each time."""

    read: Reader
    rows: np.ndarray  # of the manifest, int [n]

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Returns the modality of rows, zeros where it is missing."""
        rows = self.rows[positions]
        values = self.read(rows.reshape(-1))
        return values.reshape(*rows.shape, *values.shape[1:])


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


class Store:
    """The encoded rows of one split; wherever modalities lie, batches are the same.

    Attributes:
      columns: all arrays of a batch that are no modality, for all rows; the modalities are not in them.
      presence: modalities of each row, bool [n, m].
      encoded: modalities of which batches have what an encoder has found in place of the input.
    """

    def __init__(self, columns: Batch, modalities: Mapping[str, Kept | Read], encoded: Iterable[str] = ()):
        """Takes the columns, and the modalities by their name in batches."""
        self.columns, self._modalities = columns, modalities
        self.presence, self.encoded = columns["present"], frozenset(encoded)

    def __len__(self) -> int:
        return len(self.columns["row"])

    def take(self, positions: np.ndarray, inputs: Mapping[str, np.ndarray] = _ALL) -> Batch:
        """The rows at `positions` (int [b], places in the split), in this order, repeats allowed; `weight` if stored.

        Of a modality in `inputs` it gives the inputs of those samples only, places in the batch of any shape.
        """
        batch = {name: column.take(positions, axis=0) for name, column in self.columns.items()}
        at = {name: positions[chosen] for name, chosen in inputs.items()}
        return batch | {name: one.take(at.get(name, positions)) for name, one in self._modalities.items()}

    def replaced(self, inputs: Mapping[str, np.ndarray]) -> "Store":
        """Returns a store with other inputs of some modalities, [n, ...] each."""
        kept = {name: Kept(values, np.arange(len(self))) for name, values in inputs.items()}
        return Store(self.columns, {**self._modalities, **kept}, self.encoded)


def make_store(
    manifest: Manifest,
    rows: np.ndarray,
    readers: Mapping[str, Reader],
    inputs: Mapping[str, InputSpec],
    groups: Groups,
    *,
    memory_gib: float,
    labels: bool = True,
) -> Store:
    """Makes the store of some rows, int [n]: in memory when what they have takes at most `memory_gib`, else it streams.

    `readers` and `inputs` are of all modalities by name, in declared order. A combination that `groups` does not know
    gets the index `len(groups)`; with 0 GiB the store always streams. Rows to predict have no labels. Raises UserError:
    a modality has the name of one of the batch's own columns, or the rows cannot be read.
    """
    clashes = sorted(set(inputs) & set(RESERVED))
    if clashes:
        raise UserError(f"modality names {', '.join(RESERVED)} are taken, rename in schema.yaml: {', '.join(clashes)}")
    columns = decode(manifest, rows, labels=labels, modalities=())
    columns["group"] = groups.index(columns["present"])
    streamed = {name: Read(readers[name], rows) for name in inputs}
    present = dict(zip(inputs, columns["present"].T, strict=True))
    sizes = [max(1, present[name].sum()) * math.prod(spec.shape) * spec.dtype.itemsize for name, spec in inputs.items()]
    if sum(sizes) + sum(column.nbytes for column in columns.values()) > memory_gib * 2**30:
        return Store(columns, streamed)
    return Store(columns, {name: _loaded(streamed[name], present[name], spec) for name, spec in inputs.items()})


def _loaded(modality: Read, present: np.ndarray, spec: InputSpec) -> Kept:
    """Reads a modality into memory, of the rows that have it, bool [n]."""
    kept, at = places(present), np.flatnonzero(present)
    values = np.zeros((max(1, len(at)), *spec.shape), spec.dtype)  # nobody fills the row of one that is nowhere
    for block in blocks(at, spec):
        values[kept[block]] = modality.take(block)
    return Kept(values, kept)


def new_store(manifest: Manifest, preprocessor: Preprocessor, groups: Groups) -> Store:
    """Makes a store of a manifest's rows that prepares nothing; batches have no labels."""
    rows, readers = np.arange(manifest.table.height), preprocessor.readers(manifest)
    return make_store(manifest, rows, readers, preprocessor.inputs, groups, memory_gib=0.0, labels=False)


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
