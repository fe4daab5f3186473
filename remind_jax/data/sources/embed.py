"""EMBED, the Emory Breast Imaging Dataset: breast density from up to four mammography views.

Reads the folder of the AWS Open Data release: `tables/EMBED_OpenData_clinical.csv` (one row a finding),
`tables/EMBED_OpenData_metadata.csv` (one row a file; the `_reduced` tables serve as well) and
`images/cohort_1/…/*.dcm`. `docs/embed.md` says what is kept, what is dropped and why.
"""

import pathlib
from collections.abc import Mapping

import numpy as np
import polars as pl

from remind_jax.data import check
from remind_jax.data.findings import FileRecord, Finding
from remind_jax.data.kinds.pixels import IMAGE
from remind_jax.data.manifest import Manifest
from remind_jax.data.reading import BAD_FILES
from remind_jax.data.scan import scan_files
from remind_jax.data.schema import Modality, Schema
from remind_jax.errors import UserError, did_you_mean

TITLES = {"c_view_cc": "C-view CC", "c_view_mlo": "C-view MLO", "2d_cc": "2D CC", "2d_mlo": "2D MLO"}
MODALITIES = tuple(TITLES)
"""In the order of the paper (M1 to M4); 2D is full-field digital mammography."""

PUBLISHED = (
    ("2d_cc", 0.030),
    ("c_view_cc+2d_cc", 0.006),
    ("2d_mlo", 0.012),
    ("2d_cc+2d_mlo", 0.578),
    ("c_view_cc+2d_cc+2d_mlo", 0.003),
    ("c_view_cc+c_view_mlo+2d_cc+2d_mlo", 0.371),
)
"""The combinations and their frequencies in the paper's section 7.4.2."""

CLASSES = ("A", "B", "C", "D")
"""BI-RADS density, from almost entirely fat to extremely dense; 1 to 4 in the tables."""
LABEL = "breast density"

UNITS = ("exam", "breast")
KEYS = ("acc_anon", "study_date")
SUFFIXES = (".dcm", ".png", "_conv.png", ".jpg")
"""What may stand in place of `.dcm` at the end of the file names; `_conv.png` is what the official notebook writes."""

NOTE = "I001"
"""Code of the notes: what was read and what was left out."""


def load(
    root: str | pathlib.Path,
    *,
    unit: str = "exam",
    key: str = "acc_anon",
    image_size: int = 224,
    suffix: str = ".dcm",
    bad_files: str = "refuse",
    window: str = "stored",
) -> Manifest:
    """Reads the tables of EMBED under `root` and looks at the image files they name.

    The options are explained in `config.sources.OF_SOURCES`. With `unit="exam"` both breasts are merged, with `breast`
    each is a sample (`ImageLateralityFinal`). The dates of the two tables may differ for one exam, so `key="acc_anon"`
    finds more than `study_date`. With `bad_files="missing"` a file that is not there or cannot be used is a missing
    view, counted in a note, and an exam without any other view is dropped.

    Returns a manifest of four modalities of kind image, shape (s, s, 1), stored in files; a sample that has several
    files for one modality keeps the first in the order of the metadata table. Its notes say what was dropped.

    Raises UserError: a table, a column or a file is missing or cannot be used, or no exam is left.
    """
    for name, value, allowed in (("unit", unit, UNITS), ("key", key, KEYS), ("suffix", suffix, SUFFIXES)):
        if value not in allowed:
            raise UserError(f"embed: {name} must be one of {', '.join(allowed)}, not {value!r}")
    if bad_files not in BAD_FILES:
        raise UserError(f"bad_files must be {' or '.join(BAD_FILES)}, not {bad_files!r}")
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"data folder {str(root)!r} does not exist or is not a folder")
    dropped: dict[str, int] = {}
    keys = ["empi_anon", "acc_anon" if key == "acc_anon" else "study_date_anon"]
    exams = _densities(_read_table(root, "clinical", [*keys, "tissueden"]), keys, dropped)
    index = [*keys, "side"] if unit == "breast" else keys
    metadata = _read_metadata(root, keys, unit)
    views = _views(metadata, index, dropped, root, suffix)
    samples = exams.join(views, on=keys, how="inner", maintain_order="left")
    dropped["exams with a density but no usable image"] = exams.join(views, on=keys, how="anti").height
    dropped[f"{unit}s with images but no usable density"] = views.join(exams, on=keys, how="anti").height
    if not samples.height:
        raise UserError(f"{root}: the tables give no usable exam ({_listed(dropped)})")
    notes = []
    if "BreastImplantPresent" not in metadata.columns:
        text = "the metadata table has no column BreastImplantPresent, so images of implants are not left out"
        notes.append(Finding(NOTE, text, False))
    return _manifest(root, samples, index, dropped, notes, image_size, bad_files, window)


