"""Runs the rows and writes their figures; rows that a file already has, at the same count, are kept.

    python -m tests.reliability [--full] [--only=ROW,…] [--count=N] --out=FILE.json
    python -m tests.reliability --page --out=FILE.json        writes docs/reliability.md from a file

--full takes the counts of a full run, else those of the reduced one; --count=N another count, of one row.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence

from remind_jax import cli
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime import files
from remind_jax.runtime.files import environment
from tests.reliability import (  # noqa: F401, they enter rows
    ROWS,
    Row,
    attacks,
    damage,
    disks,
    fuzz,
    importers,
    inputs,
    mutants,
    names,
    page,
    privacy,
    records,
    runs,
    steps,
    strangers,
    wide,
)

USAGE = "python -m tests.reliability [--full] [--only=ROW,…] [--count=N] [--page] --out=FILE.json"


def _measure(row: Row, count: int) -> dict[str, object]:
    """Runs a row; what comes out beside what was asked."""
    start = time.monotonic()
    tally = row.run(count, False)
    return {
        "title": row.title,
        "target": row.target,
        "unit": row.unit,
        "count": count,
        "full": row.full,
        "tried": tally.tried,
        "passed": tally.passed,
        "failed": tally.failed,
        "notes": tally.notes,
        "figures": tally.figures,
        "broken": row.broken,
        "seconds": round(time.monotonic() - start, 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _machine() -> dict[str, object]:
    found = environment()
    found["cores"] = os.cpu_count()
    found["processor"] = platform.processor() or platform.machine()
    return found


def main(arguments: Sequence[str]) -> None:
    """The command line, without the program's name.

    Raises:
      UserError: it cannot be read.
    """
    parser = cli.Parser(USAGE)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args(arguments)
    chosen = [name for name in options.only.split(",") if name] or list(ROWS)
    for name in chosen:
        if name not in ROWS:
            raise UserError(f"unknown row {name!r}{did_you_mean(name, ROWS)}; known: {', '.join(ROWS)}")
    figures = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"rows": {}}
    if options.page:
        page.write(figures)
        return
    for name in chosen:
        row = ROWS[name]
        count = options.count or (row.full if options.full else row.reduced)
        before = figures["rows"].get(name)
        if before and before["count"] >= count and before["tried"] == before["passed"]:
            continue
        print(f"{name}: {row.title}, {count} {row.unit}", flush=True)
        found = _measure(row, count)
        print(f"  {found['passed']} of {found['tried']} in {found['seconds']} s", flush=True)
        for text in found["failed"]:
            print(f"  failed: {text}", flush=True)
        figures = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"rows": {}}
        figures["rows"][name] = found
        figures["machine"] = _machine()
        figures["command"] = f"python -m tests.reliability {' '.join(arguments)}"
        files.write_text(options.out, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")
    if any(figures["rows"][name]["passed"] < figures["rows"][name]["tried"] for name in chosen):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, __doc__)
