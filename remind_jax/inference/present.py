"""Encoders run on the samples that have their modality: which inputs a batch brings, and of how many samples.

A batch is cut into blocks, one for each device and part of a step. Of a modality every block has the inputs of as many
samples, its capacity, those that have it first. Capacities of all modalities together are a layout: a few are chosen
by the presence of the batches to come, which the order of samples tells beforehand. A batch takes the first layout that
it fits, or has the inputs of all samples. So nothing is left out, shapes tell a program all that it must know, and only
those layouts are compiled that a batch takes: two, and one of all samples where an order was not foreseen.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from remind_jax.data import pipeline
from remind_jax.data.samplers import Order
from remind_jax.data.schema import InputSpec
from remind_jax.models.encoders import registry
from remind_jax.models.model import SOURCE
from remind_jax.models.network import Network
from remind_jax.ops import flops

WORTH = 0.05
"""The least share of the operations of a forward pass that a layout must save, and another one next to it."""
PROGRAM = 1e12  # operations that another program must save: about what a core does while it compiles one
_BACKWARD = 2  # as many times the operations of the forward pass
AHEAD = 1_000  # batches looked at, of those to come
_QUANTILES = tuple(i / 32 for i in range(1, 32))  # of batches that fit a capacity of the smaller of two layouts
_STEPS = 16  # capacities are multiples of this part of a block


class Blocks(NamedTuple):
    """The cut of a batch: `shards` stretches in turn, one a device, each dealt out to as many `parts` of a step."""

    shards: int = 1
    parts: int = 1

    def divide(self, size: int) -> bool:
        """Returns whether batches of a size can be cut."""
        return size % (self.shards * self.parts) == 0

    def of(self, x: np.ndarray) -> np.ndarray:
        """Cuts what belongs to samples, [b, ...] -> [blocks, b / blocks, ...]."""
        cut = x.reshape(self.shards, -1, self.parts, *x.shape[1:]).swapaxes(1, 2)
        return cut.reshape(self.shards * self.parts, -1, *x.shape[1:])

    def most(self, presence: np.ndarray) -> np.ndarray:
        """Returns in how many samples of a block a modality is at most, bool [b, m] -> int [m]."""
        return self.of(presence).sum(axis=1).max(axis=0)


_WHOLE = Blocks()


class Chooser:
    """Chooses the inputs of batches by the first layout that they fit, see `pipeline.Choose`."""

    def __init__(
        self, presence: np.ndarray, modalities: tuple[str, ...], layouts: np.ndarray, blocks: Blocks, own: slice
    ):
        """Takes the presence of a store's samples, bool [n, m], the layouts in the order of their work, int [l, m], and
        the samples `own` of every batch that are read here, which are whole shards.
        """
        self._presence, self._modalities, self._layouts = presence, modalities, layouts
        self._blocks, self._own = blocks, own

    def __call__(self, positions: np.ndarray) -> tuple[dict[str, np.ndarray], pipeline.Batch]:
        present = _present(self._presence, positions)
        fits = (self._blocks.most(present) <= self._layouts).all(axis=1)
        if not fits.any():
            return {}, {}
        layout, (start, stop, _) = self._layouts[fits.argmax()], self._own.indices(len(positions))
        own = self._blocks._replace(shards=self._blocks.shards * (stop - start) // len(positions))
        places, present = own.of(np.arange(stop - start)), own.of(present[start:stop])
        first = np.argsort(~present, axis=1, kind="stable")
        chosen = {name: first[:, :k, j] for j, (name, k) in enumerate(zip(self._modalities, layout, strict=True))}
        chosen = {name: at for name, at in chosen.items() if at.shape[1] < present.shape[1]}
        rows = {name: np.take_along_axis(places, at, axis=1) for name, at in chosen.items()}
        return rows, {SOURCE + name: at.astype(np.int32) for name, at in chosen.items()}


def _present(presence: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the presence of samples [b, m]; those below 0, which pad a batch, have nothing."""
    return presence[positions] & (positions >= 0)[:, None]


