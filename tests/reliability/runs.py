"""Rows about runs in processes of their own: killed, asked to stop, and moved to another number of devices."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import polars as pl

from tests import tiny_runs
from tests.data.changes import CHANGES as CHANGES_OF_DATA
from tests.data.manifest_files import write_manifest
from tests.reliability import Tally, row
from tests.reliability.child import FEATURE_POINTS, POINTS, Child

# Two stages of 12 steps; evaluated and saved every sixth, recorded every fourth, λ refreshed every fourth.
CHANGES = {"train__evaluate_every": 0.5, "eval__bootstrap": 20}
STEPS = 24
# The same with text, whose encoder rests in the second stage, so that its features are kept on disk.
OWN = {"data__max_tokens": 8, "data__vocabulary": 64, "train__feature_cache": "disk"}
OWN_ROWS = 120
KILLS_OF_A_CHAIN = 10
DRAWS = 5  # of an instant at which a run has not ended yet


class Place:
    """A folder for runs that share prepared data and compiled programs, and the run that nobody disturbs."""

    def __init__(
        self,
        root: str | pathlib.Path,
        *,
        own: bool = False,
        alone: bool = True,
        on: int = 1,
        method: str = "remind",
        **changes: object,
    ):
        """Lets the undisturbed run end, if `alone`, `on` so many devices; with `own` data it keeps features of frozen
        encoders on disk.
        """
        self.root, self._devices = pathlib.Path(root), on
        if own:
            data = write_manifest(self.root / "data", n=OWN_ROWS)
            self.arguments = tiny_runs.own_arguments(data, self.root / "cache", method, **CHANGES | OWN | changes)
        else:
            self.arguments = tiny_runs.arguments(self.root / "cache", method, **CHANGES | changes)
        self.compiled = str(self.root / "compiled")
        if alone:
            self.run_alone()

    def run_alone(self) -> None:
        """Lets the undisturbed run end."""
        code = self.start("alone").finish()
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {self.log('alone')}")

    def start(self, name: str, *more: str, **options: object) -> Child:
        given = {"compiled": self.compiled, "devices": self._devices} | options
        return Child([*self.arguments, *more], self.root / name, **given)

    def log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(encoding="utf-8")[-400:]

    def lines(self, name: str, kind: str) -> list[tuple[int, str]]:
        """What a run recorded of each step: (step, digest)."""
        file = self.root / f"{name}.{kind}"  # of a plain model there is none
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return [(int(step), digest) for step, digest in (line.split() for line in text.splitlines() if " " in line)]

    def differences(self, name: str) -> str:
        """In what a finished run is not, bit for bit, the undisturbed one; nothing when they are equal."""
        here, there = self.root / name, self.root / "alone"
        wrong = []
        for kind in ("batches", "saves"):
            known = dict(self.lines("alone", kind))
            lines = self.lines(name, kind)
            if (
                any(known.get(step, digest) != digest for step, digest in lines)
                or not known.keys() <= dict(lines).keys()
            ):
                wrong.append({"batches": "batches", "saves": "parameters, optimizer or λ"}[kind])
        if _records(here) != _records(there):
            wrong.append("metrics")
        if (here / "report.json").read_bytes() != (there / "report.json").read_bytes():
            wrong.append("report")
        if not _same_predictions(here, there):
            wrong.append("predictions")
        return ", ".join(wrong)


def _records(folder: pathlib.Path) -> list[dict]:
    """What metrics.jsonl holds, but for times."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time/step_ms"} for line in lines]


def _same_predictions(here: pathlib.Path, there: pathlib.Path) -> bool:
    mine, theirs = (pl.read_parquet(folder / "predictions.parquet") for folder in (here, there))
    names = [name for name in mine.columns if name.startswith("p_")]
    return mine.equals(theirs) and all(mine[x].to_numpy().tobytes() == theirs[x].to_numpy().tobytes() for x in names)


def end(place: Place, name: str, **options: object) -> str:
    """Lets a run end and says in what it differs."""
    code = place.start(name, **options).finish()
    return f"exit code {code}: {place.log(name)}" if code else place.differences(name)


def forget(place: Place, name: str) -> None:
    """Removes a run and what was written beside it."""
    shutil.rmtree(place.root / name, ignore_errors=True)
    for kind in ("batches", "saves", "log", "asked"):
        (place.root / f"{name}.{kind}").unlink(missing_ok=True)


# ---- SIGKILL --------------------------------------------------------------------------------------------------------


