"""T5-style text encoder (Raffel et al. 2020): RMS norm, relative position bias, no other positions, no biases."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.pretrained import Tensor, single, stack
from remind_jax.ops import draws
from remind_jax.ops.transformer import attention, dropout, on_rows, relative_position_buckets, rms_norm, segment_means

# layers, width, heads, head width, hidden width of each published or small size.
SIZES = {
    "small": {"layers": 2, "width": 64, "heads": 2, "head_width": 32, "hidden": 128},
    "base": {"layers": 12, "width": 768, "heads": 12, "head_width": 64, "hidden": 3072},
}
PREFIXES = ("",)
MODEL_TYPES = ("t5", "mt5")
PAD = 0


class T5Encoder(nnx.Module):
    """Encodes token ids and averages stretches of the text into t tokens of width d.

    The layers are stacked arrays under one scan, so that twelve compile as fast as one.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        size: str,
        tokens: int,
        width: int,
        gated: bool,
        dropout: float,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        """Declares the weights for so many token ids, of which 0 pads; `size` is a key of `SIZES`, `tokens` t, `width`
        d.

        `gated` takes gated GELU (T5 v1.1) instead of ReLU (v1.0) in the feed-forward layers. `dropout` is the rate on
        embeddings and on the output of each sublayer. `remat` computes the layers again in the backward pass.
        """
        shape = SIZES[size]
        layers, d, f = shape["layers"], shape["width"], shape["hidden"]
        inner = shape["heads"] * shape["head_width"]
        self.heads, self.tokens, self.dropout, self.remat = shape["heads"], tokens, dropout, remat

        def normal(std: float, *dims: int) -> nnx.Param:
            return initial.param(rngs, initial.normal(std), *dims)

        def ones(*dims: int) -> nnx.Param:
            return initial.param(rngs, initial.constant(1.0), *dims)

        self.embedding = normal(1.0, vocabulary, d)
        self.position_bias = normal(d**-0.5, 32, self.heads)
        self.attention_scale = ones(layers, d)
        # T5 folds 1 / sqrt(k) into the initial query weights and leaves the scores unscaled.
        self.query = normal((d * shape["head_width"]) ** -0.5, layers, d, inner)
        self.key = normal(d**-0.5, layers, d, inner)
        self.value = normal(d**-0.5, layers, d, inner)
        self.output = normal(inner**-0.5, layers, inner, d)
        self.feed_forward_scale = ones(layers, d)
        self.feed_in = normal(d**-0.5, layers, d, f)
        if gated:
            self.feed_gate = normal(d**-0.5, layers, d, f)
        self.feed_out = normal(f**-0.5, layers, f, d)
        self.final_scale = ones(d)
        self.adapter = initial.linear(d, width, rngs)

    def encode(self, ids: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns the contextual vector of every token, int [b, length] -> [b, length, width of the encoder]."""
        mask = ids != PAD
        bias = jnp.moveaxis(self.position_bias[relative_position_buckets(ids.shape[1])], -1, 0)[None]
        gate = (self.feed_gate[...],) if hasattr(self, "feed_gate") else ()
        weights = (self.attention_scale, self.query, self.key, self.value, self.output)
        weights += (self.feed_forward_scale, self.feed_in, self.feed_out)
        stacked = (jnp.arange(self.query.shape[0]), tuple(w[...] for w in weights) + gate)

        def linear(x, weights):
            return on_rows(lambda rows: rows @ weights, x)

        def layer(x, inputs):
            index, (scale, query, key, value, output, ff_scale, feed_in, feed_out, *feed_gate) = inputs
            layer_keys = None if keys is None else draws.fold_in(keys, index)
            normed = rms_norm(x, scale)
            projected = (linear(normed, w) for w in (query, key, value))
            mixed = attention(*projected, heads=self.heads, scale=1.0, bias=bias, mask=mask)
            x = x + dropout(linear(mixed, output), layer_keys, self.dropout, salt=0)
            normed = rms_norm(x, ff_scale)
            hidden = linear(normed, feed_in)
            hidden = jax.nn.gelu(linear(normed, feed_gate[0])) * hidden if feed_gate else jax.nn.relu(hidden)
            return x + dropout(linear(hidden, feed_out), layer_keys, self.dropout, salt=1), None

        # Salts up to the number of layers are folded in by the scan; this one is outside their range.
        x = dropout(self.embedding[ids], keys, self.dropout, salt=10_000)
        x, _ = jax.lax.scan(jax.checkpoint(layer) if self.remat else layer, x, stacked)
        return rms_norm(x, self.final_scale[...])

    def features(self, ids: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Averages the vectors over t stretches of each text, [b, t, width of the encoder]."""
        return segment_means(self.encode(ids, keys), ids != PAD, self.tokens)

    def project(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Applies the map into the fusion width, [b, t, d]."""
        del keys
        return on_rows(self.adapter, features)

    def __call__(self, ids: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps int [b, length] to [b, t, d]; `keys` [b] turn dropout on."""
        return self.project(self.features(ids, keys), keys)


def checkpoint_layout(size: str, gated: bool) -> dict[str, Tensor]:
    """Returns the place of the weights in a checkpoint of transformers: an encoder or a whole T5 without its decoder.

    `size` is a key of `SIZES`; `gated` is gated GELU (T5 v1.1, Flan-T5, mT5) instead of ReLU (v1.0).
    """
    layers, block = SIZES[size]["layers"], "encoder.block.{}.layer"
    maps = {"query": "0.SelfAttention.q", "key": "0.SelfAttention.k", "value": "0.SelfAttention.v"}
    maps |= {"output": "0.SelfAttention.o", "feed_out": "1.DenseReluDense.wo"}
    # The first of the two is the one that passes the activation.
    feed = {"feed_gate": "wi_0", "feed_in": "wi_1"} if gated else {"feed_in": "wi"}
    maps |= {name: f"1.DenseReluDense.{theirs}" for name, theirs in feed.items()}
    scales = {"attention_scale": "0.layer_norm", "feed_forward_scale": "1.layer_norm"}
    return {
        # Published embeddings are padded to whole multiples of 128 rows; tokenizers give no ids of those rows.
        "embedding": single("shared.weight", "encoder.embed_tokens.weight", hint=_OTHER_TOKENIZER, padded_to=128),
        "position_bias": single("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        **{name: stack(layers, f"{block}.{theirs}.weight", change=np.transpose) for name, theirs in maps.items()},
        **{name: stack(layers, f"{block}.{theirs}.weight") for name, theirs in scales.items()},
        "final_scale": single("encoder.final_layer_norm.weight"),
    }


_OTHER_TOKENIZER = "the vocabulary must be that of the checkpoint: set data.tokenizer to it"


def checkpoint_config(size: str, gated: bool) -> dict[str, Any]:
    """Returns settings that a checkpoint's config.json must not contradict because no shape shows them."""
    return {
        "num_heads": SIZES[size]["heads"],
        "num_layers": SIZES[size]["layers"],
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "relative_attention_max_distance": 128,
    }
