"""Our encoders beside their models in torch, with the same random weights read from the same checkpoint.

Importing this module needs torch. `test_torch_parity.py` and `benchmarks/encoder_parity.py` use it.
"""

import dataclasses
import functools
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx, traverse_util
from safetensors.torch import save_file

from remind_jax.models.encoders import residual, resnet, t5, video_resnet, vit
from remind_jax.models.pretrained import Tensor, load
from remind_jax.ops.pixels import IMAGENET

Names = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]

# ResNet-50 with few and narrow blocks; the `small` size of the package has a stem that torch's models do not.
_NARROW = dataclasses.replace(resnet.SIZES["50"], stem_width=8, blocks=(2, 1, 3, 1), widths=(4, 8, 16, 32), adapter=32)
_VOCABULARY = {"small": 50, "base": 32_128}


class Case(NamedTuple):
    """An encoder on both sides.

    Attributes:
      model: the torch model in evaluation mode, with random weights.
      make: builds ours.
      layout: where a checkpoint holds our parameters.
      options: of `load` for this encoder.
      theirs: (torch model, input) -> outputs by name, in the axes of ours.
      ours: (encoder, input) -> the same outputs.
      inputs: of both, [b, ...]; pixels have their channels last.
    """

    model: torch.nn.Module
    make: Callable[[], nnx.Module]
    layout: Mapping[str, Tensor]
    options: Mapping[str, Any]
    theirs: Callable[[torch.nn.Module, np.ndarray], dict[str, torch.Tensor]]
    ours: Callable[[Any, jax.Array], dict[str, jax.Array]]
    inputs: np.ndarray


class Difference(NamedTuple):
    """How far an output lies from torch's.

    Attributes:
      output: its name.
      shape: of the array.
      largest: greatest absolute entry of torch's.
      ours: greatest absolute difference between ours and torch's, both in float32.
      ours_wide: between ours in float32 and torch's in float64.
      torch_wide: between torch's in float32 and in float64, for comparison.
    """

    output: str
    shape: tuple[int, ...]
    largest: float
    ours: float
    ours_wide: float
    torch_wide: float


def compare(case: Case, rename: Names | None = None) -> list[Difference]:
    """Writes the torch model's weights as safetensors, loads them as a user would, and runs both models.

    Args:
      case: what to compare.
      rename: changes the tensors' names before they are written.
    """
    tensors = case.model.state_dict()
    tensors = {name: x.clone().contiguous() for name, x in (rename(tensors) if rename else tensors).items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, pathlib.Path(folder) / "model.safetensors")
        if hasattr(case.model, "config"):
            case.model.config.save_pretrained(folder)
        graph, params = _load(case, folder)
    run = jax.jit(lambda p, x: case.ours(nnx.merge(graph, traverse_util.unflatten_dict(p, sep="/")), x))
    found = {name: np.asarray(x) for name, x in run(params, jnp.asarray(case.inputs)).items()}
    with torch.no_grad():
        narrow = {name: x.numpy() for name, x in case.theirs(case.model, case.inputs).items()}
        wide = {name: x.numpy() for name, x in case.theirs(case.model.double(), case.inputs).items()}
    case.model.float()
    return [_difference(name, found[name], narrow[name], wide[name]) for name in narrow]


def _load(case: Case, folder: str) -> tuple[Any, dict[str, Any]]:
    """Our module's graph and its parameters from the folder; those of the adapter, which no file has, are zero."""
    graph, state = nnx.split(nnx.eval_shape(case.make))
    shapes = {p: x.shape for p, x in traverse_util.flatten_dict(nnx.to_pure_dict(state), sep="/").items()}
    found = load(folder, case.layout, shapes, **case.options)
    assert all(path.startswith("adapter/") for path in shapes.keys() - found.keys()), shapes.keys() - found.keys()
    return graph, {path: jnp.asarray(found.get(path, np.zeros(shape, np.float32))) for path, shape in shapes.items()}


