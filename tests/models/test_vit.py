"""The vision transformer against a slow reference, and its place in the network: sizes, dropout, pixels, adapter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.models.encoders import vit
from remind_jax.ops.transformer import tracing_for_gpu
from tests.models.pure import Pure
from tests.reference import vit as slow

SMALL = vit.SIZES["small"]
SHAPE = (16, 24, 3)  # 2 x 3 patches, so that rows and columns cannot be mistaken for each other
T = 7


class _Vit(Pure):
    """A small image encoder, jitted."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, width: int = 6, dropout: float = 0.0):
        options = {"size": "small", "width": width, "dropout": dropout}
        super().__init__(lambda: vit.VitEncoder(shape, **options, rngs=nnx.Rngs(params=0)))

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, params, pixels: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        return self.module(params).encode(pixels, keys)

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, params, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        return self.module(params)(images, keys)


@functools.cache
def encoder(**options) -> _Vit:
    return _Vit(**options)


def photographs(count: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def normalized(images: np.ndarray) -> np.ndarray:
    """Pixels as fractions, standardised by ImageNet's mean and standard deviation of each channel."""
    return (images / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def test_every_token_equals_the_reference() -> None:
    pixels = np.random.default_rng(0).normal(size=(3, *SHAPE))
    found = np.asarray(encoder().encode(encoder().params, jnp.asarray(pixels, jnp.float32)))
    assert found.shape == (3, T, SMALL["width"])
    for image, tokens in zip(pixels, found, strict=True):
        expected = slow.encode(image, encoder().wide(), SMALL["heads"], SMALL["patch"])
        assert np.ptp(expected) > 1.0
        np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=1e-4)


def test_layers_for_a_gpu_compute_what_those_for_other_devices_do(plain_cudnn: list) -> None:
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), jnp.bfloat16)
    params = {path: x.astype(jnp.bfloat16) for path, x in encoder().params.items()}

    def total(params):
        tokens = encoder().module(params).encode(pixels, None).astype(jnp.float32)
        return jnp.sum(tokens * jnp.cos(jnp.arange(tokens.size, dtype=jnp.float32)).reshape(tokens.shape)), tokens

    (_, expected), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert not plain_cudnn
    with tracing_for_gpu(True):
        (_, found), found_slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    assert set(plain_cudnn) == {(3, T + 1, 2, 32)}
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert np.abs(expected).max() > 2
    for path, slope in slopes.items():
        if not path.startswith("adapter/"):
            # Nothing depends on the biases of keys, whose slopes are rounding.
            like = slopes[path.replace("key_bias", "value_bias")]
            error = np.abs(np.asarray(found_slopes[path], float) - np.asarray(slope, float)).max()
            assert error < 0.1 * np.abs(np.asarray(like, float)).max(), path


def test_the_norm_does_not_flatten_tokens_of_small_variance() -> None:
    x, scale, bias = np.random.default_rng(0).normal(size=(3, 5, 8)), np.linspace(1, 2, 8), np.linspace(-1, 1, 8)
    for size in (1.0, 1e-4):
        found = vit.layer_norm(*(jnp.asarray(a, jnp.float32) for a in (size * x, scale, bias)))
        expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale + bias
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_pixels_are_normalised_and_tokens_mapped_to_the_width_of_the_fusion() -> None:
    images, p = photographs(2), encoder().wide()
    found = np.asarray(encoder()(encoder().params, jnp.asarray(images)))
    for image, tokens in zip(normalized(images), found, strict=True):
        expected = slow.encode(image, p, SMALL["heads"], SMALL["patch"]) @ p["adapter/kernel"] + p["adapter/bias"]
        np.testing.assert_allclose(tokens, expected, rtol=1e-4, atol=2e-4)


def test_a_grey_image_is_the_same_as_three_equal_channels() -> None:
    grey = photographs(2)[..., :1]
    one, three = encoder(shape=(16, 24, 1)), encoder()
    assert {k: x.shape for k, x in one.params.items()} == {k: x.shape for k, x in three.params.items()}
    np.testing.assert_array_equal(
        one(three.params, jnp.asarray(grey)), three(three.params, jnp.asarray(np.repeat(grey, 3, axis=-1)))
    )


def test_an_adapter_exists_only_where_the_widths_differ() -> None:
    equal = encoder(width=SMALL["width"])
    assert {path for path in encoder().params if path not in equal.params} == {"adapter/kernel", "adapter/bias"}
    images = photographs(1)
    inside = equal.encode(equal.params, jnp.asarray(normalized(images), jnp.float32))
    np.testing.assert_allclose(equal(equal.params, jnp.asarray(images)), inside, rtol=1e-4, atol=1e-4)


def test_dropout_of_an_image_follows_its_key() -> None:
    dropped, images = encoder(dropout=0.5), jnp.asarray(photographs(3))
    keys = jax.random.split(jax.random.key(0), 3)
    found = np.asarray(dropped(dropped.params, images, keys))
    again = np.asarray(dropped(dropped.params, images[::-1], keys[::-1]))[::-1]
    np.testing.assert_allclose(again, found, atol=1e-4)
    same_image = np.asarray(dropped(dropped.params, jnp.stack([images[0]] * 3), keys))
    assert np.abs(same_image[0] - same_image[1:]).max() > 0.1
    still = encoder()(dropped.params, images)
    np.testing.assert_array_equal(dropped(dropped.params, images), still)
    assert np.abs(found - still).max() > 0.1


def test_gradients_reach_every_parameter() -> None:
    images = jnp.asarray(photographs(2))
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(encoder()(p, images))))(encoder().params)
    assert all(np.isfinite(x).all() for x in gradient.values())
    # A bias of the keys adds the same number to all scores of a token, which a softmax does not see.
    assert [path for path, x in gradient.items() if np.abs(x).max() < 1e-4] == ["key_bias"]


def test_a_fresh_network_keeps_the_scale_of_its_tokens_and_tells_images_apart() -> None:
    options = {"size": "small", "width": SMALL["width"], "dropout": 0.0}
    encoder = vit.VitEncoder(SHAPE, **options, rngs=nnx.Rngs(params=0))
    graph, weights = nnx.split(encoder)
    run = jax.jit(lambda weights, images: nnx.merge(graph, weights)(images, None))
    tokens = np.asarray(run(weights, jnp.asarray(photographs(2))))
    assert 0.5 < tokens.std() < 2.0
    assert np.abs(tokens[0] - tokens[1]).mean() > 0.1


@pytest.mark.parametrize("shape", [(30, 32, 3), (32, 20, 3), (0, 32, 3)])
def test_sides_that_are_no_multiples_of_the_patch_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"multiples of 8, not {shape[0]} x {shape[1]}"):
        vit.VitEncoder(shape, size="small", width=6, dropout=0.0, rngs=nnx.Rngs(params=0))


def test_the_base_size_is_the_published_one() -> None:
    make = functools.partial(vit.VitEncoder, (224, 224, 3), size="base", width=768, dropout=0.0)
    shapes = nnx.state(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(params=0))))
    total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    # Patches of 16 x 16 x 3, class token, 197 positions, 12 layers of four square maps, two wide ones and two norms.
    layer = 4 * (768 * 768 + 768) + 768 * 3072 + 3072 + 3072 * 768 + 768 + 2 * 2 * 768
    by_hand = 16 * 16 * 3 * 768 + 768 + 768 + 197 * 768 + 12 * layer + 2 * 768
    assert by_hand == 85_798_656  # ViT-B/16 without pooler and classifier
    assert total == by_hand
