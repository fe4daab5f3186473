"""The cohort of a data set beside the paper's."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from remind_jax.data import dataset
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.data.sources import image_twins, mimic_iv_twin


def _manifest(*present: tuple[int, int], published: dict[str, float] | None = None) -> Manifest:
    cells = [[1.0 if here else None for here in column] for column in zip(*present, strict=True)]
    n = len(present)
    table = pl.DataFrame(
        {"id": [str(i) for i in range(n)], "patient": [str(i) for i in range(n)], "y": ["0", "1"] * (n // 2)}
        | {name: pl.Series(column, dtype=pl.Float64) for name, column in zip("ab", cells, strict=True)}
    )
    modalities = tuple(Modality(name, "tabular", (name,)) for name in "ab")
    schema = Schema("made", "id", "patient", "y", ("0", "1"), modalities)
    return Manifest(schema, table, published=published or {})


def test_every_combination_of_data_and_paper_is_counted() -> None:
    made = _manifest((1, 1), (1, 1), (1, 0), (1, 1), published={"a+b": 0.6, "b": 0.4})
    assert dataset.cohort(made) == [
        {"group": "a+b", "n": 3, "fraction": 0.75, "published": 0.6},
        {"group": "a", "n": 1, "fraction": 0.25, "published": 0.0},
        {"group": "b", "n": 0, "fraction": 0.0, "published": 0.4},
    ]
    without = dataclasses.replace(made, published={})
    assert dataset.cohort(without) == [
        {"group": "a+b", "n": 3, "fraction": 0.75},
        {"group": "a", "n": 1, "fraction": 0.25},
    ]


@pytest.mark.parametrize(
    "twin",
    [
        lambda: mimic_iv_twin.load_twin(n=4_000, seed=0),
        lambda: image_twins.load_embed_twin(n=2_000, seed=0, image_size=16),
        lambda: image_twins.load_fprm_twin(n=2_000, seed=0, image_size=16, frames=2),
    ],
    ids=["mimic", "embed", "fprm"],
)
def test_a_twin_has_the_papers_combinations_in_their_shares(twin) -> None:
    rows = dataset.cohort(twin())
    assert np.isclose(sum(row["published"] for row in rows), 1.0, atol=0.002)
    for row in rows:
        assert abs(row["fraction"] - row["published"]) < 0.03, row["group"]
        assert min(row["n"], row["published"]) > 0