@row(
    name="kill",
    title="SIGKILL at every named point and at random instants",
    target="all bitwise equal",
    unit="random instants",
    reduced=4,
    full=200,
    broken="λ comes back from a checkpoint as it was at the start",
)
def kill(count: int, broken: bool) -> Tally:
    """One run is killed at all named points in turn, others ten times at random instants; each must end as if alone."""
    tally, options = Tally(), {"broken": "λ"} if broken else {}
    with tempfile.TemporaryDirectory() as root:
        place = Place(root)
        if not broken:
            # Prepares its data anew.
            (place.root / "cache").rename(place.root / "old cache")
            _kill_at_points(place, tally, POINTS)
        rng, chain = random.Random(0), 0
        while count > 0:
            kills = min(KILLS_OF_A_CHAIN, count)
            name, count, chain = f"random{chain}", count - kills, chain + 1
            done = _kill_at_random(place, name, kills, rng, options)
            wrong = end(place, name, **options)
            tally.check(not wrong, f"chain {chain} of {done} kills at random instants: {wrong}", times=done)
            shutil.rmtree(place.root / name)
    if not broken:
        with tempfile.TemporaryDirectory() as root:
            _kill_at_points(Place(root, own=True), tally, FEATURE_POINTS)
    tally.notes.append(f"a run is killed {KILLS_OF_A_CHAIN} times in a row, at a random step plus 0 to 60 ms")
    return tally


def _kill_at_points(place: Place, tally: Tally, points: Sequence[str]) -> None:
    """Every point once, in one run."""
    reached = []
    for point in points:
        code = place.start("points", point=point, occurrence=2 if point == "record cut" else 1).finish()
        if code == -9:
            reached.append(point)
        else:
            tally.check(False, f"the run never came to the point {point!r} (exit code {code}: {place.log('points')})")
    wrong = end(place, "points")
    tally.check(not wrong, f"killed at {', '.join(reached)}: {wrong}", times=len(reached))
    tally.notes.append(f"named points, once each, in one run: {', '.join(reached)}")


