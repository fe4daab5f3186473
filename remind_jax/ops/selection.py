"""Weights of the candidates of a stack by greedy selection with replacement (Caruana et al. 2004)."""

from collections.abc import Callable

import numpy as np


def greedy(predictions: np.ndarray, loss: Callable[[np.ndarray], float], rounds: int = 50) -> np.ndarray:
    """Returns weights of candidates that sum to one, float64 [c], by their predictions of the same rows, [c, ...].

    It begins with the best candidate and adds, of all of them, the one whose addition makes the loss of the mean the
    least, the first of equal ones; of the means after each of the rounds it keeps the first that is best, which is
    never worse than the best candidate.
    """
    counts, best, found = np.zeros(len(predictions)), np.inf, np.zeros(len(predictions))
    total = np.zeros(predictions.shape[1:])
    for size in range(1, rounds + 1):
        values = [loss((total + each) / size) for each in predictions]
        taken = int(np.argmin(values))
        total, counts[taken] = total + predictions[taken], counts[taken] + 1
        if values[taken] < best:
            best, found = values[taken], counts / size
    return found


def smoothed(weights: np.ndarray, rows: int, few: int) -> np.ndarray:
    """Moves weights [c] towards equal ones of all candidates: half of the way where `rows` are `few`."""
    return (rows * weights + few / len(weights)) / (rows + few)
