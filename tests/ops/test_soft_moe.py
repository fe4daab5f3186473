import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from remind_jax.ops import routing, soft_moe
from tests.reference import soft_moe as slow

B, N, D, E, S, F = 2, 5, 6, 4, 2, 8
MASK = np.array([[True, True, False, True, False], [True] * 5])


def draw(slots: int = S, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"tokens": (B, N, D), "router": (D, E, slots)}
    shapes |= {"w_in": (E, D, F), "b_in": (E, F), "w_out": (E, F, D), "b_out": (E, D)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def experts(x: dict[str, np.ndarray], dtype=jnp.float32) -> soft_moe.Experts:
    return soft_moe.Experts(*(jnp.asarray(x[name], dtype) for name in ("w_in", "b_in", "w_out", "b_out")))


def router_logits(tokens: jax.Array, router: jax.Array, preset: str, scale: float = 2.5) -> jax.Array:
    normalize = soft_moe.PRESETS[preset].normalize
    router = scale * soft_moe.unit_length(router, axis=0) if normalize else router
    return routing.token_logits(tokens, router, normalize)


def slow_logits(x: dict[str, np.ndarray], preset: str, scale: float = 2.5) -> np.ndarray:
    normalize = soft_moe.PRESETS[preset].normalize
    router = x["router"].astype(np.float64)
    router = slow.normalized_router(router, scale) if normalize else router
    return np.stack([slow.logits(tokens.astype(np.float64), router, normalize) for tokens in x["tokens"]])


def test_the_presets_are_four_different_layers() -> None:
    assert list(soft_moe.PRESETS) == ["official", "paper_eq", "m4oe", "paper_listing"]
    assert len({dataclasses.astuple(preset) for preset in soft_moe.PRESETS.values()}) == 4
    x = draw()
    outputs = []
    for name, preset in soft_moe.PRESETS.items():
        logits = router_logits(jnp.asarray(x["tokens"]), jnp.asarray(x["router"]), name)
        outputs.append(np.asarray(soft_moe.soft_moe(jnp.asarray(x["tokens"]), logits, experts(x), preset)))
    for i in range(4):
        for j in range(i):
            assert np.abs(outputs[i] - outputs[j]).max() > 0.1


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(preset=list(soft_moe.PRESETS), masked=[False, True])
    def test_weights_and_output_equal_the_reference(self, preset: str, masked: bool) -> None:
        x, how = draw(), soft_moe.PRESETS[preset]

        def layer(tokens: jax.Array, router: jax.Array, weights: soft_moe.Experts, mask: jax.Array | None):
            logits = router_logits(tokens, router, preset)
            dispatch = soft_moe.dispatch_weights(logits, how.dispatch_over, mask)
            output = soft_moe.soft_moe(tokens, logits, weights, how, mask)
            return logits, dispatch, soft_moe.combine_weights(logits), output

        mask = jnp.asarray(MASK) if masked else None
        given = jnp.asarray(x["tokens"]), jnp.asarray(x["router"]), experts(x), mask
        logits, dispatch, combine, output = self.variant(layer)(*given)
        expected, masks = slow_logits(x, preset), MASK if masked else [None] * B
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(
            dispatch, [slow.dispatch(expected[i], how.dispatch_over, masks[i]) for i in range(B)], atol=1e-5
        )
        np.testing.assert_allclose(combine, [slow.combine(one) for one in expected], atol=1e-5)

        wide = {name: value.astype(np.float64) for name, value in x.items()}
        weights = [wide[name] for name in ("w_in", "b_in", "w_out", "b_out")]
        options = {"expert_input": how.expert_input, "over": how.dispatch_over}
        np.testing.assert_allclose(
            output,
            [slow.soft_moe(wide["tokens"][i], expected[i], *weights, mask=masks[i], **options) for i in range(B)],
            atol=2e-5,
        )


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_dispatch_sums_to_one_over_its_axis_and_combine_over_slots(preset: str) -> None:
    x = draw()
    over = soft_moe.PRESETS[preset].dispatch_over
    logits = router_logits(jnp.asarray(x["tokens"]), jnp.asarray(x["router"]), preset, scale=4.0)
    dispatch = np.asarray(soft_moe.dispatch_weights(logits, over))
    over_tokens = dispatch.sum(axis=1)
    if over == "tokens":
        np.testing.assert_allclose(over_tokens, 1.0, atol=1e-6)
    else:  # the listing: each token spends one, so that slots average n / e and differ
        np.testing.assert_allclose(dispatch.sum(axis=2), 1.0, atol=1e-6)
        np.testing.assert_allclose(over_tokens.mean(), N / E, atol=1e-6)
        assert np.abs(over_tokens - 1.0).max() > 0.1
    np.testing.assert_allclose(np.asarray(soft_moe.combine_weights(logits)).sum(axis=(2, 3)), 1.0, atol=1e-6)


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_only_the_listing_with_one_slot_dispatches_as_it_combines(preset: str) -> None:
    x = draw(slots=1)
    logits = router_logits(jnp.asarray(x["tokens"]), jnp.asarray(x["router"]), preset)
    dispatch = np.asarray(soft_moe.dispatch_weights(logits, soft_moe.PRESETS[preset].dispatch_over))
    combine = np.asarray(soft_moe.combine_weights(logits))
    if preset == "paper_listing":
        np.testing.assert_allclose(dispatch, combine, atol=1e-7)
    else:
        assert np.abs(dispatch - combine).max() > 0.05


def test_the_listing_with_two_slots_does_not_dispatch_as_it_combines() -> None:
    x = draw(slots=2)
    logits = router_logits(jnp.asarray(x["tokens"]), jnp.asarray(x["router"]), "paper_listing")
    dispatch = np.asarray(soft_moe.dispatch_weights(logits, "experts"))
    assert np.abs(dispatch - np.asarray(soft_moe.combine_weights(logits))).max() > 0.05


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_masked_tokens_are_not_read(preset: str) -> None:
    x = draw()
    how, mask = soft_moe.PRESETS[preset], jnp.asarray(MASK)

    def run(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tokens = jnp.asarray(tokens)
        logits = router_logits(tokens, jnp.asarray(x["router"]), preset)
        return (
            np.asarray(soft_moe.dispatch_weights(logits, how.dispatch_over, mask)),
            np.asarray(soft_moe.soft_moe(tokens, logits, experts(x), how, mask)),
        )

    changed = np.where(MASK[:, :, None], x["tokens"], 7.0 - 3.0 * x["tokens"])
    (dispatch, before), (_, after) = run(x["tokens"]), run(changed)
    assert (dispatch[~MASK] == 0).all()
    assert (dispatch[MASK] > 0).all()
    np.testing.assert_allclose(before[MASK], after[MASK], atol=1e-6)
    assert np.abs(before[~MASK] - after[~MASK]).max() > 1e-3  # a hidden token still reads the slots for itself


@pytest.mark.parametrize("over", ["tokens", "experts"])
def test_a_sample_without_any_visible_token_gives_zeros_and_no_nan(over: str) -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(1, N, E, S)), jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(soft_moe.dispatch_weights(x, over, jnp.zeros((1, N), bool))))

    value, gradient = jax.value_and_grad(total)(logits)
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(logits.shape))


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_bfloat16_keeps_its_type_and_its_softmax_is_in_float32(preset: str) -> None:
    x, how = draw(), soft_moe.PRESETS[preset]
    tokens, router = jnp.asarray(x["tokens"], jnp.bfloat16), jnp.asarray(x["router"], jnp.bfloat16)
    logits = routing.token_logits(tokens, soft_moe.unit_length(router, axis=0), how.normalize)
    dispatch, combine = soft_moe.dispatch_weights(logits, how.dispatch_over), soft_moe.combine_weights(logits)
    output = soft_moe.soft_moe(tokens, logits, experts(x, jnp.bfloat16), how)
    assert (tokens.dtype, logits.dtype, output.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16)
    assert (dispatch.dtype, combine.dtype) == (jnp.float32, jnp.float32)
    # 256 tokens: sums in bfloat16 would be off by far more than this.
    axis = {"tokens": 1, "experts": 2}[how.dispatch_over]
    many = soft_moe.dispatch_weights(jnp.tile(logits, (1, 50, 1, 1)), how.dispatch_over)
    np.testing.assert_allclose(np.asarray(many).sum(axis=axis), 1.0, atol=1e-5)
    exact = soft_moe.soft_moe(*(z.astype(jnp.float32) for z in (tokens, logits)), experts(x), how)
    difference = np.asarray(output, np.float32) - np.asarray(exact)
    assert np.abs(difference).max() < 0.06 * np.abs(np.asarray(exact)).max()


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_zeros_give_finite_gradients(preset: str) -> None:
    x = {name: jnp.asarray(value) for name, value in draw().items()}

    def loss(tokens: jax.Array, router: jax.Array) -> jax.Array:
        logits = router_logits(tokens, router, preset)
        return jnp.sum(jnp.sin(soft_moe.soft_moe(tokens, logits, experts(x), soft_moe.PRESETS[preset])))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    for tokens, router in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        found = gradient(tokens * x["tokens"], router * x["router"])
        chex.assert_tree_all_finite(found)
        assert np.abs(found[0]).max() > 0


