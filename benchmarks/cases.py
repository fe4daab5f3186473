"""What is timed: networks of several sizes, and the variants of each case.

A variant is built only when it is timed. Jitted functions take parameters and data as arguments: XLA would fold
closed-over weights into constants. All variants of a case get equal weights where they share them, and equal batches.
"""

import atexit
import dataclasses
import functools
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.config import defaults
from remind_jax.models.encoders import vit
from remind_jax.models.model import STORED
from remind_jax.models.network import Network, make_network
from remind_jax.models.spec import ModelSpec, model_spec
from remind_jax.objectives import group_dro, reweigh
from remind_jax.ops import flops, losses, soft_moe
from remind_jax.ops.pixels import IMAGENET, normalize
from remind_jax.runtime import devices
from remind_jax.training import objective as objectives
from remind_jax.training import optimizer as states
from remind_jax.training import step as package_step
from remind_jax.training.stages import Stage
from remind_jax.training.transforms import Transforms

ROOT = pathlib.Path(__file__).resolve().parents[1]

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
CLASSES = 3
# The backward pass of a product is two products of the same size.
TRAIN_FACTOR = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of a network and of its batch; the letters of the project's legend, `m` modalities of `t` tokens each.

    Attributes:
      patch: numbers in a precomputed token.
      image: size of the image encoders of cases stage2 and table17 (a key of `vit.SIZES`), which give t tokens.
    """

    b: int
    m: int
    t: int
    d: int
    h: int
    e: int
    f: int
    g: int
    patch: int
    image: str = "small"


SIZES = {
    "tiny": Size(b=4, m=3, t=2, d=16, h=2, e=4, f=8, g=3, patch=4),
    "small": Size(b=4, m=4, t=16, d=64, h=8, e=8, f=128, g=6, patch=64),
    # FPRM (7.4.1): embeddings of 512 numbers as 16 tokens.
    "fprm": Size(b=32, m=4, t=16, d=128, h=8, e=32, f=512, g=5, patch=32),
    # Fusion of the paper's width with 38, 151 and 608 million parameters.
    "e8": Size(b=8, m=3, t=16, d=768, h=8, e=8, f=3072, g=7, patch=48),
    "e32": Size(b=8, m=3, t=16, d=768, h=8, e=32, f=3072, g=7, patch=48),
    "e128": Size(b=8, m=3, t=16, d=768, h=8, e=128, f=3072, g=7, patch=48),
    # Four images of 32 x 32 (17 tokens) and of 224 x 224 (197 tokens) through small networks.
    "reduced": Size(b=4, m=4, t=17, d=64, h=8, e=8, f=128, g=6, patch=64),
    "vits": Size(b=32, m=4, t=197, d=192, h=8, e=32, f=768, g=6, patch=64, image="tiny"),
    # Table 17: four ViT-B/16, all 197 tokens of each in the fusion, 15 combinations.
    "full": Size(b=32, m=4, t=197, d=768, h=8, e=128, f=3072, g=15, patch=768, image="base"),
}


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


class Input(NamedTuple):
    """What the network must know of one modality; see `models.spec.ModalityInput`."""

    encoder: str
    shape: tuple[int, ...]
    vocabulary: int


class Cost(NamedTuple):
    """Operations of a forward pass of one sample, and the number of parameters."""

    flops: int
    parameters: int


class Setup(NamedTuple):
    """A network with its weights, a batch on the device, and its analytic cost."""

    network: Network
    params: dict[str, jax.Array]
    batch: dict[str, jax.Array]
    cost: Cost
    trained: Cost  # of the parts outside the encoders


def make_inputs(size: Size, kind: str) -> dict[str, Input]:
    """One input a modality: `embedding` ([t, patch] numbers) or `image` (of t - 1 patches)."""
    side = math.isqrt(size.t - 1) * vit.SIZES[size.image]["patch"]
    shape = (size.t, size.patch) if kind == "embedding" else (side, side, 3)
    return {f"m{i}": Input("patch" if kind == "embedding" else kind, shape, 0) for i in range(size.m)}


def make_batch(size: Size, inputs: Mapping[str, Input], seed: int = 0) -> dict[str, np.ndarray]:
    """Random samples of g random modality combinations, in the form that a train step takes."""
    rng = np.random.default_rng(seed)
    codes = 1 + rng.choice(2**size.m - 1, size.g, replace=False)
    groups = rng.integers(0, size.g, size.b).astype(np.int32)
    present = (codes[groups][:, None] >> np.arange(size.m)) % 2 == 1
    batch = {"group": groups, "present": present, "weight": np.ones(size.b, np.float32)}
    batch["label"] = rng.integers(0, CLASSES, size.b).astype(np.int32)
    for i, (name, one) in enumerate(inputs.items()):
        shape = (size.b, *one.shape)
        x = rng.integers(0, 256, shape) if one.encoder == "image" else rng.normal(size=shape)
        x = x * present[:, i].reshape(-1, *[1] * len(one.shape))
        batch[name] = x.astype(np.uint8 if one.encoder == "image" else np.float32)
    return batch


def count(network: Network, params: Mapping[str, Any], batch: Mapping[str, Any], gate: str) -> tuple[Cost, Cost]:
    """Costs for one sample of the whole network and of what lies outside its encoders."""
    one = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    parts = flops.count(functools.partial(network.apply, gate=gate), params, one)
    sizes = {path: math.prod(x.shape) for path, x in params.items()}

    def total(is_part: Callable[[str], bool]) -> Cost:
        return Cost(*(sum(n for name, n in counted.items() if is_part(name)) for counted in (parts, sizes)))

    return total(lambda name: True), total(lambda name: not name.startswith("encoders/"))


def set_up(
    size: Size,
    *,
    routed: bool,
    gate: str,
    preset: str = "official",
    kind: str = "embedding",
    imputation: str = "",
    fusion_options: Mapping[str, Any] = types.MappingProxyType({}),
) -> Setup:
    """Builds a network of one fusion block with weights and batch.

    Args:
      size: shapes.
      routed: REMIND's routers and vectors for each combination, instead of one router and a vector a modality.
      gate: see `Model.__call__`.
      preset: of the soft MoE.
      kind: of all modalities; `features` are images whose encoders have run, stored as bfloat16.
      imputation: of missing tokens, where it is another one.
      fusion_options: other fields of `FusionSpec`.
    """
    imputation = imputation or ("group" if routed else "modality")
    shape = {"heads": size.h, "experts": size.e, "hidden": size.f}
    fusion = {**shape, "preset": preset, "group_routers": routed, **fusion_options}
    spec = make_spec(fusion, width=size.d, tokens=size.t, image_encoder=f"vit_{size.image}", imputation=imputation)
    inputs = make_inputs(size, "image" if kind == "features" else kind)
    network = make_network(spec, inputs, size.g, CLASSES)
    shared = (size, routed, kind == "embedding", imputation, spec.fusion.kind, spec.fusion.router_rank)
    params = _weights(shared, network.init)
    batch = make_batch(size, inputs)
    if kind == "features":
        batch = stored(network, params, batch, inputs)
    return Setup(network, params, jax.device_put(batch), *count(network, params, batch, gate))


def make_spec(fusion: Mapping[str, Any], **model: Any) -> ModelSpec:
    """The network of a config's defaults without dropout, but for these keys of its sections `fusion` and `model`."""
    config = defaults()
    config["model"] |= {"encoder_dropout": 0.0, **model}
    config["fusion"] |= {"dropout": 0.0, **fusion}
    return model_spec(config)


