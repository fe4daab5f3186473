"""Which stays are samples and what is asked of them: by hand, and against plain Python on the demo."""

import collections
import csv
import datetime as dt
import gzip

import polars as pl
import pytest

from remind_jax.config import base
from remind_jax.data import check, sources
from remind_jax.data.sources import mimic_iv, mimic_iv_cohort
from remind_jax.data.sources.phenotypes import PHENOTYPES
from remind_jax.errors import UserError
from tests.data.sources import mimic_files
from tests.data.sources.mimic_files import ADMISSION, ANN, BEN, CAI, EVE, FAY, STAY

every = pytest.mark.parametrize("outcome", mimic_iv_cohort.OUTCOMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The invented patients; Fay has a lab, so that everybody of 48 hours has a modality."""
    tables = mimic_files.tables()
    tables["hosp/labevents"].append(mimic_files.lab(FAY, 1, 50983, 139, "mEq/L"))
    return mimic_files.write(tmp_path_factory.mktemp("mimic"), tables)


def by_patient(manifest, column):
    ids = manifest.table["subject_id"].cast(pl.Int64).to_list()
    return dict(zip(ids, manifest.table[column].to_list(), strict=True))


def slow_rows(path):
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


# ---- outcomes by hand ------------------------------------------------------------------------------------------------


@every
def test_every_outcome_has_the_same_inputs(folder, outcome):
    manifest, died = mimic_iv.load(folder, outcome=outcome), mimic_iv.load(folder)
    assert manifest.schema.modalities == died.schema.modalities
    inputs = [column for modality in died.schema.modalities for column in modality.all_columns]
    same = died.table.filter(pl.col("stay_id").is_in(manifest.table["stay_id"].implode()))
    assert manifest.table.select("stay_id", *inputs).equals(same.select("stay_id", *inputs))
    assert manifest.table.height == died.table.height - (outcome == "conditions")  # nobody has coded Fay's
    assert manifest.title == f"MIMIC-IV, {outcome.replace('_', ' ')}"


def test_days_and_their_ranges_by_hand(folder):
    """Hours in the unit are 72, 73, 50 and 49; 24, 25, 2 and 1 of them are left after the window."""
    found = by_patient(mimic_iv.load(folder, outcome="length_of_stay"), "days")
    assert found == pytest.approx({ANN: 3, BEN: 73 / 24, EVE: 50 / 24, FAY: 49 / 24})
    length = mimic_iv.load(folder, outcome="length_classes")
    assert by_patient(length, "length") == {
        **dict.fromkeys((ANN, BEN), "3 to 4 days"),
        **dict.fromkeys((EVE, FAY), "below 3 days"),
    }
    assert (len(length.schema.classes), length.schema.classes[-1]) == (7, "14 days or more")
    left = mimic_iv.load(folder, outcome="remaining_classes")
    assert by_patient(left, "remaining") == {
        **dict.fromkeys((ANN, BEN), "1 to 2 days"),
        **dict.fromkeys((EVE, FAY), "below 1 day"),
    }
    assert left.schema.classes[7:] == ("7 to 8 days", "8 to 14 days", "14 days or more")
    assert set(by_patient(mimic_iv.load(folder, outcome="long_stay"), "over_a_week").values()) == {"0"}


def test_a_longer_stay_is_in_the_next_range(tmp_path):
    tables = mimic_files.tables()
    for patient, hours in ((ANN, 24 * 14), (BEN, 24 * 7 + 1)):
        row = next(row for row in tables["icu/icustays"] if row["subject_id"] == patient)
        row["outtime"] = mimic_files.after(patient, hours)
    root = mimic_files.write(tmp_path, tables)
    found = by_patient(mimic_iv.load(root, outcome="length_classes"), "length")
    assert (found[ANN], found[BEN], found[EVE]) == ("14 days or more", "7 to 14 days", "below 3 days")
    assert by_patient(mimic_iv.load(root, outcome="remaining_classes"), "remaining")[ANN] == "8 to 14 days"
    assert by_patient(mimic_iv.load(root, outcome="long_stay"), "over_a_week") == {ANN: "1", BEN: "1", EVE: "0"}


def test_time_to_death_by_hand(folder):
    """Ben dies 25 hours after his window; the others are followed for a year after they last left."""
    manifest = mimic_iv.load(folder, outcome="time_to_death")
    assert by_patient(manifest, "dead") == {ANN: 0.0, BEN: 1.0, EVE: 1.0, FAY: 0.0}
    days = by_patient(manifest, "days")
    home = dt.datetime(2154, 5, 13) - mimic_files.START[EVE] - dt.timedelta(hours=48)
    assert days == pytest.approx(
        {ANN: 365 + (73 - 48) / 24, BEN: 25 / 24, EVE: home / dt.timedelta(days=1), FAY: 365 + 2 / 24}
    )
    assert manifest.schema.horizons == (30.0, 365.0)


def test_conditions_are_of_this_admission_and_codes_of_earlier_ones(folder):
    manifest = mimic_iv.load(folder, outcome="conditions", icd_versions=(9, 10))
    assert by_patient(manifest, "septicemia") == {ANN: 1.0, BEN: 0.0, EVE: 0.0}
    assert by_patient(manifest, "shock") == {ANN: 0.0, BEN: 1.0, EVE: 0.0}
    assert by_patient(manifest, "pneumonia")[EVE] == 1.0
    assert by_patient(manifest, "diabetes_without_complication")[ANN] == 0.0  # of an earlier admission
    assert by_patient(manifest, "icd") == {ANN: "0389 25000", BEN: None, EVE: "10-I509"}
    assert "1 without diagnoses: 3 stays of 3 patients" in manifest.notes[0].message


# ---- cohorts ---------------------------------------------------------------------------------------------------------


def test_single_leaves_out_several_stays_and_moves_between_units(tmp_path):
    tables = mimic_files.tables()
    again = next(row for row in tables["icu/icustays"] if row["subject_id"] == ANN)
    tables["icu/icustays"].append(again | {"stay_id": 39_999_999})
    for row in tables["icu/icustays"]:
        row |= {"first_careunit": "MICU", "last_careunit": "SICU" if row["subject_id"] == EVE else "MICU"}
    root = mimic_files.write(tmp_path, tables)
    manifest = mimic_iv.load(root, cohort="single")
    assert set(by_patient(manifest, "died_in_hospital")) == {BEN}
    assert "leaves out 3 stays" in manifest.notes[0].message
    assert set(by_patient(mimic_iv.load(root), "died_in_hospital")) == {ANN, BEN, EVE}


def test_admissions_begin_with_the_admission(folder):
    """Two hours before the stay: a lab of then counts, one of the last two hours of the stay's window does not."""
    manifest = mimic_iv.load(folder, cohort="admissions")
    sodium = by_patient(manifest, "labs")[ANN]
    assert by_patient(manifest, "stay_id")[ANN] == str(ADMISSION[ANN])
    assert "sodium 140 mEq/L" in sodium  # 150 is of the last minute of the stay's window
    assert "heart rate 90 bpm; temperature 38 C" in sodium  # charted in the unit
    numbers = mimic_iv.load(folder, cohort="admissions", labs="numeric")
    assert by_patient(numbers, "sodium_min")[ANN] == 100
    assert by_patient(manifest, "died_in_hospital") == {ANN: "0", BEN: "1", EVE: "0", FAY: "0"}
    assert "8 admissions, 2 shorter than 48 hours" in manifest.notes[0].message


# ---- the demo --------------------------------------------------------------------------------------------------------


def test_conditions_of_the_demo_against_plain_python(demo):
    codes = {}
    for row in slow_rows(demo / "hosp/diagnoses_icd.csv.gz"):
        codes.setdefault(row["hadm_id"], []).append((row["icd_version"] == "10", row["icd_code"].strip()))
    admission = {row["stay_id"]: row["hadm_id"] for row in slow_rows(demo / "icu/icustays.csv.gz")}
    table = mimic_iv.load(demo, outcome="conditions").table
    assert table.height == 74
    for row in table.iter_rows(named=True):
        for name, starts in PHENOTYPES.items():
            expected = any(
                code == start[:-1] if start.endswith("$") else code.startswith(start)
                for ten, code in codes[admission[row["stay_id"]]]
                for start in starts[ten].split()
            )
            assert row[name] == expected, name
    assert table["essential_hypertension"].sum() == 28


@pytest.mark.parametrize(("cohort", "rows"), [("stays", 74), ("single", 53), ("admissions", 220)])
def test_cohorts_of_the_demo_against_plain_python(demo, cohort, rows):
    manifest = mimic_iv.load(demo, cohort=cohort)
    assert manifest.table.height == rows
    stays = list(slow_rows(demo / "icu/icustays.csv.gz"))
    admissions = {row["hadm_id"]: row for row in slow_rows(demo / "hosp/admissions.csv.gz")}
    times = ("admittime", "dischtime") if cohort == "admissions" else ("intime", "outtime")
    if cohort == "admissions":
        stays = [row | {"stay_id": row["hadm_id"]} for row in admissions.values()]
    if cohort == "single":
        number = collections.Counter(row["hadm_id"] for row in stays)
        stays = [r for r in stays if number[r["hadm_id"]] == 1 and r["first_careunit"] == r["last_careunit"]]
    expected = {}
    for row in stays:
        start, stop = (dt.datetime.fromisoformat(row[key]) for key in times)
        if stop - start >= dt.timedelta(hours=48):
            expected[row["stay_id"]] = admissions[row["hadm_id"]]["hospital_expire_flag"]
    assert dict(manifest.table.select("stay_id", "died_in_hospital").iter_rows()) == expected


@every
def test_every_outcome_of_the_demo_has_a_label_for_each_stay(demo, outcome):
    manifest = mimic_iv.load(demo, outcome=outcome)
    assert manifest.table.select(manifest.schema.label_columns).null_count().row(0) == (0,) * len(
        manifest.schema.label_columns
    )
    assert not [each for each in check.find_problems(manifest) if each.fatal]


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outcome": "condition"}, r"data.outcome is 'condition' \(did you mean 'conditions'\?\)"),
        ({"cohort": "stay"}, r"data.cohort is 'stay' \(did you mean 'stays'\?\); known: stays, single, admissions"),
        ({"outcome": "conditions", "codes": "paper"}, "data.codes=paper holds the answer"),
        ({"outcome": "long_stay", "label": "one_year"}, "data.label=one_year is of data.outcome=died"),
        ({"outcome": "long_stay", "hours": -1}, "data.hours of the outcome long_stay must be at least 1"),
        ({"outcome": "long_stay", "hours": 400}, r"no stay is left for the outcome long_stay: .* 0 of them last 400"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        mimic_iv.load(folder, **options)


def test_keys_reach_the_source_and_the_twin_refuses_what_it_lacks(folder):
    config = base("mimic_iv")
    config.data.update(outcome="length_classes", cohort="single")
    with pytest.raises(UserError, match=r"data.outcome=length_classes is not of the twin: name the folder"):
        sources.load(config.data, seed=0)
    config.data.root = str(folder)
    manifest = sources.load(config.data, seed=0)
    assert manifest.schema.label == "length"
    assert "data.cohort=single" in manifest.notes[0].message
    assert str(STAY[CAI]) not in manifest.table["stay_id"].to_list()
