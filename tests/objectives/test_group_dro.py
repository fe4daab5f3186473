import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import strategies as st

from remind_jax.objectives import group_dro
from remind_jax.ops import losses
from tests.reference import group_dro as slow

G = 4
Step = dict[int, list[float]]
EVERY_GROUP: Step = {0: [0.5, 0.1], 1: [1.0], 2: [2.0, 1.5, 0.1], 3: [0.3]}


def random_steps(number: int, seed: int = 0, groups: int = G) -> list[Step]:
    """Losses by group in which each group is absent half of the time."""
    rng = np.random.default_rng(seed)
    present = rng.random((number, groups)) < 0.5
    return [{int(g): list(rng.random(rng.integers(1, 4)) * 2) for g in np.flatnonzero(row)} for row in present]


def sums(step: Step, groups: int = G) -> dict[str, jax.Array]:
    total = [sum(step.get(g, [])) for g in range(groups)]
    count = [len(step.get(g, [])) for g in range(groups)]
    return {"group_loss_sum": jnp.asarray(total, jnp.float32), "group_count": jnp.asarray(count, jnp.float32)}


def over_time(
    transform: optax.GradientTransformationExtraArgs,
    steps: list[Step],
    groups: int = G,
    variant: Callable[..., Callable] = jax.jit,
) -> np.ndarray:
    """λ after each step, [steps, g], of updates that `variant` runs."""
    update = variant(lambda state, extra: transform.update({}, state, **extra)[1])
    state, history = transform.init({}), []
    for step in steps:
        state = update(state, sums(step, groups))
        history.append(np.exp(np.asarray(state.log_weights, np.float64)))
    return np.array(history)


# ---- Weights over time ----------------------------------------------------------------------------------------------


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.parameters((0.7, 1, "uniform"), (0.3, 4, "sqrt_frequency"))
    def test_weights_equal_the_reference_and_stay_on_the_simplex(self, gamma: float, every: int, kind: str) -> None:
        initial = group_dro.initial_weights(kind, jnp.asarray([60, 20, 15, 5]))
        steps = random_steps(22)
        found = over_time(group_dro.group_dro(G, gamma, every, initial), steps, variant=self.variant)
        expected = slow.weights_over_time(np.asarray(initial).tolist(), steps, gamma=gamma, every=every, absent="last")
        np.testing.assert_allclose(found, expected, rtol=2e-5)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
        assert (found > 0).all()
        assert np.abs(found[-1] - np.asarray(initial)).max() > 0.02
        for i in range(1, len(steps)):
            assert ((found[i] == found[i - 1]).all()) == bool((i + 1) % every)  # moves at the end of a window only


def test_weights_are_a_softmax_of_the_summed_losses() -> None:
    # Every group is in every step, so that R of each refresh is known: λ = softmax(log λ0 + γ Σ R).
    initial, gamma, refreshes = np.array([0.4, 0.3, 0.2, 0.1]), 0.6, 5
    means = np.random.default_rng(1).random((refreshes, G))
    steps = [{g: [float(row[g])] for g in range(G)} for row in means]
    found = over_time(group_dro.group_dro(G, gamma, 1, jnp.asarray(initial)), steps)
    for i in range(refreshes):
        score = np.log(initial) + gamma * means[: i + 1].sum(axis=0)
        np.testing.assert_allclose(found[i], np.exp(score) / np.exp(score).sum(), rtol=1e-5)


@given(st.lists(st.floats(0.0, 1e4), min_size=G, max_size=G), st.floats(0.0, 10.0))
def test_a_refresh_stays_on_the_simplex_and_keeps_the_order_of_losses(values: list[float], gamma: float) -> None:
    start = jnp.log(jnp.full(G, 0.25))
    weights = np.exp(np.asarray(group_dro.refresh(start, jnp.asarray(values, jnp.float32), gamma)))
    chex.assert_tree_all_finite(weights)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    order = np.argsort(np.asarray(values, np.float32), kind="stable")
    assert (np.diff(weights[order]) >= 0).all()


def test_without_sharpness_the_weights_do_not_move() -> None:
    initial = group_dro.initial_weights("frequency", jnp.asarray([60, 20, 15, 5]))
    found = over_time(group_dro.group_dro(G, 0.0, 1, initial), random_steps(5))
    np.testing.assert_allclose(found, np.broadcast_to(initial, (5, G)), rtol=1e-6)


