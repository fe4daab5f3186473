"""The network of configs/manifest.py in PyTorch: text and table encoders, soft experts, residual routers behind a gate.

Tokens are encoded for the samples that have the modality. Importing this module needs torch, and does not import JAX.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_reference import Vectorised, attend, mix, unit_length

PAD = 0


class Settings(Protocol):
    """The keys of a config that make the network."""

    width: int
    tokens: int
    encoder_dropout: float
    heads: int
    experts: int
    hidden: int
    gate_threshold: float
    dropout: float


class TextEncoder(nn.Module):
    """A small T5 encoder of token ids, averaged over stretches of the text, and a map into the fusion width."""

    def __init__(self, vocabulary: int, settings: Settings):
        super().__init__()
        d, self.heads, self.tokens, self.rate = 64, 2, settings.tokens, settings.encoder_dropout
        self.embedding, self.position_bias = nn.Embedding(vocabulary, d), nn.Embedding(32, self.heads)
        self.layers = nn.ModuleList(_TextLayer(d, self.heads, 32, 128, self.rate) for _ in range(2))
        self.norm = nn.RMSNorm(d, eps=1e-6)
        self.adapter = nn.Linear(d, settings.width)
        nn.init.normal_(self.position_bias.weight, std=d**-0.5)

    def features(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids [b, length] to the means of t stretches [b, t, d]."""
        valid = ids != PAD
        bias = self.position_bias(_buckets(ids.shape[1])).permute(2, 0, 1)[None]
        bias = bias.masked_fill(~valid[:, None, None], -1e30)
        x = functional.dropout(self.embedding(ids), self.rate, self.training)
        for layer in self.layers:
            x = layer(x, bias)
        return _stretches(valid, self.tokens) @ self.norm(x)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Maps ids [b, length] to tokens [b, t, width]."""
        return self.adapter(self.features(ids))


class _TextLayer(nn.Module):
    def __init__(self, d: int, heads: int, head_width: int, hidden: int, rate: float):
        super().__init__()
        self.heads, self.rate, inner = heads, rate, heads * head_width
        self.attention_norm, self.feed_norm = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
        self.query_key_value = nn.Linear(d, 3 * inner, bias=False)
        self.output = nn.Linear(inner, d, bias=False)
        self.feed_in, self.feed_out = nn.Linear(d, 2 * hidden, bias=False), nn.Linear(hidden, d, bias=False)
        for layer in (self.query_key_value, self.output, self.feed_in, self.feed_out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        # T5 leaves scores unscaled and queries small.
        nn.init.normal_(self.query_key_value.weight[:inner], std=(d * head_width) ** -0.5)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*projected.unbind(0), attn_mask=bias, scale=1.0)
        mixed = self.output(mixed.transpose(1, 2).reshape(b, n, -1))
        x = x + functional.dropout(mixed, self.rate, self.training)
        gate, hidden = self.feed_in(self.feed_norm(x)).chunk(2, dim=-1)
        fed = self.feed_out(functional.gelu(gate, approximate="tanh") * hidden)
        return x + functional.dropout(fed, self.rate, self.training)


def _buckets(length: int) -> torch.Tensor:
    """Returns T5's buckets of distances in both directions, [length, length]."""
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    apart = distance.abs()
    far = 8 + (torch.log(apart.clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
    return torch.where(distance > 0, 16, 0) + torch.where(apart < 8, apart, far.clamp(max=15))


def _stretches(valid: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the weights of means over stretches of the valid tokens, [b, length] -> [b, count, length]."""
    lengths, position = valid.sum(dim=1, keepdim=True), torch.arange(valid.shape[1])[None]
    stretch = torch.where(lengths >= count, position * count // lengths.clamp(min=1), position)
    member = ((stretch[:, None] == torch.arange(count)[None, :, None]) & valid[:, None]).float()
    return member / member.sum(dim=2, keepdim=True).clamp(min=1.0)


class TableEncoder(nn.Module):
    """One linear map from patches of a row of numbers to t tokens, with a learned vector for each position."""

    def __init__(self, features: int, settings: Settings):
        super().__init__()
        self.tokens, self.patch = settings.tokens, math.ceil(features / settings.tokens)
        self.embed = nn.Linear(self.patch, settings.width)
        self.position = nn.Parameter(0.02 * torch.randn(self.tokens, settings.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [b, p] to [b, t, width]."""
        x = functional.pad(x, (0, self.tokens * self.patch - x.shape[1]))
        return self.embed(x.view(len(x), self.tokens, self.patch)) + self.position


class Network(nn.Module):
    """Encoders, learned vectors for what is missing, attention, soft experts with residual routers, mean, head."""

    def __init__(self, inputs: Mapping[str, tuple[int, int]], combinations: int, classes: int, settings: Settings):
        """Draws the weights; `inputs` has the numbers and the token ids (0 for numbers) of each modality."""
        super().__init__()
        self.settings, d, e, f = settings, settings.width, settings.experts, settings.hidden
        self.encoders = nn.ModuleDict(
            {
                name: TextEncoder(ids, settings) if ids else TableEncoder(numbers, settings)
                for name, (numbers, ids) in inputs.items()
            }
        )
        self.missing = nn.Parameter(0.02 * torch.randn(len(inputs), d))
        self.missing_of_group = nn.Parameter(torch.zeros(combinations, d))
        self.attention_norm, self.moe_norm = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.query_key_value, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.router = nn.Parameter(d**-0.5 * torch.randn(d, e, 1))
        self.router_scale = nn.Parameter(torch.ones(()))
        self.group_router = nn.Parameter(torch.zeros(combinations, d, e, 1))
        self.experts = Vectorised(e, d, f)
        for weight, size in ((self.experts.w_in, d), (self.experts.w_out, f)):
            nn.init.normal_(weight, std=size**-0.5)
        nn.init.zeros_(self.experts.b_in), nn.init.zeros_(self.experts.b_out)
        self.head = nn.Linear(d, classes)
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, batch: Mapping[str, Any], *, gated: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns logits [b, c] and the share of open gates of a batch; stored features stand for inputs they were of.

        Args:
          batch: `inputs` or `features` by modality, `present` [b, m] and `group` [b].
          gated: whether routers of combinations act, where the shared router is unsure.
        """
        rate, training = self.settings.dropout, self.training
        x = self._tokens(batch)
        attended = attend(self.attention_norm(x), self.query_key_value, self.output, self.settings.heads)
        x = x + functional.dropout(attended, rate, training)
        routed = self.moe_norm(x)
        logits, is_open = self._affinities(routed, batch["group"], gated)
        x = x + functional.dropout(mix(routed, logits, self.experts), rate, training)
        return self.head(x.mean(dim=1)), is_open.float().mean()

    def _tokens(self, batch: Mapping[str, Any]) -> torch.Tensor:
        of_groups = torch.cat([self.missing_of_group, self.missing_of_group.mean(dim=0, keepdim=True)])[batch["group"]]
        imputed, tokens = self.missing + of_groups[:, None], []
        for i, (name, encoder) in enumerate(self.encoders.items()):
            here = batch["present"][:, i].nonzero()[:, 0]
            if name in batch["features"]:
                encoded = encoder.adapter(batch["features"][name][here].float())
            else:
                encoded = encoder(batch["inputs"][name][here])
            encoded = functional.dropout(encoded, self.settings.encoder_dropout, self.training)
            tokens.append(imputed[:, i, None].expand(-1, encoder.tokens, -1).index_copy(0, here, encoded))
        return torch.cat(tokens, dim=1)

    def _affinities(self, x: torch.Tensor, group: torch.Tensor, gated: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the affinities of tokens to slots [b, n, e, s], and whose gate is open [b]."""
        unit = unit_length(x, -1)
        shared = self.router_scale * unit_length(self.router, 0)
        plain = torch.einsum("bmd,dnp->bmnp", unit, shared)
        if not gated:
            return plain, torch.zeros(len(x), dtype=torch.bool)
        with torch.no_grad():
            p = torch.softmax(plain, dim=2)
            entropy = -(p * p.clamp(min=1e-30).log()).sum(dim=2).mean(dim=(1, 2)) / math.log(plain.shape[2])
            is_open = entropy >= self.settings.gate_threshold
            which = torch.where(is_open, group, len(self.group_router))
        residual = torch.cat([self.group_router, torch.zeros_like(self.group_router[:1])])
        routers = (self.router_scale * unit_length(self.router + residual, 1))[which]
        return torch.einsum("bmd,bdnp->bmnp", unit, routers), is_open


def weights_of(params: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns arrays of the package's network by path, such as weights or gradients, under the names used here."""
    found = {
        "missing": params["imputation/modality"],
        "missing_of_group": params["imputation/group"],
        "head.weight": params["head/kernel"].T,
        "head.bias": params["head/bias"],
    }
    block = {path.removeprefix("block_0/"): x for path, x in params.items() if path.startswith("block_0/")}
    found |= {name: block[name] for name in ("router", "router_scale", "group_router")}
    experts = {"w_in": "expert_in", "b_in": "expert_in_bias", "w_out": "expert_out", "b_out": "expert_out_bias"}
    found |= {f"experts.{name}": block[theirs] for name, theirs in experts.items()}
    for name in ("attention_norm", "moe_norm"):
        found |= {f"{name}.weight": block[f"{name}/scale"], f"{name}.bias": block[f"{name}/bias"]}
    for name in ("query_key_value", "output"):
        found |= {f"{name}.weight": block[f"{name}/kernel"].T, f"{name}.bias": block[f"{name}/bias"]}
    names = dict.fromkeys(path.split("/")[1] for path in params if path.startswith("encoders/"))
    for name in names:
        own = {path.removeprefix(f"encoders/{name}/"): x for path, x in params.items()}
        encoder = _table_weights(own) if "position" in own else _text_weights(own)
        found |= {f"encoders.{name}.{key}": x for key, x in encoder.items()}
    return {name: torch.tensor(np.asarray(x)) for name, x in found.items()}


def _table_weights(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"embed.weight": own["embed/kernel"].T, "embed.bias": own["embed/bias"], "position": own["position"]}


def _text_weights(own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {
        "embedding.weight": own["embedding"],
        "position_bias.weight": own["position_bias"],
        "norm.weight": own["final_scale"],
        "adapter.weight": own["adapter/kernel"].T,
        "adapter.bias": own["adapter/bias"],
    }
    for i in range(len(own["query"])):
        layer = {
            "attention_norm.weight": own["attention_scale"][i],
            "feed_norm.weight": own["feed_forward_scale"][i],
            "query_key_value.weight": np.concatenate([own[name][i].T for name in ("query", "key", "value")]),
            "output.weight": own["output"][i].T,
            "feed_in.weight": np.concatenate([own["feed_gate"][i].T, own["feed_in"][i].T]),
            "feed_out.weight": own["feed_out"][i].T,
        }
        found |= {f"layers.{i}.{name}": x for name, x in layer.items()}
    return found
