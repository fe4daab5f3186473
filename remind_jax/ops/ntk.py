"""Dominant gradient directions from the neural tangent kernel, and the agreement of a group's with the whole's.

REMIND equations 9 to 17: the outputs F_i(θ) of n samples have the Jacobian J [n, p] and the kernel Θ = J Jᵀ; its top
eigenvector u gives the direction g = uᵀJ, and the gradient consistency of a group is the cosine of its g with the g of
the whole data set. Three methods compute u and differ in cost only:

  * `exact` holds J, for few parameters;
  * `gram` builds Θ from factors of gradients (`ops.gradient_factors`), of rank 1 for an expert with one slot;
  * `lanczos` needs only products Θv, each one vjp and one jvp, and the memory of a few gradients.

Parameters and data are arguments of the compiled functions: XLA would fold closed-over arrays as constants.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remind_jax.ops.gradient_factors import Factors, factors, inner_products
from remind_jax.ops.losses import cross_entropy

Outputs = Callable[..., jax.Array]  # (params, batch) or (params, batch, fixed) -> [n]

METHODS = ("exact", "gram", "lanczos")
EXACT_BYTES = 2**31  # `auto` takes `exact` while the Jacobian and its copy fit into this
FACTOR_BYTES = 2**30  # size of the factors of gradients that `gram` holds at a time, twice
ITERATIONS = 48  # most products Θv of `lanczos`; it ends as soon as u has settled, often after 8 to 20
SETTLED = 1e-3  # largest sine of the angle between u and the eigenvector: the cosine is then 1 - 5e-7


def true_class_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the logit of the true class, [b, c] and [b] -> [b]."""
    return jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def logit_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the logit of the true class minus the largest other, [b, c] and [b] -> [b]."""
    is_true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return true_class_logit(logits, labels) - jnp.max(jnp.where(is_true, -jnp.inf, logits), axis=-1)


OUTPUTS = {"margin": logit_margin, "loss": cross_entropy, "logit": true_class_logit}


class Direction(NamedTuple):
    """The dominant gradient direction of a set of samples.

    Attributes:
      gradient: g = uᵀJ, in the structure of the parameters; its squared length is λ1.
      mean: gradient of the mean output, in the structure of the parameters.
      lambda1, lambda2: the two largest eigenvalues of Θ, shape=().
      trace: trace of Θ, shape=().
      u: top eigenvector [n], zero at rows of weight 0, with its sign chosen by `orient`.
    """

    gradient: Any
    mean: Any
    lambda1: jax.Array
    lambda2: jax.Array
    trace: jax.Array
    u: jax.Array


class Consistency(NamedTuple):
    """The agreement of a group's direction g' with the direction g of the whole (Eq. 13).

    Attributes:
      gc: cosine of g and g'; its sign depends on the signs chosen for two eigenvectors, see `orient`.
      abs_gc: absolute value of the cosine, which does not depend on signs.
      cos_mean_gradient: cosine of the two mean gradients.
      lambda1, lambda2, trace: two largest eigenvalues and trace of the group's kernel.
      n: samples of the group.
    """

    gc: float
    abs_gc: float
    cos_mean_gradient: float
    lambda1: float
    lambda2: float
    trace: float
    n: int


def orient(u: jax.Array) -> jax.Array:
    """Gives an eigenvector [n] of Θ the sign with uᵀΘ1 = λ Σu ≥ 0, so that g has no negative part along the sum.

    Where Σu vanishes to rounding, the first entry of at least half the largest size becomes positive.
    """
    total = jnp.sum(u)
    sizes = jnp.abs(u)
    lead = u[jnp.argmax(sizes >= 0.5 * jnp.max(sizes))]
    decisive = jnp.abs(total) > 1e-5 * jnp.sqrt(jnp.float32(len(u)))
    return u * jnp.where(jnp.where(decisive, total, lead) < 0, -1.0, 1.0)


@functools.partial(jax.jit, static_argnames=("f", "method", "iterations"))
def top_direction(
    f: Outputs,
    params: Any,
    batch: Any,
    weight: jax.Array | None = None,
    fixed: Any = None,
    *,
    method: str = "auto",
    iterations: int = ITERATIONS,
) -> Direction:
    """Computes the dominant gradient direction of a batch (Eq. 9 to 12).

    Args:
      f: (params, batch) or, when `fixed` is given, (params, batch, fixed) -> [n]. An output may depend on its own row
        alone. Each function object is compiled anew.
      params: pytree of float32 arrays; gradients are taken with respect to them.
      batch: pytree of arrays, [n, ...] each.
      weight: 1 for rows that count and 0 for padding, [n]; None counts all.
      fixed: further arrays that `f` reads, such as parameters whose gradients are not wanted.
      method: `exact`, `gram`, `lanczos`, or `auto`, see `resolve_method`.
      iterations: most products with Θ that `lanczos` makes.
    """
    with jax.default_matmul_precision("highest"):
        n = len(jax.tree.leaves(batch)[0])
        weight = jnp.ones(n) if weight is None else weight
        forward = functools.partial(_outputs, f, batch=batch, weight=weight, fixed=fixed)
        backward = jax.vjp(forward, params)[1]
        match resolve_method(method, f, params, batch, fixed):
            case "lanczos":
                values, u = _lanczos(forward, params, weight, min(iterations, n))
                trace = jnp.sum(jax.lax.map(lambda row: _squared_length(f, params, row, fixed), (batch, weight)))
            case "gram":
                values, u, trace = _dense(gram_matrix(f, params, batch, None, weight, None, fixed))
            case _:
                jacobian = _jacobian(f, params, batch, weight, fixed)
                values, u, trace = _dense(_products(jacobian, jacobian))
        u = orient(u)
        (gradient,) = backward(u)
        (mean,) = backward(weight / jnp.sum(weight))
        return Direction(gradient, mean, values[-1], values[-2] if n > 1 else jnp.zeros(()), trace, u)


def resolve_method(method: str, f: Outputs, params: Any, batch: Any, fixed: Any = None) -> str:
    """Returns the method that `auto` means for these arguments; other names are checked and returned.

    `auto` takes `exact` when the Jacobian of the batch is small, `gram` when the factors of its gradients are small,
    else `lanczos`. Nothing is computed; arguments are as in `top_direction`.
    """
    if method != "auto":
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; known: auto, {', '.join(METHODS)}")
        return method
    n = len(jax.tree.leaves(batch)[0])
    if 2 * n * _bytes(params) <= EXACT_BYTES:
        return "exact"
    return "gram" if n * _factor_bytes(f, params, batch, fixed) <= FACTOR_BYTES else "lanczos"


def _bytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _factor_bytes(f: Outputs, params: Any, batch: Any, fixed: Any) -> int:
    """Returns the number of bytes of the factors of one row's gradient."""
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), batch)
    weight = jax.ShapeDtypeStruct((), jnp.float32)
    return _bytes(jax.eval_shape(functools.partial(_factors, f), params, (row, weight), fixed))


