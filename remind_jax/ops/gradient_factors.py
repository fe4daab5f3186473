"""Per-sample gradients as factors, and their inner products, for any JAX function (Goodfellow 2015, arXiv 1510.01799).

Where a weight w enters a function f once, in a product y = x·w, the gradient of f is x ⊗ δ with δ = ∂f/∂y. With t rows
in x, one for each token or slot, the gradients of two samples have the inner product Σ_tt' (x_t · x'_t')(δ_t · δ'_t'),
so x and δ replace an array of the size of w. With one slot an expert, t is 1.

The products are found in the function's trace: δ is the derivative with respect to zeros that are added to y.
"""

import collections
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

INLINED = ("jit", "pjit")
# These only reorder or reshape the entries of their operand, which leaves inner products as they are.
REARRANGED = ("reshape", "transpose", "squeeze", "expand_dims", "copy")

Place = tuple[int, ...]  # numbers of an equation: of the caller in its trace, then of the equation in the called trace


class Factors(NamedTuple):
    """The gradient of a sample.

    `pairs` has x [b, t, c] and δ [b, t, f] for each weight that has factors; b is 1 or the number of weights stacked.
    `rest` has the whole gradients with respect to all other parameters.
    """

    pairs: list[tuple[jax.Array, jax.Array]]
    rest: list[jax.Array]


class _Product(NamedTuple):
    """An equation y = x·w: its place, which operand is w, and the equation."""

    place: Place
    side: int
    equation: Any


def factors(function: Callable[..., jax.Array], params: Any, *rest: Any) -> Factors:
    """Returns the gradient of a scalar function (params, *rest) -> () by its first argument, a pytree of float arrays.

    `jax.vmap` maps it over samples.
    """
    leaves, structure = jax.tree.flatten(params)
    closed = jax.make_jaxpr(lambda leaves, *rest: function(structure.unflatten(leaves), *rest))(leaves, *rest)
    found = _single_products(closed.jaxpr, len(leaves))
    others = [leaf for i, leaf in enumerate(leaves) if i not in found]
    products = {product.place: product for product in found.values()}
    zeros = {place: jnp.zeros_like(p.equation.outvars[0].aval) for place, p in products.items()}

    def tapped(zeros: dict[Place, jax.Array], others: list[jax.Array]) -> tuple[jax.Array, dict[Place, jax.Array]]:
        left, seen = iter(others), {}
        values = [leaf if i in found else next(left) for i, leaf in enumerate(leaves)]
        (value,) = _evaluate(closed.jaxpr, closed.consts, [*values, *jax.tree.leaves(rest)], products, zeros, seen)
        return value, seen

    (deltas, gradients), inputs = jax.grad(tapped, argnums=(0, 1), has_aux=True)(zeros, others)
    return Factors([_aligned(p, inputs[place], deltas[place]) for place, p in products.items()], gradients)


def inner_products(a: Factors, b: Factors) -> jax.Array:
    """Returns the inner products [n, m] of n gradients with m gradients; their factors have a leading axis n and m."""
    whole = [x.reshape(len(x), -1) @ y.reshape(len(y), -1).T for x, y in zip(a.rest, b.rest, strict=True)]
    pairs = [
        jnp.einsum("nmbtu,nmbtu->nm", *(jnp.einsum("nbti,mbui->nmbtu", s, t) for s, t in zip(left, right, strict=True)))
        for left, right in zip(a.pairs, b.pairs, strict=True)
    ]
    return sum(whole + pairs)


def _single_products(jaxpr: Any, count: int) -> dict[int, _Product]:
    """Returns, by parameter, the only product that uses it, for parameters whose factors cost less than gradients.

    The parameters are the first `count` variables of the trace.
    """
    uses = collections.defaultdict(list)
    for parameter, product in _uses(jaxpr, dict(zip(jaxpr.invars[:count], range(count), strict=True)), ()):
        uses[parameter].append(product)
    single = {parameter: products[0] for parameter, products in uses.items() if len(products) == 1}
    return {parameter: product for parameter, product in single.items() if product and _pays(product)}


