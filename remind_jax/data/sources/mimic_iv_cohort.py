"""Which stays of MIMIC-IV are samples, and what is asked of each: death, conditions, length of stay, time to death.

`COHORTS` says what a row is, `LABELS` what death is, `OUTCOMES` what else can be asked, by the names of the twin.
docs/mimic.md compares them with the cohorts of others.
"""

import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import polars as pl

from remind_jax.data.findings import Finding
from remind_jax.data.sources import mimic_iv_tables as tables
from remind_jax.data.sources import phenotypes
from remind_jax.data.sources.mimic_iv_twin import SHOWN
from remind_jax.errors import UserError, did_you_mean

COUNTS = "I001"
COHORTS = ("stays", "single", "admissions")
"""Every stay in intensive care; those of admissions with one alone, in one unit; whole admissions, from their start."""
TABLES = {
    "hosp/patients": {"subject_id": "id", "dod": "date"},
    "hosp/admissions": {
        "subject_id": "id",
        "hadm_id": "id",
        "admittime": "time",
        "dischtime": "time",
        "deathtime": "time",
        "hospital_expire_flag": "id",
    },
    "hosp/diagnoses_icd": {"hadm_id": "id", "seq_num": "id", "icd_code": "text", "icd_version": "id"},
    "icu/icustays": {
        **{"subject_id": "id", "hadm_id": "id", "stay_id": "id"},
        **{"first_careunit": "text", "last_careunit": "text", "intime": "time", "outtime": "time"},
    },
}


class Label(NamedTuple):
    """What death is.

    Attributes:
      column: of the manifest.
      hours: of the input window, by default.
      most_hours: the longest window that ends before the outcome may be decided; 0 is no limit.
    """

    column: str
    hours: int
    most_hours: int


LABELS = {
    "ihm48": Label("died_in_hospital", 48, 48),
    "died_within_48h": Label("died_within_48h", 24, 47),
    "one_year": Label("died_within_a_year", 24, 0),
}
_HOURS = 48  # of the window of other outcomes
_FOLLOWED = pl.duration(days=365)  # after the last discharge: deaths are known until then
_LENGTHS, _REMAINING = (3, 4, 5, 6, 7, 14), (1, 2, 3, 4, 5, 6, 7, 8, 14)  # days, CareBench and Harutyunyan et al.


class Outcome(NamedTuple):
    """What is asked of a stay.

    Attributes:
      fields: of `Schema`.
      columns: those of the label, of a cohort with `intime`, `outtime`, `end`, `death` and `followed`; without any they
        are made of the diagnoses.
    """

    fields: dict[str, Any]
    columns: tuple[pl.Expr, ...] = ()


def _days(since: str, until: str) -> pl.Expr:
    return (pl.col(until) - pl.col(since)).dt.total_seconds() / 86_400


def _classes(name: str, days: pl.Expr, edges: Sequence[int]) -> Outcome:
    """Ranges of days, each from its edge on up to the next."""
    inner = [f"{low} to {high} days" for low, high in itertools.pairwise(edges)]
    names = (f"below {edges[0]} day{'s' * (edges[0] > 1)}", *inner, f"{edges[-1]} days or more")
    place = pl.sum_horizontal((days >= edge).cast(pl.Int32) for edge in edges)
    ranges = place.replace_strict(list(range(len(names))), names, return_dtype=pl.String).alias(name)
    return Outcome({"task": "ordinal", "label": name, "classes": names}, (ranges,))


_LENGTH = _days("intime", "outtime")
OUTCOMES = {
    "conditions": Outcome(phenotypes.LABEL),
    "length_of_stay": Outcome({"task": "regression", "label": "days", "transform": "log1p"}, (_LENGTH.alias("days"),)),
    "length_classes": _classes("length", _LENGTH, _LENGTHS),
    "remaining_classes": _classes("remaining", _days("end", "outtime"), _REMAINING),
    "long_stay": Outcome(
        {"label": "over_a_week", "classes": ("0", "1")},
        ((_LENGTH > 7).cast(pl.Int8).cast(pl.String).alias("over_a_week"),),
    ),
    "time_to_death": Outcome(
        {"task": "survival", "label": "days", "more_labels": ("dead",), "horizons": (30.0, 365.0)},
        (
            pl.min_horizontal(_days("end", "death"), _days("end", "followed")).alias("days"),
            (pl.col("death") <= pl.col("followed")).fill_null(False).cast(pl.Float64).alias("dead"),
        ),
    ),
}


