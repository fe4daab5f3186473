import functools
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remind_jax.objectives.group_dro import group_dro
from remind_jax.training import optimizer as states

PARAMS = {
    "encoders/labs/embed/kernel": jnp.full((2, 3), 2.0, jnp.float32),
    "encoders/labs/embed/bias": jnp.full(3, 2.0, jnp.float32),
    "block_0/moe_norm/scale": jnp.full(3, 2.0, jnp.float32),
    "block_0/router_scale": jnp.float32(2.0),
    "block_0/expert_in_bias": jnp.full((2, 4), 2.0, jnp.float32),
    "block_0/group_router": jnp.full((2, 3, 2, 1), 2.0, jnp.float32),
    "head/kernel": jnp.full((3, 2), 2.0, jnp.float32),
}
DECAYED = {"encoders/labs/embed/kernel", "block_0/group_router", "head/kernel"}
SUMS = {"group_loss_sum": jnp.asarray([1.0, 3.0]), "group_count": jnp.asarray([1.0, 1.0])}


def is_encoder(path: str) -> bool:
    return path.startswith("encoders/")


def nothing(path: str) -> bool:
    return False


@pytest.fixture(autouse=True)
def _promotion_as_optax_needs_it() -> Iterator[None]:
    """The Adam of optax raises floats to powers of integers."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def optimizer(
    rate: float = 0.1, decay: float = 0.0, clip: float = 0.0, of: str = "weights"
) -> optax.GradientTransformationExtraArgs:
    dro = group_dro(2, gamma=1.0, every=1, initial=jnp.asarray([0.5, 0.5]))
    return states.make_optimizer(optax.constant_schedule(rate), weight_decay=decay, clip=clip, dro=dro, decay=of)


def begin(is_frozen=nothing, ema: bool = False, step: int = 0, **options) -> states.TrainState:
    return states.start(PARAMS, is_frozen, optimizer(**options), step, ema)


# ---- Partition ------------------------------------------------------------------------------------------------------


def test_a_partition_loses_nothing_and_shares_nothing() -> None:
    trained, frozen = states.partition(PARAMS, is_encoder)
    assert set(frozen) == {"encoders/labs/embed/kernel", "encoders/labs/embed/bias"}
    assert not set(trained) & set(frozen)
    assert {**trained, **frozen} == PARAMS
    assert states.partition(PARAMS, nothing) == (PARAMS, {})


def test_frozen_parameters_have_no_optimizer_state_and_no_average() -> None:
    whole, part = begin(ema=True), begin(is_encoder, ema=True, step=7)
    size = {name: sum(x.size for x in jax.tree.leaves(s.opt_state)) for name, s in (("whole", whole), ("part", part))}
    frozen = sum(x.size for x in part.frozen.values())
    assert frozen == 9
    assert size["whole"] - size["part"] == 2 * frozen  # two moments each
    paths = {str(path) for path, _ in jax.tree_util.tree_leaves_with_path(part.opt_state)}
    assert any("head/kernel" in path for path in paths)
    assert not any("encoders/" in path for path in paths)
    assert set(part.ema) == set(part.params)
    assert int(part.step) == 7
    assert part.step.dtype == jnp.int32


def test_no_buffer_is_in_the_state_twice() -> None:
    # A donated state may hold no buffer twice.
    leaves = jax.tree.leaves(begin(is_encoder, ema=True))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


@pytest.mark.parametrize("ema", [False, True])
def test_weights_for_evaluation_are_all_of_them_averaged_where_there_is_an_average(ema: bool) -> None:
    state = begin(is_encoder, ema=ema)
    state = state._replace(ema={path: x - 1.0 for path, x in state.ema.items()})
    expected = {path: x - (1.0 if ema and not is_encoder(path) else 0.0) for path, x in PARAMS.items()}
    chex.assert_trees_all_equal(state.weights(), expected)


# ---- Optimizer ------------------------------------------------------------------------------------------------------


def moved(gradients: dict[str, jax.Array], **options) -> dict[str, float]:
    """By how much one step moves each parameter (its largest entry)."""
    transform = optimizer(**options)
    updates, _ = jax.jit(transform.update)(gradients, transform.init(PARAMS), PARAMS, **SUMS)
    return {path: float(jnp.max(jnp.abs(x))) for path, x in updates.items()}


@pytest.mark.parametrize(("of", "decayed"), [("weights", DECAYED), ("all", set(PARAMS))])
def test_weight_decay_leaves_biases_and_scales_alone_or_shrinks_everything(of: str, decayed: set[str]) -> None:
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    found = moved(zeros, decay=0.25, of=of)
    # Decoupled: rate * decay * value = 0.1 * 0.25 * 2.
    assert found == {path: pytest.approx(0.05 if path in decayed else 0.0) for path in PARAMS}
    assert set(moved(zeros, of=of).values()) == {0.0}


def test_weight_decay_of_everything_keeps_the_form_of_the_state() -> None:
    one, other = (jax.tree.structure(optimizer(decay=0.1, of=of).init(PARAMS)) for of in states.DECAYED)
    assert one == other  # so that readers of checkpoints need not know which it was


def test_adam_moves_by_the_learning_rate_at_first_and_clipping_looks_at_all_gradients() -> None:
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    assert moved(ones) == {path: pytest.approx(0.1, rel=1e-4) for path in PARAMS}
    # Adam forgets the size of gradients, but for its epsilon of 1e-8: clipped to a norm of 1e-7, it shows.
    entries = sum(x.size for x in PARAMS.values())
    each = 1e-7 / np.sqrt(entries)
    assert moved(ones, clip=1e-7)["head/kernel"] == pytest.approx(0.1 * each / (each + 1e-8), rel=1e-3)


def test_the_optimizer_carries_the_group_weights_and_compiles_once() -> None:
    chex.clear_trace_counter()
    transform = optimizer(decay=0.1, clip=1.0)
    state = states.start(PARAMS, is_encoder, transform, 0, True)
    state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)

    @functools.partial(jax.jit, donate_argnums=0)
    @chex.assert_max_traces(n=1)
    def step(state: states.TrainState) -> states.TrainState:
        gradient = jax.tree.map(jnp.ones_like, state.params)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params, **SUMS)
        return state._replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )

    for _ in range(3):
        state = step(state)
    assert int(state.step) == 3
    weights = np.exp(np.asarray(state.opt_state["dro"].log_weights))
    assert weights[1] / weights[0] == pytest.approx(np.exp(3 * (3.0 - 1.0)), rel=1e-4)
    chex.assert_trees_all_equal(state.frozen, {path: PARAMS[path] for path in PARAMS if is_encoder(path)})
    assert all((state.params[path] != PARAMS[path]).all() for path in state.params)


# ---- Learning rate --------------------------------------------------------------------------------------------------


def rates(kind: str, steps: list[int], warmup: float = 0.0) -> list[float]:
    schedule = states.learning_rate(kind, 1e-4, steps=100, warmup=warmup, decay_steps=5, decay_rate=0.1)
    return [float(schedule(step)) for step in steps]


def test_step_decay_is_that_of_the_paper() -> None:
    expected = [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-7]
    assert rates("step", [0, 4, 5, 9, 10, 15]) == pytest.approx(expected, rel=1e-5)


def test_cosine_warms_up_and_ends_at_zero() -> None:
    found = rates("cosine", [0, 5, 10, 55, 100, 1000], warmup=0.1)
    assert found == pytest.approx([0.0, 0.5e-4, 1e-4, 0.5e-4, 0.0, 0.0], abs=1e-9)
    assert rates("cosine", [0, 50, 100]) == pytest.approx([1e-4, 0.5e-4, 0.0], abs=1e-9)
    assert rates("constant", [0, 50, 1000]) == pytest.approx([1e-4] * 3)


@pytest.mark.parametrize("steps", [1, 2, 3, 19])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.9])
def test_the_cosine_of_a_very_short_run_is_finite_and_not_all_zero(steps: int, warmup: float) -> None:
    schedule = states.learning_rate("cosine", 1.0, steps=steps, warmup=warmup, decay_steps=1, decay_rate=1.0)
    found = [float(schedule(step)) for step in range(steps)]
    chex.assert_tree_all_finite(found)
    assert 0 < max(found) <= 1.0


# ---- Averages -------------------------------------------------------------------------------------------------------


def test_the_memory_of_the_average_is_a_tenth_of_the_run_at_most() -> None:
    assert states.effective_decay(0.98, 10_000) == 0.98
    assert states.effective_decay(0.98, 100) == pytest.approx(0.9)
    assert states.effective_decay(0.98, 500) == pytest.approx(0.98)
    assert states.effective_decay(0.98, 5) == 0.0
    assert states.effective_decay(0.98, 0) == 0.0


def test_the_average_starts_at_the_weights_as_a_copy() -> None:
    state = begin(is_encoder, ema=True)
    chex.assert_trees_all_equal(state.ema, {path: x for path, x in PARAMS.items() if not is_encoder(path)})
    assert not any(x is PARAMS[path] for path, x in state.ema.items())
    assert begin(is_encoder).ema == {}
