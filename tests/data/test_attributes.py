"""Attributes: what may name one, which value a row has, what is told, and where they are no inputs."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from remind_jax.data import attributes, check, importers
from remind_jax.data.importers import table as importer
from remind_jax.data.reading import of_frame, read_new
from remind_jax.data.schema import Attribute, schema_from_dict
from remind_jax.errors import UserError

ENTRY = {"sex": "sex", "age": {"column": "years", "bins": [40, 65]}}
SIZES = {"image_size": 32, "frames": 8, "bad_files": "refuse"}


def content(**more):
    modalities = {"labs": {"kind": "tabular", "columns": ["na"]}, "who": {"kind": "tabular", "columns": ["years"]}}
    ids = {"version": 1, "name": "ward", "sample_id": "stay", "patient_id": "person"}
    label = {"column": "died", "classes": ["0", "1"]}
    return {**ids, "label": label, "modalities": modalities, "attributes": ENTRY, **more}


def ward(rows=60):
    return pl.DataFrame(
        {
            "stay": [f"s{i}" for i in range(rows)],
            "person": [f"p{i}" for i in range(rows)],
            "sex": [(" f ", "m", "", None)[i % 4] for i in range(rows)],
            "years": [(39.9, 40.0, 65.0, None)[i % 4] for i in range(rows)],
            "na": np.random.default_rng(0).normal(140, 4, rows).round(2),
            "died": [str(i % 2) for i in range(rows)],
        }
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "attributes must be a mapping such as {sex: sex"),
        (["sex"], "attributes must be a mapping"),
        ({"sex": 3}, r"attributes\.sex must be a string"),
        ({"age": {"column": "years"}}, r"attributes\.age lacks the key 'bins'"),
        ({"age": {"column": "years", "bins": []}}, r"attributes\.age\.bins must be a list of numbers"),
        ({"age": {"column": "years", "bins": [True]}}, r"attributes\.age\.bins must be a list of numbers"),
        ({"age": {"column": "years", "bins": [65, 40]}}, r"attributes\.age\.bins must ascend"),
        ({"age": {"column": "years", "bins": [40, float("nan")]}}, r"attributes\.age\.bins must ascend, and be finite"),
        ({"a": "sex", "b": "sex"}, "two of them name the same column"),
    ],
)
def test_what_is_no_attribute_is_refused_in_one_line(entry, message) -> None:
    with pytest.raises(UserError, match=message):
        attributes.parse(entry)


def test_values_are_trimmed_and_ranges_hold_their_lower_edge_in_order() -> None:
    sex, age = attributes.parse(ENTRY)
    assert attributes.values(sex, ward(4)).to_list() == ["f", "m", None, None]
    ages = attributes.values(age, ward(4))
    assert ages.to_list() == ["below 40", "40 to below 65", "65 or more", None]
    assert ages.dtype == pl.Enum(["below 40", "40 to below 65", "65 or more"])
    text = ward(4).with_columns(years=pl.Series(["39.9", "40", " 65 ", "old"]))
    assert attributes.values(age, text).to_list() == ages.to_list()


def test_too_many_values_cells_without_numbers_and_inputs_are_told_without_their_text() -> None:
    manifest = of_frame(content(), ward(), "", **SIZES)
    found = {one.code: one for one in attributes.problems(manifest.schema, manifest.table)}
    assert found.keys() == {"W115"}
    assert "attribute 'age' is an input, too: modality 'who' has its column" in found["W115"].message
    table = ward().with_columns(
        years=pl.Series(["old"] + ["41"] * 59), sex=pl.Series([f"secret {i}" for i in range(60)])
    )
    schema = dataclasses.replace(manifest.schema, modalities=manifest.schema.modalities[:1])
    found = {one.code: one for one in attributes.problems(schema, table)}
    assert found["W114"].message == "attribute 'age': 1 cell (row 1) with no number count as not recorded"
    assert found["E010"].fatal
    assert "has 60 values, more than 20; give bins: sex: {column: sex, bins: [40, 65]}" in found["E010"].message
    assert "secret" not in found["E010"].message


def test_training_is_refused_for_an_attribute_of_sixty_values() -> None:
    manifest = of_frame(content(attributes={"sodium": "na"}), ward(), "", **SIZES)
    assert [one.code for one in check.find_problems(manifest) if one.fatal] == ["E010"]


@pytest.mark.parametrize("column", ["stay", "person", "died"])
def test_ids_and_the_label_are_no_attributes(column) -> None:
    with pytest.raises(UserError, match=f"column '{column}' is used twice"):
        of_frame(content(attributes={"a": column}), ward(), "", **SIZES)


def test_a_schema_with_attributes_survives_json_and_one_without_keeps_its_digest() -> None:
    manifest = of_frame(content(), ward(), "", **SIZES)
    schema = manifest.schema
    assert schema.attributes == (Attribute("sex", "sex"), Attribute("age", "years", (40.0, 65.0)))
    assert schema_from_dict(schema.to_dict()) == schema
    plain = of_frame({k: v for k, v in content().items() if k != "attributes"}, ward(), "", **SIZES)
    assert "attributes" not in plain.schema.to_dict()
    assert plain.digest != manifest.digest


def test_rows_to_predict_may_lack_attributes() -> None:
    schema = of_frame(content(), ward(), "", **SIZES).schema
    manifest = read_new(ward().drop("sex"), schema, image_size=32, frames=8)
    assert [each.name for each in manifest.schema.attributes] == ["age"]


def test_importing_makes_no_attribute_an_input_but_those_that_are_named_as_one() -> None:
    options = {"name": "ward", "label": "died", "sample": "stay", "patient": "person", "attributes": ENTRY}
    found = importer.from_table(ward(), **options)
    assert found.schema["attributes"] == ENTRY
    named = {column for one in found.schema["modalities"].values() for column in one["columns"]}
    assert named == {"na"}
    assert found.table["sex"].to_list()[:4] == [" f ", "m", None, None]
    found = importer.from_table(ward(), **options, modalities={"who": ["years"]})
    assert found.schema["modalities"]["who"]["columns"] == ["years"]
    with pytest.raises(UserError, match="attribute=gender is no column"):
        importer.from_table(ward(), **options | {"attributes": {"sex": "gender"}})
    with pytest.raises(UserError, match="column 'person' cannot be attribute, split or id at once"):
        importer.from_table(ward(), **options | {"attributes": {"who": "person"}})


def test_the_command_takes_columns_and_edges(tmp_path) -> None:
    assert importers.attributes_of("sex,years:40:65.5") == {
        "sex": "sex",
        "years": {"column": "years", "bins": [40.0, 65.5]},
    }
    with pytest.raises(UserError, match="--attributes: 'years:old' must be COLUMN, or COLUMN:NUMBER"):
        importers.attributes_of("years:old")


def test_a_row_of_a_range_is_in_it() -> None:
    rng = np.random.default_rng(0)
    years, edges = rng.integers(0, 100, 500), (20.0, 40.0, 65.0, 80.0)
    found = attributes.values(Attribute("age", "x", edges), pl.DataFrame({"x": years}))
    slow = [sum(edge <= x for edge in edges) for x in years]
    assert found.to_physical().to_list() == slow
