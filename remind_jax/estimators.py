"""Scikit-learn estimators: `fit` of remind_jax.api behind the rules of `sklearn.base.BaseEstimator`."""

import dataclasses
import numbers
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import precision_recall_curve, roc_curve
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
from remind_jax.inference import model_files
from remind_jax.inference.predictor import Predictor

THRESHOLDS = ("f1", "youden")
_NO_PATIENTS = "neither groups nor patient is given: rows are taken for patients, and one person may be on both sides"


class MultimodalClassifier(ClassifierMixin, BaseEstimator):
    """Classifies samples whose modalities are partly missing, see `remind_jax.fit`.

    Args:
      modalities: as for `fit`; None guesses those of a frame and takes all columns of an array for one table.
      patient: the column of a frame that names patients, used where `fit` is not given `groups`.
      method, size, seed: as for `fit`.
      tuning: share of the patients by which weights, and the threshold, are chosen.
      threshold: of two classes, the probability from which on `predict` names the second: a number, or what the tuning
        rows decide: `f1`, the highest F1, or `youden`, the highest sensitivity + specificity - 1.
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
        method: str = "remind",
        size: str = "small",
        seed: int = 0,
        tuning: float = 0.1,
        threshold: float | str = 0.5,
        keys: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ):
        self.modalities = modalities
        self.patient = patient
        self.method = method
        self.size = size
        self.seed = seed
        self.tuning = tuning
        self.threshold = threshold
        self.keys = keys
        self.verbose = verbose

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Trains on a frame, or an array [n, p] of numbers, and labels [n]; no rows are held out.

        `groups` [n] names the patient of each row. `sample_weight` [n] is what rows count in the loss of training; the
        tuning rows count alike. Rows of weight 0 are left out, and rows without any modality, of which a warning tells.
        Raises UserError or ValueError: what is wrong with them.
        """
        check_threshold(self.threshold)
        frame, y = self._checked(X, y)
        groups, weights = None if groups is None else column_or_1d(groups), None
        check_consistent_length(y, groups)
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
            counts = weights > 0
            frame, y, weights = frame.filter(pl.Series(counts)), y[counts], weights[counts]
            groups = None if groups is None else groups[counts]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class; a classifier needs at least 2 classes")
        if len(self.classes_) > 2 and self.threshold != 0.5:
            raise ValueError(f"threshold={self.threshold!r} is for two classes; y has {len(self.classes_)}")
        config = api.make_config(self.method, self.size, self.seed, 0.0, self.tuning, self.keys or {})
        manifest = self._manifest(frame, codes, groups, config)
        for note in manifest.notes:
            if note.code == "I001":
                warnings.warn(note.message, stacklevel=2)
        self.classes_ = self.classes_[[int(name) for name in manifest.schema.classes]]  # of rows with a modality
        if weights is not None:
            rows = manifest.table[manifest.schema.sample_id].cast(pl.Int64).to_numpy() - 1
            manifest = dataclasses.replace(manifest, weights=weights[rows].astype(np.float32))
        self.model_, data = api.train(config, manifest, None, self.verbose)
        self.threshold_ = None
        if len(self.classes_) == 2:
            self.threshold_ = choose_threshold(self.threshold, self.model_, data)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns probabilities of the classes, float [n, c], in the order of `classes_`.

        A row without any modality has the shares of the classes among the train rows, and a warning counts such rows.
        """
        check_is_fitted(self)
        frame, model = self._rows(X, reset=False), self.model_
        known = {c for each in model.schema.modalities for c in each.all_columns} & set(frame.columns)
        cells = pl.DataFrame([emptied(column)[0] for column in frame.select(known).iter_columns()])
        empty = cells.select(pl.all_horizontal(pl.all().is_null())).to_series()
        if not known or not empty.any():
            return model.predict_proba(frame).astype(np.float64)
        warnings.warn(f"{empty.sum()} rows have no modality at all: theirs are the shares of the classes", stacklevel=2)
        found = np.tile(model.class_fractions, (len(empty), 1))
        if not empty.all():
            found[~empty.to_numpy()] = model.predict_proba(frame.filter(~empty))
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row, or of two classes the second from the threshold on, [n]."""
        probabilities = self.predict_proba(X)
        if self.threshold_ is None:
            return self.classes_[probabilities.argmax(axis=1)]
        return self.classes_[(probabilities[:, 1] >= self.threshold_).astype(int)]

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes the trained model as a folder for `remind_jax.load`, which knows no threshold."""
        check_is_fitted(self)
        self.model_.save(folder)

    def _rows(self, X: Any, **options: Any) -> pl.DataFrame:
        """Returns a frame, or the columns of an array as x0, x1, …, checked as scikit-learn wants it."""
        if hasattr(X, "columns"):
            validate_data(self, X, skip_check_array=True, **options)
            return reading.as_polars(X)
        found = validate_data(self, X, dtype="numeric", ensure_all_finite="allow-nan", **options)
        names = getattr(self, "feature_names_in_", [f"x{j}" for j in range(found.shape[1])])
        return pl.DataFrame(dict(zip(names, np.asarray(found, np.float64).T, strict=True))).fill_nan(None)

    def _checked(self, X: Any, y: Any) -> tuple[pl.DataFrame, np.ndarray]:
        """Returns the rows and labels [n] to train on."""
        if y is None:
            validate_data(self, X, y)  # says what scikit-learn says
        frame, labels = self._rows(X, reset=True), column_or_1d(y, warn=True)
        check_consistent_length(X, labels)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        return frame, labels

    def _manifest(self, frame: pl.DataFrame, codes: np.ndarray, groups: Any, config: Any) -> Manifest:
        """Makes a manifest of rows and positions of their classes, [n]; its sample ids count rows from 1.

        Without patients the ids of samples are those of patients.
        """
        modalities = self.modalities
        if modalities is None and not hasattr(self, "feature_names_in_"):
            modalities = {"x": api.Table(frame.columns)}
        label, patient, sample = (free_name(name, frame.columns) for name in ("label", "groups", "sample_id"))
        frame = frame.with_columns(pl.Series(label, codes), pl.int_range(1, pl.len() + 1).alias(sample))
        if groups is not None:
            cells = groups.tolist() if groups.dtype == object else groups
            frame = frame.with_columns(pl.Series(patient, cells, strict=False))
        elif self.patient is None:
            warnings.warn(_NO_PATIENTS, stacklevel=3)
        known = patient if groups is not None else self.patient or sample
        return api.read_frame(frame, label, modalities, config, patient=known, sample=sample, verbose=self.verbose)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state with the model as the files that `save` writes."""
        state = dict(super().__getstate__())
        if "model_" in state:
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
        false, true, thresholds = roc_curve(found.labels, scores, drop_intermediate=False)
        values = true - false
    else:
        precision, recall, thresholds = precision_recall_curve(found.labels, scores)
        values = (2 * precision * recall / np.maximum(precision + recall, 1e-12))[:-1]
    best = thresholds[(values >= values.max() - 1e-12) & np.isfinite(thresholds)]
    return float(best[np.argmin(np.abs(best - 0.5))])
