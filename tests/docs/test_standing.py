"""Standing results: what is stored, what the page says of it, and that the page of the repository is up to date."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from docs.standing import __main__ as standing
from docs.standing import text
from docs.standing.study import COLUMNS, FILES, Study, read_study
from remind_jax.errors import UserError
from remind_jax.studies import results as collecting
from remind_jax.studies import tables
from remind_jax.studies.comparison import Difference, Spread
from remind_jax.studies.record import Record
from tests.studies import sweep_runs
from tests.tiny_runs import ROOT

SKILLS = {"soft_moe": 0.7, "remind": 0.45, "remind_plus": 0.95, "logistic_regression": 0.7}
SEEDS = (0, 1)
BASELINES = ("soft_moe", "remind_plus")


def _finish(folder: pathlib.Path, runs, data: str, failed=()) -> collecting.Results:
    """Writes what a sweep of these runs leaves."""
    folder.mkdir()
    found = collecting.collect(runs, list(SKILLS), BASELINES, resamples=400)
    for name, content in (
        ("runs.csv", tables.runs_csv(found)),
        ("groups.csv", tables.groups_csv(found)),
        ("differences.csv", tables.differences_csv(found)),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    names = [f"{method} seed {seed}" for seed in SEEDS for method in SKILLS]
    settings = {"methods": list(SKILLS), "seeds": SEEDS, "baselines": BASELINES, "resamples": 400, "jobs": 1}
    record = Record(folder / "sweep.json", ["--config=configs/x.py", f"--workdir={folder}"], runs=names, **settings)
    record.close(data=data, failed=list(failed), seconds=1.0, folders=[])
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished sweep's folder, its results, and documentation in which it is stored twice."""
    base = tmp_path_factory.mktemp("standing")
    found = _finish(base / "sweep", sweep_runs.make(SKILLS, seeds=SEEDS, n=200), "ward")
    for name in ("phenomenon", "nhanes"):
        standing.store(base / "sweep", name, base / "docs")
    (base / "docs" / "results" / "nhanes" / "reading.md").write_text("# Wards of *x*\n\nNothing helps.\n", "utf-8")
    return base / "sweep", found, base / "docs"


def _section(text: str, title: str) -> list[str]:
    return text.split(f"{title}\n")[1].split("\n#")[0].splitlines()


