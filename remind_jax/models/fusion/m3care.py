"""M3Care (Zhang et al. 2022): what a sample misses is taken from similar samples, in the space of encoders.

In training these are the others of the batch. A trained model keeps encoded train rows, its bank, and asks them, so
that a prediction does not depend on what else is predicted.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import mean_present, of_modalities
from remind_jax.models.fusion.soft_moe import FusionBlock, Routed, Tokens, normal
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import neighbours
from remind_jax.ops.transformer import dropout, on_rows

_WIDTH = 2.0  # first width of kernels: the mean squared difference of two unrelated vectors after a layer norm


class _Rows(NamedTuple):
    """Vectors of samples [k, m, d], zeros where they miss a modality, and bool [k, m] of what they have; next to them
    those vectors normed and as similarity sees them.
    """

    vectors: jax.Array
    present: jax.Array
    normed: jax.Array
    seen: jax.Array


class M3Care(FusionBlock):
    """Similar samples, a graph of two layers over them, a choice between own and theirs, and attention over modalities.

    Similarity is learned with the rest; `Routed.sums` are what keeps its space from growing or shrinking.
    """

    whole, penalised, keeps = True, "stability", "rows"

    @staticmethod
    def penalty(sums: Mapping[str, jax.Array], objective: Any) -> jax.Array:
        """Returns the term for lengths that similarity changes, Σ_m | |φ(H_m)| - |H_m| | over root mean squares."""
        rows = jnp.maximum(sums["rows"], 1.0)
        hidden, plain = (jnp.sqrt(sums[name] / rows + 1e-12) for name in ("hidden", "plain"))
        return objective.stability_weight * jnp.sum(jnp.abs(hidden - plain))

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        super().__init__(spec, width, rngs)
        d, m, zero = width, num_modalities, initial.constant(0.0)
        self.similarity_norm = initial.layer_norm(d, rngs)
        self.similarity, self.similarity_bias = normal(rngs, d, 3, m, d, d), initial.param(rngs, zero, 3, m, d)
        self.kernel_width = initial.param(rngs, initial.constant(_WIDTH), 2, m)  # before a softplus
        self.kernel_mix = initial.param(rngs, zero, m)
        self.threshold = initial.param(rngs, zero)
        self.graph, self.graph_bias = normal(rngs, d, 2, m, d, d), initial.param(rngs, zero, 2, m, d)
        self.choice, self.choice_bias = normal(rngs, d, 2, m, d), initial.param(rngs, zero, 2, m)
        self.kind = initial.param(rngs, initial.normal(0.02), m, d)
        self.hidden, self.shown = initial.linear(d, spec.hidden, rngs), initial.linear(spec.hidden, d, rngs)
        # Measured, not trained.
        self.bank = initial.param(rngs, zero, spec.bank, m, d)
        self.bank_present = initial.param(rngs, zero, spec.bank, m)

    def _rows(self, vectors: jax.Array, present: jax.Array) -> _Rows:
        vectors = jnp.where(present[:, :, None], vectors, 0.0)
        normed = seen = self.similarity_norm(vectors)
        for layer in range(3):
            seen = jnp.einsum("kmd,mdf->kmf", seen, self.similarity[layer]) + self.similarity_bias[layer][None]
            seen = jax.nn.relu(seen) if layer < 2 else seen
        return _Rows(vectors, present, normed, seen)

    def _weights(self, asking: _Rows, asked: _Rows, same: bool) -> jax.Array:
        """Returns the similarities [q, k] that count; of the `same` rows on both sides none is its own neighbour."""
        distances = (neighbours.squared_distances(getattr(asking, x), getattr(asked, x)) for x in ("seen", "normed"))
        mix = jax.nn.sigmoid(self.kernel_mix[...])
        kernels = neighbours.deep_kernel(*distances, jax.nn.softplus(self.kernel_width[...]), mix)
        found = neighbours.similarities(kernels, asking.present, asked.present)
        found = neighbours.above(found, jax.nn.sigmoid(self.threshold[...]))
        return jnp.where(jnp.eye(len(found), dtype=bool), 0.0, found) if same else found

    def _layer(
        self, layer: int, asking: tuple[jax.Array, jax.Array], asked: tuple[jax.Array, jax.Array], weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Applies a layer of the graph to vectors and presence of both sides; returns vectors, and what is known."""
        means, known = neighbours.neighbour_means(*asking, *asked, weights)
        mixed = jnp.einsum("qmd,mdf->qmf", means, self.graph[layer]) + self.graph_bias[layer][None]
        return jax.nn.relu(mixed), known

    def _told(self, own: _Rows, alone: bool) -> tuple[jax.Array, jax.Array]:
        """Returns what neighbours tell of each modality [q, m, d], and whether anybody does; those of the batch, or of
        the bank if each sample is `alone`.
        """
        asked = self._rows(self.bank[...], self.bank_present[...] > 0) if alone else own
        weights, other = self._weights(own, asked, not alone), (asked.vectors, asked.present)
        first, _ = self._layer(0, (own.vectors, own.present), other, weights)
        theirs = self._layer(0, other, other, self._weights(asked, asked, True))[0] if alone else first
        return self._layer(1, (first, own.present), (theirs, asked.present), weights)

    def _completed(self, own: _Rows, alone: bool) -> tuple[jax.Array, jax.Array]:
        """Returns vectors of modalities [q, m, d], own ones mixed with what neighbours tell, and which are known."""
        told, known = self._told(own, alone)
        sides = [jnp.einsum("qmd,md->qm", x, self.choice[i]) for i, x in enumerate((told, own.vectors))]
        theirs, mine = (jax.nn.sigmoid(x + self.choice_bias[i][None]) for i, x in enumerate(sides))
        share = jnp.where(own.present, theirs / (theirs + mine), 1.0)[:, :, None]
        return jnp.where(known[:, :, None], share * told + (1.0 - share) * own.vectors, 0.0), known

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; random keys [b] are those of training, `mask` and `gate` change nothing."""
        del mask, gate
        own, spec = self._rows(of_modalities(x, tokens.owner), tokens.present), self.spec
        with jax.named_scope("neighbours"):
            vectors, known = self._completed(own, alone=keys is None)
        z = vectors + self.kind[...][None]
        z = z + dropout(self.attend(self.attention_norm(z), known), keys, spec.dropout, salt=0)
        z = z + dropout(on_rows(self._feed, self.moe_norm(z)), keys, spec.dropout, salt=1)
        there = own.present.astype(z.dtype)
        sums = {"rows": jnp.sum(there, axis=0)}
        for name, side in (("hidden", own.seen), ("plain", own.normed)):
            sums[name] = jnp.einsum("bm,bmd->m", there, jnp.square(side)) / side.shape[2]
        return Routed(x, jnp.zeros(x.shape[0]), sums, features=mean_present(z, known), vectors=own.vectors)

    def _feed(self, x: jax.Array) -> jax.Array:
        return self.shown(jax.nn.gelu(self.hidden(x)))
