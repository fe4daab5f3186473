import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.models.model import SOURCE, Output, is_statistic
from remind_jax.models.network import load_pretrained, make_network
from remind_jax.models.spec import ModelSpec
from remind_jax.ops import imputation, routing, soft_moe
from tests.models.pure import random_params
from tests.models.specs import fusion_of, model_of

B, D, C, G, T = 4, 8, 3, 3, 2


class Input(NamedTuple):
    encoder: str
    shape: tuple[int, ...]
    vocabulary: int = 0


TABULAR = {"labs": Input("patch", (5,)), "views": Input("patch", (3, 4))}
WITH_TEXT = {**TABULAR, "notes": Input("text", (6,), 20)}
FUSION = fusion_of(heads=2, experts=4, slots=2, hidden=6, group_routers=True, gate_threshold=0.5, scale=4.0)
SPEC = model_of(width=D, tokens=T, modality_embedding=True, imputation="modality+group", fusion=FUSION)


def make_batch(seed: int = 0, inputs: dict[str, Input] = TABULAR) -> dict[str, np.ndarray]:
    """Two samples lack something; the last one's combination is not among those of training."""
    rng = np.random.default_rng(seed)
    batch: dict[str, np.ndarray] = {}
    for name, one in inputs.items():
        ids = rng.integers(1, 20, (B, *one.shape)).astype(np.int32)
        batch[name] = ids if one.vocabulary else rng.normal(size=(B, *one.shape)).astype(np.float32)
    present = np.ones((B, len(inputs)), bool)
    present[1, 0] = present[2, 1] = False
    return {**batch, "present": present, "group": np.array([0, 1, 2, G], np.int32)}


class Built:
    """A network with parameters none of which is zero, jitted, that counts its compilations."""

    def __init__(self, spec: ModelSpec, inputs: dict[str, Input] = TABULAR):
        self.network = make_network(spec, inputs, G, C)
        self.params = random_params(self.network.shapes)
        self.traces = 0
        self.forward = jax.jit(self.network.apply, static_argnames="gate")

        def loss(params, batch, gate):
            self.traces += 1
            output = self.network.apply(params, batch, gate=gate)
            return jnp.sum(jnp.sin(3.0 * output.logits)), output

        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="gate")


@functools.cache
def built(spec: ModelSpec = SPEC, with_text: bool = False) -> Built:
    return Built(spec, WITH_TEXT if with_text else TABULAR)


# ---- Every option ---------------------------------------------------------------------------------------------------

POOLING = ("mean", "observed", "first", "attention")


def option_table() -> list[dict[str, Any]]:
    """Eight specs in which every value of every option occurs, and most pairs of preset, imputation and pooling."""
    metrics, rows = list(routing.UNCERTAINTY_METRICS), []
    for i in range(8):
        half = i // 4
        model = {
            "imputation": imputation.KINDS[i % len(imputation.KINDS)],
            "pooling": POOLING[(i + 2 * half) % 4],
            "modality_embedding": bool(half),
            "encoder_hidden": 4 * (i % 2),
        }
        fusion = {
            "preset": list(soft_moe.PRESETS)[i % 4],
            "norm": ("pre", "post")[(i + half) % 2],
            "residual": i % 3 != 1,
            "mask_missing": i % 3 == 0,
            "blocks": 1 + (i == 5),
            "residual_init": ("zero", "sinusoidal")[i % 2],
            "add_after_norm": i in (2, 7),
            "learn_scale": i != 6,
            "gate_metric": metrics[i],
            "gate_granularity": list(routing.GATE_GRANULARITY)[i % 3],
        }
        rows.append({**model, "fusion": fusion})
    return rows


def test_the_table_has_every_value_of_every_option() -> None:
    rows = [{**row, **row["fusion"]} for row in option_table()]
    everything = {
        "imputation": imputation.KINDS,
        "pooling": POOLING,
        "preset": soft_moe.PRESETS,
        "gate_metric": routing.UNCERTAINTY_METRICS,
        "gate_granularity": routing.GATE_GRANULARITY,
        "norm": ("pre", "post"),
    }
    for name, values in everything.items():
        assert {row[name] for row in rows} == set(values)
    for name in ("residual", "mask_missing", "modality_embedding", "add_after_norm", "learn_scale"):
        assert {row[name] for row in rows} == {False, True}


