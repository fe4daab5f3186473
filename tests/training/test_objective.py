"""Terms of what a run minimises that look at samples with fewer modalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models.model import Output
from remind_jax.models.network import Network
from remind_jax.training.objective import Pass, fewer_penalty, sample_losses
from tests.reference import simmlm as slow

B, M = 8, 3
MASKS = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0]], bool)
PRESENT = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
WEIGHT = np.array([1, 1, 1, 1, 0, 1, 1, 1], np.float32)


def square(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.square(logits[:, 0] - labels)


def apply(weights, batch, *, gate, keys=None):
    """A network whose output is the weighted sum of what is present, and which tells the combination it is given."""
    del gate, keys
    logits = jnp.einsum("bm,bm,m->b", batch["x"], batch["present"].astype(jnp.float32), weights["w"])[:, None]
    return Output(logits, batch["group"][:, None], jnp.zeros(len(logits)))


NETWORK = Network(lambda seed: {}, apply, lambda *_: None, lambda *_: None)
WEIGHTS = {"w": np.array([1.0, -2.0, 0.5], np.float32)}


def make_pass(weights, batch, keys, total=lambda x: x) -> Pass:
    output = apply(weights, batch, gate="never")
    return Pass(NETWORK, weights, batch, batch, "never", output, None, keys[0], keys, total)


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(B, M)).astype(np.float32), rng.normal(size=B).astype(np.float32)
    return {"x": x, "present": PRESENT, "group": np.zeros(B, np.int32), "label": label, "weight": WEIGHT}


KEYS = jax.random.split(jax.random.key(5), B)
fewer = fewer_penalty(0.7, 0.3, MASKS, sample_losses(square))


def test_terms_of_fewer_modalities_are_those_of_a_loop():
    batch, seen = make_batch(), []

    def losses(of):
        seen.append(of)
        return sample_losses(square)(of)

    told, term = fewer_penalty(0.7, 0.3, MASKS, losses)(make_pass(WEIGHTS, batch, KEYS))
    np.testing.assert_array_equal(told, term)
    more, less = (np.asarray(sample_losses(square)(of), np.float64) for of in seen)
    left = np.asarray([seen[1].output.logits[:, 0]]).T  # what the network made of some of the modalities
    lost = WEIGHT * (PRESENT.sum(axis=1) > 1)
    parts = [[m for m in range(M) if PRESENT[b, m]] for b in range(B)]
    sums = batch["x"] * WEIGHTS["w"]
    for b in range(B):  # the logit is that of a proper part of the sample
        of_parts = {sum(sums[b, m] for m in parts[b] if bits >> m & 1) for bits in range(1, 2**M)}
        assert min(abs(left[b, 0] - value) for value in of_parts) < 1e-5
        assert (abs(left[b, 0] - sums[b][PRESENT[b]].sum()) > 1e-4) == (PRESENT[b].sum() > 1)
    assert float(told) == pytest.approx(slow.fewer(more, less, lost, 0.7, 0.3), rel=1e-5)
    assert (more[lost > 0] > less[lost > 0]).any()
    assert (more[lost > 0] < less[lost > 0]).any()
    # Combinations are those of what is left, the last index one that training has not.
    groups = np.asarray(seen[1].output.features[:, 0])
    assert set(groups) <= {0, 1, 2, 3}
    assert (groups[PRESENT.sum(axis=1) > 1] > 0).all()


def test_shares_of_devices_add_up_to_the_terms_of_the_whole_batch():
    batch = make_batch()

    def term(w, batch, keys, total=lambda x: x):
        return fewer(make_pass({"w": w}, batch, keys, total))[1]

    whole, slope = jax.value_and_grad(term)(jnp.asarray(WEIGHTS["w"]), batch, KEYS)
    halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
    total = functools.partial(jax.lax.psum, axis_name="devices")
    one = functools.partial(jax.value_and_grad(term), jnp.asarray(WEIGHTS["w"]), total=total)
    parts, slopes = jax.vmap(one, axis_name="devices")(halves, KEYS.reshape(2, -1))
    assert float(parts.sum()) == pytest.approx(float(whole), rel=1e-5)
    np.testing.assert_allclose(slopes.sum(axis=0), slope, rtol=1e-5)
    assert np.abs(np.asarray(slopes[0] - slopes[1])).max() > 1e-3


def test_predictors_that_learn_by_themselves_have_no_terms_of_fewer_modalities():
    told, term = fewer(make_pass(WEIGHTS, make_batch(), KEYS)._replace(apart=True))
    assert (float(told), float(term)) == (0.0, 0.0)
