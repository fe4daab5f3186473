import functools
import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from remind_jax.ops import transformer
from tests.reference import soft_moe as slow_moe
from tests.reference import t5 as slow


def keys(*numbers: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(7), jnp.asarray(numbers))


# ---- Dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.4, 0.8])
def test_dropout_drops_its_rate_and_keeps_the_mean(rate: float) -> None:
    entries = 4 * 50_000
    dropped = np.asarray(transformer.dropout(jnp.ones((4, 50_000)), keys(0, 1, 2, 3), rate, salt=0))
    assert set(np.unique(dropped)) == {0.0, np.float32(1.0 / (1.0 - rate))}
    deviation = math.sqrt(rate * (1 - rate) / entries)
    assert abs((dropped == 0).mean() - rate) < 5 * deviation
    assert abs(dropped.mean() - 1.0) < 5 * deviation / (1 - rate)


def test_dropout_without_keys_or_rate_is_the_identity() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    np.testing.assert_array_equal(transformer.dropout(x, None, 0.9, salt=0), x)
    np.testing.assert_array_equal(transformer.dropout(x, keys(0, 1), 0.0, salt=0), x)
    assert (np.asarray(transformer.dropout(x, keys(0, 1), 0.9, salt=0)) != np.asarray(x)).any()


def test_the_mask_of_a_sample_depends_on_its_key_alone() -> None:
    ones = jnp.ones((3, 1000))
    together = np.asarray(transformer.dropout(ones, keys(5, 6, 7), 0.5, salt=0))
    moved = np.asarray(transformer.dropout(ones, keys(7, 9, 5), 0.5, salt=0))
    alone = np.asarray(transformer.dropout(ones[:1], keys(6), 0.5, salt=0))
    np.testing.assert_array_equal(moved[0], together[2])
    np.testing.assert_array_equal(moved[2], together[0])
    np.testing.assert_array_equal(alone[0], together[1])
    for other in (together[1], moved[1], np.asarray(transformer.dropout(ones, keys(5, 6, 7), 0.5, salt=1))[0]):
        assert 0.4 < (together[0] == other).mean() < 0.6  # other keys and other salts give unrelated masks


def test_dropout_keeps_the_type() -> None:
    assert transformer.dropout(jnp.ones((2, 3), jnp.bfloat16), keys(0, 1), 0.5, salt=0).dtype == jnp.bfloat16


# ---- Norm and attention ---------------------------------------------------------------------------------------------


def test_rms_norm_equals_the_reference_and_forgets_lengths() -> None:
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(2, 3, 8)), rng.normal(size=8)
    found = transformer.rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32))
    np.testing.assert_allclose(found, [slow.rms_norm(one, scale) for one in x], atol=1e-5)
    ones = jnp.ones(8)
    normed = np.asarray(transformer.rms_norm(jnp.asarray(1e3 * x, jnp.float32), ones))
    np.testing.assert_allclose(np.mean(normed**2, axis=-1), 1.0, atol=1e-5)
    assert transformer.rms_norm(jnp.ones((2, 8), jnp.bfloat16), jnp.ones(8, jnp.bfloat16)).dtype == jnp.bfloat16


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(scale=[None, 1.0], biased=[False, True], masked=[False, True])
    def test_attention_equals_the_reference(self, scale: float | None, biased: bool, masked: bool) -> None:
        b, n, h, k = 2, 4, 3, 5
        rng = np.random.default_rng(1)
        query, key, value = rng.normal(size=(3, b, n, h * k))
        bias = rng.normal(size=(h, n, n)) if biased else None
        mask = np.array([[True, True, False, True], [True, False, False, False]]) if masked else None
        found = self.variant(functools.partial(transformer.attention, heads=h, scale=scale))(
            *(jnp.asarray(x, jnp.float32) for x in (query, key, value)),
            bias=None if bias is None else jnp.asarray(bias, jnp.float32)[None],
            mask=None if mask is None else jnp.asarray(mask),
        )
        for i in range(b):
            one = slow_moe.attention(
                query[i], key[i], value[i], h, scale or k**-0.5, bias=bias, mask=None if mask is None else mask[i]
            )
            np.testing.assert_allclose(found[i], one, atol=1e-5)


