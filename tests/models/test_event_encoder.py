"""The encoder of events: a slow reference, and what must be of no account to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.data.kinds import KINDS
from remind_jax.models.encoders.events import HEADS, WIDTH, EventEncoder
from remind_jax.models.network import make_network
from remind_jax.ops import flops
from tests.models.pure import Pure
from tests.models.specs import model_of
from tests.reference import events as slow

CODES, T, D = 7, 3, 6


class _Encoder(Pure):
    def __init__(self, layers, dropout):
        options = {"layers": layers, "tokens": T, "width": D, "dropout": dropout}
        super().__init__(lambda: EventEncoder(CODES, **options, rngs=nnx.Rngs(params=0)))

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, params, x, keys=None):
        return self.module(params)(x, keys)

    def run(self, x, keys=None):
        return np.asarray(self(self.params, jnp.asarray(x), keys))


@functools.cache
def encoder(layers=1, dropout=0.0):
    return _Encoder(layers, dropout)


def drawn(*counts, length=12, seed=0):
    """Events of samples with so many of them, int32 [b, length, 3], zeros behind; a third has no value."""
    rng, found = np.random.default_rng(seed), np.zeros((len(counts), length, 3), np.int32)
    for row, n in zip(found, counts, strict=True):
        row[:n, 0] = rng.integers(1, CODES, n)
        values = np.where(rng.random(n) < 1 / 3, np.nan, rng.normal(size=n)).astype(np.float32)
        row[:n, 1], row[:n, 2] = values.view(np.int32), (-2 * rng.random(n)).astype(np.float32).view(np.int32)
    return found


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_tokens_are_those_of_the_reference(layers):
    x = drawn(12, 5, 1)
    found, p = encoder(layers).run(x), encoder(layers).wide()
    assert found.shape == (3, T, D)
    for row, n, tokens in zip(x, (12, 5, 1), found, strict=True):
        numbers = row[:n].view(np.float32).astype(np.float64)
        own = [(code, value, time) for code, value, time in zip(row[:n, 0], numbers[:, 1], numbers[:, 2], strict=True)]
        np.testing.assert_allclose(tokens, slow.encode(own, p, layers, HEADS), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("layers", [0, 1])
def test_the_order_of_events_and_what_pads_change_nothing(layers):
    x, rng = drawn(12, 9, 4), np.random.default_rng(1)
    turned = np.stack([row[rng.permutation(12)] for row in x])
    assert (turned != x).any()
    longer = np.concatenate([x, np.zeros((3, 20, 3), np.int32)], axis=1)
    junk = longer.copy()
    junk[:, 12:, 1:] = np.float32(3.0).view(np.int32)  # without a code nothing is read of them
    found = encoder(layers).run(x)
    for other in (turned, longer, junk):
        np.testing.assert_allclose(encoder(layers).run(other), found, atol=2e-5)
    assert np.abs(encoder(layers).run(drawn(12, 9, 4, seed=2)) - found).max(axis=(1, 2)).min() > 0.05


def test_code_value_and_time_each_count_and_no_value_is_another_than_a_mean_one():
    x = drawn(6)
    x[0, 0, 1:] = np.array([0.5, -1.0], np.float32).view(np.int32)
    found = encoder().run(x)
    for place, value in (
        (0, 1 + x[0, 0, 0] % 6),
        (1, np.float32(2.0).view(np.int32)),
        (2, np.float32(-0.3).view(np.int32)),
    ):
        other = x.copy()
        other[0, 0, place] = value
        assert np.abs(encoder().run(other) - found).max() > 0.01, place


def test_no_events_at_all_are_finite_and_so_are_the_gradients():
    x = jnp.asarray(drawn(0, 5, 12))
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.sin(encoder()(p, x))))(encoder().params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradient.values())
    assert all(np.abs(g).max() > 0 for g in gradient.values())


def test_dropout_follows_the_key_of_its_sample():
    x, keys = drawn(12, 9, 4), jax.random.split(jax.random.key(0), 3)
    dropped = encoder(dropout=0.5).run(x, keys)
    np.testing.assert_allclose(encoder(dropout=0.5).run(x[::-1], keys[::-1])[::-1], dropped, atol=2e-5)
    assert np.abs(dropped - encoder().run(x)).max(axis=(1, 2)).min() > 0.01


@pytest.mark.parametrize("layers", [0, 1])
def test_its_operations_are_counted_and_lie_in_its_scope(layers):
    inputs = {"vitals": KINDS["events"].spec((10, 3), CODES), "labs": KINDS["tabular"].spec((4,))}
    network = make_network(model_of(event_layers=layers, tokens=T, width=16), inputs, 3, 2)
    batch = {"vitals": jnp.zeros((2, 10, 3), jnp.int32), "labs": jnp.zeros((2, 4))}
    batch |= {"group": jnp.zeros(2, jnp.int32), "present": jnp.ones((2, 2), bool)}
    counted = flops.count(functools.partial(network.apply, gate="never"), network.shapes, batch)
    w, n = WIDTH, 10
    each = n * (14 * w + (layers + 1) * 4 * w * w + w * HEADS * w // 2)
    each += layers * (n * 4 * w * w + 2 * n * n * w)
    each += T * HEADS * n * (w + w // 2) + T * HEADS * w // 2 * 16
    assert counted["encoders/vitals"] == 2 * 2 * each
