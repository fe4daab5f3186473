"""The enlarged copy of the demo on which memory is measured, and the measurement."""

import json

import polars as pl
import pytest

from benchmarks import mimic_memory
from remind_jax.errors import UserError


@pytest.fixture(scope="module")
def copy(demo, tmp_path_factory):
    """Three copies of the demo and the record of reading them."""
    folder = tmp_path_factory.mktemp("copy")
    out = folder / "out.jsonl"
    mimic_memory.main([f"--demo={demo}", "--copies=3", f"--folder={folder}", f"--out={out}"])
    return folder, json.loads(out.read_text())


@pytest.mark.parametrize("name", mimic_memory.TABLES)
def test_copies_have_ids_of_their_own_and_the_same_cells(demo, copy, name):
    once = pl.read_csv(demo / f"{name}.csv.gz", infer_schema=False)
    thrice = pl.read_csv(copy[0] / f"{name}.csv.gz", infer_schema=False)
    assert thrice.height == 3 * once.height
    ids = [column for column in ("subject_id", "hadm_id", "stay_id") if column in once.columns]
    for column in ids:
        assert thrice[column].drop_nulls().n_unique() == 3 * once[column].drop_nulls().n_unique()
    same = [column for column in once.columns if column not in (*ids, "specimen_id")]
    assert thrice[-once.height :].select(same).equals(once.select(same))


def test_the_record_counts_what_was_read(copy):
    record = copy[1]
    assert record["stays"] == 3 * 74
    assert record["rows"] == {"hosp/labevents": 3 * 107_727, "icu/chartevents": 3 * 257_474}
    assert record["peak_mib"] > record["imports_mib"] > 0
    assert any("notes are used, 0 of them" in note for note in record["notes"])


def test_a_wrong_folder_and_a_failing_reader_are_one_line(tmp_path, demo, copy):
    with pytest.raises(UserError, match="names the folder of the MIMIC-IV demo"):
        mimic_memory.main([f"--demo={tmp_path}", "--copies=1", f"--folder={tmp_path / 'new'}"])
    with pytest.raises(UserError, match=r"the reader failed: .*did you mean 'ihm48'") as error:
        mimic_memory.main([f"--demo={demo}", f"--folder={copy[0]}", '--options={"label": "ihm"}'])
    assert "\n" not in str(error.value)
