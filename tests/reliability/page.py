"""docs/reliability.md out of a figures file."""

from collections.abc import Mapping
from typing import Any

from remind_jax.runtime import files
from tests.reliability import ROWS
from tests.tiny_runs import ROOT

_HEAD = """# Reliability

<!-- written by python -m tests.reliability --page -->

## The contract

On the same hardware, versions and device count, a run that is killed at any instant and started again ends with bit for
bit the same parameters, optimizer state, λ, random keys, data order, metrics and predictions as the run left alone. On
another number of devices the same samples are consumed in the same order, and values agree within the tolerance that
the table names.

What a run may rely on:

- A checkpoint is committed by one rename and holds the sha256 of each of its files; nothing is restored that disagrees.
  A damaged one is named and set aside, and the newest whole one is taken. A save that fails is tried once more.
- SIGTERM, SIGUSR1, SIGINT (Ctrl-C), SIGHUP and a reader that closes standard output end a command in one line, with
  exit code 143, 75 (try again later), 130, 129 or 141. Training saves at the next step before it ends; all else ends at
  once, and what was there before stands. A second signal does not cut a save, but for a second Ctrl-C, after which the
  save before stands. What is ignored (nohup) stays ignored; SIGSTOP and SIGCONT change nothing. Handlers hold from the
  moment the command has been read; before, some tenths of a second, the system's do.
- A preparation of data that was killed keeps its whole blocks, and ends with the same bytes. A row that the disk has
  damaged is found by its check sum when a process first reads it.
- A uid without an entry in passwd and without HOME has its caches in a folder of its own below TMPDIR, mode 0700.
- Every file is written next to its place, synced and renamed; lines are appended whole, and what a crash has cut of one
  is removed. A full disk is one line and exit code 2; with room again the same command goes on. No symbolic link below
  a run's, sweep's or model's folder is written through; the folder that you name may be one.
- One process, or one job of several, works in a run folder at a time; another `main`, `fit` or `adapt` is refused and
  names its host and number. A killed holder on the same machine holds nothing; one on another machine is waited for
  until it has been silent for 90 seconds. This rests on locks and times of the folder's file system: tested on local
  disks, **not tested on NFS or Lustre**.
- Files with rows of patients (predictions, prepared data, kept features, manifests from import, tables of analyses) are
  0600, and the folders made for them 0700, whatever the umask.
- A step whose loss, gradient or group weights are not finite is rejected before the update and counted in metrics.jsonl
  (`train/rejected`). After five in a row the run goes back to its newest checkpoint, once, then ends
  with exit code 17 and names the combinations.
- A run remembers its data. Where they have changed since it began, it is refused and tells what, or begins anew
  (`--on-changed-data=restart`).
- Manifests, their files, checkpoints and weights of others are data, never code. A mistake is one line and exit code 2.

[SECURITY.md](../SECURITY.md) says whom this trusts, [data governance](data_governance.md) what may leave a hospital.

## Figures

"""

_TAIL = """
## How to run it

```bash
pip install -e ".[test,fuzz]"
python -m tests.reliability --out=figures.json                     # reduced counts, minutes
python -m tests.reliability --full --out=figures.json              # hours; rows that the file has in full are kept
python -m tests.reliability --only=kill,damage --out=figures.json
python -m tests.reliability --page --out=docs/reliability_figures.json # this page
```

Each row has a broken variant that takes away what the row is about; tests/reliability/test_reliability.py shows that
the row then fails. The tests run every row that takes seconds, at a small count; `python -m pytest -m slow
tests/reliability` runs the rest.

| row | count of a full run | reduced | broken variant |
|---|---|---|---|
"""


def render(figures: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    machine = figures["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    lines = [_HEAD, "| row | what is done | promised | tried | as promised | date |\n|---|---|---|---|---|---|"]
    missing = []
    for name, row in ROWS.items():
        found = figures["rows"].get(name)
        if found is None:
            missing.append(name)
            continue
        part = (
            ""
            if found["count"] >= found["full"]
            else f" (count {found['count']:,} of {found['full']:,} {found['unit']})"
        )
        tried, passed, date = f"{found['tried']:,}{part}", f"{found['passed']:,}", found["date"]
        lines.append(f"| `{name}` | {row.title} | {row.target} | {tried} | {passed} | {date} |")
    if missing:
        lines.append(f"\nNot measured: {', '.join(f'`{name}`' for name in missing)}.")
    lines.append(f"\nMachine: {machine['platform']}, {machine['cores']} cores, Python {machine['python']}; {versions}.")
    lines.append(
        "All figures: [reliability_figures.json](reliability_figures.json). Counts below a full run's say so.\n"
    )
    for name, found in ((name, figures["rows"][name]) for name in ROWS if name in figures["rows"]):
        more = [*found["notes"], *(f"{what}: {_number(value)}" for what, value in found["figures"].items())]
        failed = [f"**failed**: {text}" for text in found["failed"]]
        if more or failed:
            lines += [f"- `{name}`: {'; '.join([*more, *failed])}."]
    lines.append(_TAIL.rstrip())
    lines += [f"| `{name}` | {row.full:,} {row.unit} | {row.reduced:,} | {row.broken} |" for name, row in ROWS.items()]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:.1e}"


def write(figures: Mapping[str, Any]) -> None:
    """Writes the page."""
    files.write_text(ROOT / "docs" / "reliability.md", render(figures))
