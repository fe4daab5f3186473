"""Files and folders that are written whole or not at all, the lock that processes wait for, and digests of folders."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any, NamedTuple

from remind_jax.errors import UserError

SUMS = "SHA256SUMS"
_UNFINISHED = ".tmp-"  # between a name and the random end of the name of what is not whole yet
_BEGUN = ".part"  # after the name of what is not whole yet and is gone on with
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


def write_text(file: pathlib.Path, text: str) -> None:
    """Replaces a file by a text, as `whole_file` does."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: pathlib.Path, content: bytes) -> None:
    """Replaces a file by other contents, as `whole_file` does."""
    with whole_file(file) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def whole_file(file: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path to write to; what is there when the block ends without an error replaces the file.

    Whoever reads the file meanwhile, or after a crash, finds the old or the new one, whole. The path does not end as
    the file does: tell a writer that goes by the suffix which format is meant. Raises UserError: the disk refuses.
    """
    temporary = _unfinished(file)
    with writing(file):
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    folder: pathlib.Path, *, private: bool = False, replace: bool = False, resume: bool = False
) -> Iterator[pathlib.Path]:
    """Yields an empty folder to write into; it takes the folder's name when the block ends without an error.

    Nobody but its owner may read a `private` one; `replace` removes a folder that exists. With `resume` the folder that
    is yielded holds what a writer of this user has left that was killed, or stopped by a signal; only the holder of its
    lock may ask for it. Raises OSError: the disk refuses, or the folder exists and is not empty; `writing` turns it
    into a UserError.
    """
    begun = folder.with_name(folder.name + _BEGUN)
    resume = resume and (not os.path.lexists(begun) or _is_own(begun))
    temporary = begun if resume else _unfinished(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir(mode=0o700 if private else 0o777, exist_ok=resume)
    try:
        yield temporary
        _sync(temporary)
        if replace:
            shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except BaseException as error:
        if not (resume and isinstance(error, KeyboardInterrupt)):
            shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    """Removes what killed writers of a folder have left next to it; only the holder of its lock may call this."""
    for left in path.parent.glob(f"{path.name}{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError while a file or folder is written into a UserError of one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}{_UNFINISHED}{uuid.uuid4().hex[:12]}")


def _sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder with all that is below it, is on the disk, so that no crash cuts it."""
    for part in [*path.rglob("*"), path]:
        descriptor = os.open(part, os.O_RDONLY)
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
    what it raises ends the waiting. Raises OSError: the file cannot be written.
    """
    with path.open("w") as file:
        while (held := try_lock(file.fileno(), shared=shared)) is False:
            busy()
            time.sleep(_POLL)
        yield Lock(bool(held), file.fileno())


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
    """Lists sha256, two spaces and path of each file below a folder, sorted by path, but for `SUMS` and `leave_out`."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
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
