"""Reads the text of a program that XLA compiled for a GPU: its kernels, what each computes, reads and writes.

A kernel is a scheduled instruction that runs on the device: a fusion, a call of a library, a copy, a collective. A loop
stands for the kernels of its body, as often as it runs; of a branch the one that moves most bytes is taken.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
SIZES |= {"s64": 8, "u64": 8, "f64": 8, "token": 0}
# Names for memory, and what the host does.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
_OPCODE = re.compile(r"\s*([a-z][\w-]*)\(")
_HEAD = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")


class Array(NamedTuple):
    """Type and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    """A line of a computation: what it gives, what it is called with (names), and the rest of its text."""

    name: str
    arrays: list[Array]
    opcode: str
    operands: list[str]
    rest: str
    is_root: bool

    @property
    def bytes(self) -> int:
        return sum(x.bytes for x in self.arrays)


Computation = dict[str, Instruction]


class Product(NamedTuple):
    """A product of arrays or a convolution: what it multiplies, and its operations (2 a multiply-add)."""

    text: str
    dtype: str
    flops: int


class Kernel(NamedTuple):
    """A kernel of a program.

    Attributes:
      name, opcode: of its instruction; the opcode of a library's call is its target.
      arrays: what it writes.
      products: what it multiplies.
      bytes: read and written in the memory of the device.
      runs: how often it runs in one run of the program.
      moves: opcodes of a fusion that only moves or converts numbers; empty otherwise.
    """

    name: str
    opcode: str
    arrays: list[Array]
    products: list[Product]
    bytes: int
    runs: int
    moves: frozenset[str]

    @property
    def is_collective(self) -> bool:
        return self.opcode.removesuffix("-start") in _COLLECTIVES


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a compiled program, those of loops with the number of their runs."""
    computations, entry = parse(text)
    return list(_kernels(computations, entry, 1))


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a program by name, and the name of the first."""
    found: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif match := _LINE.match(line):
            one = _instruction(match[2], re.sub(r"/\*.*?\*/", "", match[3]), bool(match[1]))
            current[one.name] = one
    return found, entry


def _instruction(name: str, text: str, is_root: bool) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opcode = _OPCODE.match(text, end)
    start = opcode.end() - 1
    stop = _closing(text, start)
    operands = re.findall(r"%([^\s,)]+)", text[start:stop])
    if opcode[1] in ("parameter", "constant"):
        operands = [text[start + 1 : stop - 1]]
    return Instruction(name, _arrays(text[:end]), opcode[1], operands, text[stop:], is_root)


