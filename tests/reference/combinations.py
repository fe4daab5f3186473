"""How frequent combinations of modalities are: drawn ones, and those that independent drops give."""

import numpy as np


def bernoulli_frequencies(masks: np.ndarray, p: float) -> np.ndarray:
    """The probability of each combination, bool [g, m], when each modality is dropped with `p` but not all of them."""
    masks = np.asarray(masks, dtype=bool)
    kept = masks.sum(axis=1)
    m = masks.shape[1]
    return (1 - p) ** kept * p ** (m - kept) / (1 - p**m)


def group_frequencies(present: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The share of samples [n, m] that have each combination [g, m]."""
    return np.array([(present == mask).all(axis=1).mean() for mask in masks])
