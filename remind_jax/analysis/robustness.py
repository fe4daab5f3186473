"""Measures how a run's held-out metrics fall as modalities go missing.

    remind analyse robustness --workdir=RUN [--also=RUN2,RUN3]

    --also=RUN2,…        further runs to draw next to it
    --draws=5            independent draws of the samples that lose a modality; the band is their
                         spread
    --seed=0             seed of the draws, which are the same for all runs of one split
    --protocols=mcar,mar,mnar,segments
                         how gaps come about (none for no gaps)
    --rates=0.2,0.5      the shares that go under each protocol

Each modality has a curve: a share of the samples that have it and another one lose it, from none to
all of them. For the curve "all together" samples lose every modality at that rate, but never their
last one. Under protocols whole modalities vanish, or parts within them: cells of tables, events,
steps of series; what goes is drawn completely at random (mcar), by how high a modality that stays
is (mar), by the hidden value itself (mnar), or as one stretch (segments). Writes robustness.csv,
.png and .svg, and robustness_gaps.csv, .png and .svg, under RUN/analysis.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, gaps, opening
from remind_jax.analysis.command import Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.data import missingness
from remind_jax.evaluation import differences
from remind_jax.evaluation.figures import name_end, spread_apart
from remind_jax.evaluation.report import plain_title
from remind_jax.runtime import progress
from remind_jax.studies.tables import CLASSES
from remind_jax.tasks.task import Task

NAME = "robustness"
MOST = 3  # figures that are drawn
RATES = tuple(i / 10 for i in range(11))
TOGETHER = "all together"
SPLIT = "held_out"
COLUMNS = ("run", "method", "seed", "hidden", "rate", "draw", "n", "n_lost", "unseen")


def lose_one(presence: np.ndarray, modality: int, rate: float, order: np.ndarray) -> np.ndarray:
    """Returns which samples lose a modality, given by its position, bool [n]; `presence` is bool [n, m].

    A share `rate` of the samples that have it and another one lose it, in the given order, a permutation: at a higher
    rate the same samples do, and more.
    """
    able = presence[:, modality] & (presence.sum(axis=1) > 1)
    ranked = order[able[order]]
    lost = np.zeros(len(presence), bool)
    lost[ranked[: round(rate * len(ranked))]] = True
    return lost


def lose_any(presence: np.ndarray, rate: float, uniform: np.ndarray) -> np.ndarray:
    """Returns the modalities left, bool [n, m], when each is lost with probability `rate`, but never a sample's last.

    At a higher rate the same are lost, and more. `uniform` has numbers in [0, 1), [n, m]; the modality of the greatest
    one stays.
    """
    draws = np.where(presence, uniform, -1.0)
    stays = np.arange(presence.shape[1])[None, :] == draws.argmax(axis=1)[:, None]
    return presence & ((draws >= rate) | stays)


def curves(run: Run, options: Options) -> Iterator[Row]:
    """Yields rows of the table: every modality, then all together, at every rate and in every draw."""
    data, store = run.data, run.data.stores[SPLIT]
    rows = data.rows(SPLIT)
    presence, labels = data.manifest.presence[rows], data.manifest.labels[rows]
    positions = np.arange(len(rows))
    common = command.identity(run) | {"n": len(rows)}
    full = run.model.predict_parts(store, positions, presence)

    def row(name: str, rate: float, draw: int, left: np.ndarray, probabilities: np.ndarray) -> Row:
        lost = (left != presence).any(axis=1)
        unseen = float(np.mean(~run.model.seen(left)))
        found = {"hidden": name, "rate": rate, "draw": draw, "n_lost": int(lost.sum()), "unseen": unseen}
        values = run.task.weighed(labels, probabilities)(positions, np.ones((1, len(labels))))
        values = {name: float(values[name][0]) for name in run.task.compared}
        return common | found | {name: value if np.isfinite(value) else None for name, value in values.items()}

    for j, name in enumerate(data.groups.modalities):
        without = presence.copy()
        able = presence[:, j] & (presence.sum(axis=1) > 1)
        without[able, j] = False
        # Two predictions of each sample are enough for all rates and draws.
        alternative = full.copy()
        alternative[able] = run.model.predict_parts(store, positions[able], without[able])
        for draw in range(options.draws):
            order = np.random.default_rng((options.seed, draw, j)).permutation(len(rows))
            for rate in RATES:
                lost = lose_one(presence, j, rate, order)[:, None]
                yield row(name, rate, draw, np.where(lost, without, presence), np.where(lost, alternative, full))
    for draw in range(options.draws):
        uniform = np.random.default_rng((options.seed, draw, presence.shape[1])).random(presence.shape)
        for rate in RATES:
            left = lose_any(presence, rate, uniform)
            changed = np.flatnonzero((left != presence).any(axis=1))
            probabilities = full.copy()
            probabilities[changed] = run.model.predict_parts(store, changed, left[changed])
            yield row(TOGETHER, rate, draw, left, probabilities)


# Okabe and Ito's colours, each with a dash and a mark of its own; all together is thick and black.
LOOKS = (
    ("#0072B2", "-", "o"),
    ("#D55E00", (0, (5, 1.5)), "^"),
    ("#009E73", (0, (1.5, 1)), "s"),
    ("#CC79A7", (0, (6, 1.5, 1.5, 1.5)), "D"),
    ("#E69F00", "-", "v"),
    ("#56B4E9", (0, (5, 1.5)), "P"),
    ("#7A5195", (0, (1.5, 1)), "X"),
    ("#8C6D31", (0, (6, 1.5, 1.5, 1.5)), "<"),
    ("#666666", "-", ">"),
    ("#A6761D", (0, (5, 1.5)), "h"),
)
NAME_SIZE = 7.5


def draw(panels: dict[str, list[Row]], title: str, task: Task = CLASSES) -> "command.Figure":
    """Draws a column for each run and a line of axes for each figure; curves are named at their ends."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["hidden"] for rows in panels.values() for row in rows))
    longest, figures = max(len(name) for name in names), dict(list(task.compared.items())[:MOST])
    width, height = 0.9 + len(panels) * (2.6 + 0.07 * longest), 1.5 + 2.15 * len(figures)
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(figures), len(panels), squeeze=False, sharex=True, sharey="row")
    room = (0.07 * longest + 0.25) / 2.6
    figure.subplots_adjust(
        left=0.7 / width, right=1 - (0.07 * longest + 0.3) / width, bottom=0.9 / height, top=1 - 0.82 / height,
        wspace=room + 0.12, hspace=0.14,
    )  # fmt: skip
    for column, (label, rows) in enumerate(panels.items()):
        for axis, key in zip(axes[:, column], figures, strict=True):
            draw_panel(axis, rows, names, key)
        axes[0, column].set_title(label, fontsize=10, fontweight="bold")
        axes[-1, column].set_xlabel("share of the samples that lose it")
    for axis, text in zip(axes[:, 0], figures.values(), strict=True):
        axis.set_ylabel(plain_title(text))
    figure.align_ylabels(axes[:, 0])
    figure.canvas.draw()
    for column, rows in enumerate(panels.values()):
        for axis, key in zip(axes[:, column], figures, strict=True):
            name_ends(axis, rows, names, key)
    figure.suptitle(title, fontsize=10.5, y=1 - 0.12 / height, va="top")
    note = "Held-out samples. Bands: ± 1 standard\ndeviation over random choices and seeds."
    figure.text(0.5, 0.1 / height, note, ha="center", fontsize=8, color=command.QUIET)
    return figure


