"""Signals that ask a command to stop; a run saves at the next step and ends with an exit code of its own.

That nobody reads any more what a command prints is one of them, but Python ignores it: `no_reader` tells it.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Self

# What a shell reports of a process that they ended, but for SIGUSR1: EX_TEMPFAIL of sysexits.h, "try again later".
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGPIPE: 141}

_AGAIN = 0.01  # seconds


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; `code` is the exit code. No `except Exception` takes it for a failure.

    `agreed` says that all processes of the job end with it, at the same step.
    """

    def __init__(self, number: int, agreed: bool = False):
        super().__init__(signal.Signals(number).name)
        self.code, self.agreed = CODES[signal.Signals(number)], agreed


class Signals:
    """Turns the signals of `CODES` into `Stopped` while it is open: at once, or where `deferred`, when it is asked.

    Only the main thread receives signals; elsewhere nothing changes. A signal that is ignored (nohup) stays so. `asked`
    is the signal that came first, or 0.
    """

    def __init__(self) -> None:
        self.asked, self._deferred = 0, False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in _heard()}
        self._hook = sys.unraisablehook
        if self._before:
            sys.unraisablehook = self._swallowed
        _open.append(self)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _open.remove(self)
        if sys.unraisablehook == self._swallowed:
            sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self, agree: Callable[[int], int] = int) -> Iterator[None]:
        """Keeps signals back where work would be lost: they only show in `asked`, and `Stopped` is raised at the end.

        A second SIGINT, of a person who does not want to wait, is not kept back; others are, once one has come, also
        while the process winds up what was saved. `agree` turns this process's signal at the end into that of all
        processes; 0 is none.
        """
        self._deferred = True
        try:
            yield
            asked = agree(self.asked)
        finally:
            self._deferred = self.asked != 0
        if asked:
            raise Stopped(asked, agreed=True)

    def _swallowed(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Asks again where nothing could be raised, such as in a callback of the garbage collector."""
        if isinstance(unraisable.exc_value, Stopped):
            threading.Timer(_AGAIN, os.kill, (os.getpid(), self.asked)).start()
            self.asked = 0
        else:
            self._hook(unraisable)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_impatient = self.asked and number == signal.SIGINT
        self.asked = self.asked or number
        if not self._deferred or is_impatient:
            raise Stopped(self.asked)


_open: list[Signals] = []  # the innermost last


def no_reader(error: BrokenPipeError) -> None:
    """Asks to stop because nobody reads standard output; raises the error where no signals are listened to."""
    if not _open:
        raise error
    _open[-1]._receive(signal.SIGPIPE, None)


def end_with(code: int) -> None:
    """Lets the signals of `CODES` end the process at once and with a code, as all is done that was to be done."""
    for number in _heard():
        signal.signal(number, lambda *_: os._exit(code))
    atexit.register(_ignore)  # Python's own end would put the system's handlers back


def _ignore() -> None:
    for number in _heard():
        signal.signal(number, signal.SIG_IGN)


def _heard() -> list[signal.Signals]:
    if threading.current_thread() is not threading.main_thread():
        return []
    return [number for number in CODES if signal.getsignal(number) != signal.SIG_IGN]  # of SIGPIPE it always is
