"""M3Care pair by pair and modality by modality, in float64."""

import numpy as np

from tests.reference.simmlm import layer_norm
from tests.reference.sparse_moe import gelu, softmax

Rows = list[dict[int, np.ndarray]]
"""Samples as the vectors [d] of the modalities that each has."""


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


class M3Care:
    """The block of these weights, for samples that ask and samples that are asked."""

    def __init__(self, weights: dict[str, np.ndarray], modalities: int):
        self.p, self.m = weights, modalities

    def normed(self, x):
        return layer_norm(x, self.p["similarity_norm/scale"], self.p["similarity_norm/bias"])

    def seen(self, x, j):
        x = self.normed(x)
        for layer in range(3):
            x = x @ self.p["similarity"][layer, j] + self.p["similarity_bias"][layer, j]
            x = relu(x) if layer < 2 else x
        return x

    def kernel(self, x, y, j):
        widths, mix = np.log1p(np.exp(self.p["kernel_width"][:, j])), sigmoid(self.p["kernel_mix"][j])
        inner = np.exp(-np.mean((self.seen(x, j) - self.seen(y, j)) ** 2) / widths[0])
        outer = np.exp(-np.mean((self.normed(x) - self.normed(y)) ** 2) / widths[1])
        return ((1 - mix) * inner + mix) * outer

    def similarity(self, one, other):
        common = sorted(one.keys() & other.keys())
        found = np.mean([self.kernel(one[j], other[j], j) for j in common]) if common else 0.0
        return found if found > sigmoid(self.p["threshold"]) else 0.0

    def mean(self, own, neighbours, j):
        """The weighted mean of a modality over a sample and (weight, sample) of its neighbours; None for nobody."""
        have = ([(1.0, own[j])] if j in own else []) + [
            (w, other[j]) for w, other in neighbours if w > 0 and j in other
        ]
        return sum(w * x for w, x in have) / sum(w for w, _ in have) if have else None

    def layer(self, index, own, neighbours):
        """What a layer of the graph makes of each modality that somebody has."""
        means = {j: self.mean(own, neighbours, j) for j in range(self.m)}
        p = self.p
        return {
            j: relu(x @ p["graph"][index, j] + p["graph_bias"][index, j]) for j, x in means.items() if x is not None
        }

    def completed(self, asking: Rows, asked: Rows, same: bool) -> Rows:
        """Vectors of each asking sample; with `same` rows on both sides none is its own neighbour."""

        def around(rows, i):
            among = [other for k, other in enumerate(asked) if not (rows is asked and k == i)]
            return [(self.similarity(rows[i], other), other) for other in among]

        def after(rows, i):
            """A sample after the first layer, of the modalities that it has itself."""
            made = self.layer(0, rows[i], around(rows, i))
            return {j: made[j] for j in rows[i]}

        asking = asked if same else asking
        passed = [after(asked, k) for k in range(len(asked))]
        found = []
        for i, own in enumerate(asking):
            among = [k for k in range(len(asked)) if not (same and k == i)]
            told = self.layer(1, after(asking, i), [(self.similarity(own, asked[k]), passed[k]) for k in among])
            found.append({j: self.choose(own.get(j), x, j) for j, x in told.items()})
        return found

    def choose(self, own, told, j):
        if own is None:
            return told
        scores = [sigmoid(x @ self.p["choice"][i, j] + self.p["choice_bias"][i, j]) for i, x in enumerate((told, own))]
        share = scores[0] / sum(scores)
        return share * told + (1 - share) * own

    def features(self, completed: dict[int, np.ndarray], heads: int) -> np.ndarray:
        """The mean over modalities after one transformer layer."""
        p, known = self.p, sorted(completed)
        x = np.stack([completed[j] + p["kind"][j] for j in known])
        z = np.stack([layer_norm(row, p["attention_norm/scale"], p["attention_norm/bias"]) for row in x])
        q, k, v = np.split(z @ p["query_key_value/kernel"] + p["query_key_value/bias"], 3, axis=1)
        d = x.shape[1] // heads
        parts = []
        for h in range(heads):
            one = slice(h * d, (h + 1) * d)
            scores = q[:, one] @ k[:, one].T / np.sqrt(d)
            parts.append(np.stack([softmax(row) for row in scores]) @ v[:, one])
        x = x + np.concatenate(parts, axis=1) @ p["output/kernel"] + p["output/bias"]
        z = np.stack([layer_norm(row, p["moe_norm/scale"], p["moe_norm/bias"]) for row in x])
        z = gelu(z @ p["hidden/kernel"] + p["hidden/bias"]) @ p["shown/kernel"] + p["shown/bias"]
        return (x + z).mean(axis=0)

    def stability(self, rows: Rows) -> float:
        total = 0.0
        for j in range(self.m):
            have = [row[j] for row in rows if j in row]
            hidden = np.sqrt(np.mean([np.mean(self.seen(x, j) ** 2) for x in have]))
            total += abs(hidden - np.sqrt(np.mean([np.mean(self.normed(x) ** 2) for x in have])))
        return total
