"""A T5 encoder (Raffel et al. 2020) on one text at a time, in float64."""

import math

import numpy as np

from tests.reference.soft_moe import attention, gelu


def bucket(distance: int, buckets: int = 32, max_distance: int = 128) -> int:
    """Bucket of a key that lies `distance` positions after the query (negative: before)."""
    half = buckets // 2
    start = half if distance > 0 else 0
    apart, exact = abs(distance), half // 2
    if apart < exact:
        return start + apart
    share = math.log(apart / exact) / math.log(max_distance / exact)
    return start + min(half - 1, exact + math.floor(share * (half - exact) + 1e-9))


def rms_norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Root-mean-square norm of every row."""
    return np.stack([row / math.sqrt(float(np.mean(row**2)) + 1e-6) * scale for row in x])


def encode(ids: np.ndarray, p: dict[str, np.ndarray], heads: int) -> np.ndarray:
    """Vectors [length, width] of a text without padding, with parameters `p` by name, layers stacked in front."""
    n = len(ids)
    bias = np.zeros((heads, n, n))
    for i in range(n):
        for j in range(n):
            bias[:, i, j] = p["position_bias"][bucket(j - i)]
    x = p["embedding"][ids]
    for layer in range(len(p["query"])):
        normed = rms_norm(x, p["attention_scale"][layer])
        query, key, value = (normed @ p[name][layer] for name in ("query", "key", "value"))
        x = x + attention(query, key, value, heads, scale=1.0, bias=bias) @ p["output"][layer]
        normed = rms_norm(x, p["feed_forward_scale"][layer])
        if "feed_gate" in p:
            hidden = gelu(normed @ p["feed_gate"][layer]) * (normed @ p["feed_in"][layer])
        else:
            hidden = np.maximum(normed @ p["feed_in"][layer], 0.0)
        x = x + hidden @ p["feed_out"][layer]
    return rms_norm(x, p["final_scale"])


def segment_means(x: np.ndarray, segments: int) -> np.ndarray:
    """Means over stretches of the vectors [n, d] of one text; rows of stretches without a token are zero."""
    n = len(x)
    result = np.zeros((segments, x.shape[1]))
    for t in range(segments):
        members = [i for i in range(n) if (i * segments // n if n >= segments else i) == t]
        if members:
            result[t] = np.mean(x[members], axis=0)
    return result
