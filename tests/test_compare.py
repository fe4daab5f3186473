"""Comparison of runs: names, pairing, calibration, and what is refused. The runs are written by hand."""

import json

import numpy as np
import polars as pl
import pytest

from remind_jax import compare
from remind_jax.data.groups import Groups
from remind_jax.errors import UserError
from remind_jax.evaluation import report as reports
from remind_jax.studies import results, tables

N = 60


def _run(folder, method, seed=0, right=0.5, data="toy", sure=0.9, **settings):
    """A run on the same 60 patients: of each ten rows the first `10 * right` are right, all with one confidence."""
    labels = np.arange(N) // 10 % 2
    hit = np.arange(N) % 10 < round(10 * right)
    chosen = np.where(hit, labels, 1 - labels)
    p = np.where(chosen[:, None] == np.arange(2), sure, 1 - sure)
    table = pl.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(N)],
            "patient_id": [f"p{i}" for i in range(N)],
            "label": labels,
            "group": ["a+b" if i % 2 else "a" for i in range(N)],
            **{f"p_{k}": p[:, k] for k in range(2)},
        }
    )
    masks = np.array([[True, False], [True, True]])
    groups = Groups(("a", "b"), masks, np.array([90, 10]), np.array([False, True]))
    config = {"method": method, "seed": seed, "eval": {"bootstrap": 20}}
    report = reports.build_report(config, data, table, groups, parameters=1, classes=["no", "yes"])
    folder.mkdir()
    table.write_parquet(folder / "predictions.parquet")
    reports.write_json(folder / "report.json", report)
    (folder / "config.json").write_text(json.dumps({"method": method, "seed": seed, **settings}), encoding="utf-8")
    return folder


def test_differences_and_calibration_of_two_runs(tmp_path, capsys):
    one, two = _run(tmp_path / "one", "plain", right=0.5), _run(tmp_path / "two", "better", right=0.8, sure=0.8)
    compare.main([str(one), str(two), f"--out={tmp_path / 'out'}", "--resamples=200"])
    table = pl.read_csv(tmp_path / "out" / "differences.csv")
    row = table.filter(pl.col("samples") == "all", pl.col("figure") == "accuracy").row(0, named=True)
    assert (row["baseline"], row["method"], round(row["mean"], 6)) == ("plain", "better", 30.0)
    # Three of ten patients change from wrong to right and none back, so that no replicate can fall to zero.
    assert 0 < row["low"] < 30 < row["high"]
    curve = pl.read_csv(tmp_path / "out" / "calibration.csv")
    found = {r["method"]: (r["n"], round(r["confidence"], 6), round(r["accuracy"], 6)) for r in curve.to_dicts()}
    assert found == {"plain": (60, 0.9, 0.5), "better": (60, 0.8, 0.8)}
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Differences to plain" in page
    assert '<td class="num">40.0</td>' in page  # ECE of the first: sure in 90 of 100, right in 50
    assert "http" not in page.replace("http-equiv", "")
    printed = capsys.readouterr().out
    assert "Differences to `plain`" in printed
    assert "of one seed (0)" in printed
    assert "over seeds" not in printed + page
    assert f"p {tables.p_text(row['p_holm'])})" in printed  # without wins, of which one seed has none or all


def test_seeds_of_one_config_are_one_method_and_other_configs_are_named_apart(tmp_path):
    folders = [
        _run(tmp_path / "a0", "plain", 0),
        _run(tmp_path / "a1", "plain", 1),
        _run(tmp_path / "wide", "plain", 0, width=8),
        _run(tmp_path / "b0", "better", 0),
    ]
    names = [(run.method, run.seed) for run in results.read_outcomes(folders)]
    assert names == [("plain (a0)", 0), ("plain (a0)", 1), ("plain (wide)", 0), ("better", 0)]


def test_what_is_refused(tmp_path):
    one, two = _run(tmp_path / "one", "plain"), _run(tmp_path / "two", "better")
    again, other = _run(tmp_path / "again", "plain"), _run(tmp_path / "other", "plain2", data="elsewhere")
    out = f"--out={tmp_path / 'out'}"
    for arguments, message in (
        ([one, out], "at least two"),
        ([one, two], "nowhere to write"),
        ([one, one, out], "given twice"),
        ([one, again, out], "have the seed 0 and the same config"),
        ([one, other, out], "other data: toy; elsewhere"),
        ([one, tmp_path, out], "no finished run"),
        ([one, two, out, "--baseline=plane"], "did you mean 'plain'"),
        ([one, two, out, "--resamples=0"], "at least 1"),
        ([one, two, out, "--resample=5"], "did you mean '--resamples'"),
    ):
        with pytest.raises(UserError, match=message):
            compare.main([str(argument) for argument in arguments])
    assert not (tmp_path / "out").exists()