class PresentRows:
    """Knows what the encoders of a network cost, and by that makes the choosers of its batches."""

    def __init__(self, kind: str, network: Network, inputs: Mapping[str, InputSpec]):
        """Takes the key `encode` of a config, a single network and the inputs of its modalities, in declared order."""
        self._kind, self._network, self._inputs = kind, network, inputs

    @functools.cached_property
    def operations(self) -> tuple[np.ndarray, int]:
        """Operations of a sample's forward pass: those of encoders that may be spared, float64 [m], and all of them.

        They are traced when they are asked for, without any array, and where something may be spared.
        """
        may = [self._kind == "present" or registry.has_trunk(one.encoder) for one in self._inputs.values()]
        if self._kind == "dense" or not any(may):
            return np.zeros(len(may)), 0
        params = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in self._network.shapes.items()}
        apply = functools.partial(self._network.apply, gate="never")
        counted = flops.count(apply, params, abstract_batch(self._inputs, 1))
        parts = np.array([counted[f"encoders/{name}"] for name in self._inputs], np.float64)
        return np.where(may, parts, 0.0), counted.total()

    def of_training(
        self, store: pipeline.Store, order: Order, steps: range, size: int, blocks: Blocks, own: slice
    ) -> pipeline.Choose:
        """Makes the chooser of the batches of some steps from their order, which may be a forecast of it.

        It depends on the steps as a whole: a run that is resumed among them gets the same one.
        """
        return self._chooser(store, lambda i: order(steps[i], size), len(steps), size, (blocks, own))

    def of_evaluation(self, store: pipeline.Store, size: int) -> pipeline.Choose:
        """Makes the chooser of a store's batches of one size in the store's order, for which there is one layout.

        It has a program of its own, as splits differ: what they save must be worth one.
        """

        def positions(i: int) -> np.ndarray:
            at = np.arange(i * size, (i + 1) * size)
            return np.where(at < len(store), at, -1)

        return self._chooser(store, positions, -(-len(store) // size), size)

    def _chooser(
        self,
        store: pipeline.Store,
        positions: Callable[[int], np.ndarray],
        batches: int,
        size: int,
        trains: tuple[Blocks, slice] | None = None,
    ) -> pipeline.Choose:
        """Makes the chooser of so many batches, whose samples are `positions` (batch) -> int [b]."""
        blocks, own = trains or (Blocks(), slice(None))
        encoders, total = self.operations
        work = np.where([name in store.encoded for name in self._inputs], 0.0, encoders) / max(1, total)
        if not work.any() or not batches or not blocks.divide(size):
            return pipeline.all_inputs
        counts = np.stack([blocks.most(_present(store.presence, positions(i))) for i in range(min(batches, AHEAD))])
        program = PROGRAM / (total * size * batches * (1 + _BACKWARD * (trains is not None)))
        more = max(WORTH, program)
        least, more = (WORTH, more) if trains else (more, np.inf)
        least = 0.0 if self._kind == "present" else least
        layouts = choose_layouts(counts, size // (blocks.shards * blocks.parts), work, least, more)
        if not len(layouts):
            return pipeline.all_inputs
        return Chooser(store.presence, tuple(self._inputs), layouts, blocks, own)


def choose_layouts(counts: np.ndarray, size: int, work: np.ndarray, least: float, more: float) -> np.ndarray:
    """Chooses one or two layouts, int [l, m] by growing work, of which the last fits all batches seen; or none.

    `counts`, int [batches, m], has the samples with each modality in the fullest block of coming batches, `size` is
    that of a block, and `work` [m] the share of each encoder. All together must save `least` in the mean over batches,
    and the smaller one of two must add `more` to what the other saves.
    """
    step = max(1, size // _STEPS)

    def layout(quantile: float) -> np.ndarray:
        capacities = np.maximum(np.quantile(counts, quantile, axis=0, method="higher"), 1)
        return np.where(work > 0, np.minimum(-(-capacities // step) * step, size), size).astype(np.int64)

    def saved(*layouts: np.ndarray) -> float:
        each = np.zeros(len(counts))
        for one in reversed(layouts):
            each[(counts <= one).all(axis=1)] = (size - one) @ work / size
        return float(each.mean())

    last = layout(1.0)
    smaller = max(map(layout, _QUANTILES), key=lambda one: saved(one, last))
    found = [smaller, last] if saved(smaller, last) - saved(last) >= more else [last]
    return np.array(found if saved(*found) > 0 and saved(*found) >= least else []).reshape(-1, counts.shape[1])


def abstract_batch(inputs: Mapping[str, InputSpec], size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and types of a batch with the inputs of all its samples."""
    batch = {name: jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype) for name, spec in inputs.items()}
    batch |= {name: jax.ShapeDtypeStruct((size,), np.int32) for name in ("group", "label")}
    return batch | {"present": jax.ShapeDtypeStruct((size, len(inputs)), np.bool_)}
