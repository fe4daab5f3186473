"""What `doctor` says is wrong, on machines and installations that have it."""

import collections
import importlib.metadata

import jax
import pytest

from remind_jax.runtime import files, health, jobs

NEEDED = ["numpy>=2.0", "nowhere-to-be-found>=1", "jax>=99", 'hypothesis>=1; extra == "test"']


def _packages(monkeypatch, capsys, lines) -> tuple[list[str], str]:
    own = importlib.metadata.requires
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines if name == "remind-jax" else own(name))
    return list(health.packages()), capsys.readouterr().out


def test_packages_that_are_not_there_or_not_supported_are_named(monkeypatch, capsys):
    found, out = _packages(monkeypatch, capsys, NEEDED)
    assert found == [
        "error: nowhere-to-be-found is not installed: pip install 'nowhere-to-be-found>=1'",
        f"warning: jax {importlib.metadata.version('jax')} is not supported: pip install 'jax>=99'",
    ]
    assert out == "extra test: installed\n"


def test_an_extra_lacks_what_the_extras_of_its_packages_lack(monkeypatch, capsys):
    lines = [
        'gone>=1; extra == "a"',
        'hypothesis>=1; extra == "a"',
        'base[more]>=1; extra == "b"',
        'base>=1; extra == "c"',
    ]

    def version(name: str) -> str:
        if name in ("gone", "base-more"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    of_base = {"base": ["other", 'base-more[x]>=2; extra == "more"'], "remind-jax": lines}
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", of_base.get)
    assert list(health.packages()) == []
    out = capsys.readouterr().out.splitlines()
    assert out == ["extra a: needs pip install gone", "extra b: needs pip install 'base[more]'", "extra c: installed"]


@pytest.mark.parametrize(
    ("tool", "chosen", "remedy"),
    [
        (None, None, None),
        ("/usr/bin/nvidia-smi", None, f"pip install 'jax[cuda12]=={jax.__version__}'"),
        ("/usr/bin/nvidia-smi", "cpu", "unset JAX_PLATFORMS=cpu"),
    ],
)
def test_a_gpu_that_is_not_used_is_told(monkeypatch, capsys, tmp_path, tool, chosen, remedy):
    monkeypatch.setattr(health.shutil, "which", lambda name: tool)
    monkeypatch.setattr(health, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(jobs, "find_gpus", lambda: [])
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if chosen:
        monkeypatch.setenv("JAX_PLATFORMS", chosen)
    found = list(health.devices())
    assert found == ([f"warning: jax does not use the GPU of this machine: {remedy}"] if remedy else [])
    out = capsys.readouterr().out
    assert f"jax {jax.__version__}, jaxlib" in out
    assert "devices: ['cpu:cpu', 'cpu:cpu', 'cpu:cpu', 'cpu:cpu']" in out


def test_a_driver_without_its_tool_counts_and_devices_that_may_block(monkeypatch, tmp_path):
    monkeypatch.setattr(health.shutil, "which", lambda name: None)
    monkeypatch.setattr(health, "_DRIVER", tmp_path)
    monkeypatch.delenv("NPROC")
    assert [line.partition(": ")[2].split(":")[0] for line in health.devices()] == [
        "jax does not use the GPU of this machine",
        "several devices on one processor can block each other",
    ]


def test_room_and_variables_are_shown_and_no_secret(monkeypatch, capsys, tmp_path):
    usage = collections.namedtuple("usage", ["free"])
    monkeypatch.setattr(health.shutil, "disk_usage", lambda folder: usage(2**30))
    for name, value in {"HF_TOKEN": "secret", "JAX_PLATFORMS": "cpu", "REMIND_X": "1"}.items():
        monkeypatch.setenv(name, value)
    cache = tmp_path / "new" / "cache"
    assert list(health.machine(cache)) == [f"warning: 1.0 GiB of space in {cache} are free: a small run may take 2 GiB"]
    assert list(cache.iterdir()) == []
    out = capsys.readouterr().out.splitlines()
    assert {"JAX_PLATFORMS=cpu", "REMIND_X=1", f"cores: {len(jobs.find_cpus())}"} <= set(out)
    assert "secret" not in "".join(out)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        list(health.machine(tmp_path / "file" / "cache"))


def test_the_environment_is_that_of_run_folders(capsys):
    list(health.devices())
    out = capsys.readouterr().out
    assert all(f"{name}: " in out for name in files.environment())
