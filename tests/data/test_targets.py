"""Labels of all tasks: forms in schema.yaml, arrays, what is refused in one line, splits, what check counts."""

import json
import re

import numpy as np
import polars as pl
import pytest
import yaml

from remind_jax import check_data
from remind_jax.data import check, splits, targets
from remind_jax.data.manifest import decode
from remind_jax.data.reading import load_manifest, read_manifest, read_new, read_schema
from remind_jax.data.schema import schema_from_dict
from remind_jax.errors import UserError
from tests.data.manifest_files import SCHEMA, write_manifest
from tests.data.target_files import FORMS, N, folder_of, write_label

others = pytest.mark.parametrize("task", ["multilabel", "regression", "survival"])


def refusal(folder):
    with pytest.raises(UserError) as error:
        read_manifest(folder).labels  # noqa: B018
    return str(error.value)


@pytest.mark.parametrize("task", FORMS)
def test_forms_of_label_become_fields_of_the_schema(tmp_path, task):
    folder = folder_of(tmp_path, task)
    schema = read_schema(folder / "schema.yaml", 1, 1)
    expected = {
        "ordinal": ("died", (), ("0", "1"), "none", ()),
        "multilabel": ("sepsis", ("aki", "stroke"), ("sepsis", "aki", "stroke"), "none", ()),
        "regression": ("los", (), (), "log1p", ()),
        "survival": ("days", ("dead",), (), "none", (30.0, 365.0)),
    }
    found = (schema.label, schema.more_labels, schema.classes, schema.transform, schema.horizons)
    assert (schema.task, *found) == (task, *expected[task])
    assert schema.has_classes == (task == "ordinal")
    assert schema_from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert ("label", schema.label_columns[-1]) in list(schema.columns())


def test_data_of_classes_have_the_record_that_they_had(tmp_path):
    folder = write_manifest(tmp_path, n=12)
    write_label(folder, SCHEMA["label"])
    schema = read_schema(folder / "schema.yaml", 1, 1)
    assert set(schema.to_dict()) == {"name", "sample_id", "patient_id", "label", "classes", "modalities", "split"}
    plain = read_manifest(folder).digest
    write_label(folder, FORMS["ordinal"])
    assert read_manifest(folder).digest != plain
    write_label(folder, SCHEMA["label"] | {"task": "classes", "ordered": False})
    assert read_manifest(folder).digest == plain


TITLES = {
    "ordinal": ({"names": {0: "survived", "1": "dead"}}, {"classes": {"0": "survived", "1": "dead"}}),
    "multilabel": ({"names": {"aki": "kidney injury"}}, {"classes": {"aki": "kidney injury"}}),
    "regression": ({"title": "days in hospital"}, {"label": "days in hospital"}),
    "survival": ({}, {"label": "time to dead"}),
}


@pytest.mark.parametrize("task", FORMS)
def test_titles_are_read_and_are_no_part_of_the_data(tmp_path, task):
    given, expected = TITLES[task]
    folder = folder_of(tmp_path, task)
    plain = read_manifest(folder).digest
    write_label(folder, FORMS[task] | given)
    content = yaml.safe_load((folder / "schema.yaml").read_text())
    content["modalities"]["labs"]["title"] = "Laboratory"
    (folder / "schema.yaml").write_text(yaml.safe_dump(content))
    found = read_manifest(folder)
    assert found.schema.titles == expected | {"modalities": {"labs": "Laboratory"}}
    assert schema_from_dict(json.loads(json.dumps(found.schema.to_dict()))) == found.schema
    assert found.digest == plain
    content["modalities"]["note"]["title"] = "Laboratory"
    (folder / "schema.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="two modalities have the title 'Laboratory'"):
        read_schema(folder / "schema.yaml", 1, 1)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("died", "label must be a mapping"),
        ({"task": "survivall"}, r"'survivall' is unknown \(did you mean 'survival'\?\); tasks are classes, ordinal"),
        ({"task": 3}, "label.task 3 is unknown"),
        ({"column": "died", "classes": ["0", "1"], "ordered": "yes"}, "label.ordered must be true or false"),
        ({"task": "multilabel", "columns": ["aki"]}, "at least two different columns"),
        ({"task": "multilabel", "columns": []}, "at least two different columns"),
        ({"task": "multilabel", "columns": ["aki", "aki"]}, "at least two different columns"),
        ({"task": "multilabel", "columns": "aki"}, "label.columns must be a list"),
        ({"task": "multilabel", "columns": ["aki", "note"]}, "column 'note' is used twice, by label and modality note"),
        ({"task": "regression", "column": "los", "transform": "log"}, "label.transform must be none or log1p"),
        ({"task": "regression", "column": "los", "classes": ["0"]}, "unknown key 'classes' in label"),
        ({"task": "regression"}, "label lacks the key 'column'"),
        ({"task": "survival", "time": "days"}, "label lacks the key 'event'"),
        ({"task": "survival", "time": "days", "event": "days"}, "column 'days' is used twice"),
        ({"task": "survival", "time": "days", "event": "dead", "horizons": 30}, "label.horizons must be a list"),
        ({"task": "survival", "time": "days", "event": "dead", "horizons": [0]}, "times above 0"),
        ({"task": "survival", "time": "days", "event": "dead", "horizons": [True]}, "times above 0"),
        ({"task": "survival", "time": "days", "event": "dead", "horizons": [365, 30]}, "must ascend"),
        ({"task": "survival", "time": "days", "event": "dead", "horizons": [30, 30]}, "must ascend"),
        ({"column": "died", "classes": ["0", "1"], "names": ["no", "yes"]}, "label.names must be a mapping"),
        ({"column": "died", "classes": ["0", "1"], "names": {"2": "yes"}}, "label.names: '2' is none of the classes"),
        ({"column": "died", "classes": ["0", "1"], "names": {"1": "a\nb"}}, "each of label.names must be a string"),
        ({"column": "died", "classes": ["0", "1"], "names": {"1": "0"}}, "label.names must differ"),
        ({"task": "multilabel", "columns": ["aki", "dead"], "names": {"akj": "x"}}, r"did you mean 'aki'"),
        ({"task": "regression", "column": "los", "names": {"0": "none"}}, "unknown key 'names' in label"),
        ({"task": "regression", "column": "los", "title": 3}, "label.title must be a string"),
    ],
)
def test_other_forms_are_refused_in_one_line(tmp_path, label, says):
    folder = folder_of(tmp_path, "regression")
    write_label(folder, label)
    with pytest.raises(UserError, match=says) as error:
        read_schema(folder / "schema.yaml", 1, 1)
    assert "\n" not in str(error.value)


