"""Gaps under named protocols for `analyse robustness`: whole modalities vanish, or parts within them.

A modality of each row, drawn anew each time, stays as it is: under MAR what goes depends on its level, and where whole
modalities vanish it is the one that is left. Of a row with one modality nothing vanishes whole; its parts may go, and
under MAR they have the chances of a middling level. Levels are ranks among the held-out samples, from 0 to 1.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from remind_jax.analysis import command
from remind_jax.analysis.command import GRID, QUIET, Options, Row
from remind_jax.analysis.opening import Run
from remind_jax.data import missingness
from remind_jax.data.manifest import decode
from remind_jax.data.pipeline import Store
from remind_jax.errors import UserError, did_you_mean
from remind_jax.evaluation import differences, intervals
from remind_jax.evaluation.intervals import Gamma, Weighted
from remind_jax.evaluation.report import plain_title
from remind_jax.studies.tables import signed
from remind_jax.tasks.task import Task

SPLIT = "held_out"
WHOLE, WITHIN = MODES = ("whole modalities", "within modalities")
LOOKS = {"mcar": ("#0072B2", "o"), "mar": ("#D55E00", "^"), "mnar": ("#009E73", "s"), "segments": ("#7A5195", "D")}
_BLOCK = 256  # rows whose inputs are looked at at a time
ENDS = ("", "_low", "_high")
COLUMNS = (
    *("run", "method", "seed", "gaps", "protocol", "rate", "realised", "n", "n_lost", "figure"),
    *(f"{part}{end}" for part in ("value", "difference") for end in ENDS),
    *("p", "p_holm"),
)


class May(NamedTuple):
    """What may go, [u] each: its row and its modality, int, its place by time, and the rank of its value in [0, 1]."""

    row: np.ndarray
    modality: np.ndarray
    time: np.ndarray
    rank: np.ndarray


class Held(NamedTuple):
    """Held-out rows: inputs, modalities bool [n, m], their levels [n, m], raw columns by name, what may go by mode."""

    store: Store
    presence: np.ndarray
    levels: np.ndarray
    raw: dict[str, dict[str, np.ndarray]]
    may: dict[str, May]


class Gaps(NamedTuple):
    """What is left: inputs, modalities bool [n, m], which rows lost something, and the share of what could go."""

    store: Store
    presence: np.ndarray
    changed: np.ndarray
    realised: float


def protocols_of(text: str) -> list[str]:
    """Reads names of protocols, `none` for none. Raises UserError: there is no such protocol."""
    names = [] if text == "none" else list(dict.fromkeys(filter(None, text.split(","))))
    for name in names:
        if name not in missingness.PROTOCOLS:
            known = ", ".join((*missingness.PROTOCOLS, "none"))
            raise UserError(f"--protocols: {name!r} is none of {known}{did_you_mean(name, missingness.PROTOCOLS)}")
    return names


def rates_of(text: str) -> list[float]:
    """Reads rates between 0 and 1. Raises UserError: they are others."""
    try:
        rates = sorted({float(rate) for rate in text.split(",")})
    except ValueError:
        rates = [-1.0]
    if not 0 < rates[0] <= rates[-1] <= 1:
        raise UserError(f"--rates={text} must be shares above 0 and up to 1, such as 0.2,0.5")
    return rates


def held(run: Run) -> Held:
    """Decodes the held-out rows of a run, of the modalities whose parts may go, and ranks what they hold."""
    rows, data = run.data.rows(SPLIT), run.data
    store, presence = data.stores[SPLIT], data.manifest.presence[rows]
    raw, parts, levels = {}, [], np.full(presence.shape, 0.5)
    for j, (name, fitted) in enumerate(data.preprocessor.fitted.items()):
        here = np.flatnonzero(presence[:, j])
        if not len(here):
            continue
        if fitted.has_parts:
            raw[name] = decode(data.manifest, rows, labels=False, modalities=(name,))
            found = data.preprocessor.parts(raw[name], name)
            rank = missingness.ranked(found.column, found.value)
            parts.append(May(found.row, np.full(len(found.row), j), found.time, rank))
            values = missingness.mean_of_parts(found.row, rank, len(rows))[here]
        else:
            values = _means(store, name, here)
        levels[here, j] = missingness.ranked(np.zeros(len(here), int), values)
    row, j = np.nonzero(presence)
    may = {WHOLE: May(row, j, j.astype(np.float64), levels[row, j])}
    may |= {WITHIN: May(*map(np.concatenate, zip(*parts, strict=True)))} if parts else {}
    return Held(store, presence, levels, raw, may)


def _means(store: Store, name: str, rows: np.ndarray) -> np.ndarray:
    """Returns what `missingness.sizes` says of inputs without parts, [k]."""
    found = [store.take(rows[i : i + _BLOCK])[name] for i in range(0, len(rows), _BLOCK)]
    return np.concatenate([missingness.sizes(x) for x in found])


def take_away(run: Run, rows: Held, mode: str, protocol: str, rate: float, rng: np.random.Generator) -> Gaps:
    """Takes something from held-out rows, see above."""
    may, shape, count = rows.may[mode], rows.presence.shape, rows.presence.sum(axis=1)
    stays = missingness.kept(rows.presence, rng)
    level = np.where(count > 1, rows.levels[np.arange(len(stays)), stays], 0.5)
    able = (stays[may.row] != may.modality) | ((mode == WITHIN) & (count[may.row] == 1))
    row, j, time, rank = (each[able] for each in may)
    owner = row * shape[1] + (j if mode == WITHIN else 0)
    gone = np.zeros(len(able), bool)
    gone[able] = missingness.lost(protocol, rate, owner, time, rank, level[row], rng)
    had, kept = (np.zeros(shape, int), np.zeros(shape, int))
    np.add.at(had, (may.row, may.modality), 1)
    np.add.at(kept, (may.row, may.modality), ~gone)
    left, store = rows.presence & ((had == 0) | (kept > 0)), rows.store
    if mode == WITHIN:
        names, encode = run.data.groups.modalities, run.data.preprocessor.encode_without
        places = {name: may.modality == names.index(name) for name in rows.raw}
        store = store.replaced({name: encode(rows.raw[name], name, gone[at]) for name, at in places.items()})
    changed = np.isin(np.arange(len(left)), may.row[gone])
    return Gaps(store, left, changed, float(gone[able].mean()) if able.any() else 0.0)


def effects(run: Run, protocols: Sequence[str], rates: Sequence[float], options: Options) -> Iterator[list[Row]]:
    """Yields for each mode, protocol and rate a row for each figure: it, and its difference to that without gaps.

    Figures are means over draws; intervals and p are of patients drawn together, the draws held fixed.
    """
    rows, at = held(run), run.data.rows(SPLIT)
    labels, everyone = run.data.manifest.labels[at], np.arange(len(at))
    patients = run.data.manifest.table[run.data.manifest.schema.patient_id].to_numpy()[at]
    full = run.model.predict_parts(rows.store, everyone, rows.presence)
    resamples = run.config.eval.bootstrap if intervals.enough(patients) else 0
    rare = {f"{name}{end}": k for name, k in run.task.rarer(labels, patients).items() for end in ("", " difference")}
    for mode, protocol, rate in itertools.product(rows.may, protocols, rates):
        predictions, realised, lost = [full], [], []
        for draw in range(options.draws):
            rng = np.random.default_rng((options.seed, draw, MODES.index(mode), missingness.PROTOCOLS.index(protocol)))
            found = take_away(run, rows, mode, protocol, rate, rng)
            changed = np.flatnonzero(found.changed)
            predictions.append(full.copy())
            predictions[-1][changed] = run.model.predict_parts(found.store, changed, found.presence[changed])
            realised.append(found.realised)
            lost.append(len(changed))
        compared = functools.partial(_compared, [_figures(run.task, labels, each) for each in predictions])
        drawn = differences.drawn_together(compared, patients, rare=rare, seed=options.seed, resamples=resamples)
        common = command.identity(run) | {"gaps": mode, "protocol": protocol, "rate": rate, "n": len(at)}
        common |= {"realised": float(np.mean(realised)), "n_lost": float(np.mean(lost))}
        yield [common | {"figure": name} | _cells(drawn, name) for name in (*run.task.compared, "loss")]


def _figures(task: Task, labels: np.ndarray, predictions: np.ndarray) -> Weighted:
    """Makes the figures by which runs are compared and weights are chosen, of all rows under weights [r, n]."""
    of, losses, everyone = task.weighed(labels, predictions), task.losses(labels, predictions), np.arange(len(labels))

    def figures(weights: np.ndarray, gamma: Gamma | None = None) -> dict[str, np.ndarray]:
        found = of(everyone, weights, gamma)
        return {name: found[name] for name in task.compared} | {"loss": weights @ losses / weights.sum(axis=1)}

    return figures


def _compared(of: Sequence[Weighted], weights: np.ndarray, gamma: Gamma | None = None) -> dict[str, np.ndarray]:
    """Returns the mean of each figure over all but the first of several predictions, and that less the first."""
    whole, *others = (one(weights, gamma) for one in of)
    means = {name: np.mean([each[name] for each in others], axis=0) for name in whole}
    return means | {f"{name} difference": means[name] - whole[name] for name in whole}


def _cells(drawn: dict[str, differences.Drawn], name: str) -> Row:
    found: Row = {"p": drawn[f"{name} difference"].p}
    for part, key in (("value", name), ("difference", f"{name} difference")):
        bounds = drawn[key].ci or (None, None)
        found |= dict(zip((f"{part}{end}" for end in ENDS), (drawn[key].value, *bounds), strict=True))
    return found


def summary(rows: Sequence[Row], task: Task) -> str:
    """Returns what a terminal shows: the rate that came about, the leading figure, and its difference to no gaps."""
    lead, title = next(iter(task.compared.items()))
    lines = [
        f"{'gaps, protocol':<32} {'asked':>6} {'met':>6} {plain_title(title)[:12]:>12} {'less no gaps (95 %)':>26}"
    ]
    for row in (row for row in rows if row["figure"] == lead):
        apart = "-" if row["difference"] is None else signed(row["difference"], task)
        if row["difference_low"] is not None:
            apart += f" ({signed(row['difference_low'], task)} to {signed(row['difference_high'], task)})"
        name = f"{row['gaps']}, {row['protocol']}"
        lines.append(
            f"{name:<32} {row['rate']:>6.2f} {row['realised']:>6.2f} {task.shown(row['value']):>12} {apart:>26}"
        )
    return "\n".join(lines)


def draw(found: dict[str, list[Row]], title: str, task: Task) -> "command.Figure":
    """Draws the leading figure's difference to no gaps over the rate that came about, a column a run, a line a mode."""
    lead, name = next(iter(task.compared.items()))
    modes = [mode for mode in MODES if any(row["gaps"] == mode for rows in found.values() for row in rows)]
    figure = command.new_figure(1.0 + 3.6 * len(found), 1.2 + 2.5 * len(modes))
    axes = figure.subplots(len(modes), len(found), squeeze=False, sharex=True, sharey=True)
    for column, (label, rows) in enumerate(found.items()):
        axes[0, column].set_title(label, fontsize=10, fontweight="bold")
        axes[-1, column].set_xlabel("share that went")
        for axis, mode in zip(axes[:, column], modes, strict=True):
            _draw_mode(axis, [row for row in rows if row["gaps"] == mode and row["figure"] == lead])
            axis.set_ylabel(f"{mode}\nchange in {plain_title(name)}" if not column else "")
    shown = [each for each in LOOKS if any(row["protocol"] == each for rows in found.values() for row in rows)]
    figure.suptitle(f"{title}\n", fontsize=10.5)
    command.name_marks(figure, shown, [LOOKS[each] for each in shown])
    return figure


def _draw_mode(axis: "command.Axes", rows: Sequence[Row]) -> None:
    for shift, (protocol, (colour, mark)) in enumerate(LOOKS.items()):
        some = [row for row in rows if row["protocol"] == protocol and row["difference"] is not None]
        at = [row["realised"] + 0.008 * (shift - 1.5) for row in some]  # apart, so that bars can be told
        axis.plot(at, [row["difference"] for row in some], marker=mark, color=colour, lw=1.2, ms=4)
        bars = [(x, row) for x, row in zip(at, some, strict=True) if row["difference_low"] is not None]
        low, high = ([row[f"difference{end}"] for _, row in bars] for end in ENDS[1:])
        axis.vlines([x for x, _ in bars], low, high, color=colour, lw=0.9, alpha=0.6)
    axis.axhline(0.0, color=QUIET, lw=0.8)
    axis.grid(axis="y", color=GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
