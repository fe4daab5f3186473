"""Files and folders written whole or not at all, and the lock that processes wait for."""

import fcntl
import multiprocessing
import os
import pathlib
import pwd
import signal
import subprocess
import tempfile
import time

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import files

# ---- Writing --------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_nothing_else_stays(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old and longer")
    files.write_text(file, "é\r\n")
    assert file.read_bytes() == "é\r\n".encode()
    files.write_bytes(file, b"\0\n")
    assert file.read_bytes() == b"\0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.write_text(file, "lone surrogate \ud800")
    assert file.read_text() == "old"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_of_its_own(tmp_path):
    file = tmp_path / "table.parquet"
    file.write_text("old")

    def fail():
        with files.whole_file(file) as temporary:
            temporary.write_text("ne")
            assert file.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table.parquet"]


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for file, reason in ((tmp_path / "gone" / "a", "No such file"), (tmp_path / "file" / "a", "Not a directory")):
        with pytest.raises(UserError, match=f"cannot write {file}: {reason}"):
            files.write_text(file, "text")


def test_two_writers_of_one_file_do_not_write_into_each_other(tmp_path):
    file = tmp_path / "a"
    with files.whole_file(file) as one, files.whole_file(file) as other:
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"  # which was renamed last


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "new" / "folder"
    with files.whole_folder(folder) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "a").write_text("a")
        assert not folder.exists()
    assert (folder / "below" / "a").read_text() == "a"
    assert folder.stat().st_mode & 0o077
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_a_folder_that_fails_or_is_there_stays_as_it_was(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ZeroDivisionError), files.whole_folder(folder):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()
    (folder / "a").write_text("old")
    refused = pytest.raises(UserError, match=f"cannot write {folder}: Directory not empty")
    with refused, files.writing(folder), files.whole_folder(folder) as temporary:
        (temporary / "b").touch()
    assert [path.name for path in folder.iterdir()] == ["a"]
    with files.whole_folder(folder, private=True, replace=True) as temporary:
        (temporary / "b").touch()
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert not folder.stat().st_mode & 0o077
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_a_signal_cut_short_is_gone_on_with(tmp_path):
    folder = tmp_path / "folder"
    begun = tmp_path / "folder.part"

    def fail(error):
        with files.whole_folder(folder, resume=True) as temporary:
            assert temporary == begun
            (temporary / "a").touch()
            raise error

    with pytest.raises(KeyboardInterrupt):
        fail(KeyboardInterrupt)
    assert [path.name for path in begun.iterdir()] == ["a"]
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "elsewhere").mkdir()
    begun.symlink_to(tmp_path / "elsewhere")
    with files.whole_folder(folder, resume=True) as temporary:
        (temporary / "b").touch()
    assert list((tmp_path / "elsewhere").iterdir()) == [], "a link, perhaps of somebody else's, was followed"
    assert [path.name for path in folder.iterdir()] == ["b"]


def test_a_user_without_a_home_has_a_folder_of_their_own(tmp_path, monkeypatch):
    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    assert files.expanded("~/a") == pathlib.Path("~/a").expanduser()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = tmp_path / f"remind_jax-{os.getuid()}"
    assert files.expanded("~/.cache/a") == own / ".cache" / "a"
    assert files.expanded("/b") == pathlib.Path("/b")
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o755)
    with pytest.raises(UserError, match="not yours alone: set HOME"):
        files.expanded("~/.cache/a")
    with pytest.raises(UserError, match="~nobody_at_all"):
        files.expanded("~nobody_at_all/a")


def test_what_a_killed_writer_left_is_removed_by_name(tmp_path):
    for name in ("folder", "folder2"):
        with files.whole_folder(tmp_path / name) as temporary:
            left = temporary.name
        (tmp_path / left).mkdir()
    files.remove_unfinished(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "folder2", left}


# ---- Locks ----------------------------------------------------------------------------------------------------------


class Busy(Exception):
    """The lock is taken."""


def _refuse() -> None:
    raise Busy


def test_a_lock_is_held_by_one_or_by_those_that_share_it(tmp_path):
    path = tmp_path / "lock"
    for first, second in ((False, False), (False, True), (True, False)):
        with files.lock(path, shared=first) as lock:
            assert lock.held
            with pytest.raises(Busy), files.lock(path, shared=second, busy=_refuse):
                pass
    with files.lock(path, shared=True), files.lock(path, shared=True, busy=_refuse):
        pass


def _hold(path: str) -> None:
    with files.lock(pathlib.Path(path)):
        pathlib.Path(f"{path}.held").touch()
        time.sleep(600)


def test_the_lock_of_a_killed_process_is_free_for_who_waits(tmp_path):
    path = tmp_path / "lock"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(path),))
    process.start()
    while not (tmp_path / "lock.held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    waited = []

    def kill() -> None:
        if not waited:
            os.kill(process.pid, signal.SIGKILL)
        waited.append(True)

    with files.lock(path, busy=kill) as lock:
        assert lock.held
        assert waited
    process.join()


def test_where_there_are_no_locks_nobody_waits(tmp_path, monkeypatch):
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with files.lock(tmp_path / "lock", busy=_refuse) as lock:
        assert not lock.held


def test_the_commit_is_that_of_a_clone_and_of_no_repository_around_it(tmp_path, monkeypatch):
    def git(folder: pathlib.Path, *arguments: str) -> str:
        person = ["-c", "user.name=me", "-c", "user.email=me@nowhere"]
        command = ["git", "-C", str(folder), *person, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    package = tmp_path / "site-packages"
    (package / "remind_jax" / "runtime").mkdir(parents=True)
    monkeypatch.setattr(files, "__file__", str(package / "remind_jax" / "runtime" / "files.py"))
    for folder in (tmp_path, package):
        git(folder, "init", "--quiet")
        git(folder, "commit", "--quiet", "--allow-empty", "--message=first")
        expected = git(folder, "rev-parse", "HEAD") if folder == package else None
        assert files.environment()["commit"] == expected
