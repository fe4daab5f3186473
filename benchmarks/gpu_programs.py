"""Compiles train steps for an H200 that is not there, counts what is in them, and estimates how long they take.

    python -m benchmarks.gpu_programs            compiles what has changed, writes results and tables in the README
    python -m benchmarks.gpu_programs --all      compiles all anew
    python -m benchmarks.gpu_programs --check    traces all; ends with 2 where the stored results no longer hold
    python -m benchmarks.gpu_programs --jax      prints the version of jax that they hold for

Compiling needs jax for CUDA (pip install -e .[cuda]) and no GPU; nothing is run, and no weight is made.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks import cases, hlo, setups
from benchmarks.setups import STORED, Input, Outline, Size
from remind_jax.errors import UserError
from remind_jax.ops.transformer import tracing_for_gpu
from remind_jax.runtime import devices

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results" / "h200-compiled" / "programs.json"
START, END = "<!-- compiled: built by python -m benchmarks.gpu_programs -->", "<!-- end of compiled -->"
# What one H200 reaches in large products and copies, and the time from one kernel to the next.
FLOPS, BANDWIDTH, LAUNCH = (
    {"bf16": 790e12, "f32": 395e12},
    4.3e12,
    3e-6,
)  # float32 as TF32: XLA's default, half the rate
METHODS = ("soft_moe", "remind")
MANY = 8  # devices of the larger topology
LARGE = 2**20  # numbers in a weight that counts as one
# The properties of NVIDIA's H200 SXM that XLA decides by.
H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 device_memory_size: 151397597184 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
"""
# Without a device XLA cannot try its own kernels for products against those of cuBLAS.
OPTIONS = {"xla_gpu_enable_triton_gemm": False}


# ---- Programs --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Shapes of a train step, and options of its network and of the step for `cases.train_step`."""

    size: Size
    options: Mapping[str, Any]


_FPRM = {
    "fundus": Input("image", (224, 224, 3), 0),
    "flow": Input("volume", (16, 224, 224, 3), 0),
    "oxygen": Input("image", (224, 224, 3), 0),
    "tabular": Input("patch", (64,), 0),
}
_TABLES = {f"m{i}": Input("patch", (8,), 0) for i in range(24)}
CASES = {
    **{f"table17, {stage}": Case(setups.SIZES["full"], options) for stage, options in cases.STAGES.items()},
    "fprm": Case(setups.SIZES["fprm"], {"inputs": _FPRM, "image_encoder": "resnet50", "volume_encoder": "r3d_18"}),
    "24 modalities": Case(
        dataclasses.replace(setups.SIZES["fprm"], m=24, t=4, g=500), {"inputs": _TABLES, "group_rows": "batch"}
    ),
}


class Program(NamedTuple):
    """A train step and the shapes of what it takes."""

    step: Callable[..., Any]
    state: Any
    batch: dict[str, jax.ShapeDtypeStruct]


def program(case: Case, method: str, count: int = 1) -> Program:
    """Makes the step of a method in bfloat16 for the samples of `count` devices; weights and inputs are shapes only."""
    of_step, of_network = cases.divided({**case.options, **cases.METHODS[method], **cases.HALVED})
    gate = of_network.pop("gate")
    outline = setups.outline(case.size, **of_network)
    params = outline.network.shapes
    step, start = cases.train_step(outline.network, case.size, gate, **of_step)
    batch = batch_shapes(outline, params, count * case.size.b, of_network.get("kind") == "features")
    return Program(functools.partial(step, axis_name=None), jax.eval_shape(start, params), batch)


