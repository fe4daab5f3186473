"""Searches of configs: which rows judge trials and which nobody reads, what is chosen and told, and sweeps of them."""

import contextlib
import csv
import dataclasses
import io
import json
import math
import sys

import numpy as np
import polars as pl
import pytest

from remind_jax import cli, sweep, tasks
from remind_jax.data import dataset as datasets
from remind_jax.data import reading, splits
from remind_jax.errors import UserError
from remind_jax.runtime import cluster, jobs
from remind_jax.studies import runner, search
from remind_jax.training import run
from tests import tiny_runs
from tests.data.manifest_files import write_manifest

pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
SPACE = "optim.lr=1e-5..1e-1:log"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """120 rows that a column splits."""
    folder = write_manifest(tmp_path_factory.mktemp("search") / "data", n=120)
    sides = pl.read_csv(folder / "manifest.csv").with_columns(split=pl.col("patient").str.slice(1).cast(pl.Int64) % 5)
    names = pl.col("split").replace_strict({0: "held_out", 1: "tuning"}, default="train")
    sides.with_columns(names).write_csv(folder / "manifest.csv")
    with open(folder / "schema.yaml", "a", encoding="utf-8") as file:
        file.write("split: split\n")
    return reading.read_manifest(folder)


def config_of(manifest, method="soft_moe", **changes):
    changes = {"train__epochs": 1.0, "train__joint_epochs": 0.5, "data__max_tokens": 6} | changes
    return cli.parse_config(tiny_runs.own_arguments(manifest.root, "none", method, **changes))[0]


class MadeUp:
    """In the place of training: the nearer the learning rate is to 0.003, the better; keeps the splits it was given."""

    def __init__(self, manifest):
        self.manifest, self.seen = manifest, []

    def __call__(self, config, folder):
        fitted = datasets.fit(config, self.manifest)
        rows = np.flatnonzero(fitted.split == splits.TUNING)
        self.seen.append((config, fitted.split, folder))
        labels = self.manifest.labels[rows]
        right = 0.55 + 0.4 * math.exp(-((math.log10(config.optim.lr) + 2.5) ** 2))
        task = tasks.fit(self.manifest.schema, config, labels)
        return search.Predictions(task, labels, np.where(np.arange(2) == labels[:, None], right, 1 - right))


def find(manifest, number=12, space=SPACE, folder=None, **changes):
    train = MadeUp(manifest)
    config = config_of(manifest, **changes)
    return search.find(config, manifest, search.Asked(number, space), train, folder, verbose=False), train, config


def test_few_rows_are_judged_out_of_fold_each_once_and_held_out_rows_by_nobody(manifest):
    (chosen, found), train, config = find(manifest)
    whole = splits.make_splits(manifest, 0)
    used = whole != splits.HELD_OUT
    assert (found.rows.folds, found.rows.count) == (3, used.sum())
    assert len(train.seen) == 36
    for first in range(0, 36, 3):
        three = [split for _, split, _ in train.seen[first : first + 3]]
        np.testing.assert_array_equal(sum((split == splits.TUNING).astype(int) for split in three), used.astype(int))
        assert all((split[~used] == splits.UNUSED).all() for split in three)
        assert len({own.optim.lr for own, _, _ in train.seen[first : first + 3]}) == 1
    assert train.seen[0][0].optim.lr == config.optim.lr
    assert abs(math.log10(chosen.optim.lr) + 2.5) < 0.5
    assert chosen.optim.lr == found.best.keys["optim.lr"]
    assert (chosen.chosen_among, chosen.data.folds, config.chosen_among) == (12, 0, 0)
    assert found.best.value <= found.trials[0].value
    assert "chosen among 12 trials by loss of" in found.told
    assert found.importance == {}  # too few to tell
    assert find(manifest, 20)[0][1].told.endswith("shares in the spread: optim.lr 1.00")


def test_many_rows_are_judged_by_the_tuning_rows_as_they_are(manifest, monkeypatch):
    monkeypatch.setattr(search, "FEW", 50)
    (_, found), train, _ = find(manifest, 2)
    whole = splits.make_splits(manifest, 0)
    assert found.rows == search.Rows(int((whole == splits.TUNING).sum()), 1)
    assert found.rows.told.endswith("tuning rows")
    for _, split, _ in train.seen:
        np.testing.assert_array_equal(split, np.where(whole == splits.HELD_OUT, splits.UNUSED, whole))


def test_another_figure_is_followed_in_its_own_direction(manifest):
    (chosen, found), _, _ = find(manifest, train__select="auroc", space="optim.lr=1e-5..1e-1:log")
    assert found.more
    assert found.best.number == 0  # all trials are as good as the config, which then stays
    assert chosen.optim.lr == config_of(manifest).optim.lr
    assert "the config stays as it is" in found.told
    (_, found), train, _ = find(manifest, 2, train__select="last")
    assert found.figure == "loss"
    assert train.seen[0][0].train.select == "last"


