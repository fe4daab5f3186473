"""HEALNet (Hemker et al. 2024, arXiv 2311.09115): latent vectors that read one modality after the other."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import WholeFusion
from remind_jax.models.fusion.soft_moe import Routed, Tokens, normal
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import draws
from remind_jax.ops.transformer import attention, dropout, on_rows


class _Update(nnx.Module):
    """What the latents read, and a self-normalising layer, each after a norm and added to what was there."""

    def __init__(self, spec: FusionSpec, width: int, rngs: nnx.Rngs):
        self.heads, self.dropout = spec.heads, spec.dropout
        self.norm, self.context_norm, self.hidden_norm = (initial.layer_norm(width, rngs) for _ in range(3))
        self.query, self.output = initial.linear(width, width, rngs), initial.linear(width, width, rngs)
        self.key_value = initial.linear(width, 2 * width, rngs)
        self.hidden, self.out = initial.linear(width, spec.hidden, rngs), initial.linear(spec.hidden, width, rngs)

    def __call__(self, latents: jax.Array, context: jax.Array | None, keys: jax.Array | None) -> jax.Array:
        """Updates latents [b, l, d] by what they read in `context` [b, t, d], None for themselves."""
        context = self.norm(latents) if context is None else self.context_norm(context)
        key, value = jnp.split(on_rows(self.key_value, context), 2, axis=-1)
        everything = jnp.ones(context.shape[:2], bool)  # cuDNN's attention, without a mask, takes as many as questions
        read = attention(on_rows(self.query, self.norm(latents)), key, value, heads=self.heads, mask=everything)
        latents = latents + dropout(on_rows(self.output, read), keys, self.dropout, salt=0)
        hidden = jax.nn.selu(on_rows(self.hidden, self.hidden_norm(latents)))
        return latents + dropout(on_rows(self.out, hidden), keys, self.dropout, salt=1)


class HealNet(WholeFusion):
    """Latents that are updated by each modality that a sample has, then by themselves, `blocks` times, by one set of
    weights."""

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        super().__init__(spec)
        self.latents = normal(rngs, 1, spec.latents, width)
        self.num_modalities = num_modalities
        for i in range(num_modalities):
            setattr(self, f"modality_{i}", _Update(spec, width, rngs))
        self.itself = _Update(spec, width, rngs)
        self.norm = initial.layer_norm(width, rngs)

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        latents = jnp.broadcast_to(self.latents[...][None], (x.shape[0], *self.latents.shape))
        starts = np.searchsorted(tokens.owner, np.arange(self.num_modalities + 1))
        for layer in range(self.spec.blocks):
            for i in range(self.num_modalities + 1):
                own = None if keys is None else draws.fold_in(keys, layer * (self.num_modalities + 1) + i)
                if i == self.num_modalities:
                    latents = self.itself(latents, None, own)
                    continue
                read = getattr(self, f"modality_{i}")(latents, x[:, starts[i] : starts[i + 1]], own)
                latents = jnp.where(tokens.present[:, i, None, None], read, latents)
        return Routed(x, jnp.zeros(x.shape[0]), features=self.norm(jnp.mean(latents, axis=1)))
