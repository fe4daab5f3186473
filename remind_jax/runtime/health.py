"""What of an installation and a machine stops a run, or slows it; each finding is a line that ends in its remedy.

Checks print what they see and yield what is wrong, a line that begins with `error: ` where it stops a run, `warning: `
where it does not. What they raise stops a run, too.
"""

import importlib.metadata
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from remind_jax.runtime import files, jobs, processes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

LEAST = 2 * 2**30  # bytes of memory, and of space, that a small run may take
_VARIABLES = ("JAX_", "XLA_", "CUDA_", "NPROC", "OMP_", "HF_HOME", "HF_HUB_OFFLINE", "REMIND_", "SLURM_JOB_ID")
_DRIVER = pathlib.Path("/proc/driver/nvidia/version")


def packages() -> Iterator[str]:
    """Checks that what the package needs is installed, in a version that it was made for, and prints its extras.

    Raises PackageNotFoundError: the package itself is not installed.
    """
    from packaging.requirements import Requirement

    lacking: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("remind-jax") or ():
        wanted, extra = Requirement(line), line.partition("extra == ")[2].strip("'\"")
        version, how = _version(wanted), f"pip install '{wanted.name}{wanted.specifier}'"
        if extra:
            name = f"'{wanted.name}[{','.join(wanted.extras)}]'" if wanted.extras else wanted.name
            lacking.setdefault(extra, []).extend([] if version else [name])
        elif not version:
            yield f"error: {wanted.name} is not installed: {how}"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"warning: {wanted.name} {version} is not supported: {how}"
    for extra, names in lacking.items():
        print(f"extra {extra}: {'needs pip install ' + ' '.join(names) if names else 'installed'}")


def _version(wanted: "Requirement") -> str:
    """Returns the version of a package that is installed; empty if it is not, or not what its extras bring."""
    try:
        for line in importlib.metadata.requires(wanted.name) or () if wanted.extras else ():
            name, _, extra = line.partition("extra == ")
            if extra.strip("'\" )") in wanted.extras:
                importlib.metadata.version(re.split(r"[^\w.-]", name)[0])
        return importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def devices() -> Iterator[str]:
    """Checks that every device of this process computes, and that jax uses the GPUs that are there.

    Raises ImportError or RuntimeError: jax does not start. UserError: variables about processes contradict each other.
    """
    import jax

    for name, value in files.environment().items():
        print(f"{name}: {', '.join(map(' '.join, value.items())) if name == 'packages' else value}")
    for device in jax.local_devices():
        ones = jax.device_put(jax.numpy.ones((8, 8)), device)
        jax.block_until_ready(jax.jit(lambda x: x @ x)(ones))
    processes.detect(os.environ, len(jobs.find_gpus()))
    on_cpu, chosen = jax.default_backend() == "cpu", os.environ.get("JAX_PLATFORMS")
    if on_cpu and (shutil.which("nvidia-smi") or _DRIVER.exists()):
        how = f"unset JAX_PLATFORMS={chosen}" if chosen else f"pip install 'jax[cuda12]=={jax.__version__}'"
        yield f"warning: jax does not use the GPU of this machine: {how}"
    if on_cpu and jax.local_device_count() > 1 and "NPROC" not in os.environ:
        yield "warning: several devices on one processor can block each other: set NPROC=32"


def machine(cache: pathlib.Path) -> Iterator[str]:
    """Checks that a folder can be written, and that there is room in it and in memory; prints cores and variables.

    Raises OSError or UserError: it cannot be written.
    """
    import psutil

    files.make_folder(cache, private=True)
    files.write_text(cache / "doctor", "")
    (cache / "doctor").unlink()
    print(f"cores: {len(jobs.find_cpus())}")
    for name in (name for name in sorted(os.environ) if name.startswith(_VARIABLES)):
        print(f"{name}={os.environ[name]}")
    free = {"memory": psutil.virtual_memory().available, f"space in {cache}": shutil.disk_usage(cache).free}
    for name, size in free.items():
        print(f"{name}: {size / 2**30:.1f} GiB free")
        if size < LEAST:
            yield f"warning: {size / 2**30:.1f} GiB of {name} are free: a small run may take {LEAST / 2**30:.0f} GiB"
