"""Files and folders that are written whole or not at all, the lock that processes wait for, and digests of folders.

The only module that opens a file to write: what others write goes through here, past links that lead elsewhere.
"""

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import stat
import subprocess
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Container, Iterator, Mapping
from typing import IO, Any, NamedTuple

from remind_jax.errors import UserError, reason_of_disk

SUMS = "SHA256SUMS"
_UNFINISHED = ".tmp-"  # between a name and the random end of the name of what is not whole yet
_BEGUN = ".part"  # after the name of what is not whole yet and is gone on with
_LONGEST = 2**24  # bytes of a line
_POLL = 0.1  # seconds between two tries to get a lock
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
    "remind-jax",
)


def write_text(file: pathlib.Path, text: str, *, private: bool = False) -> None:
    """Replaces a file by a text, as `whole_file` does."""
    write_bytes(file, text.encode("utf-8"), private=private)


def write_bytes(file: pathlib.Path, content: bytes, *, private: bool = False) -> None:
    """Replaces a file by other contents, as `whole_file` does."""
    with whole_file(file, private=private) as temporary:
        temporary.write_bytes(content)


def write_folder(folder: pathlib.Path, contents: Mapping[str, bytes], *, replace: bool = False) -> None:
    """Writes a folder of these files, by name, as `whole_folder` does. Raises UserError: the disk refuses."""
    with writing(folder), whole_folder(folder, replace=replace) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(content)


@contextlib.contextmanager
def whole_file(file: pathlib.Path, *, private: bool = False) -> Iterator[pathlib.Path]:
    """Yields an empty file to write to; when the block ends without an error it is on the disk in the place of `file`.

    Whoever reads the file meanwhile, or after a crash, finds the old or the new one, whole. A link of that name is
    replaced, not followed. Nobody but its owner may read a `private` one. The path does not end as the file does: tell
    a writer that goes by the suffix which format is meant. Raises UserError: the disk refuses.
    """
    temporary = _unfinished(file)
    with writing(file):
        os.close(_create(temporary, private))
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, file)
            _sync_entry(file.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    folder: pathlib.Path, *, private: bool = False, replace: bool = False, resume: bool = False
) -> Iterator[pathlib.Path]:
    """Yields an empty folder to write into; it takes the folder's name when the block ends without an error.

    Nobody but its owner may read a `private` one and what is in it; `replace` removes what has the name, a link and not
    what it leads to. With `resume` the folder that is yielded holds what a writer of this user has left that was
    killed, or stopped by a signal; only the holder of its lock may ask for it. Raises OSError: the disk refuses, or the
    folder exists and is not empty; `writing` turns it into a UserError.
    """
    begun, aside = folder.with_name(folder.name + _BEGUN), _unfinished(folder)
    resume = resume and (not os.path.lexists(begun) or _is_own(begun))
    temporary, is_left = begun if resume else _unfinished(folder), False
    make_folder(temporary, private=private)
    try:
        yield temporary
        _close(temporary, private)
        _sync(temporary)
        try:
            if replace:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, aside)
            os.rename(temporary, folder)
        except BaseException:  # a signal as well
            with contextlib.suppress(OSError):
                os.rename(aside, folder)
            raise
        _sync_entry(folder.parent)
        remove(aside)
    except KeyboardInterrupt:
        is_left = resume
        raise
    finally:
        if not is_left:
            remove(temporary)


@contextlib.contextmanager
def whole_files(folder: pathlib.Path, *, private: bool = False) -> Iterator[pathlib.Path]:
    """Yields an empty folder; when the block ends without an error, what is in it moves into `folder`, all or nothing.

    Files and links of the same names are replaced; `folder` is made where there is none. What is `private`, and a
    folder that is made for it, is its owner's alone. Raises UserError: the disk refuses.
    """
    with writing(folder):
        is_new, temporary = not folder.exists(), folder / _unfinished(folder).name
        make_folder(folder, private=private)
        make_folder(temporary, private=True)
        try:
            yield temporary
            _close(temporary, private)
            _sync(temporary)
            for part in sorted(temporary.iterdir()):
                os.replace(part, folder / part.name)
            _sync_entry(folder)
        finally:
            remove(temporary)
            if is_new:
                with contextlib.suppress(OSError):  # where it is not empty
                    folder.rmdir()