class Asked(NamedTuple):
    """What rows are, and what is asked of them; the fields are options of `mimic_iv.load`."""

    cohort: str = "stays"
    outcome: str = "died"
    label: str = "ihm48"
    hours: int = 0

    @property
    def fields(self) -> dict[str, Any]:
        """Returns the fields of `Schema` that the outcome sets."""
        if self.outcome != "died":
            return {"classes": (), **OUTCOMES[self.outcome].fields}
        return {"label": LABELS[self.label].column, "classes": ("0", "1"), "names": SHOWN["names"]}

    @property
    def window(self) -> int:
        """Returns the hours of the input window."""
        return self.hours or (LABELS[self.label].hours if self.outcome == "died" else _HOURS)

    def check(self, codes: str) -> None:
        """Refuses an unknown option, a window that is too long, and codes that are the answer (UserError)."""
        for key, known in (("cohort", COHORTS), ("outcome", ("died", *OUTCOMES)), ("label", tuple(LABELS))):
            if (value := getattr(self, key)) not in known:
                raise UserError(f"data.{key} is {value!r}{did_you_mean(value, known)}; known: {', '.join(known)}")
        most = LABELS[self.label].most_hours if self.outcome == "died" else 0
        if self.hours < 0 or (most and self.hours > most):
            limit = f"between 1 and {most}" if most else "at least 1"
            what = f"label {self.label}" if self.outcome == "died" else f"outcome {self.outcome}"
            raise UserError(f"data.hours of the {what} must be {limit}, or 0 for its default; not {self.hours}")
        if self.outcome != "died" and self.label != "ihm48":
            raise UserError(f"data.label={self.label} is of data.outcome=died; leave out one of them")
        if self.outcome == "conditions" and codes == "paper":
            raise UserError("data.codes=paper holds the answer of data.outcome=conditions; set data.codes=earlier")


def read(root: pathlib.Path, name: str) -> pl.DataFrame:
    """Returns one of `TABLES` below `root` in its types."""
    return tables.find(root, name, TABLES[name]).read()


def refuse_double(table: pl.DataFrame, column: str, name: str) -> None:
    """Refuses a column of ids that are empty or used twice (UserError)."""
    for what, rows in (("empty", table[column].is_null()), ("used by another row", table[column].is_duplicated())):
        if rows.any():
            raise UserError(f"{name}: column {column!r} has {int(rows.sum())} cells that are {what}; ids are unique")


def select(root: pathlib.Path, admissions: pl.DataFrame, asked: Asked) -> tuple[pl.DataFrame, list[Finding]]:
    """Returns the stays that last as long as the window, whose patient outlives it, and what was left out.

    The columns are `stay_id, subject_id, hadm_id, intime, end, admittime` and those of the label, sorted by stay; the
    id of an admission is in `stay_id`, too, where rows are admissions. Raises UserError: none is left.
    """
    stays, findings = _ROWS[asked.cohort](root, admissions)
    patients = read(root, "hosp/patients")
    refuse_double(patients, "subject_id", "hosp/patients")
    linked = stays.join(admissions, on=["subject_id", "hadm_id"]).join(patients, on="subject_id")
    followed = (pl.col("dischtime").max().over("subject_id") + _FOLLOWED).alias("followed")
    linked = linked.join(admissions.select("hadm_id", followed), on="hadm_id")
    end = (pl.col("intime") + pl.duration(hours=asked.window)).alias("end")
    linked = linked.with_columns(end, _death().alias("death"))
    long = linked.filter(pl.col("outtime") >= pl.col("end"))
    alive = long.filter((pl.col("death") > pl.col("end")).fill_null(True))
    what = f"label {asked.label}" if asked.outcome == "died" else f"outcome {asked.outcome}"
    if alive.is_empty():
        raise UserError(
            f"no stay is left for the {what}: of {stays.height} stays {linked.height} have admission and patient, "
            f"{long.height} of them last {asked.window} hours or longer, 0 of these patients outlive the window"
        )
    if not alive["hospital_expire_flag"].is_in([0, 1]).fill_null(False).all():
        raise UserError("hosp/admissions: column 'hospital_expire_flag' has cells that are not 0 or 1")
    cohort = _labelled(root, alive, asked).sort("stay_id")
    lost, blank = stays.height - linked.height, alive.height - cohort.height
    kind = "admissions" if asked.cohort == "admissions" else "stays in intensive care"
    text = (
        f"{stays.height} {kind}, {linked.height - long.height} shorter than {asked.window} hours, "
        f"{long.height - alive.height} of patients who die by then"
        f"{f', {lost} without admission or patient in their tables' if lost else ''}"
        f"{f', {blank} without diagnoses' if blank else ''}: {cohort.height} "
        f"{kind.split()[0]} of {cohort['subject_id'].n_unique()} patients{_with_label(cohort, asked)}"
    )
    return cohort, [*findings, Finding(COUNTS, text, False)]


