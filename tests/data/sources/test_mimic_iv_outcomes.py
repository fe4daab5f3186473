"""The other outcomes of the twin: how frequent, long and late they are, that the known rule draws them, learning."""

import numpy as np
import polars as pl
import pytest

from remind_jax import main
from remind_jax.config import base
from remind_jax.data import check, sources
from remind_jax.data.sources import mimic_iv_outcomes, mimic_iv_twin
from remind_jax.data.sources.mimic_iv_outcomes import OUTCOMES
from remind_jax.evaluation import finished, survival
from tests import tiny_runs

N = 6_000
every = pytest.mark.parametrize("outcome", OUTCOMES)


@pytest.fixture(scope="module")
def made():
    return {outcome: mimic_iv_outcomes.load(outcome, n=N, seed=1) for outcome in OUTCOMES}, mimic_iv_twin.draw(N, 1)


def groups_of(stays):
    return [(stays.present == mask).all(axis=1) for mask in mimic_iv_twin.interaction_world(1).masks]


@pytest.mark.slow
@every
def test_it_is_the_twin_with_another_label(made, outcome):
    manifest, twin = made[0][outcome], mimic_iv_twin.load_twin(n=N, seed=1)
    assert not [each for each in check.find_problems(manifest) if each.fatal]
    assert manifest.table.select(twin.table.drop("died").columns).equals(twin.table.drop("died"))
    assert manifest.schema.modalities == twin.schema.modalities
    np.testing.assert_array_equal(manifest.presence, made[1].present)
    assert manifest.schema.task == {"conditions": "multilabel", "length_of_stay": "regression"}.get(outcome, "survival")
    assert "synthetic" in manifest.title
    again, other = (mimic_iv_outcomes.load(outcome, n=N, seed=seed).digest for seed in (1, 2))
    assert again == manifest.digest != other


def test_conditions_are_as_frequent_in_every_combination_and_some_are_unknown(made):
    manifest, stays = made[0]["conditions"], made[1]
    labels = manifest.labels
    assert labels.shape == (N, 25)
    assert (labels < 0).mean() == pytest.approx(mimic_iv_outcomes.UNKNOWN, abs=0.003)
    for rows in groups_of(stays):
        known = labels[rows] >= 0
        share = (labels[rows] == 1).sum(axis=0) / known.sum(axis=0)
        expected = mimic_iv_outcomes.SHARES
        assert (abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / known.sum(axis=0))).all()


def test_conditions_are_drawn_by_their_chances(made):
    labels, chances = made[0]["conditions"].labels, mimic_iv_outcomes.chances(made[1], 1)
    for low in (0.05, 0.3, 0.6, 0.85):
        inside = (chances >= low) & (chances < low + 0.1) & (labels >= 0)
        assert abs(labels[inside].mean() - chances[inside].mean()) < 4 * np.sqrt(0.25 / inside.sum())
    overlap = np.corrcoef(mimic_iv_outcomes.signs(1).reshape(25, -1))
    assert abs(overlap[np.triu_indices(25, 1)]).max() < 1  # no condition is another, or its opposite


def test_days_in_hospital_are_log_normal_around_the_score(made):
    manifest, stays = made[0]["length_of_stay"], made[1]
    mean = mimic_iv_outcomes.log_days(stays, 1)
    left = np.log(manifest.labels) - mean
    assert left.mean() == pytest.approx(0, abs=0.02)
    assert left.std() == pytest.approx(mimic_iv_outcomes.NOISE, rel=0.03)
    assert abs(np.corrcoef(left, mean)[0, 1]) < 0.05
    for rows in groups_of(stays):
        assert np.median(manifest.labels[rows]) == pytest.approx(mimic_iv_outcomes.MEDIAN, rel=0.16)


def test_deaths_are_as_late_as_the_hazards_say_and_censored_at_random(made):
    labels, stays = made[0]["time_to_death"].labels, made[1]
    known, logs = survival.Outcomes(labels[:, 0], labels[:, 1] == 1), mimic_iv_outcomes.log_hazards(stays, 1)
    assert 1 - known.event.mean() == pytest.approx(0.56, abs=0.03)
    assert (known.time <= mimic_iv_outcomes.FOLLOWED[1]).all()
    for rows in groups_of(stays):
        dead = 1 - survival.kaplan_meier(known.take(rows)).at(np.array(mimic_iv_outcomes.YEAR))
        assert abs(dead - mimic_iv_outcomes.DEAD) < 5 * np.sqrt(0.24 / rows.sum())
    for part in np.array_split(np.argsort(logs), 5):
        for days in (30.0, 180.0, 365.0):
            chance = np.exp(-np.exp(logs[part]) * (days / mimic_iv_outcomes.YEAR) ** mimic_iv_outcomes.SHAPE).mean()
            assert survival.kaplan_meier(known.take(part)).at(np.array(days)) == pytest.approx(chance, abs=0.05)
    harrell = survival.concordance(known, logs, np.ones((1, N)), np.ones((1, N)))[0, 0]
    assert 0.75 < harrell < 0.95


def test_a_bag_of_words_finds_the_main_effects(made):
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import Ridge

    found = {o: mimic_iv_outcomes.load(o, n=3_000, seed=0, missing="bernoulli", drop=0.0) for o in OUTCOMES}
    table = found["conditions"].table
    text = table.select(pl.concat_str(mimic_iv_twin.MODALITIES, separator=" "))["notes"].to_list()
    words = CountVectorizer(binary=True, min_df=10, token_pattern=r"\S+").fit_transform(text)
    conditions = found["conditions"].labels.astype(float)
    conditions[conditions < 0] = np.nan
    targets = {
        "conditions": np.nan_to_num(conditions, nan=np.nanmean(conditions)),
        "length_of_stay": np.log(found["length_of_stay"].labels)[:, None],
        "time_to_death": -np.log(found["time_to_death"].labels[:, :1]),
    }
    for outcome, target in targets.items():
        guess = Ridge(100.0).fit(words[:2_000], target[:2_000]).predict(words[2_000:]).reshape(1_000, -1)
        related = [np.corrcoef(x, y)[0, 1] for x, y in zip(guess.T, target[2_000:].T, strict=True)]
        assert 0.15 < np.mean(related) < 0.9, outcome
        assert min(related) > 0


@pytest.mark.slow  # trains encoders of text
@pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)
@pytest.mark.usefixtures("quick_compilation")
@every
def test_a_small_run_beats_chance(tmp_path, outcome):
    keys = {
        **{"data.outcome": outcome, "data.cache": tmp_path / "cache", "data.max_tokens": 48, "data.stays": 1_500},
        **{"model.width": 16, "fusion.heads": 2, "fusion.hidden": 32, "fusion.experts": 4, "train.epochs": 8.0},
        **{
            "train.joint_epochs": 6.0,
            "train.batch_size": 32,
            "optim.ema": 0.9,
            "eval.bootstrap": 20,
            "devices": 1,
            "compilation_cache": "off",
        },
    }
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    main.main([f"--config={tiny_runs.ROOT}/configs/mimic.py", *flags, f"--workdir={tmp_path / 'run'}"])
    report = finished.read_report(tmp_path / "run")
    figure, least = {"conditions": ("auroc_macro", 0.55), "length_of_stay": ("spearman", 0.2)}.get(
        outcome, ("c_index", 0.58)
    )
    assert report["overall"][figure] > least, report["overall"]


def test_the_source_takes_the_outcome_of_the_config():
    config = base("mimic_iv")
    config.data.outcome, config.data.stays = "length_of_stay", 20
    assert sources.load(config.data, seed=0).schema.label == "days"
