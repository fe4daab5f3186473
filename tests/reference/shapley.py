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


def knockout_rates(values: list[float], power: float, least: float, most: float) -> list[float]:
    """ShapKO's rates one by one: the common rate times what a modality adds in terms of the mean, to a power."""
    base = 1 - 0.5 ** (1 / len(values))
    above = [value - min(values) for value in values]
    mean = sum(above) / len(values)
    return [min(max(base * ((each / mean) if mean else 1.0) ** power, least), most) for each in above]
