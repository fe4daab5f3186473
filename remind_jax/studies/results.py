"""Finished runs side by side: figures of every combination, method and seed, and what the paper has."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from remind_jax import tasks
from remind_jax.errors import UserError
from remind_jax.evaluation import finished, page
from remind_jax.evaluation import report as reports
from remind_jax.runtime import records
from remind_jax.studies import comparison
from remind_jax.studies.comparison import Difference, Outcome, Spread, spread
from remind_jax.studies.published import Figure, Published, published
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task

TITLES = Classes((), ()).compared
"""Titles of the figures of classes that are compared."""
# The summary's figures of a run, next to that over combinations by frequency: section of the report, figure (the first
# of those compared where it is empty), and words about it.
_SUMMARY = {
    "worst": ("worst_group", "", "{1} {0} of a combination with at least 10 held-out samples"),
    "tail": ("tail_mean", "", "mean {0} of the tail combinations"),
    "tail_f1": ("tail_mean", "macro_f1", "mean {0} of the tail combinations"),
    "auroc": ("overall", "auroc", "{0} of all held-out samples"),
    "tail_auroc": ("tail_pooled", "auroc", "{0} of the tail's samples together"),
    "all": ("overall", "", "{0} of all held-out samples"),
    "tail_all": ("tail_pooled", "", "{0} of the tail's samples together"),
}
# Rows under the combinations: label, section of the report.
WHOLES = (
    ("all samples", "overall"),
    ("head, pooled", "head_pooled"),
    ("tail, pooled", "tail_pooled"),
    ("head, mean of combinations", "head_mean"),
    ("tail, mean of combinations", "tail_mean"),
    ("worst combination", "worst_group"),
)
Cells = dict[str, dict[str, Spread | None]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the paper's table.

    Attributes:
      label: a combination, a name of `WHOLES`, or attribute and value.
      modalities: of the combination; None for rows over several.
      n: held-out samples of each seed that has the combination; of the worst combination, of each run.
      n_train: mean number of training samples; None for rows over several combinations.
      train_fraction: mean share of the training samples.
      tail: whether most seeds count it to the tail; None for rows over several.
      cells: figure -> method -> spread over seeds, in percent or the unit of the task's tables.
      published: figure -> method -> the paper's figure.
    """

    label: str
    modalities: tuple[str, ...] | None
    n: tuple[int, ...]
    n_train: float | None
    train_fraction: float | None
    tail: bool | None
    cells: Cells
    published: dict[str, dict[str, Figure]]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the tables of a sweep show.

    Attributes:
      data: title of the data set.
      methods, seeds: of the sweep; methods without a finished run are left out.
      runs: the finished ones.
      rows: combinations, most frequent in training first, then `WHOLES`, then values of attributes, if any.
      differences: baseline -> those of `comparison.paired_differences`, as fractions.
      published: the paper's data set, where it is one.
      failures: runs that failed, each with its reason.
      searches: that chose keys of runs, `search.Found`.
    """

    data: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: tuple[Outcome, ...]
    rows: tuple[Row, ...]
    differences: Mapping[str, Mapping[tuple[str, str, str], Difference]]
    published: Published | None
    failures: tuple[str, ...] = ()
    searches: tuple[Any, ...] = ()

    @property
    def task(self) -> Task:
        """What the runs predict, that of the first of them."""
        return self.runs[0].task

    @property
    def combinations(self) -> tuple[Row, ...]:
        """The rows of single combinations."""
        return tuple(row for row in self.rows if row.modalities is not None)

    @property
    def wholes(self) -> tuple[Row, ...]:
        """The rows of `WHOLES`."""
        return tuple(row for row in self.rows if row.label in dict(WHOLES))

    @property
    def attributes(self) -> tuple[Row, ...]:
        """The rows of values of attributes."""
        return self.rows[len(self.combinations) + len(self.wholes) :]


def read_outcomes(folders: Sequence[pathlib.Path]) -> list[Outcome]:
    """Reads finished runs, named so that those of one method and no others share a name.

    Raises UserError: fewer than two, one that is not finished or given twice, other data, or a seed twice in a method.
    """
    if len(folders) < 2:
        raise UserError("give at least two runs: remind compare RUN1 RUN2 --out=DIR")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is given twice")
    read = [_read(folder) for folder in folders]
    names = _names(folders, [config for config, _, _ in read])
    outcomes = [Outcome(n, config["seed"], r, p) for n, (config, r, p) in zip(names, read, strict=True)]
    titles = list(dict.fromkeys(outcome.report["data"] for outcome in outcomes))
    if len(titles) > 1:
        raise UserError(f"the runs are of other data: {'; '.join(titles)}")
    if len(asked := list(dict.fromkeys(outcome.task.name for outcome in outcomes))) > 1:
        raise UserError(f"the runs are of other tasks: {', '.join(asked)}")
    seen: set[tuple[str, int]] = set()
    for outcome in outcomes:
        if (outcome.method, outcome.seed) in seen:
            same = f"two runs of {outcome.method} have the seed {outcome.seed} and the same config"
            raise UserError(f"{same}: give one of them")
        seen.add((outcome.method, outcome.seed))
    return outcomes


def _read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], pl.DataFrame]:
    """Reads config, report and predictions of a finished run."""
    for name in ("config.json", finished.REPORT, finished.PREDICTIONS):
        if not (folder / name).exists():
            raise UserError(f"{folder} holds no finished run: {name} is missing")
    if not finished.is_there(folder):
        raise UserError(f"the run in {folder} is not finished: give its command again to go on")
    config = records.read(folder / "config.json", {"method": str, "seed": int}, "train the run again")
    found = comparison.outcome(config["method"], config["seed"], folder)
    return config, found.report, found.predictions


def _names(folders: Sequence[pathlib.Path], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names each run by its method, with the first folder of its kind where two kinds would be called alike."""
    kinds = [json.dumps({k: v for k, v in config.items() if k != "seed"}, sort_keys=True) for config in configs]
    first: dict[str, tuple[str, str]] = {}
    for kind, config, folder in zip(kinds, configs, folders, strict=True):
        first.setdefault(kind, (config["method"], folder.name))
    alike = [method for method, _ in first.values()]
    called = {kind: m if alike.count(m) == 1 else f"{m} ({folder})" for kind, (m, folder) in first.items()}
    if len(set(called.values())) < len(called):
        raise UserError("two runs of other settings lie in folders of one name: rename one, so that the table tells")
    return [called[kind] for kind in kinds]


