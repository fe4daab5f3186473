"""Adaptation to unseen combinations: what is added, what moves and what does not, and what is refused.

The toy data have two tables of one number each. The label is the sign of `a` where `a` is there, of `b` where it is
alone: a run that never saw `b` alone knows nothing of it.
"""

import itertools
import json
import sys

import jax
import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import adapt, cli
from remind_jax.analysis import opening
from remind_jax.data import dataset, splits
from remind_jax.errors import UserError
from remind_jax.runtime import claims, progress
from remind_jax.training import adaptation, unfreezing
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]

PARTS = {"train": 1.0, "tuning": 0.3, "held_out": 0.5}
D, E, F, C = 8, 4, 8, 2  # width, experts, hidden width of an expert, classes
TINY = {
    "model.width": D,
    "model.tokens": 1,
    "model.encoder_hidden": 8,
    "model.encoder_dropout": 0.0,
    "fusion.heads": 2,
    "fusion.experts": E,
    "fusion.hidden": F,
    "fusion.dropout": 0.1,
    "optim.lr": 0.01,
    "train.batch_size": 16,
    "train.epochs": 3.0,
    "train.joint_epochs": 0.0,
    "eval.bootstrap": 20,
    "eval.batch_size": 64,
    "devices": 1,
}


def _write(folder, sizes, seed=0, split=True, **changes):
    """A manifest folder with `sizes` train rows of each combination of a and b, and its share in the other parts."""
    rng, rows = np.random.default_rng(seed), []
    for combination, n in sizes.items():
        for part, share in PARTS.items():
            for _ in range(round(share * n)):
                a, b = rng.normal(size=2)
                has_a, has_b = "a" in combination, "b" in combination
                name = f"s{seed}-{len(rows)}"
                cells = {"a": a if has_a else None, "b": b if has_b else None, "c": 1.0}
                rows.append({"id": name, "patient": name, "y": str(int((a if has_a else b) > 0)), "part": part} | cells)
    folder.mkdir(parents=True)
    pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "manifest.csv")
    schema = {
        "version": 1,
        "name": "toy",
        "sample_id": "id",
        "patient_id": "patient",
        "label": {"column": "y", "classes": ["0", "1"]},
        "modalities": {name: {"kind": "tabular", "columns": [name]} for name in "ab"},
    }
    schema |= {"split": "part"} if split else {}
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema | changes, sort_keys=False), encoding="utf-8")
    return folder


def _arguments(folder, method="remind", **changes):
    keys = TINY | {"data.cache": folder.parent / "cache", "data.root": folder}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={tiny_runs.ROOT / 'configs' / 'manifest.py'}:method={method}", *flags]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with all three combinations."""
    return _write(tmp_path_factory.mktemp("toy") / "data", {"a": 80, "a+b": 80, "b": 120})


@pytest.fixture(scope="module")
def runs(toy):
    """Finished runs that have not seen `b` alone, by method."""
    found = {}
    for method in ("remind", "soft_moe"):
        config = cli.parse_config(_arguments(toy, method, data__leave_out="b"))[0]
        found[method] = toy.parent / method
        train_and_evaluate(config, found[method], verbose=False)
    return found


@pytest.fixture(scope="module")
def adapters(runs):
    """Adapters of the runs to the rows that they left out."""

    def make(path):
        run = adaptation.open_single(path)
        manifest, whole_split, findings = adaptation.own_data(run)
        return adaptation.Adapter(run, adaptation.prepare(run, manifest, whole_split, "new", findings))

    return {method: make(path) for method, path in runs.items()}


def _choice(unfreeze, **options):
    return unfreezing.Choice(*unfreezing.parse_unfreeze(unfreeze), **({"steps": 3} | options))


def _adapt(adapter, unfreeze, out, **options):
    report = adaptation.adapt(adapter, _choice(unfreeze, **options), out, progress.Silent())
    return report, adaptation.open_single(out).params


# ---- Left out of training -------------------------------------------------------------------------------------------


def test_left_out_rows_train_nothing_and_are_held_out_as_before(toy):
    whole = dataset.fit(cli.parse_config(_arguments(toy))[0])
    less = dataset.fit(cli.parse_config(_arguments(toy, data__leave_out="b"))[0])
    assert set(whole.groups.names) - set(less.groups.names) == {"b"}
    np.testing.assert_array_equal(whole.split, less.whole_split)
    alone = less.manifest.presence.tolist()
    alone = np.array([row == [False, True] for row in alone])
    held_out = less.whole_split == splits.HELD_OUT
    assert (less.split[alone & ~held_out] == splits.UNUSED).all()
    np.testing.assert_array_equal(less.split[~alone | held_out], whole.split[~alone | held_out])
    assert (alone & (whole.split == splits.TRAIN)).sum() == 120
    # What is fitted is fitted on the other rows.
    assert less.preprocessor.to_dict() != whole.preprocessor.to_dict()


