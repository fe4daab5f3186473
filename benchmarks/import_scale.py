"""How time and memory grow with tables and sweep folders.

    python -m benchmarks.import_scale [--rows=12500,100000] [--columns=5000] [--runs=1250,10000]
                                      [--parts=import,check,prepare,claims] [--gz] [--folder=DIR] [--out=FILE.jsonl]

For each number of rows a CSV is written with ids, a label, so many columns of laboratory values, some of them empty, NA
or `>200`, and a short note. Then, each in a process of its own: `remind import` makes a manifest of it, `remind check`
checks that, and a config reads, splits and prepares it. For each number of runs, one process takes that many claims in
a sweep's folder, and takes all of them again. Nothing is trained. `slope` is the exponent by which seconds grow from
the size before; `peak_mib` is the most resident memory of the process. DIR needs room for the CSV, what import keeps
beside it, and the manifest. The file gets a record a line.
"""

import argparse
import datetime
import gzip
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
_PARTS = ("import", "check", "prepare", "claims")
_TIMED = """
import json, pathlib, resource, sys, time
started = time.perf_counter()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
print(json.dumps({{"seconds": round(time.perf_counter() - started, 2), "peak_mib": peak}}))
"""
_IMPORT = """
from remind_jax import import_data
names = ["--label=died", "--sample=stay", "--patient=patient"]
import_data.main([f"--source={sys.argv[1]}", f"--out={sys.argv[2]}", *names])
"""
_CHECK = """
from remind_jax import check_data
check_data.main([sys.argv[2]])
"""
_PREPARE = """
from remind_jax import cli
from remind_jax.data import dataset
keys = [f"--config.data.root={sys.argv[2]}", f"--config.data.cache={sys.argv[3]}"]
config = cli.parse_config([f"--config={sys.argv[4]}", *keys])[0]
dataset.prepare(dataset.fit(config), config.data)
"""
_CLAIMS = """
from remind_jax.runtime.claims import Claims
names = [f"remind-{i}" for i in range(int(sys.argv[2]))]
with Claims(pathlib.Path(sys.argv[1])) as held:
    for name in names:
        with held.taken(name) as mine:
            assert mine
    for name in names:
        with held.taken(name) as mine:
            assert mine
"""


def write(file: pathlib.Path, rows: int, columns: int) -> None:
    """Writes a CSV, packed where its name ends so."""
    rng = np.random.default_rng(0)
    cells = [f"{x:.4f}".encode() for x in rng.normal(100, 30, 20_000)] + [b">200", b"", b"NA"] * 300
    pool = np.array(cells, object)
    with gzip.open(file, "wb", compresslevel=1) if file.suffix == ".gz" else file.open("wb", 2**22) as out:
        out.write(",".join(["stay", "patient", "died", *(f"lab{i}" for i in range(columns)), "note"]).encode() + b"\n")
        for i in range(rows):
            labs = b",".join(pool[rng.integers(0, len(pool), columns)])
            out.write(b"%d,%d,%d,%b,patient %d sleeps well\n" % (i, i // 2, rng.integers(0, 2), labs, i))


def measure(given: argparse.Namespace, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields a record for each part and size, smallest size first."""
    before: dict[str, tuple[int, float]] = {}

    def record(part: str, size: int, about: dict[str, Any], code: str, *arguments: object) -> dict[str, Any]:
        found = {"part": part} | about | _run(code, *arguments)
        if part in before:
            size_before, seconds = before[part]
            found["slope"] = round(math.log(found["seconds"] / seconds) / math.log(size / size_before), 2)
        before[part] = size, found["seconds"]
        return found

    for rows in given.rows if set(given.parts) - {"claims"} else ():
        source = folder / f"{rows}.csv{'.gz' * given.gz}"
        write(source, rows, given.columns)
        about = {"rows": rows, "columns": given.columns, "csv_mib": source.stat().st_size >> 20}
        places = source, folder / str(rows), folder / f"cache{rows}", f"{ROOT}/configs/manifest.py:method=remind"
        for part, code in (("import", _IMPORT), ("check", _CHECK), ("prepare", _PREPARE)):
            if part in given.parts:
                yield record(part, rows, about, code, *places)
        source.unlink()
    for runs in given.runs if "claims" in given.parts else ():
        yield record("claims", runs, {"runs": runs}, _CLAIMS, folder / f"claims{runs}", runs)


def _run(code: str, *arguments: object) -> dict[str, Any]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", _TIMED.format(code=code), *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", "12500,100000"), ("runs", "1250,10000")):
        parser.add_argument(f"--{name}", default=default, type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--columns", type=int, default=5000)
    parser.add_argument("--parts", default=",".join(_PARTS), type=lambda text: text.split(","))
    parser.add_argument("--gz", action="store_true")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args(arguments)
    versions = {name: metadata.version(name) for name in ("polars", "numpy", "jax")} | {
        "python": platform.python_version()
    }
    about = {"date": datetime.date.today().isoformat(), "cores": len(os.sched_getaffinity(0)), "versions": versions}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        for found in measure(given, pathlib.Path(folder)):
            line = json.dumps(found | about | {"command": " ".join(["python -m benchmarks.import_scale", *arguments])})
            print(line, flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
