import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.models.encoders import t5
from remind_jax.models.encoders.patch import PatchEncoder
from tests.models.pure import Pure
from tests.reference import soft_moe as slow_moe
from tests.reference import t5 as slow

D, T, VOCABULARY = 6, 3, 20


# ---- Patches --------------------------------------------------------------------------------------------------------


def patch_encoder(shape: tuple[int, ...], hidden: int = 0, dropout: float = 0.0) -> Pure:
    return Pure(lambda: PatchEncoder(shape, tokens=T, width=D, hidden=hidden, dropout=dropout, rngs=nnx.Rngs(params=0)))


def embed(encoder: Pure, x: np.ndarray | jax.Array, keys: jax.Array | None = None, **changed: jax.Array) -> np.ndarray:
    call = jax.jit(lambda params, x, keys: encoder.module(params)(x, keys))
    return np.asarray(call({**encoder.params, **changed}, jnp.asarray(x, jnp.float32), keys))


@pytest.mark.parametrize(("shape", "patch"), [((7,), 3), ((6,), 2), ((2,), 1), ((4, 5), 5)])
@pytest.mark.parametrize("hidden", [0, 4])
def test_patches_are_padded_cut_and_mapped(shape: tuple[int, ...], patch: int, hidden: int) -> None:
    encoder = patch_encoder(shape, hidden)
    p = encoder.wide()
    x = np.random.default_rng(0).normal(size=(2, *shape))
    found = embed(encoder, x)
    count = T if len(shape) == 1 else shape[0]
    assert found.shape == (2, count, D)
    for i in range(2):
        for t in range(count):
            row = np.zeros(patch)
            rest = x[i, t * patch : (t + 1) * patch] if len(shape) == 1 else x[i, t]
            row[: len(rest)] = rest
            if hidden:
                row = slow_moe.gelu(row @ p["hidden/kernel"] + p["hidden/bias"])
            expected = row @ p["embed/kernel"] + p["embed/bias"] + p["position"][t]
            np.testing.assert_allclose(found[i, t], expected, atol=1e-5)


def test_padding_of_the_last_patch_reads_no_weight() -> None:
    encoder, x = patch_encoder((7,)), np.ones((1, 7))  # patches of 3: two of the last patch's places are padding
    kernel = encoder.params["embed/kernel"].at[1:].add(5.0)
    difference = np.abs(embed(encoder, x, **{"embed/kernel": kernel}) - embed(encoder, x)).max(axis=(0, 2))
    assert difference[2] == 0.0
    assert (difference[:2] > 1.0).all()


def test_dropout_of_an_encoder_follows_the_key_of_its_sample() -> None:
    encoder = patch_encoder((7,), hidden=4, dropout=0.5)
    x = np.random.default_rng(0).normal(size=(4, 7))
    keys, order = jax.random.split(jax.random.key(0), 4), np.array([3, 1, 0, 2])
    dropped = embed(encoder, x, keys)
    np.testing.assert_allclose(embed(encoder, x[order], keys[order]), dropped[order], atol=1e-6)
    np.testing.assert_allclose(embed(encoder, x[:1], keys[:1]), dropped[:1], atol=1e-6)
    assert np.abs(dropped - embed(encoder, x)).max(axis=(1, 2)).min() > 0.05


# ---- T5 -------------------------------------------------------------------------------------------------------------


