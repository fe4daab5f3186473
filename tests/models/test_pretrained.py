"""Weights from files in the layouts of published checkpoints, written here name by name, and all that can be wrong."""

import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from remind_jax.data.kinds import KINDS
from remind_jax.errors import UserError
from remind_jax.models import pretrained
from remind_jax.models.encoders import t5, vit
from remind_jax.models.network import load_pretrained, make_network
from remind_jax.models.pretrained import Tensor, load, single, stack
from tests.models.pure import Pure
from tests.models.specs import fusion_of, model_of

Arrays = dict[str, np.ndarray]
VOCABULARY = 20
PAIR = {"map": stack(2, "new.{}.weight", "old.{}.weight", change=np.transpose), "bias": single("bias")}
PAIR_SHAPES = {"map": (2, 3, 4), "bias": (4,)}


@functools.cache
def vit_params() -> Arrays:
    make = functools.partial(vit.VitEncoder, (16, 24, 3), size="small", width=6, dropout=0.0)
    return {path: np.asarray(x) for path, x in Pure(lambda: make(rngs=nnx.Rngs(params=0))).params.items()}


@functools.cache
def t5_params(gated: bool) -> Arrays:
    make = functools.partial(t5.T5Encoder, VOCABULARY, size="small", tokens=2, width=6, gated=gated, dropout=0.0)
    return {path: np.asarray(x) for path, x in Pure(lambda: make(rngs=nnx.Rngs(params=0))).params.items()}


def vit_file(p: Arrays, old: bool, prefix: str = "") -> Arrays:
    """A ViT checkpoint of transformers, with names of before release 5 (old) or of it."""
    convolution = p["patch_kernel"].reshape(8, 8, 3, 64)  # row, column, channel, width
    tensors = {
        "embeddings.cls_token": p["class_token"].reshape(1, 1, 64),
        "embeddings.position_embeddings": p["position"][None],
        "embeddings.patch_embeddings.projection.weight": np.moveaxis(convolution, (3, 2), (0, 1)),
        "embeddings.patch_embeddings.projection.bias": p["patch_bias"],
        "layernorm.weight": p["final_scale"],
        "layernorm.bias": p["final_bias"],
    }
    for i in range(2):
        layer = f"encoder.layer.{i}" if old else f"layers.{i}"
        norms = {"layernorm_before": "attention", "layernorm_after": "feed_forward"}
        for theirs, ours in norms.items():
            tensors[f"{layer}.{theirs}.weight"] = p[f"{ours}_scale"][i]
            tensors[f"{layer}.{theirs}.bias"] = p[f"{ours}_bias"][i]
        names = {
            "query": ("attention.attention.query", "attention.q_proj"),
            "key": ("attention.attention.key", "attention.k_proj"),
            "value": ("attention.attention.value", "attention.v_proj"),
            "output": ("attention.output.dense", "attention.o_proj"),
            "feed_in": ("intermediate.dense", "mlp.fc1"),
            "feed_out": ("output.dense", "mlp.fc2"),
        }
        for ours, (before, after) in names.items():
            tensors[f"{layer}.{before if old else after}.weight"] = p[ours][i].T
            tensors[f"{layer}.{before if old else after}.bias"] = p[f"{ours}_bias"][i]
    return {prefix + name: x for name, x in tensors.items()}


def t5_file(p: Arrays, gated: bool, embedding: str = "shared.weight") -> Arrays:
    """A T5 checkpoint of transformers."""
    tensors = {embedding: p["embedding"], "encoder.final_layer_norm.weight": p["final_scale"]}
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors[first] = p["position_bias"]
    for i in range(2):
        attention, feed = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for ours, theirs in {"query": "q", "key": "k", "value": "v", "output": "o"}.items():
            tensors[f"{attention}.SelfAttention.{theirs}.weight"] = p[ours][i].T
        tensors[f"{attention}.layer_norm.weight"] = p["attention_scale"][i]
        tensors[f"{feed}.layer_norm.weight"] = p["feed_forward_scale"][i]
        tensors[f"{feed}.DenseReluDense.wo.weight"] = p["feed_out"][i].T
        tensors[f"{feed}.DenseReluDense.{'wi_1' if gated else 'wi'}.weight"] = p["feed_in"][i].T
        if gated:
            tensors[f"{feed}.DenseReluDense.wi_0.weight"] = p["feed_gate"][i].T
    return tensors


