"""Tables of a sweep in the paper's layout: a row a combination, a column a method; CSV, Markdown and LaTeX.

All figures are in percent: mean ± sample standard deviation (ddof 1) over seeds. Where the data are one of the paper's
data sets, or its twin, the published figure of the method stands behind ours in brackets.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from remind_jax.evaluation import metrics
from remind_jax.evaluation.intervals import MIN_SAMPLES
from remind_jax.runtime import texts
from remind_jax.studies import comparison
from remind_jax.studies.comparison import Difference, Spread, spread
from remind_jax.studies.published import Figure
from remind_jax.studies.results import WHOLES, Results, Row, attribute_label, run_figures, scaled, summary
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.task import Task

MOST_TRIALS = 12  # of a search

CLASSES = Classes((), ())
PART_TITLES = {"all": "all samples", "head": "head, pooled", "tail": "tail, pooled"}


def runs_csv(results: Results) -> str:
    """Writes one row a run: the summary's figures, then those of all samples, in percent or the task's units."""
    known, names = results.runs[0].report["overall"], (*results.task.titles, "ece")
    overall = [name for name in names if name in known and name not in summary(results.task)]
    rows = [
        {"method": run.method, "seed": run.seed}
        | run_figures(run.report)
        | {name: scaled(run.report["overall"][name], results.task) for name in overall}
        | {"n": run.report["n"], "parameters": run.report["parameters"]}
        for run in results.runs
    ]
    return _csv(["method", "seed", *summary(results.task), *overall, "n", "parameters"], rows)


def groups_csv(results: Results) -> str:
    """Writes one row a combination (or whole), figure and method: mean, sd and published figure."""
    rows = []
    for row in results.rows:
        for figure, cells in row.cells.items():
            for method, value in cells.items():
                beside = row.published.get(figure, {}).get(method)
                rows.append(
                    {
                        "samples": row.label,
                        "tail": "" if row.tail is None else int(row.tail),
                        "train_fraction": row.train_fraction,
                        "n_train": row.n_train,
                        "n": sum(row.n) / len(row.n) if row.n else "",
                        "figure": figure,
                        "method": method,
                        "mean": value and value.mean,
                        "sd": value and value.sd,
                        "seeds": value.n if value else 0,
                        "published_mean": beside and beside.mean,
                        "published_sd": beside and beside.sd,
                    }
                )
    return _csv(list(rows[0]), rows)


def differences_csv(results: Results) -> str:
    """One row a baseline, method, figure and set of samples: the paired difference to the baseline in points."""
    rows = []
    for baseline, found in results.differences.items():
        for (part, figure, method), value in found.items():
            points = {name: scaled(getattr(value, name), results.task) for name in ("mean", "low", "high", "sd")}
            rest = {name: getattr(value, name) for name in ("p", "p_holm", "p_seeds", "wins", "n")}
            rows.append({"samples": part, "figure": figure, "method": method, "baseline": baseline} | points | rest)
    names = ["samples", "figure", "method", "baseline", *Difference._fields]
    return _csv(names, rows)


def read_difference(row: Mapping[str, str], task: Task | type[Task]) -> Difference:
    """Reads a row of `differences_csv`."""
    known = {name: float(row[name]) if row[name] else None for name in Difference._fields}
    points = {name: value / task.factor for name in ("mean", "low", "high", "sd") if (value := known[name]) is not None}
    return Difference(**(known | points | {"wins": int(row["wins"]), "n": int(row["n"])}))


def attributes_csv(results: Results) -> str:
    """Writes one row a run, value of an attribute and figure, with its gap to the most frequent value; "" for none.

    Figures and gaps are as in `runs_csv`; their intervals and p are those of the run's report.
    """
    rows = []
    for run in results.runs:
        for row in run.report.get("attributes", ()):
            for figure in results.task.compared:
                gap, bounds = gap_of(run, attribute_label(row), figure), row.get(f"{figure}_ci") or (None, None)
                told = {"estimate": row[figure], "low": bounds[0], "high": bounds[1], "gap": gap and gap["difference"]}
                low, high = (gap and gap["ci"]) or (None, None)
                told = {k: scaled(v, results.task) for k, v in (told | {"gap_low": low, "gap_high": high}).items()}
                rows.append(
                    {"method": run.method, "seed": run.seed}
                    | {key: row[key] for key in ("attribute", "value", "n", "n_patients")}
                    | {"figure": figure, **told}
                    | {key: gap and gap[key] for key in ("against", "p", "p_holm")}
                )
    return _csv(list(rows[0]), rows) if rows else ""


def gap_of(run: comparison.Outcome, label: str, figure: str) -> Mapping[str, Any] | None:
    """Returns the difference of a value of an attribute to the most frequent one in a run; None for that one."""
    gaps = run.report.get("attribute_gaps", ())
    return next((one for one in gaps if one["figure"] == figure and attribute_label(one) == label), None)


def gap_texts(results: Results, method: str, label: str) -> tuple[str, str]:
    """Writes the gap of a value in the leading figure: mean and spread over seeds; how sure it is of chance.

    Of one seed that is its interval and p, of several in how many of them p, corrected by Holm, is below .05.
    """
    lead = next(iter(results.task.compared))
    found = [gap_of(run, label, lead) for run in results.runs if run.method == method]
    found = [gap for gap in found if gap and gap["difference"] is not None]
    text = spread_text(spread(scaled(g["difference"], results.task) for g in found), digits=results.task.digits)
    known = [gap for gap in found if gap["p_holm"] is not None]
    if len(results.seeds) > 1:
        return text, f"p < .05 in {sum(gap['p_holm'] < 0.05 for gap in known)} of {len(known)}" if known else ""
    told = [f"{' to '.join(signed(x, results.task) for x in g['ci'])}; p {p_text(g['p_holm'])}" for g in known]
    return text, "".join(told) + "".join(f" ({g['note']})" for g in known if "note" in g)


def calibration(results: Results, method: str) -> list[dict[str, Any]]:
    """Returns the reliability curve (see `metrics`) of a method over the held-out samples of all its seeds.

    It is empty for tasks without classes.
    """
    samples = [run.samples for run in results.runs if run.method == method and run.report["calibration"]]
    if not samples:
        return []
    labels, probabilities = [one.labels for one in samples], [one.probabilities for one in samples]
    return metrics.reliability_curve(np.concatenate(labels), np.concatenate(probabilities))


def calibration_row(results: Results, method: str) -> dict[str, Spread | None]:
    """Computes the spread over seeds, in percent, of a method's `confidence` (mean), `accuracy` and `ece`."""
    reports = [run.report for run in results.runs if run.method == method and run.report["label_counts"]]
    curves = [report["calibration"] for report in reports]
    sure = [sum(b["n"] * b["confidence"] for b in c) / sum(b["n"] for b in c) if c else None for c in curves]
    found = {"confidence": sure, **{name: [r["overall"][name] for r in reports] for name in ("accuracy", "ece")}}
    return {name: spread(value and 100 * value for value in values) for name, values in found.items()}


