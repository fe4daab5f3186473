"""Exports a trained model as a program and weights that need only jax, numpy and flatbuffers."""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from remind_jax.data import inputs as arrays
from remind_jax.errors import UserError
from remind_jax.evaluation import conformal
from remind_jax.inference import card, encoder, loader
from remind_jax.inference.predictor import Predictor
from remind_jax.models.model import Params
from remind_jax.ops import hiding
from remind_jax.runtime import files, progress

PLATFORMS = ("cpu", "cuda", "tpu")
_COPIED = {"load.py": loader, "encode.py": encoder, "inputs.py": arrays}
_IMPORT = "from remind_jax.data import inputs\n"  # of `encoder`; the copies lie side by side


def program(model: Predictor) -> Callable[[Params, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Returns a model as a pure function (weights, batch) -> outputs.

    A batch holds the encoded input of every modality under its name, zeros where it is missing, and `present`, bool
    [b, m]. The outputs are predictions [b, p] under the name `Task.made`, such as `probabilities`, `features` [b, d],
    `seen` [b], whether training had the combination, and sets of answers as `Task.inside` makes them, if there are any.
    """
    groups, masks = len(model.groups), jnp.asarray(model.groups.masks)
    offset, scale = jnp.asarray(model.offset), jnp.asarray(model.scale)
    baseline = jnp.asarray([model.task.baseline], jnp.float32)  # of a row without any modality
    sets, at = _thresholds(model) if model.sets else (None, None)

    def predict(params: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        group = hiding.group_of(batch["present"], masks)
        output = model.network.apply(params, {**batch, "group": group}, gate=model.gate)
        predictions = model.task.predictions(output.logits.astype(jnp.float32) + offset[group], scale)
        some = jnp.any(batch["present"], axis=1, keepdims=True)
        predictions = jnp.where(some, predictions, baseline)
        found = {model.task.made: predictions, "features": output.features, "seen": group < groups}
        if model.sets:
            found |= model.task.inside(predictions, at[hiding.group_of(batch["present"], sets)])
        return found

    return predict


def _thresholds(model: Predictor) -> tuple[jax.Array, jax.Array]:
    """Returns the combinations that have thresholds of sets, bool [k, m], and these, [k + 1] or [k + 1, l].

    The last ones are those of all other combinations.
    """
    known, names = list(dict.fromkeys(name for one in model.sets for name in one.groups)), model.groups.modalities
    masks = np.array([[m in name.split("+") for m in names] for name in known], bool).reshape(-1, len(names))
    return jnp.asarray(masks), jnp.asarray(conformal.thresholds(model.sets, [*known, ""]), jnp.float32)


def inputs(model: Predictor, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and types of a batch of `rows`, a number or a symbol."""
    specs = model.preprocessor.inputs
    batch = {name: jax.ShapeDtypeStruct((rows, *spec.shape), spec.dtype) for name, spec in specs.items()}
    return batch | {"present": jax.ShapeDtypeStruct((rows, len(batch)), np.bool_)}


def lower(model: Predictor) -> jax.export.Exported:
    """Compiles the program for every platform, for any number of rows or, if it needs one, for `eval.batch_size` rows.

    Raises UserError: predictions of a row depend on other rows of its batch.
    """
    if model.looks_at_batches:
        raise UserError("fusion.gate_granularity=batch makes predictions depend on the batch: nothing to export")
    params = {path: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for path, x in model.params.items()}
    export = jax.export.export(jax.jit(program(model)), platforms=PLATFORMS)
    try:
        (rows,) = jax.export.symbolic_shape("b")
        return export(params, inputs(model, rows))
    except Exception:  # JAX and einops raise many errors when they need a size, as for experts that sort tokens
        return export(params, inputs(model, model.config.eval.batch_size))


def describe(model: Predictor) -> dict[str, Any]:
    """Returns the contents of schema.json."""
    shapes = inputs(model, "b")
    width = model.config.model.width
    return {
        "data": model.title,
        "columns": model.schema.to_dict(),
        "classes": list(model.classes),
        "task": {**model.task.to_dict(), "predictions": model.task.names},
        "inputs": [{"name": name, "shape": list(x.shape), "dtype": x.dtype.name} for name, x in shapes.items()],
        "outputs": [
            {"name": model.task.made, "shape": ["b", len(model.task.names)], "dtype": "float32"},
            {"name": "features", "shape": ["b", width], "dtype": "float32"},
            {"name": "seen", "shape": ["b"], "dtype": "bool"},
            *_outputs_of_sets(model),
        ],
        "combinations": [
            {"name": name, "train_samples": int(n), "train_patients": int(patients), "tail": bool(tail)}
            for name, n, patients, tail in zip(
                model.groups.names, model.groups.train_counts, model.train_patients, model.groups.tail, strict=True
            )
        ],
    }


def _outputs_of_sets(model: Predictor) -> list[dict[str, Any]]:
    """Describes the sets of answers, of which `level` should hold the truth; of several labels no and yes."""
    if not model.sets:
        return []
    rows, at = jnp.zeros((1, len(model.task.names))), jnp.asarray(conformal.thresholds(model.sets, [""]))
    found = model.task.inside(rows, at)
    level = {"level": model.sets[0].level}
    return [{"name": k, "shape": ["b", *x.shape[1:]], "dtype": x.dtype.name, **level} for k, x in found.items()]


def write(model: Predictor, out: pathlib.Path) -> None:
    """Writes the folder of an exported model, whole or not at all.

    Raises UserError: the folder exists or cannot be written, or the run cannot be exported.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out=DIR, or delete it")
    with progress.make(0, "compiling") as bar:
        bar.say(f"Compiling for {', '.join(PLATFORMS)}")
        exported = lower(model)
    weights = {path: np.array(x, order="C") for path, x in model.params.items()}
    contents = {"model.jax": bytes(exported.serialize()), "weights.safetensors": safetensors.numpy.save(weights)}
    for name, module in _COPIED.items():
        text = pathlib.Path(module.__file__).read_text(encoding="utf-8")
        contents[name] = text.replace(_IMPORT, "import inputs\n").encode("utf-8")
    contents |= {
        "schema.json": _json(describe(model)),
        "preprocessing.json": _json(model.preprocessor.to_dict()),
        "example.json": _json(_example(model)),
        "model_card.md": card.render(model).encode("utf-8"),
    }
    files.write_folder(out, contents)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _example(model: Predictor) -> dict[str, Any]:
    """Returns example.json: a made-up row, which is no patient's, and what it becomes."""
    cells = {}
    for modality in model.schema.modalities:
        cells |= model.preprocessor.fitted[modality.name].example(modality)
    if not cells:
        return {}
    fitted = encoder.fitted_of(model.preprocessor.to_dict())
    batch = encoder.encoded([encoder.row_of(cells)], describe(model), fitted)
    found = jax.jit(program(model))(model.params, batch)[model.task.made]
    return {"row": cells, "inputs": encoder.shown(batch), model.task.made: np.asarray(found, np.float64)[0].tolist()}