def _table(lines: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


# ---- The repository --------------------------------------------------------------------------------------------------


def test_the_page_of_the_repository_is_that_of_its_stored_results():
    docs = ROOT / "docs"
    page = docs / "results.md"
    stored = bool(list((docs / "results").glob("*/sweep.json")))
    assert page.exists() == stored
    if stored:
        assert page.read_text(encoding="utf-8") == standing.page(docs)


def test_stored_results_name_no_path_of_a_machine():
    for file in (ROOT / "docs" / "results").glob("*/sweep.json"):
        text = file.read_text(encoding="utf-8")
        assert not [start for start in ("/home/", "/tmp/", "/work/", "/Users/") if start in text]


# ---- Storing ---------------------------------------------------------------------------------------------------------


def test_a_stored_sweep_is_a_copy_of_its_tables_and_record(made):
    sweep, _, docs = made
    folder = docs / "results" / "phenomenon"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert all((folder / name).read_bytes() == (sweep / name).read_bytes() for name in FILES)


def test_storing_again_replaces_tables_and_keeps_the_reading(made, tmp_path):
    sweep, _, docs = made
    shutil.copytree(docs, tmp_path / "docs")
    folder = tmp_path / "docs" / "results" / "nhanes"
    (folder / "runs.csv").write_text("old", "utf-8")
    assert standing.store(sweep, "nhanes", tmp_path / "docs") == folder
    assert (folder / "runs.csv").read_bytes() == (sweep / "runs.csv").read_bytes()
    assert (folder / "reading.md").read_text("utf-8").startswith("# Wards")


def test_an_unfinished_sweep_is_refused_and_a_failed_run_is_not_an_unfinished_one(made, tmp_path):
    sweep, _, _ = made
    copy = tmp_path / "sweep"
    shutil.copytree(sweep, copy)
    rows = (copy / "runs.csv").read_text("utf-8").splitlines(keepends=True)
    kept = [row for row in rows if not row.startswith("remind,1,")]
    assert len(kept) == len(rows) - 1
    (copy / "runs.csv").write_text("".join(kept), "utf-8")
    with pytest.raises(UserError, match="lack 1 runs, such as remind seed 1"):
        standing.store(copy, "x", tmp_path / "docs")
    record = json.loads((copy / "sweep.json").read_text("utf-8"))
    (copy / "sweep.json").write_text(json.dumps(record | {"failed": ["remind seed 1"]}), "utf-8")
    standing.store(copy, "x", tmp_path / "docs")
    text = standing.page(tmp_path / "docs")
    assert "- Failed: remind seed 1." in text
    assert "- Methods with fewer runs: `remind` (1)." in text
    record["seconds"]["tabulating"] = None  # a later call was killed before its tables
    (copy / "sweep.json").write_text(json.dumps(record | {"failed": ["remind seed 1"]}), "utf-8")
    with pytest.raises(UserError, match="no finished sweep"):
        standing.store(copy, "x", tmp_path / "docs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store={sweep}", "--name=../up"], "no name for stored results"),
        (["--store={docs}", "--name=a"], "it has no runs.csv"),
        (["--store={sweep}"], "both --store"),
        (["--name=a"], "both --store"),
        (["--docs={sweep}"], "no sweep is stored"),
        (["extra"], "unexpected arguments"),
        (["--stroe=x"], "did you mean '--store'"),
    ],
)
def test_mistakes_are_named(made, arguments, message):
    sweep, _, docs = made
    before = sorted(path.name for path in docs.rglob("*"))
    with pytest.raises(UserError, match=message):
        standing.main([f"--docs={docs}", *(argument.format(sweep=sweep, docs=docs) for argument in arguments)])
    assert sorted(path.name for path in docs.rglob("*")) == before


# ---- Reading back ----------------------------------------------------------------------------------------------------


def test_figures_come_back_as_they_were(made):
    _, found, docs = made
    study = read_study(docs / "results" / "nhanes")
    assert study.differences.keys() == found.differences.keys()
    for baseline, values in found.differences.items():
        assert study.differences[baseline].keys() == values.keys()
        for key, value in values.items():
            assert study.differences[baseline][key] == pytest.approx(value)
    for method in SKILLS:
        reports = [run.report for run in found.runs if run.method == method]
        for column, path in (
            ("accuracy", ("overall", "accuracy")),
            ("tail AUROC", ("tail_pooled", "auroc")),
            ("worst combination", ("worst_group", "accuracy")),
        ):
            values = [100 * report[path[0]][path[1]] for report in reports]
            assert study.columns[column][method] == pytest.approx((np.mean(values), np.std(values, ddof=1), 2))
        weighted = [collecting.run_figures(report)["overall"] for report in reports]
        assert study.columns["weighted accuracy"][method].mean == pytest.approx(np.mean(weighted))


def test_a_folder_that_is_no_store_is_named(tmp_path):
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "sweep.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="no stored sweep"):
        standing.page(tmp_path)


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_tables_of_the_stored_figures(made):
    _, found, docs = made
    standing.main([f"--docs={docs}"])
    text = (docs / "results.md").read_text("utf-8")
    assert text == standing.page(docs)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## All data sets", "## Wards of *x*", "## Ward"]
    assert "--config=configs/x.py --workdir=DIR" in text
    summary = _table(_section(text, "## Wards of *x*"))
    assert [row[0] for row in summary[2:]] == list(SKILLS)
    assert {len(row) for row in summary} == {2 + len(COLUMNS) + 1}
    values = [100 * run.report["overall"]["auroc"] for run in found.runs if run.method == "remind_plus"]
    best = summary[2 + list(SKILLS).index("remind_plus")][summary[0].index("AUROC")]
    assert best == f"**{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}**"
    table = _table(_section(text, "### Ward: differences to `remind_plus`"))
    assert [row[0] for row in table[2:]] == ["soft_moe", "remind", "logistic_regression"]
    value = found.differences["remind_plus"]["tail", "auroc", "remind"]
    assert table[3][6] == tables.difference_text(value)
    assert _section(text, "### Wards of *x*: reading")[1] == "Nothing helps."
    assert "### Ward: reading" not in text


