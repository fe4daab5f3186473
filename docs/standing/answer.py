"""The first screens of docs/results.md: which method for which data, one table over all, and whether the aim is met."""

import statistics
from collections.abc import Sequence

from docs.standing.study import DECISIONS, PARTS, Key, Study
from remind_jax.evaluation.metrics import TUNED
from remind_jax.methods import OWN as DEFAULT
from remind_jax.studies.comparison import Difference, verdict
from remind_jax.studies.tables import head, line, signed

OWN = ("remind_stack", "remind_blend", "remind_plus")
"""What this package adds, its best first."""
ABLATIONS = ("remind_no_dro", "remind_no_specialization")
AGAINST = ("soft_moe", "gradient_boosting")
LINEAR = ("logistic_regression", "ridge", "cox")  # one a task
FEW = 1_000  # train rows, up to which data are called small
MOST_MISSES = 3  # methods that are named in a cell
SETS, TIMES, NAMED = 2, 10, "nhanes"  # what the aim asks: sets beyond chance, cost, and on what


# ---- Which method ----------------------------------------------------------------------------------------------------


def which(studies: Sequence[Study]) -> list[str]:
    """Writes for each kind of data the method with the best mean, its cost, and what cheaper ones reach."""
    groups = kinds(studies)
    lines = [line_of(group) for group in groups]
    return [*lines, "", *advice(studies), "", *gains(groups)]


def kinds(studies: Sequence[Study]) -> list[list[Study]]:
    """Groups data sets of one kind, the same methods and figures, by whether more than `FEW` rows train."""
    found: dict[tuple, list[Study]] = {}
    for study in studies:
        same = study.kind, study.sizes["train"] > FEW, frozenset(study.methods), frozenset(study.titles)
        found.setdefault(same, []).append(study)
    return list(found.values())


def _rows(group: Sequence[Study]) -> str:
    sizes = [round(study.sizes["train"], -1) for study in group]
    least, most = (f"{value:,.0f}" for value in (min(sizes), max(sizes)))
    return f"{least} train rows" if least == most else f"{least} to {most} train rows"


def scores(group: Sequence[Study], part: str = "all", figure: str = "") -> dict[str, float]:
    """Averages the means of methods over data sets; ablations are left out."""
    found = {}
    for method in group[0].methods:
        means = [study.mean(method, (part, figure or study.rank)) for study in group]
        if None not in means and method not in ABLATIONS:
            found[method] = statistics.fmean(means)
    return found


def taken(group: Sequence[Study]) -> str:
    """Returns the method with the best mean in the figure of `Study.rank`, all samples."""
    found = scores(group)
    return max(found, key=found.get)


def curve(group: Sequence[Study]) -> list[tuple[str, float]]:
    """Returns methods and their costs, cheapest first, without those than which a cheaper one is as good."""
    costs = {m: [study.cost(m) for study in group] for m in scores(group)}
    known = {m: statistics.fmean(values) for m, values in costs.items() if None not in values}
    found: list[tuple[str, float]] = []
    best = -float("inf")
    for method in sorted(known, key=known.get):
        if scores(group)[method] > best:
            best = scores(group)[method]
            found.append((method, known[method]))
    return found


def line_of(group: Sequence[Study]) -> str:
    """Says which method to take for a kind of data."""
    method, first = taken(group), group[0]
    text = f"- **{first.kind}, {_rows(group)}** ({'; '.join(study.short for study in group)}): take `{method}`"
    if figure := next((name for name in reversed(DECISIONS) if name in first.titles), ""):
        found = scores(group, figure=figure)
        text += f"; for {first.titles[figure]} `{best}`" if method != (best := max(found, key=found.get)) else ""
    steps = [f"`{m}` {scores(group)[m]:.{first.task.digits}f} ({times(cost)})" for m, cost in curve(group)]
    text += f". {first.titles[first.rank]} by cost: {', '.join(steps)}." if steps else "."
    cheaper = level_with(group, method)
    return f"{text} `{cheaper}` is behind by no more than chance." if cheaper else text


