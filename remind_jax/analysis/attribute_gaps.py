"""Tells how much of a gap between people missing modalities explain, by a swap of what is missing.

    remind analyse attribute_gaps --workdir=RUN [--draws=5]

    --draws=5    swaps that are averaged
    --seed=0     seed of the swaps and of the bootstrap

For each value of the run's attributes next to the most frequent one (schema.yaml, attributes). In a
swap each held-out sample keeps those of its modalities that a sample drawn from the other side has,
too: then both sides have the same combinations as often, and a gap that is left is not theirs.
What a swap takes away is explained by missingness here, for this model; it says nothing of what
caused it. Intervals and p are of patients drawn together, p corrected by Holm over the gaps of a
figure. Writes attribute_gaps.csv, .png and .svg under RUN/analysis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import GRID, INK, QUIET, Row
from remind_jax.analysis.opening import Run
from remind_jax.data import attributes
from remind_jax.errors import UserError
from remind_jax.evaluation import differences, fairness, intervals
from remind_jax.evaluation.page import value_text
from remind_jax.runtime import progress
from remind_jax.studies.tables import signed
from remind_jax.tasks.task import Task

NAME = "attribute_gaps"
SPLIT = "held_out"
PARTS = ("gap", "left", "explained")
COLUMNS = (
    *("run", "method", "seed", "attribute", "value", "against", "figure", "n", "n_against"),
    *(f"{part}{end}" for part in PARTS for end in ("", "_low", "_high")),
    *("p", "p_holm"),
)


class Sides(NamedTuple):
    """Two sides of an attribute: its name, their values, and their samples, positions int [k]."""

    attribute: str
    value: str | None
    against: str | None
    here: np.ndarray
    there: np.ndarray


def sides_of(run: Run) -> list[Sides]:
    """Returns each value of each attribute next to the most frequent one. Raises UserError: there are no attributes."""
    schema, table = run.data.manifest.schema, run.data.manifest.table[run.data.rows(SPLIT)]
    if not schema.attributes:
        raise UserError(f"the data of {run.path} name no attributes: see attributes in docs/own_data.md")
    found = []
    for each in schema.attributes:
        every = fairness.values_of({each.name: attributes.values(each, table)})
        most = fairness.most_frequent(every)
        rest = [one for one in every if one is not most]
        found += [Sides(each.name, v, most[1], np.flatnonzero(x), np.flatnonzero(most[2])) for _, v, x in rest]
    return found


def swapped(presence: np.ndarray, sides: Sides, rng: np.random.Generator) -> np.ndarray:
    """Returns what samples of both sides keep, those of `here` first, bool [k + l, m] of presence [n, m]."""
    here, there = presence[sides.here], presence[sides.there]
    lent, borrowed = rng.integers(0, len(there), len(here)), rng.integers(0, len(here), len(there))
    return np.concatenate([here & there[lent], there & here[borrowed]])


def gaps(run: Run, sides: Sides, draws: int, seed: int) -> list[Row]:
    """Returns a row for each figure by which runs are compared: the gap, what swaps leave of it, and the difference."""
    store, presence = run.data.stores[SPLIT], run.data.manifest.presence[run.data.rows(SPLIT)]
    at = np.concatenate([sides.here, sides.there])
    labels, rng = run.data.manifest.labels[run.data.rows(SPLIT)][at], np.random.default_rng(seed)
    masks = [presence[at], *(swapped(presence, sides, rng) for _ in range(draws))]
    of = [run.task.weighed(labels, run.model.predict_parts(store, at, mask)) for mask in masks]
    table = run.data.manifest.table[run.data.rows(SPLIT)]
    patients, names = table[run.data.manifest.schema.patient_id].to_numpy()[at], list(run.task.compared)
    split = np.arange(len(at)) < len(sides.here)

    def apart(weights: np.ndarray, gamma: intervals.Gamma | None = None) -> dict[str, np.ndarray]:
        both = [[one(np.flatnonzero(side), weights[:, side], gamma) for side in (split, ~split)] for one in of]
        each = {name: np.array([here[name] - there[name] for here, there in both]) for name in names}
        parts = {name: (x[0], x[1:].mean(axis=0)) for name, x in each.items()}
        return {f"{n} {part}": x for n, (a, b) in parts.items() for part, x in zip(PARTS, (a, b, a - b), strict=True)}

    few = any(not intervals.enough(patients[side]) for side in (split, ~split))
    rare = differences.rarer_side([run.task.rarer(labels, patients, side) for side in (split, ~split)])
    options = {"seed": seed, "resamples": 0 if few else run.config.eval.bootstrap}
    options["rare"] = {f"{name} {part}": count for name, count in rare.items() for part in PARTS}
    found = differences.drawn_together(apart, patients, **options)
    rows = []
    for name in names:
        row: Row = {"attribute": sides.attribute, "value": sides.value, "against": sides.against, "figure": name}
        row |= {"n": len(sides.here), "n_against": len(sides.there), "p": found[f"{name} explained"].p}
        for part in PARTS:
            one = found[f"{name} {part}"]
            low, high = one.ci or (None, None)
            row |= {part: one.value, f"{part}_low": low, f"{part}_high": high}
        rows.append(row)
    return rows


def summary(rows: Sequence[Row], task: Task) -> str:
    """Returns the summary for a terminal, of the figure that leads."""
    lead, title = next(iter(task.compared.items()))
    lines = [f"{title:<40} {'gap':>8} {'left':>8} {'explained (95 %)':>22} {'p':>6}"]
    for row in (row for row in rows if row["figure"] == lead):
        name = f"{row['attribute']}: {value_text(row['value'])} less {value_text(row['against'])}"[:40]
        gap, left, told = (_cell(task, row[part]) for part in PARTS)
        if row["explained_low"] is not None:
            told += f" ({_cell(task, row['explained_low'])} to {_cell(task, row['explained_high'])})"
        p = "-" if row["p_holm"] is None else f"{row['p_holm']:.3f}"
        lines.append(f"{name:<40} {gap:>8} {left:>8} {told:>22} {p:>6}")
    return "\n".join(lines)


def _cell(task: Task, value: float | None) -> str:
    return "-" if value is None else signed(value, task)


def draw(rows: Sequence[Row], task: Task, title: str) -> "command.Figure":
    """Draws each gap in the leading figure as it is, and what is left when both sides lack the same."""
    lead, name = next(iter(task.compared.items()))
    some = [row for row in rows if row["figure"] == lead and row["gap"] is not None]
    figure = command.new_figure(7.0, 1.3 + 0.42 * max(len(some), 1))
    axis = figure.subplots()
    for y, row in enumerate(some):
        for part, shift, colour, mark in (("gap", -0.14, INK, "o"), ("left", 0.14, "#0072B2", "D")):
            if row[f"{part}_low"] is not None:
                axis.hlines(y + shift, row[f"{part}_low"], row[f"{part}_high"], color=colour, lw=1.1, alpha=0.6)
            axis.plot(row[part], y + shift, mark, color=colour, ms=5)
    axis.axvline(0.0, color=QUIET, lw=0.8)
    names = [f"{row['attribute']}: {value_text(row['value'])}\nless {value_text(row['against'])}" for row in some]
    axis.set_yticks(range(len(some)), names)
    axis.set(ylim=(len(some) - 0.5, -0.5), xlabel=f"difference in {name}")
    axis.tick_params(axis="y", length=0, labelsize=8)
    axis.grid(axis="x", color=GRID, lw=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(f"{title}\n", fontsize=10, fontweight="bold")
    command.name_marks(figure, ("as found", "both sides lack alike"), ((INK, "o"), ("#0072B2", "D")))
    return figure


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    integers = {"draws": (5, 1), "seed": (0, 0)}
    (path,), options = command.read_options(arguments, integers=integers, several=False)
    (run,) = opening.open_runs([path])
    sides, folder = sides_of(run), opening.output_folder(path)
    found = [gaps(run, one, options.draws, options.seed) for one in progress.over(sides, "gaps", len(sides))]
    rows = differences.corrected([row for some in found for row in some])
    identified = [command.identity(run) | row for row in rows]
    command.write_csv(folder / f"{NAME}.csv", COLUMNS, identified)
    title = f"{run.config.method} on {run.data.manifest.title}"
    command.write_figure(folder / NAME, lambda: draw(rows, run.task, title))
    print(summary(rows, run.task))
    print(f"Written: {folder / NAME}.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
