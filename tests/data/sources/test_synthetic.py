import itertools

import numpy as np
import polars as pl
import pytest

from remind_jax.data.groups import group_name
from remind_jax.data.sources import synthetic
from remind_jax.errors import UserError

SMALL = {"n_train": 400, "n_tuning": 100, "n_test_per_group": 30}


def presence(manifest):
    return manifest.table.select(pl.col(synthetic.MODALITIES).is_not_null()).to_numpy()


def slow_scores(world, latents, group):
    """Eq. by eq. loops over one sample at a time."""
    result = np.zeros((len(latents), world.weights.shape[2]))
    for i, u in enumerate(latents):
        here = np.flatnonzero(world.masks[group[i]])
        for j, (a, b) in enumerate(world.terms):
            if len(here) == 1 and a == b == here[0]:
                result[i] += world.weights[group[i], j] @ u[a]
            elif len(here) > 1 and a != b and a in here and b in here:
                result[i] += world.weights[group[i], j] @ (u[a] * u[b])
    return result


def population_frequencies(world):
    return {group_name(mask, world.modalities): p for mask, p in zip(world.masks, world.probabilities, strict=True)}


def bayes_accuracy(world, samples=20_000, seed=0):
    """The accuracy of the best rule that sees the latents, by simulation: of each combination, and overall.

    No model can exceed it; the observation noise takes about one point more (0.9 with the defaults). The standard error
    is below 0.002 with 20,000 samples a combination.
    """
    rng = np.random.default_rng(seed)
    m, latent = len(world.modalities), world.mixing.shape[-1]
    accuracy = {}
    for k, name in enumerate(population_frequencies(world)):
        latents = rng.normal(size=(samples, m, latent))
        logits = world.sharpness * synthetic.scores(world, latents, np.full(samples, k))
        logits -= logits.max(axis=1, keepdims=True)
        # After the shift the most probable class has logit 0, so its probability is 1 / sum of the exponentials.
        accuracy[name] = np.mean(1.0 / np.exp(logits).sum(axis=1))
    return accuracy | {"overall": np.dot(list(accuracy.values()), world.probabilities)}


def test_scores_equal_the_definition():
    world = synthetic.make_world(seed=4, classes=3)
    rng = np.random.default_rng(0)
    latents, group = rng.normal(size=(40, 4, 2)), rng.integers(0, 6, 40)
    np.testing.assert_allclose(synthetic.scores(world, latents, group), slow_scores(world, latents, group), atol=1e-12)


def test_scores_ignore_absent_modalities():
    world = synthetic.make_world(seed=4)
    latents = np.random.default_rng(0).normal(size=(6, 4, 2))
    changed = np.where(world.masks[:, :, None], latents, 99.0)
    group = np.arange(6)
    np.testing.assert_array_equal(synthetic.scores(world, latents, group), synthetic.scores(world, changed, group))
    moved = synthetic.scores(world, latents + 1.0, group)
    assert (moved != synthetic.scores(world, latents, group)).all()


@pytest.mark.parametrize("classes", [2, 4])
def test_every_combination_has_the_same_spread_of_scores(classes):
    world = synthetic.make_world(seed=1, classes=classes)
    for k in range(6):
        latents = np.random.default_rng(k).normal(size=(60_000, 4, 2))
        score = synthetic.scores(world, latents, np.full(60_000, k))
        pairs = [np.var(score[:, a] - score[:, b]) for a, b in itertools.combinations(range(classes), 2)]
        assert np.sqrt(np.mean(pairs)) == pytest.approx(1.25, abs=0.02)


def rule_directions(world):
    """The weights of ffdm_cc times ffdm_mlo in the three combinations that use it, each scaled to length 1."""
    pair = int(np.flatnonzero((world.terms == [2, 3]).all(axis=1))[0])
    used = world.weights[[3, 4, 5], pair].reshape(3, -1)
    return used / np.linalg.norm(used, axis=1, keepdims=True)