class _T5(Pure):
    """A small text encoder, jitted."""

    def __init__(self, gated: bool, dropout: float):
        options = {"size": "small", "tokens": T, "width": D, "gated": gated, "dropout": dropout}
        super().__init__(lambda: t5.T5Encoder(VOCABULARY, **options, rngs=nnx.Rngs(params=0)))

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, params, ids: jax.Array, keys: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Vectors of the ids, and the tokens of the text."""
        module = self.module(params)
        return module.encode(ids, keys), module(ids, keys)

    def run(self, ids: np.ndarray, keys: jax.Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.asarray(x) for x in self(self.params, jnp.asarray(ids), keys))


@functools.cache
def t5_encoder(gated: bool = True, dropout: float = 0.0) -> _T5:
    return _T5(gated, dropout)


def texts(length: int, *valid: int) -> np.ndarray:
    """Token ids of texts of the given lengths, padded with zeros."""
    ids = np.zeros((len(valid), length), np.int32)
    for i, n in enumerate(valid):
        ids[i, :n] = np.random.default_rng(i).integers(1, VOCABULARY, n)
    return ids


@pytest.mark.parametrize("gated", [True, False])
def test_t5_equals_the_reference_on_every_valid_token(gated: bool) -> None:
    encoder, ids = t5_encoder(gated), texts(24, 24, 11, 1)
    p = encoder.wide()
    assert ("feed_gate" in p) is gated
    found, tokens = encoder.run(ids)
    assert tokens.shape == (3, T, D)
    for i, length in enumerate((24, 11, 1)):
        expected = slow.encode(ids[i, :length], p, heads=t5.SIZES["small"]["heads"])
        np.testing.assert_allclose(found[i, :length], expected, rtol=1e-3, atol=1e-3)
        means = slow.segment_means(expected, T)
        np.testing.assert_allclose(tokens[i], means @ p["adapter/kernel"] + p["adapter/bias"], rtol=1e-3, atol=1e-3)


def test_longer_padding_changes_nothing() -> None:
    encoder = t5_encoder()
    short, long, other = (encoder.run(x)[1] for x in (texts(24, 10, 4, 0), texts(40, 10, 4, 0), texts(24, 9, 3, 1)))
    np.testing.assert_allclose(short, long, atol=5e-5)
    assert np.abs(short - other).max(axis=(1, 2)).min() > 0.1


def test_the_order_of_tokens_matters() -> None:
    ids = texts(24, 12, 12, 12)
    turned = ids.copy()
    turned[:, :12] = ids[:, 11::-1]
    there, back = t5_encoder().run(ids)[0][:, :12], t5_encoder().run(turned)[0][:, 11::-1]
    assert np.abs(there - back).max(axis=(1, 2)).min() > 0.05


def test_an_empty_text_is_finite_and_so_are_its_gradients() -> None:
    encoder, ids = t5_encoder(), jnp.asarray(texts(24, 0, 5, 24))
    value, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.sin(encoder(p, ids)[1])))(encoder.params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in gradient.values())
    assert all(np.abs(x).max() > 0 for x in gradient.values())


def test_dropout_of_a_text_follows_its_key() -> None:
    encoder, ids = t5_encoder(dropout=0.5), texts(24, 24, 11, 3)
    keys = jax.random.split(jax.random.key(0), 3)
    dropped = encoder.run(ids, keys)[1]
    np.testing.assert_allclose(encoder.run(ids[::-1], keys[::-1])[1][::-1], dropped, atol=5e-5)
    assert np.abs(dropped - t5_encoder().run(ids)[1]).max() > 0.1


def test_sizes_are_those_of_the_published_encoders() -> None:
    base = functools.partial(t5.T5Encoder, 32_128, size="base", tokens=T, width=768, dropout=0.0)
    for gated, expected in ((False, 109_628_544), (True, 109_628_544 + 12 * 768 * 3072)):
        shapes = nnx.state(nnx.eval_shape(lambda gated=gated: base(gated=gated, rngs=nnx.Rngs(params=0))))
        total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
        # T5-base: embeddings, 12 layers of four square and two wide maps and two norms, one bias table, a last norm.
        by_hand = 32_128 * 768 + 12 * (4 * 768 * 768 + 2 * 768 * 3072 + 2 * 768) + 32 * 12 + 768
        by_hand += gated * 12 * 768 * 3072
        assert by_hand == expected
        assert total == by_hand + 768 * 768 + 768  # and our map into the fusion width