def calibration_csv(results: Results) -> str:
    """Writes one row a method and bin of its reliability curve."""
    rows = [{"method": method} | b for method in results.methods for b in calibration(results, method)]
    return _csv(["method", "low", "high", "n", "confidence", "accuracy"], rows)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: texts.cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def notes(results: Results) -> list[str]:
    """Says what a reader must know of the tables, a sentence or two each."""
    first, *others = results.seeds
    if others:
        seeds = ", ".join(map(str, results.seeds))
        said = [
            f"Mean ± sample standard deviation over seeds {seeds}, {results.task.unit}; a seed sets split, initial "
            "weights and order. Bold: best mean of the methods, of 30 samples or more. n: held-out samples of a seed."
        ]
    else:
        said = [
            f"Figures {results.task.unit}, of one seed ({first}), so that nothing is known of the chance in split, "
            "initial weights and order: run more seeds before you believe a difference. Bold: best method, of 30 "
            "samples or more. n: held-out samples."
        ]
    if results.published:
        name = results.published.dataset
        if results.published.twin:
            said.append(
                f"These data are a synthetic twin of {name}. Figures in brackets are the paper's on the real {name}; "
                "the two cannot be compared, only how methods rank in each."
            )
        else:
            said.append(
                f"Figures in brackets are the paper's on {name}, whose split and cohort are not public: they are not "
                "those of these runs."
            )
    if missing := _incomplete(results):
        said.append(f"Fewer seeds than the others: {missing}.")
    said += [f"Failed: {failure}." for failure in results.failures]
    return said


def difference_note(results: Results, baseline: str) -> str:
    """Says how the differences to a baseline are drawn."""
    several = len(results.seeds) > 1
    drawn = (
        "patients (jointly for all methods and seeds) and seeds" if several else "patients (jointly for all methods)"
    )
    points = ", in points" if results.task.factor == 100 else ""
    ending = "; seeds with a gain." if several else ". The chance of training is not in the interval."
    return (
        f"Difference to {baseline} on the same held-out samples{points}, with the 95 % interval of a bootstrap that "
        f"draws {drawn}; p of the same bootstrap, two-sided, Holm-corrected over methods{ending}"
    )


