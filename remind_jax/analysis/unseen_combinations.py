"""Unseen modality combinations (REMIND section 5, Q4 and figure 5): how little must be trained to take them in.

    python -m remind_jax.analysis.unseen_combinations --config=configs/phenomenon.py --methods=remind,soft_moe \\
        --seeds=0,1,2 --workdir=DIR

    --tail=3          how many combinations are left out: the most frequent ones of the tail (of the first seed) that
                      have at least 30 held-out rows, and where these are too few the tail's others, those with most
                      held-out rows first
    --leave_out=A,B   these instead, by name
    --steps, --lr     of the adaptations, as in remind_jax.adapt
    --jobs, --config.KEY=VALUE    as in remind_jax.sweep

Trains every method with and without these combinations, in DIR/with and DIR/without, and adapts the latter to their
train rows in nine ways, from nothing to everything (DIR/without/RUN/adapted). Finished runs and adaptations are kept
and the same command goes on. Writes unseen_combinations.csv, .md, .png and .svg under DIR.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from remind_jax import cli, methods, sweep
from remind_jax.analysis import command
from remind_jax.analysis.command import QUIET, Row
from remind_jax.analysis.extreme_missingness import LOOKS, name_methods
from remind_jax.data import dataset, splits
from remind_jax.errors import UserError
from remind_jax.inference.model_folder import ADAPTED
from remind_jax.runtime import files, progress
from remind_jax.studies.comparison import Spread
from remind_jax.studies.results import TITLES as FIGURES

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "unseen_combinations"
LEAST_HELD_OUT = 30
# What is unfrozen, as `adapt` writes it, and its name in tables: the axis of figure 5, and full fine-tuning.
STRATEGIES = {
    "nothing": "nothing",
    "head": "head",
    "router": "router",
    "head,router": "head + router",
    "head,router,experts=0.25": "+ 25 % of experts",
    "head,router,experts=0.5": "+ 50 % of experts",
    "head,router,experts=0.75": "+ 75 % of experts",
    "head,router,experts=1": "+ 100 % of experts",
    "all": "everything",
}
WITH = "trained with them"
SAMPLES = {"new": "left out", "known": "kept"}
COLUMNS = ("method", "seed", "unfrozen", "trained_parameters", "chosen_step", "samples", "n", *FIGURES)


class Study(NamedTuple):
    """The command line: what is left of it for the sweeps, and the study's own options."""

    arguments: list[str]
    workdir: pathlib.Path
    leave_out: tuple[str, ...]
    steps: int
    lr: float


# ---- The command line -----------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Study:
    """Reads the command line and looks up the combinations in the data of every seed, so that a mistake costs nothing.

    Raises:
      UserError: for anything that cannot be read, a method that cannot be adapted, or a combination that is not there.
    """
    parser = cli.Parser("python -m remind_jax.analysis.unseen_combinations --config=FILE --workdir=DIR …; see --help")
    parser.add_argument("--leave_out", default="")
    parser.add_argument("--workdir", default="")
    parser.add_number("--tail", 3, 1)
    parser.add_number("--steps", 300, 1)
    parser.add_number("--lr", 0.0, 0.0)
    values, rest = parser.parse_known_args(arguments)
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if any(argument.startswith("--config.data.leave_out") for argument in rest):
        raise UserError("--config.data.leave_out is set by this study: use --leave_out or --tail")
    asked = tuple(part.strip() for part in values.leave_out.split(",") if part.strip())
    study = Study(rest, pathlib.Path(values.workdir), asked, values.steps, values.lr)
    entries = plan(study, "with")
    for entry in entries:
        if entry.config.method in methods.PLAIN or entry.config.ensemble > 1:
            kind = "no network" if entry.config.method in methods.PLAIN else "an ensemble"
            raise UserError(f"{entry.variant.name} is {kind}, which cannot be adapted: leave it out of --methods")
        if rank := entry.config.fusion.router_rank:
            raise UserError(f"fusion.router_rank={rank} leaves new combinations no router to train: set it to 0")
    study = study._replace(leave_out=asked or choose(entries[0].config, values.tail))
    for entry in {entry.seed: entry for entry in plan(study, "without")}.values():
        dataset.fit(entry.config)  # refuses names that are not there
    return study


