"""The one exception that commands turn into a single line on stderr and exit code 2."""


class UserError(Exception):
    """Something the user can mend: a bad option, a bad file, a folder that cannot be written.

    The message is one line that says what is wrong and what to do, and holds no patient text or id in clear.
    """
