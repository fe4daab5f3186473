"""Extreme missingness (REMIND table 5, 7.5): how methods use a modality that most samples have lost.

    remind analyse extreme_missingness --config=nhanes --methods=soft_moe,remind --seeds=0,1,42 \\
        --workdir=DIR

    --modalities=A,B     taken away, each in turn and in runs of its own; all of the data by default
    --rate=0.8           share of the samples that lose it, in training, tuning and held-out samples
    --baseline, --table, --jobs, --resamples, --config.KEY=VALUE    as in remind sweep

Only samples that have all modalities take part. Each modality is a sweep of methods × seeds in a
folder of its own, DIR/<modality>, with its tables; finished runs are kept and the same command goes
on. Writes extreme_missingness.csv (figures of every run), .md (the paper's layout), .png and .svg
under DIR.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, sweeps
from remind_jax.analysis.command import Row
from remind_jax.analysis.sweeps import Sweeps, cell, look
from remind_jax.data import dataset
from remind_jax.errors import UserError, did_you_mean
from remind_jax.studies import entries
from remind_jax.studies.comparison import Outcome, outcome_of
from remind_jax.studies.tables import CLASSES, size_text, spread_text
from remind_jax.tasks.task import Task

NAME = "extreme_missingness"
SAMPLES = ("overall", "available", "absent")
COLUMNS = ("modality", "rate", "method", "seed", "samples", "n")
OWN = dict.fromkeys(("data.hide", "data.complete_only"), "--modalities and --rate")


class Removal(NamedTuple):
    """Modalities that are taken away from a share `rate` of the samples, each in a sweep of its own."""

    sweeps: Sweeps
    modalities: tuple[str, ...]
    rate: float

    def changes(self, modality: str) -> dict[str, Any]:
        """Returns the keys of the config that take a modality away."""
        return {"data.complete_only": True, "data.hide": modality, "data.hide_rate": self.rate}


def parse(arguments: Sequence[str]) -> Removal:
    """Reads the command line; every config is read and the modalities are looked up, so that a mistake costs nothing.

    Raises UserError: for anything that cannot be read, or a modality that the data do not have.
    """
    usage = "remind analyse extreme_missingness --config=NAME --workdir=DIR …; see --help"
    parser = cli.Parser(usage, entries.OPTIONS)
    parser.add_argument("--modalities", default="")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--rate", type=float, default=0.8)
    values, rest = parser.parse_known_args(arguments)
    if not 0 < values.rate < 1:
        raise UserError(f"--rate={values.rate} must be above 0 and below 1")
    asked = tuple(dict.fromkeys(filter(None, values.modalities.split(","))))
    removal = Removal(sweeps.read_sweeps(values.workdir, rest, OWN), asked, values.rate)
    first = asked[0] if asked else ""
    config = removal.sweeps.plan(first, removal.changes(first))[0].config
    return removal._replace(modalities=_modalities(config, asked))


def _modalities(config: Any, asked: Sequence[str]) -> tuple[str, ...]:
    """Checks the modalities to take away, in the order asked for; all in declared order where none is named."""
    there = [modality.name for modality in dataset.read(config).schema.modalities]
    for name in asked:
        if name not in there:
            raise UserError(f"{name!r} is no modality of these data{did_you_mean(name, there)}: {', '.join(there)}")
    if len(there) < 2:
        raise UserError(f"the data have one modality only, {there[0]}, and no sample can be without it")
    return tuple(asked or there)


def run_sweeps(removal: Removal) -> list[str]:
    """Runs one sweep after the other; returns what failed, which does not stop the others."""
    failed = []
    for number, modality in enumerate(removal.modalities, start=1):
        print(f"== {modality} taken from {removal.rate:.0%} of the samples ({number} of {len(removal.modalities)})")
        failed.append(removal.sweeps.run(modality, removal.changes(modality)))
    return [*filter(None, failed)]


def collect(removal: Removal) -> tuple[list[Row], dict[str, list[Outcome]]]:
    """Collects the rows of the table, and the finished runs of each modality."""
    rows, found = [], {}
    for modality in removal.modalities:
        planned = removal.sweeps.plan(modality, removal.changes(modality))
        found[modality] = [outcome_of(entry) for entry in planned if entry.finished]
        for run in found[modality]:
            rows += [{"modality": modality, "rate": removal.rate, **row} for row in figures_of(run, modality)]
    return rows, found


def figures_of(run: Outcome, modality: str) -> list[Row]:
    """Computes figures of held-out samples: all, those that kept the modality, and those that lost it."""
    has = np.array([modality in group.split("+") for group in run.samples.groups], bool)
    return [
        {"method": run.method, "seed": run.seed, "samples": name, **run.figures(chosen)}
        for name, chosen in zip(SAMPLES, (np.ones_like(has), has, ~has), strict=True)
    ]


def gain(
    rows: Sequence[Row], modality: str, method: str, baseline: str, samples: str, figure: str, factor: float = 100
) -> float | None:
    """Computes the mean difference to the baseline over the seeds that both have, in points or times a factor."""
    key = (modality, samples)
    by_seed: dict[str, dict[int, float]] = {method: {}, baseline: {}}
    for row in rows:
        known = (row["modality"], row["samples"]) == key and row[figure] is not None
        if known and row["method"] in by_seed:
            by_seed[row["method"]][row["seed"]] = factor * row[figure]
    both = by_seed[method].keys() & by_seed[baseline].keys()
    return float(np.mean([by_seed[method][s] - by_seed[baseline][s] for s in both])) if both else None


def markdown(rows: Sequence[Row], rate: float, data: str, task: Task = CLASSES) -> str:
    """Writes the paper's table, one for each figure, with differences to soft_moe or else the first method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    baseline = "soft_moe" if "soft_moe" in methods else methods[0]
    parts = [f"# Extreme missingness: {data}", ""]
    parts += [f"Each modality in turn taken from {rate:.0%} of the samples, in training and held-out alike.", ""]
    for figure, title in task.compared.items():
        lines = []
        for modality in dict.fromkeys(row["modality"] for row in rows):
            cells = [modality, *(_sizes(rows, modality, samples) for samples in SAMPLES[1:])]
            for method in methods:
                for samples in SAMPLES:
                    key, digits = (modality, method, baseline, samples, figure, task.factor), task.digits
                    more = gain(rows, *key) if method != baseline else None
                    found = cell(rows, figure, task, modality=modality, method=method, samples=samples)
                    text = spread_text(found, digits=digits)
                    cells.append(text if more is None else f"{text} ({round(more, digits) + 0.0:+.{digits}f})")
            lines.append(cells)
        names = [f"{method}, {samples}" for method in methods for samples in SAMPLES]
        parts += [
            f"## {title} ({task.unit.removeprefix('in ')})",
            "",
            *sweeps.table(["modality", "n available", "n absent", *names], lines),
        ]
    points = ", in points" if task.factor == 100 else ""
    parts.append(f"Mean ± standard deviation over seeds; in brackets the mean difference to {baseline}{points}.")
    parts.append("The tables of each modality's folder have differences with intervals (patient bootstrap).")
    return "\n".join(parts) + "\n"