@pytest.mark.slow
@pytest.mark.parametrize("row", option_table(), ids=lambda row: f"{row['fusion']['preset']}-{row['imputation']}")
def test_every_option_runs(row: dict[str, Any]) -> None:
    fusion = dataclasses.replace(FUSION, **row["fusion"])
    model = Built(model_of(width=D, tokens=T, **{**row, "fusion": fusion}))
    outputs = []
    for seed in (0, 1):
        (_, output), gradient = model.gradient(model.params, make_batch(seed), gate="gated")
        outputs.append(output)
        assert output.logits.shape == (B, C)
        assert output.features.shape == (B, D)
        assert output.open_rate.shape == (B,)
        numbers = jax.tree.leaves((output._replace(observed=()), gradient))
        assert {x.dtype for x in numbers} == {jnp.dtype(jnp.float32)}
        assert all(np.isfinite(x).all() for x in numbers)
        assert gradient.keys() == model.params.keys()
        assert ((np.asarray(output.open_rate) >= 0) & (np.asarray(output.open_rate) <= 1)).all()
    assert model.traces == 1  # the second batch compiles nothing
    assert np.abs(np.asarray(outputs[0].logits - outputs[1].logits)).max() > 1e-3


def test_every_parameter_gets_a_gradient() -> None:
    model = built(with_text=True)
    batch = make_batch(inputs=WITH_TEXT)
    _, gradient = model.gradient(model.params, batch, gate="always")
    dead = [path for path, x in gradient.items() if not np.abs(x).max() > 1e-6]
    assert dead == []


# ---- Missing modalities ---------------------------------------------------------------------------------------------