def _difference(output: str, ours: np.ndarray, narrow: np.ndarray, wide: np.ndarray) -> Difference:
    assert ours.shape == narrow.shape == wide.shape
    assert ours.dtype == narrow.dtype == np.float32
    assert wide.dtype == np.float64

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(np.float64) - b).max())

    largest = float(np.abs(wide).max())
    return Difference(output, ours.shape, largest, apart(ours, narrow), apart(ours, wide), apart(narrow, wide))


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Moves biases and norms off zero and one, where a mistake in them would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                x.copy_(0.5 + torch.rand(x.shape, generator=generator))
            elif x.ndim == 1 and x.is_floating_point():
                x += 0.1 * torch.randn(x.shape, generator=generator)
    return model.eval()


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)


def _channels_first(x: np.ndarray, model: torch.nn.Module) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).to(next(model.parameters()).dtype)


# ---- The encoders ----------------------------------------------------------------------------------------------------


def vit_case(size: str) -> Case:
    """ViT of transformers; 2 images of 224 x 224 in the base size."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    dims, side = vit.SIZES[size], 224 if size == "base" else 32
    config = ViTConfig(
        hidden_size=dims["width"],
        num_hidden_layers=dims["layers"],
        num_attention_heads=dims["heads"],
        intermediate_size=dims["hidden"],
        patch_size=dims["patch"],
        image_size=side,
        # The default keeps narrow layers close to the identity, which hides mistakes.
        initializer_range=0.02 if size == "base" else 0.2,
    )
    options = {"size": size, "width": dims["width"], "dropout": 0.0}
    return Case(
        model=_shaken(ViTModel(config)),
        make=lambda: vit.VitEncoder((side, side, 3), **options, rngs=nnx.Rngs(params=0)),
        layout=vit.checkpoint_layout(size),
        options=_options(vit, config=vit.checkpoint_config(size)),
        theirs=lambda model, x: {"tokens": model(_channels_first(x, model)).last_hidden_state},
        ours=lambda encoder, x: {"tokens": encoder.encode(x, None)},
        inputs=_pixels(2, side, side),
    )


def t5_case(size: str, gated: bool) -> Case:
    """T5 encoder of transformers; 2 texts, one of them padded."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    dims, length = t5.SIZES[size], 200  # beyond the greatest distance of the position bias
    config = T5Config(
        vocab_size=_VOCABULARY[size],
        d_model=dims["width"],
        d_kv=dims["head_width"],
        d_ff=dims["hidden"],
        num_layers=dims["layers"],
        num_heads=dims["heads"],
        feed_forward_proj="gated-gelu" if gated else "relu",
    )
    ids = np.random.default_rng(0).integers(1, _VOCABULARY[size], (2, length), np.int32)
    ids[1, 150:] = t5.PAD
    valid = ids != t5.PAD

    def theirs(model: torch.nn.Module, x: np.ndarray) -> dict[str, torch.Tensor]:
        mask = torch.from_numpy(valid.astype(np.int64))
        hidden = model(input_ids=torch.from_numpy(x).long(), attention_mask=mask).last_hidden_state
        return {"valid tokens": hidden[torch.from_numpy(valid)]}

    options = {"size": size, "tokens": 2, "width": 8, "gated": gated, "dropout": 0.0}
    return Case(
        model=_shaken(T5EncoderModel(config)),
        make=lambda: t5.T5Encoder(_VOCABULARY[size], **options, rngs=nnx.Rngs(params=0)),
        layout=t5.checkpoint_layout(size, gated),
        options=_options(t5, config=t5.checkpoint_config(size, gated)),
        theirs=theirs,
        ours=lambda encoder, x: {"valid tokens": encoder.encode(x, None)[valid]},
        inputs=ids,
    )


