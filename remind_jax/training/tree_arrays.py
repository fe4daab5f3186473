"""Fitted trees of scikit-learn as the arrays of `ops.plain.trees`."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def boosted(found: Any, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of the first trees of boosted models, and adds what they begin with to none of them."""
    for model, columns in zip(found.models, found.columns, strict=True):
        for stage in model._predictors[:count]:
            for column, tree in zip(columns, stage, strict=True):
                nodes, own = tree.nodes, np.arange(len(tree.nodes))
                if nodes["is_categorical"].any():
                    raise ValueError("a tree has a categorical split")
                value = np.zeros((len(nodes), found.outputs))
                value[:, column] = nodes["value"]
                leaf = nodes["is_leaf"] == 1
                yield {
                    "feature": nodes["feature_idx"],
                    "threshold": nodes["num_threshold"],
                    "left": np.where(leaf, own, nodes["left"]),
                    "right": np.where(leaf, own, nodes["right"]),
                    "default_left": nodes["missing_go_to_left"] == 1,
                    "value": value,
                }


def forest(found: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of the trees of forests, whose values add up to the mean."""
    for model, columns in zip(found.models, found.wide_columns, strict=True):
        for tree in (each.tree_ for each in model.estimators_):
            own, leaf = np.arange(tree.node_count), tree.children_left < 0
            value, chances = np.zeros((tree.node_count, found.outputs)), tree.value[:, 0]
            value[:, columns] = chances[:, -len(columns) :] / len(model.estimators_)
            yield {
                "feature": np.where(leaf, 0, tree.feature),
                "threshold": tree.threshold,
                "left": np.where(leaf, own, tree.children_left),
                "right": np.where(leaf, own, tree.children_right),
                "default_left": np.zeros(tree.node_count, bool),
                "value": value,
            }


def joined(start: np.ndarray, trees: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins trees of any number of nodes to the arrays of `ops.plain.trees`."""
    trees = list(trees)
    most = max(len(tree["left"]) for tree in trees)
    types = {"feature": np.int32, "left": np.int32, "right": np.int32, "default_left": bool, "value": np.float32}
    padded = {
        name: np.stack([np.pad(x[name], [(0, most - len(x[name])), *[(0, 0)] * (x[name].ndim - 1)]) for x in trees])
        for name in trees[0]
    }
    # Rows are float32: what is at most a threshold is at most the greatest float32 that is.
    with np.errstate(over="ignore"):
        near = padded["threshold"].astype(np.float32)
    padded["threshold"] = np.where(near > padded["threshold"], np.nextafter(near, np.float32(-np.inf)), near)
    return {name: x.astype(types.get(name, np.float32)) for name, x in padded.items()} | {"start": start}
