"""The paper's claims in docs/results.md, from docs/results/claims.yaml: figures and most verdicts from stored runs.

A `test` is made on every stored sweep that has what it asks, and its verdict follows from their outcomes:

    over; A; B; all|tail; FIGURE               A is better than B beyond chance
    paired; A; B; COLUMN                       A is better than B by a t-test over seeds, COLUMN of runs.csv
    best of the paper; A; all|tail; FIGURE     the mean of A is above those of the paper's other methods
    head over tail; A; FIGURE                  A has the higher mean on the head
    long tail                                  of real people: most combinations are tail, most rows are not

`{mean; FILE; COLUMN; FORMAT; NAME=VALUE; …}` in what is said is the mean of a column over rows of a file in
docs/results.
"""

import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence

import yaml

from docs.standing.study import Study, read_table
from remind_jax.errors import UserError
from remind_jax.studies.comparison import t_test, verdict
from remind_jax.studies.ranks import LEVEL
from remind_jax.studies.tables import head, line, signed

# The eight columns of the paper's tables.
PAPER = ("soft_moe", "fuse_moe", "flex_moe", "fair_mixup", "reweigh", "group_dro", "fair_batch", "remind")
FILE = "claims.yaml"
Outcome = tuple[int, str]
"""1 for what is claimed, -1 for the opposite, 0 for neither, and the figure behind it."""


def table(studies: Sequence[Study], results: pathlib.Path) -> list[str]:
    """Writes the table of claims; `results` is the folder of what is stored. Without claims.yaml there is none.

    Raises:
      UserError: it names a file, column or rows that are not there.
    """
    if not (file := results / FILE).exists():
        return []
    claims = yaml.safe_load(file.read_text(encoding="utf-8"))
    lines = head(["claim", "in the paper", "here", "figures", "runs"], numeric_from=5)
    return [*lines, *(line(_row(claim, studies, results)) for claim in claims)]


def _row(claim: Mapping[str, str], studies: Sequence[Study], results: pathlib.Path) -> list[str]:
    said = re.sub(r"\{mean; ([^}]*)\}", lambda found: mean_of(results, *found[1].split("; ")), claim["said"])
    if "test" not in claim:
        return [claim["claim"], claim["where"], f"**{claim['verdict']}**", said, claim["run"]]
    name, *arguments = claim["test"].split("; ")
    made = {study.short: TESTS[name](study, *arguments) for study in studies}
    found = {short: outcome for short, outcome in made.items() if outcome}
    figures = "; ".join(f"{short} {text}" for short, (_, text) in found.items())
    said = f"{said} {figures}" if found else "-"
    return [
        claim["claim"],
        claim["where"],
        f"**{judged({k: v for k, (v, _) in found.items()})}**",
        said,
        "the sections above",
    ]


def judged(outcomes: Mapping[str, int]) -> str:
    """Says what follows from outcomes on data sets."""
    yes, no = ([short for short, value in outcomes.items() if value == sign] for sign in (1, -1))
    if not outcomes:
        return "not testable here"
    if len(yes) == len(outcomes):
        return f"reproduced on all {len(yes)}"
    said = f"reproduced on {len(yes)} of {len(outcomes)} ({'; '.join(yes)})" if yes else "not reproduced"
    return said + (f", the opposite on {len(no)} ({'; '.join(no)})" if no else "")


def mean_of(results: pathlib.Path, file: str, column: str, form: str, *chosen: str) -> str:
    """Writes the mean of a column over the rows that have these values; the form `%` is percent."""
    wanted = dict(each.split("=") for each in chosen)
    try:
        rows = [row for row in read_table(results / file) if wanted.items() <= row.items()]
        mean = statistics.fmean(float(row[column]) for row in rows)
    except (OSError, KeyError, statistics.StatisticsError) as error:
        raise UserError(f"{results / FILE}: {file} has no {column} of {', '.join(chosen)}") from error
    return f"{100 * mean:.1f}" if form == "%" else f"{mean:{form}}"


# ---- Tests -----------------------------------------------------------------------------------------------------------


def _over(study: Study, method: str, other: str, part: str, figure: str) -> Outcome | None:
    found = study.gain(method, other, (part, figure)) if figure in study.titles else None
    if found is None:
        return None
    outcome = {"better": 1, "worse": -1}.get(verdict(found, study.more(figure)), 0)
    return outcome, _marked(found.mean, study, outcome)


def _marked(value: float, study: Study, outcome: int) -> str:
    return f"**{signed(value, study.task)}**" if outcome else signed(value, study.task)


def _best(study: Study, method: str, part: str, figure: str) -> Outcome | None:
    means = {m: study.mean(m, (part, figure)) for m in PAPER if m in study.runs} if figure in study.titles else {}
    own = study.mean(method, (part, figure)) if means and method in study.runs else None
    rest = [value for name, value in means.items() if name != method and value is not None]
    if own is None or not rest:
        return None
    above = own - max(rest)
    return int(above > 0), signed(above / study.task.factor, study.task)


def _paired(study: Study, method: str, other: str, column: str) -> Outcome | None:
    each = study.paired(method, other, column)
    if not each:
        return None
    mean, p = statistics.fmean(each), t_test(each)
    outcome = 0 if p is None or p >= LEVEL else 1 if mean > 0 else -1
    return outcome, _marked(mean / study.task.factor, study, outcome)


def _head_over_tail(study: Study, method: str, figure: str) -> Outcome | None:
    if figure not in study.titles:
        return None
    high, low = (study.mean(method, (part, figure)) for part in ("head", "tail"))
    if high is None or low is None:
        return None
    return 1 if high > low else -1, signed((high - low) / study.task.factor, study.task)


def _long_tail(study: Study) -> Outcome | None:
    of, tail, share = (study.sizes[name] for name in ("combinations", "tail_combinations", "tail"))
    share /= study.sizes["held_out"]
    if not study.real or not tail:
        return None
    return int(2 * tail > of and share < 0.5), f"{tail} of {of}, {100 * share:.0f} %"


TESTS: dict[str, Callable[..., Outcome | None]] = {
    "over": _over,
    "paired": _paired,
    "best of the paper": _best,
    "head over tail": _head_over_tail,
    "long tail": _long_tail,
}
