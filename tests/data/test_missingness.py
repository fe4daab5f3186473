import importlib
import itertools

import numpy as np
import polars as pl
import pytest

from remind_jax.data import dataset, missingness, splits
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError
from tests.data import fitting
from tests.reference import combinations

# Rows 100, 010, 110, 001, 101, 011, 111 of the paper's MIMIC table (section 7.4.2), in percent.
MIMIC_MASKS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=bool)
MIMIC_PERCENT = np.array([4.8, 5.2, 14.3, 5.2, 15.5, 14.7, 40.3])


def test_bernoulli_reproduces_the_papers_table_within_a_point():
    expected = 100 * combinations.bernoulli_frequencies(MIMIC_MASKS, 0.266)
    np.testing.assert_allclose(expected, [5.3, 5.3, 14.6, 5.3, 14.6, 14.6, 40.3], atol=0.05)
    assert np.abs(expected - MIMIC_PERCENT).max() < 1
    present = missingness.bernoulli_mask(100_000, 3, 0.266, np.random.default_rng(0))
    drawn = 100 * combinations.group_frequencies(present, MIMIC_MASKS)
    assert np.abs(drawn - MIMIC_PERCENT).max() < 1.1
    # Five standard errors of a share of 40 % over 100,000 draws.
    np.testing.assert_allclose(drawn, expected, atol=0.8)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("m", [1, 2, 4])
def test_dropping_empty_rows_is_exact_conditioning(m, p):
    masks = np.array([mask for mask in itertools.product([False, True], repeat=m) if any(mask)])
    expected = combinations.bernoulli_frequencies(masks, p)
    assert expected.sum() == pytest.approx(1)
    n = 40_000
    present = missingness.bernoulli_mask(n, m, p, np.random.default_rng(1))
    assert present.any(axis=1).all()
    error = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(combinations.group_frequencies(present, masks) - expected) <= 5 * error).all()


def test_empty_rows_stay_when_asked():
    present = missingness.bernoulli_mask(20_000, 2, 0.5, np.random.default_rng(0), drop_empty=False)
    assert 0.23 < np.mean(~present.any(axis=1)) < 0.27
    assert not missingness.bernoulli_mask(10, 3, 1.0, np.random.default_rng(0), drop_empty=False).any()
    assert missingness.bernoulli_mask(10, 3, 0.0, np.random.default_rng(0)).all()


