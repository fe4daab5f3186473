"""What is shown while a command works: plain lines now and then, or bars, one below the other."""

import io
import sys

import pytest

from remind_jax.runtime import progress


def test_plain_lines_are_few_and_say_how_far_it_is(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 20))  # seconds; a look at it is 20 s later than the one before
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.make(4, "adding") as bar:
        for step in range(5):
            bar.advance(step, "here")
        bar.say("a message")
        bar.count(7, 9)
        bar.count(8, 9)
    assert capsys.readouterr().out.splitlines() == [
        "adding 1 of 4  here",
        "adding 3 of 4  here",
        "a message",
        "adding 8 of 9",
    ]


def test_a_bar_within_another_is_of_its_kind(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    progress.Lines(9, "outer").below(3, "inner").advance(2)
    progress.Silent().below(3, "inner").advance(2)
    assert capsys.readouterr().out == "inner 2 of 3\n"


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


def test_a_failure_below_leaves_no_bar(monkeypatch):
    _terminal(monkeypatch)
    with pytest.raises(ZeroDivisionError), progress.make(1, "outer"), progress.make(1, "inner"):
        raise ZeroDivisionError
    assert progress.Bar._shown is None
