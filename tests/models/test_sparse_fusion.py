import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.models.fusion.soft_moe import Tokens
from remind_jax.models.fusion.sparse_moe import ROUTINGS, SparseMoEBlock
from remind_jax.models.spec import FusionSpec
from tests.models.pure import Pure
from tests.models.specs import fusion_of
from tests.reference import sparse_moe as slow

B, M, T, D, E, G = 5, 3, 2, 8, 6, 4
OWNER = np.repeat(np.arange(M), T)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0], [1, 1, 1]], bool)
GROUPS = np.array([0, 1, 2, G, 0], np.int32)
FUSE = fusion_of(kind="fuse_moe", heads=2, experts=E, hidden=6, top_k=2)
FLEX = dataclasses.replace(FUSE, kind="flex_moe", routing="joint", scores="softmax")


class Block(Pure):
    def __init__(self, spec: FusionSpec):
        super().__init__(lambda: SparseMoEBlock(spec, D, G, M, nnx.Rngs(params=0)))

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, params, x, present, groups, keys=None):
        fused = self.module(params)(x, Tokens(OWNER, present[:, OWNER], groups), None, "never", keys)
        return fused.tokens, fused.sums

    @functools.partial(jax.jit, static_argnums=0)
    def normed(self, params, x):
        """Tokens as the experts receive them, and the sum that goes around these."""
        module = self.module(params)
        x = x + module.attend(module.attention_norm(x), None)
        return module.moe_norm(x), x


@functools.cache
def block(spec: FusionSpec) -> Block:
    return Block(spec)


