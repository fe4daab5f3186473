"""Rows about the order of samples, and about steps that are not finite."""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from remind_jax.config import base
from remind_jax.data import pipeline, samplers
from remind_jax.methods import apply_method
from remind_jax.training import optimizer as states
from remind_jax.training.stages import plan_stages
from tests.models.pure import linear_network
from tests.reliability import Tally, row
from tests.training.steps import composed

# ---- Data order -----------------------------------------------------------------------------------------------------

ROWS, BATCH, GROUPS = 53, 4, 5
PER_EPOCH = -(-ROWS // BATCH)


class _Store:
    """Rows that are their own numbers."""

    def __len__(self) -> int:
        return ROWS

    def take(self, positions: np.ndarray, inputs: Any = None) -> dict[str, np.ndarray]:
        return {"row": np.asarray(positions)}


def _orders(seed: int) -> dict[str, Callable[[], samplers.Order]]:
    rng = np.random.default_rng(seed)
    presence = rng.random((ROWS, 3)) > 0.4
    groups = rng.integers(0, GROUPS, ROWS)
    return {
        "shuffled": lambda: samplers.shuffled(seed, ROWS),
        "group_balanced": lambda: samplers.group_balanced(seed, groups),
        "most_modalities_first": lambda: samplers.most_modalities_first(seed, presence.astype(int).sum(axis=1), 1),
        "group_pairs": lambda: samplers.group_pairs(seed, groups, "random"),
        "fair_batch": lambda: samplers.FairBatch(seed, groups, BATCH, alpha=0.1).order,
    }


@row(
    name="order",
    title="the order of samples, resumed at every step of an epoch",
    target="identical to the order of the run left alone, whatever the number of threads",
    unit="seeds",
    reduced=1,
    full=3,
    broken="an order that draws its random numbers one after the other",
)
def order(count: int, broken: bool) -> Tally:
    """Five samplers, every step of two epochs, 0 to 3 threads."""
    tally = Tally()
    for seed in range(count):
        orders = _orders(seed)
        if broken:
            orders = {"stateful": lambda seed=seed: _stateful(np.random.default_rng(seed))}
        for name, make in orders.items():
            whole = [x["row"].tolist() for x in pipeline.train_batches(_Store(), make(), BATCH, 0, 2 * PER_EPOCH)]
            for start in range(2 * PER_EPOCH):
                threads = start % 4
                batches = pipeline.train_batches(_Store(), make(), BATCH, start, 2 * PER_EPOCH, threads=threads)
                with contextlib.closing(batches):
                    rest = [x["row"].tolist() for x in batches]
                tally.check(rest == whole[start:], f"{name}, seed {seed}, from step {start} with {threads} threads")
        if not broken:
            first = samplers.shuffled(seed, ROWS)(0, ROWS)
            tally.check(sorted(first.tolist()) == list(range(ROWS)), f"seed {seed}: not every sample once in an epoch")
    tally.notes.append(
        "samplers shuffled, group_balanced, most_modalities_first, group_pairs and fair_batch, "
        f"{2 * PER_EPOCH} resume points each, 0 to 3 threads"
    )
    return tally


def _stateful(rng: np.random.Generator) -> samplers.Order:
    return lambda step, size: rng.integers(0, ROWS, size)


# ---- What is not finite ---------------------------------------------------------------------------------------------

CELLS = np.array([[2, 2, 2], [1, 1, 1], [1, 0, 0]])  # training samples by combination and class
VALUES = (np.nan, np.inf, -np.inf, 3e38)
METHODS = ("remind", "soft_moe", "group_dro", "reweigh", "logit_adjust")
PLACES = ("input", "one group", "gradient", "λ")


def _batch(seed: int, b: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = np.arange(b, dtype=np.int32) % 3
    return {
        "labs": rng.normal(size=(b, 5)).astype(np.float32),
        "present": np.ones((b, 2), bool),
        "group": group,
        "label": rng.integers(0, 3, b).astype(np.int32),
        "weight": np.ones(b, np.float32),
    }


@functools.cache
def _stepper(method: str, place: str, accepts_all: bool) -> tuple[states.TrainState, Callable[..., Any]]:
    """A state after a good step, and the compiled step of a linear network."""
    config = base()
    apply_method(config, method)
    config.dro.every, config.dro.gamma = 2, 3e38 if place == "λ" else 0.5
    network = linear_network()

    def optimizer_of(dro: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
        if accepts_all:
            return optax.named_chain(("adamw", optax.adamw(0.1)), ("dro", dro))
        return states.make_optimizer(optax.constant_schedule(0.1), weight_decay=0.1, clip=0.0, dro=dro)

    stage = plan_stages(config, 100, {})[0]

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        each = -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        # The second is finite and has no finite slope at 0.
        return each + jnp.sqrt(jnp.abs(logits[:, 0])) if place == "gradient" else each

    made, optimizer = composed(config, network, CELLS, stage, optimizer_of, decay=0.75, loss=loss)
    state = states.start(network.init(jax.random.key(0)), lambda path: False, optimizer, 0, ema=True)
    with jax.numpy_dtype_promotion("standard"):
        step = jax.jit(lambda state, batch: made(state, batch, axis_name=None))
        state, _ = step(state, _batch(0))
    return state, step


@row(
    name="finite",
    title="NaN and infinity in the input, one group's loss, the gradient, λ",
    target="rejected before the update: no bit of parameters, optimizer or λ changes; the group is told",
    unit="cases",
    reduced=12,
    full=80,
    broken="the optimizer does not hold the update back",
)
def finite(count: int, broken: bool) -> Tally:
    """On the compiled step; what the run does of it is in tests/training/test_loop.py."""
    cases = [(m, p, v) for v in VALUES for p in PLACES for m in METHODS]
    tally = Tally()
    for method, place, value in cases[:count]:
        if place == "λ" and method != "remind":
            method = "remind"  # the others have none, or one that is updated in another way
        state, step = _stepper(method, place, broken)
        batch = _batch(1)
        guilty = {0}
        if place == "input":
            batch["labs"][0, 2] = value
        elif place == "one group":
            batch["labs"][batch["group"] == 1] = value
            guilty = {1}
        elif place == "gradient":
            batch["labs"][0], guilty = 0.0, set()
        else:
            guilty = set()
        with jax.numpy_dtype_promotion("standard"):
            after, metrics = step(state, batch)
        same = _digest(after._replace(step=0)) == _digest(state._replace(step=0))
        blamed = set(np.flatnonzero(~np.isfinite(metrics["group_loss_sum"])).tolist())
        held = same and bool(metrics["train/rejected"])
        if value == 3e38 and not metrics["train/rejected"]:  # a large number need not overflow: an ordinary step then
            held = all(np.isfinite(x).all() for x in jax.tree.leaves((after, metrics)))
        good = held and blamed <= guilty and int(after.step) == int(state.step) + 1
        told = blamed == guilty or value == 3e38
        tally.check(good and told, f"{method}, {place} {value}: unchanged {same}, groups {blamed}")
    return tally


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for x in jax.tree.leaves(tree):
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()
