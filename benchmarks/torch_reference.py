"""The same networks in PyTorch, as a user of the paper would write them.

Two forms of the experts: `loop`, one module an expert as in the paper's listing (7.2.10), and `vectorised`, one batched
product over stacked weights. Both take their weights from a JAX network and are compared with it before they are timed.
Importing this module needs torch, and does not import JAX.
"""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from remind_jax.ops.soft_moe import Routing

EPSILON = 1e-6  # of remind_jax.ops.soft_moe, whose import is that of JAX
FORMS = ("loop", "vectorised")
_NOT_DECAYED = re.compile(r"(bias|scale)$")


def unit_length(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Scales to (almost) unit length along an axis."""
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + EPSILON)


class _Loop(nn.Module):
    """Experts as a list of modules, called one after the other."""

    def __init__(self, e: int, d: int, f: int):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d, f), nn.GELU(approximate="tanh"), nn.Linear(f, d)) for _ in range(e)
        )

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Maps [b, e, s, d] to [b, e, s, d]."""
        return torch.stack([expert(slots[:, i]) for i, expert in enumerate(self.experts)], dim=1)

    def bindings(self) -> dict[str, tuple[list[nn.Parameter], bool]]:
        first, last = [expert[0] for expert in self.experts], [expert[2] for expert in self.experts]
        return {
            "expert_in": ([layer.weight for layer in first], True),
            "expert_in_bias": ([layer.bias for layer in first], False),
            "expert_out": ([layer.weight for layer in last], True),
            "expert_out_bias": ([layer.bias for layer in last], False),
        }


class Vectorised(nn.Module):
    """Experts as stacked weights and two batched products."""

    def __init__(self, e: int, d: int, f: int):
        super().__init__()
        self.w_in, self.b_in = nn.Parameter(torch.empty(e, d, f)), nn.Parameter(torch.empty(e, f))
        self.w_out, self.b_out = nn.Parameter(torch.empty(e, f, d)), nn.Parameter(torch.empty(e, d))

    def forward(self, slots: torch.Tensor) -> torch.Tensor:
        """Maps [b, e, s, d] to [b, e, s, d]."""
        b, e, s, d = slots.shape
        x = slots.transpose(0, 1).reshape(e, b * s, d)
        hidden = functional.gelu(torch.baddbmm(self.b_in[:, None], x, self.w_in), approximate="tanh")
        out = torch.baddbmm(self.b_out[:, None], hidden, self.w_out)
        return out.reshape(e, b, s, d).transpose(0, 1)

    def bindings(self) -> dict[str, tuple[list[nn.Parameter], bool]]:
        return {
            "expert_in": ([self.w_in], False),
            "expert_in_bias": ([self.b_in], False),
            "expert_out": ([self.w_out], False),
            "expert_out_bias": ([self.b_out], False),
        }


def attend(x: torch.Tensor, query_key_value: nn.Linear, output: nn.Linear, heads: int) -> torch.Tensor:
    """Applies self-attention, [b, n, d] to [b, n, d]."""
    b, n, d = x.shape
    projected = query_key_value(x).view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(*projected.unbind(0))
    return output(mixed.transpose(1, 2).reshape(b, n, d))


def mix(x: torch.Tensor, logits: torch.Tensor, experts: nn.Module, dispatch_over: str = "tokens") -> torch.Tensor:
    """Mixes tokens [b, n, d] through the experts by their affinities to slots [b, n, e, s]."""
    dispatch = torch.softmax(logits, dim={"tokens": 1, "experts": 2}[dispatch_over])
    combine = torch.softmax(logits.flatten(2), dim=-1).view_as(logits)
    slots = torch.einsum("bmd,bmnp->bnpd", x, dispatch)
    return torch.einsum("bnpd,bmnp->bmd", experts(slots), combine)


class Network(nn.Module):
    """Patch encoders, learned vectors for missing modalities, one fusion block with a shared router, mean, head."""

    def __init__(self, params: Mapping[str, np.ndarray], form: str, heads: int, routing: "Routing"):
        """Takes over the weights of a JAX network without group routers.

        Args:
          params: by path, see `remind_jax.models.model.make_network`.
          form: one of `FORMS`.
          heads: h.
          routing: preset of the soft MoE.
        """
        super().__init__()
        e, d, f = params["block_0/expert_in"].shape
        patterns = (re.fullmatch(r"encoders/(.+)/position", path) for path in params)
        self.modalities = tuple(match[1] for match in patterns if match)
        self.heads, self.routing = heads, routing

        def free(path: str) -> nn.Parameter:
            return nn.Parameter(torch.empty(params[path].shape))

        def dense(path: str) -> nn.Linear:
            return nn.Linear(*params[f"{path}/kernel"].shape)

        self.embed = nn.ModuleList(dense(f"encoders/{name}/embed") for name in self.modalities)
        self.position = nn.ParameterList(free(f"encoders/{name}/position") for name in self.modalities)
        self.missing = free("imputation/modality")
        self.attention_norm, self.moe_norm = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.query_key_value, self.output = dense("block_0/query_key_value"), dense("block_0/output")
        self.router, self.router_scale = free("block_0/router"), free("block_0/router_scale")
        self.experts = {"loop": _Loop, "vectorised": Vectorised}[form](e, d, f)
        self.head = dense("head")
        self.load(params)

    def _bindings(self) -> dict[str, tuple[list[nn.Parameter], bool]]:
        """For each path of the JAX network the tensors that hold it, stacked if several, and whether transposed."""
        found = {"imputation/modality": ([self.missing], False)}
        for name, embed, position in zip(self.modalities, self.embed, self.position, strict=True):
            found[f"encoders/{name}/position"] = ([position], False)
            found |= _dense_bindings(f"encoders/{name}/embed", embed)
        for name in ("attention_norm", "moe_norm"):
            found[f"block_0/{name}/scale"] = ([getattr(self, name).weight], False)
            found[f"block_0/{name}/bias"] = ([getattr(self, name).bias], False)
        found["block_0/router"], found["block_0/router_scale"] = ([self.router], False), ([self.router_scale], False)
        found |= _dense_bindings("block_0/query_key_value", self.query_key_value)
        found |= _dense_bindings("block_0/output", self.output) | _dense_bindings("head", self.head)
        return found | {f"block_0/{name}": binding for name, binding in self.experts.bindings().items()}

    @torch.no_grad()
    def load(self, params: Mapping[str, np.ndarray]) -> None:
        """Takes over all weights, by path of the JAX network."""
        bindings = self._bindings()
        if set(bindings) != set(params):
            raise ValueError(f"parameters that only one side has: {sorted(set(bindings) ^ set(params))}")
        for path, (tensors, transposed) in bindings.items():
            values = params[path] if len(tensors) > 1 else params[path][None]
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(torch.tensor(value.T if transposed else value))

    def read(self, path: str, *, gradient: bool = False) -> np.ndarray:
        """The values, or the gradient, of what the JAX network has under a path."""

        def array(tensor: nn.Parameter, transposed: bool) -> np.ndarray:
            unused = gradient and tensor.grad is None
            value = torch.zeros_like(tensor) if unused else tensor.grad if gradient else tensor
            value = value.detach().numpy()
            return (value.T if transposed else value).copy()

        tensors, transposed = self._bindings()[path]
        arrays = [array(tensor, transposed) for tensor in tensors]
        return np.stack(arrays) if len(arrays) > 1 else arrays[0]

    def forward(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits [b, c] of a batch with the inputs [b, t, w] of each modality and `present` [b, m]."""
        tokens = []
        for i, (name, embed, position) in enumerate(zip(self.modalities, self.embed, self.position, strict=True)):
            observed = batch["present"][:, i, None, None]
            tokens.append(torch.where(observed, embed(batch[name]) + position, self.missing[i]))
        x = torch.cat(tokens, dim=1)
        x = x + self._attend(self.attention_norm(x))
        x = x + self._mix(self.moe_norm(x))
        return self.head(x.mean(dim=1))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        return attend(x, self.query_key_value, self.output, self.heads)

    def _mix(self, x: torch.Tensor) -> torch.Tensor:
        unit = unit_length(x, -1)
        if self.routing.normalize:
            logits = torch.einsum("bmd,dnp->bmnp", unit, self.router_scale * unit_length(self.router, 0))
        else:
            logits = torch.einsum("bmd,dnp->bmnp", x, self.router)
        inputs = unit if self.routing.expert_input == "normalized" else x
        return mix(inputs, logits, self.experts, self.routing.dispatch_over)

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Fused AdamW that leaves biases and scales undecayed, as `training.optimizer` does."""
        decayed, others = [], []
        for path, (tensors, _) in self._bindings().items():
            (others if _NOT_DECAYED.search(path) else decayed).extend(tensors)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


class VisionTransformer(nn.Module):
    """A pre-norm vision transformer with one fused projection of queries, keys and values a layer."""

    def __init__(self, params: Mapping[str, np.ndarray], heads: int, patch: int):
        """Takes over the weights of a JAX encoder.

        Args:
          params: by path below the encoder, see `remind_jax.models.encoders.vit`.
          heads: h.
          patch: side of a patch.
        """
        super().__init__()
        tensors = {path: torch.tensor(x) for path, x in params.items()}
        self.heads, self.patch = heads, patch
        # Patches are vectors of (y, x, channel), as an image in channels-last order gives them.
        self.embed = _linear(tensors["patch_kernel"], tensors["patch_bias"])
        self.class_token, self.position = nn.Parameter(tensors["class_token"]), nn.Parameter(tensors["position"])
        self.layers = nn.ModuleList(
            _VitLayer({path: x[i] for path, x in tensors.items() if path in _VIT_LAYER}, heads)
            for i in range(len(tensors["query"]))
        )
        self.norm = _norm(tensors["final_scale"], tensors["final_bias"])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Tokens [b, t, d] of normalised pixels [b, height, width, 3]."""
        b, height, width, _ = pixels.shape
        p = self.patch
        patches = pixels.reshape(b, height // p, p, width // p, p, 3).transpose(2, 3).reshape(b, -1, p * p * 3)
        classes = self.class_token.expand(b, 1, -1)
        x = torch.cat([classes, self.embed(patches)], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


_VIT_LAYER = {
    *("attention_scale", "attention_bias", "query", "query_bias", "key", "key_bias", "value", "value_bias"),
    *("output", "output_bias", "feed_forward_scale", "feed_forward_bias"),
    *("feed_in", "feed_in_bias", "feed_out", "feed_out_bias"),
}


class _VitLayer(nn.Module):
    def __init__(self, p: Mapping[str, torch.Tensor], heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = _norm(p["attention_scale"], p["attention_bias"])
        names = ("query", "key", "value")
        self.query_key_value = _linear(
            torch.cat([p[name] for name in names], dim=1), torch.cat([p[f"{name}_bias"] for name in names])
        )
        self.output = _linear(p["output"], p["output_bias"])
        self.feed_norm = _norm(p["feed_forward_scale"], p["feed_forward_bias"])
        self.feed = nn.Sequential(
            _linear(p["feed_in"], p["feed_in_bias"]), nn.GELU(), _linear(p["feed_out"], p["feed_out_bias"])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, d = x.shape
        projected = self.query_key_value(self.attention_norm(x)).view(b, n, 3, self.heads, d // self.heads)
        mixed = functional.scaled_dot_product_attention(*projected.permute(2, 0, 3, 1, 4).unbind(0))
        x = x + self.output(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.feed(self.feed_norm(x))


def _linear(kernel: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(*kernel.shape)
    layer.weight, layer.bias = nn.Parameter(kernel.T.contiguous()), nn.Parameter(bias)
    return layer


def _norm(scale: torch.Tensor, bias: torch.Tensor) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(scale), eps=1e-12)
    layer.weight, layer.bias = nn.Parameter(scale), nn.Parameter(bias)
    return layer


def _dense_bindings(path: str, layer: nn.Linear) -> dict[str, tuple[list[nn.Parameter], bool]]:
    return {f"{path}/kernel": ([layer.weight], True), f"{path}/bias": ([layer.bias], False)}


def to_torch(batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A batch of arrays as tensors, indices as int64."""
    arrays = {name: np.asarray(x) for name, x in batch.items()}
    return {name: torch.tensor(x.astype(np.int64) if x.dtype == np.int32 else x) for name, x in arrays.items()}


def forward(network: Callable, batch: Mapping[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A forward pass without gradients as a call without arguments."""

    def call() -> torch.Tensor:
        with torch.no_grad():
            return network(batch)

    return call


def backward(network: nn.Module, batch: Mapping[str, torch.Tensor], run: Callable | None = None) -> Callable[[], None]:
    """Loss and fresh gradients of `network`, run as `run` (a compiled form of it) where that is given."""
    run = network if run is None else run

    def call() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        functional.cross_entropy(run(batch), batch["label"]).backward()

    return call


def train(
    network: nn.Module,
    batch: Mapping[str, torch.Tensor],
    lr: float,
    weight_decay: float,
    run: Callable | None = None,
) -> Callable[[], None]:
    """A whole train step with fused AdamW."""
    optimizer, gradients = network.optimizer(lr, weight_decay), backward(network, batch, run)

    def call() -> None:
        gradients()
        optimizer.step()

    return call
