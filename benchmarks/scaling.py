"""One, two and four processes that train one run here, and what data and expert parallelism would cost on many GPUs.

    python -m benchmarks.scaling --out=FILE.jsonl [--folder=DIR]     measures; a record a layout; Linux only
    python -m benchmarks.scaling --tables=FILE.jsonl                 prints the tables of docs/scaling.md

Measured is processor time, of all processes and threads of a layout together, between two records of the first stage:
on a machine that others use too, wall time says more of them than of the exchange.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYOUTS = ((1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1))  # processes, devices of each
_RUN = {"data.train": 2048, "data.held_out_per_group": 64, "train.batch_size": 64, "train.epochs": 4.0}
_RUN |= {"train.joint_epochs": 2.0, "train.evaluate_every": 2.0, "train.log_every": 16, "eval.bootstrap": 50}
_BETWEEN = (16, 48)  # steps of the first stage, which has 64: compiled before, evaluated after


# ---- Measured -------------------------------------------------------------------------------------------------------


def measure(folder: pathlib.Path) -> list[dict[str, Any]]:
    """A record for each layout."""
    records = []
    for processes, devices in LAYOUTS:
        milliseconds = _train(folder, processes, devices)
        records.append(_record(folder, processes, devices, milliseconds))
        print(json.dumps(records[-1]), flush=True)
    return records


def _train(folder: pathlib.Path, processes: int, devices: int) -> float:
    """Runs a layout; returns milliseconds of processor time a step."""
    keys = _RUN | {"data.cache": str(folder / "cache")}
    arguments = [f"--config={ROOT / 'configs' / 'phenomenon.py'}", *(f"--config.{k}={v}" for k, v in keys.items())]
    workdir = folder / f"{processes}x{devices}"
    command = [str(ROOT / "launch" / "local.sh"), "-n", str(processes), "-d", str(devices), *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen([*command, f"--workdir={workdir}"], env=environment, stdout=subprocess.DEVNULL)
    spent = [_spent_at(step, workdir, started) for step in _BETWEEN]
    if started.wait():
        raise RuntimeError(f"{processes} x {devices} ended with {started.returncode}")
    return 1e3 * (spent[1] - spent[0]) / (_BETWEEN[1] - _BETWEEN[0])


def _spent_at(step: int, workdir: pathlib.Path, started: subprocess.Popen) -> float:
    """Processor seconds of all processes of a run when it has recorded a step."""
    while started.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            if any(record["step"] >= step for record in _metrics(workdir)):
                break
        time.sleep(0.005)
    children = pathlib.Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text(encoding="utf-8").split()
    ticks = 0
    for child in children:
        fields = pathlib.Path(f"/proc/{child}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # in the program and for it in the kernel
    return ticks / os.sysconf("SC_CLK_TCK")


def _record(folder: pathlib.Path, processes: int, devices: int, milliseconds: float) -> dict[str, Any]:
    run, one = folder / f"{processes}x{devices}", folder / "1x1"
    mine, theirs = _metrics(run), _metrics(one)
    first = next(record for record in mine if "train/loss" in record)
    keys = [key for key in first if key.startswith(("train/loss", "dro/"))]
    apart = max(abs(a[key] - b[key]) for a, b in zip(mine, theirs, strict=True) if "train/loss" in a for key in keys)
    tuning = [(a["eval/loss"], b["eval/loss"]) for a, b in zip(mine, theirs, strict=True) if "eval/loss" in a]
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    reports = [json.loads((path / "report.json").read_text(encoding="utf-8")) for path in (run, one)]
    return {
        "date": datetime.date.today().isoformat(),
        "processes": processes,
        "devices": devices,
        "machine": platform.machine(),
        "jax": environment["packages"]["jax"],
        "python": platform.python_version(),
        "step_cpu_ms": round(milliseconds, 1),
        "loss_and_lambda_apart": apart,
        "tuning_loss_apart": max(abs(a - b) for a, b in tuning),
        "same_held_out_accuracy": reports[0]["overall"]["accuracy"] == reports[1]["overall"]["accuracy"],
    }


def _metrics(run: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# ---- On paper -------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a GPU reaches, per second.

    Attributes:
      flops: of products in bfloat16, at half of the peak that one H200 shows (790e12).
      memory: bytes.
      inside: bytes to the other GPUs of its node, each way (NVLink 4).
      outside: bytes to other nodes.
      node: GPUs of a node.
    """

    flops: float = 395e12
    memory: float = 4.3e12
    inside: float = 450e9
    outside: float = 50e9
    node: int = 8


class Work(NamedTuple):
    """A stage of training at the paper's size on EMBED, as `python -m remind_jax.plan` counts it.

    Attributes:
      flops: of a train step, for a sample.
      experts, rest: trained parameters.
      slots: numbers that a sample sends to the experts and gets back, each way.
    """

    flops: float
    experts: float
    rest: float
    slots: float = 128 * 768


