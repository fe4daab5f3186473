"""Networks as pure functions of a plain dictionary of arrays, and their initial weights.

Keys of the dictionary are slash paths such as `block_0/router`.
"""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from remind_jax.errors import UserError, did_you_mean
from remind_jax.models import initial, pretrained
from remind_jax.models.encoders import registry
from remind_jax.models.fusion import FUSIONS
from remind_jax.models.model import Batch, Mean, Model, Output, Params, Routes, is_statistic
from remind_jax.models.spec import ModalityInput, ModelSpec, model_spec
from remind_jax.ops import losses


class Network(NamedTuple):
    """A network as two pure functions.

    Attributes:
      init: seed -> initial parameters by path, on the host, see `initial.draw`.
      apply: (parameters, batch, gate=..., keys=...) -> Output, see `Model.__call__`.
      encode: (parameters, batch) -> tokens of all modalities [b, n, d], as the fusion receives them; an ensemble has
        its axis of networks first.
      fuse: (parameters, tokens, observed, groups, gate=..., keys=...) -> Output, see `Model.fuse`.
      route: (parameters, batch, gate=...) -> Routes, see `Model.route`; None where tokens are not softly routed by one
        predictor: sparse fusion, several members, an ensemble.
      features: (parameters, modality, its input) -> outputs of its encoder's trunk, no dropout; None of an ensemble.
      shapes: shape and type of each parameter by path.
      mean: makes the logits of several networks one, see `Mean`.
      owner: modality of each token that the fusion receives, int [n].
    """

    init: Callable[..., Params]
    apply: Callable[..., Output]
    encode: Callable[[Params, Batch], jax.Array]
    fuse: Callable[..., Output]
    route: Callable[..., Routes] | None = None
    features: Callable[[Params, str, jax.Array], jax.Array] | None = None
    shapes: Mapping[str, jax.ShapeDtypeStruct] = types.MappingProxyType({})
    mean: Mean = losses.mean_prediction
    owner: np.ndarray | None = None


def check_fusion(kind: str) -> None:
    """Refuses a `fusion.kind` that is no key of `FUSIONS` (UserError)."""
    if kind not in FUSIONS:
        raise UserError(f"fusion.kind={kind!r} is unknown{did_you_mean(kind, FUSIONS)}; known: {', '.join(FUSIONS)}")


def make_network(
    spec: ModelSpec,
    inputs: Mapping[str, ModalityInput],
    num_groups: int,
    num_classes: int,
    mean: Mean = losses.mean_prediction,
) -> Network:
    """Turns a specification into pure functions over a dictionary of parameters.

    `inputs` describes each modality, in declared order; `num_groups` counts the combinations of training; `num_classes`
    are the outputs of the head, of which `mean` makes those of several members or networks.
    """
    check_fusion(spec.fusion.kind)

    def build(key: jax.Array) -> Model:
        return Model(spec, inputs, num_groups, num_classes, nnx.Rngs(params=key), mean)

    abstract = nnx.eval_shape(lambda: build(jax.random.key(0)))
    graph, _ = nnx.split(abstract)

    def by_path(model: Model) -> Params:
        _, state = nnx.split(model)
        return dict(traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/"))

    def merged(params: Params) -> Model:
        return nnx.merge(graph, traverse_util.unflatten_dict(params, sep="/"))

    def apply(params: Params, batch: Batch, **options: Any) -> Output:
        model = merged(params)
        output = model(batch, **options)
        if not options.get("statistics") and not options.get("means"):
            return output
        return output._replace(statistics={path: x for path, x in by_path(model).items() if is_statistic(path)})

    soft = hasattr(FUSIONS[spec.fusion.kind], "route") and spec.members == 1
    return Network(
        init=functools.partial(initial.draw, build),
        apply=apply,
        encode=lambda params, batch: merged(params).tokens(batch)[0],
        fuse=lambda params, *arguments, **options: merged(params).fuse(*arguments, **options),
        route=(lambda params, batch, *, gate: merged(params).route(batch, gate=gate)) if soft else None,
        features=lambda params, modality, x: getattr(merged(params).encoders, modality).features(x, None),
        shapes={path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in by_path(abstract).items()},
        mean=mean,
        owner=abstract.owner,
    )


def ensemble_of(network: Network, count: int) -> Network:
    """Makes one network of `count`, the first with the weights that it would have alone, and predictions averaged."""
    if count == 1:
        return network

    def init(seed: int) -> Params:
        each = [network.init(seed, i) for i in range(count)]
        return {path: np.stack([one[path] for one in each]) for path in each[0]}

    def averaged(function: Callable[..., Output]) -> Callable[..., Output]:
        def call(params: Params, *arguments: Any, **options: Any) -> Output:
            each = jax.vmap(lambda one: function(one, *arguments, **options))(params)
            means = {"features": jnp.mean(each.features, axis=0), "open_rate": jnp.mean(each.open_rate, axis=0)}
            logits = network.mean(each.logits, 0)
            kept = {"statistics": each.statistics, "gate_values": each.gate_values, "vectors": each.vectors}
            return Output(logits, **means, observed=each.observed[0], **kept)

        return call

    def encode(params: Params, batch: Batch) -> jax.Array:
        return jax.vmap(network.encode, in_axes=(0, None))(params, batch)

    shapes = {path: jax.ShapeDtypeStruct((count, *x.shape), x.dtype) for path, x in network.shapes.items()}
    return Network(init, averaged(network.apply), encode, averaged(network.fuse), shapes=shapes, mean=network.mean)


def load_pretrained(
    spec: ModelSpec, inputs: Mapping[str, ModalityInput], sources: Mapping[str, str], params: Params
) -> dict[str, np.ndarray]:
    """Reads published weights for the encoders of some families; returns new values of `params` by path.

    `sources` has a file, folder or hub name by family (`text`, `image`, `volume`), or "" for none; the
    encoders of one family all start from the same file. Raises UserError: a file is missing or does not fit the
    encoder.
    """
    loaded: dict[str, np.ndarray] = {}
    for name, modality in inputs.items():
        published = registry.ENCODERS[modality.encoder].published
        if published is None or not sources.get(modality.encoder):
            continue
        prefix = f"encoders/{name}/"
        shapes = {path.removeprefix(prefix): np.shape(x) for path, x in params.items() if path.startswith(prefix)}
        file = published(spec)
        names = {"prefixes": file.prefixes, "model_types": file.model_types}
        found = pretrained.load(sources[modality.encoder], file.layout, shapes, **names, config=file.config)
        loaded |= {prefix + path: x for path, x in found.items()}
    return loaded


def initial_params(config: Any, network: Network, inputs: Mapping[str, ModalityInput]) -> Params:
    """Makes the initial weights of a run, on the host. Raises UserError: a published file cannot be used."""
    params = network.init(config.seed)
    sources = {"text": config.pretrained.text, "image": config.pretrained.image, "volume": config.pretrained.volume}
    one = params if config.ensemble == 1 else {path: x[0] for path, x in params.items()}
    published = load_pretrained(model_spec(config), inputs, sources, one)
    return params | {path: np.broadcast_to(x, np.shape(params[path])) for path, x in published.items()}
