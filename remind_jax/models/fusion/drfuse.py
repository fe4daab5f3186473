"""DrFuse (Yao et al. 2024, arXiv 2403.06197): disentangled features of modalities, and attention of each output."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import Experts, Heads, WholeFusion, mean_present, of_modalities
from remind_jax.models.fusion.soft_moe import Predictors, Routed, Tokens, normal
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import disentangle
from remind_jax.ops.transformer import on_rows


class DrFuse(WholeFusion):
    """Distinct features of each modality and features that all share, which each output weighs by itself.

    Features that are shared are alike in all modalities of a sample, those of a modality unlike what it shares.
    """

    penalised, predicts = "disentangling", True

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        d, m, c = width, num_modalities, num_outputs
        self.shared, self.distinct = Experts(spec, d, m, d, rngs), Experts(spec, d, m, d, rngs)
        self.shared_out = initial.linear(d, d, rngs)
        self.experts = Heads(d, m + 1, c, rngs)
        self.query, self.value = initial.linear(d, d, rngs), initial.linear(d, d, rngs)
        self.key = normal(rngs, d, d, c, d)  # a bias would move all scores of an output alike
        self.out = Heads(d, c, 1, rngs)

    @staticmethod
    def penalty(sums: Mapping[str, jax.Array], objective: Any) -> jax.Array:
        """Returns how far what modalities share is apart, and how like their own features are to it."""
        apart = sums["divergence"] / jnp.maximum(sums["several"], 1.0)
        alike = jnp.sum(sums["likeness"] / jnp.maximum(sums["present"], 1.0))
        return objective.align_weight * apart + objective.distinct_weight * alike

    def _attend(self, x: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weighs k vectors for each output, [b, k, d] -> weights [b, k, c] and features [b, c, d]."""
        query = mean_present(on_rows(self.query, x), there)
        scores = jnp.einsum("be,dce,bkd->bkc", query, self.key[...], x) * x.shape[2] ** -0.5
        weights = jax.nn.softmax(jnp.where(there[:, :, None], scores, -1e30), axis=1)
        return weights, jnp.einsum("bkc,bkd->bcd", weights, on_rows(self.value, x))

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled, present = of_modalities(x, tokens.owner), tokens.present
        shared = on_rows(self.shared_out, self.shared(pooled, keys, salt=0))
        distinct = self.distinct(pooled, keys, salt=1)
        common = disentangle.pooled_logits(shared, present)
        everything = jnp.concatenate([distinct, common[:, None]], axis=1)
        there = jnp.concatenate([present, jnp.ones_like(present[:, :1])], axis=1)
        weights, features = self._attend(everything, there)
        return Routed(
            x,
            jnp.zeros(x.shape[0]),
            _sums(shared.astype(jnp.float32), distinct.astype(jnp.float32), present),
            features=jnp.mean(features, axis=1),
            logits=self.out(features)[:, :, 0],
            experts=Predictors(self.experts(everything), there, weights),
        )


def _sums(shared: jax.Array, distinct: jax.Array, present: jax.Array) -> dict[str, jax.Array]:
    """Computes the sums over the samples of a batch that `DrFuse.penalty` takes, of features [b, m, d] each."""
    count = present.astype(shared.dtype)
    return {
        "divergence": jnp.sum(disentangle.divergences(shared, present)),
        "several": jnp.sum((jnp.sum(count, axis=1) > 1).astype(count.dtype)),
        "likeness": jnp.sum(disentangle.likeness(shared, distinct) * count, axis=0),
        "present": jnp.sum(count, axis=0),
    }
