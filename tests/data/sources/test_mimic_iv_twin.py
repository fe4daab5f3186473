import itertools
import re

import numpy as np
import polars as pl
import pytest

from remind_jax.data import missingness
from remind_jax.data.sources import mimic_iv_twin, synthetic
from remind_jax.errors import UserError
from tests.reference import combinations


@pytest.fixture(scope="module")
def twin():
    return mimic_iv_twin.load_twin(n=3000, seed=0)


def presence(manifest):
    return manifest.table.select(pl.col(mimic_iv_twin.MODALITIES).is_not_null()).to_numpy()


def test_it_says_that_it_is_synthetic(twin):
    assert twin.title == "twin of MIMIC-IV (synthetic)"
    assert "Everything here is synthetic" in mimic_iv_twin.__doc__


def test_schema(twin):
    kinds = [(modality.name, modality.kind) for modality in twin.schema.modalities]
    assert kinds == [("notes", "text"), ("labs", "text"), ("icd", "codes")]
    assert set(twin.table.dtypes) == {pl.String}
    assert twin.schema.split is None
    assert set(twin.table["died"]) == set(twin.schema.classes) == {"0", "1"}


def test_codes_can_be_read_as_text(twin):
    other = mimic_iv_twin.load_twin(n=3000, seed=0, icd="text")
    assert [modality.kind for modality in other.schema.modalities] == ["text", "text", "text"]
    assert other.table.equals(twin.table)


def test_stays_and_patients(twin):
    assert twin.table["stay"].n_unique() == 3000
    stays = twin.table["patient"].value_counts()["count"]
    assert len(stays) == 2500
    assert stays.max() == 2


def test_prevalence_overall_and_in_every_combination():
    manifest = mimic_iv_twin.load_twin(n=20_000, seed=1)
    died = manifest.table["died"].to_numpy() == "1"
    assert died.mean() == pytest.approx(0.15, abs=0.01)
    masks = missingness.parse_combinations(mimic_iv_twin.PUBLISHED, mimic_iv_twin.MODALITIES)[0]
    for mask in masks:
        rows = (presence(manifest) == mask).all(axis=1)
        # Four standard errors: presence does not tell the label.
        assert abs(died[rows].mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / rows.sum())


@pytest.mark.parametrize("missing", ["published", "bernoulli"])
def test_combination_frequencies(missing):
    manifest = mimic_iv_twin.load_twin(n=8000, seed=2, missing=missing)
    masks, published = missingness.parse_combinations(mimic_iv_twin.PUBLISHED, mimic_iv_twin.MODALITIES)
    expected = published if missing == "published" else combinations.bernoulli_frequencies(masks, 0.266)
    drawn = combinations.group_frequencies(presence(manifest), masks)
    assert drawn.sum() == pytest.approx(1)
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / 8000)).all()
    other = mimic_iv_twin.load_twin(n=8000, seed=2, missing="bernoulli", drop=0.0)
    assert presence(other).all()


def test_missingness_leaves_the_texts_as_they_are():
    published = mimic_iv_twin.load_twin(n=300, seed=0).table
    complete = mimic_iv_twin.load_twin(n=300, seed=0, missing="bernoulli", drop=0.0).table
    for name in mimic_iv_twin.MODALITIES:
        here = published[name].is_not_null()
        assert here.sum() > 100
        assert published[name].filter(here).equals(complete[name].filter(here))


def test_notes_read_like_notes(twin):
    notes = twin.table["notes"].drop_nulls()
    words = notes.str.split(" ").list.len()
    assert words.min() >= 30
    assert words.max() <= 90
    assert notes.n_unique() > 0.99 * len(notes)
    assert notes.str.ends_with(".").all()
    assert not notes.str.contains(r"[{}]|  |\.\.").any()
    assert notes.str.contains(r"\b(?:no|denies|No|Denies)\b").mean() > 0.5


def test_every_factor_has_its_phrases():
    assert len(mimic_iv_twin._FINDINGS) == mimic_iv_twin.FACTORS
    for levels in mimic_iv_twin._FINDINGS:
        assert [len(phrases) for phrases in levels] == [3] * (len(mimic_iv_twin._LEVELS) + 1)
        assert len(set(itertools.chain(*levels))) == 12


def test_lab_lines_and_their_flags(twin):
    limits = {lab[0]: (lab[5], lab[6]) for lab in mimic_iv_twin._LABS}
    pattern = re.compile(r"([A-Za-z ]+?) (\d+(?:\.\d)?) (\S+)( low| high)?")
    flags = []
    for line in twin.table["labs"].drop_nulls():
        items = line.split("; ")
        assert 8 <= len(items) <= 14
        for item in items:
            name, value, _, flag = pattern.fullmatch(item).groups()
            low, high = limits[name]
            expected = " low" if float(value) < low else " high" if float(value) > high else None
            assert flag == expected
            flags.append(flag)
            assert float(value) < 100 or not item.split(" low")[0].split(" high")[0].endswith("%")
    assert {None, " low", " high"} == set(flags)


