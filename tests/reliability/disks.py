"""Rows about a disk without room and about a folder that several processes want."""

import contextlib
import io
import json
import pathlib
import random
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import polars as pl

from remind_jax import compare, import_data
from remind_jax.analysis import command
from remind_jax.errors import UserError
from remind_jax.studies.record import Record
from tests.reliability import Tally, row
from tests.reliability.child import Child, limit_files
from tests.reliability.runs import STEPS, Place, end

# Files and folders of a run by name, and the how manieth time that a process comes to write it.
OF_A_RUN = (
    *(("config.json", 1), ("environment.json", 1), ("*-2.0.0", 1), ("metrics.jsonl", 1)),
    *(("checkpoint", 1), ("metrics.jsonl", 3), ("checkpoint", 2), ("train", 1), ("tuning", 1), ("model", 1)),
    *(("predictions.parquet", 1), ("report.html", 1), ("report.json", 1)),
)


# ---- A full disk ----------------------------------------------------------------------------------------------------


@row(
    name="full_disk",
    title="no room for a file, from its middle on: each of a run in turn, then those of the other commands",
    target="one line and exit code 2, nothing half is left, and with room again the run ends bitwise equal",
    unit="files",
    reduced=4,
    full=21,
    broken="files are written in place",
)
def full_disk(count: int, broken: bool) -> Tally:
    """One run comes to its end over disks that are full at each of its files."""
    tally, options = Tally(), {"broken": "in place"} if broken else {}
    with tempfile.TemporaryDirectory() as root:
        place = Place(root, own=True)
        (place.root / "cache").rename(place.root / "old cache")
        for name, occurrence in OF_A_RUN[:count]:
            (place.root / "full.log").unlink(missing_ok=True)
            code = place.start("full", full=name, occurrence=occurrence, **options).finish()
            wrong = _wrong(code, place.log("full"), place.root / "full", place.root / "cache")
            tally.check(not wrong, f"{name}, time {occurrence}: {wrong}")
        wrong = end(place, "full")
        tally.check(not wrong, f"with room again: {wrong}")
        if not broken:
            _others(tally, place, count - len(OF_A_RUN))
    tally.notes.append("the system lets files grow no more (RLIMIT_FSIZE) from the middle of the named one on")
    return tally


def _wrong(code: int, log: str, *folders: pathlib.Path) -> str:
    """What is not as promised of a process that found a disk full and of what it left."""
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    if code != 2 or len(errors) != 1 or "Traceback" in log or "File too large" not in errors[0]:
        return f"exit code {code}: {log}"
    return ", ".join(half for folder in folders for half in _half(folder))


def _half(folder: pathlib.Path) -> Iterator[str]:
    """Files that are not whole, and what is left of writing them."""
    for path in folder.rglob("*"):
        if ".tmp-" in path.name:
            yield f"{path.name} is left"
        elif path.name in ("config.json", "environment.json", "report.json", "schema.json", "metrics.jsonl"):
            text = path.read_text(encoding="utf-8")
            try:
                for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
                    json.loads(part)
            except ValueError:
                yield f"{path.name} is half"
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".html" and "</html>" not in path.read_text(encoding="utf-8"):
            yield f"{path.name} is half"


