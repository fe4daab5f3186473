"""The study of extreme missingness: what it runs, what it tabulates, and one modality of it on a tiny network."""

import csv
import json

import numpy as np
import polars as pl
import pytest

from remind_jax.analysis import extreme_missingness as extreme
from remind_jax.analysis.sweeps import cell
from remind_jax.errors import UserError
from remind_jax.studies.comparison import Outcome
from remind_jax.studies.tables import CLASSES
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)

QUICK = {
    "train__epochs": 1.0,
    "train__joint_epochs": 0.5,
    "eval__bootstrap": 20,
    "data__train": 160,
    "data__tuning": 60,
}
MODALITIES = ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo")


def _arguments(tmp_path, *more: str) -> list[str]:
    own = ("--methods=soft_moe,remind", "--seeds=0", "--resamples=20", f"--workdir={tmp_path / 'study'}")
    return [*tiny_runs.arguments(tmp_path / "cache", "remind", **QUICK), *own, *more]


def test_every_modality_is_hidden_in_turn(tmp_path):
    removal = extreme.parse(_arguments(tmp_path, "--rate=0.7"))
    assert sorted(removal.modalities) == sorted(MODALITIES)
    assert extreme.parse(_arguments(tmp_path, "--modalities=ffdm_mlo,cview_cc")).modalities == ("ffdm_mlo", "cview_cc")
    for modality in removal.modalities:
        for entry in removal.sweeps.plan(modality, removal.changes(modality)):
            data = entry.config.data
            assert (data.complete_only, data.hide, data.hide_rate) == (True, modality, 0.7)
            assert entry.folder == tmp_path / "study" / modality / f"{entry.method}-seed0"
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--modalities=ffdm_c"], "did you mean 'ffdm_cc'"),
        (["--rate=1"], "--rate"),
        (["--rate=x"], "rate"),
        (["--config.data.hide=ffdm_cc"], "set by this study"),
        (["--methods=remnd"], "did you mean 'remind'"),
        (["--config.optim.lrr=1"], "lrr"),
        (["--workdir="], "no workdir"),
    ],
)
def test_mistakes_are_named_before_anything_is_run(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        extreme.main(_arguments(tmp_path, *more))
    assert not (tmp_path / "study").exists()


@pytest.mark.slow
def test_a_tiny_study(tmp_path, capsys):
    arguments = _arguments(tmp_path, "--modalities=ffdm_cc", "--rate=0.75")
    extreme.main(arguments)
    study = tmp_path / "study"
    with open(study / "extreme_missingness.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*extreme.COLUMNS, "accuracy", "macro_f1", "auroc", "macro_f1_tuned")
    assert [(row["method"], row["samples"]) for row in rows] == [
        (method, samples) for method in ("soft_moe", "remind") for samples in extreme.SAMPLES
    ]
    assert [int(row["n"]) for row in rows[:3]] == [12, 3, 9]
    report = json.loads((study / "ffdm_cc" / "remind-seed0" / "report.json").read_text())
    assert report["data"].endswith("samples with all modalities, ffdm_cc taken from 75 %")
    without = "+".join(m for m in report["modalities"] if m != "ffdm_cc")
    train = {row["group"]: row["n_train"] for row in report["groups"]}
    assert set(train) == {"+".join(report["modalities"]), without}
    assert train[without] == round(0.75 * sum(train.values()))
    assert float(rows[3]["accuracy"]) == pytest.approx(report["overall"]["accuracy"])
    by_group = {row["group"]: row for row in report["groups"]}
    assert float(rows[5]["accuracy"]) == pytest.approx(by_group[without]["accuracy"])
    text = (study / "extreme_missingness.md").read_text(encoding="utf-8")
    assert "remind, absent" in text
    svg = (study / "extreme_missingness.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("soft_moe", "remind", "available", "absent", "ffdm_cc"))
    before = (study / "ffdm_cc" / "remind-seed0" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    extreme.main(arguments)  # goes on, which here is nothing
    assert "finished before" in capsys.readouterr().out
    assert (study / "ffdm_cc" / "remind-seed0" / "metrics.jsonl").stat().st_mtime_ns == before


def test_figures_of_a_run_by_hand():
    table = pl.DataFrame(
        {
            "label": [0, 1, 1, 0],
            "group": ["a+b", "a+b", "b", "b"],
            "p_0": [0.9, 0.6, 0.2, 0.3],
            "p_1": [0.1, 0.4, 0.8, 0.7],
        }
    )
    rows = extreme.figures_of(Outcome("m", 3, {"classes": ["no", "yes"]}, table), "a")
    assert [(row["samples"], row["n"], row["accuracy"]) for row in rows] == [
        ("overall", 4, 0.5), ("available", 2, 0.5), ("absent", 2, 0.5),
    ]  # fmt: skip
    assert [row["auroc"] for row in rows] == [0.75, 1.0, 1.0]


def _row(method, seed, value, samples="overall"):
    return {"modality": "a", "method": method, "seed": seed, "samples": samples, "n": 5} | dict.fromkeys(
        CLASSES.compared, value
    )


def test_table_has_means_and_paired_gains():
    rows = [_row("remind", s, v) for s, v in ((0, 0.7), (1, 0.9), (2, 0.1))]
    rows += [_row("soft_moe", s, v) for s, v in ((0, 0.6), (1, 0.7))]
    assert cell(rows, "auroc", modality="a", method="soft_moe", samples="overall").mean == pytest.approx(65.0)
    assert cell(rows, "auroc", modality="a", method="soft_moe", samples="absent") is None
    assert extreme.gain(rows, "a", "remind", "soft_moe", "overall", "accuracy") == pytest.approx(15.0)  # of seeds 0, 1
    text = extreme.markdown(rows, 0.8, "made")
    assert "(+15.0)" in text
    assert "mean difference to soft_moe" in text
    assert np.isclose(extreme.place(0, 1, 2) - extreme.place(1, 1, 2), 0.6)
