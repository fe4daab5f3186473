"""Shows combinations, how accuracy follows their frequency, and whether missingness tells the label.

    remind analyse availability --workdir=RUN [--also=RUN2,RUN3]

    --also=RUN2,…     further runs on the same data, whose accuracies are drawn next to it

REMIND figure 1 (a, b), and the audit of W104. Writes under RUN/analysis: availability.csv (each
combination with its train count, and its held-out accuracy with an exact binomial interval),
availability_audit.csv (area under the ROC curve of a logistic regression from presence of
modalities to the label, cross-validated by patient on the rows that are not held out), .png and
.svg. How to read the result: docs/analyses.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli, tasks
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import COLOURS, GRID, INK, LINES, MARKERS, QUIET, SIDES, Row
from remind_jax.analysis.opening import Run
from remind_jax.data import groups as combinations
from remind_jax.data import splits
from remind_jax.data.check import AUDIT_ROWS, INFORMATIVE_AUROC
from remind_jax.evaluation import figures, intervals
from remind_jax.evaluation.names import of_modalities, short_names
from remind_jax.evaluation.report import plain_title
from remind_jax.studies.tables import CLASSES
from remind_jax.tasks.task import Task

NAME = "availability"
COLUMNS = ("run", "method", "seed", "rank", "group", "modalities", "tail", "n_train", "train_fraction", "n")
AUDIT_COLUMNS = ("run", "seed", "presence_of", "present_fraction", "n", "auroc", "note")


class Accuracy(NamedTuple):
    """One run's accuracies, or leading figures of another task: its title, and the rows of the table, by frequency.

    `pooled` is that of all head samples and of all tail samples, by `tail`, None without samples; `correlation` is
    Spearman's correlation of it and train count over combinations that have both.
    """

    title: str
    rows: list[Row]
    pooled: dict[bool, float | None]
    correlation: float


def accuracy_rows(report: Mapping[str, Any]) -> list[Row]:
    """Returns each combination of a report with its rank by train count, and its accuracy with the exact interval.

    The report's own intervals are bootstraps where there are enough samples; exact ones are comparable throughout. Of
    other tasks rows have the leading figure with the interval of the report.
    """
    rows, lead, title = [], leading(report), of_modalities(report)
    ordered = sorted(report["groups"], key=lambda row: -row["n_train"])
    for rank, group in enumerate(ordered, 1):
        row = {key: group[key] for key in ("group", "tail", "n_train", "train_fraction", "n", lead)}
        row |= {"rank": rank, "modalities": len(group["modalities"]), "present": list(map(title, group["modalities"]))}
        row[f"{lead}_low"], row[f"{lead}_high"] = group.get(f"{lead}_ci") or (None, None)
        if lead == "accuracy" and group["n"]:
            right = np.arange(group["n"]) < round(group["accuracy"] * group["n"])
            row["accuracy_low"], row["accuracy_high"] = intervals.exact_interval(right)
        rows.append(row)
    return rows


def leading(report: Mapping[str, Any]) -> str:
    """Names the figure that leads a report."""
    return next(iter(tasks.of_report(report).compared))


def rank_correlation(rows: Sequence[Row], lead: str = "accuracy") -> float:
    """Returns Spearman's correlation of train count and a figure over combinations with both; nan with fewer than 3."""
    from scipy.stats import spearmanr

    known = [(row["n_train"], row[lead]) for row in rows if row[lead] is not None and row["n_train"]]
    if len(known) < 3 or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return float("nan")
    return float(spearmanr(known).statistic)