@pytest.mark.slow
def test_a_run_reports_them_as_unseen(runs):
    report = json.loads((runs["remind"] / "report.json").read_text())
    row = next(row for row in report["groups"] if row["group"] == "b")
    assert (row["unseen"], row["n_train"], row["n"]) == (True, 0, 60)
    assert report["data"] == "toy, b kept from training"
    assert report["card"]["splits"]["train"]["n"] == 160


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("c", "'c' is not a modality"),
        ("bb", "did you mean 'b'"),
        ("a,b,b+a", "leaves nothing to train on"),
    ],
)
def test_wrong_combinations_are_refused(toy, names, message):
    with pytest.raises(UserError, match=message):
        dataset.fit(cli.parse_config(_arguments(toy, data__leave_out=names))[0])


def test_a_combination_that_no_row_has_is_refused(tmp_path):
    folder = _write(tmp_path / "data", {"a+b": 20, "b": 20})
    with pytest.raises(UserError, match="no row has the combination 'a'"):
        dataset.fit(cli.parse_config(_arguments(folder, data__leave_out="a"))[0])


# ---- What is added --------------------------------------------------------------------------------------------------


def test_new_rows_are_zero_routers_and_mean_vectors(adapters):
    adapter = adapters["remind"]
    old, new = adapter.run.params, adapter.model.params
    assert adapter.data.groups.names[2:] == ("b",)
    assert new["block_0/group_router"].shape == (3, D, E, 1)
    assert not new["block_0/group_router"][2].any()
    assert old["block_0/group_router"].any()
    np.testing.assert_allclose(new["imputation/group"][2], np.mean(old["imputation/group"], axis=0), rtol=1e-6)
    assert new["imputation/group"][2].any()
    for path, x in old.items():
        rows = new[path][: len(x)] if x.ndim else new[path]
        assert rows.tobytes() == x.tobytes(), path
    assert set(new) == set(old)


def test_nothing_leaves_predictions_as_they_are(runs, adapters, tmp_path):
    for method, adapter in adapters.items():
        report, params = _adapt(adapter, "nothing", tmp_path / method)
        before = pl.read_parquet(runs[method] / "predictions.parquet")
        after = pl.read_parquet(tmp_path / method / "predictions.parquet")
        assert before["sample_id"].to_list() == after["sample_id"].to_list()
        known = before["group"].to_numpy() != "b"
        columns = ["p_0", "p_1"]
        assert before.filter(known)[columns].equals(after.filter(known)[columns])
        # The mean row, written down, is what the run gives to any unknown combination.
        np.testing.assert_allclose(before[columns].to_numpy(), after[columns].to_numpy(), atol=1e-6)
        facts = report["adapted"]
        assert (facts["trained_parameters"], facts["chosen_by"]) == (0, "nothing was trained")
        assert facts["before"] == facts["after"]
        assert {path: x.tobytes() for path, x in params.items()} == {
            path: np.asarray(x).tobytes() for path, x in adapter.model.params.items()
        }


# ---- What moves -----------------------------------------------------------------------------------------------------

EXPERT = D * F + F + F * D + D
HEAD, OWN = {"head/kernel", "head/bias"}, {"block_0/group_router", "imputation/group"}
SHARED = {"block_0/router", "block_0/router_scale"}
EXPERTS = {f"block_0/expert_{part}" for part in ("in", "in_bias", "out", "out_bias")}
# What is unfrozen; its arrays, and the number of its parameters, by hand: one new combination, one block.
MOVES = [
    ("remind", "head,router", HEAD | OWN, D * C + C + D * E + D),
    ("remind", "shared_router", SHARED, D * E + 1),
    ("remind", "router,experts=0.5", OWN | EXPERTS, D * E + D + 2 * EXPERT),
    ("remind", "experts=1", EXPERTS, 4 * EXPERT),
    ("soft_moe", "head,router,experts=0.25", HEAD | SHARED | EXPERTS, D * C + C + D * E + 1 + EXPERT),
]


def _same_bits(x, y):
    return np.asarray(x).view(np.uint32) == np.asarray(y).view(np.uint32)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "unfreeze", "paths", "size"), MOVES)
def test_only_what_is_named_moves(adapters, tmp_path, monkeypatch, method, unfreeze, paths, size):
    monkeypatch.setattr(adaptation, "LEAST_TUNING", 10**6)  # the last step counts, whatever it is worth
    adapter = adapters[method]
    assert adapter.run.config.optim.weight_decay > 0  # moves parameters that have no gradient, too
    report, params = _adapt(adapter, unfreeze, tmp_path / "out", lr=0.05)
    facts = report["adapted"]
    assert (facts["trained_parameters"], facts["chosen_by"], facts["chosen_step"]) == (size, "last step", 3)
    same = {path: _same_bits(x, params[path]) for path, x in adapter.model.params.items()}
    assert {path for path, bits in same.items() if not bits.all()} == paths
    for path in OWN & paths:
        assert same[path][:2].all(), path  # rows of combinations that the run knows
    if chosen := facts["experts_chosen"]:
        assert [i for i in range(E) if not same["block_0/expert_in"][i].all()] == chosen["block_0"]


