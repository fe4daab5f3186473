import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.soft_moe import Routed, SoftMoEBlock, Tokens, sinusoidal
from remind_jax.models.network import make_network
from remind_jax.ops import soft_moe
from tests.models.pure import Pure
from tests.models.specs import fusion_of, model_of
from tests.reference import routing as slow_routing
from tests.reference import soft_moe as slow

B, N, M, D, E, S, F, G, H = 4, 5, 3, 8, 4, 2, 6, 3, 2
SMALL = {"heads": H, "experts": E, "slots": S, "hidden": F}
OWNER = np.array([0, 0, 1, 2, 2])
PRESENT = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 1]], bool)
GATES = ("gated", "always", "never")
GROUPS = np.array([0, 1, 1, G])  # group 2 is absent; the last sample's combination was not in training
MASK = np.array([[1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]], bool)


def known(groups: jax.Array) -> Tokens:
    return Tokens(OWNER, jnp.asarray(PRESENT[:, OWNER]), groups)


class _Block(Pure):
    """A block as a jitted function of its parameters by path."""

    def __init__(self, **options: Any):
        self.spec = fusion_of(**{**SMALL, **options})
        super().__init__(lambda: SoftMoEBlock(self.spec, D, G, M, nnx.Rngs(params=0)))
        self.params["router_scale"] = jnp.float32(5.0)

    @functools.partial(jax.jit, static_argnums=(0, 5))
    def __call__(self, params, x, groups, mask, gate: str, keys=None) -> Routed:
        return self.module(params)(x, known(groups), mask, gate, keys)


@functools.cache
def make_block(**options: Any) -> _Block:
    """The block of these options, compiled once for all tests."""
    return _Block(**options)


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, N, D)).astype(np.float32)


def residuals(seed: int = 1) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(G, D, E, S)), jnp.float32)


def middle_threshold(block: _Block, params: dict[str, jax.Array]) -> tuple[float, np.ndarray]:
    """A threshold half way between the entropies of samples, and which of them it opens the gate for."""
    wide = {path: np.asarray(x, np.float64) for path, x in params.items()}
    options = {"heads": H, "norm": block.spec.norm, "residual": block.spec.residual}
    router = slow.normalized_router(wide["router"], float(wide["router_scale"]))
    entropies = []
    for x in tokens().astype(np.float64):
        _, z = slow.before_experts(x, wide, **options)
        entropies.append(slow_routing.metric("entropy", slow.logits(z, router, True)[None]).mean())
    low, high = np.sort(entropies)[1:3]
    threshold = (low + high) / 2
    assert high - low > 1e-3
    return float(threshold), np.array(entropies) > threshold


# ---- Against the reference ------------------------------------------------------------------------------------------

FORMS = [
    ("official", "pre", True, None),
    ("paper_eq", "post", True, MASK),
    ("m4oe", "pre", False, MASK),
    ("paper_listing", "post", False, None),
]


