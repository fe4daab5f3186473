"""The drawings of an arena: mean ranks with the critical difference, and what methods cost beside their ranks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from remind_jax.evaluation import figures
from remind_jax.studies import page
from remind_jax.studies.ranks import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LANE, _LANES = 0.045, 0.4  # between bars, and for all bars, as shares of the number of methods


def ranks(ranking: Ranking, tail: Mapping[str, float], name: str = "tail") -> str:
    """Draws a row a method, best first: its mean ranks, and bars over those that the critical difference keeps level.

    `tail` has the mean ranks on the tail, called `name`, of methods that have one.
    """
    k, bars = len(ranking.methods), ranking.cliques
    space, above = (1.9, 0.46) if ranking.difference is not None else (0.5, 0.3)
    step = k * min(_LANE, _LANES / max(1, len(bars)))

    def draw(axes: "Axes") -> None:
        for y, (method, mean) in enumerate(ranking.means.items()):
            ends = [mean, tail.get(method, mean)]
            axes.plot(ends, [y, y], color=figures.GRID, linewidth=1.2, zorder=1)
        there = [y for y, method in enumerate(ranking.methods) if method in tail]
        on_tail = [tail[ranking.methods[y]] for y in there]
        marks = {"linestyle": "none", "color": figures.COLOURS[1], "markerfacecolor": "none", "markersize": 4.5}
        means = list(ranking.means.values())
        axes.plot(means, range(k), "o", color=figures.COLOURS[0], markersize=6, label="all samples")
        axes.plot(on_tail, there, marker="D", **marks, label=name)
        for i, (first, last) in enumerate(bars):
            at, ends = k * (1 + _LANE) + i * step, [first - 0.25, last + 0.25]
            axes.plot([at, at], ends, color=figures.INK, linewidth=2.6, solid_capstyle="butt")
        _difference(axes, ranking.difference, k)
        axes.set_xlim(1 - 0.03 * k, k * (1 + _LANE) + step * max(0, len(bars) - 1) + 0.03 * k)
        axes.set_xticks(ticks(k))
        look = {"frameon": False, "fontsize": figures.FONT - 1, "labelcolor": figures.INK, "handletextpad": 0.1}
        look |= {"columnspacing": 0.8, "borderpad": 0, "borderaxespad": space}
        axes.legend(loc="lower right", bbox_to_anchor=(1.02, 1.0), ncols=2, **look)

    return page.row_svg(draw, ranking.methods, "mean rank", "ranks", 0.2 + 0.2 * k, above=above)


def _difference(axes: "Axes", difference: float | None, k: int) -> None:
    """Draws the critical difference as a line over the rows, as long as it is on the axis."""
    if difference is None:
        return
    end = min(1 + difference, float(k))
    axes.plot([1, end], [-0.5, -0.5], color=figures.INK, linewidth=1.4, marker="|", markersize=7, clip_on=False)
    more = ", more than there are ranks" if difference > k - 1 else ""
    at = {"xytext": (0, 4), "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(f"CD {difference:.1f}{more}", (1, -0.5), color=figures.INK, fontsize=figures.FONT - 1, **at)


def ticks(k: int) -> list[int]:
    """Returns up to six ranks of k for an axis, the first and steps of a round size."""
    size = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if k / step <= 5)
    return [1, *range(size if size > 1 else 2, k + 1, size)]


def costs(means: Mapping[str, float], seconds: Mapping[str, float], front: Sequence[str]) -> str | None:
    """Draws mean ranks over processor seconds, on a scale of tenfolds, those of the front named in colour."""
    if not seconds:
        return None
    least, most = min(seconds.values()), max(seconds.values())

    def draw(axes: "Axes") -> list[tuple[float, str, str]]:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.3, max(most * 1.3, least * 3))
        axes.set_xticks(_seconds(least, most))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_yticks([-rank for rank in ticks(len(means))], [str(rank) for rank in ticks(len(means))])
        axes.set_ylim(-max(means.values()) - 0.5, -min(means.values()) + 0.5)
        labels = []
        line = [(seconds[m], -means[m]) for m in sorted(front, key=seconds.__getitem__)]
        axes.step(*zip(*line, strict=True), where="post", color=figures.COLOURS[0], linewidth=1, dashes=(3, 2))
        for method, cost in seconds.items():
            colour = figures.COLOURS[0] if method in front else figures.QUIET
            y = -means[method]
            axes.plot([cost, axes.get_xlim()[1]], [y, y], color=figures.GRID, linewidth=0.7, zorder=1)
            axes.plot([cost], [y], "o", color=colour, markersize=6 if method in front else 4.5)
            labels.append((y, method, colour))
        return labels

    height = max(2.7, 0.8 + 0.2 * len(seconds))
    return figures.svg_of(draw, "mean rank", [], xlabel="processor seconds a run", height=height)


def _seconds(least: float, most: float) -> list[float]:
    """Returns the marks 1, 2, 5 of each tenfold between two times, or 1 alone where these are too many."""
    tens = [10.0**power for power in range(-4, 8)]
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [step * ten for ten in tens for step in steps if least / 1.3 <= step * ten <= most * 1.3]
        if len(marks) <= 5:
            break
    return marks
