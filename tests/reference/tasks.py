"""Losses and predictions of tasks, one sample after the other, as their formulas are written."""

import math


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def hazards(logits, step, event):
    """−[δ log(h_T Π_{s<T}(1 − h_s)) + (1 − δ) log Π_{s≤T}(1 − h_s)]; a T beyond the last step is the last."""
    h = [sigmoid(x) for x in logits]
    if step >= len(h):
        step, event = len(h) - 1, False
    before = math.prod(1 - h[s] for s in range(step))
    return -math.log(h[step] * before if event else before * (1 - h[step]))


def survival(logits):
    return [math.prod(1 - sigmoid(x) for x in logits[: k + 1]) for k in range(len(logits))]


def ordinal(logits):
    """The chance of each class: that of stopping at it for who has passed all before."""
    passed, chances = 1.0, []
    for x in logits:
        chances.append(passed * sigmoid(x))
        passed *= 1 - sigmoid(x)
    return [*chances, passed]


def multilabel(logits, labels):
    """Mean cross entropy over known labels."""
    known = [(x, y) for x, y in zip(logits, labels, strict=True) if y >= 0]
    each = [-math.log(sigmoid(x) if y == 1 else 1 - sigmoid(x)) for x, y in known]
    return sum(each) / len(each) if each else 0.0


def softplus(x):
    return math.log1p(math.exp(x))


def gaussian(outputs, value, floor):
    deviation = softplus(outputs[1]) + floor
    density = math.exp(-(((value - outputs[0]) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
    return -math.log(density) - math.log(2 * math.pi) / 2


def pinball(quantiles, value, levels):
    each = [q * (value - x) if value > x else (1 - q) * (x - value) for x, q in zip(quantiles, levels, strict=True)]
    return sum(each) / len(each)
