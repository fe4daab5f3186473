"""Predicts without some modalities, and shares a prediction out among modalities (Shapley values).

    remind analyse what_if --workdir=RUN --samples=0,3,10-19 --drop=dxa,diet2

    --samples=all        held-out samples by position, counted from 0, or all of them
    --drop=A,B           modalities to hide: probabilities before and after
    --keep=A,B           or the only ones to keep
    --shapley=exact      exact | none

Writes what_if.csv (one row a sample, no patient ids) and, with Shapley values, what_if.png and .svg
under RUN/analysis: the mean absolute value of each modality in each combination. The values explain
the probability of the class that the run predicts from all modalities of the sample; they add up to
it less the share of that class in training. Of other tasks they explain the expected number of
labels, the value, or the risk.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli
from remind_jax.analysis import command, opening
from remind_jax.analysis.command import Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.data.groups import count_combinations, group_name
from remind_jax.data.subsets import shapley, subset_masks
from remind_jax.errors import UserError
from remind_jax.runtime import progress
from remind_jax.studies.tables import CLASSES
from remind_jax.tasks.task import Task

NAME = "what_if"
MOST = 10  # most modalities of a sample: 2^10 predictions
MOST_ROWS = 20  # most combinations drawn
_AT_ONCE = 2**16  # number of predictions held at a time
SPLIT = "held_out"
CALLED = {"prediction": ("predicted", "predicted_after")}  # columns of a task by other names, before and after


class Shares(NamedTuple):
    """Shapley values of k samples, [k, m], nan at missing modalities, and the values without any modality [k].

    `seen` [k] is the share of a sample's subsets, the empty one left out, that are combinations of training.
    """

    values: np.ndarray
    empty: np.ndarray
    seen: np.ndarray


def shapley_shares(run: Run, positions: np.ndarray, presence: np.ndarray, whole: np.ndarray) -> Shares:
    """Computes Shapley values of one number of each prediction, by all subsets of a sample's modalities.

    Held-out samples at int positions [k] have modalities bool [k, m] and are predicted as `whole` [k, p], of which
    `Task.explained` says what is explained. Raises UserError: a sample has more than `MOST` modalities.
    """
    store = run.data.stores[SPLIT]
    most = int(presence.sum(axis=1).max(initial=0))
    if most > MOST:
        raise UserError(f"a sample has {most} modalities; exact values need at most {MOST}: --shapley=none")
    found = Shares(np.full(presence.shape, np.nan), np.zeros(len(positions)), np.zeros(len(positions)))
    masks, _, index = count_combinations(presence)
    for g, mask in enumerate(progress.over(masks, "combinations")):
        here, members = np.flatnonzero(index == g), np.flatnonzero(mask)
        parts = np.zeros((2 ** len(members), len(mask)), bool)
        parts[:, members] = subset_masks(len(members))
        found.seen[here] = np.mean(run.model.seen(parts[1:]))
        some = max(1, _AT_ONCE // len(parts))
        for block in (here[start : start + some] for start in range(0, len(here), some)):
            left = np.tile(parts, (len(block), 1))
            predictions = run.model.predict_parts(store, np.repeat(positions[block], len(parts)), left)
            explained = run.task.explained(predictions, np.repeat(whole[block], len(parts), axis=0))
            values = explained.reshape(len(block), len(parts))
            found.values[np.ix_(block, members)] = shapley(values)
            found.empty[block] = values[:, 0]
    return found


def left_after(options: Options, modalities: tuple[str, ...]) -> np.ndarray | None:
    """Returns which modalities stay, bool [m]; None where all stay."""
    if options.drop:
        return ~command.modalities_of(options.drop, modalities, "drop")
    return command.modalities_of(options.keep, modalities, "keep") if options.keep else None


def label_columns(run: Run, labels: np.ndarray) -> dict[str, Any]:
    """Returns the labels of samples by column: classes by name in `label`, others as they are."""
    schema = run.data.manifest.schema
    if schema.has_classes:
        return {"label": [schema.classes[i] for i in labels]}
    columns = labels.T if labels.ndim > 1 else [labels]
    return {f"label_{name}": column for name, column in zip(schema.label_columns, columns, strict=True)}


def table(run: Run, options: Options) -> tuple[list[Row], list[str]]:
    """Returns one row for each sample, and the names of the columns."""
    data, store, task = run.data, run.data.stores[SPLIT], run.task
    modalities = data.groups.modalities
    stays = left_after(options, modalities)
    positions = command.positions_of(options.samples, len(store))
    rows_of_split = data.rows(SPLIT)[positions]
    presence, labels = data.manifest.presence[rows_of_split], data.manifest.labels[rows_of_split]
    before = run.model.predict_parts(store, positions, presence)
    columns = {"sample": positions, **group_columns(run, presence), **label_columns(run, labels)}
    columns |= {CALLED.get(name, (name,))[0]: column for name, column in task.columns(before).items()}
    if stays is not None:
        after = run.model.predict_parts(store, positions, presence & stays)
        columns |= {
            "group_after": [group_columns(run, (mask & stays)[None])["group"][0] for mask in presence],
            "seen_after": run.model.seen(presence & stays),
            "explained_falls": task.explained(before, before) - task.explained(after, before),
        }
        for name, column in task.columns(after).items():
            columns[CALLED.get(name, ("", f"after_{name.removeprefix('p_')}"))[1]] = column
    if options.shapley == "exact":
        shares = shapley_shares(run, positions, presence, before)
        columns |= {f"shapley_{name}": shares.values[:, j] for j, name in enumerate(modalities)}
        columns |= {"value_empty": shares.empty, "seen_subsets": shares.seen}
    names = list(columns)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)], names


def group_columns(run: Run, presence: np.ndarray) -> dict[str, list[Any]]:
    """Returns the name of each sample's combination, and whether it is tail, as one not seen in training is."""
    groups = run.data.groups
    tail = np.append(groups.tail, True)[groups.index(presence)]
    return {"group": [group_name(mask, groups.modalities) for mask in presence], "tail": [bool(x) for x in tail]}


