import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.models.fusion.simmlm import SimMLM, gate_weights
from tests.models.pure import PureFusion, normal_tokens
from tests.models.specs import fusion_of
from tests.reference import simmlm as slow

B, M, T, D, F, C = 4, 3, 2, 8, 6, 2
OWNER = np.repeat(np.arange(M), T)
PRESENT = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], bool)


class Block(PureFusion):
    def __init__(self):
        spec = fusion_of(kind="simmlm", hidden=F)
        super().__init__(lambda: SimMLM(spec, D, 4, M, nnx.Rngs(params=0), num_outputs=C), OWNER)


@pytest.fixture(scope="module")
def block() -> Block:
    return Block()


tokens = functools.partial(normal_tokens, (B, M * T, D))


def test_logits_are_those_of_a_loop_over_the_experts_present(block):
    found = block(block.params, tokens(), PRESENT)
    vectors = tokens().astype(np.float64).reshape(B, M, T, D).mean(axis=2)
    for b in range(B):
        np.testing.assert_allclose(found.logits[b], slow.mixture(vectors[b], PRESENT[b], block.wide()), atol=2e-5)
        for j in np.flatnonzero(PRESENT[b]):
            np.testing.assert_allclose(
                found.experts.logits[b, j], slow.expert(vectors[b, j], block.wide(), j), atol=2e-5
            )
    np.testing.assert_array_equal(found.experts.present, PRESENT)
    # One modality: the gate has nothing to weigh.
    np.testing.assert_allclose(found.logits[2], found.experts.logits[2, 1], atol=1e-6)


def test_what_is_absent_changes_nothing_and_samples_do_not_meet(block):
    found = block(block.params, tokens(), PRESENT)
    garbage = np.where(PRESENT[:, OWNER, None], tokens(), np.float32(1e6))
    np.testing.assert_array_equal(block(block.params, garbage, PRESENT).logits, found.logits)
    order = np.array([2, 0, 3, 1])
    moved = block(block.params, tokens()[order], PRESENT[order])
    np.testing.assert_allclose(moved.logits, found.logits[order], atol=1e-6)


def test_gate_weights_sum_to_one_over_what_is_there_and_to_nothing_without_any():
    present = np.array([[True, False, True], [False, False, False]])
    found = jax.jit(gate_weights)(jnp.asarray([[0.0, 50.0, np.log(3.0)], [1.0, 2.0, 3.0]], jnp.float32), present)
    np.testing.assert_allclose(found, [[0.25, 0.0, 0.75], [0.0, 0.0, 0.0]], rtol=1e-6)