def test_unit_length_of_a_zero_vector_is_zero_with_a_finite_slope() -> None:
    slope = jax.jacrev(lambda v: soft_moe.unit_length(v, axis=0))(jnp.zeros(3))
    np.testing.assert_allclose(slope, 1e3 * np.eye(3), rtol=1e-5)  # 1 / sqrt(EPSILON) on the diagonal
    np.testing.assert_array_equal(soft_moe.unit_length(jnp.zeros(3), axis=0), np.zeros(3))
    np.testing.assert_allclose(soft_moe.unit_length(jnp.asarray([3.0, 4.0]), axis=0), [0.6, 0.8], atol=1e-6)


def test_expert_order_does_not_matter() -> None:
    x = draw()
    tokens, order = jnp.asarray(x["tokens"]), np.array([2, 0, 3, 1])
    how = soft_moe.PRESETS["official"]
    logits = router_logits(tokens, jnp.asarray(x["router"]), "official")
    moved = soft_moe.Experts(*(w[order] for w in experts(x)))
    plain = soft_moe.soft_moe(tokens, logits, experts(x), how)
    np.testing.assert_allclose(plain, soft_moe.soft_moe(tokens, logits[:, :, order], moved, how), atol=2e-6)
    assert np.abs(np.asarray(plain - soft_moe.soft_moe(tokens, logits, moved, how))).max() > 0.1


