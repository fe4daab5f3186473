"""What is timed: networks of several sizes, and the variants of each case.

A variant is built only when it is timed. Jitted functions take parameters and data as arguments: XLA would fold
closed-over weights into constants. All variants of a case get equal weights where they share them, and equal batches.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import limits, startup
from benchmarks.setups import (
    CLASSES,
    LEARNING_RATE,
    SIZES,
    TRAIN_FACTOR,
    WEIGHT_DECAY,
    Input,
    Size,
    check_parity,
    compare,
    compiled,
    compiled_step,
    initial_weights,
    make_objective,
    make_optimizer,
    make_spec,
    make_step,
    mean_loss,
    set_up,
)
from remind_jax.models.encoders import vit
from remind_jax.models.model import Params
from remind_jax.models.network import Network, make_network
from remind_jax.ops import flops, soft_moe
from remind_jax.ops.pixels import IMAGENET, normalize
from remind_jax.training import optimizer as states
from remind_jax.training.step import Step


class Variant(NamedTuple):
    """One thing to time.

    Attributes:
      call: runs it once and waits for the result.
      facts: what the record says of it besides times: operations, parameters, bytes.
    """

    call: Callable[[], Any]
    facts: dict[str, Any]


class Entry(NamedTuple):
    """A variant before it is built; ratios are taken within one `measure`."""

    measure: str
    name: str
    build: Callable[[], Variant]


class Case(NamedTuple):
    """Entries by size, what the ratios refer to, and the sizes it makes sense for, the default first."""

    entries: Callable[[Size, frozenset[str]], list[Entry]]
    references: tuple[str, ...]
    sizes: tuple[str, ...]


def _facts(cost_flops: int, parameters: int, batch: int, library: str = "jax") -> dict[str, Any]:
    return {"library": library, "analytic_flops": cost_flops * batch, "parameters": parameters}


def _forward(size: Size, gate: str, **options: Any) -> Variant:
    setup = set_up(size, gate=gate, **options)
    program, facts = compiled(lambda p, x: setup.network.apply(p, x, gate=gate).logits, setup.params, setup.batch)
    facts |= _facts(setup.cost.flops, setup.cost.parameters, size.b)
    return Variant(lambda: jax.block_until_ready(program(setup.params, setup.batch)), facts)


def _backward(size: Size, gate: str, **options: Any) -> Variant:
    setup = set_up(size, gate=gate, **options)
    function = jax.value_and_grad(functools.partial(mean_loss, setup.network, gate))
    program, facts = compiled(function, setup.params, setup.batch)
    facts |= _facts(TRAIN_FACTOR * setup.cost.flops, setup.cost.parameters, size.b)
    return Variant(lambda: jax.block_until_ready(program(setup.params, setup.batch)), facts)


def train_step(
    network: Network,
    size: Size,
    gate: str,
    *,
    robust: bool,
    frozen: bool = False,
    group_rows: str = "all",
    first_moment: str = "float32",
    objective: Mapping[str, Any] = types.MappingProxyType({}),
    **options: Any,
) -> tuple[Step, Callable[[Params], states.TrainState]]:
    """Makes the train step of a network, and the state that it starts from as a function of the weights.

    Args:
      network: of `size`.
      size: shapes.
      gate: see `Model.__call__`.
      robust: whether λ acts and moves.
      frozen: whether the encoders stay as they are.
      group_rows, first_moment: as in remind_jax/config/table.py.
      objective: other arguments of `make_objective`.
      options: of `make_step`.
    """
    by_rows = group_rows == "batch"
    optimizer = make_optimizer(size.g, by_rows=by_rows, first_moment=first_moment)
    minimised = make_objective(size.g, robust=robust, **objective)
    step = make_step(network, optimizer, minimised, gate=gate, by_rows=by_rows, **options)

    def start(params: Params) -> states.TrainState:
        return states.start(params, lambda path: frozen and path.startswith("encoders/"), optimizer, step=0, ema=False)

    return step, start


# Arguments of `train_step`; `gate` and those of `set_up` stand beside them in the tables of variants.
_OF_STEP = ("robust", "frozen", "group_rows", "precision", "first_moment", "gradient", "objective")


def divided(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divides the options of a variant into those of `train_step` and those of its network."""
    of_step = {name: value for name, value in options.items() if name in _OF_STEP}
    of_network = {name: value for name, value in options.items() if name not in _OF_STEP}
    return of_step, of_network


