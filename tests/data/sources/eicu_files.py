"""A folder in the layout of eICU-CRD 2.0 with invented stays; columns and their order are those of the release.

`tables` has five stays that tests look at by hand, `many` any number of them. Rows of what comes after the window hold
`CANARY`, which must not be seen in any input.
"""

import gzip
import pathlib
import random
from collections.abc import Mapping

from tests.data.sources.mimic_files import Rows, as_csv

COLUMNS = {
    "patient": "patientunitstayid patienthealthsystemstayid gender age ethnicity hospitalid wardid apacheadmissiondx "
    "admissionheight hospitaladmittime24 hospitaladmitoffset hospitaladmitsource hospitaldischargeyear "
    "hospitaldischargetime24 hospitaldischargeoffset hospitaldischargelocation hospitaldischargestatus unittype "
    "unitadmittime24 unitadmitsource unitvisitnumber unitstaytype admissionweight dischargeweight unitdischargetime24 "
    "unitdischargeoffset unitdischargelocation unitdischargestatus uniquepid",
    "hospital": "hospitalid numbedscategory teachingstatus region",
    "lab": "labid patientunitstayid labresultoffset labtypeid labname labresult labresulttext labmeasurenamesystem "
    "labmeasurenameinterface labresultrevisedoffset",
    "vitalPeriodic": "vitalperiodicid patientunitstayid observationoffset temperature sao2 heartrate respiration cvp "
    "etco2 systemicsystolic systemicdiastolic systemicmean pasystolic padiastolic pamean st1 st2 st3 icp",
    "vitalAperiodic": "vitalaperiodicid patientunitstayid observationoffset noninvasivesystolic noninvasivediastolic "
    "noninvasivemean paop cardiacoutput cardiacinput svr svri pvr pvri",
    "diagnosis": "diagnosisid patientunitstayid activeupondischarge diagnosisoffset diagnosisstring icd9code "
    "diagnosispriority",
    "admissionDx": "admissiondxid patientunitstayid admitdxenteredoffset admitdxpath admitdxname admitdxtext",
    "treatment": "treatmentid patientunitstayid treatmentoffset treatmentstring activeupondischarge",
    "medication": "medicationid patientunitstayid drugorderoffset drugstartoffset drugivadmixture drugordercancelled "
    "drugname drughiclseqno dosage routeadmin frequency loadingdose prn drugstopoffset gtc",
    "infusionDrug": "infusiondrugid patientunitstayid infusionoffset drugname drugrate infusionrate drugamount "
    "volumeoffluid patientweight",
}
CANARY = 77.25  # plausible for every item that has it
WINDOW = 48 * 60
AMY, AMY_AGAIN, BOB, CYN, DAN = 141_001, 141_002, 141_003, 141_004, 141_005
_UNTIL = {AMY: 72 * 60, AMY_AGAIN: 8 * 1440 + 60, BOB: 50 * 60, CYN: WINDOW, DAN: 15 * 1440}


def stay(number: int, person: str, hospital: int, until: int, status: str | None, **more: object) -> dict[str, object]:
    """A row of patient."""
    place = {"unittype": "MICU", "unitstaytype": "admit", "unitadmitsource": "Floor", "unitvisitnumber": 1}
    known = {"gender": "Female", "age": "67", "ethnicity": "Hispanic", "admissionheight": 160.5, "admissionweight": 70}
    after = {"dischargeweight": CANARY, "unitdischargelocation": "Home", "unitdischargestatus": status}
    after |= {"hospitaldischargestatus": status, "hospitaldischargeoffset": until + 60, "unitdischargeoffset": until}
    ids = {"patientunitstayid": number, "uniquepid": person, "hospitalid": hospital, "hospitaladmitoffset": -90}
    return {**place, **known, **after, **ids, **more}


def row(number: int, at: int, column: str, **more: object) -> dict[str, object]:
    """A row of another table, entered `at` so many minutes."""
    return {"patientunitstayid": number, column: at, **more}


def lab(number: int, at: int, name: str, value: object, entered: int | None = None) -> dict[str, object]:
    entered = at if entered is None else entered
    return row(number, at, "labresultoffset", labname=name, labresult=value, labresultrevisedoffset=entered)


