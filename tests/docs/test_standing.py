"""Standing results: what is stored, what the page says of it, and that the page of the repository is up to date."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from docs.standing import __main__ as standing
from docs.standing import answer, claims, text
from docs.standing.study import FILES, LABELS, Study, read_study
from remind_jax import tasks
from remind_jax.errors import UserError
from remind_jax.evaluation.report import build_report
from remind_jax.studies import results as collecting
from remind_jax.studies import tables
from remind_jax.studies.comparison import Difference, Outcome, Spread
from remind_jax.studies.record import Record
from remind_jax.tasks.classes import Classes
from tests.studies import sweep_runs
from tests.tasks.test_reports import run_of
from tests.tiny_runs import ROOT

SKILLS = {"soft_moe": 0.7, "remind": 0.45, "remind_plus": 0.95, "logistic_regression": 0.7}
SEEDS = (0, 1)
BASELINES = ("soft_moe", "remind_plus")


def _finish(folder: pathlib.Path, runs, data: str, failed=(), baselines=BASELINES) -> collecting.Results:
    """Writes what a sweep of these runs leaves."""
    folder.mkdir(parents=True)
    methods = list(dict.fromkeys(run.method for run in runs))
    seeds = sorted({run.seed for run in runs})
    found = collecting.collect(runs, methods, baselines, resamples=400)
    for name, content in (
        ("runs.csv", tables.runs_csv(found)),
        ("groups.csv", tables.groups_csv(found)),
        ("differences.csv", tables.differences_csv(found)),
    ):
        (folder / name).write_text(content, encoding="utf-8")
    names = [f"{method} seed {seed}" for seed in seeds for method in methods]
    settings = {"methods": methods, "seeds": seeds, "baselines": baselines, "resamples": 400, "jobs": 1}
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
    reading = "# Wards of *x*\nshort: wards\nkind: Tables\n\nNothing helps.\n"
    (base / "docs" / "results" / "nhanes" / "reading.md").write_text(reading, "utf-8")
    return base / "sweep", found, base / "docs"


def _section(text: str, title: str) -> list[str]:
    return text.split(f"{title}\n")[1].split("\n#")[0].splitlines()


def _tables(lines: list[str]) -> list[list[list[str]]]:
    """The cells of the tables of a section, in order."""
    blocks = ["\n".join(lines).split("\n\n")]
    found = [block.splitlines() for block in blocks[0] if block.startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block] for block in found]


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
            found_here = study.cells[study.columns[column]][method]
            assert found_here == pytest.approx((np.mean(values), np.std(values, ddof=1), 2))
        weighted = [collecting.run_figures(report)["overall"] for report in reports]
        assert study.cells[study.columns["weighted accuracy"]][method].mean == pytest.approx(np.mean(weighted))


def test_a_folder_that_is_no_store_is_named(tmp_path):
    (tmp_path / "results" / "x").mkdir(parents=True)
    (tmp_path / "results" / "x" / "sweep.json").write_text("{}", "utf-8")
    with pytest.raises(UserError, match="no stored sweep"):
        standing.page(tmp_path)


def test_the_name_of_the_data_stands_for_what_no_reading_tells(made):
    _, _, docs = made
    told, untold = (read_study(docs / "results" / name) for name in ("nhanes", "phenomenon"))
    assert (told.heading, told.short, told.kind, told.reading) == ("Wards of *x*", "wards", "Tables", "Nothing helps.")
    assert (untold.heading, untold.short, untold.kind, untold.reading) == ("Ward", "Ward", "Ward", "")


def _tuned(method: str, seed: int, skill: float) -> Outcome:
    """A run whose answers are by factors of probabilities that tuning rows chose."""
    frame = sweep_runs.predictions(seed, 120, skill, len(method))
    config = {"method": method, "seed": seed, "eval": {"bootstrap": 20}}
    judge = Classes((0.5, 0.5), ("no", "yes"), decision=(1.0, 0.6)).judge
    report = build_report(config, "ward", frame, sweep_runs.groups(), parameters=7, classes=["no", "yes"], judge=judge)
    return Outcome(method, seed, report, frame)


def test_the_tuned_figure_stands_beside_macro_f1(tmp_path):
    runs = [_tuned(method, seed, skill) for method, skill in (("soft_moe", 0.6), ("remind", 0.9)) for seed in SEEDS]
    _finish(tmp_path / "sweep", runs, "ward", baselines=("soft_moe",))
    standing.store(tmp_path / "sweep", "ward", tmp_path / "docs")
    study = read_study(tmp_path / "docs" / "results" / "ward")
    assert [*study.titles.values()] == ["accuracy", "macro-F1", "macro-F1, tuned", "AUROC"]
    mean = np.mean([100 * run.report["overall"]["macro_f1_tuned"] for run in runs if run.method == "remind"])
    assert study.mean("remind", ("all", "macro_f1_tuned")) == pytest.approx(mean)
    assert mean != pytest.approx(study.mean("remind", ("all", "macro_f1")))
    page = standing.page(tmp_path / "docs")
    (gains,) = _tables(_section(page, "## Which method should I take for my data"))
    gain = f"{100 * study.gain('remind', 'soft_moe', ('all', 'macro_f1_tuned')).mean:+.1f}"
    assert gains[2][gains[0].index("macro-F1, tuned")].replace("*", "") == f"{gain} / - / -"


@pytest.mark.parametrize("task", [name for name in tasks.TASKS if name != "classes"])
def test_sweeps_of_every_task_are_read(tmp_path, task):
    runs = [Outcome(method, 0, *run_of(task, noise)) for method, noise in (("soft_moe", 2.0), ("remind_plus", 0.0))]
    _finish(tmp_path / "sweep", runs, "ward")
    standing.store(tmp_path / "sweep", "ward", tmp_path / "docs")
    study = read_study(tmp_path / "docs" / "results" / "ward")
    kind = tasks.TASKS[task]
    assert study.task is kind
    assert [*study.titles] == [name for name in kind.titles if name in kind.select]
    for figure in study.titles:
        value = kind.factor * runs[1].report["overall"][figure]
        assert study.mean("remind_plus", ("all", figure)) == pytest.approx(value)
        assert study.leaders(("head", figure)) == ["remind_plus"]  # of errors the lowest
        gain = study.gain("remind_plus", "soft_moe", ("head", figure)) or study.differences["soft_moe"]
        assert (gain.mean > 0) == study.more(figure)
    page = standing.page(tmp_path / "docs")
    summary = _tables(_section(page, "## Ward"))[0]
    assert summary[3][summary[0].index(study.titles[study.rank])].strip("*") == study.shown(
        "remind_plus", ("all", study.rank)
    )


def test_a_gain_is_read_from_either_side_and_without_a_baseline_from_means(made):
    _, found, docs = made
    study = read_study(docs / "results" / "nhanes")
    key = ("all", "auroc")
    there = found.differences["remind_plus"][*key, "remind"]
    gain = study.gain("remind_plus", "remind", key)
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-there.mean, -there.high, -there.low))
    apart = study.gain("remind", "logistic_regression", key)
    means = [study.mean(method, key) for method in ("remind", "logistic_regression")]
    assert apart.mean == pytest.approx((means[0] - means[1]) / 100)
    assert apart.low is None


def test_a_tail_that_is_all_samples_has_no_figures_of_its_own(made, tmp_path):
    there, file = made[2] / "results" / "nhanes", tmp_path / "all_tail" / "groups.csv"
    shutil.copytree(there, file.parent)
    with open(file, encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    whole = {(row["figure"], row["method"]): row for row in rows if row["samples"] == "all samples"}
    for row in rows:
        if row["samples"] == "tail, pooled":
            row |= {name: whole[row["figure"], row["method"]][name] for name in ("n", "mean", "sd", "seeds")}
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    before, after = read_study(there), read_study(file.parent)
    for part in ("all", "worst"):
        assert after.mean("remind", (part, "auroc")) == before.mean("remind", (part, "auroc")) is not None
    for study, is_told in ((before, True), (after, False)):
        assert (study.mean("remind", ("tail", "auroc")) is not None) == is_told
        assert (study.gain("remind", "soft_moe", ("tail", "auroc")) is not None) == is_told
    assert after.gain("remind", "soft_moe", ("all", "auroc")) == before.gain("remind", "soft_moe", ("all", "auroc"))


def test_stored_figures_of_no_task_are_refused(made, tmp_path):
    sweep, _, _ = made
    shutil.copytree(sweep, tmp_path / "results" / "x")
    file = tmp_path / "results" / "x" / "groups.csv"
    file.write_text(file.read_text("utf-8").replace(",auroc,", ",area,"), "utf-8")
    with pytest.raises(UserError, match="no task has the figures accuracy, macro_f1, area"):
        standing.page(tmp_path)


# ---- The page --------------------------------------------------------------------------------------------------------


def test_the_page_has_the_tables_of_the_stored_figures(made):
    _, found, docs = made
    standing.main([f"--docs={docs}"])
    text = (docs / "results.md").read_text("utf-8")
    assert text == standing.page(docs)
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Which method should I take for my data",
        "All data sets",
        "Is the aim met",
        "How to read the figures",
        "Wards of *x*",
        "Ward",
    ]
    assert "--config=configs/x.py --workdir=DIR" in text
    summary, *differences = _tables(_section(text, "## Wards of *x*"))
    assert [row[0] for row in summary[2:]] == list(SKILLS)
    assert {len(row) for row in summary} == {2 + 2 * 3 + 2}
    values = [100 * run.report["overall"]["auroc"] for run in found.runs if run.method == "remind_plus"]
    best = summary[2 + list(SKILLS).index("remind_plus")][summary[0].index("AUROC")]
    assert best == f"**{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}**"
    table = differences[BASELINES.index("remind_plus")]
    assert [row[0] for row in table[2:]] == ["soft_moe", "remind", "logistic_regression"]
    value = found.differences["remind_plus"]["tail", "auroc", "remind"]
    assert table[3][6] == tables.difference_text(value)
    assert "Nothing helps." in _section(text, "## Wards of *x*")


def test_tables_of_a_data_set_are_folded(made):
    _, _, docs = made
    text = standing.page(docs)
    assert text.count('<details markdown="1">') == text.count("</details>") == 2
    before = text.split("## Wards of *x*")[1].split("<details")[0]
    assert "Best mean on all samples" in before
    assert "|" not in before
    assert "## " not in text.split("## Wards of *x*")[1].split("<details")[1].split("</details>")[0]


def test_links_of_the_page_lead_to_files(made):
    _, _, docs = made
    text = standing.page(docs)
    links = [part.split(")")[0].partition("#")[0] for part in text.split("](")[1:]]
    assert len(links) == 2 + 2 * 4
    assert all((docs / link).exists() or (ROOT / "docs" / link).exists() for link in links)


def test_what_is_said_is_what_the_stored_files_say(made):
    """Reads differences.csv by itself and looks for every method that it makes better or worse, and no other."""
    _, _, docs = made
    with open(docs / "results" / "phenomenon" / "differences.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    said = "\n".join(_section(standing.page(docs), "## Ward"))
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
    assert "worse in at least one of these figures and better in none: `remind`" in said


# ---- Sentences, from figures written by hand -------------------------------------------------------------------------


def _difference(mean: float, p: float | None = 0.01, width: float = 0.01) -> Difference:
    low, high = (None, None) if p is None else (mean - width, mean + width)
    return Difference(mean, low, high, p, p, 0.01, p, 5, 5)


def _study(heading: str, means: dict[str, float], differences: dict[str, dict[str, Difference]], **record) -> Study:
    """Every cell has the same means, and all samples and tail the same differences in every figure."""
    titles = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auroc": "AUROC"}
    spreads = {method: Spread(value, 1.0, 5) for method, value in means.items()}
    cells = {(part, figure): spreads for part in LABELS for figure in titles}
    keys = [(part, figure) for part in ("all", "tail") for figure in titles]
    spread = {b: {(*key, m): d for key in keys for m, d in found.items()} for b, found in differences.items()}
    default = {"command": "", "resamples": 2000, "jobs": 1, "runs": {}, "seeds": [0], "seconds": {"tabulating": 3.0}}
    sizes = {"train": 100.0, "held_out": 10.0, "tail": 1.0, "combinations": 3, "tail_combinations": 2}
    runs = dict.fromkeys(means, 5)
    return Study("x", heading, heading, "Tables", "", default | record, runs, Classes, titles, cells, spread, sizes)


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
    assert answer.verdict(value) == expected
    other = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert answer.verdict(value, more=False) == other


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
        "- Of the paper's methods, worse in at least one of these figures and better in none: `remind`; "
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
        "- Best mean on all samples: accuracy `gradient_boosting` (71.0), macro-F1 `gradient_boosting` (71.0), "
        "AUROC `gradient_boosting` (71.0)."
    )
    assert said[-1].startswith("- A plain model leads in 6 of 6: accuracy, all samples;")
    said = text.leading(_study("A", {"remind": 72.0, "gradient_boosting": 71.0}, {}))
    assert said[-1] == "- No plain model leads in any of these 6 figures."
    assert text.leading(_study("A", {"remind": 72.0, "b": 71.0}, {}))[-1] == "- No plain model was run."
    assert text.leading(_study("A", {"remind": 72.0}, {})) == ["With one method there is nothing to compare."]


def test_one_table_has_all_methods_of_all_data_sets():
    one, two = (
        _study("A", {"remind_plus": 72.0, "remind": 70.0}, {}),
        _study("B", {"soft_moe": 71.0, "remind": 70.0}, {}),
    )
    lines = answer.over_all([one, two])
    assert lines[0] == "| method | A: AUROC / tail | B: AUROC / tail |"
    assert lines[2:] == [
        "| remind_plus | **72.0** / **72.0** | - / - |",
        "| remind | 70.0 / 70.0 | 70.0 / 70.0 |",
        "| soft_moe | - / - | **71.0** / **71.0** |",
    ]


def test_the_aim_counts_who_is_behind_and_names_who_is_not():
    means = {"remind_stack": 72.0, "remind": 70.0, "reweigh": 71.0, "extra_trees": 73.0}
    found = {"remind": _difference(-0.02), "reweigh": _difference(-0.005), "extra_trees": _difference(0.01)}
    missed = _study("A", means, {"remind_stack": found})
    assert answer.aim_text(missed, "remind_stack", ("tail", "auroc")) == "2 of 3, 1 clear; not extra_trees -1.0"
    said = answer.aim([missed])
    assert said[0] == "`remind_stack`:"
    assert "in all counted cells: 0 of 1, asked of each" in said[-1]
    assert "**The aim is not met.**" in said[-1]
    clear = {method: _difference(-0.02) for method in ("remind", "reweigh")}
    sets = [_study(name, dict.fromkeys(("remind_stack", *clear), 70.0), {"remind_stack": clear}) for name in "AB"]
    assert "**The aim is met.**" in answer.aim(sets)[-1]
    tuned = ("all", "macro_f1_tuned")
    behind = {method: Spread(value, 1.0, 5) for method, value in (("remind_stack", 1.0), ("remind", 2.0))}
    cells = {tuned: behind, ("tail", "macro_f1_tuned"): behind}
    beside = [
        dataclasses.replace(study, titles=study.titles | {tuned[1]: "tuned"}, cells=study.cells | cells)
        for study in sets
    ]
    assert "not remind" in answer.aim_text(beside[0], "remind_stack", tuned)
    assert "**The aim is met.**" in answer.aim(beside)[-1]
    assert answer.which(beside)[0].endswith("take `remind_stack`; for tuned `remind`.")
    made = dataclasses.replace(sets[1], kind="Tables, synthetic")
    assert (
        "with intervals without 0: 1 of 1 (A), asked of 2. **The aim is not met.**" in answer.aim([sets[0], made])[-1]
    )
    assert answer.aim([_study("A", {"soft_moe": 70.0, "remind": 71.0}, {})]) == []


def test_what_is_said_of_the_best_is_said_of_both_own_methods():
    means = {"remind_stack": 73.0, "remind_plus": 72.0, "remind": 70.0}
    found = {"remind_plus": _difference(-0.01, width=0.02), "remind": _difference(-0.03)}
    study = _study("A", means, {"remind_stack": found, "remind_plus": {"remind": _difference(-0.02)}})
    stack, plus = answer.advice([study])[:2]
    assert stack.startswith(
        "- `remind_stack` is ahead of every other method of the sweep in AUROC on 1 of 1 (A), beyond"
    )
    assert "beyond chance on 0 of 1; in macro-F1" in stack
    assert plus.startswith("- `remind_plus` is ahead of every other method of the sweep in AUROC on 0 of 1")
    assert [line for line in answer.aim([study]) if line.endswith("`:")] == ["`remind_stack`:", "`remind_plus`:"]


def test_the_answer_takes_the_best_mean_and_tells_what_cheaper_ones_reach():
    means = {"gradient_boosting": 70.0, "soft_moe": 69.0, "remind": 71.0, "remind_no_dro": 80.0, "remind_stack": 72.0}
    seconds = {"gradient_boosting": 1.0, "soft_moe": 5.0, "remind": 10.0, "remind_no_dro": 10.0, "remind_stack": 90.0}
    runs = {f"{method} seed {seed}": {"seconds": s + seed} for method, s in seconds.items() for seed in (-1, 0, 1)}
    level = {"gradient_boosting": _difference(-0.02), "remind": _difference(-0.01, width=0.02)}
    one = _study("A", means, {"remind_stack": level}, runs=runs)
    two = _study("B", {m: value - 2 * (m == "remind_stack") for m, value in means.items()}, {}, runs=runs)
    (line, *_) = answer.which([one])
    assert line == (
        "- **Tables, 100 train rows** (A): take `remind_stack`. AUROC by cost: `gradient_boosting` 70.0 (0.1×), "
        "`remind` 71.0 (1.0×), `remind_stack` 72.0 (9.0×). `remind` is behind by no more than chance."
    )
    (line, *_) = answer.which([one, two])
    assert line.startswith("- **Tables, 100 train rows** (A; B): take `remind`. AUROC by cost: `gradient_boosting` 70.")
    assert len(answer.kinds([one, dataclasses.replace(two, sizes=two.sizes | {"train": 5e3})])) == 2
    earlier = _study("C", {"soft_moe": 70.0, "remind": 69.0}, {})  # of a sweep without the others
    assert answer.kinds([one, earlier, two]) == [[one, two], [earlier]]
    lines = answer.which([one, earlier, two])[:2]
    assert [line.partition(" rows** ")[2].partition(":")[0] for line in lines] == ["(A; B)", "(C)"]
    untimed = _study("A", means, {})
    assert untimed.cost("remind_stack") is None
    assert answer.which([untimed])[0] == "- **Tables, 100 train rows** (A): take `remind_stack`."


# ---- The paper's claims ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({}, "not testable here"),
        ({"A": 1, "B": 1}, "reproduced on all 2"),
        ({"A": 1, "B": 0}, "reproduced on 1 of 2 (A)"),
        ({"A": 0, "B": 0}, "not reproduced"),
        ({"A": 0, "B": -1}, "not reproduced, the opposite on 1 (B)"),
    ],
)
def test_verdicts_of_claims(outcomes, expected):
    assert claims.judged(outcomes) == expected


def test_claims_are_tested_on_stored_figures():
    means = {"soft_moe": 70.0, "fuse_moe": 71.0, "remind": 70.5}
    study = _study("A", means, {"soft_moe": {"remind": _difference(0.02), "fuse_moe": _difference(-0.02)}})
    over, best = claims.TESTS["over"], claims.TESTS["best of the paper"]
    assert over(study, "remind", "soft_moe", "tail", "accuracy") == (1, "**+2.0**")
    assert over(study, "fuse_moe", "soft_moe", "tail", "accuracy") == (-1, "**-2.0**")
    assert over(study, "remind", "fuse_moe", "tail", "accuracy") == (0, "-0.5")  # of means alone
    assert over(study, "remind", "soft_moe", "all", "c_index") is None
    assert best(study, "remind", "all", "accuracy") == (0, "-0.5")
    assert best(study, "fuse_moe", "all", "accuracy") == (1, "+0.5")
    assert claims.TESTS["long tail"](study) == (1, "2 of 3, 10 %")
    lower = {method: Spread(60.0, 1.0, 5) for method in means}
    tail = dataclasses.replace(study, cells=study.cells | {("tail", "auroc"): lower})
    assert claims.TESTS["head over tail"](tail, "soft_moe", "auroc") == (1, "+10.0")
    rows = [
        {"method": method, "seed": str(seed), "accuracy": str(value + gain)}
        for method, gain in (("remind", 2.0), ("soft_moe", 0.0))
        for seed, value in enumerate((70.0, 72.0, 71.0 - gain / 10))
    ]
    paired = dataclasses.replace(study, rows=rows)
    assert claims.TESTS["paired"](paired, "remind", "soft_moe", "accuracy") == (1, "**+1.9**")
    assert claims.TESTS["paired"](paired, "remind", "cox", "accuracy") is None


def test_what_a_claim_says_is_filled_in_from_files(made, tmp_path):
    _, _, docs = made
    shutil.copytree(docs, tmp_path / "docs")
    results = tmp_path / "docs" / "results"
    (results / "a.csv").write_text("method,x\nremind,0.25\nremind,0.75\nsoft_moe,9\n", "utf-8")
    claim = "- {claim: C, where: W, verdict: reproduced, said: 'It is {mean; a.csv; x; %; method=remind}.', run: R}\n"
    (results / claims.FILE).write_text(claim, "utf-8")
    assert "| C | W | **reproduced** | It is 50.0. | R |" in standing.page(tmp_path / "docs")
    (results / claims.FILE).write_text(claim.replace("=remind", "=reminds"), "utf-8")
    with pytest.raises(UserError, match="has no x of method=reminds"):
        standing.page(tmp_path / "docs")


def test_time_and_machine_are_said():
    runs = {"a seed 0": {"seconds": 3600.0}, "a seed 1": {"seconds": 125.0}, "b seed 0": {"seconds": 5.0}}
    study = _study("A", {"a": 1.0}, {}, runs=runs, jobs=2)
    shared = _study("A", {"a": 1.0}, {}, runs=runs, command="python -m remind_jax.sweep --share")
    assert "took 1 h 2 min together, shared by processes;" in text.time_text(shared)
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