@pytest.mark.parametrize(("rows", "barriers"), [(1, 2), (2, 1), (5, 0)])
def test_experts_with_few_and_with_many_rows_equal_a_loop(rows: int, barriers: int) -> None:
    e, d, f = 3, 4, 8
    rng = np.random.default_rng(0)
    shapes = {"w_in": (e, d, f), "b_in": (e, f), "w_out": (e, f, d), "b_out": (e, d)}
    slots, seed, *weights = (rng.normal(size=shape) for shape in ((e, rows, d), (e, rows, d), *shapes.values()))

    def total(slots: jax.Array, *weights: jax.Array) -> jax.Array:
        return jnp.sum(soft_moe.apply_experts(slots, soft_moe.Experts(*weights)) * jnp.asarray(seed, jnp.float32))

    def loop(slots: np.ndarray, w_in, b_in, w_out, b_out) -> np.ndarray:
        return np.stack([slow.gelu(slots[i] @ w_in[i] + b_in[i]) @ w_out[i] + b_out[i] for i in range(e)])

    given = [jnp.asarray(x, jnp.float32) for x in (slots, *weights)]
    value = soft_moe.apply_experts(given[0], soft_moe.Experts(*given[1:]))
    np.testing.assert_allclose(value, loop(slots, *weights), atol=1e-4)
    # The rows lie with the inputs first for both products, for the second one alone, or for none.
    assert str(jax.make_jaxpr(total)(*given)).count("optimization_barrier") == barriers
    found = jax.grad(total, tuple(range(5)))(*given)
    arrays = [slots, *weights]
    for i, array in enumerate(arrays):
        towards = rng.normal(size=array.shape)
        ends = [loop(*arrays[:i], array + step * towards, *arrays[i + 1 :]) for step in (1e-6, -1e-6)]
        slope = ((ends[0] - ends[1]) * seed).sum() / 2e-6
        np.testing.assert_allclose((np.asarray(found[i]) * towards).sum(), slope, rtol=1e-4, atol=1e-4)
