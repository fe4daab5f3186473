"""The programs that a run compiles, by name: what a first answer costs before anything is trained."""

import collections
import pathlib

import jax
import pytest

from remind_jax.runtime import devices
from remind_jax.training.run import train_and_evaluate
from tests import programs, tiny_runs

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)]
SHORT = {"train__epochs": 0.5, "train__joint_epochs": 0.25, "eval__bootstrap": 20}


def _counted(folder: pathlib.Path, **changes) -> collections.Counter:
    jax.clear_caches()
    with programs.compiled() as names:
        train_and_evaluate(tiny_runs.config(folder / "cache", **SHORT | changes), folder / "run", verbose=False)
    return collections.Counter(names)


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_of_two_stages_compiles_one_step_and_one_evaluation(tmp_path) -> None:
    """Both stages have the same programs, and initial weights, moments and averages need none but constants."""
    found = _counted(tmp_path)
    assert found["jit(train_step)"] == 1
    assert found["jit(forward)"] == 1
    others = {name: n for name, n in found.items() if name not in ("jit(train_step)", "jit(forward)")}
    assert sum(others.values()) <= 25, others
    assert not {"jit(init)", "jit(others)", "jit(_normal)", "jit(_truncated_normal)"} & found.keys()


def test_a_second_run_with_another_seed_takes_its_programs_from_the_users_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(devices, "WORTH_KEEPING", 0.0)  # whatever the machine takes to compile
    config = {"train__epochs": 0.2, "train__joint_epochs": 0.1, "eval__bootstrap": 20}
    kept, before = tmp_path / "home" / ".cache" / "remind_jax" / "programs", jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    with jax.numpy_dtype_promotion("standard"):
        for name, changes in (("off", {"compilation_cache": "off"}), ("first", {}), ("second", {"seed": 1})):
            jax.clear_caches()
            settings = tiny_runs.config(tmp_path / "cache", **config | {"compilation_cache": ""} | changes)
            train_and_evaluate(settings, tmp_path / name, verbose=False)
            if name == "off":
                assert not kept.exists()
    jax.config.update("jax_compilation_cache_dir", before)
    assert kept.stat().st_mode & 0o777 == 0o700
    # The folder's entries are named by what they hold. Seed 1 has another number of combinations.
    for program in ("train_step", "forward"):
        files = [file.name for file in kept.rglob(f"*{program}*") if "atime" not in file.name]
        assert len(files) == 1, files
