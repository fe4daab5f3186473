"""The exception that commands turn into a single line on stderr and exit code 2, and the hint at its end."""

import contextlib
import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A mistake that the user can fix: a bad option, a bad file, a folder that cannot be written.

    The message is one line that says what is wrong and what to do, and holds no patient text or id in clear. `code` is
    the exit code of the command.
    """

    code = 2


class NotFiniteError(UserError):
    """Training steps had a loss, gradient or group weight that is not finite; the weights hold none of those steps."""

    code = 17


def needs(package: str, extra: str) -> UserError:
    """Makes the error of a package that is not installed, which an `extra` of this project brings."""
    return UserError(f"{package} is not installed: pip install {package} (part of the extra {extra} of remind-jax)")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message, " (did you mean 'labs'?)", or "" when no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def reason_of_disk(error: BaseException) -> str:
    """Says what the system refused, out of an error of Python or of a library in Rust; nothing for other errors."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(found[1]))
    return error.strerror or str(error) or type(error).__name__ if isinstance(error, OSError) else ""


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a command that an error has ended; a signal is a KeyboardInterrupt with its own."""
    return getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)


def explain(error: BaseException) -> int | None:
    """Prints in one line on stderr why a command ended; returns its exit code, None for a fault of the program."""
    if isinstance(error, UserError):
        return _tell(f"error: {' '.join(str(error).split())}", error.code)
    if isinstance(error, KeyboardInterrupt):  # a signal is a subclass with its own code
        return _tell("stopped; run the same command again to go on", exit_code(error))
    # Of whatever wrote, the standard output or a library; what this package writes is named in a UserError.
    if reason := next((text for text in map(os.strerror, _FULL) if text in str(error)), ""):
        return _tell(f"error: {reason}: make space, and run the same command again", UserError.code)
    return None


def _tell(line: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody can be told on a full disk
        print(line, file=sys.stderr, flush=True)
    return code