def tokens(seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(B, M * T, D)).astype(np.float32))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("scores", ["softmax", "laplace"])
def test_every_token_goes_to_the_experts_that_a_loop_finds(routing: str, scores: str) -> None:
    one = block(dataclasses.replace(FUSE, routing=routing, scores=scores))
    found, sums = one(one.params, tokens(), PRESENT, GROUPS)
    normed, around = (np.asarray(x, float) for x in one.normed(one.params, tokens()))
    p, importance = one.wide(), np.zeros(E)
    weights = [p[name] for name in ("expert_in", "expert_in_bias", "expert_out", "expert_out_bias")]
    for b in range(B):
        for n in range(M * T):
            router = p["router"][0 if routing == "joint" else OWNER[n]]
            score = slow.score(normed[b, n], router, scores)
            if routing == "disjoint":  # two experts of the six for each of the three modalities
                score[[e for e in range(E) if e // 2 != OWNER[n]]] = -np.inf
            expected = around[b, n] + slow.mix(normed[b, n], score, 2, *weights)
            np.testing.assert_allclose(found[b, n], expected, rtol=2e-3, atol=2e-3)
            for expert, share in zip(*slow.top(score, 2), strict=True):
                importance[expert] += share
    np.testing.assert_allclose(sums["importance"][0], importance, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(sums["load"][0].sum(), 2 * B * M * T)
    assert ("gates" in sums) is (routing == "per_modality")


@pytest.mark.parametrize("spec", [FUSE, FLEX], ids=lambda spec: spec.kind)
def test_a_sample_does_not_depend_on_its_batch_and_noise_is_for_training(spec: FusionSpec) -> None:
    one, x, order = block(spec), tokens(), np.array([3, 0, 4, 2, 1])
    found, sums = one(one.params, x, PRESENT, GROUPS)
    moved, moved_sums = one(one.params, x[order], PRESENT[order], GROUPS[order])
    np.testing.assert_allclose(moved, found[order], atol=1e-5)
    for name in sums:
        np.testing.assert_allclose(moved_sums[name], sums[name], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one(one.params, x, PRESENT, GROUPS)[0], found)
    keys = jax.random.split(jax.random.key(0), B)
    noisy, noisy_sums = one(one.params, x, PRESENT, GROUPS, keys)
    assert np.abs(noisy - found).max() > 1e-3
    assert not np.allclose(noisy_sums["load"], np.round(noisy_sums["load"]))
    np.testing.assert_allclose(
        one(one.params, x[order], PRESENT[order], GROUPS[order], keys[order])[0], noisy[order], atol=1e-5
    )


def test_the_router_learns_combinations_from_samples_that_miss_something_only() -> None:
    one, x = block(FLEX), tokens()
    _, sums = one(one.params, x, PRESENT, GROUPS)
    normed, p = np.asarray(one.normed(one.params, x)[0], float), one.wide()
    # Samples 1 and 2; sample 3 has a combination without an expert, 0 and 4 miss nothing.
    expected = -sum(
        np.log(slow.softmax(normed[b, n] @ p["router"][0])[GROUPS[b]]) for b in (1, 2) for n in range(M * T)
    )
    np.testing.assert_allclose(sums["surprise"], expected, rtol=1e-3)
    assert float(sums["surprised"]) == 2 * M * T
    # Full samples and others are balanced apart.
    np.testing.assert_allclose(sums["importance"].sum(axis=1), [2 * M * T, 3 * M * T], rtol=1e-5)
    full = one(one.params, x, np.ones_like(PRESENT), np.zeros_like(GROUPS))[1]
    assert float(full["surprised"]) == 0.0
    assert not np.asarray(full["importance"][1]).any()


def test_shapes_that_routing_cannot_serve_are_refused() -> None:
    def build(groups: int = G, **changes):
        nnx.eval_shape(lambda: SparseMoEBlock(dataclasses.replace(FLEX, **changes), D, groups, M, nnx.Rngs(params=0)))

    with pytest.raises(UserError, match=r"expert for each of the 7 combinations: set fusion\.experts=7"):
        build(groups=7)
    build(groups=7, share_experts=True)
    with pytest.raises(UserError, match="more than the 6 experts"):
        build(top_k=7)
    with pytest.raises(UserError, match="more than the 2 experts"):
        build(kind="fuse_moe", routing="disjoint", top_k=3)
    with pytest.raises(UserError, match="keeps modalities from the experts"):
        build(routing="disjoint")


# ---- As their authors released them ----------------------------------------------------------------------------------


def test_experts_in_logs_are_those_of_a_loop() -> None:
    one = block(dataclasses.replace(FUSE, routing="joint", combine="log"))
    found, _ = one(one.params, tokens(), PRESENT, GROUPS)
    normed, around = (np.asarray(x, float) for x in one.normed(one.params, tokens()))
    p = one.wide()
    weights = [p[name] for name in ("expert_in", "expert_in_bias", "expert_out", "expert_out_bias")]
    for b, n in ((0, 0), (3, 4)):
        score = slow.score(normed[b, n], p["router"][0], "laplace")
        expected = around[b, n] + slow.mix_in_logs(normed[b, n], score, 2, *weights)
        np.testing.assert_allclose(found[b, n], expected, rtol=2e-3, atol=2e-3)


def test_attention_of_a_modality_by_itself_sees_no_other() -> None:
    one, x = block(dataclasses.replace(FUSE, attention="own")), np.asarray(tokens())
    found, _ = one(one.params, x, PRESENT, GROUPS)
    other = np.where((OWNER == 1)[None, :, None], np.asarray(tokens(5)), x)
    moved, _ = one(one.params, other, PRESENT, GROUPS)
    np.testing.assert_array_equal(moved[:, OWNER != 1], found[:, OWNER != 1])
    assert np.abs(moved - found)[:, OWNER == 1].max() > 1e-2
    # Its two tokens see each other, and with attention over all every token sees the change.
    half = x.copy()
    half[:, 2] = other[:, 2]
    assert np.abs(one(one.params, half, PRESENT, GROUPS)[0] - found)[:, 3].max() > 1e-4
    whole = block(FUSE)
    changed = np.abs(whole(whole.params, other, PRESENT, GROUPS)[0] - whole(whole.params, x, PRESENT, GROUPS)[0])
    assert changed[:, OWNER != 1].max(axis=(0, 2)).min() > 1e-4


def test_attention_that_is_added_to_itself_loses_its_input() -> None:
    one, plain = block(dataclasses.replace(FLEX, attention_base="itself")), block(FLEX)
    read = jax.jit(lambda params, x: (module := plain.module(params)).attend(module.attention_norm(x), None))
    attended = np.asarray(read(one.params, tokens()))
    found, _ = one(one.params, tokens(), PRESENT, GROUPS)
    # What the experts add is a function of the sum alone: that of twice the attention.
    norm = jax.jit(lambda params, x: plain.module(params).moe_norm(x))
    p, normed = one.wide(), np.asarray(norm(one.params, jnp.asarray(2 * attended)), float)
    weights = [p[name] for name in ("expert_in", "expert_in_bias", "expert_out", "expert_out_bias")]
    score = slow.score(normed[1, 2], p["router"][0], "softmax")
    expected = 2 * attended[1, 2] + slow.mix(normed[1, 2], score, 2, *weights)
    np.testing.assert_allclose(found[1, 2], expected, rtol=2e-3, atol=2e-3)