def _kill_at_random(place: Place, name: str, kills: int, rng: random.Random, options: dict) -> int:
    """Kills a run so many times and returns how often that was."""
    done = 0
    for i in range(kills):
        child = place.start(name, **options)
        # Further on each time, or the first checkpoint would never be left behind.
        child.wait_for(rng.randint(1, 1 + STEPS * (i + 1) // kills))
        time.sleep(rng.random() * 0.06)
        child.process.kill()
        done += child.finish() == -9
    return done


# ---- Data that change behind a run's back ----------------------------------------------------------------------------


@row(
    name="changed_data",
    title=f"a run stopped at a random step, its data changed in one of {len(CHANGES_OF_DATA)} ways, the command again",
    target="refused with exit code 2 and what has changed; restarted, bit for bit the run of the new data alone",
    unit="changes",
    reduced=3,
    full=60,
    broken="digests of the data are not compared",
)
def changed_data(count: int, broken: bool) -> Tally:
    """Each way in turn, after SIGTERM and SIGKILL in turn."""
    tally, rng, names = Tally(), random.Random(0), list(CHANGES_OF_DATA)
    options = {"broken": "digests"} if broken else {}
    with tempfile.TemporaryDirectory() as root:
        for i in range(count):
            place = Place(pathlib.Path(root, str(i)), own=True, alone=False)
            place.compiled = str(pathlib.Path(root, "compiled"))
            name = names[5 * i % len(names)]
            wrong = _refused(place, name, rng, (signal.SIGTERM, signal.SIGKILL)[i % 2], options)
            tally.check(not wrong, f"{name}, change {i}: {wrong}")
            shutil.rmtree(place.root)
    tally.notes.append(f"ways: {', '.join(name.replace('_', ' ') for name in names)}")
    return tally


def _refused(place: Place, name: str, rng: random.Random, number: int, options: dict) -> str:
    """What went wrong where a run was stopped, refused and begun anew; nothing if nothing did."""
    child = place.start("run")
    child.wait_for(rng.randint(1, 14))
    os.kill(child.process.pid, number)
    child.finish()
    told = CHANGES_OF_DATA[name](place.root / "data", np.random.default_rng(rng.randrange(2**32)))
    before = (place.root / "run" / "metrics.jsonl").read_bytes()
    old = json.loads(before.splitlines()[0])["data/manifest"][:16]
    code = place.start("run", **options).finish()
    if code != 2 or told not in place.log("run") or (place.root / "run" / "metrics.jsonl").read_bytes() != before:
        return f"exit code {code}, {told!r} expected: {place.log('run')}"
    for kind in ("batches", "saves"):
        (place.root / f"run.{kind}").unlink(missing_ok=True)
    if code := place.start("run", "--on-changed-data=restart").finish():
        return f"restarted, exit code {code}: {place.log('run')}"
    left = [path.name for path in (place.root / "cache").glob(f"*{old}*") if path.is_dir()]
    place.run_alone()
    return ", ".join(filter(None, [place.differences("run"), *left]))


# ---- SIGTERM and SIGUSR1 --------------------------------------------------------------------------------------------


@row(
    name="preempt",
    title="SIGTERM or SIGUSR1 at random instants of training",
    target="saves, exits with 143 or 75, takes no step twice, ends bitwise equal",
    unit="signals",
    reduced=2,
    full=50,
    broken="a signal ends the process where it is",
)
def preempt(count: int, broken: bool) -> Tally:
    """As `kill`, with signals that ask, and a look at whether any batch was taken a second time."""
    tally, options, rng = Tally(), {"broken": "deferred"} if broken else {}, random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        place, chain = Place(root), 0
        while count > 0:
            signals = min(5, count)
            name, count, chain = f"run{chain}", count - signals, chain + 1
            wrong = _ask(place, name, signals, rng, options)
            ended = end(place, name, **options)
            steps = [step for step, _ in place.lines(name, "batches")]
            if len(steps) != len(set(steps)):
                ended = f"{ended}, {len(steps) - len(set(steps))} steps taken twice".strip(", ")
            tally.check(not wrong and not ended, f"chain {chain}: {', '.join([*wrong, ended])}", times=signals)
            forget(place, name)
    return tally


def _ask(place: Place, name: str, signals: int, rng: random.Random, options: dict) -> list[str]:
    """Asks a run to stop so many times, at random instants before its end; returns what was wrong with how it ended."""
    wrong, asked = [], 0
    for _ in range(DRAWS * signals):
        number, code = ((signal.SIGTERM, 143), (signal.SIGUSR1, 75))[rng.randrange(2)]
        child = place.start(name, **options)
        child.wait_for(rng.randint(1, 1 + (STEPS - 2) * (asked + 1) // signals))
        time.sleep(rng.random() * 0.03)
        came = not (place.root / name / "report.json").exists()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.process.pid, number)
        found = child.finish()
        if not came:  # a run that had ended has nothing to save: it is begun anew, and the instant drawn again
            forget(place, name)
            continue
        wrong += [f"exit code {found}, not {code}: {place.log(name)}"] if found != code else []
        asked += 1
        if asked == signals:
            return wrong
    return [*wrong, f"{signals - asked} signals came too late, at every draw"]


# ---- Other numbers of devices ---------------------------------------------------------------------------------------


TOLERANCE = 2e-4  # of probabilities, between numbers of devices


@row(
    name="devices",
    title="a run stopped on {1, 2, 4, 8} devices and ended on {1, 2, 4, 8}",
    target=f"the same batches in the same order, probabilities within {TOLERANCE}",
    unit="pairs",
    reduced=2,
    full=16,
    broken="the order of samples follows the number of devices",
)
def devices(count: int, broken: bool) -> Tally:
    """Pairs in an order that begins with unequal ones."""
    pairs = sorted(((a, b) for a in (1, 2, 4, 8) for b in (1, 2, 4, 8)), key=lambda pair: (pair[0] == pair[1], pair))
    tally, options = Tally(), {"broken": "order"} if broken else {}
    with tempfile.TemporaryDirectory() as root:
        # Dropout draws by sample, so that it is on.
        place = Place(root, devices=0)
        batches = dict(place.lines("alone", "batches"))
        for first, second in pairs[:count]:
            if not (place.root / f"from{first}").exists():
                child = place.start(f"from{first}", devices=first, **options)
                child.wait_for(9)
                os.kill(child.process.pid, signal.SIGTERM)
                if (code := child.finish()) != 143:
                    tally.check(False, f"{first} devices: exit code {code}: {place.log(f'from{first}')}")
                    continue
            name = f"{first}to{second}"
            shutil.copytree(place.root / f"from{first}", place.root / name)
            code = place.start(name, devices=second, **options).finish()
            wrong = f"exit code {code}: {place.log(name)}" if code else ""
            if not wrong:
                seen = dict(place.lines(f"from{first}", "batches")) | dict(place.lines(name, "batches"))
                apart = _apart(place.root / name, place.root / "alone")
                wrong = "" if seen == batches else "other batches"
                wrong += "" if apart <= TOLERANCE else f" probabilities {apart:.1e} apart"
                tally.largest("largest difference of a probability", apart)
            tally.check(not wrong, f"{first} to {second} devices: {wrong}")
    return tally


def _apart(here: pathlib.Path, there: pathlib.Path) -> float:
    """Largest difference between the probabilities of two runs."""
    mine, theirs = (pl.read_parquet(folder / "predictions.parquet").select("^p_.*$") for folder in (here, there))
    return float(np.abs(mine.to_numpy() - theirs.to_numpy()).max())