def _incomplete(results: Results) -> str:
    counts = {method: sum(run.method == method for run in results.runs) for method in results.methods}
    return ", ".join(f"{method} ({n})" for method, n in counts.items() if n < max(counts.values()))


def size_text(n: Sequence[int]) -> str:
    """Writes sizes over seeds: one number, or the smallest and the largest."""
    if not n:
        return ""
    return f"{min(n):,}" if min(n) == max(n) else f"{min(n):,}–{max(n):,}"


def best(row: Row, figure: str, task: Task = CLASSES) -> set[str]:
    """Returns the methods with the best mean of a row, to the digit printed.

    There is none of a single method, where all are alike, and of few samples, or of means over combinations, in which
    few count as much as many.
    """
    if min(row.n, default=0) < MIN_SAMPLES:
        return set()
    return ahead(row.cells[figure], task.is_better_high(figure), task.digits)


def ahead(spreads: Mapping[str, Spread | None], more: bool, digits: int) -> set[str]:
    """Returns the methods with the best mean, to the digit printed; none where all are alike."""
    means = {m: (1 if more else -1) * round(value.mean, digits) for m, value in spreads.items() if value}
    found = {m for m, mean in means.items() if mean == max(means.values())}
    return found if len(found) < len(means) else set()


def spread_text(value: Spread | None, plus_minus: str = " ± ", digits: int = 1) -> str:
    """Writes mean ± sd with some digits; `-` for None."""
    if value is None:
        return "-"
    return (
        f"{value.mean:.{digits}f}" if value.sd is None else f"{value.mean:.{digits}f}{plus_minus}{value.sd:.{digits}f}"
    )


def published_text(value: Figure | None, plus_minus: str = " ± ") -> str:
    """Writes the paper's figure in brackets, or nothing."""
    return "" if value is None else f"[{spread_text(Spread(value.mean, value.sd, 3), plus_minus)}]"


def p_text(p: float | None) -> str:
    """Writes a p-value with three digits."""
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def signed(value: float, task: Task) -> str:
    """Writes a difference in the unit of tables."""
    return f"{task.factor * value:+.{task.digits}f}"


def difference_text(value: Difference | None, task: Task = CLASSES) -> str:
    """Writes a difference with interval, corrected p and, of several seeds, wins; `-` for None."""
    if value is None:
        return "-"
    interval = "" if value.low is None else f"{signed(value.low, task)} to {signed(value.high, task)}; "
    return f"{signed(value.mean, task)} ({interval}p {p_text(value.p_holm)}{wins_text(value)})"


def wins_text(value: Difference) -> str:
    """Writes how many seeds gain, of how many; nothing for one seed."""
    return f"; {value.wins}/{value.n}" if value.n > 1 else ""