def test_everything_moves_but_by_name_only(adapters, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "LEAST_TUNING", 10**6)
    adapter = adapters["remind"]
    report, params = _adapt(adapter, "all", tmp_path / "out", lr=0.05)
    assert report["adapted"]["trained_parameters"] == report["parameters"]
    still = {path for path, x in adapter.model.params.items() if _same_bits(x, params[path]).all()}
    assert still <= {path for path in params if path.endswith(("bias", "scale"))}  # which may have no gradient
    assert not _same_bits(adapter.model.params["block_0/group_router"][:2], params["block_0/group_router"][:2]).all()


@pytest.fixture(scope="module")
def learned(adapters, tmp_path_factory):
    """A folder with the run adapted as a whole, and its report."""
    out = tmp_path_factory.mktemp("learned") / "out"
    return out, _adapt(adapters["remind"], "all", out, steps=60)[0]


def test_everything_learns_a_new_rule(learned):
    report = learned[1]
    facts = report["adapted"]
    assert facts["before"]["new"]["accuracy"] < 0.75
    assert facts["after"]["new"]["accuracy"] > 0.85
    assert (facts["n_train"], facts["n_tuning"], facts["chosen_by"]) == (120, 36, "tuning loss")
    row = next(row for row in report["groups"] if row["group"] == "b")
    assert row["accuracy"] == facts["after"]["new"]["accuracy"]
    assert (row["n_train"], row["tail"], "unseen" in row) == (120, True, False)


def test_a_bad_step_is_not_chosen(adapters, tmp_path):
    report, params = _adapt(adapters["remind"], "router", tmp_path / "out", steps=1, lr=1e4)
    assert report["adapted"]["chosen_step"] == 0
    assert all(_same_bits(x, params[path]).all() for path, x in adapters["remind"].model.params.items())


def test_composed_routers_of_new_combinations_cannot_be_trained_by_themselves(adapters, tmp_path, monkeypatch):
    adapter = adapters["remind"]
    monkeypatch.setattr(adapter.run.config.fusion, "router_rank", 2)
    with pytest.raises(UserError, match=r"fusion\.router_rank=2 has composed the routers"):
        _adapt(adapter, "head,router", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_shares_of_experts_are_nested_and_the_most_used(adapters):
    adapter = adapters["remind"]
    chosen = [set(adapter.experts(share)["block_0"].tolist()) for share in (0.25, 0.5, 0.75, 1)]
    assert [len(rows) for rows in chosen] == [1, 2, 3, 4]
    assert all(small < large for small, large in itertools.pairwise(chosen))
    store, size = adapter.data.stores["train"], 64
    route = jax.jit(adapter.model.network.route, static_argnames="gate")
    output = route(adapter.model.params, store.take(np.arange(len(store))), gate="never")
    logits = np.asarray(output.blocks[0].shared)[..., 0]
    weights = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    expected = np.argsort(-weights.mean(axis=(0, 1)))
    np.testing.assert_array_equal(
        unfreezing.rank_experts(adapter.model.network, adapter.model.params, store, size)[0], expected
    )


def test_all_rows_train_the_known_combinations_too(adapters):
    run, data = adapters["remind"].run, adapters["remind"].data
    every = adaptation.prepare(run, data.manifest, data.whole_split, "all")
    assert (len(every.stores["train"]), len(data.stores["train"])) == (280, 120)
    assert len(every.stores["held_out"]) == len(data.stores["held_out"]) == 140


# ---- What is written ------------------------------------------------------------------------------------------------


def test_another_folder_is_prepared_with_what_the_run_has_fitted(runs, toy, tmp_path, capsys):
    folder = _write(tmp_path / "other", {"a+b": 20, "b": 40}, seed=5, modalities=_modalities(b=["b"], a=["a"]))
    adapt.main(
        [f"--workdir={runs['remind']}", f"--data={folder}", "--unfreeze=head", "--steps=2", f"--out={tmp_path / 'o'}"]
    )
    said = capsys.readouterr().out
    assert "12 tuning rows are too few" in said
    assert "18 of" in said
    assert all(word in said for word in ("new combinations", "known combinations", "accuracy"))
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "config.json", "data.npz", "environment.json", "metrics.jsonl", "model", "predictions.parquet", "report.json",
    ]  # fmt: skip
    run, again = adaptation.open_single(runs["remind"]), adaptation.open_single(tmp_path / "o")
    assert again.preprocessor.to_dict() == run.preprocessor.to_dict()
    assert again.groups.names == (*run.groups.names, "b")
    manifest, whole_split, _ = adaptation.read_folder(again, folder)
    # The folder names b before a; the network wants the run's order.
    assert [modality.name for modality in manifest.schema.modalities] == ["a", "b"]
    with pytest.raises(UserError, match="no combination that the run does not know"):
        adaptation.prepare(again, manifest, whole_split, "all")


