"""MIMIC-IV from the folder that PhysioNet gives out: intensive-care stays with notes, labs and vitals, ICD codes.

One row a stay of the intensive care unit. The input of a stay is what was known by the end of a window that begins with
the stay, and the window ends before the outcome can begin; options under which that is not so say it in the report.
docs/mimic.md describes cohort, labels and leakage.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from remind_jax.data.findings import Finding
from remind_jax.data.manifest import Manifest
from remind_jax.data.missingness import bernoulli_mask
from remind_jax.data.schema import Modality, Schema
from remind_jax.data.sources import mimic_cxr, mimic_iv_labs, mimic_iv_notes
from remind_jax.data.sources import mimic_iv_tables as tables
from remind_jax.data.sources.mimic_iv_cohort import COUNTS, TABLES, Asked, read, refuse_double, select
from remind_jax.data.sources.mimic_iv_twin import ICD, MODALITIES, PUBLISHED
from remind_jax.errors import UserError, did_you_mean
from remind_jax.runtime.files import expanded

LEAKY = "W107"
_LABS = {"text": "text", "numeric": "tabular", "last": "tabular", "events": "events"}  # kinds by `data.labs`


def load(
    root: str | pathlib.Path,
    *,
    notes_root: str | pathlib.Path = "",
    outcome: str = "died",
    cohort: str = "stays",
    label: str = "ihm48",
    hours: int = 0,
    notes: str = "earlier",
    note_characters: int = 8_000,
    labs: str = "text",
    max_events: int = 512,
    codes: str = "earlier",
    icd: str = "codes",
    icd_versions: Sequence[int] = (9,),
    missing: str = "natural",
    drop: float = 0.266,
    seed: int = 0,
    images_root: str | pathlib.Path = "",
    image_size: int = 224,
    window: str = "stored",
    bad_files: str = "refuse",
) -> Manifest:
    """Reads stays in intensive care that last at least as long as the input window, each with up to four modalities.

    `root` holds `hosp` and `icu` (versions 2.2 and 3.x; .csv.gz or .csv); `notes_root` is the folder of MIMIC-IV-Note,
    by default `note` under `root`, and without it no stay has notes. `images_root` is that of MIMIC-CXR-JPG; without it
    there are no films, to which the last three options belong. The options, and which of them leak, are explained in
    `config.sources.OF_SOURCES`; `missing` is `natural` or `bernoulli`, whose draws `seed` makes.

    Returns a manifest without a split column: `stay_id`, `subject_id`, the label, sorted by stay. Its notes count what
    was left out (I001) and name the options that leak (W107).

    Raises UserError: an option is unknown, a table is missing or damaged, or no stay is left.
    """
    _one_of("missing", missing, ("natural", "bernoulli"))
    _one_of("labs", labs, tuple(_LABS))
    _one_of("icd", icd, ICD)
    _check_numbers(icd_versions, note_characters, drop)
    leaks, asked = _leaks(notes, codes), Asked(cohort, outcome, label, hours)
    asked.check(codes)
    root = _folder(root)
    admissions = read(root, "hosp/admissions")
    refuse_double(admissions, "hadm_id", "hosp/admissions")
    stays, findings = select(root, admissions, asked)
    note_column, told = _notes(root, notes_root, stays, admissions, note_characters, notes == "paper")
    lab_columns, measured = _labs(root, stays, labs, max_events, cohort == "admissions")
    ids = stays.select(pl.col("stay_id", "subject_id").cast(pl.String))
    schema = Schema("mimic_iv", "stay_id", "subject_id", modalities=(), **asked.fields)
    parts = [*ids, *stays.select(schema.label_columns), note_column, *lab_columns]
    parts.append(_codes(root, stays, admissions, codes, icd_versions))
    columns = {"notes": ("notes",), "labs": tuple(column.name for column in lab_columns), "icd": ("icd",)}
    options = {"labs": mimic_iv_labs.ROLES | {"most": max_events}} if labs == "events" else {}
    kinds = zip(MODALITIES, ("text", _LABS[labs], icd), strict=True)
    modalities = [Modality(name, kind, columns[name], options=options.get(name, {})) for name, kind in kinds]
    images, records = expanded(images_root) if images_root else None, {}
    if images:
        modalities.append(mimic_cxr.modality(image_size, window))
        scan, seen = mimic_cxr.read(images, stays, modalities[-1], bad_files)
        columns[mimic_cxr.NAME], records, told = (mimic_cxr.NAME,), scan.records, [*told, *seen]
        parts.append(scan.cells)
    table = pl.DataFrame(parts)
    if missing == "bernoulli":
        table = _mask(table, columns, drop, seed)
    table, dropped = _with_some_modality(table, columns)
    schema = dataclasses.replace(schema, modalities=tuple(modalities))
    found = (*leaks, *findings, *told, *measured, *dropped)
    title = f"MIMIC-IV{_version(root)}{'' if outcome == 'died' else f', {outcome}'.replace('_', ' ')}"
    return Manifest(schema, table, images, title, found, records, published={} if images else dict(PUBLISHED))


# ---- options and folder ---------------------------------------------------------------------------------------------


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"data.{key} is {value!r}{did_you_mean(value, known)}; known: {', '.join(known)}")


def _check_numbers(icd_versions: Sequence[int], note_characters: int, drop: float) -> None:
    if not set(icd_versions) or not set(icd_versions) <= {9, 10}:
        raise UserError(f"data.icd_versions must be 9, 10 or both, not {tuple(icd_versions)}")
    if note_characters < 1:
        raise UserError(f"data.note_characters must be at least 1, not {note_characters}")
    if not 0 <= drop < 1:
        raise UserError(f"data.drop, the drop probability, must be at least 0 and below 1, not {drop}")


def _leaks(notes: str, codes: str) -> list[Finding]:
    """Checks both options, and the findings that name those that leak."""
    _one_of("notes", notes, ("earlier", "paper"))
    _one_of("codes", codes, ("earlier", "paper"))
    texts = []
    if notes == "paper":
        texts.append("data.notes=paper gives the model notes written after the window, discharge summaries included")
    if codes == "paper":
        texts.append("data.codes=paper gives the model diagnoses that were coded after the patient left or died")
    ending = "; the outcome leaks into the input, so figures say nothing about prediction"
    return [Finding(LEAKY, text + ending, False) for text in texts]


def _folder(root: str | pathlib.Path) -> pathlib.Path:
    root = expanded(root)
    if not root.is_dir():
        raise UserError(f"data folder {str(root)!r} does not exist or is not a folder")
    if not (root / "hosp").is_dir() or not (root / "icu").is_dir():
        raise UserError(f"{str(root)!r} is not a MIMIC-IV folder: it needs the folders hosp and icu")
    # All of them now: what is missing must not be found after the minutes that the large tables take.
    for name, kinds in (TABLES | mimic_iv_labs.TABLES).items():
        tables.find(root, name, kinds)
    return root


def _version(root: pathlib.Path) -> str:
    """What can be told of the version: " 3.1", " demo" or nothing. From file names and contents, not from the path."""
    demo = " demo" if (root / "demo_subject_id.csv").is_file() else ""
    for name in ("CHANGELOG.txt", "README.txt"):
        path = root / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")[:100_000]
            found = re.search(r"(?:mimic-iv|version|\[)[ -]*v?(\d\.\d)\b", text, re.IGNORECASE)
            if found:
                return f" {found[1]}{demo}"
    named = re.fullmatch(r"(?:mimic-?iv[a-z-]*)?v?(\d\.\d)", root.resolve().name, re.IGNORECASE)
    return f" {named[1]}{demo}" if named else demo


# ---- modalities -----------------------------------------------------------------------------------------------------


def _notes(
    root: pathlib.Path,
    notes_root: str | pathlib.Path,
    cohort: pl.DataFrame,
    admissions: pl.DataFrame,
    characters: int,
    leaky: bool,
) -> tuple[pl.Series, list[Finding]]:
    """The notes of each stay of the cohort, and what is to be said of them."""
    if not notes_root and not (root / "note").is_dir():
        text = "no stay has notes: name the folder of MIMIC-IV-Note with data.notes_root"
        return pl.Series("notes", [None] * cohort.height, dtype=pl.String), [Finding(COUNTS, text, False)]
    folder = expanded(notes_root) if notes_root else root
    if not folder.is_dir():
        raise UserError(f"folder of notes {str(notes_root)!r} does not exist or is not a folder")
    stays = cohort.select("stay_id", "subject_id", "hadm_id", "admittime", "end")
    found = mimic_iv_notes.read(folder, stays, admissions["hadm_id"], characters=characters, leaky=leaky)
    cells = cohort.select("stay_id").join(found.texts, on="stay_id", how="left", maintain_order="left")["notes"]
    text = f"{found.used} notes are used, {found.unlinked} of them name no known admission and go by patient and time"
    return cells, [Finding(COUNTS, text, False)]


def _labs(
    root: pathlib.Path, cohort: pl.DataFrame, form: str, most: int, by_admission: bool
) -> tuple[list[pl.Series], list[Finding]]:
    """The columns of labs and vital signs, and how many were used and left out."""
    measured = mimic_iv_labs.read(root, cohort.select("stay_id", "subject_id", "intime", "end"), by_admission)
    stay_ids = cohort["stay_id"].to_list()
    if form == "numeric":
        columns = mimic_iv_labs.as_numbers(measured.table, stay_ids).get_columns()
    elif form == "last":
        numbers = mimic_iv_labs.as_numbers(measured.table, stay_ids)
        columns = [column for column in numbers.iter_columns() if column.name.endswith("_last")]
    elif form == "events":
        columns = [mimic_iv_labs.as_events(measured.events, cohort, most).alias("labs")]
        over = measured.kept - int(columns[0].list.len().sum())
        measured.dropped[f"beyond the newest {most} of a stay"] = over
    else:
        columns = [mimic_iv_labs.as_text(measured.table, stay_ids)]
    dropped = ", ".join(f"{n} {reason}" for reason, n in measured.dropped.items() if n)
    text = f"{measured.kept} labs and vital signs are used, {f'{dropped} are left out' if dropped else 'none left out'}"
    return columns, [Finding(COUNTS, text, False)]


def _codes(
    root: pathlib.Path, cohort: pl.DataFrame, admissions: pl.DataFrame, source: str, versions: Sequence[int]
) -> pl.Series:
    """Diagnoses of each stay of the cohort: newest admission first, in its order of importance, each code once."""
    diagnoses = read(root, "hosp/diagnoses_icd")
    code = pl.col("icd_code").str.replace_all(r"\s+", "")
    written = pl.when(pl.col("icd_version") == 10).then(pl.lit("10-") + code).otherwise(code)
    diagnoses = diagnoses.select(
        "hadm_id", "seq_num", "icd_version", (written if set(versions) == {9, 10} else code).alias("icd_code")
    ).filter(pl.col("icd_version").is_in(list(versions)) & (code.str.len_chars() > 0).fill_null(False))
    stays = cohort.select("stay_id", "subject_id", "admittime", pl.col("hadm_id").alias("own"))
    pairs = stays.join(admissions.select("subject_id", "hadm_id", "dischtime"), on="subject_id")
    own = pl.col("hadm_id") == pl.col("own")
    earlier = ~own & (pl.col("dischtime") <= pl.col("admittime")).fill_null(False)
    rows = pairs.filter(own if source == "paper" else earlier).join(diagnoses, on="hadm_id")
    rows = rows.sort(
        "stay_id", "dischtime", "hadm_id", "seq_num", "icd_code", descending=[False, True, True, False, False]
    )
    listed = rows.group_by("stay_id", maintain_order=True).agg(
        pl.col("icd_code").unique(maintain_order=True).str.join(" ").alias("icd")
    )
    return cohort.select("stay_id").join(listed, on="stay_id", how="left", maintain_order="left")["icd"]


def _mask(table: pl.DataFrame, columns: dict[str, tuple[str, ...]], drop: float, seed: int) -> pl.DataFrame:
    """Empties modalities at random among those that a row has; a row that has any keeps at least one."""
    rng = np.random.default_rng(seed)
    present = _presence(table, columns)
    keep = present.copy()
    for count in range(1, len(columns) + 1):
        rows = np.flatnonzero(present.sum(axis=1) == count)
        drawn = np.zeros((len(rows), len(columns)), bool)
        drawn[present[rows]] = bernoulli_mask(len(rows), count, drop, rng).reshape(-1)
        keep[rows] = drawn
    cells = []
    for j, names in enumerate(columns.values()):
        kept = pl.lit(pl.Series(keep[:, j]))
        cells += [pl.when(kept).then(pl.col(name)).alias(name) for name in names]
    return table.with_columns(cells)


def _presence(table: pl.DataFrame, columns: dict[str, tuple[str, ...]]) -> np.ndarray:
    parts = [table.select(pl.any_horizontal(pl.col(names).is_not_null())).to_series() for names in columns.values()]
    return np.stack([part.to_numpy() for part in parts], axis=1)


def _with_some_modality(table: pl.DataFrame, columns: dict[str, tuple[str, ...]]) -> tuple[pl.DataFrame, list[Finding]]:
    here = _presence(table, columns).any(axis=1)
    if here.all():
        return table, []
    if not here.any():
        raise UserError("no stay has any modality: are labevents and chartevents those of these patients?")
    text = f"{int((~here).sum())} stays without any modality are left out"
    return table.filter(pl.Series(here)), [Finding(COUNTS, text, False)]
