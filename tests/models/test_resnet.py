import functools
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from remind_jax.errors import UserError
from remind_jax.models import initial, pretrained
from remind_jax.models.encoders import resnet, video_resnet
from remind_jax.models.encoders.residual import Dimensions, ResidualEncoder
from remind_jax.ops import pixels
from tests.models.pure import Params, Pure
from tests.reference import resnet as slow

T, D = 3, 5
# Bottlenecks with a pool and a stage of four, three of them stacked.
TINY = Dimensions(
    stem=(5, 5),
    stem_strides=(2, 2),
    stem_width=4,
    pool=True,
    windows=(1, 3, 1),
    blocks=(1, 4),
    widths=(2, 3),
    expansion=2,
    adapter=7,
)


class Residual(Pure):
    """An encoder with random parameters, and its parts as functions of them."""

    def __init__(self, make, *args, **options):
        options = {"tokens": T, "width": D, "dropout": 0.0, **options}
        super().__init__(lambda: make(*args, **options, rngs=nnx.Rngs(params=0)))
        for path, x in self.params.items():
            if path.endswith("running_variance"):
                self.params[path] = 0.5 + jnp.abs(x)

    @functools.partial(jax.jit, static_argnums=0)
    def trunk(self, params: Params, x: jax.Array, present: jax.Array | None = None) -> tuple[jax.Array, Params]:
        """Last feature map of normalised pixels, and the parameters after it."""
        module = self.module(params)
        return module.trunk(x, present), _by_path(module)

    @functools.partial(jax.jit, static_argnums=0)
    def tokens(self, params: Params, x: jax.Array, present: jax.Array | None = None, keys: jax.Array | None = None):
        """Tokens of 8-bit pixels."""
        return self.module(params)(x, keys, present)


def _by_path(module: nnx.Module) -> Params:
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)), sep="/")


