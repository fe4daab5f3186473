"""Manifests in memory out of a few columns, and preprocessors fitted on them."""

import numpy as np
import polars as pl

from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.manifest import Manifest, decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.schema import Modality, Schema

WORDS = ("patient", "admitted", "with", "fever", "sodium", "acute", "chronic", "renal", "failure", "stable")


def table_manifest(columns, *modalities):
    """A manifest in memory out of columns of one modality or more; patients and labels are made up."""
    n = len(next(iter(columns.values())))
    base = {"id": [str(i) for i in range(n)], "patient": [str(i) for i in range(n)], "y": ["0", "1"] * (n // 2)}
    schema = Schema("t", "id", "patient", "y", ("0", "1"), modalities)
    return Manifest(schema, pl.DataFrame(base | columns))


def fit(manifest, rows=None, *, max_tokens=16, vocabulary=100, **options):
    rows = np.arange(manifest.table.height) if rows is None else rows
    return Preprocessor.fit(manifest, rows, FitOptions(max_tokens, vocabulary, **options))


def encode(preprocessor, manifest):
    return preprocessor.encode(decode(manifest, np.arange(manifest.table.height)))


def texts(n=80, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(n)]


def text_manifest(cells):
    return table_manifest({"note": pl.Series(cells, dtype=pl.String)}, Modality("note", "text", ("note",)))


def code_manifest(cells):
    return table_manifest({"icd": pl.Series(cells, dtype=pl.String)}, Modality("icd", "codes", ("icd",)))
