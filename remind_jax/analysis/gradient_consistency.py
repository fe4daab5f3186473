"""Measures gradient consistency of combinations over training (REMIND eq. 1, 9 to 17; figures 1b, 3).

    remind analyse gradient_consistency --workdir=RUN [--also=RUN2,RUN3]

    --also=RUN2,…       further runs to draw next to it; runs that differ in their seed alone share
                        a column
    --output=auto       whose gradients: margin (true-class logit less the largest other; auto of
                        classes) | loss (auto of other tasks, which have no other) | logit
    --score=abs         score of the curves: abs (|cos|) | signed (Eq. 13, signs by uᵀΘ1 ≥ 0)
    --n=32              samples of a combination
    --n_whole=128       samples of the whole data set
    --whole=natural     shares in these: natural (each combination with its share) | balanced (n
                        each)
    --draws=3           independent draws of samples; the band is the spread over draws and seeds
    --split=train       train | tuning | held_out
    --params=^block_    regular expression of the parameters; the fusion blocks by default
    --method=auto       auto | exact | gram | lanczos
    --seed=0            seed of the draws

Writes gradient_consistency.csv, .png and .svg under RUN/analysis. The analysis needs checkpoints:
train with --config.train.keep=0 to keep all. How to read the result: docs/gradient_consistency.md.
"""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import GRID, QUIET, Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.errors import UserError
from remind_jax.inference import model_folder
from remind_jax.models.model import is_statistic
from remind_jax.objectives import logit_adjust
from remind_jax.ops import ntk
from remind_jax.runtime import progress
from remind_jax.training import optimizer as states

NAME = "gradient_consistency"
COLUMNS = (
    *("run", "method", "seed", "stage", "step", "group", "tail", "n", "n_train", "draw", "gc", "abs_gc"),
    *("cos_mean_gradient", "lambda1", "lambda2", "trace", "settings"),
)


def settings_text(options: Options, gate: str, method: str) -> str:
    """Returns the options that rows of the table depend on."""
    whole = f"balanced:{options.n}" if options.whole == "balanced" else f"natural:{options.n_whole}"
    parts = {"output": options.output, "whole": whole, "split": options.split, "params": options.params}
    parts |= {"method": method, "gate": gate, "seed": options.seed}
    return " ".join(f"{key}={value}" for key, value in parts.items())


def output_of(run: Run, output: str) -> str:
    """Returns whose gradients are taken, of `auto` too. Raises UserError: the task has no such output."""
    known = run.task.gradients
    if output not in ("auto", *known):
        raise UserError(f"--output={output}: a task {run.task.name} has none; take {' or '.join(known)}")
    return known[0] if output == "auto" else output


def make_outputs(run: Run, output: str) -> Callable[..., Any]:
    """Returns the function (params, batch, fixed) -> [n] whose gradients are taken, in evaluation mode.

    `output` is a key of `ntk.OUTPUTS`; `loss` is the run's own loss of single samples, unweighted.
    """
    gate, objective, offset = run.model.gate, run.config.objective, None
    scalar = ntk.OUTPUTS.get(output)
    if output == "loss":
        scalar = run.model.task.loss
        offset = logit_adjust.train_offset(objective.prior, objective.prior_mode, run.data.label_counts)

    def outputs(params, batch, fixed):
        logits = run.model.network.apply({**fixed, **params}, batch, gate=gate).logits.astype("float32")
        return scalar(logits if offset is None else logits + offset.astype("float32")[batch["group"]], batch["label"])

    return outputs


def consistency_rows(run: Run, options: Options) -> Iterator[list[Row]]:
    """Yields rows of the table, a list for each checkpoint and draw.

    Raises UserError: nothing matches `params`, the split is empty, or an output depends on more than its own sample.
    """
    if run.model.gate == "gated" and run.config.fusion.gate_granularity == "batch":
        raise UserError("fusion.gate_granularity=batch makes outputs depend on the batch: samples have no gradients")
    options.output = output_of(run, options.output)
    outputs, samples = make_outputs(run, options.output), draw_samples(run, options)
    for step, weights in run.trajectory():
        fixed, part = states.partition(weights, lambda path: re.search(options.params, path) and not is_statistic(path))
        if not part:
            there = sorted({path.partition("/")[0] for path in weights})
            raise UserError(f"no parameter matches --params={options.params}; there are {', '.join(there)}")
        for number, (whole, batches) in enumerate(samples):
            method = ntk.resolve_method(options.method, outputs, part, whole, fixed)
            found = ntk.consistencies(outputs, part, whole, batches, fixed, method=method)
            common = command.identity(run) | {"draw": number, "step": step, "stage": stage_of(run, step)}
            common |= {"settings": settings_text(options, run.model.gate, method)}
            yield [common | score._asdict() | group_facts(run, i) for i, score in sorted(found.items())]


