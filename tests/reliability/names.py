"""A row about names that do something to what shows them, in every output that names others have given come into."""

import collections
import contextlib
import csv
import html.parser
import io
import random
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
from markdown_it import MarkdownIt

from remind_jax import errors
from remind_jax.data import tables as files_of_tables
from remind_jax.evaluation import page
from remind_jax.evaluation import report as reports
from remind_jax.inference import card, model_folder
from remind_jax.runtime import texts
from remind_jax.studies import page as studies_page
from remind_jax.studies import results, tables
from remind_jax.studies.comparison import Outcome, outcome
from tests.reliability import Tally, row
from tests.reliability.records import place

PARTS = (
    *("\x1b]0;title\x07", "\x1b[31m", "\x9b2J", "\u202eevil", "\u2066", "\r", "\0", "\x08", "\udc80", "\u2028"),
    *('=HYPERLINK("http://x.y")', "@SUM(1)", "+1+cmd|'/C calc'!A0", "-2+3", "\t=1", "'=1"),
    *("<script>alert(1)</script>", "<img src=x onerror=y>", "&lt;b&gt;", "{{7*7}}", "${7*7}", "\"'"),
    *("a|b", "`c`", "[x](http://y.z)", "![i](http://y.z)", "http://y.z", "www.y.z", "# head", "**b**", "\n\n# new"),
    *("\\input{/etc/passwd}", "\\write18{ls}", "%", "$x$", "#", "_", "^^41", "}", "~", "\\", "&", "--", "é", "中"),
)
_SAFE_TEX = {"textbackslash", "textasciitilde", "textasciicircum"}
_BENIGN = "plain"


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[tuple[str, ...]] = collections.Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found[(tag, *(name for name, _ in attrs))] += 1


def _tags(text: str) -> Any:
    parser = _Tags()
    parser.feed(text)
    parser.found.pop(("wbr",), None)  # behind each underscore
    return parser.found


def _of_data(name: str) -> str:
    """The name as data can have it: halves of characters come from names of files alone."""
    return name.encode("utf-8", "replace").decode()


def _named(name: str) -> list[Outcome]:
    """The two finished runs of `place` as if modality, class, data and method were called so."""
    found = []
    for seed in (0, 1):
        run = outcome("remind", seed, place()[0] / f"run{seed}")
        report = dict(run.report) | {"data": name, "method": name, "classes": [name, *run.report["classes"][1:]]}
        card_ = report["card"] | {"label": name, "classes": [{"name": name, "train_fraction": 0.5}]}
        modalities = {"note": _of_data(name)}
        report["modalities"] = [modalities.get(m, m) for m in report["modalities"]]

        def called(group: str, modalities=modalities) -> str:
            return "+".join(modalities.get(part, part) for part in group.split("+"))

        report["groups"] = [
            row_ | {"group": called(row_["group"]), "modalities": [modalities.get(m, m) for m in row_["modalities"]]}
            for row_ in report["groups"]
        ]
        table = run.predictions.with_columns(pl.col("group").map_elements(called, pl.String))
        report["findings"] = [{"code": "W999", "message": name}]
        found += [Outcome(m, seed, report | {"card": card_}, table) for m in (name, f"{name} 2")]
    return found


def _tables_of(name: str) -> results.Results:
    return results.collect(_named(name), [name, f"{name} 2"], [name], resamples=2, failures=[f"{name}: {name}"])


# ---- Outputs --------------------------------------------------------------------------------------------------------


def _terminal(name: str) -> str:
    """What reaches a terminal: an error, a line that is printed, the table of a report."""
    kept = sys.stdout, sys.stderr
    out = io.StringIO()
    sys.stdout = sys.stderr = texts.Visible(out)
    try:
        print(f"Training {name}", file=sys.stderr)
        errors.explain(errors.UserError(f"unknown column {name}"))
        reports.print_table(dict(_named(name)[0].report))
    finally:
        sys.stdout, sys.stderr = kept
    return out.getvalue()


