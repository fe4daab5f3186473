"""eICU-CRD 2.0 from the folder that PhysioNet gives out: unit stays of 208 hospitals, six modalities.

One row a stay in a unit. The input of a stay is what was entered by the end of a window that begins with the stay;
times are minutes since then, so nothing is joined by date. Left out because they tell what comes after: predictions and
results of APACHE, weights and places of discharge, and the flags that say of a diagnosis or treatment that it was
active at discharge, or of an order that it was cancelled. docs/eicu.md describes cohort, outcomes and leakage.

Labs and vital signs have the names, units and plausible ranges of MIMIC-IV (`mimic_iv_labs.ITEMS`).
"""

import collections
import pathlib
from collections.abc import Mapping, Sequence

import polars as pl

from remind_jax.data.findings import Finding
from remind_jax.data.manifest import Manifest
from remind_jax.data.schema import Attribute, Modality, Schema
from remind_jax.data.sources import mimic_iv_labs as items
from remind_jax.data.sources import mimic_iv_tables as tables
from remind_jax.data.sources import phenotypes
from remind_jax.data.sources.mimic_iv_cohort import COUNTS, OUTCOMES, Outcome, refuse_double
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime.files import expanded

WHERE = (
    "data.root is empty: get eICU-CRD 2.0 from PhysioNet (eicu-crd, by agreement; eicu-crd-demo is open to anybody), "
    "and pass the folder with --config.data.root=DIR"
)
FORMS = ("numeric", "last", "events")
MOST_HOSPITALS = 19
"""How many hospitals, the largest, figures are given for by themselves."""
_DIED = pl.col("hospitaldischargestatus").replace_strict({"Alive": "0", "Expired": "1"}, default=None)
ASKED = {
    "died": Outcome(
        {"label": "died_in_hospital", "classes": ("0", "1")}, (_DIED.cast(pl.String).alias("died_in_hospital"),)
    ),
    **{name: outcome for name, outcome in OUTCOMES.items() if name != "time_to_death"},
}
"""What can be asked; beside death as for MIMIC-IV, of the stay in the unit."""

_NUMBERS = ("age", "admissionheight", "admissionweight", "hours_in_hospital", "unitvisitnumber")
_WORDS = ("gender", "unittype", "unitstaytype", "unitadmitsource", "hospitaladmitsource")
_ATTRIBUTES = (
    *(Attribute(name, name) for name in ("hospital", "region", "teaching", "ethnicity")),
    Attribute("sex", "gender"),
    Attribute("age", "age", (40.0, 65.0, 80.0)),
)
_PATIENT = {
    **dict.fromkeys(("patientunitstayid", "hospitalid"), "id"),
    **dict.fromkeys(("uniquepid", "age", "ethnicity", "hospitaldischargestatus", *_WORDS), "text"),
    **dict.fromkeys(("unitdischargeoffset", "hospitaladmitoffset"), "number"),
    **dict.fromkeys(("admissionheight", "admissionweight", "unitvisitnumber"), "number"),
}
_LABS = {
    **{name: name for name in ("sodium", "potassium", "chloride", "bicarbonate", "anion gap", "creatinine", "glucose")},
    **{name: name for name in ("magnesium", "calcium", "phosphate", "lactate", "pH", "albumin", "PTT")},
    **{"BUN": "urea nitrogen", "bedside glucose": "fingerstick glucose", "FiO2": "inspired oxygen"},
    **{"total bilirubin": "bilirubin", "ALT (SGPT)": "ALT", "AST (SGOT)": "AST", "WBC x 1000": "white cells"},
    **{"Hgb": "hemoglobin", "Hct": "hematocrit", "platelets x 1000": "platelets", "PT - INR": "INR"},
}
_VITALS = {
    "vitalPeriodic": {
        **{"heartrate": "heart rate", "respiration": "respiratory rate", "sao2": "oxygen saturation"},
        **{"systemicsystolic": "systolic pressure", "systemicdiastolic": "diastolic pressure"},
        **{"systemicmean": "mean pressure", "temperature": "temperature"},
    },
    "vitalAperiodic": {
        **{"noninvasivesystolic": "systolic pressure", "noninvasivediastolic": "diastolic pressure"},
        **{"noninvasivemean": "mean pressure"},
    },
}
_PLACE = {item.name: place for place, item in enumerate(items.ITEMS)}


