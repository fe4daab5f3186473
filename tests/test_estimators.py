"""The estimators keep scikit-learn's rules, and work where its own do."""

import copy

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv

import remind_jax as rj
from remind_jax import api, estimators
from tests.data.manifest_files import write_scans

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:neither groups nor patient"),
]

SMALL = {
    "model.width": 8,
    "fusion": {"experts": 2, "hidden": 8, "heads": 2},
    "train": {"batch_size": 16, "epochs": 10.0, "joint_epochs": 5.0},
    "optim.lr": 1e-2,
    "eval": {"bootstrap": 20, "batch_size": 64},
    "devices": 1,
}
QUICK = {**SMALL, "train": {"batch_size": 16, "epochs": 2.0, "joint_epochs": 1.0}}
# Each with its reason; docs/python.md names them too.
SKIPPED = {
    "check_sample_weight_equivalence_on_dense_data": "a row of weight 2 is in other batches than the same row twice",
}


def small(**options) -> rj.MultimodalClassifier:
    return rj.MultimodalClassifier(**{"method": "soft_moe", "keys": QUICK, **options})


def regressor(**options) -> rj.MultimodalRegressor:
    keys = {**SMALL, "train": {"batch_size": 16, "epochs": 40.0, "joint_epochs": 10.0}}
    return rj.MultimodalRegressor(**{"method": "soft_moe", "keys": keys, **options})


@pytest.mark.slow
@parametrize_with_checks([small(keys=SMALL), regressor()], expected_failed_checks=lambda estimator: SKIPPED)
def test_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def patients():
    """X, y and groups of 120 people, of whom some lack a modality."""
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(160, 3)), rng.integers(0, 120, 160)
    y = np.where(values[:, 0] + values[:, 2] + rng.normal(0, 0.3, 160) > 0.5, "ill", "well")
    values[rng.random(160) < 0.3, :2] = np.nan
    X = pl.DataFrame(values, schema=["a1", "a2", "b"]).fill_nan(None)
    return X, y, groups


@pytest.fixture(scope="module")
def fitted(patients, quick_compilation):
    X, y, groups = patients
    return small(modalities={"a": ["a*"], "b": ["b"]}, keys=SMALL, tuning=0.2).fit(X, y, groups=groups)


def test_it_learns_from_frames_with_missing_modalities(fitted, patients):
    X, y, _ = patients
    assert fitted.score(X, y) > 0.75
    assert fitted.classes_.tolist() == ["ill", "well"]
    assert fitted.model_.groups.modalities == ("a", "b")
    assert fitted.model_.report["split"] == "tuning"


@pytest.mark.slow
def test_search_over_methods(patients):
    X, y, groups = patients
    estimator = small(modalities={"a": ["a*"], "b": ["b"]})
    search = GridSearchCV(estimator, {"method": ["soft_moe", "remind"]}, cv=GroupKFold(2), scoring="roc_auc")
    search.fit(X, y, groups=groups)
    assert search.best_params_["method"] in ("soft_moe", "remind")
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.model_.config.method == search.best_params_["method"]


@pytest.mark.slow
def test_scores_of_a_cross_validation_in_two_processes_are_those_of_one(patients):
    X, y, groups = patients
    options = {"groups": groups, "cv": GroupKFold(2), "params": {"groups": groups}}
    estimator = small(modalities={"a": ["a*"], "b": ["b"]})
    alone = cross_val_score(estimator, X.to_pandas(), y, **options)
    np.testing.assert_allclose(cross_val_score(estimator, X.to_pandas(), y, n_jobs=2, **options), alone)


def test_groups_are_patients_and_so_is_a_column_and_settings_may_be_numbers_of_numpy(patients):
    X, y, groups = patients
    modalities = {"a": ["a*"], "b": ["b"]}
    of_groups = small(modalities=modalities, seed=3).fit(X, y, groups=groups)
    numbers = {"seed": np.int64(3), "tuning": np.float64(of_groups.tuning)}
    of_column = small(modalities=modalities, patient="who", **numbers).fit(X.with_columns(who=pl.Series(groups)), y)
    assert of_column.model_.config.seed == 3
    np.testing.assert_array_equal(of_groups.predict_proba(X), of_column.model_.predict_proba(X))
    assert of_groups.model_.train_patients.sum() < len(y)


@pytest.mark.slow
def test_weights_of_rows_act_in_training(patients):
    X, y, groups = patients
    modalities = {"a": ["a*"], "b": ["b"]}

    def probabilities(weights):
        found = small(modalities=modalities, keys=SMALL).fit(X, y, groups=groups, sample_weight=weights)
        return found.predict_proba(X)[:, 0]

    alike = probabilities(None)
    np.testing.assert_allclose(probabilities(np.ones(len(y))), alike, atol=1e-6)
    np.testing.assert_allclose(probabilities(np.full(len(y), 3.0)), alike, atol=1e-4)
    assert probabilities(np.where(y == "ill", 10.0, 1.0)).mean() > alike.mean() + 0.1


