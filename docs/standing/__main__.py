"""docs/results.md: the figures of finished sweeps that are kept in the repository, and what follows from them in words.

    python -m docs.standing --store=DIR --name=nhanes   copies a finished sweep to docs/results/nhanes
    python -m docs.standing                             writes docs/results.md from docs/results/*

    --docs=docs          the folder of both

A stored sweep is its runs.csv, groups.csv, differences.csv and sweep.json. A reading.md that is put beside them is
included: its first line is the heading, the rest follows the tables.
"""

import json
import pathlib
import re
from collections.abc import Sequence

from docs.standing import claims, text
from docs.standing.study import FILES, Study, read_study, read_table
from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.runtime import files

ORDER = ("nhanes", "nhanes10", "support2", "heart", "gbsg2", "phenomenon", "mimic")  # others follow by name


def store(sweep: pathlib.Path, name: str, docs: pathlib.Path) -> pathlib.Path:
    """Copies the tables and the record of a finished sweep; a reading.md that is there stays.

    Args:
      sweep: its workdir.
      name: of the folder under `docs`/results.
      docs: folder of the documentation.

    Returns:
      The folder written.

    Raises:
      UserError: the name cannot be a folder's, or the sweep is not finished.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise UserError(f"name={name} is no name for stored results: use small letters, digits, - and _")
    _check_finished(sweep)
    folder = docs / "results" / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        files.write_bytes(folder / file, (sweep / file).read_bytes())
    return folder


def _check_finished(sweep: pathlib.Path) -> None:
    missing = [file for file in FILES if not (sweep / file).is_file()]
    if missing:
        raise UserError(f"{sweep} is no finished sweep: it has no {', '.join(missing)}")
    record = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    planned = {f"{method} seed {seed}" for method in record["methods"] for seed in record["seeds"]}
    there = {f"{row['method']} seed {row['seed']}" for row in read_table(sweep / "runs.csv")}
    absent = sorted(planned - there - set(record["failed"]))
    if record["seconds"]["tabulating"] is None or absent:
        such = f", such as {absent[0]}" if absent else ""
        raise UserError(f"{sweep} is no finished sweep: its tables lack {len(absent)} runs{such}; run the sweep again")


def read_studies(docs: pathlib.Path) -> list[Study]:
    """Reads the stored sweeps under `docs`/results, in the order of `ORDER`, then by name."""
    folders = [file.parent for file in (docs / "results").glob("*/sweep.json")]
    rank = {name: i for i, name in enumerate(ORDER)}
    return [read_study(folder) for folder in sorted(folders, key=lambda f: (rank.get(f.name, len(rank)), f.name))]


def page(docs: pathlib.Path) -> str:
    """Makes the text of results.md; the same stored files give the same text.

    Raises:
      UserError: nothing is stored.
    """
    studies = read_studies(docs)
    if not studies:
        raise UserError(f"no sweep is stored under {docs / 'results'}: store one with --store=DIR --name=NAME")
    return text.page(studies, claims.table(studies, docs / "results"))


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("python -m docs.standing [--store=DIR --name=NAME] [--docs=docs]")
    for name, default in {"store": "", "name": "", "docs": "docs"}.items():
        parser.add_argument(f"--{name}", default=default)
    values = parser.parse_args(arguments)
    if bool(values.store) != bool(values.name):
        raise UserError("a sweep is stored with both --store=DIR and --name=NAME")
    docs = pathlib.Path(values.docs)
    if values.store:
        print(f"Stored: {store(pathlib.Path(values.store), values.name, docs)}")
        return
    file = docs / "results.md"
    files.write_text(file, page(docs))
    print(f"Written: {file}")


if __name__ == "__main__":
    cli.run(main, __doc__)