@jax.jit
def cosine(a: Any, b: Any) -> jax.Array:
    """Returns the cosine of the angle between two pytrees, shape=(); nan when one of them is zero."""
    with jax.default_matmul_precision("highest"):
        return jnp.clip(_dot(a, b) / (jnp.sqrt(_dot(a, a)) * jnp.sqrt(_dot(b, b))), -1.0, 1.0)


def consistency(whole: Direction, group: Direction) -> Consistency:
    """Computes the gradient consistency of a group with the whole (Eq. 13, 17)."""
    gc = float(cosine(whole.gradient, group.gradient))
    cos_mean = float(cosine(whole.mean, group.mean))
    values = (float(x) for x in (group.lambda1, group.lambda2, group.trace))
    return Consistency(gc, abs(gc), cos_mean, *values, n=len(group.u))


def _outputs(f: Outputs, params: Any, batch: Any, weight: jax.Array, fixed: Any) -> jax.Array:
    values = f(params, batch) if fixed is None else f(params, batch, fixed)
    if values.shape != weight.shape:
        raise ValueError(f"the function must give one number a row, {weight.shape}, but gave {values.shape}")
    return values.astype(jnp.float32) * weight


def _dot(a: Any, b: Any) -> jax.Array:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _output(f: Outputs, params: Any, row: tuple[Any, jax.Array], fixed: Any) -> jax.Array:
    """Returns the output of one row, given as (its part of the batch, its weight)."""
    alone, weight = jax.tree.map(lambda x: x[None], row)
    return _outputs(f, params, alone, weight, fixed)[0]