@pytest.mark.parametrize(("preset", "norm", "residual", "mask"), FORMS)
def test_the_block_equals_the_reference(preset: str, norm: str, residual: bool, mask: np.ndarray | None) -> None:
    block = make_block(preset=preset, norm=norm, residual=residual, group_routers=True)
    params = block.params
    x, groups = jnp.asarray(tokens()), jnp.asarray(GROUPS)
    found, rate, *_ = block(params, x, groups, None if mask is None else jnp.asarray(mask), "always")
    assert rate.tolist() == [1.0] * B
    wide = {path: np.asarray(value, np.float64) for path, value in params.items()}
    for i in range(B):
        own = wide["group_router"][GROUPS[i]] if GROUPS[i] < G else 0.0
        expected = slow.fusion_block(
            tokens()[i].astype(np.float64),
            wide,
            routing=soft_moe.PRESETS[preset],
            router=wide["router"] + own,
            scale=5.0,
            heads=H,
            norm=norm,
            residual=residual,
            mask=None if mask is None else mask[i],
        )
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(("norm", "residual"), [("pre", True), ("post", False)])
def test_routes_are_the_logits_that_the_block_mixes_by(norm: str, residual: bool) -> None:
    block = make_block(norm=norm, residual=residual, group_routers=True)
    wide = {path: np.asarray(value, np.float64) for path, value in block.params.items()}
    x, groups = jnp.asarray(tokens()), jnp.asarray(GROUPS)
    route = jax.jit(lambda p, gate: block.module(p).route(x, known(groups), None, gate), static_argnums=1)
    found, shut = route(block.params, "always"), route(block.params, "never")
    np.testing.assert_array_equal(shut.used, shut.shared)
    np.testing.assert_array_equal(shut.shared, found.shared)
    for i, one in enumerate(tokens().astype(np.float64)):
        _, z = slow.before_experts(one, wide, heads=H, norm=norm, residual=residual)
        own = wide["group_router"][GROUPS[i]] if GROUPS[i] < G else 0.0
        for logits, router in ((found.shared, wide["router"]), (found.used, wide["router"] + own)):
            expected = slow.logits(z, slow.normalized_router(router, 5.0), True)
            np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=5e-5)
    assert np.abs(found.used - found.shared)[:3].max() > 0.1  # or the two would be compared with one thing


def test_a_gated_block_is_the_grouped_one_where_open_and_the_shared_one_where_closed() -> None:
    ungated = make_block(group_routers=True)
    params = ungated.params
    threshold, is_open = middle_threshold(ungated, params)
    assert 0 < is_open.sum() < B
    block = make_block(group_routers=True, gate_threshold=threshold)
    x, groups = jnp.asarray(tokens()), jnp.zeros(B, int)
    gated, always, never = (block(params, x, groups, None, gate) for gate in GATES)
    np.testing.assert_array_equal(gated.open_rate, is_open.astype(np.float32))
    assert never.open_rate.tolist() == [0.0] * B
    for i in range(B):
        same, other = (always, never) if is_open[i] else (never, always)
        np.testing.assert_allclose(gated.tokens[i], same.tokens[i], atol=1e-5)
        assert np.abs(np.asarray(gated.tokens[i] - other.tokens[i])).max() > 1e-3


# ---- Residual routers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", soft_moe.PRESETS)
def test_zero_residuals_change_nothing_and_others_do(preset: str) -> None:
    # One product for all samples and one for each round alike in jax 0.10, in jax 0.12 to the last bit or two.
    rounding = 2e-6
    shared, remind = make_block(preset=preset), make_block(preset=preset, group_routers=True)
    assert set(remind.params) - set(shared.params) == {"group_router"}
    params = shared.params
    x, groups = jnp.asarray(tokens()), jnp.asarray(GROUPS)
    plain = np.asarray(shared(params, x, groups, None, "never").tokens)
    zero = {**params, "group_router": jnp.zeros((G, D, E, S))}
    other = {**params, "group_router": residuals()}
    for gate in GATES:
        found = remind(zero, x, groups, None, gate).tokens
        np.testing.assert_allclose(found, plain, rtol=0.0, atol=rounding, err_msg=gate)
    moved = np.abs(np.asarray(remind(other, x, groups, None, "always").tokens) - plain).max(axis=(1, 2))
    assert (moved[:3] > 1e-3).all()
    assert moved[3] <= rounding  # the unseen combination keeps the shared router
    np.testing.assert_array_equal(remind(other, x, groups, None, "never").tokens, plain)


