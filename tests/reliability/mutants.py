"""Mutants of the equations: one sign, axis, bound or operator is changed at a time, and the file's tests must see it.

Written here because mutation tools rewrite a checkout and run it in a shell; a mutant of these is a source text that an
import hook puts in place of the file, in a process of its own.
"""

import ast
import copy
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.reliability import Tally, row
from tests.tiny_runs import ROOT

# The functions that hold equations of the paper, and the tests of their files.
FILES = {
    "remind_jax/objectives/group_dro.py": (
        ("initial_weights", "refresh", "known_losses", "group_dro", "robust_factors"),
        ("tests/objectives/test_group_dro.py",),
    ),
    "remind_jax/ops/soft_moe.py": ((), ("tests/ops/test_soft_moe.py",)),
    "remind_jax/ops/routing.py": ((), ("tests/ops/test_routing.py",)),
    "remind_jax/ops/imputation.py": ((), ("tests/ops/test_imputation.py",)),
    "remind_jax/ops/losses.py": ((), ("tests/ops/test_losses.py",)),
    "remind_jax/ops/ntk.py": (("cosine", "_dot", "_products", "_dense", "gram_matrix"), ("tests/ops/test_ntk.py",)),
}
_BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: None,
}
_COMPARE = {ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
_CALLS = {
    "maximum": "minimum",
    "minimum": "maximum",
    "softmax": "log_softmax",
    "log_softmax": "softmax",
    "mean": "sum",
    "max": "min",
    "exp": "expm1",
    "log": "log1p",
    "sum": "mean",
}


def mutants(source: str, functions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Mutants of a source text: what was changed, and the text.

    Args:
      source: of a module.
      functions: to change, all when empty.
    """
    tree = ast.parse(source)
    for top in tree.body:
        if not isinstance(top, ast.FunctionDef) or (functions and top.name not in functions):
            continue
        skipped = _unchanged(top)
        for i, node in enumerate(ast.walk(top)):
            if id(node) in skipped:
                continue
            for what, change in _changes(node):
                other = copy.deepcopy(tree)
                found = next(x for x in other.body if isinstance(x, ast.FunctionDef) and x.name == top.name)
                twin = next(x for j, x in enumerate(ast.walk(found)) if j == i)
                change(twin)
                yield f"{top.name}:{getattr(node, 'lineno', 0)}: {what}", ast.unparse(ast.fix_missing_locations(other))


def _unchanged(function: ast.FunctionDef) -> set[int]:
    """Nodes that are no equations: docstrings, annotations, defaults, what is raised, and its conditions."""
    found: set[int] = set()
    for node in ast.walk(function):
        parts: list[ast.AST] = []
        if isinstance(node, ast.FunctionDef):
            parts += [node.args, *node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation]
        elif _is_no_equation(node):
            parts += [node]
        for part in parts:
            found |= {id(x) for x in ast.walk(part)}
    return found


def _is_no_equation(node: ast.AST) -> bool:
    """Docstrings, messages, what is raised, and where."""
    if isinstance(node, ast.If):
        return isinstance(node.body[0], ast.Raise)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Raise | ast.JoinedStr)


def _changes(node: ast.AST):
    """What can be changed at a node: a word, and what does it to the node's twin."""
    if isinstance(node, ast.BinOp) and _BINARY.get(type(node.op)):
        to = _BINARY[type(node.op)]
        yield f"{type(node.op).__name__} to {to.__name__}", lambda twin: setattr(twin, "op", to())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield "sign dropped", lambda twin: setattr(twin, "op", ast.UAdd())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.Not):
        yield "negation dropped", _drop_negation
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARE:
        to = _COMPARE[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} to {to.__name__}", lambda twin: setattr(twin, "ops", [to()])
    elif isinstance(node, ast.keyword) and node.arg == "axis":
        yield "another axis", lambda twin: setattr(twin, "value", _other_axis(twin.value))
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) >= 1:
        yield f"{node.value} to {node.value + 1}", lambda twin: setattr(twin, "value", twin.value + 1)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(r"->.*\w\w$", node.value):
        yield "axes of the result swapped", _swap_result
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CALLS:
        name = _CALLS[node.func.attr]
        yield f"{node.func.attr} to {name}", lambda twin: setattr(twin.func, "attr", name)
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "where"
        and len(node.args) == 3
    ):
        yield "branches of where swapped", lambda twin: twin.args.__setitem__(slice(1, 3), twin.args[:0:-1])
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        to = ast.BitOr if isinstance(node.op, ast.BitAnd) else ast.BitAnd
        yield "and for or", lambda twin: setattr(twin, "op", to())