def stored(network: Network, params: Mapping[str, Any], batch: Mapping[str, Any], names: Iterable[str]) -> dict:
    """The batch with the features of its encoders in place of their inputs, as a cache of features gives it."""
    encode = jax.jit(network.features, static_argnums=1)
    found = {STORED + name: np.asarray(encode(params, name, batch[name]).astype(jnp.bfloat16)) for name in names}
    return {**{name: x for name, x in batch.items() if name not in names}, **found}


_KEPT: dict[tuple, dict[str, jax.Array]] = {}


def _weights(key: tuple, init: Callable) -> dict[str, jax.Array]:
    """Initial weights, the same arrays for all variants of a shape, its key; those of the last two shapes are kept."""
    if key not in _KEPT:
        while len(_KEPT) > 1:
            del _KEPT[next(iter(_KEPT))]
        _KEPT[key] = jax.jit(init)(jax.random.key(0))
    return _KEPT[key]


def compiled(function: Callable, *args: Any, donate: tuple[int, ...] = ()) -> tuple[Callable, dict[str, Any]]:
    """Compiles for these arguments; also says what XLA counted, None where the backend does not tell."""
    program = jax.jit(function, donate_argnums=donate, keep_unused=True).lower(*args).compile()
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()
    facts = {"xla_flops": cost.get("flops")}
    for name in ("argument", "output", "alias", "temp"):
        facts[f"{name}_bytes"] = getattr(memory, f"{name}_size_in_bytes", None)
    return program, facts


