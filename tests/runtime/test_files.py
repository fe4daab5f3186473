"""Files and folders written whole or not at all, and the lock that processes wait for."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import pwd
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator

import polars as pl
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


@pytest.mark.parametrize("fault", [OSError(5, "I/O error"), KeyboardInterrupt()])
def test_a_folder_that_cannot_be_replaced_is_still_there(tmp_path, monkeypatch, fault):
    files.write_folder(tmp_path / "model", {"a": b"old"})
    rename = os.rename

    def failing(source, target):
        if source.name.startswith("model.tmp-") and target.name == "model" and (source / "a").read_bytes() == b"new":
            raise fault
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((UserError, KeyboardInterrupt)):
        files.write_folder(tmp_path / "model", {"a": b"new"}, replace=True)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/a"]
    assert (tmp_path / "model" / "a").read_bytes() == b"old"


def test_what_a_killed_writer_left_is_removed_by_name(tmp_path):
    for name in ("folder", "folder2"):
        with files.whole_folder(tmp_path / name) as temporary:
            left = temporary.name
        (tmp_path / left).mkdir()
    files.remove_unfinished(tmp_path / "folder")
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "folder2", left}


@pytest.fixture
def open_umask():
    """Whatever is made may be read and written by all, unless its mode says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_what_is_private_is_its_owners_alone_whatever_the_umask(tmp_path):
    files.write_text(tmp_path / "public", "")
    files.write_text(tmp_path / "own", "", private=True)
    with files.whole_folder(tmp_path / "folder", private=True) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o700
        (temporary / "below").mkdir()
        (temporary / "below" / "a").touch()
    with files.whole_files(tmp_path / "files", private=True) as temporary:
        (temporary / "a").touch()
    files.make_folder(tmp_path / "new" / "run", private=True)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes.pop("public") == 0o666
    assert modes.pop("new") == 0o777
    assert set(modes) == {"own", "folder", "folder/below", "folder/below/a", "files", "files/a", "new/run"}
    assert all(
        mode == (0o600 if name in ("own", "folder/below/a", "files/a") else 0o700) for name, mode in modes.items()
    )
    os.umask(0o277)
    files.write_text(tmp_path / "own", "", private=True)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o600


def test_links_are_replaced_or_refused_and_never_written_through(tmp_path):
    victim, there = tmp_path / "victim", tmp_path / "there"
    there.mkdir()
    for path in (victim, there / "a"):
        path.write_text("another's\n")
    for name, target in {"file": victim, "log": victim, "lines": victim, "lock": victim, "folder": there}.items():
        (tmp_path / name).symlink_to(target)
    files.write_text(tmp_path / "file", "mine")
    with files.open_log(tmp_path / "log") as log:
        log.write(b"mine")
    with files.whole_folder(tmp_path / "folder", replace=True) as temporary:
        (temporary / "a").write_text("mine")
    for name in ("file", "log", "folder/a"):
        assert (tmp_path / name).read_text() == "mine"
        assert not (tmp_path / name).parent.is_symlink()
    for name, call in {"lines": files.Lines, "lock": lambda path: files.lock(path).__enter__()}.items():
        with pytest.raises(UserError, match=f"{tmp_path / name} is a link"):
            call(tmp_path / name)
    with pytest.raises(UserError, match="is a link"):
        files.refuse_links(tmp_path, below=True)
    files.refuse_links(tmp_path)
    assert victim.read_text() == (there / "a").read_text() == "another's\n"


def test_a_link_with_the_name_of_what_is_not_whole_yet_is_no_way_out(tmp_path, monkeypatch):
    """Not even if somebody could guess the random name."""
    monkeypatch.setattr(files, "_unfinished", lambda path: path.with_name("known"))
    (tmp_path / "victim").write_text("another's")
    (tmp_path / "known").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="File exists"):
        files.write_text(tmp_path / "file", "mine")
    assert (tmp_path / "victim").read_text() == "another's"


def test_a_pipe_is_no_file_to_append_to(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="is no file"):
        files.Lines(tmp_path / "metrics.jsonl")


def test_a_file_and_its_name_are_on_the_disk_before_anybody_is_told(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    files.write_text(tmp_path / "a", "text")
    assert [path.name.partition(".tmp-")[0] for path in synced] == ["a", tmp_path.name]
    synced.clear()
    with files.whole_folder(tmp_path / "folder") as temporary:
        (temporary / "b").write_text("text")
    assert [path.name.partition(".tmp-")[0] for path in synced] == ["b", "folder", tmp_path.name]
    with contextlib.closing(files.Lines(tmp_path / "lines")) as lines:
        lines.add("one")
        synced.clear()
        lines.sync()
    assert [path.name for path in synced] == ["lines"]


# ---- A full disk ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _room(size: int) -> Iterator[None]:
    """Lets no file grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_a_full_disk_is_one_line_and_leaves_nothing_half(tmp_path):
    file, table = tmp_path / "file", pl.DataFrame({"a": range(1000)})
    file.write_text("old")

    def into(write):
        with files.whole_file(file) as temporary:
            write(temporary)

    def several():
        with files.whole_files(tmp_path / "new") as temporary:
            (temporary / "a").write_text("fits")
            (temporary / "b").write_text("x" * 100)

    calls = [
        lambda: files.write_text(file, "x" * 100),
        lambda: into(table.write_parquet),
        lambda: into(table.write_csv),
    ]
    calls += [several, lambda: files.write_folder(file.parent / "new", {"a": b"x" * 100})]
    for call in calls:
        with _room(50), pytest.raises(UserError, match=r"cannot write .*(file|new): File too large$"):
            call()
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_of_a_line_that_does_not_fit_nothing_stays(tmp_path):
    with contextlib.closing(files.Lines(tmp_path / "lines")) as lines:
        lines.add("one")
        with _room(10), pytest.raises(UserError, match="lines: File too large"):
            lines.add("a longer one")
        assert (tmp_path / "lines").read_text() == "one\n"
        lines.add("two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("end", [b"", b"tw", b"\0" * 50])
def test_the_rest_of_a_line_is_removed_when_a_file_is_opened(tmp_path, end):
    (tmp_path / "lines").write_bytes(b"one\n" + end)
    with contextlib.closing(files.Lines(tmp_path / "lines")) as lines:
        assert (tmp_path / "lines").read_text() == "one\n"
        lines.add("two")
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


def test_room_is_taken_before_a_file_is_mapped(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**20)
    files.reserve(tmp_path / "a")
    assert (tmp_path / "a").stat().st_blocks * 512 >= 2**20


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


@pytest.mark.parametrize("kind", ["fifo", "link", "link to a folder"])
def test_digests_of_a_folder_follow_no_link_and_wait_for_no_pipe(tmp_path, kind):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "a").write_text("x", encoding="utf-8")
    if kind == "fifo":
        os.mkfifo(folder / "b")
    else:
        (folder / "b").symlink_to(outside if kind == "link to a folder" else outside / "a")
    with pytest.raises(OSError, match="is no regular file"):
        files.sums(folder)


def test_a_file_of_lines_is_not_read_whole(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # of zeros that take no room
    with pytest.raises(UserError, match="immense last line: remove it"):
        files.Lines(tmp_path / "a")
