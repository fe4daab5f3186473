"""Builds a stack: its candidates are trained on each fold and weighed by what they predict of rows unseen in training.

Folds are dealt to train and tuning rows by patient (`data.splits.deal`); a blend has one, whose rows are the tuning
rows. A network of a fold is a run of its own under `members/NAME-FOLD`, whose tuning rows are that fold; a plain model
chooses its strength by the same rows. The weights are those of greedy selection on the loss of all these predictions,
moved towards equal ones where rows are few. Plain models are fitted in a thread beside the networks' training.
"""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from remind_jax import methods, tasks
from remind_jax.config.rules import STACKS
from remind_jax.data import dataset as datasets
from remind_jax.data import splits
from remind_jax.errors import UserError, did_you_mean
from remind_jax.inference import plain
from remind_jax.inference.predictor import Predictor
from remind_jax.inference.stack import Member, below
from remind_jax.ops import selection
from remind_jax.runtime import files, progress, records
from remind_jax.tasks.task import Task
from remind_jax.training import plain_models
from remind_jax.training.plain_models import Features

MEMBERS, STAGE = "members", "stack"
FEW = 300
"""Number of rows with which weights are half way between the selected and equal ones."""
_MOST = 2**34  # bytes of the arrays of a plain model
_BLOCK = 2048  # rows whose counts of tokens are held at a time
Train = Callable[[Any, datasets.FittedData, pathlib.Path | None], Predictor]
"""Trains the network of a config on a fold, in a folder or in memory, or opens it where it is finished."""


class Stack(NamedTuple):
    """A stack, and what its members predict of the rows of folds that they were not trained on.

    Attributes:
      model: the trained model, without a report.
      logits: weighted mean of these predictions as logits, float32 [n, o].
      labels: of the rows, [n, ...].
      groups: combinations of the rows, int [n].
      facts: entry `stack` of the report.
    """

    model: Predictor
    logits: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    facts: dict[str, Any]

    @property
    def told(self) -> str:
        """Says the weights in a line."""
        shares = ", ".join(f"{each['name']} {each['weight']:.2f}" for each in self.facts["members"])
        return f"Weights of the members: {shares}"


class _Candidate(NamedTuple):
    """A candidate with its arrays by path, and its predictions of judged rows, [n, p]."""

    member: Member
    params: dict[str, np.ndarray]
    predictions: np.ndarray


class _Seen(NamedTuple):
    """What plain models see of train rows and of judged rows, which are the same with folds."""

    train: Features
    judged: Features

    @classmethod
    def of(cls, data: datasets.Dataset, split: str) -> "_Seen":
        """Reads the train rows, and those of the split of judged rows."""
        train = plain_models.features(data, "train")
        return cls(train, train if split == "train" else plain_models.features(data, split))

    def but(self, place: np.ndarray) -> tuple[Features, Features]:
        """Returns what a fold is trained on and tuned by, of which `place` says where the judged rows are."""
        if self.judged is not self.train:
            return self.train, self.judged
        return self.train.take(np.setdiff1d(np.arange(len(self.train.labels)), place)), self.train.take(place)


