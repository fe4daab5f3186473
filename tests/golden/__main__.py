"""Says how far today's numbers of the tiny runs are from the stored ones, or stores them anew.

    python -m tests.golden [RUN …]                                       # the largest differences of each run
    python -m tests.golden --store="the change that moves them" RUN …    # renew these runs

The first numbers are those of commit 19cb9ee, before the package was rearranged. Only a change that is meant to move
the numbers of a run may renew them, and it names itself: its reason is stored next to them. A step of the runs "without
dropout" draws nothing at random, so a change of random draws renews the others and leaves these as they are.
"""

from tests import conftest, tiny_runs  # isort: skip  what every test runs under, before JAX starts

import argparse
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors

from tests.golden import runs


def main() -> None:
    """Reads the command line and trains the runs one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help=", ".join(runs.RUNS))
    parser.add_argument("--store", metavar="REASON", default="", help="the change that moves the numbers")
    given = parser.parse_args()
    if unknown := set(given.runs) - set(runs.RUNS):
        parser.error(f"there is no run {', '.join(sorted(unknown))}; there are {', '.join(runs.RUNS)}")
    if given.store and not given.runs:
        parser.error("name the runs that the change moves")
    with tempfile.TemporaryDirectory() as folder, tiny_runs.quick_programs(pathlib.Path(folder) / "compiled"):
        for number, name in enumerate(given.runs or runs.RUNS):
            base = pathlib.Path(folder)
            found = runs.train(runs.RUNS[name], base / str(number), base / "cache")
            if given.store:
                _store(name, found, given.store)
            else:
                far = runs.differences(found, runs.read_numbers(name))
                print(f"{name:26} " + "  ".join(f"{kind} {value:.1e}" for kind, value in far.items()), flush=True)


def _store(name: str, found: runs.Numbers, reason: str) -> None:
    """Writes the numbers of a run, and its initial weights where they are its own; λ only where it moves."""
    moving = {key: x for key, x in found.steps.items() if np.ptp(x) or not key.startswith("dro/lambda/")}
    found = found._replace(steps=moving)
    numbers = json.loads(runs.NUMBERS.read_text(encoding="utf-8")) if runs.NUMBERS.exists() else {}
    kept = {kind: getattr(found, kind) for kind in ("steps", "evaluations", "held_out", "norms")}
    numbers[name] = {"reason": reason} | kept
    ordered = {run: numbers[run] for run in runs.RUNS if run in numbers}
    runs.NUMBERS.write_text(_text(ordered) + "\n", encoding="utf-8")
    if runs.RUNS[name].start:
        return
    weights = safetensors.load_file(runs.WEIGHTS) if runs.WEIGHTS.exists() else {}
    others = {key: x for key, x in weights.items() if not key.startswith(f"{name}:")}
    own = {f"{name}:{path}": np.array(x) for path, x in found.initial.items()}
    runs.WEIGHTS.write_bytes(safetensors.save(others | own))


def _text(value: Any, indent: str = "") -> str:
    """JSON in which every mapping has a line for each of its keys, and numbers have the nine digits of a float32."""
    if isinstance(value, Mapping):
        inner = ",\n".join(f"{indent} {json.dumps(key)}: {_text(x, indent + ' ')}" for key, x in value.items())
        return f"{{\n{inner}\n{indent}}}"
    if isinstance(value, str):
        return json.dumps(value)
    if np.ndim(value):
        return f"[{', '.join(_text(x) for x in value)}]"
    return f"{value:.9g}"


if __name__ == "__main__":
    assert conftest
    main()
