"""The rows of an arena by data set, protocol, method and seed: rankings over sets, spreads, differences, costs."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence

from remind_jax import tasks
from remind_jax.evaluation.judge import TUNED_TITLE
from remind_jax.studies import ranks, tables
from remind_jax.studies.comparison import Difference, Spread, spread, verdict
from remind_jax.studies.ranks import Block, Complete, Ranking
from remind_jax.tasks.task import Task

AS_FOUND, BASELINE = "as_found", "soft_moe"
TITLES = {name: title for task in tasks.TASKS.values() for name, title in task.titles.items()} | TUNED_TITLE
COSTS = ("processor_seconds", "seconds", "parameters", "flops")
Row = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class View:
    """A ranking over the blocks of a protocol.

    Attributes:
      ranking: None where fewer than two methods have every block.
      found: what each method has in each set and seed.
      values: method -> figure in each of the blocks that were ranked.
      more: whether more of a block's figure is better.
    """

    ranking: Ranking | None
    found: Complete
    values: Mapping[str, Sequence[float]]
    more: Sequence[bool]


@dataclasses.dataclass(frozen=True)
class Arena:
    """Every run of an arena and its cells' differences, as text.

    Attributes:
      rows: of arena.csv.
      differences: data set and protocol -> rows of differences.csv.
    """

    rows: Sequence[Row]
    differences: Mapping[tuple[str, str], Sequence[Row]]

    @functools.cached_property
    def methods(self) -> tuple[str, ...]:
        """All methods, those that are ranked first, best first."""
        ranking = self.view(self.main, "value").ranking
        return tuple(dict.fromkeys((*(ranking.methods if ranking else ()), *self.distinct("method"))))

    @functools.cached_property
    def main(self) -> str:
        """The protocol that answers rest on: the data as they were found, else the first."""
        return AS_FOUND if AS_FOUND in self.protocols else next(iter(self.protocols), AS_FOUND)

    @property
    def protocols(self) -> tuple[str, ...]:
        """All protocols."""
        return self.distinct("protocol")

    @functools.cached_property
    def baseline(self) -> str | None:
        """What methods are compared with: Soft MoE, else the first baseline; None without differences."""
        there = dict.fromkeys(row["baseline"] for rows in self.differences.values() for row in rows)
        return BASELINE if BASELINE in there else next(iter(there), None)

    def distinct(self, column: str, **chosen: str) -> tuple[str, ...]:
        """Returns what stands in a column of the rows with chosen values, each once, in order."""
        return tuple(dict.fromkeys(row[column] for row in self.of(**chosen) if row[column]))

    def of(self, **chosen: str) -> list[Row]:
        """Returns the rows with chosen values of columns."""
        if "data" in chosen and "protocol" in chosen:  # most calls
            rows = self._cells.get((chosen["data"], chosen["protocol"]), [])
        else:
            rows = self.rows
        return [row for row in rows if all(row[column] == value for column, value in chosen.items())]

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str], list[Row]]:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["data"], row["protocol"]), []).append(row)
        return found

    def figure(self, data: str, protocol: str, column: str = "figure") -> str:
        """Names the figure of a cell, that in `value` or that in `second`; empty where it has none."""
        return next(iter(self.distinct(column, data=data, protocol=protocol)), "")

    def view(self, protocol: str, column: str, *, by_seed: bool = False) -> View:
        """Ranks methods by a column, `value` or `tail`, in each set (mean over seeds) or in each set and seed."""
        cells: dict[Block, dict[str, float | None]] = {}
        for row in self.of(protocol=protocol):
            cells.setdefault((row["data"], row["seed"]), {})[row["method"]] = number(row[column])
        found = ranks.complete(cells, self.distinct("method"))
        owners = [data for data, _ in found.blocks]
        values = {m: _means(each, owners) for m, each in found.values.items()} if not by_seed else found.values
        more = [
            tasks.SELECT.get(self.figure(data, protocol), True)
            for data in (owners if by_seed else dict.fromkeys(owners))
        ]
        return View(ranks.compare(values, more), found, values, more)

    def spread(self, column: str, **chosen: str) -> Spread | None:
        """Returns mean and deviation over the chosen runs of what stands in a column."""
        return spread(number(row[column]) for row in self.of(**chosen))

    def cost(self, method: str, column: str) -> float | None:
        """Returns the median over sets, of the main protocol, of the median over seeds; None where nobody noted it."""
        rows = self.of(method=method, protocol=self.main)
        found = {data: [number(row[column]) for row in rows if row["data"] == data] for data in self.distinct("data")}
        known = [[value for value in values if value is not None] for values in found.values()]
        medians = [statistics.median(values) for values in known if values]
        return statistics.median(medians) if medians else None

    @functools.cached_property
    def front(self) -> tuple[str, ...]:
        """The ranked methods that none other beats both in mean rank and in processor seconds."""
        ranking = self.view(self.main, "value").ranking
        costs = {m: self.cost(m, "processor_seconds") for m in ranking.methods} if ranking else {}
        known = {m: (cost, ranking.means[m]) for m, cost in costs.items() if cost is not None} if ranking else {}
        return tuple(m for m, own in known.items() if not any(_beats(other, own) for other in known.values()))

    def unit(self, data: str, protocol: str) -> Task:
        """Returns how tables show figures of a cell: those of classes are in percent."""
        return (
            tables.CLASSES if tables.CLASSES.name in self.distinct("task", data=data, protocol=protocol) else Task(())
        )

    def difference(self, data: str, protocol: str, method: str, part: str) -> Difference | None:
        """Returns the difference of a method to the baseline in a cell's figure; `part` is `all` or `tail`."""
        row = self._compared.get((data, protocol, part, self.figure(data, protocol), method, self.baseline))
        return tables.read_difference(row, self.unit(data, protocol)) if row else None

    @functools.cached_property
    def _compared(self) -> dict[tuple[str | None, ...], Row]:
        keys = ("samples", "figure", "method", "baseline")
        return {(*cell, *(row[k] for k in keys)): row for cell, rows in self.differences.items() for row in rows}

    def best(self, spreads: Mapping[str, Spread | None], figure: str, unit: Task) -> set[str]:
        """Returns the methods that `tables.ahead` finds."""
        return tables.ahead(spreads, tasks.SELECT.get(figure, True), unit.digits)

    def loss(self, method: str, protocol: str, sets: Sequence[str]) -> float | None:
        """Returns how much worse a method is than in the main protocol, mean over the sets that have both."""
        lost = []
        for data in sets:
            there, here = (self.spread("value", method=method, data=data, protocol=p) for p in (self.main, protocol))
            if there and here:
                more = tasks.SELECT.get(self.figure(data, protocol), True)
                lost.append(there.mean - here.mean if more else here.mean - there.mean)
        return statistics.fmean(lost) if lost else None

    def verdict(self, data: str, protocol: str, method: str, part: str) -> str:
        """Returns `better` or `worse` than the baseline, beyond interval and corrected p; `level`; `untested`."""
        more = tasks.SELECT.get(self.figure(data, protocol), True)
        return verdict(self.difference(data, protocol, method, part), more)


def tail_name(protocol: str) -> str:
    """Names what `tail` holds under a protocol: rare combinations, or those that training has not seen."""
    return "unseen" if protocol.startswith("unseen") else "tail"


def number(text: str) -> float | None:
    """Reads a cell of a CSV file; None where it is empty."""
    return float(text) if text else None


def _means(values: Sequence[float], owners: Sequence[str]) -> list[float]:
    """Averages values over those of one owner, in order of the owners."""
    return [
        statistics.fmean(value for value, one in zip(values, owners, strict=True) if one == owner)
        for owner in dict.fromkeys(owners)
    ]


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and other[0] <= own[0] and other[1] <= own[1]
