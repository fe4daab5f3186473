"""What a run remembers of its data: digests of all, and hashes of single rows that tell what has changed.

`data.npz`, which only its owner may read, has of each row 8 bytes of its sample id, 4 of its patient's and of its cells
by modality, its label and its split. Ids and cells are hashed with a key drawn for each run, which is in the file as
well: it holds no text, but who has it can try whether a guessed id or cell is among the rows.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import polars as pl

from remind_jax.data import splits
from remind_jax.data.dataset import FittedData
from remind_jax.data.manifest import Manifest, cell_bytes
from remind_jax.runtime import files

_ROOTS = ("root", "notes_root")  # keys of section `data` that name folders
_MOST_FILES = 100_000  # whose size and time are looked at
_BLOCK = 4096  # rows hashed at a time
_ALIKE = {"manifest": "contents", "split": "split", "groups": "combinations", "kinds": "fitted preprocessing"}
"""What differs by name of its digest, where all rows are as they were: a tokenizer may be another one, for instance."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """The data of a run.

    Attributes:
      digests: of the manifest, the split, the combinations and the fitted kinds, see `digests`.
      stamp: how their files looked, see `stamp`.
      key: of the hashes, hex.
      classes, modalities: names in order.
      samples, patients: hashes of ids, uint64 [n] and uint32 [n].
      labels: positions in `classes`, int32 [n], or hashes of labels of tasks that have none, uint32 [n].
      sides: positions in `splits.SPLITS`, int8 [n].
      cells: hashes of the cells, and of the contents of files, of each modality, uint32 [n, m].
    """

    digests: Mapping[str, str]
    stamp: str
    key: str
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    samples: np.ndarray
    patients: np.ndarray
    labels: np.ndarray
    sides: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, fitted: FittedData, stamp: str = "", key: str = "") -> Self:
        """Remembers data that were split and fitted; hashes with a new key unless one is given."""
        manifest, key = fitted.manifest, key or secrets.token_hex(16)
        digest, schema = _hasher(key), manifest.schema
        samples, patients = manifest.table[schema.sample_id].to_list(), manifest.table[schema.patient_id].to_list()
        return cls(
            digests=digests(fitted),
            stamp=stamp,
            key=key,
            classes=schema.classes,
            modalities=tuple(each.name for each in schema.modalities),
            samples=np.array([digest(name.encode(), 8) for name in samples], np.uint64),
            patients=np.array([digest(name.encode(), 4) for name in patients], np.uint32),
            labels=manifest.labels if schema.has_classes else _hashes(manifest.labels, digest),
            sides=fitted.whole_split,
            cells=_cells(manifest, digest),
        )

    def write(self, file: pathlib.Path) -> None:
        """Writes the file, whole, for its owner alone. Raises UserError: the disk refuses."""
        fields = vars(self)
        facts = {name: value for name, value in fields.items() if not isinstance(value, np.ndarray)}
        arrays = {name: value for name, value in fields.items() if name not in facts}
        with files.whole_file(file) as temporary:
            temporary.touch()
            temporary.chmod(0o600)
            with temporary.open("wb") as opened:
                np.savez(opened, facts=np.frombuffer(json.dumps(facts).encode(), np.uint8), **arrays)

    @classmethod
    def read(cls, file: pathlib.Path) -> Self | None:
        """Reads what `write` wrote; None where there is nothing that this user can read."""
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            facts = json.loads(arrays.pop("facts").tobytes())
            names = {name: tuple(facts.pop(name)) for name in ("classes", "modalities")}
            return cls(**facts, **names, **arrays)
        except Exception:  # a damaged archive ends in all kinds of errors; digests tell of changes without it
            return None

    def changes(self, now: Self) -> list[str]:
        """Tells what of the rows is another in `now`, hashed with the same key, by counts; nothing if none is."""
        told = list(_changed_names(self.classes, now.classes, "classes"))
        told += _changed_names(self.modalities, now.modalities, "modalities")
        both, then, since = np.intersect1d(self.samples, now.samples, return_indices=True)
        labels = self._answers(then), now._answers(since)
        counts = {
            "rows added": len(now.samples) - len(both),
            "rows removed": len(self.samples) - len(both),
            "labels changed": np.count_nonzero(np.not_equal(*labels)),
            "patients changed": np.count_nonzero(self.patients[then] != now.patients[since]),
            "rows moved between splits": np.count_nonzero(self.sides[then] != now.sides[since]),
        }
        for name in (name for name in now.modalities if name in self.modalities):
            old, new = self.cells[then, self.modalities.index(name)], now.cells[since, now.modalities.index(name)]
            counts[f"cells changed in {name}"] = np.count_nonzero(old != new)
        told += [f"{what} {count}" for what, count in counts.items() if count]
        in_order = np.array_equal(np.argsort(then), np.argsort(since))
        return told if in_order else [*told, "rows in another order"]

    def _answers(self, rows: np.ndarray) -> np.ndarray:
        """Returns what stands for the labels of some rows, whatever the order of the classes, str [n]."""
        of_classes = self.labels.dtype == np.int32
        return (np.array(self.classes)[self.labels[rows]] if of_classes else self.labels[rows]).astype(str)


def digests(fitted: FittedData) -> dict[str, str]:
    """Returns the sha256 (hex) of what a run takes from its data, by name; they stand in its first record."""
    return {
        "manifest": fitted.manifest.digest,
        "split": splits.split_digest(fitted.whole_split),
        "groups": digest_of(fitted.groups.to_dict()),
        "kinds": digest_of(fitted.preprocessor.to_dict()),
    }


def digest_of(content: Mapping[str, Any]) -> str:
    """Returns the sha256 (hex) of a JSON-able value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def changed(known: Mapping[str, str], kept: Memory | None, fitted: FittedData) -> list[str]:
    """Tells what has changed since data had the digests `known`, some of those of `digests`; nothing if nothing has.

    `kept` is what was remembered of the rows, without which there are no counts.
    """
    now = digests(fitted)
    others = [text for name, text in _ALIKE.items() if known.get(name, now[name]) != now[name]]
    told = kept.changes(Memory.of(fitted, key=kept.key)) if others and kept else []
    return told or others


