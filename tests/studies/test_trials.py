"""Trials by TPE: better than chance, the same again, gone on with after a kill, shared by processes."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from remind_jax.errors import UserError
from remind_jax.studies import trials
from remind_jax.studies.spaces import Range
from tests import tiny_runs

pytest.importorskip("optuna")
SPACE = {"lr": Range(1e-4, 1.0, True), "width": (1, 2, 3, 4), "depth": Range(1, 9), "rate": Range(0.0, 1.0)}
OWN = {"lr": 0.5, "width": 1, "depth": 1, "rate": 0.9}


def hill(number, keys) -> float:
    """A made-up loss, 0 at lr = 0.01, width = 3, depth = 5 and rate = 0.3."""
    at = OWN | dict(keys)
    far = (math.log10(at["lr"]) + 2, at["width"] - 3, (at["depth"] - 5) / 4, 2 * (at["rate"] - 0.3))
    return sum(x * x for x in far)


def search(number: int, objective=hill, folder=None, **options):
    return trials.optimise(objective, SPACE, options.pop("own", OWN), number, folder=folder, **options)


def tried(found):
    return [(trial.number, dict(trial.keys), trial.value) for trial in found[0]]


def test_it_finds_the_optimum_better_than_chance():
    rng, draws = np.random.default_rng(0), []
    for _ in range(500):
        each = [
            {
                "lr": 10 ** rng.uniform(-4, 0),
                "width": int(rng.integers(1, 5)),
                "depth": int(rng.integers(1, 10)),
                "rate": rng.uniform(),
            }
            for _ in range(30)
        ]
        draws.append(min(hill(0, keys) for keys in each))
    reached = [trials.best_of(search(30, seed=seed)[0], more=False).value for seed in range(3)]
    assert np.mean(reached) < np.quantile(draws, 0.25)
    most = trials.best_of(search(30, lambda number, keys: -hill(number, keys), more=True)[0], more=True)
    assert most.value == pytest.approx(-reached[0])


def test_the_first_trial_is_the_config_as_it_is_so_that_none_is_worse():
    first, *rest = search(4, own=OWN | {"lr": 0.01, "width": 3, "depth": 5, "rate": 0.3})[0]
    assert first.number == 0
    asked = []
    search(3, lambda number, keys: asked.append((number, dict(keys))) or 1.0)
    assert asked[0] == (0, {})
    assert all(keys.keys() == SPACE.keys() for _, keys in asked[1:])
    assert trials.best_of([first, *rest], more=False).value <= first.value


def test_own_values_outside_of_the_space_are_tried_and_kept_from_the_sampler():
    found = search(12, own=OWN | {"lr": 5.0})
    assert found[0][0].value == hill(0, {})
    assert found[0][0].keys == {}
    assert len({trial.keys["lr"] for trial in found[0][1:]}) == 11


def test_a_seed_says_what_is_tried_in_a_folder_or_not(tmp_path):
    one = search(20, seed=3)
    assert tried(one) == tried(search(20, seed=3, folder=tmp_path / "a"))
    assert tried(one) != tried(search(20, seed=4))
    assert search(19)[1] == {}
    assert set(one[1]) == SPACE.keys()
    assert sum(one[1].values()) == pytest.approx(1.0)


def test_more_trials_go_on_with_those_that_are_there(tmp_path):
    search(5, folder=tmp_path / "a")
    more = []
    found = search(9, lambda number, keys: more.append(number) or hill(number, keys), tmp_path / "a")
    assert more == [5, 6, 7, 8]
    assert tried(found) == tried(search(9))


@pytest.mark.parametrize("how", [KeyboardInterrupt, SystemExit])
def test_broken_off_a_trial_is_tried_again_with_its_own_keys(tmp_path, how):
    begun = []

    def impatient(number, keys):
        if number == 3 and not begun:
            begun.append(dict(keys))
            raise how
        return hill(number, keys)

    with pytest.raises(how):
        search(6, impatient, tmp_path / "a")
    before = {file: file.read_bytes() for file in (tmp_path / "a").glob("*.log")}
    again = []
    found = search(6, lambda number, keys: again.append((number, dict(keys))) or hill(number, keys), tmp_path / "a")
    assert again[0] == (3, begun[0])
    assert [number for number, _ in again] == [3, 4, 5]
    assert tried(found) == tried(search(6))
    for file, content in before.items():
        assert file.read_bytes().startswith(content)


CHILD = """
import json, os, pathlib, signal, sys, time
from remind_jax.studies import trials
from tests.studies import test_trials

