"""Functions that the analyses share: options, rows of a split, tables and figures."""

import csv
import io
import pathlib
import types
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from remind_jax import cli
from remind_jax.analysis.opening import Run
from remind_jax.data import pipeline
from remind_jax.data.groups import count_combinations, group_name
from remind_jax.errors import UserError, did_you_mean
from remind_jax.inference import model_folder
from remind_jax.models.model import Params
from remind_jax.runtime import files, progress, texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Options = types.SimpleNamespace
SPLITS = ("held_out", "tuning", "train")
INK, QUIET, GRID = "#222222", "#666666", "#dddddd"
# Okabe and Ito's blue and vermilion, which differ for every colour vision and in grey.
COLOURS = {False: "#0072B2", True: "#D55E00"}
MARKERS = {False: "o", True: "^"}
LINES: dict[bool, Any] = {False: "-", True: (0, (4, 1.6))}
SIDES = {False: "head", True: "tail"}


def read_options(arguments: Sequence[str], **options: Any) -> tuple[list[pathlib.Path], Options]:
    """Reads a command line with `cli.parse_runs`: the runs' folders, and the options as attributes."""
    paths, values = cli.parse_runs(arguments, **options)
    return paths, Options(**values)


def positions_of(text: str, count: int) -> np.ndarray:
    """Reads positions such as `0,3,10-19`, or `all`, out of `count` samples; refuses others (UserError)."""
    if text == "all":
        return np.arange(count)
    try:
        ends = [[int(end) for end in part.split("-", 1)] for part in text.split(",") if part]
    except ValueError as error:
        raise UserError(f"--samples={text} is neither all nor positions such as 0,3,10-19") from error
    found = np.array(sorted({i for part in ends for i in range(part[0], part[-1] + 1)}), np.int64)
    if not len(found) or found[-1] >= count:
        raise UserError(f"--samples={text} names no sample of the {count} held-out ones, which count from 0")
    return found


def modalities_of(text: str, modalities: tuple[str, ...], option: str) -> np.ndarray:
    """Reads names separated by commas as a mask bool [m]; refuses unknown names (UserError)."""
    names = list(filter(None, text.replace("+", ",").split(",")))
    for name in names:
        if name not in modalities:
            hint = did_you_mean(name, modalities)
            raise UserError(f"--{option}: {name!r} is no modality of the run{hint}: {', '.join(modalities)}")
    return np.array([name in names for name in modalities], bool)


def check_routed(path: pathlib.Path, config: Any, block: int) -> None:
    """Refuses runs of sparse fusion, of several members or networks, or without this block (UserError)."""
    model_folder.refuse_several(path, config)
    if config.model.members > 1:
        raise UserError(f"{path} is a run of several predictors (model.members), which route apart: take a run of one")
    if config.fusion.kind != "soft_moe":
        raise UserError(f"{path} is a run of sparse experts (fusion.kind={config.fusion.kind}): nothing is soft there")

    if block >= config.fusion.blocks:
        raise UserError(f"--block={block}: blocks of {path} count from 0 to {config.fusion.blocks - 1}")