def test_labels_become_arrays(tmp_path):
    manifest = read_manifest(folder_of(tmp_path / "a", "multilabel"))
    cells = manifest.table.select("sepsis", "aki", "stroke")
    assert manifest.labels.dtype == np.int8
    np.testing.assert_array_equal(manifest.labels == targets.UNKNOWN, cells.select(pl.all().is_null()).to_numpy())
    np.testing.assert_array_equal(manifest.labels == 1, cells.fill_null(0).to_numpy() == 1)
    manifest = read_manifest(folder_of(tmp_path / "b", "regression"))
    np.testing.assert_array_equal(manifest.labels, manifest.table["los"].to_numpy())
    manifest = read_manifest(folder_of(tmp_path / "c", "survival"))
    np.testing.assert_array_equal(manifest.labels, manifest.table.select("days", "dead").to_numpy())
    np.testing.assert_array_equal(
        decode(manifest, np.array([5, 2]))["label"], manifest.labels[[5, 2]].astype(np.float32)
    )


def test_parquet_and_words_for_missing_give_the_same_labels(tmp_path):
    folder = folder_of(tmp_path, "multilabel")
    one = read_manifest(folder)
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    table.with_columns(pl.col("aki").fill_null("NA")).write_csv(folder / "manifest.csv")
    words = read_manifest(folder)
    assert [(note.code, note.fatal) for note in words.notes] == [("E009", False)]
    (folder / "manifest.csv").unlink()
    booleans = [(pl.col(name).cast(pl.Int8) == 1).alias(name) for name in ("sepsis", "aki")]
    table.with_columns(booleans).write_parquet(folder / "manifest.parquet")
    for other in (words, read_manifest(folder)):
        np.testing.assert_array_equal(other.labels, one.labels)


@pytest.mark.parametrize(
    ("task", "column", "cell", "says"),
    [
        ("multilabel", "aki", "2", "column 'aki': 1 cell (row 8) neither 0 nor 1"),
        ("multilabel", "aki", "yes", "column 'aki': 1 cell (row 8) not a number"),
        ("regression", "los", "", "column 'los': 1 cell (row 8) without a label"),
        ("regression", "los", "long", "column 'los': 1 cell (row 8) not a number"),
        ("regression", "los", "-1", "column 'los': 1 cell (row 8) at or below -1"),
        ("regression", "los", "1e39", "column 'los': 1 cell (row 8) infinite or beyond float32"),
        ("survival", "days", "-3", "column 'days': 1 cell (row 8) not above 0"),
        ("survival", "days", "0", "column 'days': 1 cell (row 8) not above 0"),
        ("survival", "days", "", "columns 'days', 'dead': 1 cell (row 8) without a label"),
        ("survival", "dead", "", "columns 'days', 'dead': 1 cell (row 8) without a label"),
        ("survival", "dead", "2", "column 'dead': 1 cell (row 8) neither 1 (event) nor 0 (censored)"),
    ],
)
def test_impossible_cells_are_found_with_their_row(tmp_path, task, column, cell, says, capsys):
    folder = folder_of(tmp_path, task)
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    cells = table[column].to_list()
    cells[7] = cell
    table.with_columns(pl.Series(column, cells)).write_csv(folder / "manifest.csv")
    assert check_data.run([str(folder), "--json"]) == 2
    found = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["fatal"]]
    assert [each["code"] for each in found] == ["E005"]
    assert found[0]["message"].startswith(says)
    assert says in refusal(folder)