def _word(column: str) -> pl.Expr:
    """A cell as one code: without blanks, which part codes."""
    return pl.col(column).str.strip_chars().str.replace_all(r"\s+", "_")


_ORDERED = pl.when(pl.col("drughiclseqno").is_null()).then(_word("drugname").str.to_lowercase())
_ORDERED = _ORDERED.otherwise(pl.lit("hicl") + pl.col("drughiclseqno").cast(pl.Float64).cast(pl.Int64).cast(pl.String))
_INFUSED = pl.lit("infusion:") + _word("drugname").str.to_lowercase().str.replace(r"_*\(.*$", "")
# Modality -> table -> the columns of minutes by which a row is known, the column of its code, the code.
_CODES: Mapping[str, Mapping[str, tuple[tuple[str, ...], tuple[str, ...], pl.Expr]]] = {
    "diagnoses": {
        "diagnosis": (("diagnosisoffset",), ("diagnosisstring",), _word("diagnosisstring")),
        "admissionDx": (("admitdxenteredoffset",), ("admitdxpath",), _word("admitdxpath")),
    },
    "treatments": {"treatment": (("treatmentoffset",), ("treatmentstring",), _word("treatmentstring"))},
    "medications": {
        "medication": (("drugorderoffset", "drugstartoffset"), ("drugname", "drughiclseqno"), _ORDERED),
        "infusionDrug": (("infusionoffset",), ("drugname",), _INFUSED),
    },
}
_ID = {"patientunitstayid": "id"}
_LAB_KINDS = {"labname": "text", **dict.fromkeys(("labresult", "labresultoffset", "labresultrevisedoffset"), "number")}
_TABLES: dict[str, dict[str, str]] = {
    "patient": _PATIENT,
    "hospital": {"hospitalid": "id", "region": "text", "teachingstatus": "text"},
    "lab": _ID | _LAB_KINDS,
    **{
        name: _ID | {"observationoffset": "number", **dict.fromkeys(columns, "number")}
        for name, columns in _VITALS.items()
    },
    **{
        name: _ID | dict.fromkeys(offsets, "number") | dict.fromkeys(columns, "text")
        for entry in _CODES.values()
        for name, (offsets, columns, _) in entry.items()
    },
}
_TABLES["diagnosis"]["icd9code"] = "text"


def load(
    root: str | pathlib.Path, *, outcome: str = "died", hours: int = 48, labs: str = "numeric", max_events: int = 512
) -> Manifest:
    """Reads unit stays that last longer than the window of `hours`, each with up to six modalities.

    `root` holds the tables (.csv.gz or .csv). Modalities are `admission` (a table), `diagnoses`, `treatments` and
    `medications` (codes entered in the window), `labs` and `vitals`: `numeric` gives mean, minimum, maximum and last
    value of each item, `last` that alone, `events` each value with its time, at most `max_events` of a stay. Vital
    signs count as means of an hour. Without `diagnoses` where the outcome is made of them.

    Returns a manifest without a split column: `stay`, `patient`, the label, sorted by stay; attributes are hospital,
    region, teaching status, sex, ethnicity and age. Its notes count what was left out (I001).

    Raises UserError: an option is unknown, a table is missing or damaged, or no stay is left.
    """
    for key, value, known in (("outcome", outcome, tuple(ASKED)), ("labs", labs, FORMS)):
        if value not in known:
            raise UserError(f"data.{key} is {value!r}{did_you_mean(value, known)}; known: {', '.join(known)}")
    if not str(root):
        raise UserError(WHERE)
    root = expanded(root)
    if not root.is_dir():
        raise UserError(f"data folder {str(root)!r} does not exist or is not a folder")
    found = {name: tables.find(root, name, kinds, "eICU-CRD") for name, kinds in _TABLES.items()}
    stays, notes = _cohort(found, outcome, hours)
    modalities, columns = [Modality("admission", "tabular", _NUMBERS, _WORDS)], []
    for name, parts in (("labs", (_labs,)), ("vitals", (_periodic, _aperiodic))):
        rows, told = _measured(name, [part(found, stays, hours * 60) for part in parts])
        modality, cells = _form(name, rows, stays, labs, max_events)
        modalities, columns, notes = [*modalities, modality], [*columns, *cells], [*notes, told]
    for name in _CODES:
        if not (name == "diagnoses" and outcome == "conditions"):
            modalities.append(Modality(name, "codes", (name,)))
            columns.append(_codes(found, stays, name, hours * 60))
    fields = {"classes": (), **ASKED[outcome].fields, "attributes": _ATTRIBUTES}
    schema = Schema("eicu", "stay", "patient", modalities=tuple(modalities), **fields)
    table = stays.drop("stay_id", "intime", "outtime", "end").with_columns(columns)
    title = f"eICU-CRD{'' if outcome == 'died' else f', {outcome}'.replace('_', ' ')}"
    return Manifest(schema=schema, table=table, title=title, notes=tuple(notes))


