"""`remind_jax.fit`: frames and folders give the same model, which saves, loads and predicts on what hospitals have."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import remind_jax as rj
from remind_jax import api
from remind_jax.data import pipeline
from remind_jax.data.importers import table as importer
from remind_jax.inference import program
from remind_jax.inference.predictor import Predictor
from remind_jax.runtime import progress
from remind_jax.tasks import isotonic
from tests.data.manifest_files import write_scans

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = 240
MODALITIES = {"labs": ["na", "k", "sex"], "note": rj.Text("note"), "icd": rj.Codes("icd")}
TINY = {
    "model": {"width": 8, "encoder_dropout": 0.1},
    "fusion": {"heads": 2, "experts": 2, "hidden": 8},
    "train": {"batch_size": 16, "epochs": 4.0, "joint_epochs": 2.0},
    "eval.bootstrap": 20,
    "devices": 1,
}


def hospital(seed: int = 0) -> pl.DataFrame:
    """A made-up hospital in which sodium and a word of the note tell the outcome."""
    rng = np.random.default_rng(seed)
    sodium, word = rng.normal(140, 4, ROWS), rng.choice(["sepsis", "fine", "cough"], ROWS)
    died = ((sodium - 140) / 4 + 2 * (word == "sepsis") + rng.normal(0, 0.5, ROWS) > 0.7).astype(int)
    has_labs, has_note = rng.random(ROWS) < 0.7, rng.random(ROWS) < 0.6
    has_note |= ~has_labs
    return pl.DataFrame(
        {
            "stay": [f"s{i}" for i in range(ROWS)],
            "person": rng.integers(0, 160, ROWS),
            "na": np.where(has_labs, sodium, np.nan),
            "k": np.where(has_labs, rng.normal(4, 1, ROWS), np.nan),
            "sex": [x if there else None for x, there in zip(rng.choice(["f", "m"], ROWS), has_labs, strict=True)],
            "note": [f"seen for {w} today" if there else None for w, there in zip(word, has_note, strict=True)],
            "icd": [f"I{i % 5} E{i % 7}" if i % 3 else None for i in range(ROWS)],
            "died": died,
        }
    ).fill_nan(None)


def train(data, **options):
    return rj.fit(data, **{"progress": False, "method": "remind", **TINY, **options})


def train_hospital(**options):
    given = {"label": "died", "patient": "person", "sample": "stay", "modalities": MODALITIES}
    return train(hospital(), **{**given, **options})


@pytest.fixture(scope="module")
def model(quick_compilation):
    return train_hospital()


@pytest.fixture(scope="module")
def new():
    return hospital(seed=1).drop("died")


@pytest.fixture(scope="module")
def again(model, tmp_path_factory):
    """The same model once more: of a frame of pandas, in a thread, in an empty folder; and what was there after it."""
    pytest.importorskip("pandas")
    folder, found = tmp_path_factory.mktemp("empty"), {}

    def work():
        with jax.numpy_dtype_promotion("standard"):  # as in the fixture, whose word is for its own thread
            options = {"label": "died", "patient": "person", "sample": "stay", "modalities": MODALITIES}
            found["model"] = train(hospital().to_pandas(), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        before = _state()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found["model"], before, _state(), list(folder.iterdir())


def _state():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    return {"environment": dict(os.environ), "handlers": handlers}


def test_pandas_and_polars_give_the_same_numbers_and_a_thread_those_of_the_main_one(model, again, new):
    np.testing.assert_array_equal(again[0].predict_proba(new.to_pandas()), model.predict_proba(new))


def test_without_a_workdir_nothing_is_written_and_the_process_stays_as_it_was(again):
    _, before, after, written = again
    assert written == []
    assert after == before


def test_the_model_learns_and_reports_on_held_out_patients(model):
    assert model.report["split"] == "held_out"
    assert 0.1 * ROWS < model.report["n"] < 0.3 * ROWS
    assert model.report["overall"]["auroc"] > 0.6
    assert model.report["modalities"] == ["labs", "note", "icd"]


def test_by_default_networks_and_plain_models_are_blended_and_the_size_of_the_paper_has_one_network(new, tmp_path):
    found = train_hospital(method=None, train={"batch_size": 16, "epochs": 1.0})
    assert [member.name for member in found.members] == ["remind_plus", "logistic_regression", "gradient_boosting"]
    assert found.members[0].config.ensemble == 4
    assert sum(member.weight for member in found.members) == pytest.approx(1.0)
    found.save(tmp_path / "model")
    np.testing.assert_array_equal(rj.load(tmp_path / "model").predict_proba(new), found.predict_proba(new))
    assert api.make_config(None, "paper", 0, 0.2, 0.1, {}).method == "remind"


def test_four_networks_predict_their_mean(new):
    found = train_hospital(method="remind_plus", train={"batch_size": 16, "epochs": 1.0})
    assert len(found.params["head/kernel"]) == 4
    settings = found.config.copy_and_resolve_references()
    settings.ensemble, settings.ensemble_plain = 1, 0
    parts = ("title", "schema", "task", "groups", "preprocessor", "gate", "label_counts", "train_patients")
    parts = {name: getattr(found, name) for name in parts}
    each = [
        Predictor.assemble(config=settings, params={path: x[i] for path, x in found.params.items()}, **parts)
        for i in range(4)
    ]
    each = [network.predict_proba(new) for network in each]
    np.testing.assert_allclose(found.predict_proba(new), np.mean(each, axis=0), atol=1e-6)
    assert np.ptp(each, axis=0).max() > 1e-3


@pytest.mark.slow
def test_a_frame_and_the_folder_that_import_makes_of_it_give_the_same_numbers(model, new, tmp_path):
    roles = {"label": "died", "patient": "person", "sample": "stay"}
    entries = {name: each if isinstance(each, list) else each.to_entry() for name, each in MODALITIES.items()}
    found = importer.from_table(hospital(), name="data", modalities=entries, rest=False, **roles)
    importer.write(found, tmp_path / "folder")
    of_folder = train(tmp_path / "folder")
    assert of_folder.report["overall"] == model.report["overall"]
    assert of_folder.report["split_digest"] == model.report["split_digest"]
    np.testing.assert_array_equal(of_folder.predict_proba(new), model.predict_proba(new))
    of_manifest = train(rj.read_folder(tmp_path / "folder"))
    np.testing.assert_array_equal(of_manifest.predict_proba(new), model.predict_proba(new))


def test_a_table_of_a_pandas_frame_keeps_its_index(model, new):
    pandas = pytest.importorskip("pandas")
    frame = new.to_pandas().set_index(np.arange(100, 100 + ROWS))
    table = model.table(frame)
    assert isinstance(table, pandas.DataFrame)
    assert table.index.equals(frame.index)
    joined = frame.merge(table, on="stay")
    assert len(joined) == ROWS
    assert_frame_equal(pl.from_pandas(table), model.table(new))


def test_columns_may_stand_in_another_order(model, new):
    turned = new.select(sorted(new.columns, reverse=True))
    np.testing.assert_array_equal(model.predict_proba(turned), model.predict_proba(new))


def test_an_absent_modality_is_missing_and_an_absent_column_is_an_error(model, new):
    rows = new.filter(pl.col("note").is_not_null() | pl.col("icd").is_not_null())
    without = rows.with_columns(pl.lit(None, pl.Float64).alias(c) for c in ("na", "k"))
    without = without.with_columns(pl.lit(None, pl.String).alias("sex"))
    absent = rows.drop("na", "k", "sex")
    with pytest.warns(UserWarning, match="no column of the modality 'labs'"):
        found = model.predict_proba(absent)
    np.testing.assert_array_equal(found, model.predict_proba(without))
    with pytest.raises(rj.UserError, match="'na'"):
        model.predict_proba(new.drop("na"))


def test_saved_and_loaded_it_predicts_the_same(model, new, tmp_path):
    model.save(tmp_path / "model")
    loaded = rj.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(new), model.predict_proba(new))
    assert dict(loaded.report) == dict(model.report)
    assert loaded.predict(new).dtype == model.predict(new).dtype
    model.save(tmp_path / "model")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(rj.UserError, match="holds no model"):
        model.save(tmp_path / "other")
    assert (tmp_path / "other" / "file").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c, {0, 1}),
        (lambda c: c == 1, {False, True}),
        (lambda c: c * 1.0, {0.0, 1.0}),
        (lambda c: c.replace_strict({0: "alive", 1: "dead"}), {"alive", "dead"}),
    ],
)
def test_labels_come_back_in_the_type_of_the_user(change, expected, new):
    frame = hospital().with_columns(change(pl.col("died")).alias("died"))
    options = {"label": "died", "patient": "person", "modalities": {"labs": ["na", "k"], "note": rj.Text("note")}}
    found = train(frame, **options, train={**TINY["train"], "epochs": 2.0, "joint_epochs": 1.0})
    rows = new.filter(pl.col("na").is_not_null())
    predicted = found.predict(rows)
    assert set(predicted.tolist()) <= expected
    assert type(predicted.tolist()[0]) is type(next(iter(expected)))
    expected_classes = np.array(sorted(expected))
    np.testing.assert_array_equal(predicted, expected_classes[found.predict_proba(rows).argmax(axis=1)])


@pytest.fixture(scope="module")
def turned(quick_compilation):
    """Of classes in another order, without sets."""
    return train_hospital(label={"column": "died", "classes": [1, 0]}, **{"eval.coverage": 0.0})


def test_the_order_of_classes_can_be_set(turned, new):
    assert turned.classes == ("1", "0")
    assert turned.predict(new).tolist() != []
    with pytest.raises(rj.UserError, match="unknown key"):
        train_hospital(label={"colum": "died"})


@pytest.fixture(scope="module")
def whole(quick_compilation):
    """Of all rows and of modalities that are guessed; and what was printed."""
    options = {"label": "died", "patient": "person", "sample": "stay", "held_out": 0, "tuning": 0}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        model = train(hospital(), **options, progress=None)
    return model, printed.getvalue()


def test_what_is_guessed_is_printed(whole):
    model, printed = whole
    assert len(model.schema.modalities) > 1
    for modality in model.schema.modalities:
        assert modality.name in printed
    assert "sepsis" not in printed


def test_what_should_be_looked_at_is_printed_of_declared_modalities_too(capsys):
    rows = hospital().with_columns(pl.col("k").fill_null(-999.0), copy=pl.col("died") * 2.0)
    config = api.make_config("soft_moe", "quick", 0, 0.2, 0.1, {})
    api.read_frame(rows, "died", {"labs": ["na", "k", "copy"]}, config, patient="person", sample="stay")
    printed = capsys.readouterr().out
    assert "cells -999): far from all other numbers" in printed
    assert "copy (1.00) tells died" in printed


@pytest.mark.slow
def test_without_held_out_rows_the_report_is_that_of_the_tuning_rows_and_says_so(tmp_path):
    found = train_hospital(held_out=0, tuning=0.2)
    assert found.report["split"] == "tuning"
    assert "none were held out" in repr(found.report)
    assert "none were held out" in found._repr_html_()
    found.report.save(tmp_path / "page.html")
    assert "No rows were held out" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_any_rows_apart_there_is_no_report(whole, new):
    found, _ = whole
    assert dict(found.report) == {}
    assert "no rows were kept apart" in repr(found.report)
    assert found.predict_proba(new).shape == (ROWS, 2)


def test_the_report_shows_itself(model):
    assert "labs+note" in repr(model.report)
    html = model._repr_html_()
    assert html.count("<tr") == len(model.report["groups"]) + 4
    assert f"{model.report['overall']['auroc']:.3f}" in html


def test_evaluate_reads_labelled_rows(model):
    found = model.evaluate(hospital(seed=2))
    assert found["n"] == ROWS
    assert found["overall"]["auroc"] > 0.6
    assert "held" not in repr(found)


@pytest.mark.parametrize("write", [lambda c: c == 1, lambda c: c * 1.0, lambda c: (c * 1.0).cast(pl.String)])
def test_evaluate_reads_labels_in_other_spellings(model, write):
    rows = hospital(seed=2)
    found = model.evaluate(rows.with_columns(write(pl.col("died")).alias("died")))
    assert found["overall"] == model.evaluate(rows)["overall"]


def test_evaluate_counts_labels_that_are_no_class(model):
    wrong = hospital(seed=2).with_columns(pl.when(pl.int_range(pl.len()) < 2).then(7).otherwise("died").alias("died"))
    with pytest.raises(rj.UserError, match=r"column 'died': 2 cells \(rows 1, 2\).*classes 0, 1"):
        model.evaluate(wrong)


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_a_table_keeps_ids_that_are_numbers(model, new, kind):
    rows = new.with_columns(stay=pl.int_range(10, 10 + ROWS)).reverse()
    if kind == "polars":
        assert rows.join(model.table(rows), on="stay").height == ROWS
    else:
        frame = rows.to_pandas().set_index(np.zeros(ROWS, int))
        assert frame.merge(model.table(frame), on="stay")["stay"].tolist() == rows["stay"].to_list()


def read(frame, label="died", **options):
    config = api.make_config("remind", "small", 0, 0.2, 0.1, {})
    return api.read_frame(frame, label, options.pop("modalities", MODALITIES), config, verbose=False, **options)


def test_columns_may_be_named_by_numbers():
    pytest.importorskip("pandas")
    frame = hospital().to_pandas().rename(columns={"na": 0, "k": 1, "died": 2, "person": 3})
    found = read(frame, label=2, patient=3, modalities={"labs": [0, 1]})
    assert found.schema.modalities[0].columns == ("0", "1")
    assert (found.schema.label, found.schema.patient_id) == ("2", "3")


@pytest.mark.parametrize(("values", "kind"), [([0, 1], "integer"), ([False, True], "boolean"), (["a", "b"], "text")])
def test_categories_have_the_type_of_what_they_stand_for(values, kind):
    pandas = pytest.importorskip("pandas")
    frame = hospital().to_pandas()
    frame["died"] = pandas.Categorical([values[x] for x in frame["died"]])
    assert read(frame).label_type == kind


def test_new_rows_have_their_files_where_those_of_training_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(60) % 2
    names = write_scans(tmp_path / "scans", labels)
    frame = pl.DataFrame({"path": names, "died": labels})
    options = {"label": "died", "modalities": {"scan": rj.Embedding("path")}, "data.root": str(tmp_path / "scans")}
    found = train(frame, **options, train={**TINY["train"], "epochs": 2.0, "joint_epochs": 1.0})
    found.save(tmp_path / "model")
    np.testing.assert_array_equal(rj.load(tmp_path / "model").predict_proba(frame), found.predict_proba(frame))
    with pytest.raises(rj.UserError, match="E007"):
        found.predict_proba(frame.with_columns(path=pl.lit("scans/") + pl.col("path")))


def test_what_is_left_out_is_told_in_the_report():
    frame = hospital().with_columns(pl.when(pl.int_range(pl.len()) > 4).then("died").alias("died"))
    told = [note.message for note in read(frame).notes]
    assert "5 rows without a label are left out" in told


def test_spellings_of_declared_classes_are_read():
    shouted = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("YES")).otherwise(pl.lit("yes"))
    frame = hospital().with_columns(died=pl.when(pl.col("died") == 1).then(shouted).otherwise(pl.lit("no")))
    found = read(frame, label={"column": "died", "classes": ["yes", "no"]})
    assert found.schema.classes == ("yes", "no")
    assert found.labels.tolist() == (1 - hospital()["died"]).to_list()


@pytest.mark.slow
def test_a_workdir_is_the_folder_of_a_run_of_these_rows(model, new, tmp_path):
    found = train_hospital(workdir=tmp_path / "run")
    assert (tmp_path / "run" / "report.html").is_file()
    np.testing.assert_array_equal(found.predict_proba(new), model.predict_proba(new))
    again = train_hospital(workdir=tmp_path / "run")
    np.testing.assert_array_equal(again.predict_proba(new), model.predict_proba(new))
    np.testing.assert_array_equal(rj.load(tmp_path / "run").predict_proba(new), model.predict_proba(new))
    changed = hospital().with_columns(pl.col("na") + 1)
    options = {"label": "died", "patient": "person", "sample": "stay", "modalities": MODALITIES}
    missing = hospital()["na"].null_count()
    with pytest.raises(rj.UserError, match=f"cells changed in labs {ROWS - missing}; choose another workdir"):
        train(changed, **options, workdir=tmp_path / "run")
    renewed = train(changed, **options, workdir=tmp_path / "run", on_changed_data="restart")
    np.testing.assert_array_equal(renewed.predict_proba(new), train(changed, **options).predict_proba(new))
    with pytest.raises(rj.UserError, match="on_changed_data='again' is unknown"):
        train(changed, **options, on_changed_data="again")


SEARCH = {"search": 2, "space": "optim.lr=1e-3..1e-1:log", "modalities": {"labs": ["na", "k", "sex"]}}
SEARCH |= {"train": {**TINY["train"], "epochs": 1.0, "joint_epochs": 0.5}}


@pytest.mark.slow
def test_a_search_chooses_keys_and_the_report_says_so(new, tmp_path):
    pytest.importorskip("optuna")
    new = new.filter(pl.col("na").is_not_null())
    found = train_hospital(**SEARCH, workdir=tmp_path / "run")
    told = [finding["message"] for finding in found.report["findings"]]
    assert "keys were chosen among 2 trials by rows that are not held out" in told
    assert found.report["split"] == "held_out"
    with open(tmp_path / "run" / "search" / "trials.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    best = min(rows, key=lambda row: float(row["loss"]))
    assert float(best["optim.lr"]) == pytest.approx(found.config.optim.lr, rel=1e-3)
    again = train_hospital(**SEARCH, workdir=tmp_path / "run")
    np.testing.assert_array_equal(again.predict_proba(new), found.predict_proba(new))


@pytest.mark.slow
def test_a_search_in_memory_chooses_what_one_in_a_folder_does(new, tmp_path):
    pytest.importorskip("optuna")
    new = new.filter(pl.col("na").is_not_null())
    models = [train_hospital(**SEARCH, workdir=folder) for folder in (None, tmp_path / "run")]
    np.testing.assert_array_equal(*(model.predict_proba(new) for model in models))


class Impatient(progress.Silent):
    """Breaks training off at the third evaluation, as a person would."""

    seen = 0

    def note(self, step, stage, values):
        Impatient.seen += 1
        if Impatient.seen == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_broken_off_it_leaves_the_best_model_so_far(model, new, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "make", lambda *_, **__: Impatient())
    monkeypatch.setattr(Impatient, "seen", 0)
    found = train_hospital(workdir=tmp_path / "run")
    assert found.chosen["step"] < model.chosen["step"] or found.chosen["stage"] != model.chosen["stage"]
    assert found.predict_proba(new).shape == (ROWS, 2)
    assert not (tmp_path / "run" / "report.json").exists()
    monkeypatch.setattr(Impatient, "seen", 3)
    whole = train_hospital(workdir=tmp_path / "run")
    np.testing.assert_array_equal(whole.predict_proba(new), model.predict_proba(new))


def test_broken_off_before_the_first_evaluation_there_is_no_model(monkeypatch):
    monkeypatch.setattr(progress, "make", lambda *_, **__: Impatient())
    monkeypatch.setattr(Impatient, "seen", 2)
    with pytest.raises(KeyboardInterrupt):
        train_hospital()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "dead"}, "^label=dead is no column .did you mean 'died'"),
        ({"label": {"column": "died", "classes": "01"}}, "must be a list"),
        ({"label": None}, "label=COLUMN"),
        ({"patient": "persom"}, "did you mean 'person'"),
        ({"modalities": {"labs": "na"}}, "must be a list"),
        ({"modalities": {"labs": ["nb"]}}, "nb"),
        ({"modalities": {"labs": ["na", "died"]}}, "'died' is label, split or id"),
        ({"modalities": {"labs": ["na", "stay"]}}, "'stay' is label, split or id"),
        ({"modalities": {"labs": ["na", "k"], "rest": rj.Table(["na"])}}, "'na' belongs to a modality before it"),
        ({"modalities": ["na"]}, "must be a mapping"),
        ({"modalities": {"labs": None}}, "must be a list"),
        ({"seed": None}, "seed=None is no int"),
        ({"tuning": "a"}, "tuning='a' must be a share"),
        ({"method": "remnd"}, "did you mean 'remind'"),
        ({"method": "gradient_boosting"}, "no network"),
        ({"optim": {"rl": 1.0}}, r"optim\.rl"),
        ({"search": -1}, "search=-1 must be a number of trials"),
        ({"search": 2, "space": "optim.rl=1|2"}, r"did you mean 'optim\.lr'"),
        ({"search": 2, "space": "model.width=8|16"}, r"model\.width is set as well"),
        ({"search": 2, "method": "remind_stack"}, "has nothing to search"),
        ({"train": {"epochs": "many"}}, "many"),
        ({"held_out": 0.9, "tuning": 0.2}, "split fractions"),
    ],
)
def test_mistakes_are_told_in_one_line(options, message):
    with pytest.raises(rj.UserError, match=message) as told:
        train_hospital(**options)
    assert "\n" not in str(told.value)


def test_importing_the_package_imports_nothing_heavy():
    code = "import remind_jax, sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "numpy", "polars", "flax", "sklearn", "pandas", "tensorflow_datasets"} & set(loaded)


def test_the_menu_is_complete():
    for name in rj.__all__:
        assert getattr(rj, name) is not None
    assert set(rj.__all__) <= set(dir(rj))
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = rj.nothing_here


@pytest.mark.slow
def test_a_model_gives_sets_that_it_keeps_and_figures_by_attribute(tmp_path) -> None:
    attributes = {"sex": "sex", "potassium": {"column": "k", "bins": [4]}}
    model = train_hospital(attributes=attributes, tuning=0.3)
    report = model.report
    assert {row["value"] for row in report["attributes"] if row["attribute"] == "potassium"} <= {
        "below 4",
        "4 or more",
        None,
    }
    assert sum(row["n"] for row in report["attributes"] if row["attribute"] == "sex") == report["n"]
    assert [one["code"] for one in report["findings"]].count("W115") == 2
    assert report["sets"]["level"] == 0.9
    assert sum(row["n"] for row in report["sets"]["groups"]) == report["n"]
    model.save(tmp_path / "model")
    loaded, rows = rj.load(tmp_path / "model"), hospital(seed=1).drop("died")
    table = loaded.table(rows)
    assert table.equals(model.table(rows))
    assert all(name in inside.split("|") for name, inside in zip(table["prediction"], table["set"], strict=True))
    assert len(set(table["set"])) > 1
    fresh = loaded.evaluate(hospital(seed=2))["sets"]
    assert fresh["overall"]["n"] == ROWS
    assert fresh["overall"]["ci"][0] < 0.9


def test_without_a_share_to_hold_there_are_no_sets(model, turned) -> None:
    assert turned.sets == ()
    assert "sets" not in turned.report
    assert "set" not in turned.table(hospital()).columns
    assert model.sets
    assert "set" in model.table(hospital()).columns


@pytest.mark.slow
def test_recalibrated_probabilities_are_those_of_the_saved_and_of_the_exported_model(tmp_path) -> None:
    plain, keys = train_hospital(), {"eval.recalibrate": "temperature"}
    model, rows = train_hospital(**keys, workdir=tmp_path / "run"), hospital(seed=1).drop("died")
    temperature = model.task.temperature
    assert temperature != 1.0
    assert model.report["chosen_on_tuning"]["temperature"] == temperature
    raised = plain.predict_proba(rows) ** (1 / temperature)
    np.testing.assert_allclose(model.predict_proba(rows), raised / raised.sum(axis=1, keepdims=True), rtol=1e-4)
    _assert_saved_and_exported_alike(model, tmp_path / "run", rows)


@pytest.mark.slow
def test_isotonic_probabilities_and_their_sets_are_those_of_the_saved_and_of_the_exported_model(tmp_path) -> None:
    plain, keys = train_hospital(tuning=0.3), {"eval.recalibrate": "isotonic", "tuning": 0.3}
    model, rows = train_hospital(**keys, workdir=tmp_path / "run"), hospital(seed=1).drop("died")
    expected = isotonic.along(model.task.curves, plain.predict_proba(rows))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(rows), expected, rtol=1e-4)
    assert np.abs(expected - plain.predict_proba(rows)).max() > 0.02
    assert model.report["chosen_on_tuning"]["isotonic"].keys() == set(model.classes)
    facts = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert len(facts["task"]["curves"]) == len(model.classes)
    _assert_saved_and_exported_alike(model, tmp_path / "run", rows)


def _assert_saved_and_exported_alike(model, run, rows) -> None:
    """The model in a run's folder, and the program made of a model, predict what the model predicts, sets included."""
    np.testing.assert_array_equal(rj.load(run).predict_proba(rows), model.predict_proba(rows))
    batch = pipeline.new_store(model.read(rows), model.preprocessor, model.groups).take(np.arange(rows.height))
    inputs = {name: batch[name] for name in (*model.groups.modalities, "present")}
    exported = program.program(model)(model.params, inputs)
    np.testing.assert_allclose(exported["probabilities"], model.predict_proba(rows), atol=1e-5)
    named = ["|".join(np.array(model.classes)[inside]) for inside in np.asarray(exported["set"])]
    assert named == model.table(rows)["set"].to_list()
