"""A finished or adapted run as a folder that jax (with flatbuffers) and numpy can use: program, weights, model card.

    python -m remind_jax.export --workdir=RUN --out=DIR

    --out=DIR   must not exist. It then holds
                  model.jax             the program, for CPU, CUDA and TPU
                  weights.safetensors   its weights
                  load.py               a few lines that open both: `predict = load(folder)`
                  schema.json           inputs and outputs with shapes and types, classes, combinations of training
                  preprocessing.json    how inputs are made from columns: means, categories, vocabularies, tokenizers
                  model_card.md         data, figures with intervals, limits, duties

The probabilities are those of the run's report, its adjustments of the prior included. `model.jax` is read by versions
of jax as `jax.export` promises: those of the next six months at least.
"""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.inference import card, loader
from remind_jax.inference.predictor import Finished, open_finished
from remind_jax.models.model import Params
from remind_jax.ops import hiding
from remind_jax.runtime import files, progress

PLATFORMS = ("cpu", "cuda", "tpu")
_LOADER = pathlib.Path(loader.__file__)


def program(run: Finished) -> Callable[[Params, dict[str, jax.Array]], dict[str, jax.Array]]:
    """A pure function (weights, batch) -> outputs.

    Args:
      run: finished.

    Returns:
      A function of a batch that holds the encoded input of every modality under its name, zeros where it is missing,
      and `present`, bool [b, m]. It gives `probabilities` [b, c], `features` [b, d], and `seen` [b], whether training
      had the combination.
    """
    groups, network = len(run.groups), run.network(len(run.groups))
    offset, scale = run.offset(groups), np.maximum(run.class_fractions, 1e-12) ** run.prior_power

    def predict(params: Params, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        group = hiding.group_of(batch["present"], jnp.asarray(run.groups.masks))
        output = network.apply(params, {**batch, "group": group}, gate=run.stage.eval_gate)
        logits = output.logits.astype(jnp.float32)
        if offset is not None:
            logits = logits + jnp.asarray(offset, jnp.float32)[group]
        adjusted = jax.nn.softmax(logits) / jnp.asarray(scale, jnp.float32)[None]
        probabilities = adjusted / jnp.sum(adjusted, axis=1, keepdims=True)
        return {"probabilities": probabilities, "features": output.features, "seen": group < groups}

    return predict


def inputs(run: Finished, rows: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch of `rows`, a number or a symbol."""
    specs = run.preprocessor.inputs
    batch = {name: jax.ShapeDtypeStruct((rows, *spec.shape), spec.dtype) for name, spec in specs.items()}
    return batch | {"present": jax.ShapeDtypeStruct((rows, len(batch)), np.bool_)}


def lower(run: Finished) -> jax.export.Exported:
    """The program on every platform, for any number of rows or, where it must know it, for `eval.batch_size` rows.

    Raises:
      UserError: predictions of a row depend on the rows beside it, so that there is no such program.
    """
    if run.config.fusion.gate_granularity == "batch" and run.stage.eval_gate == "gated":
        raise UserError("fusion.gate_granularity=batch makes predictions depend on the batch: nothing to export")
    params = {path: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for path, x in run.params.items()}
    export = jax.export.export(jax.jit(program(run)), platforms=PLATFORMS)
    try:
        (rows,) = jax.export.symbolic_shape("b")
        return export(params, inputs(run, rows))
    except Exception:  # JAX and einops say in many ways that they must know a size; sparse experts do, who sort tokens
        return export(params, inputs(run, run.config.eval.batch_size))


def describe(run: Finished) -> dict[str, Any]:
    """The contents of schema.json."""
    shapes = inputs(run, "b")
    width = run.config.model.width
    return {
        "data": run.report["data"],
        "columns": run.schema.to_dict(),
        "classes": list(run.report["classes"]),
        "inputs": [{"name": name, "shape": list(x.shape), "dtype": x.dtype.name} for name, x in shapes.items()],
        "outputs": [
            {"name": "probabilities", "shape": ["b", len(run.report["classes"])], "dtype": "float32"},
            {"name": "features", "shape": ["b", width], "dtype": "float32"},
            {"name": "seen", "shape": ["b"], "dtype": "bool"},
        ],
        "combinations": [
            {"name": name, "train_samples": int(n), "train_patients": int(patients), "tail": bool(tail)}
            for name, n, patients, tail in zip(
                run.groups.names, run.groups.train_counts, run.train_patients, run.groups.tail, strict=True
            )
        ],
    }


def export(run: Finished, out: pathlib.Path) -> None:
    """Writes the folder, at once when all is made.

    Raises:
      UserError: it exists, cannot be written, or the run cannot be exported.
    """
    if out.exists():
        raise UserError(f"{out} exists: choose another folder with --out=DIR, or delete it")
    with progress.make(0, "compiling") as bar:
        bar.say(f"Compiling for {', '.join(PLATFORMS)}")
        exported = lower(run)
    with files.writing(out), files.whole_folder(out) as temporary:
        (temporary / "model.jax").write_bytes(exported.serialize())
        weights = {path: np.array(x, order="C") for path, x in run.params.items()}
        safetensors.numpy.save_file(weights, temporary / "weights.safetensors")
        shutil.copyfile(_LOADER, temporary / "load.py")
        for name, content in (("schema", describe(run)), ("preprocessing", run.preprocessor.to_dict())):
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            (temporary / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        (temporary / "model_card.md").write_text(card.write(run), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    paths, options = cli.parse_runs(arguments, strings={"out": ""}, several=False)
    if not options["out"]:
        raise UserError("nowhere to write: give a folder as --out=DIR")
    out = pathlib.Path(options["out"])
    export(open_finished(paths[0]), out)
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(f"Written: {out}; read {out / 'model_card.md'} before you pass it on")


if __name__ == "__main__":
    cli.run(main, __doc__)
