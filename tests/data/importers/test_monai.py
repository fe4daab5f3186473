"""MONAI datalists, turned into folders that pass the checks."""

import json

import numpy as np
import pytest
import yaml

from remind_jax import import_data
from remind_jax.data import reading
from remind_jax.errors import UserError


def _imported(*arguments):
    import_data.main([str(argument) for argument in arguments])


def _schema(folder):
    return yaml.safe_load((folder / "schema.yaml").read_text(encoding="utf-8"))


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
        ({"image": "a.npy"}, "has the key 'label'"),
        ({"image": {"a": 1}, "label": 1}, "the key 'image' of an item holds a dict"),
        ({"age": 10**30, "label": 1}, "a whole number is immense"),
    ],
)
def test_datalists_that_do_not_classify_are_refused(tmp_path, item, message):
    with pytest.raises(UserError, match=message):
        _monai(tmp_path, {"training": [item | {"subject": "p"}]})


def test_nifti_files_are_volumes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    items = [{"image": f"{i}.nii.gz", "label": i % 2, "subject": f"p{i}"} for i in range(4)]
    for i, item in enumerate(items):
        array = np.random.default_rng(i).integers(0, 99, (4, 5, 3)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), tmp_path / item["image"])
    _monai(tmp_path, {"training": items})
    found = reading.read_manifest(tmp_path, image_size=4, frames=3)
    assert [(m.name, m.kind) for m in found.schema.modalities] == [("image", "volume")]
    assert len(found.files) == 4


def test_lists_of_items_are_lists(tmp_path):
    with pytest.raises(UserError, match="training is no list of items"):
        _monai(tmp_path, {"training": 7})


def test_the_faults_of_tables_are_those_of_datalists(tmp_path, capsys):
    items = [
        {"age": ">89" if i == 3 else str(40 + i * 7 % 31), "label": ["Yes", "yes", "no"][i % 3], "subject": f"p{i}"}
        for i in range(60)
    ]
    _monai(tmp_path, {"training": items})
    assert _schema(tmp_path)["label"]["classes"] == ["Yes", "no"]
    shown = capsys.readouterr().out
    assert "age: 59 of 60 cells are numbers, row 4 is not (limit)" in shown
    assert "forms of one value are one class: Yes = yes" in shown
