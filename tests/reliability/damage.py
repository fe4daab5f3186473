"""Rows about checkpoints on a disk that loses things, and about saves that fail."""

import contextlib
import errno
import os
import pathlib
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from remind_jax.errors import UserError
from remind_jax.training import checkpoint
from remind_jax.training.checkpoint import SUMS, Checkpoints
from tests.reliability import Tally, row

_UNREAD = ("_CHECKPOINT_METADATA", "commit_success.txt")  # written after the digests, and never read


def _arrays(step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(step)
    return {f"layer_{i}/kernel": rng.normal(size=(40, 30)).astype(np.float32) for i in range(4)}


def _same(found: dict[str, np.ndarray], step: int) -> bool:
    return all(found[name].tobytes() == x.tobytes() for name, x in _arrays(step).items())


def _save(folder: pathlib.Path, steps: tuple[int, ...]) -> None:
    with contextlib.closing(Checkpoints(folder, keep=0)) as checkpoints:
        for step in steps:
            checkpoints.save(step, _arrays(step), {"step": step, "names": [f"group {i}" for i in range(30)]})


# ---- Damage ---------------------------------------------------------------------------------------------------------


def _flip(file: pathlib.Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(bytes(content))


def _cut(file: pathlib.Path, rng: random.Random) -> None:
    os.truncate(file, rng.choice((0, file.stat().st_size - 1, rng.randrange(file.stat().st_size))))


def _grow(file: pathlib.Path, rng: random.Random) -> None:
    with file.open("ab") as opened:
        opened.write(rng.randbytes(rng.choice((1, 512, 4096))))


def _zero(file: pathlib.Path, rng: random.Random) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _older(file: pathlib.Path, rng: random.Random) -> None:
    """The file of the step before, as after a restore from a backup that was not whole."""
    parts = file.parts
    i = len(parts) - 1 - parts[::-1].index("20")
    other = pathlib.Path(*parts[:i], "10", *parts[i + 1 :])
    other = other if other.exists() else next(x for x in other.parent.iterdir() if x.is_file())
    file.write_bytes(other.read_bytes())


def _remove(file: pathlib.Path, rng: random.Random) -> None:
    file.unlink()


def _folder(file: pathlib.Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (_flip, _cut, _grow, _zero, _older, _remove, _folder)


@row(
    name="damage",
    title="checkpoints with flipped bytes, cut, grown, zeroed, exchanged and missing files, or no space left",
    target="0 undetected, the file named, training goes on from the step before",
    unit="damages",
    reduced=30,
    full=500,
    broken="digests are not compared",
)
def damage(count: int, broken: bool) -> Tally:
    """Each file in turn is damaged in each way."""
    tally, rng = Tally(), random.Random(0)
    with tempfile.TemporaryDirectory() as root, _blind(broken):
        whole = pathlib.Path(root) / "whole"
        _save(whole, (10, 20))
        names = sorted(x.relative_to(whole / "20").as_posix() for x in (whole / "20").rglob("*") if x.is_file())
        cases = [(how, name) for name in names for how in DAMAGES]
        for i in range(count):
            how, name = cases[i % len(cases)]
            folder = pathlib.Path(shutil.copytree(whole, pathlib.Path(root) / "copy"))
            file = folder / "20" / name
            before = file.read_bytes()
            how(file, rng)
            if file.is_file() and file.read_bytes() == before:
                file.write_bytes(before + b" ")  # that was no damage: exchanged for an equal file
            tally.check(not (wrong := _detected(folder, name)), f"{name}, {how.__name__.strip('_')}: {wrong}")
            shutil.rmtree(folder)
        if not broken:
            _disks(tally, pathlib.Path(root))
    tally.notes.append(f"{len(names)} files x {len(DAMAGES)} kinds of damage, bytes and lengths drawn anew each time")
    tally.notes.append(f"{' and '.join(_UNREAD)} are never read: their content may change, their absence is damage")
    return tally


@contextlib.contextmanager
def _blind(broken: bool) -> Iterator[None]:
    compare = checkpoint._compare
    if broken:
        checkpoint._compare = lambda folder: ""
    try:
        yield
    finally:
        checkpoint._compare = compare


def _detected(folder: pathlib.Path, name: str) -> str:
    """What went wrong when a folder with a damaged step 20 and a whole step 10 was opened, if anything did."""
    said: list[str] = []
    try:
        with contextlib.closing(Checkpoints(folder, keep=0, say=said.append)) as checkpoints:
            newest = checkpoints.newest_whole()
            if newest == 20:
                is_harmless = pathlib.Path(name).name in _UNREAD and (folder / "20" / name).is_file()
                return "" if is_harmless and _same(checkpoints.arrays(20, _arrays(0)), 20) else "not detected"
            if newest != 10 or not _same(checkpoints.arrays(10, _arrays(0)), 10):
                return f"went on from {newest}"
    except Exception as error:  # whatever it is, it should not have come
        return f"{type(error).__name__}: {error}"
    if len(said) != 1 or "step 20 is damaged" not in said[0]:
        return f"said {said}"
    if name == SUMS:  # a changed digest and a changed file look alike
        return "" if any(part in said[0] for part in ("arrays/", "record/", SUMS)) else f"names nothing: {said[0]}"
    return "" if name in said[0] else f"{name} is not named: {said[0]}"


def _disks(tally: Tally, root: pathlib.Path) -> None:
    """A full disk and a read-only one, real ones where this process may mount them."""
    for what, options, expected in (
        ("full disk", "size=160k", "No space left on device"),
        ("read-only folder", "size=8m", "Read-only file system"),
    ):
        disk = root / what.replace(" ", "_")
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], capture_output=True).returncode:
            tally.notes.append(f"{what}: not tried, this process may not mount one")
            continue
        try:
            tally.check(not (wrong := _on_disk(disk, what, expected)), f"{what}: {wrong}")
        finally:
            subprocess.run(["umount", "-l", disk], check=False)


def _on_disk(disk: pathlib.Path, what: str, expected: str) -> str:
    """Saves until the disk has no more room, or cannot be written any more; what went wrong."""
    folder, said, saved = disk / "checkpoints", [], []
    try:
        with contextlib.closing(Checkpoints(folder, keep=0, say=said.append)) as checkpoints:
            for step in range(1, 40):
                if what == "read-only folder" and step == 3:
                    checkpoints.steps()  # waits for the save before
                    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
                checkpoints.save(step, _arrays(step), {"step": step})
                saved.append(step)
        return "all was saved"
    except UserError as error:
        if expected not in str(error) or "\n" in str(error):
            return f"said {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    with contextlib.closing(Checkpoints(folder, keep=0, read_only=True, say=said.append)) as checkpoints:
        newest = max(checkpoints.steps(), default=None)
        # The save that failed in the background is the one before the last that began.
        if newest is None or newest < max(saved) - 1:
            return f"{newest} is the newest of {saved}"
        return "" if _same(checkpoints.arrays(newest, _arrays(0)), newest) else "the newest has other arrays"


# ---- Saves that fail ------------------------------------------------------------------------------------------------


def _faults() -> list[tuple[str, Callable[[], Exception]]]:
    codes = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ESTALE)
    system = [(errno.errorcode[code], lambda code=code: OSError(code, os.strerror(code))) for code in codes]
    return [
        *system,
        ("ValueError of tensorstore", lambda: ValueError("FAILED_PRECONDITION: write failed")),
        ("MemoryError", MemoryError),
    ]