def trained(params: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are no running statistics."""
    return {path: x for path, x in params.items() if "running" not in path}


def weights_by_part(make: type[ResidualEncoder], size: str) -> Counter[str]:
    """Numbers of a network of 16 tokens of width 128 that are trained, by the first name of their path."""
    shapes = nnx.eval_shape(lambda: nnx.state(make((), size=size, tokens=16, width=128, dropout=0.0, rngs=nnx.Rngs(0))))
    total = Counter()
    for path, x in trained(traverse_util.flatten_dict(nnx.to_pure_dict(shapes), sep="/")).items():
        total[path.split("/")[0]] += int(np.prod(x.shape))
    return total


@functools.cache
def tiny() -> Residual:
    return Residual(ResidualEncoder, TINY, pixels.IMAGENET)


@functools.cache
def small(dropout: float = 0.0) -> Residual:
    return Residual(resnet.ResNetEncoder, (16, 16, 3), size="small", dropout=dropout)


def images(count: int, height: int, width: int, channels: int = 3) -> jax.Array:
    values = np.random.default_rng(0).integers(0, 256, (count, height, width, channels))
    return jnp.asarray(values, jnp.uint8)


def reference(network: slow.Network, dims: Dimensions, x: jax.Array) -> np.ndarray:
    return network.features(np.asarray(x, np.float64), dims.stem_strides, dims.pool, dims.windows, dims.blocks)


# ---- The network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(17, 12), (9, 10), (1, 2)])
def test_the_feature_map_equals_the_reference(size: tuple[int, int]) -> None:
    encoder, x = tiny(), pixels.normalize(images(2, *size), pixels.IMAGENET)
    expected = reference(slow.Network(encoder.wide()), TINY, x)
    found, after = encoder.trunk(encoder.params, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    jax.tree.map(np.testing.assert_array_equal, after, encoder.params)


def test_training_equals_the_reference_in_every_layer_of_a_stack() -> None:
    encoder, x = tiny(), pixels.normalize(images(3, 17, 12), pixels.IMAGENET)
    network = slow.Network(encoder.wide(), train=True)
    expected = reference(network, TINY, x)
    found, after = encoder.trunk(encoder.params, x, jnp.ones(3, bool))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert {path for path in after if "running" in path} == set(network.running())
    for path, statistics in network.running().items():
        np.testing.assert_allclose(after[path], statistics, rtol=1e-3, atol=1e-4, err_msg=path)
        assert np.abs(after[path] - encoder.params[path]).max() > 1e-3
    assert all((after[path] == x).all() for path, x in trained(encoder.params).items())


def test_tokens_are_pieces_of_the_projected_average() -> None:
    encoder, x = tiny(), images(2, 17, 12)
    p = encoder.wide()
    features = reference(slow.Network(p), TINY, pixels.normalize(x, pixels.IMAGENET)).mean(axis=(1, 2))
    row = features @ p["adapter/project/kernel"] + p["adapter/project/bias"]
    row = np.concatenate([row, np.zeros((2, T * 3 - 7))], axis=1).reshape(2, T, 3)  # 7 numbers in pieces of 3
    expected = row @ p["adapter/patches/embed/kernel"] + p["adapter/patches/embed/bias"]
    found = encoder.tokens(encoder.params, x)
    np.testing.assert_allclose(found, expected + p["adapter/patches/position"], rtol=1e-4, atol=1e-4)


def test_a_grey_image_is_one_with_three_equal_channels() -> None:
    x = images(2, 9, 8, 1)
    grey, colour = (tiny().tokens(tiny().params, x) for x in (x, jnp.tile(x, (1, 1, 1, 3))))
    np.testing.assert_allclose(grey, colour, rtol=1e-5)


# ---- Batches --------------------------------------------------------------------------------------------------------


def test_frozen_samples_do_not_see_each_other() -> None:
    encoder, x, order = tiny(), images(4, 9, 8), np.array([2, 0, 3, 1])
    whole = encoder.tokens(encoder.params, x)
    np.testing.assert_allclose(encoder.tokens(encoder.params, x[order]), whole[order], atol=1e-5)
    np.testing.assert_allclose(encoder.tokens(encoder.params, x[:1]), whole[:1], atol=1e-5)


def test_trained_statistics_are_those_of_present_samples() -> None:
    encoder, x = tiny(), pixels.normalize(images(4, 9, 8), pixels.IMAGENET)
    present = jnp.asarray([True, False, True, True])
    some, after_some = encoder.trunk(encoder.params, x, present)
    without, after_without = encoder.trunk(encoder.params, x[present], jnp.ones(3, bool))
    everyone, _ = encoder.trunk(encoder.params, x, jnp.ones(4, bool))
    np.testing.assert_allclose(some[present], without, rtol=1e-3, atol=1e-4)
    assert np.abs(some - everyone)[present].max() > 0.01
    for path, statistics in after_without.items():
        np.testing.assert_allclose(after_some[path], statistics, rtol=1e-4, atol=1e-5, err_msg=path)


def test_a_batch_without_images_changes_nothing_and_is_finite() -> None:
    encoder, x, nobody = tiny(), images(2, 9, 8), jnp.zeros(2, bool)
    _, after = encoder.trunk(encoder.params, pixels.normalize(x, pixels.IMAGENET), nobody)
    assert all((after[path] == value).all() for path, value in encoder.params.items())
    gradient = jax.grad(lambda p: jnp.sum(jnp.sin(encoder.tokens(p, x, nobody))))(encoder.params)
    assert all(np.isfinite(g).all() for g in gradient.values())


def test_an_absent_image_of_extremes_stays_finite_through_all_layers() -> None:
    encoder = tiny()
    x = jnp.stack([jnp.full((9, 8, 3), 127.0), jnp.full((9, 8, 3), 1e30)])
    assert np.isfinite(encoder.trunk(encoder.params, x, jnp.asarray([True, False]))[0]).all()


def test_dropout_follows_the_key_of_its_sample() -> None:
    encoder, x = small(0.5), images(3, 16, 16)
    keys, order = jax.random.split(jax.random.key(0), 3), np.array([2, 0, 1])
    dropped = encoder.tokens(encoder.params, x, keys=keys)
    np.testing.assert_allclose(encoder.tokens(encoder.params, x[order], keys=keys[order]), dropped[order], atol=1e-4)
    assert np.abs(dropped - encoder.tokens(encoder.params, x)).max(axis=(1, 2)).min() > 0.05


# ---- Fresh weights --------------------------------------------------------------------------------------------------


@functools.cache
def fresh() -> Params:
    options = {"size": "small", "tokens": T, "width": D, "dropout": 0.0}
    return initial.draw(lambda key: resnet.ResNetEncoder((16, 16, 3), **options, rngs=nnx.Rngs(params=key)), 0)


def test_fresh_kernels_follow_hes_rule() -> None:
    kernels = {path: x for path, x in fresh().items() if path.startswith("trunk/") and path.endswith("kernel")}
    assert len(kernels) == 1 + 3 * 3 + 2 * 3 + 2  # stem, three first blocks, two stacks, two shortcuts
    for path, kernel in kernels.items():
        fan_in = np.prod(kernel.shape[-4:-1])
        expected = np.sqrt(2.0 / fan_in)
        assert abs(kernel.std() - expected) < 4.0 * expected / np.sqrt(2.0 * kernel.size), path
        assert abs(kernel.mean()) < 4.0 * expected / np.sqrt(kernel.size), path


def test_fresh_blocks_are_their_shortcuts() -> None:
    x = pixels.normalize(images(4, 16, 16), pixels.IMAGENET)
    before = small().trunk(fresh(), x)[0]
    changed = {path: x + 1.0 if "unit_" in path and path.endswith("kernel") else x for path, x in fresh().items()}
    np.testing.assert_array_equal(small().trunk(changed, x)[0], before)
    changed = {path: x + 1.0 if "shortcut" in path and path.endswith("kernel") else x for path, x in fresh().items()}
    assert np.abs(small().trunk(changed, x)[0] - before).max() > 0.1


@pytest.mark.slow
def test_fresh_weights_learn_under_statistics_that_nobody_measured() -> None:
    x, target = images(4, 16, 16), jnp.asarray([1.0, -1.0, 1.0, -1.0])
    params, fixed = fresh(), {path: x for path, x in fresh().items() if "running" in path}

    @jax.jit
    def loss(params: Params) -> tuple[jax.Array, Params]:
        def value(params: Params) -> jax.Array:
            out = small().module({**params, **fixed})(x, None)
            return jnp.mean(jnp.square(jnp.mean(out, axis=(1, 2)) - target))

        return jax.value_and_grad(value)(params)

    params, losses = trained(params), []
    for _ in range(40):
        value, gradient = loss(params)
        losses.append(float(value))
        params = {path: x - 0.02 * gradient[path] for path, x in params.items()}
    assert losses[-1] < 0.5 * losses[0]
    assert np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "shape"),
    [(resnet.ResNetEncoder, "50", (64, 64, 3)), (video_resnet.VideoResNetEncoder, "18", (4, 32, 32, 1))],
)
def test_fresh_published_sizes_keep_the_scale_of_their_input(make, size: str, shape: tuple[int, ...]) -> None:
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, *shape)), jnp.uint8)

    options = {"size": size, "tokens": 16, "width": 32, "dropout": 0.0}
    encoder = Pure(lambda: make(shape, **options, rngs=nnx.Rngs(params=0)))
    params = initial.draw(lambda key: make(shape, **options, rngs=nnx.Rngs(params=key)), 0)

    @jax.jit
    def run(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = encoder.module(params)
        return module.encode(pixels.normalize(x, module.colours)), module(x, None)

    features, tokens = run(params, x)
    assert tokens.shape == (2, 16, 32)
    for values in (features, tokens):
        assert 0.1 < float(jnp.sqrt(jnp.mean(jnp.square(values)))) < 10.0


# ---- Published files ------------------------------------------------------------------------------------------------


def test_the_published_size_has_the_parameters_of_resnet_50() -> None:
    total = weights_by_part(resnet.ResNetEncoder, size="50")
    assert total == {"trunk": 23_508_032, "adapter": (2048 * 512 + 512) + (32 * 128 + 128) + 16 * 128}


def published(naming: str) -> dict[str, np.ndarray]:
    """Tensors of a file for `TINY` as named by hand, [out, in, h, w], each with values of its own."""
    vision = naming == "torchvision"
    names = {
        "stem": ("conv1", "bn1")
        if vision
        else tuple(f"embedder.embedder.{x}" for x in ("convolution", "normalization"))
    }
    for stage, block in ((0, 0), (1, 0), (1, 1), (1, 2), (1, 3)):
        for unit in (0, 1, 2):
            layer = f"layer{stage + 1}.{block}" if vision else f"encoder.stages.{stage}.layers.{block}.layer.{unit}"
            pair = (f"conv{unit + 1}", f"bn{unit + 1}") if vision else ("convolution", "normalization")
            names[f"{stage}.{block}.{unit}"] = tuple(f"{layer}.{x}" for x in pair)
        if stage == 1 and block == 0:
            pair = ("downsample.0", "downsample.1") if vision else ("shortcut.convolution", "shortcut.normalization")
            layer = "layer2.0" if vision else "encoder.stages.1.layers.0"
            names["shortcut"] = tuple(f"{layer}.{x}" for x in pair)
    shapes = {"stem": (4, 3, 5, 5), "shortcut": (6, 4, 1, 1)}
    inside = {0: [(2, 4), (2, 2), (4, 2)], 1: [(3, 6), (3, 3), (6, 3)]}
    tensors = {}
    rng = np.random.default_rng(0)
    for name, (convolution, norm) in names.items():
        if name not in shapes:
            stage, block, unit = map(int, name.split("."))
            channels = (3, 4) if (stage, block, unit) == (1, 0, 0) else inside[stage][unit]
            shapes[name] = (*channels, 3, 3) if unit == 1 else (*channels, 1, 1)
        tensors[f"{convolution}.weight"] = rng.normal(size=shapes[name])
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = rng.uniform(0.5, 1.5, shapes[name][0])
    return {name: x.astype(np.float32) for name, x in tensors.items()}


@pytest.mark.parametrize(("naming", "prefix"), [("torchvision", ""), ("transformers", ""), ("transformers", "resnet.")])
def test_published_names_fill_every_parameter_of_the_trunk(naming, prefix, tmp_path, monkeypatch) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setitem(resnet.SIZES, "tiny", TINY)
    tensors = published(naming)
    extra = {"fc.weight": np.ones((2, 6), np.float32), "bn1.num_batches_tracked": np.ones((), np.int64)}
    save_file({**{prefix + name: x for name, x in tensors.items()}, **extra}, tmp_path / "weights.safetensors")
    shapes = {path: x.shape for path, x in tiny().params.items()}
    layout = resnet.checkpoint_layout("tiny")
    assert set(layout) == {path for path in shapes if path.startswith("trunk/")}
    loaded = pretrained.load(str(tmp_path / "weights.safetensors"), layout, shapes, prefixes=resnet.PREFIXES)

    vision = naming == "torchvision"
    last = "layer2.3.conv2.weight" if vision else "encoder.stages.1.layers.3.layer.1.convolution.weight"
    np.testing.assert_array_equal(loaded["trunk/stage_1/rest/unit_1/kernel"][2], np.einsum("oihw->hwio", tensors[last]))
    variance = "layer1.0.bn3.running_var" if vision else "encoder.stages.0.layers.0.layer.2.normalization.running_var"
    np.testing.assert_array_equal(loaded["trunk/stage_0/first/unit_2/running_variance"], tensors[variance])
    shortcut = "layer2.0.downsample.1.bias" if vision else "encoder.stages.1.layers.0.shortcut.normalization.bias"
    np.testing.assert_array_equal(loaded["trunk/stage_1/first/shortcut/bias"], tensors[shortcut])
    assert sum(x.size for x in loaded.values()) == sum(x.size for x in tensors.values())


@pytest.mark.parametrize(
    "other", [{"depths": [3, 4, 23, 3]}, {"layer_type": "basic"}, {"downsample_in_bottleneck": True}]
)
def test_a_network_that_only_its_config_tells_apart_is_refused(other, tmp_path, monkeypatch) -> None:
    from safetensors.numpy import save_file

    monkeypatch.setitem(resnet.SIZES, "tiny", TINY)
    save_file(published("transformers"), tmp_path / "model.safetensors")
    options = {"prefixes": resnet.PREFIXES, "model_types": resnet.MODEL_TYPES}
    options["config"] = resnet.checkpoint_config("tiny")
    shapes = {path: x.shape for path, x in tiny().params.items()}

    def load(config: dict[str, Any]) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "depths": [1, 4], **config}))
        pretrained.load(str(tmp_path), resnet.checkpoint_layout("tiny"), shapes, **options)

    load({})
    with pytest.raises(UserError, match=next(iter(other))):
        load(other)


def test_layouts_of_sizes_name_every_tensor_once() -> None:
    for module, sizes in ((resnet, ("small", "50")), (video_resnet, ("small", "18"))):
        for size in sizes:
            layout = module.checkpoint_layout(size)
            for naming in range(len(next(iter(layout.values())).names[0])):
                names = [layer[naming] for tensor in layout.values() for layer in tensor.names]
                assert len(set(names)) == len(names)
    names = {layer[0] for tensor in resnet.checkpoint_layout("50").values() for layer in tensor.names}
    assert len(names) == 53 * 5  # 53 convolutions, each with a norm of four vectors
    assert sum(bool(re.fullmatch(r"layer3\.5\..*", name)) for name in names) == 3 * 5
