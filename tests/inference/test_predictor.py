"""Predictions for new samples: those of the report, whatever the batch, with what may be absent and what is refused."""

import contextlib
import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import polars as pl
import pytest
import safetensors.numpy
import yaml

import remind_jax
from remind_jax import cli, export, predict
from remind_jax.data import pipeline
from remind_jax.data.groups import Groups
from remind_jax.data.preprocess import Preprocessor
from remind_jax.errors import UserError
from remind_jax.inference import model_folder, program
from remind_jax.runtime import devices, progress
from remind_jax.training import adaptation, unfreezing
from remind_jax.training.run import train_and_evaluate
from tests import tiny_runs

pytestmark = [
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.filterwarnings("ignore:no column of the modality"),
    pytest.mark.usefixtures("quick_compilation"),
]

SCHEMA = {
    "version": 1,
    "name": "toy",
    "sample_id": "id",
    "patient_id": "patient",
    "label": {"column": "y", "classes": ["no", "yes"]},
    "split": "part",
    "modalities": {
        "labs": {"kind": "tabular", "columns": ["na", "k"], "categorical": ["sex"]},
        "icd": {"kind": "codes", "column": "codes"},
        "emb": {"kind": "embedding", "column": "path"},
    },
}
CELLS = ("na", "k", "sex", "codes", "path")
SEEN = ("labs", "icd", "labs+icd", "labs+icd+emb")
TINY = {
    "model.width": 8,
    "model.encoder_hidden": 0,
    "fusion.heads": 2,
    "fusion.experts": 2,
    "fusion.hidden": 8,
    "train.batch_size": 16,
    "train.epochs": 2.0,
    "train.joint_epochs": 0.0,
    "eval.bootstrap": 20,
    "eval.batch_size": 32,
    "devices": 1,
}


