"""Uncertainty of routing and the routers of groups, one distribution and one group at a time, in float64."""

import math

import numpy as np

from tests.reference.soft_moe import softmax, unit


def entropy(p: np.ndarray) -> float:
    """Entropy of a distribution in nats."""
    return -sum(float(x) * math.log(float(x)) for x in p if x > 0)


def _margin(p: np.ndarray) -> float:
    second, first = sorted(float(x) for x in p)[-2:]
    return first - second


# Table 6: each metric as a function of the probabilities of the experts.
METRICS = {
    "entropy": lambda p: entropy(p) / math.log(len(p)),
    "certainty": lambda p: 1.0 - entropy(p) / math.log(len(p)),
    "max_probability": lambda p: max(float(x) for x in p),
    "margin": _margin,
    "gini": lambda p: 1.0 - sum(float(x) ** 2 for x in p),
    "variance": lambda p: sum((float(x) - 1.0 / len(p)) ** 2 for x in p),
    "kl": lambda p: sum(float(x) * math.log(float(x) * len(p)) for x in p if x > 0),
}


def metric(name: str, logits: np.ndarray) -> np.ndarray:
    """A metric of Table 6 for each token and slot, [b, n, e, s] -> [b, n, s]; the joint entropy is [b, 1, 1]."""
    b, n, experts, slots = logits.shape
    if name == "joint_entropy":
        joint = [entropy(softmax(sample).ravel()) / math.log(n * experts * slots) for sample in logits]
        return np.array(joint)[:, None, None]
    result = np.zeros((b, n, slots))
    for i in range(b):
        for j in range(n):
            for s in range(slots):
                result[i, j, s] = METRICS[name](softmax(logits[i, j, :, s]))
    return result


def effective_router(shared, residual, scale: float, *, normalize: bool, add_after_norm: bool) -> np.ndarray:
    """Router of one group (Eq. 7): shared [d, e, s] plus residual, column by column."""
    result = np.zeros(shared.shape)
    for e in range(shared.shape[1]):
        for s in range(shared.shape[2]):
            own, common = residual[:, e, s], shared[:, e, s]
            if not normalize:
                result[:, e, s] = common + own
            elif add_after_norm:
                result[:, e, s] = scale * unit(common) + own
            else:
                result[:, e, s] = scale * unit(common + own)
    return result


def composed_residuals(down, up, present) -> np.ndarray:
    """Residual routers [b, d, e, s] of samples: the products of the pairs of their modalities, added one by one."""
    result = np.zeros((len(present), down.shape[1], *up.shape[2:]))
    for i, modalities in enumerate(present):
        for j, is_there in enumerate(modalities):
            if is_there:
                for r in range(down.shape[2]):
                    result[i] += down[j, :, r, None, None] * up[j, r][None]
    return result
