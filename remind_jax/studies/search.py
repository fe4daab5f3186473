"""Searches keys of a config: trials by rows out of fold, and then the config with the keys that were best.

A search has a folder: the journal of `studies.trials`, `trials.csv`, and `trial-3/fold-0`, a run like any other. Trials
never read held-out rows. With few rows each trains on all but one of several folds of train and tuning rows in turn and
is judged by what it predicts of the folds; with many it is judged by the tuning rows.
"""

import copy
import csv
import dataclasses
import io
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from remind_jax import cli, methods, tasks
from remind_jax.config import complete, set_values, value_of
from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.data.findings import listed
from remind_jax.data.manifest import Manifest
from remind_jax.errors import UserError
from remind_jax.evaluation import finished
from remind_jax.runtime import cluster, files, jobs, progress, records
from remind_jax.studies import engines, runner, spaces, trials
from remind_jax.studies.comparison import outcome
from remind_jax.studies.entries import Entry, Options
from remind_jax.studies.spaces import Space
from remind_jax.studies.trials import Trial, best_of, short
from remind_jax.tasks.task import Task
from remind_jax.training import cost
from remind_jax.training.run_folder import changed_keys

FEW = 5_000
"""Number of train and tuning rows below which trials are judged out of fold, and not by the tuning rows."""
FOLDS = 3
_RESAMPLES = 20  # for the intervals of a trial, which nobody reads
_WEIGHTS = ("checkpoints", "model")
_TRIAL = "from remind_jax.studies import search; search.child()"


class Predictions(NamedTuple):
    """Predictions [n, p] of the tuning rows of a run, whose labels are [n, ...]."""

    task: Task
    labels: np.ndarray
    values: np.ndarray


Train = Callable[[Any, pathlib.Path | None], Predictions]
"""Trains the run of a config, in a folder or in memory, and predicts its tuning rows."""


class Rows(NamedTuple):
    """The rows that judge trials: how many, and into how many folds they are dealt; 1 takes the tuning rows."""

    count: int
    folds: int

    @property
    def told(self) -> str:
        """Says which they are."""
        return f"{self.count:,} tuning rows" if self.folds == 1 else f"{self.count:,} rows in {self.folds} folds"


class Asked(NamedTuple):
    """What a user asks of a search: the number of trials, the space as he writes it, and the keys that he has set."""

    trials: int
    space: str = ""
    given: Collection[str] = ()


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
      name: of what was searched.
      trials: all of them, by number.
      figure, more: what they are judged by, and whether more of it is better.
      rows: that judge them.
      importance: share of each key in the spread of the figure, as far as it could be told.
    """

    name: str
    trials: Sequence[Trial]
    figure: str
    more: bool
    rows: Rows
    importance: Mapping[str, float]

    @property
    def best(self) -> Trial:
        """The best trial."""
        return best_of(self.trials, self.more)

    @property
    def told(self) -> str:
        """Says how the keys were chosen, and which mattered."""
        best, failed = self.best, sum(trial.value is None for trial in self.trials)
        keys = ", ".join(f"{key}={short(value)}" for key, value in best.keys.items())
        ranked = sorted(self.importance.items(), key=lambda each: -each[1])
        mattered = ", ".join(f"{key} {share:.2f}" for key, share in ranked if share >= 0.01)
        said = f"{self.name}: chosen among {len(self.trials)} trials by {self.figure} of {self.rows.told}"
        said += f": {best.value:.4f} in trial {best.number}, {self.trials[0].value:.4f} of the config as it is"
        said += f"; keys: {keys}" if best.number else "; the config stays as it is"
        said += f"; shares in the spread: {mattered}" if mattered else ""
        return said + (f"; {failed} failed" if failed else "")

    def table(self, most: int = 0) -> list[list[str]]:
        """Returns a head and trials as rows of text: all, or the last `most` that were the best so far."""
        names = list(dict.fromkeys(key for trial in self.trials for key in trial.keys))
        lines, best = [], self.trials[0]
        for trial in self.trials:
            before, best = best, best_of([best, trial], self.more)
            if most and best is before and trial.number:
                continue
            shown = [trial.reason if x is None else f"{x:.4f}" for x in (trial.value, best.value)]
            keys = [short(trial.keys.get(name, "")) for name in names]
            lines.append([str(trial.number), *shown, f"{trial.seconds:.0f}", *keys])
        return [["trial", self.figure, "best so far", "seconds", *names], *lines[-most:]]


def rows_of(manifest: Manifest, config: Any) -> Rows:
    """Says which rows judge trials. Raises UserError: the data cannot be split."""
    sides = splits.make_splits(manifest, config.seed, config.data.fractions, config.data.split)
    used, tuning = int((sides != splits.HELD_OUT).sum()), int((sides == splits.TUNING).sum())
    return Rows(used, FOLDS) if used < FEW or not tuning else Rows(tuning, 1)


def with_keys(config: Any, keys: Mapping[str, Any]) -> Any:
    """Returns a copy of a config with other keys."""
    found = copy.deepcopy(config)
    set_values(found, keys)
    return found


def of_fold(config: Any, rows: Rows, fold: int) -> Any:
    """Returns the config of a trial's run on one fold, which leaves held-out rows unread."""
    found = with_keys(config, {"data.folds": rows.folds})
    if config.method == "remind_blend":  # whose keys are those of its networks
        found = methods.in_stack(found, "remind_plus", fold)
    found.data.fold = fold
    found.eval.update(adjust_prior="none", recalibrate="none", coverage=0.0, bootstrap=_RESAMPLES)
    found.train.track = ""
    return found