def _sizes(rows: Sequence[Row], modality: str, samples: str) -> str:
    """Writes how many held-out samples a seed has."""
    by_seed = {r["seed"]: r["n"] for r in rows if (r["modality"], r["samples"]) == (modality, samples)}
    return size_text(tuple(by_seed.values()))


def draw(rows: Sequence[Row], rate: float, data: str, task: Task = CLASSES) -> "command.Figure":
    """Draws a panel a modality: overall, available and absent from top to bottom, a mark a method."""
    figure = next(iter(task.compared))
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = min(4, len(modalities))
    lines = -(-len(modalities) // columns)
    height = 1.3 + lines * (0.9 + 0.24 * len(methods))
    picture = command.new_figure(max(4.4, 1.6 + 2.1 * columns), height)
    axes = picture.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, modality in zip(axes.flat, modalities, strict=False):
        draw_panel(axis, rows, modality, methods, figure, task)
    for i, axis in enumerate(axes.flat):
        if i >= len(modalities):
            axis.set_axis_off()
        elif i + columns >= len(modalities):  # nothing below it
            axis.tick_params(labelbottom=True)
    command.name_marks(picture, methods, map(look, range(len(methods))))
    picture.suptitle(f"Each modality in turn taken from {rate:.0%} of samples\n", fontsize=10.5)
    seeds = len({row["seed"] for row in rows})
    bars = f"Large marks: mean of {seeds} seeds, small ones: seeds." if seeds > 1 else "One seed."
    note = f"{sweeps.axis_title(figure, task)}, of held-out samples.\n{bars}\n{data}"
    picture.supxlabel(note, fontsize=8, color=command.QUIET)
    return picture


def draw_panel(
    axis: "command.Axes", rows: Sequence[Row], modality: str, methods: Sequence[str], figure: str, task: Task
) -> None:
    """Draws one modality."""
    for i, method in enumerate(methods):
        colour, shape = look(i)
        for j, samples in enumerate(SAMPLES):
            y = place(i, j, len(methods))
            key = (modality, method, samples)
            single = [row[figure] for row in rows if (row["modality"], row["method"], row["samples"]) == key]
            values = [task.factor * value for value in single if value is not None]
            if not values:
                continue
            axis.scatter(values, [y] * len(values), s=9, color=colour, marker=shape, alpha=0.45, linewidths=0)
            axis.scatter([np.mean(values)], [y], s=46, color=colour, marker=shape, edgecolors="white", linewidths=0.6)
    axis.set_title(modality, fontsize=9.5, fontweight="bold")
    axis.set_yticks([-j for j in range(len(SAMPLES))], SAMPLES)
    axis.set_ylim(-len(SAMPLES) + 0.5, 0.5)
    axis.tick_params(axis="y", length=0)
    for j in range(1, len(SAMPLES)):
        axis.axhline(0.5 - j, color="#dddddd", lw=0.8)
    axis.grid(axis="x", color="#e6e6e6", lw=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)


def place(method: int, samples: int, count: int) -> float:
    """Returns the height of a method's marks within the band of its samples."""
    return -samples + (0.6 * ((count - 1) / 2 - method) / max(count - 1, 1) if count > 1 else 0.0)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    removal = parse(arguments)
    failed = run_sweeps(removal)
    rows, runs = collect(removal)
    if not rows:
        raise UserError(f"no run finished: {'; '.join(failed)}")
    first = next(run for found in runs.values() for run in found)
    about = removal.rate, _title(first), first.task
    text, columns = markdown(rows, *about), (*COLUMNS, *first.task.compared)
    sweeps.write(removal.sweeps.workdir / NAME, columns, rows, text, lambda: draw(rows, *about))
    if failed:
        raise UserError("; ".join(failed))


def _title(first: Outcome) -> str:
    """Names the data without what was taken away."""
    return first.report["data"].partition(", samples with all modalities")[0] + ", samples with all modalities"


if __name__ == "__main__":
    cli.run(main, __doc__)