def encoder_gradients(model: Built, batch: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    _, gradient = model.gradient(model.params, batch, gate="always")
    return [np.asarray(x) for path, x in gradient.items() if path.startswith(f"encoders/{name}/")]


@pytest.mark.parametrize("name", WITH_TEXT)
def test_the_encoder_of_a_missing_modality_gets_no_gradient(name: str) -> None:
    model, batch = built(with_text=True), make_batch(inputs=WITH_TEXT)
    column = list(WITH_TEXT).index(name)
    for everywhere in (True, False):
        present = np.ones((B, 3), bool)
        present[:, column] = not everywhere
        found = encoder_gradients(model, {**batch, "present": present}, name)
        assert found
        if everywhere:
            assert all((x == 0).all() for x in found)
        else:
            assert all((x != 0).any() for x in found)


def test_the_input_of_a_missing_modality_changes_nothing() -> None:
    model, batch = built(with_text=True), make_batch(inputs=WITH_TEXT)
    present = batch["present"]
    other = make_batch(5, WITH_TEXT)
    plain = model.forward(model.params, batch, gate="gated")
    for column, name in enumerate(WITH_TEXT):
        where = present[:, column].reshape(B, *(1,) * (batch[name].ndim - 1))
        hidden = {**batch, name: np.where(where, batch[name], other[name])}
        np.testing.assert_array_equal(model.forward(model.params, hidden, gate="gated").logits, plain.logits)
        shown = model.forward(model.params, {**batch, name: other[name]}, gate="gated").logits
        changed = np.abs(np.asarray(shown - plain.logits)).max(axis=1) > 1e-5
        assert changed.tolist() == present[:, column].tolist()


def test_dropout_follows_the_key_of_its_sample_and_leaves_imputed_tokens_alone() -> None:
    # No fusion dropout: only tokens of encoders are dropped.
    model = built(dataclasses.replace(SPEC, encoder_dropout=0.5))
    forward = jax.jit(lambda batch, keys: model.network.apply(model.params, batch, gate="always", keys=keys).logits)
    batch, keys, order = make_batch(), jax.random.split(jax.random.key(3), B), np.array([3, 1, 0, 2])
    dropped = np.asarray(forward(batch, keys))
    moved = np.asarray(forward({name: x[order] for name, x in batch.items()}, keys[order]))
    np.testing.assert_allclose(moved, dropped[order], atol=1e-5)
    plain = np.asarray(model.forward(model.params, batch, gate="always").logits)
    assert np.abs(dropped - plain).max(axis=1).min() > 1e-3
    nothing = {**batch, "present": np.zeros((B, 2), bool)}
    imputed = np.asarray(model.forward(model.params, nothing, gate="always").logits)
    np.testing.assert_allclose(forward(nothing, keys), imputed, atol=1e-5)


# ---- Groups ---------------------------------------------------------------------------------------------------------


def forward(batch: dict[str, np.ndarray], params: dict[str, Any] | None = None, gate: str = "always") -> Output:
    return built().forward(params or built().params, batch, gate=gate)


def test_an_unseen_combination_uses_the_shared_router_and_the_mean_row() -> None:
    params, batch = dict(built().params), make_batch()
    batch["present"][:, 0] = False
    batch["group"] = np.full(B, G, np.int32)
    unseen = np.asarray(forward(batch).logits)
    # The same by other means: every row of the table is the mean of the rows, every residual router is zero.
    table = params["imputation/group"]
    params["imputation/group"] = jnp.broadcast_to(jnp.mean(table, axis=0), table.shape)
    params["block_0/group_router"] = jnp.zeros_like(params["block_0/group_router"])
    known = {**batch, "group": np.array([0, 1, 2, 0], np.int32)}
    np.testing.assert_allclose(forward(known, params).logits, unseen, atol=1e-5)
    assert np.abs(np.asarray(forward(known).logits) - unseen).max(axis=1).min() > 1e-3


COMPOSED = dataclasses.replace(SPEC, imputation="modality", fusion=dataclasses.replace(FUSION, router_rank=2))


def test_composed_routers_go_by_what_is_present_and_serve_unseen_combinations() -> None:
    model, batch = built(COMPOSED), make_batch()
    found = model.forward(model.params, batch, gate="always").logits
    unseen = model.forward(model.params, {**batch, "group": np.full(B, G, np.int32)}, gate="always").logits
    np.testing.assert_array_equal(found, unseen)
    shared = np.asarray(model.forward(model.params, batch, gate="never").logits)
    assert np.abs(np.asarray(unseen) - shared).max(axis=1).min() > 1e-3
    zero = model.params | {"block_0/group_router_out": jnp.zeros_like(model.params["block_0/group_router_out"])}
    np.testing.assert_allclose(model.forward(zero, batch, gate="always").logits, shared, atol=1e-5)


def test_composed_routers_take_no_more_parameters_for_more_combinations() -> None:
    def size(spec: ModelSpec, groups: int) -> int:
        shapes = make_network(spec, TABULAR, groups, C).shapes
        return sum(x.size for x in shapes.values())

    table = dataclasses.replace(COMPOSED, fusion=FUSION)
    assert size(COMPOSED, 50) == size(COMPOSED, G)
    assert size(table, 50) - size(table, G) == (50 - G) * D * 4 * 2  # a router is d * e * s


def test_rows_of_absent_groups_get_no_gradient() -> None:
    batch = {**make_batch(), "group": np.array([0, 2, 2, 0], np.int32)}
    batch["present"][0, 1] = False
    _, gradient = built().gradient(built().params, batch, gate="always")
    for path in ("imputation/group", "block_0/group_router"):
        rows = np.abs(np.asarray(gradient[path])).reshape(G, -1).max(axis=1)
        assert (rows > 0).tolist() == [True, False, True]


@pytest.mark.parametrize("gate", ["gated", "always"])
def test_a_sample_does_not_depend_on_its_batch(gate: str) -> None:
    batch, order = make_batch(), np.array([2, 0, 0, 3])
    whole = forward(batch, gate=gate)
    moved = forward({name: x[order] for name, x in batch.items()}, gate=gate)
    for one, other in zip(whole[:3], moved[:3], strict=True):
        np.testing.assert_allclose(np.asarray(one)[order], other, atol=1e-5)


# ---- Pooling and head -----------------------------------------------------------------------------------------------


def test_the_head_is_a_linear_map_of_the_features() -> None:
    params = built().params
    output = forward(make_batch())
    expected = np.asarray(output.features) @ np.asarray(params["head/kernel"]) + np.asarray(params["head/bias"])
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


def test_observed_pooling_is_the_mean_where_nothing_is_missing() -> None:
    observed = built(dataclasses.replace(SPEC, pooling="observed"))
    assert observed.params.keys() == built().params.keys()
    batch = make_batch()
    whole = forward(batch).features
    found = observed.forward(built().params, batch, gate="always").features
    same = np.abs(np.asarray(whole - found)).max(axis=1) < 1e-5
    assert same.tolist() == batch["present"].all(axis=1).tolist() == [True, False, False, True]


def test_the_modalities_side_by_side_have_the_same_tokens_and_a_wider_head() -> None:
    apart = built(dataclasses.replace(SPEC, pooling="modalities"))
    batch, whole = make_batch(), forward(make_batch()).features
    params = {**built().params, "head/kernel": apart.params["head/kernel"]}
    output = apart.forward(params, batch, gate="always")
    modalities = apart.params["head/kernel"].shape[0] // D
    assert modalities == len(TABULAR)
    # The mean over all tokens is that of these means, as often as a modality has tokens.
    counts = np.bincount(make_network(SPEC, TABULAR, G, C).owner)
    means = np.asarray(output.features).reshape(B, modalities, D)
    np.testing.assert_allclose(np.average(means, axis=1, weights=counts), whole, atol=1e-5)
    expected = np.asarray(output.features) @ np.asarray(params["head/kernel"]) + np.asarray(params["head/bias"])
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)


