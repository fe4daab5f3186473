"""The record of a sweep: command lines without paths of the machine, and times that add up over calls."""

import json
import time

import pytest

from remind_jax.errors import UserError
from remind_jax.studies.record import Record, processor

SETTINGS = {"methods": ["a", "b"], "seeds": [0], "baselines": ["a"], "resamples": 5, "jobs": 1}
RUNS = ("a seed 0", "b seed 0")


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves; `clock[0]` is the time in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def _load(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_seconds_add_up_over_calls_and_unknown_ones_are_null(tmp_path, clock):
    path = tmp_path / "sweep.json"
    record = Record(path, [], runs=RUNS, **SETTINGS)

    def stopped():
        with record.timed(RUNS[0]):
            clock[0] += 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert _load(path)["runs"] == {RUNS[0]: {"seconds": 3.0}, RUNS[1]: {"seconds": None}}
    record.close(data="ward", failed=[], seconds=9.0, folders=[])
    record = Record(path, [], runs=RUNS[:1], **SETTINGS)
    assert _load(path)["seconds"] == {"running": 3.0, "tabulating": None}  # no tables of this call yet
    with record.timed(RUNS[0]):
        clock[0] += 4.5
    record.close(data="ward", failed=[], seconds=2.0, folders=[tmp_path])
    found = _load(path)
    assert found["runs"] == {RUNS[0]: {"seconds": 7.5}}  # what no call has run and this one does not plan is gone
    assert found["seconds"] == {"running": 7.5, "tabulating": 2.0}
    assert (found["data"], found["environment"], found["seeds"]) == ("ward", None, [0])


def test_runs_side_by_side_count_once_for_the_sweep(tmp_path, clock):
    path = tmp_path / "sweep.json"
    record = Record(path, [], runs=RUNS, **SETTINGS)
    one, two = record.timed(RUNS[0]), record.timed(RUNS[1])
    one.__enter__()
    clock[0] += 1
    two.__enter__()
    clock[0] += 2
    one.__exit__(None, None, None)
    clock[0] += 4
    two.__exit__(None, None, None)
    clock[0] += 50  # nothing runs
    with record.timed(RUNS[0]):
        clock[0] += 10
    found = _load(path)
    assert [run["seconds"] for run in found["runs"].values()] == [13.0, 6.0]
    assert found["seconds"]["running"] == 17.0


def test_the_first_finished_run_gives_versions(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "environment.json").write_text('{"python": "3.11"}', encoding="utf-8")
    record = Record(tmp_path / "sweep.json", [], runs=RUNS, **SETTINGS)
    folders = [tmp_path / "one", tmp_path / "two"]
    record.close(data="ward", failed=[RUNS[1]], seconds=0.0, folders=folders)
    assert _load(tmp_path / "sweep.json")["environment"] == {"python": "3.11"}
    assert _load(tmp_path / "sweep.json")["failed"] == [RUNS[1]]


def test_the_machine_is_that_of_the_runs_and_not_of_a_later_look_at_the_tables(tmp_path, monkeypatch):
    path = tmp_path / "sweep.json"
    monkeypatch.setattr("remind_jax.studies.record.processor", lambda: "fast")
    with Record(path, [], runs=RUNS, **SETTINGS | {"jobs": 2}).timed(RUNS[0]):
        pass
    monkeypatch.setattr("remind_jax.studies.record.processor", lambda: "slow")
    record = Record(path, [], runs=RUNS, **SETTINGS)
    assert (_load(path)["processor"], _load(path)["jobs"]) == ("fast", 2)
    with record.timed(RUNS[1]):
        pass
    assert (_load(path)["processor"], _load(path)["jobs"]) == ("slow", 1)


def test_a_file_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"is damaged .*: remove it, or choose another workdir"):
        Record(path, [], runs=RUNS, **SETTINGS)
    assert path.read_text(encoding="utf-8") == "{"


def test_the_processor_has_a_name():
    assert processor().strip()