def places(data: Any) -> tuple[str, ...]:
    """Returns the folders that the section `data` of a config reads, or the digest of rows that came from memory."""
    if data.get("digest"):
        return ("", data["digest"])
    return tuple(data[key] for key in _ROOTS if data.get(key))


def kept_stamp(file: pathlib.Path) -> str | None:
    """Reads the stamp alone of what `Memory.write` wrote; None as for `Memory.read`."""
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as found:
            return json.loads(found["facts"].tobytes())["stamp"]
    except Exception:  # as there
        return None


def stamp(*found: str) -> str:
    """Returns how the files below some `places` look: a digest of paths, sizes and times; "" without any file.

    As long as it stays, data need not be read to see that they are the same. The first 100,000 files are looked at.
    """
    if found[:1] == ("",):
        return found[1]
    sha, count = hashlib.sha256(), 0
    for path, status in (each for root in found for each in _looked_at(root)):
        sha.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        count += 1
        if count == _MOST_FILES:
            break
    return sha.hexdigest() if count else ""


def _looked_at(root: str) -> Iterator[tuple[str, os.stat_result]]:
    for folder, below, names in os.walk(root):
        below.sort()
        for path in (os.path.join(folder, name) for name in sorted(names)):
            try:
                yield os.path.relpath(path, root), os.stat(path)
            except OSError:
                continue


def _changed_names(old: tuple[str, ...], new: tuple[str, ...], what: str) -> Iterator[str]:
    for text, names in (("added", [x for x in new if x not in old]), ("removed", [x for x in old if x not in new])):
        if names:
            yield f"{what} {text}: {', '.join(names)}"
    if old != new and set(old) == set(new):
        yield f"{what} in another order"


def _hasher(key: str) -> Callable[[bytes, int], int]:
    """Makes a keyed hash of so many bytes."""

    def digest(content: bytes, size: int) -> int:
        return int.from_bytes(hashlib.blake2b(content, digest_size=size, key=key.encode()).digest(), "little")

    return digest


def _hashes(labels: np.ndarray, digest: Callable[[bytes, int], int]) -> np.ndarray:
    """Hashes the labels of each row, [n] or [n, l], uint32 [n]."""
    return np.array([digest(row.tobytes(), 4) for row in labels.reshape(len(labels), -1)], np.uint32)


def _cells(manifest: Manifest, digest: Callable[[bytes, int], int]) -> np.ndarray:
    """Hashes what each row has of each modality, uint32 [n, m]."""
    modalities, rows = manifest.schema.modalities, manifest.table.height
    found = np.empty((rows, len(modalities)), np.uint32)
    for start in range(0, rows, _BLOCK):
        part = manifest.table[start : start + _BLOCK]
        for j, modality in enumerate(modalities):
            of_file = manifest.file_digest if modality.stored == "file" else None
            words = np.stack([_words(part[name], digest, of_file) for name in modality.all_columns], axis=1)
            found[start : start + _BLOCK, j] = [digest(row.tobytes(), 4) for row in words]
    return found


def _words(cells: pl.Series, digest: Callable[[bytes, int], int], of_file: Callable[[str], str] | None) -> np.ndarray:
    """Returns a number for each cell of a column, uint64 [n], which is another one for another cell."""
    if cells.dtype.is_numeric():
        return cells.to_numpy().astype("<f8").view("<u8")
    words, there = np.zeros(len(cells), "<u8"), cells.is_not_null().to_numpy()
    if cells.dtype == pl.String:
        values = (cell + (of_file(cell) if of_file else "") for cell in cells.drop_nulls().to_list())
        words[there] = [digest(value.encode(), 8) for value in values]
    elif isinstance(cells.dtype, pl.List):
        words[there] = [digest(cell_bytes(value), 8) for value in cells.drop_nulls()]
    elif there.any():
        words[there] = [digest(value.tobytes(), 8) for value in cells.drop_nulls().to_numpy()]
    return words