def test_links_of_the_page_lead_to_files(made):
    _, _, docs = made
    text = standing.page(docs)
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(links) == 1 + 2 * 4
    assert all((docs / link).exists() for link in links)


def test_what_is_said_is_what_the_stored_files_say(made):
    """Reads differences.csv by itself and looks for every method that it makes better or worse, and no other."""
    _, _, docs = made
    with open(docs / "results" / "phenomenon" / "differences.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = "\n".join(_section(standing.page(docs), "### Ward: what follows"))
    names = {"all": "all samples", "tail": "the tail"}
    shown = 0
    for baseline in BASELINES:
        part = said.split(f"Against `{baseline}`:")[1].split("Against ")[0]
        for samples, place in names.items():
            chosen = [r for r in rows if (r["baseline"], r["samples"], r["figure"]) == (baseline, samples, "auroc")]
            line = next((text for text in part.splitlines() if text.startswith(f"- AUROC, {place}: ")), "")
            for row in chosen:
                clear = float(row["p_holm"]) < 0.05 and float(row["low"]) * float(row["high"]) > 0
                assert (f"`{row['method']}` ({float(row['mean']):+.1f})" in line) == clear
                shown += clear
    assert shown >= 3
    assert "worse in at least one of these six figures and better in none: `remind`" in said


# ---- Sentences, from figures written by hand -------------------------------------------------------------------------


def _difference(mean: float, p: float | None = 0.01, width: float = 0.01) -> Difference:
    low, high = (None, None) if p is None else (mean - width, mean + width)
    return Difference(mean, low, high, p, p, 0.01, p, 5, 5)


def _study(heading: str, means: dict[str, float], differences: dict[str, dict[str, Difference]], **record) -> Study:
    """Every column has the same means, and all samples and tail the same differences in every figure."""
    columns = {name: {m: Spread(value, 1.0, 5) for m, value in means.items()} for name in COLUMNS}
    keys = text.TESTED
    spread = {b: {(*key, m): d for key in keys for m, d in found.items()} for b, found in differences.items()}
    record = {"resamples": 2000, "jobs": 1, "runs": {}, "seeds": [0], "seconds": {"tabulating": 3.0}} | record
    sizes = {"held_out": 1.0, "tail": 1.0, "combinations": 1, "tail_combinations": 1}
    return Study("x", heading, "", record, dict.fromkeys(means, 5), columns, spread, sizes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_difference(0.02), "better"),
        (_difference(-0.02), "worse"),
        (_difference(0.02, p=0.05), "level"),
        (_difference(0.005), "level"),  # the interval holds 0
        (_difference(0.02, p=None), "untested"),
    ],
)
def test_verdicts(value, expected):
    assert text.verdict(value) == expected


def test_sentences_against_a_baseline():
    found = {
        "remind": _difference(-0.03),
        "reweigh": _difference(0.02),
        "group_dro": _difference(0.0),
        "remind_plus": _difference(0.04),
        "fuse_moe": _difference(0.01, p=None),
    }
    study = _study("A", {"soft_moe": 70.0, **dict.fromkeys(found, 70.0)}, {"soft_moe": found})
    lines = text.against(study, "soft_moe", study.differences["soft_moe"])
    assert len(lines) == 7
    assert lines[0] == (
        "- accuracy, all samples: better `remind_plus` (+4.0), `reweigh` (+2.0); worse `remind` (-3.0); "
        "untested `fuse_moe` (+1.0); level 1 other."
    )
    assert lines[-1] == (
        "- Of the paper's methods, worse in at least one of these six figures and better in none: `remind`; "
        "better in at least one and worse in none: `reweigh`; level in all: `fuse_moe`, `group_dro`."
    )


def test_level_figures_are_said_once_and_few_replicates_are_said():
    study = _study("A", {"a": 1.0, "b": 1.0}, {"a": {"b": _difference(0.0)}}, resamples=30)
    lines = text.against(study, "a", study.differences["a"])
    assert lines[0].startswith("- 30 bootstrap replicates and 1 comparison give no corrected p below 0.06")
    assert lines[1].startswith("- `b` is level in: accuracy, all samples; macro-F1, all samples;")
    assert len(lines) == 2


