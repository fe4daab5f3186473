"""Measures the road of a large manifest: reading it, preparing shards, and batches from them; Linux only.

    python -m benchmarks.data_scale [--rows=1000000] [--modalities=4] [--numbers=8] [--combinations=0] [--steps=1000]
        [--train=0] [--processes=1] [--folder=DIR] [--out=FILE.jsonl]

The manifest is synthetic: tabular modalities of so many numbers and one of six codes, two rows a patient. All but the
first modality are missing in a third of the rows, each by itself; or rows have so many combinations, drawn like that,
the one of rank k in a share ∝ 1/k. So many processes read, check, split and prepare it together; then, unless
`--steps=0`, others read batches of 256 in random order, from the shards and from memory; then, with `--train`, REMIND
takes so many steps and is evaluated. Resident memory is that of a process after each part. The file gets the records.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
_BATCH = 256
_MAKE = """
import pathlib, sys
import numpy as np
import polars as pl
folder, rows, modalities, numbers, combinations = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
rng = np.random.default_rng(0)
table = {"id": np.arange(rows), "patient": np.arange(rows) // 2, "died": rng.integers(0, 2, rows)}
there = rng.random((combinations or rows, modalities)) > 1 / 3
there[:, 0] = True
if combinations:
    share = 1 / np.arange(1, combinations + 1)
    there = there[rng.choice(combinations, rows, p=share / share.sum())]
names = [f"m{k:02d}_" for k in range(modalities - 1)]
for k, name in enumerate(names):
    for i in range(numbers):
        value = rng.normal(size=rows).round(3)
        table[f"{name}{i}"] = pl.Series(value).set(pl.Series(~there[:, k]), None)
codes = np.array([f"C{i:03d}" for i in range(500)])[rng.integers(0, 500, (rows, 6))]
codes = pl.DataFrame(codes, [f"c{i}" for i in range(6)]).select(pl.concat_str(pl.all(), separator=" ")).to_series()
table["codes"] = codes.set(pl.Series(~there[:, -1]), None)
folder.mkdir(parents=True, exist_ok=True)
frame = pl.DataFrame(table).with_columns(pl.col("id", "patient", "died").cast(pl.String))
frame.write_parquet(folder / "manifest.parquet")
tabular = "".join(
    f"  {name}: {{kind: tabular, columns: [{', '.join(f'{name}{i}' for i in range(numbers))}]}}\\n" for name in names
)
(folder / "schema.yaml").write_text(
    "version: 1\\nname: large\\nsample_id: id\\npatient_id: patient\\nlabel: {column: died, classes: ['0', '1']}\\n"
    f"modalities:\\n{tabular}  codes: {{kind: codes, column: codes}}\\n"
)
"""
# What the programs that are measured share.
_SHARED = f"""
batch_size = {_BATCH}

def resident(key="VmRSS"):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) // 1024
"""
_READ = """
import json, sys, time
from remind_jax import cli
from remind_jax.data import dataset, pipeline, samplers

steps, config = int(sys.argv[1]), cli.parse_config(sys.argv[2:])[0]
seconds, mib = {}, {"start": resident()}
def timed(name, make):
    start = time.perf_counter()
    value = make()
    seconds[name], mib[name] = round(time.perf_counter() - start, 3), resident()
    return value