def choose(config: Any, count: int) -> tuple[str, ...]:
    """Tail combinations to leave out, by the rule in the module's text.

    Raises:
      UserError: the tail has none with held-out rows.
    """
    fitted = dataset.fit(config)
    groups = fitted.groups
    held_out = fitted.manifest.presence[fitted.whole_split == splits.HELD_OUT]
    n = np.bincount(groups.index(held_out), minlength=len(groups) + 1)[: len(groups)]
    able = [g for g in np.flatnonzero(groups.tail) if n[g]]
    order = sorted(able, key=lambda g: (-min(n[g], LEAST_HELD_OUT), -groups.train_counts[g], g))
    if not order:
        raise UserError("no combination of the tail has held-out rows: name some as --leave_out=A,B")
    return tuple(groups.names[g] for g in order[:count])


# ---- Runs -----------------------------------------------------------------------------------------------------------


def sweep_arguments(study: Study, part: str) -> list[str]:
    """The command line of the sweep `with` or `without` the combinations."""
    own = [f"--config.data.leave_out={study.leave_out!r}"] if part == "without" else []
    return [*study.arguments, *own, f"--workdir={study.workdir / part}"]


def plan(study: Study, part: str) -> list[sweep.Entry]:
    """The runs of a sweep."""
    return sweep.plan(sweep.parse(sweep_arguments(study, part)))


def run_sweeps(study: Study) -> list[str]:
    """Trains with and without the combinations; returns what failed, which does not stop the rest."""
    failed = []
    for part in ("without", "with"):
        print(f"== {part} {', '.join(study.leave_out)}")
        try:
            sweep.main(sweep_arguments(study, part))
        except UserError as error:
            failed.append(f"{part}: {error}")
    return failed


def adapt_runs(study: Study) -> None:
    """Adapts every finished run in every way that is not there yet.

    Raises:
      UserError: a folder holds an adaptation with other options.
    """
    entries = [entry for entry in plan(study, "without") if entry.finished]
    with progress.make(len(entries) * len(STRATEGIES), "adapting") as bar:
        for number, entry in enumerate(entries):
            bar.say(f"== adapting {entry.name}")
            _adapt_run(study, entry.folder, bar, number * len(STRATEGIES))


def _adapt_run(study: Study, folder: pathlib.Path, bar: progress.Silent, done: int) -> None:
    from remind_jax.training import adaptation, unfreezing

    adapter = None
    for number, unfreeze in enumerate(STRATEGIES):
        bar.advance(done + number, f"{folder.name}: {STRATEGIES[unfreeze]}")
        choice = unfreezing.Choice(*unfreezing.parse_unfreeze(unfreeze), steps=study.steps, lr=study.lr)
        out = adapted_folder(folder, unfreeze)
        if out.exists():
            _check_same(out, choice)
            continue
        if adapter is None:
            run = adaptation.open_single(folder)
            manifest, whole_split, findings = adaptation.own_data(run)
            adapter = adaptation.Adapter(run, adaptation.prepare(run, manifest, whole_split, choice.rows, findings))
        report = adaptation.adapt(adapter, choice, out, progress.Silent())
        figures = report[ADAPTED]["after"]
        shown = [f"{SAMPLES[key]} {100 * figures[key]['accuracy']:.1f}" for key in SAMPLES]
        bar.say(f"{folder.name:<26} {STRATEGIES[unfreeze]:<20} accuracy {'  '.join(shown)}")


def adapted_folder(folder: pathlib.Path, unfreeze: str) -> pathlib.Path:
    """Where an adaptation of a run lies."""
    return folder / "adapted" / unfreeze.replace(",", "+").replace("=", "")


def _check_same(out: pathlib.Path, choice: Any) -> None:
    there = json.loads((out / "report.json").read_text(encoding="utf-8"))[ADAPTED]
    for key in ("steps", "lr"):
        if there[key] != getattr(choice, key):
            raise UserError(f"{out} was made with --{key}={there[key]}: choose another workdir, or delete it")


# ---- Tables ---------------------------------------------------------------------------------------------------------


