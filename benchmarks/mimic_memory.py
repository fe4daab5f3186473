"""Measures the memory and time that reading MIMIC-IV takes, on an enlarged copy of its public demo; Linux only.

    python -m benchmarks.mimic_memory --demo=DIR [--copies=190] [--folder=DIR] [--out=FILE.jsonl] [--options=JSON]

The six tables that are read are written `copies` times over with new ids (190 copies have 20.5 million rows of
labevents and 49 million of chartevents), together with notes of filler words, one long summary and seven short reports
an admission. The reader runs in a process of its own, whose peak of resident memory is reported. `--folder` keeps the
copy and uses it again; `--options` are keyword arguments of the reader.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence

from remind_jax.errors import UserError

HERE = pathlib.Path(__file__).resolve().parent
TABLES = ("hosp/patients", "hosp/admissions", "hosp/diagnoses_icd", "hosp/labevents", "icu/icustays", "icu/chartevents")
# Code, characters and number an admission; about what real summaries and reports have.
NOTES = {"discharge": ("DS", 10_500, 1), "radiology": ("RR", 1_200, 7)}
# Patients, admissions and stays have ids of eight digits that begin with 1, 2 and 3; what else looks so may change too.
_ID = re.compile(rb"(?m)(?:^|(?<=,))(?=[123]\d{7}(?:,|$))")
_MARK = b"\0"
_READER = """
import json, sys, time
from remind_jax.data.sources import mimic_iv

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024

before, start = peak(), time.perf_counter()
manifest = mimic_iv.load(sys.argv[1], **json.loads(sys.argv[2]))
seconds = time.perf_counter() - start
notes = [note.message for note in manifest.notes]
print(json.dumps({"stays": manifest.table.height, "seconds": round(seconds, 1), "peak_mib": peak(),
                  "imports_mib": before, "table_mib": round(manifest.table.estimated_size("mb")), "notes": notes}))
"""


def _write(path: pathlib.Path, parts: Iterable[bytes]) -> None:
    """One gzip stream of all parts, fast rather than small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    with path.open("wb") as file:
        for part in parts:
            file.write(packer.compress(part))
        file.write(packer.flush())


def _table(path: pathlib.Path, copies: int) -> Iterator[bytes]:
    """The header and the rows of a table, every copy with its number before each id."""
    data = zlib.decompress(path.read_bytes(), 31)
    header, _, body = data.partition(b"\n")
    yield header + b"\n"
    marked = _ID.sub(_MARK, body)
    for copy in range(1, copies + 1):
        yield marked.replace(_MARK, b"%d" % copy)


def _notes(demo: pathlib.Path, kind: str, copies: int) -> Iterator[bytes]:
    """Notes of filler words, at the start of every admission."""
    code, length, number = NOTES[kind]
    text = b"the film shows what the line before this one says, with no change\n"
    text *= -(-length // len(text))
    rows = zlib.decompress((demo / "hosp/admissions.csv.gz").read_bytes(), 31).splitlines()
    names = rows[0].decode().split(",")
    places = [names.index(name) for name in ("subject_id", "hadm_id", "admittime")]
    yield b"note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text\n"
    for copy in range(1, copies + 1):
        lines = []
        for row in rows[1:]:
            cells = row.decode().split(",")
            subject, admission, when = (cells[place] for place in places)
            for sequence in range(number):
                note = f"{copy}{subject}-{code}-{admission}{sequence}"
                known = f"{note},{copy}{subject},{copy}{admission},{code},{sequence},{when},{when},"
                lines.append(known.encode() + b'"' + note.encode() + b" " + text[:length] + b'"\n')
        yield b"".join(lines)


def enlarge(demo: pathlib.Path, folder: pathlib.Path, copies: int) -> None:
    """Writes the enlarged copy of the demo, with notes, into a folder."""
    for name in TABLES:
        source = demo / f"{name}.csv.gz"
        if not source.is_file():
            raise UserError(f"{source} does not exist: --demo names the folder of the MIMIC-IV demo")
        _write(folder / f"{name}.csv.gz", _table(source, copies))
    for kind in NOTES:
        _write(folder / f"note/{kind}.csv.gz", _notes(demo, kind, copies))


def measure(demo: pathlib.Path, folder: pathlib.Path, copies: int, options: str) -> dict[str, object]:
    """Reads the enlarged copy, made first where it is not there yet, in a new process.

    Returns:
      what is to be recorded: rows of the copy, stays read, seconds, peak and table in MiB.

    Raises:
      UserError: the reader failed.
    """
    if not (folder / "complete").is_file():
        enlarge(demo, folder, copies)
        (folder / "complete").touch()
    start = time.strftime("%Y-%m-%d")
    command = [sys.executable, "-c", _READER, str(folder.resolve()), options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        raise UserError(f"the reader failed: {done.stderr.strip().splitlines()[-1]}")
    sizes = {path.stem.split(".")[0]: path.stat().st_size >> 20 for path in sorted(folder.rglob("*.csv.gz"))}
    rows = {name: _rows(demo / f"{name}.csv.gz") * copies for name in ("hosp/labevents", "icu/chartevents")}
    record = {"date": start, "copies": copies, "cores": len(os.sched_getaffinity(0)), "rows": rows}
    return record | {"packed_mib": sizes, "options": json.loads(options)} | json.loads(done.stdout)


def _rows(path: pathlib.Path) -> int:
    """Lines below the header; no cell of these tables holds a line break in the demo."""
    return zlib.decompress(path.read_bytes(), 31).count(b"\n") - 1


def main(arguments: Sequence[str]) -> None:
    """Reads the command line, measures, prints the record and adds it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=pathlib.Path, required=True)
    parser.add_argument("--copies", type=int, default=190)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--options", default="{}")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        record = measure(given.demo, given.folder or pathlib.Path(scratch), given.copies, given.options)
    print(json.dumps(record, indent=2))
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