def candidates(config: Any, task: str) -> list[str]:
    """Returns the names of the candidates that learn a task, in order. Raises UserError: one is unknown, or none."""
    networks = [name for name in methods.METHODS if name not in STACKS]
    known = [*(["remind_plus"] if config.method == "remind_blend" else networks), *methods.PLAIN]
    names = list(dict.fromkeys(name.strip() for name in config.stack.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"stack: unknown method {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    names = [name for name in names if task in plain_models.TASKS_OF.get(name, (task,))]
    if not names:
        raise UserError(f"stack={config.stack} names nothing that learns labels of task {task}")
    return names


def judged(config: Any) -> str:
    """Returns the split whose rows weigh the candidates: all that are dealt to folds, of one fold the tuning rows."""
    return "train" if config.data.folds > 1 else "tuning"


def fold_of(data: datasets.FittedData, config: Any, fold: int) -> datasets.FittedData:
    """Returns the data of one fold, which has the combinations and the preprocessing of all."""
    dealt = splits.deal(data.manifest, data.whole_split, config.seed, config.data.folds, fold)
    split = np.where(data.split == splits.UNUSED, splits.UNUSED, dealt).astype(np.int8)
    parts = {field.name: getattr(data, field.name) for field in dataclasses.fields(datasets.FittedData)}
    return datasets.FittedData(**parts | {"split": split, "whole_split": dealt})


def build(
    config: Any, data: datasets.Dataset, folder: pathlib.Path | None, train: Train, bar: progress.Silent
) -> Stack:
    """Trains what is not finished, weighs the candidates, and puts them together; `folder` keeps them, None nothing.

    Raises UserError: a candidate is unknown, or none can be fitted; and what `train` raises.
    """
    task = tasks.fit(data.manifest.schema, config, data.labels_to_fit(config))
    tasks.check(task.name, config)
    if folder is not None:
        files.make_folder(folder, private=True)
    folds = [fold_of(data, config, k) for k in range(config.data.folds)]
    made = _made(config, data, folds, folder, train, task, bar)
    if not made:
        raise UserError("no candidate of the stack can be fitted on these rows: train method=remind")
    rows = data.rows(judged(config))
    labels = data.manifest.labels[rows]
    predictions = np.stack([each.predictions for each in made])

    def loss(found: np.ndarray) -> float | None:
        return float(np.mean(task.losses(labels, found))) if len(labels) else None

    chosen = selection.greedy(predictions, loss) if len(labels) else np.zeros(len(made))
    weights = selection.smoothed(chosen, len(labels), FEW)
    mean = np.tensordot(weights, predictions, axes=1)
    told = [
        {"name": each.member.name, "weight": float(w), "selected": float(c), "loss": loss(each.predictions)}
        for each, w, c in zip(made, weights, chosen, strict=True)
    ]
    members = tuple(dataclasses.replace(each.member, weight=w) for each, w in zip(made, weights.tolist(), strict=True))
    by = "loss" if len(labels) else "last"
    value = {"stage": STAGE, "step": 0, "value": loss(mean), "selected_by": by, "earlier": [], "passed_over": None}
    model = Predictor.assemble(
        config=config,
        title=data.manifest.title,
        schema=data.manifest.schema,
        task=task,
        groups=data.groups,
        preprocessor=data.preprocessor,
        label_counts=data.label_counts,
        train_patients=data.train_patients,
        params={f"{each.member.name}/{path}": x for each in made for path, x in each.params.items()},
        gate="never",
        label_type=data.manifest.label_type,
        chosen=value,
        members=members,
    )
    logits = np.asarray(task.logits(jnp.asarray(mean, jnp.float32)))
    groups = data.groups.index(data.manifest.presence[rows])
    facts = {"folds": config.data.folds, "rows": len(labels), "loss": value["value"], "members": told}
    return Stack(model, logits, labels, groups, facts)


def _made(
    config: Any,
    data: datasets.Dataset,
    folds: list[datasets.FittedData],
    folder: pathlib.Path | None,
    train: Train,
    task: Task,
    bar: progress.Silent,
) -> list[_Candidate]:
    """Makes the candidates, in the order of their names, but those that cannot be fitted, which is told."""
    names, rows = candidates(config, task.name), data.rows(judged(config))
    places = [np.flatnonzero(fold.split[rows] == splits.TUNING) for fold in folds]
    plain_names = [name for name in names if name in methods.PLAIN]
    if plain_names and not len(rows):
        bar.say(f"{', '.join(plain_names)}: left out, there are no tuning rows to choose their strength by")
        plain_names = []
    seen = _Seen.of(data, judged(config)) if plain_names else None
    made: dict[str, _Candidate] = {}
    with _beside(plain_names, seen, config, places, folder, task) as arrays_of:
        for name in names:
            if name in methods.METHODS:
                made[name] = _networks(config, data, folds, places, name, folder, train, task, bar)
        for name, found in arrays_of.items():
            bar.say(f"{name}: {len(folds)} folds" if len(folds) > 1 else name)
            try:
                made[name] = _of_arrays(name, found.result(), seen, places, task)
            except (UserError, ValueError) as error:
                bar.say(f"{name} is left out: {' '.join(str(error).split())}")
    return [made[name] for name in names if name in made]


@contextlib.contextmanager
def _beside(names: Sequence[str], *arguments: Any) -> Iterator[Mapping[str, concurrent.futures.Future]]:
    """Fits plain models in a thread, see `_plain`; what is not begun at the end of the context is given up."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        over = threading.Event()
        try:
            yield {name: pool.submit(_plain, name, *arguments, over) for name in names}
        finally:
            over.set()


def _of_arrays(
    name: str, arrays: dict[str, np.ndarray], seen: _Seen, places: list[np.ndarray], task: Task
) -> _Candidate:
    """Makes the candidate that a plain model is, of its arrays by fold and path."""
    found = np.zeros((len(seen.judged.labels), len(task.names)), np.float32)
    for k, place in enumerate(places):
        found[place] = predict_plain(name, below(arrays, str(k)), seen.judged.take(place), task)
    return _Candidate(Member(name, 0.0), arrays, found)


def _networks(
    config: Any,
    data: datasets.Dataset,
    folds: list[datasets.FittedData],
    places: list[np.ndarray],
    name: str,
    folder: pathlib.Path | None,
    train: Train,
    task: Task,
    bar: progress.Silent,
) -> _Candidate:
    """Trains the networks of one method, a fold each, and joins them to an ensemble."""
    store, models = data.stores[judged(config)], []
    found = np.zeros((len(store), len(task.names)), np.float32)
    for k, (fold, place) in enumerate(zip(folds, places, strict=True)):
        bar.say(f"{name}: fold {k + 1} of {len(folds)}" if len(folds) > 1 else name)
        own = methods.in_stack(config, name, k)
        model = train(own, fold, None if folder is None else folder / f"{name}-{k}")
        found[place] = model.predict_parts(store, place, store.presence[place])
        models.append(model)
    own, single = models[0].config, models[0].config.ensemble == 1
    join = np.stack if single else np.concatenate
    params = {path: join([np.asarray(model.params[path]) for model in models]) for path in models[0].params}
    own = methods.in_stack(config, name, -1)
    own.ensemble *= len(folds)
    own.train.feature_cache = "auto"
    return _Candidate(Member(name, 0.0, models[0].gate, own), params, found)


def _plain(
    name: str,
    seen: _Seen,
    config: Any,
    places: list[np.ndarray],
    folder: pathlib.Path | None,
    task: Task,
    over: threading.Event,
) -> dict[str, np.ndarray]:
    """Fits one plain model on each fold until it is `over`, or reads its arrays; returns them by fold and path."""
    file = None if folder is None else folder / f"{name}.safetensors"
    if file is not None and file.exists():
        return safetensors.numpy.load(records.content(file, folder, _MOST))
    arrays: dict[str, np.ndarray] = {}
    for k, place in enumerate(places):
        if over.is_set():
            raise concurrent.futures.CancelledError
        rest, tuning = seen.but(place)
        score = plain_models.score_of("loss", task, tuning.labels)
        found = plain_models.MODELS[name](rest, task, config.seed, score, tuning)
        arrays |= {f"{k}/{path}": np.ascontiguousarray(x) for path, x in found.arrays.items()}
    if file is not None:
        files.write_bytes(file, safetensors.numpy.save(arrays))
    return arrays


def predict_plain(name: str, arrays: dict[str, np.ndarray], rows: Features, task: Task) -> np.ndarray:
    """Returns the predictions [n, p] of a plain model of features, by its arrays and without scikit-learn."""
    call, found = jax.jit(lambda arrays, seen: plain.predict(name, arrays, seen, task)), []
    for start in range(0, max(1, len(rows.dense)), _BLOCK):
        part = rows.take(np.arange(start, min(start + _BLOCK, len(rows.dense))))
        bags = tuple(jnp.asarray(bag.toarray(), jnp.float32) for bag in part.bags)
        seen = plain.Seen(jnp.asarray(part.dense), bags, jnp.asarray(part.present))
        found.append(np.asarray(call(arrays, seen)))
    return np.concatenate(found)