def find(
    config: Any,
    manifest: Manifest,
    asked: Asked,
    train: Train,
    folder: pathlib.Path | None,
    verbose: bool = True,
    on_changed_data: str = "refuse",
) -> tuple[Any, Found] | None:
    """Searches the keys of a config on the rows of a manifest; returns the config with the best ones, and the search.

    `folder` keeps the search, None nothing. None comes back while other processes have trials under way. A folder with
    a search of other rows begins anew if `on_changed_data` is `restart`.

    Raises UserError: the method has no space, the space is none, Optuna is not installed, the folder holds another
    search, or the first trial fails.
    """
    space, rows, figure = _prepared(config, manifest, asked, folder, on_changed_data)
    name = f"{config.method} seed {config.seed}"
    with progress.make(asked.trials, "trials", verbose) as bar:
        bar.say(f"Searching {name}: {asked.trials} trials by {figure} of {rows.told}")
        bar.say(f"  {','.join(f'{key}={text}' for key, text in spaces.written(space).items())}")
        ended = _optimise(config, (space, rows, figure), asked.trials, train, folder, bar)
        if ended is None:
            bar.say(f"{name}: the last trials are under way elsewhere")
            return None
        found = Found(name, ended[0], figure, tasks.SELECT[figure], rows, ended[1])
        bar.say(found.told)
    if folder is not None:
        _write_table(folder / "trials.csv", found)
    keys = found.best.keys if found.best.number else {}
    return with_keys(config, {**keys, "chosen_among": asked.trials}), found


def _optimise(
    config: Any,
    prepared: tuple[Space, Rows, str],
    number: int,
    train: Train,
    folder: pathlib.Path | None,
    bar: progress.Silent,
    only: int | None = None,
) -> tuple[Sequence[Trial], Mapping[str, float]] | None:
    """Runs the trials, or `only` one, of a search as `_prepared` describes it; returns what `trials.optimise` does."""
    space, rows, figure = prepared

    def objective(number: int, keys: Mapping[str, Any]) -> float:
        path = None if folder is None else folder / f"trial-{number}"
        return _judge(with_keys(config, keys), rows, figure, train, path)

    own = {key: value_of(config, key) for key in space}
    options = {"seed": config.seed, "more": tasks.SELECT[figure], "folder": folder, "bar": bar, "only": only}
    return trials.optimise(objective, space, own, number, **options)


def _prepared(
    config: Any, manifest: Manifest, asked: Asked, folder: pathlib.Path | None = None, on_changed_data: str = "refuse"
) -> tuple[Space, Rows, str]:
    """Returns the space of a search, the rows that judge it, and the figure by which they do; a folder keeps them."""
    if not spaces.searches(config.method):
        raise UserError(f"method={config.method} has nothing to search: it chooses or weighs by tuning rows itself")
    kinds = {modality.kind for modality in manifest.schema.modalities}
    space = spaces.read_space(asked.space, config, asked.given, kinds)
    figure = "loss" if config.train.select == "last" else config.train.select
    tasks.check_select(manifest.schema.task, figure)
    rows = rows_of(manifest, config)
    if folder is not None:
        settings = {**of_fold(config, rows, 0).to_dict(), "space": spaces.written(space), "rows": manifest.digest}
        _keep_settings(folder, settings, on_changed_data)
    return space, rows, figure


