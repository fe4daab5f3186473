"""Importers: files in the layout that each form documents, turned into folders that pass the checks."""

import json

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import check_data, import_data
from remind_jax.data import manifest, reading
from remind_jax.data.importers import flex_moe, meds, table
from remind_jax.errors import UserError


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


# ---- Tables ---------------------------------------------------------------------------------------------------------


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


# ---- MONAI ----------------------------------------------------------------------------------------------------------


def _monai(folder, content):
    for name in ("a", "b", "c", "d"):
        np.save(folder / f"{name}.npy", np.zeros((3, 4, 4), np.float32) + ord(name))
    (folder / "datalist.json").write_text(json.dumps(content), encoding="utf-8")
    _imported("--from=monai", f"--source={folder / 'datalist.json'}", f"--out={folder}", "--patient=subject")


def test_a_datalist_keeps_its_splits_and_lacks_what_an_item_lacks(tmp_path, capsys):
    items = [
        {"image": ["./a.npy", "./b.npy"], "age": 70, "label": 0, "subject": "p1", "fold": 0},
        {"image": ["./c.npy"], "age": 60, "label": 1, "subject": "p2", "fold": 1},
    ]
    content = {"name": "toy", "training": items, "validation": [{"age": 50, "label": 1, "subject": "p3"}]}
    content["test"] = [{"image": ["./d.npy"], "label": 0, "subject": "p4"}, "./d.npy"]
    _monai(tmp_path, content)
    found = reading.read_manifest(tmp_path, image_size=4, frames=3)
    kinds = {m.name: m.kind for m in found.schema.modalities}
    assert kinds == {"table": "tabular", "image_0": "volume", "image_1": "volume"}
    order = [m.name for m in found.schema.modalities]
    columns = [order.index(name) for name in ("image_0", "image_1", "table")]
    np.testing.assert_array_equal(found.presence[:, columns], [[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 0, 0]])
    assert found.table["split"].to_list() == ["train", "train", "tuning", "held_out"]
    assert "1 items without 'label'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": "a.npy", "label": "mask.nii.gz"}, "segmentation"),
        ({"image": "a.nii.gz", "label": 1}, "NIfTI"),
        ({"image": "a.npy"}, "has the key 'label'"),
    ],
)
def test_datalists_that_do_not_classify_are_refused(tmp_path, item, message):
    with pytest.raises(UserError, match=message):
        _monai(tmp_path, {"training": [item | {"subject": "p"}]})


# ---- MEDS -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cohort(tmp_path):
    """Two shards of events in the layout of MEDS 0.4, labels and splits; subject 3 has nothing before its time."""
    day = [pl.datetime(2020, 1, d) for d in range(1, 10)]
    events = [
        (1, None, "GENDER//F", None, None),
        (1, day[0], "LAB//NA", 140.0, None),
        (1, day[1], "LAB//NA", 150.0, None),
        (1, day[2], "LAB//NA", 999.0, None),  # after the first prediction
        (1, day[0], "DX//I10", None, None),
        (1, day[1], "DX//E11 9", None, None),
        (2, day[0], "LAB//K", 4.0, None),
        (2, day[1], "NOTE", None, "sleeps well"),
        (3, day[8], "LAB//NA", 1.0, None),
    ]
    never = pl.lit(None, pl.Datetime("us"))
    dtypes = {"code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
    table = pl.DataFrame(
        {
            "subject_id": [e[0] for e in events],
            "time": pl.concat([pl.select(never if e[1] is None else e[1]).to_series() for e in events]),
            **{key: pl.Series([e[i] for e in events], dtype=dtypes[key]) for i, key in enumerate(dtypes, start=2)},
        }
    )
    for i in range(2):
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        table[i::2].write_parquet(tmp_path / "data" / "train" / f"{i}.parquet")
    times = pl.concat([pl.select(day[d]).to_series() for d in (1, 5, 1, 3)])
    labels = pl.DataFrame(
        {"subject_id": [1, 1, 2, 3], "prediction_time": times, "boolean_value": [True, False, False, True]}
    )
    labels.write_parquet(tmp_path / "labels.parquet")
    (tmp_path / "metadata").mkdir()
    splits = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "held_out", "train"]})
    splits.write_parquet(tmp_path / "metadata" / "subject_splits.parquet")
    return tmp_path


