"""The page of an arena: what it says in words, mean ranks, costs, and a table a data set and protocol.

One set of sections is written twice, as HTML that loads nothing and as Markdown with its drawings beside it.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from remind_jax.evaluation import figures, page
from remind_jax.evaluation.names import words
from remind_jax.runtime import files, texts
from remind_jax.studies import arena_plots, arena_words, tables
from remind_jax.studies.arena_figures import COSTS, Arena, Row, tail_name
from remind_jax.studies.arena_words import many, size, title
from remind_jax.tasks.task import Task

TEMPLATE = "arena.html.jinja"
CAPTIONS = {
    "ranks": (
        "Mean ranks",
        "1 is best. A bar at the right spans methods that are not apart; CD is how far apart two must be.",
    ),
    "cost": (
        "Cost beside rank",
        "Median over sets. On the dashed line are the methods that no other beats both in rank and in time.",
    ),
}


class Cell(NamedTuple):
    """A cell of a table: its text, what stands small under it, and whether it is bold."""

    text: str
    small: str = ""
    bold: bool = False


class Table(NamedTuple):
    """Headings and rows; the first cell of a row is its name."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with sentences and a table; `folded` ones are opened by the reader of the page."""

    title: str
    said: Sequence[str]
    table: Table
    folded: bool = False


def write(
    folder: pathlib.Path,
    rows: Sequence[Row],
    differences: Mapping[tuple[str, str], Sequence[Row]],
    notes: Sequence[str],
) -> None:
    """Writes index.html, arena.md and the drawings that it shows, ranks.svg and cost.svg, all of them or none.

    Args:
      folder: where to.
      rows: of arena.csv.
      differences: data set and protocol -> rows of that cell's differences.csv.
      notes: sentences that a reader must know, such as what failed.
    """
    arena = Arena(rows, differences)
    drawn, sections = drawings(arena), list(sections_of(arena))
    colours = page.templates().get_template("colours.css.jinja").render()
    contents = {f"{name}.svg": figures.standalone(svg, colours) for name, svg in drawn.items()}
    contents |= {"index.html": html(arena, sections, drawn, notes), "arena.md": markdown(arena, sections, drawn, notes)}
    with files.whole_files(folder) as temporary:
        for name, text in contents.items():
            (temporary / name).write_bytes(text.encode("utf-8"))


# ---- What it shows ---------------------------------------------------------------------------------------------------


def drawings(arena: Arena) -> dict[str, str]:
    """Draws what can be drawn, by the names of `CAPTIONS`."""
    ranking, tail = (arena.view(arena.main, column).ranking for column in ("value", "tail"))
    if not ranking:
        return {}
    seconds = {m: cost for m in ranking.methods if (cost := arena.cost(m, "processor_seconds"))}
    drawn = {
        "ranks": arena_plots.ranks(ranking, tail.means if tail else {}, tail_name(arena.main)),
        "cost": arena_plots.costs(ranking.means, seconds, arena.front),
    }
    return {name: svg for name, svg in drawn.items() if svg}


def sections_of(arena: Arena) -> Iterator[Section]:
    """Yields all sections after the answer."""
    yield costs(arena)
    if len(arena.protocols) > 1:
        yield protocols(arena)
        yield from losses(arena)
    for protocol in (arena.main, *(p for p in arena.protocols if p != arena.main)):
        for data in arena.distinct("data", protocol=protocol):
            yield cell(arena, data, protocol)


def costs(arena: Arena) -> Section:
    """Makes the table of mean ranks and costs."""
    views = [arena.view(arena.main, "value"), arena.view(arena.main, "tail")]
    views.append(arena.view(arena.main, "value", by_seed=True))
    means = [view.ranking.means if view.ranking else {} for view in views]
    rows = []
    for method in arena.methods:
        ranks = [Cell(f"{found[method]:.1f}" if method in found else "-") for found in means]
        cost = [arena.cost(method, column) for column in COSTS]
        shown = (*map(arena_words.seconds, cost[:2]), *map(size, cost[2:]))
        rows.append([Cell(method, "front" if method in arena.front else ""), *ranks, *map(Cell, shown)])
    heads = ("Mean rank", tail_name(arena.main), "set × seed", "Processor time", "Wall time", "Parameters", "FLOPs")
    said = (
        f"Mean ranks over data sets, of all samples and of the {tail_name(arena.main)}, and with every set and seed as "
        "a block, which are not independent. Costs are of a run, FLOPs of a sample in a step of training: medians over "
        "sets of medians over seeds. Front: no other method is both better ranked and cheaper in processor time."
    )
    return Section("Mean ranks and costs", [said], Table(("Method", *heads), rows))