def batch_shapes(outline: Outline, params: Any, samples: int, stored: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch as `setups.make_batch` makes it, or of stored features in place of inputs."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = {"group": shape((samples,)), "label": shape((samples,))}
    batch["present"] = jax.ShapeDtypeStruct((samples, len(outline.inputs)), bool)
    batch["weight"] = jax.ShapeDtypeStruct((samples,), jnp.float32)
    for name, one in outline.inputs.items():
        dtype = jnp.uint8 if one.encoder in ("image", "volume") else jnp.float32
        x = jax.ShapeDtypeStruct((samples, *one.shape), dtype)
        if stored:
            features = jax.eval_shape(functools.partial(outline.network.features, modality=name), params, x=x)
            batch[STORED + name] = jax.ShapeDtypeStruct(features.shape, jnp.bfloat16)
        else:
            batch[name] = x
    return batch


def lowered(given: Program, placed: Sequence[Any] = (None, None)) -> jax.stages.Lowered:
    """Lowers a step for CUDA, its state and batch placed as told.

    The platform is named outright: asked for devices of a topology, jax would look it up among the backends that run.
    """
    state, batch = (
        jax.tree.map(lambda x, s=sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree)
        for tree, sharding in zip((given.state, given.batch), placed, strict=True)
    )
    step = jax.jit(given.step, donate_argnums=0, keep_unused=True, out_shardings=placed[0])
    with tracing_for_gpu(True), jax.numpy_dtype_promotion("standard"):
        return step.trace(state, batch).lower(lowering_platforms=("cuda",))


def digest(given: Program) -> str:
    """Returns a digest of the step in StableHLO, which holds neither addresses nor places in files.

    Without cuDNN its attention cannot be traced; XLA's stands in its place, with the same arguments.
    """
    theirs = jax.nn.dot_product_attention

    def plain(*arrays: jax.Array, implementation: str, **options: Any) -> jax.Array:
        return theirs(*arrays, **options)

    with mock.patch.object(jax.nn, "dot_product_attention", plain):
        return hashlib.sha256(lowered(given).as_text().encode()).hexdigest()


# ---- What is in them -------------------------------------------------------------------------------------------------


def compiled(given: Program, topology: Sequence[jax.Device]) -> jax.stages.Compiled:
    """Compiles a step for the devices of a topology, which share a batch."""
    return lowered(given, devices.placements(list(topology))).compile(compiler_options=OPTIONS)


def topology(count: int) -> Sequence[jax.Device]:
    """Returns `count` H200 of one machine."""
    return topologies.get_topology_desc(platform="cuda", target_config=H200, topology=f"1x1x{count}").devices


def seconds(kernel: hlo.Kernel) -> tuple[float, float]:
    """Returns the times that a kernel's products and its bytes take at the rates of the device, for one run."""
    return sum(x.flops / FLOPS[x.dtype] for x in kernel.products), kernel.bytes / BANDWIDTH


def roofline(kernels: Iterable[hlo.Kernel]) -> dict[str, float]:
    """Returns milliseconds of a program: its kernels one after the other, each with a launch and the larger time."""
    parts = Counter()
    for kernel in kernels:
        compute, memory = seconds(kernel)
        parts["products" if compute > memory else "memory"] += 1e3 * kernel.runs * max(compute, memory)
        parts["launches"] += 1e3 * kernel.runs * LAUNCH
    return {name: round(ms, 4) for name, ms in (*parts.items(), ("all", parts.total()))}


def products(kernels: Iterable[hlo.Kernel]) -> dict[str, list[int]]:
    """Returns kernels, runs and operations of products, by type and shape."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for kernel in kernels:
        for one in kernel.products:
            added = (1, kernel.runs, kernel.runs * one.flops)
            found[one.text] = [a + b for a, b in zip(found[one.text], added, strict=True)]
    return dict(sorted(found.items(), key=lambda item: (-item[1][2], item[0])))


def copies(kernels: Iterable[hlo.Kernel], weights: Iterable[tuple[int, ...]]) -> dict[str, list[int]]:
    """Returns runs and bytes of kernels that only move or convert as many numbers as a weight has, or a layer of it."""
    sizes = {size for shape in weights for size in (math.prod(shape), math.prod(shape[1:])) if size >= LARGE}
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kernel in kernels:
        if kernel.moves and any(math.prod(x.shape) in sizes for x in kernel.arrays):
            kind = "cast" if "convert" in kernel.moves else "copy"
            text = f"{kind} {' '.join(map(str, kernel.arrays))}"
            found[text] = [found[text][0] + kernel.runs, found[text][1] + kernel.runs * kernel.bytes]
    return dict(sorted(found.items()))


def collectives(kernels: Iterable[hlo.Kernel]) -> dict[str, list[int]]:
    """Returns runs and bytes that a device hands in, by collective and type."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kernel in kernels:
        if kernel.is_collective:
            for x in kernel.arrays:
                key = f"{kernel.opcode.removesuffix('-start')} {x.dtype}"
                found[key][1] += kernel.runs * x.bytes
            found[key][0] += kernel.runs
    return dict(sorted(found.items()))


def record(name: str, method: str) -> dict[str, Any]:
    """Compiles a program for one device and for several, and says what is in it."""
    start, given = time.monotonic(), program(CASES[name], method)
    one = compiled(given, topology(1))
    kernels, memory = hlo.kernels(one.as_text()), one.memory_analysis()
    many = hlo.kernels(compiled(program(CASES[name], method, MANY), topology(MANY)).as_text())
    by_type = Counter()
    for kernel in kernels:
        for product in kernel.products:
            by_type[product.dtype] += kernel.runs * product.flops
    weights = [x.shape for x in jax.tree.leaves((given.state.params, given.state.frozen))]
    print(f"{name}, {method}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return {
        "program": name,
        "method": method,
        "digest": digest(given),
        "ms": roofline(kernels),
        "kernels": len(kernels),
        "launches": sum(x.runs for x in kernels),
        "flops": dict(by_type),
        "bytes": sum(x.runs * x.bytes for x in kernels),
        "state_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "copies": copies(kernels, weights),
        "collectives": collectives(many),
        "products": products(kernels),
    }


# ---- Stored ----------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Returns the versions of what decides a trace."""
    return {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}


def installed() -> dict[str, str]:
    """Returns those and the versions of what compiles it. Raises UserError: jax for CUDA is not installed."""
    compilers = ("jax-cuda12-plugin", "nvidia-cudnn-cu12", "nvidia-cuda-nvcc-cu12")
    try:
        return versions() | {name: metadata.version(name) for name in compilers}
    except metadata.PackageNotFoundError as error:
        raise UserError("compiling needs jax for CUDA: pip install -e .[cuda]") from error


def stored() -> dict[str, Any]:
    """Reads the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def changed() -> list[str]:
    """Returns the programs whose trace is another one than that of the stored results.

    Raises UserError: another version of jax is installed, whose traces cannot be compared.
    """
    found = stored()
    if versions()["jax"] != found["versions"]["jax"]:
        raise UserError(f"the results hold for jax {found['versions']['jax']}, and {versions()['jax']} is installed")
    kept = holding(found["records"])
    return [f"{name}, {method}" for name in CASES for method in METHODS if (name, method) not in kept]


def holding(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Returns, by program and method, the records whose program has the same trace now."""
    return {
        (x["program"], x["method"]): x
        for x in records
        if x["program"] in CASES and x["digest"] == digest(program(CASES[x["program"]], x["method"]))
    }


def renew(everything: bool) -> None:
    """Compiles programs that have no stored record that holds, or everything; writes after each, so it can go on."""
    found = stored() if RESULTS.exists() else {"versions": {}, "records": []}
    kept = {} if everything or found["versions"] != installed() else holding(found["records"])
    for name in CASES:
        for method in METHODS:
            if (name, method) not in kept:
                kept[name, method] = record(name, method)
                write([kept[key] for key in ((n, m) for n in CASES for m in METHODS) if key in kept])


def write(records: Sequence[Mapping[str, Any]]) -> None:
    """Writes results, a record a line, and the tables of the README."""
    head = {
        "target": "NVIDIA H200, compiled without one",
        "rates": {"flops": FLOPS, "bytes": BANDWIDTH, "launch": LAUNCH},
        "versions": installed(),
    }
    lines = ",\n".join(json.dumps(one) for one in records)
    text = json.dumps(head)[:-1] + f', "records": [\n{lines}\n]}}\n'
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    file = HERE / "README.md"
    file.write_text(readme(file.read_text(encoding="utf-8"), json.loads(text)), encoding="utf-8")


def readme(text: str, found: Mapping[str, Any]) -> str:
    """Returns the text of the README with its tables rebuilt from results."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n\n".join([before + START, f"Versions: {versions}.", _times(found), _contents(found), END]) + after


def _table(*rows: Sequence[str]) -> str:
    ruled = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in ruled)


def _times(found: Mapping[str, Any]) -> str:
    rows = [["program", "ms", "steps/s", "/ soft_moe", "products", "memory", "launches", "kernels", "runs of kernels"]]
    plain = {x["program"]: x["ms"]["all"] for x in found["records"] if x["method"] == METHODS[0]}
    for x in found["records"]:
        ms = x["ms"]
        rows.append([f"{x['program']}: {x['method']}", f"{ms['all']:.2f}", f"{1e3 / ms['all']:.1f}"])
        rows[-1] += [f"{ms['all'] / plain[x['program']]:.3f}"]
        rows[-1] += [f"{ms.get(part, 0):.2f}" for part in ("products", "memory", "launches")]
        rows[-1] += [f"{x['kernels']:,}", f"{x['launches']:,}"]
    return _table(*rows)


def _contents(found: Mapping[str, Any]) -> str:
    heads = ["program", "TFLOP bf16", "f32", "products (f32)", "GB moved", "state GiB", "temporary GiB"]
    rows = [[*heads, "copies, casts of weights: GB", f"collectives on {MANY}: MB"]]
    for x in found["records"]:
        by_kind = {kind: sum(v[1] for k, v in x["copies"].items() if k.startswith(kind)) for kind in ("copy", "cast")}
        floats = {kind: sum(v[0] for k, v in x["products"].items() if k.startswith(kind)) for kind in ("", "f32")}
        rows.append([f"{x['program']}: {x['method']}"])
        rows[-1] += [f"{x['flops'].get(kind, 0) / 1e12:.3f}" for kind in ("bf16", "f32")]
        rows[-1] += [f"{floats['']} ({floats['f32']})", f"{x['bytes'] / 1e9:.1f}"]
        rows[-1] += [f"{x[key] / 2**30:.2f}" for key in ("state_bytes", "temp_bytes")]
        rows[-1] += [f"{by_kind['copy'] / 1e9:.2f}, {by_kind['cast'] / 1e9:.2f}"]
        rows[-1] += [", ".join(f"{v[0]} {k} {v[1] / 1e6:,.1f}" for k, v in x["collectives"].items())]
    return _table(*rows)


def main(arguments: Sequence[str]) -> None:
    """Runs the command line. Raises UserError: jax for CUDA is not there, or results no longer hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jax", action="store_true")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # nothing else may run; with it the plugin does not look for devices
    if options.jax:
        print(stored()["versions"]["jax"])
    elif options.check:
        if names := changed():
            raise UserError(f"steps have changed: {'; '.join(names)}; renew with python -m benchmarks.gpu_programs")
    else:
        renew(options.all)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
