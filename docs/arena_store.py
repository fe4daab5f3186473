"""docs/arena.md: the page of an arena, kept in the repository with its drawings and every run.

python -m docs.arena_store --store=DIR     copies them from the workdir of an arena

--docs=docs          the folder of the documentation
"""

import pathlib
from collections.abc import Sequence

from remind_jax import cli
from remind_jax.errors import UserError
from remind_jax.runtime import files

KEPT = "results/arena/arena.csv"


def store(arena: pathlib.Path, docs: pathlib.Path) -> None:
    """Copies an arena's page, drawings and rows. Raises UserError: one of them is missing."""
    there = {name: arena / name for name in ("arena.csv", "arena.md", "cost.svg", "ranks.svg")}
    if missing := [name for name, path in there.items() if not path.is_file()]:
        raise UserError(f"{arena} is no finished arena: it has no {', '.join(missing)}")
    content = {name: path.read_bytes() for name, path in there.items()}
    content["arena.md"] = content["arena.md"].replace(b"(arena.csv)", f"({KEPT})".encode())
    (docs / KEPT).parent.mkdir(parents=True, exist_ok=True)
    for name, one in content.items():
        files.write_bytes(docs / (KEPT if name == "arena.csv" else name), one)


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("python -m docs.arena_store --store=DIR [--docs=docs]")
    parser.add_argument("--store", required=True)
    parser.add_argument("--docs", default="docs")
    values = parser.parse_args(arguments)
    store(pathlib.Path(values.store), pathlib.Path(values.docs))
    print(f"Written: {pathlib.Path(values.docs) / 'arena.md'}")


if __name__ == "__main__":
    cli.run(main, __doc__)