# ---- For a GPU ------------------------------------------------------------------------------------------------------


def normal_bf16(*shape: int) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.bfloat16) for x in np.random.default_rng(0).normal(size=shape)]


@pytest.mark.parametrize(("n", "length"), [(4, 0), (5, 0), (6, 5), (5, 3)])
def test_attention_for_a_gpu_equals_that_for_other_devices(n: int, length: int, plain_cudnn: list) -> None:
    b, h, k = 2, 3, 8
    arrays, weights = normal_bf16(3, b, n, h * k), np.random.default_rng(1).normal(size=(b, n, h * k))

    def total(*arrays: jax.Array) -> jax.Array:
        found = transformer.attention(*arrays, heads=h, scale=0.3, length=length).astype(jnp.float32)
        return jnp.sum((found * jnp.asarray(weights, jnp.float32))[:, : length or n])

    expected = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays)
    assert not plain_cudnn
    with transformer.tracing_for_gpu(True):
        found = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*arrays)
    assert plain_cudnn == [(b, n + n % 2, h, k)]  # tokens are even
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x.astype(float), y.astype(float), atol=0.06), found, expected)
    # What is compared is not what all lengths give.
    with transformer.tracing_for_gpu(True):
        other = transformer.attention(*arrays, heads=h, scale=0.3, length=2)
    assert np.abs((transformer.attention(*arrays, heads=h, scale=0.3) - other).astype(float)).max() > 0.3


@pytest.mark.parametrize(
    ("dtype", "k", "options"),
    [
        (jnp.float32, 8, {}),
        (jnp.bfloat16, 5, {}),
        (jnp.bfloat16, 8, {"bias": jnp.zeros((1, 3, 4, 4), jnp.bfloat16)}),
        (jnp.bfloat16, 8, {"mask": jnp.ones((2, 4), bool)}),
    ],
)
def test_what_cudnn_does_not_take_stays_in_products(dtype, k: int, options: dict, plain_cudnn: list) -> None:
    x = jnp.ones((2, 4, 3 * k), dtype)
    with transformer.tracing_for_gpu(True):
        assert transformer.attention(x, x, x, heads=3, **options).dtype == dtype
    assert plain_cudnn == []


@pytest.mark.parametrize(
    ("version", "capability", "has"),
    [("cuda 12090", "9.0", True), ("cuda 12090", "7.5", False), ("<unknown>", "", False)],
)
def test_a_trace_is_for_a_gpu_where_the_process_has_one(monkeypatch, version: str, capability: str, has: bool) -> None:
    device = types.SimpleNamespace(
        client=types.SimpleNamespace(platform_version=version), compute_capability=capability
    )
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert transformer.is_for_gpu(jnp.bfloat16) is has
    assert not transformer.is_for_gpu(jnp.float32)
    with transformer.tracing_for_gpu(not has):
        assert transformer.is_for_gpu(jnp.bfloat16) is not has
    assert transformer.is_for_gpu(jnp.bfloat16) is has


# ---------------------------------------------------------------------------------------------------------------------


def test_softmax_and_its_derivatives_equal_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    x, tangent, cotangent = rng.normal(size=(3, 2, 5, 7))
    x[0, 0] += 200.0  # beyond what exp can take
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    value, moved = jax.jvp(transformer.softmax, (jnp.asarray(x, jnp.float32),), (jnp.asarray(tangent, jnp.float32),))
    np.testing.assert_allclose(value, p, atol=1e-6)
    np.testing.assert_allclose(moved, p * (tangent - (p * tangent).sum(-1, keepdims=True)), atol=1e-5)
    (back,) = jax.vjp(transformer.softmax, jnp.asarray(x, jnp.float32))[1](jnp.asarray(cotangent, jnp.float32))
    np.testing.assert_allclose(back, p * (cotangent - (p * cotangent).sum(-1, keepdims=True)), atol=1e-5)
    second = jax.hessian(lambda x: transformer.softmax(x)[0])(jnp.zeros(2))
    np.testing.assert_allclose(second, 0.0, atol=1e-7)  # at even odds the slope of a probability is at its peak


