"""Trials of a search by Optuna's TPE: who runs which, what is known of them, and what the next one tries.

`journal.log` in the folder of a search is Optuna's journal. Processes that share the folder take trials by claims, so
that none is run twice; a trial whose process has ended is run again with its own keys.
"""

import contextlib
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from remind_jax.errors import UserError, needs
from remind_jax.runtime import claims, files, progress
from remind_jax.studies import spaces
from remind_jax.studies.spaces import Range, Space

_ENOUGH = 20  # trials before which what mattered is chance
_NAME = "search"  # of the study in the journal
_NUMBER, _VALUE, _SECONDS, _REASON = "number", "value", "seconds-", "reason-"  # attributes, the last two of the study


class Trial(NamedTuple):
    """A finished trial: its number from 0, the keys that it tried, its figure or why it has none, and its seconds.

    The first one tries no other keys: it is the config as it is.
    """

    number: int
    keys: Mapping[str, Any]
    value: float | None
    seconds: float
    reason: str = ""


Objective = Callable[[int, Mapping[str, Any]], float]
"""(number of the trial, keys) -> figure."""


def best_of(trials: Sequence[Trial], more: bool) -> Trial:
    """Returns the best of some trials, of equal ones the first; one without a figure only where none has one."""
    known = [trial for trial in trials if trial.value is not None]
    return min(known, key=lambda t: (-t.value if more else t.value, t.number)) if known else trials[0]


def short(value: Any) -> str:
    """Writes the value of a key."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Study:
    """Optuna's study of a search, in memory or in a journal that several processes write."""

    def __init__(self, space: Space, seed: int, more: bool, folder: pathlib.Path | None):
        self._optuna, self._space, self._seed, self._more = _import(), space, seed, more
        self._distributions = {key: self._distribution(choices) for key, choices in space.items()}
        with _quiet(self._optuna):
            self._study = self._optuna.create_study(
                storage=None if folder is None else self._journal(folder),
                study_name=_NAME,
                direction="maximize" if more else "minimize",
                load_if_exists=True,
            )

    def _journal(self, folder: pathlib.Path) -> Any:
        journal, file = self._optuna.storages.journal, str(folder / "journal.log")
        # A file and no link is its lock; one that a killed process has left is broken after half a minute.
        backend = journal.JournalFileBackend(file, lock_obj=journal.JournalFileOpenLock(file))
        try:
            return self._optuna.storages.JournalStorage(backend)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: remove {folder}, or choose another workdir") from error

    def _distribution(self, choices: spaces.Choices) -> Any:
        kinds = self._optuna.distributions
        if not isinstance(choices, Range):
            return kinds.CategoricalDistribution(choices)
        kind = kinds.IntDistribution if isinstance(choices.low, int) else kinds.FloatDistribution
        return kind(choices.low, choices.high, log=choices.log)

    def _all(self) -> dict[int, Any]:
        """Returns Optuna's trials by our numbers."""
        there = self._study.get_trials(deepcopy=False)
        return {trial.user_attrs[_NUMBER]: trial for trial in there if _NUMBER in trial.user_attrs}

    def finished(self) -> dict[int, Trial]:
        """Returns the trials that have ended, by number, in order."""
        found, told = {}, self._study.user_attrs
        for number, each in sorted(self._all().items()):
            if each.state.is_finished():
                value = each.user_attrs.get(_VALUE, each.value)
                seconds, reason = told.get(f"{_SECONDS}{number}", 0.0), told.get(f"{_REASON}{number}", "")
                found[number] = Trial(number, dict(each.params), value, seconds, reason)
        return found

    def told(self, number: int) -> str:
        """Says how a trial has ended, next to the best one so far."""
        finished = self.finished()
        trial, best = finished[number], best_of(list(finished.values()), self._more)
        shown = f"failed: {trial.reason}" if trial.value is None else f"{trial.value:.4f}"
        best_so_far = "" if best.value is None else f"  (best {best.value:.4f}, trial {best.number})"
        keys = "  ".join(f"{key}={short(value)}" for key, value in trial.keys.items() if number)
        return f"trial {number:<3} {shown}{best_so_far}  {keys or 'the config as it is'}"

    def ask(self, number: int) -> tuple[int, dict[str, Any]]:
        """Returns Optuna's number of a trial and its keys: those of the process before that has begun with it."""
        if number in (there := self._all()):
            return there[number].number, dict(there[number].params)
        # A sampler of its own, so that a search that goes on draws what it would have drawn.
        self._study.sampler = self._optuna.samplers.TPESampler(seed=(self._seed * 100_003 + number) % 2**32)
        trial = self._study.ask(self._distributions)
        trial.set_user_attr(_NUMBER, number)
        return trial.number, dict(trial.params)

    def tell(self, place: int, value: float) -> None:
        """Ends the trial with Optuna's number `place`."""
        self._study.tell(place, value)

    def fail(self, place: int, number: int, reason: str) -> None:
        """Ends a trial without a figure."""
        self._study.set_user_attr(f"{_REASON}{number}", reason)
        self._study.tell(place, state=self._optuna.trial.TrialState.FAIL)

    def add_first(self, own: Mapping[str, Any], value: float) -> None:
        """Adds the trial of the config as it is, from which Optuna learns if its own keys are in the space."""
        state, known = self._optuna.trial.TrialState, {}
        if all(spaces.holds(choices, own[key]) for key, choices in self._space.items()):
            known = {"params": dict(own), "distributions": self._distributions, "value": value}
        kind, attributes = state.COMPLETE if known else state.FAIL, {_NUMBER: 0, _VALUE: value}
        self._study.add_trial(self._optuna.trial.create_trial(state=kind, user_attrs=attributes, **known))

    def took(self, number: int, seconds: float) -> None:
        """Notes the time of a trial."""
        self._study.set_user_attr(f"{_SECONDS}{number}", round(seconds, 1))

    def importance(self) -> dict[str, float]:
        """Returns the share of each key in the spread of the figure; empty where too little is known."""
        if len(self.finished()) < _ENOUGH:
            return {}
        try:
            with _quiet(self._optuna), warnings.catch_warnings(action="ignore"):  # of figures that are all alike
                return dict(self._optuna.importance.get_param_importances(self._study))
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def _import() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise needs("optuna", "search") from error
    return optuna


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keeps Optuna's own lines back, and leaves its logging as the caller has set it."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def optimise(
    objective: Objective,
    space: Space,
    own: Mapping[str, Any],
    trials: int,
    *,
    seed: int = 0,
    more: bool = False,
    folder: pathlib.Path | None = None,
    bar: progress.Silent | None = None,
    only: int | None = None,
) -> tuple[list[Trial], dict[str, float]] | None:
    """Runs the trials of a search that are not finished; returns all of them, and how much each key mattered.

    The first trial has no keys: its figure is that of the config as it is, whose values `own` has for each key of the
    space. `more` says whether more of the figure is better; `only` names the one trial to run. A folder keeps the
    search; None comes back while other processes have trials of it under way. A trial that fails is told and not run
    again, but for failures before the first one has ended, which are raised.

    Raises UserError: Optuna is not installed, or the folder cannot be used.
    """
    if folder is not None:
        files.make_folder(folder)
    study, bar = Study(space, seed, more, folder), bar or progress.Silent()
    with claims.Claims(folder / "claims") if folder is not None else contextlib.nullcontext() as held:
        while left := sorted(set(range(trials) if only is None else [only]) - study.finished().keys()):
            took = [number for number in left if _take(study, held, number, objective, own, bar)]
            if not took and not held.wait_for_news([_claim(number) for number in left]):
                return None
    return list(study.finished().values())[:trials], study.importance()


