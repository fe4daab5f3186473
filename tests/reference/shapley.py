"""Shapley values as they are defined: the mean over all orders of what a member adds to those before it."""

import itertools
import math
from collections.abc import Callable

import numpy as np


def shapley(value: Callable[[frozenset[int]], float], count: int) -> np.ndarray:
    """Args: value of a set of members, and their number. Returns: float64 [count]."""
    total = np.zeros(count)
    for order in itertools.permutations(range(count)):
        before: frozenset[int] = frozenset()
        for member in order:
            total[member] += value(before | {member}) - value(before)
            before |= {member}
    return total / math.factorial(count)