def test_later_draws_do_not_depend_on_the_probability():
    after = []
    for p in (0.1, 0.9):
        rng = np.random.default_rng(3)
        missingness.bernoulli_mask(50, 3, p, rng)
        after.append(rng.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_probability_out_of_range_is_refused(p):
    with pytest.raises(UserError, match="drop probability"):
        missingness.bernoulli_mask(5, 3, p, np.random.default_rng(0))


def test_combination_mask_follows_the_probabilities():
    probabilities = np.array([0.0, 0.25, 0.75])
    masks = MIMIC_MASKS[[0, 2, 6]]
    present = missingness.combination_mask(20_000, masks, probabilities, np.random.default_rng(0))
    assert present.shape == (20_000, 3)
    assert present.dtype == bool
    drawn = combinations.group_frequencies(present, masks)
    assert drawn[0] == 0
    np.testing.assert_allclose(drawn, probabilities, atol=0.016)


def test_group_frequencies_by_hand():
    present = np.array([[1, 0], [1, 0], [1, 1], [0, 1]], dtype=bool)
    frequencies = combinations.group_frequencies(present, np.array([[1, 1], [1, 0]], dtype=bool))
    np.testing.assert_array_equal(frequencies, [0.25, 0.5])


def test_combinations_are_read_in_any_order_of_names():
    masks, probabilities = missingness.parse_combinations([("c+a", 0.2), ("b", 0.79)], ("a", "b", "c"))
    np.testing.assert_array_equal(masks, [[True, False, True], [False, True, False]])
    np.testing.assert_allclose(probabilities, [0.2 / 0.99, 0.79 / 0.99])


@pytest.mark.parametrize(
    ("combinations", "message"),
    [
        ([("a+x", 1.0)], "'x'"),
        ([("a+a", 1.0)], "twice"),
        ([("a+b", 0.5), ("b+a", 0.5)], "listed twice"),
        ([("a", 0.5), ("b", 0.4)], "sum to 1"),
        ([("a", 1.5), ("b", -0.5)], "sum to 1"),
        ([("", 1.0)], "''"),
        ([], "sum to 1"),
    ],
)
def test_bad_combinations_are_refused(combinations, message):
    with pytest.raises(UserError, match=message):
        missingness.parse_combinations(combinations, ("a", "b"))


# ---- Taken away from a manifest --------------------------------------------------------------------------------------


def _made(presence: np.ndarray) -> Manifest:
    n = len(presence)
    cells = {
        f"{name}{i}": [float(i + 1) if here else None for here in presence[:, j]]
        for j, name in enumerate("abc")
        for i in (0, 1)
    }
    table = pl.DataFrame(
        {"id": [f"s{i}" for i in range(n)], "patient": [f"p{i}" for i in range(n)], "y": ["0", "1"] * (n // 2)}
        | {name: pl.Series(values, dtype=pl.Float64) for name, values in cells.items()}
    )
    modalities = tuple(Modality(name, "tabular", (f"{name}0", f"{name}1")) for name in "abc")
    return Manifest(
        Schema("made", "id", "patient", "y", ("0", "1"), modalities), table, title="made", published={"a": 1.0}
    )


def test_hiding_meets_the_rate_in_every_part_and_changes_nothing_else():
    rng = np.random.default_rng(0)
    presence = rng.random((400, 3)) < 0.7
    presence[~presence.any(axis=1), 0] = True
    made, parts = _made(presence), rng.integers(3, size=400)
    able = presence[:, 1] & (presence.sum(axis=1) > 1)
    before = np.zeros(400, bool)
    for rate in (0.0, 0.3, 0.8, 1.0):
        hidden = missingness.hide(made, "b", rate, parts, seed=4)
        gone = presence[:, 1] & ~hidden.presence[:, 1]
        np.testing.assert_array_equal(hidden.presence[:, [0, 2]], presence[:, [0, 2]])
        for part in range(3):
            assert gone[parts == part].sum() == round(rate * able[parts == part].sum())
        assert not np.any(gone & ~able)
        assert np.all(gone[before])
        before = gone
        others = [name for name in made.table.columns if not name.startswith("b")]
        assert hidden.table.select(others).equals(made.table.select(others))
        assert hidden.table["b0"].drop_nulls().len() == hidden.presence[:, 1].sum()
        assert hidden.title == f"made, b taken from {100 * rate:g} %"
        assert not hidden.published  # the paper has no such data
    again, other = (missingness.hide(made, "b", 0.3, parts, seed).presence for seed in (4, 5))
    np.testing.assert_array_equal(missingness.hide(made, "b", 0.3, parts, 4).presence, again)
    assert np.any(again != other)


def test_complete_samples_have_everything():
    presence = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], bool)
    found = missingness.complete_samples(_made(presence))
    assert found.table["id"].to_list() == ["s0", "s2"]
    assert found.presence.all()
    with pytest.raises(UserError, match="no sample has all modalities"):
        missingness.complete_samples(_made(presence[[1, 3]]))


@pytest.mark.parametrize(
    ("name", "rate", "message"), [("bb", 0.5, "did you mean 'b'"), ("b", 1.5, "data.hide_rate=1.5")]
)
def test_what_cannot_be_hidden_is_named(name, rate, message):
    with pytest.raises(UserError, match=message):
        missingness.hide(_made(np.ones((4, 3), bool)), name, rate, np.zeros(4, int), 0)


def test_left_out_combinations_keep_their_held_out_rows():
    presence = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0]], bool)
    split = np.array(
        [splits.TRAIN, splits.TUNING, splits.HELD_OUT, splits.TRAIN, splits.HELD_OUT, splits.TRAIN], np.int8
    )
    made = _made(presence)
    found, used = missingness.leave_out(made, ("b+a",), split)
    assert used.tolist() == [splits.UNUSED, splits.UNUSED, 2, 0, 2, 0]
    assert split[0] == splits.TRAIN  # the split itself is left alone
    assert found.title == "made, a+b kept from training"
    assert found.digest == made.digest
    _, both = missingness.leave_out(made, ("c, a+b",), split)  # as a command line gives several
    assert both.tolist() == [-1, -1, 2, -1, 2, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("aa",), "data.leave_out: 'aa': 'aa' is not a modality of this data .did you mean 'a'"),
        (("b",), "no row has the combination 'b'"),
        (("a+b", "c"), "leaves nothing to train on"),
    ],
)
def test_what_cannot_be_left_out_is_named(names, message):
    made = _made(np.array([[1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]], bool))
    split = np.array([splits.TRAIN, splits.TRAIN, splits.TUNING, splits.HELD_OUT], np.int8)
    with pytest.raises(UserError, match=message):
        missingness.leave_out(made, names, split)