def level_with(group: Sequence[Study], method: str) -> str:
    """Returns the cheapest method of the curve that is level with another on every data set; empty for none."""
    for other, _ in curve(group):
        found = [study.gain(method, other, ("all", study.rank)) for study in group]
        if other != method and all(value and verdict(value) == "level" for value in found):
            return other
    return ""


def times(cost: float | None) -> str:
    """Writes a cost as a multiple of one run of `remind`."""
    return "-" if cost is None else f"{cost:.0f}×" if cost >= 9.5 else f"{cost:.1f}×" if cost >= 0.1 else f"{cost:.2f}×"


def advice(studies: Sequence[Study]) -> list[str]:
    """Says how far the answer carries."""
    lines = [f"- {own_text(studies, method)}" for method in OWN if any(method in s.runs for s in studies)]
    return [
        *lines,
        "- These are few data sets, and the best of many methods looks better than it is: compare on "
        f"[your own](own_data.md#which-method). `fit` takes `{DEFAULT}` where no method is named.",
    ]


def own_text(studies: Sequence[Study], method: str) -> str:
    """Says on how many data sets a method of ours leads, in order and answers, and on how many beyond chance."""
    there = [study for study in studies if method in study.runs and len(study.runs) > 1]
    told = []
    for name, index in (("AUROC", 0), ("macro-F1", 1)):
        cells = [(study, key) for study in there if (key := _cell(study, index))]
        ahead = [study for study, key in cells if not misses(study, method, key)]
        clear = [study for study, key in cells if all_clear(study, method, key)]
        told.append(f"in {name} on {_count(ahead, len(cells))}, beyond chance on {_count(clear, len(cells))}")
    return f"`{method}` is ahead of every other method of the sweep {'; '.join(told)}."


def _cell(study: Study, index: int) -> Key | None:
    figures = [study.rank, *(figure for figure in DECISIONS if figure in study.titles)]
    return ("all", figures[index]) if index < len(figures) else None


def _count(found: Sequence[Study], of: int) -> str:
    return f"{len(found)} of {of}" + (f" ({'; '.join(study.short for study in found)})" if found else "")


def gains(groups: Sequence[Sequence[Study]]) -> list[str]:
    """Writes what the method that is taken gains over three simpler ones, a row a data set."""
    figures = ("AUROC", "macro-F1", "macro-F1, tuned")
    columns = [f"{'tail ' if part == 'tail' else ''}{name}" for name in figures for part in PARTS]
    lines = [
        "What it gains in points (a C index in its own unit) over `soft_moe` / `gradient_boosting` / the linear model, "
        "which is logistic regression, ridge or Cox; bold: beyond chance; time as a multiple of one `remind` run.",
        "",
        *head(["data", "method", "time", *columns], numeric_from=2),
    ]
    for group in groups:
        method = taken(group)
        for study in group:
            cells = [gain_text(study, method, key) for key in _gained(study)]
            lines.append(line([study.short, method, times(study.cost(method)), *cells]))
    return lines


def _gained(study: Study) -> list[Key | None]:
    figures = (study.rank, next((f for f in DECISIONS if f in study.titles and f != TUNED), ""), TUNED)
    return [(part, figure) if figure in study.titles else None for figure in figures for part in PARTS]


def gain_text(study: Study, method: str, key: Key | None) -> str:
    """Writes the gains over those of `AGAINST`, bold where they are beyond chance, `-` for none."""
    linear = next((name for name in LINEAR if name in study.runs), "")
    return " / ".join(_gain(study, method, other, key) for other in (*AGAINST, linear)) if key else "-"


def _gain(study: Study, method: str, other: str, key: Key) -> str:
    value = study.gain(method, other, key) if other != method else None
    if value is None:
        return "-"
    text = signed(value.mean, study.task)
    return f"**{text}**" if verdict(value) in ("better", "worse") else text


# ---- All data sets ---------------------------------------------------------------------------------------------------


def over_all(studies: Sequence[Study]) -> list[str]:
    """Writes a table of AUROC, all samples / tail, with a method a row and a data set a column."""
    methods = list(dict.fromkeys(method for study in studies for method in study.methods))
    lines = head(["method", *(f"{each.short}: {each.titles[each.rank]} / tail" for each in studies)], numeric_from=1)
    for method in methods:
        cells = [" / ".join(_best(each, method, (part, each.rank)) for part in PARTS) for each in studies]
        lines.append(line([method, *cells]))
    return lines