def test_absent_groups_keep_their_last_loss() -> None:
    # Group 3 is seen once, with loss 2; the others go on with loss 1. Its log weight gains 2 - 1 at each refresh.
    steps = [{0: [1.0], 1: [1.0], 2: [1.0], 3: [2.0]}] + [{0: [1.0], 1: [1.0], 2: [1.0]}] * 3
    found = over_time(group_dro.group_dro(G, 1.0, 1), steps)
    np.testing.assert_allclose(np.log(found[:, 3] / found[:, 0]), [1.0, 2.0, 3.0, 4.0], rtol=1e-5)


def test_groups_never_seen_count_as_the_mean_of_the_others() -> None:
    losses_ = group_dro.known_losses(
        jnp.asarray([4.0, 0.0, 0.0]), jnp.asarray([2.0, 0.0, 0.0]), jnp.asarray([9.0, 1.0, 0.0]), jnp.arange(3) == 1
    )
    assert losses_.tolist() == [2.0, 1.0, 1.5]
    nobody = group_dro.known_losses(*(jnp.zeros(3),) * 3, jnp.zeros(3, bool))
    assert nobody.tolist() == [0.0, 0.0, 0.0]


def test_one_known_group_stands_for_all_others() -> None:
    none, seen = jnp.zeros(3), jnp.zeros(3, bool)
    losses = group_dro.known_losses(jnp.asarray([0.0, 6.0, 0.0]), jnp.asarray([0.0, 4.0, 0.0]), none, seen)
    np.testing.assert_allclose(losses, [1.5, 1.5, 1.5])


def test_counting_absent_groups_as_zero_moves_weight_away_from_rare_groups() -> None:
    # Equal losses give no reason to move any weight. The rare group 3 is in every tenth step only.
    steps = [{g: [1.0] for g in range(G) if g < 3 or i % 10 == 0} for i in range(60)]
    uniform = [0.25] * G
    naive = slow.weights_over_time(uniform, steps, gamma=0.1, every=1, absent="zero")
    ours = over_time(group_dro.group_dro(G, 0.1, 1), steps)
    assert naive[-1, 3] < 0.01
    np.testing.assert_allclose(ours[-1], 0.25, atol=1e-5)

    # With a larger loss the rare group must gain; in the naive form it still loses.
    harder = [{g: ([1.0] if g < 3 else [1.5]) for g in step} for step in steps]
    naive = slow.weights_over_time(uniform, harder, gamma=0.1, every=1, absent="zero")
    ours = over_time(group_dro.group_dro(G, 0.1, 1), harder)
    assert naive[-1, 3] < 0.01
    assert ours[-1, 3] > 0.8
    np.testing.assert_allclose(
        ours, slow.weights_over_time(uniform, harder, gamma=0.1, every=1, absent="last"), rtol=1e-4
    )


def test_the_sharpness_may_follow_a_schedule_of_steps() -> None:
    # Losses 0 and 1 at every step and a refresh at every second one: the log ratio of the weights gains γ there. The
    # schedule is read at steps 1, 3 and 5, counted from 0: 0.25, 0.75 and 1.25.
    steps = [{0: [0.0], 1: [1.0]}] * 6
    found = over_time(group_dro.group_dro(2, lambda step: 0.25 * step.astype(jnp.float32), every=2), steps, groups=2)
    np.testing.assert_allclose(np.log(found[:, 1] / found[:, 0]), [0, 0.25, 0.25, 1.0, 1.0, 2.25], atol=1e-6)
    np.testing.assert_allclose(found[1], [1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-0.25))], rtol=1e-6)

    linear = optax.linear_schedule(0.0, 1.0, 4)  # 0.25 and 0.75 where it is read, then 1
    found = over_time(group_dro.group_dro(2, linear, every=2), steps, groups=2)
    np.testing.assert_allclose(np.log(found[:, 1] / found[:, 0]), [0, 0.25, 0.25, 1.0, 1.0, 2.0], atol=1e-6)
    constant = over_time(group_dro.group_dro(2, optax.constant_schedule(0.5), every=2), steps, groups=2)
    np.testing.assert_array_equal(constant, over_time(group_dro.group_dro(2, 0.5, every=2), steps, groups=2))


PARAMS = {"w": jnp.zeros(3)}