def _closing(text: str, start: int) -> int:
    """Returns the position after the bracket that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if not depth:
            return i + 1
    raise ValueError(f"a bracket is not closed: {text[start : start + 80]}")


def _arrays(text: str) -> list[Array]:
    return [Array(x[1], tuple(map(int, filter(None, x[2].split(","))))) for x in _ARRAY.finditer(text)]


def _called(instruction: Instruction, attribute: str) -> list[str]:
    found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[^\s,]+)", instruction.rest)
    return re.findall(r"%([^\s,}]+)", found[1]) if found else []


def _kernels(computations: dict[str, Computation], name: str, runs: int) -> Iterator[Kernel]:
    for one in computations[name].values():
        if one.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
            if not trips:
                raise ValueError(f"it is not known how often {one.name} runs")
            for part in (*_called(one, "body"), *_called(one, "condition")):
                yield from _kernels(computations, part, runs * int(trips[1]))
        elif one.opcode == "conditional":
            branches = [list(_kernels(computations, part, runs)) for part in _called(one, "branch_computations")]
            yield from max(branches, key=lambda branch: sum(x.bytes for x in branch))
        elif one.opcode in ("call", "async-start"):
            for part in _called(one, "to_apply") + _called(one, "calls"):
                yield from _kernels(computations, part, runs)
        elif one.opcode not in _FREE and not one.opcode.endswith(("-done", "-update")):
            yield _kernel(computations, computations[name], one, runs)


def _kernel(computations: dict[str, Computation], around: Computation, one: Instruction, runs: int) -> Kernel:
    inputs = [around[name] for name in one.operands]
    if one.opcode == "fusion":
        inside = computations[_called(one, "calls")[0]]
        products = [_dot(inside, x) for x in inside.values() if x.opcode == "dot"]
        return Kernel(one.name, "fusion", one.arrays, products, _fusion_bytes(inside), runs, _moves(inside))
    moved = sum(x.bytes for x in inputs) + one.bytes
    if one.opcode.endswith("-start"):  # which gives its operands beside its results
        moved, arrays = 2 * sum(x.bytes for x in inputs), [y for x in inputs for y in x.arrays]
        return Kernel(one.name, one.opcode, arrays, [], moved, runs, frozenset())
    if one.opcode != "custom-call":
        moves = frozenset({one.opcode}) if one.opcode in _MOVES else frozenset()
        return Kernel(one.name, one.opcode, one.arrays, [], moved, runs, moves)
    # The last of several results is room that the library works in.
    arrays = [x for x in one.arrays if x.dtype not in ("s8", "u8")]
    moved = sum(x.bytes for x in inputs) + sum(x.bytes for x in arrays)
    target = re.search(r'custom_call_target="([^"]*)"', one.rest)[1]
    return Kernel(one.name, target, arrays, _library(target, inputs, arrays, one.rest), moved, runs, frozenset())


# ---- Operations ------------------------------------------------------------------------------------------------------


def _product(inputs: list[Array], output: Array, flops: int) -> Product:
    return Product(f"{' x '.join(map(str, inputs))} -> {output}", inputs[0].dtype, flops)


def _dot(inside: Computation, one: Instruction) -> Product:
    operands = [inside[name].arrays[0] for name in one.operands[:2]]
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.rest)[1]
    length = math.prod(operands[0].shape[int(axis)] for axis in axes.split(",") if axis)
    return _product(operands, one.arrays[0], 2 * math.prod(one.arrays[0].shape) * length)


def _library(target: str, inputs: list[Instruction], arrays: list[Array], rest: str) -> list[Product]:
    """Returns the products of a library's call; attention counts its 2 products forward and 5 backward."""
    operands = [x.arrays[0] for x in inputs if x.arrays]
    if target.startswith("__cublas"):
        numbers = json.loads(re.search(r'"dot_dimension_numbers":(\{.*?\})', rest)[1])
        length = math.prod(operands[0].shape[int(axis)] for axis in numbers["lhs_contracting_dimensions"])
        return [_product(operands[:2], arrays[0], 2 * math.prod(arrays[0].shape) * length)]
    if target.startswith("__cudnn$conv"):
        kernel_axes = re.search(r"dim_labels=\w+_(\w+)->", rest)[1]
        outputs, kernel = arrays[0], operands[1]
        if "BackwardInput" in target:
            outputs = operands[0]
        elif "BackwardFilter" in target:
            outputs, kernel = operands[1], arrays[0]
        flops = 2 * math.prod(outputs.shape) * math.prod(kernel.shape) // kernel.shape[kernel_axes.index("o")]
        return [_product(operands[:2], arrays[0], flops)]
    if target.startswith("__cudnn$fmha"):
        query, key = operands[0], operands[1]  # [b, n, h, k]
        count = 5 if "Backward" in target else 2
        b, n, h, k = query.shape
        return [_product([query, key], arrays[0], count * 2 * b * h * n * key.shape[1] * k)]
    return []


# ---- Bytes -----------------------------------------------------------------------------------------------------------

_MOVES = {"copy", "transpose", "convert", "reshape"}


def _moves(inside: Computation) -> frozenset[str]:
    opcodes = {x.opcode for x in inside.values()} - {"parameter", "bitcast"}
    return frozenset(opcodes) if opcodes and opcodes <= _MOVES else frozenset()


def _fusion_bytes(inside: Computation) -> int:
    """Counts what a fusion reads, of sliced operands the slices, and what it writes, of updated ones the update."""
    users: dict[str, list[Instruction]] = {}
    for one in inside.values():
        for name in one.operands:
            users.setdefault(name, []).append(one)

    def read(one: Instruction) -> int:
        total = 0
        for user in users.get(one.name, []):
            first = user.operands[0] == one.name
            if user.opcode == "bitcast":
                total += read(user)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
                total += user.bytes
            elif user.opcode in ("dynamic-update-slice", "scatter") and first:
                total += 0  # stays where it is
            else:
                return one.bytes
        return min(total, one.bytes)

    def written(one: Instruction) -> int:
        if one.opcode == "bitcast":
            return written(inside[one.operands[0]])
        if one.opcode == "tuple":
            return sum(written(inside[name]) for name in one.operands)
        if one.opcode == "dynamic-update-slice":
            return inside[one.operands[1]].bytes
        if one.opcode == "scatter":
            return 2 * inside[one.operands[-1]].bytes  # which adds to what is there
        return one.bytes

    root = next(x for x in inside.values() if x.is_root)
    return sum(read(x) for x in inside.values() if x.opcode == "parameter") + written(root)
