import itertools
import pathlib
import re

import numpy as np
import polars as pl
import pytest

from remind_jax.data import check, missingness
from remind_jax.data.manifest import decode
from remind_jax.data.reading import read_manifest
from remind_jax.data.sources import embed, image_twins, pictures, synthetic
from remind_jax.errors import UserError
from tests.data.image_files import ramp, write_picture
from tests.reference import combinations

TWINS = {
    "embed": (image_twins.load_embed_twin, embed.MODALITIES, embed.PUBLISHED, (0.10, 0.42, 0.41, 0.07)),
    "fprm": (image_twins.load_fprm_twin, image_twins.FPRM_MODALITIES, image_twins.FPRM_PUBLISHED, (0.50, 0.30, 0.20)),
}


@pytest.fixture(scope="module", params=list(TWINS))
def twin(request):
    load, modalities, published, shares = TWINS[request.param]
    return load(n=3000, seed=0, image_size=16), modalities, published, shares


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_they_say_that_they_are_synthetic():
    assert image_twins.load_embed_twin(n=1, seed=0).title == "twin of EMBED (synthetic)"
    assert image_twins.load_fprm_twin(n=1, seed=0).title == "twin of FPRM (synthetic)"
    assert "Everything here is synthetic" in image_twins.__doc__


def test_kinds_and_shapes():
    manifest = image_twins.load_embed_twin(n=20, seed=0, image_size=24)
    kinds = [(m.name, m.kind, m.stored, m.shape) for m in manifest.schema.modalities]
    assert kinds == [(name, "image", "cell", (24, 24, 1)) for name in embed.MODALITIES]
    manifest = image_twins.load_fprm_twin(n=20, seed=0, image_size=16, frames=5)
    kinds = [(m.name, m.kind, m.shape) for m in manifest.schema.modalities]
    assert kinds == [
        ("fundus", "image", (16, 16, 3)),
        ("flow", "volume", (5, 16, 16, 1)),
        ("oxygen", "image", (16, 16, 3)),
        ("tabular", "tabular", ()),
    ]
    assert manifest.table["flow"].dtype == pl.Array(pl.UInt8, (5, 16, 16, 1))
    assert len(manifest.schema.modalities[3].columns) == 64
    raw = decode(manifest, np.arange(20))
    assert raw["flow"].dtype == np.uint8
    here = raw["present"][:, 1]
    assert 0 < here.sum() < 20
    assert (raw["flow"].reshape(20, -1).max(axis=1) > 0).tolist() == here.tolist()
    assert (~np.isnan(raw["tabular/numeric"]).all(axis=1) == raw["present"][:, 3]).all()


def test_combination_frequencies(twin):
    manifest, modalities, published, _ = twin
    masks, expected = missingness.parse_combinations(published, modalities)
    drawn = combinations.group_frequencies(manifest.presence, masks)
    assert drawn.sum() == pytest.approx(1)
    assert (np.abs(drawn - expected) < 4 * np.sqrt(expected * (1 - expected) / 3000)).all()


def test_class_frequencies_do_not_depend_on_the_combination():
    for load, modalities, published, shares in TWINS.values():
        # Labels do not depend on the size of the pictures.
        manifest = load(n=6_000, seed=1, image_size=16)
        masks, _ = missingness.parse_combinations(published, modalities)
        for mask in masks:
            rows = (manifest.presence == mask).all(axis=1)
            found = np.bincount(manifest.labels[rows], minlength=len(shares)) / rows.sum()
            # Samples of one patient are alike, hence the wide bound, and quantiles of a simulation, hence the 0.02.
            bound = 5 * np.sqrt(np.multiply(shares, 1 - np.array(shares)) / rows.sum()) + 0.02
            assert (np.abs(found - shares) < bound).all()


def test_patients(twin):
    manifest, *_ = twin
    counts = manifest.table["patient"].value_counts()["count"]
    published = 72_770 / 23_253 if manifest.title == "twin of EMBED (synthetic)" else 3_394 / 1_683
    assert counts.mean() == pytest.approx(published, rel=0.01)
    assert manifest.table["sample"].n_unique() == 3000