def summary(rows: Sequence[Row], explains: str = CLASSES.explains) -> str:
    """Returns the changes as text; `explains` is that of the task."""
    classes, lines = "predicted" in rows[0], [f"{len(rows)} samples"]
    if classes:
        lines[0] += f", {100 * np.mean([r['predicted'] == r['label'] for r in rows]):.1f} % correct"
    if "seen_after" in rows[0]:
        if classes:
            changed = np.mean([r["predicted_after"] != r["predicted"] for r in rows])
            right = np.mean([r["predicted_after"] == r["label"] for r in rows])
            lines.append(f"after: {100 * right:.1f} % correct, {100 * changed:.1f} % predict another class,")
        drop, unseen = (np.mean([r[key] for r in rows]) for key in ("explained_falls", "seen_after"))
        lines.append(f"  {explains} falls by {drop:.3f} on average,")
        lines.append(f"  {100 - 100 * unseen:.1f} % are left with a combination that training never had")
    if "value_empty" in rows[0]:
        seen = np.mean([r["seen_subsets"] for r in rows])
        lines.append(f"Shapley values average over subsets of which training had {100 * seen:.0f} %")
    return "\n".join(lines)


def means(rows: Sequence[Row], modalities: Sequence[str]) -> list[tuple[str, bool | None, int, np.ndarray]]:
    """Returns label, tail, number of samples and mean absolute values [m] of all samples, then of combinations.

    Head combinations come before tail ones, and the most frequent first.
    """
    values = np.abs(np.array([[row[f"shapley_{name}"] for name in modalities] for row in rows], np.float64))
    by_group: dict[tuple[bool, str], list[int]] = {}
    for i, row in enumerate(rows):
        by_group.setdefault((row["tail"], row["group"]), []).append(i)
    order = sorted(by_group, key=lambda key: (key[0], -len(by_group[key]), key[1]))
    found: list[tuple[str, bool | None, int, np.ndarray]] = [("all", None, len(rows), _column_means(values))]
    for tail, group in order:
        at = by_group[tail, group]
        found.append((group, tail, len(at), _column_means(values[at])))
    return found