def _step(size: Size, gate: str, *, programs: str = "auto", reads: bool = False, **options: Any) -> Variant:
    """A train step whose state is donated.

    Args:
      size: shapes.
      gate: see `Model.__call__`.
      programs: as in remind_jax/config/table.py.
      reads: whether the batch is taken from 8 times as many samples on the host and brought to the device.
      options: of `train_step` and `set_up`.
    """
    of_step, of_network = divided(options)
    setup = set_up(size, gate=gate, **of_network)
    noisy = of_network.get("fusion_options", {}).get("kind", "soft_moe") != "soft_moe"
    step, start = train_step(setup.network, size, gate, noisy=noisy, **of_step)
    # The state may not share buffers with anything that lives on: it is donated.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), start(setup.params))
    program, state, facts = compiled_step(step, programs, state, setup.batch)
    extra = setup.trained.flops if of_step.get("frozen") else setup.cost.flops
    facts |= _facts(setup.cost.flops + (TRAIN_FACTOR - 1) * extra, setup.cost.parameters, size.b)
    if of_network.get("kind") == "image":
        facts["xla_flops"] = None  # XLA counts the body of the scan over layers once
    batch, held = setup.batch, [state]
    del setup, state
    rng, many = np.random.default_rng(0), {name: np.tile(x, (8, *[1] * (x.ndim - 1))) for name, x in batch.items()}

    def read() -> Mapping[str, jax.Array]:
        positions = rng.integers(0, 8 * size.b, size.b)
        return jax.device_put({name: x.take(positions, axis=0) for name, x in many.items()})

    def call() -> None:
        held[0], metrics = program(held[0], read() if reads else batch)
        jax.block_until_ready((held[0], metrics))

    return Variant(call, facts)


def _torch(size: Size, measure: str, form: str, compile_it: bool = False) -> Variant:
    """A PyTorch reference, compared with the JAX network before it is timed."""
    from benchmarks import torch_reference as reference

    setup = set_up(size, routed=False, gate="never")
    weights = {path: np.asarray(x) for path, x in setup.params.items()}
    network = reference.Network(weights, form, size.h, soft_moe.PRESETS["official"])
    batch = reference.to_torch(setup.batch)
    check_parity(setup, network, batch)
    run = reference.torch.compile(network) if compile_it else network
    factor = 1 if measure == "forward" else TRAIN_FACTOR
    facts = _facts(factor * setup.cost.flops, setup.cost.parameters, size.b, "torch")
    if measure == "forward":
        return Variant(reference.forward(run, batch), facts)
    if measure == "forward+backward":
        return Variant(reference.backward(network, batch, run), facts)
    return Variant(reference.train(network, batch, LEARNING_RATE, WEIGHT_DECAY, run), facts)


def _torch_entries(size: Size, measures: tuple[str, ...], options: frozenset[str]) -> list[Entry]:
    found = []
    if "torch" in options:
        for measure in measures:
            for form in ("loop", "vectorised"):
                found.append(Entry(measure, f"torch {form}", functools.partial(_torch, size, measure, form)))
            if "compile" in options:
                build = functools.partial(_torch, size, measure, "vectorised", compile_it=True)
                found.append(Entry(measure, "torch compile", build))
    return found


def _block_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    variants = {
        "shared router": {"routed": False, "gate": "never"},
        "group routers": {"routed": True, "gate": "always"},
        "gated group routers": {"routed": True, "gate": "gated"},
    }
    for preset in soft_moe.PRESETS:
        if preset != "official":
            variants[f"shared router {preset}"] = {"routed": False, "gate": "never", "preset": preset}
    measures = {"forward": _forward, "forward+backward": _backward}
    entries = [
        Entry(measure, name, functools.partial(build, size, **variant))
        for measure, build in measures.items()
        for name, variant in variants.items()
    ]
    return entries + _torch_entries(size, tuple(measures), options)