def test_rows_of_weight_zero_are_left_out(patients):
    X, y, groups = patients
    half = np.arange(len(y)) % 2 == 0
    modalities = {"a": ["a*"], "b": ["b"]}
    weighted = small(modalities=modalities).fit(X, y, groups=groups, sample_weight=half.astype(float))
    alone = small(modalities=modalities).fit(X.filter(pl.Series(half)), y[half], groups=groups[half])
    np.testing.assert_allclose(weighted.predict_proba(X), alone.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.2, "f1", pytest.param("youden", marks=pytest.mark.slow)])
def test_the_threshold_decides(patients, threshold):
    X, y, groups = patients
    modalities = {"a": ["a*"], "b": ["b"]}
    found = small(modalities=modalities, tuning=0.3, threshold=threshold).fit(X, y, groups=groups)
    probability = found.predict_proba(X)[:, 1]
    expected = np.where(probability >= found.threshold_, "well", "ill")
    np.testing.assert_array_equal(found.predict(X), expected)
    if threshold == 0.2:
        assert found.threshold_ == 0.2


@pytest.fixture(scope="module")
def tuned(patients, quick_compilation):
    """A model and its data, with tuning rows."""
    X, y, groups = patients
    config = api.make_config("soft_moe", "small", 0, 0.0, 0.3, QUICK)
    frame = X.with_columns(label=pl.Series((y == "well").astype(int)), who=pl.Series(groups))
    manifest = api.read_frame(frame, "label", {"a": ["a*"], "b": ["b"]}, config, patient="who", verbose=False)
    return api.train(config, manifest, None, False)


@pytest.mark.parametrize("word", ["f1", "youden"])
def test_a_tuned_threshold_is_the_best_one_on_the_tuning_rows(tuned, word):
    """Against all thresholds there are, one by one."""
    model, data = tuned
    predicted = model.predict_store(data.stores["tuning"])

    def value(threshold):
        told = predicted.probabilities[:, 1].astype(np.float64) >= threshold
        if word == "f1":
            return f1_score(predicted.labels, told, zero_division=0.0)
        return told[predicted.labels == 1].mean() - told[predicted.labels == 0].mean()

    best = max(value(x) for x in predicted.probabilities[:, 1].astype(np.float64))
    found = estimators.choose_threshold(word, model, data)
    assert value(found) == pytest.approx(best)


def test_thresholds_that_cannot_be_are_refused(patients):
    X, y, groups = patients
    for threshold in ("recall", None, 2.0, np.nan, True):
        with pytest.raises(ValueError, match="must be a number from 0 to 1 or one of f1, youden"):
            small(threshold=threshold, modalities={"a": ["a*"], "b": ["b"]}).fit(X, y, groups=groups)
    with pytest.raises(ValueError, match="two classes"):
        small(threshold="f1").fit(np.eye(9), np.arange(9) % 3)


def test_rows_without_any_modality_have_the_shares_of_the_classes(fitted, patients):
    X, y, _ = patients
    rows = X.with_columns(pl.when(pl.int_range(pl.len()) >= 2).then(pl.all()))
    with pytest.warns(UserWarning, match="^2 rows have no modality at all"):
        found = fitted.predict_proba(rows)
    np.testing.assert_allclose(found[2:], fitted.predict_proba(X[2:]), atol=1e-6)
    np.testing.assert_allclose(found[:2], [fitted.model_.class_fractions] * 2)
    with pytest.warns(UserWarning, match="^160 rows"):
        assert fitted.predict(X.with_columns(pl.lit(None, pl.Float64).alias(c) for c in X.columns)).shape == y.shape


def test_a_class_that_only_rows_without_modality_have_is_none(patients):
    X, _, groups = patients
    y = np.array(["a", "b", "c"])[np.arange(160) % 3]
    rows = X.with_columns(pl.when(pl.Series(y != "b")).then(pl.all()))
    with pytest.warns(UserWarning, match="53 rows without any modality are left out"):
        found = small(modalities={"a": ["a*"], "b": ["b"]}).fit(rows, y, groups=groups)
    assert found.classes_.tolist() == ["a", "c"]
    assert set(found.predict(X)) <= {"a", "c"}


