"""What is shown while a command works: plain lines now and then, or bars, one below the other."""

import io
import sys
import types

import pytest

from remind_jax.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test adds seconds to its only item."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_are_few_and_say_how_far_it_is_and_how_long_it_takes(capsys, clock):
    with progress.make(100, "adding") as bar:
        clock[0] += 50  # before the first step, and so no part of the pace
        for step in range(1, 8):
            bar.advance(step, "here")
            clock[0] += 10
        bar.say("a message")
        clock[0] += 29
        bar.advance(8)
        clock[0] += 1
        bar.advance(9)
    assert capsys.readouterr().out.splitlines() == [
        "adding 1 of 100  (50 s passed)  here",
        "adding 4 of 100  (1:20 min passed, 10 s each, 16:00 min left)  here",
        "adding 7 of 100  (1:50 min passed, 10 s each, 15:30 min left)  here",
        "a message",
        "adding 9 of 100  (2:30 min passed, 20 s each, 30:20 min left)",
    ]


def test_counting_without_a_known_end_says_no_time_left(capsys, clock):
    with progress.make(0, "reading") as bar:
        bar.advance(0)
        clock[0] += 40
        bar.advance(100)
        clock[0] += 40
        bar.count(300, 400)
    assert capsys.readouterr().out.splitlines() == [
        "reading 100  (40 s passed, 2.5 a second)",
        "reading 300 of 400  (1:20 min passed, 5 a second, 20 s left)",
    ]


def test_what_compiles_is_told_and_is_no_part_of_the_pace(capsys, clock):
    with progress.make(10, "training") as bar:
        bar.advance(0)
        with bar.slow("Compiling the step"):
            clock[0] += 100
        for step in (1, 2):
            clock[0] += 20
            bar.advance(step)
        clock[0] += 20
        bar.advance(3)
    assert capsys.readouterr().out.splitlines() == [
        "Compiling the step …",
        "Compiling the step … took 1:40 min",
        "training 2 of 10  (2:20 min passed, 20 s each, 2:40 min left)",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (3599.6, "1:00:00 h"), (90061, "25:01:01 h")],
)
def test_times_are_written_as_people_do(seconds, text):
    assert progress.duration(seconds) == text


def test_a_pace_by_hand():
    assert progress.pace(30, 60.0, 90) == "2 s each, 3:00 min left"
    assert progress.pace(600, 60.0, 60) == "10 a second, 6 s left"
    assert progress.pace(600, 60.0, 0) == progress.pace(600, 60.0, -3) == "10 a second"
    assert progress.pace(0, 60.0, 10) == progress.pace(3, 0.0, 10) == ""


def test_a_bar_within_another_is_of_its_kind(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    progress.Lines(9, "outer").below(3, "inner").advance(2)
    progress.Silent().below(3, "inner").advance(2)
    assert capsys.readouterr().out == "inner 2 of 3  (0 s passed)\n"


def test_quick_steps_and_silence_print_nothing(capsys):
    assert list(progress.over("abc", "letters")) == ["a", "b", "c"]
    with progress.make(3, "quiet", verbose=False) as bar:
        bar.say("nothing")
        bar.count(1, 3)
    assert capsys.readouterr().out == ""


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _terminal(monkeypatch):
    """Called in the test, because pytest puts its own standard output in place after fixtures are made."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", _Terminal())
    return sys.stdout


def test_bars_stand_below_each_other_and_go(monkeypatch):
    terminal = _terminal(monkeypatch)
    with progress.make(2, "outer") as outer:
        for number in progress.over(range(3), "inner"):
            outer.advance(0, f"[{number}]")
            outer.say(f"line {number} [bold]")
        outer.advance(2)
        progress.Bar._shown.refresh()
        last = terminal.getvalue()[-600:]
    assert progress.Bar._shown is None
    shown = terminal.getvalue()
    assert "outer" in shown
    assert "inner" in shown
    assert "inner" not in last.split("line 2")[-1].split("outer")[-1]
    assert all(f"line {number} [bold]" in shown for number in range(3))  # as written, not as markup


def test_a_bar_shows_what_compiles_and_how_long_it_took(monkeypatch):
    terminal = _terminal(monkeypatch)
    with progress.make(2, "training") as bar, bar.slow("Compiling the step"):
        progress.Bar._shown.refresh()
        assert "Compiling the step …" in terminal.getvalue()
        assert "took" not in terminal.getvalue()
    shown = terminal.getvalue()
    assert "Compiling the step … took 0 s" in shown
    assert "0:00:00" in shown  # the time passed


def test_a_notebook_has_a_bar_and_a_log_has_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(progress.make(2, "training"), progress.Lines)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: name)
    assert isinstance(progress.make(2, "training"), progress.Bar)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)  # rich could not draw
    assert isinstance(progress.make(2, "training"), progress.Lines)


def test_a_failure_below_leaves_no_bar(monkeypatch):
    _terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), progress.make(1, "outer"), progress.make(1, "inner"):
        raise ZeroDivisionError
    assert progress.Bar._shown is None