# ---- cohort and labels ----------------------------------------------------------------------------------------------


def _cohort(found: Mapping[str, tables.Table], outcome: str, hours: int) -> tuple[pl.DataFrame, list[Finding]]:
    """The stays that last longer than the window and have a label, sorted: ids, times, label, attributes, numbers."""
    patients, hospitals = found["patient"].read(), found["hospital"].read()
    refuse_double(patients, "patientunitstayid", "patient")
    refuse_double(hospitals, "hospitalid", "hospital")
    if lost := patients["uniquepid"].null_count():
        raise UserError(
            f"patient: column 'uniquepid' has {lost} cells that are empty; without it no split is by patient"
        )
    stays = patients.join(hospitals, on="hospitalid", how="left").with_columns(
        pl.col("patientunitstayid").alias("stay_id"),
        pl.col("patientunitstayid").cast(pl.String).alias("stay"),
        pl.col("uniquepid").alias("patient"),
        pl.col("teachingstatus").alias("teaching"),
        pl.col("age").str.replace(r"^> *89$", "90").cast(pl.Float64, strict=False),
        (-pl.col("hospitaladmitoffset") / 60).alias("hours_in_hospital"),
        *(_at(at).alias(name) for name, at in (("intime", pl.lit(0.0)), ("end", pl.lit(60.0 * hours)))),
        _at(pl.col("unitdischargeoffset")).alias("outtime"),
    )
    long = stays.filter((pl.col("outtime") > pl.col("end")).fill_null(False))
    fields = ASKED[outcome].fields
    names = [fields["label"], *fields.get("more_labels", ())]
    known = _labelled(found, long, outcome).drop_nulls(names).sort("stay_id")
    if known.is_empty():
        raise UserError(
            f"no stay is left for the outcome {outcome}: of {stays.height} stays {long.height} last longer than "
            f"{hours} hours, 0 of them have the label"
        )
    text = (
        f"{stays.height} stays, {stays.height - long.height} not longer than {hours} hours, "
        f"{long.height - known.height} without a label: {known.height} stays of {known['patient'].n_unique()} patients "
        f"in {known['hospitalid'].n_unique()} hospitals"
    )
    known = known.with_columns(_largest(known["hospitalid"]))
    columns = ("stay_id", "intime", "outtime", "end", "stay", "patient", *names, *(a.column for a in _ATTRIBUTES[:4]))
    return known.select(*columns, *_NUMBERS, *_WORDS), [Finding(COUNTS, text, False)]


def _at(minutes: pl.Expr) -> pl.Expr:
    """A time out of minutes from the beginning of the stay, which is that of the epoch."""
    return pl.from_epoch((minutes * 60_000_000).cast(pl.Int64), time_unit="us")