def test_residual_routers_start_at_zero_or_as_waves() -> None:
    found = {}
    for kind in ("zero", "sinusoidal"):
        spec = fusion_of(**SMALL, group_routers=True, residual_init=kind)
        found[kind] = np.asarray(SoftMoEBlock(spec, D, G, M, nnx.Rngs(params=0)).group_router[...])
    assert found["zero"].shape == found["sinusoidal"].shape == (G, D, E, S)
    assert not found["zero"].any()
    flat = found["sinusoidal"].reshape(G, -1)
    assert np.abs(flat).max() <= 0.02
    for i in range(G):
        assert flat[i, 0] == pytest.approx(0.02 * np.sin(i + 1.0), abs=1e-7)
        assert flat[i, 1] == pytest.approx(0.02 * np.cos(i + 1.0), abs=1e-7)
    assert len({tuple(row) for row in sinusoidal(None, (50, D))}) == 50


# ---- Composed routers -----------------------------------------------------------------------------------------------

PAIR = {"group_router_in", "group_router_out"}


def composed(**options: Any) -> _Block:
    return make_block(group_routers=True, router_rank=2, **options)


@pytest.mark.parametrize("preset", ["official", "paper_eq"])
def test_composed_routers_are_the_shared_one_until_they_have_learned(preset: str) -> None:
    shared, block = make_block(preset=preset), composed(preset=preset)
    assert set(block.params) - set(shared.params) == PAIR
    x, groups = jnp.asarray(tokens()), jnp.asarray(GROUPS)
    zero = block.params | {"group_router_out": jnp.zeros_like(block.params["group_router_out"])}
    plain = shared({path: zero[path] for path in shared.params}, x, groups, None, "never").tokens
    for gate in GATES:
        np.testing.assert_allclose(block(zero, x, groups, None, gate).tokens, plain, rtol=0.0, atol=2e-6)
    moved = np.abs(np.asarray(block(block.params, x, groups, None, "always").tokens - plain)).max(axis=(1, 2))
    assert (moved > 1e-3).all()  # of the unseen combination as well


def test_composed_routers_are_sums_of_those_of_the_modalities() -> None:
    block = composed(preset="paper_eq")  # which normalises nothing: logits are linear in the routers
    x = jnp.asarray(np.broadcast_to(tokens()[0], (B, N, D)))
    route = jax.jit(lambda p, groups: block.module(p).route(x, known(groups), None, "always"))
    found = route(block.params, jnp.asarray(GROUPS))
    own = np.asarray(found.used - found.shared)
    np.testing.assert_allclose(own[0] + own[1], own[2], atol=1e-5)
    assert min(np.abs(own[i] - own[j]).max() for i in range(B) for j in range(i)) > 1e-2
    np.testing.assert_array_equal(route(block.params, jnp.full(B, G)).used, found.used)  # all of them unseen


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_a_closed_gate_leaves_the_shared_router(granularity: str) -> None:
    params = composed().params
    threshold, is_open = middle_threshold(composed(), params)
    block = composed(gate_threshold=threshold, gate_granularity=granularity)
    x, groups = jnp.asarray(tokens()), jnp.asarray(GROUPS)
    route = jax.jit(lambda p, gate: block.module(p).route(x, known(groups), None, gate), static_argnums=1)
    gated, always = route(params, "gated"), route(params, "always")
    opened = np.abs(np.asarray(gated.used - gated.shared)).max(axis=(2, 3)) > 1e-3
    np.testing.assert_allclose(gated.used[opened], always.used[opened], atol=1e-5)
    np.testing.assert_allclose(gated.used[~opened], gated.shared[~opened], atol=1e-5)
    assert 0 < opened.sum() < opened.size
    if granularity == "sample":
        assert opened.tolist() == np.broadcast_to(is_open[:, None], (B, N)).tolist()


def test_composed_routers_begin_at_zero_beside_the_weights_of_soft_moe() -> None:
    made, plain = (
        initial.draw(lambda key, spec=spec: SoftMoEBlock(spec, D, G, M, nnx.Rngs(params=key)), 0)
        for spec in (composed().spec, fusion_of(**SMALL))
    )
    for name in ("router", "expert_in", "expert_out"):
        np.testing.assert_array_equal(made[name], plain[name])
    down, up = made["group_router_in"], made["group_router_out"]
    assert (down.shape, up.shape) == ((M, D, 2), (M, 2, E, S))
    assert not up.any()
    assert np.std(down) == pytest.approx(D**-0.5, rel=0.5)


