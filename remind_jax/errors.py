"""The one exception that commands turn into a single line on stderr and exit code 2, and the hint it often ends in."""

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix: a bad option, a bad file, a folder that cannot be written.

    The message is one line that says what is wrong and what to do, and holds no patient text or id in clear. `code` is
    what the command exits with.
    """

    code = 2


class NotFiniteError(UserError):
    """Steps of training whose loss, gradient or group weights are not finite; nothing of them is in the weights."""

    code = 17


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: " (did you mean 'labs'?)", or nothing when no known name is close."""
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def explain(error: BaseException) -> int | None:
    """Says in one line on stderr what ended a command; returns its exit code, None for a fault of the program."""
    if isinstance(error, UserError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.code
    if isinstance(error, KeyboardInterrupt):  # or a signal, with a code of its own
        print("stopped; run the same command again to go on", file=sys.stderr)
        return getattr(error, "code", 130)
    return None
