"""The words of docs/results.md: its order, and the section of a data set.

Better and worse are said only of differences whose interval leaves out 0 and whose p, corrected by Holm over the
methods compared, is below 0.05; everything else is level.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from docs.standing import answer
from docs.standing.claims import PAPER
from docs.standing.study import PARTS, Key, Study
from remind_jax.methods import PLAIN
from remind_jax.studies.comparison import Difference, verdict
from remind_jax.studies.ranks import LEVEL
from remind_jax.studies.tables import difference_text, head, line, signed, spread_text

PLACES = {"all": "all samples", "tail": "the tail"}

INTRODUCTION = """# Standing results

Written by `python -m docs.standing` from the sweeps stored in [results](results): no figure is written by hand.
Of times to an event the C index stands in the place of AUROC. Tail: the samples of rare combinations of modalities."""
MADE = """The phenomenon and the twin are made by generators of this package, the rest are real people. Bold: beyond
chance, by the differences above or, between REMIND and its own parts, a t-test over seeds."""

HOW_TO_READ = """- Figures of classes are in percent, a C index is in its own unit: mean ± sample standard deviation
  over seeds. A seed sets split, initial weights and order. Bold: the best mean of a column.
- A combination of modalities is tail by its share of the training samples. *Worst combination* is that of at least 10
  held-out samples with the worst mean. *Weighted* figures weigh combinations by their train frequency.
- *Tuned*: probabilities are divided by a power of the classes' shares that tuning rows chose, for every method alike.
- Differences are paired, on the same held-out samples of the same seeds, in points, with the 95 % interval of a
  bootstrap over patients and seeds, p by Holm over the methods, and the seeds with a gain. *Better* and *worse*,
  *beyond chance*: the interval leaves out 0 and p is below 0.05. *Level*: everything else, which is no proof of being
  equal. *Clear*: the interval leaves out 0, without correction, since being ahead of all is to pass every single test.
- Time is the median wall time of a run over seeds, with its start; programs that an earlier run compiled are used
  again, and other work ran on the machine meanwhile.
