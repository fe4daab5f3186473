import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.models.fusion.m3care import M3Care
from tests.models.pure import PureFusion, normal_tokens
from tests.models.specs import fusion_of
from tests.reference import m3care as slow

B, M, T, D, F, H, Q = 5, 3, 2, 8, 6, 2, 4
OWNER = np.repeat(np.arange(M), T)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
BANK = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0]], np.float32)  # the last row is free


class Block(PureFusion):
    def __init__(self):
        spec = fusion_of(kind="m3care", hidden=F, heads=H, bank=Q)
        super().__init__(lambda: M3Care(spec, D, 4, M, nnx.Rngs(params=0)), OWNER)
        bank = np.random.default_rng(9).normal(size=(Q, M, D)).astype(np.float32)
        self.params |= {"bank": jnp.asarray(bank), "bank_present": jnp.asarray(BANK)}
        self.params["threshold"] = jnp.float32(-2.0)  # some similarities are above, and some are not


@pytest.fixture(scope="module")
def block() -> Block:
    return Block()


KEYS = jax.random.split(jax.random.key(0), B)


tokens = functools.partial(normal_tokens, (B, M * T, D))


def rows(vectors: np.ndarray, present: np.ndarray) -> slow.Rows:
    return [{j: vectors[b, j].astype(np.float64) for j in range(M) if present[b, j]} for b in range(len(vectors))]


def pooled() -> np.ndarray:
    return tokens().astype(np.float64).reshape(B, M, T, D).mean(axis=2)


@pytest.mark.parametrize("training", [True, False])
def test_what_neighbours_tell_is_that_of_a_loop_over_pairs(block, training):
    """In training they are the rest of the batch, after it the rows of the bank."""
    found = block(block.params, tokens(), PRESENT, KEYS if training else None)
    loop, own = slow.M3Care(block.wide(), M), rows(pooled(), PRESENT)
    asked = own if training else rows(np.asarray(block.params["bank"]), BANK > 0)
    weights = [loop.similarity(a, b) for i, a in enumerate(own) for k, b in enumerate(asked) if a is not b]
    assert 0 < np.count_nonzero(weights) < len(weights)
    completed = loop.completed(own, asked, same=training)
    assert any(len(made) > len(one) for made, one in zip(completed, own, strict=True))
    for b in range(B):
        np.testing.assert_allclose(found.features[b], loop.features(completed[b], H), rtol=2e-4, atol=2e-4)
    vectors = np.where(PRESENT[:, :, None], pooled(), 0.0)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-6)


def test_a_prediction_does_not_depend_on_what_else_is_predicted_and_does_on_the_bank(block):
    found = block(block.params, tokens(), PRESENT).features
    order = np.array([3, 1, 0, 4, 2])
    np.testing.assert_allclose(block(block.params, tokens()[order], PRESENT[order]).features, found[order], atol=1e-5)
    other = np.concatenate([tokens()[:2], tokens(5)[2:]])
    np.testing.assert_allclose(block(block.params, other, PRESENT).features[:2], found[:2], atol=1e-5)
    emptied = block.params | {"bank_present": jnp.zeros_like(block.params["bank_present"])}
    assert np.abs(block(emptied, tokens(), PRESENT).features - found).max() > 1e-3
    # In training samples do meet, in whatever order they come.
    first = block(block.params, tokens(), PRESENT, KEYS).features
    moved = block(block.params, tokens()[order], PRESENT[order], KEYS[order]).features
    np.testing.assert_allclose(moved, first[order], atol=1e-5)
    assert np.abs(block(block.params, other, PRESENT, KEYS).features[:2] - first[:2]).max() > 1e-4


@pytest.mark.parametrize("keys", [None, KEYS], ids=["bank", "batch"])
def test_what_is_absent_changes_nothing(block, keys):
    garbage = np.where(PRESENT[:, OWNER, None], tokens(), np.float32(1e5))
    free = block.params | {"bank": jnp.where(jnp.asarray(BANK)[:, :, None] > 0, block.params["bank"], 1e5)}
    found, told = block(block.params, tokens(), PRESENT, keys), block(free, garbage, PRESENT, keys)
    np.testing.assert_allclose(told.features, found.features, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), told.sums, found.sums)


def test_the_penalty_is_that_of_a_loop_and_sums_add_up(block):
    found = block(block.params, tokens(), PRESENT, KEYS)
    weighs = types.SimpleNamespace(stability_weight=0.5)
    loop = slow.M3Care(block.wide(), M)
    expected = 0.5 * loop.stability(rows(pooled(), PRESENT))
    assert float(M3Care.penalty(found.sums, weighs)) == pytest.approx(expected, rel=1e-4)
    parts = [block(block.params, tokens()[part], PRESENT[part], KEYS[part]).sums for part in (slice(0, 2), slice(2, B))]
    whole = jax.tree.map(lambda a, b: a + b, *parts)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), whole, found.sums)


def test_the_threshold_and_all_else_is_learned_and_the_bank_is_not(block):
    def loss(params):
        return jnp.sum(jnp.square(block(params, tokens(), PRESENT, KEYS).features))

    slopes = jax.jit(jax.grad(loss))(block.params)
    without = {path for path, slope in slopes.items() if not np.abs(slope).max() > 0}
    assert without == {"bank", "bank_present"}
