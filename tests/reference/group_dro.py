"""Group weights by Eq. 4, step by step with dictionaries, in float64."""

import math

import numpy as np


def normalized(weights: list[float]) -> list[float]:
    """Weights divided by their sum."""
    return [w / sum(weights) for w in weights]


def weights_over_time(
    initial: list[float], steps: list[dict[int, list[float]]], *, gamma: float, every: int, absent: str
) -> np.ndarray:
    """λ after every step.

    Args:
      initial: λ before the first step.
      steps: for each step the losses of its samples by group; a group that is absent has no key.
      gamma: sharpness of the update.
      every: steps between two updates.
      absent: what a group without samples in the window counts as: its `last` known loss (or, while it has none, the
        mean over the groups that have one), or `zero`, as in code that averages a masked batch.

    Returns:
      [number of steps, g].
    """
    weights, last = list(initial), {}
    window: dict[int, list[float]] = {}
    history = []
    for number, step in enumerate(steps, start=1):
        for group, losses in step.items():
            window.setdefault(group, []).extend(losses)
        if number % every == 0:
            current = {group: sum(losses) / len(losses) for group, losses in window.items()}
            last.update(current)
            for group in range(len(weights)):
                if absent == "zero":
                    risk = current.get(group, 0.0)
                else:
                    risk = last.get(group, sum(last.values()) / max(len(last), 1))
                weights[group] *= math.exp(gamma * risk)
            weights, window = normalized(weights), {}
        history.append(list(weights))
    return np.array(history)


def robust_loss(weights: list[float], samples: list[tuple[int, float]], *, normalize_present: bool = False) -> float:
    """Sum over the groups present of λ_g times the mean loss of the group; `samples` are pairs of group and loss."""
    present = sorted({group for group, _ in samples})
    total = 0.0
    for group in present:
        losses = [loss for other, loss in samples if other == group]
        total += weights[group] * sum(losses) / len(losses)
    return total / sum(weights[group] for group in present) if normalize_present else total
