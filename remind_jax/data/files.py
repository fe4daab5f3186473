"""Files that a manifest names or is: where they may lie, and how tables are read."""

import hashlib
import importlib.util
import pathlib
from collections.abc import Callable, Container
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet

from remind_jax.data.findings import FileRecord
from remind_jax.data.inputs import safe_path
from remind_jax.errors import UserError
from remind_jax.runtime import records

THREADS = 8  # that read or decode files; more would need memory for as many large images
REMEDY = "replace the files, empty the cells or set data.bad_files to missing"


class Fault(ValueError):
    """A file that cannot be used: the code of the finding, and what it says after the rows."""

    def __init__(self, code: str, text: str):
        super().__init__(text)
        self.code, self.text = code, text


class Look(NamedTuple):
    """What looking at a sound file told."""

    shape: tuple[int, ...] = ()  # that all files of the column must have; () where each may have its own
    spacing: float | None = None  # distance of a volume's slices in mm, where the file says it
    remark: tuple[str, str] | None = None  # code and text of a warning, the text as that of a Fault


def in_package(package: str, path: str) -> pathlib.Path | None:
    """Returns a file of an installed package, which is not imported, by its path there; None where there is none."""
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((found for folder in folders if (found := pathlib.Path(folder, path)).is_file()), None)


def record(path: pathlib.Path) -> FileRecord:
    """Returns size and digest of a file, or of all files of a folder with their names."""
    if not path.is_dir():
        with path.open("rb") as file:
            return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    parts = [(each.name, *record(each)) for each in sorted(path.iterdir()) if each.is_file()]
    return FileRecord(sum(size for _, size, _ in parts), hashlib.sha256(repr(parts).encode()).hexdigest())


def load(root: pathlib.Path | None, cell: str, read: Callable[[pathlib.Path], Any]) -> Any:
    """Reads a file that a cell names; raises UserError (E007) if it was changed since the manifest was read."""
    try:
        return read(safe_path(root, cell))
    except (ValueError, OSError) as error:
        reason = type(error).__name__
        raise UserError(f"E007 a file of the manifest cannot be read any more ({reason}); check the folder") from None


def read_parquet(
    path: pathlib.Path,
    most_rows: int | None = None,
    below: pathlib.Path = records.ANYWHERE,
    columns: Container[str] | None = None,
) -> pl.DataFrame:
    """Reads a parquet file, or some of its columns, by Arrow: on some damaged pages polars ends the process.

    Raises:
      ValueError: it cannot be read or claims more than `most_rows`; says so without what the file holds.
      UserError: it is no regular file, or a link leads out of the folder that it is to lie `below`.
    """
    try:
        with records.opened(path, below) as stream, pa.parquet.ParquetFile(stream) as file:
            if most_rows is not None and file.metadata.num_rows > most_rows:
                raise ValueError(f"it claims more than {most_rows:,} rows")
            names = file.schema_arrow.names  # those that are no UTF-8 raise here; polars would panic
            if len(set(names)) < len(names):
                raise ValueError("two columns have one name")
            chosen = None if columns is None else [name for name in names if name in columns]
            found = file.read(columns=chosen)
            found.validate(full=True)  # polars panics at damaged pages that have passed so far
            return pl.from_arrow(found)
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        raise ValueError(type(error).__name__) from None