def _column_means(values: np.ndarray) -> np.ndarray:
    """Returns the means of the finite values of each column; nan where there are none."""
    return np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)


def draw(rows: Sequence[Row], modalities: Mapping[str, str], title: str, task: Task = CLASSES) -> "command.Figure":
    """Draws a heatmap of combinations by modalities, with a hatched cell where the combination lacks the modality.

    `modalities` are their titles by name.
    """
    from matplotlib.patches import Rectangle

    found = means(rows, list(modalities))
    shown, more = found[: MOST_ROWS + 1], len(found) - MOST_ROWS - 1
    grid = np.array([values for _, _, _, values in shown])
    figure = command.new_figure(2.6 + 0.82 * len(modalities), 1.75 + 0.3 * len(shown))
    axis = figure.subplots()
    top = float(np.nanmax(grid)) if np.isfinite(grid).any() else 1.0
    image = axis.imshow(np.ma.masked_invalid(grid), cmap="cividis_r", vmin=0.0, vmax=top or 1.0, aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        if np.isfinite(value):
            ink = {"color": "white" if value > 0.55 * top else "black", "fontsize": 8}
            axis.text(j, i, f"{task.factor * value:.{min(2, task.digits)}f}", ha="center", va="center", **ink)
        else:
            lacking = {"facecolor": "white", "hatch": "////", "edgecolor": "#bbbbbb", "lw": 0}
            axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **lacking))
    _name_rows(axis, shown)
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if len(modalities) > 4 else {}
    axis.set_xticks(range(len(modalities)), list(modalities.values()), **turned)
    axis.xaxis.set_ticks_position("bottom")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, pad=0.02, shrink=0.7)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_formatter(lambda x, _: f"{task.factor * x:.3g}")
    points = ", points" if task.factor == 100 else ""
    figure.suptitle(f"{title}\nMean |Shapley value| of the {task.explains}{points}", fontsize=10)
    note = "Hatched: the combination lacks the modality."
    if more > 0:
        note += f" {more} rarer combinations are in the table only."
    figure.supxlabel(note, fontsize=8, color=command.QUIET)
    return figure


def _name_rows(axis: Any, shown: Sequence[tuple[str, bool | None, int, np.ndarray]]) -> None:
    """Writes head or tail and the number of samples next to each row, and lines between all, head and tail."""
    sides = {None: "all", False: "head", True: "tail"}
    axis.set_yticks(range(len(shown)), [f"{sides[tail]}, n = {n}" for _, tail, n, _ in shown])
    for i in range(1, len(shown)):
        if shown[i][1] != shown[i - 1][1]:
            axis.axhline(i - 0.5, color="black", lw=1.6)


def parse(arguments: Sequence[str]) -> tuple[pathlib.Path, Options]:
    """Reads the command line: the run's folder, and the choices."""
    strings, choices = {"samples": "all", "drop": "", "keep": ""}, {"shapley": ("exact", "none")}
    (path,), options = command.read_options(arguments, strings=strings, choices=choices, several=False)
    if options.drop and options.keep:
        raise UserError("--drop and --keep say the same thing twice: give one of them")
    if options.shapley == "none" and not (options.drop or options.keep):
        raise UserError("nothing to do: name modalities with --drop or --keep, or ask for --shapley=exact")
    return path, options


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name."""
    path, options = parse(arguments)
    (run,) = opening.open_runs([path])
    folder = opening.output_folder(path)
    rows, columns = table(run, options)
    command.write_csv(folder / f"{NAME}.csv", columns, rows)
    written = f"{folder / NAME}.csv"
    if options.shapley == "exact":
        title = f"{run.config.method} on {run.data.manifest.title}"
        command.write_figure(folder / NAME, lambda: draw(rows, run.titles, title, run.task))
        written += ", .png, .svg"
    print(summary(rows, run.task.explains))
    print(f"Written: {written}")


if __name__ == "__main__":
    cli.run(main, __doc__)