def protocols(arena: Arena) -> Section:
    """Makes the table of mean ranks by protocol."""
    views = {protocol: arena.view(protocol, "value").ranking for protocol in arena.protocols}
    means = {protocol: ranking.means if ranking else {} for protocol, ranking in views.items()}
    rows = [
        [Cell(m), *(_number(found.get(m), 1, found and m == next(iter(found))) for found in means.values())]
        for m in arena.methods
    ]
    sets = {p: len(arena.distinct("data", protocol=p)) for p in arena.protocols}
    said = "Mean rank over the data sets of each protocol of missingness, all samples; bold: the best."
    heads = [f"{words(p)} ({many(n, 'set')})" for p, n in sets.items()]
    return Section("Mean ranks by protocol", [said], Table(("Method", *heads), rows))


def losses(arena: Arena) -> Iterator[Section]:
    """Yields for each figure the table of what protocols cost against the main one, mean over the sets of both."""
    others = [protocol for protocol in arena.protocols if protocol != arena.main]
    sets: dict[tuple[str, Task], list[str]] = {}
    for data in arena.distinct("data", protocol=arena.main):
        sets.setdefault((arena.figure(data, arena.main), arena.unit(data, arena.main)), []).append(data)
    for (figure, unit), some in sets.items():
        lost = {p: {m: arena.loss(m, p, some) for m in arena.methods} for p in others}
        least = {p: min((v for v in found.values() if v is not None), default=None) for p, found in lost.items()}
        rows = [
            [Cell(m), *(_number(lost[p][m], unit.digits, lost[p][m] == least[p], "+") for p in others)]
            for m in arena.methods
        ]
        said = (
            f"How much worse {title(figure)} is than {words(arena.main)}{_percent(unit)}, all samples; mean over "
            f"{', '.join(some)}, where a method has both. Bold: the least."
        )
        yield Section(f"Loss by protocol: {title(figure)}", [said], Table(("Method", *map(words, others)), rows))


def cell(arena: Arena, data: str, protocol: str) -> Section:
    """Makes the table of a data set and protocol: means and deviations, and differences to the baseline."""
    unit, where = arena.unit(data, protocol), {"data": data, "protocol": protocol}
    rare = tail_name(protocol)
    columns = {("value", "figure"): "", ("tail", "figure"): f", {rare}"}
    columns |= {("second_value", "second"): "", ("second_tail", "second"): f", {rare}"}
    spreads = {c: {m: arena.spread(c, method=m, **where) for m in arena.methods} for c, _ in columns}
    columns = {key: end for key, end in columns.items() if any(spreads[key[0]].values())}
    names = {key: arena.figure(data, protocol, key[1]) for key in columns}
    best = {key: arena.best(spreads[key[0]], names[key], unit) for key in columns}
    parts = [p for p in ("all", "tail") if any(arena.difference(data, protocol, m, p) for m in arena.methods)]
    rows = []
    for method in (m for m in arena.methods if spreads["value"][m] or spreads["tail"][m]):
        cells = [
            Cell(tables.spread_text(spreads[key[0]][method], digits=unit.digits), "", method in best[key])
            for key in columns
        ]
        rows.append([Cell(method), *cells, *(_difference(arena, data, protocol, method, part) for part in parts)])
    heads = ["Method", *(f"{_title(names[key])}{end}" for key, end in columns.items())]
    against = f"{_title(arena.figure(data, protocol))} against {arena.baseline}"
    heads += [f"{against}, {rare if part == 'tail' else 'all samples'}" for part in parts]
    shown = f"{data}, {words(protocol)}" if len(arena.protocols) > 1 else data
    return Section(shown, [_told(arena, where, unit, bool(parts))], Table(heads, rows), protocol != arena.main)


