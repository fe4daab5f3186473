"""Counts the programs that a command of the package compiles, and the processor time that each takes.

    python -m benchmarks.compilation [--seeds=0,0,1] [--tables=0] [--out=FILE.jsonl] [-- train --config=nhanes …]

The command, by default the README's first one, runs in a process of its own for each seed, each with a new folder and
all with the same folder of kept programs, empty at first. With `--tables` it is a short training on so many synthetic
tables, of 3 to 9 columns, in 12 combinations. The file gets one record a process: seconds of processor and wall time
from its start, and for every program its name, how often one of that name was compiled or taken from the folder, and
seconds of processor time, of all threads. On a busy machine wall time tells little.
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.run import commit, environment

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMAND = ("train", "--config=nhanes")
_RUN = """
import time
wall = time.perf_counter()
import collections, json, logging, re, sys
import jax

jax.config.update("jax_log_compiles", True)
found, since = collections.defaultdict(lambda: [0, 0.0]), [0.0]

class Heard(logging.Handler):
    def emit(self, record):
        text = record.getMessage()
        done = re.search(r"Finished XLA compilation of (\\S+) in", text)
        if done:
            found[done[1]][0] += 1
            found[done[1]][1] += time.process_time() - since[0]
        since[0] = time.process_time()

logger = logging.getLogger("jax")
logger.addHandler(Heard())
logger.propagate = False
from remind_jax.__main__ import main
out = sys.argv.pop(1)
try:
    main()
finally:
    programs = {name: {"count": n, "cpu_s": round(s, 3)} for name, (n, s) in sorted(found.items())}
    record = {"cpu_s": time.process_time(), "wall_s": time.perf_counter() - wall, "programs": programs}
    with open(out, "w") as file:
        json.dump(record, file)
"""


def measure(command: Sequence[str], seed: int, cache: pathlib.Path) -> dict[str, Any]:
    """Runs a command with a seed in a process of its own; returns what that process says of itself."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "record.json"
        options = [f"--config.seed={seed}", f"--config.compilation_cache={cache}", f"--workdir={folder}/run"]
        done = subprocess.run(
            [sys.executable, "-c", _RUN, out, *command, *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"the command ended with {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


def make_tables(folder: pathlib.Path, count: int) -> None:
    """Writes a manifest folder of 600 rows with so many tables, of which each combination lacks some."""
    rng = np.random.default_rng(0)
    columns = {f"t{i}": [f"t{i}_{j}" for j in range(3 + i % 7)] for i in range(count)}
    there = rng.random((12, count)) < 0.7
    there[:, 0] = True
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "died", *(name for names in columns.values() for name in names)])
        for row in range(600):
            cells = [
                round(rng.normal(), 3) if has else ""
                for has, names in zip(there[row % 12], columns.values(), strict=True)
                for _ in names
            ]
            rows.writerow([row, rng.integers(2), *cells])
    lines = [f"  {name}: {{kind: tabular, columns: [{', '.join(names)}]}}" for name, names in columns.items()]
    head = "version: 1\nname: tables\nsample_id: id\npatient_id: id\nlabel: {column: died, classes: ['0', '1']}\n"
    (folder / "schema.yaml").write_text("\n".join([head + "modalities:", *lines, ""]), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Measures, and prints and writes the records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compilation", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0,0,1")
    parser.add_argument("--tables", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("command", nargs="*", default=COMMAND)
    given = parser.parse_args(arguments)
    known = {"command": " ".join(given.command), "commit": commit(), "date": datetime.date.today().isoformat()}
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as data:
        command = given.command
        if given.tables:
            make_tables(pathlib.Path(data), given.tables)
            known["command"] = f"{given.tables} tables"
            short = ["--config.train.epochs=2", "--config.train.joint_epochs=1", "--config.eval.bootstrap=20"]
            command = [
                "train",
                "--config=manifest:method=remind",
                f"--config.data.root={data}",
                "--config.data.cache=none",
                *short,
            ]
        for seed in map(int, given.seeds.split(",")):
            record = known | {"seed": seed} | measure(command, seed, pathlib.Path(cache))
            record["compile_cpu_s"] = round(sum(one["cpu_s"] for one in record["programs"].values()), 2)
            print(json.dumps(record), flush=True)
            if given.out:
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record | environment(os.cpu_count() or 1)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