fitted = timed("read, check, split, fit", lambda: dataset.fit(config))
data = timed("prepare", lambda: dataset.prepare(fitted, config.data))
found = {"combinations": len(data.groups), "train_rows": len(data.stores["train"]), "seconds": seconds, "mib": mib}
if steps:
    order = samplers.shuffled(0, len(data.stores["train"]))
    def batches(start, stop):
        return sum(len(x["row"]) for x in pipeline.train_batches(data.stores["train"], order, batch_size, start, stop))
    for part in range(5):  # memory that grew with the batches would show
        rows = timed(f"batches, part {part + 1}", lambda: batches(part * steps // 5, (part + 1) * steps // 5))
    found["rows_a_second"] = round(rows / seconds["batches, part 5"])
print(json.dumps(found | {"peak_mib": resident("VmHWM")}))
"""

_TRAIN = """
import json, pathlib, statistics, sys, time
from remind_jax import cli
from remind_jax.training.run import train_and_evaluate

config, workdir = cli.parse_config(sys.argv[1:])
start = time.perf_counter()
report = train_and_evaluate(config, workdir, verbose=False)
lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
steps = [record["time/step_ms"] for record in map(json.loads, lines) if "time/step_ms" in record]
found = {"combinations": len(report["groups"]), "parameters": report["parameters"], "held_out": report["n"]}
found |= {"step_ms": round(statistics.median(steps), 1), "seconds": round(time.perf_counter() - start, 1)}
print(json.dumps(found | {"peak_mib": resident("VmHWM")}))
"""


def measure(given: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    """A record of preparing, of batches from shards, of batches from memory and of training."""
    rows, steps, processes = given.rows, given.steps, given.processes
    _run(_MAKE, str(folder / "data"), *map(str, (rows, given.modalities, given.numbers, given.combinations)))
    about = {"date": datetime.date.today().isoformat(), "rows": rows, "cores": len(os.sched_getaffinity(0))}
    about |= {"modalities": given.modalities}
    about |= {"manifest_mib": (folder / "data" / "manifest.parquet").stat().st_size >> 20}
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(lambda _: _read(folder, 0, 1e-6), range(processes)))
    slowest = max(found, key=lambda x: x["seconds"]["prepare"])
    files = [path for path in (folder / "cache").rglob("*") if path.is_file()]
    about |= {"shards": sum(".array_record" in path.name for path in files)}
    about |= {"shards_mib": sum(path.stat().st_size for path in files) >> 20}
    records = [about | {"part": "prepare", "processes": processes} | slowest]
    for part, count, memory in (("shards", steps, 1e-6), ("memory", 5 * steps, 8.0)):
        if steps:
            records.append(about | {"part": part} | _read(folder, count, memory))
    if given.train:
        records.append(about | {"part": "train", "steps": given.train} | _train(folder, rows, given.train))
    return records


def table(records: Sequence[dict]) -> str:
    """The measurements as Markdown."""
    head = "| part | processes, cores | seconds | rows a second | memory before, MiB | after | peak |"
    rows = [head, "|---|---|---|---|---|---|---|"]

    def add(record: dict, part: str, seconds: float, count: int, before: int, after: int, peak: object) -> None:
        ways = f"{record.get('processes', 1)}, {record['cores']}"
        rows.append(f"| {part} | {ways} | {seconds:.1f} | {count / seconds:,.0f} | {before} | {after} | {peak} |")

    for record in records:
        if record["part"] == "train":
            rate, peak = 1e3 * _BATCH / record["step_ms"], record["peak_mib"]
            part = f"train: {record['steps']} steps of {record['step_ms']:.0f} ms; all with evaluation"
            rows.append(f"| {part} | 1, {record['cores']} | {record['seconds']:.1f} | {rate:,.0f} |  |  | {peak} |")
            continue
        seconds, mib = list(record["seconds"].values()), list(record["mib"].values())
        if record["part"] == "prepare":
            add(record, "read, check, split, fit", seconds[0], record["rows"], *mib[:2], "")
            shards = f"prepare {record['shards']} shards"
            add(record, shards, seconds[1], record["rows"], *mib[1:3], record["peak_mib"])
        else:
            count = round(record["rows_a_second"] * seconds[-1])
            add(record, f"batches from {record['part']}", seconds[-1], count, mib[3], mib[-1], record["peak_mib"])
    return "\n".join(rows)


def _read(folder: pathlib.Path, steps: int, memory_gib: float) -> dict:
    return json.loads(
        _run(_SHARED + _READ, str(steps), *_arguments(folder, {"data.memory_gib": memory_gib})).splitlines()[-1]
    )


def _train(folder: pathlib.Path, rows: int, steps: int) -> dict:
    epochs = steps * _BATCH / (0.7 * rows)
    keys = {"train.batch_size": _BATCH, "train.epochs": epochs, "train.joint_epochs": epochs / 2, "eval.bootstrap": 20}
    keys |= {"train.evaluate_every": epochs, "data.memory_gib": 8.0}
    arguments = [*_arguments(folder, keys), f"--workdir={folder / 'run'}"]
    return json.loads(_run(_SHARED + _TRAIN, *arguments).splitlines()[-1])


def _arguments(folder: pathlib.Path, keys: dict[str, Any]) -> list[str]:
    keys = {"data.root": folder / "data", "data.cache": folder / "cache"} | keys
    return [
        f"--config={ROOT / 'configs' / 'manifest.py'}:method=remind",
        *(f"--config.{k}={v}" for k, v in keys.items()),
    ]


def _run(code: str, *arguments: str) -> str:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"rows": 1_000_000, "modalities": 4, "numbers": 8, "combinations": 0, "steps": 1000, "train": 0}
    for name, default in (defaults | {"processes": 1}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        records = measure(given, given.folder or pathlib.Path(temporary))
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    print(lines, end="")
    if given.out:
        with given.out.open("a", encoding="utf-8") as file:
            file.write(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