def group_gradient(block: _Block, params: dict[str, jax.Array], groups: np.ndarray, gate: str) -> np.ndarray:
    """Largest absolute gradient of each group's router, [g]."""

    def total(router: jax.Array) -> jax.Array:
        output = block({**params, "group_router": router}, jnp.asarray(tokens()), jnp.asarray(groups), None, gate)
        return jnp.sum(jnp.sin(output.tokens))

    return np.abs(np.asarray(jax.grad(total)(params["group_router"]))).max(axis=(1, 2, 3))


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_routers_of_absent_groups_and_closed_gates_get_no_gradient(size: float) -> None:
    ungated = make_block(group_routers=True)
    params = ungated.params | {"group_router": size * residuals()}
    gradient = group_gradient(ungated, params, GROUPS, "always")
    assert (gradient > 1e-4).tolist() == [True, True, False]
    assert gradient[2] == 0.0
    assert group_gradient(ungated, params, GROUPS, "never").tolist() == [0.0] * G
    assert group_gradient(ungated, params, np.full(B, G), "always").tolist() == [0.0] * G  # unseen everywhere

    threshold, is_open = middle_threshold(ungated, params)
    block = make_block(group_routers=True, gate_threshold=threshold)
    groups = np.where(is_open, 1, 2)  # all samples of group 2 have closed gates
    gated = group_gradient(block, params, groups, "gated")
    assert gated[1] > 1e-4
    assert gated[[0, 2]].tolist() == [0.0, 0.0]
    assert group_gradient(block, params, groups, "always")[2] > 1e-4


def test_a_fixed_scale_gets_no_gradient() -> None:
    found = {}
    for learn in (True, False):
        block = make_block(learn_scale=learn)
        params, x = block.params, jnp.asarray(tokens())

        def total(scale, block=block, params=params, x=x):
            return jnp.sum(
                jnp.sin(block({**params, "router_scale": scale}, x, jnp.zeros(B, int), None, "never").tokens)
            )

        found[learn] = float(jax.grad(total)(params["router_scale"]))
    assert found[False] == 0.0
    assert abs(found[True]) > 1e-4


# ---- Masks and dropout ----------------------------------------------------------------------------------------------


def test_hidden_tokens_change_no_visible_one() -> None:
    block = make_block()
    params, groups = block.params, jnp.asarray(GROUPS)
    changed = np.where(MASK[:, :, None], tokens(), tokens(9))
    inputs = (jnp.asarray(tokens()), jnp.asarray(changed))
    for mask, hidden in ((jnp.asarray(MASK), True), (None, False)):
        before, after = (np.asarray(block(params, x, groups, mask, "never").tokens) for x in inputs)
        difference = np.abs(before - after)[MASK].max()
        assert bool(difference < 1e-5) is hidden


def test_dropout_of_a_sample_follows_its_key() -> None:
    block = make_block(dropout=0.5)
    params, groups, x = block.params, jnp.zeros(B, int), jnp.asarray(tokens())
    keys = jax.random.split(jax.random.key(0), B)
    order = np.array([2, 0, 3, 1])
    plain, dropped, again = (np.asarray(block(params, x, groups, None, "never", k).tokens) for k in (None, keys, keys))
    moved = np.asarray(block(params, x[order], groups, None, "never", keys[order]).tokens)
    np.testing.assert_array_equal(dropped, again)
    np.testing.assert_allclose(moved, dropped[order], atol=1e-5)
    assert np.abs(plain - dropped).max() > 0.1


# ---- Size -----------------------------------------------------------------------------------------------------------


class View:
    """Precomputed tokens of one view as a model input."""

    encoder, shape, vocabulary = "patch", (197, 768), 0


