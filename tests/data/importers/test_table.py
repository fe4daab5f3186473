"""Tables as people have them, turned into folders that pass the checks."""

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import check_data, import_data
from remind_jax.data import reading
from remind_jax.data.importers import table
from remind_jax.errors import UserError


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def raw(tmp_path):
    """Raw tables of 60 stays of 30 patients; labs of every second stay, notes of every third, one number, one scan."""
    n, rng = 60, np.random.default_rng(0)
    stays = [f"s{i}" for i in range(n)]
    table = {"stay": stays, "person": [i // 2 for i in range(n)], "died": [i % 2 for i in range(n)]}
    table |= {"age": rng.integers(20, 90, n).tolist(), "sex": ["mf"[i % 2] for i in range(n)]}
    table |= {"admitted": ["2020-01-02"] * n, "scan": [f"scans/{i}.npy" if i < 3 else None for i in range(n)]}
    pl.DataFrame(table).write_csv(tmp_path / "stays.csv")
    labs = pl.DataFrame({"stay": stays[::2], "na": rng.normal(140, 3, 30), "k": ["NA"] + ["4.1"] * 29})
    labs.write_csv(tmp_path / "labs.csv")
    words = [f"patient number {i} is stable, no fever, on oxygen" for i in range(20)]
    notes = {"stay": stays[::3], "note": words, "icd": ["I10 E11.9" if i % 2 else "J18.9" for i in range(20)]}
    pl.DataFrame(notes).write_csv(tmp_path / "notes.csv")
    (tmp_path / "scans").mkdir()
    for i in range(3):
        np.save(tmp_path / "scans" / f"{i}.npy", np.full((2, 3), i, np.float32))
    return tmp_path


def _arguments(raw, **changes):
    options = {"from": "table", "source": raw / "stays.csv", "out": raw, "label": "died", "sample": "stay"}
    options |= {"patient": "person", "join": f"{raw / 'labs.csv'},{raw / 'notes.csv'}"}
    return [f"--{key}={value}" for key, value in (options | changes).items()]


def test_raw_tables_become_a_manifest(raw, capsys):
    _imported(*_arguments(raw))
    assert _schema(raw) == {
        "version": 1,
        "name": raw.name,
        "sample_id": "sample_id",
        "patient_id": "patient_id",
        "label": {"column": "died", "classes": ["0", "1"]},
        "modalities": {
            "stays": {"kind": "tabular", "columns": ["age"], "categorical": ["sex"]},
            "scan": {"kind": "embedding", "column": "scan"},
            "labs": {"kind": "tabular", "columns": ["na", "k"]},
            "note": {"kind": "text", "column": "note"},
            "icd": {"kind": "codes", "column": "icd"},
        },
    }
    found = reading.read_manifest(raw)
    expected = np.ones((60, 5), bool)
    expected[:, 1] = np.arange(60) < 3
    expected[:, 2] = np.arange(60) % 2 == 0
    expected[:, 3:] = (np.arange(60) % 3 == 0)[:, None]
    np.testing.assert_array_equal(found.presence, expected)
    assert found.table["patient_id"].n_unique() == 30
    assert found.table["k"].null_count() == 31  # NA of a stay with labs, and the stays without
    shown = capsys.readouterr().out
    assert "'admitted' is left out (a time)" in shown
    assert check_data.run([str(raw)]) == 0


def test_kinds_can_be_told_and_columns_skipped(raw):
    _imported(*_arguments(raw, kind="age=category,scan=skip,note=skip"))
    modalities = _schema(raw)["modalities"]
    assert modalities["stays"] == {"kind": "tabular", "categorical": ["age", "sex"]}
    assert set(modalities) == {"stays", "labs", "icd"}


def test_paths_start_from_the_manifest(raw):
    above = raw.parent
    _imported(*_arguments(raw, out=above, join=""))
    assert reading.read_manifest(above).table["scan"][1] == f"{raw.name}/scans/1.npy"
    (above / "manifest.csv").unlink()
    (above / "schema.yaml").unlink()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "dead"}, r"--label=dead is no column \(did you mean 'died'\?\)"),
        ({"label": ""}, "no label"),
        ({"sample": "", "patient": ""}, "no column an id"),
        ({"kind": "age=image_"}, "did you mean 'image'"),
        ({"kind": "aeg=number"}, "did you mean 'age'"),
        ({"kind": "age"}, "NAME=VALUE"),
        ({"from": "tabel"}, "did you mean 'table'"),
        ({"source": "nowhere.csv"}, "does not exist"),
        ({"out": "other"}, "does not hold the files"),
    ],
)
def test_mistakes_are_named(raw, changes, message, monkeypatch):
    monkeypatch.chdir(raw)
    with pytest.raises(UserError, match=message):
        _imported(*_arguments(raw, **changes))
    assert not (raw / "schema.yaml").exists()


def test_several_rows_of_one_id_and_a_second_manifest_are_refused(raw):
    pl.concat([pl.read_csv(raw / "labs.csv")] * 2).write_csv(raw / "labs.csv")
    with pytest.raises(UserError, match="several rows of one stay"):
        _imported(*_arguments(raw))
    _imported(*_arguments(raw, join=""))
    with pytest.raises(UserError, match=r"holds schema\.yaml already"):
        _imported(*_arguments(raw, join=""))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2.5", None], "number"),
        (["007", "012", "101"], "codes"),
        (["a", "b"] * 10, "category"),
        (["one word", "two words here", "and more of them"], "text"),
        (["x.png", "y.JPG"], "image"),
        (["a/b.npy"], "embedding"),
        (["2020-01-02 10:00"], "a time"),
        ([None, None], "empty"),
        ([f"id{i}x" for i in range(200)], "many different words"),
    ],
)
def test_guesses(cells, kind):
    assert table.guess_kind(pl.Series(cells, dtype=pl.String)) == kind
