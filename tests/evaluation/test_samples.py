"""Held-out predictions as arrays: columns in the order of the classes."""

import polars as pl

from remind_jax.evaluation.samples import Samples


def test_columns_become_arrays():
    table = pl.DataFrame(
        {
            "label": [10, 1, 0],
            "group": ["a+b", "a+b", "b"],
            "p_note": [1, 2, 3],  # a column of that name is no class
            **{f"p_{k}": [float(k == 10), 0.05 * k, float(k == 0)] for k in range(10, -1, -1)},
        }
    )
    samples = Samples.of(table)
    assert samples.probabilities.shape == (3, 11)
    assert samples.probabilities.argmax(axis=1).tolist() == [10, 10, 0]
    assert samples.groups.tolist() == ["a+b", "a+b", "b"]
