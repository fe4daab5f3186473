"""Files that are written at once or not at all."""

import os
import pathlib


def write_text(file: pathlib.Path, text: str) -> None:
    """Replaces a file by a text; whoever reads it meanwhile, or after a crash, finds the old or the new one, whole."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