def mean_loss(network: Network, gate: str, params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]):
    """Mean cross entropy of a batch."""
    return jnp.mean(losses.cross_entropy(network.apply(params, batch, gate=gate).logits, batch["label"]))


def make_objective(
    num_groups: int,
    *,
    robust: bool = False,
    reweighs: bool = False,
    mixup: float = 0.0,
    routing: Mapping[str, float] | None = None,
) -> objectives.Objective:
    """The package's objective with cross entropy and equally many samples of each combination.

    Args:
      num_groups: g.
      robust: whether λ acts and moves.
      reweighs: whether combinations have weights, which are all one here.
      mixup: weight of Fair Mixup's penalty.
      routing: weights of the penalty on the routing of a sparse fusion, which has one.
    """
    counts, dro = np.ones(num_groups, np.int32), group_dro.group_dro(num_groups)
    weights = reweigh.inverse_frequency_weights(counts) if reweighs else jnp.ones(num_groups)
    penalties = {"mixup": objectives.mixup_penalty(mixup, num_groups)} if mixup else {}
    if routing is not None:
        parts = {"balance": 0.01, "entropy": 0.0, "specialize": 0.0} | dict(routing)
        penalties["routing"] = objectives.routing_penalty(**parts)
    return objectives.Objective(
        counts,
        objectives.sample_losses(losses.cross_entropy),
        objectives.static_factors(weights),
        dro,
        objectives.robust_factors(dro, "current", normalize_present=False) if robust else None,
        penalties,
    )


def make_step(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    objective: objectives.Objective,
    *,
    gate: str,
    by_rows: bool = False,
    noisy: bool = False,
    **options: Any,
) -> package_step.Step:
    """The package's train step on one device, without dropout and averaging; `options` of `step.StepOptions`."""
    stage = Stage("joint", 0, 1, lambda path: False, gate, gate, robust=True)
    transforms = Transforms(draws=noisy, by_rows=by_rows)
    return package_step.make_step(network, objective, transforms, optimizer, stage, package_step.StepOptions(**options))


def make_optimizer(num_groups: int, **options: Any) -> optax.GradientTransformationExtraArgs:
    """AdamW without clipping, and λ; `options` of `optimizer.make_optimizer`."""
    schedule, dro = optax.constant_schedule(LEARNING_RATE), group_dro.group_dro(num_groups)
    return states.make_optimizer(schedule, weight_decay=WEIGHT_DECAY, clip=0.0, dro=dro, **options)


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


def compiled_step(
    step: package_step.Step, programs: str, state: states.TrainState, batch: Mapping[str, jax.Array]
) -> tuple[Callable, states.TrainState, dict[str, Any]]:
    """Compiles a step as `devices.make_program` does and runs it once; also says what XLA counted, over all programs.

    Returns:
      (state, batch) -> (state, metrics), the state after the first step (the one given is consumed), and the facts.
    """
    facts: dict[str, Any] = {"programs": 0}

    def compile_it(function: Callable, donate_argnums: Any) -> Callable:
        made = []

        def run(*args: Any) -> Any:
            if not made:
                donate = (donate_argnums,) if isinstance(donate_argnums, int) else donate_argnums
                program, found = compiled(function, *args, donate=donate)
                made.append(program)
                facts["programs"] += 1
                for name, value in found.items():
                    join = sum if name == "xla_flops" else max  # memory is that of the larger program
                    facts[name] = join((facts.get(name) or 0, value or 0)) if value is not None else facts.get(name)
            return made[0](*args)

        return run

    run = devices.compiled(step, programs, jax.devices()[0].platform, compile_it)
    state, _ = jax.block_until_ready(run(state, batch))
    return run, state, facts


