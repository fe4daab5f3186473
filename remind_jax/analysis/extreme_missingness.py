"""Extreme missingness (REMIND table 5, section 7.5): how methods use a modality that four of five samples have lost.

    python -m remind_jax.analysis.extreme_missingness --config=configs/nhanes.py --methods=soft_moe,remind \\
        --seeds=0,1,42 --workdir=DIR

    --modalities=A,B     taken away, each in turn and in runs of its own; all of the data by default
    --rate=0.8           share of the samples that lose it, in training, tuning and held-out samples alike
    --baseline, --table, --jobs, --resamples, --config.KEY=VALUE    as in remind_jax.sweep

Only samples that have all modalities take part. Each modality is a sweep of methods × seeds in a folder of its own,
DIR/<modality>, with its tables; finished runs are kept and the same command goes on. Writes extreme_missingness.csv
(figures of every run), .md (the paper's layout), .png and .svg under DIR.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from remind_jax import cli, sweep
from remind_jax.analysis import command
from remind_jax.analysis.command import Row
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files
from remind_jax.studies.comparison import Outcome, Spread
from remind_jax.studies.results import TITLES as FIGURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "extreme_missingness"
SAMPLES = ("overall", "available", "absent")
COLUMNS = ("modality", "rate", "method", "seed", "samples", "n", *FIGURES)


class Study(NamedTuple):
    """The command line: what is left of it for the sweeps, and the study's own options."""

    arguments: list[str]
    workdir: pathlib.Path
    modalities: tuple[str, ...]
    rate: float


# ---- Runs -----------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> Study:
    """Reads the command line; every config is read and the modalities are looked up, so that a mistake costs nothing.

    Raises:
      UserError: for anything that cannot be read, or a modality that the data do not have.
    """
    parser = cli.Parser("python -m remind_jax.analysis.extreme_missingness --config=FILE --workdir=DIR …; see --help")
    parser.add_argument("--modalities", default="")
    parser.add_argument("--workdir", default="")
    parser.add_argument("--rate", type=float, default=0.8)
    values, rest = parser.parse_known_args(arguments)
    if not values.workdir:
        raise UserError("no workdir: give one as --workdir=DIR")
    if not 0 < values.rate < 1:
        raise UserError(f"--rate={values.rate} must be above 0 and below 1")
    own = [x for x in rest if x.startswith(("--config.data.hide", "--config.data.complete_only"))]
    if own:
        raise UserError(f"{own[0].partition('=')[0]} is set by this study: use --modalities and --rate")
    workdir = pathlib.Path(values.workdir)
    asked = tuple(dict.fromkeys(filter(None, values.modalities.split(","))))
    study = Study(rest, workdir, asked, values.rate)
    entries = sweep.plan(sweep.parse(sweep_arguments(study, asked[0] if asked else "")))
    return study._replace(modalities=_modalities(entries[0].config, asked))


def _modalities(config: Any, asked: Sequence[str]) -> tuple[str, ...]:
    """The modalities to take away, in the order asked for; all of the data in declared order where none is named."""
    from remind_jax.data import dataset

    there = [modality.name for modality in dataset.read(config).schema.modalities]
    for name in asked:
        if name not in there:
            raise UserError(f"{name!r} is no modality of these data{did_you_mean(name, there)}: {', '.join(there)}")
    if len(there) < 2:
        raise UserError(f"the data have one modality only, {there[0]}, and no sample can be without it")
    return tuple(asked or there)


def sweep_arguments(study: Study, modality: str) -> list[str]:
    """The command line of one modality's sweep."""
    hidden = [f"--config.data.hide={modality}", f"--config.data.hide_rate={study.rate}"]
    return [*study.arguments, "--config.data.complete_only=True", *hidden, f"--workdir={study.workdir / modality}"]


def run_sweeps(study: Study) -> list[str]:
    """Runs one sweep after the other; returns what failed, which does not stop the others."""
    failed = []
    for number, modality in enumerate(study.modalities, start=1):
        print(f"== {modality} taken from {study.rate:.0%} of the samples ({number} of {len(study.modalities)})")
        try:
            sweep.main(sweep_arguments(study, modality))
        except UserError as error:
            failed.append(f"{modality}: {error}")
    return failed


