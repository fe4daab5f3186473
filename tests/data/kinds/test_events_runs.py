"""A run on events from the folder to the exported model, and `fit` on frames: one set of numbers whatever the way."""

import contextlib
import copy
import io
import json
import subprocess
import sys
import warnings

import numpy as np
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

import remind_jax as rj
from remind_jax import export, import_data, main, predict
from remind_jax.data.importers import table as importer
from remind_jax.errors import UserError
from tests import tiny_runs
from tests.data.event_files import ENTRY, ROLES, tables, write_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
KEYS = {key: value for key, value in tiny_runs.TINY.items() if not key.startswith("data.")} | {"eval.bootstrap": 20}
EVENTS = rj.Events("vitals.csv", **ROLES)
FIT = {"label": "died", "sample": "stay", "patient": "patient", "progress": False}
FIT |= {"modalities": {"labs": ["sodium"], "vitals": EVENTS}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("events") / "data", *tables())


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    with contextlib.redirect_stdout(io.StringIO()):
        main.main([*tiny_runs.own_arguments(folder, path / "cache", eval__bootstrap=20), f"--workdir={path / 'run'}"])
    return path / "run"


def test_folder_table_and_frames_are_predicted_alike(folder, run, tmp_path):
    model, (samples, events) = rj.load(run), tables()
    expected = model.predict_proba(folder)
    for data, given in (
        (folder / "manifest.csv", None),  # the long table lies next to it
        (samples, {"vitals": events}),
        (samples.to_pandas(), {"vitals.csv": events.to_pandas()}),
    ):
        np.testing.assert_array_equal(model.predict_proba(data, tables=given), expected)
    predict.main([f"--workdir={run}", f"--data={folder}", f"--out={tmp_path / 'p.csv'}"])
    found = pl.read_csv(tmp_path / "p.csv")
    np.testing.assert_allclose(found["p_1"], expected[:, 1], rtol=1e-6)
    assert found["combination"].to_list() == ["labs" if i % 5 == 0 else "labs+vitals" for i in range(60)]
    table = model.table(samples, tables={"vitals": events})
    np.testing.assert_array_equal(table["p_1"], expected[:, 1])
    assert model.evaluate(samples, tables={"vitals": events})["n"] == 60
    assert model.embed(samples, tables={"vitals": events}).shape == (60, 8)
    np.testing.assert_array_equal(
        model.predict(samples, tables={"vitals": events}), expected.argmax(axis=1).astype(str)
    )


def test_events_move_the_samples_that_have_them_and_later_ones_none(run):
    model, (samples, events) = rj.load(run), tables()
    before = model.predict_proba(samples, tables={"vitals": events})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        without = model.predict_proba(samples)
    assert "no column of the modality 'vitals' is in the table" in str(told[0].message)
    moved = np.abs(before - without).max(axis=1) > 0
    np.testing.assert_array_equal(moved, [i % 5 > 0 for i in range(60)])
    late = pl.col("when") > "2150-01-02 01:00:00"  # after every prediction
    canary = events.with_columns(value=pl.when(late).then(1e9).otherwise("value"))
    assert not canary.equals(events)
    np.testing.assert_array_equal(model.predict_proba(samples, tables={"vitals": canary}), before)
    with pytest.raises(UserError, match=r"tables=\{'vital': …\} is no table of these data \(did you mean 'vitals'"):
        model.predict_proba(samples, tables={"vital": events})


def test_an_interrupted_run_goes_on_to_the_same_weights(folder, run, tmp_path):
    arguments = tiny_runs.own_arguments(folder, tmp_path / "cache", eval__bootstrap=20)
    with contextlib.redirect_stdout(io.StringIO()):
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
        for name in ("report.json", "model"):
            place = tmp_path / "run" / name
            place.rename(tmp_path / name)
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    again, first = rj.load(tmp_path / "run").params, rj.load(run).params
    assert again.keys() == first.keys()
    assert all(np.array_equal(again[path], x) for path, x in first.items())
    assert any(path.startswith("encoders/vitals/question") for path in first)


def test_events_that_have_changed_are_told(tmp_path):
    arguments = tiny_runs.own_arguments(tmp_path / "data", tmp_path / "cache", eval__bootstrap=20)
    samples, events = tables()
    write_folder(tmp_path / "data", samples, events)
    (tmp_path / "run").mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])
    (tmp_path / "run" / "report.json").unlink()
    write_folder(tmp_path / "data", samples, events.with_columns(value=pl.col("value") + (pl.int_range(pl.len()) == 2)))
    with pytest.raises(UserError, match="cells changed in vitals 1;"):
        main.main([*arguments, f"--workdir={tmp_path / 'run'}"])


PREDICTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import load, encode
rows = json.load(open(sys.argv[2]))
print(json.dumps(load.load(sys.argv[1])(encode.encode(rows))["probabilities"].tolist()))
"""


def test_the_exported_model_predicts_alike_from_rows(run, folder, tmp_path):
    model, samples = rj.load(run), tables()[0]
    export.main([f"--workdir={run}", f"--out={tmp_path / 'model'}"])
    manifest = model.read(folder)
    cells = manifest.table["vitals"].to_list()
    rows = [
        {"sodium": sodium, "vitals": None if cell is None else [list(event.values()) for event in reversed(cell)]}
        for sodium, cell in zip(samples["sodium"].to_list(), cells, strict=True)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    command = [sys.executable, "-c", PREDICTS, str(tmp_path / "model"), str(tmp_path / "rows.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), model.predict_proba(folder), atol=1e-5)
    example = json.loads((tmp_path / "model" / "example.json").read_text(encoding="utf-8"))
    assert len(example["row"]["vitals"]) == 3


def test_a_frame_and_its_events_give_the_figures_of_the_folder_that_import_writes(folder, tmp_path):
    samples, events = tables()
    model = rj.fit(samples, tables={"vitals": events}, method="remind", **FIT, **KEYS)
    notes = [each["message"] for each in model.report["findings"] if each["code"] == "I001"]
    assert any("vitals: 48 of 60 samples have events" in text for text in notes)
    raw = tmp_path / "raw.csv"
    samples.write_csv(raw)
    entry = ",".join(f"{key}={value}" for key, value in ROLES.items())
    given = f"--events=table={folder / 'vitals.csv'},{entry}"
    names = ["--label=died", "--sample=stay", "--patient=patient", "--modality=labs=sodium", given]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        import_data.main([f"--source={raw}", f"--out={tmp_path / 'out'}", *names])
    assert "vitals  events; in 48 samples" in said.getvalue()
    of_folder = rj.fit(tmp_path / "out", method="remind", progress=False, **KEYS)
    assert of_folder.groups.modalities == model.groups.modalities
    assert of_folder.report["overall"] == model.report["overall"]
    found = of_folder.read(tmp_path / "out").table["vitals"]
    assert found.equals(model.read(samples, tables={"vitals": events}).table["vitals"])


def test_the_time_of_the_prediction_is_no_input(tmp_path):
    samples, events = tables()
    entries = {"vitals": EVENTS.to_entry()}
    found = importer.from_table(
        samples,
        name="x",
        label="died",
        sample="stay",
        patient="patient",
        modalities=entries,
        long={"vitals.csv": events},
    )
    assert list(found.schema["modalities"]) == ["vitals", "x"]
    assert found.schema["modalities"]["x"] == {"kind": "tabular", "columns": ["sodium"]}
    assert found.schema["modalities"]["vitals"] == {**ENTRY, "most": 256, "odd": "refuse", "column": "vitals"}
    with pytest.raises(UserError, match="tables="):
        importer.from_table(samples, name="x", label="died", modalities=entries)


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.filterwarnings("ignore:neither groups nor patient")
def test_estimators_take_long_tables_whose_rows_follow_the_ids_of_x():
    samples, events = tables()
    X, y = samples.drop("died"), samples["died"].to_numpy()
    options = {"modalities": FIT["modalities"], "method": "soft_moe", "keys": KEYS, "tuning": 0.2}
    estimator = rj.MultimodalClassifier(tables={"vitals.csv": events}, patient="patient", **options)
    assert clone(estimator).get_params()["tables"]["vitals.csv"].equals(events)
    found = estimator.fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(found, estimator.model_.predict_proba(X, tables={"vitals.csv": events}))
    # Somebody with events alone has a modality.
    some = X.with_columns(sodium=pl.lit(None, pl.Float64))[[1]]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* no modality at all")
        assert not np.allclose(estimator.predict_proba(some), estimator.model_.task.baseline)
    # New rows have tables of their own, and a file of the estimator has nobody's.
    late = events.with_columns(value=pl.col("value") + 2.0)
    again = copy.deepcopy(estimator)  # as a pickle would be
    assert again.tables is None
    again.set_params(tables={"vitals.csv": late})
    moved = np.abs(again.predict_proba(X) - found).max(axis=1) > 0
    assert not moved[::5].any()
    assert moved.sum() > 40  # a few have events without values
    scores = cross_val_score(estimator, X, y, groups=X["patient"].to_numpy(), cv=GroupKFold(2), scoring="roc_auc")
    assert np.isfinite(scores).all()
