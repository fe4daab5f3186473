"""`fit` on a frame with a label of every task: the same numbers as from the folder, and errors in one line."""

import pandas as pd
import polars as pl
import pytest

import remind_jax as rj
from remind_jax import api, tasks
from remind_jax.config import base, leaves, set_values, value_of
from remind_jax.data import targets
from remind_jax.data.importers import plan
from remind_jax.data.importers import table as importer
from remind_jax.data.importers.modalities import columns_of
from remind_jax.errors import UserError
from tests import tiny_runs
from tests.data.target_files import FORMS, folder_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(tiny_runs.CONFIG_FLAGS_WARNING),
    pytest.mark.usefixtures("quick_compilation"),
]
KEYS = {key: value for key, value in tiny_runs.TINY.items() if not key.startswith("data.")}
KEYS |= {"method": "remind", "train.epochs": 1.0, "train.joint_epochs": 0.5, "eval.bootstrap": 20}
ROLES = {"sample": "stay", "patient": "patient"}
MODALITIES = {"note": rj.Text("note"), "icd": rj.Codes("icd"), "labs": rj.Table(["sodium", "wbc"], ["sex"])}


@pytest.mark.parametrize("task", FORMS)
def test_a_frame_gives_the_figures_that_its_folder_gives(tmp_path, task):
    frame = pl.read_csv(folder_of(tmp_path, task) / "manifest.csv", schema_overrides={"died": pl.String})
    model = rj.fit(frame, FORMS[task], modalities=MODALITIES, progress=False, **ROLES, **KEYS)
    assert model.task.name == model.report["task"]["name"] == task
    entries = {name: each.to_entry() for name, each in MODALITIES.items()}
    label = "died" if task == "ordinal" else FORMS[task]
    found = importer.from_table(frame, name="data", label=label, modalities=entries, rest=False, **ROLES)
    found.schema["label"] |= {"ordered": True} if task == "ordinal" else {}
    importer.write(found, tmp_path / "folder")
    of_folder = rj.fit(tmp_path / "folder", progress=False, **KEYS)
    assert of_folder.report["overall"] == model.report["overall"]
    assert of_folder.task == model.task
    assert of_folder.table(frame).equals(model.table(frame))


