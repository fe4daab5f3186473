"""The promises of `runs`, as wide as they are made: kills over methods and options, signals at every phase."""

import random
import shutil
import signal
import tempfile
import time
from typing import Any

from remind_jax.config.rules import STACKS
from remind_jax.methods import METHODS, PLAIN
from remind_jax.training.plain_models import TASKS_OF
from tests.reliability import Tally, row
from tests.reliability.runs import STEPS, Place, end, forget

# ---- SIGKILL, over methods and options ------------------------------------------------------------------------------

# What the tiny run of `runs` has not: every method, then options of training, each with what it needs. The networks of
# a stack are such runs.
_METHODS: dict[str, dict[str, Any]] = {
    name: {"method": name}
    for name in (*METHODS, *PLAIN)
    if name not in ("remind", *STACKS) and "classes" in TASKS_OF.get(name, ("classes",))
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "expert devices": {"on": 4, "devices": 4, "expert_devices": 2},
    "pmap": {"on": 4, "devices": 4, "parallel": "pmap"},
    "features on disk": {"own": True},
    "features in memory": {"own": True, "train__feature_cache": "memory", "train__feature_dtype": "float32"},
    "accumulate": {"train__accumulate": 2},
    "bfloat16": {"precision": "bfloat16"},
    "router_rank": {"fusion__router_rank": 2},
    "row_adamw": {"optim__group_rows": "batch"},
    "patience": {"train__patience": 1, "train__keep_better_stage": True},
    "track": {"train__track": "tensorboard"},
    "no average": {"optim__ema": 0.0},
    "two programs": {"programs": "two"},
    "members": {"model__members": 2, "train__hide_samples": 0.3, "objective__distill_weight": 1.0},
    "gate by share": {"fusion__gate_threshold": "auto"},
    "rows as they come": {"data__cache": "none"},
    "one stage": {"train__joint_epochs": 0.0, "train__freeze": "nothing"},
}
VARIANTS = _OPTIONS | _METHODS
_POINTS = ("in a step", "before the commit", "evaluated")
_POINTS_OF_PLAIN = ("shards", "predictions written", "report written")
_RANDOM = 2  # kills at random instants of each


@row(
    name="kill_methods",
    title="SIGKILL over all methods and the options of training",
    target="all bitwise equal",
    unit="methods and options",
    reduced=2,
    full=len(VARIANTS),
    broken="the optimizer's moments come back from a checkpoint as they were at the start",
)
def kill_methods(count: int, broken: bool) -> Tally:
    """Each is killed at three points and at two random instants, in one run, and must end as if left alone."""
    tally, rng = Tally(), random.Random(0)
    for name, changes in list(VARIANTS.items())[:count]:
        with tempfile.TemporaryDirectory() as root:
            _kill_variant(name, Place(root, **changes), tally, rng, {"broken": "moments"} if broken else {})
    tally.notes.append(f"in this order: {', '.join(list(VARIANTS)[:count])}")
    return tally