def resnet_case(size: str) -> Case:
    """ResNet of transformers, in a narrow form or as ResNet-50 with 2 images of 224 x 224."""
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    dims = resnet.SIZES["50"] if size == "50" else _NARROW
    with mock.patch.dict(resnet.SIZES, {"narrow": _NARROW}):
        layout = resnet.checkpoint_layout(size)
    side = 224 if size == "50" else 75  # odd sides tell torch's padding from others
    widths = [width * dims.expansion for width in dims.widths]
    config = ResNetConfig(embedding_size=dims.stem_width, hidden_sizes=widths, depths=list(dims.blocks))

    def theirs(model: torch.nn.Module, x: np.ndarray) -> dict[str, torch.Tensor]:
        found = model(_channels_first(x, model))
        return {"feature map": found.last_hidden_state.movedim(1, -1), "pooled": found.pooler_output[:, :, 0, 0]}

    return Case(
        model=_shaken(ResNetModel(config)),
        make=lambda: _residual(dims),
        layout=layout,
        options=_options(resnet),
        theirs=theirs,
        ours=_residual_outputs,
        inputs=_pixels(2, side, side),
    )


def video_case(size: str) -> Case:
    """r3d_18 of torchvision as written out in `tests.reference.torch_r3d`; a volume of 16 x 224 x 224 in full size."""
    from tests.reference.torch_r3d import Resnet3d

    torch.manual_seed(0)
    dims, shape = video_resnet.SIZES[size], (16, 224, 224) if size == "18" else (7, 25, 30)
    model = Resnet3d(dims.stem, dims.stem_strides, dims.stem_width, dims.blocks, dims.widths)

    def theirs(model: torch.nn.Module, x: np.ndarray) -> dict[str, torch.Tensor]:
        found = model(_channels_first(x, model))
        return {"feature map": found.movedim(1, -1), "pooled": found.mean((2, 3, 4))}

    return Case(
        model=_shaken(model),
        make=lambda: _residual(dims),
        layout=video_resnet.checkpoint_layout(size),
        options=_options(video_resnet),
        theirs=theirs,
        ours=_residual_outputs,
        inputs=_pixels(1 if size == "18" else 2, *shape),
    )


def _options(module: Any, **more: Any) -> dict[str, Any]:
    return {"prefixes": module.PREFIXES, "model_types": module.MODEL_TYPES, **more}


def _residual(dims: residual.Dimensions) -> nnx.Module:
    return residual.ResidualEncoder(dims, IMAGENET, tokens=2, width=8, dropout=0.0, rngs=nnx.Rngs(params=0))


def _residual_outputs(encoder: Any, x: jax.Array) -> dict[str, jax.Array]:
    return {"feature map": encoder.trunk(x), "pooled": encoder.encode(x)}


# ---- Other names of the same tensors ---------------------------------------------------------------------------------


def _renamed(tensors: Mapping[str, torch.Tensor], *rules: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Applies all rules, as regular expressions, to every name."""
    return {functools.reduce(lambda n, rule: re.sub(*rule, n), rules, name): x for name, x in tensors.items()}


def vit_before_5(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names that transformers gave ViT's tensors before release 5, below `vit.`, without the pooler."""
    kept = {name: x for name, x in tensors.items() if not name.startswith("pooler.")}
    found = _renamed(
        kept,
        (r"^layers\.", "encoder.layer."),
        (r"attention\.q_proj", "attention.attention.query"),
        (r"attention\.k_proj", "attention.attention.key"),
        (r"attention\.v_proj", "attention.attention.value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
        (r"^", "vit."),
    )
    assert not found.keys() & tensors.keys()
    return found


def resnet_of_torchvision(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's names for the ResNet of transformers."""
    found = _renamed(
        tensors,
        (r"^embedder\.embedder\.convolution", "conv1"),
        (r"^embedder\.embedder\.normalization", "bn1"),
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
        (r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}"),
        (r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}"),
        (r"^encoder\.stages\.(\d)\.layers\.(\d)", lambda m: f"layer{int(m[1]) + 1}.{m[2]}"),
    )
    assert not found.keys() & tensors.keys()
    return found
