"""The words of docs/results.md: tables, and sentences that follow from the figures of stored sweeps.

Better and worse are said only of differences whose interval leaves out 0 and whose p, corrected by Holm over the
methods compared, is below 0.05; everything else is level.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from docs.standing.study import COLUMNS, Study
from remind_jax.methods import PLAIN
from remind_jax.studies.comparison import Difference
from remind_jax.studies.results import TITLES
from remind_jax.studies.tables import difference_text, head, line, spread_text

# The eight columns of the paper's tables.
PAPER = ("soft_moe", "fuse_moe", "flex_moe", "fair_mixup", "reweigh", "group_dro", "fair_batch", "remind")
OWN = "remind_plus"  # what this package adds
LEVEL = 0.05
PARTS = {"all": "all samples", "tail": "the tail"}
NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}
TESTED = [(part, figure) for part in PARTS for figure in TITLES]
AIMED = [(part, figure) for figure in ("auroc", "macro_f1") for part in PARTS]
FRONT = ("AUROC", "tail AUROC")

INTRODUCTION = """# Standing results

Written by `python -m docs.standing` from the sweeps stored in [results](results); no figure and no
sentence outside the sections *Reading* is written by hand.

- All figures are in percent: mean ± sample standard deviation over seeds. A seed sets split, initial weights and order.
  Bold: the highest mean of a column.
- Accuracy, macro-F1 and AUROC are those of all held-out samples, and of the tail's samples together. A combination of
  modalities is tail by its share of the training samples.
- Worst combination: lowest accuracy of a combination with at least 10 held-out samples. Weighted accuracy: accuracy of
  the combinations weighted by their train frequency, which differs from accuracy where the held-out samples are spread
  otherwise than the training samples.
- Initial weights and dropout masks are drawn in another way since the version that each section names, so that a run of
  today differs from the stored one as two seeds do.
- Differences are paired, on the same held-out samples of the same seeds, in points, with the 95 % interval of a
  bootstrap over patients and seeds, p by Holm over the methods, and the seeds with a gain. Better and worse: the
  interval leaves out 0 and p is below 0.05. Level: everything else, which is no proof of being equal.
"""


def page(studies: Sequence[Study]) -> str:
    """Writes the whole text.

    Args:
      studies: at least one, in the order of their sections.
    """
    lines = [INTRODUCTION, "## All data sets", "", *front(studies)]
    for study in studies:
        lines += ["", f"## {study.heading}", "", *facts(study), "", *summary(study)]
        for baseline in study.differences:
            title = f"### {study.heading}: differences to `{baseline}`"
            lines += ["", title, "", *difference_table(study, baseline)]
        lines += ["", f"### {study.heading}: what follows", "", *findings(study)]
        if study.reading:
            lines += ["", f"### {study.heading}: reading", "", study.reading]
    return "\n".join(lines) + "\n"


# ---- The front ------------------------------------------------------------------------------------------------------


def front(studies: Sequence[Study]) -> list[str]:
    """Writes one table over all data sets, and on how many of them the package's own method is ahead."""
    methods = list(dict.fromkeys(method for study in studies for method in study.methods))
    shown = [(study, column) for study in studies for column in FRONT]
    lines = head(["method", *(f"{study.heading}: {column}" for study, column in shown)], numeric_from=1)
    for method in methods:
        cells = []
        for study, column in shown:
            value = study.columns[column].get(method)
            text = f"{value.mean:.1f}" if value else "-"
            cells.append(f"**{text}**" if method in study.leaders(column) else text)
        lines.append(line([method, *cells]))
    return [*lines, *own(studies)]


def own(studies: Sequence[Study]) -> list[str]:
    """Says where the package's own method is ahead of every other; nothing where it was not run."""
    there = [study for study in studies if OWN in study.methods and len(study.methods) > 1]
    if not there:
        return []
    by_mean = {key: [study for study in there if ahead(study, key)] for key in AIMED}
    tested = [study for study in there if OWN in study.differences]
    beyond = {key: [study for study in tested if beats_all(study, key)] for key in AIMED}
    lines = [
        "",
        f"`{OWN}` against every other method of the same sweep. Data sets on which its mean is the highest:",
        "",
        *(f"- {_where(key)}: {_count(by_mean[key], there)}" for key in AIMED),
        f"- all four at once: {_count([s for s in there if all(s in found for found in by_mean.values())], there)}",
        "",
    ]
    if not tested:
        return [*lines, f"No stored sweep has `{OWN}` as a baseline, so none of this is tested."]
    return [
        *lines,
        f"Where every other method is worse beyond the interval, of the sweeps with `{OWN}` as a baseline:",
        "",
        *(f"- {_where(key)}: {_count(beyond[key], tested)}" for key in AIMED),
    ]


def ahead(study: Study, key: tuple[str, str]) -> bool:
    """Tells whether the own method's mean is above that of every other."""
    means = {m: value.mean for m, value in study.columns[_column(key)].items() if value}
    return OWN in means and all(means[OWN] > mean for method, mean in means.items() if method != OWN)


def beats_all(study: Study, key: tuple[str, str]) -> bool:
    """Tells whether every other method is worse than the own one in the differences to it."""
    found = [study.differences[OWN].get((*key, method)) for method in study.methods if method != OWN]
    return all(value is not None and verdict(value) == "worse" for value in found)


