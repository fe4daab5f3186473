"""Files that are written at once or not at all, and digests that tell whether they are as they were written."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Container, Mapping
from typing import Any

import jax

SUMS = "SHA256SUMS"
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "remind-jax",
)


def write_text(file: pathlib.Path, text: str) -> None:
    """Replaces a file by a text; whoever reads it meanwhile, or after a crash, finds the old or the new one, whole."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def sums(folder: pathlib.Path, leave_out: Container[str] = ()) -> str:
    """A line `<sha256>  <path>` for each file of a folder, in the order of their paths, without `SUMS` itself.

    Args:
      folder: with all that is below it.
      leave_out: paths that have none, relative to the folder.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS and name not in leave_out:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def config_digest(config: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of a config, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _commit() -> str | None:
    folder = pathlib.Path(__file__).parent
    command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Versions, devices and commit."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "commit": _commit(),
    }