def mean_curve(rows: Sequence[Row], name: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns mean and standard deviation over draws and runs at each rate; None where the metric is undefined."""
    values = [[row[key] for row in rows if row["hidden"] == name and row["rate"] == rate] for rate in RATES]
    if not all(values) or any(value is None for some in values for value in some):
        return None
    table = np.array(values, np.float64)
    return table.mean(axis=1), table.std(axis=1, ddof=1) if table.shape[1] > 1 else np.zeros(len(table))


def curve_style(names: Sequence[str], name: str) -> dict[str, Any]:
    """Returns the colour, dash and mark of a curve."""
    if name == TOGETHER:
        return {"color": "black", "linestyle": "-", "marker": "", "lw": 2.4}
    colour, dash, mark = LOOKS[names.index(name) % len(LOOKS)]
    return {"color": colour, "linestyle": dash, "marker": mark, "lw": 1.4}


def draw_panel(axis: "command.Axes", rows: Sequence[Row], names: Sequence[str], key: str) -> None:
    """Draws the curves of one run, or of the seeds of one method."""
    for name in names:
        found = mean_curve(rows, name, key)
        if found is None:
            continue
        style = curve_style(names, name)
        axis.fill_between(RATES, found[0] - found[1], found[0] + found[1], color=style["color"], alpha=0.15, lw=0)
        axis.plot(RATES, found[0], markersize=3.5, markevery=2, markeredgewidth=0, **style)
    axis.set_xlim(0.0, 1.0)
    axis.grid(axis="y", color="#e3e3e3", lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="y", nbins=5)


def name_ends(axis: "command.Axes", rows: Sequence[Row], names: Sequence[str], key: str) -> None:
    """Writes each curve's name next to its end, moved apart where two would overlap."""
    ends = {name: found[0][-1] for name in names if (found := mean_curve(rows, name, key)) is not None}
    if not ends:
        return
    ordered = sorted(ends, key=ends.__getitem__)
    low, high = axis.get_ylim()
    points = axis.get_window_extent().height / axis.figure.dpi * 72
    heights = np.array([(ends[name] - low) / (high - low) for name in ordered])
    places = spread_apart(heights, (NAME_SIZE + 1.5) / points, -0.06, 1.06)
    for name, height, at in zip(ordered, heights, places, strict=True):
        weight = "bold" if name == TOGETHER else "normal"
        words = {"fontsize": NAME_SIZE, "fontweight": weight, "line": 0.6}
        name_end(axis, name, height, (1.07, at), curve_style(names, name)["color"], **words)


def summary(panels: dict[str, list[Row]], task: Task = CLASSES) -> str:
    """Returns the leading figure at rates 0, 0.5 and 1 as text."""
    lead, title = next(iter(task.compared.items()))
    lines = [f"{f'{plain_title(title)} at a rate of':<44} {'0':>6} {'0.5':>6} {'1':>6}"]
    for label, rows in panels.items():
        for name in dict.fromkeys(row["hidden"] for row in rows):
            found = mean_curve(rows, name, lead)
            cells = " ".join(f"{task.shown(None if found is None else found[0][i]):>6}" for i in (0, 5, 10))
            lines.append(f"{f'{label}, {name}':<44} {cells}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    strings = {"protocols": ",".join(missingness.PROTOCOLS), "rates": "0.2,0.5"}
    paths, options = command.read_options(arguments, integers={"draws": (5, 1), "seed": (0, 0)}, strings=strings)
    protocols, rates = gaps.protocols_of(options.protocols), gaps.rates_of(options.rates)
    runs, rows, gapped = [], [], []
    for run in opening.open_runs(paths):
        runs.append(run)
        total = (len(run.data.groups.modalities) + 1) * options.draws * len(RATES)
        found = curves(run, options)
        rows.append(list(progress.over(found, "points of curves", total)))
        if protocols:
            found, total = gaps.effects(run, protocols, rates, options), len(gaps.MODES) * len(protocols) * len(rates)
            gapped.append(differences.corrected([row for some in progress.over(found, "gaps", total) for row in some]))
    folder, task = opening.output_folder(paths[0]), opening.same_task(runs)
    panels = command.panels(runs, rows)
    drawn = {label: command.titled(runs[0], some, "hidden") for label, some in panels.items()}
    columns = (*COLUMNS, *task.compared)
    command.write_csv(folder / f"{NAME}.csv", columns, [row for found in rows for row in found])
    data = ", ".join(dict.fromkeys(run.data.manifest.title for run in runs))
    command.write_figure(folder / NAME, lambda: draw(drawn, f"Robustness to missing modalities\n{data}", task))
    print(summary(panels, task))
    print(f"Written: {folder / NAME}.csv, .png, .svg")
    if gapped:
        stem, found = folder / f"{NAME}_gaps", dict(zip(command.titles(runs), gapped, strict=True))
        command.write_csv(stem.with_suffix(".csv"), gaps.COLUMNS, [row for some in gapped for row in some])
        command.write_figure(stem, lambda: gaps.draw(found, f"Robustness to gaps, {data}", task))
        for name, some in found.items():
            print(f"\n{name}\n{gaps.summary(some, task)}")
        print(f"Written: {stem}.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
