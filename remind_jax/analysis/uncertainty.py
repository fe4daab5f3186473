"""Measures how sure the shared router is, and the gate at other thresholds (REMIND table 6, 3.3, 7.2).

    remind analyse uncertainty --workdir=RUN

    --split=held_out  held_out | tuning | train; choose thresholds on `tuning`
    --points=50       intervals of the grid of thresholds, from 0 to the largest value of a metric
    --block=0         fusion block

Writes under RUN/analysis: uncertainty.csv (quantiles of every metric over tokens and over samples,
for each combination), uncertainty_thresholds.csv (how often the gate is open at a threshold, and
the accuracy if it were, of other tasks than classes the loss), .png and .svg. The metrics are those
of the shared router, which the gate looks at; a sample's value is the mean over its tokens and
slots, as for fusion.gate_granularity=sample. How to read the result: docs/analyses.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import COLOURS, GRID, INK, LINES, QUIET, SIDES, Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.evaluation import figures
from remind_jax.inference import gate
from remind_jax.models.model import Params
from remind_jax.ops import routing

NAME = "uncertainty"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
COLUMNS = (
    *("run", "method", "seed", "metric", "level", "group", "tail", "n", "mean"),
    *(f"q{round(100 * q):02d}" for q in QUANTILES),
    "settings",
)
PARTS = ("all", "head", "tail")


def threshold_columns(marked: str) -> tuple[str, ...]:
    """Returns the columns of the table of thresholds, of a task whose samples are judged by their `marked`."""
    of_parts = (f"{name}_{part}" for name in ("open", marked, "n") for part in PARTS)
    return "run", "method", "seed", "metric", "opens", "at", "threshold", "configured", *of_parts, "settings"


class Measured(NamedTuple):
    """Uncertainty of a run's router of e experts.

    `tokens` has each metric of every token [n, t], without the joint one, which only samples have, and `samples` each
    metric of every sample [n]. `marks` are those of the task (`marked`: whether predictions are right, or losses) with
    the gate never and always open, [n] each; None for a run without a gate or with several blocks. `groups` are rows of
    `command.combinations`, head first, and `index`, int [n], is the row of each sample.
    """

    tokens: dict[str, np.ndarray]
    samples: dict[str, np.ndarray]
    marks: tuple[np.ndarray, np.ndarray] | None
    groups: list[Row]
    index: np.ndarray
    experts: int
    marked: str = "accuracy"

    @property
    def parts(self) -> dict[str, np.ndarray]:
        """The samples of each of `PARTS`, bool [n]."""
        tail = np.array([group["tail"] for group in self.groups])[self.index]
        return {"all": np.ones(len(tail), bool), "head": ~tail, "tail": tail}


def measures(logits: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Computes every metric of tokens [b, n], as means over slots, and of samples [b], as the gate reads them.

    `logits` [b, n, e, s] are those of the shared router. The joint entropy exists for samples only.
    """
    values = {name: metric(logits) for name, (metric, _) in routing.UNCERTAINTY_METRICS.items()}
    tokens = {name: jnp.mean(x, axis=2) for name, x in values.items() if name != "joint_entropy"}
    axes = routing.GATE_GRANULARITY["sample"]
    return tokens, {name: jnp.mean(x, axis=axes) for name, x in values.items()}


def largest(metric: str, experts: int) -> float:
    """Returns the largest value that a metric can have."""
    if metric == "kl":
        return math.log(experts)
    return 1.0 - 1.0 / experts if metric in ("gini", "variance") else 1.0


