"""sweep.json: how a sweep was called, the time that its runs took, and the machine.

    {"command": "python -m remind_jax.sweep --config=configs/nhanes.py … --workdir=DIR", "data": "NHANES 2017-18",
     "methods": […], "seeds": […], "baselines": […], "resamples": 2000, "failed": [],
     "seconds": {"running": 812.4, "tabulating": 9.1}, "runs": {"soft_moe seed 0": {"seconds": 12.3}, …},
     "jobs": 1, "processor": "…", "cores": 2, "environment": {…}}

`running` is the wall time in which something was run, added up over all calls, and so are a run's own seconds; the part
of a run that ended in a SIGKILL is missing. A run that was finished without a record has null. `tabulating` is that of
the last call, null until it has written its tables. Jobs, processor and cores are those of the last call in which
something was run, or of the process that wrote the tables of a shared sweep; on a cluster those of the command, which
runs nothing itself. `environment` is that of the first finished run. No path of the machine is in the file.
"""

import contextlib
import json
import pathlib
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from remind_jax.runtime import files, records, texts
from remind_jax.runtime.jobs import find_cpus

_SECONDS = (records.Number(float, 0), None)
_SHAPE = {
    "runs?": {...: {"seconds": _SECONDS}},
    "seconds?": {"running": records.Number(float, 0), "tabulating?": _SECONDS},
    "failed?": [str],
}


class Record:
    """The record of a sweep, on disk after every run."""

    def __init__(
        self, path: pathlib.Path, arguments: Sequence[str], *, runs: Sequence[str], jobs: int, **settings: Any
    ):
        """Takes over the seconds of an earlier call and writes the record.

        `arguments` are those of the command line without the program, `runs` the names of the runs of this call, `jobs`
        how many run at a time, and `settings`, JSON-able, are stored by their names. Raises UserError: the file is no
        record.
        """
        self._path = path
        before = _read(path)
        kept = {name: entry for name, entry in before.get("runs", {}).items() if entry["seconds"] is not None}
        self._machine = {"jobs": jobs, "processor": processor(), "cores": len(find_cpus())}
        self._value = {
            "command": texts.command_line("python -m remind_jax.sweep", arguments),
            "data": before.get("data"),
            **settings,
            "failed": before.get("failed", []),
            "seconds": {**before.get("seconds", {"running": 0.0}), "tabulating": None},
            "runs": {**kept, **{name: kept.get(name, {"seconds": None}) for name in runs}},
            **{name: before.get(name, value) for name, value in self._machine.items()},
            "environment": before.get("environment"),
        }
        self._running = 0  # runs under way
        self._since = 0.0
        self._save()

    @contextlib.contextmanager
    def timed(self, run: str) -> Iterator[None]:
        """Adds the time until it is left to that of a run, and once for all that overlap to `running`."""
        start = time.monotonic()
        self._value |= self._machine  # of the last call in which something was run
        if not self._running:
            self._since = start
        self._running += 1
        try:
            yield
        finally:
            end = time.monotonic()
            self._running -= 1
            entry = self._value["runs"][run]
            entry["seconds"] = round((entry["seconds"] or 0.0) + end - start, 2)
            total = self._value["seconds"]["running"] + end - self._since
            self._value["seconds"]["running"] = round(total, 2)
            self._since = end
            self._save()

    def add_spans(self, spans: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Takes the times of runs from those who ran them: by run, from when to when, in seconds by one clock."""
        for run, own in spans.items():
            if own:
                self._value["runs"][run]["seconds"] = round(sum(stop - start for start, stop in own), 2)
        total, end = 0.0, float("-inf")
        for start, stop in sorted(span for own in spans.values() for span in own):
            total += max(0.0, stop - max(start, end))  # once for all that overlap
            end = max(end, stop)
        if total:
            self._value["seconds"]["running"] = round(total, 2)
        self._save()

    def close(self, *, data: str, failed: Sequence[str], seconds: float, folders: Sequence[pathlib.Path]) -> None:
        """Adds what is known with the tables: data, failed runs, seconds, environment of a finished run."""
        found = [file for folder in folders if (file := folder / "environment.json").exists()]
        environment = records.read(found[0], files.ENVIRONMENT, "remove it") if found else None
        self._value |= {"data": data, "failed": list(failed), "environment": environment}
        self._value["seconds"]["tabulating"] = round(seconds, 2)
        self._save()

    def _save(self) -> None:
        files.write_text(self._path, json.dumps(self._value, indent=2, ensure_ascii=False) + "\n")


def _read(path: pathlib.Path) -> dict[str, Any]:
    return records.read(path, _SHAPE, "remove it, or choose another workdir", default={})


def processor() -> str:
    """Returns the name of the processor, or its architecture where the system has no name."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True, timeout=10
        )
        return found.stdout.strip()
    return platform.processor() or platform.machine()
