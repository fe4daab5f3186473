"""The study of unseen combinations: which it leaves out, what it runs and tabulates, and a tiny one from end to end."""

import csv
import dataclasses
import json

import polars as pl
import pytest

from remind_jax.analysis import unseen_combinations as unseen
from remind_jax.analysis.sweeps import cell
from remind_jax.data import dataset
from remind_jax.data.groups import group_name
from remind_jax.errors import UserError
from remind_jax.studies.comparison import Outcome
from remind_jax.studies.tables import CLASSES
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)

QUICK = {
    "train__epochs": 1.0,
    "train__joint_epochs": 0.0,
    "eval__bootstrap": 20,
    "data__train": 300,
    "data__tuning": 60,
}


def _arguments(tmp_path, *more: str) -> list[str]:
    own = ("--methods=remind", "--seeds=0", "--resamples=20", "--steps=2", f"--workdir={tmp_path / 'study'}")
    return [*tiny_runs.arguments(tmp_path / "cache", "remind", **QUICK), *own, *more]


# ---- What is left out and run ---------------------------------------------------------------------------------------


def test_the_most_frequent_tail_combinations_are_left_out(tmp_path):
    """Every combination has 12 held-out rows, fewer than 30: equally few, so that frequency decides."""
    taking = unseen.parse(_arguments(tmp_path, "--tail=2"))
    assert taking.leave_out == ("ffdm_cc", "ffdm_mlo")
    taking = unseen.parse(_arguments(tmp_path, "--leave_out=ffdm_mlo+ffdm_cc, ffdm_cc"))
    assert taking.leave_out == ("ffdm_mlo+ffdm_cc", "ffdm_cc")
    for part, expected in (("with", ()), ("without", taking.leave_out)):
        (entry,) = taking.plan(part)
        assert entry.config.data.leave_out == expected
        assert entry.folder == tmp_path / "study" / part / "remind-seed0"
    assert not (tmp_path / "study").exists()


