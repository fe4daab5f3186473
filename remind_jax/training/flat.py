"""Small parameters side by side in one vector, so that the update of a step is a few operations and not some for each.

XLA compiles a kernel for every parameter that clipping, moments, averages and weights move, which for small networks of
tables is most of what it compiles, and runs them one by one. In a vector they are one. Large parameters stay as they
are: a vector of them would be copied to take them out. Only a program has vectors; checkpoints and all others have
parameters by path.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**16
"""Most numbers of a parameter that lies in a vector."""
# Weight decay spares biases and scales by the end of their names, so that they have a vector of their own.
_KINDS = {"small/bias": re.compile(r"(bias|scale)$"), "small/weight": re.compile("")}


class Flat(NamedTuple):
    """Where parameters lie in vectors.

    Attributes:
      vectors: (path, shape) of the parameters of each vector, in their order, by the vector's name.
    """

    vectors: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]] = {}

    def pack(self, tree: Any) -> Any:
        """Puts vectors in place of their parameters, in every dictionary by path of a tree."""
        return each(self._packed, tree)

    def unpack(self, tree: Any) -> Any:
        """Puts parameters in place of their vectors; undoes `pack` to the bit."""
        return each(self._unpacked, tree)

    def _packed(self, params: dict[str, Any]) -> dict[str, Any]:
        for name, places in self.vectors.items():
            if all(path in params for path, _ in places):
                found = [_array(params[path]) for path, _ in places]
                shapes = [shape for _, shape in places]
                rows = [x.reshape((*x.shape[: x.ndim - len(s)], -1)) for x, s in zip(found, shapes, strict=True)]
                rest = {path: x for path, x in params.items() if path not in dict(places)}
                params = {**rest, name: _library(rows[0]).concatenate(rows, axis=-1)}
        return params

    def _unpacked(self, params: dict[str, Any]) -> dict[str, Any]:
        # In the order of the layout: that of a set differs between processes, and with it the program.
        for name in (name for name in self.vectors if name in params):
            places, vector = self.vectors[name], _array(params[name])
            xp, ends = _library(vector), np.cumsum([math.prod(shape) for _, shape in places])
            parts = zip(places, xp.split(vector, ends[:-1], axis=-1), strict=True)
            found = {path: part.reshape((*part.shape[:-1], *shape)) for (path, shape), part in parts}
            params = {path: x for path, x in params.items() if path != name} | found
        return params


BY_PATH = Flat()
"""Nothing lies in vectors."""


def flat_of(shapes: Mapping[str, Any], large: Callable[[str], bool] = lambda path: False) -> Flat:
    """Lays out parameters of some shapes, without those whose path is `large`."""
    vectors: dict[str, list[tuple[str, tuple[int, ...]]]] = {name: [] for name in _KINDS}
    # By the ends of their paths first: what many encoders have alike lies side by side, and is read as one.
    for path in sorted(shapes, key=lambda path: path.split("/")[::-1]):
        if math.prod(shapes[path].shape) <= SMALL and not large(path):
            kind = next(name for name, ending in _KINDS.items() if ending.search(path))
            vectors[kind].append((path, tuple(shapes[path].shape)))
    return Flat({name: tuple(places) for name, places in vectors.items() if len(places) > 1})


def each(function: Callable[[dict[str, Any]], Any], tree: Any) -> Any:
    """Applies a function to all plain dictionaries of a tree, which are those by path."""

    def is_dictionary(x: Any) -> bool:
        return type(x) is dict

    return jax.tree.map(lambda x: function(x) if is_dictionary(x) else x, tree, is_leaf=is_dictionary)


def _array(x: Any) -> Any:
    """Returns an array as that of its library."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def _library(x: Any) -> Any:
    """Returns jax.numpy in a program and numpy on the host, where nothing is to be compiled."""
    return jnp if isinstance(x, jax.core.Tracer) else np