def collect(study: Study) -> tuple[list[Row], dict[str, list[Outcome]]]:
    """Rows of the table, and the finished runs of each modality."""
    rows, found = [], {}
    for modality in study.modalities:
        entries = sweep.plan(sweep.parse(sweep_arguments(study, modality)))
        found[modality] = sweep.read_runs(entries)
        for run in found[modality]:
            rows += [{"modality": modality, "rate": study.rate, **row} for row in figures_of(run, modality)]
    return rows, found


def figures_of(run: Outcome, modality: str) -> list[Row]:
    """Figures of a run's held-out samples: all, those that kept the modality, and those that lost it."""
    from remind_jax.evaluation import metrics

    table = run.predictions
    labels = table["label"].to_numpy().astype(np.int64)
    classes = sum(name.startswith("p_") and name[2:].isdigit() for name in table.columns)
    probabilities = table.select([f"p_{k}" for k in range(classes)]).to_numpy().astype(np.float64)
    has = np.array([modality in group.split("+") for group in table["group"].to_list()], bool)
    rows = []
    for samples, chosen in zip(SAMPLES, (np.ones_like(has), has, ~has), strict=True):
        values, _ = metrics.metrics(labels[chosen], probabilities[chosen])
        figures = {name: values[name] for name in FIGURES}
        rows.append({"method": run.method, "seed": run.seed, "samples": samples, "n": int(chosen.sum()), **figures})
    return rows


# ---- Tables ---------------------------------------------------------------------------------------------------------


def cell(rows: Sequence[Row], modality: str, method: str, samples: str, figure: str) -> "Spread | None":
    """Mean and spread over seeds, in percent."""
    from remind_jax.studies.comparison import spread

    key = (modality, method, samples)
    values = [row[figure] for row in rows if (row["modality"], row["method"], row["samples"]) == key]
    return spread(None if value is None else 100 * value for value in values)


def gain(rows: Sequence[Row], modality: str, method: str, baseline: str, samples: str, figure: str) -> float | None:
    """Mean difference to the baseline over the seeds that both have, in points."""
    key = (modality, samples)
    by_seed: dict[str, dict[int, float]] = {method: {}, baseline: {}}
    for row in rows:
        known = (row["modality"], row["samples"]) == key and row[figure] is not None
        if known and row["method"] in by_seed:
            by_seed[row["method"]][row["seed"]] = 100 * row[figure]
    both = by_seed[method].keys() & by_seed[baseline].keys()
    return float(np.mean([by_seed[method][s] - by_seed[baseline][s] for s in both])) if both else None


def markdown(rows: Sequence[Row], study: Study, data: str) -> str:
    """The table of the paper, one for each figure, with differences to soft_moe or else the first method."""
    from remind_jax.studies.tables import line, spread_text

    methods = list(dict.fromkeys(row["method"] for row in rows))
    baseline = "soft_moe" if "soft_moe" in methods else methods[0]
    parts = [f"# Extreme missingness: {data}", ""]
    parts += [f"Each modality in turn taken from {study.rate:.0%} of the samples, in training and held-out alike.", ""]
    for figure, title in FIGURES.items():
        names = [f"{method}, {samples}" for method in methods for samples in SAMPLES]
        parts += [f"## {title} (percent)", "", line(["modality", "n available", "n absent", *names])]
        parts.append(line(["---", *["---:"] * (len(names) + 2)]))
        for modality in dict.fromkeys(row["modality"] for row in rows):
            cells = [modality, *(_sizes(rows, modality, samples) for samples in SAMPLES[1:])]
            for method in methods:
                for samples in SAMPLES:
                    more = gain(rows, modality, method, baseline, samples, figure) if method != baseline else None
                    text = spread_text(cell(rows, modality, method, samples, figure))
                    cells.append(text if more is None else f"{text} ({round(more, 1) + 0.0:+.1f})")
            parts.append(line(cells))
        parts.append("")
    parts.append(f"Mean ± standard deviation over seeds; in brackets the mean difference to {baseline}, in points.")
    parts.append("The tables of each modality's folder have differences with intervals (patient bootstrap).")
    return "\n".join(parts) + "\n"