def tables() -> dict[str, Rows]:
    """Five stays of four people in two hospitals."""
    late = WINDOW + 1
    offsets = ("diagnosisoffset", "admitdxenteredoffset", "treatmentoffset", "infusionoffset", "observationoffset")
    diagnosis, admission, treatment, infusion, seen = offsets
    order = {"drugorderoffset": 5, "drugname": None, "drughiclseqno": None}
    return {
        "patient": [
            stay(AMY, "002-1", 7, _UNTIL[AMY], "Alive"),
            stay(AMY_AGAIN, "002-1", 7, _UNTIL[AMY_AGAIN], "Expired", unitvisitnumber=2),
            stay(BOB, "002-2", 9, _UNTIL[BOB], "Alive", age="> 89", gender="Male", hospitaladmitoffset=30),
            stay(CYN, "002-3", 9, _UNTIL[CYN], "Expired"),  # dies as the window ends
            stay(DAN, "002-4", 9, _UNTIL[DAN], None),
        ],
        "hospital": [
            {"hospitalid": 7, "numbedscategory": "<100", "teachingstatus": "f", "region": "Midwest"},
            {"hospitalid": 9, "numbedscategory": ">= 500", "teachingstatus": "t", "region": "South"},
        ],
        "lab": [
            lab(AMY, 10, "sodium", 130),
            lab(AMY, WINDOW, "sodium", 140),
            lab(AMY, late, "sodium", CANARY * 2),
            lab(AMY, 20, "BUN", CANARY, entered=late),
            lab(AMY, 30, "Hgb", None),
            lab(AMY, 30, "potassium", 999),
            lab(AMY, 30, "FiO2", 0.5),
            lab(AMY, 30, "Respiratory Rate", 12),  # not an item
            lab(AMY, -5, "sodium", 100),
            lab(BOB, 40, "WBC x 1000", 9.5),
        ],
        "vitalPeriodic": [
            row(AMY, 5, seen, heartrate=80, temperature=98.6),
            row(AMY, 55, seen, heartrate=90, sao2=0),
            row(AMY, 65, seen, heartrate=100),
            row(AMY, late, seen, heartrate=CANARY, sao2=CANARY),
        ],
        "vitalAperiodic": [
            row(AMY, 5, seen, noninvasivesystolic=120, noninvasivemean=90),
            row(AMY_AGAIN, late, seen, noninvasivesystolic=CANARY),
        ],
        "diagnosis": [
            row(
                AMY, 30, diagnosis, diagnosisstring="cardiovascular|shock / hypotension|sepsis", icd9code="038.9, A41.9"
            ),
            row(AMY, 90, diagnosis, diagnosisstring="renal|acute renal failure", icd9code=None),
            row(AMY, late, diagnosis, diagnosisstring=f"late|{CANARY}", icd9code="584.9, N17.9"),
            row(BOB, late, diagnosis, diagnosisstring=f"late|{CANARY}", icd9code="E849.0, E11.65"),
        ],
        "admissionDx": [
            row(AMY, 15, admission, admitdxpath="admission diagnosis|Elective|Yes"),
            row(AMY, late, admission, admitdxpath=f"late {CANARY}"),
        ],
        "treatment": [
            row(AMY, 25, treatment, treatmentstring="pulmonary|mechanical ventilation", activeupondischarge="True"),
            row(AMY, late, treatment, treatmentstring=f"late|{CANARY}"),
        ],
        "medication": [
            row(AMY, 50, "drugstartoffset", **order | {"drugname": "ASPIRIN 81 MG", "drugordercancelled": "Yes"}),
            row(AMY, 60, "drugstartoffset", **order | {"drughiclseqno": "1062.0"}),
            row(AMY, 60, "drugstartoffset", **order | {"drugorderoffset": late, "drugname": f"late {CANARY}"}),
            row(AMY, late, "drugstartoffset", **order | {"drugname": f"late {CANARY}"}),
        ],
        "infusionDrug": [
            row(AMY, 70, infusion, drugname="Norepinephrine (mcg/min)", drugrate="5"),
            row(AMY, late, infusion, drugname=f"late {CANARY}"),
        ],
    }


def many(number: int, seed: int = 0) -> dict[str, Rows]:
    """So many stays of one a person in five hospitals, of which two have no labs; every fourth dies."""
    chance = random.Random(seed)
    content: dict[str, Rows] = {name: [] for name in COLUMNS}
    content["hospital"] = [{"hospitalid": k, "teachingstatus": "f", "region": "West"} for k in range(5)]
    for k in range(number):
        n, dead = 200_000 + k, k % 4 == 0
        content["patient"].append(stay(n, f"003-{k}", k % 5, WINDOW + 600, "Expired" if dead else "Alive"))
        if k % 5 < 3:
            content["lab"].append(lab(n, 60, "lactate", round(chance.uniform(1, 3) + 3 * dead, 1)))
        minutes = range(0, WINDOW + 300, 30)
        content["vitalPeriodic"] += [
            row(n, at, "observationoffset", heartrate=chance.randint(60, 120)) for at in minutes
        ]
        content["vitalAperiodic"].append(row(n, 5, "observationoffset", noninvasivemean=80))
        name = chance.choice(["renal|failure", "cardiac|failure"])
        content["diagnosis"].append(row(n, 60, "diagnosisoffset", diagnosisstring=name, icd9code="584.9, N17.9"))
        content["treatment"].append(row(n, 60, "treatmentoffset", treatmentstring=chance.choice(["a|b", "c|d"])))
    return content


def write(root: pathlib.Path, content: Mapping[str, Rows], packed: bool = True) -> pathlib.Path:
    """Writes tables below `root`, .csv.gz or .csv, and returns it."""
    root.mkdir(parents=True, exist_ok=True)
    for name, rows in content.items():
        data = as_csv(COLUMNS[name].split(), rows)
        path = root / f"{name}.csv{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return root
