"""Modality-aware attention with a skip bottleneck (Lee et al. 2023, arXiv 2305.02504).

A modality attends to itself and to a few vectors that all share, after Nagrani et al. 2021 (arXiv 2107.00135). The set
of single events that the paper embeds is what the encoder of events reads here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import WholeFusion, mean_present
from remind_jax.models.fusion.soft_moe import FusionBlock, Routed, Tokens
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import draws
from remind_jax.ops.transformer import dropout, on_rows


class _Layer(FusionBlock):
    """A layer of a transformer, [b, n, d] -> [b, n, d]."""

    def __init__(self, spec: FusionSpec, width: int, rngs: nnx.Rngs):
        super().__init__(spec, width, rngs)
        self.hidden, self.out = initial.linear(width, spec.hidden, rngs), initial.linear(spec.hidden, width, rngs)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        x = x + dropout(self.attend(self.attention_norm(x), None), keys, self.spec.dropout, salt=0)
        hidden = jax.nn.gelu(on_rows(self.hidden, self.moe_norm(x)))
        return x + dropout(on_rows(self.out, hidden), keys, self.spec.dropout, salt=1)


class Umse(WholeFusion):
    """`blocks` layers of each modality, whose tokens, and one more that tells, meet in a bottleneck of vectors."""

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        super().__init__(spec)
        self.num_modalities = num_modalities
        self.bottleneck = initial.param(rngs, initial.normal(0.02), spec.latents, width)
        self.tells = initial.param(rngs, initial.normal(0.02), num_modalities, width)
        for i in range(spec.blocks * num_modalities):
            setattr(self, f"layer_{i}", _Layer(spec, width, rngs))
        self.norm, self.project = initial.layer_norm(width, rngs), initial.linear(width, width, rngs)

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        present, (b, _, d), m, count = tokens.present, x.shape, self.num_modalities, self.spec.latents
        starts = np.searchsorted(tokens.owner, np.arange(m + 1))
        first = jnp.broadcast_to(self.tells[...][None], (b, m, d))
        own = [jnp.concatenate([first[:, i, None], x[:, starts[i] : starts[i + 1]]], axis=1) for i in range(m)]
        shared = jnp.broadcast_to(self.bottleneck[...][None], (b, count, d))
        for i in range(self.spec.blocks * m):
            layer_keys = None if keys is None else draws.fold_in(keys, i)
            own[i % m] = getattr(self, f"layer_{i}")(jnp.concatenate([shared, own[i % m]], axis=1), layer_keys)
            if i % m == m - 1:  # all modalities have read the same bottleneck, which those that are missing skip
                shared = mean_present(jnp.stack([y[:, :count] for y in own], axis=1), present)
                own = [y[:, count:] for y in own]
        told = self.norm(mean_present(jnp.stack([y[:, 0] for y in own], axis=1), present))
        return Routed(x, jnp.zeros(x.shape[0]), features=jax.nn.gelu(self.project(told)))
