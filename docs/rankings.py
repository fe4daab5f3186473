"""Which published rankings hold in the arena: the table between two marks of docs/comparison.md.

    python -m docs.rankings      writes it anew from the stored arena and docs/results/published_rankings.csv

    --docs=docs                  the folder of the documentation

A paper says that its method is ahead of what there was before. So each is put beside every method of the arena that is
older, and beside the simple ones, under all sets and seeds as found.
"""

import pathlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from docs.arena_store import KEPT
from docs.standing.study import read_table
from remind_jax import cli, tasks
from remind_jax.errors import UserError
from remind_jax.evaluation.differences import holm
from remind_jax.runtime import files
from remind_jax.studies.ranks import LEVEL
from remind_jax.studies.tables import head, line

MARKS = "<!-- rankings -->\n", "<!-- end of rankings -->\n"
SIMPLE = ("soft_moe", "late_fusion", "mean_imputation", "modality_dropout", "gradient_boosting")
"""What is older than all papers, or needs none."""
Row = Mapping[str, str]


def gains(rows: Sequence[Row], method: str, other: str) -> dict[str, list[float]]:
    """Returns by set how far a method is ahead of another in each seed, positive where it is better."""
    cells = {(row["data"], row["seed"], row["method"]): row for row in rows if row["value"]}
    found: dict[str, list[float]] = {}
    for (data, seed, name), row in cells.items():
        beside = cells.get((data, seed, other))
        if name == method and beside:
            more = tasks.SELECT.get(row["figure"], True)
            gain = float(row["value"]) - float(beside["value"])
            found.setdefault(data, []).append(gain if more else -gain)
    return found


def p_of_signs(differences: Sequence[float]) -> float:
    """Tests by their signs whether differences are as often above as below 0, two-sided; those of 0 count in nothing.

    Seeds of one data set are no independent draws, so that p errs on the small side.
    """
    from scipy import stats

    above, below = sum(x > 0 for x in differences), sum(x < 0 for x in differences)
    return float(stats.binomtest(above, above + below).pvalue) if above + below else 1.0


class Verdict(NamedTuple):
    """In how many of how many sets a method is ahead of another in the mean, and whether that is beyond chance."""

    won: int
    sets: int
    clear: bool

    @property
    def ahead(self) -> bool:
        """Whether it is ahead in more than half of the sets."""
        return 2 * self.won > self.sets


def verdicts(rows: Sequence[Row], method: str, others: Sequence[str]) -> dict[str, Verdict]:
    """Compares a method with others; clear is what has a p of the signs, by Holm over these, below `LEVEL`."""
    apart = {other: found for other in others if (found := gains(rows, method, other))}
    p = holm([p_of_signs([x for each in found.values() for x in each]) for found in apart.values()])
    return {
        other: Verdict(sum(fmean(each) > 0 for each in found.values()), len(found), corrected < LEVEL)
        for (other, found), corrected in zip(apart.items(), p, strict=True)
    }


def table(rows: Sequence[Row], published: Sequence[Row]) -> list[str]:
    """Writes the table, a line a paper: what it says, and how its method does beside what is older or simple."""
    rows = [row for row in rows if row["protocol"] == "as_found"]
    ran = {row["method"] for row in rows}
    names = ["paper", "says that it is", "older or simple", "behind it", "beyond chance", "ahead of it beyond chance"]
    lines = head(names, numeric_from=len(names))
    for row in published:
        if row["method"] not in ran:
            continue
        older = [each["method"] for each in published if int(each["year"]) < int(row["year"])]
        others = [m for m in dict.fromkeys((*SIMPLE, *older)) if m in ran and m != row["method"]]
        said = verdicts(rows, row["method"], others)
        clear = [[f"`{m}`" for m, one in said.items() if one.clear and one.ahead == side] for side in (True, False)]
        cells = [f"[{row['paper']}]({row['link']}), {row['year']}", row["says"], str(len(said))]
        behind = str(sum(one.ahead for one in said.values()))
        lines.append(line([*cells, behind, *(", ".join(side) or "none" for side in clear)]))
    return lines


def written(text: str, lines: Sequence[str]) -> str:
    """Puts lines between the marks of a page. Raises UserError: it has no such marks."""
    start, end = (text.find(mark) for mark in MARKS)
    if not 0 <= start < end:
        raise UserError("docs/comparison.md has no place for rankings")
    return text[: start + len(MARKS[0])] + "\n" + "\n".join(lines) + "\n\n" + text[end:]


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = cli.Parser("python -m docs.rankings [--docs=docs]")
    parser.add_argument("--docs", default="docs")
    docs = pathlib.Path(parser.parse_args(arguments).docs)
    page = docs / "comparison.md"
    lines = table(read_table(docs / KEPT), read_table(docs / "results" / "published_rankings.csv"))
    files.write_text(page, written(page.read_text(encoding="utf-8"), lines))
    print(f"Written: {page}")


if __name__ == "__main__":
    cli.run(main, __doc__)
