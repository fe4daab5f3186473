"""Logistic regression and gradient boosting on the inputs that the network gets, as rows of every results table.

    remind train --config=nhanes:method=logistic_regression

Same splits, same preprocessing, same selection rule (`train.select` on the tuning rows), same report as a run of
remind_jax.main. What a model sees of a sample: the presence of every modality, and what `plain` of its fitted kind
gives: tabular features as encoded (logistic regression: means for what is missing; boosting: NaN); texts and codes as
bags of tokens; embeddings averaged over their tokens; images and volumes shrunk to a few blocks. Everything is fitted
on the train rows.
"""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from remind_jax.config import validate
from remind_jax.data import dataset as datasets
from remind_jax.data import memory
from remind_jax.data.dataset import Dataset
from remind_jax.errors import UserError
from remind_jax.evaluation import report as reports
from remind_jax.inference.predictor import Predicted, tuning_metrics
from remind_jax.runtime import progress
from remind_jax.tasks import require_classes
from remind_jax.training import run_folder
from remind_jax.training.run_folder import RunFolder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of the logistic regression
DEPTHS = (1, 2, 4)  # of the trees
TREES = 200  # at most
LEARNING_RATE = 0.1
MANY_ROWS = 20_000  # train rows from which on threads save boosting more time than they cost
TOKENS = 256  # tokens of a text or code modality that boosting sees, the most frequent in training
_BLOCK = 1024  # rows read at a time
# The keys that decide a plain model; the others are the network's.
_SECTIONS = ("data", "groups", "eval")


class Features(NamedTuple):
    """What plain models see of the rows of a split.

    Attributes:
      dense: numbers, float32 [n, p]; NaN where a number or its modality is missing.
      bags: counts of the tokens of each text or code modality, sparse [n, v] each.
      present: bool [n, m].
      labels: int [n].
    """

    dense: np.ndarray
    bags: tuple["csr_matrix", ...]
    present: np.ndarray
    labels: np.ndarray


class PlainModel(NamedTuple):
    """A fitted model: probabilities of features [n, c], number of fitted scalars, and what was chosen."""

    predict: Callable[[Features], np.ndarray]
    parameters: int
    chosen: dict[str, Any]


Score = Callable[[np.ndarray], float]


def features(data: Dataset, split: str) -> Features:
    """Reads a split's encoded rows and turns them into numbers and bags."""
    from scipy import sparse

    store = data.stores[split]
    blocks = [np.arange(i, min(i + _BLOCK, len(store))) for i in range(0, len(store), _BLOCK)] or [np.arange(0)]
    dense, bags, present, labels = [], [], [], []
    for rows in blocks:
        batch = store.take(rows)
        seen = [fitted.plain(batch[name]) for name, fitted in data.preprocessor.fitted.items()]
        dense.append(_dense(seen, batch["present"]))
        bags.append([values for values in seen if sparse.issparse(values)])
        present.append(batch["present"])
        labels.append(batch["label"])
    return Features(
        np.concatenate(dense),
        tuple(sparse.vstack(parts, format="csr") for parts in zip(*bags, strict=True)),
        np.concatenate(present).astype(bool),
        np.concatenate(labels).astype(np.int64),
    )


def _dense(seen: Sequence[Any], present: np.ndarray) -> np.ndarray:
    """Joins the numbers among what is seen of each modality, NaN where it is missing, float32 [n, p]."""
    from scipy import sparse

    columns = [np.zeros((len(present), 0), np.float32)]
    for j, values in enumerate(seen):
        if not sparse.issparse(values):
            columns.append(np.where(present[:, j : j + 1], values, np.nan).astype(np.float32))
    return np.concatenate(columns, axis=1)


def fit_logistic_regression(train: Features, classes: int, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits L2 logistic regression: numbers standardised, bags as TF-IDF, zeros where missing, C by the tuning rows."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    del seed  # the fit is deterministic
    mean, std = _moments(train.dense)
    weights = [TfidfTransformer(sublinear_tf=True).fit(bag) for bag in train.bags]

    def design(rows: Features) -> "csr_matrix":
        from scipy import sparse

        scaled = np.nan_to_num((rows.dense - mean) / std)
        blocks = [weight.transform(bag) for weight, bag in zip(weights, rows.bags, strict=True)]
        return sparse.hstack([sparse.csr_matrix(scaled), sparse.csr_matrix(rows.present), *blocks], format="csr")

    x, tuning_x = design(train), design(tuning)
    candidates = []
    for c in STRENGTHS:
        model = LogisticRegression(C=c, max_iter=5_000)
        model.fit(x, train.labels)
        candidates.append((score(_probabilities(model, tuning_x, classes)), c, model))
    _, c, model = max(candidates, key=lambda entry: entry[0])  # of equals the most regularised
    parameters = model.coef_.size + model.intercept_.size
    return PlainModel(lambda rows: _probabilities(model, design(rows), classes), parameters, {"C": c})


def fit_gradient_boosting(train: Features, classes: int, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits histogram gradient boosting: NaN where missing, depth and number of trees by the tuning rows."""
    import threadpoolctl
    from sklearn.ensemble import HistGradientBoostingClassifier

    kept = [np.argsort(-np.asarray((bag > 0).sum(axis=0)).ravel(), kind="stable")[:TOKENS] for bag in train.bags]

    def design(rows: Features) -> np.ndarray:
        bags = [bag[:, columns].toarray() for bag, columns in zip(rows.bags, kept, strict=True)]
        return np.concatenate([rows.dense, rows.present.astype(np.float32), *bags], axis=1)

    x, tuning_x = design(train), design(tuning)
    best: tuple[float, int, int, Any] | None = None
    threads = None if len(x) >= MANY_ROWS else 1
    for depth in DEPTHS:
        model = HistGradientBoostingClassifier(
            max_depth=depth, max_iter=TREES, learning_rate=LEARNING_RATE, early_stopping=False, random_state=seed
        )
        with threadpoolctl.threadpool_limits(threads):
            model.fit(x, train.labels)
        for trees, found in enumerate(model.staged_predict_proba(tuning_x), start=1):
            value = score(_all_classes(found, model.classes_, classes))
            if best is None or value > best[0]:
                best = value, depth, trees, model
    assert best is not None
    _, depth, trees, model = best
    parameters = sum(tree.get_n_leaf_nodes() for stage in itertools.islice(model._predictors, trees) for tree in stage)

    def predict(rows: Features) -> np.ndarray:
        staged = model.staged_predict_proba(design(rows))
        return _all_classes(next(itertools.islice(staged, trees - 1, None)), model.classes_, classes)

    return PlainModel(predict, parameters, {"depth": depth, "trees": trees})


MODELS: dict[str, Callable[[Features, int, int, Score, Features], PlainModel]] = {
    "logistic_regression": fit_logistic_regression,
    "gradient_boosting": fit_gradient_boosting,
}


def _moments(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and deviation of each column over what is there, [p] each; 0 and 1 where that says nothing."""
    there = ~np.isnan(dense)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, dense, 0.0).sum(axis=0, dtype=np.float64) / count
    variance = (np.where(there, dense - mean, 0.0) ** 2).sum(axis=0) / count
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-6, std, 1.0)


