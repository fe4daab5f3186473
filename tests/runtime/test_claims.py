"""Claims on work in a shared folder: one holder at a time, and none that is dead."""

import contextlib
import errno
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from remind_jax.errors import UserError
from remind_jax.runtime import claims
from remind_jax.runtime.claims import Claims
from tests import tiny_runs

HOLD = """
import pathlib, sys, time
from remind_jax.runtime.claims import Claims
folder, name, beat, patience = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
with Claims(folder, beat, patience) as held, held.taken(name) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""
COUNT = """
import pathlib, sys, time
from remind_jax.runtime.claims import Claims
folder = pathlib.Path(sys.argv[1])
with Claims(folder, 0.2, 5.0) as held:
    for i in range(40):
        with held.taken(f"work{i}") as mine:
            if mine and not (done := folder / f"done{i}").exists():
                time.sleep(0.002)
                done.touch(exist_ok=False)  # fails if somebody else works on it
                print(i)
"""


def _start(code: str, *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(tiny_runs.ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@contextlib.contextmanager
def _holder(folder: pathlib.Path, beat: float, patience: float) -> Iterator[subprocess.Popen]:
    """A process that holds the claim a."""
    with _start(HOLD, folder, "a", beat, patience) as process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def _is_free(held: Claims, name: str) -> bool:
    with held.taken(name) as mine:
        return mine


def test_one_holds_a_claim_until_it_lets_go(tmp_path):
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        with one.taken("a") as mine:
            assert mine
            assert not _is_free(other, "a")
            assert not _is_free(one, "a")
            assert _is_free(other, "b")
            assert _is_free(other, "a-b")
        assert _is_free(other, "a")


def test_a_failure_lets_go(tmp_path):
    with Claims(tmp_path) as one:
        with pytest.raises(ZeroDivisionError), one.taken("a"):
            raise ZeroDivisionError
        assert _is_free(one, "a")


def test_of_many_at_once_one_gets_each_piece_of_work(tmp_path):
    started = [_start(COUNT, tmp_path) for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0] * 4, outputs
    done = sorted(int(line) for out, _ in outputs for line in out.split())
    assert done == list(range(40))


def test_the_claim_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path):
    with _holder(tmp_path, claims.BEAT, claims.PATIENCE) as holder, Claims(tmp_path) as held:
        assert not _is_free(held, "a")
        assert not held.wait_for_news(["a"])
        holder.kill()
        holder.wait()
        assert held.wait_for_news(["a"])
        assert _is_free(held, "a")


@pytest.fixture
def elsewhere(monkeypatch):
    """As if every other process were of another machine, whose locks do not show."""
    monkeypatch.setattr(claims, "_machine", lambda: "another")


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_claim_of_another_machine_is_free_when_it_is_silent(tmp_path):
    beat, patience = 0.05, 1.5
    with _holder(tmp_path, beat, patience) as holder, Claims(tmp_path, beat, patience) as held:
        for _ in range(15):  # longer than the patience, as it beats
            time.sleep(patience / 10)
            assert not _is_free(held, "a")
        assert not held.wait_for_news(["a"])
        holder.kill()
        holder.wait()
        assert not _is_free(held, "a")
        assert held.wait_for_news(["a"])
        assert _is_free(held, "a")


@pytest.mark.usefixtures("elsewhere")
def test_a_process_that_slept_too_long_ends_when_it_wakes(tmp_path):
    with _holder(tmp_path, 0.05, 0.5) as holder:
        holder.send_signal(signal.SIGSTOP)
        with Claims(tmp_path, 0.05, 0.5) as held:
            assert held.wait_for_news(["a"])
            with held.taken("a") as mine:
                assert mine
                holder.send_signal(signal.SIGCONT)
                assert holder.wait(timeout=30) == claims.LOST
        assert "a was taken over" in holder.stderr.read()


@pytest.mark.usefixtures("elsewhere")
def test_a_claim_that_was_made_and_not_yet_written_is_held(tmp_path):
    (tmp_path / "a.1").touch()
    (tmp_path / "b.1").write_text('{"mach', encoding="utf-8")
    with Claims(tmp_path) as held:
        assert not _is_free(held, "a")
        assert not _is_free(held, "b")
        os.utime(tmp_path / "a.1", (0, 0))
        assert _is_free(held, "a")


def test_a_file_system_without_locks_leaves_the_time_to_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(claims.files, "try_lock", lambda descriptor: None)
    with Claims(tmp_path, 0.05, 0.5) as held:
        with held.taken("a"):
            assert json.loads((tmp_path / "a.1").read_text(encoding="utf-8"))["machine"] == ""
            time.sleep(0.7)
            assert not _is_free(held, "a")
        assert _is_free(held, "a")


# ---- One owner ------------------------------------------------------------------------------------------------------


OWN = """
import pathlib, sys
from remind_jax.runtime import claims
path, beat, patience = pathlib.Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
with claims.owned(path, path / ".owner" / "run", beat, patience):
    print("mine", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _owner(
    path: pathlib.Path, beat: float = claims.BEAT, patience: float = claims.PATIENCE
) -> Iterator[subprocess.Popen]:
    with _start(OWN, path, beat, patience) as process:
        try:
            assert process.stdout.readline() == "mine\n"
            yield process
        finally:
            process.kill()


def _own(path: pathlib.Path, beat: float = claims.BEAT, patience: float = claims.PATIENCE) -> None:
    with claims.owned(path, path / ".owner" / "run", beat, patience):
        pass


def test_a_second_owner_is_refused_by_the_name_of_the_first_until_it_ends_however(tmp_path):
    with _owner(tmp_path) as owner:
        with pytest.raises(UserError) as refusal:
            _own(tmp_path)
        assert f"{tmp_path} is in use by process {owner.pid} on {socket.gethostname()}: " in str(refusal.value)
        owner.kill()
        owner.wait()
        _own(tmp_path)
    with claims.owned(tmp_path, tmp_path / ".owner" / "run"), pytest.raises(UserError, match=f"process {os.getpid()} "):
        _own(tmp_path)
    _own(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_an_owner_of_another_machine_is_heard_of_or_waited_for(tmp_path):
    with _owner(tmp_path, 0.05, 1.5) as owner:
        with pytest.raises(UserError, match=f"process {owner.pid} on "):
            _own(tmp_path, 0.05, 1.5)
        owner.kill()
        owner.wait()
        _own(tmp_path, 0.05, 1.5)


@pytest.mark.usefixtures("elsewhere")
def test_a_claim_from_a_time_to_come_does_not_hold_a_folder_for_ever(tmp_path):
    (tmp_path / ".owner").mkdir()
    (tmp_path / ".owner" / "run.1").write_text('{"machine": "x", "host": "\\u001b[2J", "process": 1}')
    os.utime(tmp_path / ".owner" / "run.1", (2**33, 2**33))
    assert Claims(tmp_path / ".owner").holder("run") == "process 1 on ??2J"
    _own(tmp_path)


def test_a_claim_that_the_disk_refuses_holds_nothing(tmp_path, monkeypatch):
    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(claims.os, "write", full)
        with pytest.raises(UserError, match="No space left"):
            _own(tmp_path)
    with Claims(tmp_path / ".owner") as held:
        assert _is_free(held, "run")


def test_a_folder_of_claims_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".owner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"\.owner is a link"):
        _own(tmp_path)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_there_is_news_where_nobody_has_a_claim(tmp_path):
    with Claims(tmp_path) as held:
        assert held.wait_for_news(["a"])
        assert not held.wait_for_news([])


def test_a_folder_that_cannot_be_written_is_one_line():
    with pytest.raises(UserError, match="cannot write to"):
        Claims(pathlib.Path("/proc/claims"))