def test_a_linear_map_of_rows_is_that_of_the_last_axis() -> None:
    x, weights = np.random.default_rng(0).normal(size=(2, 3, 5, 4)), np.random.default_rng(1).normal(size=(4, 6))
    shapes = []

    def layer(rows: jax.Array) -> jax.Array:
        shapes.append(rows.shape)
        return rows @ jnp.asarray(weights, jnp.float32)

    np.testing.assert_allclose(transformer.on_rows(layer, jnp.asarray(x, jnp.float32)), x @ weights, rtol=1e-4)
    assert shapes == [(30, 4)]


# ---- Relative positions ---------------------------------------------------------------------------------------------


def test_buckets_of_hand_picked_distances() -> None:
    table = np.asarray(transformer.relative_position_buckets(300))
    # Keys before the query use buckets 0 to 15: distances below 8 one each, then 8 buckets that each span 2^(1/2).
    before = {0: 0, 1: 1, 7: 7, 8: 8, 11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 31: 11, 32: 12, 45: 12, 46: 13}
    before |= {63: 13, 64: 14, 90: 14, 91: 15, 127: 15, 128: 15, 299: 15}
    for distance, bucket in before.items():
        assert table[299, 299 - distance] == bucket
        if distance:
            assert table[0, distance] == bucket + 16


def test_buckets_equal_the_reference_and_depend_on_the_difference_alone() -> None:
    table = np.asarray(transformer.relative_position_buckets(200))
    expected = [[slow.bucket(j - i) for j in range(200)] for i in range(200)]
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(table[1:, 1:], table[:-1, :-1])
    assert set(np.unique(table)) == set(range(32)) - {16}  # bucket 16 would be a later key at distance zero


# ---- Segments -------------------------------------------------------------------------------------------------------


def test_segment_means_by_hand() -> None:
    x = jnp.asarray([[[1.0], [2.0], [4.0], [8.0], [16.0]]])

    def means(length: int, segments: int) -> list[float]:
        mask = jnp.arange(5)[None] < length
        return np.asarray(transformer.segment_means(x, mask, segments))[0, :, 0].tolist()

    assert means(4, 2) == [1.5, 6.0]
    assert means(5, 2) == [pytest.approx(7 / 3), 12.0]
    assert means(3, 1) == [pytest.approx(7 / 3)]
    assert means(3, 3) == [1.0, 2.0, 4.0]
    assert means(2, 4) == [1.0, 2.0, 0.0, 0.0]
    assert means(0, 2) == [0.0, 0.0]


@pytest.mark.parametrize("segments", [1, 3, 4])
def test_segment_means_equal_the_reference_for_every_length(segments: int) -> None:
    x = np.random.default_rng(2).normal(size=(9, 3))
    lengths = jnp.arange(1, 10)
    mask = jnp.arange(9)[None] < lengths[:, None]
    found = transformer.segment_means(jnp.tile(jnp.asarray(x, jnp.float32), (9, 1, 1)), mask, segments)
    for i in range(9):
        np.testing.assert_allclose(found[i], slow.segment_means(x[: i + 1], segments), atol=1e-6)


def test_every_valid_token_counts_once_and_stretches_differ_by_one_at_most() -> None:
    for length in range(1, 12):
        mask = jnp.arange(12)[None] < length
        share = np.asarray(transformer.segment_means(jnp.eye(12)[None], mask, 4))[0]  # row t: weights of stretch t
        sizes = (share > 0).sum(axis=1)
        assert sizes.sum() == length
        assert sizes.max() - sizes.min() <= 1
