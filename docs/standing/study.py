"""A stored sweep read back from its CSV files: means, spreads and differences, in the units of its task's tables."""

import csv
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from remind_jax import tasks
from remind_jax.errors import UserError
from remind_jax.evaluation.judge import TUNED_TITLE
from remind_jax.evaluation.metrics import TUNED
from remind_jax.evaluation.report import plain_title
from remind_jax.studies.comparison import Difference, Spread, spread
from remind_jax.studies.tables import read_difference
from remind_jax.tasks.task import Task

FILES = ("runs.csv", "groups.csv", "differences.csv", "sweep.json")
LABELS = {"all": "all samples", "head": "head, pooled", "tail": "tail, pooled", "worst": "worst combination"}
"""Samples of which there are means -> what groups.csv calls them."""
PARTS = ("all", "tail")
Key = tuple[str, str]
"""Samples and figure."""
RANKS = ("auroc", "auroc_macro", "c_index", "spearman")  # figures of how well samples are ordered, one a task
DECISIONS = ("f1_macro", "macro_f1", TUNED)  # and of answers


@dataclasses.dataclass(frozen=True)
class Study:
    """A stored sweep.

    Attributes:
      name: of its folder.
      heading, short: of its section and of tables.
      kind: of data, such as `Tables of people`; those made by a generator have `synthetic` in it.
      reading: text written by hand, may be empty.
      record: sweep.json.
      runs: method -> number of finished runs, in the order of the sweep; methods without any are left out.
      task: what the runs predict.
      titles: figure -> its title, that which leads first.
      cells: samples and figure -> method -> spread over seeds, as tables of the task have it.
      differences: baseline -> (samples, figure, method) -> paired difference, as fractions.
      sizes: rows that are in `train`, `held_out` and the `tail` of these, means over seeds; how many combinations there
        are, and of the tail.
      rows: of runs.csv.
    """

    name: str
    heading: str
    short: str
    kind: str
    reading: str
    record: Mapping[str, Any]
    runs: Mapping[str, int]
    task: type[Task]
    titles: Mapping[str, str]
    cells: Mapping[Key, Mapping[str, Spread | None]]
    differences: Mapping[str, Mapping[tuple[str, str, str], Difference]]
    sizes: Mapping[str, float]
    rows: Sequence[Mapping[str, str]] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods with a finished run, in the order of the sweep."""
        return tuple(self.runs)

    @property
    def real(self) -> bool:
        """Whether the data are of real people."""
        return "synthetic" not in self.kind

    @property
    def lead(self) -> str:
        """The figure that leads."""
        return next(iter(self.titles))

    @property
    def rank(self) -> str:
        """The figure of how well samples are ordered, or that which leads where there is none."""
        return next((figure for figure in RANKS if figure in self.titles), self.lead)

    @property
    def tested(self) -> list[Key]:
        """The samples and figures of tables of differences."""
        return [(part, figure) for part in PARTS for figure in self.titles]

    @property
    def aimed(self) -> list[Key]:
        """The samples and figures in which a method should be ahead: order, and answers where the task has any."""
        return [(part, f) for f in (self.rank, *DECISIONS) if f in self.titles for part in PARTS]

    @property
    def columns(self) -> dict[str, Key]:
        """Titles of the columns of the summary."""
        found = {self.title(key): key for key in self.tested}
        return found | {
            "worst combination": ("worst", self.lead),
            f"weighted {self.titles[self.lead]}": ("weighted", self.lead),
        }

    def title(self, key: Key) -> str:
        """Names samples and figure for the head of a column."""
        return f"{'tail ' if key[0] == 'tail' else ''}{self.titles[key[1]]}"

    def more(self, figure: str) -> bool:
        """Tells whether more of a figure is better."""
        return figure in TUNED_TITLE or self.task.select[figure]

    def mean(self, method: str, key: Key) -> float | None:
        """Returns the mean of a method; None where there is none."""
        value = self.cells[key].get(method)
        return value.mean if value else None

    def shown(self, method: str, key: Key) -> str:
        """Writes the mean of a method, `-` for none."""
        value = self.mean(method, key)
        return "-" if value is None else f"{value:.{self.task.digits}f}"

    def leaders(self, key: Key) -> list[str]:
        """Returns the methods with the best mean, to the digit printed; none of a single method."""
        sign = 1 if self.more(key[1]) else -1
        means = {m: sign * round(v.mean, self.task.digits) for m, v in self.cells[key].items() if v}
        return [m for m, mean in means.items() if mean == max(means.values())] if len(means) > 1 else []

    def gain(self, method: str, other: str, key: Key) -> Difference | None:
        """Returns the difference of a method to another, by the baselines of the sweep.

        Where neither is a baseline it is that of the means, without an interval; None where one has no figure.
        """
        if found := self.differences.get(other, {}).get((*key, method)):
            return found
        if found := self.differences.get(method, {}).get((*key, other)):
            low, high = (None if bound is None else -bound for bound in (found.high, found.low))
            return found._replace(mean=-found.mean, low=low, high=high, wins=found.n - found.wins)
        one, two = self.mean(method, key), self.mean(other, key)
        if one is None or two is None:
            return None
        return Difference((one - two) / self.task.factor, None, None, None, None, None, None, 0, 0)

    def paired(self, method: str, other: str, column: str) -> list[float]:
        """Returns the differences of two methods in a column of runs.csv, one of each seed that both have."""
        one, two = (
            {row["seed"]: float(row[column]) for row in self.rows if row["method"] == name and row.get(column)}
            for name in (method, other)
        )
        return [value - two[seed] for seed, value in one.items() if seed in two]

    def seconds(self, method: str) -> float | None:
        """Returns the median wall time of a method's runs; None where no time was recorded."""
        runs = self.record["runs"]
        known = [runs[name]["seconds"] for name in runs if name.rpartition(" seed ")[0] == method]
        known = [value for value in known if value is not None]
        return statistics.median(known) if known else None

    def cost(self, method: str) -> float | None:
        """Returns the wall time of a run as a multiple of one of `remind`; None where one of them is not known."""
        one, unit = self.seconds(method), self.seconds("remind")
        return one / unit if one is not None and unit else None


