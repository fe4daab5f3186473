"""Makes a manifest folder out of data in another form.

    python -m remind_jax.import_data --from=table --source=samples.csv --out=DIR --label=died --sample=stay --patient=id
    python -m remind_jax.import_data --from=monai --source=datalist.json --out=DIR
    python -m remind_jax.import_data --from=meds --source=COHORT --labels=LABELS --out=DIR
    python -m remind_jax.import_data --from=flex_moe --source=data/adni --out=DIR

    --out=DIR         the manifest's folder; files that cells name must lie below it
    --name=NAME       of the data set; by default the folder's
    table (.csv, .parquet):
      --label, --sample, --patient, --split=COLUMN      only --label must be given
      --join=labs.csv,notes.csv                         tables with at most one row a sample or patient
      --kind=COLUMN=KIND,…                              number, category, text, codes, embedding, image, volume, skip
    monai:
      --label=label, --patient=KEY
    meds:
      --labels=PATH     file or folder of the labels
      --modality=labs=LAB//+VITAL//,drugs=MEDICATION//  prefixes of codes; by default one modality of all
      --columns=64      most columns of a modality's table

What was guessed stands in schema.yaml, which can be edited.
"""

import argparse
import os
import pathlib

from remind_jax import cli
from remind_jax.data.importers import flex_moe, meds, monai, table
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import progress

FORMS = ("table", "monai", "meds", "flex_moe")


def pairs(text: str, option: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping. Raises UserError for anything else."""
    found = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals or not key or not value or key in found:
            raise UserError(f"{option}: {item!r} must be NAME=VALUE, each name once")
        found[key] = value
    return found


def below(out: pathlib.Path, folder: pathlib.Path) -> str:
    """The path from the manifest's folder down to another one, to be put before paths; empty when they are the same."""
    relative = os.path.relpath(folder.resolve(), out.resolve())
    return "" if relative == "." else f"{pathlib.PurePath(relative).as_posix()}/"


def _read(options: argparse.Namespace, name: str, prefix: str) -> table.Imported:
    if options.form == "table":
        return table.read(
            options.source,
            [pathlib.Path(path) for path in filter(None, options.join.split(","))],
            name=name,
            label=options.label,
            sample=options.sample,
            patient=options.patient,
            split=options.split,
            kinds=pairs(options.kind, "--kind"),
            prefix=prefix,
        )
    if options.form == "monai":
        label = options.label or "label"
        return monai.read(options.source, name=name, patient=options.patient, label=label, prefix=prefix)
    if options.form == "meds":
        parts = {key: value.split("+") for key, value in pairs(options.modality, "--modality").items()}
        return meds.read(options.source, options.labels, name=name, modalities=parts, columns=options.columns)
    return flex_moe.from_flex_moe(options.source, options.out, name=name)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("python -m remind_jax.import_data --from=FORM --source=PATH --out=DIR …; see --help")
    parser.add_argument("--from", dest="form", default="")
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    for name in ("name", "label", "sample", "patient", "split", "join", "kind", "labels", "modality"):
        parser.add_argument(f"--{name}", default="")
    parser.add_number("--columns", 64, 1)
    options = parser.parse_args(arguments)
    if options.form not in FORMS:
        raise UserError(
            f"--from={options.form} is unknown{did_you_mean(options.form, FORMS)}; known: {', '.join(FORMS)}"
        )
    if options.source is None or options.out is None:
        raise UserError("give what to read as --source=PATH and where to write as --out=DIR")
    if not options.source.exists():
        raise UserError(f"{options.source} does not exist")
    name = options.name or options.out.resolve().name
    prefix = below(options.out, options.source.parent)
    with progress.make(0, "reading") as bar:
        bar.say(f"Reading {options.source}")
        found = _read(options, name, prefix)
    paths = table.path_columns(found.table, found.schema["modalities"])
    if prefix.startswith("..") and options.form in ("table", "monai") and paths:
        raise UserError(f"{options.out} does not hold the files that cells name: give --out={options.source.parent}")
    table.write(found, options.out)
    for note in found.notes:
        print(f"note: {note}")
    modalities = ", ".join(f"{key} ({entry['kind']})" for key, entry in found.schema["modalities"].items())
    print(f"{found.table.height} samples, {found.table['patient_id'].n_unique()} patients; modalities: {modalities}")
    print(f"Written: {options.out}; look at schema.yaml, then: python -m remind_jax.check_data {options.out}")


if __name__ == "__main__":
    cli.run(main, __doc__)
