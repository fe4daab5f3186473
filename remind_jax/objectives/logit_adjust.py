"""Logit adjustment for long-tailed labels (Menon et al. 2021), by one class prior or one for each combination."""

import numpy as np

PRIORS = ("none", "class", "class_given_group")
MODES = ("loss", "posthoc")


def log_prior(kind: str, label_counts: np.ndarray, smoothing: float = 1.0) -> np.ndarray:
    """Returns the logarithm of each group's prior over classes, by which logits are adjusted, [g + 1, c] in float32.

    `label_counts` [g, c] are training samples. The kind is `class`, or `class_given_group`, where each combination has
    its own shares; the last row, for combinations not seen in training, is the class prior. `smoothing` samples are
    added to every class (Laplace): rare groups lack some classes, whose logarithm would be -inf. A prior over groups is
    not offered: it would add one number to all logits of a sample, which softmax ignores.
    """
    counts = np.asarray(label_counts, np.float64)
    pooled = counts.sum(axis=0, keepdims=True)
    rows = counts if kind == "class_given_group" else np.repeat(pooled, len(counts), axis=0)
    rows = np.concatenate([rows, pooled]) + smoothing
    return np.log(np.maximum(rows / rows.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)


def train_offset(
    kind: str, mode: str, label_counts: np.ndarray, *, tau: float = 1.0, smoothing: float = 1.0
) -> np.ndarray | None:
    """Returns the term added to the logits in training, τ log π in the mode `loss`, [g + 1, c]; None for no term."""
    return tau * log_prior(kind, label_counts, smoothing) if kind != "none" and mode == "loss" else None


def predict_offset(
    kind: str, mode: str, label_counts: np.ndarray, *, tau: float = 1.0, smoothing: float = 1.0
) -> np.ndarray | None:
    """Returns the term added to predicted logits, -τ log π in the mode `posthoc`, [g + 1, c]; None for no term."""
    return -tau * log_prior(kind, label_counts, smoothing) if kind != "none" and mode == "posthoc" else None
