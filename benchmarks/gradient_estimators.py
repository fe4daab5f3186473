"""Time and memory of the three estimators of gradient consistency, and the table of docs/gradient_estimators.md.

    python -m benchmarks.gradient_estimators [--points=small:32,fprm:128,…] [--memory=12] [--cores=1] [--out=FILE.jsonl]
    python -m benchmarks.gradient_estimators --page      rebuilds the page from the stored results

A point is a network of `benchmarks.cases` and a number of samples. At each, every estimator runs in a process of its
own, pinned to `cores` cores, that may have `memory` GiB of data: what needs more ends there. Linux only.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.run import environment, pin
from remind_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "gradient_estimators.jsonl"
PAGE = ROOT / "docs" / "gradient_estimators.md"
METHODS = ("exact", "gram", "lanczos")
POINTS = "small:32,small:128,fprm:32,fprm:128,e8:32,e8:128,e32:32,e32:128,e128:16"
CALLS, SECONDS = 3, 30.0  # most timed calls, and the time after which no further one begins

_TEXT = """# Three estimators of gradient consistency: time and memory

    {command}

One call of `ntk.top_direction` on n samples of a network with one fusion block: the dominant direction of the gradients
of margin logits with respect to the p parameters of the block, with λ1, λ2, the trace and the mean gradient. `exact`
holds the Jacobian, `gram` the factors of gradients, `lanczos` a few gradients; docs/gradient_consistency.md has the
definitions.

Each row is a process of its own, pinned to one core, with at most {memory} GiB of data. Times are processor time, since
other jobs shared the machine: `CPU ms` is the least of up to {calls} calls, `first call` traces and compiles too.
The peak of resident memory includes that before the first call (JAX, weights and data), which stands beside it. The
cosine is that of the top eigenvector u with the one of the first estimator that ended.

{table}

{deaths}

{machine}
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


# ---- One measurement, in a process of its own -----------------------------------------------------------------------


