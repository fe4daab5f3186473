"""Signals by which schedulers ask a run to stop; it saves at the next step and ends with an exit code of its own."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Self

# What a shell reports of a process that SIGTERM ended, and EX_TEMPFAIL of sysexits.h: "try again later".
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 75}


class Stopped(KeyboardInterrupt):
    """A signal has ended the run; `code` is the exit code. No `except Exception` takes it for a failure.

    `agreed` says that all processes of the job end with it, at the same step.
    """

    def __init__(self, number: int, agreed: bool = False):
        super().__init__(signal.Signals(number).name)
        self.code, self.agreed = CODES[signal.Signals(number)], agreed


class Signals:
    """Turns the signals of `CODES` into `Stopped` while it is open: at once, or where `deferred`, when it is asked.

    Only the main thread receives signals; elsewhere nothing changes. `asked` is the signal that came first, or 0.
    """

    def __init__(self) -> None:
        self.asked, self._deferred = 0, False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._receive) for number in CODES} if is_main else {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self, agree: Callable[[int], int] = int) -> Iterator[None]:
        """Keeps signals back where work would be lost: they only show in `asked`, and `Stopped` is raised at the end.

        `agree` turns this process's signal at the end into that of all processes; 0 is none.
        """
        self._deferred = True
        try:
            yield
            asked = agree(self.asked)
        finally:
            self._deferred = False
        if asked:
            raise Stopped(asked, agreed=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number
        if not self._deferred:
            raise Stopped(self.asked)
