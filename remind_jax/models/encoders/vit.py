"""Vision transformer (Dosovitskiy et al. 2021): patches of an image and a class token through pre-norm layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.models import initial
from remind_jax.models.pretrained import Tensor, single, stack
from remind_jax.ops import draws
from remind_jax.ops.pixels import IMAGENET, normalize
from remind_jax.ops.transformer import attention, dropout, is_for_gpu, on_rows

# side of a patch, layers, width, heads, hidden width of each published or small size.
SIZES = {
    "small": {"patch": 8, "layers": 2, "width": 64, "heads": 2, "hidden": 128},
    "tiny": {"patch": 16, "layers": 12, "width": 192, "heads": 3, "hidden": 768},
    "base": {"patch": 16, "layers": 12, "width": 768, "heads": 12, "hidden": 3072},
}
PREFIXES = ("", "vit.")
MODEL_TYPES = ("vit",)
EPSILON = 1e-12


class VitEncoder(nnx.Module):
    """Encodes an image as a class token and one token a patch, after the final norm: t = 1 + (height / p) (width / p).

    The layers are stacked arrays under one scan, so that twelve compile as fast as one.
    """

    def __init__(
        self, shape: tuple[int, ...], *, size: str, width: int, dropout: float, remat: bool = False, rngs: nnx.Rngs
    ):
        """Declares the weights for images of a `shape` (height, width, channels); `size` is a key of `SIZES`.

        A `width` d other than the network's own is reached by a linear adapter. `dropout` is the rate on embeddings and
        on the output of each sublayer. `remat` computes the layers again in the backward pass. Raises UserError: the
        sides of the image are no multiples of the patch.
        """
        dims = SIZES[size]
        layers, d, f, patch = dims["layers"], dims["width"], dims["hidden"], dims["patch"]
        if shape[0] % patch or shape[1] % patch or not shape[0] * shape[1]:
            raise UserError(
                f"a ViT of size {size!r} needs images whose sides are multiples of {patch}, not {shape[0]} x {shape[1]}"
            )
        self.patch, self.heads, self.dropout, self.remat = patch, dims["heads"], dropout, remat

        def normal(std: float, *axes: int) -> nnx.Param:
            return initial.param(rngs, initial.normal(std), *axes)

        def zeros(*axes: int) -> nnx.Param:
            return initial.param(rngs, initial.constant(0.0), *axes)

        def ones(*axes: int) -> nnx.Param:
            return initial.param(rngs, initial.constant(1.0), *axes)

        pixels = 3 * patch**2
        self.patch_kernel, self.patch_bias = normal(pixels**-0.5, pixels, d), zeros(d)
        self.class_token = zeros(d)
        self.tokens = 1 + shape[0] * shape[1] // patch**2
        self.position = normal(0.02, self.tokens, d)
        self.attention_scale, self.attention_bias = ones(layers, d), zeros(layers, d)
        self.query, self.query_bias = normal(d**-0.5, layers, d, d), zeros(layers, d)
        self.key, self.key_bias = normal(d**-0.5, layers, d, d), zeros(layers, d)
        self.value, self.value_bias = normal(d**-0.5, layers, d, d), zeros(layers, d)
        self.output, self.output_bias = normal(d**-0.5, layers, d, d), zeros(layers, d)
        self.feed_forward_scale, self.feed_forward_bias = ones(layers, d), zeros(layers, d)
        self.feed_in, self.feed_in_bias = normal((2 / (d + f)) ** 0.5, layers, d, f), zeros(layers, f)
        self.feed_out, self.feed_out_bias = normal((2 / (d + f)) ** 0.5, layers, f, d), zeros(layers, d)
        self.final_scale, self.final_bias = ones(d), zeros(d)
        if d != width:
            self.adapter = initial.linear(d, width, rngs)

    def encode(self, pixels: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns tokens of normalised images, float [b, height, width, 3] -> [b, t, width of the encoder]."""
        patches = rearrange(pixels, "b (y p) (x q) c -> (b y x) (p q c)", p=self.patch, q=self.patch)
        x = (patches @ self.patch_kernel[...] + self.patch_bias[None]).reshape(
            pixels.shape[0], -1, len(self.patch_bias)
        )
        classes = jnp.broadcast_to(self.class_token[None, None], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([classes, x], axis=1) + self.position[None]
        # Salts up to the number of layers are folded in by the scan; this one is outside their range.
        x = dropout(x, keys, self.dropout, salt=10_000)
        return layer_norm(self._layers(x, keys), self.final_scale[...], self.final_bias[...])

    def _layers(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Runs all layers on tokens, [b, t, d] -> [b, t, d]."""
        gpu, stacked = is_for_gpu(x.dtype), {name: getattr(self, name)[...] for name in _LAYER}
        index = jnp.arange(len(stacked["query"]))
        if gpu:  # whose attention takes even numbers of tokens
            x = jnp.pad(x, ((0, 0), (0, self.tokens % 2), (0, 0)))
            for kind in ("", "_bias"):
                stacked[f"joint{kind}"] = jnp.concatenate([stacked.pop(name + kind) for name in _PROJECTIONS], axis=-1)

        def layer(x, inputs):
            index, p = inputs
            layer_keys = None if keys is None else draws.fold_in(keys, index)

            def linear(x, name):
                return on_rows(lambda rows: rows @ p[name] + p[f"{name}_bias"][None], x)

            normed = layer_norm(x, p["attention_scale"], p["attention_bias"])
            if gpu:
                projected = jnp.split(linear(normed, "joint"), 3, axis=-1)
            else:
                projected = (linear(normed, name) for name in _PROJECTIONS)
            mixed = attention(*projected, heads=self.heads, length=self.tokens if gpu else 0)
            x = x + dropout(linear(mixed, "output"), layer_keys, self.dropout, salt=0)
            normed = layer_norm(x, p["feed_forward_scale"], p["feed_forward_bias"])
            hidden = (_gelu_on_gpu if gpu else _gelu)(linear(normed, "feed_in"))
            return x + dropout(linear(hidden, "feed_out"), layer_keys, self.dropout, salt=1), None

        # A loop on a GPU copies what each layer keeps for the backward pass to one array, and back.
        x, _ = jax.lax.scan(jax.checkpoint(layer) if self.remat else layer, x, (index, stacked), unroll=gpu)
        return x[:, : self.tokens]

    def features(self, images: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Normalises pixels, uint8 [b, height, width, 1 or 3], and encodes them."""
        return self.encode(normalize(images, IMAGENET).astype(self.patch_kernel[...].dtype), keys)

    def project(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Applies the map into the fusion width, where there is one, [b, t, d]."""
        del keys
        return on_rows(self.adapter, features) if hasattr(self, "adapter") else features

    def __call__(self, images: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps uint8 [b, height, width, 1 or 3] to [b, t, d]; `keys` [b] turn dropout on."""
        return self.project(self.features(images, keys), keys)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


@jax.checkpoint
def _gelu_on_gpu(x: jax.Array) -> jax.Array:
    """Applies gelu in one kernel, which float32 takes, and computes anew in the backward pass what that would read."""
    return _gelu(x.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Applies layer norm over the last axis, [..., d], [d] and [d] -> [..., d], with statistics in float32."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    axes = range(x.ndim - 1)
    normed = (centred * jax.lax.rsqrt(variance + EPSILON)).astype(x.dtype)
    return normed * jnp.expand_dims(scale, axes) + jnp.expand_dims(bias, axes)


_PROJECTIONS = ("query", "key", "value")
# Parameters of a layer, each with the newer and the older name of its tensor after "layers.N." or "encoder.layer.N.".
_LAYER = {
    "attention_scale": ("layernorm_before.weight",) * 2,
    "attention_bias": ("layernorm_before.bias",) * 2,
    "query": ("attention.q_proj.weight", "attention.attention.query.weight"),
    "query_bias": ("attention.q_proj.bias", "attention.attention.query.bias"),
    "key": ("attention.k_proj.weight", "attention.attention.key.weight"),
    "key_bias": ("attention.k_proj.bias", "attention.attention.key.bias"),
    "value": ("attention.v_proj.weight", "attention.attention.value.weight"),
    "value_bias": ("attention.v_proj.bias", "attention.attention.value.bias"),
    "output": ("attention.o_proj.weight", "attention.output.dense.weight"),
    "output_bias": ("attention.o_proj.bias", "attention.output.dense.bias"),
    "feed_forward_scale": ("layernorm_after.weight",) * 2,
    "feed_forward_bias": ("layernorm_after.bias",) * 2,
    "feed_in": ("mlp.fc1.weight", "intermediate.dense.weight"),
    "feed_in_bias": ("mlp.fc1.bias", "intermediate.dense.bias"),
    "feed_out": ("mlp.fc2.weight", "output.dense.weight"),
    "feed_out_bias": ("mlp.fc2.bias", "output.dense.bias"),
}


def checkpoint_layout(size: str) -> dict[str, Tensor]:
    """Returns the place of the weights in a checkpoint of transformers, in the names of release 5 or earlier ones."""
    embeddings = "embeddings.patch_embeddings.projection"
    layout = {
        "patch_kernel": single(f"{embeddings}.weight", change=_patch_kernel, hint="patches must be of the same size"),
        "patch_bias": single(f"{embeddings}.bias"),
        "class_token": single("embeddings.cls_token", change=np.ravel),
        "position": single(
            "embeddings.position_embeddings",
            change=lambda x: np.squeeze(x, 0),
            hint="images must have the size that the network was trained on: data.image_size",
        ),
        "final_scale": single("layernorm.weight"),
        "final_bias": single("layernorm.bias"),
    }
    for name, (new, old) in _LAYER.items():
        # Linear maps of torch are [out, in]; vectors have nothing to transpose.
        layout[name] = stack(
            SIZES[size]["layers"], f"layers.{{}}.{new}", f"encoder.layer.{{}}.{old}", change=np.transpose
        )
    return layout


def checkpoint_config(size: str) -> dict[str, Any]:
    """Returns settings that a checkpoint's config.json must not contradict because no shape shows them."""
    return {
        "num_attention_heads": SIZES[size]["heads"],
        "num_hidden_layers": SIZES[size]["layers"],
        "hidden_act": "gelu",
    }


def _patch_kernel(x: np.ndarray) -> np.ndarray:
    """Reshapes a convolution's [d, c, p, p] to a matrix on flattened patches, [p * p * c, d]."""
    return rearrange(x, "d c y x -> (y x c) d")