def _labelled(found: Mapping[str, tables.Table], stays: pl.DataFrame, outcome: str) -> pl.DataFrame:
    if outcome != "conditions":
        return stays.with_columns(ASKED[outcome].columns)
    rows = found["diagnosis"].scan().rename({"patientunitstayid": "stay_id"}).select("stay_id", "icd9code")
    rows = rows.join(stays.lazy().select("stay_id"), on="stay_id", how="semi").drop_nulls()
    cells = found["diagnosis"].collect(rows)  # a cell holds codes of both versions: 250.02, E11.65
    codes = cells.with_columns(pl.col("icd9code").str.split(",")).explode("icd9code")
    code = pl.col("icd9code").str.strip_chars()
    nine = code.str.contains(r"^(?:[0-9V]|E\d{3}(?:\.|$))")
    codes = codes.select(
        "stay_id",
        pl.when(nine).then(9).otherwise(10).alias("icd_version"),
        code.str.replace(".", "", literal=True).alias("icd_code"),
    )
    return stays.join(phenotypes.told(codes, "stay_id"), on="stay_id", how="left")


def _largest(hospitals: pl.Series) -> pl.Series:
    """The hospital of each stay, of the largest alone."""
    counts = hospitals.value_counts().sort("count", "hospitalid", descending=[True, False]).head(MOST_HOSPITALS)
    named = hospitals.is_in(counts["hospitalid"].implode())
    return hospitals.cast(pl.String).set(~named, "other hospitals").alias("hospital")


# ---- modalities -----------------------------------------------------------------------------------------------------

_Rows = tuple[pl.DataFrame, dict[str, int]]  # sound values as `mimic_iv_labs.Measurements` has them, and what was not


def _of_stays(table: tables.Table, stays: pl.DataFrame) -> pl.LazyFrame:
    """The rows of a table that are of these stays."""
    rows = table.scan().rename({"patientunitstayid": "stay_id"})
    return rows.join(stays.lazy().select("stay_id"), on="stay_id", how="semi")


def _sound(value: pl.Expr, name: str) -> pl.Expr:
    item = items.ITEMS[_PLACE[name]]
    return value.is_between(item.low, item.high)


def _labs(found: Mapping[str, tables.Table], stays: pl.DataFrame, end: int) -> _Rows:
    table = found["lab"]
    taken, entered, value = (table.typed(f"labresult{part}") for part in ("offset", "revisedoffset", ""))
    percent = pl.when((pl.col("labname") == "FiO2") & (value <= 1)).then(value * 100).otherwise(value)
    rows = _of_stays(table, stays).filter(pl.col("labname").is_in(list(_LABS)))
    rows = rows.select("stay_id", "labname", taken=taken, late=entered > end, value=percent)
    rows = table.collect(rows.filter(pl.col("taken").is_between(0, end)))
    late, blank = rows["late"].fill_null(False), rows["value"].is_null()
    kept = [
        rows.filter(~late, pl.col("labname") == name, _sound(pl.col("value"), item)).select(
            "stay_id",
            pl.lit(_PLACE[item]).cast(pl.UInt8).alias("item"),
            _at(pl.col("taken")).alias("charttime"),
            "value",
        )
        for name, item in _LABS.items()
    ]
    sound = pl.concat(kept)
    dropped = {"entered after the window": int(late.sum()), "without a number": int((blank & ~late).sum())}
    return sound, {**dropped, "implausible": rows.height - sound.height - sum(dropped.values())}


def _periodic(found: Mapping[str, tables.Table], stays: pl.DataFrame, end: int) -> _Rows:
    return _hourly(found["vitalPeriodic"], stays, end, _VITALS["vitalPeriodic"])


def _aperiodic(found: Mapping[str, tables.Table], stays: pl.DataFrame, end: int) -> _Rows:
    return _hourly(found["vitalAperiodic"], stays, end, _VITALS["vitalAperiodic"])