- Initial weights and dropout masks are drawn in another way since the version that a section names, so that a run of
  today differs from the stored one as two seeds do."""
AIM = f"""The aim: on each data set of real people ahead of every preset and plain model in AUROC and macro-F1, overall
and on the tail, with intervals without 0 on at least {answer.SETS}. A cell: methods that are behind in the mean, how
many of them clearly, and those that are not. Tuned macro-F1 stands beside and is not counted."""


def page(studies: Sequence[Study], claims: Sequence[str] = ()) -> str:
    """Writes the whole text.

    Args:
      studies: at least one, in the order of their sections.
      claims: lines of the section on the paper's claims, if any.
    """
    lines = [INTRODUCTION, "", "## Which method should I take for my data", "", *answer.which(studies)]
    lines += ["", "## All data sets", "", *answer.over_all(studies)]
    if found := answer.aim(studies):
        lines += ["", "## Is the aim met", "", AIM, "", *found]
    lines += ["", "## How to read the figures", "", HOW_TO_READ]
    for study in studies:
        lines += ["", *section(study)]
    if claims:
        lines += ["", "## Claims of the paper", "", MADE, "", *claims]
    return "\n".join(lines) + "\n"


def section(study: Study) -> list[str]:
    """Writes the section of a data set: who leads, and the rest folded."""
    lines = [
        f"## {study.heading}",
        "",
        *leading(study),
        "",
        '<details markdown="1">',
        "<summary>Tables, runs and reading</summary>",
    ]
    lines += ["", *([study.reading, ""] if study.reading else []), *facts(study), "", *summary(study)]
    for baseline, found in study.differences.items():
        lines += ["", f"**Differences to `{baseline}`**", "", *difference_table(study, baseline)]
        lines += ["", f"Against `{baseline}`:", "", *against(study, baseline, found)]
    return [*lines, "", "</details>"]


# ---- A data set -----------------------------------------------------------------------------------------------------


def facts(study: Study) -> list[str]:
    """Writes the command, the time that it took, the machine, sizes and files."""
    record, sizes = study.record, study.sizes
    runs, seeds = sum(study.runs.values()), len(record["seeds"])
    lines = ["```", record["command"], "```", ""]
    lines.append(
        f"- Data: {record['data']}; {sizes['combinations']} combinations, {sizes['tail_combinations']} of them tail; "
        f"of a seed {sizes['train']:,.0f} train rows and {sizes['held_out']:,.0f} held-out samples, "
        f"{sizes['tail']:,.0f} of these in the tail."
    )
    lines.append(f"- Runs: {runs}, of {len(study.methods)} methods and {_many(seeds, 'seed')}. {time_text(study)}")
    lines.append(f"- Machine: {machine_text(study)}")
    fewer = [f"`{method}` ({n})" for method, n in study.runs.items() if n < seeds]
    if fewer:
        lines.append(f"- Methods with fewer runs: {', '.join(fewer)}.")
    if record["failed"]:
        lines.append(f"- Failed: {', '.join(record['failed'])}.")
    folder = f"results/{study.name}"
    lines.append(
        f"- Files: [every run]({folder}/runs.csv), [every combination]({folder}/groups.csv), "
        f"[every difference]({folder}/differences.csv), [record]({folder}/sweep.json)."
    )
    return lines


def time_text(study: Study) -> str:
    """Says how long the finished runs and the tables took."""
    names = [name for name in study.record["runs"] if name.rpartition(" seed ")[0] in study.runs]
    seconds = [study.record["runs"][name]["seconds"] for name in names]
    known = [value for value in seconds if value is not None]
    jobs = study.record["jobs"]
    if not known:
        return "The time of the runs was not recorded."
    of = "" if len(known) == len(seconds) else f" ({len(known)} of {len(seconds)}; the others were not recorded)"
    at_a_time = f", {jobs} at a time" if jobs > 1 else ", one at a time"
    if "--share" in study.record["command"].split():
        at_a_time = ", shared by processes"
    tables = study.record["seconds"]["tabulating"]
    return (
        f"The runs{of} took {duration(sum(known))} together{at_a_time}; "
        f"the tables, with {study.record['resamples']:,} bootstrap replicates, {duration(tables)}."
    )


def machine_text(study: Study) -> str:
    """Says processor, devices and versions."""
    record = study.record
    environment = record["environment"]
    text = f"{_many(record['cores'], 'core')} of {record['processor']}"
    if not environment:
        return f"{text}."
    devices = Counter(environment["devices"])
    kinds = ", ".join(f"{n} × {name}" if n > 1 else name for name, n in devices.items())
    versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
    commit = f"; commit {environment['commit'][:7]}" if environment["commit"] else ""
    return f"{text}; JAX on {kinds}; Python {environment['python']}, {versions}{commit}."


def duration(seconds: float) -> str:
    """Writes a time in the two largest units that say something."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def summary(study: Study) -> list[str]:
    """Writes the table with a method a row."""
    lines = head(["method", "runs", *study.columns], numeric_from=1)
    leaders = {key: study.leaders(key) for key in study.columns.values()}
    for method in study.methods:
        cells = []
        for key, best in leaders.items():
            text = spread_text(study.cells[key][method], digits=study.task.digits)
            cells.append(f"**{text}**" if method in best else text)
        lines.append(line([method, str(study.runs[method]), *cells]))
    return lines


def difference_table(study: Study, baseline: str) -> list[str]:
    """Writes the table of differences to a baseline, all samples and tail."""
    found = study.differences[baseline]
    lines = head(["method", *map(study.title, study.tested)], numeric_from=1)
    for method in study.methods:
        if method != baseline:
            cells = [difference_text(found.get((*key, method)), study.task) for key in study.tested]
            lines.append(line([method, *cells]))
    return lines


# ---- What follows ---------------------------------------------------------------------------------------------------