def test_a_folder_keeps_a_search_and_refuses_another(manifest, tmp_path):
    folder = tmp_path / "search"
    (_, found), train, _ = find(manifest, 3, folder=folder)
    assert train.seen[-1][2] == folder / "trial-2" / "fold-2"
    (_, again), train, _ = find(manifest, 5, folder=folder)
    assert len(train.seen) == 6
    assert [t[:3] for t in again.trials[:3]] == [t[:3] for t in found.trials]
    with open(folder / "trials.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == list("01234")
    assert min(float(row["loss"]) for row in rows) == float(rows[-1]["best so far"])
    with pytest.raises(UserError, match=r"holds a search of other settings: space\.optim\.lr"):
        find(manifest, 3, space="optim.lr=1e-4..1e-1:log", folder=folder)
    with pytest.raises(UserError, match=r"holds a search of other settings: optim\.clip"):
        find(manifest, 3, folder=folder, optim__clip=0.5)
    fewer = dataclasses.replace(manifest, table=manifest.table.head(100))
    with pytest.raises(UserError, match="other settings: rows; choose another workdir"):
        find(fewer, 3, folder=folder)
    asked, train = search.Asked(1, SPACE), MadeUp(fewer)
    search.find(config_of(manifest), fewer, asked, train, folder, False, on_changed_data="restart")
    assert len(train.seen) == 3


@pytest.mark.parametrize("method", ["remind_stack", "logistic_regression"])
def test_what_chooses_by_itself_has_no_search(manifest, method):
    changes = {"data__folds": 2} if method == "remind_stack" else {}
    with pytest.raises(UserError, match=f"method={method} has nothing to search"):
        find(manifest, method=method, **changes)


def test_tables_show_the_trials_that_were_the_best_so_far(manifest):
    (_, found), _, _ = find(manifest)
    head, *rows = found.table()
    assert head == ["trial", "loss", "best so far", "seconds", "optim.lr"]
    assert len(rows) == 12
    _, *best = found.table(20)
    assert best[0][0] == "0"
    assert [float(row[1]) for row in best] == sorted((float(row[1]) for row in best), reverse=True)
    assert best[-1][0] == str(found.best.number)
    assert len(found.table(2)) == 3


def test_trials_are_the_same_whatever_the_held_out_rows_hold(manifest):
    """A canary: other labels and other cells of held-out rows move no figure of a trial that is really trained."""
    whole = splits.make_splits(manifest, 0)
    held = pl.Series(whole == splits.HELD_OUT)

    def change(table):
        turned = pl.when(pl.col("died") == "0").then(pl.lit("1")).otherwise(pl.lit("0"))
        other = {"died": turned, "sodium": pl.col("sodium") + 50.0, "note": pl.lit("canary canary")}
        return table.with_columns(
            pl.when(held).then(new).otherwise(pl.col(name)).alias(name) for name, new in other.items()
        )

    figures = []
    for rows in (manifest, dataclasses.replace(manifest, table=change(manifest.table))):

        def train(config, folder, rows=rows):
            model, data = run.fit(config, rows, None, verbose=False, breakable=False)
            found = model.predict_store(data.stores["tuning"])
            return search.Predictions(model.task, found.labels, found.probabilities)

        config = config_of(rows)
        found = search.find(config, rows, search.Asked(1, SPACE), train, None, verbose=False)[1]
        figures.append(
            (found.trials[0].value, run.fit(config, rows, None, verbose=False).model.report["overall"]["auroc"])
        )
    assert figures[0][0] == figures[1][0]
    assert figures[0][1] != figures[1][1]  # they are read by the report


# ---- Sweeps ----------------------------------------------------------------------------------------------------------


def _arguments(folder, *more):
    given = tiny_runs.arguments(folder / "cache", eval__bootstrap=20, train__epochs=1.0, train__joint_epochs=0.5)
    return [*given, f"--workdir={folder / 'out'}", "--resamples=20", "--seeds=0", *more]


def _run(*arguments):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sweep.main(list(arguments))
    return printed.getvalue()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--search=grid"], "invalid choice: 'grid'"),
        (["--trials=3"], "give --search=tpe, too"),
        (["--plan"], "give --search=tpe, too"),
        (["--search=tpe", "--trials=0"], "--trials=0 must be at least 1"),
        (["--search=tpe", "--table=16"], "--table=16 sets keys that --search would change"),
        (["--search=tpe", "--jobs=2"], "start it 2 times with --share instead"),
        (["--search=tpe", "--methods=logistic_regression"], "none of the methods has keys to search"),
        (["--search=tpe", "--methods=remind", "--space=optim.rl=1|2"], "did you mean 'optim.lr'"),
        (["--search=tpe", "--methods=remind", "--space=model.width=16|32"], "model.width is set as well"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(tmp_path, more, message):
    with pytest.raises(UserError, match=message) as told:
        _run(*_arguments(tmp_path, *more))
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "out").glob("*/trial-*"))