def collect(study: Study) -> list[Row]:
    """Rows of the table, of all runs that are finished."""
    import polars as pl

    rows = []
    for entry in plan(study, "without"):
        for unfreeze in STRATEGIES:
            file = adapted_folder(entry.folder, unfreeze) / "report.json"
            if not file.exists():
                continue
            facts = json.loads(file.read_text(encoding="utf-8"))[ADAPTED]
            same = {"method": entry.variant.name, "seed": entry.seed, "unfrozen": unfreeze}
            same |= {key: facts[key] for key in ("trained_parameters", "chosen_step")}
            rows += [same | _row(samples, facts["after"][key]) for key, samples in SAMPLES.items()]
    names = {frozenset(name.split("+")) for name in study.leave_out}
    for entry in plan(study, "with"):
        if entry.finished:
            table = pl.read_parquet(entry.folder / "predictions.parquet")
            parameters = json.loads((entry.folder / "report.json").read_text(encoding="utf-8"))["parameters"]
            same = {"method": entry.variant.name, "seed": entry.seed, "unfrozen": WITH}
            same |= {"trained_parameters": parameters, "chosen_step": None}
            rows += [same | row for row in figures_of(table, names)]
    return rows


def _row(samples: str, figures: Row) -> Row:
    return {"samples": samples, "n": figures["n"], **{name: figures[name] for name in FIGURES}}


def figures_of(table: "pl.DataFrame", names: set[frozenset[str]]) -> list[Row]:
    """Figures of held-out predictions: of the combinations in `names`, sets of modalities, and of the others."""
    from remind_jax.evaluation import metrics

    labels = table["label"].to_numpy().astype(np.int64)
    classes = sum(name.startswith("p_") and name[2:].isdigit() for name in table.columns)
    probabilities = table.select([f"p_{k}" for k in range(classes)]).to_numpy().astype(np.float64)
    left_out = np.array([frozenset(group.split("+")) in names for group in table["group"].to_list()], bool)
    rows = []
    for samples, chosen in zip(SAMPLES.values(), (left_out, ~left_out), strict=True):
        values, _ = metrics.metrics(labels[chosen], probabilities[chosen])
        rows.append(_row(samples, {"n": int(chosen.sum()), **values}))
    return rows


def cell(rows: Sequence[Row], method: str, unfrozen: str, samples: str, figure: str) -> "Spread | None":
    """Mean and spread over seeds, in percent."""
    from remind_jax.studies.comparison import spread

    key = (method, unfrozen, samples)
    values = [row[figure] for row in rows if (row["method"], row["unfrozen"], row["samples"]) == key]
    return spread(None if value is None else 100 * value for value in values)


def markdown(rows: Sequence[Row], study: Study, data: str) -> str:
    """A table a figure: what is unfrozen by method and samples."""
    from remind_jax.studies.tables import line, size_text, spread_text

    methods = list(dict.fromkeys(row["method"] for row in rows))
    sizes = {s: size_text([row["n"] for row in rows if row["samples"] == s]) for s in SAMPLES.values()}
    seeds = ", ".join(map(str, dict.fromkeys(row["seed"] for row in rows)))
    parts = [f"# Unseen combinations: {data}", "", f"Left out of training: {', '.join(study.leave_out)}."]
    parts += [f"Held-out rows of a seed: {sizes['left out']} of these, {sizes['kept']} of the others.", ""]
    for figure, title in FIGURES.items():
        heads = [f"{method}, {samples}" for samples in SAMPLES.values() for method in methods]
        parts += [f"## {title} (percent)", "", line(["unfrozen", *(f"{m}, trained" for m in methods), *heads])]
        parts.append(line(["---", *["---:"] * (len(heads) + len(methods))]))
        for unfrozen, name in {**STRATEGIES, WITH: WITH}.items():
            cells = [name, *(_parameters(rows, method, unfrozen) for method in methods)]
            pairs = [(method, samples) for samples in SAMPLES.values() for method in methods]
            parts.append(line([*cells, *(spread_text(cell(rows, m, unfrozen, s, figure)) for m, s in pairs)]))
        parts.append("")
    parts.append(f"Mean ± sample standard deviation over seeds {seeds}; trained: number of parameters.")
    parts.append("Soft MoE has no routers of combinations: its router is the shared one.")
    return "\n".join(parts) + "\n"