def test_plain_models_that_lead_are_named():
    said = text.leading(_study("A", {"remind": 70.0, "gradient_boosting": 71.0}, {}))
    assert said[0] == (
        "- Highest mean on all samples: accuracy `gradient_boosting` (71.0), macro-F1 `gradient_boosting` (71.0), "
        "AUROC `gradient_boosting` (71.0)."
    )
    assert said[-1].startswith("- A plain model leads in 6 of 6: accuracy, all samples;")
    said = text.leading(_study("A", {"remind": 72.0, "gradient_boosting": 71.0}, {}))
    assert said[-1] == "- No plain model leads in any of these 6 figures."
    assert text.leading(_study("A", {"remind": 72.0, "b": 71.0}, {}))[-1] == "- No plain model was run."
    assert text.leading(_study("A", {"remind": 72.0}, {})) == ["With one method there is nothing to compare."]


def test_the_front_counts_data_sets_on_which_the_own_method_is_ahead():
    worse, level = {"remind": _difference(-0.02)}, {"remind": _difference(-0.005)}
    ahead = _study("A", {"remind_plus": 72.0, "remind": 70.0}, {"remind_plus": worse})
    unclear = _study("B", {"remind_plus": 72.0, "remind": 71.99}, {"remind_plus": level})
    behind = _study("C", {"remind_plus": 70.0, "remind": 72.0}, {"remind": worse})
    without = _study("D", {"remind": 72.0, "soft_moe": 70.0}, {})
    lines = text.front([ahead, unclear, behind, without])
    assert lines[0].count(": tail AUROC") == 4
    assert lines[2] == "| remind_plus | **72.0** | **72.0** | **72.0** | **72.0** | 70.0 | 70.0 | - | - |"
    assert "- macro-F1, the tail: 2 of 3 (A; B)" in lines
    assert "- all four at once: 2 of 3 (A; B)" in lines
    assert "- macro-F1, the tail: 1 of 2 (A)" in lines
    both = {"remind": _difference(-0.02), "reweigh": _difference(-0.005)}
    partly = _study("E", {"remind_plus": 72.0, "remind": 70.0, "reweigh": 71.0}, {"remind_plus": both})
    tail = dict.fromkeys(partly.methods, Spread(50.0, 1.0, 5)) | {"remind": Spread(60.0, 1.0, 5)}
    partly = dataclasses.replace(partly, columns=partly.columns | {"tail AUROC": tail})
    lines = text.own([partly])
    assert "- AUROC, all samples: 1 of 1 (E)" in lines
    assert "- AUROC, the tail: 0 of 1" in lines
    assert "- all four at once: 0 of 1" in lines
    assert lines[-1] == "- macro-F1, the tail: 0 of 1"  # level with one of two others
    assert text.own([without]) == []
    assert "none of this is tested" in text.own([behind])[-1]


def test_time_and_machine_are_said():
    runs = {"a seed 0": {"seconds": 3600.0}, "a seed 1": {"seconds": 125.0}, "b seed 0": {"seconds": 5.0}}
    study = _study("A", {"a": 1.0}, {}, runs=runs, jobs=2)
    assert text.time_text(study) == (
        "The runs took 1 h 2 min together, 2 at a time; the tables, with 2,000 bootstrap replicates, 3 s."
    )
    runs["a seed 1"] = {"seconds": None}
    assert "(1 of 2; the others were not recorded) took 1 h 0 min" in text.time_text(study)
    runs["a seed 0"] = {"seconds": None}
    assert text.time_text(study) == "The time of the runs was not recorded."
    environment = {"python": "3.11", "packages": {"jax": "1", "x": None}, "devices": ["g", "g"], "commit": "0123456789"}
    study = _study("A", {"a": 1.0}, {}, environment=environment, processor="P", cores=1)
    assert text.machine_text(study) == "1 core of P; JAX on 2 × g; Python 3.11, jax 1; commit 0123456."