def test_only_what_a_method_uses_is_declared() -> None:
    plain = make_network(model_of(width=D, fusion=fusion_of(heads=2)), TABULAR, G, C)
    shapes = plain.shapes
    assert not [path for path in shapes if "group_router" in path]
    assert [path for path in shapes if path.startswith("imputation/")] == ["imputation/group"]
    # Weakly typed parameters would make the second step compile again.
    assert not [path for path, x in shapes.items() if x.weak_type]
    found = {}
    for kind in imputation.KINDS:
        network = make_network(model_of(width=D, imputation=kind), TABULAR, G, C)
        paths = network.shapes
        found[kind] = {path.removeprefix("imputation/") for path in paths if path.startswith("imputation/")}
    assert found == {
        "group": {"group"},
        "bank": {"group"},
        "modality": {"modality"},
        "modality+group": {"group", "modality"},
        "mean": {"running_mean"},
        "zero": set(),
    }


def test_initial_weights_follow_the_seed() -> None:
    init = make_network(SPEC, {"labs": TABULAR["labs"]}, G, C).init
    first, again, other = init(0), init(0), init(1)
    for path, x in first.items():
        np.testing.assert_array_equal(x, again[path])
        drawn = float(np.std(x)) > 0
        assert bool((x != other[path]).any()) is drawn
    assert not first["imputation/group"].any()  # beside a modality part the group part starts at zero
    assert first["imputation/modality"].any()


# ---- Images, volumes and their batch norms --------------------------------------------------------------------------

PIXELS = {"scan": Input("image", (16, 16, 1)), "flow": Input("volume", (4, 16, 16, 3)), "labs": TABULAR["labs"]}


def pixel_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 256, (B, *PIXELS[name].shape)).astype(np.uint8) for name in ("scan", "flow")}
    present = np.ones((B, 3), bool)
    present[1, 0] = present[2, 1] = False
    labs = rng.normal(size=(B, 5)).astype(np.float32)
    return {**batch, "labs": labs, "present": present, "group": np.array([0, 1, 2, G], np.int32)}


@functools.cache
def pixel_network(image_encoder: str) -> Built:
    return Built(dataclasses.replace(SPEC, image_encoder=image_encoder), PIXELS)


@pytest.mark.parametrize("image_encoder", ["vit_small", "resnet_small"])
def test_pixels_become_tokens_and_missing_ones_are_not_looked_at(image_encoder: str) -> None:
    one, batch = pixel_network(image_encoder), pixel_batch()
    tokens = jax.eval_shape(one.network.encode, one.params, batch)
    # A ViT gives its class token and a token a patch of 8 x 8; the others give the spec's number.
    assert tokens.shape == (B, (1 + 4 if image_encoder == "vit_small" else T) + T + T, D)
    first = one.forward(one.params, batch, gate="always").logits
    changed = {**batch, "scan": 255 - batch["scan"]}
    moved = np.abs(np.asarray(first - one.forward(one.params, changed, gate="always").logits)).max(axis=1)
    assert (moved > 1e-6).tolist() == batch["present"][:, 0].tolist() == [True, False, True, True]