def test_enough_held_out_rows_go_before_frequency(tmp_path, monkeypatch):
    config = unseen.parse(_arguments(tmp_path)).plan("with")[0].config
    fitted = dataset.fit(config)
    table = fitted.manifest.table
    # All but 4 held-out rows of the most frequent tail combination go, all but 2 of the next one.
    names = [group_name(mask, fitted.groups.modalities) for mask in fitted.manifest.presence]
    seen, keep = {"ffdm_cc": 4, "ffdm_mlo": 2}, []
    for name, part in zip(names, table["split"].to_list(), strict=True):
        here = part == "held_out" and name in seen
        keep.append(not here or seen[name] > 0)
        if here:
            seen[name] -= 1
    manifest = dataclasses.replace(fitted.manifest, table=table.filter(pl.Series(keep)))
    kept = fitted.whole_split[pl.Series(keep).to_numpy()]
    fewer = dataclasses.replace(fitted, manifest=manifest, whole_split=kept)
    monkeypatch.setattr(dataset, "fit", lambda config: fewer)
    monkeypatch.setattr(unseen, "LEAST_HELD_OUT", 5)
    rest = [fitted.groups.names[g] for g in fitted.groups.tail.nonzero()[0]]
    enough = [name for name in rest if name not in seen]
    assert rest[:2] == ["ffdm_cc", "ffdm_mlo"]
    assert unseen.choose(config, 99) == (*enough, "ffdm_cc", "ffdm_mlo")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--leave_out=ffdm_c"], "did you mean 'ffdm_cc'"),
        (["--leave_out=cview_cc"], "no row has the combination 'cview_cc'"),
        (["--tail=0"], "tail"),
        (["--config.data.leave_out=ffdm_cc"], "set by this study"),
        (["--methods=remind_plus"], "ensemble"),
        (["--methods=remind,logistic_regression"], "no network"),
        (["--methods=remnd"], "did you mean 'remind'"),
        (["--workdir="], "no workdir"),
        (["--config.fusion.router_rank=2"], "no router to train"),
    ],
)
def test_mistakes_are_named_before_anything_is_run(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        unseen.main(_arguments(tmp_path, *more))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_tiny_study(tmp_path, capsys, monkeypatch):
    few = {key: title for key, title in unseen.STRATEGIES.items() if title in ("nothing", "head + router")}
    monkeypatch.setattr(unseen, "STRATEGIES", few)
    arguments = _arguments(tmp_path, "--leave_out=ffdm_cc")
    unseen.main(arguments)
    study = tmp_path / "study"
    with open(study / "unseen_combinations.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*unseen.COLUMNS, "accuracy", "macro_f1", "auroc", "macro_f1_tuned")
    assert [(row["unfrozen"], row["samples"], row["n"]) for row in rows] == [
        (unfrozen, samples, n)
        for unfrozen in ("nothing", "head,router", unseen.WITH)
        for samples, n in (("left out", "12"), ("kept", "60"))
    ]
    before = json.loads((study / "without" / "remind-seed0" / "report.json").read_text())
    zero_shot = next(row for row in before["groups"] if row["group"] == "ffdm_cc")
    assert zero_shot["unseen"]
    assert float(rows[0]["accuracy"]) == pytest.approx(zero_shot["accuracy"])
    # One group: a router of width 8 for 2 experts and a vector of 8; a head of 8 for 2 classes.
    assert [row["trained_parameters"] for row in rows[:4]] == ["0", "0", *2 * [str(8 * 2 + 8 + 8 * 2 + 2)]]
    saw = json.loads((study / "with" / "remind-seed0" / "report.json").read_text())
    assert float(rows[4]["accuracy"]) == pytest.approx(
        next(row for row in saw["groups"] if row["group"] == "ffdm_cc")["accuracy"]
    )
    assert "trained with them" in (study / "unseen_combinations.md").read_text(encoding="utf-8")
    svg = (study / "unseen_combinations.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("remind", "head + router", "left out", "kept", "ffdm_cc"))
    report = study / "without" / "remind-seed0" / "adapted" / "head+router" / "report.json"
    written = report.stat().st_mtime_ns
    capsys.readouterr()
    unseen.main(arguments)  # goes on, which here is nothing
    assert "finished before" in capsys.readouterr().out
    assert report.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="made with --steps=2"):
        unseen.main([*arguments, "--steps=3"])


# ---- Tables ---------------------------------------------------------------------------------------------------------


def test_figures_of_a_run_by_hand():
    table = pl.DataFrame(
        {
            "label": [0, 1, 1, 0],
            "group": ["a+b", "a+b", "b", "b"],
            "p_0": [0.9, 0.6, 0.2, 0.3],
            "p_1": [0.1, 0.4, 0.8, 0.7],
        }
    )

    def run_of(some):
        return Outcome("m", 3, {"classes": ["no", "yes"]}, some)

    rows = unseen.figures_of(run_of(table), {frozenset("ba")})
    assert [(row["samples"], row["n"], row["accuracy"]) for row in rows] == [("left out", 2, 0.5), ("kept", 2, 0.5)]
    rows = unseen.figures_of(run_of(table[1:]), {frozenset("ba")})
    assert [(row["n"], row["accuracy"]) for row in rows] == [(1, 0.0), (2, 0.5)]


def test_table_has_means_over_seeds_and_sizes():
    def row(seed, value, samples="left out", unfrozen="head"):
        same = {"method": "remind", "seed": seed, "unfrozen": unfrozen, "trained_parameters": 1_234, "chosen_step": 3}
        return same | {"samples": samples, "n": 5} | dict.fromkeys(CLASSES.compared, value)

    rows = [row(0, 0.6), row(1, 0.8), row(0, 0.5, "kept"), row(0, 0.9, unfrozen=unseen.WITH)]
    assert cell(rows, "auroc", method="remind", unfrozen="head", samples="left out").mean == pytest.approx(70.0)
    assert cell(rows, "auroc", method="remind", unfrozen="router", samples="left out") is None
    text = unseen.markdown(rows, ("a",), "made")
    assert "| head | 1,234 | 70.0 ± 14.1 | 50.0 |" in text
    assert "| trained with them | 1,234 | 90.0 | - |" in text
    assert "| router |  | - | - |" in text
