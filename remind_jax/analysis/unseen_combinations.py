"""Unseen modality combinations (REMIND Q4, figure 5): how little must be trained to take them in.

    remind analyse unseen_combinations --config=phenomenon --methods=remind,soft_moe --seeds=0,1,2 \\
        --workdir=DIR

    --tail=3          how many combinations are left out: the most frequent ones of the tail (of the
                      first seed) that have at least 30 held-out rows, and where these are too few
                      the tail's others, those with most held-out rows first
    --leave_out=A,B   these instead, by name
    --steps, --lr     of the adaptations, as in remind adapt
    --jobs, --config.KEY=VALUE    as in remind sweep

Trains every method with and without these combinations, in DIR/with and DIR/without, and adapts the
latter to their train rows in nine ways, from nothing to everything (DIR/without/RUN/adapted).
Finished runs and adaptations are kept and the same command goes on. Writes unseen_combinations.csv,
.md, .png and .svg under DIR.
"""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli, methods, tasks
from remind_jax.analysis import command, sweeps
from remind_jax.analysis.command import QUIET, Row
from remind_jax.analysis.sweeps import Sweeps, cell, look
from remind_jax.config.rules import STACKS
from remind_jax.data import dataset, splits
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.evaluation import report as reports
from remind_jax.inference.model_files import ADAPTED
from remind_jax.runtime import progress
from remind_jax.studies import entries
from remind_jax.studies.comparison import Outcome, outcome_of
from remind_jax.studies.entries import Entry
from remind_jax.studies.tables import CLASSES, size_text, spread_text
from remind_jax.tasks.task import Task
from remind_jax.training import adaptation
from remind_jax.training.adaptation import FACTS
from remind_jax.training.unfreezing import Choice

NAME = "unseen_combinations"
LEAST_HELD_OUT = 30
# What is unfrozen and its name in tables: the axis of figure 5, and full fine-tuning.
STRATEGIES = {
    Choice(("nothing",)): "nothing",
    Choice(("head",)): "head",
    Choice(("router",)): "router",
    Choice(("head", "router")): "head + router",
    Choice(("head", "router"), 0.25): "+ 25 % of experts",
    Choice(("head", "router"), 0.5): "+ 50 % of experts",
    Choice(("head", "router"), 0.75): "+ 75 % of experts",
    Choice(("head", "router"), 1.0): "+ 100 % of experts",
    Choice(("all",)): "everything",
}
WITH = "trained with them"
SAMPLES = {"new": "left out", "known": "kept"}
COLUMNS = ("method", "seed", "unfrozen", "trained_parameters", "chosen_step", "samples", "n")
OWN = {"data.leave_out": "--leave_out or --tail"}


class Taking(NamedTuple):
    """Which combinations sweeps leave out, and the steps and the learning rate of the adaptations that take them in."""

    sweeps: Sweeps
    leave_out: tuple[str, ...]
    steps: int
    lr: float

    def changes(self, part: str) -> dict[str, Any]:
        """Returns the keys of the config that make the sweep `with` or `without` the combinations."""
        return {"data.leave_out": self.leave_out} if part == "without" else {}

    def plan(self, part: str) -> list[Entry]:
        """Plans the runs of the sweep `with` or `without` the combinations."""
        return self.sweeps.plan(part, self.changes(part))