def _close(folder: pathlib.Path, private: bool) -> None:
    """Lets nobody but the owner read what is in a `private` folder."""
    for part in folder.rglob("*") if private else ():
        part.chmod(0o700 if part.is_dir() else 0o600)


def make_folder(folder: pathlib.Path, *, private: bool = False) -> None:
    """Makes a folder, and those above it, where there is none; one that is made `private` is its owner's alone.

    Raises OSError: the disk refuses, or a file is there.
    """
    try:
        folder.mkdir(0o700 if private else 0o777, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if private:
        folder.chmod(0o700)  # whatever the umask


def refuse_links(path: pathlib.Path, *, below: bool = False) -> None:
    """Raises a UserError if a path, or anything `below` it, is a symbolic link: others may have put it there."""
    for part in (path, *(path.rglob("*") if below else ())):
        if part.is_symlink():
            raise _is_link(part)


def remove(path: pathlib.Path) -> None:
    """Removes a file, a link, or a folder with all that is in it, if it is there and as far as the disk allows."""
    with contextlib.suppress(OSError):
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def expanded(path: str | pathlib.Path) -> pathlib.Path:
    """Puts the home folder in the place of `~`; for a user without one, a folder of their own among temporary ones.

    Such a user is a uid of a container that has no entry in passwd, without HOME. Raises UserError: that folder is
    somebody else's, or others may enter it; or `~` is followed by a name that nobody has.
    """
    path = pathlib.Path(path)
    try:
        return path.expanduser()
    except RuntimeError as error:
        if path.parts[0] != "~":
            raise UserError(f"{path}: {error}") from None
    own = pathlib.Path(tempfile.gettempdir()) / f"remind_jax-{os.getuid()}"
    with writing(own):
        own.mkdir(mode=0o700, exist_ok=True)
    there = own.lstat()
    if there.st_uid != os.getuid() or there.st_mode & 0o077:
        raise UserError(f"there is no home folder, and {own} is not yours alone: set HOME or TMPDIR")
    return own.joinpath(*path.parts[1:])


def _is_own(folder: pathlib.Path) -> bool:
    return not folder.is_symlink() and folder.stat().st_uid == os.geteuid()


def remove_unfinished(path: pathlib.Path) -> None:
    """Removes what killed writers of a path, which may be a pattern, have left; only its one owner may call this."""
    for left in path.parent.glob(f"{path.name}{_UNFINISHED}*"):
        remove(left)


def reserve(file: pathlib.Path) -> None:
    """Takes the room on the disk that a file's size promises: a full disk would end who maps it by a signal.

    Raises OSError: there is no such room. Systems without the call, macOS among them, promise nothing.
    """
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def write_at(file: pathlib.Path, start: int, content: bytes) -> None:
    """Writes bytes into a file from byte `start` on, beside what else is in it; makes it where there is none."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as opened:
        opened.seek(start)
        opened.write(content)


def open_unnamed() -> tuple[IO[bytes], pathlib.Path]:
    """Opens a file without a name in the folder of `TMPDIR`, which is gone with the process; returns the folder, too.

    Raises UserError: the folder cannot be written to.
    """
    folder = pathlib.Path(tempfile.gettempdir())
    with writing(folder):
        return tempfile.TemporaryFile(dir=folder), folder


def open_log(file: pathlib.Path) -> IO[bytes]:
    """Opens a new file for what is to be read while it grows, in place of what has its name.

    Raises UserError: the disk refuses.
    """
    with writing(file):
        file.unlink(missing_ok=True)
        return os.fdopen(_create(file), "wb")


def remove_folder(folder: pathlib.Path) -> None:
    """Removes a folder, if it is there, so that a crash leaves no part of it under its name."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder.rename(_unfinished(folder)), ignore_errors=True)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns what the disk refuses while a file or folder is written into a UserError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not (reason := reason_of_disk(error)):
            raise
        raise UserError(f"cannot write {path}: {reason}") from error


class Lines:
    """A file that grows by whole lines; the rest of one that a crash has cut is removed when it is opened."""

    def __init__(self, file: pathlib.Path):
        """Opens the file, or makes it. Raises UserError: it is a link, or the disk refuses."""
        self._path = file
        with writing(file):
            self._file = os.fdopen(open_here(file, os.O_APPEND), "rb+", buffering=0)
            start = max(0, os.fstat(self._file.fileno()).st_size - _LONGEST)
            self._file.seek(start)
            end = self._file.read()
            if start and b"\n" not in end:
                self._file.close()
                raise UserError(f"{file} has an immense last line: remove it")
            if (whole := end.rfind(b"\n") + 1) < len(end):  # the time of a finished run's file stays
                self._file.truncate(start + whole)

    def add(self, line: str) -> None:
        """Writes a line; where the disk refuses it, nothing of it stays. Raises UserError then."""
        left, before = f"{line}\n".encode(), os.fstat(self._file.fileno()).st_size
        with writing(self._path):
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                self._file.truncate(before)
                raise

    def sync(self) -> None:
        """Waits until all lines are on the disk. Raises UserError: they cannot come there."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def open_here(file: pathlib.Path, flags: int = 0) -> int:
    """Opens a file for reading and writing, and makes it where there is none; returns its descriptor.

    Raises UserError: it is a link or no file. OSError: the disk refuses.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)
    except OSError as error:
        raise (_is_link(file) if file.is_symlink() else error) from None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise UserError(f"{file} is no file: remove it")


