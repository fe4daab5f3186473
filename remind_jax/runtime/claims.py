"""Claims on pieces of work in a folder that several processes share, on one machine or on many.

A claim is a file `<name>.<number>`. A file system makes a file for one process only, and that process holds the claim
until it lets go or is no longer heard of; then `<name>.<number + 1>` is free to make. No file is removed or renamed, so
there is no moment at which two could take one claim. A holder touches its file every few seconds. On its own machine
the lock on the file tells at once that it has ended; elsewhere, that the file has not been touched for a while, by the
clock of the folder's server.
"""

import contextlib
import json
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from remind_jax.errors import UserError
from remind_jax.runtime import files, records

BEAT = 10.0  # seconds between two touches
PATIENCE = 90.0  # seconds without one after which the holder counts as dead
LOST = 75  # exit code of a process whose claim somebody else has taken, as it was not heard of: try again later
_POLL = 0.5


class Claims:
    """The claims in a folder as one process sees them; while it is open, it keeps those up that it holds."""

    def __init__(self, folder: pathlib.Path, beat: float = BEAT, patience: float = PATIENCE):
        """Makes the folder, or raises a UserError; `beat` and `patience` are the same for all processes."""
        self._folder, self._beat, self._patience = folder, beat, patience
        self._held: dict[str, tuple[pathlib.Path, int]] = {}  # file and its descriptor, by name
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._clock = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
        files.refuse_links(folder)
        try:
            files.make_folder(folder)
            self.now()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._held):
            self._release(name)
        self._clock.unlink(missing_ok=True)

    def now(self) -> float:
        """Returns the time of the folder's server in seconds, by which the times of its files are."""
        descriptor = files.open_here(self._clock)
        try:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Takes a claim, if nobody holds it, and lets go of it at the end; yields whether it was taken."""
        number = self._newest(name)
        while not (number and self._alive(name, number)):
            number += 1
            if self._make(name, number):
                break
        else:
            yield False
            return
        try:
            yield True
        finally:
            self._release(name)

    def _make(self, name: str, number: int) -> bool:
        file = self._file(name, number)
        try:
            descriptor = files.open_here(file, os.O_EXCL)
        except FileExistsError:
            return False
        with self._lock:
            self._held[name] = file, descriptor
        locked = files.try_lock(descriptor)
        # Written after it was locked: whoever reads which machine it is may ask for the lock.
        holder = {"machine": _machine() if locked else "", "host": socket.gethostname(), "process": os.getpid()}
        try:
            os.write(descriptor, json.dumps(holder).encode())
        except OSError:
            self._release(name)
            raise
        return True

    def _release(self, name: str) -> None:
        with self._lock:
            file, descriptor = self._held.pop(name)
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):  # the folder has done its service
            os.utime(file, (0, 0))  # as if it had not been touched for ever

    def _keep_up(self) -> None:
        while not self._stop.wait(self._beat):
            with self._lock:
                for name, (file, _) in self._held.items():
                    self._touch(name, file)

    def _touch(self, name: str, file: pathlib.Path) -> None:
        if self._file(name, int(file.suffix[1:]) + 1).exists():
            print(f"error: {name} was taken over, as this process was not heard of for a while", file=sys.stderr)
            sys.stderr.flush()
            os._exit(LOST)  # not a byte more into a folder that is another's
        with contextlib.suppress(OSError):  # a file system that is away for a moment
            os.utime(file)

    def wait_for_news(self, names: Iterable[str]) -> bool:
        """Waits until one of some claims is free, and returns True; or until the holder of each has been heard of."""
        newest = {name: self._newest(name) for name in names}
        if not all(newest.values()):
            return True
        touched = {name: self._touched(name, number) for name, number in newest.items()}
        unheard = set(newest)
        while unheard:
            for name in sorted(unheard):
                if not self._alive(name, newest[name]):
                    return True
                if self._locked_here(name, newest[name]) or self._touched(name, newest[name]) != touched[name]:
                    unheard.remove(name)
            if unheard:
                time.sleep(min(_POLL, self._beat))
        return False

    def holder(self, name: str) -> str:
        """Tells which process holds a claim, or has held it last, as far as its file says so."""
        try:
            found = records.parse(records.content(self._file(name, self._newest(name))))
            return f"process {int(found['process'])} on {re.sub(r'[^A-Za-z0-9_.-]', '?', str(found['host']))}"
        except (OSError, UserError, ValueError, TypeError, LookupError):
            return "another process"

    def _file(self, name: str, number: int) -> pathlib.Path:
        return self._folder / f"{name}.{number}"

    def _newest(self, name: str) -> int:
        """Returns the number of the newest claim, 0 while there is none.

        Numbers follow one another, and a look at each costs the same however many other claims the folder has. A look
        that comes too early is made good by `_make`, which no file that exists lets through.
        """
        number = 0
        while self._file(name, number + 1).exists():
            number += 1
        return number

    def _alive(self, name: str, number: int) -> bool:
        """Tells whether the holder of a claim works on."""
        locked = self._locked_here(name, number)
        # A time to come is no time of this disk: the file came with the folder from elsewhere.
        return abs(self.now() - self._touched(name, number)) < self._patience if locked is None else locked

    def _touched(self, name: str, number: int) -> float:
        # Opened, because network file systems ask their server for the time when a file is opened.
        with records.opened(self._file(name, number)) as file:
            return os.fstat(file.fileno()).st_mtime

    def _locked_here(self, name: str, number: int) -> bool | None:
        """Tells whether a process of this machine has a claim locked; None where only another machine could say so."""
        file = self._file(name, number)
        with records.opened(file, flags=os.O_RDWR) as file:  # network file systems lock what can be written
            try:
                holder = records.parse(file.read(records.MOST))
            except ValueError:  # not written yet, or never to be
                return None
            if records.fault(holder, {"machine": str}) or not holder["machine"] or holder["machine"] != _machine():
                return None
            return not files.try_lock(file.fileno())


@contextlib.contextmanager
def owned(path: pathlib.Path, claim: pathlib.Path, beat: float = BEAT, patience: float = PATIENCE) -> Iterator[None]:
    """Holds a path for this process alone, by a claim on the same disk, and lets go of it at the end.

    A holder that was killed on this machine holds nothing more. One of another machine that is silent is waited for, up
    to `patience` seconds. Raises UserError: another process holds the path; the message names it.
    """
    with Claims(claim.parent, beat, patience) as held, contextlib.ExitStack() as stack:
        with files.writing(claim.parent):
            while not stack.enter_context(held.taken(claim.name)):
                if not held.wait_for_news([claim.name]):
                    holder = held.holder(claim.name)
                    raise UserError(f"{path} is in use by {holder}: wait until it has ended, or choose another folder")
        yield


def _machine() -> str:
    """Returns an id that running kernels do not share; empty where there is none."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