def trained(transform: optax.GradientTransformationExtraArgs, steps: list[Step]) -> tuple[jax.Array, jax.Array]:
    """λ and the parameter after steps whose gradients are ones."""

    @jax.jit
    def step(params, state, extra):
        updates, state = transform.update({"w": jnp.ones(3)}, state, params, **extra)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by its count
        params, state = PARAMS, transform.init(PARAMS)
        for each in steps:
            params, state = step(params, state, sums(each))
    (dro,) = [x for x in jax.tree.leaves(state, is_leaf=is_dro) if is_dro(x)]
    return jnp.exp(dro.log_weights), params["w"]


def is_dro(x: object) -> bool:
    return isinstance(x, group_dro.GroupDroState)


def test_accumulated_steps_are_one_step_when_it_stands_next_to_multi_steps() -> None:
    steps, k = random_steps(12, seed=8), 3
    merged: list[Step] = [{} for _ in range(4)]
    for i, step in enumerate(steps):
        for group, values in step.items():
            merged[i // k].setdefault(group, []).extend(values)
    sgd, options = optax.sgd(0.1), {"gamma": 2.0}
    several = optax.MultiSteps(sgd, k).gradient_transformation()
    whole = trained(optax.chain(sgd, group_dro.group_dro(G, **options, every=2)), merged)
    found = trained(optax.chain(several, group_dro.group_dro(G, **options, every=2 * k)), steps)
    chex.assert_trees_all_close(found, whole, rtol=1e-5)
    assert np.abs(found[0] - 0.25).max() > 0.05

    # Inside, it would see the last of three only.
    inner = optax.chain(sgd, group_dro.group_dro(G, **options, every=2))
    inside = trained(optax.MultiSteps(inner, k).gradient_transformation(), steps)
    last = trained(inner, steps[k - 1 :: k])
    np.testing.assert_allclose(inside[0], last[0], rtol=1e-5)
    assert np.abs(inside[0] - whole[0]).max() > 0.02


@pytest.mark.parametrize("every", [1, 4])
def test_absent_groups_can_count_as_zero(every: int) -> None:
    steps = random_steps(20, seed=5)
    options = {"gamma": 0.4, "every": every}
    zero = over_time(group_dro.group_dro(G, **options, absent="zero"), steps)
    uniform = [0.25] * G
    np.testing.assert_allclose(zero, slow.weights_over_time(uniform, steps, **options, absent="zero"), rtol=2e-5)
    last = over_time(group_dro.group_dro(G, **options), steps)
    assert np.abs(zero - last).max() > (0.05 if every == 1 else 1e-3)


def test_a_group_without_samples_never_has_weight() -> None:
    initial = group_dro.initial_weights("uniform", jnp.asarray([5, 0, 10, 1]))
    np.testing.assert_allclose(initial, [1 / 3, 0, 1 / 3, 1 / 3], rtol=1e-6)
    steps = [{0: [0.5], 2: [2.0], 3: [0.3]}] * 3
    found = over_time(group_dro.group_dro(G, 0.5, 1, initial), steps)
    chex.assert_tree_all_finite(found)
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[-1, 2] / found[-1, 0], np.exp(3 * 0.5 * 1.5), rtol=1e-5)


