"""Counts a function's floating point operations from its trace (2 a multiply-add), without running or allocating.

Only products of arrays and convolutions are counted, as in the appendix of PaLM (Chowdhery et al. 2022): norms,
softmaxes, activations, biases and look-ups are left out. XLA's own count includes elementwise work and counts the body
of a loop once; this one counts it as often as it runs.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax

_ADDED = re.compile(r"\(|,|->")


def count(function: Callable[..., Any], *args: Any) -> Counter[str]:
    """Counts the operations of one call by the name of their `jax.named_scope`, `""` outside of all.

    `args` are arrays or `jax.ShapeDtypeStruct`s. A loop or jitted function that has a scope of its own hides the scopes
    inside it; a loop whose length is not known before it runs is a ValueError.
    """
    return _of(jax.make_jaxpr(function)(*args).jaxpr, "")


def _of(jaxpr: Any, scope: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    _add(jaxpr, scope, 1, counted)
    return counted


def _add(jaxpr: Any, scope: str, times: int, counted: Counter[str]) -> None:
    for equation in jaxpr.eqns:
        where = scope or _scope(equation)
        name = equation.primitive.name
        if name == "dot_general":
            counted[where] += times * _product(equation)
        elif name == "conv_general_dilated":
            counted[where] += times * _convolution(equation)
        elif name == "while":
            raise ValueError("a loop of unknown length cannot be counted")
        elif name == "cond":
            branches = [_of(branch.jaxpr, where) for branch in equation.params["branches"]]
            costliest = max(branches, key=lambda branch: branch.total())
            counted.update({part: times * cost for part, cost in costliest.items()})
        else:
            runs = times * equation.params["length"] if name == "scan" else times
            for part in _bodies(equation):
                _add(part, where, runs, counted)


def _scope(equation: Any) -> str:
    """Returns the named scopes around an equation, without the parts that transformations add ("vmap(…)")."""
    names = str(equation.source_info.name_stack).split("/")
    return "/".join(itertools.takewhile(lambda name: not _ADDED.search(name), names))


def _bodies(equation: Any) -> Iterator[Any]:
    """Yields the traces that an equation calls, of jitted, checkpointed and differentiated functions and of scans."""
    for value in equation.params.values():
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * math.prod(equation.outvars[0].aval.shape) * length


def _convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