def _parameters(rows: Sequence[Row], method: str, unfrozen: str) -> str:
    """Trained parameters; they differ between seeds where the combinations do."""
    from remind_jax.studies.tables import size_text

    return size_text([r["trained_parameters"] for r in rows if (r["method"], r["unfrozen"]) == (method, unfrozen)])


# ---- Figure ---------------------------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], study: Study, data: str, figure: str = "accuracy") -> "Figure":
    """Left the combinations left out, right the others; what is unfrozen from left to right, a line a method."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(row["method"] for row in rows))
    picture = Figure(figsize=(9.4, 4.6), layout="constrained")
    for axis, samples in zip(picture.subplots(1, 2, sharey=True), SAMPLES.values(), strict=True):
        draw_panel(axis, rows, methods, samples, figure)
        n = next((row["n"] for row in rows if row["samples"] == samples), 0)
        axis.set_title(f"Combinations {samples} ({n:,} held-out rows a seed)", fontsize=9.5, fontweight="bold")
    picture.axes[0].set_ylabel(f"{FIGURES[figure]}, percent")
    name_methods(picture, methods)
    picture.suptitle("What must be trained to take in unseen combinations\n", fontsize=10.5)
    seeds = len({row["seed"] for row in rows})
    bars = f"Marks: mean of {seeds} seeds, bars ± 1 standard deviation" if seeds > 1 else "One seed"
    note = f"{bars}; dotted: trained with all combinations.\n{data}; left out: {', '.join(study.leave_out)}"
    picture.supxlabel(note, fontsize=8, color=QUIET)
    return picture


def draw_panel(axis: "Axes", rows: Sequence[Row], methods: Sequence[str], samples: str, figure: str) -> None:
    """One set of held-out rows."""
    for i, method in enumerate(methods):
        colour, shape = LOOKS[i % len(LOOKS)]
        shift = 0.12 * (i - (len(methods) - 1) / 2)  # so that bars do not hide one another
        found = [(x, cell(rows, method, unfrozen, samples, figure)) for x, unfrozen in enumerate(STRATEGIES)]
        found = [(x + shift, value) for x, value in found if value]
        if found:
            places, means, deviations = zip(*((x, v.mean, v.sd or 0.0) for x, v in found), strict=True)
            look = {"color": colour, "marker": shape, "markersize": 5.5, "linewidth": 1.2, "elinewidth": 1}
            axis.errorbar(places, means, deviations, capsize=2, **look)
        upper = cell(rows, method, WITH, samples, figure)
        if upper:
            axis.axhline(upper.mean, color=colour, linestyle=":", linewidth=1.3)
            axis.plot([len(STRATEGIES) - 0.35], [upper.mean], marker=shape, markersize=5, color=colour)
    axis.set_xticks(range(len(STRATEGIES)), STRATEGIES.values(), rotation=40, ha="right", fontsize=8)
    axis.set_xlim(-0.5, len(STRATEGIES) - 0.2)
    axis.tick_params(labelleft=True)
    axis.grid(axis="y", color="#e6e6e6", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


# ---- Command --------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    study = parse(arguments)
    failed = run_sweeps(study)
    adapt_runs(study)
    rows = collect(study)
    if not rows:
        raise UserError(f"no run finished: {'; '.join(failed)}")
    data = _title(study)
    text = markdown(rows, study, data)
    command.write_csv(study.workdir / f"{NAME}.csv", COLUMNS, rows)
    files.write_text(study.workdir / f"{NAME}.md", text)
    command.write_figure(study.workdir / NAME, lambda: draw(rows, study, data))
    print(text)
    print(f"Written: {study.workdir / NAME}.csv, .md, .png, .svg")
    if failed:
        raise UserError("; ".join(failed))


def _title(study: Study) -> str:
    """Of the data, without what was left out."""
    for part in ("with", "without"):
        for entry in plan(study, part):
            if entry.finished:
                title = json.loads((entry.folder / "report.json").read_text(encoding="utf-8"))["data"]
                return title.removesuffix(" kept from training").removesuffix(f", {', '.join(study.leave_out)}")
    return ""


if __name__ == "__main__":
    cli.run(main, __doc__)