def _drop_negation(twin: ast.UnaryOp) -> None:
    """`~~x` is `x` for booleans."""
    twin.operand = ast.UnaryOp(op=copy.deepcopy(twin.op), operand=twin.operand)


def _other_axis(value: ast.expr) -> ast.expr:
    if isinstance(value, ast.Tuple | ast.List):
        return ast.Tuple(elts=value.elts[:1], ctx=ast.Load())
    minus = isinstance(value, ast.UnaryOp)
    return ast.Constant(0) if minus else ast.UnaryOp(op=ast.USub(), operand=ast.Constant(1))


def _swap_result(twin: ast.Constant) -> None:
    """The last two letters after the arrow of an einsum."""
    twin.value = f"{twin.value[:-2]}{twin.value[:-3:-1]}"


_RUN = """
import importlib.abc, importlib.util, os, sys
class Mutant(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == os.environ["MUTANT_MODULE"]:
            return importlib.util.spec_from_file_location(name, os.environ["MUTANT_FILE"], loader=self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        with open(os.environ["MUTANT_FILE"], encoding="utf-8") as file:
            exec(compile(file.read(), os.environ["MUTANT_FILE"], "exec"), module.__dict__)
sys.meta_path.insert(0, Mutant())
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def survives(module: str, source: str, tests: tuple[str, ...], folder: pathlib.Path) -> bool:
    """Whether the tests pass with a source text in place of a module."""
    file = folder / "mutant.py"
    file.write_text(source, encoding="utf-8")
    environment = os.environ | {"MUTANT_MODULE": module, "MUTANT_FILE": str(file), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _RUN, "-n0", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=900)
    return done.returncode == 0


@row(
    name="mutants",
    title="signs, axes, bounds and operators of the equations changed, one at a time",
    target="at least 95 % seen by the unit tests of the file",
    unit="mutants",
    reduced=4,
    full=400,
    broken="the tests of another file are run",
)
def mutated(count: int, broken: bool) -> Tally:
    """Mutants of all files in turn, so that any count has some of each."""
    tally = Tally()
    every = {
        path: list(mutants((ROOT / path).read_text(encoding="utf-8"), functions))
        for path, (functions, _) in FILES.items()
    }
    total = sum(map(len, every.values()))
    chosen = _spread(every, count)
    with tempfile.TemporaryDirectory() as root:
        for path, (what, source) in chosen:
            tests = ("tests/runtime/test_files.py",) if broken else FILES[path][1]
            module = path.removesuffix(".py").replace("/", ".")
            lives = survives(module, source, tests, pathlib.Path(root))
            tally.check(not lives, f"{path}, {what}")
    tally.notes.append(
        f"{len(chosen)} of {total} mutants: " + ", ".join(f"{len(found)} of {path}" for path, found in every.items())
    )
    return tally


def _spread(every: dict[str, list], count: int) -> list[tuple[str, tuple[str, str]]]:
    """So many mutants, evenly over all of them."""
    flat = [(path, mutant) for path, found in every.items() for mutant in found]
    if count >= len(flat):
        return flat
    return [flat[i * len(flat) // count] for i in range(count)]