def parse(arguments: Sequence[str]) -> Taking:
    """Reads the command line and looks up the combinations in the data of every seed, so that a mistake costs nothing.

    Raises:
      UserError: for anything that cannot be read, a method that cannot be adapted, or a combination that is not there.
    """
    usage = "remind analyse unseen_combinations --config=NAME --workdir=DIR …; see --help"
    parser = cli.Parser(usage, entries.OPTIONS)
    parser.add_argument("--leave_out", default="")
    parser.add_argument("--workdir", default="")
    parser.add_number("--tail", 3, 1)
    parser.add_number("--steps", 300, 1)
    parser.add_number("--lr", 0.0, 0.0)
    values, rest = parser.parse_known_args(arguments)
    asked = tuple(part.strip() for part in values.leave_out.split(",") if part.strip())
    taking = Taking(sweeps.read_sweeps(values.workdir, rest, OWN), asked, values.steps, values.lr)
    planned = taking.plan("with")
    for entry in planned:
        is_one = entry.config.method not in (*methods.PLAIN, *STACKS)
        if not is_one or entry.config.ensemble > 1:
            kind = "an ensemble" if is_one else "no network of its own"
            raise UserError(f"{entry.method} is {kind}, which cannot be adapted: leave it out of --methods")
        if rank := entry.config.fusion.router_rank:
            raise UserError(f"fusion.router_rank={rank} leaves new combinations no router to train: set it to 0")
    taking = taking._replace(leave_out=asked or choose(planned[0].config, values.tail))
    for entry in {entry.seed: entry for entry in taking.plan("without")}.values():
        dataset.fit(entry.config)  # refuses names that are not there
    return taking


def choose(config: Any, count: int) -> tuple[str, ...]:
    """Chooses tail combinations to leave out, by the rule in the text above; without held-out rows, a UserError."""
    fitted = dataset.fit(config)
    groups = fitted.groups
    held_out = fitted.manifest.presence[fitted.whole_split == splits.HELD_OUT]
    n = np.bincount(groups.index(held_out), minlength=len(groups) + 1)[: len(groups)]
    able = [g for g in np.flatnonzero(groups.tail) if n[g]]
    order = sorted(able, key=lambda g: (-min(n[g], LEAST_HELD_OUT), -groups.train_counts[g], g))
    if not order:
        raise UserError("no combination of the tail has held-out rows: name some as --leave_out=A,B")
    return tuple(groups.names[g] for g in order[:count])


def run_sweeps(taking: Taking) -> list[str]:
    """Trains with and without the combinations; returns what failed, which does not stop the rest."""
    failed = []
    for part in ("without", "with"):
        print(f"== {part} {', '.join(taking.leave_out)}")
        failed.append(taking.sweeps.run(part, taking.changes(part)))
    return [*filter(None, failed)]


def adapt_runs(taking: Taking) -> None:
    """Adapts every finished run in every way that is not there yet; one with other options is a UserError."""
    finished = [entry for entry in taking.plan("without") if entry.finished]
    with progress.make(len(finished) * len(STRATEGIES), "adapting") as bar:
        for number, entry in enumerate(finished):
            bar.say(f"== adapting {entry.name}")
            _adapt_run(taking, entry.folder, bar, number * len(STRATEGIES))


def _adapt_run(taking: Taking, folder: pathlib.Path, bar: progress.Silent, done: int) -> None:
    adapter = None
    for number, (strategy, title) in enumerate(STRATEGIES.items()):
        bar.advance(done + number, f"{folder.name}: {title}")
        choice = strategy._replace(steps=taking.steps, lr=taking.lr)
        out = adapted_folder(folder, strategy)
        if out.exists():
            _check_same(out, choice)
            continue
        if adapter is None:
            run = adaptation.open_single(folder)
            manifest, whole_split, findings = adaptation.own_data(run)
            adapter = adaptation.Adapter(run, adaptation.prepare(run, manifest, whole_split, choice.rows, findings))
        report = adaptation.adapt(adapter, choice, out, progress.Silent())
        figures = report[ADAPTED]["after"]
        task = tasks.of_report(report)
        lead, named = next(iter(task.compared.items()))
        shown = [f"{SAMPLES[key]} {task.shown(figures[key][lead])}" for key in SAMPLES]
        bar.say(f"{folder.name:<26} {title:<20} {reports.plain_title(named)} {'  '.join(shown)}")