def write(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return str(path)


def shapes(p: Arrays) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in p.items()}


def load_vit(source: str, **changed: tuple[int, ...]) -> Arrays:
    options = {"prefixes": vit.PREFIXES, "model_types": vit.MODEL_TYPES, "config": vit.checkpoint_config("small")}
    return load(source, vit.checkpoint_layout("small"), {**shapes(vit_params()), **changed}, **options)


def load_t5(source: str, gated: bool) -> Arrays:
    options = {"prefixes": t5.PREFIXES, "model_types": t5.MODEL_TYPES, "config": t5.checkpoint_config("small", gated)}
    return load(source, t5.checkpoint_layout("small", gated), shapes(t5_params(gated)), **options)


def assert_same(found: Arrays, params: Arrays) -> None:
    """All parameters but those of our adapter were found, and are the ones that were written."""
    assert {path for path in params if path not in found} == {"adapter/kernel", "adapter/bias"}
    for path, x in found.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, params[path], err_msg=path)


def pair(seed: int = 0, names: str = "new") -> Arrays:
    rng = np.random.default_rng(seed)
    tensors = {f"{names}.{i}.weight": rng.normal(size=(4, 3)).astype(np.float32) for i in range(2)}
    return {**tensors, "bias": rng.normal(size=4).astype(np.float32)}


def refusal(source: str, layout: Mapping[str, Tensor] = PAIR, shapes=PAIR_SHAPES, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(source, layout, shapes, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("prefix", ["", "vit."])
def test_a_vit_is_read_under_both_sets_of_names(tmp_path: pathlib.Path, old: bool, prefix: str) -> None:
    other = {"pooler.dense.weight": np.ones((64, 64)), "classifier.bias": np.ones(2)} if prefix else {}
    source = write(tmp_path / "model.safetensors", {**vit_file(vit_params(), old, prefix), **other})
    assert_same(load_vit(source), vit_params())


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight"])
def test_a_t5_is_read_in_both_versions(tmp_path: pathlib.Path, gated: bool, embedding: str) -> None:
    decoder = {"decoder.block.0.layer.0.layer_norm.weight": np.ones(64), "lm_head.weight": np.ones((VOCABULARY, 64))}
    source = write(tmp_path / "a.safetensors", {**t5_file(t5_params(gated), gated, embedding), **decoder})
    assert_same(load_t5(source, gated), t5_params(gated))


@pytest.mark.parametrize("kind", ["text", "codes"])
def test_a_published_t5_serves_text_and_no_codes(tmp_path: pathlib.Path, kind: str) -> None:
    inputs = {"notes": KINDS["text"].spec((6,), VOCABULARY), "icd": KINDS[kind].spec((6,), VOCABULARY)}
    spec = model_of(width=6, fusion=fusion_of(heads=2, experts=4))
    params = make_network(spec, inputs, 3, 2).shapes
    source = write(tmp_path / "a.safetensors", t5_file(t5_params(True), True))
    loaded = load_pretrained(spec, inputs, {"text": source}, params)
    served = {path.split("/")[1] for path in loaded}
    assert served == ({"notes", "icd"} if kind == "text" else {"notes"})
    for path, x in loaded.items():
        np.testing.assert_array_equal(x, loaded[path.replace("/icd/", "/notes/")])


def test_rows_that_pad_a_published_vocabulary_are_left_out(tmp_path: pathlib.Path) -> None:
    tensors = t5_file(t5_params(True), True)
    rows = np.concatenate([tensors["shared.weight"], np.full((128 - VOCABULARY, 64), 7.0, np.float32)])
    source = write(tmp_path / "a.safetensors", {**tensors, "shared.weight": rows})
    assert_same(load_t5(source, True), t5_params(True))


@pytest.mark.parametrize("rows", [19, 21, 127, 129, 256])
def test_another_vocabulary_is_the_tokenizers_fault(tmp_path: pathlib.Path, rows: int) -> None:
    tensors = {**t5_file(t5_params(True), True), "shared.weight": np.zeros((rows, 64), np.float32)}
    with pytest.raises(UserError, match=rf"embedding is \[{rows}, 64\], not \[20, 64\] \(.*data\.tokenizer"):
        load_t5(write(tmp_path / "a.safetensors", tensors), True)


def test_a_t5_of_the_other_version_lacks_its_feed_forward_weights(tmp_path: pathlib.Path) -> None:
    relu = write(tmp_path / "relu.safetensors", t5_file(t5_params(False), False))
    with pytest.raises(UserError, match=r"missing: .*wi_[01]\.weight"):
        load_t5(relu, True)
    gated = write(tmp_path / "gated.safetensors", t5_file(t5_params(True), True))
    with pytest.raises(UserError, match=r"missing: .*wi\.weight"):
        load_t5(gated, False)


# ---- Where files lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", ["new", "old"])
def test_layers_are_changed_one_by_one_and_stacked(tmp_path: pathlib.Path, names: str) -> None:
    tensors = pair(names=names)
    found = load(write(tmp_path / "a.safetensors", tensors), PAIR, PAIR_SHAPES)
    expected = np.stack([tensors[f"{names}.0.weight"].T, tensors[f"{names}.1.weight"].T])
    np.testing.assert_array_equal(found["map"], expected)
    np.testing.assert_array_equal(found["bias"], tensors["bias"])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64])
