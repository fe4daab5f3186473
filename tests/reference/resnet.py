"""Residual networks (He et al. 2016) on a batch, position by position, in float64, for images and volumes."""

from collections.abc import Sequence

import numpy as np

Params = dict[str, np.ndarray]
Statistics = dict[str, np.ndarray]


def convolve(x: np.ndarray, kernel: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Window centred on every stride-th position of [b, *positions, c]; what lies outside is zero."""
    window, size = kernel.shape[:-2], x.shape[1:-1]
    places = [range(0, n, stride) for n, stride in zip(size, strides, strict=True)]
    result = np.zeros((len(x), *map(len, places), kernel.shape[-1]))
    for out in np.ndindex(*map(len, places)):
        for tap in np.ndindex(*window):
            at = [p[o] + t - w // 2 for p, o, t, w in zip(places, out, tap, window, strict=True)]
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                result[(slice(None), *out)] += x[(slice(None), *at)] @ kernel[tap]
    return result


def max_pool(x: np.ndarray) -> np.ndarray:
    """Largest value within one step of every second position of [b, h, w, c]."""
    rows, columns = range(0, x.shape[1], 2), range(0, x.shape[2], 2)
    result = np.zeros((len(x), len(rows), len(columns), x.shape[-1]))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            near = x[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            result[:, i, j] = near.max(axis=(1, 2))
    return result


class Network:
    """A trunk with parameters `p` by path; `new` collects running statistics by path in training."""

    def __init__(self, p: Params, train: bool = False):
        self.p, self.train, self.new = p, train, {}

    def get(self, path: str, layer: int | None) -> np.ndarray:
        return self.p[path] if layer is None else self.p[path][layer]

    def unit(self, x: np.ndarray, path: str, layer: int | None, strides: Sequence[int]) -> np.ndarray:
        """Convolution and batch norm."""
        x = convolve(x, self.get(f"{path}/kernel", layer), strides)
        result = np.zeros_like(x)
        scale, bias, mean, variance = (
            self.get(f"{path}/{name}", layer) for name in ("scale", "bias", "running_mean", "running_variance")
        )
        new = np.stack([mean, variance])
        for c in range(x.shape[-1]):
            middle, spread = mean[c], variance[c]
            if self.train:
                values = [float(v) for v in x[..., c].reshape(-1)]
                middle = sum(values) / len(values)
                squares = sum((v - middle) ** 2 for v in values)
                spread = squares / len(values)
                new[:, c] = 0.9 * new[:, c] + 0.1 * np.array([middle, squares / (len(values) - 1)])
            result[..., c] = (x[..., c] - middle) / np.sqrt(spread + 1e-5) * scale[c] + bias[c]
        for name, value in zip(("running_mean", "running_variance"), new, strict=True):
            self.new.setdefault(f"{path}/{name}", []).append(value)
        return result

    def block(self, x: np.ndarray, path: str, layer: int | None, windows: Sequence[int], stride: int) -> np.ndarray:
        """A bottleneck, windows (1, 3, 1), or a basic block, (3, 3), strided in its first 3."""
        axes = x.ndim - 2
        y = x
        for i, window in enumerate(windows):
            steps = stride if window == 3 and 3 not in windows[:i] else 1
            y = self.unit(y, f"{path}/unit_{i}", layer, (steps,) * axes)
            if i < len(windows) - 1:
                y = np.maximum(y, 0.0)
        if f"{path}/shortcut/kernel" in self.p:
            x = self.unit(x, f"{path}/shortcut", layer, (stride,) * axes)
        return np.maximum(x + y, 0.0)

    def features(
        self, x: np.ndarray, strides: Sequence[int], pool: bool, windows: Sequence[int], blocks: Sequence[int]
    ) -> np.ndarray:
        """The last feature map of [b, *positions, 3]."""
        x = np.maximum(self.unit(x, "trunk/stem", None, strides), 0.0)
        if pool:
            x = max_pool(x)
        for stage, count in enumerate(blocks):
            x = self.block(x, f"trunk/stage_{stage}/first", None, windows, 2 if stage else 1)
            for layer in range(count - 1):
                x = self.block(x, f"trunk/stage_{stage}/rest", layer, windows, 1)
        return x

    def running(self) -> Statistics:
        """New running statistics by path, stacked where parameters are."""
        return {path: np.stack(v) if "/rest/" in path else v[0] for path, v in self.new.items()}
