"""Linear models, gradient boosting and extremely randomised trees, fitted by scikit-learn, and their arrays.

What a model sees of a sample: the presence of every modality, and what `plain` of its fitted kind gives: tabular
features as encoded (linear models and extra trees: means for what is missing; boosting: NaN); texts and codes as bags
of tokens; embeddings averaged over their tokens; images and volumes shrunk to a few blocks. A model is told by arrays,
too, of which `inference.plain` makes its predictions without scikit-learn.
"""

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from remind_jax.data.dataset import Dataset
from remind_jax.errors import UserError, needs
from remind_jax.tasks.task import Task
from remind_jax.training import tree_arrays
from remind_jax.training.learners import LEARNERS, Classifiers, of_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # C of the logistic regression
DEPTHS = (1, 2, 4)  # of the trees
TREES = 200  # at most
GROWN = 25  # trees between two looks at the tuning rows, and how many must do no better for boosting to end
LEARNING_RATE = 0.1
FOREST = 200  # extremely randomised trees
LEAVES = (20, 10, 5, 2)  # least samples of one of their leaves
MOST_LEAVES = 1024  # of a tree
RIDGES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # alpha of the ridge regression
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of the Cox model, on the mean likelihood
MANY_ROWS = 20_000  # train rows from which on threads of linear algebra and boosting save more time than they cost
TOKENS = 256  # tokens of a text or code modality that boosting sees, the most frequent in training
DENSE = 0.2  # share of numbers that are not zero from which on linear models are faster without sparse arrays
_BLOCK = 1024  # rows read at a time


class Features(NamedTuple):
    """What plain models see of the rows of a split.

    Attributes:
      dense: numbers, float32 [n, p]; NaN where a number or its modality is missing.
      bags: counts of the tokens of each text or code modality, sparse [n, v] each.
      present: bool [n, m].
      labels: as `Manifest.labels_of_batches` has them, [n, ...].
      weights: what each row counts, float32 [n] of mean 1; None: all alike.
    """

    dense: np.ndarray
    bags: tuple["csr_matrix", ...]
    present: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Features":
        """Returns the features of some rows, int [k]."""
        bags = tuple(bag[rows] for bag in self.bags)
        return Features(self.dense[rows], bags, self.present[rows], self.labels[rows], of_rows(self.weights, rows))


class PlainModel(NamedTuple):
    """A fitted model: predictions of features [n, p], number of fitted scalars, what was chosen, and its arrays."""

    predict: Callable[[Features], np.ndarray]
    parameters: int
    chosen: dict[str, Any]
    arrays: dict[str, np.ndarray]


Score = Callable[[np.ndarray], float]


def features(data: Dataset, split: str) -> Features:
    """Reads a split's encoded rows and turns them into numbers and bags."""
    from scipy import sparse

    store = data.stores[split]
    blocks = [np.arange(i, min(i + _BLOCK, len(store))) for i in range(0, len(store), _BLOCK)] or [np.arange(0)]
    dense, bags, present, labels, weights = [], [], [], [], []
    for rows in blocks:
        batch = store.take(rows)
        seen = [fitted.plain(batch[name]) for name, fitted in data.preprocessor.fitted.items()]
        dense.append(_dense(seen, batch["present"]))
        bags.append([values for values in seen if sparse.issparse(values)])
        present.append(batch["present"])
        labels.append(batch["label"])
        weights.append(batch.get("weight"))
    counted = None if weights[0] is None else np.concatenate(weights)
    return Features(
        np.concatenate(dense),
        tuple(sparse.vstack(parts, format="csr") for parts in zip(*bags, strict=True)),
        np.concatenate(present).astype(bool),
        np.concatenate(labels),
        None if counted is None else counted / max(counted.mean(), 1e-12),
    )


def _dense(seen: Sequence[Any], present: np.ndarray) -> np.ndarray:
    """Joins the numbers among what is seen of each modality, NaN where it is missing, float32 [n, p]."""
    from scipy import sparse

    columns = [np.zeros((len(present), 0), np.float32)]
    for j, values in enumerate(seen):
        if not sparse.issparse(values):
            columns.append(np.where(present[:, j : j + 1], values, np.nan).astype(np.float32))
    return np.concatenate(columns, axis=1)