def read_study(folder: pathlib.Path) -> Study:
    """Reads a folder of `FILES` and, if it is there, reading.md.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    try:
        record = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        runs, groups, differences = (read_table(folder / file) for file in FILES[:3])
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no stored sweep: {error}") from error
    counts = {method: sum(row["method"] == method for row in runs) for method in record["methods"]}
    counts = {method: n for method, n in counts.items() if n}
    task, titles = _task(folder, [row["figure"] for row in groups])
    cells, sizes = _cells(groups, list(counts), titles), _sizes(groups)
    if sizes["tail"] == sizes["held_out"]:  # the tail is all samples, and says nothing more
        cells |= {key: dict.fromkeys(counts) for key in cells if key[0] == "tail"}
        differences = [row for row in differences if row["samples"] != "tail"]
    lead = next(iter(titles))
    cells["weighted", lead] = {m: spread(_number(r["overall"]) for r in runs if r["method"] == m) for m in counts}
    found = _differences(differences, record["baselines"], task)
    names = read_reading(folder, record["data"])
    return Study(folder.name, *names, record, counts, task, titles, cells, found, sizes, runs)


def read_reading(folder: pathlib.Path, data: str) -> tuple[str, str, str, str]:
    """Reads heading, short name, kind of data and text of reading.md; without it the name of the data has to do.

    Its first line is the heading, lines `short: …` and `kind: …` follow, then the text.
    """
    file = folder / "reading.md"
    lines = file.read_text(encoding="utf-8").strip().splitlines() if file.exists() else [data[:1].upper() + data[1:]]
    heading, *rest = lines
    told = {}
    while rest and rest[0].startswith(("short: ", "kind: ")):
        name, _, told[name] = rest.pop(0).partition(": ")
    heading = heading.lstrip("# ").strip()
    return heading, told.get("short", heading), told.get("kind", heading), "\n".join(rest).strip()


def read_table(file: pathlib.Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file by column name."""
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _task(folder: pathlib.Path, figures: Sequence[str]) -> tuple[type[Task], dict[str, str]]:
    """Finds the task that these figures are compared by, and their titles; the tuned one behind macro-F1."""
    there = dict.fromkeys(figures)
    for task in tasks.TASKS.values():
        titles = {name: title for name, title in task.titles.items() if name in task.select}
        if set(titles) == {*there} - {TUNED}:
            found: dict[str, str] = {}
            for name, title in titles.items():
                found |= {name: title} | (TUNED_TITLE if name == "macro_f1" and TUNED in there else {})
            return task, {name: plain_title(title) for name, title in found.items()}
    raise UserError(f"{folder} is no stored sweep: no task has the figures {', '.join(there)}")


def _cells(
    groups: Sequence[Mapping[str, str]], methods: Sequence[str], titles: Mapping[str, str]
) -> dict[Key, dict[str, Spread | None]]:
    rows = {(row["samples"], row["figure"], row["method"]): row for row in groups}
    return {
        (part, figure): {method: _spread(rows[label, figure, method]) for method in methods}
        for part, label in LABELS.items()
        for figure in titles
    }


def _spread(row: Mapping[str, str]) -> Spread | None:
    mean = _number(row["mean"])
    return None if mean is None else Spread(mean, _number(row["sd"]), int(row["seeds"]))


def _differences(
    rows: Sequence[Mapping[str, str]], baselines: Sequence[str], task: type[Task]
) -> dict[str, dict[tuple[str, str, str], Difference]]:
    found: dict[str, dict[tuple[str, str, str], Difference]] = {baseline: {} for baseline in baselines}
    for row in rows:
        found[row["baseline"]][row["samples"], row["figure"], row["method"]] = read_difference(row, task)
    return {baseline: values for baseline, values in found.items() if values}


def _sizes(groups: Sequence[Mapping[str, str]]) -> dict[str, float]:
    rows = {row["samples"]: row for row in groups}
    combinations = [row for row in rows.values() if row["tail"]]
    return {
        "train": sum(float(row["n_train"]) for row in combinations),
        "held_out": _number(rows["all samples"]["n"]) or 0.0,
        "tail": _number(rows["tail, pooled"]["n"]) or 0.0,
        "combinations": len(combinations),
        "tail_combinations": sum(row["tail"] == "1" for row in combinations),
    }


def _number(text: str) -> float | None:
    return float(text) if text else None