def _is_quiet(text: str, _: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", text)


def _same_tags(text: str, benign: str) -> bool:
    """A long name may add a paragraph that tells what it is short for."""
    here, there = _tags(text), _tags(benign)
    return _is_quiet(text, "") and not there - here and (here - there).keys() <= {("p", "class")}


def _same_markdown(text: str, benign: str) -> bool:
    made = MarkdownIt("commonmark", {"html": True}).enable("table")
    outside = re.sub("`[^`]*`", "", text)
    sound = _is_quiet(text, "") and "http://y.z" not in outside
    return sound and _tags(made.render(text)) == _tags(made.render(benign))


def _same_latex(text: str, benign: str) -> bool:
    def commands(source: str) -> set[str]:
        return set(re.findall(r"\\([A-Za-z]+)", source))

    def bare(source: str) -> collections.Counter[str]:
        source = re.sub(r"\\label\{[A-Za-z0-9:_-]*\}", "", source.replace(r"\\", ""))
        return collections.Counter(re.findall(r"(?<!\\)[%$#_&~^]", source))

    return _is_quiet(text, "") and commands(text) <= commands(benign) | _SAFE_TEX and bare(text) == bare(benign)


def _no_formula(text: str, _: str) -> bool:
    cells = [cell for line in csv.reader(io.StringIO(text, newline="")) for cell in line]
    return not any(re.match(r"[=+\-@\t\r]", cell) and not re.fullmatch(r"[+-]?[\d.e+-]+", cell) for cell in cells)


def _predictions(name: str) -> str:
    file, name = place()[0] / "predictions.csv", _of_data(name)
    table = pl.DataFrame({"stay": [name, "-5"], name or "x": ["1", "2"], "prediction": [name, name]})
    files_of_tables.write_table(table, file)
    return file.read_bytes().decode("utf-8", "replace")


def _model_card(name: str) -> str:
    import dataclasses

    model = model_folder.open_model(place()[0] / "run0")
    report = reports.Report(_named(name)[0].report)
    schema = dataclasses.replace(model.schema, label=name, classes=(name, "1"))
    return card.render(dataclasses.replace(model, report=report, schema=schema))


OUTPUTS: dict[str, tuple[Callable[[str], str], Callable[[str, str], bool]]] = {
    "terminal": (_terminal, _is_quiet),
    "report.html": (lambda name: page.render(dict(_named(name)[0].report), []), _same_tags),
    "index.html": (lambda name: studies_page.render(_tables_of(name)), _same_tags),
    "table.md": (lambda name: tables.markdown(_tables_of(name)), _same_markdown),
    "model_card.md": (_model_card, _same_markdown),
    "table.tex": (lambda name: tables.latex(_tables_of(name)), _same_latex),
    "runs.csv": (lambda name: tables.runs_csv(_tables_of(name)), _no_formula),
    "groups.csv": (lambda name: tables.groups_csv(_tables_of(name)), _no_formula),
    "differences.csv": (lambda name: tables.differences_csv(_tables_of(name)), _no_formula),
    "predictions.csv": (_predictions, _no_formula),
}


@contextlib.contextmanager
def _as_they_are() -> Iterator[None]:
    names = ("visible", "one_line", "markdown", "latex", "code", "cell")
    kept = {name: getattr(texts, name) for name in names}
    for name in names:
        setattr(texts, name, lambda text: text)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(texts, name, function)


@row(
    name="names",
    title="names with escape sequences, marks of direction, formulas, HTML, Markdown and LaTeX in every output",
    target="outputs of the same structure as with a plain name, without control characters and formulas",
    unit="names",
    reduced=12,
    full=150,
    broken="names are written as they are",
)
def hostile_names(count: int, broken: bool) -> Tally:
    """Single parts first, then three at a time."""
    tally, rng = Tally(), random.Random(5)
    benign = {output: make(_BENIGN) for output, (make, _) in OUTPUTS.items()}
    order = rng.sample(PARTS, len(PARTS))
    for number in range(count):
        name = order[number] if number < len(order) else "".join(rng.sample(PARTS, 3))
        for output, (make, is_sound) in OUTPUTS.items():
            with _as_they_are() if broken else contextlib.nullcontext():
                try:
                    wrong = "" if is_sound(make(name), benign[output]) else "it is not neutral"
                except Exception as error:
                    wrong = f"{type(error).__name__}: {str(error)[:80]}"
            tally.check(not wrong, f"{output}, {name!r}: {wrong}")
    tally.notes.append(f"outputs: {', '.join(OUTPUTS)}")
    return tally