def test_nothing_fatal_is_found(twin):
    findings = check.find_problems(twin[0])
    # W104 would say that presence tells the label, W103 that pictures are repeated.
    assert not {finding.code for finding in findings} - {"W101", "W102"}


def test_seeds():
    for load, *_ in TWINS.values():
        first, again, other = (load(n=40, seed=seed, image_size=16) for seed in (0, 0, 1))
        assert first.digest == again.digest
        assert first.table.equals(again.table)
        assert not first.table["label"].equals(other.table["label"])
        name = first.schema.modalities[0].name
        assert not first.table[name].equals(other.table[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least 1"),
        ({"image_size": 8}, "image_size"),
        ({"missing": "bernoulli"}, "published"),
        ({"frames": 1}, "frames"),
    ],
)
def test_wrong_parameters_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        image_twins.load_fprm_twin(**{"n": 10, "seed": 0, **change})


# ---- rules ----------------------------------------------------------------------------------------------------------


def test_scores_by_hand():
    world = synthetic.interaction_world(embed.MODALITIES, embed.PUBLISHED, 2, 0, 0.7)
    severity = np.array([1.5])
    rules = np.zeros((1, 4, 2))
    rules[0, 2] = [2.0, 0.0]  # 2d_cc
    rules[0, 3] = [0.5, 7.0]  # 2d_mlo
    rules[0, :2] = 50.0  # absent below
    group = np.array([3])  # 2d_cc+2d_mlo
    np.testing.assert_array_equal(world.masks[3], [False, False, True, True])
    np.testing.assert_allclose(image_twins.scores(severity, rules, group, world, 8.0, 0.0), 12.0)
    pair = int(np.flatnonzero((world.terms == [2, 3]).all(axis=1))[0])
    weight = world.weights[3, pair, 1, 0] - world.weights[3, pair, 0, 0]
    found = image_twins.scores(severity, rules, group, world, 0.0, 3.0)
    np.testing.assert_allclose(found, 3.0 * 2.0 * 0.5 * weight / synthetic.SPREAD)


def test_combinations_have_rules_of_their_own():
    rng = np.random.default_rng(0)
    rules = rng.normal(size=(20_000, 4, 2))
    for shift, least, most in ((0.0, 0.999, 1.001), (1.0, -0.75, 0.75)):
        world = synthetic.interaction_world(embed.MODALITIES, embed.PUBLISHED, 2, 3, shift)
        full, pairs = np.full(20_000, 5), np.full(20_000, 3)
        # The same pair of modalities, seen through the rule of the full set and that of the pair.
        alone = rules * np.array([0.0, 0.0, 1.0, 1.0])[:, None]
        first, second = (image_twins.scores(np.zeros(20_000), alone, k, world, 0.0, 1.0) for k in (full, pairs))
        assert least < np.corrcoef(first, second)[0, 1] < most


def test_strengths_are_standard_deviations():
    world = synthetic.interaction_world(image_twins.FPRM_MODALITIES, image_twins.FPRM_PUBLISHED, 2, 5, 0.7)
    rng = np.random.default_rng(0)
    severity, rules = rng.normal(size=50_000), rng.normal(size=(50_000, 4, 2))
    for k in range(5):
        main = image_twins.scores(severity, rules, np.full(50_000, k), world, 8.0, 0.0)
        rule = image_twins.scores(severity, rules, np.full(50_000, k), world, 0.0, 3.0)
        assert main.std() == pytest.approx(8.0, rel=0.03)
        assert rule.std() == pytest.approx(3.0, rel=0.05)


def test_factors_share_the_severity_and_patients_share_theirs():
    patient = np.repeat(np.arange(4000), 2)
    for memory in (0.0, 0.5, 1.0):
        severity, factors = image_twins.draw_factors(patient, 3, 0.75, memory, np.random.default_rng(0))
        assert np.corrcoef(severity[::2], severity[1::2])[0, 1] == pytest.approx(memory, abs=0.04)
        assert np.corrcoef(severity, factors[:, 1, 0])[0, 1] == pytest.approx(np.sqrt(0.75), abs=0.03)
        assert np.corrcoef(factors[:, 0, 0], factors[:, 1, 0])[0, 1] == pytest.approx(0.75, abs=0.03)
        assert np.abs(np.corrcoef(severity, factors[:, 2, 1])[0, 1]) < 0.04
        np.testing.assert_allclose(factors.std(axis=0), 1, atol=0.04)