def _hourly(table: tables.Table, stays: pl.DataFrame, end: int, columns: Mapping[str, str]) -> _Rows:
    """Means of each hour, at the time of its last value: rows of five minutes would not fit in memory."""
    rows = _of_stays(table, stays).with_columns(table.typed(name) for name in ("observationoffset", *columns))
    rows = rows.filter(pl.col("observationoffset").is_between(0, end))
    if "temperature" in columns:  # in Fahrenheit by some
        warm = pl.col("temperature")
        rows = rows.with_columns(pl.when(warm > 60).then((warm - 32) / 1.8).otherwise(warm).alias("temperature"))
    made = []
    for name, item in columns.items():
        good = _sound(pl.col(name), item)
        # The sums run in parallel; rounding takes away the last bits, which would differ between runs.
        made.append(pl.when(good).then(pl.col(name)).mean().round(4).alias(name))
        made.append(pl.when(good).then(pl.col("observationoffset")).max().alias(f"{name} at"))
        made.append((~good).sum().alias(f"{name} odd"))
    hours = table.collect(rows.group_by("stay_id", (pl.col("observationoffset") // 60).alias("hour")).agg(made))
    parts = [
        hours.drop_nulls(name).select(
            "stay_id",
            pl.lit(_PLACE[item]).cast(pl.UInt8).alias("item"),
            _at(pl.col(f"{name} at")).alias("charttime"),
            pl.col(name).alias("value"),
        )
        for name, item in columns.items()
    ]
    return pl.concat(parts), {"implausible": sum(int(hours[f"{name} odd"].sum()) for name in columns)}


def _measured(name: str, parts: Sequence[_Rows]) -> tuple[pl.DataFrame, Finding]:
    """All values in the order of `Measurements.events`, and what is to be said of them."""
    rows = pl.concat(rows for rows, _ in parts).sort("stay_id", "item", "charttime", "value")
    counts = collections.Counter()
    for _, dropped in parts:
        counts.update(dropped)
    left = ", ".join(f"{n} {reason}" for reason, n in counts.items() if n) or "none"
    what = "means of an hour" if name == "vitals" else "values"
    return rows, Finding(COUNTS, f"{name}: {rows.height} {what} are used; left out: {left}", False)


def _form(name: str, rows: pl.DataFrame, stays: pl.DataFrame, form: str, most: int) -> tuple[Modality, list[pl.Series]]:
    """The modality and its cells, of the items that the tables can have."""
    if form == "events":
        options = items.ROLES | {"table": f"{name}.csv", "key": "stay", "most": most}
        return Modality(name, "events", (name,), options=options), [items.as_events(rows, stays, most).alias(name)]
    had = _LABS.values() if name == "labs" else {item for columns in _VITALS.values() for item in columns.values()}
    starts = tuple(f"{item.replace(' ', '_')}_" for item in had)
    numbers = items.as_numbers(items.aggregate(rows), stays["stay_id"].to_list())
    cells = [
        cell for cell in numbers if cell.name.startswith(starts) and (form == "numeric" or cell.name[-4:] == "last")
    ]
    return Modality(name, "tabular", tuple(cell.name for cell in cells)), cells


def _codes(found: Mapping[str, tables.Table], stays: pl.DataFrame, name: str, end: int) -> pl.Series:
    """What was entered by the end of the window, newest first, each code once."""
    parts = []
    for source, (offsets, _, code) in _CODES[name].items():
        table = found[source]
        times = [table.typed(offset) for offset in offsets]
        rows = _of_stays(table, stays).filter(pl.all_horizontal(time <= end for time in times))
        rows = rows.select("stay_id", at=pl.max_horizontal(times), code=code)
        parts.append(table.collect(rows.filter((pl.col("code").str.len_chars() > 0).fill_null(False))))
    rows = pl.concat(parts).sort("stay_id", "at", "code", descending=[False, True, False])
    listed = rows.group_by("stay_id", maintain_order=True).agg(
        pl.col("code").unique(maintain_order=True).str.join(" ").alias(name)
    )
    return stays.select("stay_id").join(listed, on="stay_id", how="left", maintain_order="left")[name]