def _told(arena: Arena, where: Mapping[str, str], unit: Task, compared: bool) -> str:
    """Says how many samples and seeds a cell has, and how to read it."""
    seeds = arena.distinct("seed", **where)
    n, tail = ([int(float(text)) for text in arena.distinct(column, **where)] for column in ("n", "n_tail"))
    rare = tail_name(where["protocol"])
    said = f"Held-out samples of a seed: {tables.size_text(n)}, {rare} {tables.size_text(tail)}. "
    several = f"Mean ± standard deviation over {len(seeds)} seeds{_percent(unit)}; bold: the best mean."
    said += several if len(seeds) > 1 else f"One seed{_percent(unit)}; bold: the best."
    if not compared:
        return said
    wins = " and the seeds with a gain" if len(seeds) > 1 else ""
    return (
        f"{said} Differences are paired, with the 95 % interval, p by Holm over the methods{wins}; bold: beyond chance."
    )


def _difference(arena: Arena, data: str, protocol: str, method: str, part: str) -> Cell:
    """Writes a difference to the baseline; bold where it is more than chance."""
    value, unit = arena.difference(data, protocol, method, part), arena.unit(data, protocol)
    if value is None:
        return Cell("" if method == arena.baseline else "-")
    interval = "" if value.low is None else f"{tables.signed(value.low, unit)} to {tables.signed(value.high, unit)}; "
    small = f"{interval}p {tables.p_text(value.p_holm)}{tables.wins_text(value)}"
    sure = arena.verdict(data, protocol, method, part) in ("better", "worse")
    return Cell(tables.signed(value.mean, unit), small, sure)


def _percent(unit: Task) -> str:
    return f", {unit.unit}" if unit.factor == 100 else ""


def _number(value: float | None, digits: int, bold: bool, sign: str = "") -> Cell:
    return Cell("-") if value is None else Cell(f"{value:{sign}.{digits}f}", "", bool(bold))


def _title(figure: str) -> str:
    return title(figure)[:1].upper() + title(figure)[1:]


def headline(arena: Arena) -> str:
    """Returns the title of the page."""
    return f"Arena: {many(len(arena.methods), 'method')} on {many(len(arena.distinct('data')), 'data set')}"


def facts(arena: Arena) -> str:
    """Says how many runs there are, of what, and what they ran on."""
    seeds, made = len(arena.distinct("seed")), []
    for name, column in (("remind_jax", "version"), ("JAX", "jax"), ("Python", "python"), ("", "processor")):
        if values := arena.distinct(column):
            made.append(f"{name} {' and '.join(values)}".strip())
    shown = f", {many(len(arena.protocols), 'protocol')} of missingness" if len(arena.protocols) > 1 else ""
    return f"{many(len(arena.rows), 'run')}, {many(seeds, 'seed')}{shown}; {', '.join(made)}."


# ---- How it is written -----------------------------------------------------------------------------------------------


def html(arena: Arena, sections: Sequence[Section], drawn: Mapping[str, str], notes: Sequence[str]) -> str:
    """Returns the page as one string; the same rows give the same page."""
    import markupsafe

    shown = [
        {"title": name, "caption": caption, "svg": markupsafe.Markup(drawn[key])}
        for key, (name, caption) in CAPTIONS.items()
        if key in drawn
    ]
    variables: dict[str, Any] = {"title": headline(arena), "facts": facts(arena), "notes": notes, "drawings": shown}
    variables |= {"answer": arena_words.answer(arena), "sections": sections}
    variables["synthetic"] = [data for data in arena.distinct("data") if page.is_synthetic(data)]
    return page.templates(pathlib.Path(__file__).parent).get_template(TEMPLATE).render(variables)


def markdown(arena: Arena, sections: Sequence[Section], drawn: Mapping[str, str], notes: Sequence[str]) -> str:
    """Returns the same as Markdown."""
    lines = [
        f"# {headline(arena)}",
        "",
        f"{texts.markdown(facts(arena))} [Every run](arena.csv).",
        "",
        "## In short",
        "",
    ]
    lines += [f"- {texts.markdown(sentence)}" for sentence in (*arena_words.answer(arena), *notes)]
    for key, (name, caption) in CAPTIONS.items():
        lines += ["", f"![{name}]({key}.svg)", "", f"{name}: {caption}"] if key in drawn else []
    for section in sections:
        lines += ["", f"## {texts.markdown(section.title)}", "", *map(texts.markdown, section.said), ""]
        lines += tables.head(map(texts.markdown, section.table.heads), numeric_from=1)
        lines += [tables.line(map(_markdown, row)) for row in section.table.rows]
    return "\n".join(lines) + "\n"


def _markdown(one: Cell) -> str:
    text = texts.markdown(one.text)
    text = f"**{text}**" if one.bold else text
    return f"{text} ({texts.markdown(one.small)})" if one.small else text
