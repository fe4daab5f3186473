"""Subsets of modalities, and what each modality adds to a value that all subsets have (Shapley values)."""

import math

import numpy as np


def subset_masks(count: int) -> np.ndarray:
    """Returns all subsets of `count` members, bool [2^count, count]; row s holds member i where bit i of s is set."""
    return (np.arange(2**count)[:, None] >> np.arange(count)[None, :] & 1).astype(bool)


def shapley(values: np.ndarray) -> np.ndarray:
    """Computes exact Shapley values [k, p] from the values of all subsets of p members, [k, 2^p], see `subset_masks`.

    They are each member's mean gain over the members before it, over all orders of the members; they sum to the value
    of all members less that of none.
    """
    p = int(math.log2(values.shape[1]))
    sizes = subset_masks(p).sum(axis=1)
    weights = np.array([1.0 / (p * math.comb(p - 1, size)) for size in range(p)])
    found = np.zeros((len(values), p))
    for i in range(p):
        without = np.flatnonzero(np.arange(2**p) >> i & 1 == 0)
        found[:, i] = (values[:, without | 1 << i] - values[:, without]) @ weights[sizes[without]]
    return found