def _read_table(root: pathlib.Path, part: str, needed: list[str], optional: tuple[str, ...] = ()) -> pl.DataFrame:
    """The columns of a table that are used, all as strings: guessing types would round 16-digit numbers."""
    names = [f"EMBED_OpenData_{part}{ending}.csv" for ending in ("", "_reduced")]
    paths = [folder / name for folder in (root / "tables", root) for name in names]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise UserError(f"{root}: its folder tables holds neither {names[0]} nor {names[1]}")
    try:
        frame = pl.scan_csv(path, infer_schema=False, encoding="utf8-lossy")
        header = frame.collect_schema().names()
        absent = [name for name in needed if name not in header]
        if absent:
            hint = did_you_mean(absent[0], header) or "; the columns of the public release are needed"
            raise UserError(f"{path.name} lacks the column {absent[0]!r}{hint}")
        table = frame.select(*needed, *(name for name in optional if name in header)).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise UserError(f"{path} cannot be read as a CSV table ({type(error).__name__})") from None
    table = table.with_columns(pl.all().str.strip_chars())
    blank = pl.all().str.to_lowercase().is_in(["", "nan", "none"])
    table = table.with_columns(pl.when(~blank).then(pl.all()))
    return table.with_columns(_identifiers(table, name, path.name) for name in needed if name.endswith("_anon"))


def _identifiers(table: pl.DataFrame, name: str, where: str) -> pl.Series:
    column = table[name]
    if column.str.contains(r"^\d(\.\d+)?[eE]\+?\d+$").any():
        text = "numbers in scientific notation, which have lost digits; take the table as it was released"
        raise UserError(f"{where}: column {name!r} holds {text}")
    # A column with holes is written as 1234.0 by pandas. Dates keep their day only.
    return column.str.replace(r"\.0+$", "").str.replace(r"^(\d{4}-\d\d-\d\d)[ T].*$", "${1}")


def _densities(table: pl.DataFrame, keys: list[str], dropped: dict[str, int]) -> pl.DataFrame:
    """One row an exam with its `density` A to D, in the order of the table."""
    text = table["tissueden"]
    value = text.cast(pl.Float64, strict=False)
    wrong = (value.is_null() & text.is_not_null()).to_numpy()
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0]) + 1
        raise UserError(f"the clinical table: column 'tissueden' holds something that is not a number (row {row})")
    legal = value.is_in([1.0, 2.0, 3.0, 4.0])
    table = table.with_columns(value=value.set(~legal.fill_null(False), None), other=value.is_not_null() & ~legal)
    exams = (
        table.drop_nulls(keys)
        .group_by(keys, maintain_order=True)
        .agg(
            kinds=pl.col("value").drop_nulls().n_unique(),
            value=pl.col("value").drop_nulls().first(),
            other=pl.col("other").any(),
        )
    )
    none = pl.col("kinds") == 0
    dropped["exams of density 5 (male)"] = exams.filter(none & pl.col("other")).height
    dropped["exams without a density"] = exams.filter(none & ~pl.col("other")).height
    dropped["exams whose findings disagree on the density"] = exams.filter(pl.col("kinds") > 1).height
    density = (pl.col("value").cast(pl.Int64) - 1).replace_strict(dict(enumerate(CLASSES)), return_dtype=pl.String)
    return exams.filter(pl.col("kinds") == 1).select(*keys, density.alias("density"))


def _read_metadata(root: pathlib.Path, keys: list[str], unit: str) -> pl.DataFrame:
    needed = [*keys, "anon_dicom_path", "FinalImageType", "ViewPosition", "spot_mag"]
    if unit == "breast":
        needed.append("ImageLateralityFinal")
    table = _read_table(root, "metadata", needed, ("BreastImplantPresent",))
    if unit == "breast":
        table = table.rename({"ImageLateralityFinal": "side"})
    return table