def test_meds_samples_have_what_came_before_their_time(cohort, capsys):
    out = cohort / "out"
    _imported(
        "--from=meds",
        f"--source={cohort}",
        f"--labels={cohort / 'labels.parquet'}",
        f"--out={out}",
        "--modality=labs=LAB//,rest=DX//+NOTE",
    )
    assert _schema(out)["modalities"] == {
        "labs_values": {"kind": "tabular", "columns": ["labs:LAB//NA"]},  # K is of no train subject
        "rest_codes": {"kind": "codes", "column": "rest_codes"},
        "rest_text": {"kind": "text", "column": "rest_text"},
    }
    table = pl.read_csv(out / "manifest.csv", infer_schema=False)
    assert table["sample_id"].to_list() == ["1_0", "1_1", "2_0"]
    assert table["label"].to_list() == ["true", "false", "false"]
    assert table["split"].to_list() == ["train", "train", "held_out"]
    assert table["labs:LAB//NA"].to_list() == ["150.0", "999.0", None]
    assert table["rest_codes"].to_list() == ["DX//E11_9 DX//I10"] * 2 + [None]
    assert table["rest_text"].to_list() == [None, None, "sleeps well"]
    assert "1 rows without any modality" in capsys.readouterr().out


def test_what_is_no_meds_is_refused(cohort):
    with pytest.raises(UserError, match="holds no parquet"):
        _imported(
            "--from=meds", f"--source={cohort / 'metadata'}", f"--labels={cohort / 'labels.parquet'}", f"--out={cohort}"
        )
    with pytest.raises(UserError, match="prediction_time"):
        meds.from_meds(
            pl.scan_parquet(cohort / "data" / "train" / "0.parquet"), pl.DataFrame({"subject_id": [1]}), name="x"
        )


# ---- Flex-MoE -------------------------------------------------------------------------------------------------------


def test_the_folder_of_flex_moe(tmp_path, capsys):
    folder, out = tmp_path / "adni", tmp_path / "out"
    for part in ("clinical", "biospecimen", "image"):
        (folder / part).mkdir(parents=True)
    ids = [f"002_S_{i:04d}" for i in range(6)]
    pl.DataFrame({"PTID": ids, "DIAGNOSIS": [1, 2, 3, 1, 2, 3]}).write_csv(folder / "label.csv")
    splits = {"training": ids[:3], "validation": ids[3:4], "testing": ids[4:5]}
    (folder / "PTID_splits.json").write_text(json.dumps(splits), encoding="utf-8")
    clinical = {"": ids[:4], "AGE": [70, 71, 72, 73], "PTADDX": [2001, 2002, 2003, 2004]}
    pl.DataFrame(clinical).write_csv(folder / "clinical" / "clinical_merged.csv")
    pl.DataFrame({"": ids[2:], "TAU": [-2.0, 3.0, None, 5.0]}).write_csv(
        folder / "biospecimen" / "biospecimen_merged.csv"
    )
    lines = [f"{ids[0]}_MRI_2005-01-01", f"{ids[0]}_MRI_2006-01-01", f"{ids[4]}_MRI_2004-01-01"]
    (folder / "image" / "ADNI_subj.txt").write_text("\n".join(lines), encoding="utf-8")
    np.save(folder / "image" / "ADNI_G.npy", np.arange(9.0).reshape(3, 3))
    _imported("--from=flex_moe", f"--source={folder}", f"--out={out}")
    found = reading.read_manifest(out)
    assert [m.name for m in found.schema.modalities] == ["clinical", "biospecimen", "scan"]
    np.testing.assert_array_equal(found.presence, [[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]])
    assert found.table["split"].to_list() == ["train"] * 3 + ["tuning", "held_out"]
    scan = manifest.decode(found, np.array([0]))["scan"]
    np.testing.assert_array_equal(scan, [[[3.0, 4.0, 5.0]]])  # the newer of two
    assert found.table["TAU"][2] == -2.0  # a value, not a sign of anything missing
    assert "PTADDX" not in found.table.columns
    shown = capsys.readouterr().out
    assert "1 subjects are in no split" in shown
    assert "no modality genomic" in shown


def test_pickles_of_flex_moe_are_refused(tmp_path):
    (tmp_path / "lab_x.pt").write_bytes(b"")
    with pytest.raises(UserError, match="pickles"):
        flex_moe.from_flex_moe(tmp_path, tmp_path / "out", name="x")