def _step(
    size: Size,
    gate: str,
    *,
    robust: bool,
    frozen: bool = False,
    programs: str = "auto",
    group_rows: str = "all",
    reads: bool = False,
    precision: str = "float32",
    first_moment: str = "float32",
    gradient: str = "float32",
    objective: Mapping[str, Any] = types.MappingProxyType({}),
    **options: Any,
) -> Variant:
    """A train step whose state is donated.

    Args:
      size: shapes.
      gate: see `Model.__call__`.
      robust: whether λ acts and moves.
      frozen: whether the encoders stay as they are.
      programs, group_rows, precision, first_moment, gradient: as in remind_jax/config/table.py.
      reads: whether the batch is taken from 8 times as many samples on the host and brought to the device.
      objective: other arguments of `make_objective`.
      options: of `set_up`.
    """
    setup = set_up(size, gate=gate, **options)
    optimizer = make_optimizer(size.g, by_rows=group_rows == "batch", first_moment=first_moment)
    state = states.start(
        setup.params, lambda path: frozen and path.startswith("encoders/"), optimizer, step=0, ema=False
    )
    # The state may not share buffers with anything that lives on: it is donated.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    given = {"gate": gate, "by_rows": group_rows == "batch", "precision": precision, "gradient": gradient}
    noisy = options.get("fusion_options", {}).get("kind", "soft_moe") != "soft_moe"
    minimised = make_objective(size.g, robust=robust, **objective)
    step = make_step(setup.network, optimizer, minimised, noisy=noisy, **given)
    program, state, facts = compiled_step(step, programs, state, setup.batch)
    extra = setup.trained.flops if frozen else setup.cost.flops
    facts |= _facts(setup.cost.flops + (TRAIN_FACTOR - 1) * extra, setup.cost.parameters, size.b)
    if options.get("kind") == "image":
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


def check_parity(setup: Setup, network: Any, batch: Mapping[str, Any], tolerance: float = 1e-3) -> None:
    """Compares logits, gradients and one AdamW step of a PyTorch network with those of the JAX network.

    The weights of the PyTorch network are put back afterwards.

    Raises:
      RuntimeError: names what differs by more than `tolerance` of its largest entry.
    """
    from benchmarks import torch_reference as reference

    compare = functools.partial(_compare, tolerance)
    loss = functools.partial(mean_loss, setup.network, "never")
    compare(
        "logits",
        jax.jit(lambda p, x: setup.network.apply(p, x, gate="never").logits)(setup.params, setup.batch),
        reference.forward(network, batch)().numpy(),
    )
    gradients = jax.jit(jax.grad(loss))(setup.params, setup.batch)
    reference.train(network, batch, LEARNING_RATE, WEIGHT_DECAY)()
    optimizer, zeros = make_optimizer(1), jnp.zeros(1)
    for path in list(gradients):  # one at a time, since large networks fill the memory
        theirs = network.read(path, gradient=True)
        compare(f"the gradient of {path}", gradients.pop(path), theirs)
        # From the same gradient, since Adam's first step turns noise about zero into whole steps; in pieces, since its
        # moments take the memory of several arrays.
        arrays = (theirs, np.asarray(setup.params[path]), network.read(path))
        for gradient, before, after in zip(*map(_pieces, arrays), strict=True):
            one = {path: jnp.asarray(before)}
            updates, _ = optimizer.update(
                {path: jnp.asarray(gradient)}, optimizer.init(one), one, group_loss_sum=zeros, group_count=zeros
            )
            compare(f"the AdamW step of {path}", updates[path], after - before)
    network.load({path: np.asarray(x) for path, x in setup.params.items()})