def _views(
    table: pl.DataFrame, index: list[str], dropped: dict[str, int], root: pathlib.Path, suffix: str
) -> pl.DataFrame:
    """One row a sample with the path of each view in a column of its own, null where there is none."""
    # "cview" in the tables, "C-view" in the documentation.
    kind = pl.col("FinalImageType").str.to_lowercase().str.replace_all("[^0-9a-z]", "")
    view = pl.col("ViewPosition").str.to_uppercase()
    steps = [
        ("files that are neither 2D nor C-view", kind.is_in(["2d", "cview"])),
        ("files of views other than CC and MLO", view.is_in(["CC", "MLO"])),
        ("spot or magnification files", ~pl.col("spot_mag").cast(pl.Float64, strict=False).eq_missing(1.0)),
        (
            "files without a path, patient, exam or side",
            pl.all_horizontal(pl.col(*index, "anon_dicom_path").is_not_null()),
        ),
    ]
    if "BreastImplantPresent" in table.columns:
        implant = pl.col("BreastImplantPresent").str.to_uppercase().eq_missing("YES")
        steps.append(("files that show an implant", ~implant))
    if "side" in index:
        steps.append(("files of neither the left nor the right breast", pl.col("side").is_in(["L", "R"])))
    for reason, keep in steps:
        kept = table.filter(keep.fill_null(False))
        dropped[reason] = table.height - kept.height
        table = kept
    prefix = "images/" if (root / "images").is_dir() else ""
    # The tables name the server that the files were prepared on.
    below = pl.col("anon_dicom_path").str.replace(r"^.*?/anon_dicom/", "").str.replace(r"^images/", "")
    path = pl.lit(prefix) + below.str.replace(r"\.dcm$", suffix)
    name = pl.when(kind == "cview").then(pl.lit("c_view_")).otherwise(pl.lit("2d_")) + view.str.to_lowercase()
    table = table.select(*index, name.alias("modality"), path.alias("path"))
    first = table.unique([*index, "modality"], keep="first", maintain_order=True)
    dropped["further files of a view that the sample already has"] = table.height - first.height
    columns = [pl.col("path").filter(pl.col("modality") == name).first().alias(name) for name in MODALITIES]
    return first.group_by(index, maintain_order=True).agg(columns)


def _manifest(
    root: pathlib.Path,
    samples: pl.DataFrame,
    index: list[str],
    dropped: dict[str, int],
    notes: list[Finding],
    image_size: int,
    bad_files: str,
    window: str,
) -> Manifest:
    unit = "breast" if "side" in index else "exam"
    table = samples.select(
        pl.concat_str(index, separator="_").alias("sample"),
        pl.col("empi_anon").alias("patient"),
        "density",
        *MODALITIES,
    )
    shape = (image_size, image_size, 1)
    look = {"stored": "file", "shape": shape}
    views = (Modality(name, "image", (name,), **look, title=title) for name, title in TITLES.items())
    modalities = tuple(IMAGE.windowed(view, window) for view in views)
    records: dict[str, FileRecord] = {}
    for modality in modalities:
        scan = scan_files(root, modality, table[modality.name], thorough=bad_files == "missing", bad_files=bad_files)
        table = table.with_columns(scan.cells)
        records |= scan.records
        notes += scan.findings
    check.refuse(notes)
    empty = pl.all_horizontal(pl.col(*MODALITIES).is_null())
    dropped[f"{unit}s of which no file is usable"] = table.filter(empty).height
    table = table.filter(~empty)
    if not table.height:
        raise UserError(f"{root}: no exam has a usable file ({_listed(dropped)})")
    schema = Schema(
        **{"name": "embed", "sample_id": "sample", "patient_id": "patient", "label": "density"},
        **{"classes": CLASSES, "modalities": modalities, "title": LABEL},
    )
    kept = f"{table.height} {unit}s of {table['patient'].n_unique()} patients; left out: {_listed(dropped)}"
    notes.append(Finding(NOTE, kept, False))
    return Manifest(schema, table, root, "EMBED", tuple(notes), records, published=dict(PUBLISHED))


def _listed(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "nothing"
