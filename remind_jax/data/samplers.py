"""The order of training samples as pure functions of (seed, step): resuming needs the step number and nothing else.

Random bits come straight from the counter-based Philox generator, whose stream NumPy keeps for good; the distributions
of `numpy.random.Generator` may change between NumPy versions, and an order built on them with them.
"""

import functools
from collections.abc import Callable

import numpy as np

from remind_jax.errors import UserError

Order = Callable[[int, int], np.ndarray]  # (step, batch_size) -> int64 [b], positions in the training rows

_SHUFFLE, _BALANCE = 1, 2  # keep the samplers' streams apart


def shuffled(seed: int, n: int) -> Order:
    """An endless stream in which every epoch is a permutation of its own of the n samples.

    Batch t takes the places [t*b, (t+1)*b) of the stream; it may lie across the border of two epochs, so that every
    sample occurs exactly once per epoch whatever the batch size.

    Args:
      seed: at least 0; together with the epoch it determines the permutation.
      n: number of samples, at least 1.

    Returns:
      order(step, batch_size) -> int64 [b].

    Raises:
      UserError: the seed is not in [0, 2**64), or there are no samples.
    """
    _check(seed, n)

    @functools.lru_cache(maxsize=3)  # prefetching threads may stand on both sides of a border
    def permutation(epoch: int) -> np.ndarray:
        # Ties between 64-bit numbers are too rare to matter, and a stable sort makes them reproducible.
        return np.argsort(_bits(seed, epoch, _SHUFFLE, n), kind="stable").astype(np.int64)

    def order(step: int, batch_size: int) -> np.ndarray:
        place, stop = step * batch_size, (step + 1) * batch_size
        parts = []
        while place < stop:
            epoch, start = divmod(place, n)
            end = min(n, start + stop - place)
            parts.append(permutation(epoch)[start:end])
            place += end - start
        return np.concatenate(parts)

    return order


def group_balanced(seed: int, groups: np.ndarray) -> Order:
    """Draws a group uniformly among those present, then one of its members uniformly, with replacement.

    Args:
      seed: at least 0; together with the step it determines the batch.
      groups: int [n], the group of each training sample.

    Returns:
      order(step, batch_size) -> int64 [b].

    Raises:
      UserError: the seed is not in [0, 2**64), or there are no samples.
    """
    groups = np.asarray(groups)
    _check(seed, len(groups))
    members = np.argsort(groups, kind="stable").astype(np.int64)  # samples of the first group, then of the second, …
    _, starts, counts = np.unique(groups[members], return_index=True, return_counts=True)

    def order(step: int, batch_size: int) -> np.ndarray:
        bits = _bits(seed, step, _BALANCE, 2 * batch_size).reshape(2, batch_size)
        group = _below(bits[0], np.full(batch_size, len(counts)))
        return members[starts[group] + _below(bits[1], counts[group])]

    return order


def _check(seed: int, n: int) -> None:
    if not 0 <= seed < 2**64:
        raise UserError(f"the seed must be a whole number of at least 0 and below 2**64, got {seed}")
    if n < 1:
        raise UserError("there are no training samples to draw from")


def _bits(seed: int, index: int, purpose: int, count: int) -> np.ndarray:
    """Random uint64 [count] that depend on the three keys only."""
    key = np.array([seed, index], np.uint64)  # a list with a seed above 2**63 would pass through float64
    counter = np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def _below(bits: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Whole numbers in [0, limit) from the upper 32 random bits, int64 [b]; off uniform by at most limit / 2**32."""
    return ((bits >> np.uint64(32)) * limit.astype(np.uint64) >> np.uint64(32)).astype(np.int64)