def _sizes(rows: Sequence[Row], modality: str, samples: str) -> str:
    """Held-out samples of a seed."""
    from remind_jax.studies.tables import size_text

    by_seed = {r["seed"]: r["n"] for r in rows if (r["modality"], r["samples"]) == (modality, samples)}
    return size_text(tuple(by_seed.values()))


# ---- Figure ---------------------------------------------------------------------------------------------------------

# Okabe and Ito's colours, each with a shape and a place of its own.
LOOKS = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#000000", "P"))


def draw(rows: Sequence[Row], study: Study, data: str, figure: str = "accuracy") -> "Figure":
    """A panel a modality: overall, available and absent from top to bottom, a mark a method."""
    from matplotlib.figure import Figure

    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    columns = min(4, len(modalities))
    lines = -(-len(modalities) // columns)
    height = 1.3 + lines * (0.9 + 0.24 * len(methods))
    picture = Figure(figsize=(max(4.4, 1.6 + 2.1 * columns), height), layout="constrained")
    axes = picture.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axis, modality in zip(axes.flat, modalities, strict=False):
        draw_panel(axis, rows, modality, methods, figure)
    for i, axis in enumerate(axes.flat):
        if i >= len(modalities):
            axis.set_axis_off()
        elif i + columns >= len(modalities):  # nothing below it
            axis.tick_params(labelbottom=True)
    name_methods(picture, methods)
    picture.suptitle(f"Each modality in turn taken from {study.rate:.0%} of samples\n", fontsize=10.5)
    seeds = len({row["seed"] for row in rows})
    bars = f"Large marks: mean of {seeds} seeds, small ones: seeds." if seeds > 1 else "One seed."
    picture.supxlabel(
        f"{FIGURES[figure]} of held-out samples, percent.\n{bars}\n{data}", fontsize=8, color=command.QUIET
    )
    return picture


def draw_panel(axis: "Axes", rows: Sequence[Row], modality: str, methods: Sequence[str], figure: str) -> None:
    """One modality."""
    for i, method in enumerate(methods):
        colour, shape = LOOKS[i % len(LOOKS)]
        for j, samples in enumerate(SAMPLES):
            y = place(i, j, len(methods))
            key = (modality, method, samples)
            single = [row[figure] for row in rows if (row["modality"], row["method"], row["samples"]) == key]
            values = [100 * value for value in single if value is not None]
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
    """Height of a method's marks within the band of its samples."""
    return -samples + (0.6 * ((count - 1) / 2 - method) / max(count - 1, 1) if count > 1 else 0.0)


def name_methods(picture: "Figure", methods: Sequence[str]) -> None:
    """Marks and names in the second line of the title; beside the marks no place is free in every data set."""
    from matplotlib.lines import Line2D

    looks = (LOOKS[i % len(LOOKS)] for i in range(len(methods)))
    marks = [Line2D([], [], color=colour, marker=shape, linestyle="", markersize=6) for colour, shape in looks]
    at = (0.5, 1 - 0.2 / picture.get_figheight())
    options = {"loc": "upper center", "bbox_to_anchor": at, "borderaxespad": 0.0, "handletextpad": 0.2}
    picture.legend(marks, methods, ncols=len(methods), frameon=False, fontsize=9, **options)


# ---- Command --------------------------------------------------------------------------------------------------------


def write(study: Study, rows: Sequence[Row], runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Writes table and pictures; returns the Markdown."""
    first = next(run for found in runs.values() for run in found)
    data = first.report["data"].partition(", samples with all modalities")[0] + ", samples with all modalities"
    text = markdown(rows, study, data)
    command.write_csv(study.workdir / f"{NAME}.csv", COLUMNS, rows)
    files.write_text(study.workdir / f"{NAME}.md", text)
    command.write_figure(study.workdir / NAME, lambda: draw(rows, study, data))
    return text


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    study = parse(arguments)
    failed = run_sweeps(study)
    rows, runs = collect(study)
    if not rows:
        raise UserError(f"no run finished: {'; '.join(failed)}")
    print(write(study, rows, runs))
    print(f"Written: {study.workdir / NAME}.csv, .md, .png, .svg")
    if failed:
        raise UserError("; ".join(failed))


if __name__ == "__main__":
    cli.run(main, __doc__)