def _linear_design(train: Features) -> tuple[Callable[[Features], Any], dict[str, np.ndarray]]:
    """Makes what linear models see: numbers standardised, presence, bags as TF-IDF, zeros where missing, [n, p].

    Returns it with its arrays. The matrix is sparse unless many of the numbers of training are not zero.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import TfidfTransformer

    mean, std = _moments(train.dense)
    weights = [TfidfTransformer(sublinear_tf=True).fit(bag) for bag in train.bags]

    def design(rows: Features) -> "csr_matrix":
        scaled = np.nan_to_num((rows.dense - mean) / std)
        blocks = [weight.transform(bag) for weight, bag in zip(weights, rows.bags, strict=True)]
        return sparse.hstack([sparse.csr_matrix(scaled), sparse.csr_matrix(rows.present), *blocks], format="csr")

    seen = design(train)
    dense = seen.nnz > DENSE * np.prod(seen.shape)
    chosen = (lambda rows: design(rows).toarray()) if dense else design
    return chosen, {"mean": mean, "std": std, **{f"idf_{j}": weight.idf_ for j, weight in enumerate(weights)}}


def _most_frequent(train: Features) -> tuple[Callable[[Features], list[np.ndarray]], dict[str, np.ndarray]]:
    """Makes counts of the tokens of each bag that are the most frequent in training, [n, at most `TOKENS`] each.

    Returns them with their arrays, which are the ids of these tokens.
    """
    kept = [np.argsort(-np.asarray((bag > 0).sum(axis=0)).ravel(), kind="stable")[:TOKENS] for bag in train.bags]
    counts = lambda rows: [bag[:, columns].toarray() for bag, columns in zip(rows.bags, kept, strict=True)]  # noqa: E731
    return counts, {f"kept_{j}": columns.astype(np.int32) for j, columns in enumerate(kept)}


def _filled_design(train: Features) -> tuple[Callable[[Features], np.ndarray], dict[str, np.ndarray]]:
    """Makes numbers standardised, 0 where missing, presence, counts of the most frequent tokens, [n, p]; its arrays."""
    (mean, std), (counts, kept) = _moments(train.dense), _most_frequent(train)

    def design(rows: Features) -> np.ndarray:
        numbers = np.nan_to_num((rows.dense - mean) / std)
        return np.concatenate([numbers, rows.present, *counts(rows)], axis=1).astype(np.float32)

    return design, {"mean": mean, "std": std, **kept}


def _strongest(strengths: Sequence[float], fit: Callable[[float], Any], score: Callable[[Any], float]) -> tuple:
    """Fits a model at each strength in turn; returns strength and model of the highest score, of equal ones the first.

    It ends where two in a row score less than one before: from strong to weak the score has one peak.
    """
    models, values = [], []
    for strength in strengths:
        models.append(fit(strength))
        values.append(score(models[-1]))
        if max(values[:-2], default=-np.inf) > max(values[-2:]):
            break
    best = int(np.argmax(values))
    return strengths[best], models[best]


def _threads(rows: int) -> contextlib.AbstractContextManager[Any]:
    """Returns a context with one thread of linear algebra and OpenMP, unless there are many rows."""
    import threadpoolctl

    return threadpoolctl.threadpool_limits(None if rows >= MANY_ROWS else 1)


def fit_logistic_regression(train: Features, task: Task, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits L2 logistic regression, of several labels one each, on `_linear_design`; C by the tuning rows."""
    from sklearn.linear_model import LogisticRegression

    del seed  # the fit is deterministic
    design, arrays = _linear_design(train)
    x, tuning_x = design(train), design(tuning)
    rows = x, train.labels, task, train.weights
    fit = lambda c: Classifiers(lambda: LogisticRegression(C=c, max_iter=5_000), *rows)  # noqa: E731
    with _threads(len(train.labels)):
        c, found = _strongest(STRENGTHS, fit, lambda found: score(found.predict(tuning_x)))
    parameters = sum(model.coef_.size + model.intercept_.size for model in found.models)
    arrays |= {"coef": np.zeros((x.shape[1], found.outputs)), "intercept": found.start()}
    for model, columns in zip(found.models, found.columns, strict=True):
        arrays["coef"][:, columns], arrays["intercept"][columns] = model.coef_.T, model.intercept_
    return PlainModel(lambda rows: found.predict(design(rows)), parameters, {"C": c}, arrays)