def test_the_paper_s_embed_model_has_the_parameters_its_shape_implies() -> None:
    fusion = fusion_of(heads=8, experts=128, slots=1, hidden=3072, group_routers=True)
    spec = model_of(width=768, tokens=197, imputation="group", fusion=fusion)
    network = make_network(spec, {f"view{i}": View() for i in range(4)}, num_groups=15, num_classes=4)
    shapes = network.shapes  # 2.4 GB, none of it allocated
    sizes = {path: int(np.prod(x.shape)) for path, x in shapes.items()}

    def total(*prefixes: str) -> int:
        return sum(size for path, size in sizes.items() if path.startswith(prefixes))

    experts = 128 * (768 * 3072 + 3072 + 3072 * 768 + 768)
    assert experts == 604_471_296
    assert total("block_0/expert") == experts
    assert total("block_0/query_key_value", "block_0/output") == 4 * (768 * 768 + 768)
    assert sizes["block_0/router"] == 768 * 128
    assert sizes["block_0/router_scale"] == 1
    assert sizes["block_0/group_router"] == 15 * 768 * 128 == 1_474_560
    assert total("block_0/attention_norm", "block_0/moe_norm") == 4 * 768
    assert total("imputation") == 15 * 768
    assert total("head") == 4 * 768 + 4
    # With four ViT-B/16 of 86,389,248 parameters each: what the paper calls 958 M.
    assert total("block_0/") - sizes["block_0/group_router"] == 952_492_033 - 4 * 86_389_248
    assert {x.dtype for x in shapes.values()} == {jnp.dtype(jnp.float32)}


# ---- Measured thresholds --------------------------------------------------------------------------------------------


def test_a_measured_threshold_is_an_array_that_decides_as_the_number_does() -> None:
    fixed = make_block(group_routers=True)
    threshold, opens = middle_threshold(fixed, fixed.params)
    assert 0 < opens.sum() < B
    block = make_block(group_routers=True, gate_threshold="auto")
    assert block.params.keys() - fixed.params.keys() == {"gate_threshold"}
    assert block.params["gate_threshold"].shape == ()
    params = fixed.params | {"group_router": residuals()}
    arguments = jnp.asarray(tokens()), jnp.asarray(GROUPS), None, "gated"
    same = make_block(group_routers=True, gate_threshold=threshold)(params, *arguments)
    found = block(params | {"gate_threshold": jnp.float32(threshold)}, *arguments)
    np.testing.assert_array_equal(found.open_rate, opens)
    for one, other in zip(found[:2], same[:2], strict=True):
        np.testing.assert_array_equal(one, other)
    # Another number in the same program decides otherwise.
    assert block(params | {"gate_threshold": jnp.float32(2.0)}, *arguments).open_rate.sum() == 0


@pytest.mark.parametrize("granularity", ["sample", "token"])
def test_values_of_the_gate_are_given_while_group_routers_rest_and_are_to_be_measured(granularity: str) -> None:
    options = {"group_routers": True, "gate_granularity": granularity}
    block = make_block(**options, gate_threshold="auto")
    arguments = jnp.asarray(tokens()), jnp.asarray(GROUPS), None
    values = block(block.params, *arguments, "never").gate_values
    assert values.shape == ((B, 1) if granularity == "sample" else (B, N))
    threshold, opens = middle_threshold(block, block.params)
    if granularity == "sample":
        np.testing.assert_array_equal(values[:, 0] >= threshold, opens)
    for value in np.unique(values)[1:]:
        gated = block(block.params | {"gate_threshold": jnp.float32(value)}, *arguments, "gated")
        np.testing.assert_allclose(gated.open_rate, np.mean(values >= value, axis=1), atol=1e-6)
    assert block(block.params, *arguments, "always").gate_values is None
    fixed = make_block(**options)
    assert fixed(fixed.params, *arguments, "never").gate_values is None