_PLAIN = {"routed": False, "gate": "never", "robust": False}
FLEX_MOE = {"kind": "flex_moe", "top_k": 4, "routing": "joint", "scores": "softmax", "share_experts": True}
# The methods that differ in what a step computes; samplers and weights of the loss by themselves cost nothing there.
METHODS: dict[str, dict[str, Any]] = {
    "soft_moe": _PLAIN,
    "remind": {"routed": True, "gate": "gated", "robust": True},
    "remind_no_dro": {"routed": True, "gate": "gated", "robust": False},
    "group_dro": _PLAIN | {"robust": True},
    "reweigh": _PLAIN | {"objective": {"reweighs": True}},
    "fair_mixup": _PLAIN | {"objective": {"mixup": 0.1}},
    "fuse_moe": _PLAIN | {"fusion_options": {"kind": "fuse_moe"}, "objective": {"routing": {"entropy": 0.01}}},
    "flex_moe": _PLAIN
    | {
        "fusion_options": FLEX_MOE,
        "imputation": "bank",
        "objective": {"routing": {"specialize": 0.01}},
    },
}


def _step_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    entries = [Entry("train step", name, functools.partial(_step, size, **method)) for name, method in METHODS.items()]
    for programs in ("one", "two"):
        build = functools.partial(_step, size, **METHODS["soft_moe"], programs=programs)
        entries.append(Entry("train step", f"soft_moe in {programs}", build))
    return entries + _torch_entries(size, ("train step",), options)


def _expert_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """The block and its train step with ever more experts, one measure for each number of them."""
    entries = []
    for count in (32, 64, 128, 256, 512):
        shape = dataclasses.replace(size, e=count)
        for measure, build in (("forward", _forward), ("train step", functools.partial(_step, robust=False))):
            name = f"{measure}, {count} experts"
            entries.append(Entry(name, "soft_moe", functools.partial(build, shape, routed=False, gate="never")))
            if "torch" in options:
                for form in ("loop", "vectorised"):
                    entries.append(Entry(name, f"torch {form}", functools.partial(_torch, shape, measure, form)))
    return entries


