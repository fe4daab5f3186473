"""A run that a scheduler stops saves at the next step and goes on as if it had never been stopped."""

import contextlib
import json
import os
import signal
import threading

import polars as pl
import pytest

from remind_jax.runtime import progress
from remind_jax.runtime.signals import CODES, Signals, Stopped, no_reader
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]

# Two stages of 12 steps, evaluated every sixth, recorded every fourth.
CHANGES = {"train__evaluate_every": 0.5, "eval__bootstrap": 20}


class _Scheduler(progress.Silent):
    """Sends this process a signal at a step."""

    def __init__(self, step: int, number: int):
        self._step, self._number = step, number

    def below(self, total: int, title: str) -> progress.Silent:
        return progress.Silent()

    def advance(self, step: int, text: str = "") -> None:
        if step == self._step:
            os.kill(os.getpid(), self._number)


def _run(config, folder, monkeypatch, step: int = 0, number: int = 0) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(progress, "make", lambda *arguments: _Scheduler(step, number))
        train_and_evaluate(config, folder, verbose=False)


def _records(folder) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time/step_ms"} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["remind", "fair_batch"])
def test_a_stopped_run_goes_on_bit_for_bit(method, tmp_path, monkeypatch):
    config = tiny_runs.config(tmp_path / "cache", method, **CHANGES)
    _run(config, tmp_path / "alone", monkeypatch)
    # Inside a record that is still open, just before an evaluation, at one, and in the second stage.
    for step, number in ((3, signal.SIGTERM), (5, signal.SIGUSR1), (6, signal.SIGTERM), (19, signal.SIGTERM)):
        before = {number: signal.getsignal(number) for number in CODES}
        with pytest.raises(Stopped) as caught:
            _run(config, tmp_path / "stopped", monkeypatch, step, number)
        assert caught.value.code == CODES[number]
        assert max(int(path.name) for path in (tmp_path / "stopped" / "checkpoints").iterdir()) == step
        assert {number: signal.getsignal(number) for number in CODES} == before
    assert not (tmp_path / "stopped" / "report.json").exists()
    _run(config, tmp_path / "stopped", monkeypatch)
    assert _records(tmp_path / "alone") == _records(tmp_path / "stopped")
    alone, stopped = (pl.read_parquet(tmp_path / name / "predictions.parquet") for name in ("alone", "stopped"))
    assert alone.equals(stopped)
    assert (tmp_path / "alone" / "report.json").read_bytes() == (tmp_path / "stopped" / "report.json").read_bytes()


def _receive(*numbers: int) -> bool:
    """Sends itself signals; whether that was survived."""
    for number in numbers:
        os.kill(os.getpid(), number)
    threading.Event().wait(0.01)
    return True


def test_a_signal_ends_at_once_what_has_nothing_to_save():
    with Signals(), pytest.raises(Stopped, match="SIGTERM"):
        _receive(signal.SIGTERM)


def test_a_signal_that_comes_where_nothing_is_raised_comes_again(capfd):
    class Left:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.01)

    def work():
        left = Left()
        del left
        threading.Event().wait(10)

    with Signals(), pytest.raises(Stopped, match="SIGTERM"):
        work()
    assert capfd.readouterr().err == ""


def test_a_deferred_signal_waits_and_is_raised_at_the_end():
    seen = []

    def work(signals):
        with signals.deferred():
            seen.append(_receive(signal.SIGUSR1, signal.SIGTERM) and signals.asked)

    with Signals() as signals, pytest.raises(Stopped, match="SIGUSR1"):  # the first one counts
        work(signals)
    assert seen == [signal.SIGUSR1]


def test_a_person_who_asks_twice_does_not_wait():
    def work(signals):
        with signals.deferred():
            _receive(signal.SIGINT, signal.SIGTERM)
            seen.append("goes on")
            _receive(signal.SIGINT)
            seen.append("goes on")

    seen = []
    with Signals() as signals, pytest.raises(Stopped, match="SIGINT"):
        work(signals)
    assert seen == ["goes on"]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with Signals():
            assert _receive(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_reader_who_has_left_is_a_signal_where_they_are_listened_to():
    with pytest.raises(BrokenPipeError):
        no_reader(BrokenPipeError())
    stopped = pytest.raises(Stopped, match="SIGPIPE")
    with Signals() as outer, Signals() as signals, stopped as caught, signals.deferred():
        no_reader(BrokenPipeError())
    assert (caught.value.code, outer.asked) == (141, 0)


def test_a_failure_is_not_hidden_by_a_signal():
    def work(signals):
        with signals.deferred():
            assert _receive(signal.SIGTERM)
            raise ZeroDivisionError

    with Signals() as signals, pytest.raises(ZeroDivisionError):
        work(signals)


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Signals() as signals, contextlib.suppress(ZeroDivisionError), signals.deferred():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