def test_other_floating_types_become_float32(tmp_path: pathlib.Path, dtype: type) -> None:
    tensors = {name: x.astype(dtype) for name, x in pair().items()}
    found = load(write(tmp_path / "a.safetensors", tensors), PAIR, PAIR_SHAPES)
    assert {x.dtype for x in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["bias"], tensors["bias"].astype(np.float32))
    assert np.abs(found["bias"] - pair()["bias"]).max() < 0.01


def test_a_folder_gives_its_only_file_or_the_one_of_the_usual_name(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "some.safetensors", pair(1))
    np.testing.assert_array_equal(load(str(tmp_path), PAIR, PAIR_SHAPES)["bias"], pair(1)["bias"])
    write(tmp_path / "model.safetensors", pair(2))
    np.testing.assert_array_equal(load(str(tmp_path), PAIR, PAIR_SHAPES)["bias"], pair(2)["bias"])


def test_shards_are_read_through_their_index(tmp_path: pathlib.Path) -> None:
    tensors, weight_map = pair(), {}
    for i, name in enumerate(tensors):
        weight_map[name] = f"model-{i}.safetensors"
        write(tmp_path / weight_map[name], {name: tensors[name]})
    write(tmp_path / "other.safetensors", pair(1))  # not in the index
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = load(str(tmp_path), PAIR, PAIR_SHAPES)
    np.testing.assert_array_equal(found["bias"], tensors["bias"])
    np.testing.assert_array_equal(found["map"][1], tensors["new.1.weight"].T)
    (tmp_path / "model-1.safetensors").unlink()
    assert "shards missing: model-1.safetensors" in refusal(str(tmp_path))
    for bad in ({"weight_map": {"bias": "../other.safetensors"}}, {"weight_map": {}}, {}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(bad))
        assert "names no files" in refusal(str(tmp_path))


def test_a_hub_name_is_answered_from_the_local_cache_when_offline(tmp_path: pathlib.Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--network"
    write(repository / "snapshots" / commit / "model.safetensors", pair())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    program = (
        "import sys; from tests.models.test_pretrained import *\n"
        "print(load('somebody/network', PAIR, PAIR_SHAPES)['bias'].tolist())\n"
        "try: load('somebody/other', PAIR, PAIR_SHAPES)\n"
        "except UserError as error: print(error)"
    )
    hub = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    options = {"env": {**os.environ, **hub}, "cwd": pathlib.Path(__file__).resolve().parents[2]}
    done = subprocess.run([sys.executable, "-c", program], **options, capture_output=True, text=True, check=True)
    values, message = done.stdout.splitlines()
    assert json.loads(values) == pair()["bias"].tolist()
    assert message.startswith("somebody/other: no such file or folder, and not from the hub: ")


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_missing_and_misshapen_tensors_are_named_together_a_few_at_a_time(tmp_path: pathlib.Path) -> None:
    tensors = vit_file(vit_params(), old=False, prefix="vit.")
    for name in list(tensors):
        if ".mlp.fc1." in name or name.startswith("vit.layernorm."):
            del tensors[name]
    source = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError) as caught:
        load_vit(source, position=(5, 64))
    message = str(caught.value)
    listed = ("vit.layernorm.weight", "vit.layernorm.bias", "vit.layers.0.mlp.fc1.weight")
    assert f"missing: {', '.join(listed)} and 3 more; not fitting: position is [7, 64], not [5, 64]" in message
    assert "data.image_size" in message
    assert "\n" not in message


