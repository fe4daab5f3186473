"""The encoder of events, slowly: event by event and question by question, in float64."""

import numpy as np

from tests.reference.soft_moe import gelu


def _norm(x, p, name):
    centred = x - x.mean()
    return centred / np.sqrt((centred**2).mean() + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def _linear(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def _softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _time(time, waves=6):
    angles = [np.pi / 2 * 2**i * time for i in range(waves)]
    return np.array([time, np.log(1 - 16 * time), *np.sin(angles), *np.cos(angles)])


def _attended(events, p, name, heads):
    query, key, value = np.split(
        np.stack([_linear(_norm(x, p, f"{name}/attention_norm"), p, f"{name}/query_key_value") for x in events]),
        3,
        axis=1,
    )
    k, found = query.shape[1] // heads, []
    for i in range(len(events)):
        parts = []
        for h in range(heads):
            own = slice(h * k, (h + 1) * k)
            weights = _softmax(np.array([query[i, own] @ key[j, own] for j in range(len(events))]) / np.sqrt(k))
            parts.append(sum(w * value[j, own] for j, w in enumerate(weights)))
        found.append(events[i] + _linear(np.concatenate(parts), p, f"{name}/mixed"))
    return found


def encode(events, p, layers, heads=4):
    """Returns the tokens [t, d] of a list of (id, value or NaN, time)."""
    x = []
    for code, value, time in events:
        number = 0.0 if np.isnan(value) else value
        x.append(p["code"][code] + number * p["slope"][code] + _linear(_time(time), p, "time"))
    for i in range(layers + 1):
        name = f"layer_{i}"
        x = _attended(x, p, name, heads) if i else x
        x = [e + _linear(gelu(_linear(_norm(e, p, f"{name}/norm"), p, f"{name}/inner")), p, f"{name}/outer") for e in x]
    x = [_norm(e, p, "norm") for e in x]
    values = np.stack([_linear(e, p, "value") for e in x]).reshape(len(x), heads, -1)
    tokens = []
    for questions in p["question"]:
        mixed = [_softmax(np.array([e @ q for e in x])) @ values[:, h] for h, q in enumerate(questions)]
        tokens.append(_linear(np.concatenate(mixed), p, "adapter"))
    return np.stack(tokens)
