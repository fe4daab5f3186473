"""What the analyses that train share: sweeps that differ in a few keys, cells over seeds, marks of methods, files."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from remind_jax import cli
from remind_jax.analysis import command
from remind_jax.analysis.command import Row
from remind_jax.errors import UserError
from remind_jax.runtime import files
from remind_jax.studies import entries, runner
from remind_jax.studies.comparison import Spread, spread
from remind_jax.studies.results import scaled
from remind_jax.studies.tables import CLASSES, line
from remind_jax.tasks.task import Task

# Okabe and Ito's colours, each with a shape of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#000000", "P"))


class Sweeps(NamedTuple):
    """Sweeps of the same methods and seeds, each in a folder of its own under `workdir`.

    `arguments`, of the command line, say what is run, for the records, and `setup` is what they say.
    """

    arguments: Sequence[str]
    setup: entries.Setup
    workdir: pathlib.Path

    def plan(self, name: str, changes: Mapping[str, Any]) -> list[entries.Entry]:
        """Plans the runs of the sweep in the folder `name`, whose configs have these keys changed."""
        return self.setup.plan(self.workdir / name, changes)

    def run(self, name: str, changes: Mapping[str, Any]) -> str:
        """Runs a sweep; returns what failed, or nothing."""
        folder = self.workdir / name
        told = [*self.arguments, *(f"--config.{key}={value}" for key, value in changes.items()), f"--workdir={folder}"]
        try:
            runner.run(self.plan(name, changes), folder, self.setup.options, told)
        except UserError as error:
            return f"{name}: {error}"
        return ""


def read_sweeps(workdir: str, arguments: Sequence[str], own: Mapping[str, str]) -> Sweeps:
    """Reads what an analysis trains, in its `workdir`, from the arguments that it does not read itself.

    `own` has the keys of the config that it sets, and what the user sets in their place.

    Raises UserError: for anything that cannot be read.
    """
    if not workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    for argument in arguments:
        for key, instead in own.items():
            if argument.startswith(f"--config.{key}"):
                raise UserError(f"{argument.partition('=')[0]} is set by this study: use {instead}")
    parser = cli.Parser("--config=FILE --workdir=DIR …; see --help")
    entries.add_options(parser)
    values, rest = parser.parse_known_args(arguments)
    return Sweeps(arguments, entries.read_setup(values, rest), pathlib.Path(workdir))


def cell(rows: Sequence[Row], figure: str, task: Task = CLASSES, **key: Any) -> Spread | None:
    """Averages a figure, in the unit of the task's tables, over the rows with these values; None without any."""
    values = [row[figure] for row in rows if all(row[name] == value for name, value in key.items())]
    return spread(scaled(value, task) for value in values)


def axis_title(figure: str, task: Task) -> str:
    """Names a figure and what it is in."""
    return task.compared[figure] + (", percent" if task.factor == 100 else "")


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Writes the lines of a table in Markdown whose first column is text and whose others are numbers."""
    return [line(names), line(["---", *["---:"] * (len(names) - 1)]), *(line(row) for row in rows), ""]


def look(number: int) -> tuple[str, str]:
    """Returns colour and marker of the method with this number."""
    return LOOKS[number % len(LOOKS)]


def write(
    stem: pathlib.Path, columns: Sequence[str], rows: Sequence[Row], text: str, draw: Callable[[], "command.Figure"]
) -> None:
    """Writes a study's rows as CSV, its tables as Markdown and its figure as PNG and SVG, and prints the tables."""
    command.write_csv(stem.with_suffix(".csv"), columns, rows)
    files.write_text(stem.with_suffix(".md"), text)
    command.write_figure(stem, draw)
    print(text)
    print(f"Written: {stem}.csv, .md, .png, .svg")
