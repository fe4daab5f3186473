"""Modules as pure functions of random parameters, without the cost of compiling their initialisation."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from remind_jax.models.fusion.soft_moe import Routed, Tokens
from remind_jax.models.model import Output
from remind_jax.models.network import Network

Params = dict[str, jax.Array]


def random_params(shapes: Mapping[str, Any], seed: int = 0) -> Params:
    """Parameters none of which is zero or one, so that no part of a module goes unnoticed."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, x in shapes.items():
        # Scales and variances are near one; maps, which have at least two axes, keep the size of what they map.
        near_one = path.endswith(("scale", "running_variance"))
        middle, spread = (1.0, 0.2) if near_one else (0.0, 0.3)
        if len(x.shape) >= 2 and not near_one and not path.endswith("bias"):
            window = 3 if len(x.shape) >= 4 else 1  # of a convolution, whose outputs are sums over places as well
            spread = max(x.shape[-2], 4) ** -0.5 / window
        params[path] = jnp.asarray(middle + spread * rng.normal(size=x.shape), x.dtype)
    return params


class Pure:
    """A module as a graph, random parameters by path, and a way to put them together again."""

    def __init__(self, make: Callable[[], nnx.Module], seed: int = 0):
        self.graph, state = nnx.split(nnx.eval_shape(make))
        self.params = random_params(traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/"), seed)

    def module(self, params: Params) -> Any:
        """The module with these parameters."""
        return nnx.merge(self.graph, traverse_util.unflatten_dict(params, sep="/"))

    def wide(self) -> dict[str, np.ndarray]:
        """The parameters in float64, for the references."""
        return {path: np.asarray(x, np.float64) for path, x in self.params.items()}


class PureFusion(Pure):
    """A fusion by itself, of tokens whose modalities are `owner`, int [n]."""

    def __init__(self, make: Callable[[], nnx.Module], owner: np.ndarray):
        super().__init__(make)
        self.owner = owner

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, params: Params, x: jax.Array, present: jax.Array, keys: jax.Array | None = None) -> Routed:
        """Fuses tokens [b, n, d] of samples that have the modalities of bool [b, m], all in one group."""
        known = Tokens(self.owner, present[:, self.owner], jnp.zeros(x.shape[0], jnp.int32))
        return self.module(params)(x, known, None, "never", keys)


def normal_tokens(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Tokens [b, n, d] of a normal distribution."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def jitted(network: Network) -> Network:
    """The network compiled as a whole: op by op, each of a thousand little programs would be compiled by itself."""
    options = {"static_argnames": ("gate", "statistics", "resting")}
    parts = {name: jax.jit(getattr(network, name), **options) for name in ("apply", "fuse")}
    return network._replace(encode=jax.jit(network.encode), **parts)


def linear_network() -> Network:
    """Three logits linear in five labs: quick to compile, and its losses can be computed by hand."""

    def init(seed):
        return {"head/kernel": jax.random.normal(jax.random.key(seed), (5, 3))}

    def fuse(params, tokens, observed, groups, *, gate, keys=None):
        del groups, gate, keys
        logits = tokens[:, 0] @ params["head/kernel"]
        return Output(logits, tokens[:, 0], jnp.zeros(len(logits)), tokens=tokens, observed=observed)

    def apply(params, batch, *, gate, keys=None, statistics=False, resting=False):
        del statistics, resting
        tokens = encode(params, batch)
        return fuse(params, tokens, jnp.ones(tokens.shape[:2], bool), batch["group"], gate=gate, keys=keys)

    def encode(params, batch):
        del params
        return jnp.asarray(batch["labs"])[:, None]

    return Network(init, apply, encode, fuse)