@pytest.mark.parametrize("task", ["multilabel", "regression", "survival"])
def test_the_columns_of_a_label_are_no_inputs(tmp_path, task):
    frame = pl.read_csv(folder_of(tmp_path, task) / "manifest.csv").drop("scan", "died")
    found = importer.from_table(frame, name="icu", label=FORMS[task], **ROLES)
    lines = plan.plan_lines(found)
    used = {column for entry in found.schema["modalities"].values() for column in columns_of(entry)}
    columns = set(targets.of_entry(FORMS[task]).label_columns)
    assert not used & columns
    assert columns < set(found.table.columns)
    assert any(line.startswith(f"label: {task} of ") for line in lines)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ({"task": "regression", "column": "lost"}, r"label=lost is no column \(did you mean 'los'\?\)"),
        ({"task": "survival", "time": "days", "event": "deaths"}, "label=deaths is no column"),
        ({"task": "survival", "time": "days"}, "label lacks the key 'event'"),
        ({"task": "survival", "time": "days", "event": "patient"}, "'patient' cannot be label, split or id at once"),
        ({"task": "regression", "column": "scan"}, "not a number, as a label of task regression must be"),
        ({"task": "multilabel", "columns": ["sepsis", "los"]}, "neither 0 nor 1"),
        ({"column": "died", "order": True}, "unknown key 'order'; keys are column, classes, ordered"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(tmp_path, label, says):
    frame = pl.read_csv(folder_of(tmp_path, "regression") / "manifest.csv", infer_schema=False)
    with pytest.raises(UserError, match=says) as error:
        rj.fit(frame, label, modalities=MODALITIES, progress=False, **ROLES, **KEYS)
    assert "\n" not in str(error.value)


def test_rows_without_a_label_are_left_out(tmp_path):
    frame = pl.read_csv(folder_of(tmp_path, "regression") / "manifest.csv")
    frame = frame.with_columns(los=pl.when(pl.int_range(pl.len()) < 8).then(None).otherwise(pl.col("los")))
    model = rj.fit(frame, FORMS["regression"], modalities=MODALITIES, progress=False, **ROLES, **KEYS)
    assert sum(part["n"] for part in model.report["card"]["splits"].values()) <= frame.height - 8
    assert any("8 rows without a label" in finding["message"] for finding in model.report["findings"])


@pytest.mark.parametrize("keys", [{}, {"train.batch_size": 7}, {"train": {"select": "c_index"}, "model.wide": False}])
@pytest.mark.parametrize("task", ["survival", "regression"])
def test_keys_that_suit_a_task_give_way_to_those_that_are_given(tmp_path, task, keys):
    manifest = api.read_folder(folder_of(tmp_path, task))
    config = api.make_config("soft_moe", "small", 0, 0.2, 0.1, keys)
    plain = config.copy_and_resolve_references()
    api.suit(config, manifest, keys)
    suits = {"model.wide": True, "train.batch_size": 16, "train.select": "last"} if task == "survival" else {}
    given = dict(leaves(keys))
    for key, value in suits.items():
        assert value_of(config, key) == given.get(key, value)
        set_values(plain, {key: value_of(config, key)})
    assert config.to_dict() == plain.to_dict()


def test_many_events_keep_the_steps_and_the_choice_of_weights(tmp_path):
    manifest = api.read_folder(folder_of(tmp_path, "survival", n=1_100, dead=[1] * 1_100))
    assert tasks.TASKS["survival"].suits(base("manifest"), manifest) == {"model.wide": True}


def test_several_networks_keep_their_batches(tmp_path):
    config = api.make_config("remind_plus", "small", 0, 0.2, 0.1, {})
    api.suit(config, api.read_folder(folder_of(tmp_path, "survival")), {})
    assert (config.train.select, config.train.batch_size) == ("last", base("manifest").train.batch_size)


def test_many_numbers_are_taken_for_a_value_and_that_is_told(tmp_path, capsys):
    frame = pl.read_csv(folder_of(tmp_path, "regression") / "manifest.csv")
    model = rj.fit(frame, "los", modalities=MODALITIES, **ROLES, **KEYS)
    assert (model.task.name, model.schema.label) == ("regression", "los")
    told = f"label 'los' has {frame['los'].n_unique()} different numbers: taken for a value (task regression)"
    assert told in capsys.readouterr().out
    assert any(told in finding["message"] for finding in model.report["findings"])


@pytest.mark.parametrize(
    "labels", [[0.0, 1.0] * 30, [float(i % 25) for i in range(60)], [0.5, 1.5] * 30, [str(i / 7) for i in range(60)]]
)
def test_a_label_that_may_be_something_else_is_not_guessed(tmp_path, labels):
    frame = pl.read_csv(folder_of(tmp_path, "regression") / "manifest.csv").with_columns(los=pl.Series(labels))
    assert api._is_many_numbers(frame, "los") == 0
    assert api._is_many_numbers(frame, "no_column") == 0


def test_ordered_categories_of_pandas_are_ordered_classes_and_that_is_told(tmp_path, capsys):
    frame = pl.read_csv(folder_of(tmp_path, "ordinal") / "manifest.csv", schema_overrides={"died": pl.String})
    names = {"0": "mild", "1": "agony"}  # not in the order of the alphabet
    frame = frame.with_columns(died=pl.col("died").replace_strict(names)).to_pandas()
    kinds = {"ordered": pd.CategoricalDtype(["mild", "agony", "none had"], ordered=True)}
    kinds["unordered"] = pd.CategoricalDtype(["mild", "agony"])
    found = {}
    for name, dtype in kinds.items():
        config = api.make_config("soft_moe", "small", 0, 0.2, 0.1, {})
        given = frame.assign(died=frame["died"].astype(dtype))
        found[name] = api.read_frame(given, "died", MODALITIES, config, **ROLES).schema
        assert ("taken for ordered classes (task ordinal)" in capsys.readouterr().out) == (name == "ordered")
    assert (found["ordered"].task, found["ordered"].classes) == ("ordinal", ("mild", "agony"))
    assert found["unordered"].task == "classes"


def test_titles_of_a_frame_stand_in_the_schema_and_change_no_number(tmp_path):
    frame = pl.read_csv(folder_of(tmp_path, "ordinal") / "manifest.csv")  # died is a number
    label = {"column": "died", "names": {0: "survived", 1: "dead"}, "title": "death"}
    modalities = MODALITIES | {"labs": MODALITIES["labs"].titled("Laboratory")}
    config = api.make_config("soft_moe", "small", 0, 0.2, 0.1, {})
    titled = api.read_frame(frame, label, modalities, config, verbose=False, **ROLES)
    titles = {"label": "death", "classes": {"0": "survived", "1": "dead"}, "modalities": {"labs": "Laboratory"}}
    assert titled.schema.titles == titles
    plain = api.read_frame(frame, "died", MODALITIES, config, verbose=False, **ROLES)
    assert titled.digest == plain.digest
    with pytest.raises(UserError, match=r"label\.names: '2' is none of the classes; they are 0, 1"):
        api.read_frame(frame, label | {"names": {2: "gone"}}, modalities, config, verbose=False, **ROLES)
