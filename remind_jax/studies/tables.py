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
from remind_jax.evaluation.samples import Samples
from remind_jax.runtime import texts
from remind_jax.studies import comparison
from remind_jax.studies.comparison import Difference, Spread, spread
from remind_jax.studies.published import Figure
from remind_jax.studies.results import SUMMARY, TITLES, WHOLES, Results, Row, percent, run_figures

PART_TITLES = {"all": "all samples", "head": "head, pooled", "tail": "tail, pooled"}


def runs_csv(results: Results) -> str:
    """Writes one row a run: the summary's figures, then those of all samples, in percent."""
    overall = ("accuracy", "macro_f1", "auprc", "ece")
    rows = [
        {"method": run.method, "seed": run.seed}
        | run_figures(run.report)
        | {name: percent(run.report["overall"][name]) for name in overall}
        | {"n": run.report["n"], "parameters": run.report["parameters"]}
        for run in results.runs
    ]
    return _csv(["method", "seed", *SUMMARY, *overall, "n", "parameters"], rows)


def groups_csv(results: Results) -> str:
    """Writes one row a combination (or whole), figure and method: mean, sd and published figure in percent."""
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
            points = {name: percent(getattr(value, name)) for name in ("mean", "low", "high", "sd")}
            rest = {name: getattr(value, name) for name in ("p", "p_holm", "p_seeds", "wins", "n")}
            rows.append({"samples": part, "figure": figure, "method": method, "baseline": baseline} | points | rest)
    names = ["samples", "figure", "method", "baseline", *Difference._fields]
    return _csv(names, rows)


def calibration(results: Results, method: str) -> list[dict[str, Any]]:
    """Returns the reliability curve (see `metrics`) of a method over the held-out samples of all its seeds."""
    samples = [Samples.of(run.predictions) for run in results.runs if run.method == method]
    labels, probabilities = [one.labels for one in samples], [one.probabilities for one in samples]
    return metrics.reliability_curve(np.concatenate(labels), np.concatenate(probabilities))


def calibration_row(results: Results, method: str) -> dict[str, Spread | None]:
    """Computes the spread over seeds, in percent, of a method's `confidence` (mean), `accuracy` and `ece`."""
    reports = [run.report for run in results.runs if run.method == method]
    curves = [report["calibration"] for report in reports]
    sure = [sum(b["n"] * b["confidence"] for b in c) / sum(b["n"] for b in c) if c else None for c in curves]
    found = {"confidence": sure, **{name: [r["overall"][name] for r in reports] for name in ("accuracy", "ece")}}
    return {name: spread(percent(value) for value in values) for name, values in found.items()}


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
            f"Mean ± sample standard deviation over seeds {seeds}, in percent; a seed sets split, initial weights and "
            "order. Bold: highest mean of a row. n: held-out samples of a seed."
        ]
    else:
        said = [
            f"In percent, of one seed ({first}), so that nothing is known of the chance in split, initial weights and "
            "order: run more seeds before you believe a difference. Bold: highest of a row. n: held-out samples."
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
    ending = "; seeds with a gain." if several else ". The chance of training is not in the interval."
    return (
        f"Difference to {baseline} on the same held-out samples, in points, with the 95 % interval of a bootstrap that "
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


def best(row: Row, figure: str) -> set[str]:
    """Returns the methods with the highest mean of a row, to the digit printed; none of a single method."""
    means = {m: round(value.mean, 1) for m, value in row.cells[figure].items() if value}
    return {m for m, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()


def spread_text(value: Spread | None, plus_minus: str = " ± ") -> str:
    """Writes mean ± sd with one digit; `-` for None."""
    if value is None:
        return "-"
    return f"{value.mean:.1f}" if value.sd is None else f"{value.mean:.1f}{plus_minus}{value.sd:.1f}"


def published_text(value: Figure | None, plus_minus: str = " ± ") -> str:
    """Writes the paper's figure in brackets, or nothing."""
    return "" if value is None else f"[{spread_text(Spread(value.mean, value.sd, 3), plus_minus)}]"


def p_text(p: float | None) -> str:
    """Writes a p-value with three digits."""
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}"


def difference_text(value: Difference | None) -> str:
    """Writes a difference in points with interval, corrected p and, of several seeds, wins; `-` for None."""
    if value is None:
        return "-"
    interval = "" if value.low is None else f"{100 * value.low:+.1f} to {100 * value.high:+.1f}; "
    return f"{100 * value.mean:+.1f} ({interval}p {p_text(value.p_holm)}{wins_text(value)})"


def wins_text(value: Difference) -> str:
    """Writes how many seeds gain, of how many; nothing for one seed."""
    return f"; {value.wins}/{value.n}" if value.n > 1 else ""


def markdown(results: Results, most_rows: int = 0) -> str:
    """Writes all tables as Markdown, with at most `most_rows` combinations each; 0 is all."""
    said = (f"- {texts.markdown(note)}" for note in notes(results))
    lines = [f"# {texts.markdown(results.data)}", "", *said, "", "## Summary", ""]
    lines += summary(results)
    for figure, title in TITLES.items():
        lines += ["", f"## {title} by combination", "", *_figure_table(results, figure, most_rows)]
    for baseline, found in results.differences.items():
        if found:
            lines += ["", f"## Differences to {texts.code(baseline)}", ""]
            lines += [texts.markdown(difference_note(results, baseline)), ""]
            names, *rows = _difference_rows(results, baseline)
            lines += [*head(map(texts.markdown, names), numeric_from=1), *map(line, _marked(rows))]
    return "\n".join(lines) + "\n"


def summary(results: Results) -> list[str]:
    """Writes the lines of the table with a method a row."""
    lines = head(["method", "runs", *SUMMARY], numeric_from=1)
    for method in results.methods:
        runs = [run_figures(run.report) for run in results.runs if run.method == method]
        cells = [spread_text(spread(run[name] for run in runs)) for name in SUMMARY]
        lines.append(line([texts.markdown(method), str(len(runs)), *cells]))
    return [*lines, "", *(f"- {name}: {meaning}, in percent" for name, meaning in SUMMARY.items())]


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
    top, cells = best(row, figure), []
    for method in results.methods:
        text = spread_text(row.cells[figure][method])
        text = bold.format(text) if method in top else text
        cells.append(" ".join(filter(None, [text, published_text(row.published.get(figure, {}).get(method))])))
    return cells


def difference_columns(results: Results, baseline: str) -> list[tuple[str, str]]:
    """Lists the samples and figures that a table of differences to this baseline has columns for."""
    columns = [(part, figure) for part in comparison.WHOLES for figure in TITLES]
    return [key for key in columns if any((*key, m) in results.differences[baseline] for m in results.methods)]


def _difference_rows(results: Results, baseline: str) -> list[list[str]]:
    """Returns the cells of a table of differences, its heading first."""
    columns = difference_columns(results, baseline)
    rows = [["method", *(f"{PART_TITLES[part]}: {TITLES[figure]}" for part, figure in columns)]]
    for method in results.methods:
        if method != baseline:
            cells = [difference_text(results.differences[baseline].get((*key, method))) for key in columns]
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
    for figure, title in TITLES.items():
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