def markdown(results: Results, most_rows: int = 0) -> str:
    """Writes all tables as Markdown, with at most `most_rows` combinations each; 0 is all."""
    said = (f"- {texts.markdown(note)}" for note in notes(results))
    lines = [f"# {texts.markdown(results.data)}", "", *said, "", "## Summary", ""]
    lines += summary_table(results)
    for figure, title in results.task.compared.items():
        lines += ["", f"## {title} by combination", "", *_figure_table(results, figure, most_rows)]
    for baseline, found in results.differences.items():
        if found:
            lines += ["", f"## Differences to {texts.code(baseline)}", ""]
            lines += [texts.markdown(difference_note(results, baseline)), ""]
            names, *rows = _difference_rows(results, baseline)
            lines += [*head(map(texts.markdown, names), numeric_from=1), *map(line, _marked(rows))]
    for found in results.searches:
        names, *rows = found.table(MOST_TRIALS)
        lines += ["", f"## Search of {texts.markdown(found.name)}", "", texts.markdown(found.told), ""]
        lines += [*head(map(texts.markdown, names), numeric_from=1), *(line(map(texts.markdown, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def summary_table(results: Results) -> list[str]:
    """Writes the lines of the table with a method a row."""
    told, digits = summary(results.task), results.task.digits
    lines = head(["method", "runs", *told], numeric_from=1)
    for method in results.methods:
        runs = [run_figures(run.report) for run in results.runs if run.method == method]
        cells = [spread_text(spread(run[name] for run in runs), digits=digits) for name in told]
        lines.append(line([texts.markdown(method), str(len(runs)), *cells]))
    return [*lines, "", *(f"- {name}: {meaning}, {results.task.unit}" for name, meaning in told.items())]


def _figure_table(results: Results, figure: str, most_rows: int) -> list[str]:
    lines = head(["combination", "", "n", *map(texts.markdown, results.methods)], numeric_from=2)
    rows = results.combinations
    hidden = len(rows) - most_rows if most_rows and len(rows) > most_rows else 0
    for row in (*rows[: len(rows) - hidden], *results.rows[len(rows) :]):
        cells = _cells(results, row, figure, "**{}**")
        lines.append(line([texts.markdown(row.label), "tail" if row.tail else "", size_text(row.n), *cells]))
    return lines if not hidden else [*lines, "", f"{hidden} rarer combinations are in table.md."]


def _cells(results: Results, row: Row, figure: str, bold: str) -> list[str]:
    """Writes a cell for each method, with the paper's figure behind ours; `bold` is the form of the best ones."""
    top, cells = best(row, figure, results.task), []
    for method in results.methods:
        text = spread_text(row.cells[figure][method], digits=results.task.digits)
        text = bold.format(text) if method in top else text
        cells.append(" ".join(filter(None, [text, published_text(row.published.get(figure, {}).get(method))])))
    return cells


def difference_columns(results: Results, baseline: str) -> list[tuple[str, str]]:
    """Lists the samples and figures that a table of differences to this baseline has columns for."""
    columns = [(part, figure) for part in comparison.WHOLES for figure in results.task.compared]
    return [key for key in columns if any((*key, m) in results.differences[baseline] for m in results.methods)]


def _difference_rows(results: Results, baseline: str) -> list[list[str]]:
    """Returns the cells of a table of differences, its heading first."""
    columns = difference_columns(results, baseline)
    titles = results.task.compared
    rows = [["method", *(f"{PART_TITLES[part]}: {titles[figure]}" for part, figure in columns)]]
    for method in results.methods:
        if method != baseline:
            found = results.differences[baseline]
            cells = [difference_text(found.get((*key, method)), results.task) for key in columns]
            rows.append([method, *cells])
    return rows


def _marked(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns rows whose first cells are names, for Markdown."""
    return [[texts.markdown(name), *cells] for name, *cells in rows]


def head(names: Iterable[str], numeric_from: int) -> list[str]:
    """Writes the two lines that begin a table in Markdown; columns from `numeric_from` on are set to the right."""
    names = list(names)
    return [line(names), "|" + "".join("---|" if i < numeric_from else "---:|" for i in range(len(names)))]


def line(cells: Sequence[str]) -> str:
    """Writes a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def latex(results: Results) -> str:
    """Writes a table environment a figure and a baseline of differences; needs booktabs and graphicx."""
    parts = ["% \\usepackage{booktabs,graphicx}"]
    for figure, title in results.task.compared.items():
        caption = f"{title} on {results.data}. {' '.join(notes(results))}"
        parts.append(
            _latex_table(caption, f"tab:{figure}", "llr" + "r" * len(results.methods), _latex_rows(results, figure))
        )
    for baseline, found in results.differences.items():
        if found:
            caption = f"{difference_note(results, baseline)} Data: {results.data}."
            cells = _difference_rows(results, baseline)
            rows = [" & ".join(map(texts.latex, row)) for row in cells]
            label = f"tab:differences:{re.sub('[^A-Za-z0-9_-]+', '-', baseline)}"
            parts.append(_latex_table(caption, label, "l" + "r" * (len(cells[0]) - 1), rows))
    return "\n\n".join(parts).replace("±", r"$\pm$").replace("–", "--") + "\n"


def _latex_rows(results: Results, figure: str) -> list[str]:
    rows = [" & ".join(["Combination", "", "$n$", *map(texts.latex, results.methods)])]
    for row in results.rows:
        cells = _cells(results, row, figure, "\\textbf{{{}}}")
        text = " & ".join([texts.latex(row.label), "tail" if row.tail else "", size_text(row.n), *cells])
        rows.append(f"\\midrule\n{text}" if row.label == WHOLES[0][0] else text)
    return rows


def _latex_table(caption: str, label: str, columns: str, rows: Sequence[str]) -> str:
    body = " \\\\\n".join(rows[1:])
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{texts.latex(caption)}}}\n\\label{{{label}}}\n"
        f"\\resizebox{{\\linewidth}}{{!}}{{%\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n{rows[0]} \\\\\n"
        f"\\midrule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{table}}"
    )
