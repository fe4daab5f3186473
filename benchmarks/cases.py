"""What is timed: networks of several sizes, and the variants of each case.

A variant is built only when it is timed. Jitted functions take parameters and data as arguments: XLA would fold
closed-over weights into constants. All variants of a case get equal weights where they share them, and equal batches.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax import parallel
from remind_jax import state as states
from remind_jax import step as package_step
from remind_jax.models.fusion.soft_moe import FusionSpec
from remind_jax.models.model import ModelSpec, Network, make_network
from remind_jax.objectives import group_dro
from remind_jax.ops import flops, losses, soft_moe

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.1
CLASSES = 3
# The backward pass of a product is two products of the same size.
TRAIN_FACTOR = 3


@dataclasses.dataclass(frozen=True)
class Size:
    """Shape of a network and of its batch; the letters of the project's legend, `m` modalities of `t` tokens each.

    Attributes:
      patch: numbers in a precomputed token.
      text: size of the text encoders of case table17 (a key of `t5.SIZES`).
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
    text: str = "small"


SIZES = {
    "tiny": Size(b=4, m=3, t=2, d=16, h=2, e=4, f=8, g=3, patch=4),
    "small": Size(b=4, m=4, t=16, d=64, h=8, e=8, f=128, g=6, patch=64),
    # FPRM (7.4.1): embeddings of 512 numbers as 16 tokens.
    "fprm": Size(b=32, m=4, t=16, d=128, h=8, e=32, f=512, g=5, patch=32),
    # Fusion of the paper's width with 38, 151 and 608 million parameters.
    "e8": Size(b=8, m=3, t=16, d=768, h=8, e=8, f=3072, g=7, patch=48),
    "e32": Size(b=8, m=3, t=16, d=768, h=8, e=32, f=3072, g=7, patch=48),
    "e128": Size(b=8, m=3, t=16, d=768, h=8, e=128, f=3072, g=7, patch=48),
    # Table 17: four encoders of ViT-B/16's shape, all 197 tokens of each in the fusion, 15 combinations.
    "full": Size(b=32, m=4, t=197, d=768, h=8, e=128, f=3072, g=15, patch=768, text="base"),
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
    """What the network must know of one modality."""

    kind: str
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
    """One input a modality: `embedding` ([t, patch] numbers) or `text` (t token ids)."""
    shape = (size.t, size.patch) if kind == "embedding" else (size.t,)
    return {f"m{i}": Input(kind, shape, 1_000) for i in range(size.m)}


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
        x = rng.integers(3, one.vocabulary, shape) if one.kind == "text" else rng.normal(size=shape)
        x = x * present[:, i].reshape(-1, *[1] * len(one.shape))
        batch[name] = x.astype(np.int32 if one.kind == "text" else np.float32)
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
      kind: of all modalities.
      imputation: of missing tokens, where it is another one.
      fusion_options: of a fusion that is no soft MoE, see `FusionSpec`.
    """
    imputation = imputation or ("group" if routed else "modality")
    shape = {"heads": size.h, "experts": size.e, "hidden": size.f}
    fusion = FusionSpec(**shape, preset=preset, group_routers=routed, **fusion_options)
    spec = ModelSpec(
        width=size.d,
        tokens=size.t,
        text_size=size.text,
        text_gated=False,
        imputation=imputation,
        fusion=fusion,
    )
    inputs = make_inputs(size, kind)
    network = make_network(spec, inputs, size.g, CLASSES)
    params = _weights((size, routed, kind, imputation, fusion.kind), network.init)
    batch = make_batch(size, inputs)
    return Setup(network, params, jax.device_put(batch), *count(network, params, batch, gate))


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


OBJECTIVE = {
    **{"mixup_weight": 0.0, "mixup_beta": 1.0, "distill_weight": 0.0},
    **{"reweigh_rule": "power", "reweigh_power": 1.0, "reweigh_cap": 0.0},
    **{"balance_weight": 0.01, "entropy_weight": 0.0, "specialize_weight": 0.0},
}


def make_step(
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    num_groups: int,
    *,
    gate: str,
    robust: bool,
    group_rows: str = "all",
    fusion: str = "soft_moe",
    **objective: Any,
) -> package_step.Step:
    """The package's train step on one device, without dropout and averaging; `objective` as in configs/common.py."""
    space = types.SimpleNamespace
    config = space(
        seed=0,
        ensemble=1,
        ensemble_plain=0,
        model=space(encoder_dropout=0.0),
        fusion=space(kind=fusion, dropout=0.0, noise=True),
        train=space(hide_samples=0.0),
        optim=space(group_rows=group_rows),
        objective=space(**OBJECTIVE | {"kind": "group_dro" if robust else "erm"} | objective),
        dro=space(weights="current", normalize_present=False),
    )
    stage = package_step.Stage("joint", 0, 1, lambda path: False, gate, gate, robust)
    counts = np.ones(num_groups, np.int32)
    dro = group_dro.group_dro(num_groups)
    return package_step.make_step(config, stage, network, losses.cross_entropy, optimizer, dro, counts, 0.0)


def make_optimizer(num_groups: int, by_rows: bool = False) -> optax.GradientTransformationExtraArgs:
    """AdamW without clipping, and λ."""
    schedule, dro = optax.constant_schedule(LEARNING_RATE), group_dro.group_dro(num_groups)
    return states.make_optimizer(schedule, weight_decay=WEIGHT_DECAY, clip=0.0, dro=dro, by_rows=by_rows)


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
    """Compiles a step as `parallel.make_program` does and runs it once; also says what XLA counted, over all programs.

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

    run = parallel.compiled(step, programs, jax.devices()[0].platform, compile_it)
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
    objective: Mapping[str, Any] = types.MappingProxyType({}),
    **options: Any,
) -> Variant:
    """A train step whose state is donated; `frozen` leaves the encoders as they are."""
    setup = set_up(size, gate=gate, **options)
    optimizer = make_optimizer(size.g, group_rows == "batch")
    state = states.start(
        setup.params, lambda path: frozen and path.startswith("encoders/"), optimizer, step=0, ema=False
    )
    # The state may not share buffers with anything that lives on: it is donated.
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
    fusion = options.get("fusion_options", {}).get("kind", "soft_moe")
    step = make_step(
        setup.network, optimizer, size.g, gate=gate, robust=robust, group_rows=group_rows, fusion=fusion, **objective
    )
    program, state, facts = compiled_step(step, programs, state, setup.batch)
    extra = setup.trained.flops if frozen else setup.cost.flops
    facts |= _facts(setup.cost.flops + (TRAIN_FACTOR - 1) * extra, setup.cost.parameters, size.b)
    if options.get("kind") == "text":
        facts["xla_flops"] = None  # XLA counts the body of the scan over layers once
    batch, held = setup.batch, [state]
    del setup, state

    def call() -> None:
        held[0], metrics = program(held[0], batch)
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

    def compare(what: str, ours: Any, theirs: np.ndarray) -> None:
        ours = np.asarray(ours)
        error = np.max(np.abs(ours - theirs)) / max(np.max(np.abs(ours)), 1e-6)
        if not error <= tolerance:
            raise RuntimeError(f"torch and JAX differ in {what} by {error:.1e} of the largest entry")

    loss = functools.partial(mean_loss, setup.network, "never")
    compare(
        "logits",
        jax.jit(lambda p, x: setup.network.apply(p, x, gate="never").logits)(setup.params, setup.batch),
        reference.forward(network, batch)().numpy(),
    )
    gradients = jax.jit(jax.grad(loss))(setup.params, setup.batch)
    reference.train(network, batch, LEARNING_RATE, WEIGHT_DECAY)()
    theirs = network.read(gradient=True)
    for path, gradient in gradients.items():
        compare(f"the gradient of {path}", gradient, theirs[path])
    # From the same gradients, since Adam's first step turns noise about zero into whole steps.
    optimizer = make_optimizer(1)
    zeros = jnp.zeros(1)
    updates, _ = optimizer.update(
        {path: jnp.asarray(x) for path, x in theirs.items()},
        optimizer.init(setup.params),
        setup.params,
        group_loss_sum=zeros,
        group_count=zeros,
    )
    moved = network.read()
    for path, update in updates.items():
        compare(f"the AdamW step of {path}", update, moved[path] - np.asarray(setup.params[path]))
    network.load({path: np.asarray(x) for path, x in setup.params.items()})


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
    "reweigh": _PLAIN | {"objective": {"kind": "reweigh"}},
    "fair_mixup": _PLAIN | {"objective": {"mixup_weight": 0.1}},
    "fuse_moe": _PLAIN | {"fusion_options": {"kind": "fuse_moe"}, "objective": {"entropy_weight": 0.01}},
    "flex_moe": _PLAIN
    | {
        "fusion_options": FLEX_MOE,
        "imputation": "bank",
        "objective": {"specialize_weight": 0.01},
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
    return [
        Entry(
            "train step" if group_rows == "batch" else "train step, all rows",
            f"{count} combinations",
            functools.partial(_step, dataclasses.replace(size, g=count), group_rows=group_rows, **METHODS["remind"]),
        )
        for group_rows in ("batch", "all")
        for count in (6, 60, 1_000, 10_000)
    ]


def _table17_entries(size: Size, options: frozenset[str]) -> list[Entry]:
    """All trained, encoders frozen, and from stored features (a linear map stands where the encoder was)."""
    del options
    stages = {
        "all trained": {"kind": "text"},
        "encoders frozen": {"kind": "text", "frozen": True},
        "stored features": {"kind": "embedding"},
    }
    return [
        Entry(stage, name, functools.partial(_step, size, **METHODS[name], **chosen))
        for stage, chosen in stages.items()
        for name in ("soft_moe", "remind")
    ]


CASES = {
    "block": Case(_block_entries, ("torch loop", "shared router"), ("fprm", "tiny", "small", "e8", "e32", "e128")),
    "step": Case(_step_entries, ("torch loop", "torch compile", "soft_moe"), ("fprm", "tiny", "e8", "e32", "e128")),
    "experts": Case(_expert_entries, ("torch loop", "soft_moe"), ("fprm", "tiny")),
    "groups": Case(_group_entries, ("6 combinations",), ("fprm", "tiny", "small")),
    "table17": Case(_table17_entries, ("soft_moe",), ("small", "tiny", "full")),
}
