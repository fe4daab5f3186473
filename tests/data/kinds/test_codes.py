"""Codes: the vocabulary and the ids, by hand."""

import dataclasses

import numpy as np
import polars as pl

from remind_jax.data.kinds import KINDS
from remind_jax.data.kinds.text import EOS, PAD, UNK
from tests.data.fitting import code_manifest, encode, fit


def test_codes_by_hand():
    manifest = code_manifest(["B A", "B C B", None, "A  D", "Z A B C D", ""])
    manifest = dataclasses.replace(manifest, table=manifest.table.with_columns(icd=pl.col("icd").replace("", None)))
    preprocessor = fit(manifest, np.arange(4), vocabulary=6)
    # B three times, A twice, then C before D, of which the limit of 6 ids leaves C.
    assert preprocessor.fitted["icd"].codes == ("B", "A", "C")
    assert preprocessor.inputs["icd"] == KINDS["codes"].spec((4,), 6)
    expected = [[3, 4, EOS, PAD], [3, 5, 3, EOS], [0] * 4, [4, UNK, EOS, PAD], [UNK, 4, 3, EOS], [0] * 4]
    batch = encode(preprocessor, manifest)["icd"]
    assert batch.dtype == np.int32
    np.testing.assert_array_equal(batch, expected)


def test_codes_are_cut_to_max_tokens_with_eos():
    manifest = code_manifest(["A B C D E F"] * 4)
    batch = encode(fit(manifest, max_tokens=4), manifest)["icd"]
    np.testing.assert_array_equal(batch, [[3, 4, 5, EOS]] * 4)