def test_other_shapes_are_told_even_where_the_number_of_axes_differs(tmp_path: pathlib.Path) -> None:
    layout = {"kernel": single("kernel", change=lambda x: np.transpose(x, (2, 3, 1, 0)))}
    for shape in ((4, 3), (4, 3, 5, 7)):
        source = write(tmp_path / "a.safetensors", {"kernel": np.ones(shape)})
        assert "kernel is" in refusal(source, layout, {"kernel": (5, 3, 7, 4)})
    source = write(tmp_path / "a.safetensors", {"kernel": np.ones((4, 3, 5, 7))})
    assert load(source, layout, {"kernel": (5, 7, 3, 4)})["kernel"].shape == (5, 7, 3, 4)


def test_one_layer_of_another_shape_is_not_broadcast(tmp_path: pathlib.Path) -> None:
    tensors = {**pair(), "new.1.weight": np.ones((1, 3))}
    assert "map is [3, 1], not [3, 4]" in refusal(write(tmp_path / "a.safetensors", tensors))


def test_integers_are_refused(tmp_path: pathlib.Path) -> None:
    tensors = {**pair(), "bias": np.ones(4, np.int8)}
    assert "bias is int8, not floating-point" in refusal(write(tmp_path / "a.safetensors", tensors))


def test_the_configuration_beside_the_weights_is_heeded(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "model.safetensors", pair())
    options = {"model_types": ("vit",), "config": {"heads": 2}}
    config = tmp_path / "config.json"
    for fine in ({}, {"model_type": "vit"}, {"model_type": "vit", "heads": 2, "other": 3}):
        config.write_text(json.dumps(fine))
        assert load(str(tmp_path), PAIR, PAIR_SHAPES, **options)
    config.write_text(json.dumps({"model_type": "bert"}))
    assert "architecture 'bert', not vit" in refusal(str(tmp_path), **options)
    assert "architecture 'bert', not vit" in refusal(str(tmp_path / "model.safetensors"), **options)
    config.write_text(json.dumps({"model_type": "vit", "heads": 3}))
    assert "heads is 3, not 2" in refusal(str(tmp_path), **options)
    for bad in ("{", "[]"):
        config.write_text(bad)
        assert "config.json" in refusal(str(tmp_path), **options)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80")
    for source in (tmp_path, tmp_path / name):
        assert "only safetensors are read; with torch: safetensors.torch.save_file(" in refusal(str(source))


def test_files_that_cannot_be_used_are_refused(tmp_path: pathlib.Path) -> None:
    assert "no safetensors file" in refusal(str(tmp_path))
    assert "name a .safetensors file" in refusal("")
    for absent in (
        str(tmp_path / "nothing"),
        str(tmp_path / "a.safetensors"),
        "a.safetensors",
        "./a/b",
        "a/b/c",
        "~/x",
    ):
        assert refusal(absent) == f"{absent}: no such file or folder"
    whole = tmp_path / "a.safetensors"
    write(whole, pair())
    content = whole.read_bytes()
    for bad in (b"", content[: len(content) // 2], b"\xff" * 100):
        whole.write_bytes(bad)
        assert "cannot read a.safetensors" in refusal(str(tmp_path))
    write(whole, pair())
    write(tmp_path / "b.safetensors", pair())
    assert "name one of a.safetensors, b.safetensors" in refusal(str(tmp_path))


def test_the_helpers_write_out_the_names() -> None:
    expected = (("a.0", "b.0.c"), ("a.1", "b.1.c"))
    assert stack(2, "a.{}", "b.{}.c") == Tensor(expected, pretrained.as_is, stacked=True)
    assert single("a", "b") == Tensor((("a", "b"),))
