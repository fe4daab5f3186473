"""Makes a manifest folder out of data in another form, and prints what each column becomes.

    remind import --source=icu.csv.gz --out=DIR --label=died --sample=stay --patient=id
    remind import --from=monai --source=datalist.json --out=DIR

    --from=table      form of the data: table, monai, meds or flex_moe
    --source=PATH     what is read
    --out=DIR         the manifest's folder; files that cells name must lie below it
    --name=NAME       of the data set; by default the folder's
    table (.csv, .tsv, also as .gz, .parquet, .xlsx, .xpt):
      --label, --sample, --patient, --split=COLUMN      only --label must be given
      --join=labs.csv,notes.csv                         tables with at most one row a sample or
                                                        patient
      --modality=aps=aps_*,labs=lab_*+glucose           modalities of the columns that patterns
                                                        match; the first takes a column, the
                                                        others are sorted by what they hold
      --kind=COLUMN=KIND,…                              number, category, text, codes, embedding,
                                                        image, volume, skip
    monai (a datalist, .json):
      --label=label, --patient=KEY
    meds (a folder):
      --labels=PATH     file or folder of the labels
      --modality=labs=LAB//+VITAL//,drugs=MEDICATION//  prefixes of codes; by default one modality
                                                        of all
      --columns=64      most columns of a modality's table
    flex_moe (the folder of ADNI that Flex-MoE reads)

Columns keep their names, so that predictions join the raw table. What was guessed stands in
DIR/schema.yaml, which can be edited.
"""

import pathlib

from remind_jax import cli
from remind_jax.data import importers
from remind_jax.data.importers import table
from remind_jax.data.importers.plan import plan_lines
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import progress


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("remind import --from=FORM --source=PATH --out=DIR …; see --help")
    parser.add_argument("--from", dest="form", default="table")
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    for name in ("name", "label", "sample", "patient", "split", "join", "kind", "labels", "modality"):
        parser.add_argument(f"--{name}", default="")
    parser.add_number("--columns", 64, 1)
    options = parser.parse_args(arguments)
    known = ", ".join(importers.FORMS)
    if options.form not in importers.FORMS:
        raise UserError(
            f"--from={options.form} is unknown{did_you_mean(options.form, importers.FORMS)}; known: {known}"
        )
    if options.source is None or options.out is None:
        raise UserError("give what to read as --source=PATH and where to write as --out=DIR")
    if not options.source.exists():
        raise UserError(f"{options.source} does not exist")
    with progress.make(0, "reading") as bar:
        bar.say(f"Reading {options.source}")
        found = importers.read(options)
    table.write(found, options.out)
    print("\n".join(plan_lines(found)))
    print("To change it: --modality, --kind, or schema.yaml by hand")
    print(f"Written: {options.out}; next: remind check {options.out}")


if __name__ == "__main__":
    cli.run(main, __doc__)