@pytest.mark.parametrize("setting", [{"shift": 0.0}, {"shift": 1.0, "atoms": 1}])
def test_one_rule_for_all_without_shift_or_with_one_atom(setting):
    directions = rule_directions(synthetic.make_world(seed=0, **setting))
    np.testing.assert_allclose(directions, directions[[0, 0, 0]], atol=1e-12)


def test_rules_differ_with_shift():
    directions = rule_directions(synthetic.make_world(seed=0, shift=0.9, atoms=6))
    assert min(np.abs(directions[a] - directions[b]).max() for a, b in [(0, 1), (0, 2), (1, 2)]) > 0.1


@pytest.mark.parametrize("shift", [0.3, 0.9])
def test_shift_sets_how_much_two_rules_have_in_common(shift):
    # Independent long vectors are orthogonal: the cosine of sqrt(1-s^2) W_0 + s W_a and the same with W_b is 1 - s^2.
    directions = rule_directions(synthetic.make_world(seed=0, latent=5000, token_width=1, shift=shift, atoms=6))
    cosines = (directions @ directions.T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(cosines, 1 - shift**2, atol=0.04)


@pytest.mark.parametrize("seed", range(5))
def test_atoms_are_dealt_evenly_among_equally_frequent_combinations(seed):
    groups = ("a+b", "a+b+c", "a+b+d", "a+b+c+d")
    combinations = tuple((group, 0.25) for group in groups)
    world = synthetic.make_world(seed=seed, modalities=tuple("abcd"), combinations=combinations, shift=1.0, atoms=2)
    pair = int(np.flatnonzero((world.terms == [0, 1]).all(axis=1))[0])
    rules = world.weights[:, pair].reshape(4, -1)
    rules = (rules / np.linalg.norm(rules, axis=1, keepdims=True)).round(9)
    assert np.unique(rules, axis=0, return_counts=True)[1].tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_rare_combinations_share_no_rule_with_frequent_ones(seed):
    world = synthetic.make_world(seed=seed, shift=1.0)
    # The pair of cview_cc and ffdm_cc: two rare combinations have it, and the frequent one of all four.
    pair = int(np.flatnonzero((world.terms == [0, 2]).all(axis=1))[0])
    names = list(population_frequencies(world))
    rules = world.weights[:, pair].reshape(len(names), -1)
    rare = [rules[names.index(name)] for name in ("cview_cc+ffdm_cc", "cview_cc+ffdm_cc+ffdm_mlo")]
    frequent = rules[names.index("cview_cc+cview_mlo+ffdm_cc+ffdm_mlo")]
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ((rare[0], rare[1]), (rare[0], frequent))]
    assert cosine[0] == pytest.approx(1.0)
    assert abs(cosine[1]) < 0.99


@pytest.mark.parametrize("seed", range(8))
def test_bayes_accuracy_lies_in_the_stated_range(seed):
    accuracy = bayes_accuracy(synthetic.make_world(seed=seed))
    assert 0.865 <= accuracy["overall"] <= 0.905


def test_bayes_accuracy_of_a_linear_rule_by_quadrature():
    world = synthetic.make_world(seed=0, modalities=("a",), combinations=(("a", 1.0),))
    # One modality: the logit is normal with standard deviation 6 * 1.25; mean of max(p, 1 - p) by summation.
    z = np.linspace(-8, 8, 200_001)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    expected = np.sum(density / (1 + np.exp(-np.abs(7.5 * z)))) * (z[1] - z[0])
    assert bayes_accuracy(world, samples=100_000)["a"] == pytest.approx(expected, abs=0.002)