def test_arrays_are_the_columns_of_the_frame_that_was_fitted(fitted, patients):
    X, _, _ = patients
    with pytest.warns(UserWarning, match="valid feature names"):
        found = fitted.predict_proba(X.to_numpy())
    np.testing.assert_allclose(found, fitted.predict_proba(X))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (np.arange(9), "inconsistent numbers"),
        (np.where(np.arange(160) == 3, np.nan, 1.0), r"'groups': 1 cell \(row 4\) empty"),
        (np.array([None, *"ab" * 79, 3], object), r"'groups': 1 cell \(row 1\) empty"),
    ],
)
def test_groups_that_name_no_patients_are_refused(patients, groups, message):
    X, y, _ = patients
    with pytest.raises((ValueError, rj.UserError), match=message):
        small(modalities={"a": ["a*"], "b": ["b"]}).fit(X, y, groups=groups)


def test_a_copy_is_made_of_the_saved_model(fitted, patients, tmp_path):
    """As a pickle is, which scikit-learn's own checks make."""
    X, _, _ = patients
    again = copy.deepcopy(fitted)
    assert again.model_ is not fitted.model_
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    assert set(fitted.__getstate__()["model_"]) == {"model.json", "model.safetensors"}
    fitted.save(tmp_path / "model")
    np.testing.assert_allclose(rj.load(tmp_path / "model").predict_proba(X), fitted.predict_proba(X))


def test_a_clone_has_the_parameters_and_no_model(fitted):
    cloned = clone(fitted)
    assert cloned.get_params() == fitted.get_params()
    assert not hasattr(cloned, "model_")


@pytest.mark.filterwarnings("default:neither groups nor patient")
def test_it_works_in_a_pipeline_with_arrays_whose_rows_are_taken_for_patients(patients):
    X, y, _ = patients
    values = X.fill_null(0.0).to_numpy()
    with pytest.warns(UserWarning, match="rows are taken for patients"):
        found = make_pipeline(StandardScaler(), small()).fit(values, y)
    assert found.predict(values[:4]).shape == (4,)
    assert found[-1].model_.groups.modalities == ("x",)


def test_new_rows_have_their_files_where_those_of_training_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(60) % 2
    names = write_scans(tmp_path / "scans", labels)
    X = pl.DataFrame({"path": names})
    keys = {**QUICK, "data.root": str(tmp_path / "scans")}
    found = small(keys=keys, modalities={"scan": rj.Embedding("path")}).fit(X, labels)
    probabilities = found.predict_proba(X)
    assert probabilities.shape == (60, 2)
    np.testing.assert_array_equal(copy.deepcopy(found).predict_proba(X), probabilities)


# ---- Values and survival ---------------------------------------------------------------------------------------------


def test_values_are_predicted_from_frames_with_missing_modalities(patients, tmp_path):
    X, y, groups = patients
    values = 5 + 3 * X["b"].to_numpy() + np.random.default_rng(1).normal(0, 0.3, len(y))
    found = regressor(modalities={"a": ["a*"], "b": ["b"]}).fit(X, values, groups=groups)
    assert found.score(X, values) > 0.5
    assert found.model_.task.name == "regression"
    empty = pl.DataFrame({"a1": [None, 0.1], "a2": [None, 0.2], "b": [None, 0.3]}, schema=X.schema)
    with pytest.warns(UserWarning, match="1 rows have no modality at all: theirs are those of all training rows"):
        predicted = found.predict(empty)
    assert predicted[0] == pytest.approx(found.model_.task.baseline[0])
    np.testing.assert_array_equal(copy.deepcopy(found).predict(X), found.predict(X))
    found.save(tmp_path / "model")
    np.testing.assert_allclose(rj.load(tmp_path / "model").predict(X), found.predict(X), rtol=1e-6)


def test_survival_has_labels_of_scikit_survival_and_ranks_risks(patients):
    X, y, groups = patients
    rng = np.random.default_rng(1)
    times, censored = rng.exponential(np.exp(-1.5 * X["b"].to_numpy())) + 0.01, rng.exponential(2.0, len(y)) + 0.01
    labels = Surv.from_arrays(times <= censored, np.minimum(times, censored))
    made = rj.MultimodalSurvival(modalities={"a": ["a*"], "b": ["b"]}, method="soft_moe", keys=SMALL, tuning=0.2)
    found = made.fit(X, labels, groups=groups)
    risk = found.predict(X)
    expected = concordance_index_censored(labels["event"], labels["time"], risk)[0]
    assert found.score(X, labels) == pytest.approx(expected)
    assert expected > 0.6
    curves = found.predict_survival(X, [0.0, 0.5, 1.0])
    assert curves.shape == (160, 3)
    assert (np.diff(curves, axis=1) <= 0).all()
    assert (curves[:, 0] == 1).all()
    assert clone(found).get_params() == made.get_params()


@pytest.mark.parametrize("labels", [np.ones(160), np.ones((160, 2)), np.zeros(160, [("a", float), ("b", float)])])
def test_other_labels_of_survival_are_refused(patients, labels):
    with pytest.raises(ValueError, match=r"two fields, event \(bool\) and time"):
        rj.MultimodalSurvival(keys=SMALL).fit(patients[0], labels)
