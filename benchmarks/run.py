"""Times the variants of a case in interleaved rounds and writes one JSON object a variant.

    python -m benchmarks.run --case=NAME [--size=NAME] [--rounds=N] [--out=FILE.jsonl]
    python -m benchmarks.run --readme        rebuilds the tables of benchmarks/README.md from benchmarks/results

Cases: block, step, experts, groups, stage2, encoders, input, limits, present, startup, table17 (benchmarks/README.md).
Options: --device=cpu|gpu|tpu (cpu), --cores=N (1; 0 pins nothing) cores that a run on CPU is pinned to, --calls=N timed
calls a round (3), --variants=A,B and --measure=NAME to time those only, --torch=auto|no|compile (auto: where torch is
installed), --apart builds, times and drops one variant after the other, for networks that do not fit in memory at once.
"""

import argparse
import gc
import importlib.util
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from remind_jax.errors import UserError

HERE = pathlib.Path(__file__).resolve().parent
CASES = ("block", "step", "experts", "groups", "stage2", "encoders", "input", "limits", "present", "startup", "table17")
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
# Operations a second in dense bfloat16 products, by the beginning of what a device calls itself (NVIDIA's data sheets).
PEAKS = {"NVIDIA A100": 312e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}
START, END = "<!-- results: built by python -m benchmarks.run --readme -->", "<!-- end of results -->"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(message)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
      UserError: for anything that cannot be read, in one line.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--case", default="")
    parser.add_argument("--size", default="")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=3)
    parser.add_argument("--device", choices=PLATFORMS, default="cpu")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--variants", default="")
    parser.add_argument("--measure", default="")
    parser.add_argument("--torch", choices=("auto", "no", "compile"), default="auto")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args(arguments)
    if options.readme:
        return options
    if options.case not in CASES:
        raise UserError(f"case {options.case!r} is unknown; known: {', '.join(CASES)}")
    for name, least in (("rounds", 1), ("calls", 1), ("cores", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}={getattr(options, name)} must be at least {least}")
    if options.torch == "compile" and not _has_torch():
        raise UserError("--torch=compile needs torch: pip install torch")
    return options


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def pin(cores: int) -> None:
    """Holds the process to its last `cores` cores; 0 leaves it as it is. To be called before JAX or torch is imported.

    Their thread pools collapse on busy machines, and sizes of pools follow the cores that the process may use.
    """
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("this system cannot pin a process to cores: use --cores=0")
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        raise UserError(f"--cores={cores}, but this process may use {len(allowed)}")
    os.sched_setaffinity(0, allowed[-cores:])


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Wall time, time of all threads on processors, the part of it in the kernel, and page faults of one call."""
    before, spent, start = resource.getrusage(resource.RUSAGE_SELF), _processor_time(), time.perf_counter()
    call()
    wall, cpu = time.perf_counter() - start, _processor_time() - spent
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "ms": 1e3 * wall,
        "cpu_ms": 1e3 * cpu,
        "system_ms": 1e3 * (after.ru_stime - before.ru_stime),
        "page_faults": after.ru_minflt - before.ru_minflt,
    }


def _processor_time() -> float:
    """Of all threads, and of processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def interleave(variants: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, list[dict[str, float]]]:
    """Times all variants round by round, each round in a rotated order.

    Returns:
      For each variant one sample a round with the least of each quantity over its `calls` calls: what else runs on a
      shared machine only adds to them.
    """
    for call in variants.values():
        call(), call()
    names, samples = list(variants), {name: [] for name in variants}
    for i in range(rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            found = [timed(variants[name]) for _ in range(calls)]
            samples[name].append({key: min(one[key] for one in found) for key in found[0]})
    return samples


def summary(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median and quartiles of the times over rounds, medians of the rest."""
    times = [sample["ms"] for sample in samples]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "median_ms": middle,
        "q25_ms": low,
        "q75_ms": high,
        "iqr_ms": high - low,
    } | {key: statistics.median(sample[key] for sample in samples) for key in ("cpu_ms", "system_ms", "page_faults")}


def ratio(samples: Sequence[dict[str, float]], reference: Sequence[dict[str, float]], key: str = "ms") -> float:
    """Median over rounds of the ratio within a round, in which both met the same conditions."""
    return statistics.median(a[key] / b[key] for a, b in zip(samples, reference, strict=True))


def limit_share(
    name: str,
    samples: Mapping[str, Sequence[dict[str, float]]],
    phases: Mapping[str, Sequence[Mapping[str, float]]],
) -> float | None:
    """Share of what the machine can do: the least processor time of a variant over its own, median over rounds.

    `phases` says what each variant does one after the other, in amounts by the variant whose rate limits them; a limit
    is one phase of its own amount. None where nothing is known of a variant or a limit of it was not timed.
    """
    if not phases.get(name) or not {limit for phase in phases[name] for limit in phase} <= set(samples):
        return None

    def least(phase: Mapping[str, float], i: int) -> float:
        return max(n / phases[limit][0][limit] * samples[limit][i]["cpu_ms"] for limit, n in phase.items())

    own = [sample["cpu_ms"] for sample in samples[name]]
    return statistics.median(sum(least(phase, i) for phase in phases[name]) / ms for i, ms in enumerate(own))


def peak_use(operations: int, ms: float, device: str) -> float | None:
    """Share of the device's peak that the counted operations are (MFU); None for devices without a known peak."""
    peak = next((peak for name, peak in PEAKS.items() if device.startswith(name)), None)
    return peak and operations / (1e-3 * ms) / peak


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The commit of this checkout, with `+` when the measured files differ from it; empty outside a repository."""
    changed = _git("status", "--porcelain", "--", "../remind_jax", "*.py")
    return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def _processor() -> str:
    """What the CPU calls itself."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(cores: int) -> dict[str, Any]:
    """Device, versions and conditions, the same for all records of a run."""
    import jax

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
    versions = {name: metadata.version(name) for name in packages if importlib.util.find_spec(name)}
    is_cpu = device.platform == "cpu"
    return {
        "platform": device.platform,
        "device": f"{_processor()}, {cores or os.cpu_count()} of {os.cpu_count()} cores"
        if is_cpu
        else device.device_kind,
        "cores": cores,
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Builds, times and describes the variants of a case."""
    os.environ["JAX_PLATFORMS"] = PLATFORMS[options.device]
    cores = options.cores if options.device == "cpu" else 0
    pin(cores)
    import jax

    from benchmarks import cases, setups
    from remind_jax.runtime import devices

    if options.device == "cpu":
        devices.keep_freed_memory()  # as training does, and for PyTorch too
    case = cases.CASES[options.case]
    name = options.size or case.sizes[0]
    if name not in case.sizes:
        raise UserError(f"size {name!r} is unknown to case {options.case}; known: {', '.join(case.sizes)}")
    extras = {"torch"} if options.torch != "no" and options.device == "cpu" and _has_torch() else set()
    if extras and cores:
        import torch

        torch.set_num_threads(cores)
    entries = case.entries(setups.SIZES[name], frozenset(extras | {options.torch}))
    entries = _chosen(entries, [options.measure] if options.measure else [], "measure")
    entries = _chosen(entries, [part for part in options.variants.split(",") if part], "name")
    busy = os.getloadavg()[0]
    samples, facts = _measure(entries, options)
    shared = environment(cores) | {"load_before": round(busy, 2), "load_after": round(os.getloadavg()[0], 2)}
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    records = []
    for entry in entries:
        beside = [(f"{entry.measure}: {one.name}", one.name) for one in entries if one.measure == entry.measure]
        phases = {name: facts[key].get("phases", []) for key, name in beside}
        share = limit_share(entry.name, {name: samples[key] for key, name in beside}, phases)
        key = f"{entry.measure}: {entry.name}"
        against = {r: samples.get(f"{entry.measure}: {r}") for r in case.references}
        against = {r: reference for r, reference in against.items() if reference}
        times = summary(samples[key])
        records.append(
            {
                "case": options.case,
                "size": name,
                "measure": entry.measure,
                "variant": entry.name,
                "rounds": options.rounds,
                "calls": options.calls,
                "apart": options.apart,
                **times,
                "limit_share": share,
                "mfu": peak_use(facts[key]["analytic_flops"], times["median_ms"], shared["device"]),
                "ratios": {r: ratio(samples[key], other) for r, other in against.items()},
                "cpu_ratios": {r: ratio(samples[key], other, "cpu_ms") for r, other in against.items()},
                **facts[key],
                "device_peak_bytes": peak,
                **shared,
            }
        )
    return records


def _measure(entries: list, options: argparse.Namespace) -> tuple[dict[str, list], dict[str, dict[str, Any]]]:
    """Builds and times entries, together or each apart; samples and facts by measure and name, pairs there once."""
    samples, facts = {}, {}
    for part in [[entry] for entry in entries] if options.apart else [entries]:
        built = {}
        for entry in part:
            print(f"building {entry.measure}: {entry.name}", file=sys.stderr, flush=True)
            built[f"{entry.measure}: {entry.name}"] = entry.build()
        samples |= interleave({key: variant.call for key, variant in built.items()}, options.rounds, options.calls)
        facts |= {key: variant.facts for key, variant in built.items()}
        del built
        gc.collect()
    return samples, facts


def _chosen(entries: list, names: list[str], field: str) -> list:
    known = list(dict.fromkeys(getattr(entry, field) for entry in entries))
    if unknown := [name for name in names if name not in known]:
        what = "variant" if field == "name" else field
        raise UserError(f"{what} {unknown[0]!r} is unknown; known: {', '.join(known)}")
    return [entry for entry in entries if not names or getattr(entry, field) in names]


def write(records: Iterable[dict[str, Any]], out: pathlib.Path | None) -> None:
    """Writes records a line each, to a file or to the standard output. Raises UserError: the file cannot be written."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if out is None:
        print(lines, end="")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(lines, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:,.1f}"


def _ratio(record: dict[str, Any], reference: str) -> str:
    if reference not in record["ratios"]:
        return ""
    return f"{record['ratios'][reference]:.2f} ({record['cpu_ratios'][reference]:.2f})"


def _table(file: pathlib.Path) -> str:
    """One file of results as a heading, its conditions and a table."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    settings = [text for text in (first["glibc_tunables"], first["xla_flags"]) if text]
    references = list(dict.fromkeys(r for record in records for r in record["ratios"]))
    heads = ["measure", "variant", "ms [quartiles]", "CPU ms", *(f"/ {r} (CPU)" for r in references)]
    rate = "MFU" if first.get("mfu") is not None else "GFLOP/CPU s"
    shared = any(record.get("limit_share") for record in records)
    heads += ["share of the limit"] if shared else []
    heads += ["GFLOP", "XLA GFLOP", rate, "parameters", "temporary MiB", "page faults", "ms in kernel"]
    rows = [heads, ["---", "---", *["---:"] * (len(heads) - 2)]]
    for record in records:
        giga = record["analytic_flops"] / 1e9
        xla = record.get("xla_flops")
        rows.append(
            [
                record["measure"],
                record["variant"],
                f"{record['median_ms']:,.2f} [{record['q25_ms']:,.2f}, {record['q75_ms']:,.2f}]",
                f"{record['cpu_ms']:,.2f}",
                *(_ratio(record, r) for r in references),
                *([f"{record['limit_share'] or 0.0:.2f}"] if shared else []),
                f"{giga:,.3f}",
                f"{xla / 1e9:,.3f}" if xla else "",
                f"{record['mfu']:.1%}" if rate == "MFU" else f"{1e3 * giga / record['cpu_ms']:,.0f}",
                f"{record['parameters']:,}",
                _mib(record.get("temp_bytes")),
                f"{record['page_faults']:,.0f}",
                f"{record['system_ms']:,.1f}",
            ]
        )
    lines = [
        f"### {file.parent.name}: {file.stem}",
        "",
        f"Case `{first['case']}`, size `{first['size']}`, {first['rounds']} rounds of {first['calls']} calls"
        f"{', one variant after the other' if first.get('apart') else ''}. "
        f"{first['device']}; load of the machine {first['load_before']} before and {first['load_after']} after; "
        f"commit {first['commit'] or 'unknown'}; {versions}{'; ' if settings else ''}{' '.join(settings)}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def readme(text: str, results: pathlib.Path) -> str:
    """The text of the README with its tables rebuilt from all stored results."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    tables = [_table(file) for file in sorted(results.glob("*/*.jsonl"))]
    return "\n\n".join([before + START, *tables, END]) + after


def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    options = parse(arguments)
    if options.readme:
        file = HERE / "README.md"
        file.write_text(readme(file.read_text(encoding="utf-8"), HERE / "results"), encoding="utf-8")
        return
    records = run(options)
    write(records, options.out)
    for record in records:
        ratios = ", ".join(f"{_ratio(record, name)} of {name}" for name in record["ratios"])
        times = f"{record['median_ms']:.2f} ms ({record['cpu_ms']:.2f} CPU)"
        print(f"{record['measure']}: {record['variant']}: {times}; {ratios}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