def _judge(config: Any, rows: Rows, figure: str, train: Train, path: pathlib.Path | None) -> float:
    """Trains a config on all but each fold in turn; returns the figure of the rows that judge, NaN without one.

    Weights of its runs are removed, of which a search would fill the disk; reports and predictions stay.
    """
    parts = []
    for fold in range(rows.folds):
        own = None if path is None else path / f"fold-{fold}"
        if own is not None and finished.is_there(own):
            parts.append(of_folder(own))
            continue
        parts.append(train(of_fold(config, rows, fold), own))
        for name in _WEIGHTS if own is not None else ():
            shutil.rmtree(own / name, ignore_errors=True)
    labels, values = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    value = parts[0].task.tuning(labels, values)[figure]
    return math.nan if value is None else value


def _keep_settings(folder: pathlib.Path, settings: Mapping[str, Any], on_changed_data: str) -> None:
    """Writes what a search is of, or refuses (UserError) a folder that holds another one."""
    file, now = folder / "search.json", json.loads(json.dumps(settings))
    changed = changed_keys(records.read(file, {}, "remove the folder", default=now), now)
    if changed.keys() == {"rows"} and on_changed_data == "restart":
        files.remove(folder)
    elif changed:
        what = [key if key == "rows" else f"{key} ({was!r} there, {now!r} now)" for key, (was, now) in changed.items()]
        raise UserError(f"{folder} holds a search of other settings: {listed(what, 8)}; choose another workdir")
    files.make_folder(folder, private=True)
    files.write_text(file, json.dumps(now))


def _write_table(file: pathlib.Path, found: Found) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(found.table())
    files.write_text(file, text.getvalue())


def of_folder(folder: pathlib.Path) -> Predictions:
    """Reads the predictions of a finished run."""
    found = outcome("", 0, folder)
    return Predictions(found.task, found.samples.labels, found.samples.probabilities)


# ---- Of sweeps -------------------------------------------------------------------------------------------------------


def run(
    entries: Sequence[Entry], workdir: pathlib.Path, options: Options, asked: Asked, command: Sequence[str]
) -> None:
    """Searches the keys of every network of a sweep, and then runs the sweep with them, see `runner.run`.

    Plain models and stacks are run as they are. Processes that share the sweep share the trials, and a cluster runs
    each as a task. Raises UserError as `find` and `runner.run` do, or if a task of the cluster fails.
    """
    entries, options = runner.learning(entries, options), options._replace(whole=False)
    if options.jobs > 1:
        raise UserError(f"--search with --jobs={options.jobs}: start it {options.jobs} times with --share instead")
    if not any(spaces.searches(entry.config.method) for entry in entries):
        raise UserError("--search: none of the methods has keys to search")
    with jobs.hold(workdir, shared=options.share):
        if options.ray is not None:
            _run_on_cluster([entry for entry in entries if spaces.searches(entry.config.method)], asked, options)
        found = [_of_entry(entry, asked, options.on_changed_data) for entry in entries]
    if None in found:
        print("The last process to end runs what was chosen")
        return
    runner.run([entry for entry, _ in found], workdir, options, command, [search for _, search in found if search])


def _of_entry(entry: Entry, asked: Asked, on_changed_data: str) -> tuple[Entry, Found | None] | None:
    """Returns an entry with the keys that were chosen, and its search, if it has one; None as `find`."""
    if not spaces.searches(entry.config.method):
        return entry, None
    found = find(
        entry.config, datasets.read(entry.config), asked, _train, _folder(entry), on_changed_data=on_changed_data
    )
    if found is None:
        return None
    config, search = found
    name = f"{entry.method}-of{asked.trials}-seed{entry.seed}"  # more trials may choose other keys
    return entry._replace(config=config, folder=entry.folder.with_name(name)), search


def _train(config: Any, folder: pathlib.Path | None) -> Predictions:
    runner.run_config(config, folder, verbose=False)
    return of_folder(folder)


def _folder(entry: Entry) -> pathlib.Path:
    return entry.folder.with_name(f"{entry.folder.name}-search")


