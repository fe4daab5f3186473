"""The whole network: encoders, tokens for what is missing, fusion, pooling, head.

Modules only declare parameters; training code sees a plain dictionary of arrays keyed by slash paths such as
`fusion/block_0/router`, and a pure function of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from remind_jax.models.encoders.patch import PatchEncoder
from remind_jax.models.encoders.t5 import T5Encoder
from remind_jax.models.fusion.soft_moe import FusionSpec, SoftMoEBlock
from remind_jax.ops import imputation
from remind_jax.ops.transformer import dropout

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]


class ModalityInput(Protocol):
    """What an encoder must know of one modality: kind, shape of one sample's input, vocabulary of token ids."""

    kind: str
    shape: tuple[int, ...]
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shape and options of the network.

    Attributes:
      width: d.
      tokens: t, tokens of each modality (precomputed embeddings keep their own number).
      encoder_hidden: width of a hidden layer in patch encoders; 0 is the paper's linear map.
      encoder_dropout: rate on the tokens that encoders give, and inside text encoders and hidden layers.
      text_size: a key of `t5.SIZES`.
      text_gated: gated GELU (T5 v1.1) instead of ReLU (v1.0).
      imputation: one of `imputation.KINDS`.
      modality_embedding: add a learned vector of its modality to every token.
      pooling: `mean` over all tokens, `observed` for those of present modalities, `first` token, or `attention`.
      fusion: of the soft-MoE blocks.
    """

    width: int = 64
    tokens: int = 1
    encoder_hidden: int = 0
    encoder_dropout: float = 0.0
    text_size: str = "small"
    text_gated: bool = True
    imputation: str = "group"
    modality_embedding: bool = False
    pooling: str = "mean"
    fusion: FusionSpec = dataclasses.field(default_factory=FusionSpec)


class Output(NamedTuple):
    """Logits [b, c], pooled features [b, d], and the share of tokens whose routing gate was open [b]."""

    logits: jax.Array
    features: jax.Array
    open_rate: jax.Array


class _Encoders(nnx.Module):
    """One encoder a modality, as attributes named after the modalities."""

    def __init__(self, spec: ModelSpec, inputs: Mapping[str, ModalityInput], rngs: nnx.Rngs):
        for name, modality in inputs.items():
            common = {"tokens": spec.tokens, "width": spec.width, "dropout": spec.encoder_dropout, "rngs": rngs}
            if modality.kind in ("text", "codes"):
                encoder = T5Encoder(modality.vocabulary, size=spec.text_size, gated=spec.text_gated, **common)
            else:
                encoder = PatchEncoder(modality.shape, hidden=spec.encoder_hidden, **common)
            setattr(self, name, encoder)


class _Imputation(nnx.Module):
    """Learned vectors for missing modalities; the group part starts at zero beside a modality part."""

    def __init__(self, kind: str, width: int, num_modalities: int, num_groups: int, rngs: nnx.Rngs):
        def normal(rows: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, width)))

        if kind in ("modality", "modality+group"):
            self.modality = normal(num_modalities)
        if kind == "group":
            self.group = normal(num_groups)
        elif kind == "modality+group":
            self.group = nnx.Param(jnp.zeros((num_groups, width)))

    def __call__(self, groups: jax.Array) -> jax.Array:
        tables = [getattr(self, name)[...] if hasattr(self, name) else None for name in ("modality", "group")]
        return imputation.imputed_tokens(groups, *tables)


class Model(nnx.Module):
    """Encoders of all modalities, fusion blocks and a linear head."""

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, ModalityInput],
        num_groups: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.spec, self.modalities = spec, tuple(inputs)
        self.encoders = _Encoders(spec, inputs, rngs)
        self.imputation = _Imputation(spec.imputation, spec.width, len(inputs), num_groups, rngs)
        if spec.modality_embedding:
            self.modality_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (len(inputs), spec.width)))
        for i in range(spec.fusion.blocks):
            setattr(self, f"block_{i}", SoftMoEBlock(spec.fusion, spec.width, num_groups, rngs))
        if spec.pooling == "attention":
            self.pool_query = nnx.Param(spec.width**-0.5 * jax.random.normal(rngs.params(), (spec.width,)))
        self.head = nnx.Linear(spec.width, num_classes, rngs=rngs)

    def _tokens(self, batch: Batch, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Tokens of all modalities [b, n, d], learned ones where one is missing, and which are observed [b, n]."""
        encoded = []
        for i, name in enumerate(self.modalities):
            modality_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            encoded.append(getattr(self.encoders, name)(batch[name], modality_keys))
        owner = np.repeat(np.arange(len(encoded)), [x.shape[1] for x in encoded])  # modality of each token, [n]
        shape = (len(batch["group"]), len(encoded), self.spec.width)
        imputed = jnp.broadcast_to(self.imputation(batch["group"]), shape)[:, owner]
        observed = batch["present"][:, owner]
        # One mask for the tokens of all encoders: a random generator apiece would multiply compile time.
        tokens = dropout(jnp.concatenate(encoded, axis=1), keys, self.spec.encoder_dropout, salt=2_000)
        tokens = imputation.fill_missing(tokens, observed, imputed)
        if self.spec.modality_embedding:
            tokens = tokens + self.modality_embedding[owner][None]
        return tokens, observed

    def _pool(self, x: jax.Array, observed: jax.Array) -> jax.Array:
        """One vector a sample, [b, n, d] -> [b, d]; `observed` [b, n] is False at imputed tokens."""
        if self.spec.pooling == "first":
            return x[:, 0]
        if self.spec.pooling == "attention":
            weights = jax.nn.softmax(jnp.einsum("bnd,d->bn", x, self.pool_query[...]), axis=-1)
        elif self.spec.pooling == "observed":
            weights = observed.astype(x.dtype)
            weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
        else:
            return jnp.mean(x, axis=1)
        return jnp.einsum("bnd,bn->bd", x, weights.astype(x.dtype))

    def __call__(self, batch: Batch, *, gate: str, keys: jax.Array | None = None) -> Output:
        """Runs the network.

        Args:
          batch: the input of every modality under its name, `present` bool [b, m] and `group` int [b].
          gate: whether group routers act: `gated`, `always` or `never`.
          keys: random keys [b] that turn dropout on.
        """
        x, observed = self._tokens(batch, keys)
        mask = observed if self.spec.fusion.mask_missing else None
        open_rates = []
        for i in range(self.spec.fusion.blocks):
            block_keys = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, 1_000 + i)
            x, open_rate = getattr(self, f"block_{i}")(x, batch["group"], mask, gate, block_keys)
            open_rates.append(open_rate)
        features = self._pool(x, observed)
        return Output(self.head(features), features, jnp.mean(jnp.stack(open_rates), axis=0))


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: key -> parameters by path.
      apply: (parameters, batch, gate=..., keys=...) -> Output, see `Model.__call__`.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[..., Output]


def make_network(spec: ModelSpec, inputs: Mapping[str, ModalityInput], num_groups: int, num_classes: int) -> Network:
    """Turns a specification into pure functions over a dictionary of parameters.

    Args:
      spec: shape and options.
      inputs: what each modality looks like, in declared order.
      num_groups: g, the combinations seen in training.
      num_classes: c.
    """

    def build(key: jax.Array) -> Model:
        return Model(spec, inputs, num_groups, num_classes, nnx.Rngs(params=key))

    graph, _ = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))

    def init(key: jax.Array) -> Params:
        _, state = nnx.split(build(key))
        return dict(traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/"))

    def apply(params: Params, batch: Batch, **options: Any) -> Output:
        return nnx.merge(graph, traverse_util.unflatten_dict(params, sep="/"))(batch, **options)

    return Network(init, apply)
