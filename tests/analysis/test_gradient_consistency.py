"""The analysis command on tiny runs: its table, its pictures, its curves and its errors."""

import csv
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from remind_jax import cli
from remind_jax import main as train_main
from remind_jax.analysis import command, opening
from remind_jax.analysis import gradient_consistency as gc
from remind_jax.errors import UserError
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
FEW = ["--n=6", "--n_whole=16", "--draws=2"]


@pytest.fixture(scope="module")
def folder(_quick_compilation, tmp_path_factory) -> pathlib.Path:
    """A folder with a REMIND run in two stages that kept its checkpoints, and a Soft MoE run that kept the last."""
    path = tmp_path_factory.mktemp("runs")
    for method, keep in (("remind", 0), ("soft_moe", 1)):
        arguments = tiny_runs.arguments(path / "cache", method, train__keep=keep, eval__bootstrap=20)
        train_main.main([*arguments, f"--workdir={path / method}"])
    return path


def _table(run: pathlib.Path) -> list[dict[str, str]]:
    with open(run / "analysis" / "gradient_consistency.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_table_and_pictures_of_two_runs(folder, capsys):
    remind, soft_moe = folder / "remind", folder / "soft_moe"
    gc.main([f"--workdir={remind}", f"--also={soft_moe}", *FEW])
    rows = _table(remind)
    assert tuple(rows[0]) == gc.COLUMNS
    wanted = {"step", "group", "tail", "n", "n_train", "gc", "abs_gc", "cos_mean_gradient", "lambda1", "lambda2"}
    assert wanted | {"trace", "settings"} <= set(gc.COLUMNS)
    steps = {name: sorted({int(r["step"]) for r in rows if r["method"] == name}) for name in ("remind", "soft_moe")}
    kept = sorted(int(path.name) for path in (remind / "checkpoints").iterdir() if path.name.isdigit())
    assert steps["remind"] == [0, *kept]
    assert len(steps["soft_moe"]) == 2
    assert {r["stage"] for r in rows if r["method"] == "remind"} == {"joint", "specialize"}
    groups = json.loads((remind / "report.json").read_text())["groups"]
    trained = {row["group"]: row for row in groups if row["n_train"] > 0}
    assert {r["group"] for r in rows} == set(trained)
    for row in rows:
        assert int(row["n_train"]) == trained[row["group"]]["n_train"]
        assert row["tail"] == str(trained[row["group"]]["tail"]).lower()
        assert int(row["n"]) == min(6, int(row["n_train"]))
        assert float(row["abs_gc"]) == pytest.approx(abs(float(row["gc"])), abs=1e-6)
        assert abs(float(row["cos_mean_gradient"])) <= 1.0
        assert float(row["trace"]) * 1.001 >= float(row["lambda1"]) >= float(row["lambda2"]) * 0.999
        gate = "gated" if row["method"] == "remind" else "never"
        assert f"gate={gate}" in row["settings"]
        assert "output=margin whole=natural:16 split=train params=^block_ method=exact" in row["settings"]
    assert len(rows) == (len(kept) + 1 + 2) * len(trained) * 2
    png = (remind / "analysis" / "gradient_consistency.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    svg = (remind / "analysis" / "gradient_consistency.svg").read_text(encoding="utf-8")
    for text in ("remind", "soft_moe", "head (", "tail (", "stage 2", "training step"):
        assert text in svg
    out = capsys.readouterr().out
    assert "train.keep=0" in out
    assert "cos_mean_gradient" in out


@pytest.mark.slow
def test_other_choices(folder):
    run = folder / "soft_moe"
    gc.main([f"--workdir={run}", *FEW, "--output=loss", "--score=signed", "--whole=balanced", "--method=lanczos"])
    rows = _table(run)
    assert "output=loss whole=balanced:6" in rows[0]["settings"]
    assert "method=lanczos" in rows[0]["settings"]
    assert all(float(row["trace"]) * 1.001 >= float(row["lambda1"]) > 0 for row in rows)
    assert "(signed)" in (run / "analysis" / "gradient_consistency.svg").read_text(encoding="utf-8")


def test_initial_and_kept_weights_are_those_of_the_run(folder):
    run = opening.open_run(folder / "remind")
    weights = dict(run.trajectory())
    first = run.model.network.init(run.config.seed)
    for path, value in first.items():
        np.testing.assert_allclose(weights[0][path], value, rtol=1e-6, atol=1e-7)
    last = max(weights)
    assert any(np.any(weights[last][path] != weights[0][path]) for path in first)
    # Group routers stay as they are in the joint stage, encoders in the second one, up to averaging.
    joint = run.stages[0].stop
    routers = [path for path in first if path.endswith("/group_router")]
    assert routers
    for path in routers:
        np.testing.assert_array_equal(weights[joint][path], weights[0][path])
        assert np.any(weights[last][path] != weights[0][path])


def _rows(run: str, values: dict[int, float], *, tail: bool, group: str = "a", draw: int = 0) -> list[gc.Row]:
    return [
        {"run": run, "draw": draw, "step": step, "group": group, "tail": tail, "abs_gc": value}
        for step, value in values.items()
    ]


def test_curve_averages_groups_then_replicates():
    rows = _rows("r", {0: 0.2, 5: 0.4}, tail=True) + _rows("r", {0: 0.6, 5: 0.8}, tail=True, group="b")
    rows += _rows("s", {0: 0.0, 5: 0.2, 9: 1.0}, tail=True)
    found = gc.curve(rows, "abs_gc")
    np.testing.assert_array_equal(found.steps, [0, 5])  # step 9 is in one run only
    np.testing.assert_allclose(found.mean, [0.2, 0.4])  # means of (0.4, 0.0) and of (0.6, 0.2)
    np.testing.assert_allclose(found.sd, [0.8**0.5 * 0.4 / 0.8**0.5 / 2**0.5] * 2)
    assert found.groups == 2
    assert gc.curve([], "abs_gc") is None
    assert gc.finite_mean([1.0, float("nan")]) == 1.0


def test_a_score_that_is_not_there_is_an_empty_cell(tmp_path):
    row = dict.fromkeys(gc.COLUMNS, 0.5) | {"gc": float("nan"), "tail": True}
    command.write_csv(tmp_path / "t.csv", gc.COLUMNS, [row])
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert (read["gc"], read["tail"], read["abs_gc"]) == ("", "true", "0.5")


def test_runs_of_one_method_share_a_column_when_only_the_seed_differs(folder):
    run = opening.open_run(folder / "remind")

    def variant(name, **changes):
        config = run.config.copy_and_resolve_references()
        config.update(changes)
        return opening.Run(folder / name, dataclasses.replace(run.model, config=config), run.data, run.stages)

    assert command.panel_titles([run, variant("again", seed=7)]) == ["remind", "remind"]
    assert command.panel_titles([run, variant("wide", sampler="group_balanced")]) == [
        "remind (remind)",
        "remind (wide)",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run"),
        (["--workdir=RUN", "--also=RUN"], "twice"),
        (["--workdir=missing"], "config.json is missing"),
        (["--workdir=RUN", "--output=logits"], "output"),
        (["--workdir=RUN", "--n=1"], "n="),
        (["--workdir=RUN", "--widht=3"], "widht"),
        (["--workdir=RUN", "--params=("], "regular expression"),
        (["--workdir=RUN", "--params=^fusion", *FEW], "block_0"),
        (["--workdir=RUN", "extra"], "unexpected arguments"),
    ],
)
def test_mistakes_are_named(folder, arguments, message):
    with pytest.raises(UserError, match=message):
        gc.main([argument.replace("RUN", str(folder / "remind")) for argument in arguments])


def test_a_mistake_ends_with_code_2_and_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["gradient_consistency", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as error:
        cli.run(gc.main, gc.__doc__)
    captured = capsys.readouterr()
    assert error.value.code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("report.json", None, "not finished"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"seed": 0}', "data.source='' is unknown"),
        ("config.json", '{"sed": 0}', r"unknown config key sed \(did you mean 'seed'"),
        ("checkpoints", None, "no checkpoints"),
    ],
)
def test_broken_folders_are_named(folder, tmp_path, name, content, message):
    run = tmp_path / "run"
    shutil.copytree(folder / "remind", run)
    if name == "checkpoints":
        shutil.rmtree(run / name)
    elif content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        dict(opening.open_run(run).trajectory())


@pytest.mark.parametrize(
    ("key", "value", "message"), [("train", 80, "rows removed 16"), ("token_width", 8, "cells changed in cview_cc")]
)
def test_data_that_changed_since_training_are_refused(folder, tmp_path, key, value, message):
    run = tmp_path / "run"
    shutil.copytree(folder / "remind", run)
    facts = json.loads((run / "model" / "model.json").read_text())
    facts["config"]["data"][key] = value
    (run / "model" / "model.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=message):
        dict(opening.open_run(run).trajectory())
