"""What holds for the fitted kinds of all modalities together."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from remind_jax.data.kinds.numbers import NUMBERS
from remind_jax.data.manifest import decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.data.reading import read_manifest
from remind_jax.errors import UserError
from tests.data.fitting import encode, fit, text_manifest, texts
from tests.data.manifest_files import write_manifest


@pytest.mark.parametrize("numbers", NUMBERS)
def test_everything_is_fitted_on_the_given_rows_only(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    train = np.arange(0, 60, 2)
    odd = pl.int_range(60) % 2 == 1
    changed = manifest.table.with_columns(
        note=pl.when(odd).then(pl.lit("utterly different words " * 30)).otherwise("note"),
        icd=pl.when(odd).then(pl.lit("Q1 Q2 Q3 " * 20)).otherwise("icd"),
        sodium=pl.when(odd).then(1e6).otherwise("sodium"),
        wbc=pl.when(odd).then(None).otherwise("wbc"),
        sex=pl.when(odd).then(pl.lit("unknown")).otherwise("sex"),
    )
    other = dataclasses.replace(manifest, table=changed)
    one, two = (fit(data, train, numbers=numbers).to_dict() for data in (manifest, other))
    assert json.dumps(one) == json.dumps(two)
    everything = fit(other, np.arange(60), numbers=numbers).to_dict()
    assert json.dumps(everything) != json.dumps(one)
    for key in {"quantile": ["quantiles"], "piecewise": ["pieces"], "periodic": ["waves"]}.get(numbers, []):
        before, after = (next(m for m in found["modalities"] if m["name"] == "labs") for found in (one, everything))
        assert before[key] != after[key]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_round_trip_through_json_encodes_alike(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    preprocessor = fit(manifest, np.arange(40), numbers=numbers, bins=3)
    again = Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert again.inputs == preprocessor.inputs
    assert list(again.inputs) == ["note", "icd", "labs", "scan"]
    one, two = encode(preprocessor, manifest), encode(again, manifest)
    assert list(one) == list(two) == ["note", "icd", "labs", "scan", "present", "label", "row"]
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("numbers", NUMBERS)
def test_missing_modalities_are_zero_and_present_ones_keep_their_shape(tmp_path, numbers):
    manifest = read_manifest(write_manifest(tmp_path, n=60))
    preprocessor = fit(manifest, np.arange(40), numbers=numbers)
    batch = encode(preprocessor, manifest)
    for j, (name, spec) in enumerate(preprocessor.inputs.items()):
        assert batch[name].shape == (60, *spec.shape)
        filled = (batch[name].reshape(60, -1) != 0).any(axis=1)
        np.testing.assert_array_equal(filled, manifest.presence[:, j])
    raw = decode(manifest, np.arange(60))
    np.testing.assert_array_equal(batch["scan"], raw["scan"])


def test_encoding_a_part_is_the_part_of_the_encoding(tmp_path):
    manifest = read_manifest(write_manifest(tmp_path, n=30))
    preprocessor = fit(manifest)
    whole = encode(preprocessor, manifest)
    rows = np.array([3, 17, 3])
    part = preprocessor.encode(decode(manifest, rows))
    none = preprocessor.encode(decode(manifest, np.zeros(0, int)))
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][rows])
        assert none[name].shape == (0, *whole[name].shape[1:])


@pytest.mark.parametrize("options", [{"max_tokens": 1}, {"vocabulary": 3}, {"bins": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="at least"):
        fit(text_manifest(texts(4)), **options)
