"""Series: means of stretches by a slow reference, gaps, what is refused, and the exported model."""

import importlib
import json
import sys

import numpy as np
import polars as pl
import pytest
import yaml

import remind_jax as rj
from remind_jax import export
from remind_jax.data import builder, check, reading
from remind_jax.data.importers.columns import decide
from remind_jax.data.kinds.kind import FitOptions
from remind_jax.data.kinds.series import FittedSeries
from remind_jax.data.manifest import decode
from remind_jax.data.preprocess import Preprocessor
from remind_jax.errors import UserError
from tests import tiny_runs
from tests.data.manifest_files import SCHEMA

N, K = 12, 3


def drawn(seed=0):
    """Series of 5 to 20 steps of three channels with gaps, the last channel constant; every fourth is missing."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(N):
        x = rng.normal([10, -5, 2], [3, 1, 0], (int(rng.integers(5, 21)), K)).astype(np.float32)
        x[rng.random(x.shape) < 0.3] = np.nan
        found.append(None if i % 4 == 3 else x)
    return found


def write(folder, series, stored="file", **entry):
    folder.mkdir()
    samples = {"stay": [f"s{i}" for i in range(N)], "patient": [f"p{i}" for i in range(N)]}
    samples |= {"died": [str(i % 2) for i in range(N)], "sodium": [float(i) for i in range(N)]}
    if stored == "file":
        for i, x in enumerate(series):
            if x is not None:
                np.save(folder / f"{i}.npy", x)
        samples["ecg"] = [None if x is None else f"{i}.npy" for i, x in enumerate(series)]
    else:
        lists = [
            None if x is None else [[None if np.isnan(v) else v for v in row] for row in x.tolist()] for x in series
        ]
        samples["ecg"] = pl.Series(lists)
    pl.DataFrame(samples).write_parquet(folder / "manifest.parquet")
    modalities = {
        "labs": {"kind": "tabular", "columns": ["sodium"]},
        "ecg": {"kind": "series", "column": "ecg", **entry},
    }
    (folder / "schema.yaml").write_text(
        yaml.safe_dump(SCHEMA | {"modalities": modalities}, sort_keys=False), encoding="utf-8"
    )
    return reading.read_manifest(folder)


def encoded(manifest, rows=None):
    preprocessor = Preprocessor.fit(manifest, np.arange(N) if rows is None else rows, FitOptions(16, 100))
    return preprocessor, preprocessor.encode(decode(manifest, np.arange(N)))["ecg"]


def slowly(x, series, steps):
    """Means and shares of one series by loops; standardised by all of them."""
    known = np.concatenate([each for each in series if each is not None]).astype(np.float64)
    found = np.zeros((steps, 2 * K))
    for s in range(steps):
        inside = [row for i, row in enumerate(x) if i * steps // len(x) == s]
        for k in range(K):
            channel = known[:, k][~np.isnan(known[:, k])]
            values = [float(row[k]) for row in inside if not np.isnan(row[k])]
            spread = channel.std() if channel.std() > 1e-6 else np.inf
            found[s, k] = np.mean([(v - channel.mean()) / spread for v in values]) if values else 0.0
            found[s, K + k] = len(values) / len(inside) if inside else 0.0
    return found.ravel()


@pytest.mark.parametrize("stored", ["file", "cell"])
@pytest.mark.parametrize("steps", [4, 64])
def test_a_model_receives_the_means_of_stretches_and_the_shares_that_were_measured(tmp_path, stored, steps):
    series = drawn()
    preprocessor, found = encoded(write(tmp_path / "data", series, stored, steps=steps))
    used = min(steps, max(len(x) for x in series if x is not None))
    assert preprocessor.inputs["ecg"].shape == (used * 2 * K,)
    for row, x in zip(found, series, strict=True):
        expected = np.zeros(used * 2 * K) if x is None else slowly(x, series, used)
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_files_and_cells_are_encoded_alike_and_prepared_rows_are_those(tmp_path):
    of_file, of_cells = write(tmp_path / "f", drawn()), write(tmp_path / "c", drawn(), "cell")
    np.testing.assert_array_equal(of_file.presence, of_cells.presence)
    assert of_file.presence[:, 1].tolist() == [i % 4 != 3 for i in range(N)]
    preprocessor, found = encoded(of_file)
    np.testing.assert_array_equal(found, encoded(of_cells)[1])
    column = builder.prepare(of_cells, encoded(of_cells)[0], tmp_path / "cache")["ecg"]
    np.testing.assert_array_equal(column.read(np.arange(N)), found)
    assert Preprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict()))).fitted == preprocessor.fitted
    with pytest.raises(ValueError, match="channels"):
        FittedSeries.from_dict({"steps": 3, "mean": [1.0], "std": []})


def test_a_gap_that_moves_is_another_digest(tmp_path):
    series = drawn()
    digest = write(tmp_path / "a", series, "cell").digest
    assert write(tmp_path / "b", series, "cell").digest == digest
    x = series[0]
    (row, column), (other, last) = np.argwhere(np.isnan(x))[0], np.argwhere(~np.isnan(x))[0]
    x[row, column], x[other, last] = x[other, last], np.nan
    assert write(tmp_path / "c", series, "cell").digest != digest


def test_moments_are_those_of_train_rows(tmp_path):
    series = drawn()
    manifest = write(tmp_path / "a", series, "cell", steps=4)
    changed = [x if x is None or i < 6 else x + 100 for i, x in enumerate(series)]
    other = write(tmp_path / "b", changed, "cell", steps=4)
    assert encoded(manifest, np.arange(6))[0].fitted == encoded(other, np.arange(6))[0].fitted
    assert encoded(manifest)[0].fitted != encoded(other)[0].fitted


def test_plain_models_see_means(tmp_path):
    series = drawn()
    preprocessor, found = encoded(write(tmp_path / "data", series, steps=1))
    seen = preprocessor.fitted["ecg"].plain(found)
    np.testing.assert_allclose(seen[0, :K], slowly(series[0], series, 1)[:K], atol=1e-5)
    assert np.isnan(seen[3, :K]).all()
    assert seen[0, K:].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "stored", "entry", "says"),
    [
        (lambda s: s, "cell", {"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        (lambda s: [np.zeros((2, 2)), *s[1:]], "cell", {}, "E008 .*cells must be lists .t, k. of numbers or null"),
        (lambda s: [np.zeros((2, 2)), *s[1:]], "file", {}, "E008 ecg: series have 2 to 3 channels; make all alike"),
        (lambda s: [np.zeros(4), *s[1:]], "file", {}, r"E008 .*1 cell \(row 1\) naming a file .* not \[t, k\]"),
        (lambda s: [np.full((4, 3), np.inf), *s[1:]], "file", {}, "infinite values, or nothing but gaps"),
        (lambda s: [np.full((4, 3), np.nan), *s[1:]], "file", {}, "infinite values, or nothing but gaps"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(tmp_path, change, stored, entry, says):
    with pytest.raises(UserError, match=says) as error:
        encoded(write(tmp_path / "data", change(drawn()), stored, **entry))
    assert "\n" not in str(error.value)


def test_infinite_cells_are_found(tmp_path):
    series = drawn()
    series[1][0, 0] = np.inf
    with pytest.raises(UserError, match=r"1 cell \(row 2\) with infinite values, or with nothing but gaps"):
        check.refuse(check.find_problems(write(tmp_path / "data", series, "cell")))


def test_lists_of_different_lengths_are_taken_for_series_and_others_for_tokens():
    ragged = pl.Series([[[1.0, 2.0]] * 3, None, [[1.0, 2.0]] * 4])
    assert (decide(ragged).word, decide(ragged[:2]).word) == ("series", "embedding")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_the_exported_model_predicts_alike_from_arrays_lists_and_paths(tmp_path, monkeypatch):
    rng, keys = np.random.default_rng(2), {k: v for k, v in tiny_runs.TINY.items() if not k.startswith("data.")}
    series = [None if i % 5 == 0 else rng.normal(i % 2, 1, (int(rng.integers(6, 30)), K)) for i in range(60)]
    for x in filter(lambda x: x is not None, series):
        x[rng.random(x.shape) < 0.2] = np.nan
    lists = [None if x is None else [[None if v != v else v for v in row] for row in x.tolist()] for x in series]
    frame = pl.DataFrame({"sodium": rng.normal(140, 4, 60), "died": [i % 2 for i in range(60)], "ecg": lists})
    modalities = {"labs": ["sodium"], "ecg": rj.Series("ecg", steps=8)}
    told = {"modalities": modalities, "method": "remind", "workdir": tmp_path / "run", "progress": False}
    model = rj.fit(frame, "died", **told, **keys, **{"eval.bootstrap": 20})
    expected = model.predict_proba(frame)
    assert np.abs(model.predict_proba(frame.with_columns(ecg=None)) - expected).max() > 1e-3
    export.main([f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"])
    monkeypatch.syspath_prepend(str(tmp_path / "out"))
    for name in ("encode", "inputs", "load"):
        sys.modules.pop(name, None)
    load, encode = (importlib.import_module(name) for name in ("load", "encode"))
    assert load.check(tmp_path / "out") == []
    for i, x in enumerate(series):
        if x is not None:
            np.save(tmp_path / f"{i}.npy", x)
    forms = {
        "arrays": series,
        "lists": lists,
        "paths": [None if x is None else f"{i}.npy" for i, x in enumerate(series)],
    }
    predict = load.load(tmp_path / "out")
    for name, cells in forms.items():
        rows = [{"sodium": sodium, "ecg": cell} for sodium, cell in zip(frame["sodium"], cells, strict=True)]
        found = predict(encode.encode(rows, root=tmp_path))["probabilities"]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)
    wrong = [{"sodium": 140.0, "ecg": np.zeros((4, K + 1))}]
    with pytest.raises(ValueError, match="column 'ecg' \\(ecg\\): row 1 cannot be"):
        encode.encode(wrong)