# ---- pictures -------------------------------------------------------------------------------------------------------


def correlation(x, y):
    """Of ranks, so that only the order matters."""
    return np.corrcoef(np.argsort(np.argsort(x)), np.argsort(np.argsort(y)))[0, 1]


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 3)), rng.normal(size=(400, pictures.BODY)), rng


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("synthesised", [False, True])
def test_mammograms_show_their_factors(drawn, oblique, synthesised):
    factors, body, rng = drawn
    images = pictures.mammogram(factors, body, 32, rng, oblique=oblique, synthetic=synthesised)
    assert images.shape == (400, 32, 32, 1)
    x = images[..., 0] / 255
    # Chest wall on the left, air on the right.
    assert x[:, :, :4].mean() > 0.15
    assert x[:, :, -3:].mean() < 0.03
    bright = np.where(x > 0.4, x, 0)
    if oblique:
        bright[:, :13, :13] = 0  # the muscle
    assert correlation(factors[:, 0], bright.sum(axis=(1, 2))) > 0.75
    some = bright.sum(axis=(1, 2)) > 5
    assert some.mean() > 0.6
    place = np.arange(32)
    deep = (bright.sum(axis=1) @ place)[some] / bright[some].sum(axis=(1, 2))
    low = (bright.sum(axis=2) @ place)[some] / bright[some].sum(axis=(1, 2))
    assert correlation(factors[some, 1], deep) > 0.4
    assert correlation(factors[some, 2], low) > 0.6


def test_the_muscle_is_in_oblique_views_only(drawn):
    factors, body, rng = drawn
    thin = np.concatenate([np.full((400, 1), -3.0), factors[:, 1:]], axis=1)
    corner = [
        pictures.mammogram(thin, body, 32, rng, oblique=oblique, synthetic=False)[:, 4:8, :4].mean()
        for oblique in (True, False)
    ]
    assert corner[0] > 2 * corner[1]


def test_fundus_photographs_show_their_factors(drawn):
    factors, body, rng = drawn
    x = pictures.fundus(factors, body, 32, rng) / 255
    assert x.shape == (400, 32, 32, 3)
    assert (x[..., 0].mean(axis=(1, 2)) > x[..., 2].mean(axis=(1, 2))).all(), "the back of the eye is red"
    assert x[:, 0, 0].max() < 0.1, "outside of the round field it is black"
    side = np.where(body[:, 0] > 0, 1, -1)
    brightest = x[..., 2].mean(axis=1).argmax(axis=1)
    assert (np.sign(brightest - 15.5) == side).mean() > 0.9, "the disc is the brightest part"
    column = np.where(side > 0, 22, 9)[:, None, None]
    disc = x[np.arange(400)[:, None, None], np.arange(13, 19)[None, :, None], column + np.arange(-2, 3), 2]
    assert correlation(factors[:, 1], disc.mean(axis=(1, 2))) > 0.7
    yellow = (x[..., 1] > 0.62).sum(axis=(1, 2))
    assert correlation(factors[:, 0], yellow) > 0.7
    narrow, wide = (
        pictures.fundus(factors * [1, 1, 0] + [0, 0, width], body, 32, np.random.default_rng(1))[..., 0].astype(float)
        for width in (-1.0, 1.0)
    )
    assert (wide.mean(axis=(1, 2)) < narrow.mean(axis=(1, 2)) - 2).all(), "wide vessels cover more of the ground"


def test_flow_shows_its_factors(drawn):
    factors, body, rng = drawn
    x = pictures.flow(factors, body, 32, 8, rng)[..., 0] / 255
    assert x.shape == (400, 8, 32, 32)
    curve = x.mean(axis=(2, 3))
    vessels = np.quantile(x.mean(axis=1).reshape(400, -1), 0.95, axis=1)
    assert correlation(factors[:, 0], vessels) > 0.85
    assert correlation(factors[:, 1], np.ptp(curve, axis=1) / curve.mean(axis=1)) > 0.7
    beat = np.exp(-2j * np.pi * np.arange(8) / 8)
    assert correlation(factors[:, 2], np.angle(np.conj(curve @ beat * np.exp(0.7j * np.pi)))) > 0.7