def _gradient(f: Outputs, params: Any, row: tuple[Any, jax.Array], fixed: Any) -> Any:
    return jax.jacrev(lambda p: _output(f, p, row, fixed))(params)


def _factors(f: Outputs, params: Any, row: tuple[Any, jax.Array], fixed: Any) -> Factors:
    return factors(functools.partial(_output, f), params, row, fixed)


def _squared_length(f: Outputs, params: Any, row: tuple[Any, jax.Array], fixed: Any) -> jax.Array:
    gradient = _gradient(f, params, row, fixed)
    return _dot(gradient, gradient)


def _jacobian(f: Outputs, params: Any, batch: Any, weight: jax.Array, fixed: Any) -> Any:
    """Returns J as a pytree with leaves [n, ...]."""
    return jax.vmap(lambda row: _gradient(f, params, row, fixed))((batch, weight))


def _products(a: Any, b: Any) -> jax.Array:
    """Returns the inner products of the rows of two Jacobians, [n, m]."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(x.reshape(len(x), -1) @ y.reshape(len(y), -1).T for x, y in pairs)


def _dense(theta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the ascending eigenvalues [n], the top eigenvector [n] and the trace of Θ."""
    values, vectors = jnp.linalg.eigh(theta)
    return values, vectors[:, -1], jnp.trace(theta)