def audit(run: Run) -> list[Row]:
    """Measures how well the label can be told from presence: of all modalities together, then of each alone.

    Rows are those of W104: rows that are not held out, thinned to `check.AUDIT_ROWS`. Labels without classes are told
    apart as `targets.strata` does.
    """
    manifest = run.data.manifest
    rows = np.flatnonzero(np.isin(run.data.split, (splits.TRAIN, splits.TUNING)))
    rows = rows[:: -(-len(rows) // AUDIT_ROWS) or 1]
    presence, labels = manifest.presence[rows], manifest.strata[rows]
    patients = manifest.table[manifest.schema.patient_id].to_numpy()[rows]
    common = {"run": str(run.path), "seed": run.config.seed, "n": len(rows)}
    found = []
    for name, columns in [("all", slice(None)), *((x, [j]) for j, x in enumerate(run.data.groups.modalities))]:
        here = presence[:, columns]
        always = bool((here == here[:1]).all())
        auroc = None if always else combinations.mask_auroc(here, labels, patients)
        note = "the same in all rows" if always else "too few patients of a class" if auroc is None else ""
        share = float(here.mean()) if name != "all" else None
        found.append(common | {"presence_of": name, "present_fraction": share, "auroc": auroc, "note": note})
    return found


def read(run: Run, title: str) -> Accuracy:
    """Reads one run's accuracies from its report."""
    report, lead = run.model.report, leading(run.model.report)
    rows = accuracy_rows(report)
    pooled = {side: report[f"{name}_pooled"][lead] for side, name in SIDES.items()}
    return Accuracy(title, rows, pooled, rank_correlation(rows, lead))


def summary(found: Sequence[Accuracy], audited: Sequence[Row], task: Task = CLASSES) -> str:
    """Returns the summary for a terminal."""

    def cell(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None or np.isnan(value) else format(value, form)

    rows, title = found[0].rows, plain_title(next(iter(task.compared.values())))
    total = sum(row["n_train"] for row in rows)
    tail = [row["train_fraction"] for row in rows if row["tail"] and row["n_train"]]
    lines = [
        f"{sum(row['n_train'] > 0 for row in rows)} combinations of {total} training samples; the most frequent has "
        f"{rows[0]['train_fraction']:.0%}, the {len(tail)} of the tail have {sum(tail):.0%}",
        f"{title:<34} {'head':>6} {'tail':>6}  rank correlation with train count",
    ]
    for one in found:
        head, tail = (cell(one.pooled[side]) for side in SIDES)
        lines.append(f"{one.title:<34} {head:>6} {tail:>6}  {cell(one.correlation, '+.2f')}")
    whole = audited[0]["auroc"]
    verdict = "cannot be computed" if whole is None else f"has AUROC {whole:.2f}"
    if whole is not None:
        verdict += ": informative (W104)" if whole > INFORMATIVE_AUROC else f", no more than {INFORMATIVE_AUROC}"
    lines.append(f"The label told from what is present {verdict}")
    return "\n".join(lines)


NAMED = 30  # with more combinations, the bars of the rank plot have no names
LEAST_X = 0.7  # left end of a bar, since a logarithmic axis has no zero
UNSEEN_X = 0.5  # place of combinations without training samples


def draw(
    found: Sequence[Accuracy], audited: Sequence[Row], declared: Sequence[str], task: Task = CLASSES
) -> "command.Figure":
    """Draws train counts by rank, a panel for each run with accuracy over train count, and the audit."""
    rows = [row for row in found[0].rows if row["n_train"]]
    height = max(3.1, 1.3 + 0.19 * min(max(len(rows), len(audited)), NAMED))
    figure = command.new_figure(7.4 + 2.9 * len(found), height)
    axes = figure.subplots(1, 2 + len(found), width_ratios=[2.2, *[2.6] * len(found), 1.7])
    draw_ranks(axes[0], rows, declared)
    for axis, one in zip(axes[1:-1], found, strict=True):
        draw_accuracy(axis, one, task)
    exact = "exact " if task.factor == 100 else ""
    axes[1].set_ylabel(f"held-out {plain_title(next(iter(task.compared.values())))}\n({exact}95 % interval)")
    draw_audit(axes[-1], audited)
    return figure


def log_scale(axis: "command.Axes") -> None:
    """Makes a logarithmic axis of training samples with plain numbers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set(xscale="log", xlabel="training samples (log scale)")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else ""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw_ranks(axis: "command.Axes", rows: Sequence[Row], declared: Sequence[str]) -> None:
    """Draws the train count of every combination on a log scale, the most frequent at the top."""
    ranks, tail = [row["rank"] for row in rows], [row["tail"] for row in rows]
    for row in rows:
        look = {"facecolor": "white", "hatch": "//////"} if row["tail"] else {"facecolor": COLOURS[False]}
        look |= {"edgecolor": COLOURS[row["tail"]], "lw": 0.8}
        axis.barh(row["rank"], row["n_train"] - LEAST_X, left=LEAST_X, height=0.74, **look)
        if len(rows) <= NAMED:
            place = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 7}
            axis.annotate(f"{row['n_train']:,}", (row["n_train"], row["rank"]), color=QUIET, **place)
    log_scale(axis)
    axis.set(xlim=(LEAST_X, 4.5 * rows[0]["n_train"]), ylim=(ranks[-1] + 0.6, 0.4))
    names = [""] * len(rows)
    if len(rows) <= NAMED:
        names, _ = short_names((row["present"] for row in rows), declared, 28)
    command.name_rows(axis, ranks, names, tail)
    axis.tick_params(axis="y", length=0)
    axis.set_title("Modality combinations", fontsize=10, fontweight="bold")


def draw_accuracy(axis: "command.Axes", found: Accuracy, task: Task = CLASSES) -> None:
    """Draws the leading figure of every combination that has it over its train count."""
    lead = next(iter(task.compared))
    known = [row for row in found.rows if row[lead] is not None]
    for row in known:
        x, colour = row["n_train"] or UNSEEN_X, COLOURS[row["tail"]]
        if row[f"{lead}_low"] is not None:
            axis.vlines(x, row[f"{lead}_low"], row[f"{lead}_high"], color=colour, lw=0.9, alpha=0.55)
        size = 14 + 60 * np.sqrt(row["n"] / max(r["n"] for r in known))
        fill = {"facecolor": "white", "linewidth": 1.1} if row["tail"] else {"facecolor": colour, "linewidth": 0.6}
        axis.scatter(x, row[lead], s=size, marker=MARKERS[row["tail"]], edgecolor=colour, zorder=3, **fill)
    log_scale(axis)
    low, high = axis.get_xlim()
    bottom, top = (-0.03, 1.03) if task.factor == 100 else axis.get_ylim()
    axis.set(xlim=(low / 1.3, high * 1.3), ylim=(bottom, top))
    if any(not row["n_train"] for row in known):
        axis.axvspan(low / 1.3, LEAST_X, color=GRID, alpha=0.5, lw=0)
        axis.annotate(
            "unseen",
            (UNSEEN_X, top - 0.03 * (top - bottom)),
            rotation=90,
            ha="center",
            va="top",
            fontsize=7.5,
            color=QUIET,
        )
    ends = sorted((y, side) for side, y in found.pooled.items() if y is not None)
    gap = 0.061 * (top - bottom)
    heights = figures.spread_apart(np.array([y for y, _ in ends]), gap, bottom + gap / 2, top - gap / 2)
    for at, (y, side) in zip(heights, ends, strict=True):
        axis.axhline(y, color=COLOURS[side], lw=1.0, linestyle=LINES[side], zorder=1)
        words = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "annotation_clip": False}
        axis.annotate(
            f"{SIDES[side]} {task.shown(y)}{' %' * (task.factor == 100)}",
            (1.01, at),
            color=COLOURS[side],
            fontweight="bold",
            **words,
        )
    axis.set_title(found.title, fontsize=10, fontweight="bold", color=INK)
    axis.grid(axis="y", color=GRID, lw=0.6)


def draw_audit(axis: "command.Axes", audited: Sequence[Row]) -> None:
    """Draws the area under the ROC curve of presence, all modalities first."""
    for y, row in enumerate(audited):
        if row["auroc"] is None:
            words = "always there" if row["present_fraction"] == 1.0 else "-"
            axis.annotate(words, (0.505, y), va="center", fontsize=7, color=QUIET)
            continue
        colour = COLOURS[True] if row["auroc"] > INFORMATIVE_AUROC else INK
        axis.hlines(y, 0.5, row["auroc"], color=colour, lw=1.4)
        axis.plot(row["auroc"], y, marker="D" if y == 0 else "o", ms=5, color=colour)
        above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axis.annotate(f"{row['auroc']:.2f}", (row["auroc"], y), color=colour, **above)
    areas = [row["auroc"] for row in audited if row["auroc"] is not None]
    axis.set_xlim(min([0.46, *(x - 0.03 for x in areas)]), max([0.66, *(x + 0.05 for x in areas)]))
    axis.axvline(0.5, color=QUIET, lw=0.8)
    axis.axvline(INFORMATIVE_AUROC, color=QUIET, lw=0.8, linestyle=":")
    place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "bottom", "ha": "left"}
    axis.annotate(" W104", (INFORMATIVE_AUROC, 0.0), fontsize=7, color=QUIET, **place)
    axis.set_yticks(range(len(audited)), ["all together", *(row["presence_of"] for row in audited[1:])], fontsize=7.5)
    axis.set_ylim(len(audited) - 0.4, -0.7)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("AUROC")
    axis.set_title("Label told\nfrom presence", fontsize=10, fontweight="bold")
    axis.spines[["top", "right", "left"]].set_visible(False)


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    paths, _ = cli.parse_runs(arguments)
    runs = list(opening.open_runs(paths))
    opening.check_comparable(runs)
    task = opening.same_task(runs)
    lead = next(iter(task.compared))
    found = [read(run, title) for run, title in zip(runs, command.titles(runs), strict=True)]
    audited, folder = audit(runs[0]), opening.output_folder(paths[0])
    rows = [command.identity(run) | row for run, one in zip(runs, found, strict=True) for row in one.rows]
    command.write_csv(folder / f"{NAME}.csv", (*COLUMNS, lead, f"{lead}_low", f"{lead}_high"), rows)
    command.write_csv(folder / f"{NAME}_audit.csv", AUDIT_COLUMNS, audited)
    shown = command.titled(runs[0], audited, "presence_of")
    command.write_figure(folder / NAME, lambda: draw(found, shown, tuple(runs[0].titles.values()), task))
    print(summary(found, audited, task))
    print(f"Written: {folder / NAME}.csv, _audit.csv, .png, .svg")


if __name__ == "__main__":
    cli.run(main, __doc__)
