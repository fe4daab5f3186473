"""Networks, batches and steps to time: shapes, and what a case builds of them.

Jitted functions take parameters and data as arguments: XLA would fold closed-over weights into constants. All variants
of a shape get equal weights, and equal batches.
"""

import dataclasses
import functools
import math
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
from remind_jax.ops import flops, losses, sparse_moe
from remind_jax.runtime import devices
from remind_jax.training import objective as objectives
from remind_jax.training import optimizer as states
from remind_jax.training import step as package_step
from remind_jax.training.stages import Stage
from remind_jax.training.transforms import Transforms

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
    # The small configs of the paper's data sets.
    "twins": Size(b=64, m=4, t=4, d=64, h=8, e=8, f=128, g=6, patch=32),
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
        pixels = one.encoder in ("image", "volume")
        x = rng.integers(0, 256, shape) if pixels else rng.normal(size=shape)
        x = x * present[:, i].reshape(-1, *[1] * len(one.shape))
        batch[name] = x.astype(np.uint8 if pixels else np.float32)
    return batch


def count(network: Network, params: Mapping[str, Any], batch: Mapping[str, Any], gate: str) -> tuple[Cost, Cost]:
    """Costs for one sample of the whole network and of what lies outside its encoders."""
    one = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}
    parts = flops.count(functools.partial(network.apply, gate=gate), params, one)
    sizes = {path: math.prod(x.shape) for path, x in params.items()}

    def total(is_part: Callable[[str], bool]) -> Cost:
        return Cost(*(sum(n for name, n in counted.items() if is_part(name)) for counted in (parts, sizes)))

    return total(lambda name: True), total(lambda name: not name.startswith("encoders/"))


class Outline(NamedTuple):
    """A network before it has weights.

    Attributes:
      network: as pure functions.
      inputs: what it reads, by modality.
      key: of its initial weights, for `initial_weights`.
    """

    network: Network
    inputs: Mapping[str, Input]
    key: tuple


def outline(
    size: Size,
    *,
    routed: bool,
    preset: str = "official",
    kind: str = "embedding",
    imputation: str = "",
    fusion_options: Mapping[str, Any] = types.MappingProxyType({}),
    inputs: Mapping[str, Input] | None = None,
    **model: Any,
) -> Outline:
    """Describes a network of one fusion block.

    Args:
      size: shapes.
      routed: REMIND's routers and vectors for each combination, instead of one router and a vector a modality.
      preset: of the soft MoE.
      kind: of all modalities; `features` are images whose encoders have run, stored as bfloat16.
      imputation: of missing tokens, where it is another one.
      fusion_options: other fields of `FusionSpec`.
      inputs: in place of those of `kind`.
      model: other keys of a config's section `model`.
    """
    imputation = imputation or ("group" if routed else "modality")
    shape = {"heads": size.h, "experts": size.e, "hidden": size.f}
    fusion = {**shape, "preset": preset, "group_routers": routed, **fusion_options}
    model = {"width": size.d, "tokens": size.t, "image_encoder": f"vit_{size.image}", "imputation": imputation, **model}
    spec = make_spec(fusion, **model)
    inputs = inputs or make_inputs(size, "image" if kind == "features" else kind)
    network = make_network(spec, inputs, size.g, CLASSES)
    shared = (size, routed, kind == "embedding", imputation, spec.fusion.kind, spec.fusion.router_rank)
    return Outline(network, inputs, shared)


def set_up(size: Size, *, gate: str, kind: str = "embedding", **options: Any) -> Setup:
    """Makes a network of `outline` with its weights and a batch; `gate` see `Model.__call__`."""
    network, inputs, key = outline(size, kind=kind, **options)
    params = initial_weights(key, network.init)
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


KEPT: dict[tuple, dict[str, jax.Array]] = {}


def initial_weights(key: tuple, init: Callable) -> dict[str, jax.Array]:
    """Initial weights, the same arrays for all variants of a shape, its key; those of the last two shapes are kept."""
    if key not in KEPT:
        while len(KEPT) > 1:
            del KEPT[next(iter(KEPT))]
        KEPT[key] = jax.device_put(init(0))
    return KEPT[key]


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
        penalties["routing"] = objectives.fusion_penalty(functools.partial(sparse_moe.block_penalty, **parts))
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


def check_parity(setup: Setup, network: Any, batch: Mapping[str, Any], tolerance: float = 1e-3) -> None:
    """Compares logits, gradients and one AdamW step of a PyTorch network with those of the JAX network.

    The weights of the PyTorch network are put back afterwards.

    Raises:
      RuntimeError: names what differs by more than `tolerance` of its largest entry.
    """
    from benchmarks import torch_reference as reference

    check = functools.partial(compare, tolerance)
    loss = functools.partial(mean_loss, setup.network, "never")
    check(
        "logits",
        jax.jit(lambda p, x: setup.network.apply(p, x, gate="never").logits)(setup.params, setup.batch),
        reference.forward(network, batch)().numpy(),
    )
    gradients = jax.jit(jax.grad(loss))(setup.params, setup.batch)
    reference.train(network, batch, LEARNING_RATE, WEIGHT_DECAY)()
    optimizer, zeros = make_optimizer(1), jnp.zeros(1)
    for path in list(gradients):  # one at a time, since large networks fill the memory
        theirs = network.read(path, gradient=True)
        check(f"the gradient of {path}", gradients.pop(path), theirs)
        # From the same gradient, since Adam's first step turns noise about zero into whole steps; in pieces, since its
        # moments take the memory of several arrays.
        arrays = (theirs, np.asarray(setup.params[path]), network.read(path))
        for gradient, before, after in zip(*map(_pieces, arrays), strict=True):
            one = {path: jnp.asarray(before)}
            updates, _ = optimizer.update(
                {path: jnp.asarray(gradient)}, optimizer.init(one), one, group_loss_sum=zeros, group_count=zeros
            )
            check(f"the AdamW step of {path}", updates[path], after - before)
    network.load({path: np.asarray(x) for path, x in setup.params.items()})


def _pieces(x: np.ndarray, largest: int = 2**26) -> list[np.ndarray]:
    """An array as parts of about `largest` bytes along its first axis."""
    return np.array_split(x, -(-x.nbytes // largest)) if x.nbytes > largest else [x]


def _largest(x: np.ndarray) -> float:
    """Of the absolute values, without an array of them."""
    return max(np.max(x), -np.min(x))


def compare(tolerance: float, what: str, ours: Any, theirs: np.ndarray) -> None:
    """Raises a RuntimeError where arrays differ by more than `tolerance` of the largest entry."""
    ours = np.asarray(ours)
    error = _largest(ours - theirs) / max(_largest(ours), 1e-6)
    if not error <= tolerance:
        raise RuntimeError(f"torch and JAX differ in {what} by {error:.1e} of the largest entry")
