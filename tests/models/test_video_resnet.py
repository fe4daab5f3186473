import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models import pretrained
from remind_jax.models.encoders import video_resnet
from remind_jax.models.encoders.residual import Dimensions, ResidualEncoder
from remind_jax.ops import pixels
from tests.models.test_resnet import Residual, reference, weights_by_part
from tests.reference import resnet as slow

# The first stage keeps its shape and therefore has no convolution on the shortcut; both are stacked.
TINY = Dimensions(
    stem=(3, 5, 5),
    stem_strides=(1, 2, 2),
    stem_width=2,
    pool=False,
    windows=(3, 3),
    blocks=(2, 3),
    widths=(2, 3),
    expansion=1,
    adapter=7,
)


@functools.cache
def tiny() -> Residual:
    return Residual(ResidualEncoder, TINY, pixels.KINETICS)


@functools.cache
def small() -> Residual:
    return Residual(video_resnet.VideoResNetEncoder, (8, 16, 16, 1), size="small")


def volumes(count: int, *size: int, channels: int = 1) -> jax.Array:
    values = np.random.default_rng(0).integers(0, 256, (count, *size, channels))
    return jnp.asarray(values, jnp.uint8)


@pytest.mark.parametrize("size", [(3, 7, 6), (4, 5, 5), (1, 2, 1)])
def test_the_feature_map_of_a_volume_equals_the_reference(size: tuple[int, ...]) -> None:
    encoder, x = tiny(), pixels.normalize(volumes(2, *size), pixels.KINETICS)
    expected = reference(slow.Network(encoder.wide()), TINY, x)
    found, after = encoder.trunk(encoder.params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    assert all((after[path] == x).all() for path, x in encoder.params.items())
    assert "trunk/stage_0/first/shortcut/kernel" not in encoder.params
    assert "trunk/stage_1/first/shortcut/kernel" in encoder.params


def test_training_on_volumes_equals_the_reference() -> None:
    encoder, x = tiny(), pixels.normalize(volumes(3, 4, 5, 6), pixels.KINETICS)
    network = slow.Network(encoder.wide(), train=True)
    expected = reference(network, TINY, x[:2])
    found, after = encoder.trunk(encoder.params, x, jnp.asarray([True, True, False]))
    np.testing.assert_allclose(found[:2], expected, rtol=1e-3, atol=1e-3)
    for path, statistics in network.running().items():
        np.testing.assert_allclose(after[path], statistics, rtol=1e-3, atol=1e-4, err_msg=path)
        assert np.abs(after[path] - encoder.params[path]).max() > 1e-3


def test_volumes_become_tokens_by_the_colours_of_kinetics() -> None:
    encoder, x = small(), volumes(2, 8, 16, 16)
    adapter = encoder.module(encoder.params).adapter

    def tokens(colours) -> np.ndarray:
        last, _ = encoder.trunk(encoder.params, pixels.normalize(x, colours))
        assert last.shape == (2, 1, 2, 2, 32)
        return np.asarray(adapter(last.mean(axis=(1, 2, 3)), None))

    np.testing.assert_allclose(encoder.tokens(encoder.params, x), tokens(pixels.KINETICS), rtol=1e-4, atol=1e-4)
    assert np.abs(tokens(pixels.IMAGENET) - tokens(pixels.KINETICS)).max() > 0.01


def test_frozen_volumes_do_not_see_each_other() -> None:
    encoder, x, order = small(), volumes(3, 8, 16, 16, channels=3), np.array([2, 0, 1])
    whole = encoder.tokens(encoder.params, x)
    np.testing.assert_allclose(encoder.tokens(encoder.params, x[order]), whole[order], rtol=1e-4, atol=1e-4)
    assert np.abs(whole[0] - whole[1]).max() > 0.01


def test_the_order_of_frames_matters() -> None:
    encoder, x = small(), volumes(2, 8, 16, 16)
    there, back = (encoder.tokens(encoder.params, x) for x in (x, x[:, ::-1]))
    assert np.abs(there - back).max(axis=(1, 2)).min() > 0.01


def test_the_published_size_has_the_parameters_of_r3d_18() -> None:
    total = weights_by_part(video_resnet.VideoResNetEncoder, size="18")
    # The published count holds a classifier of 400 actions.
    assert total["trunk"] == 33_371_472 - (512 * 400 + 400)
    assert total["adapter"] == (512 * 512 + 512) + (32 * 128 + 128) + 16 * 128


def test_torchvisions_names_fill_every_parameter_of_the_trunk(tmp_path, monkeypatch) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setitem(video_resnet.SIZES, "tiny", TINY)
    shapes = {"stem.0": (2, 3, 3, 5, 5), "layer2.0.conv1.0": (3, 2, 3, 3, 3), "layer2.0.downsample.0": (3, 2, 1, 1, 1)}
    for stage, blocks, width in ((1, 2, 2), (2, 3, 3)):
        for name in (f"layer{stage}.{block}.conv{i}.0" for block in range(blocks) for i in (1, 2)):
            shapes.setdefault(name, (width, width, 3, 3, 3))
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        norm = name.removesuffix("0") + "1"
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = rng.uniform(0.5, 1.5, shape[0])
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    save_file({**tensors, "fc.bias": np.ones(3, np.float32)}, tmp_path / "weights.safetensors")

    layout = video_resnet.checkpoint_layout("tiny")
    wanted = {path: x.shape for path, x in tiny().params.items()}
    assert set(layout) == {path for path in wanted if path.startswith("trunk/")}
    loaded = pretrained.load(str(tmp_path / "weights.safetensors"), layout, wanted, prefixes=video_resnet.PREFIXES)
    kernel = np.einsum("oidhw->dhwio", tensors["layer2.2.conv1.0.weight"])
    np.testing.assert_array_equal(loaded["trunk/stage_1/rest/unit_0/kernel"][1], kernel)
    scale = tensors["layer2.0.downsample.1.weight"]
    np.testing.assert_array_equal(loaded["trunk/stage_1/first/shortcut/scale"], scale)
    assert sum(x.size for x in loaded.values()) == sum(x.size for x in tensors.values())