@row(
    name="saves",
    title="saves that fail: at once, in the background, before the commit",
    target="tried again; failed twice: one line, the step is not there; later saves work",
    unit="faults",
    reduced=12,
    full=96,
    broken="a save that fails is not tried again",
)
def saves(count: int, broken: bool) -> Tally:
    """Every error at every place, once and twice in a row, in the first, a middle and the last save."""
    cases = [
        (times, place, when, fault)
        for times in (1, 2)
        for place in ("begin", "commit")
        for when in (1, 2, 3)
        for fault in _faults()
    ]
    random.Random(0).shuffle(cases)
    tally = Tally()
    retry = Checkpoints._retry
    if broken:
        Checkpoints._retry = lambda self, error: setattr(self, "_saving", None)
    try:
        for case in cases[:count]:
            with tempfile.TemporaryDirectory() as root:
                wrong = _failing(pathlib.Path(root) / "checkpoints", *case)
            times, place, when, (name, _) = case
            tally.check(not wrong, f"{name}, {times} in a row at the {place} of save {when}: {wrong}")
    finally:
        Checkpoints._retry = retry
    tally.notes.append(f"{len(cases)} cases: {len(_faults())} errors x 2 places x 3 saves x once or twice in a row")
    return tally


def _failing(folder: pathlib.Path, times: int, place: str, when: int, fault: tuple) -> str:
    """Three saves, of which one fails; what went wrong."""
    _, make = fault
    begin, sums, left, number = Checkpoints._begin, checkpoint._sums, [times], [0]

    def fails(begun: bool) -> bool:
        number[0] += begun
        if number[0] >= when and left[0]:
            left[0] -= 1
            return True
        return False

    def failing_begin(self: Checkpoints) -> None:
        if place == "begin" and fails(True):
            raise make()
        begin(self)

    def failing_sums(path: pathlib.Path) -> str:
        if place == "commit" and "tmp" in path.name and fails(True):
            raise make()
        return sums(path)

    Checkpoints._begin, checkpoint._sums = failing_begin, failing_sums
    said: list[str] = []
    failed: set[int] = set()
    try:
        checkpoints = Checkpoints(folder, keep=0, say=said.append)
        for step in (1, 2, 3):
            try:
                checkpoints.save(step, _arrays(step), {"step": step})
                checkpoints.steps()
            except UserError as error:
                failed.add(step)
                if "\n" in str(error) or f"step {step}" not in str(error):
                    return f"said {error}"
        with contextlib.suppress(UserError):
            checkpoints.close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        Checkpoints._begin, checkpoint._sums = begin, sums
    expected = [step for step in (1, 2, 3) if times == 1 or step != when]
    with contextlib.closing(Checkpoints(folder, keep=0, read_only=True, say=said.append)) as again:
        if again.steps() != expected or failed != {1, 2, 3} - set(expected):
            return f"has steps {again.steps()}, not {expected}; failed {failed}"
        if not all(_same(again.arrays(step, _arrays(0)), step) for step in expected):
            return "other arrays"
    return "" if said else "nothing was said"