def draw_samples(run: Run, options: Options) -> list[tuple[dict, dict[int, dict]]]:
    """Returns a batch of the whole and a batch of each group for each draw; all checkpoints use the same."""
    groups, store = run.data.groups, run.data.stores[options.split]
    index = groups.index(run.data.manifest.presence[run.data.rows(options.split)])
    known = np.flatnonzero(index < len(groups))
    if not len(known):
        raise UserError(f"split {options.split} has no samples of a combination seen in training")
    samples = []
    for number in range(options.draws):
        drawn, whole = ntk.sample_groups(
            index[known], options.n, options.n_whole, balanced=options.whole == "balanced", seed=(options.seed, number)
        )
        samples.append((store.take(known[whole]), {i: store.take(known[at]) for i, at in drawn.items()}))
    return samples


def stage_of(run: Run, step: int) -> str:
    """Returns the name of the stage that a step belongs to; its last step does."""
    return next((stage.name for stage in run.stages if step <= stage.stop), run.stages[-1].name)


def group_facts(run: Run, i: int) -> Row:
    """Returns name, tail and train count of a group."""
    groups = run.data.groups
    return {"group": groups.names[i], "tail": bool(groups.tail[i]), "n_train": int(groups.train_counts[i])}


class Curve(NamedTuple):
    """Mean and standard deviation, at each step, of replicates (run and draw), each a mean over groups."""

    steps: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    groups: int


def curve(rows: Sequence[Row], key: str) -> Curve | None:
    """Returns the curve of the rows of some groups, None without rows.

    Steps that a replicate lacks because its training ended earlier are left out.
    """
    values: dict[tuple, dict[int, list[float]]] = {}
    for row in rows:
        values.setdefault((row["run"], row["draw"]), {}).setdefault(row["step"], []).append(row[key])
    if not values:
        return None
    steps = sorted(set.intersection(*(set(by_step) for by_step in values.values())))
    table = np.array([[finite_mean(by_step[step]) for step in steps] for by_step in values.values()])
    sd = np.std(table, axis=0, ddof=1) if len(table) > 1 else np.zeros(len(steps))
    return Curve(np.array(steps), np.mean(table, axis=0), sd, len({row["group"] for row in rows}))