def _resident(key: str) -> float:
    """MiB of resident memory: now (VmRSS) or at most (VmHWM)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) / 1024


def measure(size: str, n: int, method: str) -> dict[str, Any]:
    """Times an estimator in this process.

    Args:
      size: a key of `setups.SIZES`.
      n: samples.
      method: one of `METHODS`.
    """
    import jax

    from benchmarks import setups
    from remind_jax.ops import ntk
    from remind_jax.training import optimizer as states

    setup = setups.set_up(dataclasses.replace(setups.SIZES[size], b=n), routed=True, gate="always")
    fixed, params = states.partition(setup.params, lambda path: path.startswith("block_"))
    setups.KEPT.clear()

    def margins(params, batch, fixed):
        return ntk.logit_margin(setup.network.apply({**fixed, **params}, batch, gate="always").logits, batch["label"])

    def call() -> tuple[float, Any]:
        start = time.process_time()
        found = jax.block_until_ready(ntk.top_direction(margins, params, setup.batch, None, fixed, method=method))
        return time.process_time() - start, found

    before = _resident("VmRSS")
    first, found = call()
    seconds: list[float] = []
    while len(seconds) < CALLS and sum(seconds) < SECONDS:
        seconds.append(call()[0])
    return {
        "parameters": sum(x.size for x in params.values()),
        "first_cpu_s": first,
        "cpu_ms": 1e3 * min(seconds),
        "before_mib": before,
        "peak_mib": _resident("VmHWM"),
        "lambda1": float(found.lambda1),
        "lambda2": float(found.lambda2),
        "trace": float(found.trace),
        "u": found.u.tolist(),
    }


def _alone(size: str, n: int, method: str, cores: int, memory: int) -> dict[str, Any]:
    """The record of a measurement, or why there is none."""
    name = {"size": size, "n": n, "method": method}
    call = [sys.executable, "-m", "benchmarks.gradient_estimators", f"--cores={cores}", f"--memory={memory}"]
    done = subprocess.run([*call, f"--one={size}:{n}:{method}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return name | json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if "RESOURCE_EXHAUSTED" in line or "bad_alloc" in line]
    if not lines and done.returncode >= 0:
        raise RuntimeError(f"{size}:{n} {method} failed:\n{done.stderr}")
    return name | {"died": "out of memory" if lines else f"signal {-done.returncode}"}


# ---- All of them ----------------------------------------------------------------------------------------------------


def _points(text: str) -> list[tuple[str, int]]:
    from benchmarks import setups

    points = []
    for part in text.split(","):
        size, _, n = part.partition(":")
        if size not in setups.SIZES or not n.isdigit() or int(n) < 2:
            raise UserError(f"point {part!r} is not SIZE:SAMPLES with a size of {', '.join(setups.SIZES)}")
        points.append((size, int(n)))
    return points


def run(points: Sequence[tuple[str, int]], cores: int, memory: int) -> list[dict[str, Any]]:
    """Measures all estimators at each point; each record gets its ratios and its cosine to those of the same point."""
    import numpy as np

    records = []
    about = environment(cores) | {"memory_gib": memory}
    for size, n in points:
        found = [_alone(size, n, method, cores, memory) for method in METHODS]
        ended = [record for record in found if "died" not in record]
        units = [np.array(record.pop("u")) for record in ended]
        for record, u in zip(ended, units, strict=True):
            record["cos_u"] = abs(float(units[0] @ u)) / float(np.linalg.norm(units[0]) * np.linalg.norm(u))
        for record in found:
            print(json.dumps(record), file=sys.stderr, flush=True)
        records += [record | about for record in found]
    return records


# ---- The page -------------------------------------------------------------------------------------------------------


def _gib(mib: float) -> str:
    return f"{mib / 1024:.2f}"


def page(records: Sequence[dict[str, Any]]) -> str:
    """The text of docs/gradient_estimators.md."""
    heads = (
        "network",
        "p",
        "n",
        "estimator",
        "CPU ms",
        "/ lanczos",
        "first call s",
        "peak GiB",
        "before",
        "abs cos of u",
    )
    rows = [heads, ("---",) + ("---:",) * 2 + ("---",) + ("---:",) * 6]
    by_point: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for record in records:
        by_point.setdefault((record["size"], record["n"]), {})[record["method"]] = record
    deaths = []
    for (size, n), found in by_point.items():
        ended = [record for record in found.values() if "died" not in record]
        p = ended[0]["parameters"] if ended else 0
        for method, record in found.items():
            cells = [size, f"{p / 1e6:,.2f} M", str(n), method]
            if "died" in record:
                jacobian = 2 * 4 * n * p / 2**30
                rows.append((*cells, "died", *("",) * 5))
                deaths.append(
                    f"`{method}` died at p = {p / 1e6:,.0f} M, n = {n} (2·4·n·p bytes are {jacobian:.1f} GiB)"
                )
                continue
            other = found["lanczos"]
            ratio = f"{record['cpu_ms'] / other['cpu_ms']:.2f}" if "died" not in other else ""
            cells += [f"{record['cpu_ms']:,.1f}", ratio, f"{record['first_cpu_s']:.1f}"]
            cells += [_gib(record["peak_mib"]), _gib(record["before_mib"]), f"{record['cos_u']:.7f}"]
            rows.append(tuple(cells))
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if name != "torch")
    points = ",".join(f"{size}:{n}" for size, n in by_point)
    return _TEXT.format(
        command=f"python -m benchmarks.gradient_estimators --points={points} --memory={first['memory_gib']}",
        memory=first["memory_gib"],
        calls=CALLS,
        table="\n".join(f"| {' | '.join(row)} |" for row in rows),
        deaths=("; ".join(deaths) + "." if deaths else "None of them ran out of memory."),
        machine=f"{first['device']}; commit {first['commit'] or 'unknown'}; {versions}.",
    )


def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--points", default=POINTS)
    parser.add_argument("--memory", type=int, default=12)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.one:
        limit = options.memory * 2**30
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        pin(options.cores)
        size, n, method = options.one.split(":")
        print(json.dumps(measure(size, int(n), method)))
        return
    if not options.page:
        for name in ("memory", "cores"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name}={getattr(options, name)} must be at least 1")
        records = run(_points(options.points), options.cores, options.memory)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    stored = OUT if options.page else options.out
    text = page([json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()])
    if stored == OUT:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
