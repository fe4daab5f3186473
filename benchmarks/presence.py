"""Train steps whose encoders run on all samples, or on those that have their modality, at the paper's frequencies.

The one case besides `input` that needs the data stack: batches are those that training reads, inputs chosen by their
order.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import setups
from remind_jax.config import base
from remind_jax.data import pipeline, samplers
from remind_jax.data.kinds import KINDS
from remind_jax.data.missingness import bernoulli_mask, combination_mask, parse_combinations
from remind_jax.data.outline import OUTLINES
from remind_jax.data.schema import InputSpec
from remind_jax.data.sources import embed, image_twins, mimic_iv_twin
from remind_jax.inference.present import Blocks, PresentRows
from remind_jax.models.model import SOURCE
from remind_jax.models.network import Network, make_network
from remind_jax.ops import flops
from remind_jax.runtime import devices
from remind_jax.training import optimizer as states

SAMPLES, STEPS, BATCHES = 1_024, 1_000, 2
"""Samples of a data set, steps whose order is known, and batches of a call."""
_PUBLISHED = {"FPRM": image_twins.FPRM_PUBLISHED, "EMBED": embed.PUBLISHED, "MIMIC": mimic_iv_twin.PUBLISHED}
_SOURCES = {"FPRM": "fprm", "EMBED": "embed", "MIMIC": "mimic_iv"}


class _Set(NamedTuple):
    """A data set of random inputs, and its network."""

    inputs: dict[str, InputSpec]
    store: pipeline.Store
    network: Network


def _presence(name: str, inputs: dict[str, InputSpec], rng: np.random.Generator) -> np.ndarray:
    if name in _PUBLISHED:
        return combination_mask(SAMPLES, *parse_combinations(_PUBLISHED[name], tuple(inputs)), rng)
    return bernoulli_mask(SAMPLES, len(inputs), 0.8, rng)


def _made(name: str, size: setups.Size) -> _Set:
    """Makes the samples and the network of a set; inputs have the sizes of the package's small configs."""
    tiny, rng = size is setups.SIZES["tiny"], np.random.default_rng(0)
    data = base(_SOURCES.get(name, "fprm")).data
    data.image_size, data.frames, data.max_tokens = (16, 2, 8) if tiny else (32, 8, 96)
    if name in _SOURCES:
        inputs = OUTLINES[_SOURCES[name]](data).inputs
    else:
        image = KINDS["image"].spec((data.image_size, data.image_size, 3))
        inputs = {f"m{i}": image for i in range(3 if tiny else 24)}
    presence = _presence(name, inputs, rng)
    groups = np.unique(presence, axis=0, return_inverse=True)[1].reshape(-1) % size.g
    arrays = {"present": presence, "group": groups.astype(np.int32), "row": np.arange(SAMPLES, dtype=np.int32)}
    arrays["label"] = rng.integers(0, setups.CLASSES, SAMPLES).astype(np.int32)
    kept = {}
    for i, (modality, spec) in enumerate(inputs.items()):
        shape = (presence[:, i].sum(), *spec.shape)
        x = rng.normal(size=shape) if spec.encoder == "patch" else rng.integers(3, 256, shape)
        kept[modality] = pipeline.Kept(x.astype(spec.dtype), pipeline.places(presence[:, i]))
    image = "resnet_small" if name == "FPRM" else "vit_small"
    fusion = {"heads": size.h, "experts": size.e, "hidden": size.f}
    spec = setups.make_spec(fusion, width=size.d, tokens=size.t, image_encoder=image, imputation="group")
    return _Set(inputs, pipeline.MemoryStore(arrays, kept), make_network(spec, inputs, size.g, setups.CLASSES))


def step(size: setups.Size, name: str, encode: str) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Makes a call that takes `BATCHES` steps of a set, with the key `encode` of a config, and the facts of one."""
    inputs, store, network = _made(name, size)
    params = setups.initial_weights(("presence", name, size), network.init)
    optimizer = setups.make_optimizer(size.g)
    state = states.start(params, lambda path: False, optimizer, step=0, ema=False)
    state = jax.tree.map(lambda x: jax.numpy.array(x, copy=True), state)  # it is donated
    one = setups.make_step(network, optimizer, setups.make_objective(size.g, robust=True), gate="gated")
    program = devices.compiled(one, "auto", jax.devices()[0].platform, jax.jit)
    order, rows = samplers.shuffled(0, SAMPLES), PresentRows(encode, network, inputs)
    choose = rows.of_training(store, order, range(STEPS), size.b, Blocks(), slice(None))
    batches = list(pipeline.train_batches(store, order, size.b, 0, BATCHES, choose=choose))
    held = [state]

    def call() -> None:
        for batch in batches:
            held[0], metrics = program(held[0], jax.device_put(batch))
        jax.block_until_ready((held[0], metrics))

    shapes = {tuple((key, len(x) * x.shape[1]) for key, x in _sources(batch)) for batch in batches}
    work = [flops.count(lambda p, x: network.apply(p, x, gate="gated"), params, batch).total() for batch in batches]
    facts = {"library": "jax", "parameters": sum(x.size for x in params.values()), "batches": BATCHES}
    facts |= {"analytic_flops": setups.TRAIN_FACTOR * sum(work), "capacities": [dict(one) for one in sorted(shapes)]}
    return call, facts


def _sources(batch: pipeline.Batch) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the choice of samples of each modality of which a batch has not all."""
    return ((key.removeprefix(SOURCE), x) for key, x in sorted(batch.items()) if key.startswith(SOURCE))