def test_oxygen_maps_show_their_factors(drawn):
    factors, body, rng = drawn
    x = pictures.oxygen(factors, body, 32, rng) / 255
    assert x.shape == (400, 32, 32, 3)
    blue = (x[..., 2] > x[..., 1]) & (x[..., 2] > 0.3)
    assert correlation(factors[:, 0], blue.sum(axis=(1, 2))) > 0.75
    warm = x[..., 0] - x[..., 1]
    assert correlation(-factors[:, 1], np.sort(warm.reshape(400, -1), axis=1)[:, -40:].mean(axis=1)) > 0.7


def test_textures_have_unit_variance_everywhere():
    fields = pictures.texture(4000, 24, np.random.default_rng(0))
    assert fields.dtype == np.float32
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.07)
    neighbours = np.mean(fields[:, :, :-1] * fields[:, :, 1:])
    assert neighbours > 0.8, "neighbours are alike"


# ---- what can be learned --------------------------------------------------------------------------------------------


def simple_statistics(values):
    """Means of 4 x 4 pixels; for a video of its mean frame, and the mean of each frame; numbers as they are."""
    if values.ndim == 2:
        return values
    x = values.astype(np.float32) / 255
    if x.ndim == 5:
        return np.concatenate([simple_statistics(x.mean(axis=1) * 255), x.mean(axis=(2, 3, 4))], axis=1)
    n, height, width, channels = x.shape
    return x.reshape(n, height // 4, 4, width // 4, 4, channels).mean(axis=(2, 4)).reshape(n, -1)


@pytest.mark.parametrize("name", list(TWINS))
def test_a_linear_model_learns_from_every_modality_and_more_from_all(name):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    load, modalities, *_ = TWINS[name]
    manifest = load(n=2400, seed=0, missing="none")
    raw = decode(manifest, np.arange(2400))
    label = raw["label"]
    features = {m: simple_statistics(raw.get(m, raw.get(f"{m}/numeric"))) for m in modalities}
    test = np.arange(2400) >= 1600

    def accuracy(x):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=200, tol=1e-3))
        return model.fit(x[~test], label[~test]).score(x[test], label[test])

    majority = np.bincount(label[test]).max() / test.sum()
    single = {m: accuracy(x) for m, x in features.items()}
    together = accuracy(np.concatenate(list(features.values()), axis=1))
    assert min(single.values()) > majority + 0.04
    assert together > max(single.values()) + 0.02
    assert together < 0.8, "the rules of the combinations should be out of reach"


# ---- the page that tells users how to bring FPRM --------------------------------------------------------------------


def indented(page, start):
    """The indented block of a page that begins with a line."""
    lines = page[page.index(start) :].splitlines()
    block = list(itertools.takewhile(lambda line: line.startswith("    ") or line == start.strip(), lines))
    return "\n".join(line.removeprefix("    ") for line in block) + "\n"


def test_the_manifest_of_the_documentation_is_read(tmp_path):
    page = (pathlib.Path(__file__).resolve().parents[3] / "docs" / "fprm.md").read_text("utf-8")
    (tmp_path / "schema.yaml").write_text(indented(page, "    version: 1"))
    table = indented(page, "    sample_id,patient_id")
    (tmp_path / "manifest.csv").write_text(table)
    for name in re.findall(r"(?:fundus|oxygen|flow)/[^,]+", table):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, np.zeros((9, 12, 10), np.uint8))
        else:
            write_picture(path, ramp(10, 12, 3))
    manifest = read_manifest(tmp_path, image_size=16, frames=4)
    assert manifest.presence.tolist() == [[True] * 4, [True, False, False, True], [True, False, False, False]]
    assert decode(manifest, np.arange(3))["flow"].shape == (3, 4, 16, 16, 1)
    assert manifest.labels.tolist() == [1, 1, 0]
