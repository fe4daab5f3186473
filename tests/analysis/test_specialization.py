"""Which experts serve which combination: counting by hand, distances with known values, and the command."""

import csv
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax import main as train_main
from remind_jax.analysis import specialization
from remind_jax.errors import UserError
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)


@pytest.fixture(scope="module")
def folder(_quick_compilation, tmp_path_factory) -> pathlib.Path:
    """A REMIND run and a Soft MoE run, and one that says it is of sparse experts."""
    path = tmp_path_factory.mktemp("runs")
    for method in ("remind", "soft_moe"):
        changes = {"fusion__experts": 4, "eval__bootstrap": 20, "train__epochs": 1.0, "train__joint_epochs": 0.5}
        arguments = tiny_runs.arguments(path / "cache", method, **changes)
        train_main.main([*arguments, f"--workdir={path / method}"])
    shutil.copytree(path / "soft_moe", path / "fuse_moe")
    config = json.loads((path / "fuse_moe" / "config.json").read_text())
    config["fusion"]["kind"] = "fuse_moe"
    (path / "fuse_moe" / "config.json").write_text(json.dumps(config))
    return path


def _table(file: pathlib.Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


# ---- Counting -------------------------------------------------------------------------------------------------------


def _slow_usage(logits: np.ndarray, counted: np.ndarray, top: int, count: str) -> np.ndarray:
    """Sample by sample and token by token."""
    usage = np.zeros((len(logits), logits.shape[2]))
    for i, sample in enumerate(logits):
        weights = [np.exp(token) / np.exp(token).sum() for token in sample]
        rows = [w.sum(axis=1) for w, here in zip(weights, counted[i], strict=True) if here]
        rows = rows if count == "token" else [np.mean(rows, axis=0)]
        for row in rows:
            for expert in sorted(range(len(row)), key=lambda e, row=row: -row[e])[:top]:
                usage[i, expert] += 1.0 / len(rows)
    return usage


@pytest.mark.parametrize("count", ["sample", "token"])
@pytest.mark.parametrize("top", [1, 3])
def test_usage_equals_counting_by_hand(top: int, count: str) -> None:
    rng = np.random.default_rng(top)
    logits, counted = 2.0 * rng.normal(size=(6, 4, 5, 2)), rng.random((6, 4)) < 0.6
    counted[:, 0] = True
    found = specialization.sample_usage(jnp.asarray(logits, jnp.float32), jnp.asarray(counted), top, count)
    np.testing.assert_allclose(found, _slow_usage(logits, counted, top, count), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), top, rtol=1e-6)
    everything = specialization.sample_usage(jnp.asarray(logits, jnp.float32), jnp.ones((6, 4), bool), top, count)
    assert np.abs(everything - found).max() > 0.1  # tokens that are left out matter


def test_means_of_groups() -> None:
    usage = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = specialization.group_means(usage, np.array([1, 0, 0]), 2)
    np.testing.assert_allclose(found, [[0.5, 0.5], [1.0, 0.0]])


# ---- The number -----------------------------------------------------------------------------------------------------