def collect(
    runs: Sequence[Outcome],
    methods: Sequence[str],
    baselines: Sequence[str],
    *,
    resamples: int = comparison.RESAMPLES,
    failures: Sequence[str] = (),
    count: Callable[[int, int], None] | None = None,
) -> Results:
    """Puts finished runs side by side: at least one, at most one a method and seed.

    `methods` are in the order of the columns; `baselines` of the differences are at least one; `failures` go to the
    notes; `count` is called with how many runs have their replicates, and of how many.
    """
    there = tuple(method for method in methods if any(run.method == method for run in runs))
    paper = published(runs[0].report["data"])
    rows = (*_combination_rows(runs, there, paper), *_whole_rows(runs, there, paper), *_attribute_rows(runs, there))
    parts = (*comparison.WHOLES, *comparison.large_combinations(runs))
    replicates = comparison.Replicates(runs, chosen=parts, resamples=resamples)  # what costs, once for all baselines
    if len(there) > 1:  # else nothing is compared
        for done, run in enumerate(runs, 1):
            replicates.figures(run.method, run.seed)
            if count:
                count(done, len(runs))
    differences = {b: comparison.paired_differences(runs, there, b, parts, replicates=replicates) for b in baselines}
    seeds = tuple(sorted({run.seed for run in runs}))
    data = runs[0].report["data"]
    return Results(data, there, seeds, tuple(runs), rows, differences, paper, tuple(failures))


def _combination_rows(runs: Sequence[Outcome], methods: Sequence[str], paper: Published | None) -> list[Row]:
    found: dict[str, list[tuple[Outcome, Mapping[str, Any]]]] = {}
    for run in runs:
        for row in run.report["groups"]:
            found.setdefault(row["group"], []).append((run, row))
    rows = []
    for name, entries in found.items():
        by_seed = {run.seed: row for run, row in entries}  # the split is the seed's, whatever the method
        shares = [row["train_fraction"] for row in by_seed.values()]
        modalities = tuple(entries[0][1]["modalities"])
        rows.append(
            Row(
                name,
                modalities,
                tuple(row["n"] for row in by_seed.values()),
                sum(row["n_train"] for row in by_seed.values()) / len(by_seed),
                sum(shares) / len({run.seed for run in runs}),
                2 * sum(row["tail"] for row in by_seed.values()) >= len(by_seed),
                _cells([(run.method, row) for run, row in entries], methods, runs[0].task),
                _published(paper, methods, modalities),
            )
        )
    return sorted(rows, key=lambda row: (-(row.train_fraction or 0.0), row.label))