def _run_on_cluster(entries: Sequence[Entry], asked: Asked, options: Options) -> None:
    """Runs the trials of all searches that have not ended, each as a task; the first of a search before its others."""
    work: list[cluster.Work] = []
    given: list[tuple[str, int, trials.Study]] = []
    for entry in entries:
        config, folder, first = entry.config, _folder(entry), len(work)
        space, _, figure = _prepared(config, datasets.read(config), asked, folder, options.on_changed_data)
        study = trials.Study(space, entry.seed, tasks.SELECT[figure], folder)
        left = sorted(set(range(asked.trials)) - study.finished().keys())
        text = json.dumps([config.to_dict(), asked.trials, asked.space, sorted(asked.given)])
        for number in left:
            command = [sys.executable, "-c", _TRIAL, str(folder), str(number)]
            job = jobs.Job(command, folder / f"trial-{number}.log", text)
            work.append(cluster.Work(job, engines.gpus_of(entry), first if number and 0 in left else None))
            given.append((entry.name, number, study))
    if work:
        _watch(work, given, options.ray)


def _watch(work: Sequence[cluster.Work], given: Sequence[tuple[str, int, trials.Study]], where: cluster.Given) -> None:
    """Shows how trials on a cluster end, each given by its search's name, its number and its study.

    Raises UserError: a first trial fails, with which the others end, or others have no end in the journal.
    """
    failed, running, done = [], set(), 0
    with progress.make(len(work), "trials") as bar:
        bar.say(f"{len(work)} trials, as many at a time as the cluster has room for")
        for event in cluster.run_all(work, where):
            name, number, study = given[event.job]
            trial = f"{name} trial {number}"
            (running.discard if event.ended or event.error else running.add)(trial)
            done += event.ended
            if event.ended and event.error and number == 0:
                raise UserError(f"{name}: the first trial failed: {event.error}")
            if event.ended and event.error:
                failed.append(f"{trial}: {event.error}")
            if event.error:
                bar.say(f"{trial}: {event.error}")
            elif event.ended:
                bar.say(f"{name}: {study.told(number)}")
            bar.advance(done, ", ".join(sorted(running)))
    if failed:
        told = f"{len(failed)} of {len(work)} trials are open: the same command runs them again"
        raise UserError(f"{told}: {'; '.join(failed)}")


def child() -> None:
    """Does the work of a process that runs a trial on a cluster, see `_TRIAL`."""
    jobs.end_with_parent()
    cli.run(try_given, None)


def try_given(arguments: Sequence[str]) -> None:
    """Runs one trial of the search that is on standard input as JSON; the arguments are its folder and number.

    Raises UserError: as `find`, or another process has the trial under way.
    """
    folder, number = pathlib.Path(arguments[0]), int(arguments[1])
    values, count, space, given = json.loads(sys.stdin.read())
    config, asked = complete(values), Asked(count, space, given)
    prepared = _prepared(config, datasets.read(config), asked, folder)
    with progress.make(count, "trials") as bar:
        if _optimise(config, prepared, count, _train, folder, bar, only=number) is None:
            raise UserError(f"trial {number} of {folder} is under way elsewhere: give the same command later")


def plan(entries: Sequence[Entry], asked: Asked) -> str:
    """Says what the searches of a sweep would cost; nothing is trained.

    Hours are those of finished trials in the sweep's folder; without any only operations are known.
    """
    return "\n".join(_planned(entry, asked) for entry in entries)


def _planned(entry: Entry, asked: Asked) -> str:
    config, name = entry.config, entry.name
    if not spaces.searches(config.method):
        return f"{name}: no search, one run"
    manifest = datasets.read(config)
    space, rows, figure = _prepared(config, manifest, asked)
    runs, work = asked.trials * rows.folds, cost.make_plan(config).train_flops
    said = f"{name}: {asked.trials} trials by {figure} of {rows.told}, {runs} runs and one more, "
    said += f"{runs + 1} × {work / 1e12:.3f} TFLOP at most, {asked.trials + 1} programs to compile; "
    seconds = trials.seconds_of(_folder(entry), space, config.seed, tasks.SELECT[figure])
    if not seconds:
        return said + "hours are known after a trial: --trials=1 without --plan runs the first"
    hours = asked.trials * sum(seconds) / len(seconds) / 3600
    return said + f"{hours:.2f} hours by {len(seconds)} finished trials of {sum(seconds) / len(seconds):.0f} s"