def _column(key: tuple[str, str]) -> str:
    samples = {"all": "all samples", "tail": "tail, pooled"}[key[0]]
    return next(name for name, value in COLUMNS.items() if value == (samples, key[1]))


def _where(key: tuple[str, str]) -> str:
    return f"{NAMES[key[1]]}, {PARTS[key[0]]}"


def _count(found: Sequence[Study], of: Sequence[Study]) -> str:
    return f"{len(found)} of {len(of)}" + (f" ({'; '.join(study.heading for study in found)})" if found else "")


# ---- A data set -----------------------------------------------------------------------------------------------------


def facts(study: Study) -> list[str]:
    """Writes the command, the time that it took, the machine, sizes and files."""
    record, sizes = study.record, study.sizes
    runs, seeds = sum(study.runs.values()), len(record["seeds"])
    lines = ["```", record["command"], "```", ""]
    lines.append(
        f"- Data: {record['data']}; {sizes['combinations']} combinations, {sizes['tail_combinations']} of them tail; "
        f"held-out samples of a seed: {sizes['held_out']:,.0f}, in the tail {sizes['tail']:,.0f}."
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
    leaders = {column: study.leaders(column) for column in study.columns}
    for method in study.methods:
        cells = []
        for column, values in study.columns.items():
            text = spread_text(values[method])
            cells.append(f"**{text}**" if method in leaders[column] else text)
        lines.append(line([method, str(study.runs[method]), *cells]))
    return lines


def difference_table(study: Study, baseline: str) -> list[str]:
    """Writes the table of differences to a baseline, all samples and tail."""
    found = study.differences[baseline]
    lines = head(["method", *(f"{_short(part)}{NAMES[figure]}" for part, figure in TESTED)], numeric_from=1)
    for method in study.methods:
        if method != baseline:
            lines.append(line([method, *(difference_text(found.get((*key, method))) for key in TESTED)]))
    return lines


def _short(part: str) -> str:
    return "tail " if part == "tail" else ""


# ---- What follows ---------------------------------------------------------------------------------------------------


def findings(study: Study) -> list[str]:
    """Says who leads and who differs from each baseline."""
    lines = leading(study)
    for baseline, found in study.differences.items():
        lines += ["", f"Against `{baseline}`:", "", *against(study, baseline, found)]
    return lines


def leading(study: Study) -> list[str]:
    """Says which methods have the highest means, and whether a plain model is among them."""
    leaders = {key: study.leaders(_column(key)) for key in TESTED}
    if not any(leaders.values()):
        return ["With one method there is nothing to compare."]
    lines = []
    for part, title in PARTS.items():
        said = [
            f"{NAMES[figure]} {_names(leaders[part, figure])} ({study.columns[_column((part, figure))][top].mean:.1f})"
            for figure in TITLES
            for top in leaders[part, figure][:1]
        ]
        if said:
            lines.append(f"- Highest mean on {title}: {', '.join(said)}.")
    if not set(PLAIN) & set(study.methods):
        return [*lines, "- No plain model was run."]
    won = [key for key, names in leaders.items() if set(names) & set(PLAIN)]
    known = sum(bool(names) for names in leaders.values())
    if not won:
        return [*lines, f"- No plain model leads in any of these {known} figures."]
    return [*lines, f"- A plain model leads in {len(won)} of {known}: {'; '.join(map(_where, won))}."]


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
    for key in TESTED:
        there = {method: found[(*key, method)] for method in others if (*key, method) in found}
        if there and {verdict(value) for value in there.values()} == {"level"}:
            level.append(_where(key))
        elif there:
            lines.append(f"- {_where(key)}: {_verdicts(there)}.")
    if level:
        who = "Every method is" if len(others) > 1 else f"`{others[0]}` is"
        lines.append(f"- {who} level in: {'; '.join(level)}.")
    return [*lines, *_paper(study, baseline, found)]


def verdict(value: Difference) -> str:
    """Returns `better`, `worse`, `level`, or `untested` where there is no interval."""
    if value.p_holm is None or value.low is None or value.high is None:
        return "untested"
    if value.p_holm < LEVEL and (value.low > 0 or value.high < 0):
        return "better" if value.low > 0 else "worse"
    return "level"


def _verdicts(there: Mapping[str, Difference]) -> str:
    by_verdict: dict[str, list[str]] = {}
    for method, value in sorted(there.items(), key=lambda item: -item[1].mean):
        by_verdict.setdefault(verdict(value), []).append(f"`{method}` ({100 * value.mean:+.1f})")
    said = [f"{name} {', '.join(by_verdict[name])}" for name in ("better", "worse", "untested") if name in by_verdict]
    if "level" in by_verdict:
        said.append(f"level {_many(len(by_verdict['level']), 'other')}")
    return "; ".join(said)


def _paper(study: Study, baseline: str, found: Mapping[tuple[str, str, str], Difference]) -> list[str]:
    methods = [method for method in PAPER if method in study.methods and method != baseline]
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for method in methods:
        verdicts = {verdict(found[(*key, method)]) for key in TESTED if (*key, method) in found}
        kinds.setdefault(("better" in verdicts, "worse" in verdicts), []).append(method)
    titles = {
        (False, True): "worse in at least one of these six figures and better in none",
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
