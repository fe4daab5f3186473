"""Published weights as our parameters: safetensors from a file, a folder or the Hugging Face hub, without torch.

An encoder's `checkpoint_layout` says which tensors of a checkpoint make up its parameters; `load` reads them.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from remind_jax.errors import UserError
from remind_jax.runtime import records
from remind_jax.runtime.files import expanded

_SHOWN = 3
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".tar")
_CONVERT = (
    "only safetensors are read; with torch: safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*(/[A-Za-z0-9_-][\w.-]*)?")


def as_is(x: np.ndarray) -> np.ndarray:
    """Returns the array itself, for tensors that a checkpoint holds in our layout."""
    return x


class Tensor(NamedTuple):
    """The place of a parameter in a checkpoint.

    Attributes:
      names: for each layer of a stacked parameter, or once, the names that a file may give its tensor.
      change: function from the file's array of one layer to ours, such as a transposition.
      stacked: whether there is one array a layer, stacked along a new first axis.
      hint: what the user can do where the shape differs.
      padded_to: the file's first axis may be rounded up to a multiple of this; rows beyond ours are left out.
    """

    names: tuple[tuple[str, ...], ...]
    change: Callable[[np.ndarray], np.ndarray] = as_is
    stacked: bool = False
    hint: str = ""
    padded_to: int = 1


def single(
    *names: str, change: Callable[[np.ndarray], np.ndarray] = as_is, hint: str = "", padded_to: int = 1
) -> Tensor:
    """Declares a parameter that is one tensor of the file, under any of `names`; see `Tensor` for the rest."""
    return Tensor((names,), change, False, hint, padded_to)


def stack(layers: int, *patterns: str, change: Callable[[np.ndarray], np.ndarray] = as_is) -> Tensor:
    """Declares a parameter stacked over `layers` tensors; in each pattern `{}` is the number of the layer, from 0."""
    return Tensor(tuple(tuple(p.format(i) for p in patterns) for i in range(layers)), change, True)


def load(
    source: str,
    layout: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    prefixes: Sequence[str] = ("",),
    model_types: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Reads the parameters of one encoder: float32 arrays by path, one for every path of the layout.

    `source` is a .safetensors file, a folder with one or with shards and their index, or the name of a hub repository.
    `layout` has the source of each of our paths, which are relative to the encoder, and `shapes` their shapes;
    `prefixes` are those that all names in the file may have. config.json, if there is one, must name one of
    `model_types`, if there are any, and must not contradict `config`.

    Raises UserError: the weights cannot be found or read, are of another architecture, lack tensors, or have other
    shapes.
    """
    files = _find(source)
    _check_config(source, files[0].parent / "config.json", model_types, config or {})
    missing, wrong, arrays = [], [], {}
    with _open(source, files) as tensors:
        prefix = _prefix(tensors, layout, prefixes)
        for path, tensor in layout.items():
            found = [next((prefix + n for n in names if prefix + n in tensors), None) for names in tensor.names]
            absent = [prefix + names[0] for names, name in zip(tensor.names, found, strict=True) if name is None]
            missing += absent
            if not absent:
                try:
                    arrays[path] = _assemble([tensors[name] for name in found], tensor, tuple(shapes[path]))
                except ValueError as problem:
                    wrong.append(f"{path} {problem}")
    if missing or wrong:
        raise UserError(f"{source}: " + "; ".join([*_some("missing", missing), *_some("not fitting", wrong)]))
    return arrays


def _some(what: str, entries: Sequence[str]) -> list[str]:
    """Returns the first entries and the number of the others, as a list of one sentence; empty without entries."""
    if not entries:
        return []
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return [f"{what}: {', '.join(entries[:_SHOWN])}{more}"]


def _prefix(names: Container[str], layout: Mapping[str, Tensor], prefixes: Sequence[str]) -> str:
    """Returns the prefix under which most tensors of the layout are found; the first one where none is better."""
    wanted = [accepted for tensor in layout.values() for accepted in tensor.names]
    return max(prefixes, key=lambda prefix: sum(any(prefix + n in names for n in accepted) for accepted in wanted))


