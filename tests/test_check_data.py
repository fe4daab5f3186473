"""The command check_data: what it accepts, lists and refuses."""

import json
import subprocess
import sys

import polars as pl
import pytest

from remind_jax import check_data
from remind_jax.data.reading import read_manifest
from remind_jax.errors import UserError
from tests.data.manifest_files import swap, write_manifest


def test_command_accepts_a_good_folder(tmp_path, capsys):
    folder = write_manifest(tmp_path, n=40)
    assert check_data.run([str(folder), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    manifest = read_manifest(folder)
    assert output["ok"] is True
    assert output["samples"] == 40
    assert output["patients"] == manifest.table["patient"].n_unique()
    assert output["classes"] == {"0": 20, "1": 20}
    assert sum(output["combinations"].values()) == sum(output["splits"].values()) == 40
    counts = list(output["combinations"].values())
    assert counts == sorted(counts, reverse=True)
    full = manifest.presence.all(axis=1).sum()
    assert output["combinations"]["note+icd+labs+scan"] == full


def test_command_lists_every_error_and_exits_2(tmp_path, capsys):
    folder = write_manifest(tmp_path, n=40)
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    died = swap(table["died"].to_list(), _0=None)
    scan = swap(table["scan"].to_list(), _1="../x.npy", _2="gone.npy")
    stay = swap(table["stay"].to_list(), _3="s4")
    columns = [pl.Series("died", died), pl.Series("scan", scan), pl.Series("stay", stay)]
    table.with_columns(columns).write_csv(folder / "manifest.csv")
    assert check_data.run([str(folder)]) == 2
    printed = capsys.readouterr().out
    for code in ("E002", "E005", "E006", "E007"):
        assert f"error {code}: " in printed
    assert "4 errors" in printed
    with pytest.raises(UserError, match=r"E006.*E007"):
        read_manifest(folder)


def test_json_tells_programs_of_a_folder_that_cannot_be_read(tmp_path, capsys):
    folder = write_manifest(tmp_path, n=40)
    schema = (folder / "schema.yaml").read_text()
    (folder / "schema.yaml").write_text(schema.replace("patient_id:", "patientid:"))
    with pytest.raises(UserError) as error:
        check_data.run([str(folder), "--json"])
    assert json.loads(capsys.readouterr().out) == {"ok": False, "error": str(error.value)}
    assert "did you mean 'patient_id'" in str(error.value)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--jsn"], ["nowhere"]])
def test_usage_errors_are_one_line_and_exit_2(tmp_path, arguments):
    command = [sys.executable, "-m", "remind_jax.check_data", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