def _stays(root: pathlib.Path, admissions: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    stays = read(root, "icu/icustays")
    refuse_double(stays, "stay_id", "icu/icustays")
    return stays, []


def _single(root: pathlib.Path, admissions: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    stays, _ = _stays(root, admissions)
    alone = (pl.len().over("hadm_id") == 1) & pl.col("first_careunit").eq_missing(pl.col("last_careunit"))
    kept = stays.filter(alone)
    text = f"data.cohort=single leaves out {stays.height - kept.height} stays of several in an admission or unit"
    return kept, [Finding(COUNTS, text, False)]


def _admissions(root: pathlib.Path, admissions: pl.DataFrame) -> tuple[pl.DataFrame, list[Finding]]:
    times = {"intime": "admittime", "outtime": "dischtime"}
    return admissions.select("subject_id", "hadm_id", stay_id="hadm_id", **times), []


_ROWS: dict[str, Callable[[pathlib.Path, pl.DataFrame], tuple[pl.DataFrame, list[Finding]]]]
_ROWS = dict(zip(COHORTS, (_stays, _single, _admissions), strict=True))


def _death() -> pl.Expr:
    """When the patient died: to the minute in hospital; outside, the end of the day, the only time that is certain."""
    day_end = pl.col("dod").cast(pl.Datetime("us")) + pl.duration(hours=24)
    return pl.coalesce(pl.col("deathtime"), day_end)


def _died(label: str) -> pl.Expr:
    if label == "ihm48":
        return pl.col("hospital_expire_flag") == 1
    horizon = pl.duration(hours=48) if label == "died_within_48h" else pl.duration(days=365)
    return (pl.col("death") <= pl.col("intime") + horizon).fill_null(False)


def _labelled(root: pathlib.Path, alive: pl.DataFrame, asked: Asked) -> pl.DataFrame:
    """Returns the columns that `select` promises."""
    columns = ["stay_id", "subject_id", "hadm_id", "intime", "end", "admittime"]
    if asked.outcome == "died":
        died = _died(asked.label).cast(pl.Int8).cast(pl.String)
        return alive.select(*columns, died.alias(LABELS[asked.label].column))
    if asked.outcome != "conditions":
        return alive.select(*columns, *OUTCOMES[asked.outcome].columns)
    diagnoses = read(root, "hosp/diagnoses_icd").join(alive.select("hadm_id"), on="hadm_id", how="semi")
    diagnoses = diagnoses.with_columns(pl.col("icd_code").str.replace_all(r"\s+", ""))
    return alive.select(columns).join(phenotypes.told(diagnoses, "hadm_id"), on="hadm_id")


def _with_label(cohort: pl.DataFrame, asked: Asked) -> str:
    if asked.fields["classes"] != ("0", "1"):
        return ""
    return f", {int((cohort[asked.fields['label']] == '1').sum())} with {asked.fields['label']}"