def _whole_rows(runs: Sequence[Outcome], methods: Sequence[str], paper: Published | None) -> list[Row]:
    rows = []
    for label, section in WHOLES:
        cells = _cells([(run.method, run.report[section]) for run in runs], methods, runs[0].task)
        # The worst combination is the method's, everything else the seed's.
        of_n = runs if section == "worst_group" else {run.seed: run for run in runs}.values()
        n = () if section.endswith("mean") else tuple(_size(run.report, section) for run in of_n)
        beside = _published(paper, methods, None) if section == "overall" else {}
        rows.append(Row(label, None, n, None, None, None, cells, beside))
    return rows


def _attribute_rows(runs: Sequence[Outcome], methods: Sequence[str]) -> list[Row]:
    found: dict[str, list[tuple[Outcome, Mapping[str, Any]]]] = {}
    for run in runs:
        for row in run.report.get("attributes", ()):
            found.setdefault(attribute_label(row), []).append((run, row))
    rows = []
    for label, entries in found.items():
        n = tuple({run.seed: row["n"] for run, row in entries}.values())
        cells = _cells([(run.method, row) for run, row in entries], methods, runs[0].task)
        rows.append(Row(label, None, n, None, None, None, cells, {}))
    return rows


def attribute_label(row: Mapping[str, Any]) -> str:
    """Names the attribute and the value of a row of a report, such as `sex: f`."""
    return f"{row['attribute']}: {page.value_text(row['value'])}"


def _size(report: Mapping[str, Any], section: str) -> int:
    return report["n"] if section == "overall" else report[section]["n"]


def scaled(value: float | None, task: Task) -> float | None:
    """Returns a figure in the unit of tables, those of classes in percent; None stays."""
    return None if value is None else task.factor * value


def _cells(figures: Sequence[tuple[str, Mapping[str, Any]]], methods: Sequence[str], task: Task) -> Cells:
    """Spreads the figures of runs, given with their methods, over seeds."""
    return {
        figure: {m: spread(scaled(found[figure], task) for method, found in figures if method == m) for m in methods}
        for figure in task.compared
    }


def _published(
    paper: Published | None, methods: Sequence[str], modalities: Sequence[str] | None
) -> dict[str, dict[str, Figure]]:
    if paper is None:
        return {}
    found = {
        figure: {m: value for m in methods if (value := paper.figure(m, modalities, figure)) is not None}
        for figure in TITLES
    }
    return {figure: values for figure, values in found.items() if values}


def run_figures(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Computes the summary's figures of one run as tables show them; None where its report has none."""
    task = tasks.of_report(report)
    lead = next(iter(task.compared))
    groups = [row for row in report["groups"] if row[lead] is not None and row["train_fraction"] > 0]
    covered = sum(row["train_fraction"] for row in groups)
    values = {"overall": sum(row["train_fraction"] * row[lead] for row in groups) / covered if covered else None}
    for name, (section, figure, _) in _summarised(task).items():
        values[name] = report[section][figure or lead]
    return {name: scaled(value, task) for name, value in values.items()}


def summary(task: Task) -> dict[str, str]:
    """Tells what the figures of `run_figures` are, by name."""
    titles = {name: reports.plain_title(title) for name, title in task.compared.items()}
    lead, far = next(iter(titles.values())), "lowest" if task.more else "highest"
    found = {"overall": f"{lead} of the combinations weighted by their train frequency"}
    for name, (_, figure, says) in _summarised(task).items():
        found[name] = says.format(titles.get(figure, lead), far)
    return found


def _summarised(task: Task) -> dict[str, tuple[str, str, str]]:
    """Returns the entries of `_SUMMARY` whose figures a task has; `all` and `tail_all` only where AUROC is not told."""
    left_out = ("all", "tail_all") if "auroc" in task.compared else ()
    return {k: v for k, v in _SUMMARY.items() if (not v[1] or v[1] in task.compared) and k not in left_out}