def is_open(metric: str, values: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which samples [n] have an open gate, by the rule of `routing.gate_is_open`."""
    sign = routing.UNCERTAINTY_METRICS[metric][1]
    return sign * values >= sign * threshold


def measure(run: Run, options: Options) -> Measured:
    """Runs a network over a split: measures its router, and predicts with the gate open and shut."""
    model = run.model
    offset, scale = jnp.asarray(model.offset), jnp.asarray(model.scale)
    # The gate of a later block reads the outputs of the earlier ones, so that outputs of two passes cannot be mixed.
    gates = ("never", "always") if run.config.fusion.group_routers and run.config.fusion.blocks == 1 else ()

    def function(params: Params, batch: Any) -> Any:
        shared = model.network.route(params, batch, gate=model.gate).blocks[options.block].shared
        logits = [model.network.apply(params, batch, gate=gate).logits.astype(jnp.float32) for gate in gates]
        marks = [run.task.marks(x + offset[batch["group"]], batch["label"], scale) for x in logits]
        return measures(shared), marks

    (tokens, samples), marks = command.over_rows(run, options.split, function)
    groups, index = command.combinations(run, options.split)
    tokens, samples = ({x: table[x] for x in routing.UNCERTAINTY_METRICS if x in table} for table in (tokens, samples))
    return Measured(tokens, samples, tuple(marks) or None, groups, index, run.config.fusion.experts, run.task.marked)


def quantile_rows(found: Measured) -> list[Row]:
    """Returns quantiles of all samples, head, tail and every combination, over samples and over tokens."""
    parts = [(name, None if name == "all" else name == "tail", rows) for name, rows in found.parts.items()]
    parts += [(group["group"], group["tail"], found.index == i) for i, group in enumerate(found.groups)]
    rows = []
    for level, table in (("sample", found.samples), ("token", found.tokens)):
        for metric, values in table.items():
            for name, tail, inside in parts:
                if inside.any():
                    part = values[inside].reshape(-1)
                    row = {"metric": metric, "level": level, "group": name, "tail": tail, "n": len(part)}
                    at = np.quantile(part, QUANTILES)
                    shown = {f"q{round(100 * q):02d}": x for q, x in zip(QUANTILES, at, strict=True)}
                    rows.append(row | {"mean": float(part.mean())} | shown)
    return rows


def thresholds(metric: str, values: np.ndarray, experts: int, points: int) -> list[tuple[str, float]]:
    """Returns thresholds in ascending order: a grid over all possible values, and 21 quantiles of `values`."""
    grid = [("grid", float(x)) for x in np.linspace(0.0, largest(metric, experts), points + 1)]
    inside = [("quantile", float(x)) for x in np.unique(np.quantile(values, np.linspace(0.0, 1.0, 21)))]
    return sorted(grid + inside, key=lambda one: one[1])


def threshold_row(found: Measured, metric: str, threshold: float) -> Row:
    """Returns how often the gate opens at a threshold, and the mean of marks if it decides by sample."""
    opened = is_open(metric, found.samples[metric], threshold)
    row: Row = {"metric": metric, "threshold": threshold}
    row["opens"] = "from" if routing.UNCERTAINTY_METRICS[metric][1] > 0 else "up to"
    marks = None if found.marks is None else np.where(opened, found.marks[1], found.marks[0])
    for name, inside in found.parts.items():
        some = inside.any()
        row[f"n_{name}"] = int(inside.sum())
        row[f"open_{name}"] = float(opened[inside].mean()) if some else None
        row[f"{found.marked}_{name}"] = float(marks[inside].mean()) if some and marks is not None else None
    return row


def threshold_rows(found: Measured, points: int, configured: tuple[str, float]) -> list[Row]:
    """Returns the rows of the table of thresholds, the run's own among them."""
    rows = []
    for metric, values in found.samples.items():
        here = [("configured", configured[1])] if metric == configured[0] else []
        for at, threshold in [*here, *thresholds(metric, values, found.experts, points)]:
            rows.append(threshold_row(found, metric, threshold) | {"at": at, "configured": at == "configured"})
    return rows


def summary(found: Measured, rows: Sequence[Row], configured: tuple[str, float]) -> str:
    """Returns the summary for a terminal."""
    lines = [f"{'metric':<16} {'head median':>11} {'tail median':>11} {'lowest':>8} {'highest':>8}"]
    for metric, values in found.samples.items():
        sides = [np.median(values[found.parts[p]]) if found.parts[p].any() else np.nan for p in ("head", "tail")]
        cells = " ".join(f"{'-' if np.isnan(x) else f'{x:.4f}':>11}" for x in sides)
        lines.append(f"{metric:<16} {cells} {values.min():8.4f} {values.max():8.4f}")
    if found.marks is None:
        return "\n".join([*lines, "No gate of one block to open: accuracies are left out."])
    called = {"accuracy": "acc."}.get(found.marked, found.marked)
    lines.append(f"\n{'gate':<34} {'open':>6} " + " ".join(f"{called + ' ' + part:>10}" for part in PARTS))
    own = next(row for row in rows if row["configured"])
    never, always = (threshold_row(found, "entropy", x) for x in (math.inf, -math.inf))
    named = {"always shut": never, "always open": always, f"{configured[0]} at {configured[1]:g} (the run's)": own}
    for name, row in named.items():
        marks = [row[f"{found.marked}_{part}"] for part in PARTS]
        cells = " ".join(f"{'-' if x is None else f'{x:.3f}':>10}" for x in marks)
        lines.append(f"{name:<34} {row['open_all']:6.2f} {cells}")
    return "\n".join(lines)


BINS = 30
WIDE = 4  # metrics side by side
RANGE = (0.002, 0.998)  # quantiles that the axes show
LEAST_SPAN = 0.1  # smallest range of accuracies, so that single samples make no large steps


def draw(found: Measured, configured: tuple[str, float], title: str) -> "command.Figure":
    """Draws for each metric its histogram, the share of open gates, and the accuracy, over one axis of values."""
    labels = ["share of\nsamples", "gate open", f"{found.marked}\nat threshold"][: 2 if found.marks is None else 3]
    metrics = list(found.samples)
    bands = -(-len(metrics) // WIDE)
    figure = command.new_figure(10.4, 0.9 + bands * (0.35 + 1.3 * len(labels)))
    for band, part in enumerate(figure.subfigures(bands, 1, squeeze=False)[:, 0]):
        axes = part.subplots(len(labels), WIDE, sharex="col", sharey="row", squeeze=False)
        for axis, label in zip(axes[:, 0], labels, strict=True):
            axis.set_ylabel(label)
        for column, metric in enumerate(metrics[band * WIDE : (band + 1) * WIDE]):
            ends = draw_metric(axes[:, column], found, metric, configured)
            axes[-1, column].set_xlabel(metric.replace("_", " "), fontsize=9, fontweight="bold")
        for row, axis in enumerate(axes[:, -1]):
            name_sides(axis, ends if row == 2 else None)
    figure.suptitle(title, fontsize=10.5)
    return figure


def draw_metric(axes: Sequence["command.Axes"], found: Measured, metric: str, configured: tuple[str, float]) -> dict:
    """Draws one column of the figure; returns the accuracies at its right end by part."""
    values = found.samples[metric]
    low, high = np.quantile(values, RANGE)
    high = max(high, low + 1e-6)
    room = 0.05 * (high - low)
    edges, fine = np.linspace(low, high, BINS + 1), np.linspace(low - room, high + room, 201)
    lines = [threshold_row(found, metric, x) for x in fine]
    for side, name in SIDES.items():
        inside = found.parts[name]
        if not inside.any():
            continue
        share = np.histogram(np.clip(values[inside], low, high), edges)[0] / inside.sum()
        look = {"color": COLOURS[side], "linestyle": LINES[side]}
        fill = {"facecolor": "none", "hatch": "////"} if side else {"facecolor": COLOURS[side], "alpha": 0.35}
        axes[0].stairs(share, edges, fill=True, edgecolor=COLOURS[side], lw=0, **fill)
        axes[0].stairs(share, edges, lw=1.2, **look)
        axes[1].plot(fine, [row[f"open_{name}"] for row in lines], lw=1.5, **look)
        for axis in axes[2:]:
            axis.plot(fine, [row[f"{found.marked}_{name}"] for row in lines], lw=1.5, **look)
    for axis in axes[2:]:
        axis.plot(fine, [row[f"{found.marked}_all"] for row in lines], color=INK, lw=0.9, linestyle=":")
        low_y, high_y = axis.get_ylim()
        more = max(0.0, LEAST_SPAN - (high_y - low_y)) / 2
        axis.set_ylim(low_y - more, high_y + more)
    for axis in axes:
        finish(axis, (low - room, high + room), configured[1] if metric == configured[0] else None)
    return {part: lines[-1][f"{found.marked}_{part}"] for part in PARTS}


def name_sides(axis: "command.Axes", ends: dict[str, float | None] | None) -> None:
    """Writes head and tail (and all) right of the last column, at the ends of their lines where given."""
    looks = {"head": (COLOURS[False], "bold"), "tail": (COLOURS[True], "bold"), "all": (INK, "normal")}
    place = {"head": 0.85, "tail": 0.68}
    if ends is not None:
        low, high = axis.get_ylim()
        there = sorted(((y - low) / (high - low), part) for part, y in ends.items() if y is not None)
        heights = figures.spread_apart(np.array([y for y, _ in there]), 0.15, 0.05, 0.95)
        place = {part: float(y) for y, (_, part) in zip(heights, there, strict=True)}
    for part, y in place.items():
        colour, weight = looks[part]
        at = {"xycoords": "axes fraction", "va": "center", "fontsize": 8.5}
        axis.annotate(part, (1.02, y), color=colour, fontweight=weight, **at)


def finish(axis: "command.Axes", limits: tuple[float, float], threshold: float | None) -> None:
    """Draws limits, grid and the run's own threshold, or an arrow towards it."""
    axis.set_xlim(*limits)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="x", nbins=4)
    axis.tick_params(labelsize=7.5)
    if threshold is None:
        return
    words, x, side = f"gate at {threshold:g}", (threshold - limits[0]) / (limits[1] - limits[0]), "center"
    if x < 0:
        words, x, side = f"\u2190 {words}", 0.02, "left"
    elif x > 1:
        words, x, side = f"{words} \u2192", 0.98, "right"
    else:
        axis.axvline(threshold, color=QUIET, lw=1.2)
    if axis.get_subplotspec().is_first_row():
        axis.annotate(words, (x, 1.03), xycoords="axes fraction", ha=side, fontsize=7.5, color=QUIET)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    integers, choices = {"points": (50, 1), "block": (0, 0)}, {"split": command.SPLITS}
    (path,), options = command.read_options(arguments, integers=integers, choices=choices, several=False)
    (run,) = opening.open_runs([path], functools.partial(command.check_routed, block=options.block))
    found, folder = measure(run, options), opening.output_folder(path)
    common = command.identity(run) | {"settings": f"split={options.split} block={options.block}"}
    threshold = gate.thresholds(run.config, run.model.params)[options.block]
    configured = (run.config.fusion.gate_metric, threshold)
    rows = threshold_rows(found, options.points, configured)
    command.write_csv(folder / f"{NAME}.csv", COLUMNS, [common | row for row in quantile_rows(found)])
    command.write_csv(
        folder / f"{NAME}_thresholds.csv", threshold_columns(found.marked), [common | row for row in rows]
    )
    title = f"Uncertainty of the shared router: {run.config.method}, {options.split.replace('_', '-')} samples"
    command.write_figure(folder / NAME, lambda: draw(found, configured, title))
    print(summary(found, rows, configured))
    print(f"Written: {folder / NAME}.csv, _thresholds.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
