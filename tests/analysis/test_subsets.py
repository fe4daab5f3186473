"""Predictions of parts of a sample: what-if, robustness and the next modality, on tiny runs and by hand."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import polars as pl
import pytest

from remind_jax import main as train_main
from remind_jax.analysis import command, next_modality, opening, robustness, what_if
from remind_jax.data.subsets import shapley, subset_masks
from remind_jax.errors import UserError
from remind_jax.tasks.task import entropy_of
from tests import tiny_runs
from tests.reference import shapley as reference

pytestmark = pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING)


@pytest.fixture(scope="module")
def folder(_quick_compilation, tmp_path_factory) -> pathlib.Path:
    """A REMIND run, and an ensemble of Soft MoE whose predictions are adjusted by the prior of each combination."""
    path = tmp_path_factory.mktemp("runs")
    changes = {
        "remind": {},
        "soft_moe": {"ensemble": 2, "objective__prior": "class_given_group", "objective__prior_mode": "posthoc"},
    }
    for method, more in changes.items():
        arguments = tiny_runs.arguments(path / "cache", method, eval__bootstrap=20, eval__batch_size=16, **more)
        train_main.main([*arguments, f"--workdir={path / method}"])
    return path


@pytest.fixture(scope="module")
def run(folder) -> opening.Run:
    return opening.open_run(folder / "remind")


@pytest.fixture(scope="module")
def predict(run):
    return run.model.predict_parts


def _table(path: pathlib.Path, name: str) -> list[dict[str, str]]:
    with open(path / "analysis" / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _presence(run) -> np.ndarray:
    return run.data.manifest.presence[run.data.rows("held_out")]


# ---- Predictions of a part ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["remind", "soft_moe"])
def test_whole_samples_are_predicted_as_in_the_report(folder, method):
    run = opening.open_run(folder / method)
    found = run.model.predict_parts(run.data.stores["held_out"], np.arange(len(_presence(run))), _presence(run))
    table = pl.read_parquet(folder / method / "predictions.parquet")
    np.testing.assert_allclose(found, table.select("p_0", "p_1").to_numpy(), atol=1e-5)


def test_the_power_of_the_class_prior_is_divided_by(run, predict):
    store, at, presence = run.data.stores["held_out"], np.arange(4), _presence(run)[:4]
    plain = predict(store, at, presence)
    expected = plain / np.sqrt(run.data.class_fractions)
    found = dataclasses.replace(run.model, prior_power=0.5).predict_parts(store, at, presence)
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)
    assert np.abs(found - plain).max() > 1e-3


def test_a_hidden_modality_is_one_that_was_never_there(run, predict):
    """Its content changes nothing, what stays does, and nothing left gives the class frequencies of training."""
    store, presence = run.data.stores["held_out"], _presence(run)
    at = np.flatnonzero(presence.all(axis=1))[:2]
    left = np.array([[True, False, True, True]] * 2)

    class Other:
        def take(self, positions):
            batch = store.take(positions)
            batch[self.name] = batch[self.name] + 3.0
            return batch

    other = Other()
    names = run.data.groups.modalities
    other.name = names[1]
    np.testing.assert_array_equal(predict(store, at, left), predict(other, at, left))
    other.name = names[0]
    assert np.abs(predict(store, at, left) - predict(other, at, left)).max() > 1e-4
    none = predict(store, at, np.zeros_like(left))
    np.testing.assert_allclose(none, np.tile(run.data.class_fractions, (2, 1)))
    np.testing.assert_allclose(predict(store, at, left).sum(axis=1), 1.0)


def test_predictions_do_not_depend_on_their_company(run, predict):
    store, presence = run.data.stores["held_out"], _presence(run)
    at = np.array([5, 40, 5, 71])
    alone = np.concatenate([predict(store, at[i : i + 1], presence[at[i : i + 1]]) for i in range(4)])
    np.testing.assert_allclose(predict(store, at, presence[at]), alone, atol=1e-6)


def test_a_gate_that_looks_at_the_batch_is_refused(run):
    config = run.config.copy_and_resolve_references()
    config.fusion.gate_granularity = "batch"
    with pytest.raises(UserError, match="gate_granularity=batch"):
        dataclasses.replace(run.model, config=config).predict_parts(
            run.data.stores["held_out"], np.arange(1), np.ones((1, 4), bool)
        )


def test_samples_are_named_by_position():
    np.testing.assert_array_equal(command.positions_of("all", 3), [0, 1, 2])
    np.testing.assert_array_equal(command.positions_of("7,0,3-5,4", 8), [0, 3, 4, 5, 7])
    for text in ("8", "x", "", "-1", "1-x"):
        with pytest.raises(UserError, match=f"--samples={text}"):
            command.positions_of(text, 8)


# ---- What if --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shapley_values_are_the_mean_over_all_orders(count):
    values = np.random.default_rng(count).normal(size=(3, 2**count))
    found = shapley(values)
    for row, shares in zip(values, found, strict=True):
        by_set = {frozenset(np.flatnonzero(mask)): v for mask, v in zip(subset_masks(count), row, strict=True)}
        np.testing.assert_allclose(shares, reference.shapley(by_set.__getitem__, count), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), values[:, -1] - values[:, 0], atol=1e-12)


def test_shapley_values_by_hand():
    """Of a sum of parts each gets its own; of the product of two each gets half."""
    masks = subset_masks(3).astype(float)
    np.testing.assert_allclose(shapley((masks @ [1.0, -2.0, 0.5])[None]), [[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(shapley((masks[:, 0] * masks[:, 2])[None]), [[0.5, 0.0, 0.5]], atol=1e-15)


def test_table_of_what_if(folder, run):
    path = folder / "remind"
    names = run.data.groups.modalities
    what_if.main([f"--workdir={path}", f"--drop={names[0]},{names[2]}"])
    rows, presence = _table(path, "what_if.csv"), _presence(run)
    predictions = pl.read_parquet(path / "predictions.parquet")
    assert [int(row["sample"]) for row in rows] == list(range(len(presence)))
    for i, row in enumerate(rows):
        shares = [float(row[f"shapley_{name}"]) for name in names if row[f"shapley_{name}"]]
        assert len(shares) == presence[i].sum() == len(row["group"].split("+"))
        k = run.data.classes.index(row["predicted"])
        assert float(row[f"p_{row['predicted']}"]) == pytest.approx(
            max(predictions.row(i, named=True)[f"p_{j}"] for j in (0, 1)), abs=1e-5
        )
        assert sum(shares) == pytest.approx(float(row[f"p_{row['predicted']}"]) - float(row["value_empty"]), abs=1e-5)
        assert float(row["value_empty"]) == pytest.approx(run.data.class_fractions[k], abs=1e-6)
        left = [name for name in row["group"].split("+") if name not in (names[0], names[2])]
        assert row["group_after"] == ("+".join(left) or "none")
        if not left:
            assert float(row[f"after_{run.data.classes[1]}"]) == pytest.approx(run.data.class_fractions[1], abs=1e-6)
    patients = set(predictions["patient_id"].to_list()) | set(predictions["sample_id"].to_list())
    text = (path / "analysis" / "what_if.csv").read_text()
    assert not any(patient in text for patient in patients if not patient.isdigit())
    assert not {"patient_id", "sample_id"} & set(rows[0])
    svg = (path / "analysis" / "what_if.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("head, n = ", "tail, n = ", *names))
    assert (path / "analysis" / "what_if.png").read_bytes().startswith(b"\x89PNG")


def test_keep_and_drop_are_two_ways_to_say_one_thing(folder, run):
    path, names = folder / "soft_moe", run.data.groups.modalities
    tables = []
    for option in (f"--drop={names[1]},{names[3]}", f"--keep={names[0]}+{names[2]}"):
        what_if.main([f"--workdir={path}", "--samples=0,60-62", "--shapley=none", option])
        tables.append(_table(path, "what_if.csv"))
    assert tables[0] == tables[1]
    assert [row["sample"] for row in tables[0]] == ["0", "60", "61", "62"]
    assert not [name for name in tables[0][0] if "shapley" in name]


def test_means_are_those_of_what_combinations_have():
    def row(group, tail, a, b):
        return {"group": group, "tail": tail, "shapley_a": a, "shapley_b": b}

    rows = [row("a", True, 0.2, np.nan), row("a+b", False, -0.4, 0.1), row("a+b", False, 0.2, 0.3)]
    found = what_if.means(rows, ["a", "b"])
    assert [entry[:3] for entry in found] == [("all", None, 3), ("a+b", False, 2), ("a", True, 1)]
    np.testing.assert_allclose([values for *_, values in found], [[0.8 / 3, 0.2], [0.3, 0.2], [0.2, np.nan]])


# ---- Robustness -----------------------------------------------------------------------------------------------------


def test_who_loses_a_modality():
    rng = np.random.default_rng(0)
    presence = rng.random((200, 4)) < 0.6
    order = rng.permutation(200)
    able = presence[:, 1] & (presence.sum(axis=1) > 1)
    before = np.zeros(200, bool)
    for rate in robustness.RATES:
        lost = robustness.lose_one(presence, 1, rate, order)
        assert lost.sum() == round(rate * able.sum())
        assert not np.any(lost & ~able)
        assert np.all(lost[before])  # who loses it at a lower rate does at a higher one
        before = lost
    np.testing.assert_array_equal(before, able)


def test_all_together_leaves_one():
    rng = np.random.default_rng(1)
    presence = rng.random((4_000, 3)) < 0.7
    presence = presence[presence.any(axis=1)]
    uniform, before = rng.random(presence.shape), presence
    for rate in robustness.RATES:
        left = robustness.lose_any(presence, rate, uniform)
        assert np.all(left <= before)
        assert left.any(axis=1).all()
        before = left
    np.testing.assert_array_equal(robustness.lose_any(presence, 0.0, uniform), presence)
    np.testing.assert_array_equal(before.sum(axis=1), 1)
    whole = presence.all(axis=1)
    share = 1 - robustness.lose_any(presence, 0.5, uniform)[whole].mean()
    assert share == pytest.approx(
        (3 * 0.5 - 0.5**3) / 3, abs=0.02
    )  # each with 1/2, but one of three where all would go


def test_robustness_of_two_runs(folder, run):
    path = folder / "remind"
    robustness.main([f"--workdir={path}", f"--also={folder / 'soft_moe'}", "--draws=2"])
    rows = _table(path, "robustness.csv")
    assert tuple(rows[0]) == (*robustness.COLUMNS, *run.task.compared)
    names = (*run.data.groups.modalities, "all together")
    assert len(rows) == 2 * len(names) * 11 * 2
    for method in ("remind", "soft_moe"):
        overall = json.loads((folder / method / "report.json").read_text())["overall"]
        for row in rows:
            if row["method"] == method and row["rate"] == "0":
                assert float(row["accuracy"]) == pytest.approx(overall["accuracy"], abs=1e-6)
                assert float(row["auroc"]) == pytest.approx(overall["auroc"], abs=1e-5)
                assert row["n_lost"] == "0"
    # At rate 1 of one modality nothing is left to chance: predicted anew, without it.
    presence = _presence(run)
    left = presence.copy()
    left[presence.sum(axis=1) > 1, 2] = False
    again = run.model.predict_parts(run.data.stores["held_out"], np.arange(len(left)), left)
    labels = run.data.manifest.labels[run.data.rows("held_out")]
    ends = [row for row in rows if row["method"] == "remind" and row["hidden"] == names[2] and row["rate"] == "1"]
    assert [float(row["accuracy"]) for row in ends] == pytest.approx([np.mean(again.argmax(1) == labels)] * 2, abs=1e-6)
    assert {int(row["n_lost"]) for row in ends} == {int((left != presence).any(axis=1).sum())}
    svg = (path / "analysis" / "robustness.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("remind", "soft_moe", "macro-F1", *names))


# ---- Next modality --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fusion(run) -> next_modality.Fusion:
    return next_modality.Fusion(run)


def test_tokens_give_what_whole_networks_give(run, predict, fusion):
    """Encoding once and hiding tokens is the same as hiding inputs."""
    store, presence = run.data.stores["held_out"], _presence(run)
    at = np.arange(0, len(presence), 3)
    samples = fusion.encode(store, at)
    np.testing.assert_array_equal(samples.presence, presence[at])
    left = presence[at] & (np.random.default_rng(0).random((len(at), 4)) < 0.6)
    assert not np.all(run.model.seen(left))
    assert not left.any(axis=1).all()
    for mask in (presence[at], left):
        expected = entropy_of(predict(store, at, mask))
        np.testing.assert_allclose(fusion.entropy(samples.tokens, mask), expected, atol=1e-5)
    np.testing.assert_array_equal(fusion.owner, [0, 0, 1, 1, 2, 2, 3, 3] if len(fusion.owner) == 8 else np.arange(4))


def test_nearest_are_those_of_a_full_search():
    rng = np.random.default_rng(0)
    samples, donors = rng.normal(size=(5, 6)), rng.normal(size=(9, 6))
    at, distances = next_modality.nearest(samples, donors, 3)
    full = np.sqrt(np.mean((samples[:, None] - donors[None]) ** 2, axis=2))
    np.testing.assert_array_equal(at, np.argsort(full, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :3], atol=1e-6)
    assert next_modality.nearest(samples, donors, 20)[0].shape == (5, 9)


def test_expected_entropy_is_that_of_lent_inputs(run, predict, fusion):
    """Against raw inputs of the donors put into the sample, one after the other."""
    held_out, train = run.data.stores["held_out"], run.data.stores["train"]
    pool_at = np.arange(len(train))
    pool, names = fusion.encode(train, pool_at), run.data.groups.modalities
    presence = _presence(run)
    at = np.flatnonzero(presence[:, 2] & presence[:, 3] & ~presence[:, 0])[:3]
    samples = fusion.encode(held_out, at)
    found = next_modality.estimate(fusion, samples, pool, 0, 4)
    for i, position in enumerate(at):
        mask = presence[position]
        able = np.flatnonzero(pool.presence[:, 0] & pool.presence[:, mask].all(axis=1))
        shared = mask[fusion.owner]
        gaps = np.sqrt(np.mean((pool.tokens[able][:, shared] - samples.tokens[i][shared]) ** 2, axis=(1, 2)))
        lent = able[np.argsort(gaps)[:4]]

        class Mixed:
            def take(self, positions, lent=lent, position=position):
                batch = held_out.take(np.full(len(positions), position))
                batch[names[0]] = train.take(lent[positions])[names[0]]
                batch["present"][:, 0] = True
                return batch

        with_it = np.tile(mask | np.eye(4, dtype=bool)[0], (len(lent), 1))
        each = entropy_of(predict(Mixed(), np.arange(len(lent)), with_it))
        assert found.expected[i] == pytest.approx(each.mean(), abs=1e-5)
        assert found.donors[i] == len(lent)
        assert found.distance[i] == pytest.approx(np.sort(gaps)[:4].mean(), rel=1e-3, abs=1e-5)


def test_a_modality_that_nobody_like_the_sample_has_is_not_estimated(fusion):
    tokens = np.zeros((2, len(fusion.owner), 8), np.float32)
    samples = next_modality.Encoded(tokens, np.array([[True, False, True, False], [True, False, False, False]]))
    pool = next_modality.Encoded(tokens[:1], np.array([[True, True, False, False]]))
    found = next_modality.estimate(fusion, samples, pool, 1, 5)
    np.testing.assert_array_equal(found.donors, [0, 1])
    assert np.isnan(found.expected[0])
    assert np.isfinite(found.expected[1])


def test_correlation_of_ranks():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    one, other = rng.normal(size=50).round(1), rng.normal(size=50).round(1)
    assert next_modality.spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert next_modality.spearman(one, np.zeros(50)) is None
    at = np.arange(60)
    checks = next_modality.Checks(at, at % 2, rng.random(60), one_true := rng.random(60), np.exp(one_true), at > 30)
    rows = next_modality.validation(checks, ["a", "b", "c"], seed=0)
    assert [(row["modality"], row["n"]) for row in rows] == [("a", 30), ("b", 30), ("c", 0), ("all", 60)]
    assert [row["rho"] for row in rows] == [pytest.approx(1.0), pytest.approx(1.0), None, pytest.approx(1.0)]
    assert rows[0]["rho_low"] == pytest.approx(1.0)
    assert abs(rows[3]["rho_entropy_before"]) < 0.5


def test_next_modality_of_a_run(folder, run):
    path = folder / "remind"
    next_modality.main([f"--workdir={path}", "--donors=3", "--pool=60", "--checks=60"])
    rows, presence = _table(path, "next_modality.csv"), _presence(run)
    names = run.data.groups.modalities
    assert len(rows) == (~presence).sum()
    assert {row["use"] for row in rows} == {"research, not advice"}
    for sample in range(len(presence)):
        here = [row for row in rows if int(row["sample"]) == sample]
        assert {row["modality"] for row in here} == {
            n for n, has in zip(names, presence[sample], strict=True) if not has
        }
        drops = [float(row["expected_drop"]) for row in here if row["donors"] != "0"]
        assert drops == sorted(drops, reverse=True)
        for row in here:
            if row["donors"] != "0":
                assert float(row["entropy"]) - float(row["expected_entropy"]) == pytest.approx(
                    float(row["expected_drop"]), abs=1e-5
                )
    checked = _table(path, "next_modality_validation.csv")
    assert [row["modality"] for row in checked] == [*names, "all"]
    able = presence & (presence.sum(axis=1) > 1)[:, None]
    at = next_modality.drawn(len(presence), 60, 0)
    assert 0 < int(checked[-1]["n"]) <= able[at].sum() < able.sum()
    svg = (path / "analysis" / "next_modality.svg").read_text(encoding="utf-8")
    assert all(word in svg for word in ("research, not advice", "head", "tail"))


# ---- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (what_if, ["--shapley=none"], "nothing to do"),
        (what_if, ["--drop=ffdm_cc", "--keep=ffdm_cc"], "--drop and --keep"),
        (what_if, ["--drop=ffdm_c"], "did you mean 'ffdm_cc'"),
        (what_if, ["--samples=999"], "--samples=999"),
        (what_if, ["--also=x"], "also"),
        (robustness, ["--draws=0"], "draws"),
        (robustness, ["extra"], "unexpected arguments"),
        (next_modality, ["--donors=0"], "donors"),
        (next_modality, ["--samples=none"], "--samples=none"),
    ],
)
def test_mistakes_are_named(folder, command, arguments, message):
    with pytest.raises(UserError, match=message):
        command.main([f"--workdir={folder / 'remind'}", *arguments])


def test_tokens_of_an_ensemble_are_refused(folder):
    with pytest.raises(UserError, match="ensemble of 2 networks: train one, such as by method=remind"):
        next_modality.main([f"--workdir={folder / 'soft_moe'}"])


def test_too_many_modalities_for_exact_values(run, predict):
    with pytest.raises(UserError, match="at most 10"):
        what_if.shapley_shares(run, np.zeros(1, np.int64), np.ones((1, 11), bool), np.zeros(1, np.int64))
