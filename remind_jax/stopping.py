"""Signals by which schedulers ask a run to stop: it saves at the next step and ends with a code of its own."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

# What a shell reports of a process that SIGTERM ended, and EX_TEMPFAIL of sysexits.h: "try again later".
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; `code` is the exit code. No `except Exception` takes it for a failure."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.code = CODES[signal.Signals(number)]


class Signals:
    """Turns the signals of `CODES` into `Stopped` while it is open: at once, or where `deferred`, when it is asked.

    Only the main thread receives signals; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self._asked, self._deferred = 0, False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._receive) for number in CODES} if is_main else {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Where work would be lost: a signal only shows in `asked`, and the loop ends by `stop` when it has saved."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._asked:
            self.stop()

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return bool(self._asked)

    def stop(self) -> None:
        """Raises Stopped for the signal that has come."""
        raise Stopped(self._asked)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._asked = self._asked or number
        if not self._deferred:
            self.stop()