JOINT = Work(14.159e12 / 32, 604.471296e6, 950.1e6 - 604.471296e6)
SPECIALIZE = Work(5.202e12 / 32, 604.471296e6, 607.5e6 - 604.471296e6)
FAST, SLOW = Machine(), Machine(outside=3.125e9)  # a 400 Gb/s adapter for each GPU; one of 200 Gb/s for eight
COUNTS = (8, 64, 512)
_BYTES = 38  # that AdamW in float32 with a copy in bfloat16 moves for a parameter


class Cost(NamedTuple):
    """Seconds of a step on one of several GPUs.

    Attributes:
      compute: of products.
      optimizer: of reading and writing weights and moments.
      exchange: of gradients and slots.
      volume: bytes that one GPU sends.
    """

    compute: float
    optimizer: float
    exchange: float
    volume: float

    def efficiency(self, one: "Cost", overlap: bool) -> float:
        """Beside a GPU on its own; with overlap, the exchange hides behind the backward pass, two thirds of it."""
        hidden = min(self.exchange, self.compute * 2 / 3) if overlap else 0.0
        return (one.compute + one.optimizer) / (self.compute + self.optimizer + self.exchange - hidden)


def cost(work: Work, machine: Machine, gpus: int, batch: float, by_expert: bool) -> Cost:
    """What a step costs on paper.

    Gradients are summed in float32 within nodes and then between them, each GPU over its own part. With `by_expert`
    each GPU holds its share of the 128 experts (more GPUs hold copies), and slots go to them and back, in bfloat16,
    twice forward and twice backward.

    Args:
      work, machine: see there.
      gpus: how many.
      batch: samples of each.
      by_expert: whether experts are shared out.
    """
    shares = min(gpus, 128) if by_expert else 1
    inside, nodes = min(gpus, machine.node), max(1, gpus // machine.node)
    copies = gpus // shares  # of each expert
    reduced = 4 * work.rest  # bytes that all GPUs sum up
    near = 2 * reduced * (inside - 1) / inside
    far = 2 * reduced / inside * (nodes - 1) / nodes
    if by_expert:
        far += 2 * 4 * work.experts / shares * (copies - 1) / copies
        slots = 4 * 2 * batch * work.slots
        near += slots * (inside - 1) / gpus
        far += slots * (gpus - inside) / gpus
    else:
        near += 2 * 4 * work.experts * (inside - 1) / inside
        far += 2 * 4 * work.experts / inside * (nodes - 1) / nodes
    held = work.rest + work.experts / shares
    return Cost(
        batch * work.flops / machine.flops,
        _BYTES * held / machine.memory,
        near / machine.inside + far / machine.outside,
        near + far,
    )


# ---- Tables ---------------------------------------------------------------------------------------------------------


def measured_table(records: Sequence[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    head = (
        "| processes × devices | processor ms a step | loss and λ apart | tuning loss apart | same held-out accuracy |"
    )
    rows = [head, "|---|---|---|---|---|"]
    for r in records:
        apart = (f"{r[key]:.1e}" if r[key] else "0" for key in ("loss_and_lambda_apart", "tuning_loss_apart"))
        same = "yes" if r["same_held_out_accuracy"] else "no"
        rows.append(f"| {r['processes']} × {r['devices']} | {r['step_cpu_ms']:.0f} | {' | '.join(apart)} | {same} |")
    return "\n".join(rows)


def paper_table(work: Work, batch: float, counts: Sequence[int] = COUNTS) -> str:
    """Efficiencies as Markdown: without and with overlap, by kind of parallelism and network."""
    rows = [
        "| GPUs | parallel over | GB a GPU sends in a step | ms a step, fast network | efficiency, fast | slow |",
        "|---|---|---|---|---|---|",
    ]
    for gpus in counts:
        for by_expert in (False, True):
            fast, slow = (cost(work, machine, gpus, batch, by_expert) for machine in (FAST, SLOW))
            # The same samples on one GPU, which holds everything.
            one = cost(work, FAST, 1, batch, False)
            shown = [
                f"{100 * c.efficiency(one, False):.0f} to {100 * c.efficiency(one, True):.0f} %" for c in (fast, slow)
            ]
            kind = "data and experts" if by_expert else "data"
            total = 1e3 * (fast.compute + fast.optimizer + fast.exchange)
            rows.append(f"| {gpus} | {kind} | {fast.volume / 1e9:.2f} | {total:.0f} | {' | '.join(shown)} |")
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> None:
    """Runs the command line given without the program's name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--tables", type=pathlib.Path)
    given = parser.parse_args(arguments)
    if given.tables:
        records = [json.loads(line) for line in given.tables.read_text(encoding="utf-8").splitlines()]
        print(measured_table(records), paper_table(JOINT, 32), paper_table(JOINT, 4, (8, 64)), sep="\n\n")
        print(f"\n{paper_table(SPECIALIZE, 32)}")
    if given.out:
        with tempfile.TemporaryDirectory() as temporary:
            records = measure(given.folder or pathlib.Path(temporary))
        given.out.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
