"""A row about the files of run folders, as others may have changed them, read by what reads them in process."""

import contextlib
import copy
import functools
import io
import json
import os
import pathlib
import random
import re
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from remind_jax import cli
from remind_jax.data import pipeline
from remind_jax.errors import UserError
from remind_jax.evaluation import finished, page
from remind_jax.inference import card, model_folder
from remind_jax.inference.model_folder import FOLDER
from remind_jax.runtime import claims, records, texts
from remind_jax.studies import comparison, results, tables
from remind_jax.studies.entries import Entry
from remind_jax.studies.record import Record
from remind_jax.studies.runner import same_settings
from remind_jax.training.run import train_and_evaluate
from remind_jax.training.run_folder import RunFolder
from remind_jax.training.trackers.tracker import Run
from tests import tiny_runs
from tests.data.manifest_files import write_manifest
from tests.reliability import Tally, row

DRAWN = 0.05  # share of the pages that are made, which takes half a second each
SECONDS = 20  # that reading a folder may take at most
_CLAIM = "claims/run.1"
# How often each file is changed, of all; those that more commands read and that hold more, more often.
_OFTEN = {
    "report.json": 8,
    f"{FOLDER}/model.json": 7,
    "config.json": 4,
    "metrics.jsonl": 3,
    _CLAIM: 1,
    "environment.json": 1,
    "sweep.json": 1,
    "tracking.json": 1,
    "predictions.parquet": 2,
    f"{FOLDER}/model.safetensors": 1,
}
_NASTY = (
    *(None, True, False, 0, 1, -1, 2, 1.5, -0.5, 1e300, -1e300, 10**15, -(10**15), 2**62, 2**64, 10**400),
    *("", " ", "x", "\0", "\x1b[31m", "\u202e", "\ud800", "é" * 300, "../x", "/", "{}", "nan", "1"),
    *([], {}, [[]], [None], {"": None}, ["x"] * 3, [0] * 5, {"a": {"b": []}}),
)
_TOKENS = ("NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "[" * 5000, '{"a":' * 3000, "undefined", "'x'", "01")


@functools.cache
def place() -> tuple[pathlib.Path, Any]:
    """A folder with two finished runs of few steps and a sweep's record, made once; and the config of the first."""
    root = pathlib.Path(tempfile.mkdtemp(prefix="records-"))
    data = write_manifest(root / "data", n=120)
    config = None
    with tiny_runs.quick_programs(root / "programs"), contextlib.redirect_stdout(io.StringIO()):
        for seed in (1, 0):
            changes = {"train__select": "last", "train__epochs": 1.0, "train__joint_epochs": 0.5, "eval__bootstrap": 5}
            arguments = tiny_runs.own_arguments(data, root / "cache", "remind", seed=seed, **changes)
            config, _ = cli.parse_config(arguments)
            train_and_evaluate(config, root / f"run{seed}", verbose=False)
    run = root / "run0"
    (run / "claims").mkdir()
    (run / _CLAIM).write_text('{"machine": "elsewhere", "host": "x", "process": 1}', encoding="utf-8")
    Record(run / "sweep.json", ["--jobs=1"], runs=["remind seed 0"], jobs=1)
    Run(run, {}).keep_id("mlflow", "abc")
    return root, config


# ---- What reads them ------------------------------------------------------------------------------------------------


def _run_again(run: pathlib.Path, config: Any) -> None:
    """What `remind train` does with a finished folder; of one that goes on, what it reads first."""
    with contextlib.closing(RunFolder(run, config.to_dict())) as folder:
        report = folder.report()
        records_there = folder.history()
        if report is not None:
            folder.show(report, again=True)
            page.cautions(report)
            if random.random() < DRAWN:
                page.render(report, records_there)
        folder.rewind(10**6)


def _open(run: pathlib.Path, config: Any) -> None:
    """What predict, export, adapt and the analyses do with a run, up to the compiled program."""
    model = model_folder.open_model(run)
    manifest = model.read(run.parent / "data")
    batch = pipeline.new_store(manifest, model.preprocessor, model.groups).take(np.arange(4))
    logits, _, _ = jax.eval_shape(lambda p, b: model.forward(p, b, model.gate), dict(model.params), batch)
    model.probabilities(np.zeros(logits.shape, np.float32), batch["group"])
    model.tabulate(manifest, np.zeros((manifest.table.height, logits.shape[1])))
    card.render(model)
    repr(model)


def _compare(run: pathlib.Path, config: Any) -> None:
    outcomes = results.read_outcomes([run, run.parent / "run1"])
    methods = list(dict.fromkeys(outcome.method for outcome in outcomes))
    found = results.collect(outcomes, methods, methods[:1], resamples=2)
    tables.markdown(found)
    tables.latex(found)
    for write in (tables.runs_csv, tables.groups_csv, tables.differences_csv, tables.calibration_csv):
        write(found)


def _sweep(run: pathlib.Path, config: Any) -> None:
    entry = Entry("remind", 0, config, run)
    if entry.finished:
        same_settings(entry)
        comparison.outcome("remind", 0, run)
        results.run_figures(entry.report())
    record = Record(run / "sweep.json", ["--jobs=1"], runs=["remind seed 0"], jobs=1)
    record.close(data="x", failed=[], seconds=1.0, folders=[run])
    Run(run, {}).known_as("mlflow")


def _claims(run: pathlib.Path, config: Any) -> None:
    with claims.Claims(run / "claims", beat=0.01, patience=0.02) as held, held.taken("run"):
        held.wait_for_news(["run"])


READERS: dict[str, tuple[Callable[[pathlib.Path, Any], None], ...]] = {
    "report.json": (_run_again, _compare, _sweep, _open),
    f"{FOLDER}/model.json": (_open,),
    "config.json": (_run_again, _compare, _sweep, _open),
    "metrics.jsonl": (_run_again,),
    _CLAIM: (_claims,),
    "environment.json": (_open, _sweep),
    "sweep.json": (_sweep,),
    "tracking.json": (_sweep,),
    "predictions.parquet": (_compare, _sweep),
    f"{FOLDER}/model.safetensors": (_open,),
}


# ---- What is done to them -------------------------------------------------------------------------------------------


def _nodes(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        if len(path) < 8:
            yield from _nodes(value, (*path, key))


def _tree(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """One node of the JSON is another value, gone, twice there, or text that is no JSON."""
    lines = content.decode().splitlines(keepends=True)
    number = rng.randrange(len(lines)) if content.count(b"\n{") else -1  # of metrics.jsonl
    text = content.decode() if number < 0 else lines[number]
    tree = json.loads(text)
    # Long lists would have all the changes.
    paths = [p for p in _nodes(tree) if not any(isinstance(k, int) and k > 2 for k in p)]
    *parts, last = rng.choice(paths) if paths else ((),)
    if not paths:
        return "nothing to change", content + b"x"
    tree = copy.deepcopy(tree)
    at = functools.reduce(lambda node, key: node[key], parts, tree)
    how = rng.choice(("value", "value", "value", "gone", "token", "twice", "moved"))
    where = ".".join(map(str, [*parts, last]))
    if how == "value":
        value = rng.choice(_NASTY)
        at[last] = value
        where += f" = {str(value)[:20]!r}"
    elif how == "gone":
        del at[last]
    elif how == "moved":
        at[last] = functools.reduce(lambda node, key: node[key], rng.choice(paths), copy.deepcopy(tree))
    else:
        at[last] = "@@@"
    new = json.dumps(tree)
    if how == "token":
        new = new.replace('"@@@"', rng.choice(_TOKENS))
    if how == "twice" and isinstance(last, str):
        new = new.replace('"@@@"', f"1, {json.dumps(last)}: 2")
    if number >= 0:
        new = "".join([*lines[:number], new + "\n", *lines[number + 1 :]])
    return f"{how} of {where}", new.encode("utf-8", "surrogatepass")


def _bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    at, how = rng.randrange(len(content)), rng.choice(("flip", "cut", "insert", "drop", "zeros", "empty", "double"))
    noise = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
    new = {
        "flip": content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
        "cut": content[:at],
        "insert": content[:at] + noise + content[at:],
        "drop": content[:at] + content[at + rng.randrange(1, 40) :],
        "zeros": content[:at] + bytes(len(content) - at),
        "empty": b"",
        "double": content + content,
    }[how]
    return f"{how} at {at}", new


def _as_file(rng: random.Random, file: pathlib.Path) -> str:
    """What stands in the place of a file is none."""
    how = rng.choice(("fifo", "folder", "link out", "link to itself", "broken link", "socket", "gone", "huge", "null"))
    file.unlink()
    if how == "fifo":
        os.mkfifo(file)
    elif how == "folder":
        file.mkdir()
    elif how == "link out":
        file.symlink_to("/etc/passwd")
    elif how == "null":
        file.symlink_to("/dev/zero")
    elif how == "link to itself":
        file.symlink_to(file.name)
    elif how == "broken link":
        file.symlink_to("nothing")
    elif how == "socket":
        os.mknod(file, 0o140644)
    elif how == "huge":
        with file.open("wb") as stream:
            stream.truncate(2**42)
    return how


@contextlib.contextmanager
def _changed(rng: random.Random, run: pathlib.Path, name: str) -> Iterator[str]:
    """Changes a file of a run, says how, and puts all files back."""
    kept = run.with_name("kept")
    if not kept.exists():
        shutil.copytree(run, kept, ignore=shutil.ignore_patterns("checkpoints"), symlinks=True)
    file = run / name
    content = file.read_bytes()
    kind = rng.random()
    try:
        if kind < 0.08:
            yield f"{name}: {_as_file(rng, file)}"
        else:
            change = _tree if kind < 0.75 and name.endswith(("json", "jsonl")) else _bytes
            what, new = change(rng, content)
            file.write_bytes(new)
            yield f"{name}: {what}"
    finally:
        _put_back(kept, run)


def _put_back(kept: pathlib.Path, run: pathlib.Path) -> None:
    """Brings the files of a run into the state that they had, by name and content; what readers have made goes."""
    for there in sorted(run.rglob("*"), reverse=True):
        if "checkpoints" in there.parts:
            continue
        same = kept / there.relative_to(run)
        if there.is_symlink() or not there.is_dir():
            if there.is_symlink() or not there.is_file() or not same.is_file() or there.stat().st_size > 2**30:
                there.unlink()
        elif not same.is_dir():
            shutil.rmtree(there)
    for same in kept.rglob("*"):
        there = run / same.relative_to(kept)
        if same.is_file() and (not there.exists() or there.read_bytes() != same.read_bytes()):
            there.write_bytes(same.read_bytes())


@contextlib.contextmanager
def _no_panic() -> Iterator[None]:
    """Sees what Rust and C write to the descriptor of standard error; a RuntimeError where that is a panic."""
    with tempfile.TemporaryFile() as seen:
        kept = os.dup(2)
        os.dup2(seen.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            seen.seek(0)
            text = seen.read().decode(errors="replace")
            if "panicked" in text:
                raise RuntimeError(text.strip().splitlines()[0])


def _tried(read: Callable[[pathlib.Path, Any], None], run: pathlib.Path, config: Any) -> str:
    """Reads a run; says what came that is neither an answer nor one line."""

    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), _no_panic():
            read(run, config)
    except UserError as error:
        line = texts.visible(" ".join(str(error).split()))  # as a command prints it
        return "" if line and not re.search("[\x00-\x1f]", line) else f"no line: {line[:80]!r}"
    except BaseException as error:  # also what Rust raises
        place_ = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:600]} ({pathlib.Path(place_.filename).name}:{place_.lineno})"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ""


@row(
    name="records",
    title="files of finished runs changed, in bytes, in JSON, in kind and size, and read by what reads them",
    target="an answer or one line, 0 tracebacks, within 20 s each",
    unit="changed files",
    reduced=60,
    full=5_000,
    broken="shapes are not compared",
)
def changed_records(count: int, broken: bool) -> Tally:
    """Changes that a seed draws, each read by all that read the file."""
    tally, rng = Tally(), random.Random(22)
    root, config = place()
    names = [name for name, often in _OFTEN.items() for _ in range(often)]
    fault = records.fault
    if broken:
        records.fault = lambda value, shape, where="": ""
    try:
        with tiny_runs.quick_programs(root / "programs"):
            for number in range(count):
                name = names[number % len(names)]
                finished._is_whole.cache_clear()
                with _changed(rng, root / "run0", name) as what:
                    for read in READERS[name]:
                        if wrong := _tried(read, root / "run0", config):
                            break
                tally.check(not wrong, f"{what}: {read.__name__}: {wrong}")
    finally:
        records.fault = fault
    tally.notes.append(", ".join(f"{names.count(name) * count // len(names)} of {name}" for name in _OFTEN))
    return tally