def over_rows(run: Run, split: str, function: Callable[[Params, pipeline.Batch], Any]) -> Any:
    """Applies a function to all rows of a split, in their order; refuses an empty split (UserError).

    The function (parameters, batch) -> any structure of arrays [rows, ...] is jitted.
    """
    store = run.data.stores[split]
    if not len(store):
        raise UserError(f"the run in {run.path} has no {split} rows")
    jitted, params, parts = jax.jit(function), jax.device_put(run.model.params), []
    size = run.config.eval.batch_size
    for batch in progress.over(pipeline.eval_batches(store, size), "batches", -(-len(store) // size)):
        real = batch["weight"] > 0
        parts.append(jax.tree.map(lambda x, real=real: np.asarray(x)[real], jitted(params, batch)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def combinations(run: Run, split: str) -> tuple[list[Row], np.ndarray]:
    """Returns the combinations of a split, head first and the most frequent in training first.

    They are rows `group, modalities` (their titles), `tail, n_train, n`; the second array is the row of every sample,
    int [n]. A combination not seen in training counts to the tail.
    """
    groups = run.data.groups
    presence = run.data.manifest.presence[run.data.rows(split)]
    masks, counts, index = count_combinations(presence)
    known = groups.index(masks)
    tail, n_train = np.append(groups.tail, True)[known], np.append(groups.train_counts, 0)[known]
    facts = []
    for i, mask in enumerate(masks):
        names = [run.titles[name] for name, here in zip(groups.modalities, mask, strict=True) if here]
        row = {"group": group_name(mask, groups.modalities), "modalities": names}
        facts.append(row | {"tail": bool(tail[i]), "n_train": int(n_train[i]), "n": int(counts[i])})
    order = sorted(range(len(facts)), key=lambda i: (facts[i]["tail"], -facts[i]["n_train"], i))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    return [facts[i] for i in order], position[index]


def identity(run: Run) -> Row:
    """Returns the columns that name a run."""
    return {"run": str(run.path), "method": run.config.method, "seed": run.config.seed}


def titles(runs: Sequence[Run]) -> list[str]:
    """Returns a different title for each run: its method, with its seed or its folder where that is not enough."""
    methods = [run.config.method for run in runs]
    seeded = [f"{run.config.method}, seed {run.config.seed}" for run in runs]
    folders = [f"{run.config.method} ({run.path.name})" for run in runs]
    for names in (methods, seeded, folders):
        if len(set(names)) == len(names):
            return names
    return [f"{i + 1}: {name}" for i, name in enumerate(folders)]


def panel_titles(runs: Sequence[Run]) -> list[str]:
    """Returns the title of each run's column: its method, so that the seeds of one method share a column.

    Runs of one method whose configs differ in more than the seed have their folders in their titles.
    """
    digests = [files.config_digest({**run.config.to_dict(), "seed": 0}) for run in runs]
    folders: dict[str, str] = {}
    variants: dict[str, set[str]] = {}
    for run, digest in zip(runs, digests, strict=True):
        folders.setdefault(digest, run.path.name)
        variants.setdefault(run.config.method, set()).add(digest)
    return [
        method if len(variants[method]) == 1 else f"{method} ({folders[digest]})"
        for method, digest in zip((run.config.method for run in runs), digests, strict=True)
    ]


def panels(runs: Sequence[Run], rows: Sequence[Sequence[Row]]) -> dict[str, list[Row]]:
    """Groups the rows of runs by the title of their column, see `panel_titles`."""
    found: dict[str, list[Row]] = {}
    for title, part in zip(panel_titles(runs), rows, strict=True):
        found.setdefault(title, []).extend(part)
    return found


def titled(run: Run, rows: Iterable[Row], key: str) -> list[Row]:
    """Returns rows in which a column of modalities has their titles, for figures."""
    return [row | {key: run.titles.get(row[key], row[key])} for row in rows]


def write_csv(file: pathlib.Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Writes a table whole or not at all, for its owner alone: rows may be patients'. What is not finite is empty."""

    def cell(value: Any) -> Any:
        if isinstance(value, bool | np.bool_):
            return str(bool(value)).lower()
        if isinstance(value, float | np.floating):
            return f"{value:.7g}" if np.isfinite(value) else ""
        return "" if value is None else texts.cell(value)

    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({key: cell(row[key]) for key in columns} for row in rows)
    files.write_text(file, text.getvalue(), private=True)


def name_rows(axis: "Axes", place: Sequence[float], labels: Sequence[str], tail: Sequence[bool]) -> None:
    """Writes the names of combinations left of an axis, at the heights `place`, and `head` and `tail` left of them.

    The rows of head, and those of tail, must follow each other.
    """
    axis.set_yticks(place, labels, fontsize=7.5)
    for label, side in zip(axis.get_yticklabels(), tail, strict=True):
        label.set_color(COLOURS[bool(side)])
    for side, name in SIDES.items():
        rows = [y for y, here in zip(place, tail, strict=True) if bool(here) is side]
        if rows:
            at = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "ha": "center"}
            left = -18.0 - 4.3 * max(len(label) for label in labels)
            look = {"rotation": 90, "fontweight": "bold", "color": COLOURS[side]}
            axis.annotate(name, (0, (rows[0] + rows[-1]) / 2), xytext=(left, 0), **at, **look)


def new_figure(width: float, height: float) -> "Figure":
    """Makes an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def name_marks(figure: "Figure", names: Sequence[str], looks: Iterable[tuple[str, str]], size: float = 6.0) -> None:
    """Draws marks (colour, shape) and names in the second line of the title, which no data cover."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], color=colour, marker=shape, linestyle="", markersize=size) for colour, shape in looks]
    at = {"loc": "upper center", "bbox_to_anchor": (0.5, 1 - 0.2 / figure.get_figheight()), "borderaxespad": 0.0}
    figure.legend(marks, names, ncols=len(names), frameon=False, fontsize=9, handletextpad=0.2, **at)


def write_figure(stem: pathlib.Path, draw: Callable[[], "Figure"]) -> None:
    """Writes the figure of `draw` as PNG and SVG; text is kept as text, and the same figure gives the same bytes."""
    import matplotlib

    style = {"font.size": 9, "axes.axisbelow": True, "hatch.linewidth": 0.6, "text.parse_math": False}
    svg = {"svg.fonttype": "none", "svg.hashsalt": stem.name}
    kinds = {"png": {"dpi": 200, "metadata": {"Software": None}}, "svg": {"metadata": {"Date": None, "Creator": None}}}
    with matplotlib.rc_context(style | svg):
        figure = draw()
        for kind, options in kinds.items():
            with files.whole_file(stem.with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, **options)
