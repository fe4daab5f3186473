"""Floating point operations and parameter counts by part, from shapes alone (2 a multiply-add).

Only products of arrays are counted, as in the appendix of PaLM (Chowdhery et al. 2022): norms, softmaxes, activations,
biases and look-ups are left out of the operations, not out of the parameters. Operations are those of a forward pass of
one sample. XLA's own count holds elementwise work too, and counts the body of a loop once.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# The backward pass of a product is two products of the same size.
TRAIN_FACTOR = 3


class Cost(NamedTuple):
    """Operations of a forward pass of one sample, and the number of parameters."""

    flops: int
    parameters: int


def total(parts: Mapping[str, Cost] | Iterable[Mapping[str, Cost]]) -> Cost:
    """Sum over the parts of one mapping or of several."""
    mappings = [parts] if isinstance(parts, Mapping) else list(parts)
    costs = [cost for mapping in mappings for cost in mapping.values()]
    return Cost(sum(cost.flops for cost in costs), sum(cost.parameters for cost in costs))


def linear(rows: int, inputs: int, outputs: int, *, bias: bool = True) -> Cost:
    """A dense layer over `rows` vectors."""
    return Cost(2 * rows * inputs * outputs, inputs * outputs + bias * outputs)


def fusion_block(*, n: int, d: int, e: int, s: int, f: int, groups: int = 0, gate: str = "never") -> dict[str, Cost]:
    """Attention and soft mixture of experts over the tokens of one sample (REMIND section 3.3).

    Args:
      n: tokens of all modalities.
      d: width.
      e: experts.
      s: slots of one expert.
      f: hidden width of an expert.
      groups: g, combinations with a residual router of their own; 0 is the plain block.
      gate: `never` and `always` take one product of tokens and router, `gated` takes two.
    """
    mix = 2 * n * d * e * s
    projections = linear(n, d, 3 * d), linear(n, d, d)
    return {
        "projections": Cost(sum(p.flops for p in projections), sum(p.parameters for p in projections)),
        "attention": Cost(4 * n * n * d, 0),
        "norms": Cost(0, 4 * d),
        "router": Cost(mix * (2 if gate == "gated" else 1), d * e * s + 1),
        "group_router": Cost(0, groups * d * e * s),
        "dispatch": Cost(mix, 0),
        "experts": Cost(4 * e * s * d * f, e * (2 * d * f + f + d)),
        "combine": Cost(mix, 0),
    }


def patch_encoder(*, t: int, patch: int, d: int, hidden: int = 0) -> dict[str, Cost]:
    """Embedding of t patches of `patch` numbers, with a GELU layer of width `hidden` before it when that is not 0."""
    parts = {"embed": linear(t, hidden or patch, d), "position": Cost(0, t * d)}
    return {"hidden": linear(t, patch, hidden), **parts} if hidden else parts


def t5_encoder(
    *,
    length: int,
    vocabulary: int,
    layers: int,
    width: int,
    heads: int,
    head_width: int,
    hidden: int,
    gated: bool,
    t: int,
    d: int,
) -> dict[str, Cost]:
    """Text encoder, and the adapter that turns a text into t tokens of width d.

    Args:
      length: token ids of a text, padding included.
      vocabulary: number of token ids.
      layers: l.
      width: of the encoder.
      heads: h.
      head_width: k.
      hidden: width of the feed-forward layers.
      gated: three feed-forward matrices instead of two.
      t: tokens of the modality.
      d: width of the fusion.
    """
    inner, feed = heads * head_width, 3 if gated else 2
    return {
        "embedding": Cost(0, vocabulary * width),
        "position_bias": Cost(0, 32 * heads),
        "projections": Cost(layers * 8 * length * width * inner, layers * 4 * width * inner),
        "attention": Cost(layers * 4 * length * length * inner, 0),
        "feed_forward": Cost(layers * feed * 2 * length * width * hidden, layers * feed * width * hidden),
        "norms": Cost(0, (2 * layers + 1) * width),
        "segments": Cost(2 * length * t * width, 0),
        "adapter": linear(t, width, d),
    }