def _is_link(path: pathlib.Path) -> UserError:
    return UserError(f"{path} is a link, through which nothing is written: remove it, or choose another folder")


def _create(file: pathlib.Path, private: bool = False) -> int:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if private else 0o666)
    if private:
        os.fchmod(descriptor, 0o600)  # whatever the umask
    return descriptor


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex[:12]}")


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder with all that is below it, is on the disk, so that no crash cuts it."""
    for part in [*path.rglob("*"), path]:
        _sync_entry(part)


def _sync_entry(path: pathlib.Path) -> None:
    """Waits until a file is on the disk, or which names a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock(NamedTuple):
    """An open lock file: whether it is locked, as some file systems have no locks, and the descriptor; processes that
    inherit it hold the lock on, even when the one that took it is killed.
    """

    held: bool
    descriptor: int


@contextlib.contextmanager
def lock(path: pathlib.Path, *, shared: bool = False, busy: Callable[[], None] = lambda: None) -> Iterator[Lock]:
    """Waits for the lock on a file, which is made and stays, and holds it until the block or the process ends, however.

    A `shared` one may be held by others too that share it. `busy` is called again and again while others have the lock;
    what it raises ends the waiting. Raises OSError: the file cannot be written. UserError: it is a link.
    """
    descriptor = open_here(path)
    try:
        while (held := try_lock(descriptor, shared=shared)) is False:
            busy()
            time.sleep(_POLL)
        yield Lock(bool(held), descriptor)
    finally:
        os.close(descriptor)


class Share:
    """A share of the lock on a file for as long as it is kept; nothing where the file cannot be written."""

    def __init__(self, path: pathlib.Path):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
            weakref.finalize(self, os.close, descriptor)
            try_lock(descriptor, shared=True)


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Locks an open file unless another process has it; returns whether, and None where there are no locks."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sums(folder: pathlib.Path, leave_out: Container[str] = ()) -> str:
    """Lists sha256, two spaces and path of each file below a folder, sorted by path, but for `SUMS` and `leave_out`.

    Raises OSError: something below it is no regular file, or cannot be read.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()):
        if path.is_symlink() or not path.is_file():
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        name = path.relative_to(folder).as_posix()
        if name != SUMS and name not in leave_out:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def config_digest(config: Mapping[str, Any]) -> str:
    """Returns the first 16 hex digits of the sha256 of a config, which do not depend on the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _commit() -> str | None:
    clone = pathlib.Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():  # an installed package may lie in a repository of somebody else's
        return None
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


ENVIRONMENT = {"packages?": {...: (str, None)}}
"""The shape of environment.json, as far as it is read."""


def environment() -> dict[str, Any]:
    """Versions of packages, devices and the commit, as environment.json has them."""
    import jax

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "commit": _commit(),
    }