def _kill_variant(name: str, place: Place, tally: Tally, rng: random.Random, options: dict[str, Any]) -> None:
    is_plain = name in PLAIN
    if is_plain:
        shutil.rmtree(place.root / "cache")  # prepares its data anew
    done, missed = 0, []
    for point in _POINTS_OF_PLAIN if is_plain else _POINTS:
        code = place.start("run", point=point, **options).finish()
        done += code == -signal.SIGKILL
        missed += [] if code == -signal.SIGKILL else [f"never at {point!r} (exit code {code}: {place.log('run')})"]
    for _ in range(_RANDOM):
        child = place.start("run", **options)
        child.wait_for(-1 if is_plain else rng.randint(STEPS // 3, STEPS))
        time.sleep(rng.random() * (0.5 if is_plain else 0.06))
        child.process.kill()
        done += child.finish() == -signal.SIGKILL
    wrong = end(place, "run", **options)
    tally.check(not (wrong or missed), f"{name}: {', '.join([*missed, wrong])}", times=max(done, 1))


# ---- Signals at every phase -----------------------------------------------------------------------------------------

# What a command ends with. A reader that has gone away is no signal that Python lets through.
CODES = {
    signal.SIGTERM: 143,
    signal.SIGUSR1: 75,
    signal.SIGINT: 130,
    signal.SIGHUP: 129,
    signal.SIGPIPE: 141,
    signal.SIGSTOP: 0,
}
# Phases, as points to come to, with what `Child` needs for it.
PHASES: dict[str, dict[str, Any]] = {
    "beginning": {"point": "config written"},
    "preparation": {"point": "shards"},
    "compilation": {"point": "before a step", "delay": 0.2},
    "training": {"point": "in a step", "occurrence": 2},
    "evaluation in training": {"point": "evaluation"},
    "save": {"point": "save begun"},
    "a second one before the commit": {"point": "in a step", "again": "before the commit"},
    "features": {"point": "features"},
    "held-out rows": {"point": "held-out rows read"},
    "report": {"point": "predictions written"},
    "end of the report": {"point": "report written"},
}
_TRAINS = ("compilation", "training", "evaluation in training", "save", "a second one before the commit")
_INSTANTS = 5  # of each signal, at random
_IMPATIENT = {signal.SIGINT: 1}  # steps that a second one may cost: it ends the save
_STOPPED = "stopped; run the same command again to go on"
_FIRST_SIGNALS = (
    "when the row was made, only SIGSTOP passed of the six signals (11 of 66): SIGHUP ended the run without a word at "
    "all 11 phases, SIGINT without a save (8 steps taken twice), SIGTERM and SIGUSR1 with -15 and -10 before training, "
    "a second one broke the save off (1 step), a closed pipe was told as a full disk (2) or ended with 1; after the "
    "first repair 1 of 5 random SIGTERM fell into a callback of the garbage collector, which printed a traceback"
)


@row(
    name="signals",
    title="SIGTERM, SIGUSR1, SIGINT, SIGHUP, a closed pipe, SIGSTOP and SIGCONT at every phase of a run",
    target="exit 143, 75, 130, 129, 141, 0, one line, no traceback; no step taken twice; ends bitwise equal",
    unit="signals",
    reduced=1,
    full=len(CODES),
    broken="a signal ends the process where it is",
)
def signals(count: int, broken: bool) -> Tally:
    """For each a run that is asked at all phases in turn, and one at random instants from its beginning to its end."""
    tally, rng, options = Tally(), random.Random(0), {"broken": "deferred"} if broken else {}
    with tempfile.TemporaryDirectory() as root:
        place = Place(root, own=True)
        for number in list(CODES)[:count]:
            shutil.rmtree(place.root / "cache")  # prepares its data anew
            _ask_at_phases(place, tally, number, options)
            _ask_at_random(place, tally, number, rng, options)
    tally.notes.append(f"phases: {', '.join(PHASES)}; and {_INSTANTS} random instants")
    tally.notes.append(_FIRST_SIGNALS)
    return tally


def _ask_at_phases(place: Place, tally: Tally, number: signal.Signals, options: dict[str, Any]) -> None:
    name, wrong = number.name, []
    for phase, where in PHASES.items():
        if phase == "features":  # made by now if the run has come so far
            for features in (place.root / "cache").glob("features-*"):
                shutil.rmtree(features)
        before, asked = _size(place, name), place.root / f"{name}.asked"
        asked.unlink(missing_ok=True)
        code = place.start(name, sends=(number,), **where, **options).finish()
        if not asked.exists():  # the run was beyond this phase
            forget(place, name)
            before, code = 0, place.start(name, sends=(number,), **where, **options).finish()
        found = _fault(place, name, before, code, number)
        wrong += [f"{phase}: {found}"] if found else []
        # What ends nothing, or is seen only when all is done, leaves the next phase a run of its own.
        if (place.root / name / "report.json").exists():
            wrong += [f"{phase}: {found}"] if (found := place.differences(name)) else []
            forget(place, name)
    wrong += _ends(place, name, number, options)
    tally.check(not wrong, f"{name}: {'; '.join(wrong)}", times=len(PHASES))


def _ask_at_random(
    place: Place, tally: Tally, number: signal.Signals, rng: random.Random, options: dict[str, Any]
) -> None:
    """Asks a run so many times; one that has ended before it was asked is begun anew."""
    name, done, wrong = f"{number.name} at random", 0, []
    while done < _INSTANTS:
        before, asked = _size(place, name), place.root / f"{name}.asked"
        asked.unlink(missing_ok=True)
        code = place.start(name, sends=(number,), point="begun", delay=rng.uniform(0.01, 6), **options).finish()
        if not asked.exists():
            # The signal may find a run that has written its report and has not gone yet.
            wrong += [f"exit code {code}: {place.log(name)}"] if code not in (0, CODES[number]) else []
            forget(place, name)
            continue
        done += 1
        found = _fault(place, name, before, code, number)
        wrong += [found] if found else []
    wrong += _ends(place, name, number, options)
    tally.check(not wrong, f"{name}: {'; '.join(wrong)}", times=_INSTANTS)


def _fault(place: Place, name: str, before: int, code: int, number: signal.Signals) -> str:
    """What is wrong with how a run that was asked has ended."""
    said = (place.root / f"{name}.log").read_text(encoding="utf-8")[before:]
    if code != CODES[number]:
        return f"exit code {code}, not {CODES[number]}: {said[-300:]}"
    if "Traceback" in said or "Exception ignored" in said:
        return f"a traceback: {said[-600:]}"
    lines, wanted = said.count(_STOPPED), {number != signal.SIGSTOP}
    if number == signal.SIGPIPE and (place.root / name / "report.json").exists():
        wanted = {0}  # nobody is left to be told that all is done
    return f"{lines} lines that it was stopped" if lines not in wanted else ""


def _ends(place: Place, name: str, number: signal.Signals, options: dict[str, Any]) -> list[str]:
    """Lets a run go on to its end; what is wrong with it."""
    wrong = end(place, name, **options)
    steps = [step for step, _ in place.lines(name, "batches")]
    twice = len(steps) - len(set(steps)) - _IMPATIENT.get(number, 0)
    forget(place, name)
    return [text for text in (wrong, f"{twice} steps taken twice" if twice > 0 else "") if text]


def _size(place: Place, name: str) -> int:
    file = place.root / f"{name}.log"
    return len(file.read_text(encoding="utf-8")) if file.exists() else 0