def finite_mean(values: Sequence[float]) -> float:
    """Returns the mean of the finite values; nan when there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def summary(panels: dict[str, list[Row]], key: str) -> str:
    """Returns head, tail and their gap at the first and the last step of each panel, as text."""
    lines = [f"{key:<28} {'step':>7} {'head':>6} {'tail':>6} {'gap':>6}"]
    for label, rows in panels.items():
        head, tail = (curve([row for row in rows if row["tail"] is side], key) for side in (False, True))
        shown = tail if head is None else head
        for at in sorted({0, len(shown.steps) - 1}):
            ends = [float("nan") if side is None else side.mean[at] for side in (head, tail)]
            cells = " ".join("     -" if np.isnan(x) else f"{x:6.2f}" for x in (*ends, ends[0] - ends[1]))
            lines.append(f"{label:<28} {shown.steps[at]:>7} {cells}")
    return "\n".join(lines)


STYLES = {
    side: {"color": command.COLOURS[side], "linestyle": command.LINES[side], "marker": command.MARKERS[side]}
    for side in command.SIDES
}
OUTPUT_NAMES = {"margin": "margin logit", "loss": "loss", "logit": "true-class logit"}


def draw(panels: dict[str, list[Row]], options: Options) -> "command.Figure":
    """Draws a column for each method: scores of head and tail over steps above, cosines of mean gradients below."""
    score = "abs_gc" if options.score == "abs" else "gc"
    name = "|cos| of dominant\ndirections" if options.score == "abs" else "cos of dominant\ndirections (signed)"
    figure = command.new_figure(1.2 + 2.9 * max(len(panels), 1.4), 5.2)
    axes = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row")
    for column, (label, rows) in enumerate(panels.items()):
        for axis, key in zip(axes[:, column], (score, "cos_mean_gradient"), strict=True):
            draw_panel(axis, rows, key)
        axes[0, column].set_title(label, fontsize=10, fontweight="bold")
        axes[1, column].set_xlabel("training step")
    axes[0, 0].set_ylabel(name)
    axes[1, 0].set_ylabel("cos of mean\ngradients")
    if options.score == "abs":
        axes[0, 0].set_ylim(0.0, 1.02)
    whole = "balanced" if options.whole == "balanced" else f"natural ({options.n_whole} samples)"
    figure.suptitle("Gradient consistency of modality combinations with the whole data set", fontsize=10.5)
    note = f"Gradients of the {OUTPUT_NAMES[options.output]}; {options.n} samples a combination, whole set {whole}.\n"
    note += "Thick: mean over combinations; band: ± 1 sd over draws and seeds; thin: single combinations."
    figure.supxlabel(note, fontsize=8, color=QUIET)
    return figure


def draw_panel(axis: "command.Axes", rows: Sequence[Row], key: str) -> None:
    """Draws head and tail of one method, named at the ends of their lines."""
    ends = []
    for side, name in ((False, "head"), (True, "tail")):
        style = STYLES[side]
        here = [row for row in rows if row["tail"] is side]
        line = curve(here, key)
        if line is None:
            continue
        for group in sorted({row["group"] for row in here}):
            single = curve([row for row in here if row["group"] == group], key)
            axis.plot(single.steps, single.mean, color=style["color"], linestyle=style["linestyle"], lw=0.7, alpha=0.45)
        axis.fill_between(line.steps, line.mean - line.sd, line.mean + line.sd, color=style["color"], alpha=0.2, lw=0)
        axis.plot(line.steps, line.mean, lw=2.0, markersize=4, markeredgewidth=0, **style)
        if np.isfinite(line.mean[-1]):
            ends.append((line.mean[-1], f"{name} ({line.groups})", style["color"], line.steps[-1]))
    label_ends(axis, ends)
    stages = {row["step"]: row["stage"] for row in rows}
    joint = [step for step, stage in stages.items() if stage == "joint"]
    if joint and "specialize" in stages.values():
        axis.axvline(max(joint), color=QUIET, lw=0.8, linestyle=":")
        axis.annotate(" stage 2", (max(joint), 0.95), xycoords=("data", "axes fraction"), fontsize=7.5, color=QUIET)
    axis.axhline(0.0, color=QUIET, lw=0.6)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="x", nbins=5)


def label_ends(axis: "command.Axes", ends: Sequence[tuple[float, str, str, int]]) -> None:
    """Writes the name of each line next to its end; two close names are moved apart."""
    from matplotlib.transforms import offset_copy

    ordered = sorted(ends)
    low, high = axis.get_ylim()
    close = len(ordered) == 2 and ordered[1][0] - ordered[0][0] < 0.09 * (high - low)
    for i, (y, text, colour, x) in enumerate(ordered):
        shift = (-5, 5)[i] if close else 0
        place = offset_copy(axis.transData, axis.figure, x=6, y=shift, units="points")
        axis.text(x, y, text, color=colour, transform=place, va="center", fontsize=8.5, fontweight="bold")


def parse(arguments: Sequence[str]) -> tuple[list[pathlib.Path], Options]:
    """Reads the command line: the runs' folders and the options; refuses what it cannot read (UserError)."""
    strings, integers = {"params": "^block_"}, {"n": (32, 2), "n_whole": (128, 2), "draws": (3, 1), "seed": (0, 0)}
    choices = {"output": ("auto", *OUTPUT_NAMES), "score": ("abs", "signed"), "whole": ("natural", "balanced")}
    choices |= {"split": ("train", "tuning", "held_out"), "method": ("auto", *ntk.METHODS)}
    paths, options = command.read_options(arguments, strings=strings, integers=integers, choices=choices)
    try:
        re.compile(options.params)
    except re.error as error:
        raise UserError(f"--params={options.params} is not a regular expression: {error}") from error
    return paths, options


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    paths, options = parse(arguments)
    # All configs are read before the slow part starts, so that a mistake costs nothing.
    for path in paths:
        model_folder.refuse_stack(path, model_folder.read_config(path))
    folder = opening.output_folder(paths[0])
    runs, rows = [], []
    with progress.make(len(paths), "runs") as bar:
        for number, path in enumerate(paths):
            bar.advance(number, path.name)
            runs.append(opening.open_run(path))
            parts = progress.over(consistency_rows(runs[-1], options), "checkpoints × draws")
            rows.append([row for part in parts for row in part])
            steps = sorted({row["step"] for row in rows[-1]})
            bar.say(f"{path}: {len(steps)} points, step {steps[0]} (initial weights) to {steps[-1]}")
            if len(steps) <= 2:
                bar.say("  too few for curves: train with --config.train.keep=0 to keep all checkpoints")
    panels = command.panels(runs, rows)
    command.write_csv(folder / f"{NAME}.csv", COLUMNS, [row for found in rows for row in found])
    command.write_figure(folder / NAME, lambda: draw(panels, options))
    print(summary(panels, "abs_gc" if options.score == "abs" else "gc"))
    print(summary(panels, "cos_mean_gradient"))
    print(f"Written: {folder / NAME}.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
