"""Sparse routing token by token and expert by expert, in float64."""

import math

import numpy as np


def score(x: np.ndarray, router: np.ndarray, kind: str) -> np.ndarray:
    """Scores of one token [d] against a router [d, e]."""
    found = np.zeros(router.shape[1])
    for i in range(router.shape[1]):
        away = x - router[:, i]
        found[i] = {"softmax": x @ router[:, i], "gaussian": -(away @ away), "laplace": -math.sqrt(away @ away)}[kind]
    return found


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def top(scores: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    """The k best experts of a token, best first, and their shares."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    return order, softmax(scores[order])


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mix(x: np.ndarray, scores: np.ndarray, k: int, w_in, b_in, w_out, b_out) -> np.ndarray:
    """What the k best experts make of one token [d]."""
    result = np.zeros_like(x)
    for expert, share in zip(*top(scores, k), strict=True):
        result += share * (gelu(x @ w_in[expert] + b_in[expert]) @ w_out[expert] + b_out[expert])
    return result


def load(clean: np.ndarray, noisy: np.ndarray, deviation: np.ndarray, k: int) -> np.ndarray:
    """Probability of each expert to be among the k best if its noise alone were drawn again (Shazeer et al. 2017)."""
    found = np.zeros(len(clean))
    for i in range(len(clean)):
        others = sorted((noisy[j] for j in range(len(clean)) if j != i), reverse=True)
        found[i] = 0.5 * (1 + math.erf((clean[i] - others[k - 1]) / deviation[i] / math.sqrt(2)))
    return found


def unevenness(x: np.ndarray) -> float:
    return float(np.mean((x - x.mean()) ** 2) / (x.mean() ** 2 + 1e-10))


def mix_in_logs(x: np.ndarray, scores: np.ndarray, k: int, w_in, b_in, w_out, b_out) -> np.ndarray:
    """The logarithm of the weighted sum of the probabilities that the k best experts make of one token [d]."""
    chances = np.zeros_like(x)
    for expert, share in zip(*top(scores, k), strict=True):
        chances += share * softmax(gelu(x @ w_in[expert] + b_in[expert]) @ w_out[expert] + b_out[expert])
    return np.log(chances)
