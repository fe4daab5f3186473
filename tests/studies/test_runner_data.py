"""No table of a sweep mixes rows of two data sets: not after the data have changed, and not while they do."""

import contextlib
import csv
import io
import pathlib

import numpy as np
import pytest

from remind_jax import sweep
from remind_jax.errors import UserError
from remind_jax.studies import runner
from remind_jax.training.run_folder import remembered
from tests import tiny_runs
from tests.data.changes import change_a_label
from tests.data.manifest_files import write_manifest

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
RNG = np.random.default_rng(0)
WAYS = ["--jobs=1", "--share", pytest.param("--jobs=2", marks=pytest.mark.slow)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tiny_runs.ROOT))
    write_manifest(tmp_path / "data")
    return tmp_path


def _run(folder: pathlib.Path, *more: str) -> str:
    """What a sweep of a plain model prints."""
    made = tiny_runs.own_arguments(
        folder / "data", folder / "cache", eval__bootstrap=20, data__max_tokens=8, data__vocabulary=64
    )
    given = ["--methods=logistic_regression", f"--workdir={folder / 'out'}", "--resamples=20", *more]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        sweep.main([*made, *given])
    return printed.getvalue()


def _rows(folder: pathlib.Path) -> list[str]:
    with open(folder / "out" / "runs.csv", encoding="utf-8", newline="") as file:
        return [row["seed"] for row in csv.DictReader(file)]


def _data(folder: pathlib.Path) -> set[str]:
    runs = [folder / "out" / f"logistic_regression-seed{seed}" for seed in _rows(folder)]
    return {remembered(run)["manifest"] for run in runs}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_runs_on_other_data_are_refused_and_not_in_the_table(folder, way):
    _run(folder, "--seeds=0,1", way)
    before = _data(folder)
    change_a_label(folder / "data", RNG)
    with pytest.raises(UserError, match=r"2 of 3 runs failed: .*seed 0: the data have changed .* labels changed 1"):
        _run(folder, "--seeds=0,1,2", way)
    assert _rows(folder) == ["2"]
    assert not before & _data(folder)
    printed = _run(folder, "--seeds=0,1,2", way, "--on-changed-data=restart")
    assert _rows(folder) == ["0", "1", "2"]
    assert len(_data(folder)) == len(before) == 1
    assert "failed" not in printed
    assert printed.count("(finished before)") == (0 if way == "--share" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_files_that_were_only_touched_change_nothing(folder, way):
    _run(folder, "--seeds=0,1", way)
    (folder / "data" / "schema.yaml").touch()
    printed = _run(folder, "--seeds=0,1", way)
    assert _rows(folder) == ["0", "1"]
    assert printed.count("(finished before)") == 2 or way != "--jobs=1"


@pytest.mark.parametrize("way", ["--jobs=1", "--share"])
def test_data_that_change_while_a_sweep_runs_are_told(folder, way, monkeypatch):
    run_config = runner.run_config

    def run(config, *rest):
        run_config(config, *rest)
        if config.seed == 0:
            change_a_label(folder / "data", RNG)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_config", run)
        with pytest.raises(UserError, match=r"1 of 2 runs failed: .*seed 0: its data have changed while the sweep ran"):
            _run(folder, "--seeds=0,1", way)
    assert _rows(folder) == ["1"]