def _claim(number: int) -> str:
    return f"trial-{number}"


def _take(
    study: Study,
    held: claims.Claims | None,
    number: int,
    objective: Objective,
    own: Mapping[str, Any],
    bar: progress.Silent,
) -> bool:
    """Runs a trial that is free; returns whether it was."""
    with held.taken(_claim(number)) if held else contextlib.nullcontext(True) as mine:
        if mine and number not in study.finished():  # by the last to hold it
            start = time.monotonic()
            _run(study, number, lambda keys: _finite(objective(number, keys)), own)
            study.took(number, time.monotonic() - start)
            bar.say(study.told(number))
            bar.advance(len(study.finished()))
        return mine


def _run(study: Study, number: int, objective: Callable[..., float], own: Mapping[str, Any]) -> None:
    """Runs a trial, or takes the figure of one with the same keys, and tells the study how it ended."""
    if number == 0:
        study.add_first(own, objective({}))
        return
    (place, keys), finished = study.ask(number), study.finished()
    known = [trial.value for trial in finished.values() if (trial.keys or own) == keys and trial.value is not None]
    try:
        study.tell(place, known[0] if known else objective(keys))
    except Exception as error:  # whatever it is, the other trials shall have their turn
        if 0 not in finished:
            raise
        study.fail(place, number, " ".join(str(error).split()) or type(error).__name__)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise UserError("the figure of the trial is not finite: take another train.select, or a narrower space")
    return float(value)


def seconds_of(folder: pathlib.Path, space: Space, seed: int, more: bool) -> list[float]:
    """Returns the seconds of the finished trials of a search; none without its folder."""
    if not (folder / "journal.log").exists():
        return []
    return [trial.seconds for trial in Study(space, seed, more, folder).finished().values() if trial.seconds]