def test_codes_look_like_icd9_and_have_a_long_tail(twin):
    lists = twin.table["icd"].drop_nulls().str.split(" ")
    assert lists.list.len().min() >= 4
    assert lists.list.len().max() <= 15
    assert (lists.list.n_unique() == lists.list.len()).all(), "a code twice in one stay"
    codes = lists.explode()
    assert codes.str.contains(r"^(\d{3,5}|V\d{2,4}|E\d{3,4})$").all()
    counts = codes.value_counts()["count"]
    assert counts.max() > 300
    assert (counts < 10).sum() > 40


def test_no_code_stands_in_two_lists():
    banks = [end for factor in mimic_iv_twin._CODES for end in factor] + [mimic_iv_twin._COMMON_CODES]
    codes = [code for bank in banks for code in bank.split()] + list(mimic_iv_twin._RARE_CODES)
    assert len(codes) == len(set(codes))


def test_mortality_logits_by_hand():
    world = mimic_iv_twin.interaction_world(0)
    latents = np.zeros((1, 3, 4))
    latents[0, 0] = 1.0  # notes
    latents[0, 1] = [2.0, 0.0, 0.0, 0.0]  # labs
    latents[0, 2] = 50.0  # codes, absent below
    group = np.array([2])  # notes+labs
    np.testing.assert_array_equal(world.masks[2], [True, True, False])
    main = mimic_iv_twin.mortality_logits(latents, group, world, 3.0, 0.0)
    np.testing.assert_allclose(main, 3.0 * (4 + 2) / np.sqrt(12))
    pair = int(np.flatnonzero((world.terms == [0, 1]).all(axis=1))[0])
    weight = world.weights[2, pair, 1, 0] - world.weights[2, pair, 0, 0]
    cross = mimic_iv_twin.mortality_logits(latents, group, world, 0.0, 1.6)
    np.testing.assert_allclose(cross, 1.6 * 2.0 * weight / synthetic.SPREAD)


def test_strengths_are_standard_deviations_in_logits():
    world = mimic_iv_twin.interaction_world(5)
    latents = np.random.default_rng(0).normal(size=(50_000, 3, 4))
    full = np.full(50_000, 6)
    assert mimic_iv_twin.mortality_logits(latents, full, world, 3.0, 0.0).std() == pytest.approx(3.0, rel=0.03)
    for k in range(7):
        cross = mimic_iv_twin.mortality_logits(latents, np.full(50_000, k), world, 0.0, 1.6)
        assert cross.std() == pytest.approx(1.6, rel=0.05)


def test_stays_of_a_patient_are_alike_only_with_memory():
    patient = np.repeat(np.arange(2000), 2)
    for memory in (0.0, 0.5, 1.0):
        latents = mimic_iv_twin._latents(patient, memory, np.random.default_rng(0)).reshape(2000, 2, -1)
        correlation = np.corrcoef(latents[:, 0].ravel(), latents[:, 1].ravel())[0, 1]
        assert correlation == pytest.approx(memory, abs=0.03)


def test_a_bag_of_words_finds_the_main_effects():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    table = mimic_iv_twin.load_twin(n=4000, seed=0, missing="bernoulli", drop=0.0).table
    text = table.select(pl.concat_str(mimic_iv_twin.MODALITIES, separator=" "))["notes"].to_list()
    died = (table["died"] == "1").to_numpy()
    words = CountVectorizer(binary=True, min_df=10, token_pattern=r"\S+").fit_transform(text)
    # The first 3000 rows train; the few patients with a stay on both sides do not matter for a check of this size.
    model = LogisticRegression(C=0.03, max_iter=1000).fit(words[:3000], died[:3000])
    auroc = roc_auc_score(died[3000:], model.decision_function(words[3000:]))
    assert auroc > 0.72
    assert auroc < 0.9, "the interactions should be out of reach"


def test_seeds():
    first, again, other = (mimic_iv_twin.load_twin(n=200, seed=seed).table for seed in (0, 0, 1))
    assert first.equals(again)
    assert not first["labs"].equals(other["labs"])
    assert not first["died"].equals(other["died"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"missing": "random"}, "published"),
        ({"icd": "words"}, r"data.icd is 'words' \(did you mean 'codes'\?\); known: codes, text"),
        ({"n": 0}, "at least 1"),
        ({"missing": "bernoulli", "drop": 1.0}, "drop probability"),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        mimic_iv_twin.load_twin(**{"n": 10, "seed": 0, **change})


def test_one_stay():
    assert mimic_iv_twin.load_twin(n=1, seed=0).table.height == 1
