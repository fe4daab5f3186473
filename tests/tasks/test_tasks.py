"""Every task: its loss against a slow reference, predictions that agree with the loss, figures, and its record."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from remind_jax import tasks
from remind_jax.config import base
from remind_jax.data.schema import Schema
from remind_jax.errors import UserError
from remind_jax.evaluation import conformal, metrics
from remind_jax.tasks import regression
from tests.reference import tasks as reference

OUTCOMES = np.array([[0.5, 1], [1.0, 1], [2.0, 0], [3.0, 1], [4.0, 1], [9.0, 0]] * 8)


def schema(task, **fields):
    return Schema("toy", "id", "patient", "y", fields.pop("classes", ()), (), task=task, **fields)


def made(task, labels=None, **options):
    """A task fitted on some labels, next to labels and logits of 48 samples."""
    rng, config = np.random.default_rng(7), base("synthetic")
    for key, value in options.items():
        config.task[key] = value
    if task in ("classes", "ordinal"):
        about, labels = schema(task, classes=("a", "b", "c")), np.tile([0, 1, 2, 2], 12)
    elif task == "multilabel":
        about = schema(task, classes=("y", "z"), more_labels=("z",))
        labels = np.tile(np.array([[1, 0], [0, 1], [1, -1], [0, 0]], np.int8), (12, 1))
    elif task == "regression":
        about = schema(task, transform="log1p" if labels is None else "none")
        labels = np.tile([0.0, 1.0, 4.0, 30.0], 12) if labels is None else labels
    else:
        about, labels = schema(task, more_labels=("died",), horizons=(2.0, 6.0)), OUTCOMES
    found = tasks.fit(about, config, labels)
    return found, labels, rng.normal(size=(len(labels), found.outputs)).astype(np.float32)


ALL = [
    ("classes", {}),
    ("ordinal", {}),
    ("multilabel", {}),
    *(("regression", {"predicts": each}) for each in regression.OUTPUTS),
    ("survival", {"bins": 3}),
]
every = pytest.mark.parametrize(("task", "options"), ALL)


def test_the_table_has_every_task():
    assert {name for name, _ in ALL} == set(tasks.TASKS)
    assert all(name == task.name for name, task in tasks.TASKS.items())


@every
def test_the_tuning_loss_of_predictions_is_the_loss_of_the_logits(task, options):
    found, labels, logits = made(task, **options)
    losses = jax.jit(found.loss)(jnp.array(logits), jnp.array(labels))
    assert losses.shape == (len(labels),)
    assert losses.dtype == jnp.float32
    told = found.tuning(labels, found.predictions(logits.astype(np.float64)))
    assert told["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert set(told) == set(found.select)
    assert found.select["loss"] is False


@every
def test_predictions_are_the_same_under_jax_and_numpy(task, options):
    found, _, logits = made(task, **options)
    one, other = found.predictions(logits), jax.jit(found.predictions)(jnp.array(logits))
    assert one.dtype == other.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
    assert one.shape == (len(logits), len(found.baseline))


@every
def test_several_predictors_predict_the_mean_of_their_predictions(task, options):
    found, _, _ = made(task, **options)
    logits = np.random.default_rng(3).normal(size=(3, 48, found.outputs)).astype(np.float32) * 3
    mean = np.asarray(jax.jit(found.mean_logits, static_argnums=1)(jnp.array(logits), 0))
    np.testing.assert_allclose(found.mean_logits(jnp.array(logits.swapaxes(0, 1)), 1), mean, rtol=1e-5, atol=1e-5)
    if task != "regression":
        each = np.stack([found.predictions(one) for one in logits])
        np.testing.assert_allclose(found.predictions(mean), each.mean(axis=0), rtol=2e-5, atol=1e-6)
        return
    linear, _, _ = made(task, np.linspace(-3, 9, 48), **options)  # without a transform
    (value, *bounds), each = linear.predictions(mean).T, np.stack([linear.predictions(one) for one in logits])
    np.testing.assert_allclose(value, each[..., 0].mean(axis=0), rtol=1e-4, atol=1e-4)
    if options["predicts"] == "quantiles":
        np.testing.assert_allclose(bounds, each[..., 1:].mean(axis=0).T, rtol=1e-4, atol=1e-4)
    if options["predicts"] == "gaussian":  # the variance of a mixture: the mean variance, and that of the means
        reach = 2 * linear._reach()
        deviations = (each[..., 2] - each[..., 1]) / reach
        expected = np.sqrt((deviations**2).mean(axis=0) + each[..., 0].var(axis=0))
        np.testing.assert_allclose((bounds[1] - bounds[0]) / reach, expected, rtol=1e-3)


@every
def test_figures_have_the_headline_and_its_interval(task, options):
    found, labels, logits = made(task, **options)
    figures = found.evaluation(labels, found.predictions(logits), np.arange(len(labels)), seed=0, resamples=40)
    whole = figures(np.ones(len(labels), bool))
    low, high = whole[f"{found.judge.headline}_ci"]
    assert low <= whole[found.judge.headline] <= high
    assert figures(np.arange(len(labels)) < 20)["notes"]
    empty = figures(np.zeros(len(labels), bool))
    assert empty[found.judge.headline] is None
    json.dumps([whole, empty], allow_nan=False)


@every
def test_what_learns_gets_better(task, options):
    """Logits that gradient descent moves towards the labels improve loss and headline."""
    found, labels, logits = made(task, **options)
    slope = jax.jit(jax.grad(lambda x: found.loss(x, jnp.array(labels)).sum()))
    moved = jnp.array(logits)
    for _ in range(200):
        moved -= 0.2 * jnp.clip(slope(moved), -1, 1)
    before, after = (found.tuning(labels, found.predictions(np.array(x))) for x in (logits, moved))
    assert after["loss"] < before["loss"]
    name, more = found.judge.headline, found.more
    assert (after[name] > before[name]) == more


@every
def test_figures_in_many_weightings_are_those_of_samples_repeated(task, options):
    found, labels, logits = made(task, **options)
    predictions, at = found.predictions(logits), np.arange(40)
    weights = np.random.default_rng(0).integers(0, 3, (2, 40)).astype(float)
    many = found.weighed(labels, predictions)(at, weights)
    assert set(found.compared) <= set(many)
    for r, times in enumerate(weights.astype(int)):
        rows = np.repeat(at, times)
        one = found.weighed(labels, predictions)(rows, np.ones((1, len(rows))))
        for name in found.compared:
            assert many[name][r] == pytest.approx(one[name][0]), name
    told = found.tuning(labels[at], predictions[at])
    assert told["loss"] == pytest.approx(
        float(found.loss(jnp.array(logits[at]), jnp.array(labels[at])).mean()), rel=1e-5
    )


@every
def test_what_is_explained_is_one_number_and_entropy_knows_the_unsure(task, options):
    found, _, logits = made(task, **options)
    predictions = found.predictions(logits)
    explained = found.explained(predictions, predictions)
    expected = {"classes": predictions.max(1), "ordinal": predictions.max(1), "multilabel": predictions.sum(1)}
    np.testing.assert_allclose(explained, expected.get(task, found.answers(predictions)))
    if options.get("predicts") == "mean":
        with pytest.raises(UserError, match="says nothing of how sure it is"):
            found.entropy(predictions)
        return
    sharp = logits * 1 if task == "regression" else logits * 50
    if task == "regression":
        sharp[:, 1:] -= 5
    assert (found.entropy(found.predictions(sharp)) < found.entropy(predictions)).mean() > 0.9


@every
def test_a_task_is_written_and_read(task, options):
    found, _, _ = made(task, **options)
    again = tasks.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    assert type(again) is tasks.TASKS[task]


@pytest.mark.parametrize("change", [{"task": "none"}, {"more": 1}])
def test_another_record_is_refused(change):
    with pytest.raises((ValueError, TypeError, KeyError)):
        tasks.from_dict({**made("survival")[0].to_dict(), **change})


@every
def test_columns_hold_the_answers(task, options):
    found, labels, logits = made(task, **options)
    predictions = found.predictions(logits)
    columns, answers = found.columns(predictions), found.answers(predictions)
    assert all(len(column) == len(labels) for column in columns.values())
    expected = {
        "classes": {"prediction", "p_a", "p_b", "p_c"},
        "ordinal": {"prediction", "p_a", "p_b", "p_c"},
        "multilabel": {"p_y", "p_z"},
        "regression": {"value"} | ({"lower", "upper"} if found.outputs > 1 else set()),
        "survival": {"risk", "s_2", "s_6"},
    }
    assert set(columns) == expected[task]
    if task in ("regression", "survival"):
        np.testing.assert_array_equal(columns["value" if task == "regression" else "risk"], answers)


def test_classes_are_softmax_and_cross_entropy():
    found, labels, logits = made("classes")
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found.predictions(logits), chances, rtol=1e-5)
    np.testing.assert_allclose(found.loss(logits, labels), -np.log(chances[np.arange(48), labels]), rtol=1e-5)
    assert found.baseline == (0.25, 0.25, 0.5)
    assert found.outputs == 3
    assert metrics.compute(labels, chances)[0]["accuracy"] == (found.answers(chances) == labels).mean()


def test_focal_loss_knows_the_shares_of_train_rows():
    config = base("synthetic")
    config.objective.loss, config.objective.focal_alpha = "focal", "inverse_class"
    found = tasks.fit(schema("classes", classes=("a", "b")), config, np.array([0, 0, 0, 1]))
    even = jnp.zeros((2, 2))
    # −α (1 − ½)² log ½, with α of ¼ for the frequent class and ¾ for the rare one
    np.testing.assert_allclose(found.loss(even, jnp.array([0, 1])), np.log(2) / 4 * np.array([0.25, 0.75]), rtol=1e-6)
    assert tasks.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_ordinal_by_hand_and_by_reference():
    found, labels, logits = made("ordinal")
    assert found.outputs == 2
    np.testing.assert_allclose(found.predictions(np.zeros((1, 2)))[0], [1 / 2, 1 / 4, 1 / 4])
    slow = np.array([reference.ordinal(x) for x in logits.tolist()])
    np.testing.assert_allclose(found.predictions(logits), slow, rtol=1e-5)
    np.testing.assert_allclose(slow.sum(1), 1.0)
    np.testing.assert_allclose(found.loss(logits, labels), -np.log(slow[np.arange(48), labels]), rtol=1e-5)


def test_ordinal_chances_of_more_fall_whatever_the_outputs():
    found, _, _ = made("ordinal")
    chances = found.predictions(np.array([[-9.0, 9.0], [9.0, -9.0], [300.0, -300.0]]))
    more = 1 - np.cumsum(chances, axis=1)
    assert (np.diff(more, axis=1) <= 1e-12).all()
    assert np.isfinite(chances).all()


def test_multilabel_baseline_and_answers():
    found, labels, _ = made("multilabel")
    np.testing.assert_allclose(found.baseline, [0.5, 1 / 3])  # of 48 known, and of 36
    predictions = np.tile([[0.6, 0.4], [0.4, 0.6], [0.7, 0.1], [0.45, 0.2]], (12, 1))
    np.testing.assert_array_equal(found.answers(predictions)[:3], [[1, 0], [0, 1], [1, 0]])
    tuned = found.tuned(labels, predictions)
    assert tuned.thresholds == (0.525, 0.5)
    assert tuned.tuning(labels, predictions)["f1_macro"] == 1.0


def test_regression_learns_standardised_values_and_answers_in_the_unit():
    found, labels, _ = made("regression", np.array([10.0, 30.0]))
    assert (found.mean, found.scale, found.baseline) == (20.0, 10.0, (20.0,))
    np.testing.assert_allclose(found.loss(jnp.array([[-1.0], [0.0]]), jnp.array(labels)), [0.0, 1.0])
    np.testing.assert_allclose(found.predictions(np.array([[-1.0], [0.5]])), [[10.0], [25.0]])


def test_log1p_is_learned_and_taken_back():
    found, labels, _ = made("regression", predicts="quantiles", level=0.8)
    logs = np.log1p(labels)
    assert found.mean == pytest.approx(logs.mean())
    exact = ((logs - logs.mean()) / logs.std())[:, None]
    predictions = found.predictions(np.concatenate([exact, np.full((48, 2), -30.0)], axis=1))
    np.testing.assert_allclose(predictions, np.tile(labels[:, None], 3), rtol=1e-6, atol=1e-9)
    assert found.baseline[0] == pytest.approx(np.expm1(logs.mean()))


@pytest.mark.parametrize("predicts", ["gaussian", "quantiles"])
def test_bounds_hold_the_value_and_never_cross(predicts):
    found, _, _ = made("regression", predicts=predicts)
    wild = np.random.default_rng(0).normal(size=(200, found.outputs)) * 50
    value, lower, upper = found.predictions(wild).T
    assert ((lower <= value) & (value <= upper)).all()
    assert np.isfinite([value, lower, upper]).all()


def test_a_normal_distribution_covers_what_it_promises():
    found, _, _ = made("regression", np.random.default_rng(1).normal(size=4000), predicts="gaussian", level=0.8)
    raw = np.log(np.expm1(1 - 0.01))  # softplus and the floor make one of it
    bounds = found.predictions(np.tile([0.0, raw], (4000, 1)))
    values = np.random.default_rng(2).normal(size=4000) * found.scale + found.mean
    figures = found.evaluation(values, bounds, np.arange(4000), seed=0, resamples=2)
    assert figures(np.ones(4000, bool))["coverage"] == pytest.approx(0.8, abs=0.02)


def test_survival_steps_end_at_quantiles_of_events_and_at_horizons():
    found, _, _ = made("survival", bins=2)
    # event times .5, 1, 3, 4, eight of each: the second and the last; horizons 2 and 6
    assert found.ends == (1.0, 2.0, 4.0, 6.0)
    assert found.outputs == 4
    # of 48: after 16 events 2/3 are left, of the 24 then at risk at 3 lose 8, of 16 at 4 lose 8
    np.testing.assert_allclose(found.baseline, [2 / 3, 2 / 3, 2 / 9, 2 / 9])
    assert made("survival", bins=50)[0].ends == (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)


def test_survival_equals_the_formula():
    found, labels, logits = made("survival", bins=2)
    step = np.array([0, 0, 1, 2, 2, 4] * 8)  # a time at the end of a step belongs to it
    whole = logits + found.start
    slow = [reference.hazards(x, s, e == 1) for x, s, e in zip(whole.tolist(), step, labels[:, 1], strict=True)]
    np.testing.assert_allclose(found.loss(jnp.array(logits), jnp.array(labels)), slow, rtol=1e-5)
    curves = [reference.survival(x) for x in whole.tolist()]
    np.testing.assert_allclose(found.predictions(logits), curves, rtol=1e-5)


def test_outputs_of_zero_are_the_kaplan_meier_estimate():
    found, _, _ = made("survival", bins=2)
    np.testing.assert_allclose(found.predictions(np.zeros((1, 4)))[0], found.baseline, rtol=3e-4)


def test_an_event_after_the_last_step_counts_as_survival_of_all():
    found, _, logits = made("survival", bins=2)
    late = jnp.array([[7.0, 1.0], [7.0, 0.0]])
    one, other = found.loss(jnp.array(logits[:1].repeat(2, axis=0)), late)
    whole = (logits[0] + found.start).tolist()
    assert one == other == pytest.approx(reference.hazards(whole, 3, False), rel=1e-5)


def test_risk_is_higher_for_earlier_events_and_survival_stands_at_horizons():
    found, _, _ = made("survival", bins=2)
    predictions = found.predictions(np.array([[-2.0, -2, -2, -2], [2.0, -2, -2, -2]]))
    columns = found.columns(predictions)
    assert columns["risk"][1] > columns["risk"][0]
    np.testing.assert_allclose(columns["s_2"], predictions[:, 1])
    np.testing.assert_allclose(columns["s_6"], predictions[:, 3])


def test_a_temperature_undoes_logits_that_are_too_large_and_leaves_the_order() -> None:
    rng = np.random.default_rng(3)
    logits = 2 * rng.normal(size=(4_000, 3))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((4_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    plain = tasks.fit(schema("classes", classes=("a", "b", "c")), base("synthetic"), labels)
    told = plain.predictions((3 * logits).astype(np.float32))
    tuned = plain.recalibrated("temperature", labels, told)
    assert tuned.temperature == pytest.approx(3.0, rel=0.1)
    assert tuned.told == {"temperature": tuned.temperature}
    found = tuned.predictions((3 * logits).astype(np.float32), np.array([1.0, 1.0, 1.0], np.float32))
    np.testing.assert_allclose(found, chances, atol=0.02)
    assert tuned.tuning(labels, found)["loss"] < plain.tuning(labels, told)["loss"]
    np.testing.assert_array_equal(found.argmax(axis=1), told.argmax(axis=1))
    # Dividing by a prior comes before: p^(1/T) of what was divided.
    scale = np.array([0.5, 0.3, 0.2], np.float32)
    divided = plain.predictions(logits.astype(np.float32), scale) ** (1 / tuned.temperature)
    expected = divided / divided.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tuned.predictions(logits.astype(np.float32), scale), expected, rtol=1e-4)
    assert tasks.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned
    older = {key: value for key, value in plain.to_dict().items() if key != "temperature"}
    assert tasks.from_dict(older) == plain


def test_decisions_divide_by_the_power_of_the_prior_that_is_best_on_tuning_rows() -> None:
    rng = np.random.default_rng(4)
    labels = (rng.random(3_000) < 0.1).astype(int)
    logit = -2.2 + 1.5 * labels + rng.normal(size=3_000)
    chances = np.stack([1 / (1 + np.exp(logit)), 1 / (1 + np.exp(-logit))], axis=1)
    shares = np.bincount(labels) / 3_000
    plain = tasks.fit(schema("classes", classes=("no", "yes")), base("synthetic"), labels)
    tuned = plain.tuned(labels[:1_000], chances[:1_000])
    # Every power, the slow way: answers by p / prior ** power, largest factor 1.
    powers = [i / 10 for i in range(-5, 16)]
    macro = [f1_score(labels[:1_000], (chances / shares**k)[:1_000].argmax(1), average="macro") for k in powers]
    factors = shares ** -powers[int(np.argmax(macro))]
    np.testing.assert_allclose(tuned.decision, factors / factors.max(), rtol=1e-9)
    rest = labels[1_000:], chances[1_000:]
    weighed = tuned.weighed(*rest)(np.arange(2_000), np.ones((1, 2_000)))
    assert weighed["macro_f1_tuned"][0] == pytest.approx(
        f1_score(rest[0], (rest[1] * tuned.decision).argmax(1), average="macro")
    )
    assert weighed["macro_f1_tuned"][0] > weighed["macro_f1"][0] + 0.05
    assert tuned.told == {"decision": dict(zip(("no", "yes"), tuned.decision, strict=True))}
    np.testing.assert_array_equal(tuned.answers(chances), plain.answers(chances))  # predictions stay as they are
    assert tasks.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned
    assert tasks.of_report({"classes": ["no", "yes"], "decision": list(tuned.decision)}).decision == tuned.decision
    assert "macro_f1_tuned" in tuned.compared
    assert "macro_f1_tuned" not in plain.compared


@pytest.mark.parametrize("task", ["classes", "multilabel"])
def test_isotonic_curves_lower_the_loss_of_what_is_too_sure_and_are_plain_numbers(task) -> None:
    plain, _, _ = made(task)
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(4_000, plain.outputs)).astype(np.float32)
    chances = plain.predictions(logits)
    if task == "classes":
        labels = (rng.random((4_000, 1)) > chances.cumsum(axis=1)).sum(axis=1)
    else:
        labels = np.where(rng.random(chances.shape) < 0.1, -1, rng.random(chances.shape) < chances).astype(np.int8)
    told = plain.predictions(3 * logits)
    tuned = plain.recalibrated("isotonic", labels, told)
    found = tuned.predictions(3 * logits)
    assert tuned.tuning(labels, found)["loss"] < plain.tuning(labels, told)["loss"] - 0.05
    np.testing.assert_allclose(found, chances, atol=0.12)
    assert task != "classes" or found.sum(axis=1) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(tuned.predictions(jnp.asarray(3 * logits)), found, atol=1e-4)
    assert tasks.from_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned
    assert list(tuned.told["isotonic"]) == list(plain.names)


def test_a_label_that_no_tuning_sample_has_keeps_its_chances() -> None:
    plain, labels, logits = made("multilabel")
    unknown = np.where([False, True], -1, labels)
    tuned = plain.recalibrated("isotonic", unknown, plain.predictions(logits))
    np.testing.assert_allclose(tuned.predictions(logits)[:, 1], plain.predictions(logits)[:, 1], atol=1e-6)


def test_sets_of_labels_hold_each_of_them_in_the_promised_share() -> None:
    plain, _, _ = made("multilabel")
    rng = np.random.default_rng(6)
    told = rng.beta(1, 2, (4_000, 2))
    labels = (rng.random(told.shape) < told**0.5).astype(np.int8)  # told too low
    labels[::7, 1] = -1
    names = ["labs"] * 4_000
    sets = conformal.fit_each(plain.misses(labels[:2_000], told[:2_000]), names[:2_000], 0.9)
    assert [one.n for one in sets] == [2_000, (labels[:2_000, 1] >= 0).sum()]
    found = plain.sets(told[2_000:], conformal.thresholds(sets, names[2_000:]))
    held = found.hold(labels[2_000:])
    assert np.isnan(held[:, 1]).sum() == (labels[2_000:, 1] < 0).sum()
    assert np.nanmean(held, axis=0) == pytest.approx(0.9, abs=0.02)
    assert set(found.columns) == {"set_y", "set_z"}
    assert set(found.columns["set_y"]) <= {"0", "1", "0|1"}
    counted = conformal.coverage_of(sets, plain.names, held, found.sizes, names[2_000:])
    assert counted["labels"]["z"]["overall"]["n"] == (labels[2_000:, 1] >= 0).sum()
    assert counted["labels"]["z"]["overall"]["coverage"] == pytest.approx(np.nanmean(held[:, 1]))
    short = np.where(np.arange(2_000)[:, None] < 5, labels[:2_000], [0, -1])
    assert conformal.fit_each(plain.misses(short, told[:2_000]), names[:2_000], 0.9) == ()


@pytest.mark.parametrize("task", tasks.TASKS)
def test_distillation_is_for_classes_and_refused_elsewhere_in_one_line(task):
    config = base("synthetic")
    config.update(objective={"distill_weight": 0.5}, train={"select": "loss"})
    if task == "classes":
        assert tasks.check(task, config) is None
        return
    with pytest.raises(
        UserError, match=f"distill_weight=0.5 is for classes only, and the label is of task {task}: set"
    ):
        tasks.check(task, config)
    config.objective.distill_weight = 0.0
    assert tasks.check(task, config) is None
