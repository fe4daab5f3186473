"""Chest films of MIMIC-CXR-JPG for stays of MIMIC-IV: the newest frontal one of each window.

The two projects have the same patients and the same shifted time. A film is known when it is taken.
"""

import pathlib

import polars as pl

from remind_jax.data import check
from remind_jax.data.findings import Finding
from remind_jax.data.kinds.pixels import IMAGE
from remind_jax.data.scan import Scan, scan_files
from remind_jax.data.schema import Modality
from remind_jax.data.sources import mimic_iv_tables as tables
from remind_jax.data.sources.mimic_iv_cohort import COUNTS
from remind_jax.errors import UserError

NAME = "film"
METADATA = "mimic-cxr-2.0.0-metadata"
_KINDS = {"dicom_id": "text", "subject_id": "id", "study_id": "id", "ViewPosition": "text"}
_KINDS |= {"StudyDate": "id", "StudyTime": "number"}
FRONTAL = ("AP", "PA")


def modality(image_size: int, window: str) -> Modality:
    """Returns films as a modality of square grey images."""
    return IMAGE.windowed(Modality(NAME, "image", (NAME,), stored="file", shape=(image_size, image_size, 1)), window)


def read(root: pathlib.Path, stays: pl.DataFrame, films: Modality, bad_files: str) -> tuple[Scan, list[Finding]]:
    """Returns the path of each stay's film below `root`, null without one, with what the files are, and what to say.

    `root` is the folder of MIMIC-CXR-JPG, which holds the table of metadata and `files`; `stays` has `stay_id`,
    `subject_id`, `intime` and `end`, one row a stay. Raises UserError: the table or a file cannot be used.
    """
    if not root.is_dir():
        raise UserError(f"folder of images {str(root)!r} does not exist or is not a folder")
    table = tables.find(root, METADATA, _KINDS, "MIMIC-CXR-JPG")
    rows = table.scan().filter(pl.col("ViewPosition").is_in(FRONTAL)).join(stays.lazy(), on="subject_id")
    rows = rows.with_columns(_taken(table).alias("taken"))
    found = table.collect(rows.filter(pl.col("taken").is_between(pl.col("intime"), pl.col("end"))))
    newest = found.sort("taken", "dicom_id", descending=True).unique("stay_id", keep="first", maintain_order=True)
    patient, study = (pl.col(name).cast(pl.String) for name in ("subject_id", "study_id"))
    path = pl.format("files/p{}/p{}/s{}/{}.jpg", patient.str.head(2), patient, study, "dicom_id")
    cells = stays.select("stay_id").join(
        newest.select("stay_id", path.alias(NAME)), on="stay_id", how="left", maintain_order="left"
    )
    scan = scan_files(root, films, cells[NAME], thorough=bad_files == "missing", bad_files=bad_files)
    check.refuse(scan.findings)
    text = f"{newest.height} of {stays.height} stays have a frontal film in the window, of {found.height} the newest"
    return scan, [*scan.findings, Finding(COUNTS, text, False)]


def _taken(table: tables.Table) -> pl.Expr:
    """The time of a film: the date is written as 21800506, the time as 80556.875 for 08:05:56."""
    date = pl.col("StudyDate").cast(pl.String).str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("us"))
    time = table.typed("StudyTime")
    seconds = (time // 10_000) * 3_600 + (time // 100 % 100) * 60 + time % 100
    return date + pl.duration(microseconds=(seconds * 1_000_000).cast(pl.Int64))