def leading(study: Study) -> list[str]:
    """Says which methods have the best means, and whether a plain model is among them."""
    leaders = {key: study.leaders(key) for key in study.tested}
    if not any(leaders.values()):
        return ["With one method there is nothing to compare."]
    lines = []
    for part in PARTS:
        said = [
            f"{title} {_names(leaders[part, figure])} ({study.shown(top, (part, figure))})"
            for figure, title in study.titles.items()
            for top in leaders[part, figure][:1]
        ]
        if said:
            lines.append(f"- Best mean on {PLACES[part]}: {', '.join(said)}.")
    if not set(PLAIN) & set(study.methods):
        return [*lines, "- No plain model was run."]
    won = [key for key, names in leaders.items() if set(names) & set(PLAIN)]
    known = sum(bool(names) for names in leaders.values())
    if not won:
        return [*lines, f"- No plain model leads in any of these {known} figures."]
    return [*lines, f"- A plain model leads in {len(won)} of {known}: {_places(study, won)}."]


def _where(study: Study, key: Key) -> str:
    return f"{study.titles[key[1]]}, {PLACES[key[0]]}"


def _places(study: Study, keys: Sequence[Key]) -> str:
    return "; ".join(_where(study, key) for key in keys)


def against(study: Study, baseline: str, found: Mapping[tuple[str, str, str], Difference]) -> list[str]:
    """Says who is better, worse or level in the figures, then which of the paper's methods gain and lose."""
    others = [method for method in study.methods if method != baseline]
    smallest = 2 / (study.record["resamples"] + 1) * len(others)
    lines = []
    if smallest >= LEVEL:
        lines.append(
            f"- {study.record['resamples']:,} bootstrap replicates and {_many(len(others), 'comparison')} give no "
            f"corrected p below {smallest:.2f}: nothing can be called better or worse here."
        )
    if any(value.n == 1 for value in found.values()):
        lines.append("- Of one seed: the chance of training is not in the intervals.")
    level = []
    for key in study.tested:
        there = {method: found[(*key, method)] for method in others if (*key, method) in found}
        if there and {verdict(value) for value in there.values()} == {"level"}:
            level.append(key)
        elif there:
            lines.append(f"- {_where(study, key)}: {_verdicts(study, key[1], there)}.")
    if level:
        who = "Every method is" if len(others) > 1 else f"`{others[0]}` is"
        lines.append(f"- {who} level in: {_places(study, level)}.")
    return [*lines, *_paper(study, baseline, found)]


def _verdicts(study: Study, figure: str, there: Mapping[str, Difference]) -> str:
    more, by_verdict = study.more(figure), {}
    for method, value in sorted(there.items(), key=lambda item: -item[1].mean if more else item[1].mean):
        told = f"`{method}` ({signed(value.mean, study.task)})"
        by_verdict.setdefault(verdict(value, more), []).append(told)
    said = [f"{name} {', '.join(by_verdict[name])}" for name in ("better", "worse", "untested") if name in by_verdict]
    if "level" in by_verdict:
        said.append(f"level {_many(len(by_verdict['level']), 'other')}")
    return "; ".join(said)


def _paper(study: Study, baseline: str, found: Mapping[tuple[str, str, str], Difference]) -> list[str]:
    methods = [method for method in PAPER if method in study.methods and method != baseline]
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for method in methods:
        keys = [key for key in study.tested if (*key, method) in found]
        verdicts = {verdict(found[(*key, method)], study.more(key[1])) for key in keys}
        kinds.setdefault(("better" in verdicts, "worse" in verdicts), []).append(method)
    titles = {
        (False, True): "worse in at least one of these figures and better in none",
        (True, True): "better in some and worse in others",
        (True, False): "better in at least one and worse in none",
        (False, False): "level in all",
    }
    said = [f"{title}: {_names(kinds[kind])}" for kind, title in titles.items() if kind in kinds]
    return [f"- Of the paper's methods, {'; '.join(said)}."] if said else []


def _names(methods: Sequence[str]) -> str:
    return ", ".join(f"`{method}`" for method in methods)


def _many(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"
