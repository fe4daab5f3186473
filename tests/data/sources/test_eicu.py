"""eICU-CRD: what is read of invented stays in the layout of the release, and that nothing after the window is."""

import random

import numpy as np
import polars as pl
import pytest

from remind_jax.config import base
from remind_jax.config.sources import OF_SOURCES
from remind_jax.data import check, sources, splits
from remind_jax.data.sources import eicu, mimic_iv_labs
from remind_jax.errors import UserError
from tests.data.sources import eicu_files
from tests.data.sources.eicu_files import AMY, AMY_AGAIN, BOB, CANARY, WINDOW


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return eicu_files.write(tmp_path_factory.mktemp("eicu"), eicu_files.tables())


@pytest.fixture(scope="module")
def read(folder):
    return eicu.load(folder)


def by_stay(manifest, column):
    return dict(zip(map(int, manifest.table["stay"]), manifest.table[column].to_list(), strict=True))


def inputs(manifest):
    columns = [column for modality in manifest.schema.modalities for column in modality.all_columns]
    return manifest.table.select(columns)


# ---- cohort and outcomes ---------------------------------------------------------------------------------------------


def test_stays_that_outlast_the_window_and_have_a_label(read):
    """Cyn dies as the window ends; of Dan nothing is said."""
    assert by_stay(read, "died_in_hospital") == {AMY: "0", AMY_AGAIN: "1", BOB: "0"}
    assert by_stay(read, "patient") == {AMY: "002-1", AMY_AGAIN: "002-1", BOB: "002-2"}
    text = "5 stays, 1 not longer than 48 hours, 1 without a label: 3 stays of 2 patients in 2 hospitals"
    assert read.notes[0].message == text
    assert not splits.cut_patients(read.table["patient"].to_numpy(), np.array(["train", "train", "test"]))


@pytest.mark.parametrize(
    ("outcome", "column", "expected"),
    [
        ("length_of_stay", "days", {AMY: 3.0, AMY_AGAIN: 8 + 1 / 24, BOB: 50 / 24}),
        ("length_classes", "length", {AMY: "3 to 4 days", AMY_AGAIN: "7 to 14 days", BOB: "below 3 days"}),
        ("remaining_classes", "remaining", {AMY: "1 to 2 days", AMY_AGAIN: "6 to 7 days", BOB: "below 1 day"}),
        ("long_stay", "over_a_week", {AMY: "0", AMY_AGAIN: "1", BOB: "0"}),
    ],
)
def test_lengths_by_hand(folder, read, outcome, column, expected):
    manifest = eicu.load(folder, outcome=outcome)
    found = by_stay(manifest, column)
    known = {stay: found.pop(stay) for stay in expected}
    assert known == (pytest.approx(expected) if outcome == "length_of_stay" else expected)
    assert set(found) == {eicu_files.DAN}  # whose stay is over, whatever became of him
    assert inputs(manifest).filter(pl.Series([True] * 3 + [False])).equals(inputs(read))


def test_conditions_are_of_the_whole_stay_and_its_diagnoses_no_input(folder):
    """038.9 is septicemia, 584.9 came late; E849.0 is a place in ICD-9, E11.65 diabetes in ICD-10."""
    manifest = eicu.load(folder, outcome="conditions")
    assert "diagnoses" not in [modality.name for modality in manifest.schema.modalities]
    found = {name: by_stay(manifest, name) for name in manifest.schema.label_columns}
    ill = {name for name, cells in found.items() if any(cells.values())}
    assert ill == {"septicemia", "acute_renal_failure", "diabetes_with_complications"}
    assert found["septicemia"] == {AMY: 1.0, BOB: 0.0}  # nobody has coded those of Amy's second stay
    assert found["diabetes_with_complications"] == {AMY: 0.0, BOB: 1.0}


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_admission_by_hand(read):
    assert by_stay(read, "age") == {AMY: 67.0, AMY_AGAIN: 67.0, BOB: 90.0}
    assert by_stay(read, "hours_in_hospital") == {AMY: 1.5, AMY_AGAIN: 1.5, BOB: -0.5}
    assert by_stay(read, "unitvisitnumber")[AMY_AGAIN] == 2
    given = {attribute.name: by_stay(read, attribute.column)[BOB] for attribute in read.schema.attributes}
    assert given == {
        **{"hospital": "9", "region": "South", "teaching": "t", "ethnicity": "Hispanic"},
        **{"sex": "Male", "age": 90.0},
    }


def test_labs_and_vital_signs_by_hand(read):
    """Two pulses of the first hour are one mean; 98.6 F is 37 C; a saturation of 0 is none."""
    assert [by_stay(read, f"sodium_{name}")[AMY] for name in mimic_iv_labs.STATISTICS] == [135, 130, 140, 140]
    assert by_stay(read, "inspired_oxygen_last")[AMY] == 50
    assert by_stay(read, "white_cells_last") == {AMY: None, AMY_AGAIN: None, BOB: 9.5}
    assert [by_stay(read, f"heart_rate_{name}")[AMY] for name in mimic_iv_labs.STATISTICS] == [92.5, 85, 100, 100]
    assert by_stay(read, "temperature_last")[AMY] == pytest.approx(37)
    assert by_stay(read, "systolic_pressure_last") == {AMY: 120, AMY_AGAIN: None, BOB: None}
    labs, vitals = (note.message for note in read.notes[1:])
    assert labs.endswith("1 entered after the window, 1 without a number, 1 implausible")
    assert vitals == "vitals: 5 means of an hour are used; left out: 1 implausible"


