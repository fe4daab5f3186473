"""Plain models: what they see, that they learn, and that their arrays say what scikit-learn says."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from remind_jax.data import dataset as datasets
from remind_jax.data.kinds.text import EOS, PAD
from remind_jax.inference import plain
from remind_jax.inference import stack as members
from remind_jax.ops import plain as ops
from remind_jax.tasks.classes import Classes
from remind_jax.tasks.multilabel import Multilabel
from remind_jax.tasks.ordinal import Ordinal
from remind_jax.tasks.regression import Regression
from remind_jax.tasks.survival import Survival
from remind_jax.training import learners, plain_models, stack, tree_arrays
from tests import plain_runs, tiny_runs
from tests.data.event_files import tables, write_folder
from tests.data.manifest_files import write_image_manifest, write_manifest

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
CLASSIFIERS = ("logistic_regression", "gradient_boosting", "extra_trees")


def task_of(classes):
    return Classes((1 / classes,) * classes, tuple(map(str, range(classes))))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    return plain_runs.hospital(tmp_path_factory.mktemp("hospital"))


# ---- Features --------------------------------------------------------------------------------------------------------


def test_features_are_the_encoded_rows(hospital):
    _, data = hospital
    found = plain_models.features(data, "tuning")
    store = data.stores["tuning"]
    batch = store.take(np.arange(len(store)))
    names = list(data.inputs)
    np.testing.assert_array_equal(found.present, batch["present"])
    np.testing.assert_array_equal(found.labels, batch["label"])
    assert len(found.bags) == 2
    for name, bag in zip(("note", "icd"), found.bags, strict=True):
        assert bag.shape == (len(store), data.inputs[name].vocabulary)
        for i, ids in enumerate(batch[name]):
            expected = np.bincount(ids[(ids != PAD) & (ids != EOS)], minlength=bag.shape[1])
            np.testing.assert_array_equal(bag[i].toarray()[0], expected)
        assert bag.sum() > 0
    labs = found.dense[:, : data.inputs["labs"].shape[0]]
    here = batch["present"][:, names.index("labs")]
    assert np.isnan(labs[~here]).all()
    assert not np.isnan(labs[here]).all(axis=1).any()
    scan = found.dense[:, labs.shape[1] :]
    there = batch["present"][:, names.index("scan")]
    np.testing.assert_allclose(scan[there], batch["scan"][there].mean(axis=1), rtol=1e-6)


def test_images_and_volumes_become_numbers(tmp_path):
    root = write_image_manifest(tmp_path / "data", n=40)
    data = datasets.load_dataset(plain_runs.config_of(tmp_path, root, data__image_size=16, data__frames=5))
    found = plain_models.features(data, "train")
    # Colour and grey images, five grey frames in four blocks, and the table's features.
    width = 8 * 8 * 3 + 8 * 8 + 4 * 8 * 8 + data.inputs["labs"].shape[0]
    assert found.dense.shape == (len(data.rows("train")), width)
    assert found.bags == ()
    np.testing.assert_array_equal(np.isnan(found.dense[:, 0]), ~found.present[:, 0])


# ---- Models ----------------------------------------------------------------------------------------------------------


def _made(n: int, seed: int, rule) -> plain_models.Features:
    """Two numbers of which the second is sometimes missing, one bag of three tokens; labels by `rule`."""
    from scipy import sparse

    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(n, 2)).astype(np.float32)
    bag = rng.integers(0, 2, (n, 3))
    labels = rule(dense, bag).astype(np.int64)
    present = np.stack([np.ones(n, bool), rng.random(n) < 0.7], axis=1)
    dense[~present[:, 1], 1] = np.nan
    return plain_models.Features(dense, (sparse.csr_matrix(bag.astype(np.float32)),), present, labels)


def _fit(name: str, rule, classes: int = 2):
    train, tuning, test = (_made(n, seed, rule) for seed, n in enumerate((400, 150, 300)))

    def score(probabilities):
        return float(np.mean(probabilities.argmax(1) == tuning.labels))

    fitted = plain_models.MODELS[name](train, task_of(classes), 0, score, tuning)
    return fitted, fitted.predict(test), test.labels


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_models_learn_what_they_can_and_tell_probabilities(name):
    fitted, probabilities, labels = _fit(name, lambda dense, bag: dense[:, 0] + 2 * bag[:, 1] > 1)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-6)
    assert np.mean(probabilities.argmax(1) == labels) > 0.9
    assert fitted.parameters > 3


def test_boosting_finds_what_a_line_cannot():
    def rule(dense, bag):
        return (dense[:, 0] > 0) ^ (bag[:, 0] > 0)

    _, line, labels = _fit("logistic_regression", rule)
    fitted, trees, _ = _fit("gradient_boosting", rule)
    assert np.mean(line.argmax(1) == labels) < 0.65
    assert np.mean(trees.argmax(1) == labels) > 0.9
    assert fitted.chosen["depth"] > 1  # a tree of depth 1 has no interactions


@pytest.mark.parametrize("numbers", [pytest.param("quantile", marks=pytest.mark.slow), "piecewise"])
def test_models_learn_from_every_encoding_of_numbers(hospital, monkeypatch, numbers):
    monkeypatch.setattr(plain_models, "TREES", 10)
    config = hospital[0].copy_and_resolve_references()
    config.data.numbers = numbers
    data = datasets.load_dataset(config)
    train, tuning = (plain_models.features(data, split) for split in ("train", "tuning"))
    score, labs = plain_models.score_of("auroc", task_of(2), tuning.labels), data.inputs["labs"].shape[0]
    for model in map(plain_models.MODELS.get, CLASSIFIERS):
        found = []
        # The features of the table alone, and none of them.
        for factor in (1, 0):
            one, two = (part._replace(dense=factor * part.dense[:, :labs], bags=()) for part in (train, tuning))
            found.append(score(model(one, task_of(2), 0, score, two).predict(two)))
        assert found[0] > found[1] + 0.1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_class_that_training_lacks_has_probability_zero(name):
    _, probabilities, _ = _fit(name, lambda dense, bag: np.where(dense[:, 0] > 0, 2, 0), classes=4)
    assert probabilities.shape == (300, 4)
    np.testing.assert_array_equal(probabilities[:, [1, 3]], 0)


def test_tuning_rows_choose(monkeypatch):
    """With a criterion that likes uncertain answers the strongest penalty wins, with the opposite one the weakest."""
    train, tuning = (_made(n, seed, lambda dense, bag: dense[:, 0] > 0) for seed, n in enumerate((200, 80)))
    for sign, expected in ((-1, plain_models.STRENGTHS[0]), (1, plain_models.STRENGTHS[-1])):
        fitted = plain_models.MODELS["logistic_regression"](
            train,
            task_of(2),
            0,
            lambda probabilities, sign=sign: sign * float(probabilities.max(axis=1).mean()),
            tuning,
        )
        assert fitted.chosen == {"C": expected}


def _peaked(at: int):
    """A score that rises to its call number `at`, counted from 0, and falls after it; and the list of its calls."""
    calls: list[int] = []

    def score(predictions) -> float:
        calls.append(len(predictions))
        return -abs(len(calls) - 1 - at)

    return score, calls


@pytest.mark.parametrize(("model", "key"), [("logistic_regression", "C"), ("extra_trees", "min_samples_leaf")])
def test_a_path_of_strengths_ends_two_behind_its_peak(model, key, monkeypatch):
    monkeypatch.setattr(plain_models, "FOREST", 2)
    train, tuning = (_made(n, seed, lambda dense, bag: dense[:, 0] > 0) for seed, n in enumerate((200, 80)))
    score, calls = _peaked(1)
    fitted = plain_models.MODELS[model](train, task_of(2), 0, score, tuning)
    strengths = plain_models.STRENGTHS if key == "C" else plain_models.LEAVES
    assert fitted.chosen == {key: strengths[1]}
    assert len(calls) == 4


def test_boosting_grows_no_further_than_it_gets_better_and_its_trees_are_those_of_one_fit():
    from sklearn.ensemble import HistGradientBoostingClassifier

    train, tuning = (_made(n, seed, lambda dense, bag: dense[:, 0] + bag[:, 1] > 0) for seed, n in enumerate((200, 80)))
    score, calls = _peaked(29)
    fitted = plain_models.MODELS["gradient_boosting"](train, task_of(2), 0, score, tuning)
    assert fitted.chosen == {"depth": plain_models.DEPTHS[0], "trees": 30}
    assert len(calls) == 75 + 50 * (len(plain_models.DEPTHS) - 1)  # of 200 each
    x = [np.concatenate([each.dense, each.present, each.bags[0].toarray()], axis=1) for each in (train, tuning)]
    whole = HistGradientBoostingClassifier(max_depth=1, max_iter=30, early_stopping=False).fit(x[0], train.labels)
    np.testing.assert_allclose(fitted.predict(tuning), whole.predict_proba(x[1]), rtol=1e-6)


def test_person_periods_end_where_the_event_is_or_the_time_is_censored():
    made = []

    class Spy:
        def fit(self, x, y, sample_weight):
            made.append((x, y, sample_weight))
            return self

    task = types.SimpleNamespace(outputs=3, steps=lambda labels: (labels[:, 0].astype(int), labels[:, 1] > 0))
    x, labels = np.array([[5.0], [6.0], [7.0]]), np.array([[1, 1], [1, 0], [3, 0]])
    learners.Hazards(lambda kind: Spy(), x, labels, task, np.array([1.0, 2.0, 4.0]))
    rows, events, weights = made[0]
    # two steps of the first, in the second of which it has its event; two of the second; all three of the last
    assert rows.tolist() == [[5, 0], [5, 1], [6, 0], [6, 1], [7, 0], [7, 1], [7, 2]]
    assert events.tolist() == [False, True, False, False, False, False, False]
    assert weights.tolist() == [1, 1, 2, 2, 4, 4, 4]


# ---- Arrays ----------------------------------------------------------------------------------------------------------


def _rows(n: int, seed: int, rule) -> plain_models.Features:
    """Four numbers, two of them missing with the second modality, one bag of five tokens; labels by `rule`."""
    from scipy import sparse

    rng = np.random.default_rng(seed)
    dense, bag = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 3, (n, 5))
    labels = rule(dense, bag, rng.normal(size=n))
    present = np.stack([np.ones(n, bool), rng.random(n) < 0.7], axis=1)
    dense[~present[:, 1], 1:3] = np.nan
    return plain_models.Features(dense, (sparse.csr_matrix(bag.astype(np.float32)),), present, labels)


def _time_and_event(dense, bag, noise):
    time = np.exp(noise - dense[:, 0])
    return np.stack([np.minimum(time, 1 + bag[:, 0]), time <= 1 + bag[:, 0]], axis=1).astype(np.float32)


_SETTINGS = types.SimpleNamespace(task=types.SimpleNamespace(bins=6))
_SURVIVAL = Survival.fit(types.SimpleNamespace(horizons=(0.5, 1.0)), _SETTINGS, _rows(300, 0, _time_and_event).labels)
TASKS = {
    "two classes": (task_of(2), lambda dense, bag, noise: (dense[:, 0] + bag[:, 1] + noise > 1).astype(int)),
    "three of four classes": (task_of(4), lambda dense, bag, noise: np.digitize(dense[:, 0] + noise, [0, 1]) + 1),
    "ordered": (
        Ordinal((1 / 3,) * 3, tuple("abc")),
        lambda dense, bag, noise: np.digitize(dense[:, 0] + noise, [0, 1]),
    ),
    "labels, some unknown": (
        Multilabel((0.5, 0.5), ("a", "b"), (0.5, 0.5)),
        lambda dense, bag, noise: np.stack([np.where(noise > 1, -1, dense[:, 0] > 0), bag[:, 0] > 1], axis=1),
    ),
    "values": (
        Regression((0.0,), "mean", 0.9, "log1p", 1.0, 0.5),
        lambda dense, bag, noise: np.exp(1 + dense[:, 0] / 2 + noise / 4),
    ),
    "survival": (_SURVIVAL, _time_and_event),
}
_OF_TASKS = [
    (name, model)
    for name, (task, _) in TASKS.items()
    for model, known in plain_models.TASKS_OF.items()
    if task.name in known
]


@pytest.mark.parametrize(("name", "model"), _OF_TASKS)
def test_arrays_predict_what_the_library_does(name, model, monkeypatch):
    monkeypatch.setattr(plain_models, "FOREST", 40)
    monkeypatch.setattr(stack, "_BLOCK", 150)  # the last block is shorter
    task, rule = TASKS[name]
    train, tuning, test = (_rows(n, seed, rule) for seed, n in enumerate((300, 100, 200)))
    score = plain_models.score_of("loss", task, tuning.labels)
    fitted = plain_models.MODELS[model](train, task, 0, score, tuning)
    expected = fitted.predict(test)
    assert np.ptp(expected, axis=0).min() > 0.05 or name == "three of four classes"
    found = stack.predict_plain(model, fitted.arrays, test, task)
    np.testing.assert_allclose(found, expected, rtol=1e-6 if name == "values" else 0, atol=1e-6)
    again = task.predictions(np.asarray(task.logits(jnp.asarray(found))))
    np.testing.assert_allclose(again, found, rtol=1e-6, atol=1e-6)
    wrong = {path: x if path != "coef" and path != "value" else x * 1.001 for path, x in fitted.arrays.items()}
    assert np.abs(stack.predict_plain(model, wrong, test, task) - expected).max() > 1e-6


@pytest.mark.parametrize(("name", "model"), _OF_TASKS)
def test_rows_of_little_weight_hardly_count(name, model, monkeypatch):
    """The same inputs with other labels, at a thousandth of the weight, move little; with the whole weight they do."""
    from scipy import sparse

    monkeypatch.setattr(plain_models, "FOREST", 40)
    monkeypatch.setattr(plain_models, "TREES", 25)
    task, rule = TASKS[name]
    train, tuning, test = (_rows(n, seed, rule) for seed, n in enumerate((300, 100, 200)))
    twice = [np.concatenate([x, x]) for x in (train.dense, train.present)]
    labels = np.concatenate([train.labels, np.random.default_rng(5).permutation(train.labels)])
    both = plain_models.Features(twice[0], (sparse.vstack([train.bags[0]] * 2, format="csr"),), twice[1], labels)
    weights = np.repeat(np.float32([1.0, 0.001]), len(train.labels))
    score = plain_models.score_of("loss", task, tuning.labels)
    alone, alike, weighed = (
        plain_models.MODELS[model](rows, task, 0, score, tuning).predict(test)
        for rows in (train, both, both._replace(weights=weights))
    )
    # Leaves need a number of rows of any weight, most of all those of forests.
    share = {"logistic_regression": 0.05, "ridge": 0.05, "extra_trees": 0.96}.get(model, 0.4)
    assert np.abs(weighed - alone).mean() < share * np.abs(alike - alone).mean()


def test_a_threshold_between_two_float32_sends_neither_the_wrong_way():
    """A split of float64 thresholds keeps its sides when it is rounded, also where it rounds up to the next number."""
    low, high = np.float32(1.0), np.nextafter(np.float32(1.0), np.float32(2.0))
    threshold = float(low) + 0.9 * (float(high) - float(low))
    node = {"feature": np.array([0, 0, 0]), "threshold": np.array([threshold, 0, 0]), "left": np.array([1, 1, 2])}
    node |= {"right": np.array([2, 1, 2]), "default_left": np.zeros(3, bool), "value": np.array([[0.0], [1.0], [2.0]])}
    arrays = tree_arrays.joined(np.zeros(1, np.float32), [node])
    found = ops.trees(jnp.array([[low], [high]]), {name: jnp.asarray(x) for name, x in arrays.items()})
    assert np.float32(threshold) == high
    assert np.ravel(found).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("kind", ["hospital", "events", "pictures", "pieces"])
def test_inputs_of_a_program_are_those_of_the_fit(tmp_path, kind):
    root = tmp_path / "data"
    if kind == "events":
        write_folder(root, *tables())
    elif kind == "pictures":
        write_image_manifest(root, n=40)
    else:
        write_manifest(root, n=60)
    changes = {"data__numbers": "piecewise"} if kind == "pieces" else {"data__image_size": 16, "data__frames": 5}
    data = datasets.load_dataset(plain_runs.config_of(tmp_path, root, **changes))
    expected, store = plain_models.features(data, "train"), data.stores["train"]
    found = plain.seen(data.preprocessor, store.take(np.arange(len(store))))
    np.testing.assert_allclose(found.dense, expected.dense, rtol=1e-6, atol=1e-7)
    assert np.isnan(expected.dense).any()
    assert len(found.bags) == len(expected.bags)
    for bag, one in zip(found.bags, expected.bags, strict=True):
        np.testing.assert_array_equal(bag, one.toarray())
    np.testing.assert_array_equal(found.present, expected.present)


def test_a_member_needs_no_temperature_of_the_whole():
    assert members.untuned(Classes((0.5, 0.5), ("a", "b"), temperature=2.0)).temperature == 1.0