def _group_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """One network with 16 modalities, whose number of observed combinations alone changes."""
    del options
    tokens = size.m * size.t
    size = dataclasses.replace(size, m=16, t=max(1, tokens // 16))
    forms = {
        "train step": {"group_rows": "batch"},
        "train step, all rows": {"group_rows": "all"},
        "train step, low rank": {"group_rows": "batch", "fusion_options": {"router_rank": 4}},
    }
    return [
        Entry(
            measure,
            f"{count} combinations",
            functools.partial(_step, dataclasses.replace(size, g=count), **form, **METHODS["remind"]),
        )
        for measure, form in forms.items()
        for count in (6, 60, 1_000, 10_000)
    ]


def _table17_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """All trained, encoders frozen, and from stored features; in float32, and in bfloat16 where that may be."""
    del options
    return [
        Entry(stage, name + suffix, functools.partial(_step, size, **METHODS[name], **chosen, **options))
        for stage, chosen in STAGES.items()
        for suffix, options in (("", {}), (" bfloat16", HALVED))
        for name in ("soft_moe", "remind")
    ]


HALVED = dict.fromkeys(("precision", "first_moment", "gradient"), "bfloat16")
STAGES: dict[str, dict[str, Any]] = {
    "all trained": {"kind": "image"},
    "encoders frozen": {"kind": "image", "frozen": True},
    "stored features": {"kind": "features", "frozen": True},
}


def _stage2_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """A step of stage 2 with what it reads from memory, and what filling the cache costs for as many samples."""
    del options
    frozen, kept = (dict(STAGES[stage], **METHODS["remind"]) for stage in ("encoders frozen", "stored features"))
    return [
        Entry("train step", "frozen on the fly", functools.partial(_step, size, reads=True, **frozen)),
        Entry("train step", "cached", functools.partial(_step, size, reads=True, **kept)),
        Entry("train step", "encoders alone", functools.partial(_trunks, size)),
    ]


def _trunks(size: Size) -> Variant:
    """The encoders of a batch, as they run once over the data."""
    setup = set_up(size, routed=True, gate="gated", kind="image")
    inputs = [name for name in setup.batch if name.startswith("m")]

    def encode(params: Mapping[str, Any], batch: Mapping[str, Any]) -> list[jax.Array]:
        return [setup.network.features(params, name, batch[name]) for name in inputs]

    program, facts = compiled(encode, setup.params, setup.batch)
    facts |= _facts(setup.cost.flops - setup.trained.flops, setup.cost.parameters, size.b) | {"xla_flops": None}
    return Variant(lambda: jax.block_until_ready(program(setup.params, setup.batch)), facts)


# Input of one sample, options of the network.
ENCODERS: dict[str, tuple[Input, dict[str, Any]]] = {
    "ViT-B/16": (Input("image", (224, 224, 3), 0), {"image_encoder": "vit_base"}),
    "ResNet-50": (Input("image", (224, 224, 3), 0), {"image_encoder": "resnet50"}),
    "R3D-18": (Input("volume", (16, 112, 112, 3), 0), {"volume_encoder": "r3d_18"}),
    "T5-base": (Input("text", (512,), 32_128), {"text_size": "base", "text_gated": False}),
    "ViT small": (Input("image", (32, 32, 3), 0), {"image_encoder": "vit_small"}),
}


def _encoder_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """The trunk of each encoder alone, a measure each; PyTorch next to the ViTs."""
    names = ("ViT small",) if size is SIZES["tiny"] else tuple(name for name in ENCODERS if name != "ViT small")
    entries = []
    for name in names:
        entries.append(Entry(f"{name} forward", "jax", functools.partial(_encoder, name)))
        if "torch" in options and name.startswith("ViT"):
            entries.append(Entry(f"{name} forward", "torch eager", functools.partial(_torch_vit, name)))
            if "compile" in options:
                build = functools.partial(_torch_vit, name, compile_it=True)
                entries.append(Entry(f"{name} forward", "torch compile", build))
    return entries


ENCODER_BATCH = 2


def set_up_encoder(name: str) -> tuple[Callable, dict[str, jax.Array], jax.Array]:
    """The trunk of an encoder as a function of weights and input, both of them."""
    one, options = ENCODERS[name]
    network = make_network(make_spec({}, width=768, tokens=16, **options), {"x": one}, 1, CLASSES)
    rng, shape = np.random.default_rng(0), (ENCODER_BATCH, *one.shape)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    if one.encoder == "text":
        x = rng.integers(3, one.vocabulary, shape).astype(np.int32)
    params = initial_weights((name,), network.init)
    return lambda params, x: network.features(params, "x", x), params, jnp.asarray(x)


def _encoder_facts(name: str, library: str) -> dict[str, Any]:
    features, params, x = set_up_encoder(name)
    used = sum(x.size for path, x in params.items() if path.startswith("encoders/") and "/adapter/" not in path)
    return _facts(flops.count(features, params, x[:1]).total(), used, ENCODER_BATCH, library)


def _encoder(name: str) -> Variant:
    features, params, x = set_up_encoder(name)
    program, facts = compiled(features, params, x)
    # XLA counts the body of a scan over layers once.
    facts |= _encoder_facts(name, "jax") | {"xla_flops": None}
    return Variant(lambda: jax.block_until_ready(program(params, x)), facts)


def _torch_vit(name: str, compile_it: bool = False) -> Variant:
    """The same network in PyTorch, compared with the JAX one before it is timed."""
    from benchmarks import torch_reference as reference

    features, params, x = set_up_encoder(name)
    expected = np.asarray(jax.jit(features)(params, x))
    weights = {path.removeprefix("encoders/x/"): np.asarray(value) for path, value in params.items()}
    size = vit.SIZES[ENCODERS[name][1]["image_encoder"].removeprefix("vit_")]
    network = reference.VisionTransformer(weights, size["heads"], size["patch"])
    pixels = reference.torch.tensor(np.asarray(normalize(x, IMAGENET)))
    compare(1e-3, "the features", expected, reference.forward(network, pixels)().numpy())
    run = reference.torch.compile(network) if compile_it else network
    return Variant(reference.forward(run, pixels), _encoder_facts(name, "torch"))


def _limit_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """Parts of a step and the whole one beside the rates of a large product and of a copy."""
    del options
    parts: dict[str, Callable[[], limits.Part]] = {
        limits.PRODUCT: limits.product,
        limits.COPY: limits.copy,
        "experts, forward": functools.partial(limits.experts, size, backward=False),
        "experts, forward+backward": functools.partial(limits.experts, size, backward=True),
        "queries, keys, values, forward+backward": functools.partial(limits.linear, size),
        "update": functools.partial(_update, size),
        "train step": functools.partial(_whole, size),
    }
    return [Entry("share", name, functools.partial(_limited, part)) for name, part in parts.items()]


def _limited(part: Callable[[], limits.Part]) -> Variant:
    call, phases = part()
    operations = sum(phase.get(limits.PRODUCT, 0.0) for phase in phases)
    return Variant(call, _facts(int(operations), 0, 1) | {"phases": phases})


def _update(size: Size) -> limits.Part:
    setup = set_up(size, routed=False, gate="never")
    step, start = train_step(setup.network, size, "never", robust=False)
    return limits.update(step, start(setup.params), setup.batch)


def _whole(size: Size) -> limits.Part:
    setup, variant = set_up(size, routed=False, gate="never"), _step(size, **_PLAIN)
    _, start = train_step(setup.network, size, "never", robust=False)
    weights = TRAIN_FACTOR * 4.0 * sum(x.size for x in setup.params.values())
    gradient = {limits.PRODUCT: float(variant.facts["analytic_flops"]), limits.COPY: weights}
    return variant.call, [gradient, limits.update_phase(start(setup.params))]


def _startup_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """Processes from start to end: imports, a run on NHANES up to the end of its first step, and 21 predictions."""
    del size, options
    return [
        Entry("import", "jax", functools.partial(_process, "import jax")),
        Entry("import", "the package", functools.partial(_process, startup.IMPORT)),
        Entry("first step", "cold", functools.partial(_process, startup.FIRST_STEP)),
        Entry("first step", "compilation cache", functools.partial(_process, startup.FIRST_STEP, keeps=True)),
        Entry("21 rows", "predict", functools.partial(_process, startup.PREDICT)),
        Entry("21 rows", "predict, programs kept", functools.partial(_process, startup.PREDICT, keeps=True)),
    ]


def _process(code: str, keeps: bool = False) -> Variant:
    call, first_step = startup.started(code, keeps)
    return Variant(call, _facts(0, 0, 0) | {"first_step_ms": first_step})


def _input_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """Batches of one kind of modality, a measure each, from encoded rows in memory and from shards."""
    del size, options
    places = {"memory": 4.0, "shards": 0.0}
    kinds = ("tabular", "codes", "text", "embedding", "image", "volume")
    return [
        Entry(kind, place, functools.partial(_input, kind, memory))
        for kind in kinds
        for place, memory in places.items()
    ]


def _input(kind: str, memory_gib: float) -> Variant:
    from benchmarks import input_path  # needs the data stack, which the other cases do without

    call = input_path.reader(kind, memory_gib, threads=1)
    return Variant(call, _facts(0, 0, 0) | {"samples": call()})


def _present_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """Steps with encoders that run on all samples, or those that have their modality, a measure for each data set."""
    del options
    sets = ("FPRM", "EMBED", "MIMIC", "24 modalities at 20 %")
    return [Entry(name, how, functools.partial(_present, size, name, how)) for name in sets for how in ENCODES]


ENCODES = ("dense", "present")


def _present(size: Size, name: str, encode: str) -> Variant:
    from benchmarks import presence  # needs the data stack, which the other cases do without

    return Variant(*presence.step(size, name, "auto" if encode == "present" else encode))


CASES = {
    "block": Case(_block_entries, ("torch loop", "shared router"), ("fprm", "tiny", "small", "e8", "e32", "e128")),
    "step": Case(_step_entries, ("torch loop", "torch compile", "soft_moe"), ("fprm", "tiny", "e8", "e32", "e128")),
    "experts": Case(_expert_entries, ("torch loop", "soft_moe"), ("fprm", "tiny")),
    "groups": Case(_group_entries, ("6 combinations",), ("fprm", "tiny", "small")),
    "table17": Case(_table17_entries, ("soft_moe",), ("reduced", "tiny", "full")),
    "stage2": Case(_stage2_entries, ("frozen on the fly",), ("vits", "reduced", "tiny")),
    "encoders": Case(_encoder_entries, ("torch eager",), ("full", "tiny")),
    "present": Case(_present_entries, ("dense",), ("twins", "tiny")),
    "input": Case(_input_entries, ("memory",), ("tiny",)),
    "limits": Case(_limit_entries, (), ("fprm", "tiny", "e8", "e32")),
    "startup": Case(_startup_entries, ("jax", "cold"), ("tiny",)),
}
