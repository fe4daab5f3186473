"""Gaps under named protocols on a tiny run with a table, events and series: what goes, how often, and what it costs."""

import contextlib
import io

import numpy as np
import polars as pl
import pytest

from remind_jax import main
from remind_jax.analysis import gaps, opening, robustness
from remind_jax.data.missingness import PROTOCOLS
from remind_jax.errors import UserError
from remind_jax.evaluation import differences
from tests import tiny_runs

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
N = 240


def write(path):
    """Writes a folder of a table, events and series; every fifth sample has the table alone."""
    rng = np.random.default_rng(0)
    sick = rng.random(N) < 0.5
    cell = [[[float(v)] for v in rng.normal(s, 1, 8)] if i % 5 else None for i, s in enumerate(sick)]
    samples = pl.DataFrame({"id": range(N), "died": sick.astype(int), "a": rng.normal(sick), "b": rng.normal(size=N)})
    samples = samples.with_columns(until=pl.lit(24.0), ecg=pl.Series(cell))
    owner = np.repeat(np.flatnonzero(np.arange(N) % 5 > 0), 6)
    events = pl.DataFrame(
        {"id": owner, "time": rng.random(len(owner)) * 24, "code": rng.choice(["k", "hr"], len(owner))}
    )
    events = events.with_columns(value=pl.Series(rng.normal(sick[owner])))
    path.mkdir()
    samples.write_parquet(path / "manifest.parquet")
    events.write_csv(path / "vitals.csv")
    (path / "schema.yaml").write_text(SCHEMA)
    return path


SCHEMA = """
version: 1
name: gaps
sample_id: id
patient_id: id
label: {column: died, classes: ["0", "1"]}
modalities:
  labs: {kind: tabular, columns: [a, b]}
  vitals: {kind: events, table: vitals.csv, key: id, time: time, code: code, value: value, until: until}
  ecg: {kind: series, column: ecg}
"""


@pytest.fixture(scope="module")
def run(_quick_compilation, tmp_path_factory):
    path = tmp_path_factory.mktemp("gaps")
    with contextlib.redirect_stdout(io.StringIO()):
        main.main(
            [
                *tiny_runs.own_arguments(write(path / "data"), path / "cache", eval__bootstrap=50),
                f"--workdir={path / 'run'}",
            ]
        )
    return opening.open_run(path / "run")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mode", gaps.MODES)
def test_what_stays_is_as_it_was_and_what_is_left_is_told(run, mode, protocol):
    rows = gaps.held(run)
    found = [gaps.take_away(run, rows, mode, protocol, 0.4, np.random.default_rng(seed)) for seed in range(30)]
    assert np.mean([each.realised for each in found]) == pytest.approx(0.4, abs=0.04)
    every = np.arange(len(rows.presence))
    before = rows.store.take(every)
    for each in found[:3]:
        assert not (each.presence & ~rows.presence).any()
        after = each.store.take(every)
        for j, name in enumerate(run.data.groups.modalities):
            same = (after[name] == before[name]).reshape(len(every), -1).all(axis=1)
            assert same[~each.changed].all()
            assert same[each.presence[:, j]].all() == (mode == gaps.WHOLE)
        if mode == gaps.WHOLE:
            assert each.presence.any(axis=1).all()
            np.testing.assert_array_equal(each.changed, (each.presence != rows.presence).any(axis=1))


def test_everything_that_may_go_goes_at_a_rate_of_one(run):
    rows = gaps.held(run)
    whole = gaps.take_away(run, rows, gaps.WHOLE, "mnar", 1.0, np.random.default_rng(0))
    assert (whole.presence.sum(axis=1) == 1).all()
    within = gaps.take_away(run, rows, gaps.WITHIN, "segments", 1.0, np.random.default_rng(0))
    single = rows.presence.sum(axis=1) == 1
    np.testing.assert_array_equal(within.presence.sum(axis=1), np.where(single, 0, 1))
    assert whole.realised == within.realised == 1.0


def test_the_table_says_what_gaps_cost(run, capsys):
    arguments = [f"--workdir={run.path}", "--draws=2", "--protocols=mnar,segments", "--rates=0.2,1"]
    robustness.main(arguments)
    printed = capsys.readouterr().out
    rows = pl.read_csv(run.path / "analysis" / "robustness_gaps.csv")
    assert tuple(rows.columns) == gaps.COLUMNS
    assert rows.height == 2 * 2 * 2 * (len(run.task.compared) + 1)
    assert rows.filter(pl.col("rate") == 1)["realised"].to_list() == [1.0] * (rows.height // 2)
    low = rows.filter(pl.col("rate") == 0.2)["realised"]
    assert ((low - 0.2).abs() < 0.12).all()
    assert "within modalities, segments        0.20" in printed
    report = run.model.report["overall"]
    for name in run.task.compared:
        apart = rows.filter(pl.col("figure") == name).select(pl.col("value") - pl.col("difference")).to_series()
        np.testing.assert_allclose(apart, report[name], atol=1e-5)
    for _, some in rows.drop_nulls("p").group_by("figure"):
        assert some["p_holm"].to_list() == pytest.approx(differences.holm(some["p"].to_list()))
    assert (rows["p_holm"] > rows["p"]).any()
    known = rows.drop_nulls("difference_low")
    assert known.height
    inside = known.filter(pl.col("difference").is_between("difference_low", "difference_high"))
    assert inside.height > 0.8 * known.height
    assert (run.path / "analysis" / "robustness_gaps.svg").is_file()
    again = (run.path / "analysis" / "robustness_gaps.csv").read_bytes()
    robustness.main(arguments)
    assert (run.path / "analysis" / "robustness_gaps.csv").read_bytes() == again


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--protocols=mnra", "'mnra' is none of mcar, mar, mnar, segments, none .did you mean 'mnar'"),
        ("--rates=0,0.5", "--rates=0,0.5 must be shares above 0 and up to 1"),
        ("--rates=half", "--rates=half must be shares"),
    ],
)
def test_other_protocols_and_rates_are_refused(option, message):
    with pytest.raises(UserError, match=message):
        robustness.main(["--workdir=nowhere", option])
