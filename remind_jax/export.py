"""A finished or adapted run as a folder that jax and numpy can use: program, weights, model card.

    remind export --workdir=RUN --out=DIR

    --out=DIR   must not exist. It then holds
                  model.jax             the program, for CPU, CUDA and TPU
                  weights.safetensors   its weights
                  load.py               a few lines that open both: `predict = load(folder)`
                  encode.py, inputs.py  make inputs of raw rows: `predict(encode(rows))`
                  schema.json           inputs and outputs with shapes and types, classes,
                                        combinations of training
                  preprocessing.json    how inputs are made from columns: means, categories,
                                        vocabularies, tokenizers
                  example.json          a made-up row, its inputs and probabilities;
                                        `python load.py` checks by it
                  model_card.md         data, figures with intervals, limits, duties

Opening it takes jax with flatbuffers, and numpy. The probabilities are those of the run's report,
its adjustments of the prior included. `model.jax` is read by versions of jax as `jax.export`
promises: those of the next six months at least.
"""

import pathlib

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.inference import model_folder, program


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    paths, options = cli.parse_runs(arguments, strings={"out": ""}, several=False)
    if not options["out"]:
        raise UserError("nowhere to write: give a folder as --out=DIR")
    out = pathlib.Path(options["out"])
    program.write(model_folder.open_model(paths[0]), out)
    for file in sorted(out.iterdir()):
        print(f"{file.stat().st_size:>12,}  {file.name}")
    print(f"Written: {out}; read {out / 'model_card.md'} before you pass it on")


if __name__ == "__main__":
    cli.run(main, __doc__)