def _row(rng, i, combination, part):
    has = set(combination.split("+"))
    na, k = rng.normal(size=2)
    row = {"id": f"s{i}", "patient": f"p{i // 2}", "y": "yes" if na > 0 else "no", "part": part}
    row |= {"na": na, "k": k, "sex": "mf"[i % 2]} if "labs" in has else {"na": None, "k": None, "sex": None}
    row["codes"] = f"A{i % 3} B{int(na > 0)}" if "icd" in has else None
    return row | {"path": f"emb/{i}.npy" if "emb" in has else None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A manifest folder: 120 train rows, 40 tuning, 61 held out, of which one has a combination that training lacks."""
    root, rng, rows = tmp_path_factory.mktemp("predict") / "data", np.random.default_rng(0), []
    (root / "emb").mkdir(parents=True)
    for part, n in (("train", 120), ("tuning", 40), ("held_out", 60)):
        # Two rows a patient, so that a patient stays in one part.
        rows += [_row(rng, len(rows) + i, SEEN[(i // 2) % 4], part) for i in range(n)]
    rows.append(_row(rng, 220, "emb", "held_out"))
    for i in range(len(rows)):
        np.save(root / "emb" / f"{i}.npy", rng.normal(size=(2, 3)).astype(np.float32))
    table = pl.DataFrame(rows, infer_schema_length=None)
    table.write_csv(root / "manifest.csv")
    table.filter(pl.col("part") == "held_out").drop("part").write_csv(root / "held_out.csv")
    (root / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    return root


def _train(folder, name, **changes):
    keys = TINY | {"data.cache": folder.parent / "cache", "data.root": folder}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    config = cli.parse_config([f"--config={tiny_runs.ROOT / 'configs' / 'manifest.py'}:method=remind", *flags])[0]
    path = folder.parent / name
    train_and_evaluate(config, path, verbose=False)
    return path


@pytest.fixture(scope="module")
def run(folder):
    return _train(folder, "single")


@pytest.fixture(scope="module")
def predictor(run):
    return remind_jax.load(run)


@pytest.fixture(scope="module")
def held_out(folder):
    return pl.read_csv(folder / "manifest.csv", infer_schema=False).filter(pl.col("part") == "held_out")


def _reported(path):
    table = pl.read_parquet(path / "predictions.parquet")
    return table.select("p_0", "p_1").to_numpy()


def test_new_rows_get_what_the_report_has_for_them(predictor, run, folder):
    found = predictor.predict_proba(folder / "held_out.csv")
    assert len(found) == 61
    np.testing.assert_allclose(found, _reported(run), atol=1e-6)
    assert found.std() > 1e-3  # not one number for all


def test_any_batch_size_gives_the_same(predictor, folder):
    file = folder / "held_out.csv"
    expected = predictor.predict_proba(file)
    for size in (7, 256):
        parts = [p for p, _ in predictor.batches(predictor.read(file), size)]
        np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)


def _recorded(predictor, **changes):
    """A predictor that notes how many rows each call of its program has."""
    rows = []

    def forward(params, batch, gate):
        rows.append(len(batch["present"]))
        return predictor.forward(params, batch, gate)

    return dataclasses.replace(predictor, forward=forward, **changes), rows


def test_few_rows_have_a_small_program_unless_they_look_at_each_other(predictor, folder):
    frame, (seen, rows) = pl.read_csv(folder / "held_out.csv", infer_schema=False), _recorded(predictor)
    for count in (1, 3, 4, 5, 60):
        seen.predict_proba(frame.head(count).with_columns(path=pl.lit(None, pl.String)))
    assert rows == [1, 4, 4, 8, 32, 32]
    config = predictor.config.copy_and_resolve_references()
    config.fusion.gate_granularity = "batch"
    seen, rows = _recorded(predictor, config=config, gate="gated")
    seen.predict_proba(frame.head(3).with_columns(path=pl.lit(None, pl.String)))
    assert rows == [32]


@pytest.mark.parametrize("choice", ["keep", "forget"])
def test_predict_keeps_programs_unless_it_is_told_not_to(run, folder, tmp_path, monkeypatch, choice):
    given = []

    def kept(folder):
        given.append(folder)
        return contextlib.nullcontext()

    monkeypatch.setattr(devices, "users_programs", lambda: tmp_path / "programs")
    monkeypatch.setattr(devices, "kept_programs", kept)
    data = [f"--data={folder / 'held_out.csv'}", f"--out={tmp_path / 'out.csv'}"]
    predict.main([f"--workdir={run}", *data, f"--programs={choice}"])
    assert given == [tmp_path / "programs" if choice == "keep" else None]


@functools.cache
def _ensemble(folder):
    return _train(
        folder,
        "ensemble",
        ensemble=2,
        ensemble_plain=1,
        eval__adjust_prior="macro_f1",
        objective__prior="class_given_group",
        objective__prior_mode="posthoc",
        optim__lr=0.03,
    )


@pytest.mark.slow
def test_an_ensemble_with_both_adjustments_of_the_prior(folder):
    path = _ensemble(folder)
    loaded = remind_jax.load(path)
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    np.testing.assert_allclose(loaded.predict_proba(folder / "held_out.csv"), _reported(path), atol=1e-6)
    assert np.abs(loaded.offset).max() > 0
    assert loaded.prior_power == report["prior_adjustment"]["power"]
    assert loaded.embed(folder / "held_out.csv").shape == (61, 8)


@pytest.mark.slow
def test_an_adapted_run_predicts_as_its_own_report(run, folder, held_out, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "emb").mkdir()
    (data / "schema.yaml").write_text(yaml.safe_dump(SCHEMA, sort_keys=False), encoding="utf-8")
    alone = held_out.with_columns(pl.lit(None, pl.String).alias(c) for c in ("na", "k", "sex"))
    alone = alone.filter(pl.col("codes").is_not_null() & pl.col("path").is_not_null())
    parts = pl.Series("part", ["train", "train", "held_out", "held_out"] * (alone.height // 4 + 1))[: alone.height]
    for name in alone["path"]:
        (data / name).write_bytes((folder / name).read_bytes())
    alone.with_columns(parts).write_csv(data / "manifest.csv")
    opened = adaptation.open_single(run)
    adapter = adaptation.Adapter(opened, adaptation.prepare(opened, *adaptation.read_folder(opened, data)[:2], "new"))
    choice = unfreezing.Choice(*unfreezing.parse_unfreeze("router,head"), steps=4, lr=0.05)
    adaptation.adapt(adapter, choice, tmp_path / "adapted", progress.Silent())
    loaded = remind_jax.load(tmp_path / "adapted")
    new = loaded.read(data)
    expected = _reported(tmp_path / "adapted")
    found = loaded.predict_proba(new)[np.flatnonzero(parts == "held_out")]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert set(loaded.table(new)["n_train_patients"]) == {int((parts == "train").sum()) // 2}


def test_the_table_counts_training_patients_and_warns_of_unseen_combinations(predictor, folder):
    table = predictor.table(folder / "held_out.csv")
    assert table.columns == [
        *("id", "combination", "n_train", "n_train_patients"),
        *("prediction", "p_no", "p_yes", "set", "warning"),
    ]
    seen = table.filter(pl.col("combination") == "labs+icd")
    assert seen["n_train"].unique().to_list() == [30]
    assert seen["n_train_patients"].unique().to_list() == [15]
    assert seen["warning"].unique().to_list() == [""]
    assert table.filter(pl.col("combination") == "emb")["warning"].to_list() == ["never seen in training"]


def test_the_unseen_combination_is_predicted_by_the_shared_router_and_the_mean_vector(predictor, folder):
    """The row of tables beyond the last one: the same as a network whose tables are extended by `unfreezing.extend`."""
    manifest, known = predictor.read(folder / "held_out.csv"), predictor.groups
    raw = pipeline.new_store(manifest, predictor.preprocessor, known).take(np.array([60]))
    assert raw["group"].tolist() == [len(known)]
    masks, counts = np.concatenate([known.masks, raw["present"]]), np.append(known.train_counts, 1)
    groups = Groups(known.modalities, masks, counts, np.append(known.tail, True))
    patients = np.append(predictor.train_patients, 1)
    wider = predictor.with_groups(groups, patients, unfreezing.extend(predictor.params, 1))
    logits, _, _ = wider.forward(wider.params, raw, "always")
    np.testing.assert_allclose(predictor.predict_proba(manifest)[60:], jax.nn.softmax(logits), atol=1e-6)


def test_what_may_be_absent(predictor, folder, held_out):
    expected = predictor.predict_proba(folder / "held_out.csv")
    bare = held_out.select("na", "k", "sex", "codes").filter(pl.col("na").is_not_null() | pl.col("codes").is_not_null())
    manifest = predictor.read(bare)
    assert [note.code for note in manifest.notes] == ["W108"]
    assert manifest.table["id"][:2].to_list() == ["1", "2"]
    both = (held_out["path"].is_null()).to_numpy()
    same = held_out.filter(pl.col("na").is_not_null() | pl.col("codes").is_not_null())["path"].is_null().to_numpy()
    np.testing.assert_allclose(predictor.predict_proba(bare)[same], expected[both], atol=1e-6)


def test_embeddings_are_what_the_head_reads(predictor, folder):
    features, params = predictor.embed(folder / "held_out.csv"), predictor.params
    logits = features @ params["head/kernel"] + params["head/bias"]
    np.testing.assert_allclose(
        predictor.predict_proba(folder / "held_out.csv"), jax.nn.softmax(logits, axis=-1), atol=1e-5
    )


def test_evaluation_of_labelled_rows_is_the_report(predictor, run, folder, held_out):
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    found = predictor.evaluate(folder / "held_out.csv")
    assert found["overall"]["accuracy"] == report["overall"]["accuracy"]
    assert found["overall"]["auroc"] == pytest.approx(report["overall"]["auroc"], abs=1e-6)
    assert [row["n"] for row in found["groups"]] == [row["n"] for row in report["groups"]]
    some = held_out.with_columns(
        pl.when(pl.int_range(pl.len()) < 8).then(pl.lit(None, pl.String)).otherwise(pl.col("y")).alias("y")
    ).drop("path")
    some = some.filter(pl.any_horizontal(pl.col("na", "codes").is_not_null()))
    assert predictor.evaluate(some)["n"] == some["y"].is_not_null().sum() == 52
    with pytest.raises(UserError, match="no row has a label"):
        predictor.evaluate(some.drop("y"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.rename({"na": "naa"}), r"column 'na' .*did you mean 'naa'"),
        (lambda t: t.select("id", "y"), "E001"),
        (lambda t: t.with_columns(pl.lit("s1").alias("id")), "E002"),
        (
            lambda t: t.with_columns(pl.lit(None, pl.String).alias(c) for c in ("na", "k", "sex", "codes", "path")),
            "E004",
        ),
        (lambda t: t.with_columns(pl.lit("high").alias("na")), "E009"),
        (lambda t: t.with_columns(pl.lit("emb/none.npy").alias("path")), "E007"),
        (lambda t: t.clear(), "E001 the table has no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_in_one_line(predictor, folder, held_out, tmp_path, change, message):
    file = folder / f"bad-{tmp_path.name}.csv"
    change(held_out).write_csv(file)
    with pytest.raises(UserError, match=message) as caught:
        predictor.read(file)
    assert "s1" not in str(caught.value).replace("ids", "")
    assert "\n" not in str(caught.value)


def test_a_row_without_modality_has_the_class_shares_and_is_told(predictor, folder, held_out):
    names = ("na", "k", "sex", "codes", "path")
    cells = [pl.when(pl.int_range(pl.len()) != 4).then(pl.col(name)).alias(name) for name in names]
    held_out.with_columns(cells).write_csv(folder / "emptied.csv")
    with pytest.warns(UserWarning, match=r"1 row has no modality at all \(rows 5\)"):
        found = predictor.predict_proba(folder / "emptied.csv")
    np.testing.assert_allclose(found[4], predictor.class_fractions, atol=1e-6)
    others = np.arange(len(found)) != 4
    np.testing.assert_allclose(found[others], predictor.predict_proba(folder / "held_out.csv")[others], atol=1e-6)
    with pytest.warns(UserWarning, match="no modality at all"):
        table = predictor.table(folder / "emptied.csv")
    assert table["warning"][4] == "no modality: class shares of training"
    assert table["combination"][4] == "none"


def test_a_frame_of_pandas_gives_the_same(predictor, folder, held_out):
    pytest.importorskip("pandas")
    numbers = held_out.drop("path").filter(pl.any_horizontal(pl.col("na", "codes").is_not_null()))
    numbers = numbers.with_columns(pl.col("na", "k").cast(pl.Float64))
    np.testing.assert_allclose(
        predictor.predict_proba(numbers.to_pandas()), predictor.predict_proba(numbers), atol=1e-6
    )
    with pytest.raises(UserError, match="a polars or pandas frame, not list"):
        predictor.read([1, 2])


def test_the_command_writes_both_formats(run, folder, tmp_path, capsys):
    for name, read in (("o.csv", pl.read_csv), ("o.parquet", pl.read_parquet)):
        predict.main([f"--workdir={run}", f"--data={folder / 'held_out.csv'}", f"--out={tmp_path / name}"])
        np.testing.assert_allclose(read(tmp_path / name).select("p_no", "p_yes").to_numpy(), _reported(run), atol=1e-6)
    shown = capsys.readouterr()
    assert "61 rows, 5 combinations" in shown.out
    assert "1 rows of 1 combinations never seen in training: emb (1)" in shown.err
    for arguments, message in (
        ([f"--workdir={run}", "--out=x.csv"], "no data"),
        ([f"--workdir={run}", "--data=x", "--out=x.xls"], "must be a .csv or a .parquet"),
        ([f"--workdir={run}", f"--data={tmp_path / 'nothing'}", "--out=x.csv"], "does not exist|do not exist"),
        ([f"--workdir={tmp_path}", "--data=x", "--out=x.csv"], "holds no run"),
    ):
        with pytest.raises(UserError, match=message):
            predict.main(arguments)


def test_importing_the_package_loads_nothing():
    code = "import sys, remind_jax; remind_jax.load; print([m for m in ('jax', 'numpy', 'polars') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


# ---- Export ---------------------------------------------------------------------------------------------------------

FOREIGN = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from load import load
predict = load(sys.argv[1])
raw = dict(np.load(sys.argv[2]))
found = predict(raw)
one = predict({name: x[:1] for name, x in raw.items()})
np.testing.assert_allclose(one["probabilities"], found["probabilities"][:1], atol=1e-6)
loaded = [m for m in ("remind_jax", "flax", "optax", "orbax", "safetensors", "polars") if m in sys.modules]
print(json.dumps({"p": found["probabilities"].tolist(), "seen": found["seen"].tolist(), "loaded": loaded}))
"""


def _inputs(predictor, file):
    manifest = predictor.read(file)
    batch = pipeline.new_store(manifest, predictor.preprocessor, predictor.groups).take(np.arange(61))
    return {name: x for name, x in batch.items() if name not in ("row", "group", "label")}


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    export.main([f"--workdir={run}", f"--out={out}"])
    return out


def test_the_export_predicts_alike_with_jax_and_numpy_alone(predictor, folder, exported, tmp_path):
    file = folder / "held_out.csv"
    np.savez(tmp_path / "inputs.npz", **_inputs(predictor, file))
    command = [sys.executable, "-c", FOREIGN, str(exported), str(tmp_path / "inputs.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    np.testing.assert_allclose(found["p"], predictor.predict_proba(file), atol=1e-6)
    assert found["seen"] == [True] * 60 + [False]
    assert found["loaded"] == []


ALONE = """
import runpy, sys
from importlib.metadata import packages_distributions
absent = {*packages_distributions(), "remind_jax"} - {*sys.argv[2].split(",")}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def _alone(script, packages):
    """Runs a script of an exported folder where no other packages can be imported."""
    command = [sys.executable, "-I", "-c", ALONE, str(script), packages]
    return subprocess.run(command, capture_output=True, text=True, check=False)


JAX = "jax,jaxlib,numpy,flatbuffers,ml_dtypes,opt_einsum,scipy"


def test_the_export_checks_itself_with_nothing_else_installed(exported, tmp_path):
    for script, packages in (("encode.py", "numpy"), ("load.py", JAX)):
        done = _alone(exported / script, packages)
        assert (done.returncode, done.stdout[:3]) == (0, "ok:"), done.stderr
    copy = shutil.copytree(exported, tmp_path / "copy")
    content = json.loads((copy / "preprocessing.json").read_text(encoding="utf-8"))
    content["modalities"][0]["mean"][0] += 1.0
    (copy / "preprocessing.json").write_text(json.dumps(content), encoding="utf-8")
    for script, packages in (("encode.py", "numpy"), ("load.py", JAX)):
        done = _alone(copy / script, packages)
        assert (done.returncode, done.stdout.partition(",")[0].strip()) == (1, "differs: labs"), done.stderr


FROM_ROWS = """
import sys
sys.path.insert(0, sys.argv[1])
from encode import encode
from load import load
print(load(sys.argv[1])(encode(sys.argv[2]))["probabilities"].tolist())
"""


def test_the_export_predicts_from_the_raw_table(predictor, folder, exported):
    command = [sys.executable, "-c", FROM_ROWS, str(exported), str(folder / "held_out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), predictor.predict_proba(folder / "held_out.csv"), atol=1e-6)


def test_the_worked_row_is_made_up_and_has_its_probabilities(predictor, exported):
    example = json.loads((exported / "example.json").read_text(encoding="utf-8"))
    labs = predictor.preprocessor.fitted["labs"]
    assert [example["row"][name] for name in ("na", "k", "sex")] == [*labs.median, "f"]
    frame = pl.DataFrame({name: [cell] for name, cell in example["row"].items() if name != "path"})
    shape = example["row"]["path"]["ramp"]
    frame = frame.with_columns(
        path=pl.Series((np.arange(np.prod(shape)) / 256).reshape(1, *shape)).cast(pl.List(pl.List(pl.Float64)))
    )
    np.testing.assert_allclose(predictor.predict_proba(frame)[0], example["probabilities"], atol=1e-6)


def test_the_export_describes_its_inputs(predictor, folder, exported):
    content = json.loads((exported / "schema.json").read_text(encoding="utf-8"))
    batch = _inputs(predictor, folder / "held_out.csv")
    assert {x["name"]: (tuple(x["shape"][1:]), x["dtype"]) for x in content["inputs"]} == {
        name: (x.shape[1:], x.dtype.name) for name, x in batch.items()
    }
    assert [x["train_patients"] for x in content["combinations"]] == [15] * 4
    again = Preprocessor.from_dict(json.loads((exported / "preprocessing.json").read_text(encoding="utf-8")))
    assert again == predictor.preprocessor
    weights = safetensors.numpy.load_file(exported / "weights.safetensors")
    assert weights.keys() == predictor.params.keys()


def test_the_card_has_the_figures_the_limits_and_the_duties(run, exported):
    card = (exported / "model_card.md").read_text(encoding="utf-8")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    low, high = report["overall"]["accuracy_ci"]
    assert f"| all | 120 | 61 | {report['overall']['accuracy']:.3f} ({low:.2f} to {high:.2f})" in card
    assert all(f"| {row['group']}" in card for row in report["groups"])
    assert "emb, unseen | 0 | 1 |" in card
    assert "Combinations never seen in training." in card
    assert "does not know the terms of these data" in card
    assert "preprocessing.json" in card
    assert "p0" not in card


@pytest.mark.slow
def test_an_exported_ensemble_has_its_adjustments(folder, tmp_path):
    path = _ensemble(folder)
    out = tmp_path / "out"
    program.write(model_folder.open_model(path), out)
    loaded = remind_jax.load(path)
    exported = jax.export.deserialize(bytearray((out / "model.jax").read_bytes()))
    found = exported.call(loaded.params, _inputs(loaded, folder / "held_out.csv"))
    np.testing.assert_allclose(found["probabilities"], _reported(path), atol=1e-6)


def test_what_cannot_be_exported_is_refused(run, predictor, tmp_path):
    with pytest.raises(UserError, match="exists"):
        program.write(predictor, tmp_path)
    with pytest.raises(UserError, match="nowhere to write"):
        export.main([f"--workdir={run}"])
    config = predictor.config.copy_and_resolve_references()
    config.fusion.gate_granularity = "batch"
    with pytest.raises(UserError, match="gate_granularity"):
        program.lower(dataclasses.replace(predictor, config=config, gate="gated"))
