"""A folder in the layout of MIMIC-IV and MIMIC-IV-Note with six invented patients; every text was written for it.

Columns and their order are those of version 2.2. `write` takes changes of tables, so that a test can damage one.
"""

import csv
import datetime as dt
import gzip
import io
import pathlib
from collections.abc import Iterable, Mapping

COLUMNS = {
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
    "admission_location discharge_location insurance language marital_status race edregtime edouttime "
    "hospital_expire_flag",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime value "
    "valuenum valueuom ref_range_lower ref_range_upper flag priority comments",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
    "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom "
    "warning",
    "note/discharge": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
    "note/radiology": "note_id subject_id hadm_id note_type note_seq charttime storetime text",
}

ANN, BEN, CAI, DEE, EVE, FAY = range(10_000_001, 10_000_007)
# Stays by patient; the first three digits of an id say what it is, as in the real files.
STAY = {patient: patient + 20_000_000 for patient in (ANN, BEN, CAI, DEE, EVE, FAY)}
ADMISSION = {patient: patient + 10_000_000 for patient in STAY}
EARLIER = {ANN: 20_000_101, EVE: 20_000_105}
# Start of the stay and its hours; patients come years apart.
START = {
    ANN: dt.datetime(2150, 3, 1, 10),
    BEN: dt.datetime(2151, 5, 1, 0),
    CAI: dt.datetime(2152, 1, 1, 0),
    DEE: dt.datetime(2153, 1, 1, 9),
    EVE: dt.datetime(2154, 2, 1, 10),
    FAY: dt.datetime(2155, 7, 7, 7),
}
HOURS = {ANN: 72, BEN: 73, CAI: 30, DEE: 5, EVE: 50, FAY: 49}
DIES_AFTER = {BEN: 73.0, CAI: 40.0}  # hours, in hospital
DIES_ON = {BEN: "2151-05-04", CAI: "2152-01-02", EVE: "2154-05-12", FAY: "2157-01-01"}  # Eve at home in May

Rows = list[dict[str, object]]


def after(patient: int, hours: float) -> str:
    """A time as the files write it, counted from the start of the patient's stay."""
    return str(START[patient] + dt.timedelta(hours=hours))


def tables() -> dict[str, Rows]:
    """All tables, one dictionary a row, with the columns that matter."""
    patients = [{"subject_id": p, "gender": "F", "anchor_age": 60, "dod": DIES_ON.get(p)} for p in STAY]
    admissions = [
        {
            "subject_id": p,
            "hadm_id": ADMISSION[p],
            "admittime": after(p, -2),
            "dischtime": after(p, DIES_AFTER.get(p, HOURS[p] + 1)),
            "deathtime": after(p, DIES_AFTER[p]) if p in DIES_AFTER else None,
            "hospital_expire_flag": int(p in DIES_AFTER),
        }
        for p in STAY
    ]
    for p in (ANN, EVE):
        times = {"admittime": after(p, -900), "dischtime": after(p, -800)}
        admissions.append({"subject_id": p, "hadm_id": EARLIER[p], **times, "hospital_expire_flag": 0})
    stays = [
        {
            "subject_id": p,
            "hadm_id": ADMISSION[p],
            "stay_id": STAY[p],
            "intime": after(p, 0),
            "outtime": after(p, HOURS[p]),
            "los": HOURS[p] / 24,
        }
        for p in STAY
    ]
    return {
        "hosp/patients": patients,
        "hosp/admissions": admissions,
        "hosp/diagnoses_icd": _diagnoses(),
        "hosp/labevents": _labs(),
        "icu/icustays": stays,
        "icu/chartevents": _charts(),
    }


def _diagnoses() -> Rows:
    codes = [
        (ANN, EARLIER[ANN], 2, "25000", 9),
        (ANN, EARLIER[ANN], 1, "0389", 9),
        (ANN, EARLIER[ANN], 3, "25000", 9),
        (ANN, ADMISSION[ANN], 1, "99592", 9),
        (BEN, ADMISSION[BEN], 1, "78552", 9),
        (EVE, EARLIER[EVE], 1, "I509", 10),
        (EVE, ADMISSION[EVE], 1, "J189", 10),
    ]
    names = COLUMNS["hosp/diagnoses_icd"].split()
    return [dict(zip(names, code, strict=True)) for code in codes]


def lab(patient: int, hours: float, item: int, value: object, unit: str | None, hadm: bool = True) -> dict[str, object]:
    """A row of labevents; `value` is a number, or a text for a row without one."""
    number = value if isinstance(value, (int, float)) else None
    return {
        "subject_id": patient,
        "hadm_id": ADMISSION[patient] if hadm else None,
        "itemid": item,
        "charttime": after(patient, hours),
        "storetime": after(patient, hours + 1),
        "value": value,
        "valuenum": number,
        "valueuom": unit,
        "comments": 'seen by "lab", repeated',
    }


