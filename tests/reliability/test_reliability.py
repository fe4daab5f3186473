"""Every row passes at a small count and fails when what it is about is taken away; the figures file and its page."""

import json

import pytest

from tests import tiny_runs
from tests.reliability import ROWS, Tally, __main__, page, strangers

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    # What orbax leaves behind of a restore that failed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# What takes seconds, with the count that takes them; the others are slow.
QUICK = {"order": 1, "saves": 4, "damage": 14, "manifests": 15, "configs": 40, "paths": 1, "pickles": 1}
QUICK |= {"importers": 40}
# Counts that show it.
BROKEN = {"kill": 2, "kill_methods": 1, "signals": 1, "strangers": 1, "preempt": 2, "devices": 1, "changed_data": 1}
BROKEN |= {"bombs": 2, "mutants": 2, "finite": 2, "full_disk": 1, "owners": 1, "importers": 60}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ROWS]


def _try(name: str, count: int, broken: bool) -> Tally:
    if name == "fuzz":
        pytest.importorskip("atheris")
    if name == "strangers" and not strangers.possible():
        pytest.skip("this machine gives no uid that nobody has")
    return ROWS[name].run(count, broken)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_row_holds(name):
    tally = _try(name, QUICK.get(name, ROWS[name].reduced), broken=False)
    assert tally.passed == tally.tried > 0, tally.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_row_can_fail(name):
    tally = _try(name, (QUICK | BROKEN).get(name, ROWS[name].reduced), broken=True)
    assert tally.passed < tally.tried, f"{name} does not see that {ROWS[name].broken}"


def test_figures_are_kept_row_by_row_and_the_exit_code_tells(tmp_path, monkeypatch, capsys):
    file, done = tmp_path / "figures.json", []

    def run(count, broken):
        done.append(count)
        tally = Tally()
        tally.check(count != 3, "three is too many", times=count)
        return tally

    row = ROWS["order"]
    monkeypatch.setitem(ROWS, "order", type(row)(**{**vars(row), "run": run, "reduced": 2, "full": 3}))
    arguments = ["--only=order", f"--out={file}"]
    __main__.main(arguments)
    __main__.main(arguments)  # is there already
    assert done == [2]
    with pytest.raises(SystemExit) as caught:
        __main__.main([*arguments, "--full"])
    assert (caught.value.code, done) == (1, [2, 3])
    found = json.loads(file.read_text(encoding="utf-8"))["rows"]["order"]
    assert (found["tried"], found["passed"], found["failed"]) == (3, 0, ["three is too many"])
    assert "failed: three is too many" in capsys.readouterr().out


def test_the_page_says_what_was_not_measured_in_full():
    figures = {"machine": {"platform": "x", "cores": 2, "python": "3", "packages": {"jax": "1"}}}
    found = {
        "count": 2,
        "full": 3,
        "unit": "seeds",
        "tried": 2,
        "passed": 1,
        "date": "2026-11-26",
        "notes": [],
        "figures": {},
    }
    text = page.render(figures | {"rows": {"order": found | {"failed": ["that one"]}}})
    assert "| 2 (count 2 of 3 seeds) | 1 |" in text
    assert "**failed**: that one" in text
    assert "`kill`" in text.partition("Not measured: ")[2].partition("\n")[0]
