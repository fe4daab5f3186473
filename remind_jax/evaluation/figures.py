"""The curves of the HTML report as inline SVG.

Colours are written as placeholders and replaced by CSS variables, so that one drawing suits a light and a dark page;
text is kept as text. The same input gives the same bytes, at any time and in every process.
"""

import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from remind_jax.runtime import texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 4.5  # inches: 324 points, about the width of a phone screen in CSS pixels
FONT = 10
SHOWN = 480  # CSS pixels of width, at most
LEADER = 0.16  # inches between a line's end and its name
LABELLED = 12  # lines named in the λ figure
POINTS = 160  # points a line is thinned to
COLOURS = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
INK, QUIET, GRID = "#0a0b11", "#0a0b12", "#0a0b13"
VARIABLES = {INK: "--ink", QUIET: "--quiet", GRID: "--line"} | {c: f"--c{i}" for i, c in enumerate(COLOURS)}
History = Sequence[dict[str, Any]]


def series(history: History, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns one key's steps and finite values in step order; the last record of a step (a resumed run) counts."""
    points = {}
    for record in history:
        value = record.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            points[record["step"]] = value
    steps = sorted(points)
    return np.array(steps, float), np.array([points[s] for s in steps], float)


def losses(history: History) -> str | None:
    """Draws training and tuning loss."""
    return _curves(history, (("train/loss", "training"), ("eval/loss", "tuning")), "loss")


def tuning(history: History) -> str | None:
    """Draws accuracy and AUROC on the tuning set."""
    return _curves(history, (("eval/accuracy", "accuracy"), ("eval/auroc", "AUROC")), "tuning set")


def gate(history: History) -> str | None:
    """Draws the share of samples whose gate to the group router is open."""
    return _curves(history, (("gate/open_rate", ""),), "gate open", limits=(-0.03, 1.03))


def lambdas(history: History, tail: set[str], shorten: Callable[[str], str]) -> str | None:
    """Draws the weight λ of each group over time; the groups of largest final weight are named, the others are grey.

    Records have keys `dro/lambda/<group>`; groups in `tail` are dashed; `shorten` makes a name fit next to the figure.
    """
    prefix = "dro/lambda/"
    names = {key.removeprefix(prefix) for record in history for key in record if key.startswith(prefix)}
    lines = {name: series(history, prefix + name) for name in sorted(names)}
    lines = {name: line for name, line in lines.items() if len(line[0])}
    if not lines:
        return None
    ranked = sorted(lines, key=lambda name: (-lines[name][1][-1], name))
    values = np.concatenate([y for _, y in lines.values()])

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        if values.min() > 0 and values.max() / values.min() > 20:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # the default writes powers in math text, which is off here
        for name in ranked[LABELLED:]:
            _line(axes, *lines[name], GRID, width=1.0)
        labels = []
        for i, name in reversed(list(enumerate(ranked[:LABELLED]))):
            colour = COLOURS[i % len(COLOURS)]
            _line(axes, *lines[name], colour, dashed=name in tail)
            labels.append((lines[name][1][-1], shorten(name), colour))
        return labels

    return svg_of(draw, "weight λ", _stages(history), height=2.7 if len(ranked) <= 7 else 3.5)


def reliability(curve: Sequence[dict[str, Any]]) -> str | None:
    """Draws observed accuracy over mean confidence of each bin; the area of a point grows with its samples."""
    if not curve:
        return None
    most = max(b["n"] for b in curve)

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(3, 3))
        x, y = ([b[key] for b in curve] for key in ("confidence", "accuracy"))
        axes.plot(x, y, color=COLOURS[0], linewidth=1.2)
        axes.scatter(x, y, s=[14 + 110 * b["n"] / most for b in curve], color=COLOURS[0], alpha=0.75, linewidths=0)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        axes.annotate("perfect", (0.06, 0.06), xytext=(0.0, 0.27), color=QUIET, fontsize=FONT - 1)
        return []

    return svg_of(draw, "share correct", [], xlabel="confidence in the answer given")