def test_running_statistics_are_returned_when_asked_for_and_come_from_present_samples_only() -> None:
    one, batch = pixel_network("resnet_small"), pixel_batch()
    assert one.forward(one.params, batch, gate="never").statistics == {}
    apply = jax.jit(lambda params, batch: one.network.apply(params, batch, gate="never", statistics=True))
    new = apply(one.params, batch).statistics
    old = {path: x for path, x in one.params.items() if is_statistic(path)}
    assert new.keys() == old.keys()
    assert {path.split("/")[1] for path in new} == {"scan", "flow"}
    assert all(np.abs(new[path] - old[path]).max() > 0 for path in new)
    absent, here = np.flatnonzero(~batch["present"][:, 0])[0], np.flatnonzero(batch["present"][:, 0])[0]
    for row, matters in ((absent, False), (here, True)):
        other = {**batch, "scan": batch["scan"].copy()}
        other["scan"][row] = 255 - other["scan"][row]
        found = apply(one.params, other).statistics
        same = all(np.array_equal(found[path], new[path]) for path in new if path.startswith("encoders/scan/"))
        assert same is not matters


def test_published_weights_replace_those_of_every_encoder_of_their_kind(tmp_path) -> None:
    from safetensors.numpy import save_file

    inputs = {"a": Input("image", (16, 16, 3)), "b": Input("image", (16, 16, 1)), "labs": TABULAR["labs"]}
    network = make_network(SPEC, inputs, G, C)
    params = random_params(network.shapes)
    rng, tensors = np.random.default_rng(1), {}
    layers, width, hidden, patch = 2, 64, 128, 8
    for i in range(layers):
        block = f"encoder.layer.{i}."
        for name in ("attention.attention.query", "attention.attention.key", "attention.attention.value"):
            tensors[f"{block}{name}.weight"] = rng.normal(size=(width, width))
            tensors[f"{block}{name}.bias"] = rng.normal(size=width)
        for name, shape in (
            ("attention.output.dense", (width, width)),
            ("intermediate.dense", (hidden, width)),
            ("output.dense", (width, hidden)),
        ):
            tensors[f"{block}{name}.weight"], tensors[f"{block}{name}.bias"] = (
                rng.normal(size=shape),
                rng.normal(size=shape[0]),
            )
        for name in ("layernorm_before", "layernorm_after"):
            tensors[f"{block}{name}.weight"], tensors[f"{block}{name}.bias"] = rng.normal(size=(2, width))
    tensors["layernorm.weight"], tensors["layernorm.bias"] = rng.normal(size=(2, width))
    tensors["embeddings.cls_token"] = rng.normal(size=(1, 1, width))
    tensors["embeddings.position_embeddings"] = rng.normal(size=(1, 1 + 4, width))
    tensors["embeddings.patch_embeddings.projection.weight"] = rng.normal(size=(width, 3, patch, patch))
    tensors["embeddings.patch_embeddings.projection.bias"] = rng.normal(size=width)
    save_file(
        {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}, tmp_path / "model.safetensors"
    )
    assert load_pretrained(SPEC, inputs, {"image": "", "text": ""}, params) == {}
    loaded = load_pretrained(SPEC, inputs, {"image": str(tmp_path / "model.safetensors"), "text": ""}, params)
    assert {path.split("/")[1] for path in loaded} == {"a", "b"}
    assert not [path for path in loaded if "/adapter/" in path]
    assert all(loaded[path].shape == params[path].shape for path in loaded)
    for path, x in loaded.items():
        np.testing.assert_array_equal(x, loaded[path.replace("encoders/b/", "encoders/a/")])


