"""Factors of gradients: which weights have them, and inner products against those of whole gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.ops.gradient_factors import factors, inner_products

N, M, D, F = 5, 3, 12, 10


@jax.jit
def _inside_jit(w, x):
    return jnp.tanh(x @ jnp.reshape(w, (D, F)))


def _scan(w, x):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(carry @ w), None), x[0], None, length=2)[0]


# name: (shapes of the weights, function of them and of x [2, D], sizes b, t, c, f of the factors that it has)
CASES = {
    "dense": ([(D, F)], lambda w, x: jnp.tanh(x[0] @ w[0]), [(1, 1, D, F)]),
    "weight on the left": ([(F, D)], lambda w, x: jnp.tanh(w[0] @ x[0]), [(1, 1, D, F)]),
    "weight on the left, two rows": (
        [(F, D)],
        lambda w, x: jnp.tanh(w[0] @ x.T) * jnp.arange(2.0)[None],
        [(1, 2, D, F)],
    ),
    "two rows": ([(D, F)], lambda w, x: jnp.sin(x @ w[0]), [(1, 2, D, F)]),
    "stacked": (
        [(2, D, F)],
        lambda w, x: jnp.sin(jnp.einsum("eqd,edf->eqf", jnp.stack([x[:1], x[1:]]), w[0])),
        [(2, 1, D, F)],
    ),
    "stacked in another order": (
        [(F, 2, D)],
        lambda w, x: jnp.sin(jnp.einsum("fed,ed->fe", w[0], x)) * jnp.arange(1.0, F + 1)[:, None],
        [(2, 1, D, F)],
    ),
    "sum over two axes": ([(2, D, F)], lambda w, x: jnp.tanh(jnp.einsum("td,tdf->f", x, w[0])), [(1, 1, 2 * D, F)]),
    "rearranged in a jitted function": ([(F * D,)], lambda w, x: _inside_jit(w[0], x), [(1, 2, D, F)]),
    "transposed": ([(F, D)], lambda w, x: jnp.cos(x[0] @ w[0].T), [(1, 1, D, F)]),
    "two layers": (
        [(D, F), (F, D), (F,)],
        lambda w, x: jax.nn.relu(x[0] @ w[0] + w[2]) @ w[1],
        [(1, 1, D, F), (1, 1, F, D)],
    ),
    "too many rows to pay": ([(D, 1)], lambda w, x: jnp.sin(x @ w[0]), []),
    "used twice": ([(D, D)], lambda w, x: jnp.tanh(x[0] @ w[0]) @ w[0], []),
    "used twice, once transposed": ([(D, F)], lambda w, x: jnp.tanh(x[0] @ w[0]) @ w[0].T, []),
    "with itself": ([(D, D)], lambda w, x: jnp.sin(w[0] @ w[0]) * x[:1], []),
    "elsewhere too": ([(D, D)], lambda w, x: x[0] @ w[0] + jnp.sin(w[0][0]), []),
    "in a loop": ([(D, D)], lambda w, x: _scan(w[0], x), []),
    "as it is": ([(D,)], lambda w, x: w[0], []),
    "without derivative": ([(D, F)], lambda w, x: x[0] @ jax.lax.stop_gradient(w[0]), []),
    "not at all": ([(D, F), (2,)], lambda w, x: x[0] @ w[0], [(1, 1, D, F)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_inner_products_are_those_of_gradients(name):
    shapes, function, sizes = CASES[name]
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    weights = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    x, y = jax.random.normal(keys[-2], (N, 2, D)), jax.random.normal(keys[-1], (M, 2, D))

    def scalar(weights, x):
        return jnp.sum(jnp.square(function(weights, x)))

    with jax.default_matmul_precision("highest"):
        found = [jax.jit(jax.vmap(lambda row: factors(scalar, weights, row)))(rows) for rows in (x, y)]
        whole = [jax.vmap(jax.grad(scalar), (None, 0))(weights, rows) for rows in (x, y)]
        left, right = (np.concatenate([np.reshape(g, (len(g), -1)) for g in gradients], axis=1) for gradients in whole)
        expected = left @ right.T
        np.testing.assert_allclose(inner_products(*found), expected, rtol=1e-4, atol=1e-5 * np.max(np.abs(expected)))
    shapes = [(d.shape[1], d.shape[2], x.shape[3], d.shape[3]) for x, d in found[0].pairs]
    assert sorted(shapes) == sorted(sizes)
    assert len(found[0].rest) == len(weights) - len(sizes)
