"""Every coded error and warning of the checks, on manifests in memory and folders."""

import dataclasses
import re

import numpy as np
import polars as pl
import pytest

from remind_jax import check_data
from remind_jax.data import check, splits
from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import read_manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from tests.data.manifest_files import swap, write_manifest

SCHEMA = Schema(
    "t",
    "id",
    "patient",
    "y",
    ("0", "1"),
    (
        Modality("note", "text", ("note",)),
        Modality("labs", "tabular", ("na", "k"), ("sex",)),
        Modality("emb", "embedding", ("emb",)),
    ),
)


def make(n=200, split=None, **columns):
    """A sound manifest in memory, one row a patient, everything present; `columns` replace its columns."""
    rng = np.random.default_rng(0)
    table = {
        "id": [f"s{i}" for i in range(n)],
        "patient": [f"secret{i}" for i in range(n)],
        "y": [str(i % 2) for i in range(n)],
        "note": [f"short {i}" for i in range(n)],
        "na": rng.normal(140, 3, n),
        "k": rng.normal(4, 1, n),
        "sex": ["f", "f", "m", "m"] * (n // 4),
        "emb": pl.Series(rng.normal(size=(n, 2, 3)).astype(np.float32)),
    } | columns
    schema = SCHEMA
    if split is not None:
        table["split"], schema = split, dataclasses.replace(SCHEMA, split="split")
    return Manifest(schema, pl.DataFrame(table))


def cut(n=200, share=0.3):
    """A split by row number: the last `share` is held out, a tenth before it is tuning."""
    split = np.zeros(n, np.int8)
    split[int(n * (0.9 - share)) : int(n * (1 - share))] = splits.TUNING
    split[int(n * (1 - share)) :] = splits.HELD_OUT
    return split


def codes(findings):
    return [finding.code for finding in findings]


def only(findings, code, fatal):
    assert codes(findings) == [code]
    assert findings[0].fatal == fatal
    assert "\n" not in findings[0].message
    assert "secret" not in findings[0].message
    return findings[0].message


def test_a_sound_manifest_has_no_findings():
    assert check.find_problems(make(), cut()) == []


def test_e001_absent_columns_are_all_named():
    manifest = make()
    table = manifest.table.drop("na").rename({"sex": "sexx"})
    findings = check.find_problems(dataclasses.replace(manifest, table=table))
    assert codes(findings) == ["E001", "E001"]
    assert "did you mean 'sexx'" in findings[1].message


def test_e001_empty_ids_and_empty_table():
    manifest = make(patient=swap([f"secret{i}" for i in range(200)], _4=None))
    assert "row 5" in only(check.find_problems(manifest), "E001", True)
    assert "E001" in codes(check.find_problems(dataclasses.replace(manifest, table=manifest.table.head(0))))


def test_e002_duplicate_sample_ids():
    manifest = make(id=swap([f"s{i}" for i in range(200)], _7="s2"))
    assert "rows 3, 8" in only(check.find_problems(manifest), "E002", True)


def test_a_row_that_no_part_uses_cuts_no_patient():
    patients, split = swap([f"p{i}" for i in range(200)], _199="p0"), cut()
    assert only(check.find_problems(make(patient=patients), split), "E003", True)
    split[199] = splits.UNUSED
    assert not [finding for finding in check.find_problems(make(patient=patients), split) if finding.code == "E003"]


def test_e003_patient_in_two_splits_by_column_or_argument():
    patients = swap([f"secret{i}" for i in range(200)], _199="secret0")
    column = [splits.SPLITS[i] for i in cut()]
    for findings in (
        check.find_problems(make(patient=patients, split=column)),
        check.find_problems(make(patient=patients), cut()),
    ):
        message = only(findings, "E003", True)
        assert message.startswith("1 patients")
        assert re.search(r"hashed ids [0-9a-f]{8}\)", message)
        assert check.anonymous("secret0") in message


def test_e004_row_without_modality():
    manifest = make()
    empty = pl.col("id").is_in(["s1", "s5"])
    names = ("note", "na", "k", "sex", "emb")
    table = manifest.table.with_columns(pl.when(~empty).then(pl.col(name)).alias(name) for name in names)
    message = only(check.find_problems(dataclasses.replace(manifest, table=table)), "E004", True)
    assert "2 rows" in message
    assert "rows 2, 6" in message


def test_e005_missing_foreign_and_absent_labels():
    labels = [str(i % 2) for i in range(200)]
    assert "row 4" in only(check.find_problems(make(y=swap(labels, _3=None))), "E005", True)
    message = only(check.find_problems(make(y=swap(labels, _3="secret"))), "E005", True)
    assert "outside the declared classes 0, 1" in message
    late = ["0"] * 150 + ["1"] * 50
    assert "no row in train has class 1" in only(check.find_problems(make(y=late), cut()), "E005", True)
    assert check.find_problems(make(y=late)) == []
    assert "no row in the table has class 1" in only(check.find_problems(make(y=["0"] * 200)), "E005", True)


def file_manifest(tmp_path, cells):
    emb = Modality("emb", "embedding", ("emb",), stored="file")
    schema = dataclasses.replace(SCHEMA, modalities=(*SCHEMA.modalities[:2], emb))
    np.save(tmp_path / "good.npy", np.ones((2, 3)))
    np.save(tmp_path / "other.npy", np.ones((2, 4)))
    cells = (cells + [None] * 200)[:200]
    return dataclasses.replace(make(emb=cells), schema=schema, root=tmp_path)


@pytest.mark.parametrize(
    ("cell", "code"), [("/x.npy", "E006"), ("x.npy", "E007"), ("other.npy", "E008"), ("-2", "E009")]
)
def test_files_of_a_manifest_in_memory_are_checked(tmp_path, cell, code):
    assert check.find_problems(file_manifest(tmp_path, ["good.npy"])) == []
    assert "row 2" in only(check.find_problems(file_manifest(tmp_path, ["good.npy", cell])), code, True)


def test_e008_non_finite_cells():
    emb = np.ones((200, 2, 3), np.float32)
    emb[:] = np.arange(200)[:, None, None]
    emb[9, 1, 1] = np.nan
    assert "row 10" in only(check.find_problems(make(emb=pl.Series(emb))), "E008", True)
    for bad in (float("inf"), 1e39):
        assert "row 3" in only(check.find_problems(make(k=swap([1.0] * 200, _2=bad))), "E008", True)


@pytest.mark.parametrize("column", ["note", "sex"])
def test_e009_words_for_missing_in_memory(column):
    manifest = make()
    cells = swap(manifest.table[column].to_list(), _1="NA", _2="", _3=None)
    assert "rows 2, 3)" in only(check.find_problems(make(**{column: cells})), "E009", True)


def test_e009_nan_in_memory():
    assert "row 1)" in only(check.find_problems(make(na=swap([1.0] * 200, _0=float("nan")))), "E009", True)


def test_all_fatal_findings_come_together():
    manifest = make(id=["s"] * 200, y=swap([str(i % 2) for i in range(200)], _3=None), na=[float("inf")] * 200)
    assert codes(check.find_problems(manifest)) == ["E002", "E005", "E008"]


def test_w101_and_w102_count_rows_and_patients():
    split = cut()
    held_out = np.flatnonzero(split == splits.HELD_OUT)
    notes = [f"short {i}" for i in range(200)]
    for i in held_out[:3]:
        notes[i] = None
    findings = check.find_problems(make(note=notes), split)
    assert codes(findings) == ["W101", "W102"]
    assert "1 combinations in held_out (3 rows)" in findings[0].message
    assert "labs+emb" in findings[0].message
    assert "1 of 2 combinations" in findings[1].message
    patients = [f"secret{i}" for i in range(200)]
    ten = swap(patients, **{f"_{i}": "secret-x" for i in held_out[9:]})
    nine = swap(patients, **{f"_{i}": "secret-x" for i in held_out[8:]})
    assert check.find_problems(make(patient=ten), split) == []
    assert "1 of 1 combinations" in only(check.find_problems(make(patient=nine), split), "W102", False)


def test_w103_long_texts_and_embeddings_under_two_patients():
    long, short = "x" * 65, "x" * 64
    notes = [f"short {i}" for i in range(200)]
    assert check.find_problems(make(note=swap(notes, _0=short, _1=short))) == []
    message = only(check.find_problems(make(note=swap(notes, _0=long, _1=long))), "W103", False)
    assert check.anonymous("secret0") in message
    assert "xxx" not in message
    emb = make().table["emb"].to_numpy().copy()
    emb[5] = emb[6]
    assert "emb: 1 contents" in only(check.find_problems(make(emb=pl.Series(emb))), "W103", False)
    same = swap([f"secret{i}" for i in range(200)], _5="secret6")
    assert check.find_problems(make(emb=pl.Series(emb), patient=same)) == []


def test_w103_copied_files(tmp_path):
    folder = write_manifest(tmp_path, n=30)
    scans = sorted((folder / "scans").iterdir())
    assert "W103" not in codes(check.find_problems(read_manifest(folder)))
    scans[0].write_bytes(scans[-1].read_bytes())
    assert "W103" in codes(check.find_problems(read_manifest(folder)))


def test_w104_presence_that_tells_the_label():
    rng = np.random.default_rng(1)
    notes = np.array([f"short {i}" for i in range(200)], object)
    blind, telling = notes.copy(), notes.copy()
    blind[rng.random(200) < 0.4] = None
    telling[(np.arange(200) % 2 == 1) & (rng.random(200) < 0.6)] = None
    assert "W104" not in codes(check.find_problems(make(note=blind.tolist())))
    message = only(check.find_problems(make(note=telling.tolist())), "W104", False)
    # Threshold classifier: sensitivity 0.6, specificity 1, so the area is 0.8.
    assert float(re.search(r"AUROC (\d\.\d+)", message)[1]) == pytest.approx(0.8, abs=0.05)


def test_w104_does_not_read_held_out_labels():
    split = cut(share=0.5)
    notes = [None if i >= 100 and i % 2 else f"short {i}" for i in range(200)]
    notes[0] = None
    assert "W104" in codes(check.find_problems(make(note=notes)))
    assert "W104" not in codes(check.find_problems(make(note=notes), split))


def test_w105_tuning_absent_from_the_column():
    column = ["train"] * 140 + ["held_out"] * 60
    assert "carved out of train" in only(check.find_problems(make(split=column)), "W105", False)


@pytest.mark.parametrize(("column", "text"), [(["train"] * 200, "no held_out"), (["x"] + ["held_out"] * 199, "row 1")])
def test_bad_split_columns_are_e001(column, text):
    messages = [f.message for f in check.find_problems(make(split=column)) if f.code == "E001" and f.fatal]
    assert len(messages) == 1
    assert text in messages[0]


def test_hints_name_what_was_meant(tmp_path):
    table = tmp_path / "raw.csv"
    table.write_text("a,b\n1,2\n")
    for arguments, hint in (
        ([str(table)], "remind import --from=table"),
        ([str(tmp_path)], "remind import"),
        ([str(tmp_path), "--jsn"], "did you mean '--json'"),
        ([str(tmp_path), "--bad_files=missing"], "did you mean '--bad-files'"),
        ([str(tmp_path), "--what"], "options: --json, --bad-files"),
        ([str(tmp_path), "more"], "unexpected arguments: more"),
    ):
        with pytest.raises(UserError) as error:
            check_data.run(arguments)
        assert hint in str(error.value)


def test_refuse_names_every_fatal_code_in_one_line():
    findings = [check.Finding("E002", "a", True), check.Finding("W105", "b", False), check.Finding("E005", "c", True)]
    check.refuse(findings[1:2])
    with pytest.raises(UserError, match=r"^E002 a; E005 c$"):
        check.refuse(findings)
