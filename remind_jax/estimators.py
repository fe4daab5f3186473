"""Scikit-learn estimators: `fit` of remind_jax.api behind the rules of `sklearn.base.BaseEstimator`."""

import dataclasses
import numbers
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import precision_recall_curve
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    assert_all_finite,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from remind_jax import api
from remind_jax.data import reading
from remind_jax.data.cells import emptied
from remind_jax.data.dataset import Dataset
from remind_jax.data.importers.modalities import free_name
from remind_jax.data.manifest import Manifest
from remind_jax.evaluation import binary, survival
from remind_jax.inference import model_files
from remind_jax.inference.predictor import Predictor

THRESHOLDS = ("f1", "youden")
_NO_PATIENTS = "neither groups nor patient is given: rows are taken for patients, and one person may be on both sides"


class _Multimodal(BaseEstimator):
    """What the estimators share: settings, rows in, a trained model, files."""

    _least = 0  # rows with fewer of which none choose weights

    def __init__(
        self,
        modalities: api.Modalities | None = None,
        *,
        patient: str | None = None,
        method: str | None = None,
        size: str = "small",
        seed: int = 0,
        tuning: float = 0.1,
        tables: Mapping[str, Any] | None = None,
        keys: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ):
        self.modalities = modalities
        self.patient = patient
        self.method = method
        self.size = size
        self.seed = seed
        self.tuning = tuning
        self.tables = tables
        self.keys = keys
        self.verbose = verbose

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the trained model as a folder for `remind_jax.load`, which knows no threshold."""
        check_is_fitted(self)
        self.model_.save(folder)

    def _train(self, rows: "_Rows", label: Callable[..., str | dict[str, Any]], /, **columns: np.ndarray) -> Dataset:
        """Trains on rows and the columns of their label, [n] each, of whose names `label` makes an entry for `fit`."""
        tuning = self.tuning if len(rows.y) >= self._least else 0.0
        config = api.make_config(self.method, self.size, self.seed, 0.0, tuning, self.keys or {})
        manifest = self._manifest(rows, label, columns, config)
        for note in manifest.notes:
            if note.code == "I001":
                warnings.warn(note.message, stacklevel=3)
        if rows.weights is not None:
            kept = manifest.table[manifest.schema.sample_id].cast(pl.Int64).to_numpy() - 1
            manifest = dataclasses.replace(manifest, weights=rows.weights[kept].astype(np.float32))
        api.suit(config, manifest, self.keys or {})
        self.model_, data = api.train(config, manifest, None, self.verbose)
        return data

    def _predictions(self, X: Any) -> np.ndarray:
        """Returns predictions, float64 [n, p].

        A row without any modality has the baseline of training, such as the shares of the classes, and a warning counts
        such rows.
        """
        check_is_fitted(self)
        frame, model = self._rows(X, reset=False), self.model_
        frame, notes = reading.gathered(model.schema.modalities, frame, pathlib.Path(), self.tables or {}, False)
        for note in notes:
            warnings.warn(note.message, stacklevel=3)
        known = {c for each in model.schema.modalities for c in each.all_columns} & set(frame.columns)
        cells = pl.DataFrame([emptied(column)[0] for column in frame.select(known).iter_columns()])
        empty = cells.select(pl.all_horizontal(pl.all().is_null())).to_series()
        if not known or not empty.any():
            return model.predictions(frame).astype(np.float64)
        what = "the shares of the classes" if model.schema.classes else "those of all training rows together"
        warnings.warn(f"{empty.sum()} rows have no modality at all: theirs are {what}", stacklevel=3)
        found = np.tile(model.task.baseline, (len(empty), 1))
        if not empty.all():
            found[~empty.to_numpy()] = model.predictions(frame.filter(~empty))
        return found

    def _rows(self, X: Any, **options: Any) -> pl.DataFrame:
        """Returns a frame, or the columns of an array as x0, x1, …, checked as scikit-learn wants it."""
        if hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, **options)
            return reading.as_polars(X)
        found = validate_data(self, X, dtype="numeric", ensure_all_finite="allow-nan", **options)
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(found.shape[1])])
        return pl.DataFrame(dict(zip(names, np.asarray(found, np.float64).T, strict=True))).fill_nan(None)

    def _checked(self, X: Any, y: Any, groups: Any, sample_weight: Any, one: bool = True) -> "_Rows":
        """Returns the rows to train on, without those of weight 0; with `one` labels are [n]."""
        if y is None:
            validate_data(self, X, y)  # says what scikit-learn says
        frame, labels = self._rows(X, reset=True), column_or_1d(y, warn=True) if one else np.asarray(y)
        check_consistent_length(X, labels)
        groups = None if groups is None else column_or_1d(groups)
        check_consistent_length(labels, groups)
        if sample_weight is None:
            return _Rows(frame, labels, groups, None)
        weights = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        counts = weights > 0
        groups = None if groups is None else groups[counts]
        return _Rows(frame.filter(pl.Series(counts)), labels[counts], groups, weights[counts])

    def _manifest(
        self, rows: "_Rows", label: Callable[..., Any], columns: Mapping[str, np.ndarray], config: Any
    ) -> Manifest:
        """Makes a manifest of rows and their labels; its sample ids count rows from 1.

        Without patients the ids of samples are those of patients.
        """
        frame, modalities = rows.frame, self.modalities
        if modalities is None and not hasattr(self, "feature_names_in_"):
            modalities = {"x": api.Table(frame.columns)}
        patient, sample, *names = (free_name(name, frame.columns) for name in ("groups", "sample_id", *columns))
        targets = [pl.Series(name, values) for name, values in zip(names, columns.values(), strict=True)]
        frame = frame.with_columns(*targets, pl.int_range(1, pl.len() + 1).alias(sample))
        if rows.groups is not None:
            cells = rows.groups.tolist() if rows.groups.dtype == object else rows.groups
            frame = frame.with_columns(pl.Series(patient, cells, strict=False))
        elif self.patient is None:
            warnings.warn(_NO_PATIENTS, stacklevel=4)
        known = patient if rows.groups is not None else self.patient or sample
        ids = {"patient": known, "sample": sample}
        return api.read_frame(frame, label(*names), modalities, config, **ids, verbose=self.verbose, tables=self.tables)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state with the model as the files that `save` writes; once trained, without rows of patients."""
        state = dict(super().__getstate__())
        if "model_" in state:
            state["tables"] = None
            state["model_"] = model_files.contents(state["model_"])
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        state = dict(state)
        if "model_" in state:
            state["model_"] = Predictor.assemble(**model_files.parts(state["model_"], pathlib.Path("estimator")))
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True  # a missing number
        return tags