def adapted_folder(folder: pathlib.Path, strategy: Choice) -> pathlib.Path:
    """Returns the folder of an adaptation of a run."""
    return folder / "adapted" / strategy.unfreeze.replace(",", "+").replace("=", "")


def _check_same(out: pathlib.Path, choice: Choice) -> None:
    there = finished.read_report(out, FACTS)[ADAPTED]
    for key in ("steps", "lr"):
        if there[key] != getattr(choice, key):
            raise UserError(f"{out} was made with --{key}={there[key]}: choose another workdir, or delete it")


def collect(taking: Taking) -> list[Row]:
    """Collects the rows of the table, of all runs that are finished."""
    rows = []
    for entry in taking.plan("without"):
        for strategy in STRATEGIES:
            out = adapted_folder(entry.folder, strategy)
            if not finished.is_there(out):
                continue
            report = finished.read_report(out, FACTS)
            facts, names = report[ADAPTED], tasks.of_report(report).compared
            same = {"method": entry.method, "seed": entry.seed, "unfrozen": strategy.unfreeze}
            same |= {key: facts[key] for key in ("trained_parameters", "chosen_step")}
            for key, samples in SAMPLES.items():
                found = facts["after"][key]
                rows.append(same | {"samples": samples} | {name: found.get(name) for name in ("n", *names)})
    left_out = {frozenset(name.split("+")) for name in taking.leave_out}
    for entry in taking.plan("with"):
        if entry.finished:
            run = outcome_of(entry)
            same = {"method": run.method, "seed": run.seed, "unfrozen": WITH}
            same |= {"trained_parameters": run.report["parameters"], "chosen_step": None}
            rows += [same | row for row in figures_of(run, left_out)]
    return rows


def figures_of(run: Outcome, names: set[frozenset[str]]) -> list[Row]:
    """Computes figures of the combinations in `names`, sets of modalities, and of the others."""
    left_out = np.array([frozenset(group.split("+")) in names for group in run.samples.groups], bool)
    parts = zip(SAMPLES.values(), (left_out, ~left_out), strict=True)
    return [{"samples": name, **run.figures(chosen)} for name, chosen in parts]


