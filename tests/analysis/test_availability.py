"""Combinations, accuracy over frequency and the audit of missingness."""

import csv
import json
import pathlib
import shutil
import types

import numpy as np
import polars as pl
import pytest
from scipy.stats import beta

from remind_jax import main as train_main
from remind_jax.analysis import availability, command, what_if
from remind_jax.errors import UserError
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)


@pytest.fixture(scope="module")
def folder(_quick_compilation, tmp_path_factory) -> pathlib.Path:
    """A Soft MoE run, twice."""
    path = tmp_path_factory.mktemp("runs")
    arguments = tiny_runs.arguments(path / "cache", "soft_moe", eval__bootstrap=20, train__epochs=0.5)
    train_main.main([*arguments, f"--workdir={path / 'first'}"])
    shutil.copytree(path / "first", path / "second")
    return path


def _table(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _group(name: str, n_train: int, n: int, accuracy: float | None) -> dict:
    return {
        "group": name,
        "modalities": name.split("+"),
        "tail": n_train < 10,
        "n_train": n_train,
        "train_fraction": n_train / 100,
        "n": n,
        "accuracy": accuracy,
    }


def test_rows_are_ranked_and_have_exact_intervals() -> None:
    report = {"groups": [_group("a", 5, 3, 2 / 3), _group("a+b", 90, 40, 0.75), _group("b", 5, 0, None)], "classes": []}
    rows = availability.accuracy_rows(report)
    assert [(row["rank"], row["group"], row["modalities"]) for row in rows] == [(1, "a+b", 2), (2, "a", 1), (3, "b", 1)]
    # Clopper and Pearson: quantiles of beta distributions.
    for row, k in ((rows[0], 30), (rows[1], 2)):
        assert row["accuracy_low"] == pytest.approx(beta.ppf(0.025, k, row["n"] - k + 1), rel=1e-6)
        assert row["accuracy_high"] == pytest.approx(beta.ppf(0.975, k + 1, row["n"] - k), rel=1e-6)
    assert (rows[2]["accuracy_low"], rows[2]["accuracy_high"]) == (None, None)


def test_figures_name_modalities_by_their_titles() -> None:
    card = {"titles": {"modalities": {"labs": "Laboratory"}}}
    report = {"groups": [_group("text+labs", 10, 4, 0.5)], "classes": [], "card": card}
    (row,) = availability.accuracy_rows(report)
    assert row["present"] == ["text", "Laboratory"]
    assert row["group"] == "text+labs"
    samples = [{"shapley_labs": 0.25, "shapley_text": 0.5, "group": "text+labs", "tail": False}]
    axis = what_if.draw(samples, {"text": "text", "labs": "Laboratory"}, "remind on ward").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["text", "Laboratory"]
    run, rows = types.SimpleNamespace(titles={"labs": "Laboratory"}), [{"hidden": "labs"}, {"hidden": "all together"}]
    assert [row["hidden"] for row in command.titled(run, rows, "hidden")] == ["Laboratory", "all together"]
    assert rows[0]["hidden"] == "labs"


def test_rank_correlation_leaves_out_what_has_no_figure() -> None:
    known = [_group("a", 50, 9, 0.9), _group("b", 40, 9, 0.8), _group("c", 10, 9, 0.3)]
    assert availability.rank_correlation(known) == pytest.approx(1.0)
    others = [_group("d", 0, 9, 1.0), _group("e", 5, 0, None)]  # unseen in training, without held-out samples
    assert availability.rank_correlation(known + others) == pytest.approx(1.0)
    assert availability.rank_correlation([known[0], known[2], _group("f", 20, 9, 0.1)]) == pytest.approx(0.5)
    assert np.isnan(availability.rank_correlation(known[:2]))


def _run(presence: np.ndarray, labels: np.ndarray, split: np.ndarray) -> types.SimpleNamespace:
    """As much of a run as the audit reads."""
    patients = [f"p{i}" for i in range(len(labels))]
    schema = types.SimpleNamespace(patient_id="patient")
    table = pl.DataFrame({"patient": patients})
    manifest = types.SimpleNamespace(presence=presence, strata=labels, schema=schema, table=table)
    groups = types.SimpleNamespace(modalities=("a", "b", "c"))
    data = types.SimpleNamespace(manifest=manifest, split=split, groups=groups)
    return types.SimpleNamespace(path=pathlib.Path("run"), config=types.SimpleNamespace(seed=0), data=data)


def test_the_audit_finds_the_modality_that_tells_the_label() -> None:
    rng = np.random.default_rng(0)
    labels, split = rng.integers(0, 2, 600), np.repeat([0, 1, 2], [400, 100, 100])
    presence = np.ones((600, 3), bool)
    presence[:, 1] = labels == 1
    presence[:, 2] = rng.random(600) < 0.5
    presence[500:, 1] = labels[500:] == 0  # the other way round in rows that nobody looks at
    found = availability.audit(_run(presence, labels, split))
    assert [row["presence_of"] for row in found] == ["all", "a", "b", "c"]
    assert {row["n"] for row in found} == {500}
    assert found[0]["auroc"] == pytest.approx(1.0)
    assert (found[1]["auroc"], found[1]["note"]) == (None, "the same in all rows")
    assert found[2]["auroc"] == pytest.approx(1.0)
    assert 0.4 < found[3]["auroc"] < 0.6
    assert found[1]["present_fraction"] == 1.0


def test_tables_and_pictures_of_two_runs(folder: pathlib.Path, capsys) -> None:
    run = folder / "first"
    availability.main([f"--workdir={run}", f"--also={folder / 'second'}"])
    rows = _table(run / "analysis" / "availability.csv")
    assert tuple(rows[0]) == (*availability.COLUMNS, "accuracy", "accuracy_low", "accuracy_high")
    report = {row["group"]: row for row in json.loads((run / "report.json").read_text())["groups"]}
    mine = [row for row in rows if row["run"] == str(run)]
    assert {row["group"] for row in mine} == set(report)
    assert len(rows) == 2 * len(mine)
    for row in mine:
        assert int(row["n_train"]) == report[row["group"]]["n_train"]
        if row["accuracy"]:
            low, high = float(row["accuracy_low"]), float(row["accuracy_high"])
            assert low <= float(row["accuracy"]) <= high
            assert high - low > 0.1  # a dozen samples say little
    assert [int(row["rank"]) for row in mine] == list(range(1, len(mine) + 1))
    audit = _table(run / "analysis" / "availability_audit.csv")
    assert tuple(audit[0]) == availability.AUDIT_COLUMNS
    assert audit[0]["presence_of"] == "all"
    assert (run / "analysis" / "availability.png").read_bytes().startswith(b"\x89PNG")
    svg = (run / "analysis" / "availability.svg").read_text(encoding="utf-8")
    for word in ("soft_moe (first)", "soft_moe (second)", "head", "tail", "training samples (log scale)", "W104"):
        assert word in svg
    assert "rank correlation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no run"), (["--workdir=missing"], "config.json is missing"), (["--workdir=x", "--top=3"], "top")],
)
def test_mistakes_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        availability.main(arguments)