def deferral(curve: Sequence[dict[str, Any]]) -> str | None:
    """Draws accuracy over the share of samples that are answered, those that the model is surest of first."""
    if not curve:
        return None

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([p["share"] for p in curve], [p["accuracy"] for p in curve], color=COLOURS[0], linewidth=1.6)
        axes.set(xlim=(1.02, 0.0), ylim=(-0.05, 1.05))
        return []

    return svg_of(draw, "share correct", [], xlabel="share of samples that are answered")


def of_binary(found: Mapping[str, Any]) -> dict[str, str | None]:
    """Draws `binary` of a report: ROC and precision-recall curves, net benefit, and calibration; {} for none."""
    if not found or not found["roc"]:
        return {}

    def line(points: Sequence[Sequence[float]], k: int = 1, **style: Any) -> Callable[["Axes"], Any]:
        return lambda axes: axes.plot([p[0] for p in points], [p[k] for p in points], linewidth=1.6, **style)

    def roc(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(3, 3))
        line(found["roc"], color=COLOURS[0])(axes)
        axes.plot(1 - found["specificity"], found["sensitivity"], "o", color=COLOURS[0], markersize=6)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        return []

    def precision(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.axhline(found["prevalence"], color=QUIET, linewidth=1, dashes=(3, 3))
        line(found["pr"], color=COLOURS[0])(axes)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        return [(found["prevalence"], "prevalence", QUIET)]

    def benefit(axes: "Axes") -> list[tuple[float, str, str]]:
        points = found["net_benefit"]
        line(points, color=COLOURS[0])(axes)
        line(points, 2, color=COLOURS[1])(axes)
        axes.axhline(0.0, color=QUIET, linewidth=1, dashes=(3, 3))
        axes.axvline(found["threshold"], color=QUIET, linewidth=1, dashes=(1, 2))
        axes.set_ylim(-0.25 * max(found["prevalence"], 0.02), 1.1 * max(found["prevalence"], 0.02))
        low = axes.get_ylim()[0]
        ends = ((points[-1][1], "model", COLOURS[0]), (points[-1][2], "all", COLOURS[1]), (0.0, "none", QUIET))
        return [(max(y, low), name, colour) for y, name, colour in ends]

    def risks(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(3, 3))
        x, y = ([b[key] for b in found["calibration"]] for key in ("predicted", "observed"))
        reach = [[max(b["observed"] - b["ci"][0], 0.0) for b in found["calibration"]]]
        reach.append([max(b["ci"][1] - b["observed"], 0.0) for b in found["calibration"]])
        axes.errorbar(x, y, yerr=reach, color=COLOURS[0], linewidth=1.2, marker="o", markersize=4)
        most = min(1.0, 1.1 * max(max(x, default=1.0), max((b["ci"][1] for b in found["calibration"]), default=1.0)))
        axes.set(xlim=(-0.02 * most, most), ylim=(-0.04 * most, 1.02 * most))
        return []

    return {
        "roc": svg_of(roc, "sensitivity", [], xlabel="1 - specificity"),
        "pr": svg_of(precision, "PPV", [], xlabel="sensitivity"),
        "net_benefit": svg_of(benefit, "net benefit", [], xlabel="threshold"),
        "observed": svg_of(risks, "share with the outcome", [], xlabel="predicted risk")
        if found["calibration"]
        else None,
    }


def of_survival(curves: Mapping[str, Any]) -> dict[str, str | None]:
    """Draws `curves` of a report of survival: by predicted risk, and predicted against observed risks; {} for none."""
    if "by_risk" not in curves:
        return {}

    def by_risk(axes: "Axes") -> list[tuple[float, str, str]]:
        labels = []
        for name, curve, colour in zip(("low", "middle", "high"), curves["by_risk"], COLOURS, strict=False):
            axes.step(curve["times"], curve["survival"], where="post", color=colour, linewidth=1.6)
            labels.append((curve["survival"][-1], name, colour))
        axes.set_ylim(-0.03, 1.03)
        return labels

    def risks(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(3, 3))
        for (horizon, bins), colour in zip(curves["calibration"].items(), COLOURS, strict=False):
            known = [b for b in bins if b["observed"] is not None]
            x, y = ([b[key] for b in known] for key in ("predicted", "observed"))
            axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=4, label=f"by {horizon}")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        axes.legend(loc="upper left", frameon=False, fontsize=FONT - 1, labelcolor=INK)
        return []

    drawn = {"by_risk": svg_of(by_risk, "without the event", [], xlabel="time")}
    if any(curves["calibration"].values()):
        drawn["risks"] = svg_of(risks, "observed risk", [], xlabel="predicted risk")
    return drawn