def _assemble(read: Sequence[Callable[[], np.ndarray]], tensor: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Assembles one parameter; raises ValueError: the arrays do not give its shape, or are no floats."""
    result = np.empty(shape, np.float32)
    for i, get in enumerate(read):
        array = get()
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"is {array.dtype}, not floating-point")
        part = result[i] if tensor.stacked else result
        try:
            changed = tensor.change(array)
        except (ValueError, IndexError):  # such as a transposition of an array with other axes
            changed = array
        if changed.ndim and part.ndim and len(changed) == -(-len(part) // tensor.padded_to) * tensor.padded_to:
            changed = changed[: len(part)]
        if changed.shape != part.shape:
            hint = f" ({tensor.hint})" if tensor.hint else ""
            raise ValueError(f"is {list(changed.shape)}, not {list(part.shape)}{hint}")
        part[...] = changed.astype(np.float32)
    return result


@contextmanager
def _open(source: str, files: Sequence[pathlib.Path]) -> Iterator[dict[str, Callable[[], np.ndarray]]]:
    """Opens all files; returns their tensors by name, each as a function that reads it."""
    from safetensors import SafetensorError, safe_open

    with ExitStack() as opened:
        tensors = {}
        for file in files:
            try:
                handle = opened.enter_context(safe_open(file, framework="np"))
                tensors |= {name: functools.partial(handle.get_tensor, name) for name in handle.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(f"{source}: cannot read {file.name}: {_first_line(error)}") from error
        yield tensors


def _find(source: str) -> list[pathlib.Path]:
    """Finds the safetensors files of a source."""
    if not source:
        raise UserError("pretrained weights: name a .safetensors file, a folder or a hub repository")
    path = expanded(source)
    if path.is_dir():
        return _find_in_folder(source, path)
    if path.suffix in _PICKLED:
        raise UserError(f"{source}: {_CONVERT}")
    if path.is_file():
        return [path]
    if not _HUB_NAME.fullmatch(source) or path.suffix == ".safetensors":
        raise UserError(f"{source}: no such file or folder")
    return _find_in_folder(source, _download(source))


def _find_in_folder(source: str, folder: pathlib.Path) -> list[pathlib.Path]:
    """Finds the files of a folder: all shards of its index, else model.safetensors, else the only safetensors file."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if indices:
        return _shards(source, indices[0])
    if len(files) > 1:
        raise UserError(
            f"{source}: several safetensors files and no index; name one of {', '.join(f.name for f in files)}"
        )
    if not files:
        raise UserError(f"{source}: no safetensors file; {_CONVERT}")
    return files


def _shards(source: str, index: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that an index names, in its folder."""
    weight_map = _json(source, index).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) and weight_map else []
    if not names or any(not isinstance(name, str) or pathlib.PurePath(name).name != name for name in names):
        raise UserError(f"{source}: {index.name} names no files")
    if absent := [name for name in names if not (index.parent / name).is_file()]:
        raise UserError(f"{source}: " + _some("shards missing", absent)[0])
    return [index.parent / name for name in names]


def _download(source: str) -> pathlib.Path:
    """Returns the folder of a hub repository's snapshot, from the local cache if there or HF_HUB_OFFLINE is set."""
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.safetensors.index.json", "config.json"]
    try:
        return pathlib.Path(snapshot_download(source, allow_patterns=wanted))
    except Exception as error:  # the client lets errors of its HTTP library through, which are of no common type
        raise UserError(f"{source}: no such file or folder, and not from the hub: {_first_line(error)}") from error


def _check_config(source: str, path: pathlib.Path, model_types: Sequence[str], config: Mapping[str, Any]) -> None:
    """Compares config.json, where there is one, with `config`, because shapes do not tell all architectures apart."""
    if not path.is_file():
        return
    found = _json(source, path)
    model_type = found.get("model_type")
    if model_types and model_type is not None and model_type not in model_types:
        raise UserError(f"{source}: config.json names the architecture {model_type!r}, not {' or '.join(model_types)}")
    other = [
        f"{key} is {found[key]!r}, not {value!r}" for key, value in config.items() if found.get(key, value) != value
    ]
    if other:
        raise UserError(f"{source}: " + _some("another network in config.json", other)[0])


def _json(source: str, path: pathlib.Path) -> dict[str, Any]:
    # The hub's cache is made of links.
    return records.read(path, {}, f"{source} cannot be used without", below=records.ANYWHERE)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