def test_a_row_without_any_of_several_labels_is_refused(tmp_path):
    folder = folder_of(tmp_path, "multilabel")
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False)
    empty = pl.when(pl.int_range(pl.len()) == 9).then(None)
    names = ["sepsis", "aki", "stroke"]
    table.with_columns(empty.otherwise(pl.col(name)).alias(name) for name in names[:2]).write_csv(
        folder / "manifest.csv"
    )
    read_manifest(folder)
    table.with_columns(empty.otherwise(pl.col(name)).alias(name) for name in names).write_csv(folder / "manifest.csv")
    assert refusal(folder).endswith("1 cell (row 10) without any label; fill them or drop the rows")


@pytest.mark.parametrize(
    ("task", "column", "value", "says"),
    [
        ("multilabel", "stroke", 0, "no row in train is 1, or none is 0, in stroke"),
        ("multilabel", "stroke", 1, "no row in train is 1, or none is 0, in stroke"),
        ("regression", "los", 4.5, "all values in train are equal"),
        ("survival", "dead", 0, "no row in train has an event"),
    ],
)
def test_labels_that_teach_nothing_are_refused(tmp_path, task, column, value, says):
    manifest = read_manifest(folder_of(tmp_path, task, **{column: [value] * N}))
    found = check.find_problems(manifest, splits.make_splits(manifest, 0))
    assert [finding.code for finding in found if finding.fatal] == ["E005"]
    assert says in found[0].message


@others
def test_a_good_folder_is_accepted_and_counted(tmp_path, task, capsys):
    folder = folder_of(tmp_path, task)
    labels = read_manifest(folder).labels
    assert check_data.run([str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "classes" not in found
    if task == "multilabel":
        cases, known = (labels == 1).sum(axis=0), (labels >= 0).sum(axis=0)
        assert found["label"]["aki"] == f"{cases[1]} of {known[1]}"
    elif task == "regression":
        assert found["label"]["median"] == pytest.approx(np.median(labels))
    else:
        events = labels[:, 1] == 1
        by_30 = int((events & (labels[:, 0] <= 30)).sum())
        assert found["label"] == {
            "events": events.sum(),
            "censored": (~events).sum(),
            "events by 30": by_30,
            "events by 365": int((events & (labels[:, 0] <= 365)).sum()),
        }
    assert check_data.run([str(folder)]) == 0
    assert "  label: " in capsys.readouterr().out


@others
def test_splits_are_even_between_labels_and_ignore_the_order_of_rows(tmp_path, task):
    manifest = read_manifest(folder_of(tmp_path, task))
    split, strata = splits.make_splits(manifest, 0, (0.5, 0.1, 0.4)), manifest.strata
    assert strata.dtype == np.int32
    assert set(strata) == set(range(len(set(strata))))
    for stratum in set(strata):
        inside = strata == stratum
        if inside.sum() >= 10:
            assert abs((split[inside] == splits.HELD_OUT).mean() - 0.4) < 0.25
    turned = manifest.table.reverse()
    again = splits.make_splits(type(manifest)(manifest.schema, turned, manifest.root), 0, (0.5, 0.1, 0.4))
    np.testing.assert_array_equal(again[::-1], split)


def test_strata_by_hand(tmp_path):
    schema = read_schema(folder_of(tmp_path / "a", "multilabel") / "schema.yaml", 1, 1)
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, -1, 1], [0, -1, 0], [1, 1, 0]])
    # positives 4, 2, 1: the rarest positive label of each is the first, second, third, none, second
    assert len(set(targets.strata(schema, labels)[[0, 1, 2, 3]])) == 4
    assert targets.strata(schema, labels)[1] == targets.strata(schema, labels)[4]
    schema = read_schema(folder_of(tmp_path / "b", "regression") / "schema.yaml", 1, 1)
    assert targets.strata(schema, np.array([9.0, 1, 2, 3, 4, 5, 6, 7, 8, 0])).tolist() == [4, 0, 0, 1, 1, 2, 2, 3, 3, 0]
    schema = read_schema(folder_of(tmp_path / "c", "survival") / "schema.yaml", 1, 1)
    labels = np.array([[1.0, 1], [2, 0], [3, 1], [4, 0]])
    assert targets.strata(schema, labels).tolist() == [2, 0, 2, 1]


@others
def test_rows_to_predict_need_no_labels(tmp_path, task):
    folder = folder_of(tmp_path, task)
    schema = load_manifest(folder).schema
    table = pl.read_csv(folder / "manifest.csv", infer_schema=False).drop(schema.label_columns)
    table.write_csv(tmp_path / "new.csv")
    manifest = read_new(tmp_path / "new.csv", schema, image_size=8, frames=2)
    assert manifest.table.height == N
    assert not targets.labelled(schema, manifest.table).any()
    with pytest.raises(UserError, match="without"):
        manifest.labels  # noqa: B018


def test_no_message_shows_a_cell(tmp_path, capsys):
    folder = folder_of(tmp_path, "regression", los=["a secret word", *["1.5"] * (N - 1)])
    assert check_data.run([str(folder)]) == 2
    assert not re.search("secret", capsys.readouterr().out)
