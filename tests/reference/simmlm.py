"""SimMLM sample by sample and modality by modality, in float64: experts, the gate, and fewer against more."""

import numpy as np

from tests.reference.sparse_moe import gelu, softmax


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * scale + bias


def expert(x: np.ndarray, weights: dict[str, np.ndarray], j: int) -> np.ndarray:
    """Logits of the expert of modality j for one vector [d]."""
    p = {name.removeprefix("experts/"): value for name, value in weights.items() if name.startswith("experts/")}
    x = layer_norm(x, p["norm/scale"], p["norm/bias"])
    return gelu(x @ p["hidden"][j] + p["hidden_bias"][j]) @ p["head"][j] + p["head_bias"][j]


def shares(x: np.ndarray, present: np.ndarray, weights: dict[str, np.ndarray]) -> dict[int, float]:
    """What the expert of each modality that is there counts, for the vectors of one sample [m, d]."""
    p = weights
    norms = [layer_norm(one, p["gate_norm/scale"], p["gate_norm/bias"]) for one in x]
    seen = np.concatenate([one if there else np.zeros_like(one) for one, there in zip(norms, present, strict=True)])
    scores = gelu(seen @ p["gate_in/kernel"] + p["gate_in/bias"]) @ p["gate_out/kernel"] + p["gate_out/bias"]
    here = [j for j in range(len(x)) if present[j]]
    return dict(zip(here, softmax(scores[here]), strict=True))


def mixture(x: np.ndarray, present: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Logits of one sample [c]."""
    return sum(share * expert(x[j], weights, j) for j, share in shares(x, present, weights).items())


def fewer(more: np.ndarray, less: np.ndarray, lost: np.ndarray, weight: float, ranking: float) -> float:
    """The terms of a batch, from the losses of samples with all modalities and with some [b]."""
    terms = [weight * b + ranking * max(0.0, a - b) for a, b, counts in zip(more, less, lost, strict=True) if counts]
    return sum(terms) / max(len(terms), 1)
