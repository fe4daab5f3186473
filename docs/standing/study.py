"""A stored sweep read back from its CSV files: means, spreads and differences, in percent and points."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from remind_jax.errors import UserError
from remind_jax.studies.comparison import Difference, Spread, spread

FILES = ("runs.csv", "groups.csv", "differences.csv", "sweep.json")
# Column of the summary -> samples of groups.csv and figure.
COLUMNS = {
    "accuracy": ("all samples", "accuracy"),
    "macro-F1": ("all samples", "macro_f1"),
    "AUROC": ("all samples", "auroc"),
    "tail accuracy": ("tail, pooled", "accuracy"),
    "tail macro-F1": ("tail, pooled", "macro_f1"),
    "tail AUROC": ("tail, pooled", "auroc"),
    "worst combination": ("worst combination", "accuracy"),
}
WEIGHTED = "weighted accuracy"  # the one column of the summary that runs.csv has


@dataclasses.dataclass(frozen=True)
class Study:
    """A stored sweep.

    Attributes:
      name: of its folder.
      heading: of its section.
      reading: text written by hand, may be empty.
      record: sweep.json.
      runs: method -> number of finished runs, in the order of the sweep; methods without any are left out.
      columns: of the summary: column -> method -> spread over seeds, in percent.
      differences: baseline -> (samples, figure, method) -> paired difference, as fractions.
      sizes: `held_out` and `tail`, samples of a seed (a mean over seeds), `combinations` and `tail_combinations`.
    """

    name: str
    heading: str
    reading: str
    record: Mapping[str, Any]
    runs: Mapping[str, int]
    columns: Mapping[str, Mapping[str, Spread | None]]
    differences: Mapping[str, Mapping[tuple[str, str, str], Difference]]
    sizes: Mapping[str, float]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods with a finished run, in the order of the sweep."""
        return tuple(self.runs)

    def leaders(self, column: str) -> list[str]:
        """Returns the methods with the highest mean of a column, to the digit printed; none of a single method."""
        means = {m: round(value.mean, 1) for m, value in self.columns[column].items() if value}
        return [m for m, mean in means.items() if mean == max(means.values())] if len(means) > 1 else []


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
    reading = folder / "reading.md"
    text = reading.read_text(encoding="utf-8").strip() if reading.exists() else f"# {_capital(record['data'])}"
    first, _, rest = text.partition("\n")
    counts = {method: sum(row["method"] == method for row in runs) for method in record["methods"]}
    counts = {method: n for method, n in counts.items() if n}
    return Study(
        folder.name,
        first.lstrip("# ").strip(),
        rest.strip(),
        record,
        counts,
        _columns(runs, groups, list(counts)),
        _differences(differences, record["baselines"]),
        _sizes(groups),
    )


def read_table(file: pathlib.Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file by column name."""
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _columns(
    runs: list[dict[str, str]], groups: list[dict[str, str]], methods: list[str]
) -> dict[str, dict[str, Spread | None]]:
    cells = {(row["samples"], row["figure"], row["method"]): row for row in groups}
    columns: dict[str, dict[str, Spread | None]] = {}
    for column, key in COLUMNS.items():
        columns[column] = {}
        for method in methods:
            row = cells[(*key, method)]
            mean = _number(row["mean"])
            columns[column][method] = None if mean is None else Spread(mean, _number(row["sd"]), int(row["seeds"]))
    columns[WEIGHTED] = {m: spread(_number(row["overall"]) for row in runs if row["method"] == m) for m in methods}
    return columns


def _differences(rows: list[dict[str, str]], baselines: list[str]) -> dict[str, dict[tuple[str, str, str], Difference]]:
    found: dict[str, dict[tuple[str, str, str], Difference]] = {baseline: {} for baseline in baselines}
    for row in rows:
        points = {name: _fraction(_number(row[name])) for name in ("mean", "low", "high", "sd")}
        p = {name: _number(row[name]) for name in ("p", "p_holm", "p_seeds")}
        value = Difference(**points, **p, wins=int(row["wins"]), n=int(row["n"]))
        found[row["baseline"]][row["samples"], row["figure"], row["method"]] = value
    return {baseline: values for baseline, values in found.items() if values}


def _sizes(groups: list[dict[str, str]]) -> dict[str, float]:
    rows = {row["samples"]: row for row in groups}
    tails = [row["tail"] for row in rows.values() if row["tail"]]
    return {
        "held_out": _number(rows["all samples"]["n"]) or 0.0,
        "tail": _number(rows["tail, pooled"]["n"]) or 0.0,
        "combinations": len(tails),
        "tail_combinations": tails.count("1"),
    }


def _number(text: str) -> float | None:
    return float(text) if text else None


def _fraction(percent: float | None) -> float | None:
    return None if percent is None else percent / 100.0


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
