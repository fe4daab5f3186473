"""Fusion blocks of the sparse baselines: self-attention, then experts of which each token uses k.

Both share the backbone of the soft-MoE block (pre-norm, residual sums), so that methods differ in routing only. The
programs that their authors released differ in more, some of it by keys (`fuse_moe_released`, `flex_moe_released`).
FuseMoE flattens all tokens of a modality into one vector for its experts, which at 197 tokens would be 620 million
parameters an expert.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.models import initial
from remind_jax.models.fusion.soft_moe import FusionBlock, Routed, Tokens, normal
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import draws, sparse_moe
from remind_jax.ops.sparse_moe import TopExperts
from remind_jax.ops.transformer import dropout

ROUTINGS = ("joint", "per_modality", "disjoint")


class SparseMoEBlock(FusionBlock):
    """Self-attention over all tokens, then the k best experts of each token.

    `fuse_moe` routes by modality and balances the experts; `flex_moe` has one router, balances samples with and without
    missing modalities apart, and teaches the router which expert belongs to a combination.
    """

    penalised = "routing"

    @staticmethod
    def penalty(sums: Mapping[str, jax.Array], objective: Any) -> jax.Array:
        """Returns the term that a block's routing adds to the loss."""
        weights = {"balance": objective.balance_weight, "entropy": objective.entropy_weight}
        return sparse_moe.block_penalty(sums, **weights, specialize=objective.specialize_weight)

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        _check(spec, num_groups, num_modalities)
        super().__init__(spec, width, rngs)
        self.num_groups, self.num_modalities = num_groups, num_modalities
        routers = 1 if spec.routing == "joint" else num_modalities
        self.router = normal(rngs, width, routers, width, spec.experts)
        self.noise_router = initial.param(rngs, initial.constant(0.0), routers, width, spec.experts)
        self._declare_experts(width, rngs)

    def _by_router(self, x: jax.Array, owner: np.ndarray, function: Callable) -> jax.Array:
        """Applies `function` (tokens [b, t, d], router index) to the tokens of each router, [b, n, d] -> [b, n, e]."""
        if self.router.shape[0] == 1:
            return function(x, 0)
        return jnp.concatenate([function(x[:, own], i) for i, own in enumerate(self._stretches(owner))], axis=1)

    def _stretches(self, owner: np.ndarray) -> list[slice]:
        """Returns the places of each modality's tokens, which follow each other."""
        edges = np.searchsorted(owner, np.arange(self.num_modalities + 1))
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def _attended(self, x: jax.Array, tokens: Tokens, mask: jax.Array | None) -> jax.Array:
        """Applies attention to normed tokens [b, n, d], over all or over those of each modality by themselves."""
        if self.spec.attention == "all":
            return self.attend(x, mask)
        parts = [(x[:, own], None if mask is None else mask[:, own]) for own in self._stretches(tokens.owner)]
        return jnp.concatenate([self.attend(*part) for part in parts], axis=1)

    def _choose(self, x: jax.Array, owner: np.ndarray, keys: jax.Array | None) -> tuple[jax.Array, TopExperts]:
        """Returns scores without noise [b, n, e], and the experts chosen for each token."""
        spec = self.spec
        clean = self._by_router(x, owner, lambda x, i: sparse_moe.expert_scores(x, self.router[i], spec.scores))
        if spec.routing == "disjoint":
            mine = np.arange(spec.experts) * self.num_modalities // spec.experts
            clean = jnp.where((mine[None] == owner[:, None])[None], clean, -jnp.inf)
        if keys is None:
            return clean, sparse_moe.top_experts(clean, spec.top_k)
        wide = self._by_router(x, owner, lambda x, i: jnp.einsum("bnd,de->bne", x, self.noise_router[i]))
        deviation = jax.nn.softplus(wide) + sparse_moe.LEAST_NOISE
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(draws.fold_in(keys, 2))
        return clean, sparse_moe.top_experts(clean, spec.top_k, noise, deviation)

    def _sums(self, clean: jax.Array, chosen: TopExperts, tokens: Tokens) -> dict[str, jax.Array]:
        """Computes the sums over the samples of a batch that `sparse_moe.block_penalty` takes."""
        part = jnp.all(tokens.observed, axis=1) if self.spec.kind == "flex_moe" else jnp.ones(len(clean), bool)
        parts = jnp.stack([part, ~part]).astype(clean.dtype)  # full samples, and those that miss something
        weights = sparse_moe.shares(chosen, self.spec.experts)
        sums = {
            "importance": jnp.einsum("pb,bne->pe", parts, weights),
            "load": jnp.einsum("pb,bne->pe", parts, chosen.load),
        }
        if self.spec.kind == "fuse_moe" and self.spec.routing == "per_modality":
            modality = jnp.asarray(tokens.owner[:, None] == np.arange(self.num_modalities)[None], clean.dtype)
            sums["gates"] = jnp.einsum("bne,nm->me", jax.nn.softmax(clean, axis=-1), modality)
        if self.spec.kind == "flex_moe":
            known = (~part & (tokens.groups < self.num_groups)).astype(clean.dtype)
            target = jax.nn.one_hot(tokens.groups % self.spec.experts, self.spec.experts)
            surprise = -jnp.einsum("bne,be->bn", jax.nn.log_softmax(clean, axis=-1), target)
            sums["surprise"] = jnp.einsum("bn,b->", surprise, known)
            sums["surprised"] = jnp.sum(known) * clean.shape[1]
        return sums

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; `mask` [b, n] is False where attention hides; keys [b] turn dropout and noise on."""
        del gate
        spec = self.spec
        attended = self._attended(self.attention_norm(x), tokens, mask)
        x = (x if spec.attention_base == "input" else attended) + dropout(attended, keys, spec.dropout, salt=0)
        normed = self.moe_norm(x)
        with jax.named_scope("router"):
            clean, chosen = self._choose(normed, tokens.owner, keys)
            sums = self._sums(clean, chosen, tokens)
        with jax.named_scope("experts"):
            flat = jax.tree.map(lambda y: y.reshape(-1, y.shape[-1]), chosen)
            rows, in_logs = normed.reshape(-1, normed.shape[-1]), spec.combine == "log"
            mixed = sparse_moe.apply_top_experts(rows, flat, self.experts, in_logs)
        return Routed(x + dropout(mixed.reshape(x.shape), keys, spec.dropout, salt=1), jnp.zeros(x.shape[0]), sums)


def _check(spec: FusionSpec, num_groups: int, num_modalities: int) -> None:
    """Refuses shapes that routing cannot serve."""
    available = spec.experts // num_modalities if spec.routing == "disjoint" else spec.experts
    if spec.top_k > available:
        raise UserError(f"fusion.top_k={spec.top_k} is more than the {available} experts that a token can choose from")
    if spec.kind == "flex_moe" and spec.routing == "disjoint":
        raise UserError(
            "fusion.routing=disjoint keeps modalities from the experts of combinations that flex_moe teaches"
        )
    if spec.kind == "flex_moe" and spec.experts < num_groups and not spec.share_experts:
        raise UserError(
            f"flex_moe needs an expert for each of the {num_groups} combinations: set fusion.experts={num_groups} or "
            "more, or fusion.share_experts=true, by which combinations share experts in turn"
        )