def of_values(curves: Mapping[str, Any]) -> str | None:
    """Draws `curves` of a report of numbers: what was observed over what was predicted; None without any."""
    bins = curves.get("by_prediction")
    if not bins:
        return None

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        x, y = ([b[key] for b in bins] for key in ("predicted", "observed"))
        axes.plot((x[0], x[-1]), (x[0], x[-1]), color=QUIET, linewidth=1, dashes=(3, 3))
        axes.vlines(x, *zip(*(b["middle"] for b in bins), strict=True), color=COLOURS[0], linewidth=1.2, alpha=0.6)
        axes.plot(x, y, color=COLOURS[0], linewidth=1.2, marker="o", markersize=4)
        beside = 0.04 * (x[-1] - x[0]) or 1.0
        axes.set_xlim(x[0] - beside, x[-1] + beside)
        return []

    return svg_of(draw, f"observed, {curves['typical']}", [], xlabel=f"predicted, {curves['typical']}")


def legend_name(name: str) -> str:
    """Writes a name for a legend, in one line; matplotlib leaves out what begins with an underscore."""
    name = texts.one_line(name)
    return f" {name}" if name.startswith("_") else name


def reliabilities(curves: Mapping[str, Sequence[dict[str, Any]]]) -> str | None:
    """Draws a reliability curve for each name, at most as many as there are colours."""
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        return None

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, dashes=(3, 3))
        for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
            x, y = [b["confidence"] for b in curve], [b["accuracy"] for b in curve]
            axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=4, label=legend_name(name))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.05, 1.05))
        axes.legend(loc="upper left", frameon=False, fontsize=FONT - 1, labelcolor=INK)
        return []

    return svg_of(draw, "share correct", [], xlabel="confidence in the answer given", height=3.2)


def _curves(
    history: History, keys: Iterable[tuple[str, str]], ylabel: str, limits: tuple[float, float] | None = None
) -> str | None:
    """Draws lines over steps, each named at its end; returns None when there is nothing to draw."""
    lines = [(series(history, key), label) for key, label in keys]
    lines = [(line, label) for line, label in lines if len(line[0])]
    if not lines:
        return None

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        labels = []
        for (line, label), colour in zip(lines, COLOURS, strict=False):
            _, y = _line(axes, *line, colour)
            if label:
                labels.append((y[-1], label, colour))
        if limits:
            axes.set_ylim(*limits)
        return labels

    return svg_of(draw, ylabel, _stages(history))


