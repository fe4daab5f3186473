"""A vision transformer (Dosovitskiy et al. 2021) on one image at a time, in float64."""

import math

import numpy as np

from tests.reference.soft_moe import attention


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Layer norm of every row, with the tiny epsilon of the published networks."""
    return np.stack([(row - row.mean()) / math.sqrt(row.var() + 1e-12) * scale + bias for row in x])


def gelu(x: np.ndarray) -> np.ndarray:
    """x times the normal distribution function of x."""
    return np.array([v * 0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x.ravel()]).reshape(x.shape)


def patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """Patches of an image [height, width, c] row by row, each as a vector by row, column and channel."""
    height, width, _ = pixels.shape
    found = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            patch = []
            for y in range(side):
                for x in range(side):
                    patch.extend(pixels[top + y, left + x])
            found.append(patch)
    return np.array(found, np.float64)


def encode(pixels: np.ndarray, p: dict[str, np.ndarray], heads: int, side: int) -> np.ndarray:
    """Tokens [t, d] of normalised pixels [height, width, 3], with parameters `p` by name, layers stacked in front."""
    embedded = patches(pixels, side) @ p["patch_kernel"] + p["patch_bias"]
    x = np.concatenate([p["class_token"][None], embedded]) + p["position"]
    scale = 1.0 / math.sqrt(x.shape[1] / heads)
    for i in range(len(p["query"])):
        normed = layer_norm(x, p["attention_scale"][i], p["attention_bias"][i])
        query, key, value = (normed @ p[name][i] + p[f"{name}_bias"][i] for name in ("query", "key", "value"))
        x = x + attention(query, key, value, heads, scale=scale) @ p["output"][i] + p["output_bias"][i]
        normed = layer_norm(x, p["feed_forward_scale"][i], p["feed_forward_bias"][i])
        hidden = gelu(normed @ p["feed_in"][i] + p["feed_in_bias"][i])
        x = x + hidden @ p["feed_out"][i] + p["feed_out_bias"][i]
    return layer_norm(x, p["final_scale"], p["final_bias"])