def _others(tally: Tally, place: Place, count: int) -> None:
    """Predict and export in processes of their own, the rest here."""
    run, data, out = place.root / "alone", place.root / "data", place.root / "out"
    out.mkdir()
    children = (
        ("predict", [f"--data={data}", f"--out={out / 'p.csv'}"], "p.csv"),
        ("predict", [f"--data={data}", f"--out={out / 'p.parquet'}"], "p.parquet"),
        ("export", [f"--out={out / 'exported'}"], "exported"),
    )
    for name, arguments, full in children[: max(0, count)]:
        log = place.root / "alone.log"
        log.unlink(missing_ok=True)
        code = Child(arguments, run, command=name, full=full).finish()
        wrong = _wrong(code, log.read_text(encoding="utf-8"), out) or ", ".join(path.name for path in out.iterdir())
        tally.check(not wrong, f"{name}, {full}: {wrong}")
    source, other = place.root / "data" / "manifest.csv", place.root / "other"
    shutil.copytree(run, other)
    for name in ("config.json", "report.json"):
        content = json.loads((other / name).read_text(encoding="utf-8"))
        (other / name).write_text(json.dumps(content | {"method": "soft_moe"}), encoding="utf-8")
    imported = ["--from=table", f"--source={source}", f"--out={data / 'imported'}", "--label=died", "--kind=scan=skip"]
    here: tuple[tuple[str, Callable[[], object]], ...] = (
        ("import", lambda: import_data.main(imported)),
        (
            "compare",
            lambda: compare.main([str(run), str(other), f"--out={out / 'tables'}", "--resamples=20"]),
        ),
        ("record of a sweep", lambda: Record(out / "sweep.json", ["--methods=remind"], runs=["remind seed 0"], jobs=1)),
        ("table of an analysis", lambda: command.write_csv(out / "a.csv", ["a"], [{"a": i} for i in range(99)])),
        ("figure of an analysis", lambda: command.write_figure(out / "a", lambda: command.new_figure(2, 2))),
    )
    for name, call in here[: max(0, count - len(children))]:
        wrong = _refused(call) or ", ".join(path.name for path in out.iterdir()) or ", ".join(_half(data))
        wrong += "the folder is left" if (data / "imported").exists() else ""
        tally.check(not wrong, f"{name}: {wrong}")


def _refused(call: Callable[[], object]) -> str:
    """What is not as promised of a call that finds the disk full."""
    limit_files(40)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
    except UserError as error:
        return "" if "File too large" in str(error) and "\n" not in str(error) else f"said {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        limit_files(resource.RLIM_INFINITY)
    return "nothing was said"


# ---- Owners ---------------------------------------------------------------------------------------------------------


@row(
    name="owners",
    title="a run killed or not yet begun; then two to four mains at random instants on its folder",
    target="one trains, the others name it and exit with 2, the end is bitwise that of the run alone",
    unit="folders",
    reduced=2,
    full=50,
    broken="a folder has no owner",
)
def owners(count: int, broken: bool) -> Tally:
    """Each folder once; a main that comes when the run has ended shows its report."""
    tally, options, rng, told = Tally(), {"broken": "shared"} if broken else {}, random.Random(0), 0
    with tempfile.TemporaryDirectory() as root:
        place = Place(root)
        for i in range(count):
            name = f"run{i}"
            if i % 2:
                child = place.start(name, **options)
                child.wait_for(rng.randint(1, STEPS))
                child.process.kill()
                child.finish()
            before = len(place.lines(name, "batches")) if (place.root / f"{name}.batches").exists() else 0
            children = []
            for _ in range(rng.randint(2, 4)):
                children.append(place.start(name, **options))
                time.sleep(rng.random() * 0.5)
            codes = [child.finish(30 if broken else 300) for child in children]
            log = (place.root / f"{name}.log").read_text(encoding="utf-8")
            steps = [step for step, _ in place.lines(name, "batches")][before:]
            wrong = [] if set(codes) <= {0, 2} and 0 in codes else [f"exit codes {codes}: {log[-400:]}"]
            wrong += ["steps were taken twice"] if len(steps) > len(set(steps)) else []
            named = log.count(f"{place.root / name} is in use by process ")
            wrong += [] if named == codes.count(2) else [f"{codes.count(2)} refusals, {named} named"]
            wrong += [] if wrong else [x for x in [place.differences(name)] if x]
            told += named
            tally.check(not wrong, f"{name}, {len(children)} mains: {', '.join(wrong)}")
    tally.figures["mains that were refused"] = told
    tally.notes.append("on a local disk; NFS and Lustre, where locks and clocks are the server's, were not tested")
    return tally