def test_distances_with_known_values() -> None:
    assert specialization.mean_distance(np.array([[2.0, 1.0], [4.0, 2.0]])) == pytest.approx(0.0, abs=1e-7)
    assert specialization.mean_distance(np.array([[1.0, 0.0], [0.0, 3.0]])) == pytest.approx(1.0)
    # Of (1, 0) and (1/2, 1/2): H(3/4, 1/4) - 1/2 bits.
    by_hand = (-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5) ** 0.5
    assert specialization.mean_distance(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx(by_hand)
    three = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert specialization.mean_distance(three) == pytest.approx((1.0 + 2 * by_hand) / 3)
    assert np.isnan(specialization.mean_distance(np.ones((1, 3))))


def test_chance_is_what_equal_groups_of_these_sizes_would_give() -> None:
    rng = np.random.default_rng(0)
    index = np.repeat([0, 1, 2, 3], [200, 40, 12, 3])
    alike = np.eye(6)[rng.integers(0, 6, len(index))]
    found = specialization.distinctness(alike, index, least=10, permutations=200)
    assert found["combinations"] == 3
    assert found["samples"] == 252
    assert found["chance"] > 0.1  # twelve samples never look like the whole
    assert found["p"] > 0.05
    assert found["excess"] == pytest.approx(found["distance"] - found["chance"])
    apart = np.eye(6)[index % 6]
    found = specialization.distinctness(apart, index, least=10, permutations=200)
    assert found["distance"] == pytest.approx(1.0)
    assert found["p"] == pytest.approx(1 / 201)
    assert found["chance_high"] < 0.6
    alone = specialization.distinctness(apart, index, least=100, permutations=5)
    assert np.isnan(alone["distance"])
    assert alone["combinations"] == 1


# ---- The command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tables_and_pictures_of_two_runs(folder: pathlib.Path, capsys) -> None:
    remind, soft_moe = folder / "remind", folder / "soft_moe"
    specialization.main([f"--workdir={remind}", f"--also={soft_moe}", "--permutations=20"])
    rows = _table(remind / "analysis" / "specialization.csv")
    assert tuple(rows[0]) == specialization.COLUMNS
    report = {row["group"]: row for row in json.loads((remind / "report.json").read_text())["groups"]}
    here = {name for name, row in report.items() if row["n"]}
    for method in ("remind", "soft_moe"):
        mine = [row for row in rows if row["method"] == method]
        assert {row["group"] for row in mine} == here
        assert len(mine) == 4 * len(here)
        for name in here:
            part = [row for row in mine if row["group"] == name]
            assert sum(float(row["frequency"]) for row in part) == pytest.approx(3.0, rel=1e-5)
            assert {int(row["n"]) for row in part} == {report[name]["n"]}
            assert {row["tail"] for row in part} == {str(report[name]["tail"]).lower()}
    sides = [row["tail"] for row in rows if row["method"] == "remind"]
    assert sides == sorted(sides)  # head first
    summary = _table(remind / "analysis" / "specialization_summary.csv")
    assert [row["method"] for row in summary] == ["remind", "soft_moe"]
    assert float(summary[1]["gate_open_rate"]) == 0.0
    assert "gate=never" in summary[1]["settings"]
    assert (remind / "analysis" / "specialization.png").read_bytes().startswith(b"\x89PNG")
    svg = (remind / "analysis" / "specialization.svg").read_text(encoding="utf-8")
    for word in ("remind", "soft_moe", "head", "tail", "by chance"):
        assert word in svg
    assert "chance" in capsys.readouterr().out


@pytest.mark.slow
def test_other_choices(folder: pathlib.Path) -> None:
    run = folder / "soft_moe"
    options = ["--top=1", "--count=token", "--tokens=observed", "--split=tuning", "--least=100", "--permutations=3"]
    specialization.main([f"--workdir={run}", *options])
    rows = _table(run / "analysis" / "specialization.csv")
    assert "top=1 count=token tokens=observed split=tuning block=0" in rows[0]["settings"]
    assert sum(float(row["frequency"]) for row in rows) == pytest.approx(len({row["group"] for row in rows}), rel=1e-5)
    (summary,) = _table(run / "analysis" / "specialization_summary.csv")
    assert summary["distance"] == ""  # no combination has a hundred samples


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run"),
        (["--workdir=RUN", "--also=RUN"], "twice"),
        (["--workdir=RUN", "--top=0"], "top"),
        (["--workdir=RUN", "--top=4"], "4 experts, all would count"),
        (["--workdir=RUN", "--block=1"], "blocks of .* count from 0 to 0"),
        (["--workdir=RUN", "--count=slot"], "count"),
        (["--workdir=RUN", "extra"], "unexpected arguments"),
        (["--workdir=SPARSE"], "fuse_moe"),
    ],
)
def test_mistakes_are_named(folder: pathlib.Path, arguments: list[str], message: str) -> None:
    names = {"RUN": str(folder / "remind"), "SPARSE": str(folder / "fuse_moe")}
    for short, path in names.items():
        arguments = [argument.replace(short, path) for argument in arguments]
    with pytest.raises(UserError, match=message):
        specialization.main(arguments)