def _pieces(x: np.ndarray, largest: int = 2**26) -> list[np.ndarray]:
    """An array as parts of about `largest` bytes along its first axis."""
    return np.array_split(x, -(-x.nbytes // largest)) if x.nbytes > largest else [x]


def _largest(x: np.ndarray) -> float:
    """Of the absolute values, without an array of them."""
    return max(np.max(x), -np.min(x))


def _compare(tolerance: float, what: str, ours: Any, theirs: np.ndarray) -> None:
    ours = np.asarray(ours)
    error = _largest(ours - theirs) / max(_largest(ours), 1e-6)
    if not error <= tolerance:
        raise RuntimeError(f"torch and JAX differ in {what} by {error:.1e} of the largest entry")


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
    halved = dict.fromkeys(("precision", "first_moment", "gradient"), "bfloat16")
    return [
        Entry(stage, name + suffix, functools.partial(_step, size, **METHODS[name], **chosen, **options))
        for stage, chosen in _STAGES.items()
        for suffix, options in (("", {}), (" bfloat16", halved))
        for name in ("soft_moe", "remind")
    ]


_STAGES: dict[str, dict[str, Any]] = {
    "all trained": {"kind": "image"},
    "encoders frozen": {"kind": "image", "frozen": True},
    "stored features": {"kind": "features", "frozen": True},
}


def _stage2_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """A step of stage 2 with what it reads from memory, and what filling the cache costs for as many samples."""
    del options
    frozen, kept = (dict(_STAGES[stage], **METHODS["remind"]) for stage in ("encoders frozen", "stored features"))
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
    params = _weights((name,), network.init)
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
    _compare(1e-3, "the features", expected, reference.forward(network, pixels)().numpy())
    run = reference.torch.compile(network) if compile_it else network
    return Variant(reference.forward(run, pixels), _encoder_facts(name, "torch"))


def _startup_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """Processes from their start to their end: imports, and a run on NHANES up to the end of its first step."""
    del size, options
    return [
        Entry("import", "jax", functools.partial(_process, "import jax")),
        Entry("import", "the package", functools.partial(_process, _IMPORT)),
        Entry("first step", "cold", functools.partial(_process, _FIRST_STEP)),
        Entry("first step", "compilation cache", functools.partial(_process, _FIRST_STEP, keeps=True)),
    ]


_IMPORT = "import remind_jax.models.network, remind_jax.ops.soft_moe"
# In a process of its own because it needs the data stack, which this module may not import.
_FIRST_STEP = """
import pathlib, tempfile, time
from remind_jax import cli
from remind_jax.data import dataset, pipeline
from remind_jax.training import run, run_folder

config = cli.parse_config(["--config=configs/nhanes.py:method=remind"])[0]
with tempfile.TemporaryDirectory() as folder:
    opened = run_folder.RunFolder(pathlib.Path(folder), config.to_dict())
    data = dataset.load_dataset(config)
    trainer = run.make_trainer(config, data, opened)
    stage = trainer.stages[0]
    start = trainer.begin(stage, trainer.initial())
    (batch,) = pipeline.train_batches(data.stores["train"], trainer.sampler.order, config.train.batch_size, 0, 1)
    program = trainer.program(stage)
    placed, began = program.place(start), time.perf_counter()
    program.read(program.step(placed, batch)[1])
    print(1e3 * (time.perf_counter() - began))
    opened.close()
"""


def _process(code: str, keeps: bool = False) -> Variant:
    """A Python process; what it prints last are milliseconds of its first step.

    Args:
      code: to run.
      keeps: whether it finds what an earlier one has compiled.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if keeps:
        folder = tempfile.mkdtemp(prefix="compiled-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        environment |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def call() -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"a process that was to be timed ended with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    call()  # prepares the data, and compiles what is kept
    printed = call().split()
    return Variant(call, _facts(0, 0, 0) | {"first_step_ms": float(printed[-1]) if printed else None})


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


CASES = {
    "block": Case(_block_entries, ("torch loop", "shared router"), ("fprm", "tiny", "small", "e8", "e32", "e128")),
    "step": Case(_step_entries, ("torch loop", "torch compile", "soft_moe"), ("fprm", "tiny", "e8", "e32", "e128")),
    "experts": Case(_expert_entries, ("torch loop", "soft_moe"), ("fprm", "tiny")),
    "groups": Case(_group_entries, ("6 combinations",), ("fprm", "tiny", "small")),
    "table17": Case(_table17_entries, ("soft_moe",), ("reduced", "tiny", "full")),
    "stage2": Case(_stage2_entries, ("frozen on the fly",), ("vits", "reduced", "tiny")),
    "encoders": Case(_encoder_entries, ("torch eager",), ("full", "tiny")),
    "input": Case(_input_entries, ("memory",), ("tiny",)),
    "startup": Case(_startup_entries, ("jax", "cold"), ("tiny",)),
}
