"""The HTML page of a sweep: tables in the paper's layout and plots. Nothing is loaded from elsewhere."""

import dataclasses
import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from remind_jax.evaluation import figures, page
from remind_jax.evaluation import report as reports
from remind_jax.evaluation.names import of_modalities, short_names, words
from remind_jax.runtime import files, progress, texts
from remind_jax.studies import tables
from remind_jax.studies.comparison import Outcome
from remind_jax.studies.results import Results, Row, collect

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEMPLATE = "sweep.html.jinja"
NAME_WIDTH, LABEL_WIDTH = 44, 20  # characters of a combination in tables and next to plots
MOST_ROWS = 15  # combinations in the plot, the most frequent ones
MOST_CURVES = len(figures.COLOURS)  # calibration curves in one plot
MOST_PRINTED = 12  # combinations printed; table.md has them all
SUMMARY = ("all samples", "head, pooled", "tail, pooled", "worst combination")  # rows that a page begins with
MARKERS = "osD^vP"  # colours are used again with the next marker


def tabulate(
    folder: pathlib.Path,
    outcomes: Sequence[Outcome],
    methods: Sequence[str],
    baselines: Sequence[str],
    *,
    resamples: int,
    failures: Sequence[str] = (),
    searches: Sequence[Any] = (),
) -> None:
    """Writes tables and page into a folder, arguments as for `results.collect`; UserError: it cannot be written."""
    with progress.make(len(outcomes), "bootstrap") as bar:
        found = collect(outcomes, methods, baselines, resamples=resamples, failures=failures, count=bar.count)
    found = dataclasses.replace(found, searches=tuple(searches))
    write(found, folder)
    print(tables.markdown(found, MOST_PRINTED))
    print(f"Tables: {folder / 'index.html'}")


def write(results: Results, folder: pathlib.Path) -> None:
    """Writes tables as CSV, Markdown and LaTeX and the page, all of them or none."""
    contents = {
        "runs.csv": tables.runs_csv(results),
        "groups.csv": tables.groups_csv(results),
        "differences.csv": tables.differences_csv(results),
        "calibration.csv": tables.calibration_csv(results),
        "table.md": tables.markdown(results),
        "table.tex": tables.latex(results),
        "index.html": render(results),
    } | ({"attributes.csv": told} if (told := tables.attributes_csv(results)) else {})
    with files.whole_files(folder) as temporary:
        for name, text in contents.items():
            (temporary / name).write_bytes(text.encode("utf-8"))


def render(results: Results) -> str:
    """Makes the page as one string; the same results give the same page."""
    return page.templates(pathlib.Path(__file__).parent).get_template(TEMPLATE).render(context(results))


def context(results: Results) -> dict[str, Any]:
    """Collects what the template shows."""
    import markupsafe

    names, abbreviated = _short_names(results, results.combinations, NAME_WIDTH)
    curves = {method: tables.calibration(results, method) for method in results.methods}
    drawn_curves = dict(list(curves.items())[:MOST_CURVES])
    drawings = {"combinations": accuracy_by_combination(results), "calibration": figures.reliabilities(drawn_curves)}
    shown = [(part, figure) for figure in list(results.task.compared)[:3:2] for part in ("all", "tail")]
    drawn = [(f"{b}_{part}_{figure}", b, part, figure) for b in results.differences for part, figure in shown]
    drawings |= {name: differences(results, baseline, part, figure) for name, baseline, part, figure in drawn}
    wholes = [row for row in results.wholes if any(any(cells.values()) for cells in row.cells.values())]
    told = [row for row in wholes if row.label in SUMMARY]
    return {
        "results": results,
        "ordered": [*wholes, *results.combinations, *results.attributes],
        "lead": next(iter(results.task.compared.values())),
        "gaps": _gaps(results),
        "summary": [(figure, row) for figure in list(results.task.compared)[:3:2] for row in told],
        "synthetic": page.is_synthetic(results.data),
        "notes": tables.notes(results),
        "difference_note": tables.difference_note,
        "titles": results.task.compared,
        "task": results.task,
        "names": dict(zip((row.label for row in results.combinations), names, strict=True)),
        "abbreviated": abbreviated,
        "columns": {baseline: tables.difference_columns(results, baseline) for baseline in results.differences},
        "part_titles": tables.PART_TITLES,
        "drawn": drawn,
        "calibration": {m: tables.calibration_row(results, m) for m, curve in curves.items() if curve},
        "curves_left_out": len(curves) - len(drawn_curves),
        "figures": {name: markupsafe.Markup(svg) for name, svg in drawings.items() if svg},
        "best": functools.partial(tables.best, task=results.task),
        "spread_text": tables.spread_text,
        "signed": tables.signed,
        "published_text": tables.published_text,
        "size_text": tables.size_text,
        "p_text": tables.p_text,
        "wins_text": tables.wins_text,
        "several": len(results.seeds) > 1,
        "most_trials": tables.MOST_TRIALS,
    }


