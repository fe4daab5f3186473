"""Initial weights, drawn on the host: nothing is compiled for them, and each depends on the seed and its path alone."""

import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

Rule = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""How a parameter begins: (generator, shape) -> float32 values."""
_RULE = "rule"  # name of the rule in the metadata of a parameter
# Standard deviation of a normal distribution that is cut off at two of its own.
_CUT_OFF = 0.87962566


def constant(value: float) -> Rule:
    """Returns the rule of one value everywhere."""
    return lambda generator, shape: np.full(shape, value, np.float32)


def normal(std: float) -> Rule:
    """Returns the rule of normal values around zero."""
    return lambda generator, shape: np.float32(std) * generator.standard_normal(shape, np.float32)


def cut_normal(std: float) -> Rule:
    """Returns the rule of normal values of which none is far: within 2.3 standard deviations `std` of what is left."""

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = generator.standard_normal(shape, np.float32)
        while (far := np.abs(values) > 2.0).any():
            values[far] = generator.standard_normal(np.count_nonzero(far), np.float32)
        return np.float32(std / _CUT_OFF) * values

    return draw


def signs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws -1 and 1, as often the one as the other."""
    return 2.0 * generator.integers(0, 2, shape).astype(np.float32) - 1.0


def by(rule: Rule) -> Callable[..., Any]:
    """Makes an initializer of Flax, (key, shape, type) -> value, for a parameter that begins by a rule.

    Where a module is traced, for its shapes, the value is NaN, so that nobody takes it for one: `draw` gives what it
    begins with. Outside of that the rule is applied at once, with a generator that follows from the key.
    """

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
        if isinstance(key, jax.core.Tracer):
            return jnp.full(shape, jnp.nan, dtype)
        return jnp.asarray(rule(_generator(np.asarray(jax.random.key_data(key)).tobytes()), tuple(shape)), dtype)

    return nnx.with_metadata(initializer, **{_RULE: rule})


def param(rngs: nnx.Rngs, rule: Rule, *shape: int) -> nnx.Param:
    """Declares a parameter of a shape that begins by a rule."""
    return nnx.Param(by(rule)(rngs.params(), shape))


def linear(inputs: int, outputs: int, rngs: nnx.Rngs, gain: float = 1.0) -> nnx.Linear:
    """Declares an affine map that keeps the variance of its inputs, times `gain`."""
    kernel = cut_normal(math.sqrt(gain / inputs))
    return nnx.Linear(inputs, outputs, kernel_init=by(kernel), bias_init=by(constant(0.0)), rngs=rngs)


def layer_norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Declares a layer norm, which begins as that alone."""
    rules = {"scale_init": by(constant(1.0)), "bias_init": by(constant(0.0))}
    return nnx.LayerNorm(width, epsilon=1e-6, **rules, rngs=rngs)


def draw(build: Callable[[jax.Array], nnx.Module], seed: int, network: int = 0) -> dict[str, np.ndarray]:
    """Draws the parameters of the module that `build` makes from a key, by path, on the host.

    Each has a generator of its own, which follows from `seed`, `network` (one of an ensemble) and its path: whatever
    else the module has, and in whatever order, it begins the same. Parameters without a rule, of modules from outside
    the package, are what their initializers give, which is compiled.
    """
    declared = _declared(build)
    rules = {path: variable.get_metadata().get(_RULE) for path, variable in declared.items()}

    def others(key: jax.Array) -> dict[str, jax.Array]:
        _, made = nnx.split(build(key))
        flat = traverse_util.flatten_dict(nnx.to_pure_dict(made), sep="/")
        return {path: flat[path] for path, rule in rules.items() if rule is None}

    found = {
        path: rule(_generator(f"{seed} {network} {path}".encode()), declared[path].shape)
        for path, rule in rules.items()
        if rule is not None
    }
    if len(found) < len(rules):
        key = jax.random.fold_in(jax.random.key(seed), network)
        found |= {path: np.array(x) for path, x in jax.jit(others)(key).items()}
    return {path: found[path] for path in rules}


@functools.lru_cache(maxsize=1)  # tracing is most of the work, and the same for all networks of an ensemble
def _declared(build: Callable[[jax.Array], nnx.Module]) -> dict[str, Any]:
    """Returns the variables of a module by path, as shapes."""
    _, state = nnx.split(nnx.eval_shape(lambda: build(jax.random.key(0))))
    return {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}


def _generator(name: bytes) -> np.random.Generator:
    """Makes the generator of a name, the same on every machine."""
    digest = hashlib.blake2b(name, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