def test_a_sweep_searches_and_then_runs_what_was_chosen(tmp_path):
    given = ["--methods=soft_moe,logistic_regression", "--search=tpe", f"--space={SPACE}"]
    plan = _run(*_arguments(tmp_path, *given, "--trials=2", "--plan"))
    assert "soft_moe seed 0: 2 trials by loss of 144 rows in 3 folds, 6 runs and one more" in plan
    assert "logistic_regression seed 0: no search, one run" in plan
    assert not (tmp_path / "out").exists()
    printed = _run(*_arguments(tmp_path, *given, "--trials=2"))
    out = tmp_path / "out"
    assert printed.count("\ntrial ") == 2
    report = json.loads((out / "soft_moe-of2-seed0" / "report.json").read_text("utf-8"))
    assert report["split"] == "held_out"
    assert any("chosen among 2 trials" in finding["message"] for finding in report["findings"])
    assert "chosen among 2 trials" in (out / "soft_moe-of2-seed0" / "report.html").read_text("utf-8")
    fold = json.loads((out / "soft_moe-seed0-search" / "trial-1" / "fold-2" / "report.json").read_text("utf-8"))
    assert (fold["split"], fold["card"]["splits"]["held_out"]["n"]) == ("tuning", 0)
    assert not list(out.glob("*-search/*/*/model"))
    for name in ("table.md", "index.html"):
        text = (out / name).read_text("utf-8")
        assert "Search of soft" in text
        assert "chosen among 2 trials by loss" in text.replace("\\", "")
    again = _run(*_arguments(tmp_path, *given, "--trials=2"))
    assert "\ntrial " not in again
    assert again.count("finished before") == 2
    assert "hours by 2 finished trials" in _run(*_arguments(tmp_path, *given, "--trials=9", "--plan"))


class MadeUpCluster:
    """In the place of Ray: runs tasks in this process, the last given first; those in `lost` are not run."""

    def __init__(self, monkeypatch, lost=()):
        self.work, self._patch, self.lost = [], monkeypatch, lost
        monkeypatch.setattr(cluster, "run_all", self)

    def __call__(self, work, given):
        self.work.append(work)
        for number in sorted(range(len(work)), key=lambda i: (work[i].after is not None, -i)):
            *_, code, folder, told = work[number].job.command
            yield jobs.Event(number, False)
            if told in self.lost:
                yield jobs.Event(number, True, "lost with its node", 75)
                continue
            self._patch.setattr(sys, "stdin", io.StringIO(work[number].job.text))
            (search.try_given if "search" in code else runner.run_given)([folder, told])
            yield jobs.Event(number, True)


def test_a_cluster_runs_each_trial_as_a_task_and_one_that_is_lost_is_run_by_the_same_command(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    given = ["--methods=soft_moe,logistic_regression", "--search=tpe", f"--space={SPACE}", "--trials=3"]
    given += ["--engine=ray", "--config.data.cache=none"]
    nodes = MadeUpCluster(monkeypatch, lost={"0"})
    with pytest.raises(UserError, match="soft_moe seed 0: the first trial failed: lost with its node"):
        _run(*_arguments(tmp_path, *given))
    nodes.lost = {"1"}
    with pytest.raises(UserError, match="1 of 3 trials are open: the same command runs them again: soft_moe seed 0"):
        _run(*_arguments(tmp_path, *given))
    nodes.lost = ()
    printed = _run(*_arguments(tmp_path, *given))
    tried = [[(each.job.command[-1], each.after) for each in work] for work in nodes.work]
    assert tried[:3] == [[("0", None), ("1", 0), ("2", 0)]] * 2 + [[("1", None)]]
    assert len(nodes.work) == 4  # the last has the runs with what was chosen
    assert printed.count("soft_moe seed 0: trial 1 ") == 1
    assert json.loads(nodes.work[0][0].job.text)[1:3] == [3, SPACE]
    alone = tmp_path / "alone"
    _run(*_arguments(tmp_path, *given[:-2], f"--workdir={alone}"))
    tables = []
    for out in (tmp_path / "out", alone):
        with open(out / "soft_moe-seed0-search" / "trials.csv", encoding="utf-8", newline="") as file:
            tables.append(
                [{key: cell for key, cell in row.items() if key != "seconds"} for row in csv.DictReader(file)]
            )
    assert tables[0] == tables[1]
    assert len(tables[0]) == 3
