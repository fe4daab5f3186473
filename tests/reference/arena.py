"""Fusions of the arena, sample by sample and modality by modality, in float64.

`p` are parameters by path, `x` the tokens of a sample [n, d], `owner` the modality of each token and `present` the
modalities that are there.
"""

import math

import numpy as np

from tests.reference.sparse_moe import gelu, softmax

Params = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def norm(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def linear(p: Params, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def pooled(x: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    return [x[owner == j].mean(axis=0) for j in range(owner.max() + 1)]


def head(p: Params, name: str, k: int, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}/head"][k] + p[f"{name}/head_bias"][k]


def expert(p: Params, name: str, k: int, x: np.ndarray) -> np.ndarray:
    hidden = norm(p, f"{name}/norm", x) @ p[f"{name}/hidden"][k] + p[f"{name}/hidden_bias"][k]
    return head(p, name, k, gelu(hidden))


def late_fusion(p: Params, x: np.ndarray, owner: np.ndarray, present: list[int]) -> dict[str, np.ndarray]:
    z = pooled(x, owner)
    each = np.array([expert(p, "experts", j, z[j]) for j in range(len(z))])
    return {"logits": each[present].mean(axis=0), "experts": each, "features": np.mean([z[j] for j in present], axis=0)}


def _update(p: Params, name: str, latents: np.ndarray, context: np.ndarray | None, heads: int) -> np.ndarray:
    asks = np.array([norm(p, f"{name}/norm", s) for s in latents])
    reads = asks if context is None else np.array([norm(p, f"{name}/context_norm", t) for t in context])
    query = linear(p, f"{name}/query", asks)
    key, value = np.split(linear(p, f"{name}/key_value", reads), 2, axis=1)
    k, found = query.shape[1] // heads, np.zeros_like(query)
    for h in range(heads):
        part = slice(h * k, (h + 1) * k)
        for i in range(len(latents)):
            weights = softmax(np.array([query[i, part] @ one / math.sqrt(k) for one in key[:, part]]))
            found[i, part] = sum(w * v for w, v in zip(weights, value[:, part], strict=True))
    latents = latents + linear(p, f"{name}/output", found)
    hidden = np.array([linear(p, f"{name}/hidden", norm(p, f"{name}/hidden_norm", s)) for s in latents])
    # Klambauer et al. 2017
    selu = 1.0507009873554805 * np.where(hidden > 0, hidden, 1.6732632423543772 * (np.exp(hidden) - 1))
    return latents + linear(p, f"{name}/out", selu)


def healnet(
    p: Params, x: np.ndarray, owner: np.ndarray, present: list[int], heads: int, layers: int
) -> dict[str, np.ndarray]:
    latents = p["latents"]
    for _ in range(layers):
        for j in present:
            latents = _update(p, f"modality_{j}", latents, x[owner == j], heads)
        latents = _update(p, "itself", latents, None, heads)
    return {"features": norm(p, "norm", latents.mean(axis=0))}


def medfuse(p: Params, x: np.ndarray, owner: np.ndarray, present: list[int]) -> dict[str, np.ndarray]:
    z, d = pooled(x, owner), x.shape[1]
    hidden, cell = np.zeros(d), np.zeros(d)
    for j in present:  # a sequence of what is there, as if there were nothing else
        gates = linear(p, "step", np.concatenate([z[j], hidden]))
        cell = sigmoid(gates[d : 2 * d]) * cell + sigmoid(gates[:d]) * np.tanh(gates[3 * d :])
        hidden = sigmoid(gates[2 * d : 3 * d]) * np.tanh(cell)
    each = np.array([head(p, "experts", j, z[j]) for j in range(len(z))])
    return {"logits": linear(p, "out", hidden), "features": hidden, "experts": each}


def shaspec(p: Params, x: np.ndarray, owner: np.ndarray, present: list[int]) -> dict[str, np.ndarray]:
    z = pooled(x, owner)
    shared = [linear(p, "shared/out", gelu(linear(p, "shared/hidden", norm(p, "shared/norm", one)))) for one in z]
    specific = [expert(p, "specific", j, z[j]) for j in range(len(z))]
    mean = np.mean([shared[j] for j in present], axis=0)
    whole = [
        shared[j] + linear(p, "project", np.concatenate([shared[j], specific[j]])) if j in present else mean
        for j in range(len(z))
    ]
    pairs = [(i, j) for i in present for j in present if i < j]
    return {
        "features": gelu(linear(p, "decode", np.concatenate(whole))),
        "distance": sum(np.abs(shared[i] - shared[j]).mean() for i, j in pairs),
        "pairs": len(pairs),
        "surprise": -sum(math.log(softmax(linear(p, "domain", specific[j]))[j]) for j in present),
        "classified": len(present),
    }


def entropy(q: np.ndarray) -> float:
    """Entropy of d coins with chances `q`."""
    return float(-(q * np.log(q) + (1 - q) * np.log(1 - q)).sum())


def drfuse(p: Params, x: np.ndarray, owner: np.ndarray, present: list[int]) -> dict[str, np.ndarray]:
    z, d = pooled(x, owner), x.shape[1]
    shared = [linear(p, "shared_out", expert(p, "shared", j, z[j])) for j in range(len(z))]
    distinct = [expert(p, "distinct", j, z[j]) for j in range(len(z))]
    chances = np.array([sigmoid(shared[j]) for j in present])
    mean = chances.mean(axis=0)
    parts = [*distinct, np.log(mean / (1 - mean))]
    there = [*present, len(z)]
    query = np.mean([linear(p, "query", parts[k]) for k in there], axis=0)
    classes = p["key"].shape[1]
    weights, logits, features = np.zeros((len(parts), classes)), np.zeros(classes), np.zeros((classes, d))
    for c in range(classes):
        weights[there, c] = softmax(np.array([query @ (parts[k] @ p["key"][:, c]) / math.sqrt(d) for k in there]))
        features[c] = sum(weights[k, c] * linear(p, "value", parts[k]) for k in there)
        logits[c] = head(p, "out", c, features[c])[0]
    alike = [
        abs(shared[j] @ distinct[j]) / np.linalg.norm(shared[j]) / np.linalg.norm(distinct[j]) if j in present else 0.0
        for j in range(len(z))
    ]
    return {
        "logits": logits,
        "features": features.mean(axis=0),
        "experts": np.array([head(p, "experts", k, parts[k]) for k in range(len(parts))]),
        "weights": weights,
        "divergence": entropy(mean) - np.mean([entropy(q) for q in chances]) if len(present) > 1 else 0.0,
        "several": float(len(present) > 1),
        "likeness": np.array(alike),
        "present": np.array([float(j in present) for j in range(len(z))]),
    }


def _layer(p: Params, name: str, x: np.ndarray, heads: int) -> np.ndarray:
    asks = np.array([norm(p, f"{name}/attention_norm", one) for one in x])
    query, key, value = np.split(linear(p, f"{name}/query_key_value", asks), 3, axis=1)
    k, found = x.shape[1] // heads, np.zeros_like(x)
    for h in range(heads):
        part = slice(h * k, (h + 1) * k)
        for i in range(len(x)):
            weights = softmax(key[:, part] @ query[i, part] / math.sqrt(k))
            found[i, part] = weights @ value[:, part]
    x = x + linear(p, f"{name}/output", found)
    hidden = np.array([linear(p, f"{name}/hidden", norm(p, f"{name}/moe_norm", one)) for one in x])
    return x + linear(p, f"{name}/out", gelu(hidden))


def umse(
    p: Params, x: np.ndarray, owner: np.ndarray, present: list[int], heads: int, layers: int
) -> dict[str, np.ndarray]:
    m, shared = owner.max() + 1, p["bottleneck"]
    own = {j: np.concatenate([p["tells"][j : j + 1], x[owner == j]]) for j in present}
    for layer in range(layers):
        read = {j: _layer(p, f"layer_{layer * m + j}", np.concatenate([shared, own[j]]), heads) for j in present}
        shared = np.mean([read[j][: len(shared)] for j in present], axis=0)
        own = {j: read[j][len(shared) :] for j in present}
    told = np.mean([own[j][0] for j in present], axis=0)
    return {"features": gelu(linear(p, "project", norm(p, "norm", told)))}


def misranking(weights: np.ndarray, losses: np.ndarray, present: list[int]) -> float:
    """How much outputs [k, c] weigh the worse of two predictors more, over pairs and outputs."""
    found = [
        max(weights[bad, c] - weights[good, c], 0.0)
        for good in present
        for bad in present
        for c in range(weights.shape[1])
        if losses[good] < losses[bad]
    ]
    return float(np.mean(found)) if found else 0.0