class _Rows(NamedTuple):
    """Rows to train on, with labels [n, ...], patients and weights [n]; None where they are not given."""

    frame: pl.DataFrame
    y: np.ndarray
    groups: np.ndarray | None
    weights: np.ndarray | None


class MultimodalClassifier(ClassifierMixin, _Multimodal):
    """Classifies samples whose modalities are partly missing, see `remind_jax.fit`.

    Args:
      modalities: as for `fit`; None guesses those of a frame and takes all columns of an array for one table.
      patient: the column of a frame that names patients, used where `fit` is not given `groups`.
      method, size, seed: as for `fit`.
      tuning: share of the patients by which weights, and the threshold, are chosen.
      threshold: of two classes, the probability from which on `predict` names the second: a number, or what the tuning
        rows decide: `f1`, the highest F1, or `youden`, the highest sensitivity + specificity - 1.
      tables: frames of events by the name of their table, for rows to train on and to predict alike; rows of X have the
        ids. A trained estimator is pickled without them: `set_params(tables=…)` gives those of new rows.
      keys: of a config, by section or path, such as `{"optim.lr": 1e-3}`.
      verbose: whether to print progress.

    Attributes:
      classes_: labels in the order of probabilities, [c].
      model_: the `Predictor`.
      threshold_: the threshold in use, None for more than two classes.
      n_features_in_, feature_names_in_: the columns of X.
    """

    def __init__(
        self,
        modalities: api.Modalities | None = None,
        *,
        patient: str | None = None,
        method: str | None = None,
        size: str = "small",
        seed: int = 0,
        tuning: float = 0.1,
        threshold: float | str = 0.5,
        tables: Mapping[str, Any] | None = None,
        keys: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ):
        settings = {"method": method, "size": size, "seed": seed, "tuning": tuning, "keys": keys, "verbose": verbose}
        super().__init__(modalities, patient=patient, tables=tables, **settings)
        self.threshold = threshold

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Trains on a frame, or an array [n, p] of numbers, and labels [n]; no rows are held out.

        `groups` [n] names the patient of each row. `sample_weight` [n] is what rows count in the loss of training; the
        tuning rows count alike. Rows of weight 0 are left out, and rows without any modality, of which a warning tells.
        Raises UserError or ValueError: what is wrong with them.
        """
        check_threshold(self.threshold)
        rows = self._checked(X, y, groups, sample_weight)
        assert_all_finite(rows.y, input_name="y")
        check_classification_targets(rows.y)
        self.classes_, codes = np.unique(rows.y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class; a classifier needs at least 2 classes")
        if len(self.classes_) > 2 and self.threshold != 0.5:
            raise ValueError(f"threshold={self.threshold!r} is for two classes; y has {len(self.classes_)}")
        data = self._train(rows, str, label=codes)
        self.classes_ = self.classes_[[int(name) for name in self.model_.classes]]  # of rows with a modality
        self.threshold_ = None
        if len(self.classes_) == 2:
            self.threshold_ = choose_threshold(self.threshold, self.model_, data)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns probabilities of the classes, float [n, c], in the order of `classes_`.

        A row without any modality has the shares of the classes among the train rows, and a warning counts such rows.
        """
        return self._predictions(X)

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row, or of two classes the second from the threshold on, [n]."""
        probabilities = self.predict_proba(X)
        if self.threshold_ is None:
            return self.classes_[probabilities.argmax(axis=1)]
        return self.classes_[(probabilities[:, 1] >= self.threshold_).astype(int)]


class MultimodalRegressor(RegressorMixin, _Multimodal):
    """Predicts a number from modalities that are partly missing; arguments are as for `MultimodalClassifier`.

    The key `task.predicts` asks for bounds, which `model_.table` has. Of fewer than 30 rows none choose the weights.
    """

    _least = 30

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Trains on rows and numbers [n]; see `MultimodalClassifier.fit`."""
        rows = self._checked(X, y, groups, sample_weight)
        values = check_array(rows.y, ensure_2d=False, dtype=np.float64, input_name="y")
        if len(values) < 2:
            raise ValueError("y has 1 sample; a regressor needs at least 2")
        self._train(rows, lambda name: {"task": "regression", "column": name}, label=values)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the predicted numbers, float64 [n]; those of a row without any modality are the mean of training."""
        return self._predictions(X)[:, 0]


class MultimodalSurvival(_Multimodal):
    """Predicts the time to an event, which may be censored; arguments are as for `MultimodalClassifier`.

    Labels are those of scikit-survival: an array [n] with two fields, whether the event was seen (bool) and the time.
    """

    _least = 30

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Trains on rows and labels; see `MultimodalClassifier.fit`."""
        time, event = _outcomes(y)
        rows = self._checked(X, np.stack([time, event], axis=1), groups, sample_weight, one=False)
        time, event = rows.y.T
        self._train(
            rows, lambda time, event: {"task": "survival", "time": time, "event": event}, time=time, event=event
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Returns the risk of each row, float64 [n]; who has a higher one is expected to have the event earlier."""
        found = self._predictions(X)
        return self.model_.task.answers(found)

    def predict_survival(self, X: Any, times: Sequence[float]) -> np.ndarray:
        """Returns the chance to be without the event at each of some times, float64 [n, times]."""
        found = self._predictions(X)
        return self.model_.task.curves(found).at(np.asarray(times, np.float64))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Returns Harrell's C."""
        time, event = _outcomes(y)
        weights = np.ones(len(time)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        known = survival.Outcomes(time, event)
        return float(survival.concordance(known, self.predict(X), np.ones((1, len(time))), weights[None])[0, 0])


def _outcomes(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns time, float64 [n], and event, bool [n], of labels of survival. Raises ValueError: they are none."""
    fields = getattr(getattr(y, "dtype", None), "fields", None) or {}
    events = [name for name, (kind, *_) in fields.items() if kind.kind == "b"]
    if len(fields) != 2 or len(events) != 1:
        raise ValueError("y must have two fields, event (bool) and time: sksurv.util.Surv.from_arrays makes it")
    (time,) = fields.keys() - set(events)
    return np.asarray(y[time], np.float64), np.asarray(y[events[0]])


def check_threshold(wanted: float | str) -> None:
    """Raises ValueError: it is no probability and no word of `THRESHOLDS`."""
    is_number = isinstance(wanted, numbers.Real) and not isinstance(wanted, bool) and 0 <= wanted <= 1
    if not is_number and wanted not in THRESHOLDS:
        raise ValueError(f"threshold={wanted!r} must be a number from 0 to 1 or one of {', '.join(THRESHOLDS)}")


def choose_threshold(wanted: float | str, model: Predictor, data: Dataset) -> float:
    """Returns the probability of the second class from which on it is predicted; tuning rows decide a word.

    Of equal thresholds the nearest to one half is taken. Raises ValueError: the tuning rows lack one of the two
    classes.
    """
    if not isinstance(wanted, str):
        return float(wanted)
    store = data.stores["tuning"]
    found = model.predict_store(store) if len(store) else None
    if found is None or len(np.unique(found.labels)) < 2:
        raise ValueError(f"threshold={wanted!r} needs tuning rows of both classes: raise tuning, or set a number")
    scores = found.probabilities[:, 1].astype(np.float64)
    if wanted == "youden":
        return binary.youden(found.labels, scores)
    precision, recall, thresholds = precision_recall_curve(found.labels, scores)
    values = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
    best = thresholds[(values >= values.max() - 1e-12) & np.isfinite(thresholds)]
    return float(best[np.argmin(np.abs(best - 0.5))])