def test_codes_by_hand(read):
    """Newest first; an order that was cancelled at some time counts, as nobody knew it then."""
    assert by_stay(read, "diagnoses")[AMY].split() == [
        "renal|acute_renal_failure",
        "cardiovascular|shock_/_hypotension|sepsis",
        "admission_diagnosis|Elective|Yes",
    ]
    assert by_stay(read, "treatments") == {AMY: "pulmonary|mechanical_ventilation", AMY_AGAIN: None, BOB: None}
    assert by_stay(read, "medications")[AMY] == "infusion:norepinephrine hicl1062 aspirin_81_mg"


def test_forms_of_labs(folder, read):
    last = eicu.load(folder, labs="last")
    assert all(column.endswith("_last") for modality in last.schema.modalities[1:3] for column in modality.columns)
    assert by_stay(last, "sodium_last") == by_stay(read, "sodium_last")
    events = eicu.load(folder, labs="events", max_events=2)
    assert [modality.kind for modality in events.schema.modalities[1:3]] == ["events", "events"]
    assert [tuple(event.values()) for event in by_stay(events, "labs")[AMY]] == [
        (pytest.approx(30 / 60 - 48), "inspired oxygen", 50.0),
        (0.0, "sodium", 140.0),
    ]
    assert by_stay(events, "vitals")[AMY][-1] == {
        "hours": pytest.approx(65 / 60 - 48),
        "code": "heart rate",
        "value": 100,
    }


@pytest.mark.parametrize("labs", eicu.FORMS)
def test_nothing_after_the_window_is_an_input(folder, tmp_path, labs):
    """All rows of later, and all of patient that tells the end, changed or gone: the inputs stay what they were."""
    later, tables = eicu.load(folder, labs=labs), eicu_files.tables()
    for name, rows in tables.items():
        offsets = [column for column in eicu_files.COLUMNS[name].split() if column.endswith("offset")]
        if name == "patient":
            for row in rows:
                row |= {"dischargeweight": 1, "hospitaldischargeoffset": 9e6, "unitdischargelocation": "Death"}
                row["unitdischargestatus"] = "Expired"
        else:
            rows[:] = [row for row in rows if max(row.get(column) or 0 for column in [*offsets, "labid"]) <= WINDOW]
    without = eicu.load(eicu_files.write(tmp_path, tables), labs=labs)
    assert inputs(without).equals(inputs(later))
    assert str(CANARY) not in str(inputs(later).to_dicts())
    assert str(CANARY) in str(eicu_files.tables())


def test_hospitals_beyond_the_largest_are_one(tmp_path, monkeypatch):
    monkeypatch.setattr(eicu, "MOST_HOSPITALS", 1)
    manifest = eicu.load(eicu_files.write(tmp_path, eicu_files.tables()))
    assert by_stay(manifest, "hospital") == {AMY: "7", AMY_AGAIN: "7", BOB: "other hospitals"}


def test_order_of_rows_names_in_lower_case_and_further_columns_change_nothing(tmp_path, read):
    tables = eicu_files.tables()
    for rows in tables.values():
        random.Random(0).shuffle(rows)
    root = eicu_files.write(tmp_path, tables, packed=False)
    for path in root.iterdir():
        path.rename(root / path.name.lower())
    assert eicu.load(root).digest == read.digest


def test_many_stays_pass_the_checks(tmp_path):
    manifest = eicu.load(eicu_files.write(tmp_path, eicu_files.many(60)))
    assert not [finding for finding in check.find_problems(manifest) if finding.fatal]
    assert manifest.presence.mean(axis=0).tolist() == [1.0, 0.6, 1.0, 1.0, 1.0, 0.0]
    assert manifest.labels.sum() == 15


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("lab"), r"lab\.csv\.gz is not in the folder, nor is lab\.csv; every version of eICU-CRD"),
        (lambda t: t["patient"].append(t["patient"][0]), "'patientunitstayid' has 2 cells that are used by another"),
        (lambda t: t["patient"][0].update(uniquepid=None), "'uniquepid' has 1 cells that are empty"),
        (lambda t: t["lab"][0].update(labresultoffset="noon"), "'labresultoffset' has 1 cells that are not numbers"),
        (lambda t: t["patient"].clear(), "no stay is left for the outcome died: of 0 stays 0 last longer than 48"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, damage, message):
    tables = eicu_files.tables()
    damage(tables)
    with pytest.raises(UserError, match=message) as error:
        eicu.load(eicu_files.write(tmp_path, tables))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outcome": "dead"}, "data.outcome is 'dead'"),
        ({"outcome": "time_to_death"}, "known: died, conditions"),
        ({"labs": "text"}, "data.labs is 'text'; known: numeric, last, events"),
    ],
)
def test_unknown_options_are_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        eicu.load(folder, **options)


def test_the_source_reads_its_keys_and_says_where_the_data_are_from(folder, tmp_path):
    config = base("eicu")
    assert OF_SOURCES["eicu"]["outcome"].allowed == tuple(eicu.ASKED)
    assert OF_SOURCES["eicu"]["labs"].allowed == eicu.FORMS
    with pytest.raises(UserError, match=r"get eICU-CRD 2.0 from PhysioNet .* --config.data.root=DIR"):
        sources.load(config.data, seed=0)
    config.data.update(root=str(folder), hours=60, outcome="long_stay")
    assert by_stay(sources.load(config.data, seed=0), "over_a_week")[AMY] == "0"
    config.data.root = str(tmp_path / "absent")
    with pytest.raises(UserError, match="does not exist or is not a folder"):
        sources.load(config.data, seed=0)