def test_sums_of_several_calls_equal_one_call_for_the_whole_window() -> None:
    steps = random_steps(6, seed=3)
    merged: list[Step] = [{}, {}]
    for i, step in enumerate(steps):
        for group, values in step.items():
            merged[i // 3].setdefault(group, []).extend(values)
    split = over_time(group_dro.group_dro(G, 0.9, 3), steps)
    whole = over_time(group_dro.group_dro(G, 0.9, 1), merged)
    np.testing.assert_allclose(split[[2, 5]], whole, rtol=1e-5)
    np.testing.assert_allclose(split[[0, 1]], 0.25, rtol=1e-6)
    means = over_time(group_dro.group_dro(G, 0.9, 1), steps)[[2, 5]]
    assert np.abs(means - whole).max() > 0.01  # a window is not the mean of its steps


def test_initial_weights_by_hand() -> None:
    counts = jnp.asarray([1, 4, 4, 16])
    assert group_dro.initial_weights("uniform", counts).tolist() == [0.25] * 4
    np.testing.assert_allclose(group_dro.initial_weights("frequency", counts), [0.04, 0.16, 0.16, 0.64], rtol=1e-6)
    np.testing.assert_allclose(
        group_dro.initial_weights("sqrt_frequency", counts), np.array([1, 2, 2, 4]) / 9, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every must be at least 1, got 0"), ({"initial": jnp.ones(3)}, r"shape \(3,\), expected \(4,\)")],
)
def test_impossible_arguments_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_dro.group_dro(G, **options)


# ---- The loss it stands for -----------------------------------------------------------------------------------------


def batch(seed: int = 0, groups: int = G, size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Groups and features of samples; the last group is absent unless it is the only one."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, max(groups - 1, 1), size), rng.normal(size=(size, 3)).astype(np.float32)


def sample_losses(params: jax.Array, features: np.ndarray) -> jax.Array:
    return jnp.square(jnp.asarray(features) @ params - 1.0)


def group_loss(params, features, groups, factors, number: int = G) -> jax.Array:
    local, _ = losses.group_sums(sample_losses(params, features), jnp.asarray(groups), jnp.ones(len(groups)), number)
    return jnp.sum(local * factors)


@pytest.mark.parametrize("normalize", [False, True])
def test_robust_factors_equal_the_reference_loss(normalize: bool) -> None:
    groups, features = batch()
    assert set(groups) == {0, 1, 2}
    params, weights = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray([0.1, 0.2, 0.3, 0.4])
    counts = jnp.asarray(np.bincount(groups, minlength=G), jnp.float32)
    factors = group_dro.robust_factors(weights, counts, normalize_present=normalize)
    samples = list(zip(groups.tolist(), np.asarray(sample_losses(params, features), np.float64), strict=True))
    expected = slow.robust_loss(np.asarray(weights, np.float64).tolist(), samples, normalize_present=normalize)
    assert float(group_loss(params, features, groups, factors)) == pytest.approx(expected, rel=1e-5)
    assert float(factors[3]) == 0.0
    assert float(jnp.sum(factors * counts)) == pytest.approx(1.0 if normalize else 0.6, rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_with_one_group_it_is_empirical_risk_minimisation(normalize: bool) -> None:
    groups, features = batch(groups=1)
    params = jnp.asarray([0.3, -0.2, 0.5])
    weights = over_time(group_dro.group_dro(1, 5.0, 1), [{0: [3.0]}, {0: [1.0]}], groups=1)[-1]
    assert weights.tolist() == [pytest.approx(1.0)]
    factors = group_dro.robust_factors(
        jnp.asarray(weights, jnp.float32), jnp.asarray([float(len(groups))]), normalize_present=normalize
    )
    found = jax.value_and_grad(group_loss)(params, features, groups, factors, 1)
    expected = jax.value_and_grad(lambda p: jnp.mean(sample_losses(p, features)))(params)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


def test_frequency_weights_divided_by_frequencies_are_empirical_risk_minimisation() -> None:
    groups, features = batch()
    params, counts = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray([70.0, 20.0, 8.0, 2.0])
    initial = group_dro.initial_weights("frequency", counts)
    weights = over_time(group_dro.group_dro(G, 0.0, 1, initial), random_steps(4))[-1]
    # Importance weighting: each sample counts λ_g / p_g.
    importance = jnp.asarray(weights, jnp.float32) / (counts / jnp.sum(counts))
    found = group_loss(params, features, groups, importance / len(groups))
    risk = jnp.mean(sample_losses(params, features))
    assert float(found) == pytest.approx(float(risk), rel=1e-5)
    # Uniform λ, or any γ that has moved λ, is another loss.
    moved = over_time(group_dro.group_dro(G, 1.0, 1, initial), [EVERY_GROUP])[-1]
    importance = jnp.asarray(moved, jnp.float32) / (counts / jnp.sum(counts))
    assert abs(float(group_loss(params, features, groups, importance / len(groups)) - risk)) > 0.01


def test_frequency_weights_are_empirical_risk_in_a_batch_of_those_frequencies() -> None:
    groups, features = np.array([0] * 6 + [1] * 3 + [2] * 3), batch()[1]
    params, counts = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray([6.0, 3.0, 3.0])
    risk = float(jnp.mean(sample_losses(params, features)))
    for kind, is_risk in (("frequency", True), ("uniform", False)):
        factors = group_dro.robust_factors(group_dro.initial_weights(kind, 50 * counts), counts)
        found = float(group_loss(params, features, groups, factors, 3))
        assert (found == pytest.approx(risk, rel=1e-5)) is is_risk


def test_an_offset_moves_the_weights_and_not_the_gradient_at_given_weights() -> None:
    offset = 2.0 / jnp.sqrt(jnp.asarray([100.0, 25.0, 16.0, 4.0]))
    plain = group_dro.group_dro(G, 0.5, 1)
    adjusted = group_dro.group_dro(G, 0.5, 1, offset=offset)
    found = np.log(over_time(adjusted, [EVERY_GROUP] * 2)[-1]) - np.log(over_time(plain, [EVERY_GROUP] * 2)[-1])
    np.testing.assert_allclose(found - found[0], 2 * 0.5 * np.asarray(offset - offset[0]), atol=1e-5)

    # The state holds the losses as they are, so that nothing but λ carries the offset into a gradient.
    states = [t.update({}, t.init({}), **sums(EVERY_GROUP))[1] for t in (plain, adjusted)]
    np.testing.assert_array_equal(states[0].last_loss, states[1].last_loss)
    groups, features = batch()
    params, counts = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray(np.bincount(groups, minlength=G), jnp.float32)

    def gradient(state: group_dro.GroupDroState) -> np.ndarray:
        factors = group_dro.robust_factors(jnp.exp(state.log_weights), counts)
        return np.asarray(jax.grad(group_loss)(params, features, groups, factors))

    same_weights = states[1]._replace(log_weights=states[0].log_weights)
    np.testing.assert_array_equal(gradient(states[0]), gradient(same_weights))
    assert np.abs(gradient(states[0]) - gradient(states[1])).max() > 1e-3


# ---- As an optax transform ------------------------------------------------------------------------------------------


def chain(every: int = 2) -> optax.GradientTransformationExtraArgs:
    return optax.named_chain(("sgd", optax.sgd(1e-2, momentum=0.9)), ("dro", group_dro.group_dro(G, 0.5, every)))


def test_the_chain_moves_parameters_as_without_it_and_compiles_once() -> None:
    chex.clear_trace_counter()
    optimizer, plain = chain(), optax.sgd(1e-2, momentum=0.9)
    params = {"w": jnp.asarray([1.0, -2.0])}

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    @chex.assert_max_traces(n=1)
    def step(params, state, gradient, extra):
        updates, state = optimizer.update(gradient, state, params, **extra)
        return optax.apply_updates(params, updates), state

    expected, expected_state = params, plain.init(params)
    state = optimizer.init(params)
    params = jax.tree.map(jnp.copy, params)
    for i, values in enumerate(random_steps(4)):
        gradient = {"w": jnp.asarray([0.1 * i, 1.0])}
        updates, expected_state = plain.update(gradient, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        old = state
        params, state = step(params, state, gradient, sums(values))
        assert all(x.is_deleted() for x in jax.tree.leaves(old))  # donated, none of them twice
        chex.assert_trees_all_close(params, expected, rtol=1e-6)
    assert int(state["dro"].step) == 4
    reference = slow.weights_over_time([0.25] * G, random_steps(4), gamma=0.5, every=2, absent="last")
    np.testing.assert_allclose(np.exp(np.asarray(state["dro"].log_weights)), reference[-1], rtol=1e-5)


def test_updates_come_back_as_they_are() -> None:
    updates = {"w": jnp.ones(3), "deep": {"b": jnp.zeros(2)}}
    transform = group_dro.group_dro(G)
    found, _ = transform.update(updates, transform.init(updates), None, **sums(EVERY_GROUP), some_other_argument=1)
    assert found is updates


@pytest.mark.parametrize("missing", ["group_loss_sum", "group_count"])
def test_a_missing_argument_is_named(missing: str) -> None:
    optimizer, params = chain(), {"w": jnp.ones(2)}
    extra = {name: value for name, value in sums(EVERY_GROUP).items() if name != missing}
    with pytest.raises(TypeError, match=missing):
        optimizer.update(params, optimizer.init(params), params, **extra)


def test_the_state_is_float32_and_keeps_its_types() -> None:
    transform = group_dro.group_dro(G)
    state = transform.init({})
    _, after = transform.update({}, state, **sums(EVERY_GROUP))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert [x.dtype for x in state] == [jnp.float32] * 4 + [jnp.bool, jnp.int32]
