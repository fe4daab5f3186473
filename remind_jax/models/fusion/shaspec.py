"""ShaSpec (Wang et al. 2023, arXiv 2307.14126): features that modalities share and features of their own."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import Experts, WholeFusion, mean_present, of_modalities
from remind_jax.models.fusion.soft_moe import Routed, Tokens
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import disentangle
from remind_jax.ops.transformer import dropout, on_rows


class _Shared(nnx.Module):
    """One network with a hidden layer for all modalities, [b, m, d] -> [b, m, d]."""

    def __init__(self, spec: FusionSpec, width: int, rngs: nnx.Rngs):
        self.dropout, self.norm = spec.dropout, initial.layer_norm(width, rngs)
        self.hidden, self.out = initial.linear(width, spec.hidden, rngs), initial.linear(spec.hidden, width, rngs)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        hidden = jax.nn.gelu(on_rows(self.hidden, self.norm(x)))
        return on_rows(self.out, dropout(hidden, keys, self.dropout, salt=1))


class ShaSpec(WholeFusion):
    """A shared and a specific encoder of each modality, their sum, and the mean of what is shared for what is missing.

    The shared features of a sample are drawn together, and a classifier must tell modalities by their specific ones.
    """

    penalised = "alignment"

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        super().__init__(spec)
        self.shared = _Shared(spec, width, rngs)
        self.specific = Experts(spec, width, num_modalities, width, rngs)
        self.project = initial.linear(2 * width, width, rngs)
        self.domain = initial.linear(width, num_modalities, rngs)
        self.decode = initial.linear(num_modalities * width, width, rngs)

    @staticmethod
    def penalty(sums: Mapping[str, jax.Array], objective: Any) -> jax.Array:
        """Returns how far shared features of a sample are apart, and how little specific ones tell their modality."""
        apart = sums["distance"] / jnp.maximum(sums["pairs"], 1.0)
        return objective.align_weight * apart + objective.distinct_weight * sums["surprise"] / jnp.maximum(
            sums["classified"], 1.0
        )

    def _sums(self, shared: jax.Array, specific: jax.Array, present: jax.Array) -> dict[str, jax.Array]:
        """Computes the sums over the samples of a batch that `penalty` takes."""
        told, shared = (y.astype(jnp.float32) for y in (on_rows(self.domain, specific), shared))
        told = jax.nn.log_softmax(told, axis=2)
        surprise, there = -jnp.einsum("bmm->bm", told), present.astype(told.dtype)
        distance, pairs = disentangle.pair_distances(shared, present)
        return {"distance": distance, "pairs": pairs, "surprise": jnp.sum(surprise * there), "classified": there.sum()}

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled, present = of_modalities(x, tokens.owner), tokens.present
        shared, specific = self.shared(pooled, keys), self.specific(pooled, keys)
        whole = shared + on_rows(self.project, jnp.concatenate([shared, specific], axis=2))
        whole = jnp.where(present[:, :, None], whole, mean_present(shared, present)[:, None])
        features = jax.nn.gelu(self.decode(whole.reshape(x.shape[0], int(np.prod(whole.shape[1:])))))
        sums = self._sums(shared, specific, present)
        return Routed(x, jnp.zeros(x.shape[0]), sums, features=features)