@functools.partial(jax.jit, static_argnames=("f", "chunk"))
def gram_matrix(
    f: Outputs,
    params: Any,
    a: Any,
    b: Any = None,
    weight_a: jax.Array | None = None,
    weight_b: jax.Array | None = None,
    fixed: Any = None,
    *,
    chunk: int = 0,
) -> jax.Array:
    """Computes the block Θ(A, B) of the kernel, [n, m], from factors of gradients; b=None gives the kernel of `a`.

    With it Eq. 13 needs no direction: GC = uᵀ Θ(X, X_k) u' / √(λ1 λ1'). Arguments are as in `top_direction`, for
    batches of n and of m rows. `chunk` rows of a and of b have their factors held at a time; 0 takes as many as
    `FACTOR_BYTES` allow. When `a` does not fit into one chunk, the factors of b are computed once for each chunk of a.
    """
    with jax.default_matmul_precision("highest"):
        chunk = chunk or max(1, FACTOR_BYTES // _factor_bytes(f, params, a, fixed))
        (rows, n), (columns, m) = (_chunks(*x, chunk) for x in ((a, weight_a), (b, weight_b) if b else (a, weight_a)))
        of_rows = jax.vmap(functools.partial(_factors, f), in_axes=(None, 0, None))

        def strip(left: tuple[Any, jax.Array]) -> jax.Array:
            held = of_rows(params, left, fixed)
            if b is None and n <= chunk:
                return inner_products(held, held)[None]
            return jax.lax.map(lambda right: inner_products(held, of_rows(params, right, fixed)), columns)

        blocks = jax.lax.map(strip, rows)  # [n / chunk, m / chunk, chunk, chunk]
        return blocks.transpose(0, 2, 1, 3).reshape(blocks.shape[0] * blocks.shape[2], -1)[:n, :m]


def _chunks(batch: Any, weight: jax.Array | None, chunk: int) -> tuple[tuple[Any, jax.Array], int]:
    """Returns batch and weights with leaves [n / chunk, chunk, ...], padded with rows of weight 0, and n."""
    n = len(jax.tree.leaves(batch)[0])
    chunk = min(chunk, n)
    count = -(-n // chunk)
    position = np.arange(count * chunk)
    real = jnp.asarray(position < n, jnp.float32)
    taken = jax.tree.map(lambda x: x[np.minimum(position, n - 1)], (batch, jnp.ones(n) if weight is None else weight))
    batch, weight = taken
    return jax.tree.map(lambda x: x.reshape(count, chunk, *x.shape[1:]), (batch, weight * real)), n


class _Krylov(NamedTuple):
    """Orthonormal vectors and their images under Θ [k, n], the next vector [n], and the Ritz pairs found so far."""

    count: jax.Array
    basis: jax.Array
    images: jax.Array
    following: jax.Array
    values: jax.Array
    u: jax.Array
    settled: jax.Array


def _lanczos(forward: Callable[[Any], jax.Array], params: Any, weight: jax.Array, most: int):
    """Finds ascending eigenvalues [most], of which the top two are accurate, and the top eigenvector [n] by Lanczos."""
    backward = jax.vjp(forward, params)[1]
    # The first vector, and the vectors that continue after a breakdown; the key is fixed to make results repeatable.
    noise = jax.random.normal(jax.random.key(0), (most + 1, len(weight))) * weight[None]

    def product(v: jax.Array) -> jax.Array:
        return jax.jvp(forward, (params,), backward(v))[1]

    def step(state: _Krylov) -> _Krylov:
        i = state.count
        basis = state.basis.at[i].set(state.following)
        images = state.images.at[i].set(product(state.following))
        values, vectors = jnp.linalg.eigh(basis @ images.T)  # which makes it symmetric
        top = vectors[:, -2:].T if most > 1 else vectors.T
        ritz, ritz_images = top @ basis, top @ images
        errors = jnp.linalg.norm(ritz_images - values[-len(top) :, None] * ritz, axis=1)
        gap = values[-1] - values[-2] if most > 1 else values[-1]
        settled = (errors[-1] <= SETTLED * gap) & (errors[0] <= 0.02 * values[-1]) & (i >= 3)
        rest = _without(_without(images[i], basis), basis)
        size = jnp.linalg.norm(rest)
        fresh = _without(_without(noise[i + 1], basis), basis)
        fresh_size = jnp.linalg.norm(fresh)
        # Two equal eigenvalues, or a kernel of low rank, exhaust the Krylov space: continue from a vector outside of
        # it. When nothing is outside, a zero vector adds nothing.
        fresh = jnp.where(fresh_size > 1e-3, fresh / jnp.maximum(fresh_size, 1e-3), 0.0)
        following = jnp.where(size > 1e-6 * values[-1], rest / jnp.maximum(size, 1e-30), fresh)
        return _Krylov(i + 1, basis, images, following, values, ritz[-1], settled)

    def goes_on(state: _Krylov) -> jax.Array:
        return (state.count < most) & ~state.settled

    zeros = jnp.zeros((most, len(weight)))
    first = noise[0] / jnp.linalg.norm(noise[0])
    start = _Krylov(jnp.int32(0), zeros, zeros, first, jnp.zeros(most), first, jnp.bool_(False))
    end = jax.lax.while_loop(goes_on, step, start)
    return end.values, end.u / jnp.linalg.norm(end.u)


def _without(v: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns the part of v [n] outside of the span of orthonormal rows [k, n]."""
    return v - (basis @ v) @ basis


def sample_groups(
    groups: np.ndarray, n: int, whole: int, *, balanced: bool = False, seed: int | tuple[int, ...] = 0
) -> tuple[dict[Hashable, np.ndarray], np.ndarray]:
    """Draws `n` rows from each group, all of a smaller one, and `whole` rows of all, without replacement.

    `groups` [r] has the group of each row. The whole is drawn from all rows, so that each group has its natural share,
    or is with `balanced` the union of the rows drawn from groups. Returns ascending positions by group, and those of
    the whole.
    """
    rng = np.random.default_rng(seed)
    groups = np.asarray(groups)
    drawn = {}
    for name in np.unique(groups).tolist():
        rows = np.flatnonzero(groups == name)
        drawn[name] = np.sort(rng.choice(rows, min(n, len(rows)), replace=False))
    if balanced:
        return drawn, np.sort(np.concatenate(list(drawn.values())))
    return drawn, np.sort(rng.choice(len(groups), min(whole, len(groups)), replace=False))


def consistencies(
    f: Outputs, params: Any, whole: Any, groups: Mapping[Hashable, Any], fixed: Any = None, *, method: str = "auto"
) -> dict[Hashable, Consistency]:
    """Computes the gradient consistency of each group's batch with the batch of the whole; see `top_direction`.

    Rows of weight 0 pad groups to the size of the largest, so that one compiled function serves all.
    """
    sizes = {name: len(jax.tree.leaves(batch)[0]) for name, batch in groups.items()}
    most = max(sizes.values(), default=0)
    reference = top_direction(f, params, whole, None, fixed, method=method)
    result = {}
    for name, batch in groups.items():
        position = np.arange(most)
        padded = jax.tree.map(lambda x, n=sizes[name], at=position: np.asarray(x)[np.minimum(at, n - 1)], batch)
        weight = (position < sizes[name]).astype(np.float32)
        direction = top_direction(f, params, padded, weight, fixed, method=method)
        result[name] = consistency(reference, direction)._replace(n=sizes[name])
    return result


def gradient_consistency(
    loss_fn: Outputs,
    params: Any,
    batch: Any,
    groups: np.ndarray,
    *,
    fixed: Any = None,
    n: int = 32,
    whole: int = 128,
    balanced: bool = False,
    method: str = "auto",
    seed: int = 0,
) -> dict[Hashable, Consistency]:
    """Computes the gradient consistency of the groups of any data set under any JAX model (Eq. 1).

        def loss(params, batch):  # one number a row
            hidden = jnp.tanh(batch["x"] @ params["in"])
            return jnp.square((hidden @ params["out"])[:, 0] - batch["y"])

        scores = gradient_consistency(loss, params, {"x": x, "y": y}, groups=hospital)
        for name, score in scores.items():
            print(name, score.abs_gc, score.cos_mean_gradient, score.lambda2 / score.lambda1)

    To look at a part of a model, pass that part as `params`, the rest as `fixed`, and a function of all three.

    Args:
      loss_fn: (params, batch) or (params, batch, fixed) -> one number a row, of which gradients are taken; any scalar
        output will do. A number may depend on its own row alone.
      params: pytree of float32 arrays.
      batch: pytree of arrays, [r, ...] each.
      groups: the group of each row, [r], integers or strings.
      fixed: further arrays that `loss_fn` takes as its third argument.
      n, whole, balanced, seed: as in `sample_groups`.
      method: as in `top_direction`.

    Returns gc, abs_gc, cos_mean_gradient, lambda1, lambda2, trace and n of each group.
    """
    drawn, rows = sample_groups(groups, n, whole, balanced=balanced, seed=seed)

    def take(rows: np.ndarray) -> Any:
        return jax.tree.map(lambda x: np.asarray(x)[rows], batch)

    batches = {name: take(at) for name, at in drawn.items()}
    return consistencies(loss_fn, params, take(rows), batches, fixed, method=method)