@pytest.mark.parametrize("fusion", ["soft_moe", "fuse_moe", "flex_moe"])
@pytest.mark.parametrize(
    ("encoder", "shape", "options"),
    [
        ("text", (6,), {}),
        ("text", (6,), {"text_gated": False, "remat": True}),
        ("text", (6,), {"text_encoder": "bag"}),
        ("patch", (5,), {"encoder_hidden": 4}),
        ("patch", (2, 4), {}),
        ("codes", (6,), {}),
        ("image", (16, 16, 3), {}),
        ("image", (16, 16, 1), {"image_encoder": "resnet_small"}),
        ("volume", (4, 8, 8, 1), {}),
    ],
)
def test_weights_in_bfloat16_make_a_network_in_bfloat16(encoder, shape, options, fusion):
    inputs = {"x": Input(encoder, shape, 12)}
    soft = fusion == "soft_moe"
    spec = model_of(width=8, fusion=fusion_of(kind=fusion, heads=2, experts=4, group_routers=soft), **options)
    network = make_network(spec, inputs, G, C)
    params = network.shapes
    params = {path: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for path, x in params.items()}
    dtype = {"text": jnp.int32, "codes": jnp.int32, "image": jnp.uint8, "volume": jnp.uint8}.get(encoder, jnp.float32)
    batch = {"x": jax.ShapeDtypeStruct((3, *shape), dtype), "group": jax.ShapeDtypeStruct((3,), jnp.int32)}
    batch["present"] = jax.ShapeDtypeStruct((3, 1), jnp.bool_)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    apply = functools.partial(network.apply, gate="gated" if soft else "never")
    with jax.numpy_dtype_promotion("standard"):  # which attention of JAX itself needs
        trace, output = jax.make_jaxpr(lambda *x: apply(*x[:2], keys=x[2]), return_shape=True)(params, batch, keys)
    assert output.logits.dtype == output.tokens.dtype == jnp.bfloat16
    products = list(_products(trace.jaxpr))
    assert len(products) > 5
    if soft:  # sparse routers score in float32
        assert {aval.dtype.name for product in products for aval in product} == {"bfloat16"}


