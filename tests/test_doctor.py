"""`remind doctor`: what it prints, and its exit code."""

import pytest

from remind_jax import doctor
from remind_jax.runtime import health


def test_a_machine_that_can_train(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(health, "packages", lambda: iter(["warning: jax 1 is not supported: pip install jax"]))
    doctor.main([f"--cache={tmp_path}"])  # exit code 0
    out = capsys.readouterr().out
    assert out.endswith("warning: jax 1 is not supported: pip install jax\n")
    assert f"space in {tmp_path}: " in out
    monkeypatch.setattr(health, "packages", lambda: iter([]))
    doctor.main([f"--cache={tmp_path}"])
    assert capsys.readouterr().out.endswith("\nnothing is wrong\n")


def test_what_stops_training_is_an_error_with_its_remedy(monkeypatch, capsys, tmp_path):
    def devices():
        yield "warning: first"
        raise AssertionError

    monkeypatch.setattr(health, "packages", lambda: iter(["error: flax is not installed: pip install flax"]))
    monkeypatch.setattr(health, "devices", devices)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        doctor.main([f"--cache={tmp_path / 'file' / 'cache'}"])
    assert stop.value.code == 2
    packages, first, second, cache = capsys.readouterr().out.splitlines()[-4:]
    assert packages == "error: flax is not installed: pip install flax"
    assert first == "warning: first"
    assert second == "error: AssertionError: look at JAX_PLATFORMS and XLA_FLAGS, or install jax anew"
    assert cache.startswith("error: ")
    assert cache.endswith(": choose a folder by --config.data.cache=DIR")