def _uses(jaxpr: Any, names: dict[Any, int], place: Place) -> Iterator[tuple[int, _Product | None]]:
    """Yields each use of a parameter: its number, and the product with another operand, None for any other use.

    `names` numbers the parameter of each variable; variables that only rearrange a parameter are added. `place` is that
    of the equation that calls this trace.
    """
    for i, equation in enumerate(jaxpr.eqns):
        name, here = equation.primitive.name, (*place, i)
        known = [None if isinstance(v, core.Literal) else names.get(v) for v in equation.invars]
        used = [(side, parameter) for side, parameter in enumerate(known) if parameter is not None]
        if not used:
            continue
        if name in INLINED:
            inner = equation.params["jaxpr"].jaxpr
            inside = {inner.invars[side]: parameter for side, parameter in used}
            yield from _uses(inner, inside, here)
            names |= {
                outer: inside[v]
                for outer, v in zip(equation.outvars, inner.outvars, strict=True)
                if not isinstance(v, core.Literal) and v in inside
            }
        elif name in REARRANGED:
            names[equation.outvars[0]] = used[0][1]
        elif name == "dot_general" and len(used) == 1:
            yield used[0][1], _Product(here, used[0][0], equation)
        else:
            yield from ((parameter, None) for _, parameter in used)
    if not place:
        yield from ((names[v], None) for v in jaxpr.outvars if not isinstance(v, core.Literal) and v in names)


def _evaluate(jaxpr, consts, arguments, products, zeros, seen, place: Place = ()) -> list[jax.Array]:
    """Runs a trace, adds `zeros` to the results of products, and stores the operand next to each w in `seen`."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for i, equation in enumerate(jaxpr.eqns):
        operands, here = [read(v) for v in equation.invars], (*place, i)
        if equation.primitive.name in INLINED:
            inner = equation.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, operands, products, zeros, seen, here)
        else:
            options = equation.primitive.get_bind_params(equation.params)
            results = equation.primitive.bind(*operands, **options)
            results = results if equation.primitive.multiple_results else [results]
        if here in products:
            results = [results[0] + zeros[here]]
            seen[here] = operands[1 - products[here].side]
        values |= zip(equation.outvars, results, strict=True)
    return [read(v) for v in jaxpr.outvars]


def _axes(product: _Product) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of x: those shared with y and w, those shared with y alone, and those summed over."""
    summed, shared = (axes[1 - product.side] for axes in product.equation.params["dimension_numbers"])
    rank = product.equation.invars[1 - product.side].aval.ndim
    own = tuple(axis for axis in range(rank) if axis not in (*summed, *shared))
    return tuple(shared), own, tuple(summed)


def _sizes(product: _Product) -> tuple[int, int, int, int]:
    """Returns the sizes b, t, c and f of `Factors`."""
    shape = product.equation.invars[1 - product.side].aval.shape
    b, t, c = (math.prod(shape[axis] for axis in axes) for axes in _axes(product))
    return b, t, c, math.prod(product.equation.outvars[0].aval.shape) // (b * t)


def _pays(product: _Product) -> bool:
    """Returns whether inner products take no more operations from factors than from whole gradients."""
    _, t, c, f = _sizes(product)
    return t * t * (c + f) <= c * f


def _aligned(product: _Product, x: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns x and δ in the layout of `Factors`, [b, t, c] and [b, t, f]."""
    b, t, c, f = _sizes(product)
    x = jnp.transpose(x, tuple(itertools.chain(*_axes(product)))).reshape(b, t, c)
    # The result of a product has the shared axes first, then the axes of its left operand.
    return x, delta.reshape(b, t, f) if product.side == 1 else delta.reshape(b, f, t).swapaxes(1, 2)
