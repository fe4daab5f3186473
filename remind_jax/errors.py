"""The exception that commands turn into a single line on stderr and exit code 2, and the hint at its end."""

import difflib
import sys
from collections.abc import Iterable


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


def exit_code(error: BaseException) -> int:
    """Returns the exit code of a command that an error has ended; a signal is a KeyboardInterrupt with its own."""
    return getattr(error, "code", 130 if isinstance(error, KeyboardInterrupt) else 1)


def explain(error: BaseException) -> int | None:
    """Prints in one line on stderr why a command ended; returns its exit code, None for a fault of the program."""
    if isinstance(error, UserError):
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("stopped; run the same command again to go on", file=sys.stderr)
    else:
        return None
    return exit_code(error)