def fit_ridge(train: Features, task: Task, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits ridge regression of standardised values on `_linear_design`; its strength by the tuning rows."""
    from sklearn.linear_model import Ridge

    del seed
    design, arrays = _linear_design(train)
    x, tuning_x, y = design(train), design(tuning), task.standard(train.labels.astype(np.float64))
    predict = lambda model, rows: task.predictions(model.predict(rows)[:, None])  # noqa: E731
    fit = lambda strength: Ridge(strength).fit(x, y, sample_weight=train.weights)  # noqa: E731
    with _threads(len(y)):
        strength, model = _strongest(RIDGES, fit, lambda model: score(predict(model, tuning_x)))
    arrays |= {"coef": model.coef_[:, None], "intercept": np.array([model.intercept_])}
    return PlainModel(lambda rows: predict(model, design(rows)), model.coef_.size + 1, {"alpha": strength}, arrays)


def fit_cox(train: Features, task: Task, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits a proportional hazards model by lifelines, with an L2 penalty chosen by the tuning rows.

    It sees numbers standardised, presence, and the logarithms of counts of the most frequent tokens; columns that do
    not vary in training are left out. Raises UserError: lifelines is not installed, or no fit converges.
    """
    try:
        import lifelines
    except ImportError:
        raise UserError(f"method=cox: {needs('lifelines', 'survival')}") from None
    del seed
    (mean, std), (counts, arrays) = _moments(train.dense), _most_frequent(train)

    def table(rows: Features) -> np.ndarray:
        numbers = np.nan_to_num((rows.dense - mean) / std)
        return np.concatenate([numbers, rows.present, *map(np.log1p, counts(rows))], axis=1).astype(np.float64)

    x = table(train)
    varies = x.std(axis=0) > 1e-6
    names = [f"x{j}" for j in np.flatnonzero(varies)]
    frame = pl.DataFrame(x[:, varies], schema=names).to_pandas()
    frame = frame.assign(time=train.labels[:, 0], event=train.labels[:, 1])
    weighed = {} if train.weights is None else {"weights_col": "weight"}
    frame = frame.assign(weight=train.weights) if weighed else frame

    def fit(penalty: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return lifelines.CoxPHFitter(penalizer=penalty).fit(frame, "time", "event", **weighed)
            except lifelines.exceptions.ConvergenceError:
                return None

    def predict(model: Any, rows: Features) -> np.ndarray:
        found = model.predict_survival_function(
            pl.DataFrame(table(rows)[:, varies], schema=names).to_pandas(), times=task.ends
        )
        return np.clip(found.to_numpy().T, 0.0, 1.0)

    candidates = [(penalty, model) for penalty in PENALTIES if (model := fit(penalty)) is not None]
    if not candidates:
        raise UserError("no Cox model converges on the train rows: take method=gradient_boosting")
    penalty, model = max(candidates, key=lambda found: score(predict(found[1], tuning)))
    coef, centre = np.zeros(x.shape[1]), model._norm_mean.to_numpy()
    coef[varies] = model.params_
    middle = pl.DataFrame([dict(zip(names, centre, strict=True))]).to_pandas()
    hazard = model.predict_cumulative_hazard(middle, times=task.ends).to_numpy()[:, 0]
    arrays |= {"mean": mean, "std": std, "coef": coef, "centre": centre @ coef[varies], "hazard": hazard}
    return PlainModel(lambda rows: predict(model, rows), len(model.params_), {"penalty": penalty}, arrays)


def _growing(make: Callable[[str], Any], x: np.ndarray, train: Features, task: Task) -> Iterator[Any]:
    """Yields learners of ever more trees, whose boosted models, of `make`, go on from where they are.

    `x` [n, p] is what they see of the train rows.
    """
    models: list[Any] = []
    for trees in (*range(GROWN, TREES, GROWN), TREES):
        before = iter(tuple(models))

        def go_on(kind: str, trees: int = trees, before: Iterator[Any] = before) -> Any:
            model = next(before, None)
            if model is None:
                models.append(model := make(kind))
            return model.set_params(max_iter=trees)

        yield LEARNERS[task.name](go_on, x, train.labels, task, train.weights)


def _grown(growing: Iterator[Any], x: np.ndarray, score: Score) -> tuple[float, int, Any]:
    """Takes learners of ever more trees until `GROWN` of these do no better; returns score, number of trees, learner.

    `x` are the tuning rows, of whose predictions after each tree `score` is asked once.
    """
    values: list[float] = []
    for found in growing:
        values += map(score, itertools.islice(found.staged(x), len(values), None))
        if len(values) - np.argmax(values) > GROWN:
            break
    best = int(np.argmax(values))
    return values[best], best + 1, found


def fit_gradient_boosting(train: Features, task: Task, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits histogram gradient boosting: NaN where missing, depth and number of trees by the tuning rows."""
    from sklearn import ensemble

    counts, arrays = _most_frequent(train)

    def design(rows: Features) -> np.ndarray:
        return np.concatenate([rows.dense, rows.present.astype(np.float32), *counts(rows)], axis=1)

    x, tuning_x = design(train), design(tuning)

    def boosted(depth: int) -> tuple[float, int, Any]:
        options = {"max_depth": depth, "learning_rate": LEARNING_RATE, "early_stopping": False, "warm_start": True}
        make = lambda kind: getattr(ensemble, f"HistGradientBoosting{kind}")(random_state=seed, **options)  # noqa: E731
        with _threads(len(x)):
            return _grown(_growing(make, x, train, task), tuning_x, score)

    grown = {depth: boosted(depth) for depth in DEPTHS}
    depth = max(grown, key=lambda depth: grown[depth][0])
    _, trees, found = grown[depth]
    stages = [stage for model in found.models for stage in itertools.islice(model._predictors, trees)]
    parameters = sum(tree.get_n_leaf_nodes() for stage in stages for tree in stage)

    def predict(rows: Features) -> np.ndarray:
        return next(itertools.islice(found.staged(design(rows)), trees - 1, None))

    arrays |= tree_arrays.joined(found.start(), tree_arrays.boosted(found, trees))
    return PlainModel(predict, parameters, {"depth": depth, "trees": trees}, arrays)


def fit_extra_trees(train: Features, task: Task, seed: int, score: Score, tuning: Features) -> PlainModel:
    """Fits extremely randomised trees on `_filled_design`; the least leaf by the tuning rows."""
    from sklearn import ensemble

    design, arrays = _filled_design(train)
    x, tuning_x = design(train), design(tuning)

    def fit(leaf: int) -> Any:
        def make(kind: str) -> Any:
            options = {"min_samples_leaf": leaf, "max_features": "sqrt" if kind == "Classifier" else 0.3}
            options |= {"max_leaf_nodes": MOST_LEAVES, "random_state": seed}
            return getattr(ensemble, f"ExtraTrees{kind}")(FOREST, **options)

        return LEARNERS[task.name](make, x, train.labels, task, train.weights)

    leaf, found = _strongest(LEAVES, fit, lambda found: score(found.predict(tuning_x)))
    trees = list(tree_arrays.forest(found))
    parameters = sum(int((tree["left"] == np.arange(len(tree["left"]))).sum()) for tree in trees)
    arrays |= tree_arrays.joined(np.zeros(found.outputs), trees)
    return PlainModel(lambda rows: found.predict(design(rows)), parameters, {"min_samples_leaf": leaf}, arrays)


TASKS_OF = {
    "logistic_regression": ("classes", "ordinal", "multilabel"),
    "ridge": ("regression",),
    "cox": ("survival",),
    "gradient_boosting": tuple(LEARNERS),
    "extra_trees": tuple(LEARNERS),
}
"""The tasks of each model."""
MODELS: dict[str, Callable[[Features, Any, int, Score, Features], PlainModel]] = {
    "logistic_regression": fit_logistic_regression,
    "gradient_boosting": fit_gradient_boosting,
    "extra_trees": fit_extra_trees,
    "ridge": fit_ridge,
    "cox": fit_cox,
}


def _moments(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and deviation of each column over what is there, [p] each; 0 and 1 where that says nothing."""
    there = ~np.isnan(dense)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, dense, 0.0).sum(axis=0, dtype=np.float64) / count
    variance = (np.where(there, dense - mean, 0.0) ** 2).sum(axis=0) / count
    std = np.sqrt(variance)
    return mean, np.where(std > 1e-6, std, 1.0)


def score_of(select: str, task: Task, labels: np.ndarray) -> Score:
    """Makes what a choice by the tuning rows goes by, greater being better; `last` goes by the loss."""
    name = "loss" if select == "last" else select

    def score(predictions: np.ndarray) -> float:
        if name == "loss":  # the others may take long, and boosting asks for every tree
            return -float(np.mean(task.losses(labels, predictions)))
        value = task.tuning(labels, predictions)[name]
        if value is None:
            raise UserError(f"{name} cannot be computed on the tuning rows: choose another train.select")
        return value if task.is_better_high(name) else -value

    return score