def test_what_was_written_predicts_as_its_report(adapters, learned):
    out, report = learned
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    table = pl.read_parquet(out / "predictions.parquet")
    params = adaptation.open_single(out).params
    np.testing.assert_array_equal(adapters["remind"].predict(params).probabilities, table[["p_0", "p_1"]].to_numpy())
    with pytest.raises(UserError, match="adapted run"):
        opening.open_run(out)


def test_what_is_half_written_is_not_there(adapters, tmp_path, monkeypatch):
    def fails(*rest):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("remind_jax.inference.model_files.write", fails)
    with pytest.raises(RuntimeError):
        _adapt(adapters["remind"], "nothing", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_adapts_into_is_refused(adapters, tmp_path):
    out = tmp_path / "out"
    with (
        claims.owned(out, tmp_path / ".out.owner" / "adapt"),
        pytest.raises(UserError, match="out is in use by process"),
    ):
        _adapt(adapters["remind"], "nothing", out)
    assert not out.exists()


# ---- Mistakes -------------------------------------------------------------------------------------------------------


def _modalities(**columns):
    return {name: {"kind": "tabular", "columns": names} for name, names in columns.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--unfreeze=roter"], "did you mean 'router'"),
        (["--unfreeze="], "--unfreeze is empty"),
        (["--unfreeze=head,head"], "names head twice"),
        (["--unfreeze=head,all"], "--unfreeze=all goes with nothing else"),
        (["--unfreeze=experts"], "share above 0"),
        (["--unfreeze=experts=1.5"], "share above 0"),
        (["--unfreeze=head=2"], "'head=2' is unknown"),
        (["--unfreeze=head", "--rows=old"], "rows"),
        (["--unfreeze=head", "--steps=0"], "steps"),
        (["--unfreeze=head", "--lr=nan"], "--lr"),
        (["--unfreeze=head", "now"], "unexpected arguments: now"),
        (["--unfreeze=head", "--data=/no/where"], "does not exist"),
        (["--unfreeze=head", "--workdir=/no/run"], "holds no run"),
    ],
)
def test_a_mistake_is_named(runs, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        adapt.main([f"--workdir={runs['remind']}", f"--out={tmp_path / 'out'}", *arguments])
    assert not list(tmp_path.iterdir())


FOLDERS = [
    ({"label": {"column": "y", "classes": ["1", "0"]}}, "classes 1, 0; the run has 0, 1"),
    ({"modalities": _modalities(a=["a"])}, "lacks the run's modality 'b'"),
    ({"modalities": _modalities(a=["a"], b=["b"], bb=["c"])}, "no modality 'bb'"),
    ({"modalities": _modalities(a=["a"], b=["b", "c"])}, "other columns"),
    (
        {"modalities": _modalities(a=["a"]) | {"b": {"kind": "codes", "column": "b"}}},
        "of kind codes, in the run tabular",
    ),
]


@pytest.mark.parametrize(("changes", "message"), FOLDERS)
def test_a_folder_that_does_not_fit_is_refused(runs, tmp_path, changes, message):
    folder = _write(tmp_path / "data", {"a+b": 20, "b": 20}, **changes)
    with pytest.raises(UserError, match=message):
        adaptation.read_folder(adaptation.open_single(runs["remind"]), folder)


def test_an_ensemble_an_older_run_and_a_folder_that_exists_are_refused(runs, toy, tmp_path):
    with pytest.raises(UserError, match="exists"):
        adapt.main([f"--workdir={runs['remind']}", "--unfreeze=head", f"--out={tmp_path}"])
    config = json.loads((runs["remind"] / "config.json").read_text())
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "config.json").write_text(json.dumps(config | {"ensemble": 2}))
    with pytest.raises(UserError, match="ensemble of 2 networks: train one, such as by method=remind"):
        adaptation.open_single(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="holds no trained model"):
        adaptation.open_single(tmp_path)


def test_a_run_that_left_nothing_out_needs_data(runs):
    run = adaptation.open_single(runs["remind"])
    run.config.data.leave_out = ()
    with pytest.raises(UserError, match="--data=DIR"):
        adaptation.own_data(run)


def test_the_process_ends_with_one_line_and_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["adapt", "--workdir=/no/run", "--unfreeze=head"])
    with pytest.raises(SystemExit) as ended:
        cli.run(adapt.main, adapt.__doc__)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
