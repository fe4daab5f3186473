"""Makes a manifest folder out of data in another form, and prints what each column becomes.

    remind import --source=icu.csv.gz --out=DIR --label=died --sample=stay --patient=id
    remind import --from=monai --source=datalist.json --out=DIR

    --from=table      form of the data: table, monai, meds or flex_moe
    --source=PATH     what is read
    --out=DIR         the manifest's folder; files that cells name must lie below it
    --name=NAME       of the data set, else the folder's; --show prints, and writes nothing
    table (.csv, .tsv, also as .gz, .parquet, .xlsx, .xpt):
      --label, --sample, --patient, --split=COLUMN      only --label must be given
      --task=classes    or ordinal, multilabel (--label=A,B,C), regression (--transform=log1p),
                        survival (--label=TIME,EVENT --horizons=30,365)
      --join=labs.csv,notes.csv   tables with at most one row a sample or patient
      --events=table=vitals.csv,key=stay,time=when,code=item,value=value,until=end
                        events of a long table up to a time of the samples; also several times
      --modality=aps=aps_*,labs=lab_*+glucose           columns that patterns match, the first
                                                        takes one; others go by what they hold
      --kind=COLUMN=KIND,…  number, category, text, codes, embedding, image, volume, series, skip
      --attributes=sex,age:40:65                        no inputs; figures by them, and by ranges
      --match=exact     how ids match: exact | number (00017 and 17 are one)
    table, monai:
      --classes=A,B,C   of the label, in order; by default those in the data
      --missing=-999,?  words and numbers that stand for empty cells, next to NA, None, null, …
      --odd-numbers=missing   for >200 or 5-10 among numbers: missing | limit (200, 7.5) | refuse
    monai (a datalist, .json): --label=label, --patient=KEY
    meds (a folder): --labels=PATH, file or folder of the labels
      --modality=labs=LAB//+VITAL//,drugs=MEDICATION//  prefixes of codes; else all are one
      --columns=64, --kind=labs=events      most columns of its table; or all values and times
    flex_moe (the folder of ADNI that Flex-MoE reads)

Columns keep their names, so that predictions join the raw table; DIR/schema.yaml can be edited.
"""

import pathlib

from remind_jax import cli
from remind_jax.data import importers, numerals, targets
from remind_jax.data.importers import keys, table
from remind_jax.data.importers.plan import plan_lines
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import progress


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("remind import --from=FORM --source=PATH --out=DIR …; see --help")
    parser.add_argument("--from", dest="form", default="table")
    for name in ("source", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--task", choices=targets.TASKS, default="classes")
    texts = "name label sample patient split join kind labels modality classes missing transform horizons attributes"
    for name in texts.split():
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--events", action="append", default=[])
    parser.add_argument("--match", choices=keys.MATCHES, default="exact")
    parser.add_argument("--odd-numbers", choices=numerals.ODD, default="missing")
    parser.add_argument("--show", action="store_true")
    parser.add_number("--columns", 64, 1)
    options = parser.parse_args(arguments)
    if options.form not in importers.FORMS:
        hint = did_you_mean(options.form, importers.FORMS)
        raise UserError(f"--from={options.form} is unknown{hint}; known: {', '.join(importers.FORMS)}")
    if options.source is None or options.out is None:
        raise UserError("give what to read as --source=PATH and where to write as --out=DIR")
    if not options.source.exists():
        raise UserError(f"{options.source} does not exist")
    with progress.make(0, "reading") as bar:
        bar.say(f"Reading {options.source}")
        found = importers.read(options)
    if not options.show:
        table.write(found, options.out)
    print("\n".join(plan_lines(found)))
    print("To change it: --modality, --kind, or schema.yaml by hand")
    next_step = f"Written: {options.out}; next: remind check {options.out}"
    print("Nothing is written, as --show says" if options.show else next_step)


if __name__ == "__main__":
    cli.run(main, __doc__)