def _line(
    axes: "Axes", x: np.ndarray, y: np.ndarray, colour: str, *, width: float = 1.8, dashed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one line, thinned by averaging neighbours; returns the drawn x and y."""
    if len(x) > POINTS:
        part = np.arange(len(x)) * POINTS // len(x)
        x, y = (np.bincount(part, values) / np.bincount(part) for values in (x, y))
    style = {"dashes": (4, 1.6)} if dashed else {}
    axes.plot(x, y, color=colour, linewidth=width, marker="o" if len(x) < 3 else None, markersize=4, **style)
    return x, y


def _stages(history: History) -> list[tuple[float, str]]:
    """Returns the first step and the name of each stage after the first."""
    first: dict[Any, float] = {}
    for record in history:
        if "stage" in record and "step" in record:
            stage = record["stage"]
            first[stage] = min(first.get(stage, math.inf), record["step"])
    named = ((step, f"stage {stage}" if isinstance(stage, int) else str(stage)) for stage, step in first.items())
    return sorted(named)[1:]


def svg_of(
    draw: Callable[["Axes"], list[tuple[float, str, str]]],
    ylabel: str,
    stages: Sequence[tuple[float, str]],
    *,
    xlabel: str = "step",
    height: float = 2.7,
) -> str:
    """Returns an inline SVG of axes that `draw` fills; `draw` returns the labels of line ends as (y, text, colour)."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(style(f"{ylabel} {xlabel}")):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        labels = draw(axes)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.minorticks_off()
        axes.margins(x=0.01)
        axes.locator_params(axis="x", nbins=5)
        for step, name in stages:
            axes.axvline(step, color=QUIET, linewidth=1, dashes=(1, 2))
            at = {"xycoords": ("data", "axes fraction"), "xytext": (3, 1), "textcoords": "offset points"}
            axes.annotate(name, (step, 1), fontsize=FONT - 1, color=QUIET, **at)
        longest = max((len(text) for _, text, _ in labels), default=0)
        room = LEADER + (longest * FONT * 0.54 - 6) / 72 if labels else 0.0
        figure.subplots_adjust(left=0.172, right=0.955 - room / WIDTH, bottom=0.5 / height, top=0.91)
        _label_ends(axes, labels)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return inline(out.getvalue())


def style(salt: str) -> dict[str, Any]:
    """Returns the style of every figure; `salt` seeds its ids."""
    plain = {"text.parse_math": False, "axes.formatter.useoffset": False, "axes.formatter.use_mathtext": False}
    svg = {"svg.fonttype": "none", "svg.hashsalt": salt, "savefig.transparent": True, "path.simplify": True}
    quiet = dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), QUIET)
    ink = dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK)
    return {**svg, **plain, **quiet, **ink, "font.family": "DejaVu Sans", "font.size": FONT}


def _label_ends(axes: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Writes each line's name next to its end, moved apart so that no two overlap."""
    if not labels:
        return
    axes.get_ylim()  # limits that are due are set only when they are asked for, and not by `transData`
    box = axes.get_window_extent()
    ordered = sorted(labels)
    ends = axes.transData.transform([(0, y) for y, _, _ in ordered])[:, 1]
    gap = min((FONT + 3.5) * axes.figure.dpi / 72, box.height / len(labels))
    for end, place, (_, text, colour) in zip(ends, spread_apart(ends, gap, box.y0, box.y1), ordered, strict=True):
        at = (1 + LEADER * axes.figure.dpi / box.width, (place - box.y0) / box.height)
        name_end(axes, text, (end - box.y0) / box.height, at, colour, fontsize=FONT - 0.5, line=0.7)


def name_end(
    axes: "Axes", text: str, height: float, at: tuple[float, float], colour: str, line: float, **look: Any
) -> None:
    """Writes a name at a place right of the axes, with a leader to its line's end; both in fractions of the axes."""
    leader = {"arrowstyle": "-", "color": colour, "linewidth": line, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
    place = {"xycoords": "axes fraction", "xytext": at, "textcoords": "axes fraction", "va": "center"}
    axes.annotate(text, (1, height), color=colour, annotation_clip=False, arrowprops=leader, **place, **look)


def spread_apart(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Returns positions at least `gap` apart in [low, high], nearest in least squares to `wanted` (sorted, [n])."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(wanted))
    # Without the gaps the positions only must not fall, which makes this an isotonic regression.
    return np.clip(isotonic_regression(wanted - steps).x, low, max(low, high - steps[-1])) + steps


def inline(svg: str) -> str:
    """Reduces an SVG file to what a page needs: CSS colours, the page's font, no unused ids, no namespaces."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s+xmlns(:\w+)?=\"[^\"]*\"", "", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#(\w+)[\")]", svg))
    svg = re.sub(r" id=\"([^\"]*)\"", lambda m: m.group(0) if m.group(1) in used else "", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    svg = re.sub(r"<svg[^>]*viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return texts.visible(svg)


def standalone(svg: str, colours: str) -> str:
    """Makes of an inline SVG a file for Markdown, with the style sheet that says its colours, light and dark."""
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img"'
    size = f'width="{SHOWN}" height="{SHOWN * float(height) / float(width):.0f}"'
    svg = svg.replace(
        'aria-hidden="true">', f"{names} {size}>\n<style>\n{colours}svg {{ background: var(--card); }}\n</style>", 1
    )
    return f"{svg.strip()}\n"
