import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.models.fusion.smil import MAIN, Smil
from tests.models.pure import PureFusion, normal_tokens
from tests.models.specs import fusion_of
from tests.reference import smil as slow

B, M, T, D, F, K, C = 4, 3, 2, 4, 5, 3, 2
OWNER = np.repeat(np.arange(M), T)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], bool)


class Block(PureFusion):
    def __init__(self):
        spec = fusion_of(kind="smil", hidden=F, centres=K)
        super().__init__(lambda: Smil(spec, D, 4, M, nnx.Rngs(params=0), num_outputs=C), OWNER)


@pytest.fixture(scope="module")
def block() -> Block:
    return Block()


KEYS = jax.random.split(jax.random.key(0), B)


tokens = functools.partial(normal_tokens, (B, M * T, D))


def test_missing_vectors_are_mixtures_of_centres_and_predictions_those_of_a_loop(block):
    found = block(block.params, tokens(), PRESENT)
    vectors = tokens().astype(np.float64).reshape(B, M, T, D).mean(axis=2)
    for b in range(B):
        np.testing.assert_allclose(found.vectors[b], slow.completed(vectors[b], PRESENT[b], block.wide()), atol=1e-5)
        np.testing.assert_allclose(found.logits[b], slow.logits(vectors[b], PRESENT[b], block.wide()), atol=5e-5)


def test_noise_is_for_training_and_each_sample_has_its_own(block):
    found = block(block.params, tokens(), PRESENT)
    np.testing.assert_array_equal(block(block.params, tokens(), PRESENT).logits, found.logits)
    noisy = block(block.params, tokens(), PRESENT, KEYS)
    assert np.abs(noisy.logits - found.logits).max(axis=1).min() > 1e-3
    np.testing.assert_array_equal(noisy.vectors[0], found.vectors[0])  # of what is there nothing is drawn
    assert np.abs(noisy.vectors - found.vectors)[1:].max(axis=(1, 2)).min() > 1e-3
    order = np.array([2, 0, 3, 1])
    moved = block(block.params, tokens()[order], PRESENT[order], KEYS[order])
    np.testing.assert_allclose(moved.logits, noisy.logits[order], atol=1e-5)


@pytest.mark.parametrize("keys", [None, KEYS], ids=["prediction", "training"])
def test_what_is_absent_changes_nothing(block, keys):
    garbage = np.where(PRESENT[:, OWNER, None], tokens(), np.float32(1e6))
    found, told = block(block.params, tokens(), PRESENT, keys), block(block.params, garbage, PRESENT, keys)
    np.testing.assert_array_equal(told.logits, found.logits)
    np.testing.assert_array_equal(told.vectors, found.vectors)


def test_without_centres_what_is_missing_is_zero(block):
    none = block.params | {"centres": jnp.zeros_like(block.params["centres"])}
    found = block(none, tokens(), PRESENT)
    vectors = tokens().reshape(B, M, T, D).mean(axis=2)
    np.testing.assert_allclose(found.vectors, np.where(PRESENT[:, :, None], vectors, 0.0), atol=1e-6)


def test_factors_begin_at_one_and_the_main_network_has_paths_of_its_own(block):
    spec = fusion_of(kind="smil", hidden=F, centres=K)
    made = Smil(spec, D, 4, M, nnx.Rngs(params=0), num_outputs=C)
    np.testing.assert_allclose(made.of_vectors(jnp.ones((2, M * D)), None, 4), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(made.projection[...], np.broadcast_to(np.eye(D), (M, D, D)))
    main = {path for path in block.params if f"block_0/{path}".startswith(MAIN)}
    assert main == {f"main/{layer}/{part}" for layer in ("hidden", "out") for part in ("kernel", "bias")}