def _probabilities(model: Any, x: Any, classes: int) -> np.ndarray:
    return _all_classes(model.predict_proba(x), model.classes_, classes)


def _all_classes(found: np.ndarray, seen: np.ndarray, classes: int) -> np.ndarray:
    """Gives probabilities a column for every class, 0 for those that training has not seen, [n, c]."""
    probabilities = np.zeros((len(found), classes))
    probabilities[:, seen] = found
    return probabilities


def plain_config(config: Any) -> dict[str, Any]:
    """Returns the settings that decide a plain model's run, as they are written to config.json."""
    sections = {name: config[name].to_dict() for name in _SECTIONS}
    return {"method": config.method, "seed": config.seed, "train": {"select": config.train.select}, **sections}


def fit_and_evaluate(
    config: Any, workdir: pathlib.Path, verbose: bool = True, on_changed_data: str = "refuse"
) -> dict[str, Any]:
    """Fits a plain model on a config's data and reports on its held-out patients; a finished run is shown again.

    Of the config only `method`, a key of `MODELS`, data, seed, selection rule and evaluation are used. Returns the
    report, as in report.json, and in it `chosen`, what the tuning rows decided. Changed data are as for
    `training.run.train_and_evaluate`. Raises UserError: a setting, the data or the folder cannot be used.
    """
    validate(config)
    with run_folder.opened(workdir, plain_config(config), config.train.track) as folder:
        report = _run(config, folder, verbose, on_changed_data)
        finished = report is None
        report = folder.report() if finished else report
        if verbose:
            folder.show(report, again=finished)
        return report


def _run(config: Any, folder: RunFolder, verbose: bool, on_changed: str) -> dict[str, Any] | None:
    """Fits and reports; returns the report, None for a finished run."""
    stamp = memory.stamp(*memory.places(config.data))
    if folder.shows(stamp):
        return None
    with progress.make(0, "preparing", verbose) as bar:
        bar.say(f"Preparing data ({config.data.source})")
        split = datasets.fit(config)
        if folder.admit(split, stamp, on_changed, bar.say):
            return None
        require_classes(split.manifest.schema, config.method)
        data = datasets.prepare(split, config.data, bar)
        bar.say(f"Fitting {config.method} on {data.manifest.title}: {len(data.stores['train'])} samples")
        fitted = _fit(config, data)
        folder.remember(data, "fit", stamp)
    with progress.make(0, "evaluating", verbose) as bar:
        return _report(config, data, fitted, folder, bar.count)


def _fit(config: Any, data: Dataset) -> PlainModel:
    train, tuning, model = features(data, "train"), features(data, "tuning"), config.method
    if not len(tuning.labels):
        raise UserError(f"{model} is chosen by tuning rows, and there are none: give data.fractions a second share")
    if len(np.unique(train.labels)) < 2:
        raise UserError(f"{model} needs two classes among the train rows")
    return MODELS[model](train, len(data.classes), config.seed, _score(config.train.select, tuning.labels), tuning)


def _score(select: str, labels: np.ndarray) -> Score:
    """Makes what a choice by the tuning rows goes by, greater being better; `last` goes by the loss."""
    name = "loss" if select == "last" else select

    def score(probabilities: np.ndarray) -> float:
        value = tuning_metrics(Predicted(probabilities, labels, 0.0))[name]
        if value is None:
            raise UserError(f"{name} cannot be computed on the tuning rows: choose another train.select")
        return -value if name == "loss" else value

    return score


def _report(
    config: Any, data: Dataset, fitted: PlainModel, folder: RunFolder, count: Callable[[int, int], None]
) -> dict[str, Any]:
    """Reads the held-out rows, once, and writes predictions and report as a run of the network does."""
    probabilities, facts = fitted.predict(features(data, "held_out")), {"chosen": fitted.chosen}
    report, table = reports.report_of(
        plain_config(config), data, probabilities, parameters=fitted.parameters, count=count, **facts
    )
    folder.finish(report, table)
    return report
