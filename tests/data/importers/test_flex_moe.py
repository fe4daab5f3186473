"""The folder of ADNI that Flex-MoE reads, turned into one that passes the checks."""

import json

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import import_data
from remind_jax.data import manifest, reading
from remind_jax.data.importers import flex_moe
from remind_jax.errors import UserError


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


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
        flex_moe.from_flex_moe(tmp_path, name="x")


@pytest.mark.parametrize("splits", ["", "[1]", "{", '{"training": 7}', '{"testing": [1]}', "[" * 9999, '{"a": NaN}'])
def test_splits_that_are_none_are_refused(tmp_path, splits):
    pl.DataFrame({"PTID": ["a", "b"], "DIAGNOSIS": [1, 2]}).write_csv(tmp_path / "label.csv")
    (tmp_path / "PTID_splits.json").write_text(splits, encoding="utf-8")
    with pytest.raises(UserError, match=r"PTID_splits.json is damaged .*: it maps training"):
        flex_moe.from_flex_moe(tmp_path, name="x")


@pytest.mark.parametrize(
    ("splits", "says"),
    [({"training": ["a", "b"], "testing": ["b"]}, "1 ids stand in several"), ({"other": ["a"]}, "names no id")],
)
def test_splits_that_leak_or_split_nothing_are_refused(tmp_path, splits, says):
    pl.DataFrame({"PTID": ["a", "b"], "DIAGNOSIS": [1, 2]}).write_csv(tmp_path / "label.csv")
    (tmp_path / "PTID_splits.json").write_text(json.dumps(splits), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        flex_moe.from_flex_moe(tmp_path, name="x")


def test_ids_that_no_split_names_are_told(tmp_path):
    ids, (folder, clinical) = [f"s{i}" for i in range(6)], (tmp_path, tmp_path / "clinical")
    clinical.mkdir()
    pl.DataFrame({"PTID": ids, "DIAGNOSIS": [0, 1] * 3}).write_csv(folder / "label.csv")
    pl.DataFrame({"id": ids, "a": [1.5, 2.0, 3.0, 4.5, 5.0, 6.0]}).write_csv(clinical / "clinical_merged.csv")
    (folder / "PTID_splits.json").write_text(json.dumps({"training": ids[:4]}), encoding="utf-8")
    found = flex_moe.from_flex_moe(folder, name="x")
    assert found.table.height == 4
    assert "2 subjects are in no split and left out" in found.notes
