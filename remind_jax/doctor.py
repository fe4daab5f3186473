"""Tells what of this machine and this installation stops or slows a run, and what to do about it.

    remind doctor [--cache=DIR]

    --cache=DIR    folder of prepared data, as data.cache; ~/.cache/remind_jax by default

Prints versions, devices, memory, space, the variables that matter and the extras that are there,
then what is wrong. The exit code is 2 when that stops training.
"""

import functools
import sys
from collections.abc import Iterator

from remind_jax import cli
from remind_jax.runtime import files, health


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name, and ends the process where something stops a run."""
    parser = cli.Parser("remind doctor [--cache=DIR]")
    parser.add_argument("--cache", default="")
    cache = parser.parse_args(arguments).cache
    checks = {
        health.packages: "install the package by pip",
        health.devices: "look at JAX_PLATFORMS and XLA_FLAGS, or install jax anew",
        functools.partial(_machine, cache): "choose a folder by --config.data.cache=DIR",
    }
    found = []
    for check, remedy in checks.items():
        try:
            for line in check():
                found.append(line)  # one by one, so that none is lost when the check fails
        except Exception as error:  # what is broken here is no fault of this program
            found.append(f"error: {' '.join(str(error).split()) or type(error).__name__}: {remedy}")
    print("\n".join(found or ["nothing is wrong"]))
    if any(line.startswith("error: ") for line in found):
        sys.exit(2)


def _machine(cache: str) -> Iterator[str]:
    from remind_jax.data.dataset import DEFAULT_CACHE  # which takes a second, and packages that may not be there

    return health.machine(files.expanded(cache or DEFAULT_CACHE))


if __name__ == "__main__":
    cli.run(main, __doc__)
