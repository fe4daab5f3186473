"""SMIL sample by sample, in float64: completed vectors, factors of features, and the loss after an inner step."""

from collections.abc import Callable

import numpy as np


def softplus(x):
    return np.log1p(np.exp(x))


def relu(x):
    return np.maximum(x, 0)


def completed(x: np.ndarray, present: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """Vectors of one sample [m, d] with mixtures of centres where it misses a modality."""
    m, k, _ = p["centres"].shape
    own = np.concatenate([one if there else np.zeros_like(one) for one, there in zip(x, present, strict=True)])
    scores = relu(own @ p["asked/kernel"] + p["asked/bias"]) @ p["told/kernel"] + p["told/bias"]
    found = []
    for j in range(m):
        weights = [softplus(scores[j * k + i]) for i in range(k)]
        mixed = sum(w * centre for w, centre in zip(weights, p["centres"][j], strict=True)) / sum(weights)
        found.append(x[j] if present[j] else mixed @ p["projection"][j])
    return np.stack(found)


def logits(x: np.ndarray, present: np.ndarray, p: dict[str, np.ndarray]) -> np.ndarray:
    """Predictions for one sample [c]."""
    flat = np.concatenate([*completed(x, present, p)])
    flat = flat * softplus(flat @ p["of_vectors/kernel"] + p["of_vectors/bias"])
    hidden = relu(flat @ p["main/hidden/kernel"] + p["main/hidden/bias"])
    hidden = hidden * softplus(flat @ p["of_hidden/kernel"] + p["of_hidden/bias"])
    return hidden @ p["main/out/kernel"] + p["main/out/bias"]


def outer(
    w: np.ndarray,
    inner: Callable[[np.ndarray], float],
    loss: Callable[[np.ndarray], float],
    rate: float,
    step: float = 1e-5,
) -> float:
    """The loss at the weights [p] that a step down the slope of the inner loss leads to, by finite differences."""
    slopes = [(inner(w + step * e) - inner(w - step * e)) / (2 * step) for e in np.eye(len(w))]
    return loss(w - rate * np.array(slopes))