folder, number, kill = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def objective(number, keys):
    with open(folder / "ran", "a") as file:
        file.write(json.dumps([number, dict(keys), os.getpid()]) + "\\n")
    if number == kill:
        os.kill(os.getpid(), signal.SIGKILL)
    while len((folder / "ran").read_text().splitlines()) < 2:
        time.sleep(0.01)  # until both have begun
    time.sleep(0.05)
    return test_trials.hill(number, keys)

print(trials.optimise(objective, test_trials.SPACE, test_trials.OWN, number, folder=folder / "search") is None)
"""


def child(folder: pathlib.Path, number: int, kill: int = -1) -> subprocess.Popen:
    given = [sys.executable, "-c", CHILD, str(folder), str(number), str(kill)]
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT)}
    return subprocess.Popen(given, env=environment, stdout=subprocess.PIPE, text=True)


def ran(folder: pathlib.Path) -> list[tuple[int, dict, int]]:
    return [tuple(json.loads(line)) for line in (folder / "ran").read_text("utf-8").splitlines()]


def test_two_processes_share_the_trials_and_run_none_twice(tmp_path):
    both = [child(tmp_path, 16) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "False" in "".join(said)  # the last to end has them all
    numbers = [number for number, _, _ in ran(tmp_path)]
    assert sorted(numbers) == list(range(16))
    assert {process for _, _, process in ran(tmp_path)} == {process.pid for process in both}
    found = search(16, lambda number, keys: pytest.fail("it is finished"), tmp_path / "search")
    assert [trial.value for trial in found[0]] == [hill(trial.number, trial.keys) for trial in found[0]]


def test_a_trial_of_a_killed_process_is_run_again_with_its_own_keys_and_no_other(tmp_path):
    (tmp_path / "ran").write_text("[-1, {}, 0]\n[-1, {}, 0]\n", encoding="utf-8")
    process = child(tmp_path, 8, kill=5)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = dict(enumerate(ran(tmp_path)))[len(ran(tmp_path)) - 1]
    again = []
    found = search(
        8, lambda number, keys: again.append((number, dict(keys))) or hill(number, keys), tmp_path / "search"
    )
    assert again[0] == (5, killed[1])
    assert [number for number, _ in again] == [5, 6, 7]
    assert tried(found) == tried(search(8))


def test_trials_of_others_are_left_to_them(tmp_path):
    def asks_again(number, keys):
        assert search(3, hill, tmp_path / "a") is None or number != 0  # this process holds the first
        return hill(number, keys)

    assert len(search(3, asks_again, tmp_path / "a")[0]) == 3


def test_a_failed_trial_is_told_and_not_run_again_but_the_first_ends_the_search(tmp_path):
    def fails(number, keys):
        if number == 2:
            raise UserError("too wide")
        return math.nan if number == 3 else hill(number, keys)

    found = search(5, fails, tmp_path / "a")[0]
    assert [trial.value is None for trial in found] == [False, False, True, True, False]
    assert found[2].reason == "too wide"
    assert "not finite" in found[3].reason
    assert search(5, lambda number, keys: pytest.fail("it is finished"), tmp_path / "a")[0] == found
    with pytest.raises(UserError, match="too wide"):
        search(5, lambda number, keys: fails(2, keys), tmp_path / "b")
    assert len(search(5, hill, tmp_path / "b")[0]) == 5


def test_the_same_keys_are_not_tried_twice():
    count = []
    space, own = {"width": (1, 2)}, {"width": 1}
    found, _ = trials.optimise(lambda number, keys: count.append(number) or float(number), space, own, 8)
    assert len(count) == 2
    assert {trial.value for trial in found} == {0.0, float(count[1])}


def test_a_damaged_journal_is_told_in_one_line(tmp_path):
    search(2, folder=tmp_path / "a")
    with open(tmp_path / "a" / "journal.log", "ab") as file:
        file.write(b"{\n{}\n")
    with pytest.raises(UserError, match=r"journal.log is damaged: remove"):
        search(2, folder=tmp_path / "a")


def test_without_optuna_the_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"^optuna is not installed: pip install optuna \(part of the extra search"):
        search(2)


def test_the_users_logging_of_optuna_stays_as_it_was():
    import optuna

    before = optuna.logging.get_verbosity()
    search(2)
    assert optuna.logging.get_verbosity() == before