def _short_names(results: Results, rows: Sequence[Row], width: int) -> tuple[list[str], dict[str, str]]:
    """Names the combinations of rows by the titles of their modalities, see `short_names`."""
    title = of_modalities(results.runs[0].report)
    titles = [tuple(map(title, row.modalities or ())) for row in rows]
    return short_names(titles, max(titles, key=len, default=()), width)


def _gaps(results: Results) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns the gap of each value of an attribute but the most frequent ones, by method, see `tables.gap_texts`."""
    labels, methods = [row.label for row in results.attributes], results.methods
    every = {label: {method: tables.gap_texts(results, method, label) for method in methods} for label in labels}
    return {label: gaps for label, gaps in every.items() if any(text != "-" for text, _ in gaps.values())}


def accuracy_by_combination(results: Results) -> str | None:
    """Draws the mean of the leading figure of each combination and of all samples by method, with its spread."""
    lead, title = next(iter(results.task.compared.items()))
    rows = [*results.combinations[:MOST_ROWS], *(row for row in results.rows if row.label == "all samples")]
    rows = [row for row in rows if any(row.cells[lead].values())]
    if not rows:
        return None
    short, _ = _short_names(results, rows, LABEL_WIDTH)
    labels = [row.label if row.modalities is None else name for row, name in zip(rows, short, strict=True)]
    marks = [words(label) + " (tail)" * bool(row.tail) for row, label in zip(rows, labels, strict=True)]
    step = 0.8 / max(1, len(results.methods))

    def draw(axes: "Axes") -> None:
        from matplotlib.transforms import blended_transform_factory

        for i, method in enumerate(results.methods):
            points = [(y, row.cells[lead][method]) for y, row in enumerate(rows)]
            points = [(y + step * (i - (len(results.methods) - 1) / 2), value) for y, value in points if value]
            axes.errorbar(
                [value.mean for _, value in points],
                [y for y, _ in points],
                xerr=[value.sd or 0.0 for _, value in points],
                **_mark(i),
                label=figures.legend_name(method),
            )
        if results.task.factor == 100:  # a deviation may reach beyond what a share can be
            low, high = axes.get_xlim()
            axes.set_xlim(max(low, -2), min(high, 102))
        look = {"frameon": False, "fontsize": figures.FONT - 1, "labelcolor": figures.INK}
        # From the left edge of the figure, so that long names have room.
        place = blended_transform_factory(axes.figure.transFigure, axes.transAxes)
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), bbox_transform=place, ncols=2, **look)

    lines = -(-len(results.methods) // 2)
    height = 0.25 + len(rows) * max(0.28, 0.085 * len(results.methods))
    xlabel = reports.plain_title(title) + (" in percent" if results.task.factor == 100 else "")
    return row_svg(draw, marks, xlabel, "combinations", height, above=0.08 + 0.19 * lines)


def differences(results: Results, baseline: str, part: str, figure: str) -> str | None:
    """Draws the differences of all methods to a baseline in one figure, with 95 % intervals; None without any."""
    there = [(m, results.differences[baseline].get((part, figure, m))) for m in results.methods]
    there = [(method, value) for method, value in there if value]
    if not there:
        return None
    factor = results.task.factor

    def draw(axes: "Axes") -> None:
        axes.axvline(0.0, color=figures.QUIET, linewidth=1, dashes=(3, 3))
        for y, (_, value) in enumerate(there):
            ends = (value.low, value.high) if value.low is not None else (value.mean, value.mean)
            ends = [factor * x for x in ends]
            axes.plot(ends, [y, y], color=figures.COLOURS[0], linewidth=1.6)
            axes.plot([factor * value.mean], [y], color=figures.COLOURS[0], marker="o", markersize=5)

    return row_svg(
        draw,
        [method for method, _ in there],
        "points" if factor == 100 else "difference",
        f"{baseline} {part} {figure}",
        0.25 + 0.28 * len(there),
    )


def _mark(i: int) -> dict[str, Any]:
    """Returns colour and marker of the i-th method."""
    marker = MARKERS[i // len(figures.COLOURS) % len(MARKERS)]
    look = {"fmt": marker, "markersize": 4.5, "elinewidth": 1.0, "capsize": 0}
    return look | {"color": figures.COLOURS[i % len(figures.COLOURS)]}


def row_svg(
    draw: Callable[["Axes"], None], labels: Sequence[str], xlabel: str, salt: str, height: float, above: float = 0.1
) -> str:
    """Makes an inline SVG of horizontal rows named by `labels`, the first on top; `height`, `above` in inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    labels = [texts.one_line(label) for label in labels]
    with matplotlib.rc_context(figures.style(texts.one_line(salt))):
        whole = height + above + 0.5
        figure = Figure(figsize=(figures.WIDTH, whole))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        axes.set(xlabel=xlabel, yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=figures.GRID, linewidth=0.7)
        axes.locator_params(axis="x", nbins=5)
        room = min(0.7, (max(map(len, labels)) * figures.FONT * 0.56 + 10) / 72 / figures.WIDTH)
        figure.subplots_adjust(left=room, right=0.97, bottom=0.5 / whole, top=1 - above / whole)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return figures.inline(out.getvalue())