def test_labels_follow_the_rule():
    # With hardly any label noise and observation noise the label can be read off the tokens.
    sizes = {"n_train": 2000, "n_tuning": 1, "n_test_per_group": 1}
    setting = {"seed": 3, "noise": 0.0, "sharpness": 1e6}
    manifest, world = synthetic.load(**setting, **sizes), synthetic.make_world(**setting)
    present = presence(manifest)
    latents = np.zeros((len(present), 4, 2))
    for j, name in enumerate(world.modalities):
        tokens = manifest.table[name].drop_nulls().to_numpy().reshape(-1, 32)
        latents[present[:, j], j] = np.linalg.lstsq(world.mixing[j].reshape(32, 2), tokens.T, rcond=None)[0].T
    group = (present[:, None] == world.masks).all(axis=2).argmax(axis=1)
    expected = synthetic.scores(world, latents, group).argmax(axis=1)
    label = manifest.table["label"].to_numpy() == "class 1"
    assert np.mean(expected == label) > 0.999


def test_sizes_splits_and_types():
    manifest = synthetic.load(seed=0, **SMALL)
    table = manifest.table
    counts = dict(table["split"].value_counts().iter_rows())
    assert counts == {"train": 400, "tuning": 100, "held_out": 180}
    assert table["sample"].n_unique() == table["patient"].n_unique() == 680
    for name in synthetic.MODALITIES:
        assert table[name].dtype == pl.Array(pl.Float32, (2, 16))
    assert {modality.kind for modality in manifest.schema.modalities} == {"embedding"}
    assert set(table["label"]) == set(manifest.schema.classes) == {"class 0", "class 1"}
    assert "synthetic" in manifest.title


def test_held_out_has_equal_groups_and_training_natural_ones():
    manifest = synthetic.load(seed=0, n_train=20_000, n_tuning=10, n_test_per_group=25)
    world = synthetic.make_world(seed=0)
    index = (presence(manifest)[:, None] == world.masks).all(axis=2)
    assert index.any(axis=1).all()
    split = manifest.table["split"].to_numpy()
    np.testing.assert_array_equal(index[split == "held_out"].sum(axis=0), 25)
    natural = index[split == "train"].mean(axis=0)
    np.testing.assert_allclose(natural, [0.030, 0.006, 0.012, 0.578, 0.003, 0.371], atol=0.015)
    assert (np.abs(natural[[1, 4]] - [0.006, 0.003]) < 0.003).all()


def test_a_seed_is_a_world_and_is_reproducible():
    first, again, other = (synthetic.load(seed=seed, **SMALL) for seed in (0, 0, 1))
    assert first.table.equals(again.table)
    assert not first.table["label"].equals(other.table["label"])
    assert not np.array_equal(synthetic.make_world(seed=0).mixing, synthetic.make_world(seed=1).mixing)


def test_population_frequencies_are_embeds():
    weights = population_frequencies(synthetic.make_world(seed=0))
    assert weights["ffdm_cc+ffdm_mlo"] == pytest.approx(0.578)
    assert weights["cview_cc+cview_mlo+ffdm_cc+ffdm_mlo"] == pytest.approx(0.371)
    assert sum(weights.values()) == pytest.approx(1)
    other = synthetic.make_world(seed=0, modalities=("a", "b"), combinations=(("b+a", 0.3), ("b", 0.7)))
    assert population_frequencies(other) == {"a+b": 0.3, "b": 0.7}


def test_other_shapes():
    combinations = (("a", 0.5), ("a+b", 0.5))
    manifest = synthetic.load(
        seed=0, modalities=("a", "b"), combinations=combinations, tokens=3, token_width=5, latent=4, classes=4, **SMALL
    )
    assert manifest.table["b"].dtype == pl.Array(pl.Float32, (3, 5))
    assert manifest.table["a"].null_count() == 0
    assert len(manifest.schema.classes) == 4
    assert manifest.table["label"].n_unique() == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": 1.2}, "shift"),
        ({"classes": 1}, "classes"),
        ({"atoms": 0}, "at least 1"),
        ({"noise": -1.0}, "noise"),
        ({"n_test_per_group": 0}, "every split"),
        ({"combinations": (("ct", 1.0),)}, "'ct'"),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        synthetic.load(seed=0, **change)