def test_images_and_volumes_are_hidden_and_the_split_is_the_same_whatever_is():
    config = importlib.import_module("configs.fprm").get_config()
    config.data.update(samples=300, image_size=16, frames=2)
    found = {}
    for name in ("", "fundus", "flow"):
        with config.unlocked():
            config.data.update(complete_only=True, hide=name, hide_rate=0.8)
        found[name] = dataset.fit(config)
    whole = found[""]
    assert whole.manifest.presence.all()
    assert len(whole.groups) == 1
    for j, name in enumerate(("fundus", "flow")):
        fitted = found[name]
        np.testing.assert_array_equal(fitted.split, whole.split)
        for part in range(3):
            here = fitted.split == part
            assert (~fitted.manifest.presence[here, j]).sum() == round(0.8 * here.sum())
        assert sorted(fitted.groups.train_counts, reverse=True)[0] == round(0.8 * (whole.split == 0).sum())
        assert name in fitted.manifest.title
        assert fitted.manifest.digest != whole.manifest.digest


# ---- Named protocols ------------------------------------------------------------------------------------------------


def _parts(seed=0, rows=4000, each=10):
    """Parts of rows, in no order of time, with a value that is hidden and a covariate of the row, both uniform."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(rows), each)
    time = np.argsort(rng.random((rows, each)), axis=1).ravel().astype(float)
    return owner, time, rng.random(rows * each), np.repeat(rng.random(rows), each)


@pytest.mark.parametrize("protocol", missingness.PROTOCOLS)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.37, 0.9, 1.0])
def test_the_rate_is_met_and_a_seed_decides(protocol, rate):
    parts = _parts()
    gone = missingness.lost(protocol, rate, *parts, np.random.default_rng(3))
    assert gone.mean() == pytest.approx(rate, abs=0.01)
    np.testing.assert_array_equal(gone, missingness.lost(protocol, rate, *parts, np.random.default_rng(3)))
    if 0 < rate < 1:
        assert (gone != missingness.lost(protocol, rate, *parts, np.random.default_rng(4))).any()
    if protocol != "segments":
        more = missingness.lost(protocol, min(1.0, rate + 0.2), *parts, np.random.default_rng(3))
        assert not (gone & ~more).any()


def test_what_goes_depends_on_what_the_protocol_names():
    owner, time, hidden, observed = _parts()
    hidden = (hidden + observed) / 2  # the hidden value and the observed one go together, as in patients
    of = {p: missingness.lost(p, 0.4, owner, time, hidden, observed, np.random.default_rng(0)) for p in ("mcar", "mar")}
    of["mnar"] = missingness.lost("mnar", 0.4, owner, time, hidden, observed, np.random.default_rng(0))
    narrow = np.floor(20 * observed)  # given the observed, of one twentieth

    def related(gone, given):
        parts = [np.corrcoef(gone[given == g], (hidden - observed)[given == g])[0, 1] for g in np.unique(given)]
        return np.mean(parts)

    assert abs(np.corrcoef(of["mcar"], observed)[0, 1]) < 0.02 > abs(np.corrcoef(of["mcar"], hidden)[0, 1])
    assert np.corrcoef(of["mar"], observed)[0, 1] > 0.4
    assert np.corrcoef(of["mar"], hidden)[0, 1] > 0.2  # by way of the observed alone:
    assert abs(related(of["mar"], narrow)) < 0.02
    assert related(of["mnar"], narrow) > 0.2


def test_chances_have_the_mean_and_the_odds_that_are_said():
    level = np.linspace(0, 1, 101)
    found = missingness.chances(0.3, level)
    assert found.mean() == pytest.approx(0.3, abs=1e-9)
    odds = found / (1 - found)
    assert odds[-1] / odds[0] == pytest.approx(np.exp(missingness.STEEPNESS))
    assert len(missingness.chances(0.3, np.zeros(0))) == 0


def test_segments_are_contiguous_in_time_and_anywhere():
    owner, time, hidden, observed = _parts()
    gone = missingness.lost("segments", 0.35, owner, time, hidden, observed, np.random.default_rng(0))
    begins = []
    for row in range(500):
        places = np.sort(time[(owner == row) & gone])
        assert len(places) in (3, 4)
        np.testing.assert_array_equal(np.diff(places), 1)
        begins.append(places[0])
    assert set(begins) == set(range(8))


# ---- Whole modalities lost by a protocol -----------------------------------------------------------------------------

PROTOCOLS = ("mcar", "mar", "mnar")


def _measured(n: int = 4_000, seed: int = 0) -> tuple[Manifest, np.ndarray, np.ndarray]:
    """Rows of three modalities of one number each, some missing; with the numbers [n, m] and the levels [n, m]."""
    rng = np.random.default_rng(seed)
    values, presence = rng.normal(size=(n, 3)), rng.random((n, 3)) < 0.8
    presence[~presence.any(axis=1), 0] = True
    there = np.where(presence, values, np.nan)
    cells = {name: pl.Series(there[:, j]).fill_nan(None) for j, name in enumerate("abc")}
    manifest = fitting.table_manifest(cells, *(Modality(name, "tabular", (name,)) for name in "abc"))
    return manifest, values, missingness.levels(manifest, fitting.fit(manifest))


def test_levels_are_ranks_among_the_samples_that_have_a_modality():
    manifest, values, levels = _measured(50)
    for j in range(3):
        here = manifest.presence[:, j]
        order = values[here, j].argsort().argsort()
        np.testing.assert_allclose(levels[here, j], (order + 0.5) / here.sum())
        assert set(levels[~here, j]) == {0.5}


def test_levels_of_inputs_without_parts_are_by_their_mean():
    pixels = np.array([7, 200, 30, 90], np.uint8)[:, None] * np.ones((1, 8 * 8 * 1), np.uint8)
    column = pl.Series(pixels.reshape(4, 8, 8, 1), dtype=pl.Array(pl.UInt8, (8, 8, 1)))
    manifest = fitting.table_manifest({"scan": column}, Modality("scan", "image", ("scan",), shape=(8, 8, 1)))
    levels = missingness.levels(manifest, fitting.fit(manifest))
    np.testing.assert_allclose(levels[:, 0], (np.array([0, 3, 1, 2]) + 0.5) / 4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_rate_is_met_nothing_is_added_and_one_modality_always_stays(protocol):
    manifest, _, levels = _measured()
    presence, before = manifest.presence, np.zeros_like(manifest.presence)
    able = (presence.sum(axis=1) - 1).sum()
    for rate in (0.1, 0.3, 0.7):
        found = missingness.lose(manifest, protocol, rate, np.full(len(presence), True), levels, seed=3)
        gone = presence & ~found.presence
        assert not np.any(found.presence & ~presence)
        assert found.presence.any(axis=1).all()
        assert gone.sum() / able == pytest.approx(rate, abs=0.02)
        assert np.all(gone[before])  # more go at a higher rate, and these too
        before = gone
        assert found.title.endswith(f", {100 * rate:g} % of modalities lost ({protocol})")
        kept = found.presence[:, 0]
        assert found.table["a"].filter(pl.Series(kept)).equals(manifest.table["a"].filter(pl.Series(kept)))
    again, other = (missingness.lose(manifest, protocol, 0.3, np.full(len(presence), True), levels, s) for s in (3, 4))
    np.testing.assert_array_equal(
        missingness.lose(manifest, protocol, 0.3, np.full(len(presence), True), levels, 3).presence, again.presence
    )
    assert np.any(again.presence != other.presence)


def _rank_difference(manifest: Manifest, values: np.ndarray, protocol: str, levels: np.ndarray) -> tuple[float, float]:
    """Mean value of what went less that of what stayed, of a lost modality itself and of another one that stayed."""
    found = missingness.lose(manifest, protocol, 0.4, np.full(len(values), True), levels, seed=0).presence
    whole = manifest.presence.all(axis=1)
    lost = whole & ~found[:, 0]
    own = values[lost, 0].mean() - values[whole & found[:, 0], 0].mean()
    pair = whole & (found.sum(axis=1) <= 2) & found[:, 1]
    alone = pair & ~found[:, 0] & ~found[:, 2]  # b stayed and both others went
    return own, values[alone, 1].mean() - values[pair, 1].mean()


def test_what_goes_depends_on_its_own_value_under_mnar_and_on_what_stays_under_mar():
    manifest, values, levels = _measured(20_000)
    own, other = zip(*(_rank_difference(manifest, values, each, levels) for each in PROTOCOLS), strict=True)
    assert abs(own[0]) < 0.06
    assert abs(own[1]) < 0.06
    assert own[2] > 0.5
    assert abs(other[0]) < 0.06
    assert other[1] > 0.2


def test_samples_that_are_kept_out_lose_nothing_and_the_others_what_they_would_have_lost():
    manifest, _, levels = _measured(500)
    some = np.arange(500) % 5 == 0
    every, few = (missingness.lose(manifest, "mnar", 0.5, rows, levels, 1) for rows in (np.full(500, True), some))
    np.testing.assert_array_equal(few.presence[some], every.presence[some])
    assert few.table.filter(pl.Series(~some)).equals(manifest.table.filter(pl.Series(~some)))
    assert few.presence[some].sum() < manifest.presence[some].sum()
    assert "of held-out samples" in few.title


def _phenomenon(**changes) -> dataset.FittedData:
    config = importlib.import_module("configs.phenomenon").get_config()
    config.data.update(train=300, tuning=60, held_out_per_group=30)
    for key, value in changes.items():
        config.data[key] = value
    return dataset.fit(config)


def test_a_shift_leaves_train_and_tuning_rows_as_they_are_to_the_bit():
    found, shifted = _phenomenon(), _phenomenon(lose="mcar", lose_rate=0.4, lose_in="held_out")
    held_out = found.split == splits.HELD_OUT
    np.testing.assert_array_equal(shifted.split, found.split)
    before, after = (each.manifest.table.filter(pl.Series(~held_out)) for each in (found, shifted))
    assert after.equals(before)
    assert shifted.preprocessor.to_dict() == found.preprocessor.to_dict()
    assert np.any(shifted.manifest.presence[held_out] != found.manifest.presence[held_out])
    everywhere = _phenomenon(lose="mcar", lose_rate=0.4)
    np.testing.assert_array_equal(everywhere.split, found.split)
    np.testing.assert_array_equal(everywhere.manifest.presence[held_out], shifted.manifest.presence[held_out])
    assert np.any(everywhere.manifest.presence[~held_out] != found.manifest.presence[~held_out])


def test_losses_do_not_depend_on_how_numbers_are_encoded():
    one, other = (_phenomenon(lose="mnar", numbers=numbers) for numbers in ("standard", "piecewise"))
    np.testing.assert_array_equal(one.manifest.presence, other.manifest.presence)


def test_the_rarest_combinations_within_a_share_are_left_out_whatever_the_labels():
    presence = np.repeat(np.array([[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], bool), (50, 30, 12, 5, 3), 0)
    for share, names in ((0.0, ()), (0.01, ("a",)), (0.05, ("a",)), (0.08, ("a", "b")), (0.2, ("a", "b", "c"))):
        assert missingness.rarest(presence, "abc", share) == names
    twins = np.repeat(np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]], bool), (2, 2, 2), 0)
    assert missingness.rarest(twins, "abc", 0.9) == ("a", "b")
    found, without = _phenomenon(), _phenomenon(leave_rarest=0.1)
    left = without.split == splits.UNUSED
    assert left.any()
    assert set(without.split[found.split != splits.HELD_OUT]) == {splits.UNUSED, splits.TRAIN, splits.TUNING}
    np.testing.assert_array_equal(without.split[found.split == splits.HELD_OUT], splits.HELD_OUT)
    unseen = {tuple(mask) for mask in found.manifest.presence[left].tolist()}
    assert not unseen & {tuple(mask) for mask in without.groups.masks.tolist()}
