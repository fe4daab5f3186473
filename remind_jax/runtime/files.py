"""Files that are written at once or not at all, and digests that tell whether they are as they were written."""

import hashlib
import os
import pathlib
from collections.abc import Container

SUMS = "SHA256SUMS"


def write_text(file: pathlib.Path, text: str) -> None:
    """Replaces a file by a text; whoever reads it meanwhile, or after a crash, finds the old or the new one, whole."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def sums(folder: pathlib.Path, leave_out: Container[str] = ()) -> str:
    """A line `<sha256>  <path>` for each file of a folder, in the order of their paths, without `SUMS` itself.

    Args:
      folder: with all that is below it.
      leave_out: paths that have none, relative to the folder.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name != SUMS and name not in leave_out:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)