def _products(jaxpr: Any) -> Iterator[list[Any]]:
    """What goes into each product and convolution of a trace."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield [x.aval for x in equation.invars]
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _products(getattr(inner, "jaxpr", inner))


def test_the_threshold_of_a_gate_is_measured_like_a_statistic_and_not_trained() -> None:
    assert is_statistic("block_0/gate_threshold")
    assert is_statistic("encoders/a/stem/running_mean")
    assert not is_statistic("block_0/router_scale")


@pytest.mark.slow
def test_layers_that_are_computed_again_give_the_same_gradient_and_keep_less():
    kept, slopes = [], []
    for remat in (False, True):
        network = make_network(model_of(width=8, remat=remat), {"x": Input("text", (64,), 12)}, G, C)
        params = random_params(network.shapes)
        batch = {"x": np.arange(192).reshape(3, 64) % 12, "group": np.zeros(3, int), "present": np.ones((3, 1), bool)}

        def loss(params, batch, network=network):
            return jnp.sum(jnp.square(network.apply(params, batch, gate="never").logits))

        back = jax.eval_shape(
            lambda params, loss=loss, batch=batch: jax.vjp(lambda p: loss(p, batch), params)[1], params
        )
        kept.append(sum(x.size for x in jax.tree.leaves(back)))
        slopes.append(jax.jit(jax.grad(loss))(params, batch))
    assert kept[1] < 0.6 * kept[0]
    for path, slope in slopes[0].items():
        np.testing.assert_allclose(slopes[1][path], slope, rtol=1e-4, atol=1e-5)


# ---- Samples that have their modality --------------------------------------------------------------------------------

SPREAD = {**WITH_TEXT, "scan": Input("image", (16, 16, 3)), "labs": Input("patch", (5,))}


def _of_present(batch: dict[str, np.ndarray], blocks: int, capacities: dict[str, int]) -> dict[str, np.ndarray]:
    """The batch with the inputs of fewer samples, as `SOURCE` has it, sample by sample."""
    found, size = dict(batch), len(batch["group"])
    for i, name in enumerate(SPREAD):
        if name not in capacities:
            continue
        each, source = size // blocks, []
        for block in range(blocks):
            here = [j for j in range(each) if batch["present"][block * each + j, i]]
            others = [j for j in range(each) if j not in here]
            source.append((here + others)[: capacities[name]])
            assert len(here) <= capacities[name]
        found[name] = np.stack([batch[name][block * each + np.array(own)] for block, own in enumerate(source)])
        found[SOURCE + name] = np.array(source, np.int32)
    return found


@functools.cache
def _spread_setup() -> tuple[Any, dict[str, jax.Array], dict[str, np.ndarray]]:
    spec = dataclasses.replace(SPEC, image_encoder="resnet_small", encoder_dropout=0.3)
    network = make_network(spec, SPREAD, G, C)
    params = random_params(network.shapes)
    # Positive variances, and scales that let the signal through.
    params = {path: jnp.abs(x) + 0.5 if path.endswith("running_variance") else x for path, x in params.items()}
    rng, size = np.random.default_rng(3), 8
    batch: dict[str, np.ndarray] = {"group": rng.integers(0, G + 1, size).astype(np.int32)}
    batch["present"] = np.array([[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]] * 2, bool)
    for i, (name, one) in enumerate(SPREAD.items()):
        x = rng.integers(1, 20, (size, *one.shape)) if one.encoder != "patch" else rng.normal(size=(size, *one.shape))
        kind = {"text": np.int32, "image": np.uint8, "patch": np.float32}[one.encoder]
        batch[name] = (x * batch["present"][:, i].reshape(-1, *[1] * len(one.shape))).astype(kind)
    return network, params, batch


@pytest.mark.slow
@pytest.mark.parametrize(("blocks", "options"), [(1, {}), (2, {"resting": True}), (2, {"statistics": True})], ids=str)
def test_encoders_that_run_on_present_samples_give_the_numbers_of_all(blocks: int, options: dict[str, bool]) -> None:
    """Logits, features, statistics and gradients, with dropout, and room for absent samples in some blocks."""
    network, params, batch = _spread_setup()
    keys = jax.random.split(jax.random.key(5), 8)
    capacities = {"labs": 3, "views": 1, "notes": 2, "scan": 3}
    few = _of_present(batch, blocks, {name: k * 2 // blocks for name, k in capacities.items()})
    assert few["scan"].size < batch["scan"].size

    @jax.jit
    def both(params: dict[str, jax.Array], batch: dict[str, np.ndarray]):
        def loss(params: dict[str, jax.Array]) -> tuple[jax.Array, Output]:
            output = network.apply(params, batch, gate="gated", keys=keys, **options)
            return jnp.sum(jnp.sin(3.0 * output.logits)), output

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, output), gradient = both(params, few)
    (expected, dense), slopes = both(params, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    chex.assert_trees_all_close(output, dense, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(gradient, slopes, rtol=1e-4, atol=1e-5)
    assert all(
        np.abs(slopes[f"encoders/{name}"]).max() > 1e-3 for name in ("scan/adapter/project/kernel", "notes/query")
    )
    assert bool(output.statistics) == ("statistics" in options)


# ---- Mean imputation -------------------------------------------------------------------------------------------------


def test_running_means_stand_for_what_is_missing_and_move_when_asked_to() -> None:
    one, batch = built(dataclasses.replace(SPEC, imputation="mean", modality_embedding=False)), make_batch()
    path = "imputation/running_mean"
    assert one.params[path].shape == (2, D)
    assert is_statistic(path)
    tokens, means = one.network.encode(one.params, batch), np.asarray(one.params[path])
    for row, modality, own in ((1, 0, slice(0, T)), (2, 1, slice(T, None))):
        np.testing.assert_allclose(
            tokens[row, own], np.broadcast_to(means[modality], tokens[row, own].shape), rtol=1e-6
        )
    apply = jax.jit(lambda params, batch: one.network.apply(params, batch, gate="never", means=True))
    found = apply(one.params, batch)
    pooled = np.asarray(tokens[:, :T].mean(axis=1))[batch["present"][:, 0]].mean(axis=0)
    np.testing.assert_allclose(found.statistics[path][0], 0.9 * means[0] + 0.1 * pooled, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.tokens[1, :T], np.tile(found.statistics[path][0], (T, 1)), rtol=1e-6)
    assert one.forward(one.params, batch, gate="never").statistics == {}


def test_what_a_sample_has_is_an_input_of_every_token() -> None:
    one, batch = built(dataclasses.replace(SPEC, mask_input=True)), make_batch()
    plain = one.network.encode(one.params | {"mask_input": jnp.zeros((2, D))}, batch)
    found = one.network.encode(one.params, batch) - plain
    weights = np.asarray(one.params["mask_input"])
    for i, present in enumerate(batch["present"]):
        expected = sum((weights[j] for j in np.flatnonzero(present)), np.zeros(D))
        np.testing.assert_allclose(found[i], np.broadcast_to(expected, found[i].shape), rtol=1e-3, atol=1e-5)
    assert not np.asarray(one.network.init(0)["mask_input"]).any()