def _labs() -> Rows:
    return [
        lab(ANN, 48, 50983, 150, "mEq/L"),
        lab(ANN, -1, 50983, 100, "mEq/L"),
        lab(ANN, 1, 50983, 130, "mEq/L", hadm=False),
        lab(ANN, 2, 50983, 140, "mmol/L"),
        lab(ANN, 48.1, 50983, 170, "mEq/L"),
        lab(ANN, 3, 50971, "___", "mEq/L"),
        lab(ANN, 3, 50931, 999_999, "mg/dL"),
        lab(ANN, 3, 50912, 88.4, "umol/L"),
        lab(ANN, 3, 50934, 12, None),  # hemolysis index: not an item
        lab(BEN, 21, 50820, 7.254, "units"),
        lab(CAI, 4, 50813, 9.5, "mmol/L"),
        lab(DEE, 1, 50983, 139, "mEq/L"),
        lab(EVE, 20, 51265, 210, "K/uL"),
    ]


def chart(patient: int, hours: float, item: int, value: float, unit: str | None) -> dict[str, object]:
    """A row of chartevents."""
    row = lab(patient, hours, item, value, unit)
    del row["comments"]
    return row | {"stay_id": STAY[patient]}


def _charts() -> Rows:
    return [
        chart(ANN, 5, 223761, 98.6, "°F"),
        chart(ANN, 6, 223762, 38, "°C"),
        chart(ANN, 7, 223835, 0.5, None),
        chart(ANN, 8, 220045, 0, "bpm"),
        chart(ANN, 9, 220045, 90, "bpm"),
        chart(ANN, 9, 220045, 80, "bpm"),
        chart(CAI, 1, 220045, 120, "bpm"),
    ]


NOTES = {
    "earlier summary": 'Discharged in good spirits,\nwalks the garden; "never better", she says.',
    "own summary": "The outcome stands here: went home after a long week.",
    "own summary at midnight": "Outcome: left at noon with a new cane.",
    "report": "CHEST FILM:\n  small shadow   at the base, ___ compared with last week.",
    "report signed late": "Addendum: in hindsight the shadow was a sign of what followed.",
    "report of later": "Film of the third day, clear.",
    "report of long ago": "Knee film, no fracture, seen as an outpatient.",
    "report of nobody": "A film of someone who is in no table.",
    "blank": "  \n ",
}


def notes() -> dict[str, Rows]:
    """Both tables of notes."""

    def note(key: str, patient: int, hadm: int | None, seq: int, chart: str, store: str | None) -> dict[str, object]:
        kind = "DS" if "summary" in key else "RR"
        row = {"note_id": f"{patient}-{kind}-{seq}", "subject_id": patient, "hadm_id": hadm, "note_type": kind}
        return row | {"note_seq": seq, "charttime": chart, "storetime": store, "text": NOTES[key]}

    own = ADMISSION
    discharge = [
        note("earlier summary", ANN, EARLIER[ANN], 1, after(ANN, -810), after(ANN, -700)),
        note("own summary", ANN, own[ANN], 2, after(ANN, 70), after(ANN, 80)),
        # Left at 13:00 of the third day; the summary bears the midnight before, within the window of 48 hours.
        note("own summary at midnight", EVE, own[EVE], 3, "2154-02-03 00:00:00", "2154-02-03 15:00:00"),
        note("own summary at midnight", FAY, own[FAY], 4, "2155-07-09 00:00:00", None),
    ]
    radiology = [
        note("report", ANN, own[ANN], 1, after(ANN, 20), after(ANN, 22)),
        note("report signed late", ANN, own[ANN], 2, after(ANN, 40), after(ANN, 60)),
        note("report of later", ANN, own[ANN], 3, after(ANN, 60), after(ANN, 61)),
        note("report of long ago", ANN, None, 4, after(ANN, -9000), None),
        note("report", BEN, 29_999_999, 5, after(BEN, -5), after(BEN, -4)),
        note("report of nobody", 19_999_999, None, 6, after(ANN, 1), after(ANN, 2)),
        note("blank", EVE, own[EVE], 7, after(EVE, 1), after(EVE, 2)),
    ]
    return {"note/discharge": discharge, "note/radiology": radiology}


def as_csv(columns: Iterable[str], rows: Rows) -> bytes:
    """A table as the files hold it: quoted where it must be, line feeds, empty cells for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: value for key, value in row.items() if value is not None} for row in rows)
    return text.getvalue().encode()


def write(
    root: pathlib.Path,
    content: Mapping[str, Rows],
    columns: Mapping[str, Iterable[str]] | None = None,
    packed: bool = True,
) -> pathlib.Path:
    """Writes tables below `root` and returns it.

    Args:
      root: the folder.
      content: rows by name of the table.
      columns: replaces the columns of some tables.
      packed: .csv.gz or .csv.
    """
    for name, rows in content.items():
        data = as_csv((columns or {}).get(name) or COLUMNS[name].split(), rows)
        path = root / f"{name}.csv{'.gz' if packed else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return root
