"""The part of a gap that missing modalities explain: all of it for a model that needs what one side lacks."""

import csv
import types

import numpy as np
import polars as pl
import pytest

from remind_jax.analysis import attribute_gaps as analysis
from remind_jax.data.schema import Attribute
from remind_jax.errors import UserError
from remind_jax.evaluation import differences
from remind_jax.tasks.classes import Classes
from tests import tiny_runs

N = 1_200


SEX = (Attribute("sex", "sex"),)


def run_of(lacking: bool, attributes=SEX):
    """A run whose model knows the class where there are labs, and nothing else; women have them in 90 %, men in 30 %.

    Where `lacking` is False all have them, and the model is right on women and guesses on men.
    """
    rng = np.random.default_rng(0)
    woman, labels = rng.random(N) < 0.6, rng.integers(0, 2, N)
    labs = rng.random(N) < np.where(woman, 0.9, 0.3) if lacking else np.ones(N, bool)
    presence = np.stack([np.ones(N, bool), labs], axis=1)
    guess = rng.random(N)

    def predict_parts(store, at, masks):
        knows = masks[:, 1] & (lacking | woman[at])
        p1 = np.where(knows, 0.1 + 0.8 * labels[at], guess[at])
        return np.stack([1 - p1, p1], axis=1)

    schema = types.SimpleNamespace(attributes=attributes, patient_id="patient")
    table = pl.DataFrame({"patient": [f"p{i}" for i in range(N)], "sex": np.where(woman, "f", "m")})
    manifest = types.SimpleNamespace(schema=schema, table=table, presence=presence, labels=labels, title="ward")
    data = types.SimpleNamespace(manifest=manifest, stores={"held_out": None}, rows=lambda split: slice(None))
    config = types.SimpleNamespace(eval=types.SimpleNamespace(bootstrap=200), method="remind", seed=0)
    model = types.SimpleNamespace(predict_parts=predict_parts)
    task = Classes((0.5, 0.5), ("no", "yes"))
    return types.SimpleNamespace(data=data, model=model, task=task, config=config, path="run")


def accuracy_row(lacking):
    run = run_of(lacking)
    (sides,) = analysis.sides_of(run)
    rows = differences.corrected(analysis.gaps(run, sides, draws=5, seed=0))
    assert {row["figure"] for row in rows} == set(run.task.compared)
    return next(row for row in rows if row["figure"] == "accuracy")


def test_a_gap_that_comes_of_missing_labs_is_explained_by_them() -> None:
    row = accuracy_row(lacking=True)
    assert (row["attribute"], row["value"], row["against"]) == ("sex", "m", "f")
    assert row["gap"] == pytest.approx(-0.3, abs=0.05)  # labs in 30 and 90 %, else every second one is right
    assert row["left_low"] < 0 < row["left_high"]
    assert row["explained_high"] < -0.2
    assert row["explained"] == pytest.approx(row["gap"] - row["left"])
    assert row["p_holm"] == row["p"] < 1e-4


def test_a_gap_between_people_who_lack_nothing_stays() -> None:
    row = accuracy_row(lacking=False)
    assert row["gap"] < -0.4
    assert row["explained"] == 0.0
    assert row["left"] == row["gap"]


def test_both_sides_keep_the_same_combinations_after_a_swap() -> None:
    run = run_of(lacking=True)
    (sides,) = analysis.sides_of(run)
    kept = analysis.swapped(run.data.manifest.presence, sides, np.random.default_rng(0))
    here, there = kept[: len(sides.here)], kept[len(sides.here) :]
    assert here[:, 1].mean() == pytest.approx(0.27, abs=0.04)
    assert there[:, 1].mean() == pytest.approx(0.27, abs=0.04)
    before = run.data.manifest.presence[np.concatenate([sides.here, sides.there])]
    assert not (kept & ~before).any()


def test_data_without_attributes_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"name no attributes: see attributes in docs/own_data\.md"):
        analysis.sides_of(run_of(lacking=True, attributes=()))


@pytest.mark.slow
@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.usefixtures("quick_compilation")
def test_the_command_writes_a_row_for_each_figure_of_each_gap(tmp_path, capsys) -> None:
    from remind_jax import main
    from tests.data.target_files import folder_of

    data = folder_of(tmp_path, "ordinal")
    schema = (data / "schema.yaml").read_text()
    (data / "schema.yaml").write_text(schema + "\nattributes: {site: site}\n")
    table = pl.read_csv(data / "manifest.csv", infer_schema=False)
    table.with_columns(site=pl.Series(["a", "a", "b"] * table.height)[: table.height]).write_csv(data / "manifest.csv")
    main.main([*tiny_runs.own_arguments(data, tmp_path / "cache"), f"--workdir={tmp_path / 'run'}"])
    analysis.main([f"--workdir={tmp_path / 'run'}", "--draws=2"])
    rows = list(csv.DictReader((tmp_path / "run/analysis/attribute_gaps.csv").read_text().splitlines()))
    assert {(row["attribute"], row["value"], row["against"]) for row in rows} == {("site", "b", "a")}
    assert len({row["figure"] for row in rows}) == len(rows) > 2
    assert (tmp_path / "run" / "analysis" / "attribute_gaps.png").stat().st_size > 5_000
    assert "site: b less a" in capsys.readouterr().out
