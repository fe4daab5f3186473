"""Soft mixture of experts and the fusion block, sample by sample and number by number, in float64."""

import math

import numpy as np

EPSILON = 1e-6


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector scaled to (almost) unit length."""
    return vector / math.sqrt(float(np.sum(vector**2)) + EPSILON)


def softmax(values: np.ndarray) -> np.ndarray:
    """Softmax over all entries of an array of any shape."""
    powers = np.exp(values - np.max(values))
    return powers / np.sum(powers)


def gelu(x: np.ndarray) -> np.ndarray:
    """GELU in its tanh form."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def normalized_router(router: np.ndarray, scale: float) -> np.ndarray:
    """Each column of a router [d, e, s] at length `scale`."""
    result = np.zeros(router.shape)
    for e in range(router.shape[1]):
        for s in range(router.shape[2]):
            result[:, e, s] = scale * unit(router[:, e, s])
    return result


def logits(tokens: np.ndarray, router: np.ndarray, normalize: bool) -> np.ndarray:
    """Affinities [n, e, s] of the tokens [n, d] of one sample; `router` [d, e, s] is used as it is."""
    n, (_, experts, slots) = len(tokens), router.shape
    result = np.zeros((n, experts, slots))
    for i in range(n):
        token = unit(tokens[i]) if normalize else tokens[i]
        for e in range(experts):
            for s in range(slots):
                result[i, e, s] = sum(token[k] * router[k, e, s] for k in range(len(token)))
    return result


def dispatch(logits_: np.ndarray, over: str, mask: np.ndarray | None = None) -> np.ndarray:
    """Weights [n, e, s] with which the slots of one sample read its tokens."""
    n, experts, slots = logits_.shape
    seen = [i for i in range(n) if mask is None or mask[i]]
    result = np.zeros(logits_.shape)
    for s in range(slots):
        if over == "tokens":
            for e in range(experts):
                result[seen, e, s] = softmax(logits_[seen, e, s])
        else:
            for i in seen:
                result[i, :, s] = softmax(logits_[i, :, s])
    return result


def combine(logits_: np.ndarray) -> np.ndarray:
    """Weights [n, e, s] with which the tokens of one sample read the slots."""
    return np.stack([softmax(of_token) for of_token in logits_])


def soft_moe(tokens, logits_, w_in, b_in, w_out, b_out, *, expert_input: str, over: str, mask=None) -> np.ndarray:
    """Output [n, d] of one sample with tokens [n, d]."""
    read, write = dispatch(logits_, over, mask), combine(logits_)
    n, experts, slots = logits_.shape
    result = np.zeros(tokens.shape)
    for e in range(experts):
        for s in range(slots):
            slot = np.zeros(tokens.shape[1])
            for i in range(n):
                slot += read[i, e, s] * (unit(tokens[i]) if expert_input == "normalized" else tokens[i])
            output = gelu(slot @ w_in[e] + b_in[e]) @ w_out[e] + b_out[e]
            for i in range(n):
                result[i] += write[i, e, s] * output
    return result


def layer_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Layer norm of every row."""
    return np.stack([(row - row.mean()) / math.sqrt(row.var() + 1e-6) * scale + bias for row in x])


def attention(query, key, value, heads: int, scale: float, bias=None, mask=None) -> np.ndarray:
    """Attention of one sample, [n, h * k] each, `bias` [h, n, n], `mask` [n]; head by head and token by token."""
    n, width = query.shape
    k = width // heads
    seen = [j for j in range(n) if mask is None or mask[j]]
    result = np.zeros((n, width))
    for h in range(heads):
        part = slice(h * k, (h + 1) * k)
        for i in range(n):
            scores = [scale * query[i, part] @ key[j, part] + (0.0 if bias is None else bias[h, i, j]) for j in seen]
            for weight, j in zip(softmax(np.array(scores)), seen, strict=True):
                result[i, part] += weight * value[j, part]
    return result


def block_norm(x: np.ndarray, p: dict, name: str) -> np.ndarray:
    """The layer norm of that name."""
    return layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"])


def before_experts(x, p, *, heads: int, norm: str, residual: bool, mask=None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [n, d] of one sample after attention, and what router and experts read of them."""
    keep = 1.0 if residual else 0.0
    z = block_norm(x, p, "attention_norm") if norm == "pre" else x
    query, key, value = np.split(z @ p["query_key_value/kernel"] + p["query_key_value/bias"], 3, axis=1)
    mixed = attention(query, key, value, heads, (z.shape[1] // heads) ** -0.5, mask=mask)
    x = keep * x + mixed @ p["output/kernel"] + p["output/bias"]
    if norm == "pre":
        return x, block_norm(x, p, "moe_norm")
    x = block_norm(x, p, "attention_norm")
    return x, x


def fusion_block(x, p, *, routing, router, scale: float, heads: int, norm: str, residual: bool, mask=None):
    """One block on the tokens [n, d] of one sample, with parameters `p` by name and the router [d, e, s] to use."""
    x, z = before_experts(x, p, heads=heads, norm=norm, residual=residual, mask=mask)
    router = normalized_router(router, scale) if routing.normalize else router
    affinities = logits(z, router, routing.normalize)
    experts = (p["expert_in"], p["expert_in_bias"], p["expert_out"], p["expert_out_bias"])
    options = {"expert_input": routing.expert_input, "over": routing.dispatch_over}
    x = (1.0 if residual else 0.0) * x + soft_moe(z, affinities, *experts, mask=mask, **options)
    return x if norm == "pre" else block_norm(x, p, "moe_norm")