def markdown(rows: Sequence[Row], leave_out: Sequence[str], data: str, task: Task = CLASSES) -> str:
    """Writes a table a figure: what is unfrozen by method and samples."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    sizes = {s: size_text([row["n"] for row in rows if row["samples"] == s]) for s in SAMPLES.values()}
    seeds = ", ".join(map(str, dict.fromkeys(row["seed"] for row in rows)))
    parts = [f"# Unseen combinations: {data}", "", f"Left out of training: {', '.join(leave_out)}."]
    parts += [f"Held-out rows of a seed: {sizes['left out']} of these, {sizes['kept']} of the others.", ""]
    pairs = [(method, samples) for samples in SAMPLES.values() for method in methods]
    columns = ["unfrozen", *(f"{m}, trained" for m in methods), *(f"{m}, {samples}" for m, samples in pairs)]
    unfrozen = {strategy.unfreeze: title for strategy, title in STRATEGIES.items()} | {WITH: WITH}
    for figure, title in task.compared.items():
        lines = []
        for key, name in unfrozen.items():
            found = [cell(rows, figure, task, method=m, unfrozen=key, samples=samples) for m, samples in pairs]
            found = [spread_text(value, digits=task.digits) for value in found]
            lines.append([name, *(_parameters(rows, m, key) for m in methods), *found])
        parts += [f"## {title} ({task.unit.removeprefix('in ')})", "", *sweeps.table(columns, lines)]
    parts.append(f"Mean ± sample standard deviation over seeds {seeds}; trained: number of parameters.")
    parts.append("Soft MoE has no routers of combinations: its router is the shared one.")
    return "\n".join(parts) + "\n"


def _parameters(rows: Sequence[Row], method: str, unfrozen: str) -> str:
    """Writes how many parameters are trained; they differ between seeds where the combinations do."""
    return size_text([r["trained_parameters"] for r in rows if (r["method"], r["unfrozen"]) == (method, unfrozen)])


def draw(rows: Sequence[Row], leave_out: Sequence[str], data: str, task: Task = CLASSES) -> "command.Figure":
    """Draws the combinations left out and, right of them, the others; what is unfrozen by method."""
    figure = next(iter(task.compared))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    picture = command.new_figure(9.4, 4.6)
    for axis, samples in zip(picture.subplots(1, 2, sharey=True), SAMPLES.values(), strict=True):
        draw_panel(axis, rows, methods, samples, figure, task)
        n = next((row["n"] for row in rows if row["samples"] == samples), 0)
        axis.set_title(f"Combinations {samples} ({n:,} held-out rows a seed)", fontsize=9.5, fontweight="bold")
    picture.axes[0].set_ylabel(sweeps.axis_title(figure, task))
    command.name_marks(picture, methods, map(look, range(len(methods))))
    picture.suptitle("What must be trained to take in unseen combinations\n", fontsize=10.5)
    seeds = len({row["seed"] for row in rows})
    bars = f"Marks: mean of {seeds} seeds, bars ± 1 standard deviation" if seeds > 1 else "One seed"
    note = f"{bars}; dotted: trained with all combinations.\n{data}; left out: {', '.join(leave_out)}"
    picture.supxlabel(note, fontsize=8, color=QUIET)
    return picture


def draw_panel(
    axis: "command.Axes", rows: Sequence[Row], methods: Sequence[str], samples: str, figure: str, task: Task = CLASSES
) -> None:
    """Draws one set of held-out rows."""
    for i, method in enumerate(methods):
        colour, shape = look(i)
        shift = 0.12 * (i - (len(methods) - 1) / 2)  # so that bars do not hide one another
        key = {"method": method, "samples": samples}
        found = [(x, cell(rows, figure, task, unfrozen=s.unfreeze, **key)) for x, s in enumerate(STRATEGIES)]
        found = [(x + shift, value) for x, value in found if value]
        if found:
            places, means, deviations = zip(*((x, v.mean, v.sd or 0.0) for x, v in found), strict=True)
            style = {"color": colour, "marker": shape, "markersize": 5.5, "linewidth": 1.2, "elinewidth": 1}
            axis.errorbar(places, means, deviations, capsize=2, **style)
        upper = cell(rows, figure, task, unfrozen=WITH, **key)
        if upper:
            axis.axhline(upper.mean, color=colour, linestyle=":", linewidth=1.3)
            axis.plot([len(STRATEGIES) - 0.35], [upper.mean], marker=shape, markersize=5, color=colour)
    axis.set_xticks(range(len(STRATEGIES)), STRATEGIES.values(), rotation=40, ha="right", fontsize=8)
    axis.set_xlim(-0.5, len(STRATEGIES) - 0.2)
    axis.tick_params(labelleft=True)
    axis.grid(axis="y", color="#e6e6e6", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    taking = parse(arguments)
    failed = run_sweeps(taking)
    adapt_runs(taking)
    rows = collect(taking)
    if not rows:
        raise UserError(f"no run finished: {'; '.join(failed)}")
    report = _report(taking)
    title, task = report["data"].removesuffix(" kept from training"), tasks.of_report(report)
    about = taking.leave_out, title.removesuffix(f", {', '.join(taking.leave_out)}"), task
    text, columns = markdown(rows, *about), (*COLUMNS, *task.compared)
    sweeps.write(taking.sweeps.workdir / NAME, columns, rows, text, lambda: draw(rows, *about))
    if failed:
        raise UserError("; ".join(failed))


def _report(taking: Taking) -> dict[str, Any]:
    """Returns the report of the first finished run, with the combinations if there is one."""
    return next(entry.report() for part in ("with", "without") for entry in taking.plan(part) if entry.finished)


if __name__ == "__main__":
    cli.run(main, __doc__)