def _best(study: Study, method: str, key: Key) -> str:
    text = study.shown(method, key)
    return f"**{text}**" if method in study.leaders(key) else text


# ---- The aim ---------------------------------------------------------------------------------------------------------


def aim(studies: Sequence[Study]) -> list[str]:
    """Says of our methods in which cells which other methods are not behind, and whether that is what was aimed at."""
    there = [method for method in OWN if any(method in study.runs and len(study.runs) > 1 for study in studies)]
    lines = []
    for method in there:
        run = [study for study in studies if method in study.runs and len(study.runs) > 1]
        lines += ["", f"`{method}`:", "", *aim_table(run, method), "", *conclusion(run, method)]
    return lines[1:]


def aim_table(studies: Sequence[Study], method: str) -> list[str]:
    """Writes which other methods are behind, a row a data set and a column a cell."""
    names = list(dict.fromkeys(_aim_title(study, key) for study in studies for key in study.aimed))
    lines = head(["data", *names], numeric_from=len(names) + 1)
    for study in studies:
        cells = {_aim_title(study, key): aim_text(study, method, key) for key in study.aimed}
        lines.append(line([study.short, *(cells.get(name, "-") for name in names)]))
    return lines


def _aim_title(study: Study, key: Key) -> str:
    return f"{'tail ' if key[0] == 'tail' else ''}{'AUROC' if key[1] == study.rank else study.titles[key[1]]}"


def aim_text(study: Study, method: str, key: Key) -> str:
    """Says how many others are behind, how many of them with an interval without 0, and by how much which are not."""
    found = others(study, method, key)
    if not found:
        return "-"
    ahead = misses(study, method, key)
    text = f"{len(found) - len(ahead)} of {len(found)}, {sum(map(is_clear, found.values()))} clear"
    if ahead:
        worst = sorted(ahead.items(), key=lambda item: item[1])[:MOST_MISSES]
        text += "; not " + ", ".join(f"{other} {signed(value, study.task)}" for other, value in worst)
        text += f" and {len(ahead) - len(worst)} more" if len(ahead) > len(worst) else ""
    return text


def others(study: Study, method: str, key: Key) -> dict[str, Difference]:
    """Returns the differences of a method to every other one that has the figure."""
    found = {other: study.gain(method, other, key) for other in study.methods if other != method}
    return {other: value for other, value in found.items() if value}


def misses(study: Study, method: str, key: Key) -> dict[str, float]:
    """Returns the other methods that are not behind in the mean, with the difference to each, as fractions."""
    return {other: value.mean for other, value in others(study, method, key).items() if value.mean <= 0}


def is_clear(value: Difference) -> bool:
    """Tells whether a gain has an interval without 0."""
    return value.low is not None and value.low > 0


def all_clear(study: Study, method: str, key: Key) -> bool:
    """Tells whether every other method is behind with an interval without 0.

    That all of several differences are there is tested by each at its own level: no correction is needed.
    """
    return all(map(is_clear, others(study, method, key).values()))


def conclusion(studies: Sequence[Study], method: str) -> list[str]:
    """Says whether the aim is met."""
    real = [study for study in studies if study.real]
    keys = {study.name: [key for key in study.aimed if key[1] != TUNED] for study in real}
    met = [study for study in real if not any(misses(study, method, key) for key in keys[study.name])]
    beyond = [study for study in real if all(all_clear(study, method, key) for key in keys[study.name])]
    said = "met" if real and len(met) == len(real) and len(beyond) >= SETS else "not met"
    lines = [
        "- Data sets of real people on which it is ahead of every other method in all counted cells: "
        f"{_count(met, len(real))}, asked of each; with intervals without 0: {_count(beyond, len(real))}, "
        f"asked of {SETS}. **The aim is {said}.**"
    ]
    for study in studies:
        if study.name == NAMED and (cost := study.cost(method)) is not None:
            lines.append(f"- Time on {study.short}: {times(cost)} one `remind` run, asked at most {TIMES}×.")
    return lines
