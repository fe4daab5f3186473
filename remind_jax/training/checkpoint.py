"""Checkpoints on disk. The only module that imports orbax.

One checkpoint holds arrays (train state and best weights so far) and a JSON record (where the run and its sampler
stand), and is committed by one rename. Before that the sha256 of each of its files is written into it, as `SHA256SUMS`,
which `sha256sum -c` reads; nothing is restored that does not agree with it. Two files are exempt, which restoring never
reads: orbax writes them after the digests.
"""

import contextlib
import errno
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from remind_jax.errors import UserError
from remind_jax.runtime import files, records
from remind_jax.runtime.files import SUMS

# What they have to say of a save that failed is a traceback in the background; this module says it in a line.
logging.getLogger("orbax").setLevel(logging.CRITICAL)
logging.getLogger("absl").setLevel(logging.CRITICAL)

_MARKS = ("_CHECKPOINT_METADATA", "commit_success.txt")  # of orbax, the last with times that are known at the commit
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
_LINE = re.compile(rb"[0-9a-f]{64}  [\x21-\x7e][\x20-\x7e]*")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run, by step."""

    def __init__(
        self, folder: pathlib.Path, keep: int = 1, read_only: bool = False, say: Callable[[str], None] = _to_stderr
    ):
        """Opens or creates the folder; keeps the newest `keep` checkpoints, all with 0.

        `read_only` leaves the folder as it is, half-written checkpoints of a live run included; `say` shows a line
        about a damaged checkpoint or a save that failed. Raises UserError: the folder cannot be made or read.
        """
        self.folder, self._say = folder.absolute(), say
        self._keep, self._read_only = keep, read_only
        self._saving: tuple[int, Any, dict[str, Any]] | None = None  # kept until it is known to be on disk
        self._whole: set[int] = set()
        try:
            self._manager = self._open()
        except OSError as error:
            raise UserError(f"cannot open checkpoints {folder}: {error.strerror or error}") from None

    def _open(self) -> ocp.CheckpointManager:
        files.refuse_links(self.folder, below=True)
        several = {}
        if jax.process_count() > 1:  # of which this one alone has checkpoints: orbax must not wait for the others
            self.folder.mkdir(parents=True, exist_ok=True)
            own = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(own, active_processes={own}, barrier_sync_key_prefix=f"p{own}")
            several = {"create": False, "multiprocessing_options": alone}
        options = ocp.CheckpointManagerOptions(
            **several,
            max_to_keep=self._keep or None,
            cleanup_tmp_directories=not self._read_only,
            read_only=self._read_only,
            # Called when all files of a checkpoint are written and before the rename that commits it.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
        )
        return ocp.CheckpointManager(self.folder, item_names=("arrays", "record"), options=options)

    def save(self, step: int, arrays: Any, record: dict[str, Any]) -> None:
        """Saves host copies that must not change, in the background. Raises UserError: it or the last failed twice."""
        self._settle()
        self._whole.discard(step)
        self._saving = step, arrays, record
        try:
            self._begin()
        except Exception as error:  # orbax and tensorstore have no common one
            self._retry(error)

    def _begin(self) -> None:
        step, arrays, record = self._saving
        args = {"arrays": ocp.args.StandardSave(arrays), "record": ocp.args.JsonSave(record)}
        self._manager.save(step, args=ocp.args.Composite(**args))

    def _settle(self) -> None:
        """Waits for the save under way, and tries one that has failed once more."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._retry(error)
        self._saving = None

    def _retry(self, error: Exception) -> None:
        step = self._saving[0]
        self._say(f"the checkpoint of step {step} could not be saved ({_reason(error)}); trying once more")
        try:
            # A new manager knows nothing of the step that failed and removes what is left of it.
            self._manager = self._open()
            self._begin()
            self._manager.wait_until_finished()
        except Exception as again:
            self._saving = None
            with contextlib.suppress(Exception):
                self._manager = self._open()
            raise UserError(
                f"cannot save the checkpoint of step {step} in {self.folder}: {_reason(again)}; make space there or "
                "make it writable, and run the same command again"
            ) from None

    def _write_sums(self) -> None:
        """Writes the digests of the checkpoint that is about to be committed."""
        folder = next(self.folder.glob(f"{self._saving[0]}.*tmp*"))
        files.write_text(folder / SUMS, _sums(folder))

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, ascending."""
        self._settle()
        return sorted(self._manager.all_steps())

    def newest_whole(self) -> int | None:
        """Returns the step of the newest whole checkpoint; names damaged ones, sets them aside as `damaged-<step>`."""
        for step in reversed(self.steps()):
            fault = self._fault(step)
            if not fault:
                return step
            aside = self.folder / f"damaged-{step}"
            self._say(f"the checkpoint of step {step} is damaged ({fault}); set aside as {aside.name}")
            files.remove(aside)
            with contextlib.suppress(FileNotFoundError):
                (self.folder / str(step)).rename(aside)
            self._manager.reload()
        return None

    def record(self, step: int) -> dict[str, Any]:
        """Reads the record of a checkpoint. Raises UserError when it is damaged."""
        self._check(step)
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"])
        except Exception:  # its digest may be right and it no JSON, if somebody made it so
            raise UserError(f"the record of step {step} in {self.folder} cannot be read: run it again") from None

    def arrays(self, step: int, like: Any = None) -> Any:
        """Reads the arrays of a checkpoint as numpy, in the structure of `like` or, without it, as nested dictionaries.

        Raises UserError: it is damaged, or has other arrays, shapes or types than `like`.
        """
        self._check(step)
        target = None if like is None else jax.tree.map(lambda x: np.empty(np.shape(x), x.dtype), like)
        try:
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(target))
            return self._manager.restore(step, args=args)["arrays"]
        except Exception:  # of tensorstore, many lines long
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} does not fit this program or cannot be read: "
                "run it in a new workdir"
            ) from None

    def _check(self, step: int) -> None:
        self._settle()
        if step not in self._whole and (fault := self._fault(step)):
            raise UserError(f"the checkpoint of step {step} in {self.folder} is damaged: {fault}")

    def _fault(self, step: int) -> str:
        """Says what is wrong with the files of a checkpoint, in a few words; nothing when they are whole."""
        folder = self.folder / str(step)
        try:
            fault = _compare(folder)
        except OSError as error:
            return f"{pathlib.Path(error.filename or '').name}: {error.strerror or type(error).__name__}"
        if not fault:
            self._whole.add(step)
        return fault

    def close(self) -> None:
        """Waits for saves under way. Raises UserError when the last one failed twice."""
        self._settle()
        self._manager.close()


def _sums(folder: pathlib.Path) -> str:
    """Lists the digests of a checkpoint's files."""
    return files.sums(folder, leave_out=_MARKS)


def _compare(folder: pathlib.Path) -> str:
    """Names the first difference between the files of a checkpoint and their digests."""
    if folder.is_symlink():
        return "it is a link"
    try:
        stored = records.content(folder / SUMS)
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except UserError:
        return f"{SUMS} is no regular file"
    found = _sums(folder).encode()
    for mark in _MARKS:
        if not (folder / mark).is_file():
            return f"{mark} is missing"
    if stored == found:
        return ""
    if not all(_LINE.fullmatch(line) for line in stored.splitlines()):
        return f"{SUMS} has changed"
    before, now = _by_name(stored), _by_name(found)
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            return f"{name} is missing"
        if name not in before:
            return f"{name} is not in {SUMS}"
        if before[name] != now[name]:
            return f"{name} has changed"
    return f"{SUMS} has changed"


def _by_name(sums: bytes) -> dict[str, str]:
    lines = (line.partition("  ") for line in sums.decode("utf-8", "replace").splitlines())
    return {name: digest for digest, _, name in lines}


def _reason(error: BaseException) -> str:
    """Tells an error in one short line; those of tensorstore name the cause at their end."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    known = (os.strerror(code) for code in _STORAGE)
    return next((reason for reason in known if reason in text), text[:200])
